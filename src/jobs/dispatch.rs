//! Where jobs go: over the bus, or, when that does not take them, to the queue
//! within this process, so that a pool is kept without NATS as well.
//!
//! Called by the reconciler and the reaper. Before [`Dispatch::open`] everything
//! stays in the process: what a former daemon left is looked at first, and no
//! job of its time is taken meanwhile.
//!
//! A bus that did not answer may have taken the job all the same; then it is
//! delivered twice, and the second time nothing is wanted any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::board::Board;
use super::memory::MemoryQueue;
use super::{Job, JobQueue};
use crate::error::Chain;
use crate::metrics::{self, JobOutcome};

/// Hands jobs in.
#[derive(Debug, Default)]
pub struct Dispatch {
    board: Arc<Board>,
    local: Arc<MemoryQueue>,
    bus: Option<Arc<dyn JobQueue>>,
    is_open: AtomicBool,
}

impl Dispatch {
    /// Jobs go to `bus`, if there is one, and else stay in the process.
    #[must_use]
    pub fn new(bus: Option<Arc<dyn JobQueue>>) -> Self {
        Self { bus, ..Self::default() }
    }

    /// From now on jobs go over the bus.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Release);
    }

    /// What was asked for.
    #[must_use]
    pub const fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// The queue within this process.
    #[must_use]
    pub const fn local(&self) -> &Arc<MemoryQueue> {
        &self.local
    }

    /// The queue that others could see.
    #[must_use]
    pub const fn bus(&self) -> Option<&Arc<dyn JobQueue>> {
        self.bus.as_ref()
    }

    /// Asks for a job to be done, unless it is under way.
    pub async fn ask(&self, job: &Job) {
        if !self.board.ask(job) {
            return;
        }
        if let Some(bus) = self.bus.as_ref().filter(|_| self.is_open.load(Ordering::Acquire)) {
            match bus.submit(job).await {
                Ok(_) => return,
                Err(error) => {
                    metrics::job_attempt(job.kind().as_str(), JobOutcome::Fallback);
                    // That the bus is away is told once, by whoever looks after it.
                    tracing::debug!(job_id = job.id, error = %Chain(&error), "job stays in the process");
                }
            }
        }
        self.local.put(job);
    }
}
