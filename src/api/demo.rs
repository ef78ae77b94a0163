//! `/api/v1/demo`: acquire, show, extend, reset, release; the list is
//! [`super::instances`]'s.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::dto::{AcquireAnswer, AcquireBody, ExtendBody, InstanceAnswer};
use super::extract::{Asker, JsonBody, PathId};
use super::openapi::Id;
use super::problem::Problem;
use super::{ApiState, limits};
use crate::error::ErrorKind;
use crate::provision::errors::AcquireError;
use crate::provision::ttl::{self, TtlError};
use crate::provision::{AcquireRequest, Handed};

/// Claims an instance.
///
/// The answer is the only place where the password is told. The same
/// idempotency key, in the header or in the body, gets the same instance again.
#[utoipa::path(
    post, path = "/api/v1/demo/acquire", tag = "demo", operation_id = "acquire",
    params(("Idempotency-Key" = Option<String>, Header, description = "As `idempotency_key` in the body",
        pattern = r"^[!-~]([ -~]{0,253}[!-~])?$")),
    request_body(content = AcquireBody, example = json!({ "ttl": "30m", "idempotency_key": "order-4711" })),
    responses(
        (status = 201, description = "An instance, from now on the client's", body = AcquireAnswer,
            headers(("Location" = String, description = "Where it is shown"))),
        (status = 200, description = "The instance that this key got before", body = AcquireAnswer,
            headers(("Location" = String, description = "Where it is shown"))),
        (status = 400, description = "The body or the key is not valid, or the golden is unknown"),
        (status = 409, description = "The key was used for another golden"),
        (status = 413, description = "The body is too large"),
        (status = 415, description = "The body is not JSON by its own account"),
        (status = 429, description = "The client has had as many instances as it may"),
        (status = 500, description = "A defect of this service or of the golden"),
        (status = 503, description = "No capacity is left, or something does not answer"),
        (status = 507, description = "No disk or memory is left for another instance")
    )
)]
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
        holder: None,
    };
    let acquired = api.provisioner.acquire(request).await?;
    let status = match acquired.handed {
        Handed::Now(_) => StatusCode::CREATED,
        Handed::Before => StatusCode::OK,
    };
    let location = format!("/api/v1/demo/{}", acquired.instance.id);
    let answer = AcquireAnswer::of(&acquired, Timestamp::now())
        .ok_or_else(|| Problem::of(ErrorKind::Bug, &AcquireError::Lost))?;
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

/// Shows an instance, without its password.
#[utoipa::path(
    get, path = "/api/v1/demo/{id}", tag = "demo", operation_id = "show_instance", params(("id" = inline(Id), Path)),
    responses(
        (status = 200, description = "The instance", body = InstanceAnswer),
        (status = 404, description = "It is unknown, or its end is long past"),
        (status = 410, description = "Its time is over"),
        (status = 500, description = "Its record cannot be read"),
        (status = 503, description = "The store does not answer")
    )
)]
pub(super) async fn show(
    State(api): State<ApiState>,
    PathId(id): PathId,
) -> Result<Json<InstanceAnswer>, Problem> {
    let now = Timestamp::now();
    let instance = api.provisioner.show(&id, now).await?;
    Ok(Json(InstanceAnswer::of(&instance, now)))
}

/// Gives an instance more time, counted from its present end. One that sleeps sleeps on.
#[utoipa::path(
    post, path = "/api/v1/demo/{id}/extend", tag = "demo", operation_id = "extend_instance",
    params(("id" = inline(Id), Path)),
    request_body(content = ExtendBody, example = json!({ "ttl": "30m" })),
    responses(
        (status = 200, description = "The instance with its new end", body = InstanceAnswer),
        (status = 400, description = "The body is not valid"),
        (status = 404, description = "The instance is unknown, or its end is long past"),
        (status = 409, description = "It would live longer than MAX_TTL, or it is nobody's"),
        (status = 410, description = "Its time is over"),
        (status = 413, description = "The body is too large"),
        (status = 415, description = "The body is not JSON by its own account"),
        (status = 500, description = "Its record cannot be read"),
        (status = 503, description = "The store does not answer"),
        (status = 507, description = "The store's disk is full")
    )
)]
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

/// Makes an instance anew: the golden's content at the same address, with the same
/// credentials and for the same time.
///
/// The shop that is there serves until the new one answers; whoever is connected
/// then is not any more. Sessions end, the login stays. One that sleeps is awake
/// afterwards, for which there has to be a place.
#[utoipa::path(
    post, path = "/api/v1/demo/{id}/reset", tag = "demo", operation_id = "reset_instance",
    params(("id" = inline(Id), Path)),
    responses(
        (status = 200, description = "The instance, as new", body = InstanceAnswer),
        (status = 404, description = "The instance is unknown, or its end is long past"),
        (status = 409, description = "It is nobody's, it is being changed, or another node's"),
        (status = 410, description = "Its time is over"),
        (status = 500, description = "Its record cannot be read, or the golden has a defect"),
        (status = 503, description = "The golden cannot be made now, or something does not answer"),
        (status = 507, description = "No disk or memory is left for another shop")
    )
)]
pub(super) async fn reset(
    State(api): State<ApiState>,
    PathId(id): PathId,
) -> Result<Json<InstanceAnswer>, Problem> {
    let now = Timestamp::now();
    let instance = api.provisioner.reset(&id, now).await?;
    Ok(Json(InstanceAnswer::of(&instance, now)))
}

/// Ends an instance; one that is not there is fine.
#[utoipa::path(
    delete, path = "/api/v1/demo/{id}", tag = "demo", operation_id = "release_instance",
    params(("id" = inline(Id), Path)),
    responses(
        (status = 204, description = "Nobody reaches it any more"),
        (status = 404, description = "No instance can have that name"),
        (status = 409, description = "It is still being made"),
        (status = 500, description = "Its record cannot be read"),
        (status = 503, description = "The store does not answer"),
        (status = 507, description = "The store's disk is full")
    )
)]
pub(super) async fn release(State(api): State<ApiState>, PathId(id): PathId) -> Result<StatusCode, Problem> {
    api.provisioner.release(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}
