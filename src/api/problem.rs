//! The one place where an error becomes a status and a body.
//!
//! Every error answer of the API is `application/problem+json` (RFC 9457). A
//! handler answers a [`Problem`]; the outermost layer ([`super::request`])
//! writes its body with the request id and logs it, once, with its sources.

use std::error::Error;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};

use super::dto::ProblemAnswer;
use super::extract::BODY_MAX;
use super::limits;
use super::status::StatusError;
use crate::error::{Chain, ErrorKind};
use crate::promote::DeskError;
use crate::provision::SavedError;
use crate::provision::errors::{AcquireError, LeaseError, ResetError, SleepError};
use crate::provision::limits::{Standing, seconds};
use crate::store::StoreError;
use crate::token::Scope;

/// When a place may be free again: instances end all the time.
const RETRY_EXHAUSTED: u32 = 10;

/// When something that does not answer may answer again.
const RETRY_UNAVAILABLE: u32 = 5;

/// An error answer.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    /// The last part of the problem's type, and its title.
    name: &'static str,
    title: &'static str,
    /// For the client: what is wrong with this request.
    detail: String,
    /// For the log: the error with its sources.
    chain: Option<String>,
    retry_after: Option<u32>,
    /// How the client stands in the limits, when that is why.
    standings: Box<[Standing]>,
    /// What kind of token would be taken.
    challenge: Option<Challenge>,
}

/// What `WWW-Authenticate` says about a token (RFC 6750, 3).
#[derive(Debug, Clone, Copy)]
enum Challenge {
    Missing,
    Unknown,
    Scope(Scope),
}

impl Challenge {
    fn header(self) -> String {
        let scheme = "Bearer realm=\"demo-multiplexer\"";
        match self {
            Self::Missing => scheme.to_owned(),
            Self::Unknown => format!("{scheme}, error=\"invalid_token\""),
            Self::Scope(scope) => {
                format!("{scheme}, error=\"insufficient_scope\", scope=\"{}\"", scope.as_str())
            }
        }
    }
}

/// How a problem is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The client's own doing.
    Client,
    /// Degraded but handled.
    Degraded,
    /// A human must act.
    Defect,
}

struct Face {
    status: StatusCode,
    name: &'static str,
    title: &'static str,
    retry_after: Option<u32>,
}

#[deny(clippy::wildcard_enum_match_arm)]
fn face(kind: ErrorKind) -> Face {
    let (status, name, title, retry_after) = match kind {
        ErrorKind::Invalid => (StatusCode::BAD_REQUEST, "invalid", "The request is not valid", None),
        ErrorKind::NotFound => (StatusCode::NOT_FOUND, "not-found", "There is no such thing", None),
        ErrorKind::Conflict => (StatusCode::CONFLICT, "conflict", "Not possible in the present state", None),
        ErrorKind::Gone => (StatusCode::GONE, "gone", "The instance's time is over", None),
        ErrorKind::Limited => (
            StatusCode::TOO_MANY_REQUESTS,
            "limited",
            "You have had as many instances as one client may",
            None,
        ),
        ErrorKind::Exhausted => (
            StatusCode::SERVICE_UNAVAILABLE,
            "exhausted",
            "No capacity is left for now",
            Some(RETRY_EXHAUSTED),
        ),
        ErrorKind::Unavailable => (
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "The service cannot do this for now",
            Some(RETRY_UNAVAILABLE),
        ),
        // Only an operator can help, so the client is not told to come back.
        ErrorKind::Incompatible => {
            (StatusCode::SERVICE_UNAVAILABLE, "incompatible", "The snapshot does not fit this host", None)
        }
        ErrorKind::NoSpace => (
            StatusCode::INSUFFICIENT_STORAGE,
            "no-space",
            "No disk or memory is left for another instance",
            None,
        ),
        ErrorKind::Bug => (StatusCode::INTERNAL_SERVER_ERROR, "bug", "Something went wrong here", None),
    };
    Face { status, name, title, retry_after }
}

impl Problem {
    /// The answer to an error of that kind.
    pub fn of(kind: ErrorKind, error: &(dyn Error + 'static)) -> Self {
        let face = face(kind);
        let chain = Chain(error).to_string();
        // Sources name files and programs, which are no client's business; why
        // there is no capacity is.
        let detail = if kind == ErrorKind::Exhausted { chain.clone() } else { error.to_string() };
        Self {
            status: face.status,
            name: face.name,
            title: face.title,
            detail,
            chain: Some(chain),
            retry_after: face.retry_after,
            standings: Box::default(),
            challenge: None,
        }
    }

    /// A request that is not valid, in one sentence.
    pub fn invalid(detail: impl Into<String>) -> Self {
        let face = face(ErrorKind::Invalid);
        Self::plain(face.status, face.name, face.title, detail)
    }

    /// A thing that is not there, in one sentence.
    pub fn not_found(detail: impl Into<String>) -> Self {
        let face = face(ErrorKind::NotFound);
        Self::plain(face.status, face.name, face.title, detail)
    }

    /// A path that exists, but not with this method.
    pub(super) fn method_not_allowed(detail: String) -> Self {
        let status = StatusCode::METHOD_NOT_ALLOWED;
        Self::plain(status, "method-not-allowed", "Not with this method", detail)
    }

    /// A body larger than any request's.
    pub(super) fn too_large(limit: usize) -> Self {
        let detail = format!("the body is larger than {limit} bytes");
        Self::plain(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "The body is too large", detail)
    }

    /// A body that is not JSON by its own account.
    pub(super) fn unsupported_media_type() -> Self {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let detail = "a body must be sent with Content-Type: application/json";
        Self::plain(status, "unsupported-media-type", "The body is not JSON", detail)
    }

    /// There is no token, and this takes one.
    pub(crate) fn token_missing() -> Self {
        Self::challenged("this takes a token".into(), Challenge::Missing)
    }

    /// The token shown is nobody's.
    pub(super) fn token_unknown() -> Self {
        let detail = "the token is not known to this daemon (API_TOKENS)";
        Self::challenged(detail.into(), Challenge::Unknown)
    }

    /// The token shown is not for this.
    pub(super) fn scope_missing(scope: Scope) -> Self {
        let detail = format!("this takes a token with the scope {}", scope.as_str());
        Self::challenged(detail, Challenge::Scope(scope))
    }

    fn challenged(detail: String, challenge: Challenge) -> Self {
        let plain = match challenge {
            Challenge::Missing | Challenge::Unknown => {
                Self::plain(StatusCode::UNAUTHORIZED, "unauthorized", "A token is needed", detail)
            }
            Challenge::Scope(_) => {
                Self::plain(StatusCode::FORBIDDEN, "scope-missing", "The token is not for this", detail)
            }
        };
        Self { challenge: Some(challenge), ..plain }
    }

    /// A request whose body does not come.
    pub(super) fn too_slow(detail: String) -> Self {
        let status = StatusCode::REQUEST_TIMEOUT;
        Self::plain(status, "too-slow", "The request did not arrive in time", detail)
    }

    /// An answer that does not come.
    pub(super) fn hangs(detail: String) -> Self {
        let face = face(ErrorKind::Unavailable);
        let plain = Self::plain(face.status, face.name, face.title, detail);
        Self { retry_after: face.retry_after, ..plain }
    }

    /// Something only this host's own clients may ask.
    pub(crate) fn forbidden(detail: &'static str) -> Self {
        Self::plain(StatusCode::FORBIDDEN, "forbidden", "Not for you", detail)
    }

    /// Any problem of that status, to show what it looks like.
    pub(super) fn example(status: StatusCode, detail: &str) -> Option<Self> {
        let of_kinds = ErrorKind::ALL.map(face).map(|it| Self::plain(it.status, it.name, it.title, detail));
        let others = [
            Self::token_missing(),
            Self::forbidden(""),
            Self::too_large(BODY_MAX),
            Self::unsupported_media_type(),
        ];
        let any = of_kinds.into_iter().chain(others).find(|problem| problem.status == status);
        Some(Self { detail: detail.to_owned(), ..any? })
    }

    fn plain(status: StatusCode, name: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            name,
            title,
            detail: detail.into(),
            chain: None,
            retry_after: None,
            standings: Box::default(),
            challenge: None,
        }
    }

    /// Its status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// What is wrong, for the client.
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// How it is logged.
    pub(super) fn severity(&self) -> Severity {
        match self.status {
            StatusCode::INTERNAL_SERVER_ERROR => Severity::Defect,
            status if status.is_server_error() => Severity::Degraded,
            _ => Severity::Client,
        }
    }

    /// Whether no place, disk or memory is left for one more instance.
    pub(crate) fn is_for_lack_of_room(&self) -> bool {
        [ErrorKind::Exhausted, ErrorKind::NoSpace].iter().any(|kind| face(*kind).name == self.name)
    }

    /// When it may be tried again, in seconds.
    pub(crate) const fn retry_after(&self) -> Option<u32> {
        self.retry_after
    }

    /// Writes it down, with all of its sources: once for each answer.
    pub(crate) fn log(&self) {
        let (status, error) = (self.status.as_u16(), self.chain.as_deref().unwrap_or(&self.detail));
        match self.severity() {
            Severity::Defect => tracing::error!(status, error, "request failed"),
            Severity::Degraded => tracing::warn!(status, error, "request not served"),
            Severity::Client => tracing::debug!(status, error, "request refused"),
        }
    }

    /// The body.
    pub(super) fn body(&self, request_id: &str) -> Body {
        Body::from(serde_json::to_vec(&self.answer(request_id)).unwrap_or_default())
    }

    /// The body's content.
    pub(super) fn answer<'a>(&'a self, request_id: &'a str) -> ProblemAnswer<'a> {
        ProblemAnswer {
            kind: format!("urn:demo-multiplexer:problem:{}", self.name),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            request_id,
        }
    }
}

impl IntoResponse for Problem {
    /// Status and headers; the body is written by the outermost layer.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        limits::tell(headers, &self.standings);
        // Words and quotes only.
        if let Some(challenge) = self.challenge.and_then(|it| HeaderValue::from_str(&it.header()).ok()) {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        response.extensions_mut().insert(self);
        response
    }
}

impl From<AcquireError> for Problem {
    fn from(error: AcquireError) -> Self {
        let problem = Self::of(error.kind(), &error);
        match error {
            AcquireError::Limited { retry_after, standings } => {
                Self { retry_after: Some(seconds(retry_after)), standings: standings.into(), ..problem }
            }
            // When those before it are done.
            AcquireError::Crowded { wait, most, .. } => {
                let rest = wait.saturating_sub(most).as_secs() + 1;
                Self { retry_after: Some(u32::try_from(rest).unwrap_or(u32::MAX)), ..problem }
            }
            _ => problem,
        }
    }
}

impl From<ResetError> for Problem {
    fn from(error: ResetError) -> Self {
        Self::of(error.kind(), &error)
    }
}

impl From<SavedError> for Problem {
    fn from(error: SavedError) -> Self {
        match error {
            // With what a client is told of its limits.
            SavedError::Acquire(error) => error.into(),
            error => Self::of(error.kind(), &error),
        }
    }
}

impl From<SleepError> for Problem {
    fn from(error: SleepError) -> Self {
        Self::of(error.kind(), &error)
    }
}

impl From<LeaseError> for Problem {
    fn from(error: LeaseError) -> Self {
        Self::of(error.kind(), &error)
    }
}

impl From<StatusError> for Problem {
    fn from(error: StatusError) -> Self {
        Self::of(error.kind(), &error)
    }
}

impl From<DeskError> for Problem {
    fn from(error: DeskError) -> Self {
        Self::of(error.kind(), &error)
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::of(error.kind(), &error)
    }
}
