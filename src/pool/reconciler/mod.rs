//! Keeps POOL_TARGET_SIZE instances ready for each golden, or as many as [`super::aim`] says.
//!
//! One task, the only one who asks for warm instances. Wakes on a tick, on a
//! nudge (something was claimed, a place is free, a job is over) and when a pause
//! ends; takes no input: it counts what is ready in the store, adds what is on
//! its way by the board
//! ([`crate::jobs::board`]), asks [`super::policy`] and submits a job for each
//! step. What is done about a job is the worker's ([`crate::jobs::worker`]).
//!
//! Visitors first: right after a claim a pool that is half full waits.
//!
//! Failures: after one, the golden is left alone for a pause that doubles up to
//! a minute, then tried once; the status says how often it failed and when it
//! is tried again.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::policy::{self, Action, Attempts, Limits, View};
use super::{GoldenStatus, Nudge, PoolStatus, Target};
use crate::error::Chain;
use crate::id::GoldenName;
use crate::instance::State;
use crate::jobs::dispatch::Dispatch;
use crate::jobs::{Job, Why};
use crate::metrics;
use crate::provision::{GoldenRuntime, Lifecycle};
use crate::store::StoreError;

/// How often it looks without a nudge: nudges cover all that this daemon does,
/// the tick what nobody told (a target lowered by a restart, another writer).
const TICK: Duration = Duration::from_secs(5);

/// How long after one was claimed a pool that is half full waits: whoever has it
/// follows the link and looks at the first page, which wants a processor as a
/// restore does.
const QUIET: Duration = Duration::from_millis(500);

/// The task's state.
#[derive(Debug)]
pub struct Reconciler {
    lifecycle: Arc<Lifecycle>,
    target: Target,
    nudge: Nudge,
    jobs: Arc<Dispatch>,
    status: watch::Sender<PoolStatus>,
    /// Whether the last pass could not look at the store: told once.
    blind: bool,
    /// When it goes on that has let a visitor go first.
    waits_until: Option<Instant>,
    /// [`QUIET`], but for tests.
    pub(super) quiet: Duration,
}

impl Reconciler {
    /// Puts the task together; [`Reconciler::run`] starts it.
    #[must_use]
    pub fn new(lifecycle: Arc<Lifecycle>, target: Target, nudge: Nudge, jobs: Arc<Dispatch>) -> Self {
        let status = watch::channel(PoolStatus::new()).0;
        Self { lifecycle, target, nudge, jobs, status, blind: false, waits_until: None, quiet: QUIET }
    }

    /// How it stands with each golden, at any time.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<PoolStatus> {
        self.status.subscribe()
    }

    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let next_look = self.jobs.board().next_look().into_iter().chain(self.waits_until).min();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.nudge.given() => {}
                _ = tick.tick() => {}
                () = tokio::time::sleep_until(next_look.unwrap_or_else(Instant::now)), if next_look.is_some() => {}
            }
            self.pass().await;
        }
    }

    /// One look at the world and what follows from it.
    pub(super) async fn pass(&mut self) {
        let begun = Instant::now();
        // As of one moment: a plan names them by their place.
        let goldens = self.lifecycle.goldens();
        let views = self.views(&goldens).await;
        let blind = views.is_err();
        match views {
            Ok(views) => self.act(&goldens, &views).await,
            Err(error) if !self.blind => tracing::warn!(error = %Chain(&error), "pool not looked at"),
            Err(_) => {}
        }
        self.blind = blind;
        self.publish();
        metrics::reconciled(begun.elapsed());
    }

    async fn views(&mut self, goldens: &[Arc<GoldenRuntime>]) -> Result<Vec<View>, StoreError> {
        let mut views = Vec::new();
        let quiet_at =
            self.lifecycle.tally().claimed_at().map(|at| at + self.quiet).filter(|at| *at > Instant::now());
        self.waits_until = None;
        for golden in goldens {
            // First those on their way: one that becomes ready in between is
            // counted twice, never left out.
            let in_flight = self.jobs.board().coming(&golden.name);
            let counts = self.lifecycle.store().counts(&golden.name).await?;
            let (ready, target) =
                (counts.get(&State::Ready).copied().unwrap_or(0), self.wanted(&golden.name));
            let attempts = match golden.warm_maker(self.target.cold_start) {
                Some(_) if quiet_at.is_some() && policy::can_wait(target, ready + in_flight) => {
                    self.waits_until = quiet_at;
                    Attempts::None
                }
                Some(_) if golden.outage().is_none() && !self.lifecycle.aim().is_drained() => {
                    self.jobs.board().attempts(&golden.name)
                }
                _ => Attempts::None,
            };
            views.push(View { target, ready, in_flight, attempts });
        }
        Ok(views)
    }

    /// How many of a golden are to be ready.
    fn wanted(&self, golden: &GoldenName) -> usize {
        self.lifecycle.aim().target(golden, self.target.ready)
    }

    async fn act(&mut self, goldens: &[Arc<GoldenRuntime>], views: &[View]) {
        let limits = Limits {
            room: self.lifecycle.room(),
            starts: self.target.starts.saturating_sub(self.jobs.board().starting()),
        };
        let actions = policy::plan(views, limits);
        for (index, golden) in goldens.iter().enumerate() {
            // What a drained pool has stays.
            if actions.contains(&Action::Retire(index)) && !self.lifecycle.aim().is_drained() {
                self.retire(&golden.name).await;
            }
        }
        for action in actions {
            if let Action::Warm(index) = action {
                let golden = goldens[index].name.clone();
                self.jobs.ask(&Job::provision(golden)).await;
            }
        }
    }

    /// Asks for the end of those that are too many now: of those of a former snapshot,
    /// then of the youngest. Those that were asked for before are among them; the
    /// worker finds out who is still one too many, since others may go meanwhile.
    async fn retire(&self, golden: &GoldenName) {
        let mut ready = match self.lifecycle.store().own().await {
            Ok(all) => all,
            Err(error) => return tracing::warn!(error = %Chain(&error), "surplus not looked at"),
        };
        ready.retain(|instance| instance.golden == *golden && instance.state == State::Ready);
        let runtime = self.lifecycle.golden(golden);
        let restore = runtime.as_ref().and_then(|golden| golden.restore.as_ref().ok());
        let served = restore.and_then(|maker| Some(maker.switch()?.served()));
        ready.sort_by_key(|instance| match served.is_some() && instance.snapshot != served {
            // The oldest of them, which is the one that a refresh replaces next.
            true => (false, instance.created_at.as_nanosecond()),
            false => (true, -instance.created_at.as_nanosecond()),
        });
        let surplus = ready.len().saturating_sub(self.wanted(golden));
        for spare in ready.into_iter().take(surplus) {
            self.jobs.ask(&Job::reap(&spare, Why::Surplus)).await;
        }
    }

    fn publish(&self) {
        let now = Instant::now();
        let of = |golden: &GoldenName| {
            let fare = self.jobs.board().fare(golden);
            let pause = fare.pause_at(now).and_then(|left| SignedDuration::try_from(left).ok());
            GoldenStatus {
                target: self.wanted(golden),
                usual: self.lifecycle.aim().usual(golden, self.target.ready),
                in_flight: self.jobs.board().coming(golden),
                failures_in_a_row: fare.failures(),
                retry_at: pause.map(|left| Timestamp::now() + left),
            }
        };
        let goldens = self.lifecycle.goldens();
        self.status
            .send_replace(goldens.iter().map(|golden| (golden.name.clone(), of(&golden.name))).collect());
    }
}
