//! Takes down what is over. One task; wakes on a tick and on a nudge, takes no
//! input, and is idempotent: each pass looks at the store and the host anew.
//!
//! A pass ends every instance of which one of these holds:
//!
//! - **due**: state not final and `expires_at <= now`. Marked expired. An
//!   extension that comes first wins: the mark names the generation.
//! - **died**: state ready or assigned, and the driver says that the first
//!   process has ended. Marked failed.
//! - **abandoned**: state warming, and nobody of this daemon is making it.
//!   Marked failed.
//! - **unwanted**: nobody got it, and it could not be taken down at once.
//!   Marked failed.
//! - **left over**: state expired or failed, nobody is at it, and the pause
//!   after the last failed attempt is over. So also those that a client released
//!   through another daemon.
//!
//! It looks at this node's records only. What is here and has no record is not
//! taken down: the store has lost it, and the record is written again ([`lost`]).
//!
//! And, more rarely, since it searches the host:
//!
//! - **orphan**: a driver finds traces of an id that has no record and that
//!   nobody is making or ending, in two searches one after the other (at the
//!   start, when nobody makes anything yet, in one). Traces are read before the
//!   store, so a record removed in between only means one needless, harmless
//!   destroy.

mod lost;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Nudge;
use super::backoff::Backoff;
use crate::engine::ContainerEngine;
use crate::error::Chain;
use crate::id::InstanceId;
use crate::instance::{Instance, State};
use crate::metrics;
use crate::provision::errors::EndError;
use crate::provision::{Doing, Ended, Lifecycle};
use crate::store::StoreError;

/// How late an expiry may be noticed.
const TICK: Duration = Duration::from_secs(1);

/// The least time between two passes. A pass reads all records, on the same
/// thread that decides claims, and every new instance nudges; a death is noticed
/// so much later at most.
const PASS_GAP: Duration = Duration::from_millis(250);

/// How often the host is searched for orphans. They only come from a defect or
/// from a daemon that died, and the search reads directories.
const ORPHAN_TICK: Duration = Duration::from_secs(30);

/// How many due instances a pass takes on; the rest is there in the next one.
const DUE_PER_PASS: usize = 256;

/// The task's state.
#[derive(Debug)]
pub struct Reaper {
    lifecycle: Arc<Lifecycle>,
    nudge: Nudge,
    /// One for each living instance: it ends when the first process does.
    watchers: HashMap<InstanceId, JoinHandle<()>>,
    /// Takings-down under way.
    ending: JoinSet<(InstanceId, Result<Ended, EndError>)>,
    /// When to come again to those that could not be taken down.
    retries: HashMap<InstanceId, Backoff>,
    /// What the last search for orphans found.
    suspects: HashSet<InstanceId>,
    /// What the last pass found to be lost by the store, with its generation.
    missing: HashSet<(InstanceId, u64)>,
    /// Whether the last pass could not look at the store: told once.
    blind: bool,
}

/// When an orphan is taken down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Certainty {
    /// When it is found: nobody makes anything yet.
    AtOnce,
    /// When it was there the last time as well: one that is found only once may
    /// have been about to be written down.
    SeenTwice,
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.watchers.values().for_each(JoinHandle::abort);
    }
}

impl Reaper {
    /// Puts the task together; [`Reaper::run`] starts it.
    #[must_use]
    pub fn new(lifecycle: Arc<Lifecycle>, nudge: Nudge) -> Self {
        Self {
            lifecycle,
            nudge,
            watchers: HashMap::new(),
            ending: JoinSet::new(),
            retries: HashMap::new(),
            suspects: HashSet::new(),
            missing: HashSet::new(),
            blind: false,
        }
    }

    /// Runs until `stop`, then waits for the takings-down under way.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut orphan_tick = tokio::time::interval(ORPHAN_TICK);
        orphan_tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut nudged, mut earliest) = (false, Instant::now());
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = orphan_tick.tick() => {
                    self.sweep_orphans(Certainty::SeenTwice).await;
                    continue;
                }
                Some(ended) = self.ending.join_next() => {
                    self.note(ended);
                    continue;
                }
                () = self.nudge.given(), if !nudged => {
                    nudged = true;
                    continue;
                }
                () = tokio::time::sleep_until(earliest), if nudged => {}
                _ = tick.tick() => {}
            }
            nudged = false;
            self.pass(Timestamp::now()).await;
            earliest = Instant::now() + PASS_GAP;
        }
        self.settle().await;
    }

    /// Waits for the takings-down under way.
    pub(crate) async fn settle(&mut self) {
        while let Some(ended) = self.ending.join_next().await {
            self.note(ended);
        }
    }

    /// One look at the store at `now`, and what follows from it.
    pub(crate) async fn pass(&mut self, now: Timestamp) {
        let looked = self.look(now).await;
        let blind = looked.is_err();
        match looked {
            Err(error) if !self.blind => {
                tracing::warn!(error = %Chain(&error), "store not looked at for what is over");
            }
            Ok(()) if self.blind => tracing::info!("store looked at again"),
            Ok(()) | Err(_) => {}
        }
        self.blind = blind;
    }

    async fn look(&mut self, now: Timestamp) -> Result<(), StoreError> {
        let store = Arc::clone(self.lifecycle.store());
        for instance in store.due(now, DUE_PER_PASS).await? {
            self.end(instance, State::Expired, move |present| present.is_due_at(now));
        }
        let all = store.own().await?;
        all.iter().for_each(|instance| self.lifecycle.seen(instance));
        self.write_lost_again(&all).await;
        let known: HashSet<&InstanceId> = all.iter().map(|instance| &instance.id).collect();
        self.retries.retain(|id, _| known.contains(id));
        self.watchers.retain(|id, watcher| {
            let keep = known.contains(id);
            if !keep {
                watcher.abort();
            }
            keep
        });
        for instance in all {
            self.judge(instance);
        }
        Ok(())
    }

    fn judge(&mut self, instance: Instance) {
        let doing = self.lifecycle.doing(&instance.id);
        match instance.state {
            State::Ready | State::Assigned => {
                if doing == Some(Doing::Unwanted) || self.has_died(&instance) {
                    self.end(instance, State::Failed, |_| true);
                }
            }
            State::Warming => {
                if doing != Some(Doing::Making) {
                    self.end(instance, State::Failed, |present| present.state == State::Warming);
                }
            }
            State::Expired | State::Failed => {
                let pausing = self.retries.get(&instance.id).and_then(|b| b.pause_at(Instant::now()));
                if doing != Some(Doing::Ending) && pausing.is_none() {
                    self.end(instance, State::Failed, |_| true);
                }
            }
            State::Hibernated => {}
        }
    }

    /// Whether the first process has ended; watches it from the first look on.
    fn has_died(&mut self, instance: &Instance) -> bool {
        let Some(container) = instance.container.clone() else { return false };
        if let Some(watcher) = self.watchers.get(&instance.id) {
            return watcher.is_finished();
        }
        let Some(engine) = self.lifecycle.engine_of(instance) else { return false };
        let nudge = self.nudge.clone();
        let watcher = tokio::spawn(async move {
            engine.ended(&container).await;
            nudge.now();
        });
        self.watchers.insert(instance.id.clone(), watcher);
        false
    }

    fn end(
        &mut self,
        instance: Instance,
        to: State,
        still: impl Fn(&Instance) -> bool + Send + Sync + 'static,
    ) {
        let (lifecycle, id) = (Arc::clone(&self.lifecycle), instance.id.clone());
        self.ending.spawn(async move {
            let ended = lifecycle.end(instance, to, still).await;
            (id, ended)
        });
    }

    fn note(&mut self, ended: Result<(InstanceId, Result<Ended, EndError>), tokio::task::JoinError>) {
        let Ok((id, result)) = ended else {
            return tracing::error!("a taking-down ended without a result");
        };
        match result {
            Ok(_) => {
                self.retries.remove(&id);
            }
            Err(error) => {
                let backoff = self.retries.entry(id.clone()).or_default();
                let pause = backoff.failed(Instant::now());
                tracing::warn!(
                    instance_id = %id,
                    attempt = backoff.failures(),
                    pause_s = pause.as_secs(),
                    error = %Chain(&error),
                    "instance not taken down"
                );
            }
        }
    }

    /// Destroys what has traces on the host but no record.
    pub(crate) async fn sweep_orphans(&mut self, certainty: Certainty) {
        let mut found = HashSet::new();
        for engine in self.lifecycle.engines() {
            match engine.traces().await {
                Ok(traces) => {
                    for id in traces {
                        if self.is_orphan(&id).await {
                            found.insert(id.clone());
                            if certainty == Certainty::AtOnce || self.suspects.contains(&id) {
                                destroy_orphan(&*engine, &id).await;
                            }
                        }
                    }
                }
                Err(error) => tracing::warn!(error = %error, "host not searched for orphans"),
            }
        }
        self.suspects = found;
    }

    async fn is_orphan(&self, id: &InstanceId) -> bool {
        match self.lifecycle.store().get(id).await {
            Ok(record) => record.is_none() && self.lifecycle.doing(id).is_none(),
            Err(_) => false,
        }
    }
}

async fn destroy_orphan(engine: &dyn ContainerEngine, id: &InstanceId) {
    match engine.destroy(id, None).await {
        Ok(()) => {
            metrics::reaped("orphan");
            tracing::info!(instance_id = %id, "orphan taken down");
        }
        Err(error) => {
            metrics::cleanup_failed();
            tracing::warn!(instance_id = %id, error = %Chain(&error), "orphan not taken down");
        }
    }
}

#[cfg(test)]
mod tests;
