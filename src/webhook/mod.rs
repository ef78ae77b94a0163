//! Webhooks: what happens to leases, told to addresses of the operator's.
//!
//! Owned by the daemon when WEBHOOK_URLS names any. Listens to the life cycle
//! ([`crate::instance::event`]), which never waits; [`Webhooks::run`] puts what
//! concerns leases into the [`spool`], and one task a receiver sends from there,
//! one event after the other, so that each receiver hears them in order.
//!
//! ```text
//! life cycle -> notice -> spool (a file a receiver) -> send -> 2xx: the file goes
//!                                                        \-> else: again, 1 s to 5 min later, for a day
//! ```
//!
//! What is promised: a receiver hears of each lease that it was acquired and how
//! it ended, at least once, in this order, though the daemon is killed at any
//! moment in between. What was not told is found at the next start by comparing
//! the records with the leases that are noted as open; only how a lease ended may
//! then be a guess. An event that comes twice has the same id. More than
//! [`spool`]'s bound, and older than a day, is dropped, counted and logged.
//!
//! Several daemons: whoever changed the record tells of it, so one of them does.

pub mod notice;
pub mod send;
mod spool;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::notice::{Kind, Notice, missed};
use self::send::{SendError, Sender, Verdict, verdict};
use self::spool::{Queue, Spool};
use crate::config::{WebhookConfig, WebhookSecretError};
use crate::error::Chain;
use crate::id::NodeName;
use crate::instance::event::InstanceEvent;
use crate::metrics::{self, Delivery};
use crate::store::{Store, StoreError};

/// How long the last events may take when the daemon ends; the next one sends
/// what is left.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// Why there can be no webhooks.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The secret.
    #[error(transparent)]
    Secret(#[from] WebhookSecretError),
    /// No HTTP client.
    #[error("cannot make an HTTP client for WEBHOOK_URLS")]
    Client(#[source] reqwest::Error),
    /// What waits cannot be kept.
    #[error("cannot keep events for webhooks in {}", .dir.display())]
    Spool {
        /// Where.
        dir: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The webhooks of one daemon.
#[derive(Debug)]
pub struct Webhooks {
    spool: Arc<Spool>,
    senders: Vec<Sender>,
    node: NodeName,
}

impl Webhooks {
    /// Reads the secret and opens what a former daemon could not send.
    ///
    /// # Errors
    /// [`WebhookError`]
    pub fn open(config: &WebhookConfig, state_dir: &Path, node: &NodeName) -> Result<Self, WebhookError> {
        let secret = config.secret.load()?;
        let senders = Sender::all(&config.urls, &secret).map_err(WebhookError::Client)?;
        let dir = state_dir.join("webhooks");
        let (spool, forgotten) =
            Spool::open(&dir, &config.urls).map_err(|source| WebhookError::Spool { dir, source })?;
        if forgotten > 0 {
            metrics::webhook(Delivery::Dropped, forgotten as u64);
            tracing::warn!(events = forgotten, "events dropped whose webhook is no longer in WEBHOOK_URLS");
        }
        metrics::webhooks_waiting(spool.waiting());
        Ok(Self { spool: Arc::new(spool), senders, node: node.clone() })
    }

    /// Tells what a former daemon heard of and did not tell: takes what was heard
    /// so far, then compares the records with the leases that receivers know. To
    /// be called before anybody can acquire.
    ///
    /// # Errors
    /// [`StoreError`]: the store cannot be read.
    pub async fn catch_up(
        &self,
        heard: &mut Receiver<Arc<InstanceEvent>>,
        store: &dyn Store,
    ) -> Result<(), StoreError> {
        while let Some(event) = already(heard) {
            self.tell(&event).await;
        }
        self.compare(store).await
    }

    async fn compare(&self, store: &dyn Store) -> Result<(), StoreError> {
        let now = Timestamp::now();
        let open = match blocking(&self.spool, Spool::all_open).await {
            Ok(open) => open,
            Err(error) => {
                tracing::warn!(error = %error, "leases that webhooks know of cannot be read");
                return Ok(());
            }
        };
        for instance in store.own().await? {
            if let Some(notice) = missed(&instance, open.contains_key(&instance.id), now) {
                self.put(notice).await;
            }
        }
        for (id, opened) in open {
            if store.get(&id).await?.is_none()
                && let Some(notice) = opened.closed(now)
            {
                self.put(notice).await;
            }
        }
        Ok(())
    }

    /// Tells what it hears until `stop`, then what is left, for a moment.
    pub async fn run(
        self,
        mut heard: Receiver<Arc<InstanceEvent>>,
        store: Arc<dyn Store>,
        stop: CancellationToken,
    ) {
        let mut sending = JoinSet::new();
        for (queue, sender) in self.spool.queues().iter().zip(self.senders.clone()) {
            sending.spawn(deliver(Arc::clone(queue), Arc::clone(&self.spool), sender));
        }
        loop {
            let event = tokio::select! {
                biased;
                event = heard.recv() => event,
                () = stop.cancelled() => break,
            };
            match event {
                Ok(event) => self.tell(&event).await,
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "webhooks lag behind; the records say what was missed");
                    if let Err(error) = self.compare(&*store).await {
                        tracing::warn!(error = %Chain(&error), "what webhooks missed is told at the next start");
                    }
                }
                Err(RecvError::Closed) => break,
            }
        }
        // What is left waits on the disk.
        let _ = tokio::time::timeout(FLUSH_DEADLINE, self.spool.empty()).await;
        sending.shutdown().await;
    }

    async fn tell(&self, event: &InstanceEvent) {
        if let Some(notice) = Notice::of_event(event) {
            self.put(notice).await;
        }
    }

    /// Hands a notice to all receivers, and notes what they know then. In this
    /// order: who dies in between tells it twice, not never.
    async fn put(&self, notice: Notice) {
        let is_own = notice.node == self.node;
        let put = blocking(&self.spool, move |spool| Ok(put_and_note(spool, notice, is_own))).await;
        let (dropped, kept) = put.unwrap_or_else(|error| (0, Err(error)));
        if dropped > 0 {
            metrics::webhook(Delivery::Dropped, dropped as u64);
            tracing::warn!(events = dropped, "the oldest events for webhooks were dropped: too many wait");
        }
        if let Err(error) = kept {
            tracing::warn!(error = %error, "an event for webhooks is not on the disk; a restart would lose it");
        }
        metrics::webhooks_waiting(self.spool.waiting());
    }
}

/// What was heard already.
fn already(heard: &mut Receiver<Arc<InstanceEvent>>) -> Option<Arc<InstanceEvent>> {
    loop {
        match heard.try_recv() {
            Ok(event) => return Some(event),
            Err(TryRecvError::Lagged(_)) => {}
            Err(TryRecvError::Empty | TryRecvError::Closed) => return None,
        }
    }
}

/// Sends what waits for one receiver, for ever; dropped at the end.
async fn deliver(queue: Arc<Queue>, spool: Arc<Spool>, sender: Sender) {
    let mut is_failing = false;
    loop {
        let (number, notice) = queue.first().await;
        let mut attempts = 0;
        loop {
            let Err(error) = sender.send(&notice).await else {
                metrics::webhook(Delivery::Delivered, 1);
                if std::mem::take(&mut is_failing) {
                    tracing::info!(webhook = %sender.url(), "webhook takes events again");
                }
                break;
            };
            attempts += 1;
            metrics::webhook(Delivery::Failed, 1);
            told(&sender, &error, &mut is_failing);
            match verdict(&error, attempts, Timestamp::now().duration_since(notice.at)) {
                // Receivers that several daemons share are not asked by all at once.
                Verdict::Again(pause) => {
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.8..1.0))).await;
                }
                Verdict::GiveUp => {
                    metrics::webhook(Delivery::Dropped, 1);
                    tracing::warn!(webhook = %sender.url(), event = notice.id, attempts, error = %Chain(&error), "event given up");
                    break;
                }
            }
            if !queue.is_first(number) {
                break;
            }
        }
        let queue = Arc::clone(&queue);
        // A file that stays is an event that comes twice.
        let done = tokio::task::spawn_blocking(move || queue.done(number)).await;
        if let Ok(Err(error)) = done {
            tracing::warn!(error = %error, "a delivered event stays on the disk and is sent again after a restart");
        }
        spool.taken();
        metrics::webhooks_waiting(spool.waiting());
    }
}

/// Once until it works again.
fn told(sender: &Sender, error: &SendError, is_failing: &mut bool) {
    if !std::mem::replace(is_failing, true) {
        tracing::warn!(webhook = %sender.url(), error = %Chain(error), "webhook does not take events; tried again");
    }
}

/// Runs what touches the disk away from the runtime's threads.
async fn blocking<T: Send + 'static>(
    spool: &Arc<Spool>,
    work: impl FnOnce(&Spool) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let spool = Arc::clone(spool);
    tokio::task::spawn_blocking(move || work(&spool))
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// What receivers know after a notice, beside the notice itself. Answers how many
/// had to go for it.
fn put_and_note(spool: &Spool, notice: Notice, is_own: bool) -> (usize, io::Result<()>) {
    let Some(id) = notice.instance.as_ref().map(|about| about.id.clone()) else { return (0, Ok(())) };
    let opens = notice.event == Kind::Acquired;
    if opens && is_own && spool.is_open(&id) {
        // It slept, and was woken.
        return (0, Ok(()));
    }
    let notice = Arc::new(notice);
    let (dropped, kept) = spool.put(&notice);
    let noted = match (opens, is_own) {
        (true, true) => spool.note_open(&id, &notice),
        (false, _) => spool.note_closed(&id),
        // Its own daemon knows when it is over.
        (true, false) => Ok(()),
    };
    (dropped, kept.and(noted))
}
