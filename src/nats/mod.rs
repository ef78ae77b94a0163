//! The one connection to NATS: who looks after it, and whether it works.
//!
//! Called by [`crate::jobs::jetstream`] and [`crate::events`], which bring the
//! streams they need; opened by [`crate::open_jobs`]. One task, the keeper,
//! holds the link:
//!
//! ```text
//!            every stream is there
//! down(why) -----------------------> up(epoch)      asks again every second
//!     ^                                 |
//!     +---------------------------------+
//!        connection lost, no answer, somebody suspects it
//! ```
//!
//! Whoever uses NATS waits for `up`, and begins again when the epoch changes:
//! consumers and requests of a former epoch may wait for ever, since a server
//! that was started again, perhaps on an empty directory, knows none of them.
//!
//! Invariants: the daemon starts and works without NATS; streams are made again
//! when they are gone; of a stream that is there only what [`Nats::open`]'s
//! caller states is changed, so replicas and placement are the operator's.

use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::{AccountError, AccountErrorKind, GetStreamError, GetStreamErrorKind};
use async_nats::jetstream::{Context, ErrorCode, context::ContextBuilder, stream};
use async_nats::{Client, ConnectOptions, Event};
use secrecy::ExposeSecret as _;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::config::NatsConfig;
use crate::error::Chain;
use crate::id::NodeName;

/// How long one request to JetStream may take: a write of a healthy server takes
/// about a millisecond, and a job is carried out without NATS after it.
const REQUEST_DEADLINE: Duration = Duration::from_secs(1);

/// The same for a part of a snapshot, for which nobody waits.
const BULK_DEADLINE: Duration = Duration::from_secs(20);

/// How often a link that is up is tried. A server that hangs holds up nobody
/// but those who wait for [`REQUEST_DEADLINE`] once.
const TRY_UP: Duration = Duration::from_secs(1);

/// How often a link that is down is tried.
const TRY_DOWN: Duration = Duration::from_millis(250);

/// How long one attempt to connect may take, TLS included.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// Attempts to connect are no further apart: a restarted server is found again
/// well within the five seconds that an outage may last beyond its end.
const CONNECT_PAUSE: Duration = Duration::from_millis(500);

/// So many failures in a row are logged: fewer are a hiccup.
const WARN_AT: u32 = 4;

/// After the third unanswered one the client connects anew.
const PING: Duration = Duration::from_secs(1);

/// Whether NATS can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Link {
    /// It cannot.
    Down {
        /// Why, for people.
        why: String,
    },
    /// Connected, and every stream is there.
    Up {
        /// Grows each time the link comes up.
        epoch: u64,
    },
}

/// NATS cannot be used with these settings.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// The credentials file is none.
    #[error("NATS_CREDS_FILE cannot be used")]
    Credentials(#[source] std::io::Error),
    /// The client refuses the settings.
    #[error("no NATS client can be made of NATS_URL and NATS_CA_FILE")]
    Client(#[source] async_nats::ConnectError),
    /// Connected, yet not of use.
    #[error("{why}")]
    Unusable {
        /// For people.
        why: String,
    },
}

/// The connection; see the module.
#[derive(Debug)]
pub struct Nats {
    jetstream: Context,
    link: Arc<watch::Sender<Link>>,
    suspect: Arc<Notify>,
    keeper: JoinHandle<()>,
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Nats {
    /// Begins to connect and to look after `streams`; does not wait for either.
    ///
    /// # Errors
    /// [`NatsError`]: settings that cannot work, never a server that is away.
    pub async fn open(
        config: &NatsConfig,
        node: &NodeName,
        streams: Vec<stream::Config>,
    ) -> Result<Self, NatsError> {
        let link = Arc::new(watch::Sender::new(Link::Down { why: "not connected yet".into() }));
        let suspect = Arc::new(Notify::new());
        let on_event = {
            let (link, suspect) = (Arc::clone(&link), Arc::clone(&suspect));
            move |event| {
                match event {
                    Event::Connected => {}
                    Event::Disconnected => down(&link, "the connection is lost".into()),
                    Event::ClientError(error) => down(&link, format!("cannot connect: {error}")),
                    Event::ServerError(error) => down(&link, format!("the server says: {error}")),
                    Event::LameDuckMode | Event::Draining | Event::Closed | Event::SlowConsumer(_) => {}
                }
                suspect.notify_one();
                std::future::ready(())
            }
        };
        let options = options(config, node).await?.retry_on_initial_connect().event_callback(on_event);
        let client = options.connect(&config.servers).await.map_err(NatsError::Client)?;
        let jetstream = context(client);
        let keeper = Keeper {
            jetstream: jetstream.clone(),
            streams,
            link: Arc::clone(&link),
            suspect: Arc::clone(&suspect),
        };
        Ok(Self { jetstream, link, suspect, keeper: tokio::spawn(keeper.run()) })
    }

    /// JetStream; its requests have a deadline.
    #[must_use]
    pub const fn jetstream(&self) -> &Context {
        &self.jetstream
    }

    /// A view of the link.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    /// Whether it can be used now.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(*self.link.borrow(), Link::Up { .. })
    }

    /// Waits until it can be used; answers the epoch.
    pub async fn up(&self) -> u64 {
        let mut link = self.link.subscribe();
        loop {
            if let Link::Up { epoch } = *link.borrow_and_update() {
                return epoch;
            }
            // Never an error: the other end is in this.
            let _ = link.changed().await;
        }
    }

    /// Waits until that epoch is over.
    pub async fn is_over(&self, epoch: u64) {
        let mut link = self.link.subscribe();
        let _ = link.wait_for(|link| *link != Link::Up { epoch }).await;
    }

    /// Takes the link for down until it was tried, at once: something did not
    /// work, and what comes next is not to wait for the same.
    pub fn suspect(&self) {
        down(&self.link, "a request was not answered".into());
        self.suspect.notify_one();
    }
}

/// Connects once, for somebody who moves much at a time.
///
/// # Errors
/// [`NatsError`]: why it cannot be used.
pub async fn connect(config: &NatsConfig, node: &NodeName) -> Result<Context, NatsError> {
    let client = options(config, node).await?.connect(&config.servers).await.map_err(NatsError::Client)?;
    Ok(ContextBuilder::new().timeout(BULK_DEADLINE).ack_timeout(BULK_DEADLINE).build(client))
}

/// Connects once and asks for JetStream: for `doctor`.
///
/// # Errors
/// [`NatsError`]: why it cannot be used.
pub async fn trial(config: &NatsConfig, node: &NodeName) -> Result<(), NatsError> {
    let client = options(config, node).await?.connect(&config.servers).await.map_err(NatsError::Client)?;
    match context(client).query_account().await {
        Ok(_) => Ok(()),
        Err(error) => Err(NatsError::Unusable { why: unusable(&error) }),
    }
}

async fn options(config: &NatsConfig, node: &NodeName) -> Result<ConnectOptions, NatsError> {
    let mut options = ConnectOptions::new()
        .name(format!("demo-multiplexer on {node}"))
        .connection_timeout(CONNECT_DEADLINE)
        .ping_interval(PING)
        .reconnect_delay_callback(|attempts| {
            let doubled = 1_u64 << u32::try_from(attempts).unwrap_or(u32::MAX).min(6);
            Duration::from_millis(10 * doubled).min(CONNECT_PAUSE)
        });
    if let Some(login) = &config.login {
        options = options.user_and_password(login.user.clone(), login.password.expose_secret().to_owned());
    }
    if let Some(file) = &config.creds_file {
        options = options.credentials_file(file).await.map_err(NatsError::Credentials)?;
    }
    if let Some(file) = &config.ca_file {
        options = options.add_root_certificates(file.clone());
    }
    Ok(options)
}

fn context(client: Client) -> Context {
    ContextBuilder::new().timeout(REQUEST_DEADLINE).ack_timeout(REQUEST_DEADLINE).build(client)
}

fn down(link: &watch::Sender<Link>, why: String) {
    let down = Link::Down { why };
    link.send_if_modified(|now| {
        *now != down && {
            *now = down;
            true
        }
    });
}

/// The task that holds the link.
struct Keeper {
    jetstream: Context,
    streams: Vec<stream::Config>,
    link: Arc<watch::Sender<Link>>,
    suspect: Arc<Notify>,
}

impl Keeper {
    async fn run(self) {
        let (mut epoch, mut failed) = (0, 0);
        loop {
            let is_up = matches!(*self.link.borrow(), Link::Up { .. });
            match self.look(is_up).await {
                Ok(()) if is_up => {}
                Ok(()) => {
                    epoch += 1;
                    failed = 0;
                    self.link.send_replace(Link::Up { epoch });
                    tracing::info!(epoch, "NATS is in use");
                }
                Err(why) => {
                    // The connection's own word says more.
                    if let Some(why) = why {
                        down(&self.link, why);
                    }
                    failed += 1;
                }
            }
            let why = match &*self.link.borrow() {
                Link::Up { .. } => None,
                Link::Down { why } => Some(why.clone()),
            };
            if let (Some(why), WARN_AT) = (&why, failed) {
                tracing::warn!(error = why, "NATS cannot be used; the daemon goes on without it");
            }
            let pause = if why.is_none() { TRY_UP } else { TRY_DOWN };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.suspect.notified() => {}
            }
        }
    }

    async fn look(&self, is_up: bool) -> Result<(), Option<String>> {
        match self.jetstream.client().connection_state() {
            State::Connected => self.look_at_streams(is_up).await.map_err(Some),
            State::Pending | State::Disconnected if is_up => Err(Some("the connection is lost".into())),
            State::Pending | State::Disconnected => Err(None),
        }
    }

    /// Tells whether NATS can be used; makes what is missing first, unless the
    /// link is up: what is missing then is noticed, and made in the next round.
    async fn look_at_streams(&self, is_up: bool) -> Result<(), String> {
        for wanted in &self.streams {
            let found = self.jetstream.get_stream(&wanted.name).await;
            match found {
                Ok(found) if is_up || same(&found.cached_info().config, wanted) => {}
                Ok(found) => {
                    let config = with_ours(found.cached_info().config.clone(), wanted);
                    let updated = self.jetstream.update_stream(config).await;
                    updated.map_err(|error| {
                        format!("cannot change stream {}: {}", wanted.name, Chain(&error))
                    })?;
                }
                Err(error) if is_missing(&error) && !is_up => {
                    let created = self.jetstream.create_stream(wanted.clone()).await;
                    created
                        .map_err(|error| format!("cannot make stream {}: {}", wanted.name, Chain(&error)))?;
                    tracing::info!(stream = wanted.name, "stream made");
                }
                Err(error) if is_missing(&error) => return Err(format!("stream {} is gone", wanted.name)),
                Err(error) => {
                    return Err(match self.jetstream.query_account().await {
                        Ok(_) => format!("cannot look at stream {}: {}", wanted.name, Chain(&error)),
                        Err(error) => unusable(&error),
                    });
                }
            }
        }
        Ok(())
    }
}

fn is_missing(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(of)
        if of.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// Why JetStream does not answer, and what to do about it.
fn unusable(error: &AccountError) -> String {
    let off = match error.kind() {
        AccountErrorKind::JetStream(of) => matches!(
            of.error_code(),
            ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
        ),
        AccountErrorKind::JetStreamUnavailable => true,
        AccountErrorKind::TimedOut | AccountErrorKind::Other => false,
    };
    if off {
        return "JetStream is off: start nats-server with -js, or with a jetstream block in its file, \
                and allow it for the account"
            .into();
    }
    Chain(error).to_string()
}

/// Whether a stream has all that `wanted` states.
fn same(found: &stream::Config, wanted: &stream::Config) -> bool {
    let changed = with_ours(found.clone(), wanted);
    changed.subjects == found.subjects
        && changed.max_age == found.max_age
        && changed.max_bytes == found.max_bytes
        && changed.duplicate_window == found.duplicate_window
}

/// What was found with what `wanted` states.
fn with_ours(mut found: stream::Config, wanted: &stream::Config) -> stream::Config {
    found.subjects.clone_from(&wanted.subjects);
    found.max_age = wanted.max_age;
    found.duplicate_window = wanted.duplicate_window;
    if wanted.max_bytes > 0 {
        found.max_bytes = wanted.max_bytes;
    }
    found
}
