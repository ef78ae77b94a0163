//! What this daemon has on its hands: every instance of this host, and what is
//! being done with it right now.
//!
//! Owned by the life cycle, in memory only. It answers two questions that the
//! store cannot: is there room for another one (one atomic step, so that
//! concurrent requests never exceed MAX_INSTANCES), and is somebody at work on
//! this instance at the moment (so that nothing is ended twice at once, and a
//! warming record without a maker is known as abandoned).
//!
//! It also knows the slots that are no instance's at the moment though somebody is
//! at them: made for an instance that is made anew, or left by one.
//!
//! It also keeps each instance's last known record: a store can lose what it was
//! told, an instance that lives must not be lost with it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::change::ChangeError;
use crate::id::InstanceId;
use crate::instance::{Instance, State};
use crate::sync::{Mutex, MutexGuard, PoisonError};

/// What is being done with an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// It is being made.
    Making,
    /// Nothing: it is there.
    Living,
    /// It lives, and what runs for it is being replaced.
    Changing,
    /// Nothing: it sleeps, and takes no place.
    Asleep,
    /// It is being taken down.
    Ending,
    /// Nothing: it is there, nobody got it, and it could not be taken down yet.
    Unwanted,
}

/// One instance of this host.
#[derive(Debug)]
struct Held {
    doing: Doing,
    /// The latest record that the store is known to have had; none before the
    /// instance is whole.
    known: Option<Arc<Instance>>,
    /// As its maker gave it up, not knowing whether the store has it so.
    given_up: Option<Box<Instance>>,
    /// Which look at the store found its latest record last.
    seen: u64,
    /// How often in a row it could not be woken.
    not_woken: u32,
}

impl Held {
    const fn new(doing: Doing) -> Self {
        Self { doing, known: None, given_up: None, seen: 0, not_woken: 0 }
    }

    /// Whether a record is later than what is known.
    fn is_news(&self, record: &Instance) -> bool {
        self.known.as_ref().is_none_or(|known| known.generation < record.generation)
    }

    /// Whether no record is known that is later than that one.
    fn is_latest(&self, record: &Instance) -> bool {
        self.known.as_ref().is_none_or(|known| known.generation <= record.generation)
    }

    /// Whether its maker gave it up, and it is somebody's by that record.
    fn is_somebodys_after_all(&self, record: &Instance) -> bool {
        self.doing == Doing::Unwanted
            && self.given_up.as_ref().is_some_and(|before| is_somebodys(record, before))
    }

    /// Has it live in that case.
    fn keep_if_somebodys(&mut self, present: &Arc<Instance>) -> bool {
        let kept = self.is_somebodys_after_all(present);
        if kept {
            (self.doing, self.given_up, self.known) = (Doing::Living, None, Some(Arc::clone(present)));
        }
        kept
    }

    /// Whether a record is behind what is known of one that is wanted.
    fn knows_later(&self, record: &Instance) -> bool {
        !self.is_latest(record) && self.doing != Doing::Unwanted
    }
}

/// All of them, and what would take a walk by all of them to count.
#[derive(Debug, Default)]
struct Book {
    all: HashMap<InstanceId, Held>,
    /// How many sleep: every claim asks how many places are taken.
    asleep: usize,
    /// The number of the last look at the store.
    look: u64,
    /// How many that look has found: in most all of them, and then none is missed.
    found: usize,
}

impl Book {
    /// How many places are taken.
    fn places(&self) -> usize {
        self.all.len() - self.asleep
    }

    /// Notes what is being done with one, which is new if it is not there.
    fn set(&mut self, id: &InstanceId, doing: Doing) -> &mut Held {
        let of = self.all.entry(id.clone()).or_insert_with(|| Held::new(Doing::Making));
        self.asleep -= usize::from(of.doing == Doing::Asleep);
        of.doing = doing;
        self.asleep += usize::from(of.doing == Doing::Asleep);
        of
    }

    fn remove(&mut self, id: &InstanceId) {
        if let Some(gone) = self.all.remove(id) {
            self.asleep -= usize::from(gone.doing == Doing::Asleep);
            self.found -= usize::from(gone.seen != 0 && gone.seen == self.look);
        }
    }
}

/// What a look at the store has found of an instance, beside what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A record that is older than what is known: nothing follows from it.
    Behind,
    /// The present one, and what is being done with the instance; none when it is not
    /// held here.
    Present(Option<Doing>),
    /// The present one of an instance that its maker gave up: somebody has it, it lives.
    Kept,
}

/// Every instance of this host.
#[derive(Debug)]
pub(super) struct Ledger {
    max: usize,
    /// A std lock: held for one map operation, never across an await.
    held: Mutex<Book>,
    /// Slots that somebody is at and that no record names. As above.
    between: Mutex<HashSet<InstanceId>>,
}

impl Ledger {
    pub(super) fn new(max: usize) -> Self {
        Self { max, held: Mutex::default(), between: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for an instance about to be made; false when none is left.
    pub(super) fn try_begin(&self, id: &InstanceId) -> bool {
        let mut held = self.lock();
        let free = held.places() < self.max;
        if free {
            held.remove(id);
            held.set(id, Doing::Making);
        }
        free
    }

    /// Notes that an instance is there, even beyond the limit: it exists.
    pub(super) fn lives(&self, id: &InstanceId) {
        self.set(id, Doing::Living);
    }

    /// Notes that an instance is there and that nobody got it.
    pub(super) fn unwanted(&self, id: &InstanceId) {
        self.set(id, Doing::Unwanted);
    }

    /// Takes the right to end an instance; false when somebody has it already, or
    /// is replacing what runs for it.
    pub(super) fn try_end(&self, id: &InstanceId) -> bool {
        let mut held = self.lock();
        let doing = held.all.get(id).map(|of| of.doing);
        let free = !matches!(doing, Some(Doing::Ending | Doing::Changing));
        if free {
            held.set(id, Doing::Ending);
        }
        free
    }

    /// Takes the right to replace what runs for an instance that lives; false when
    /// somebody is at it.
    pub(super) fn try_change(&self, id: &InstanceId) -> bool {
        let mut held = self.lock();
        let of = held.all.get_mut(id).filter(|of| of.doing == Doing::Living);
        of.is_some_and(|of| {
            of.doing = Doing::Changing;
            true
        })
    }

    /// Gives that right back.
    pub(super) fn changed(&self, id: &InstanceId) {
        if let Some(of) = self.lock().all.get_mut(id).filter(|of| of.doing == Doing::Changing) {
            of.doing = Doing::Living;
        }
    }

    /// Notes that an instance sleeps.
    pub(super) fn asleep(&self, id: &InstanceId) {
        self.set(id, Doing::Asleep);
    }

    /// Takes a place, and the right to change it, for one that sleeps.
    pub(super) fn try_wake(&self, id: &InstanceId) -> Result<(), ChangeError> {
        let mut held = self.lock();
        match held.all.get(id).map(|of| of.doing) {
            Some(Doing::Asleep) if held.places() >= self.max => Err(ChangeError::Full { max: self.max }),
            Some(Doing::Asleep) => {
                held.set(id, Doing::Changing);
                Ok(())
            }
            _ => Err(ChangeError::Busy { id: id.clone() }),
        }
    }

    /// Counts a failure to wake one; answers how many in a row there were.
    pub(super) fn wake_failed(&self, id: &InstanceId) -> u32 {
        let mut held = self.lock();
        held.all.get_mut(id).map_or(0, |of| {
            of.not_woken += 1;
            of.not_woken
        })
    }

    /// Ends that count.
    pub(super) fn woken(&self, id: &InstanceId) {
        if let Some(of) = self.lock().all.get_mut(id) {
            of.not_woken = 0;
        }
    }

    fn between(&self) -> MutexGuard<'_, HashSet<InstanceId>> {
        self.between.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that somebody is at a slot that no record names.
    pub(super) fn begin_slot(&self, slot: &InstanceId) {
        self.between().insert(slot.clone());
    }

    /// Notes that nobody is at it any more, or that a record names it.
    pub(super) fn end_slot(&self, slot: &InstanceId) {
        self.between().remove(slot);
    }

    /// Whether somebody is at something of that name that no record names.
    pub(super) fn is_between(&self, slot: &InstanceId) -> bool {
        self.between().contains(slot)
    }

    /// Whether a slot is an instance's that is held here, or somebody is at it.
    pub(super) fn has_slot(&self, slot: &InstanceId) -> bool {
        let of = |(id, held): (&InstanceId, &Held)| match &held.known {
            Some(known) => known.is_in(slot),
            None => id == slot,
        };
        self.is_between(slot) || self.lock().all.iter().any(of)
    }

    fn set(&self, id: &InstanceId, doing: Doing) {
        self.lock().set(id, doing);
    }

    /// Notes a record that the store has, if it is the latest of an instance
    /// held here; answers whether it is, also when a look has found it before.
    pub(super) fn note(&self, record: &Instance) -> bool {
        let mut held = self.lock();
        held.all.get_mut(&record.id).is_some_and(|of| {
            if of.is_news(record) {
                of.known = Some(Arc::new(record.clone()));
            }
            of.is_latest(record)
        })
    }

    /// Begins a look at the store, the only one at a time.
    pub(super) fn look(&self) {
        let mut held = self.lock();
        (held.look, held.found) = (held.look + 1, 0);
    }

    /// As [`Ledger::note`], of a record that this look has found; in one step, since a
    /// look comes by all of them.
    pub(super) fn saw(&self, record: &Arc<Instance>) -> Found {
        let mut held = self.lock();
        let Book { all, look, found, .. } = &mut *held;
        let Some(of) = all.get_mut(&record.id) else { return Found::Present(None) };
        if of.is_news(record) {
            of.known = Some(Arc::clone(record));
        }
        if of.is_latest(record) && of.seen != *look {
            of.seen = *look;
            *found += 1;
        }
        if of.knows_later(record) {
            return Found::Behind;
        }
        match of.keep_if_somebodys(record) {
            true => Found::Kept,
            false => Found::Present(Some(of.doing)),
        }
    }

    /// Notes a claim, if the instance is there and was nobody's before. It may be one
    /// that its maker gave up: whole, and somebody's now.
    pub(super) fn try_take(&self, claimed: &Instance) -> bool {
        let mut held = self.lock();
        let is_there = |of: &&mut Held| {
            matches!(of.doing, Doing::Making | Doing::Living) || of.is_somebodys_after_all(claimed)
        };
        let of = held.all.get_mut(&claimed.id).filter(is_there);
        let is_news = |known: &Arc<Instance>| {
            let the_same = known.generation == claimed.generation && known.assigned_at == claimed.assigned_at;
            the_same || known.generation < claimed.generation
        };
        let of = of.filter(|of| of.known.as_ref().is_none_or(is_news));
        of.is_some_and(|of| {
            of.known = Some(Arc::new(claimed.clone()));
            if of.given_up.take().is_some() {
                of.doing = Doing::Living;
            }
            true
        })
    }

    /// Gives up an instance of which it is not known whether the store took it; not
    /// when it did, and somebody has it since: then it lives.
    pub(super) fn try_give_up(&self, record: &Instance) -> bool {
        let mut held = self.lock();
        let known = held.all.get(&record.id).and_then(|of| of.known.as_ref());
        let given_up = !known.is_some_and(|known| is_somebodys(known, record));
        let of = held.set(&record.id, if given_up { Doing::Unwanted } else { Doing::Living });
        of.given_up = given_up.then(|| Box::new(record.clone()));
        given_up
    }

    /// Has an instance that its maker gave up live after all, if somebody has it by its
    /// present record.
    pub(super) fn try_keep(&self, present: &Arc<Instance>) -> bool {
        self.lock().all.get_mut(&present.id).is_some_and(|of| of.keep_if_somebodys(present))
    }

    /// Whether a later record is known of one that lives: the store has lost a change,
    /// or this one was read a moment ago.
    pub(super) fn knows_later(&self, record: &Instance) -> bool {
        self.lock().all.get(&record.id).is_some_and(|of| of.knows_later(record))
    }

    /// The latest known record of an instance that is held here.
    pub(super) fn known(&self, id: &InstanceId) -> Option<Instance> {
        let known = self.lock().all.get(id)?.known.clone()?;
        Some(Arc::unwrap_or_clone(known))
    }

    /// The latest known records of what is there, that nobody is at, and that the last look
    /// at the store has not found, or found as it was before.
    pub(super) fn missed(&self) -> Vec<(Doing, Arc<Instance>)> {
        let held = self.lock();
        if held.found == held.all.len() {
            return Vec::new();
        }
        let unseen = held.all.values().filter(|of| of.seen != held.look);
        let there = unseen.filter(|of| matches!(of.doing, Doing::Living | Doing::Unwanted | Doing::Asleep));
        there.filter_map(|of| Some((of.doing, Arc::clone(of.known.as_ref()?)))).collect()
    }

    /// Frees the instance's place.
    pub(super) fn forget(&self, id: &InstanceId) {
        self.lock().remove(id);
    }

    /// What is being done with an instance; none when it is not held here.
    pub(super) fn doing(&self, id: &InstanceId) -> Option<Doing> {
        self.lock().all.get(id).map(|held| held.doing)
    }

    /// How many places are taken.
    pub(super) fn len(&self) -> usize {
        self.lock().places()
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

/// Whether an instance that was given up is somebody's by a later record: of who
/// claimed it, on whichever node, or of a client with a key to come back with.
pub(super) fn is_somebodys(present: &Instance, given_up: &Instance) -> bool {
    let is_later = present.generation > given_up.generation;
    let is_anothers = present.assigned_at != given_up.assigned_at || present.idempotency_key.is_some();
    is_later && present.state == State::Assigned && is_anothers
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_record_is_the_latest_though_a_look_at_the_store_was_faster_than_its_writer() {
        let ledger = Ledger::new(1);
        let (golden, node) = ("shop".parse().unwrap(), "here".parse().unwrap());
        let record = Instance::warming(InstanceId::random(), golden, node, Timestamp::UNIX_EPOCH);
        let later = Instance { generation: record.generation + 1, ..record.clone() };
        assert!(!ledger.note(&record), "it is not held here");
        ledger.lives(&record.id);
        ledger.look();
        ledger.saw(&Arc::new(record.clone()));
        assert!(ledger.note(&record), "nobody has told of it yet");
        assert!(ledger.note(&later));
        assert!(!ledger.note(&record), "a client has it already");
        assert_eq!(ledger.known(&record.id).map(|known| known.generation), Some(later.generation));
    }

    proptest! {
        #[test]
        fn who_sleeps_takes_no_place_whatever_came_before(steps in vec((0..3_usize, 0..10_u8), 0..60)) {
            let ledger = Ledger::new(2);
            let ids: Vec<InstanceId> = (0..3).map(|_| InstanceId::random()).collect();
            for (of, step) in steps {
                let id = &ids[of];
                let (was, room) = (ledger.doing(id), ledger.room());
                match step {
                    0 if was.is_none() => prop_assert_eq!(ledger.try_begin(id), room > 0),
                    0 | 1 => ledger.lives(id),
                    2 | 3 => ledger.asleep(id),
                    4 => {
                        let woken = ledger.try_wake(id).is_ok();
                        prop_assert_eq!(woken, was == Some(Doing::Asleep) && room > 0);
                    }
                    5 => drop(ledger.try_change(id)),
                    6 => ledger.changed(id),
                    7 => drop(ledger.try_end(id)),
                    8 => ledger.unwanted(id),
                    _ => ledger.forget(id),
                }
                let held = ids.iter().filter_map(|id| ledger.doing(id));
                prop_assert_eq!(ledger.len(), held.filter(|doing| *doing != Doing::Asleep).count());
            }
        }
    }
}
