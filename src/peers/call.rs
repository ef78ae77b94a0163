//! What one daemon asks another for.
//!
//! ```text
//! POST /node/v1/make/{golden}        one more ready instance, which whoever asked then claims
//! POST /node/v1/reset/{id}           and hibernate, wake: what only an instance's own daemon can do
//! GET  /node/v1/logs/{id}?tail=N
//! POST /node/v1/drain, /undrain
//! ```
//!
//! A call bears a pass and no client's credentials: the node that asks has seen to
//! it that its client may. What a client has in the store (its key, its count) is
//! there for every node, so nothing of it is passed on.

use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use serde_json::Value;

use super::{Peers, Way};
use crate::error::ErrorKind;
use crate::id::{GoldenName, InstanceId, NodeName};
use crate::metrics;
use crate::node::pass::{HEADER, Kind};

/// What all paths begin with.
pub const BASE: &str = "/node/v1";

/// How long an answer may take: a little longer than the other daemon's own
/// patience with a restore and the cold start after it, whose word says more.
const DEADLINE: Duration = Duration::from_secs(125);

/// The largest answer: the ends of a shop's log files.
const ANSWER_MAX: usize = 16 << 20;

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// Make an instance that is ready.
    Make(GoldenName),
    /// Make an instance anew.
    Reset(InstanceId),
    /// Put one to sleep.
    Hibernate(InstanceId),
    /// Wake one.
    Wake(InstanceId),
    /// Read one's log files, so many lines of each.
    Logs(InstanceId, usize),
    /// Hand out and make nothing.
    Drain,
    /// End that.
    Undrain,
}

impl Call {
    /// The word used in metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Make(_) => "make",
            Self::Reset(_) => "reset",
            Self::Hibernate(_) => "hibernate",
            Self::Wake(_) => "wake",
            Self::Logs(..) => "logs",
            Self::Drain => "drain",
            Self::Undrain => "undrain",
        }
    }

    fn request(&self) -> (Method, String) {
        let word = self.as_str();
        match self {
            Self::Make(golden) => (Method::POST, format!("{BASE}/{word}/{golden}")),
            Self::Reset(id) | Self::Hibernate(id) | Self::Wake(id) => {
                (Method::POST, format!("{BASE}/{word}/{id}"))
            }
            Self::Logs(id, tail) => (Method::GET, format!("{BASE}/{word}/{id}?tail={tail}")),
            Self::Drain | Self::Undrain => (Method::POST, format!("{BASE}/{word}")),
        }
    }
}

/// Why another node did not do it.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// There is no such node, or not now.
    #[error("node {node} is not there: `demo-multiplexer nodes` shows who is")]
    NotThere {
        /// Which.
        node: NodeName,
    },
    /// It does not answer.
    #[error("node {node} does not answer")]
    Silent {
        /// Which.
        node: NodeName,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It answered, and did not do it.
    #[error("node {node}: {detail}")]
    Refused {
        /// Which.
        node: NodeName,
        /// What the caller can do.
        kind: ErrorKind,
        /// Its reason.
        detail: String,
    },
}

impl CallError {
    /// What the caller can do.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::NotThere { .. } | Self::Silent { .. } => ErrorKind::Unavailable,
            Self::Refused { kind, .. } => *kind,
        }
    }
}

impl Peers {
    /// Asks a node's daemon, and waits for its answer.
    ///
    /// # Errors
    /// [`CallError`]; it may have done it nevertheless, unless it was refused.
    ///
    /// # Cancel safety
    /// As in the error: whoever gives up does not know.
    pub async fn ask(&self, node: &NodeName, call: &Call) -> Result<Value, CallError> {
        let answer = self.ask_once(node, call).await;
        metrics::node_called(call.as_str(), answer.is_ok());
        answer
    }

    async fn ask_once(&self, node: &NodeName, call: &Call) -> Result<Value, CallError> {
        let Way::To { address, gone, .. } = self.way_to(node) else {
            return Err(CallError::NotThere { node: node.clone() });
        };
        let silent = |source| CallError::Silent { node: node.clone(), source };
        let request = self.request(node, &address, call).map_err(|error| silent(error.into()))?;
        let asked = async {
            let response = self.client.request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await?.to_bytes();
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((status, body))
        };
        let answered = tokio::select! {
            answered = tokio::time::timeout(DEADLINE, asked) => answered,
            () = gone.cancelled() => return Err(CallError::NotThere { node: node.clone() }),
        };
        let (status, body) = match answered {
            Ok(answered) => answered.map_err(silent)?,
            Err(late) => return Err(silent(late.into())),
        };
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status.is_success() {
            return Ok(answer);
        }
        let detail = answer["detail"].as_str().map_or_else(|| format!("it answered {status}"), str::to_owned);
        Err(CallError::Refused { node: node.clone(), kind: kind_of(status), detail })
    }

    fn request(
        &self,
        node: &NodeName,
        address: &str,
        call: &Call,
    ) -> Result<Request<Full<Bytes>>, http::Error> {
        let (method, path) = call.request();
        let uri: Uri = format!("http://{address}{path}").parse()?;
        let mut request = Request::builder().method(method).uri(uri).body(Full::default())?;
        request.headers_mut().insert(HOST, HeaderValue::from_str(address)?);
        let pass = self.pass(Kind::Call, node, request.method(), request.uri(), request.headers());
        request.headers_mut().insert(HEADER, pass);
        Ok(request)
    }
}

/// What an answer's status means; the other way round it is the API's to say.
fn kind_of(status: StatusCode) -> ErrorKind {
    match status {
        StatusCode::BAD_REQUEST => ErrorKind::Invalid,
        StatusCode::NOT_FOUND => ErrorKind::NotFound,
        StatusCode::CONFLICT => ErrorKind::Conflict,
        StatusCode::GONE => ErrorKind::Gone,
        StatusCode::INSUFFICIENT_STORAGE => ErrorKind::NoSpace,
        StatusCode::INTERNAL_SERVER_ERROR => ErrorKind::Bug,
        _ => ErrorKind::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_has_its_path() {
        let id: InstanceId = "abcdefghijkl".parse().unwrap();
        for (call, expected) in [
            (Call::Make("shop".parse().unwrap()), "POST /node/v1/make/shop"),
            (Call::Reset(id.clone()), "POST /node/v1/reset/abcdefghijkl"),
            (Call::Logs(id, 7), "GET /node/v1/logs/abcdefghijkl?tail=7"),
            (Call::Undrain, "POST /node/v1/undrain"),
        ] {
            let (method, path) = call.request();
            assert_eq!(format!("{method} {path}"), expected);
        }
    }
}
