//! Sees what is over and asks for its end. One task; wakes on a tick and on a
//! nudge, takes no input, and is idempotent: each pass looks at the store and
//! the host anew. What is done about a job, and when it is tried again, is the
//! worker's ([`crate::jobs::worker`]).
//!
//! A pass asks for the end of every instance of which one of these holds, unless
//! that was asked for before ([`crate::jobs::board`]):
//!
//! - **due**: state not final and `expires_at <= now`. Marked expired. An
//!   extension that comes first wins: the mark names the generation.
//! - **died**: state ready or assigned, and the driver says that the first
//!   process has ended. Marked failed.
//! - **abandoned**: state warming, and nobody of this daemon is making it.
//!   Marked failed.
//! - **unwanted**: nobody got it, and it could not be taken down at once. Marked
//!   failed. One that its maker gave up and that is somebody's by its record lives.
//! - **left over**: state expired or failed, and nobody is at it. So also those
//!   that a client released through another daemon.
//!
//! It looks at this node's records only. What is here and has no record, or an earlier
//! one than is known, is not taken down: the store has lost it, and the record is
//! written again ([`lost`]).
//!
//! And, more rarely, since it searches the host, it takes down itself:
//!
//! - **orphan**: what is there and nobody's ([`crate::provision::audit`]), in two
//!   searches one after the other (at the start, when nobody makes anything yet,
//!   in one, which is a thorough one).

mod clock;
mod lost;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::clock::Clocks;
use super::Nudge;
use crate::error::Chain;
use crate::host::memory;
use crate::id::InstanceId;
use crate::instance::trace::{Depth, Owner};
use crate::instance::{Container, Instance, State};
use crate::jobs::dispatch::Dispatch;
use crate::jobs::{Job, Why};
use crate::metrics;
use crate::provision::audit::{self, Auditor};
use crate::provision::{Doing, Found, Lifecycle};
use crate::store::StoreError;

/// How late an expiry may be noticed.
const TICK: Duration = Duration::from_secs(1);

/// The least time between two passes. A pass looks at all records, and every new
/// instance nudges; a death is noticed so much later at most.
const PASS_GAP: Duration = Duration::from_millis(250);

/// How much longer than a pass the gap after it is, where that is more: however many
/// records there are, a nudge costs a tenth of the time at most.
const PASS_SHARE: u32 = 9;

/// How often the host is searched for orphans. They only come from a defect or
/// from a daemon that died, and the search reads directories.
const ORPHAN_TICK: Duration = Duration::from_secs(30);

/// How many records a pass looks at before it lets others go on: no claim shall wait for
/// all of them.
const AT_ONCE: usize = 256;

/// For how long it does; of a thousandth of a second a look at so many takes a fraction.
const PAUSE: Duration = Duration::from_millis(1);

/// From so many instances on a search's memory is given back: it takes some 35 KB of each,
/// and restores since the last one left as much. Of fewer it is not worth it that who
/// acquires next waits some milliseconds for memory.
const MANY: usize = 128;

/// How many due instances a pass takes on; the rest is there in the next one.
const DUE_PER_PASS: usize = 256;

/// The task's state.
#[derive(Debug)]
pub struct Reaper {
    lifecycle: Arc<Lifecycle>,
    auditor: Auditor,
    nudge: Nudge,
    /// One for each living instance: it ends when the first process does. Those of gone
    /// ones stay until the next search for orphans.
    watchers: HashMap<InstanceId, Watcher>,
    /// When the last look at all records began.
    looked_at: Instant,
    jobs: Arc<Dispatch>,
    /// What the last search for orphans found.
    suspects: BTreeSet<Owner>,
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

/// Waits for the end of an instance's first process.
#[derive(Debug)]
struct Watcher {
    /// Its pid and start time.
    process: (i32, u64),
    /// When it was wanted last.
    wanted_at: Instant,
    task: JoinHandle<()>,
}

impl Watcher {
    fn is_of(&self, container: &Container) -> bool {
        self.process == (container.pid, container.start_ticks)
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.watchers.values().for_each(|watcher| watcher.task.abort());
    }
}

impl Reaper {
    /// Puts the task together; [`Reaper::run`] starts it.
    #[must_use]
    pub fn new(lifecycle: Arc<Lifecycle>, nudge: Nudge, jobs: Arc<Dispatch>) -> Self {
        let auditor = Auditor::new(Arc::clone(&lifecycle), Arc::clone(&jobs));
        Self {
            lifecycle,
            auditor,
            nudge,
            watchers: HashMap::new(),
            looked_at: Instant::now(),
            jobs,
            suspects: BTreeSet::new(),
            missing: HashSet::new(),
            blind: false,
        }
    }

    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut orphan_tick = tokio::time::interval(ORPHAN_TICK);
        orphan_tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut nudged, mut earliest, mut before) = (false, Instant::now(), Clocks::now());
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = orphan_tick.tick() => {
                    self.sweep_orphans(Certainty::SeenTwice).await;
                    continue;
                }
                () = self.nudge.given(), if !nudged => {
                    nudged = true;
                    continue;
                }
                () = tokio::time::sleep_until(earliest.into()), if nudged => {}
                _ = tick.tick() => {}
            }
            nudged = false;
            let clocks = Clocks::now();
            if let Some(by) = before.set_until(clocks) {
                tracing::warn!(by = %format!("{by:#}"), "the host's clock was set; instances end by its new time");
            }
            before = clocks;
            let begun = Instant::now();
            self.pass(Timestamp::now()).await;
            earliest = Instant::now() + PASS_GAP.max(begun.elapsed() * PASS_SHARE);
        }
    }

    /// Waits until all that was asked for was tried.
    pub(crate) async fn settle(&self) {
        self.jobs.board().reaped().await;
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
            if self.lifecycle.is_behind(&instance) {
                continue;
            }
            self.jobs.ask(&Job::reap(&instance, Why::Due)).await;
        }
        let all = store.own().await?;
        let began = Instant::now();
        self.lifecycle.look();
        for (place, instance) in all.iter().enumerate() {
            if place % AT_ONCE == AT_ONCE - 1 {
                tokio::time::sleep(PAUSE).await;
            }
            let doing = match self.lifecycle.found(instance) {
                Found::Behind => continue,
                Found::Kept => Some(Doing::Living),
                Found::Present(doing) => doing,
            };
            let why = audit::over(instance.state, doing, || self.has_died(instance));
            // Or it was made when its golden was withdrawn already.
            let is_surplus =
                || instance.state == State::Ready && self.lifecycle.golden(&instance.golden).is_none();
            if let Some(why) = why.or_else(|| is_surplus().then_some(Why::Surplus)) {
                self.jobs.ask(&Job::reap(instance, why)).await;
            }
        }
        self.write_lost_again().await;
        self.looked_at = began;
        Ok(())
    }

    /// Whether the first process has ended; watches it from the first look on.
    fn has_died(&mut self, instance: &Instance) -> bool {
        let Some(container) = instance.container.clone() else { return false };
        match self.watchers.get_mut(&instance.id) {
            Some(watcher) if watcher.is_of(&container) => {
                watcher.wanted_at = Instant::now();
                return watcher.task.is_finished();
            }
            // It was made anew.
            Some(former) => former.task.abort(),
            None => {}
        }
        let Some(engine) = self.lifecycle.engine_of(instance) else { return false };
        let nudge = self.nudge.clone();
        let process = (container.pid, container.start_ticks);
        let task = tokio::spawn(async move {
            engine.ended(&container).await;
            nudge.now();
        });
        self.watchers.insert(instance.id.clone(), Watcher { process, wanted_at: Instant::now(), task });
        false
    }

    /// Forgets the watchers of instances that the last look has not found.
    fn forget_watchers(&mut self) {
        self.watchers.retain(|_, watcher| {
            let keep = watcher.wanted_at >= self.looked_at;
            if !keep {
                watcher.task.abort();
            }
            keep
        });
    }

    /// Destroys what has traces on the host but no record.
    pub(crate) async fn sweep_orphans(&mut self, certainty: Certainty) {
        let depth = match certainty {
            Certainty::AtOnce => Depth::All,
            // Every half a minute.
            Certainty::SeenTwice => Depth::Names,
        };
        let look = self.auditor.look(depth).await;
        for error in &look.not_searched {
            tracing::warn!(error, "host not searched for orphans");
        }
        for owner in look.unowned.keys() {
            if certainty == Certainty::AtOnce || self.suspects.contains(owner) {
                self.auditor.remove(owner, &look).await;
            }
        }
        self.suspects = look.unowned.into_keys().collect();
        // With those that have gone since the last search.
        let are_many = self.watchers.len() >= MANY;
        self.forget_watchers();
        self.sweep_frozen().await;
        if are_many {
            // It fails only when the runtime ends.
            let _ = tokio::task::spawn_blocking(memory::give_back).await;
        }
    }

    /// Removes what is kept of shops that do not sleep. Whoever is about to write down
    /// that one does is known to be at it.
    async fn sweep_frozen(&self) {
        for engine in self.lifecycle.engines() {
            for id in engine.frozen().await.unwrap_or_default() {
                if self.lifecycle.is_asleep(&id).await.unwrap_or(true) {
                    continue;
                }
                match engine.forget(&id).await {
                    Ok(()) => tracing::info!(instance_id = %id, "frozen files that are nobody's removed"),
                    Err(error) => {
                        metrics::cleanup_failed();
                        tracing::warn!(instance_id = %id, error = %error, "frozen files not removed");
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
