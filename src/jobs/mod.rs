//! The port to the job queue: what the pool has decided, on its way to whoever
//! does it.
//!
//! The reconciler asks for instances, the reaper for their end
//! ([`dispatch`]); the [`worker`] is the only one who takes jobs and does them.
//! [`memory`] is the default and never away; [`jetstream`] carries jobs over
//! NATS. A client's own restore is no job: nobody's wait depends on a bus.
//!
//! What a queue promises, [`conformance`] holds for both:
//!
//! - at least once: a job comes again until it is settled, also after the death
//!   of the one who took it; a queue that loses its disk loses its jobs;
//! - a job submitted again under the same id within [`DUPLICATE_WINDOW`] is
//!   taken once;
//! - no order.
//!
//! So whoever handles a job looks at the world again: is it still wanted? A job
//! is a hint and never the state; the state is the store. Who asked for one
//! notes it on the [`board`] and asks again when nobody begins it in time.

pub mod board;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
pub mod dispatch;
pub mod jetstream;
pub mod memory;
pub mod worker;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use rand::RngExt as _;
use serde::{Deserialize, Serialize};

use crate::id::{GoldenName, InstanceId};
use crate::instance::{Instance, State};

/// The version this program writes into jobs.
pub const JOB_VERSION: u16 = 1;

/// How soon the end of an instance too many is asked for again: the worker may find
/// that it is not, since another one went, and a queue takes an id once.
const SURPLUS_SECONDS: i64 = 5;

/// How long a queue remembers ids. Shorter than the rest after a job that was
/// given up ([`board`]), so that the next attempt is no duplicate of it.
pub const DUPLICATE_WINDOW: Duration = Duration::from_secs(30);

/// The kinds of jobs. Each has its own line, so that neither waits for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Make an instance.
    Provision,
    /// Take one down.
    Reap,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Provision, Self::Reap];

    /// The word used in subjects, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provision => "provision",
            Self::Reap => "reap",
        }
    }
}

/// Why an instance is to be taken down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// Its time is over.
    Due,
    /// Its first process has ended.
    Died,
    /// It was being made, and nobody is at it any more.
    Abandoned,
    /// It was to be taken down before, and is still there.
    LeftOver,
    /// The pool has more than it wants.
    Surplus,
    /// Nobody got it, and it could not be taken down at once.
    Unwanted,
}

impl Why {
    /// What becomes of the record.
    #[must_use]
    pub const fn end(self) -> State {
        match self {
            Self::Due | Self::Surplus => State::Expired,
            Self::Died | Self::Abandoned | Self::LeftOver | Self::Unwanted => State::Failed,
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Task {
    /// Make one instance for the pool.
    Provision {
        /// Of which golden.
        golden: GoldenName,
    },
    /// Take one instance down, if it still is what it was.
    Reap {
        /// Which.
        instance_id: InstanceId,
        /// Of its record: a later one may live for a good reason.
        generation: u64,
        /// Why.
        why: Why,
    },
}

/// One job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The form, [`JOB_VERSION`] when written by this program.
    pub version: u16,
    /// Names it: the queue takes an id once.
    pub id: String,
    /// What is to be done.
    #[serde(flatten)]
    pub task: Task,
}

impl Job {
    /// Asks for one more instance; each of these is a job of its own.
    #[must_use]
    pub fn provision(golden: GoldenName) -> Self {
        let id = format!("provision-{golden}-{:016x}", rand::rng().random::<u64>());
        Self { version: JOB_VERSION, id, task: Task::Provision { golden } }
    }

    /// Asks for the end of an instance as it is now; the same job each time, but for
    /// one too many: that it was wanted a moment ago says nothing about later.
    #[must_use]
    pub fn reap(instance: &Instance, why: Why) -> Self {
        let (instance_id, generation) = (instance.id.clone(), instance.generation);
        let mut id = format!("reap-{instance_id}-{generation}");
        if why == Why::Surplus {
            id = format!("{id}-surplus-{}", Timestamp::now().as_second() / SURPLUS_SECONDS);
        }
        Self { version: JOB_VERSION, id, task: Task::Reap { instance_id, generation, why } }
    }

    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self.task {
            Task::Provision { .. } => Kind::Provision,
            Task::Reap { .. } => Kind::Reap,
        }
    }
}

/// A queue did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// It cannot be reached.
    #[error("the job queue cannot be reached: {why}")]
    Away {
        /// Why, for people.
        why: String,
    },
    /// It did not answer, so the job may be there or not.
    #[error("the job queue does not answer: {doing}")]
    Unavailable {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What became of a submitted job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submitted {
    /// It is in the queue.
    New,
    /// It was submitted before.
    Again,
}

/// How a job ended this time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is over, done or no longer wanted: it never comes again.
    Over,
    /// It comes again after that pause.
    Again(Duration),
    /// It is given up: it is laid aside with the reason and never comes again.
    Dead(String),
}

/// One job in hand.
#[derive(Debug)]
pub struct Delivery {
    /// The job.
    pub job: Job,
    /// How often it was delivered, with this time.
    pub attempt: u32,
    /// What tells the queue.
    pub receipt: Box<dyn Receipt>,
}

/// Tells the queue about one delivery. Dropped without a word, the job comes
/// again after a while.
#[async_trait]
pub trait Receipt: Send + Sync + fmt::Debug {
    /// Says that it is still being worked on; to be said every
    /// [`Receipt::patience`].
    async fn in_progress(&self) -> Result<(), QueueError>;

    /// Says how it ended. When that fails the job may come again.
    async fn settle(&self, verdict: Verdict) -> Result<(), QueueError>;

    /// How often the queue wants to hear that the work goes on.
    fn patience(&self) -> Duration;
}

/// The port. A queue is opened for one node: its jobs are for that node alone.
#[async_trait]
pub trait JobQueue: Send + Sync + fmt::Debug {
    /// Puts a job in; answers when it is safe. The same id again is no error.
    async fn submit(&self, job: &Job) -> Result<Submitted, QueueError>;

    /// Waits for the next job of that kind, also through an outage. Dropping the
    /// call may delay a job, never lose it.
    async fn next(&self, kind: Kind) -> Delivery;

    /// The jobs that wait; those in hand may be among them.
    async fn pending(&self) -> Result<Vec<Job>, QueueError>;

    /// Takes a job out, for one that nobody wants any more; absent is fine.
    async fn discard(&self, job: &Job) -> Result<(), QueueError>;
}
