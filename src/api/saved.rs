//! `/api/v1/demo/{id}/save` and `/api/v1/saved`: shops that their visitors keep.

use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::ApiState;
use super::dto::AcquireAnswer;
use super::extract::{JsonBody, PathId};
use super::openapi::{Id, Ttl};
use super::problem::Problem;
use crate::error::ErrorKind;
use crate::id::SavedName;
use crate::provision::SavedError;
use crate::provision::errors::AcquireError;
use crate::provision::ttl;
use crate::snapshot::shelf::Saved;

/// The body of a save.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SaveBody {
    /// What it is to be called.
    #[schema(required, value_type = String, pattern = "^[a-z0-9][a-z0-9-]{0,39}$", examples("my-shop"))]
    name: Option<String>,
}

/// The body of an open.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OpenBody {
    /// What was answered when it was saved.
    #[schema(required, value_type = String)]
    key: Option<SecretString>,
    /// For how long; without it DEFAULT_TTL, and MAX_TTL at most.
    #[schema(value_type = Option<Ttl>)]
    ttl: Option<Value>,
}

/// The one answer that has the key.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SaveAnswer {
    #[serde(flatten)]
    saved: SavedAnswer,
    /// What opens it; told here and nowhere else.
    key: String,
}

/// A kept shop.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SavedAnswer {
    name: String,
    /// The instance that it was and will be.
    #[schema(value_type = Id)]
    id: String,
    golden: String,
    snapshot: String,
    url: String,
    #[schema(value_type = String, format = DateTime)]
    saved_at: Timestamp,
    /// Until when it is kept.
    #[schema(value_type = String, format = DateTime)]
    until: Timestamp,
    bytes: u64,
}

impl SavedAnswer {
    fn of(saved: &Saved) -> Self {
        Self {
            name: saved.name.to_string(),
            id: saved.id.to_string(),
            golden: saved.golden.to_string(),
            snapshot: saved.snapshot.to_string(),
            url: saved.access.url.clone(),
            saved_at: saved.saved_at,
            until: saved.until,
            bytes: saved.bytes(),
        }
    }
}

/// All kept shops.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SavedList {
    saved: Vec<SavedAnswer>,
}

/// Keeps an instance as it is now, to be opened when it is gone.
///
/// The shop stands still for some tenths of a second and goes on. Whoever has the key
/// gets it back, at the same address and with the same credentials.
#[utoipa::path(
    post, path = "/api/v1/demo/{id}/save", tag = "saved", operation_id = "save_instance",
    params(("id" = inline(Id), Path)),
    request_body(content = SaveBody, example = json!({ "name": "my-shop" })),
    responses(
        (status = 201, description = "It is kept", body = SaveAnswer),
        (status = 400, description = "The body or the name is not valid"),
        (status = 404, description = "The instance is unknown, or its end is long past"),
        (status = 409, description = "The name is taken, or it is nobody's, is being changed, cannot be kept, or is another node's"),
        (status = 410, description = "Its time is over"),
        (status = 413, description = "The body is too large"),
        (status = 415, description = "The body is not JSON by its own account"),
        (status = 500, description = "A defect of this service"),
        (status = 503, description = "As much as may be is kept already, or it cannot be frozen now"),
        (status = 507, description = "No disk is left for it")
    )
)]
pub(super) async fn save(
    State(api): State<ApiState>,
    PathId(id): PathId,
    JsonBody(body): JsonBody<SaveBody>,
) -> Result<(StatusCode, Json<SaveAnswer>), Problem> {
    let name = body.name.ok_or_else(|| Problem::invalid("the body has no name"))?;
    let name = name.parse::<SavedName>().map_err(|error| Problem::invalid(error.to_string()))?;
    let kept = api.provisioner.save(&id, name).await?;
    let key = kept.key.expose_secret().to_owned();
    Ok((StatusCode::CREATED, Json(SaveAnswer { saved: SavedAnswer::of(&kept.saved), key })))
}

/// Lists all kept shops, for the operator.
#[utoipa::path(get, path = "/api/v1/saved", tag = "saved", operation_id = "list_saved", responses(
    (status = 200, description = "All, by name", body = SavedList),
    (status = 404, description = "No shops are kept here"),
    (status = 500, description = "What is kept cannot be read"),
    (status = 503, description = "The disk does not answer")
))]
pub(super) async fn list(State(api): State<ApiState>) -> Result<Json<SavedList>, Problem> {
    let saved = api.provisioner.keeping()?.shelf.list().map_err(SavedError::Shelf)?;
    Ok(Json(SavedList { saved: saved.iter().map(SavedAnswer::of).collect() }))
}

/// Opens a kept shop; it stays kept.
#[utoipa::path(
    post, path = "/api/v1/saved/{name}/open", tag = "saved", operation_id = "open_saved",
    params(("name" = String, Path, description = "What it is called", example = "my-shop")),
    request_body(content = OpenBody, example = json!({ "key": "3q9fJ0cXv1", "ttl": "30m" })),
    responses(
        (status = 201, description = "The instance, as it was when it was kept", body = AcquireAnswer),
        (status = 400, description = "The body is not valid"),
        (status = 404, description = "None is kept under that name with that key"),
        (status = 409, description = "The instance that it was is still there"),
        (status = 413, description = "The body is too large"),
        (status = 415, description = "The body is not JSON by its own account"),
        (status = 500, description = "What is kept is damaged, or a defect of this service"),
        (status = 503, description = "No place is left, or its golden is not restored here"),
        (status = 507, description = "No disk or memory is left for it")
    )
)]
pub(super) async fn open(
    State(api): State<ApiState>,
    Path(name): Path<String>,
    JsonBody(body): JsonBody<OpenBody>,
) -> Result<(StatusCode, Json<AcquireAnswer>), Problem> {
    let name = named(&name)?;
    let key = body.key.ok_or_else(|| Problem::invalid("the body has no key"))?;
    let max = api.provisioner.terms().max_ttl;
    let ttl = body.ttl.as_ref().map(|given| ttl::parse(given, max)).transpose();
    let opened = api.provisioner.open(&name, &key, ttl.map_err(AcquireError::from)?).await?;
    let answer = AcquireAnswer::of(&opened, Timestamp::now());
    let answer = answer.ok_or_else(|| Problem::of(ErrorKind::Bug, &SavedError::Lost))?;
    Ok((StatusCode::CREATED, Json(answer)))
}

/// Removes a kept shop, for the operator; one that is not there is fine.
#[utoipa::path(
    delete, path = "/api/v1/saved/{name}", tag = "saved", operation_id = "remove_saved",
    params(("name" = String, Path, description = "What it is called", example = "my-shop")),
    responses(
        (status = 204, description = "It is not kept any more"),
        (status = 404, description = "No kept shop can have that name"),
        (status = 500, description = "It cannot be removed"),
        (status = 503, description = "The disk does not answer")
    )
)]
pub(super) async fn remove(
    State(api): State<ApiState>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    let (shelf, name) = (api.provisioner.keeping()?.shelf.clone(), named(&name)?);
    let removed = tokio::task::spawn_blocking(move || shelf.remove(&name)).await;
    removed.map_err(|_| SavedError::Lost)?.map_err(SavedError::Shelf)?;
    Ok(StatusCode::NO_CONTENT)
}

/// What cannot be a name cannot be a kept shop's.
fn named(text: &str) -> Result<SavedName, Problem> {
    text.parse().map_err(|error: crate::id::IdError| Problem::not_found(error.to_string()))
}
