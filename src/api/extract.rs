//! How requests are read: own extractors, so that whatever is wrong with a
//! request is answered as every other error is.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use serde::de::DeserializeOwned;

use super::problem::Problem;
use super::{ApiState, Peer};
use crate::client::Client;
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
        let bytes = read(body).await?;
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

async fn read(body: Body) -> Result<bytes::Bytes, Problem> {
    to_bytes(body, BODY_MAX).await.map_err(|error| {
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

/// Who asks.
#[derive(Debug)]
pub(super) struct Asker(pub(super) Client);

impl FromRequestParts<ApiState> for Asker {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, api: &ApiState) -> Result<Self, Infallible> {
        // Without a socket, as in some tests, it is nobody in particular.
        let peer = parts.extensions.get::<Peer>().map(|peer| peer.0.ip());
        let peer = peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        Ok(Self(Client::of(peer, &parts.headers, &api.trusted_proxies)))
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
