//! Whether a shop that is being packed is still wanted: who waits for its key may go, and
//! nobody else could ever open it.
//!
//! ```text
//! waits -> settled      it is put in its place, or cannot be; who waited is told
//!       -> given up     nobody waits: what was kept before stays, and its key with it
//! ```
//!
//! Decided once, by whoever is first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::id::InstanceId;

const WAITS: u8 = 0;
const SETTLED: u8 = 1;
const GIVEN_UP: u8 = 2;

/// Of one shop; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Wish(Arc<AtomicU8>);

impl Wish {
    fn decide(&self, as_what: u8) -> bool {
        let decided = self.0.compare_exchange(WAITS, as_what, Ordering::AcqRel, Ordering::Acquire);
        decided.is_ok() || decided == Err(as_what)
    }

    /// Waits no longer; false when it is being put in its place, so that waiting on is short.
    #[must_use]
    pub fn give_up(&self) -> bool {
        self.decide(GIVEN_UP)
    }

    /// Decides that it is not given up any more: it may be put in its place, or there is an
    /// answer without that. False when it is given up by now.
    pub fn settle(&self) -> bool {
        self.decide(SETTLED)
    }

    /// Whether nobody waits any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.0.load(Ordering::Acquire) == GIVEN_UP
    }
}

/// Who waits for an instance to be kept; gives the wish up when it is dropped undecided:
/// its client has gone.
#[derive(Debug)]
pub struct Waiting {
    /// What is waited for.
    pub wish: Wish,
    /// Of which instance.
    pub id: InstanceId,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // It may be kept by now, with nobody to tell its key: who goes at that moment
        // keeps it again.
        if !self.wish.is_given_up() && self.wish.give_up() {
            tracing::info!(instance_id = %self.id, "client gone before its instance was kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_decided_first_counts() {
        let wish = Wish::default();
        assert!(!wish.is_given_up() && wish.settle() && !wish.give_up() && wish.settle());
        let wish = Wish::default();
        let id = InstanceId::random();
        drop(Waiting { wish: wish.clone(), id });
        assert!(wish.is_given_up() && !wish.settle() && wish.give_up());
    }
}
