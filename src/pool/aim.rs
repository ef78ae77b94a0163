//! What an operator has changed about the pool while the daemon runs.
//!
//! Written by the API, read by acquire, the reconciler and the worker of jobs.
//! It lasts as long as the process: after a restart what is usual counts again.
//!
//! ```text
//! usual    of one that was published, in place of POOL_TARGET_SIZE; written down elsewhere
//! target   of one golden, in place of what is usual
//! drained  nothing is handed out and nothing is made; what is there stays
//! ```
//!
//! Each daemon has its own: one that shares a store with others is drained alone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::id::GoldenName;

/// The operator's word on the pool; clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Aim(Arc<Mutex<Said>>);

#[derive(Debug, Default)]
struct Said {
    targets: BTreeMap<GoldenName, usize>,
    usual: BTreeMap<GoldenName, usize>,
    drained_since: Option<Timestamp>,
}

impl Aim {
    /// A std lock: held for one map operation, never across an await.
    fn lock(&self) -> MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many of a golden are to be ready, where POOL_TARGET_SIZE is `set`.
    #[must_use]
    pub fn target(&self, golden: &GoldenName, set: usize) -> usize {
        let said = self.lock();
        said.targets.get(golden).or_else(|| said.usual.get(golden)).copied().unwrap_or(set)
    }

    /// How many are to be ready as long as nobody says otherwise.
    #[must_use]
    pub fn usual(&self, golden: &GoldenName, set: usize) -> usize {
        self.lock().usual.get(golden).copied().unwrap_or(set)
    }

    /// Sets what is usual of a golden that was published.
    pub fn set_usual(&self, golden: &GoldenName, usual: usize) {
        self.lock().usual.insert(golden.clone(), usual);
    }

    /// Forgets what was said of a golden that is served no more.
    pub fn forget(&self, golden: &GoldenName) {
        let mut said = self.lock();
        said.targets.remove(golden);
        said.usual.remove(golden);
    }

    /// Sets a golden's target; none takes what is usual again.
    pub fn set_target(&self, golden: &GoldenName, target: Option<usize>) {
        let mut said = self.lock();
        match target {
            Some(target) => said.targets.insert(golden.clone(), target),
            None => said.targets.remove(golden),
        };
    }

    /// Since when the pool is drained, if it is.
    #[must_use]
    pub fn drained_since(&self) -> Option<Timestamp> {
        self.lock().drained_since
    }

    /// Whether the pool is drained.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.drained_since().is_some()
    }

    /// Drains the pool; answers since when it is drained, which may be earlier.
    pub fn drain(&self, now: Timestamp) -> Timestamp {
        *self.lock().drained_since.get_or_insert(now)
    }

    /// Ends that; whether it was drained.
    pub fn undrain(&self) -> bool {
        self.lock().drained_since.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_counts_until_it_is_taken_back() {
        let (aim, shop, other) = (Aim::default(), "shop".parse().unwrap(), "other".parse().unwrap());
        aim.clone().set_target(&shop, Some(7));
        assert_eq!((aim.target(&shop, 4), aim.target(&other, 4)), (7, 4));
        aim.set_target(&shop, None);
        assert_eq!(aim.target(&shop, 4), 4);
    }

    #[test]
    fn a_published_goldens_own_size_stands_in_for_the_settings() {
        let (aim, shop) = (Aim::default(), "shop".parse().unwrap());
        aim.set_usual(&shop, 1);
        assert_eq!((aim.target(&shop, 4), aim.usual(&shop, 4)), (1, 1));
        aim.set_target(&shop, Some(7));
        assert_eq!((aim.target(&shop, 4), aim.usual(&shop, 4)), (7, 1));
        aim.set_target(&shop, None);
        assert_eq!(aim.target(&shop, 4), 1);
        aim.set_target(&shop, Some(7));
        aim.forget(&shop);
        assert_eq!((aim.target(&shop, 4), aim.usual(&shop, 4)), (4, 4));
    }

    #[test]
    fn draining_twice_keeps_the_first_time() {
        let aim = Aim::default();
        let first = Timestamp::from_second(1).unwrap();
        assert_eq!(aim.drain(first), first);
        assert_eq!(aim.drain(Timestamp::from_second(9).unwrap()), first);
        assert!(aim.is_drained() && aim.undrain() && !aim.undrain() && !aim.is_drained());
    }
}
