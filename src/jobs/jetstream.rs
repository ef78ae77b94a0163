//! The queue over NATS JetStream.
//!
//! ```text
//! stream <prefix>-jobs   work queue   subjects <prefix>.jobs.<node>.<kind>   an hour at most
//! stream <prefix>-dead   for people   subjects <prefix>.dead.<node>.<kind>   a month at most
//! consumer <node>-<kind> on the first, one a kind and node, pulled one job at a time
//! ```
//!
//! A job that is not settled within [`ACK_WAIT`], nor said to be in progress,
//! comes again: its taker was killed, or the acknowledgement was lost. The
//! server itself gives no job up (`max_deliver` is unlimited): after its last
//! delivery it would leave it in the stream, in nobody's hands. The worker
//! counts instead and lays the job aside in the second stream, first written
//! there, then ended here: killed in between, the next one does it again, under
//! the same id.
//!
//! Stalled consumers: each pull is for one job and ends after [`PULL`]; one of a
//! former epoch of the link is dropped at once. The consumer is made again in
//! each epoch and after every error.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{self, RetentionPolicy};
use async_nats::jetstream::{AckKind, Message};
use async_trait::async_trait;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::Mutex;

use super::{
    DUPLICATE_WINDOW, Delivery, JOB_VERSION, Job, JobQueue, Kind, QueueError, Receipt, Submitted, Verdict,
};
use crate::error::Chain;
use crate::id::NodeName;
use crate::nats::Nats;

/// A job whose taker is not heard of for so long comes again. The next daemon
/// asks for what it needs by itself, so nobody waits for this.
const ACK_WAIT: Duration = Duration::from_secs(15);

/// How long one pull waits at the server.
const PULL: Duration = Duration::from_secs(5);

/// After a pull that failed: the consumer or the stream is about to be made again.
const PAUSE: Duration = Duration::from_millis(200);

/// Words to the server are lost when it is away; nobody waits for it longer.
const WORD_DEADLINE: Duration = Duration::from_secs(1);

/// A job that nobody took for so long is stale: its node is gone, and whoever
/// wanted it has asked again many times.
const JOBS_MAX_AGE: Duration = Duration::from_secs(3600);

/// How long people can look at what was given up.
const DEAD_MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3600);

/// A consumer whose node is gone for so long is removed by the server.
const CONSUMER_MAX_IDLE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Enough for every job in hand, and a bound for a daemon that hangs.
const MAX_IN_HAND: i64 = 1024;

/// How many places of the stream are looked at for what waits: each costs a
/// question to the server.
const LISTED_MAX: u64 = 4096;

/// How a job is laid aside.
#[derive(Debug, Serialize)]
struct DeadLetter<'a> {
    version: u16,
    node: &'a NodeName,
    attempts: i64,
    reason: &'a str,
    at: Timestamp,
    /// As it was delivered; text when it is no JSON.
    job: serde_json::Value,
}

/// The streams that jobs need.
#[must_use]
pub fn streams(prefix: &str) -> Vec<stream::Config> {
    let jobs = stream::Config {
        name: format!("{prefix}-jobs"),
        description: Some("what the daemons' pools have decided, on its way to whoever does it".into()),
        subjects: vec![format!("{prefix}.jobs.*.*")],
        retention: RetentionPolicy::WorkQueue,
        max_age: JOBS_MAX_AGE,
        duplicate_window: DUPLICATE_WINDOW,
        num_replicas: 1,
        ..stream::Config::default()
    };
    let dead = stream::Config {
        name: format!("{prefix}-dead"),
        description: Some("jobs that were given up, each with the reason".into()),
        subjects: vec![format!("{prefix}.dead.*.*")],
        max_age: DEAD_MAX_AGE,
        max_bytes: 64 << 20,
        duplicate_window: DUPLICATE_WINDOW,
        num_replicas: 1,
        ..stream::Config::default()
    };
    vec![jobs, dead]
}

/// The queue of one node.
#[derive(Debug)]
pub struct JetStreamQueue {
    nats: Arc<Nats>,
    prefix: String,
    node: NodeName,
    ack_wait: Duration,
    /// The consumer of each kind and the epoch it was made in.
    consumers: Mutex<HashMap<Kind, (u64, PullConsumer)>>,
}

/// A node's name as one token of a subject: a host name's dots would make it several.
fn token(node: &NodeName) -> String {
    node.as_str().replace('.', "_")
}

impl JetStreamQueue {
    /// The queue of `node`; its streams must be among those that `nats` looks after.
    #[must_use]
    pub fn new(nats: Arc<Nats>, prefix: &str, node: NodeName) -> Self {
        Self { nats, prefix: prefix.to_owned(), node, ack_wait: ACK_WAIT, consumers: Mutex::default() }
    }

    /// The same with another time after which a job comes again: for tests.
    #[must_use]
    pub fn with_ack_wait(self, ack_wait: Duration) -> Self {
        Self { ack_wait, ..self }
    }

    fn subject(&self, line: &str, kind: Kind) -> String {
        format!("{}.{line}.{}.{}", self.prefix, token(&self.node), kind.as_str())
    }

    async fn consumer(&self, kind: Kind, epoch: u64) -> Result<PullConsumer, QueueError> {
        let mut consumers = self.consumers.lock().await;
        if let Some((of, consumer)) = consumers.get(&kind)
            && *of == epoch
        {
            return Ok(consumer.clone());
        }
        let config = pull::Config {
            durable_name: Some(format!("{}-{}", token(&self.node), kind.as_str())),
            filter_subject: self.subject("jobs", kind),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.ack_wait,
            max_deliver: -1,
            max_ack_pending: MAX_IN_HAND,
            inactive_threshold: CONSUMER_MAX_IDLE,
            ..pull::Config::default()
        };
        let stream = format!("{}-jobs", self.prefix);
        let made = self.nats.jetstream().create_consumer_on_stream(config, stream).await;
        let consumer = made.map_err(|error| failed("make the consumer", error))?;
        consumers.insert(kind, (epoch, consumer.clone()));
        Ok(consumer)
    }

    async fn stream(&self, doing: &'static str) -> Result<stream::Stream, QueueError> {
        if !self.nats.is_up() {
            return Err(QueueError::Away { why: "NATS cannot be used".into() });
        }
        let stream = self.nats.jetstream().get_stream(format!("{}-jobs", self.prefix)).await;
        stream.map_err(|error| failed(doing, error))
    }

    /// This node's jobs in the stream, with their places there, as far back as
    /// [`LISTED_MAX`].
    async fn kept(&self) -> Result<Vec<(u64, Job)>, QueueError> {
        let stream = self.stream("list the jobs").await?;
        let state = &stream.cached_info().state;
        let first = state.first_sequence.max(state.last_sequence.saturating_sub(LISTED_MAX));
        let own = Kind::ALL.map(|kind| self.subject("jobs", kind));
        let mut jobs = Vec::new();
        if state.messages == 0 {
            return Ok(jobs);
        }
        for sequence in first..=state.last_sequence {
            // Settled meanwhile, or before others that are not.
            let Ok(message) = stream.get_raw_message(sequence).await else { continue };
            if own.iter().any(|subject| *subject == *message.subject)
                && let Ok(job) = serde_json::from_slice(&message.payload)
            {
                jobs.push((sequence, job));
            }
        }
        Ok(jobs)
    }

    /// One pull; none when no job came.
    async fn pull(&self, kind: Kind, epoch: u64) -> Result<Option<Message>, QueueError> {
        let consumer = self.consumer(kind, epoch).await?;
        let batch = consumer.batch().max_messages(1).expires(PULL).messages().await;
        let mut batch = batch.map_err(|error| failed("pull a job", error))?;
        // The client itself waits some seconds longer than the server does.
        match tokio::time::timeout(PULL + WORD_DEADLINE, batch.next()).await {
            Ok(Some(Ok(message))) => Ok(Some(message)),
            Ok(Some(Err(error))) => Err(QueueError::Unavailable { doing: "pull a job", source: error }),
            Ok(None) | Err(_) => Ok(None),
        }
    }

    /// Reads a message; one that is no job is laid aside.
    async fn read(&self, kind: Kind, message: Message) -> Option<Delivery> {
        let delivered = message.info().map_or(1, |info| info.delivered);
        let job = serde_json::from_slice::<Job>(&message.payload);
        let held = Held {
            nats: Arc::clone(&self.nats),
            subject: self.subject("dead", kind),
            node: self.node.clone(),
            ack_wait: self.ack_wait,
            delivered,
            message,
        };
        let reason = match job {
            Ok(job) if job.version <= JOB_VERSION => {
                let attempt = u32::try_from(delivered).unwrap_or(u32::MAX);
                return Some(Delivery { job, attempt, receipt: Box::new(held) });
            }
            Ok(job) => format!("it is of version {}, this program reads up to {JOB_VERSION}", job.version),
            Err(error) => format!("it cannot be read: {error}"),
        };
        tracing::warn!(kind = kind.as_str(), reason, "job laid aside");
        if let Err(error) = held.settle(Verdict::Dead(reason)).await {
            tracing::debug!(error = %Chain(&error), "job not laid aside yet");
        }
        None
    }
}

fn failed(doing: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> QueueError {
    QueueError::Unavailable { doing, source: Box::new(error) }
}

#[async_trait]
impl JobQueue for JetStreamQueue {
    async fn submit(&self, job: &Job) -> Result<Submitted, QueueError> {
        if !self.nats.is_up() {
            return Err(QueueError::Away { why: "NATS cannot be used".into() });
        }
        let doing = "submit a job";
        let body = serde_json::to_vec(job).map_err(|error| failed(doing, error))?;
        let (subject, mut headers) = (self.subject("jobs", job.kind()), HeaderMap::new());
        headers.insert(NATS_MESSAGE_ID, job.id.as_str());
        let sent = async {
            let ack = self.nats.jetstream().publish_with_headers(subject, headers, body.into()).await?;
            ack.await
        };
        match sent.await {
            Ok(ack) if ack.duplicate => Ok(Submitted::Again),
            Ok(_) => Ok(Submitted::New),
            Err(error) => {
                self.nats.suspect();
                Err(failed(doing, error))
            }
        }
    }

    async fn next(&self, kind: Kind) -> Delivery {
        loop {
            let epoch = self.nats.up().await;
            let pulled = tokio::select! {
                pulled = self.pull(kind, epoch) => pulled,
                () = self.nats.is_over(epoch) => continue,
            };
            match pulled {
                Ok(Some(message)) => {
                    if let Some(delivery) = self.read(kind, message).await {
                        return delivery;
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(kind = kind.as_str(), error = %Chain(&error), "no job pulled");
                    self.consumers.lock().await.remove(&kind);
                    self.nats.suspect();
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn pending(&self) -> Result<Vec<Job>, QueueError> {
        Ok(self.kept().await?.into_iter().map(|(_, job)| job).collect())
    }

    async fn discard(&self, job: &Job) -> Result<(), QueueError> {
        let doing = "take a job out";
        let same = self.kept().await?.into_iter().filter(|(_, kept)| kept.id == job.id);
        let stream = self.stream(doing).await?;
        for (sequence, _) in same {
            stream.delete_message(sequence).await.map_err(|error| failed(doing, error))?;
        }
        Ok(())
    }
}

/// A job in hand.
struct Held {
    nats: Arc<Nats>,
    /// Where it goes when it is given up.
    subject: String,
    node: NodeName,
    ack_wait: Duration,
    delivered: i64,
    message: Message,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("subject", &self.subject).finish_non_exhaustive()
    }
}

impl Held {
    async fn say(&self, doing: &'static str, word: AckKind) -> Result<(), QueueError> {
        if !self.nats.is_up() {
            return Err(QueueError::Away { why: "NATS cannot be used".into() });
        }
        match tokio::time::timeout(WORD_DEADLINE, self.message.ack_with(word)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(QueueError::Unavailable { doing, source }),
            Err(late) => Err(failed(doing, late)),
        }
    }

    async fn lay_aside(&self, reason: &str) -> Result<(), QueueError> {
        let doing = "lay a job aside";
        let payload = &self.message.payload;
        let job = serde_json::from_slice(payload)
            .unwrap_or_else(|_| serde_json::Value::String(String::from_utf8_lossy(payload).into_owned()));
        let letter = DeadLetter {
            version: 1,
            node: &self.node,
            attempts: self.delivered,
            reason,
            at: Timestamp::now(),
            job,
        };
        let body = serde_json::to_vec(&letter).map_err(|error| failed(doing, error))?;
        let mut headers = HeaderMap::new();
        if let Some(id) = self.message.headers.as_ref().and_then(|of| of.get(NATS_MESSAGE_ID)) {
            headers.insert(NATS_MESSAGE_ID, id.clone());
        }
        let sent = async {
            let context = self.nats.jetstream();
            let ack = context.publish_with_headers(self.subject.clone(), headers, body.into()).await?;
            ack.await
        };
        sent.await.map(|_| ()).map_err(|error| failed(doing, error))
    }
}

#[async_trait]
impl Receipt for Held {
    async fn in_progress(&self) -> Result<(), QueueError> {
        self.say("say that a job is in progress", AckKind::Progress).await
    }

    async fn settle(&self, verdict: Verdict) -> Result<(), QueueError> {
        match verdict {
            Verdict::Over => self.say("say that a job is over", AckKind::Ack).await,
            Verdict::Again(pause) => self.say("give a job back", AckKind::Nak(Some(pause))).await,
            Verdict::Dead(reason) => {
                self.lay_aside(&reason).await?;
                self.say("end a job", AckKind::Term).await
            }
        }
    }

    fn patience(&self) -> Duration {
        self.ack_wait / 3
    }
}
