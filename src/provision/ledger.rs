//! What this daemon has on its hands: every instance of this host, and what is
//! being done with it right now.
//!
//! Owned by the life cycle, in memory only. It answers two questions that the
//! store cannot: is there room for another one (one atomic step, so that
//! concurrent requests never exceed MAX_INSTANCES), and is somebody at work on
//! this instance at the moment (so that nothing is ended twice at once, and a
//! warming record without a maker is known as abandoned).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::id::InstanceId;

/// What is being done with an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// It is being made.
    Making,
    /// Nothing: it is there.
    Living,
    /// It is being taken down.
    Ending,
}

/// Every instance of this host.
#[derive(Debug)]
pub(super) struct Ledger {
    max: usize,
    /// A std lock: held for one map operation, never across an await.
    held: Mutex<HashMap<InstanceId, Doing>>,
}

impl Ledger {
    pub(super) fn new(max: usize) -> Self {
        Self { max, held: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<InstanceId, Doing>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for an instance about to be made; false when none is left.
    pub(super) fn try_begin(&self, id: &InstanceId) -> bool {
        let mut held = self.lock();
        if held.len() >= self.max {
            return false;
        }
        held.insert(id.clone(), Doing::Making);
        true
    }

    /// Notes that an instance is there, even beyond the limit: it exists.
    pub(super) fn lives(&self, id: &InstanceId) {
        self.lock().insert(id.clone(), Doing::Living);
    }

    /// Takes the right to end an instance; false when somebody has it already.
    pub(super) fn try_end(&self, id: &InstanceId) -> bool {
        self.lock().insert(id.clone(), Doing::Ending) != Some(Doing::Ending)
    }

    /// Frees the instance's place.
    pub(super) fn forget(&self, id: &InstanceId) {
        self.lock().remove(id);
    }

    /// What is being done with an instance; none when it is not held here.
    pub(super) fn doing(&self, id: &InstanceId) -> Option<Doing> {
        self.lock().get(id).copied()
    }

    /// How many places are taken.
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// How many places are left.
    pub(super) fn room(&self) -> usize {
        self.max.saturating_sub(self.len())
    }

    /// How many places there are.
    pub(super) const fn max(&self) -> usize {
        self.max
    }
}
