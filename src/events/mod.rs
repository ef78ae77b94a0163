//! Life-cycle events for others: what happens to instances, as a stream in NATS
//! that anybody with the right to it may follow, from now or from a week ago.
//!
//! ```text
//! stream <prefix>-events   subjects <prefix>.events.<golden>.<happened>
//! message                  one InstanceEvent as JSON, see event.schema.json
//! Nats-Msg-Id              <instance>-<generation>-<happened>: published twice, kept once
//! ```
//!
//! Listens to the life cycle ([`crate::provision::Events`]), which never waits:
//! [`Feed::run`] keeps two tasks, one that puts what it hears into the
//! [`buffer`], one that publishes from there, one after the other, so that the
//! events of an instance keep their order. While NATS is away they wait; beyond
//! [`BUFFERED`] the oldest are dropped and counted. What is not published when
//! the daemon ends is lost: the store, not the stream, is the state.

mod buffer;

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::context::PublishError;
use async_nats::jetstream::stream;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use self::buffer::Buffer;
use crate::config::NatsConfig;
use crate::error::Chain;
use crate::instance::event::InstanceEvent;
use crate::metrics;
use crate::nats::Nats;

/// Events that wait while NATS is away: at five an instance this is a few
/// thousand instances, and a few megabytes.
const BUFFERED: usize = 16_384;

/// How long the server remembers what was published; an event is tried again
/// within seconds of the connection's return.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);

/// How long the last events may take when the daemon ends.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// After an event that was not taken.
const PAUSE: Duration = Duration::from_millis(200);

/// The stream that events need.
#[must_use]
pub fn stream(config: &NatsConfig) -> stream::Config {
    stream::Config {
        name: format!("{}-events", config.prefix),
        description: Some("what happens to instances".into()),
        subjects: vec![format!("{}.events.*.*", config.prefix)],
        max_age: config.events_max_age,
        max_bytes: i64::try_from(config.events_max_bytes).unwrap_or(i64::MAX),
        // The server refuses a window longer than the age.
        duplicate_window: DUPLICATE_WINDOW.min(config.events_max_age),
        num_replicas: 1,
        ..stream::Config::default()
    }
}

/// Publishes events.
#[derive(Debug)]
pub struct Feed {
    nats: Arc<Nats>,
    prefix: String,
}

impl Feed {
    /// Publishes over `nats`, which must look after the [`stream()`].
    #[must_use]
    pub fn new(nats: Arc<Nats>, prefix: &str) -> Self {
        Self { nats, prefix: prefix.to_owned() }
    }

    /// Publishes what it hears until `stop`, then what is left, for a moment.
    pub async fn run(self, heard: Receiver<Arc<InstanceEvent>>, stop: CancellationToken) {
        let buffer = Arc::new(Buffer::new(BUFFERED));
        let listening = tokio::spawn(listen(heard, Arc::clone(&buffer), stop.clone()));
        let publish = async {
            while let Some(event) = buffer.first().await {
                self.publish(&event).await;
                buffer.done(&event);
            }
        };
        let over = async {
            stop.cancelled().await;
            tokio::time::sleep(FLUSH_DEADLINE).await;
        };
        tokio::select! {
            () = publish => {}
            () = over => {}
        }
        listening.abort();
        let left = buffer.len();
        if left > 0 {
            metrics::events_dropped(left as u64);
            tracing::warn!(left, "events not published before the end");
        }
    }

    /// Publishes one event, however long that takes.
    async fn publish(&self, event: &InstanceEvent) {
        loop {
            self.nats.up().await;
            match self.try_publish(event).await {
                Ok(()) => return metrics::event_published(),
                Err(error) => {
                    tracing::debug!(instance_id = %event.instance_id, error = %Chain(&error), "event not published yet");
                    self.nats.suspect();
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn try_publish(&self, event: &InstanceEvent) -> Result<(), PublishError> {
        let happened = event.happened.as_str();
        let subject = format!("{}.events.{}.{happened}", self.prefix, event.golden);
        let id = format!("{}-{}-{happened}", event.instance_id, event.generation);
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, id);
        let body = serde_json::to_vec(event).expect("an event has only texts and numbers");
        let ack = self.nats.jetstream().publish_with_headers(subject, headers, body.into()).await?;
        ack.await.map(|_| ())
    }
}

/// Puts what it hears into the buffer; closes it when nothing more comes.
async fn listen(mut heard: Receiver<Arc<InstanceEvent>>, buffer: Arc<Buffer>, stop: CancellationToken) {
    loop {
        let event = tokio::select! {
            biased;
            event = heard.recv() => event,
            () = stop.cancelled() => break,
        };
        let dropped = match event {
            Ok(event) => buffer.push(event),
            Err(RecvError::Lagged(missed)) => missed,
            Err(RecvError::Closed) => break,
        };
        if dropped > 0 {
            metrics::events_dropped(dropped);
        }
    }
    buffer.close();
}
