//! The job queue and the event stream, put together from the settings: within
//! the process alone, or over NATS.
//!
//! Called by [`crate::app`], in this order: [`Jobs::open`], [`Jobs::begin`]
//! (before anything is served: jobs stay in the process), [`Jobs::open_bus`].

use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::events::{self, Feed};
use crate::jobs::JobQueue;
use crate::jobs::dispatch::Dispatch;
use crate::jobs::jetstream::{self, JetStreamQueue};
use crate::jobs::worker::Worker;
use crate::nats::{Link, Nats, NatsError};
use crate::pool::{Nudge, Target};
use crate::provision::Lifecycle;

/// All about jobs and events.
#[derive(Debug)]
pub struct Jobs {
    lifecycle: Arc<Lifecycle>,
    dispatch: Arc<Dispatch>,
    worker: Arc<Worker>,
    feed: Option<Feed>,
    link: Option<watch::Receiver<Link>>,
}

impl Jobs {
    /// Puts everything together and begins to connect; a NATS that is away is no
    /// error.
    ///
    /// # Errors
    /// [`NatsError`]: settings that cannot work.
    pub async fn open(
        config: &Config,
        lifecycle: &Arc<Lifecycle>,
        target: Target,
        refill: Nudge,
    ) -> Result<Self, NatsError> {
        let (mut bus, mut feed, mut link) = (None, None, None);
        if let Some(settings) = &config.nats {
            let mut streams = jetstream::streams(&settings.prefix);
            streams.push(events::stream(settings));
            let nats = Arc::new(Nats::open(settings, &config.node, streams).await?);
            let queue = JetStreamQueue::new(Arc::clone(&nats), &settings.prefix, config.node.clone());
            bus = Some(Arc::new(queue) as Arc<dyn JobQueue>);
            link = Some(nats.link());
            feed = Some(Feed::new(nats, &settings.prefix));
        }
        let dispatch = Arc::new(Dispatch::new(bus));
        let board = Arc::clone(dispatch.board());
        let worker = Arc::new(Worker::new(Arc::clone(lifecycle), board, target, refill));
        Ok(Self { lifecycle: Arc::clone(lifecycle), dispatch, worker, feed, link })
    }

    /// Where jobs are handed in.
    #[must_use]
    pub const fn dispatch(&self) -> &Arc<Dispatch> {
        &self.dispatch
    }

    /// A view of the link to NATS; none when there is no NATS.
    #[must_use]
    pub fn link(&self) -> Option<watch::Receiver<Link>> {
        self.link.clone()
    }

    /// Does what is asked for within the process until `stop`, and publishes
    /// events until `stop_events`.
    pub fn begin(
        &mut self,
        (workers, stop): (&TaskTracker, &CancellationToken),
        (feeds, stop_events): (&TaskTracker, &CancellationToken),
    ) {
        let local = Arc::clone(self.dispatch.local()) as Arc<dyn JobQueue>;
        workers.spawn(Arc::clone(&self.worker).serve(local, stop.clone()));
        if let Some(feed) = self.feed.take() {
            feeds.spawn(feed.run(self.lifecycle.events().listen(), stop_events.clone()));
        }
    }

    /// From now on jobs go over the bus and are taken from it.
    pub fn open_bus(&self, workers: &TaskTracker, stop: &CancellationToken) {
        if let Some(bus) = self.dispatch.bus() {
            workers.spawn(Arc::clone(&self.worker).serve(Arc::clone(bus), stop.clone()));
            self.dispatch.open();
        }
    }
}
