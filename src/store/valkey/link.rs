//! The connection to Valkey: one for all calls, made anew by the first call after
//! it broke.
//!
//! Every call has a deadline, whatever the server or the network does. A call
//! whose connection breaks is tried again on a new one for a while, so that a
//! server that restarts quickly is not even noticed; scripts are told that it is
//! a further try. A server that came to life again may still find commands of
//! callers that gave up: scripts refuse them by the server's own clock, which is
//! read once a connection.
//!
//! Called by [`super`] only. With sentinels each new connection asks them who
//! the primary is.

use std::fmt;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo as _, RedisConnectionInfo, RedisError,
    Script, TlsCertificates, TlsMode,
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::keys::Base;
use crate::config::{Endpoint, Servers, ValkeyAt};
use crate::store::StoreError;

/// How long a call takes at most. A healthy one takes below a millisecond; a
/// client that waits for an instance is told "unavailable" after this.
pub(super) const DEADLINE: Duration = Duration::from_secs(2);

/// How long a call whose connection breaks is tried again. It leaves the last
/// try as much again to be answered.
const TRY_AGAIN_FOR: Duration = Duration::from_secs(1);

/// The pause between two tries: a server that restarts takes about this long.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a new connection may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);

/// Calls that may wait to be written to the socket; more wait for their turn.
const QUEUE: usize = 1024;

/// What a call ends with when nobody answers in time.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} s", DEADLINE.as_secs())]
struct TooSlow;

/// How to reach the server.
enum Target {
    Server(Box<Client>),
    /// Behind a lock because asking changes its own connections.
    Sentinels(Box<Mutex<SentinelClient>>),
}

/// The connection.
pub(super) struct Link {
    base: Base,
    target: Target,
    live: Mutex<Live>,
}

/// The present connection, if there is one.
#[derive(Default)]
struct Live {
    /// How many there were before.
    number: u64,
    connection: Option<Connected>,
}

#[derive(Clone)]
struct Connected {
    number: u64,
    connection: MultiplexedConnection,
    clock: Clock,
}

/// What the server's clock showed.
#[derive(Debug, Clone, Copy)]
struct Clock {
    micros: i64,
    at: Instant,
}

impl Clock {
    /// What it shows at a time of ours, or a little less.
    fn show(self, at: Instant) -> i64 {
        let passed = i64::try_from(at.saturating_duration_since(self.at).as_micros());
        self.micros.saturating_add(passed.unwrap_or(i64::MAX))
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("base", &self.base).finish_non_exhaustive()
    }
}

/// What was read from files.
#[derive(Debug)]
pub(super) struct Access {
    /// The server's password.
    pub(super) password: Option<SecretString>,
    /// Authorities, in PEM.
    pub(super) authorities: Option<Vec<u8>>,
}

impl Link {
    /// A link without a connection.
    pub(super) fn new(at: &ValkeyAt, access: &Access) -> Result<Self, RedisError> {
        let target = match &at.servers {
            Servers::One(endpoint) => Target::Server(Box::new(server(at, endpoint, access)?)),
            Servers::Sentinels { sentinels, primary } => {
                Target::Sentinels(Box::new(Mutex::new(watched(at, sentinels, primary, access)?)))
            }
        };
        Ok(Self { base: Base::new(&at.prefix), target, live: Mutex::default() })
    }

    /// Runs a script and answers what it answers, all in text.
    pub(super) async fn call(
        &self,
        doing: &'static str,
        script: &Script,
        args: &[&str],
    ) -> Result<Vec<String>, StoreError> {
        let began = Instant::now();
        let deadline = began + DEADLINE;
        let mut attempt = "first";
        loop {
            match self.attempt(script, args, attempt, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(Failed::Slow) => return Err(unavailable(doing, TooSlow)),
                Err(Failed::Broken(_)) if began.elapsed() + PAUSE < TRY_AGAIN_FOR => {
                    attempt = "again";
                    tokio::time::sleep(PAUSE).await;
                }
                Err(Failed::Broken(error)) => return Err(unavailable(doing, error)),
                Err(Failed::Refused(error)) => return Err(refused(doing, error)),
            }
        }
    }

    /// The server's account of itself; empty when it may not be asked.
    pub(super) async fn info(&self) -> Result<String, StoreError> {
        const DOING: &str = "asking the server about itself";
        let ask = async {
            let mut connected = self.connected().await?;
            redis::cmd("INFO").query_async::<String>(&mut connected.connection).await
        };
        match tokio::time::timeout(DEADLINE, ask).await {
            Ok(Ok(info)) => Ok(info),
            Ok(Err(error)) if error.code() == Some("NOPERM") => Ok(String::new()),
            Ok(Err(error)) => Err(refused(DOING, error)),
            Err(_) => Err(unavailable(DOING, TooSlow)),
        }
    }

    async fn attempt(
        &self,
        script: &Script,
        args: &[&str],
        attempt: &str,
        deadline: Instant,
    ) -> Result<Vec<String>, Failed> {
        let mut connected = match timeout_at(deadline, self.connected()).await {
            Ok(connected) => connected.map_err(failed)?,
            Err(_) => return Err(Failed::Slow),
        };
        let number = connected.number;
        let mut invocation = script.prepare_invoke();
        invocation.key(self.base.to_string()).arg(connected.clock.show(deadline)).arg(attempt).arg(args);
        let answer = timeout_at(deadline, invocation.invoke_async(&mut connected.connection)).await;
        let error = match answer {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => failed(error),
            Err(_) => Failed::Slow,
        };
        if !matches!(error, Failed::Refused(_)) {
            self.leave(number).await;
        }
        Err(error)
    }

    /// The connection; a new one when there is none.
    async fn connected(&self) -> Result<Connected, RedisError> {
        let mut live = self.live.lock().await;
        if let Some(connected) = &live.connection {
            return Ok(connected.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_DEADLINE))
            // Each call has its own deadline.
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        let connect = async {
            match &self.target {
                Target::Server(client) => client.get_multiplexed_async_connection_with_config(&config).await,
                Target::Sentinels(client) => {
                    client.lock().await.get_async_connection_with_config(&config).await
                }
            }
        };
        let mut connection = connect.await?;
        let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(&mut connection).await?;
        let clock = Clock { micros: seconds * 1_000_000 + micros, at: Instant::now() };
        live.number += 1;
        let connected = Connected { number: live.number, connection, clock };
        live.connection = Some(connected.clone());
        tracing::debug!(number = connected.number, "connected to the store");
        Ok(connected)
    }

    /// Has the next call connect anew, unless one has done so already.
    async fn leave(&self, number: u64) {
        let mut live = self.live.lock().await;
        if live.number == number {
            live.connection = None;
        }
    }
}

/// Why one try did not work.
enum Failed {
    /// Nobody answered in time.
    Slow,
    /// The connection is of no use any more.
    Broken(RedisError),
    /// The server answered, and will answer the same again.
    Refused(RedisError),
}

fn failed(error: RedisError) -> Failed {
    // LATE: its clock was set, and ours for it is wrong. READONLY: it is no longer the primary.
    let broken = matches!(error.code(), Some("LATE" | "READONLY" | "LOADING" | "MASTERDOWN" | "TRYAGAIN"))
        || error.is_io_error()
        || error.is_unrecoverable_error()
        || error.kind() == redis::ErrorKind::MasterNameNotFoundBySentinel;
    if broken && error.kind() != redis::ErrorKind::AuthenticationFailed {
        Failed::Broken(error)
    } else {
        Failed::Refused(error)
    }
}

fn unavailable(doing: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Unavailable { doing, source: Box::new(error) }
}

fn refused(doing: &'static str, error: RedisError) -> StoreError {
    if error.code() == Some("OOM") {
        return StoreError::Full { doing, source: Box::new(error) };
    }
    unavailable(doing, error)
}

fn address(endpoint: &Endpoint, tls: bool) -> ConnectionAddr {
    let (host, port) = (endpoint.host.clone(), endpoint.port);
    if tls {
        ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
    } else {
        ConnectionAddr::Tcp(host, port)
    }
}

fn certificates(access: &Access) -> TlsCertificates {
    TlsCertificates { client_tls: None, root_cert: access.authorities.clone() }
}

fn server(at: &ValkeyAt, endpoint: &Endpoint, access: &Access) -> Result<Client, RedisError> {
    let mut settings = RedisConnectionInfo::default().set_db(at.database);
    if let Some(username) = &at.username {
        settings = settings.set_username(username);
    }
    if let Some(password) = &access.password {
        settings = settings.set_password(password.expose_secret());
    }
    let info = address(endpoint, at.tls).into_connection_info()?.set_redis_settings(settings);
    if at.tls { Client::build_with_tls(info, certificates(access)) } else { Client::open(info) }
}

fn watched(
    at: &ValkeyAt,
    sentinels: &[Endpoint],
    primary: &str,
    access: &Access,
) -> Result<SentinelClient, RedisError> {
    let addresses = sentinels.iter().map(|sentinel| address(sentinel, at.tls));
    let mut builder = SentinelClientBuilder::new(addresses, primary, SentinelServerType::Master)?
        .set_client_to_redis_db(at.database);
    if let Some(username) = &at.username {
        builder = builder.set_client_to_redis_username(username);
    }
    if let Some(password) = &access.password {
        builder = builder.set_client_to_redis_password(password.expose_secret());
    }
    if at.tls {
        builder = builder
            .set_client_to_redis_tls_mode(TlsMode::Secure)
            .set_client_to_redis_certificates(certificates(access))
            .set_client_to_sentinel_tls_mode(TlsMode::Secure)
            .set_client_to_sentinel_certificates(certificates(access));
    }
    builder.build()
}
