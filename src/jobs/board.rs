//! What this daemon has asked for and not heard of the end of: the pool's
//! memory between two looks at the world.
//!
//! In this process only; written by the reconciler, the reaper and the worker,
//! read by them all. A job passes it so:
//!
//! ```text
//! asked --begun--> in hand --over--> (gone)
//!   |                 | again after a pause
//!   |                 v
//!   |              resting --begun--> in hand
//!   +--- not begun in time: (gone), so it is asked for again
//! ```
//!
//! It also knows how each golden fares: after a failure the golden is left alone
//! for a pause that doubles up to a minute, then tried once.
//!
//! Invariant: at most one job an instance is in hand.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Job, Task};
use crate::id::{GoldenName, InstanceId};
use crate::pool::backoff::{Backoff, LONGEST};
use crate::pool::policy::Attempts;

/// A job that nobody begins for so long is taken for lost: its queue was away or
/// has lost its disk. Too short costs a look at the store for each job twice
/// there; too long leaves a pool unfilled.
const LOST_AFTER: Duration = Duration::from_secs(2);

/// What a job is on the board under: an instance has one at a time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Provision(String),
    Reap(InstanceId),
}

impl Key {
    fn of(job: &Job) -> Self {
        match &job.task {
            Task::Provision { .. } => Self::Provision(job.id.clone()),
            Task::Reap { instance_id, .. } => Self::Reap(instance_id.clone()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Asked,
    InHand,
    Resting,
}

#[derive(Debug)]
struct Entry {
    stage: Stage,
    /// Its golden, if it is to make an instance.
    golden: Option<GoldenName>,
    /// When it is taken for lost; never while it is in hand.
    until: Option<Instant>,
}

/// The board.
#[derive(Debug, Default)]
pub struct Board {
    /// A std lock: held for a few map operations, never across an await.
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    jobs: HashMap<Key, Entry>,
    fares: HashMap<GoldenName, Backoff>,
}

impl State {
    fn forget_the_lost(&mut self, now: Instant) {
        self.jobs.retain(|_, entry| entry.until.is_none_or(|until| until > now));
    }
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the job there unless what is there forbids it.
    fn set(&self, job: &Job, stage: Stage, until: Option<Instant>, unless: impl Fn(&Entry) -> bool) -> bool {
        let golden = match &job.task {
            Task::Provision { golden } => Some(golden.clone()),
            Task::Reap { .. } => None,
        };
        {
            let (mut state, key) = (self.lock(), Key::of(job));
            state.forget_the_lost(Instant::now());
            if state.jobs.get(&key).is_some_and(unless) {
                return false;
            }
            state.jobs.insert(key, Entry { stage, golden, until });
        }
        self.changed.notify_waiters();
        true
    }

    /// Notes that the job is about to be submitted; false when it, or another
    /// one about its instance, is under way.
    pub fn ask(&self, job: &Job) -> bool {
        self.set(job, Stage::Asked, Some(Instant::now() + LOST_AFTER), |_| true)
    }

    /// Takes a job in hand, asked for or not; false when it is in hand already.
    pub fn begin(&self, job: &Job) -> bool {
        self.set(job, Stage::InHand, None, |present| present.stage == Stage::InHand)
    }

    /// Notes that a job comes again after a pause.
    pub fn rest(&self, job: &Job, pause: Duration) {
        self.set(job, Stage::Resting, Some(Instant::now() + pause + LOST_AFTER), |_| false);
    }

    /// Notes that a job was given up: its instance is left alone for a while; a
    /// golden has a pause of its own.
    pub fn give_up(&self, job: &Job) {
        match job.task {
            Task::Provision { .. } => self.over(job),
            Task::Reap { .. } => {
                self.set(job, Stage::Resting, Some(Instant::now() + LONGEST), |_| false);
            }
        }
    }

    /// Notes that a job is over.
    pub fn over(&self, job: &Job) {
        self.lock().jobs.remove(&Key::of(job));
        self.changed.notify_waiters();
    }

    /// How many instances of a golden are on their way.
    #[must_use]
    pub fn coming(&self, golden: &GoldenName) -> usize {
        let mut state = self.lock();
        state.forget_the_lost(Instant::now());
        state.jobs.values().filter(|entry| entry.golden.as_ref() == Some(golden)).count()
    }

    /// How many instances of all goldens are being made or about to be; those
    /// that rest after a failure take no place.
    #[must_use]
    pub fn starting(&self) -> usize {
        let mut state = self.lock();
        state.forget_the_lost(Instant::now());
        let starts = |entry: &&Entry| entry.golden.is_some() && entry.stage != Stage::Resting;
        state.jobs.values().filter(starts).count()
    }

    /// Waits until every taking-down that was asked for was tried, or lost.
    pub async fn reaped(&self) {
        loop {
            let changed = self.changed.notified();
            let (mut is_open, mut until) = (false, None);
            {
                let mut state = self.lock();
                state.forget_the_lost(Instant::now());
                let reaps = state.jobs.values().filter(|entry| entry.golden.is_none());
                for entry in reaps.filter(|entry| entry.stage != Stage::Resting) {
                    is_open = true;
                    until = [until, entry.until].into_iter().flatten().min();
                }
            }
            if !is_open {
                return;
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
            }
        }
    }

    /// When the pool should be looked at again, though nobody says so: a pause is
    /// over, or a job is taken for lost.
    #[must_use]
    pub fn next_look(&self) -> Option<Instant> {
        let (state, now) = (self.lock(), Instant::now());
        let lost = state.jobs.values().filter(|entry| entry.golden.is_some()).filter_map(|e| e.until);
        let rested = state.fares.values().filter_map(|fare| fare.pause_at(now).map(|left| now + left));
        lost.chain(rested).min()
    }

    /// Notes that an instance of the golden could not be made; answers the pause.
    pub fn failed(&self, golden: &GoldenName) -> Duration {
        self.lock().fares.entry(golden.clone()).or_default().failed(Instant::now())
    }

    /// Notes that one could.
    pub fn succeeded(&self, golden: &GoldenName) {
        self.lock().fares.remove(golden);
    }

    /// How the golden fares.
    #[must_use]
    pub fn fare(&self, golden: &GoldenName) -> Backoff {
        self.lock().fares.get(golden).copied().unwrap_or_default()
    }

    /// What its failures allow now.
    #[must_use]
    pub fn attempts(&self, golden: &GoldenName) -> Attempts {
        let fare = self.fare(golden);
        match fare.failures() {
            0 => Attempts::Free,
            _ if fare.pause_at(Instant::now()).is_some() => Attempts::None,
            _ => Attempts::One,
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::instance::Instance;
    use crate::jobs::Why;

    fn shop() -> GoldenName {
        "shop".parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_that_nobody_begins_is_asked_for_again() {
        let (board, job) = (Board::default(), Job::provision(shop()));
        assert!(board.ask(&job));
        assert_eq!((board.coming(&shop()), board.starting()), (1, 1));
        assert_eq!(board.next_look(), Some(Instant::now() + LOST_AFTER));
        tokio::time::advance(LOST_AFTER).await;
        assert_eq!((board.coming(&shop()), board.starting()), (0, 0));
        // It comes after all: it is in hand for as long as it takes.
        assert!(board.begin(&job) && !board.begin(&job));
        tokio::time::advance(LOST_AFTER * 10).await;
        assert_eq!(board.coming(&shop()), 1);
        board.over(&job);
        assert_eq!((board.coming(&shop()), board.next_look()), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_has_one_job_at_a_time_whatever_its_generation() {
        let board = Board::default();
        let mut instance =
            Instance::warming(InstanceId::random(), shop(), "here".parse().unwrap(), Timestamp::UNIX_EPOCH);
        let first = Job::reap(&instance, Why::Due);
        instance.generation += 1;
        let second = Job::reap(&instance, Why::LeftOver);
        assert!(board.ask(&first) && !board.ask(&second));
        assert!(board.begin(&first) && !board.begin(&second));
        board.rest(&first, Duration::from_secs(4));
        board.reaped().await;
        tokio::time::advance(Duration::from_secs(4)).await;
        assert!(!board.ask(&second), "the pause is over, and the queue has a moment to bring it");
        board.give_up(&first);
        tokio::time::advance(LONGEST - Duration::from_millis(1)).await;
        assert!(!board.ask(&second), "given up, it rests");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(board.ask(&second));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_golden_pauses_and_is_then_tried_once() {
        let board = Board::default();
        assert_eq!(board.attempts(&shop()), Attempts::Free);
        let pause = board.failed(&shop());
        assert_eq!(
            (board.attempts(&shop()), board.next_look()),
            (Attempts::None, Some(Instant::now() + pause))
        );
        tokio::time::advance(pause).await;
        assert_eq!(board.attempts(&shop()), Attempts::One);
        board.succeeded(&shop());
        assert_eq!(board.attempts(&shop()), Attempts::Free);
    }
}
