//! Caddy's admin API: one request, one answer.
//!
//! Each request has a connection of its own: with every change of its
//! configuration Caddy ends the server that it was made through.

use std::error::Error;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::Value;

use crate::config::AdminAddress;
use crate::route::RouteError;

/// How long one answer may take.
const DEADLINE: Duration = Duration::from_secs(3);

/// How often a request is made whose connection breaks, and the pause before the
/// next time: a Caddy that starts replaces its admin server once.
const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_millis(50);

/// How much of a refusal is repeated.
const SAID_MAX: usize = 300;

/// A client of one Caddy.
#[derive(Debug)]
pub(super) struct Admin {
    client: reqwest::Client,
    /// What comes before the path.
    base: String,
    /// As in the settings.
    address: AdminAddress,
}

/// What Caddy answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) etag: Option<HeaderValue>,
    body: Bytes,
}

impl Admin {
    pub(super) fn new(address: AdminAddress) -> Result<Self, RouteError> {
        let builder = reqwest::Client::builder()
            .timeout(DEADLINE)
            .pool_max_idle_per_host(0)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        let (builder, base) = match &address {
            AdminAddress::Tcp(url) => (builder, url.clone()),
            // Caddy accepts few names on a unix socket; this is one.
            AdminAddress::Unix(path) => (builder.unix_socket(path.clone()), "http://127.0.0.1".to_owned()),
        };
        let client = builder.build();
        let client = client.map_err(|source| RouteError::Unavailable {
            address: address.to_string(),
            source: source.into(),
        })?;
        Ok(Self { client, base, address })
    }

    /// Asks; an answer of any status is one.
    ///
    /// When the connection breaks it is asked again: Caddy was killed, and whether
    /// it is there again or not is another answer. No request does harm when it
    /// comes twice.
    ///
    /// # Errors
    /// [`RouteError::Absent`], [`RouteError::Unavailable`].
    ///
    /// # Cancel safety
    /// A dropped call may or may not have taken effect, never half.
    pub(super) async fn call(
        &self,
        doing: &'static str,
        method: Method,
        path: &str,
        body: Option<&Value>,
        unchanged: Option<&HeaderValue>,
    ) -> Result<Answer, RouteError> {
        let ask = async || {
            let mut request = self.client.request(method.clone(), format!("{}{path}", self.base));
            if let Some(body) = body {
                request = request.json(body);
            }
            if let Some(etag) = unchanged {
                request = request.header(header::IF_MATCH, etag);
            }
            let response = request.send().await?;
            let (status, etag) = (response.status(), response.headers().get(header::ETAG).cloned());
            Ok(Answer { status, etag, body: response.bytes().await? })
        };
        let mut answer: Result<_, reqwest::Error> = ask().await;
        for _ in 1..ATTEMPTS {
            if answer.as_ref().is_err_and(|error| !error.is_connect() && !error.is_timeout()) {
                tokio::time::sleep(PAUSE).await;
                answer = ask().await;
            }
        }
        let answer = answer.map_err(|source| self.failed(source))?;
        tracing::debug!(doing, status = answer.status.as_u16(), "caddy asked");
        Ok(answer)
    }

    fn failed(&self, source: reqwest::Error) -> RouteError {
        // Without the URL: the address is named, and the path says nothing more.
        let (address, source) = (self.address.to_string(), source.without_url());
        if nobody_listens(&source) {
            RouteError::Absent { address, source: source.into() }
        } else {
            RouteError::Unavailable { address, source: source.into() }
        }
    }
}

/// Whether the kernel itself says that there is no process at the other end.
fn nobody_listens(error: &reqwest::Error) -> bool {
    let mut next = error.is_connect().then(|| error.source()).flatten();
    while let Some(cause) = next {
        if let Some(io) = cause.downcast_ref::<io::Error>()
            && matches!(io.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
        {
            return true;
        }
        next = cause.source();
    }
    false
}

impl Answer {
    /// Makes an error of everything but a success.
    ///
    /// # Errors
    /// [`RouteError::Refused`].
    pub(super) fn accepted(&self, doing: &'static str) -> Result<(), RouteError> {
        if self.status.is_success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&self.body).trim().chars().take(SAID_MAX).collect();
        Err(RouteError::Refused { doing, status: self.status.as_u16(), said })
    }

    /// Reads a success's body.
    ///
    /// # Errors
    /// [`RouteError::Refused`], [`RouteError::Unreadable`].
    pub(super) fn json(&self, doing: &'static str) -> Result<Value, RouteError> {
        self.accepted(doing)?;
        serde_json::from_slice(&self.body)
            .map_err(|source| RouteError::Unreadable { doing, source: source.into() })
    }
}
