//! What an operator does to a running daemon's pool, as far as the life cycle
//! knows of it. Called by the API.

use super::Lifecycle;
use crate::pool::aim::Aim;

impl Lifecycle {
    /// What an operator has changed about the pool.
    #[must_use]
    pub const fn aim(&self) -> &Aim {
        &self.aim
    }

    /// Has the reconciler look at the pool now.
    pub fn look_at_pool(&self) {
        self.refill.now();
    }
}
