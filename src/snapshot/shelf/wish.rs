//! Whether a shop that is being packed is still wanted: who waits for its key may go, and
//! nobody else could ever open it.
//!
//! ```text
//! waits -> settled      it is put in its place; who waited gets the key
//!       -> given up     nobody waits: what was kept before stays, and its key with it
//! ```
//!
//! Decided once, by whoever is first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

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

    /// Whether it may be put in its place, which cannot be taken back then.
    pub(super) fn settle(&self) -> bool {
        self.decide(SETTLED)
    }

    /// Whether nobody waits any more.
    pub(super) fn is_given_up(&self) -> bool {
        self.0.load(Ordering::Acquire) == GIVEN_UP
    }
}

/// Gives a wish up when it is dropped: its client has gone.
#[derive(Debug)]
pub struct Waiting(pub Wish);

impl Drop for Waiting {
    fn drop(&mut self) {
        // It may be kept by now, with nobody to tell its key: who goes at that moment
        // keeps it again.
        let _ = self.0.give_up();
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
        drop(Waiting(wish.clone()));
        assert!(wish.is_given_up() && !wish.settle() && wish.give_up());
    }
}
