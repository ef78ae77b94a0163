//! What the operator watches: the last changes of instances and the last hour in
//! samples, kept in memory and told as they come.
//!
//! One task ([`Chronicle::run`]), spawned once by the daemon, writes both; the
//! handlers and streams read. Bounded: [`EVENTS`] changes, an hour of samples,
//! [`STREAMS`] streams. What it keeps is this daemon's and ends with it.
//!
//! ```text
//! GET /api/v1/events          the last changes
//! GET /api/v1/events/stream   the same as they come (`change`), and each sample (`sample`)
//! GET /api/v1/history         the samples
//! ```

mod history;
mod stream;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::extract::State;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use utoipa::{IntoParams, ToSchema};

use self::history::{EVERY, Look, Samples};
pub use self::history::{Sample, SampleLatency};
pub(crate) use self::stream::{__path_events_stream, events_stream};
use super::ApiState;
use super::dto::whole_ms;
use super::extract::Asked;
use super::openapi::{Id, Source};
use super::problem::Problem;
use crate::error::Chain;
use crate::instance::State as InstanceState;
use crate::instance::event::InstanceEvent;
use crate::pool::PoolStatus;
use crate::provision::Provisioner;
use crate::store::StoreError;

/// Changes that are kept: some sixty instances' lives.
const EVENTS: usize = 512;

/// Streams at once: operators and their dashboards, not visitors.
const STREAMS: usize = 64;

/// The kept past, and who follows it.
#[derive(Debug)]
pub struct Chronicle {
    provisioner: Arc<Provisioner>,
    pool: watch::Receiver<PoolStatus>,
    state_dir: PathBuf,
    kept: Mutex<Kept>,
    /// Tells streams that there is something new, or that it is over.
    told: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Kept {
    changes: VecDeque<Change>,
    /// How many there were in all: the last one's number.
    last: u64,
    samples: Samples,
    streams: usize,
}

/// One change of an instance.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Change {
    /// Counts the changes that this daemon has seen; a stream's event id.
    pub number: u64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Which instance.
    #[schema(value_type = Id)]
    pub instance_id: String,
    /// Its golden.
    pub golden: String,
    /// What happened, such as `ready`, `assigned`, `extended` or `gone`.
    #[schema(examples("assigned"))]
    pub happened: &'static str,
    /// How its visitor got it, or how it was made.
    #[schema(value_type = Source)]
    pub source: &'static str,
}

impl Change {
    fn of(number: u64, event: &InstanceEvent, at: Timestamp) -> Self {
        Self {
            number,
            at: whole_ms(at),
            instance_id: event.instance_id.to_string(),
            golden: event.golden.to_string(),
            happened: event.happened.as_str(),
            source: event.source.unwrap_or(event.made_by).as_str(),
        }
    }
}

impl Chronicle {
    /// An empty one; nothing is started.
    #[must_use]
    pub fn new(
        provisioner: Arc<Provisioner>,
        pool: watch::Receiver<PoolStatus>,
        state_dir: PathBuf,
    ) -> Arc<Self> {
        Arc::new(Self {
            provisioner,
            pool,
            state_dir,
            kept: Mutex::default(),
            told: watch::Sender::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes until `stop`, then ends every stream.
    pub fn run(self: Arc<Self>, stop: CancellationToken) -> impl Future<Output = ()> + Send {
        // Before anything is served, so that nothing is missed.
        let mut heard = self.provisioner.lifecycle().events().listen();
        async move {
            let mut tick = tokio::time::interval(EVERY);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    _ = tick.tick() => self.sample().await,
                    event = heard.recv() => match event {
                        Ok(event) => self.note(&event),
                        // The numbers go on, so that nobody takes a gap for none.
                        Err(RecvError::Lagged(missed)) => self.lock().last += missed,
                        Err(RecvError::Closed) => break,
                    },
                }
                self.told.send_replace(false);
            }
            self.told.send_replace(true);
        }
    }

    fn note(&self, event: &InstanceEvent) {
        let mut kept = self.lock();
        kept.last += 1;
        if kept.changes.len() == EVENTS {
            kept.changes.pop_front();
        }
        let change = Change::of(kept.last, event, Timestamp::now());
        kept.changes.push_back(change);
    }

    async fn sample(&self) {
        let beat = self.provisioner.lifecycle().tally().pulse().take();
        let mut look = match self.look().await {
            Ok(look) => look,
            // Told by whoever needs the store more; what happened is kept.
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "pool not sampled");
                Look::default()
            }
        };
        let state_dir = self.state_dir.clone();
        let host = tokio::task::spawn_blocking(move || history::host(&state_dir)).await;
        (look.memory, look.disk) = host.unwrap_or_default();
        self.lock().samples.add(Sample::of(&beat, look, Timestamp::now()));
    }

    async fn look(&self) -> Result<Look, StoreError> {
        let lifecycle = self.provisioner.lifecycle();
        let mut states: BTreeMap<&'static str, usize> =
            InstanceState::ALL.into_iter().map(|state| (state.as_str(), 0)).collect();
        let mut target = 0;
        for golden in lifecycle.goldens().iter() {
            for (state, count) in lifecycle.store().counts(&golden.name).await? {
                *states.entry(state.as_str()).or_default() += count;
            }
            let usual = self.pool.borrow().get(&golden.name).map_or(0, |of| of.usual);
            target += lifecycle.aim().target(&golden.name, usual);
        }
        let clients_waiting = lifecycle.gate().clients_waiting();
        Ok(Look { states, target, clients_waiting, ..Look::default() })
    }

    /// The last changes, the newest first.
    #[must_use]
    pub fn changes(&self, limit: usize) -> Vec<Change> {
        self.lock().changes.iter().rev().take(limit).cloned().collect()
    }

    /// The samples of the last so many minutes.
    #[must_use]
    pub fn samples(&self, minutes: u32) -> Vec<Sample> {
        let from = Timestamp::now() - SignedDuration::from_mins(i64::from(minutes));
        self.lock().samples.since(from)
    }
}

/// How many.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct HowMany {
    /// So many at most.
    #[param(minimum = 1, maximum = 512)]
    limit: Option<usize>,
}

/// The last changes.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EventsAnswer {
    events: Vec<Change>,
}

/// Lists the last changes of this daemon's instances, the newest first.
#[utoipa::path(get, path = "/api/v1/events", tag = "pool", operation_id = "list_events", params(HowMany), responses(
    (status = 200, description = "At most 512", body = EventsAnswer),
    (status = 400, description = "The query is not valid")
))]
pub(super) async fn events(
    State(api): State<ApiState>,
    Asked(HowMany { limit }): Asked<HowMany>,
) -> Result<Json<EventsAnswer>, Problem> {
    let limit = limit.unwrap_or(100);
    if limit == 0 || limit > EVENTS {
        return Err(Problem::invalid(format!("limit is 1 to {EVENTS}")));
    }
    Ok(Json(EventsAnswer { events: api.chronicle.changes(limit) }))
}

/// How far back.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct HowLong {
    /// How many minutes back, an hour at most.
    #[param(minimum = 1, maximum = 60)]
    minutes: Option<u32>,
}

/// The last hour, or a part of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HistoryAnswer {
    /// How often a sample is taken.
    every_seconds: u64,
    /// The oldest first.
    samples: Vec<Sample>,
}

/// Tells how it went in the last hour, in samples of every five seconds.
#[utoipa::path(get, path = "/api/v1/history", tag = "pool", operation_id = "history", params(HowLong), responses(
    (status = 200, description = "The samples", body = HistoryAnswer),
    (status = 400, description = "The query is not valid")
))]
pub(super) async fn history(
    State(api): State<ApiState>,
    Asked(HowLong { minutes }): Asked<HowLong>,
) -> Result<Json<HistoryAnswer>, Problem> {
    let minutes = minutes.unwrap_or(60);
    if minutes == 0 || minutes > 60 {
        return Err(Problem::invalid("minutes is 1 to 60"));
    }
    let samples = api.chronicle.samples(minutes);
    Ok(Json(HistoryAnswer { every_seconds: EVERY.as_secs(), samples }))
}
