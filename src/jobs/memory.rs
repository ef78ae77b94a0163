//! The queue within this process: the default, and what jobs fall back to.
//!
//! Holds what the port promises but for one thing: its jobs die with the
//! process, as does whoever would ask for their outcome.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{DUPLICATE_WINDOW, Delivery, Job, JobQueue, Kind, QueueError, Receipt, Submitted, Verdict};

/// Jobs given up that are kept to be looked at.
const DEAD_KEPT: usize = 256;

/// The queue; clones are the same one, for those who hold a job of it.
#[derive(Debug, Clone, Default)]
pub struct MemoryQueue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    lines: Mutex<Lines>,
    /// Wakes a taker: a job came. One for each kind.
    provision: Notify,
    reap: Notify,
}

#[derive(Debug, Default)]
struct Lines {
    waiting: HashMap<Kind, VecDeque<Entry>>,
    /// When each id was submitted.
    seen: HashMap<String, Instant>,
    dead: VecDeque<(Job, String)>,
}

#[derive(Debug, Clone)]
struct Entry {
    job: Job,
    /// How often it was delivered.
    delivered: u32,
    /// Not before.
    at: Instant,
}

impl MemoryQueue {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn came(&self, kind: Kind) -> &Notify {
        match kind {
            Kind::Provision => &self.0.provision,
            Kind::Reap => &self.0.reap,
        }
    }

    /// Puts a job in; this queue is never away.
    pub fn put(&self, job: &Job) -> Submitted {
        let now = Instant::now();
        {
            let mut lines = self.lock();
            lines.seen.retain(|_, at| now.duration_since(*at) < DUPLICATE_WINDOW);
            if lines.seen.contains_key(&job.id) {
                return Submitted::Again;
            }
            lines.seen.insert(job.id.clone(), now);
        }
        self.line_up(Entry { job: job.clone(), delivered: 0, at: now });
        Submitted::New
    }

    fn line_up(&self, entry: Entry) {
        let kind = entry.job.kind();
        self.lock().waiting.entry(kind).or_default().push_back(entry);
        self.came(kind).notify_one();
    }

    /// The jobs given up last, each with the reason.
    #[must_use]
    pub fn dead(&self) -> Vec<(Job, String)> {
        self.lock().dead.iter().cloned().collect()
    }

    /// Takes the first that may go, else says when the next one may.
    fn try_take(&self, kind: Kind) -> Result<Entry, Option<Instant>> {
        let (mut lines, now) = (self.lock(), Instant::now());
        let waiting = lines.waiting.entry(kind).or_default();
        match waiting.iter().position(|entry| entry.at <= now) {
            Some(first) => waiting.remove(first).ok_or(None),
            None => Err(waiting.iter().map(|entry| entry.at).min()),
        }
    }
}

#[async_trait]
impl JobQueue for MemoryQueue {
    async fn submit(&self, job: &Job) -> Result<Submitted, QueueError> {
        Ok(self.put(job))
    }

    async fn next(&self, kind: Kind) -> Delivery {
        loop {
            match self.try_take(kind) {
                Ok(mut entry) => {
                    entry.delivered += 1;
                    // Others may be there for another taker.
                    self.came(kind).notify_one();
                    let (job, attempt) = (entry.job.clone(), entry.delivered);
                    let held = Held { queue: self.clone(), entry: Mutex::new(Some(entry)) };
                    return Delivery { job, attempt, receipt: Box::new(held) };
                }
                Err(Some(at)) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at) => {}
                        () = self.came(kind).notified() => {}
                    }
                }
                Err(None) => self.came(kind).notified().await,
            }
        }
    }

    async fn pending(&self) -> Result<Vec<Job>, QueueError> {
        Ok(self.lock().waiting.values().flatten().map(|entry| entry.job.clone()).collect())
    }

    async fn discard(&self, job: &Job) -> Result<(), QueueError> {
        if let Some(waiting) = self.lock().waiting.get_mut(&job.kind()) {
            waiting.retain(|entry| entry.job.id != job.id);
        }
        Ok(())
    }
}

/// A job in hand: it lines up again when it is dropped unsettled.
#[derive(Debug)]
struct Held {
    queue: MemoryQueue,
    entry: Mutex<Option<Entry>>,
}

impl Held {
    fn take(&self) -> Option<Entry> {
        self.entry.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(entry) = self.take() {
            self.queue.line_up(entry);
        }
    }
}

#[async_trait]
impl Receipt for Held {
    async fn in_progress(&self) -> Result<(), QueueError> {
        Ok(())
    }

    async fn settle(&self, verdict: Verdict) -> Result<(), QueueError> {
        let Some(entry) = self.take() else { return Ok(()) };
        match verdict {
            Verdict::Over => {}
            Verdict::Again(pause) => {
                self.queue.line_up(Entry { at: Instant::now() + pause, ..entry });
            }
            Verdict::Dead(reason) => {
                let dead = &mut self.queue.lock().dead;
                if dead.len() == DEAD_KEPT {
                    dead.pop_front();
                }
                dead.push_back((entry.job, reason));
            }
        }
        Ok(())
    }

    fn patience(&self) -> Duration {
        // Whoever holds it lives in this process: a death needs no timer.
        Duration::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::conformance::{self, Fixture};

    #[derive(Debug, Default)]
    struct InProcess(Mutex<MemoryQueue>);

    #[async_trait]
    impl Fixture for InProcess {
        async fn fresh(&self) -> Arc<dyn JobQueue> {
            let queue = MemoryQueue::default();
            *self.0.lock().unwrap() = queue.clone();
            Arc::new(queue)
        }

        async fn dead(&self, _: &Arc<dyn JobQueue>) -> Vec<String> {
            self.0.lock().unwrap().dead().into_iter().map(|(_, reason)| reason).collect()
        }
    }

    #[tokio::test]
    async fn it_is_a_job_queue() {
        conformance::suite(&InProcess::default()).await;
    }
}
