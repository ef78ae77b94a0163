//! `/api/v1/demo/{id}/hibernate` and `/wake`.

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;

use super::ApiState;
use super::dto::InstanceAnswer;
use super::extract::PathId;
use super::openapi::Id;
use super::problem::Problem;

/// Has an instance sleep: it gives its memory back and keeps all that it has.
///
/// The next request to its address wakes it, and waits for that. Its time runs on. One
/// that sleeps already is fine.
#[utoipa::path(
    post, path = "/api/v1/demo/{id}/hibernate", tag = "demo", operation_id = "hibernate_instance",
    params(("id" = inline(Id), Path)),
    responses(
        (status = 200, description = "The instance, asleep", body = InstanceAnswer),
        (status = 404, description = "The instance is unknown, or its end is long past"),
        (status = 409, description = "It is nobody's, is being changed, cannot sleep, or is another node's"),
        (status = 410, description = "Its time is over"),
        (status = 500, description = "Its record cannot be read"),
        (status = 503, description = "It cannot be put to sleep now and goes on, or something does not answer"),
        (status = 507, description = "No disk is left for what is kept of it; it goes on")
    )
)]
pub(super) async fn hibernate(
    State(api): State<ApiState>,
    PathId(id): PathId,
) -> Result<Json<InstanceAnswer>, Problem> {
    let instance = api.provisioner.hibernate(&id).await?;
    Ok(Json(InstanceAnswer::of(&instance, Timestamp::now())))
}

/// Wakes an instance that sleeps; one that is awake is fine.
#[utoipa::path(
    post, path = "/api/v1/demo/{id}/wake", tag = "demo", operation_id = "wake_instance",
    params(("id" = inline(Id), Path)),
    responses(
        (status = 200, description = "The instance, awake", body = InstanceAnswer),
        (status = 404, description = "The instance is unknown, or its end is long past"),
        (status = 409, description = "It is nobody's, is being changed, or is another node's"),
        (status = 410, description = "Its time is over"),
        (status = 500, description = "Its record cannot be read, or a defect of this service"),
        (status = 503, description = "No place is left, or something does not answer; it sleeps on"),
        (status = 507, description = "No disk or memory is left for it; it sleeps on")
    )
)]
pub(super) async fn wake(
    State(api): State<ApiState>,
    PathId(id): PathId,
) -> Result<Json<InstanceAnswer>, Problem> {
    let instance = api.provisioner.wake(&id).await?;
    Ok(Json(InstanceAnswer::of(&instance, Timestamp::now())))
}
