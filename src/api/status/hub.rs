//! All status streams of this daemon: one clock, one listener for changes.
//!
//! Owns the view of every watched instance. A view is there while a stream
//! watches it; [`StatusHub::run`] alone moves it on:
//!
//! ```text
//! an event of this daemon        at once
//! the clock                      four times a second, so that no second is missed or told twice
//! the store's record             every REFRESH: another daemon changed it, or an event was lost
//! stop                           every stream ends, none is opened any more
//! ```
//!
//! A stream has no buffer of its own: it reads the view when its client has
//! taken the last message. A client that takes nothing at all is hung up on by
//! the listener.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::Timestamp;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::feed::{Fact, View};
use crate::error::{Chain, ErrorKind};
use crate::id::InstanceId;
use crate::instance::Instance;
use crate::instance::event::InstanceEvent;
use crate::metrics;
use crate::provision::Provisioner;
use crate::store::StoreError;

/// How late a countdown may be.
const TICK: Duration = Duration::from_millis(250);

/// How late a change made by another daemon may be.
const REFRESH: Duration = Duration::from_secs(3);

/// Records read at once in a refresh: enough to read thousands in its time, few
/// enough to leave the store to those who wait for an instance.
const READS_AT_ONCE: usize = 4;

/// Why a stream was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StatusError {
    /// There are as many as there may be.
    #[error("all {max} status streams of this daemon are taken")]
    Full {
        /// SSE_MAX_CLIENTS.
        max: usize,
    },
    /// The daemon is being stopped.
    #[error("the service is being stopped")]
    Stopping,
}

impl StatusError {
    /// What the caller can do.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Full { .. } => ErrorKind::Exhausted,
            Self::Stopping => ErrorKind::Unavailable,
        }
    }
}

/// The status streams of one daemon.
#[derive(Debug)]
pub struct StatusHub {
    provisioner: Arc<Provisioner>,
    max: usize,
    watched: Mutex<Watched>,
    /// Wakes the refresh before its time: events were lost.
    lost: Notify,
}

#[derive(Debug, Default)]
struct Watched {
    streams: usize,
    is_stopping: bool,
    views: HashMap<InstanceId, watch::Sender<View>>,
}

impl StatusHub {
    /// Room for `max` streams; nothing is started.
    #[must_use]
    pub fn new(provisioner: Arc<Provisioner>, max: usize) -> Arc<Self> {
        Arc::new(Self { provisioner, max, watched: Mutex::default(), lost: Notify::new() })
    }

    /// Moves all views on until `stop`, then ends every stream; spawned once by
    /// the daemon.
    pub fn run(self: Arc<Self>, stop: CancellationToken) -> impl Future<Output = ()> + Send {
        // Before the first stream is opened, so that none misses a change.
        let events = self.provisioner.lifecycle().events().listen();
        async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.follow(events) => {}
                () = self.refresh() => {}
            }
            self.stop();
        }
    }

    /// Takes a place and begins to watch; the caller reads the record after it,
    /// so that no change falls between the two.
    pub(super) fn watch(self: &Arc<Self>, id: &InstanceId) -> Result<Watching, StatusError> {
        let mut watched = self.lock();
        if watched.is_stopping {
            return Err(StatusError::Stopping);
        }
        if watched.streams >= self.max {
            return Err(StatusError::Full { max: self.max });
        }
        watched.streams += 1;
        metrics::sse_client_came();
        let sender = watched
            .views
            .entry(id.clone())
            .or_insert_with(|| watch::Sender::new(View::new(id.clone(), Timestamp::now())));
        let view = sender.subscribe();
        Ok(Watching { hub: Arc::clone(self), id: id.clone(), view })
    }

    async fn follow(&self, mut events: broadcast::Receiver<Arc<InstanceEvent>>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => self.hear(&event),
                    Err(RecvError::Lagged(_)) => self.lost.notify_one(),
                    Err(RecvError::Closed) => return,
                },
                _ = tick.tick() => {
                    let now = Timestamp::now();
                    for view in self.lock().views.values() {
                        view.send_if_modified(|view| view.tick(now));
                    }
                }
            }
        }
    }

    async fn refresh(&self) {
        let mut was_failing = false;
        loop {
            // Timed out: it is time, nothing was lost.
            let _ = tokio::time::timeout(REFRESH, self.lost.notified()).await;
            let ids: Vec<InstanceId> = self.lock().views.keys().cloned().collect();
            let store = self.provisioner.lifecycle().store();
            let mut reads = futures_util::stream::iter(ids)
                .map(|id| async move { (store.get(&id).await, id) })
                .buffer_unordered(READS_AT_ONCE);
            let mut failure = None;
            while let Some((read, id)) = reads.next().await {
                match read {
                    Ok(Some(record)) => self.learn(&id, Fact::from(&record)),
                    Ok(None) => self.learn_gone(&id),
                    Err(error) => failure = Some(error),
                }
            }
            tell_once(failure.as_ref(), &mut was_failing);
        }
    }

    fn hear(&self, event: &InstanceEvent) {
        if let Some(view) = self.lock().views.get(&event.instance_id) {
            view.send_if_modified(|view| view.hear(event, Timestamp::now()));
        }
    }

    fn learn(&self, id: &InstanceId, fact: Fact) {
        if let Some(view) = self.lock().views.get(id) {
            view.send_if_modified(|view| view.learn(fact, Timestamp::now()));
        }
    }

    fn learn_gone(&self, id: &InstanceId) {
        if let Some(view) = self.lock().views.get(id) {
            view.send_if_modified(|view| view.learn_gone(Timestamp::now()));
        }
    }

    fn stop(&self) {
        let mut watched = self.lock();
        watched.is_stopping = true;
        for view in watched.views.values() {
            view.send_modify(View::stop);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says that the store cannot be read when that begins, and not every time.
fn tell_once(failure: Option<&StoreError>, was_failing: &mut bool) {
    if let Some(error) = failure
        && !*was_failing
    {
        tracing::warn!(error = %Chain(error), "status streams see changes of this daemon only");
    }
    *was_failing = failure.is_some();
}

/// One stream's place; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Watching {
    hub: Arc<StatusHub>,
    id: InstanceId,
    pub(super) view: watch::Receiver<View>,
}

impl Watching {
    /// Takes in the record that was read.
    pub(super) fn learn(&self, record: &Instance) {
        self.hub.learn(&self.id, Fact::from(record));
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut watched = self.hub.lock();
        watched.streams -= 1;
        metrics::sse_client_left();
        // The one that is being dropped still counts.
        if watched.views.get(&self.id).is_some_and(|view| view.receiver_count() <= 1) {
            watched.views.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::super::feed::Cursor;
    use super::*;
    use crate::config::ColdStart;
    use crate::instance::EngineKind;
    use crate::pool::Nudge;
    use crate::provision::limits::Limits;
    use crate::provision::{AcquireRequest, Lifecycle, Parts, Terms};
    use crate::route::Routes;
    use crate::store::embedded::EmbeddedStore;
    use crate::testing::{Script, eventually, runtime};

    fn provisioner(dir: &tempfile::TempDir) -> Arc<Provisioner> {
        let store = EmbeddedStore::open(&dir.path().join("store"), &"here".parse().unwrap()).unwrap();
        let lifecycle = Lifecycle::new(Parts {
            store: Arc::new(store),
            routes: Arc::new(Routes::default()),
            goldens: vec![runtime("shop", &Script::quiet(EngineKind::Criu), None)],
            max_instances: 10,
            restore_concurrency: 2,
            refill: Nudge::default(),
            reap: Nudge::default(),
        });
        let terms = Terms {
            default_ttl: SignedDuration::from_hours(1),
            max_ttl: SignedDuration::from_hours(2),
            cold_start: ColdStart::Refused,
            wait: Duration::from_secs(5),
            patience: Duration::from_secs(10),
            limits: Limits::default(),
        };
        Arc::new(Provisioner::new(Arc::new(lifecycle), terms))
    }

    /// Returns when the stream has said something with `what` in it.
    async fn says(watching: &Watching, what: &str) {
        eventually(what, async || {
            let next = watching.view.borrow().next(Cursor::default())?;
            String::from_utf8_lossy(&next.message).contains(what).then_some(())
        })
        .await;
    }

    #[tokio::test]
    async fn a_change_that_no_event_told_is_seen_in_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let provisioner = provisioner(&dir);
        let hub = StatusHub::new(Arc::clone(&provisioner), 10);
        let running = tokio::spawn(Arc::clone(&hub).run(CancellationToken::new()));
        let instance = provisioner.acquire(AcquireRequest::default()).await.unwrap().instance;
        let watching = hub.watch(&instance.id).unwrap();
        watching.learn(&instance);
        says(&watching, "\"seconds_left\":3").await;
        // As another daemon does it: straight to the store, and no event here.
        let store = provisioner.lifecycle().store();
        let mut changed = instance.clone();
        changed.expires_at = instance.expires_at.map(|end| end + SignedDuration::from_hours(1));
        let changed = store.update(changed).await.unwrap();
        says(&watching, &format!("\"generation\":{}", changed.generation)).await;
        store.remove(&instance.id).await.unwrap();
        says(&watching, "\"state\":\"gone\"").await;
        running.abort();
    }

    #[tokio::test]
    async fn a_view_is_there_while_somebody_watches_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let hub = StatusHub::new(provisioner(&dir), 2);
        let id = InstanceId::random();
        let (one, other) = (hub.watch(&id).unwrap(), hub.watch(&id).unwrap());
        assert_eq!(hub.watch(&id).unwrap_err(), StatusError::Full { max: 2 });
        let counts = || {
            let watched = hub.lock();
            (watched.views.len(), watched.streams)
        };
        assert_eq!(counts(), (1, 2), "one view is shared by both");
        drop(one);
        assert_eq!(counts(), (1, 1));
        drop(other);
        assert_eq!(counts(), (0, 0));
        hub.stop();
        assert_eq!(hub.watch(&id).unwrap_err(), StatusError::Stopping);
    }
}
