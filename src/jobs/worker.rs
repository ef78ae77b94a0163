//! The only one who takes jobs and does them: a job becomes a call of the life
//! cycle.
//!
//! Spawned once for each queue by [`crate::app`]; all share one [`Worker`]. A job
//! in hand ends in one of these ways:
//!
//! ```text
//! done       as asked
//! unneeded   nothing to do: the pool is full, the instance is gone or lives on
//! retried    failed, or somebody else is at it; comes again after a pause
//! dead       failed for good, failed MAX_ATTEMPTS times, or killed its taker as often: laid aside
//! ```
//!
//! Idempotent: before it acts, a job is held against the world. An instance is
//! made only while ready ones and those in the making are fewer than the target,
//! one decision at a time, so that no doubled job lets the pool overshoot; an
//! instance is ended only if its record is still of the job's generation, or
//! final already.
//!
//! Waiting at the gate, behind clients, is part of the work, and so is said to
//! be in progress.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::board::Board;
use super::{Delivery, Job, JobQueue, Kind, Receipt, Task, Verdict, Why};
use crate::error::{Chain, ErrorKind};
use crate::id::{GoldenName, InstanceId};
use crate::instance::{Instance, State};
use crate::metrics::{self, JobOutcome};
use crate::pool::backoff;
use crate::pool::policy::{self, View};
use crate::pool::{Nudge, Target};
use crate::provision::errors::MakeError;
use crate::provision::gate::Rank;
use crate::provision::{Doing, Ended, Lifecycle, Order};
use crate::restore::FirstPage;
use crate::store::StoreError;

/// A job is given up after so many deliveries: 1 + 2 + 4 + 8 seconds of pauses
/// lie between them, longer than a hiccup of what the host stands on.
pub const MAX_ATTEMPTS: u32 = 5;

/// Takings-down at once. Each waits for processes to end and for the kernel to
/// give up namespaces more than it computes.
const REAPS_AT_ONCE: usize = 16;

/// Does jobs.
#[derive(Debug)]
pub struct Worker {
    lifecycle: Arc<Lifecycle>,
    board: Arc<Board>,
    target: Target,
    /// Wakes the reconciler: a job is over.
    refill: Nudge,
    /// Held while it is decided whether one more is wanted.
    deciding: tokio::sync::Mutex<()>,
    /// How many of each golden are being made for the pool.
    making: Mutex<HashMap<GoldenName, usize>>,
}

/// How a job ended this time.
#[derive(Debug)]
enum Outcome {
    Done,
    Unneeded,
    /// Somebody else is at it: it is looked at again after that.
    Later(Duration),
    /// Why, and after how long again; never again when there is no pause.
    Failed {
        error: String,
        pause: Option<Duration>,
    },
}

impl Worker {
    /// Puts the worker together.
    #[must_use]
    pub fn new(lifecycle: Arc<Lifecycle>, board: Arc<Board>, target: Target, refill: Nudge) -> Self {
        let (deciding, making) = (tokio::sync::Mutex::default(), Mutex::default());
        Self { lifecycle, board, target, refill, deciding, making }
    }

    /// Takes jobs from a queue until `stop`, then waits for those in hand.
    pub async fn serve(self: Arc<Self>, queue: Arc<dyn JobQueue>, stop: CancellationToken) {
        let [provision, reap] = Kind::ALL.map(|kind| self.take(&queue, kind, &stop));
        tokio::join!(provision, reap);
    }

    async fn take(self: &Arc<Self>, queue: &Arc<dyn JobQueue>, kind: Kind, stop: &CancellationToken) {
        let at_once = match kind {
            Kind::Provision => self.target.starts.max(1),
            Kind::Reap => REAPS_AT_ONCE,
        };
        let (hands, in_hand) = (Arc::new(Semaphore::new(at_once)), TaskTracker::new());
        loop {
            let free = Arc::clone(&hands).acquire_owned();
            let next = async { (free.await, queue.next(kind).await) };
            let (hand, delivery) = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                next = next => next,
            };
            let this = Arc::clone(self);
            in_hand.spawn(async move {
                this.handle(delivery).await;
                drop(hand);
            });
        }
        in_hand.close();
        in_hand.wait().await;
    }

    async fn handle(&self, delivery: Delivery) {
        let Delivery { job, attempt, receipt } = delivery;
        if !self.board.begin(&job) {
            // The one in hand sees to it; should it fail, it is asked for again.
            metrics::job_attempt(job.kind().as_str(), JobOutcome::Unneeded);
            return settle(&job, &*receipt, Verdict::Over).await;
        }
        let outcome = if attempt > MAX_ATTEMPTS {
            // Its takers died of it, or of something else while they had it.
            let error = format!("nobody finished it in {MAX_ATTEMPTS} attempts");
            Outcome::Failed { error, pause: None }
        } else {
            let work = self.work(&job, attempt);
            tokio::pin!(work);
            loop {
                tokio::select! {
                    outcome = &mut work => break outcome,
                    () = tokio::time::sleep(receipt.patience()) => {
                        if let Err(error) = receipt.in_progress().await {
                            tracing::debug!(job_id = job.id, error = %Chain(&error), "queue not told");
                        }
                    }
                }
            }
        };
        let verdict = self.conclude(&job, attempt, outcome);
        // Before the queue is told, which may take long: the job itself is over.
        self.refill.now();
        settle(&job, &*receipt, verdict).await;
    }

    async fn work(&self, job: &Job, attempt: u32) -> Outcome {
        match &job.task {
            Task::Provision { golden } => self.provision(golden).await,
            Task::Reap { instance_id, generation, why } => {
                self.reap(instance_id, *generation, *why, attempt).await
            }
        }
    }

    /// Notes the outcome wherever it belongs and answers what the queue is told.
    fn conclude(&self, job: &Job, attempt: u32, outcome: Outcome) -> Verdict {
        let (verdict, word) = match outcome {
            Outcome::Done => (Verdict::Over, JobOutcome::Done),
            Outcome::Unneeded => (Verdict::Over, JobOutcome::Unneeded),
            Outcome::Later(pause) => (Verdict::Again(pause), JobOutcome::Retried),
            Outcome::Failed { error, pause: Some(pause) } if attempt < MAX_ATTEMPTS => {
                let pause_s = pause.as_secs();
                tracing::warn!(job_id = job.id, attempt, pause_s, error, "job failed, tried again later");
                (Verdict::Again(pause), JobOutcome::Retried)
            }
            Outcome::Failed { error, .. } => {
                tracing::warn!(job_id = job.id, attempt, error, "job given up");
                (Verdict::Dead(error), JobOutcome::Dead)
            }
        };
        metrics::job_attempt(job.kind().as_str(), word);
        match &verdict {
            Verdict::Over => self.board.over(job),
            Verdict::Again(pause) => self.board.rest(job, *pause),
            Verdict::Dead(_) => self.board.give_up(job),
        }
        verdict
    }

    /// Makes one instance for the pool.
    async fn provision(&self, name: &GoldenName) -> Outcome {
        let golden = self.lifecycle.golden(name);
        let maker = golden.as_ref().and_then(|golden| golden.warm_maker(self.target.cold_start));
        let Some(maker) = maker else { return Outcome::Unneeded };
        let _place = match self.place(name).await {
            Ok(Some(place)) => place,
            Ok(None) => return Outcome::Unneeded,
            Err(error) => {
                let pause = Some(backoff::pause_after(0));
                return Outcome::Failed { error: Chain(&error).to_string(), pause };
            }
        };
        let permit = self.lifecycle.gate().enter(Rank::Pool).await;
        let order =
            Order { golden: name, maker, first_page: FirstPage::Fetched, idempotency_key: None, permit };
        match self.lifecycle.make(order, |record| record.state = State::Ready).await {
            Ok(_) => {
                self.board.succeeded(name);
                Outcome::Done
            }
            // Clients were faster; the reconciler sees how much room there is.
            Err(MakeError::Full { .. }) => Outcome::Unneeded,
            // Not the golden's fault: with the store again the pool is filled at once.
            Err(MakeError::Store(error)) if error.kind() == ErrorKind::Unavailable => {
                let pause = Some(backoff::pause_after(0));
                Outcome::Failed { error: Chain(&error).to_string(), pause }
            }
            Err(error) => {
                let pause = self.board.failed(name);
                let pause = may_mend(error.kind()).then_some(pause);
                Outcome::Failed { error: Chain(&error).to_string(), pause }
            }
        }
    }

    /// Takes a place among those being made, if one more is wanted.
    async fn place(&self, golden: &GoldenName) -> Result<Option<Place<'_>>, StoreError> {
        let _alone = self.deciding.lock().await;
        if self.lifecycle.room() == 0 || self.lifecycle.aim().is_drained() {
            return Ok(None);
        }
        // First those in the making: one that becomes ready in between is counted
        // twice, never left out.
        let in_flight = self.lock_making().get(golden).copied().unwrap_or(0);
        let counts = self.lifecycle.store().counts(golden).await?;
        let view = View {
            target: self.wanted(golden),
            ready: counts.get(&State::Ready).copied().unwrap_or(0),
            in_flight,
            attempts: self.board.attempts(golden),
        };
        if !policy::wants_one(&view, in_flight) {
            return Ok(None);
        }
        *self.lock_making().entry(golden.clone()).or_default() += 1;
        Ok(Some(Place { worker: self, golden: golden.clone() }))
    }

    /// How many are to be ready: none of one that was withdrawn.
    fn wanted(&self, golden: &GoldenName) -> usize {
        let served = self.lifecycle.golden(golden).is_some();
        if served { self.lifecycle.aim().target(golden, self.target.ready) } else { 0 }
    }

    fn lock_making(&self) -> std::sync::MutexGuard<'_, HashMap<GoldenName, usize>> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one instance down, if the job still holds.
    async fn reap(&self, id: &InstanceId, generation: u64, why: Why, attempt: u32) -> Outcome {
        let failed = |error: &(dyn std::error::Error + 'static), kind| Outcome::Failed {
            error: Chain(error).to_string(),
            pause: may_mend(kind).then(|| backoff::pause_after(attempt - 1)),
        };
        let present = match self.lifecycle.store().get(id).await {
            Ok(Some(present)) => present,
            Ok(None) => return Outcome::Unneeded,
            Err(error) => return failed(&error, error.kind()),
        };
        let holds = move |present: &Instance| present.state.is_final() || present.generation == generation;
        if !holds(&present) || (why == Why::Surplus && !self.is_surplus(&present).await) {
            return Outcome::Unneeded;
        }
        if !present.state.is_final() && self.lifecycle.is_behind(&present) {
            return Outcome::Later(backoff::pause_after(attempt - 1));
        }
        if self.lifecycle.doing(id) == Some(Doing::Making) {
            // Written down as ready a moment ago, its maker is about to let go of it. A job that was unneeded would
            // not be asked for again soon.
            let about_to_end = present.state != State::Warming;
            return if about_to_end {
                Outcome::Later(backoff::pause_after(attempt - 1))
            } else {
                Outcome::Unneeded
            };
        }
        match self.lifecycle.end(present, why.end(), holds).await {
            Ok(Ended::Gone) => Outcome::Done,
            Ok(Ended::Kept) => Outcome::Unneeded,
            Ok(Ended::InProgress) => Outcome::Later(backoff::pause_after(attempt - 1)),
            Err(error) => failed(&error, error.kind()),
        }
    }

    async fn is_surplus(&self, instance: &Instance) -> bool {
        let counts = self.lifecycle.store().counts(&instance.golden).await.unwrap_or_default();
        counts.get(&State::Ready).is_some_and(|ready| *ready > self.wanted(&instance.golden))
    }
}

/// Whether it may go better the next time.
const fn may_mend(kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::Exhausted
        | ErrorKind::Unavailable
        | ErrorKind::NoSpace
        | ErrorKind::Conflict
        | ErrorKind::Bug => true,
        ErrorKind::NotFound
        | ErrorKind::Gone
        | ErrorKind::Limited
        | ErrorKind::Incompatible
        | ErrorKind::Invalid => false,
    }
}

/// A place among those being made; dropping it gives it up.
#[derive(Debug)]
struct Place<'a> {
    worker: &'a Worker,
    golden: GoldenName,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(making) = self.worker.lock_making().get_mut(&self.golden) {
            *making -= 1;
        }
    }
}

async fn settle(job: &Job, receipt: &dyn Receipt, verdict: Verdict) {
    if let Err(error) = receipt.settle(verdict).await {
        // It comes again, and nothing is wanted any more then.
        tracing::debug!(job_id = job.id, error = %Chain(&error), "queue not told of the end");
    }
}
