//! How requests are read: own extractors, so that whatever is wrong with a
//! request is answered as every other error is.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use serde::de::DeserializeOwned;

use super::access::Caller;
use super::problem::Problem;
use crate::client::{Client, ClientKey};
use crate::id::InstanceId;

/// The largest body. The largest valid one is a few hundred bytes; an upload to
/// a shop does not come here.
pub(super) const BODY_MAX: usize = 16 * 1024;

/// A JSON body; an empty one is the default.
#[derive(Debug)]
pub(super) struct JsonBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let bytes = read(body, BODY_DEADLINE).await?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self(T::default()));
        }
        if !says_json(&parts.headers) {
            return Err(Problem::unsupported_media_type());
        }
        // serde would take an array for an object's fields in their order.
        if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Err(Problem::invalid("the body is not a JSON object"));
        }
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|error| Problem::invalid(format!("the body is not as expected: {error}")))
    }
}

/// How long a body may take: it is a few hundred bytes, in one packet.
const BODY_DEADLINE: Duration = Duration::from_secs(10);

async fn read(body: Body, deadline: Duration) -> Result<bytes::Bytes, Problem> {
    let read = tokio::time::timeout(deadline, to_bytes(body, BODY_MAX)).await;
    let late = |_| Problem::too_slow(format!("the body took longer than {} s", deadline.as_secs()));
    read.map_err(late)?.map_err(|error| {
        let limit = std::error::Error::source(&error)
            .is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>());
        if limit {
            Problem::too_large(BODY_MAX)
        } else {
            Problem::invalid("the body could not be read to its end")
        }
    })
}

fn says_json(headers: &HeaderMap) -> bool {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// The query's parameters; those that nobody knows are refused, since they would
/// seem to have worked.
#[derive(Debug)]
pub(super) struct Asked<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Query(asked) = Query::try_from_uri(&parts.uri).map_err(|error| {
            Problem::invalid(format!("the query is not as expected: {}", error.body_text()))
        })?;
        Ok(Self(asked))
    }
}

/// Who asks.
#[derive(Debug)]
pub(super) struct Asker(pub(super) Client);

impl<S: Send + Sync> FromRequestParts<S> for Asker {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let caller = parts.extensions.get::<Caller>();
        // Behind the layer there always is one; without, it is nobody in particular.
        let nobody = || Client::Remote(ClientKey::of_address(Ipv4Addr::UNSPECIFIED.into()));
        Ok(Self(caller.map_or_else(nobody, |caller| caller.client.clone())))
    }
}

/// What the path names, other than an instance.
#[derive(Debug)]
pub(super) struct PathOf<T>(pub(super) T);

impl<S: Send + Sync, T: std::str::FromStr> FromRequestParts<S> for PathOf<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let nothing = || Problem::not_found("the path names nothing that can be there");
        let text = Path::<String>::from_request_parts(parts, state).await;
        let Path(text) = text.map_err(|_| nothing())?;
        // What cannot be a name is nobody's.
        text.parse().map(Self).map_err(|_| nothing())
    }
}

/// The instance that the path names.
#[derive(Debug)]
pub(super) struct PathId(pub(super) InstanceId);

impl<S: Send + Sync> FromRequestParts<S> for PathId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let text = Path::<String>::from_request_parts(parts, state).await;
        let Path(text) = text.map_err(|_| Problem::not_found("the path does not name an instance"))?;
        // What cannot be an id cannot be an instance's.
        text.parse().map(Self).map_err(|error: crate::id::IdError| Problem::not_found(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use axum::response::IntoResponse as _;
    use bytes::Bytes;

    use super::*;

    #[tokio::test]
    async fn a_body_that_does_not_come_is_given_up() {
        let never = futures_util::stream::pending::<Result<Bytes, Infallible>>();
        let late = read(Body::from_stream(never), Duration::from_millis(20)).await.unwrap_err();
        assert_eq!(late.into_response().status(), 408);
        let read = read(Body::from("{}"), Duration::from_secs(60)).await.unwrap();
        assert_eq!(&read[..], b"{}");
    }
}
