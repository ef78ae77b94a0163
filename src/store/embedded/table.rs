//! The embedded store's state in memory: all records and their indices.
//!
//! Owned by the writer thread of [`super`]. Every change goes through
//! [`Table::set`], which keeps the indices true and a journal of what was there
//! before, so that a batch whose commit failed can be taken back whole.
//! Pure: no I/O, no clock.
//!
//! Invariants: `ready` holds exactly the records in state ready, oldest first;
//! `due` exactly the records with a deadline that are not final; `keys` only
//! leads to records that are somebody's now.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use jiff::Timestamp;

use super::admissions::Admissions;
use crate::id::{GoldenName, InstanceId};
use crate::instance::{Instance, Source, State, Transition};
use crate::store::{Claim, Claimed, StoreError};

/// Records in the order of a time, the id breaking ties.
type Queue = BTreeSet<(Timestamp, InstanceId)>;

/// All records, their indices, and what the open batch changed.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Shared with whoever reads them: a page costs no copies.
    records: BTreeMap<InstanceId, Arc<Instance>>,
    ready: HashMap<GoldenName, Queue>,
    due: Queue,
    counts: HashMap<GoldenName, BTreeMap<State, usize>>,
    keys: HashMap<String, InstanceId>,
    /// Beside the records and their journal: see there.
    pub(super) admissions: Admissions,
    /// What each changed record was before, in order of change.
    journal: Vec<(InstanceId, Option<Arc<Instance>>)>,
    /// Whether the batch is committed even when it changed nothing.
    proof_wanted: bool,
}

impl Table {
    /// The table of the records found in the file.
    pub(super) fn of(records: Vec<Instance>, admissions: Admissions) -> Self {
        let mut table = Self { admissions, ..Self::default() };
        for record in records {
            table.put(record.id.clone(), Some(Arc::new(record)));
        }
        table
    }

    // What the port offers.

    pub(super) fn insert(&mut self, mut instance: Instance) -> Result<Instance, StoreError> {
        if self.records.contains_key(&instance.id) {
            return Err(StoreError::Exists { id: instance.id });
        }
        instance.generation = 1;
        self.set(instance.clone());
        Ok(instance)
    }

    pub(super) fn get(&self, id: &InstanceId) -> Option<Instance> {
        self.records.get(id).map(|record| Instance::clone(record))
    }

    pub(super) fn update(&mut self, mut instance: Instance) -> Result<Instance, StoreError> {
        let id = &instance.id;
        let stored = self.records.get(id).ok_or_else(|| StoreError::Unknown { id: id.clone() })?;
        if stored.generation != instance.generation {
            return Err(StoreError::Stale {
                id: id.clone(),
                expected: instance.generation,
                found: stored.generation,
            });
        }
        if stored.state.try_transition(instance.state) == Transition::Denied {
            return Err(StoreError::Denied { id: id.clone(), from: stored.state, to: instance.state });
        }
        instance.generation += 1;
        self.set(instance.clone());
        Ok(instance)
    }

    pub(super) fn claim(&mut self, claim: Claim) -> Claimed {
        if let Some(held) = claim.idempotency_key.as_ref().and_then(|key| self.held(key, claim.now)) {
            return Claimed::Again(held);
        }
        let Some((_, id)) = self.ready.get(&claim.golden).and_then(BTreeSet::first) else {
            return Claimed::Empty;
        };
        let mut instance = Instance::clone(&self.records[id]);
        instance.generation += 1;
        instance.state = State::Assigned;
        instance.source = Some(Source::Pool);
        instance.assigned_at = Some(claim.now);
        instance.expires_at = Some(claim.expires_at);
        instance.idempotency_key = claim.idempotency_key;
        self.set(instance.clone());
        Claimed::New(instance)
    }

    pub(super) fn held(&self, key: &str, now: Timestamp) -> Option<Instance> {
        let held = self.keys.get(key).and_then(|id| self.records.get(id));
        held.filter(|held| held.is_held_under(key, now)).map(|held| Instance::clone(held))
    }

    pub(super) fn remove(&mut self, id: &InstanceId) {
        if let Some(before) = self.put(id.clone(), None) {
            self.journal.push((id.clone(), Some(before)));
        }
    }

    pub(super) fn write_again(&mut self, instance: Instance) -> Result<(), StoreError> {
        if let Some(stored) = self.records.get(&instance.id)
            && stored.generation >= instance.generation
        {
            return Err(StoreError::Stale {
                id: instance.id,
                expected: instance.generation,
                found: stored.generation,
            });
        }
        self.set(instance);
        Ok(())
    }

    /// Up to `most` records, by their ids, from the first one after `after`.
    pub(super) fn page(&self, after: Option<&InstanceId>, most: usize) -> Vec<Arc<Instance>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.records
            .range((from, Bound::Unbounded))
            .take(most)
            .map(|(_, record)| Arc::clone(record))
            .collect()
    }

    pub(super) fn due(&self, now: Timestamp, limit: usize) -> Vec<Instance> {
        self.due
            .iter()
            .take_while(|(deadline, _)| *deadline <= now)
            .take(limit)
            .map(|(_, id)| Instance::clone(&self.records[id]))
            .collect()
    }

    pub(super) fn counts(&self, golden: &GoldenName) -> BTreeMap<State, usize> {
        self.counts.get(golden).cloned().unwrap_or_default()
    }

    // The open batch.

    /// Has this batch committed whatever it changed, as a proof that it can be.
    pub(super) fn want_proof(&mut self) {
        self.proof_wanted = true;
    }

    /// Whether there is something to commit.
    pub(super) fn is_dirty(&self) -> bool {
        self.proof_wanted || !self.journal.is_empty()
    }

    /// Each record the batch changed, once, as it is now.
    pub(super) fn changes(&self) -> BTreeMap<&InstanceId, Option<&Instance>> {
        self.journal.iter().map(|(id, _)| (id, self.records.get(id).map(Arc::as_ref))).collect()
    }

    /// Ends the batch: what it changed stays.
    pub(super) fn keep(&mut self) {
        self.journal.clear();
        self.proof_wanted = false;
    }

    /// Ends the batch: what it changed is as it was before.
    pub(super) fn take_back(&mut self) {
        for (id, before) in std::mem::take(&mut self.journal).into_iter().rev() {
            self.put(id, before);
        }
        self.proof_wanted = false;
    }

    fn set(&mut self, instance: Instance) {
        let id = instance.id.clone();
        let before = self.put(id.clone(), Some(Arc::new(instance)));
        self.journal.push((id, before));
    }

    /// Replaces a record and its index entries; answers the former one.
    fn put(&mut self, id: InstanceId, next: Option<Arc<Instance>>) -> Option<Arc<Instance>> {
        let before = self.records.remove(&id);
        if let Some(before) = &before {
            self.leave_indices(before);
        }
        if let Some(next) = next {
            self.enter_indices(&next);
            self.records.insert(id, next);
        }
        before
    }

    fn enter_indices(&mut self, record: &Instance) {
        *self.counts.entry(record.golden.clone()).or_default().entry(record.state).or_default() += 1;
        if record.state == State::Ready {
            let queue = self.ready.entry(record.golden.clone()).or_default();
            queue.insert((record.created_at, record.id.clone()));
        }
        if let Some(deadline) = record.expires_at.filter(|_| !record.state.is_final()) {
            self.due.insert((deadline, record.id.clone()));
        }
        if let Some(key) = key_while_held(record) {
            self.keys.insert(key.to_owned(), record.id.clone());
        }
    }

    fn leave_indices(&mut self, record: &Instance) {
        if let Some(counts) = self.counts.get_mut(&record.golden) {
            if let Some(count) = counts.get_mut(&record.state) {
                *count -= 1;
            }
            counts.retain(|_, count| *count > 0);
        }
        if let Some(queue) = self.ready.get_mut(&record.golden) {
            queue.remove(&(record.created_at, record.id.clone()));
        }
        if let Some(deadline) = record.expires_at {
            self.due.remove(&(deadline, record.id.clone()));
        }
        // A later holder of the same key keeps it.
        if let Some(key) = key_while_held(record)
            && self.keys.get(key) == Some(&record.id)
        {
            self.keys.remove(key);
        }
    }
}

fn key_while_held(record: &Instance) -> Option<&str> {
    match record.state {
        State::Assigned | State::Hibernated => record.idempotency_key.as_deref(),
        State::Warming | State::Ready | State::Expired | State::Failed => None,
    }
}
