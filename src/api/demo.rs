//! `/api/v1/demo`: acquire, list, show, extend, release.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::dto::{AcquireAnswer, AcquireBody, ExtendBody, InstanceAnswer, ListAnswer};
use super::extract::{Asker, JsonBody, PathId};
use super::problem::Problem;
use super::{ApiState, limits};
use crate::error::ErrorKind;
use crate::provision::errors::AcquireError;
use crate::provision::ttl::{self, TtlError};
use crate::provision::{AcquireRequest, Handed};

/// `POST /api/v1/demo/acquire`.
pub(super) async fn acquire(
    State(api): State<ApiState>,
    Asker(client): Asker,
    headers: HeaderMap,
    JsonBody(body): JsonBody<AcquireBody>,
) -> Result<Response, Problem> {
    let max = api.provisioner.terms().max_ttl;
    let ttl = body.ttl.as_ref().map(|given| ttl::parse(given, max)).transpose();
    let request = AcquireRequest {
        golden: body.golden,
        ttl: ttl.map_err(AcquireError::from)?,
        idempotency_key: key(&headers, body.idempotency_key)?,
        client,
    };
    let acquired = api.provisioner.acquire(request).await?;
    let status = match acquired.handed {
        Handed::Now(_) => StatusCode::CREATED,
        Handed::Before => StatusCode::OK,
    };
    let location = format!("/api/v1/demo/{}", acquired.instance.id);
    let answer =
        AcquireAnswer::of(&acquired).ok_or_else(|| Problem::of(ErrorKind::Bug, &AcquireError::Lost))?;
    let mut response = (status, [(header::LOCATION, location)], Json(answer)).into_response();
    limits::tell(response.headers_mut(), &acquired.standings);
    Ok(response)
}

/// The key of the header or of the body; both only if they agree.
fn key(headers: &HeaderMap, body: Option<String>) -> Result<Option<String>, Problem> {
    let Some(header) = headers.get("idempotency-key") else { return Ok(body) };
    let header = header.to_str().map_err(|_| Problem::from(AcquireError::Key))?;
    // Structured-field strings come in quotes; both ways name the same key.
    let header = header.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(header);
    match body {
        Some(body) if body != header => {
            Err(Problem::invalid("the Idempotency-Key header and idempotency_key in the body differ"))
        }
        _ => Ok(Some(header.to_owned())),
    }
}

/// `GET /api/v1/demo`: an operator's, since whoever knows an instance's name can
/// end it.
pub(super) async fn list(State(api): State<ApiState>) -> Result<Json<ListAnswer>, Problem> {
    let now = Timestamp::now();
    let mut all = api.provisioner.lifecycle().store().list().await?;
    all.sort_by(|one, other| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)));
    Ok(Json(ListAnswer { instances: all.iter().map(|instance| InstanceAnswer::of(instance, now)).collect() }))
}

/// `GET /api/v1/demo/{id}`.
pub(super) async fn show(
    State(api): State<ApiState>,
    PathId(id): PathId,
) -> Result<Json<InstanceAnswer>, Problem> {
    let now = Timestamp::now();
    let instance = api.provisioner.show(&id, now).await?;
    Ok(Json(InstanceAnswer::of(&instance, now)))
}

/// `POST /api/v1/demo/{id}/extend`.
pub(super) async fn extend(
    State(api): State<ApiState>,
    PathId(id): PathId,
    JsonBody(body): JsonBody<ExtendBody>,
) -> Result<Json<InstanceAnswer>, Problem> {
    let now = Timestamp::now();
    let by = body.ttl.as_ref().map(|given| extension(given, api.provisioner.terms().max_ttl)).transpose();
    let by = by.map_err(AcquireError::from)?;
    let instance = api.provisioner.extend(&id, by, now).await?;
    Ok(Json(InstanceAnswer::of(&instance, now)))
}

/// An extension longer than MAX_TTL goes beyond the limit for certain, which is
/// the instance's state refusing and not a malformed request: it is passed on.
fn extension(given: &Value, max: SignedDuration) -> Result<SignedDuration, TtlError> {
    match ttl::parse(given, max) {
        Err(TtlError::TooLong { .. }) => Ok(SignedDuration::MAX),
        other => other,
    }
}

/// `DELETE /api/v1/demo/{id}`.
pub(super) async fn release(State(api): State<ApiState>, PathId(id): PathId) -> Result<StatusCode, Problem> {
    api.provisioner.release(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}
