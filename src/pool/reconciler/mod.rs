//! Keeps POOL_TARGET_SIZE instances ready for each golden.
//!
//! One task, the only creator of warm instances. Wakes on a tick, on a nudge
//! (something was claimed, a place is free) and when one of its makings has
//! ended; takes no input: it counts what is ready in the store, adds its own
//! makings, asks [`super::policy`] and starts what that says. Each making waits
//! at the gate behind all clients.
//!
//! Failures: after one, the golden is left alone for a pause that doubles up to
//! a minute, then tried once; the status says how often it failed and when it
//! is tried again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::policy::{self, Action, Attempts, Limits, View};
use super::{GoldenStatus, Nudge, PoolStatus};
use crate::config::ColdStart;
use crate::error::{Chain, ErrorKind};
use crate::id::GoldenName;
use crate::instance::State;
use crate::metrics;
use crate::provision::errors::MakeError;
use crate::provision::gate::Rank;
use crate::provision::{GoldenRuntime, Lifecycle, Order};
use crate::restore::{FirstPage, Make};
use crate::store::StoreError;

/// How often it looks without a nudge: nudges cover all that this daemon does,
/// the tick what nobody told (a target lowered by a restart, another writer).
const TICK: Duration = Duration::from_secs(5);

/// What the reconciler is to keep.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// How many are to be ready for each golden.
    pub ready: usize,
    /// How many may be in the making at once.
    pub starts: usize,
    /// Whether a golden without a snapshot is kept warm by cold starts.
    pub cold_start: ColdStart,
}

/// The task's state.
#[derive(Debug)]
pub struct Reconciler {
    lifecycle: Arc<Lifecycle>,
    target: Target,
    nudge: Nudge,
    status: watch::Sender<PoolStatus>,
    /// Makings under way, each with its golden's place in the list.
    making: JoinSet<(usize, Result<(), MakeError>)>,
    /// How many of them for each golden.
    in_flight: HashMap<usize, usize>,
    backoff: HashMap<usize, Backoff>,
    /// Whether the last pass could not look at the store: told once.
    blind: bool,
}

impl Reconciler {
    /// Puts the task together; [`Reconciler::run`] starts it.
    #[must_use]
    pub fn new(lifecycle: Arc<Lifecycle>, target: Target, nudge: Nudge) -> Self {
        Self {
            lifecycle,
            target,
            nudge,
            status: watch::channel(PoolStatus::new()).0,
            making: JoinSet::new(),
            in_flight: HashMap::new(),
            backoff: HashMap::new(),
            blind: false,
        }
    }

    /// How it stands with each golden, at any time.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<PoolStatus> {
        self.status.subscribe()
    }

    /// Runs until `stop`, then waits for the makings under way.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let pause = self.shortest_pause();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = self.making.join_next() => self.note(ended),
                () = self.nudge.given() => {}
                _ = tick.tick() => {}
                () = tokio::time::sleep(pause.unwrap_or(TICK)), if pause.is_some() => {}
            }
            while let Some(ended) = self.making.try_join_next() {
                self.note(ended);
            }
            self.pass().await;
        }
        while let Some(ended) = self.making.join_next().await {
            self.note(ended);
        }
    }

    fn shortest_pause(&self) -> Option<Duration> {
        let now = Instant::now();
        self.backoff.values().filter_map(|backoff| backoff.pause_at(now)).min()
    }

    /// One look at the world and what follows from it.
    pub(super) async fn pass(&mut self) {
        let begun = Instant::now();
        let views = self.views().await;
        let blind = views.is_err();
        match views {
            Ok(views) => self.act(&views).await,
            Err(error) if !self.blind => tracing::warn!(error = %Chain(&error), "pool not looked at"),
            Err(_) => {}
        }
        self.blind = blind;
        self.publish();
        metrics::reconciled(begun.elapsed());
    }

    async fn views(&self) -> Result<Vec<View>, StoreError> {
        let now = Instant::now();
        let mut views = Vec::new();
        for (index, golden) in self.lifecycle.goldens().iter().enumerate() {
            let counts = self.lifecycle.store().counts(&golden.name).await?;
            let attempts = match self.backoff.get(&index) {
                _ if self.maker(golden).is_none() || golden.outage().is_some() => Attempts::None,
                Some(backoff) if backoff.pause_at(now).is_some() => Attempts::None,
                Some(backoff) if backoff.failures() > 0 => Attempts::One,
                _ => Attempts::Free,
            };
            views.push(View {
                target: self.target.ready,
                ready: counts.get(&State::Ready).copied().unwrap_or(0),
                in_flight: self.in_flight.get(&index).copied().unwrap_or(0),
                attempts,
            });
        }
        Ok(views)
    }

    fn maker<'a>(&self, golden: &'a GoldenRuntime) -> Option<&'a Arc<dyn Make>> {
        match (&golden.restore, self.target.cold_start) {
            (Ok(maker), _) => Some(maker),
            (Err(_), ColdStart::Allowed) => golden.cold.as_ref(),
            (Err(_), ColdStart::Refused) => None,
        }
    }

    async fn act(&mut self, views: &[View]) {
        let limits = Limits {
            room: self.lifecycle.room(),
            starts: self.target.starts.saturating_sub(self.making.len()),
        };
        for action in policy::plan(views, limits) {
            match action {
                Action::Warm(index) => self.start(index),
                Action::Retire(index) => {
                    let golden = self.lifecycle.goldens()[index].name.clone();
                    self.retire_one(&golden).await;
                }
            }
        }
    }

    fn start(&mut self, index: usize) {
        let golden = self.lifecycle.goldens()[index].clone();
        let Some(maker) = self.maker(&golden).cloned() else { return };
        let lifecycle = Arc::clone(&self.lifecycle);
        *self.in_flight.entry(index).or_default() += 1;
        self.making.spawn(async move {
            let permit = lifecycle.gate().enter(Rank::Pool).await;
            let order = Order {
                golden: &golden.name,
                maker: &maker,
                first_page: FirstPage::Fetched,
                idempotency_key: None,
                permit,
            };
            let made = lifecycle.make(order, |record| record.state = State::Ready).await;
            (index, made.map(|_| ()))
        });
    }

    /// Takes the youngest surplus one down, unless it is claimed meanwhile.
    async fn retire_one(&self, golden: &GoldenName) {
        let ready = match self.lifecycle.store().own().await {
            Ok(all) => all.into_iter().filter(|i| i.golden == *golden && i.state == State::Ready),
            Err(error) => return tracing::warn!(error = %Chain(&error), "surplus not looked at"),
        };
        let Some(youngest) = ready.max_by_key(|instance| instance.created_at) else { return };
        let id = youngest.id.clone();
        let ended = self.lifecycle.end(youngest, State::Expired, |i| i.state == State::Ready).await;
        if let Err(error) = ended {
            // Its record is final now; the reaper goes on with it.
            tracing::warn!(instance_id = %id, error = %Chain(&error), "surplus not taken down yet");
        }
    }

    /// A making has ended.
    fn note(&mut self, ended: Result<(usize, Result<(), MakeError>), tokio::task::JoinError>) {
        let Ok((index, result)) = ended else {
            // A panic: in a release it ends the process, in a test the golden's
            // count is off by one for the rest of it.
            return tracing::error!("a making ended without a result");
        };
        if let Some(count) = self.in_flight.get_mut(&index) {
            *count -= 1;
        }
        let golden = &self.lifecycle.goldens()[index].name;
        let backoff = self.backoff.entry(index).or_default();
        match result {
            Ok(()) => backoff.succeeded(),
            // Clients were faster; the next pass sees how much room there is.
            Err(MakeError::Full { .. }) => {}
            // Not the golden's fault: without the store no pass starts anything, and
            // with it again the pool is to be filled at once.
            Err(MakeError::Store(error)) if error.kind() == ErrorKind::Unavailable => {
                tracing::warn!(%golden, error = %Chain(&error), "instance for the pool not made");
            }
            Err(error) => {
                let pause = backoff.failed(Instant::now());
                tracing::warn!(
                    %golden,
                    attempt = backoff.failures(),
                    pause_s = pause.as_secs(),
                    error = %Chain(&error),
                    "instance for the pool not made"
                );
            }
        }
    }

    fn publish(&self) {
        let now = Instant::now();
        let of = |index: usize| {
            let backoff = self.backoff.get(&index).copied().unwrap_or_default();
            let pause = backoff.pause_at(now).and_then(|left| SignedDuration::try_from(left).ok());
            GoldenStatus {
                target: self.target.ready,
                in_flight: self.in_flight.get(&index).copied().unwrap_or(0),
                failures_in_a_row: backoff.failures(),
                retry_at: pause.map(|left| Timestamp::now() + left),
            }
        };
        let goldens = self.lifecycle.goldens().iter().enumerate();
        let status = goldens.map(|(index, golden)| (golden.name.clone(), of(index))).collect();
        self.status.send_replace(status);
    }
}
