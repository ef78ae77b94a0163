//! What the life cycle knows of its instances besides the store, and what follows
//! when the store knows less.
//!
//! A networked store can lose what it was told: a server without persistence
//! starts again, somebody empties it, a replica takes over that lacked the last
//! changes. Called at the start, by the pool's reaper on each pass, and by acquire
//! on each claim.
//!
//! Invariant: what lives and is somebody's is never ended for the store's sake,
//! and never handed out a second time.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::lifecycle::Lifecycle;
use super::{Doing, Found};
use crate::error::Chain;
use crate::id::InstanceId;
use crate::instance::{Instance, State};
use crate::store::StoreError;

impl Lifecycle {
    /// Whether this daemon made the instance, or adopted it.
    #[must_use]
    pub fn is_own(&self, instance: &Instance) -> bool {
        instance.node == *self.store.node()
    }

    /// Takes over an instance of a former daemon that still runs, or sleeps.
    pub fn adopted(&self, instance: &Instance) {
        self.ledger.lives(&instance.id);
        self.ledger.note(instance);
        // It may have ended before, and been opened anew from what was kept of it.
        self.routes.revive(&instance.id);
        if instance.state == State::Hibernated {
            self.ledger.asleep(&instance.id);
            self.routes.sleep(&instance.id);
        }
        if let Some(container) = &instance.container {
            self.routes.ensure(&instance.id, SocketAddr::from((container.address, container.port)));
        }
    }

    /// Takes note of a record that the store has.
    pub fn seen(&self, record: &Instance) {
        self.ledger.note(record);
    }

    /// Begins to tell what a look at all own records has found.
    pub fn look(&self) {
        self.ledger.look();
    }

    /// As [`Lifecycle::seen`], of a record that the look has found; answers what the looker
    /// can go by.
    pub fn found(&self, record: &Arc<Instance>) -> Found {
        let found = self.ledger.saw(record);
        if found == Found::Kept {
            told_kept(record);
        }
        found
    }

    /// What is here and, by the store's word, is not, or was longer ago: the
    /// records to write again. What the last look has found was told before
    /// ([`Lifecycle::found`]).
    #[must_use]
    pub fn lost(&self) -> Vec<Instance> {
        let missed = self.ledger.missed().into_iter();
        missed.map(|(doing, known)| record_again(doing, Arc::unwrap_or_clone(known))).collect()
    }

    /// Writes again what a former daemon knew and the store has lost; called once,
    /// before anything is adopted or swept.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub async fn recall(&self, remembered: Vec<Instance>) -> Result<(), StoreError> {
        let stored = self.store.own().await?;
        let stored: HashMap<&InstanceId, u64> =
            stored.iter().map(|record| (&record.id, record.generation)).collect();
        let mut written = 0;
        for known in remembered {
            if stored.get(&known.id).is_none_or(|found| *found < known.generation) {
                match self.store.write_again(record_again(Doing::Living, known)).await {
                    Ok(()) => written += 1,
                    // Somebody else has it: then it is there.
                    Err(StoreError::Stale { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        if written > 0 {
            tracing::warn!(written, "the store had lost records of this host's instances; written again");
        }
        Ok(())
    }

    /// Whether a claimed instance was somebody's before, or is gone: the store has
    /// gone back in time. It is told so.
    ///
    /// Of another node's instance only its own daemon could know.
    pub(super) async fn was_handed_out(&self, claimed: &Instance) -> bool {
        if !self.is_own(claimed) {
            return false;
        }
        if self.ledger.try_take(claimed) {
            return false;
        }
        let known = self.ledger.known(&claimed.id);
        tracing::warn!(instance_id = %claimed.id, "the store offers an instance again that was somebody's");
        if let Some(mut again) = known {
            again.generation = again.generation.max(claimed.generation) + 1;
            match self.store.write_again(again.clone()).await {
                Ok(()) => {
                    self.ledger.note(&again);
                }
                Err(error) => {
                    tracing::warn!(instance_id = %claimed.id, error = %Chain(&error), "its record is not mended");
                }
            }
        }
        true
    }

    /// Whether the store says of an instance what it was before, and this daemon knows
    /// better: nothing follows from such a record, but that it is written again.
    #[must_use]
    pub fn is_behind(&self, record: &Instance) -> bool {
        self.is_own(record) && self.ledger.knows_later(record)
    }

    /// Writes the record of a finished instance. Nobody but this daemon removes
    /// it: one that is not there was lost, and is written again. A server that dies
    /// may keep it and not its answer, so that another client has the instance when it
    /// is written a second time: that is no failure.
    pub(super) async fn finish(&self, record: &Instance) -> Result<Instance, StoreError> {
        let next = Instance { generation: record.generation + 1, ..record.clone() };
        match self.store.update(record.clone()).await {
            Err(StoreError::Unknown { .. }) => self.store.write_again(next.clone()).await.map(|()| next),
            Err(StoreError::Stale { id, expected, found }) if found > next.generation => {
                let present = self.store.get(&id).await?;
                let lives = present.is_some_and(|present| !present.state.is_final());
                if lives { Ok(next) } else { Err(StoreError::Stale { id, expected, found }) }
            }
            answered => answered,
        }
    }

    /// The record of a finished instance could not be written, or nobody knows whether
    /// it was.
    pub(super) async fn not_finished(&self, record: Instance) {
        if self.ledger.try_give_up(&record) {
            self.throw_away(record).await;
        } else {
            // It was, and a client has claimed it.
            self.reap.now();
        }
    }

    /// Has the reaper see to an instance that its maker gave up, as soon as the store can
    /// say whose it is.
    pub(super) fn given_up(&self, record: &Instance) {
        self.ledger.note(record);
        let _ = self.ledger.try_give_up(record);
        self.reap.now();
    }

    /// Has an instance that its maker gave up live, if it is somebody's by its present
    /// record, read from the store: the maker's word arrived, its answer did not, and
    /// others have gone by that word.
    pub(super) fn keep_if_somebodys(&self, present: &Arc<Instance>) {
        if self.ledger.try_keep(present) {
            told_kept(present);
        }
    }

    /// Has the reaper take down an instance that nobody got, whatever its record
    /// says: with a store that did not answer it may say "assigned".
    pub(super) fn unwanted(&self, record: &Instance) {
        self.ledger.note(record);
        self.ledger.unwanted(&record.id);
        self.reap.now();
    }
}

fn told_kept(present: &Instance) {
    tracing::info!(instance_id = %present.id, "instance kept: given up by its maker, and a client's meanwhile");
}

/// What to write for an instance whose record was lost. A ready one may have
/// been claimed through another daemon a moment before, and one that nobody got
/// is of no use: both are taken down.
fn record_again(doing: Doing, mut known: Instance) -> Instance {
    let over = match known.state {
        State::Ready => Some(State::Expired),
        State::Warming => Some(State::Failed),
        State::Assigned | State::Hibernated if doing == Doing::Unwanted => Some(State::Failed),
        State::Assigned | State::Hibernated | State::Expired | State::Failed => None,
    };
    if let Some(over) = over {
        known.state = over;
        known.generation += 1;
    }
    known
}
