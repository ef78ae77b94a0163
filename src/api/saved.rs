//! `/api/v1/demo/{id}/save` and `/api/v1/saved`: shops that their visitors keep.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{StatusCode, header};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::dto::{AcquireAnswer, whole_ms};
use super::extract::{Asker, JsonBody, PathId};
use super::openapi::{Id, Ttl};
use super::problem::Problem;
use super::snapshots::{TaskAnswer, begun};
use super::steer::check_target;
use super::{ApiState, limits};
use crate::error::{Chain, ErrorKind};
use crate::id::{IdError, InstanceId};
use crate::promote::{Publication, Task};
use crate::provision::errors::AcquireError;
use crate::provision::{OpenRequest, SavedError, ttl};
use crate::snapshot::shelf::{Entry, Saved, Shelf};

/// The body of an open.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OpenBody {
    /// What was answered when it was kept.
    #[schema(required, value_type = String)]
    key: Option<SecretString>,
    /// For how long; without it DEFAULT_TTL, and MAX_TTL at most.
    #[schema(value_type = Option<Ttl>)]
    ttl: Option<Value>,
}

/// The body of a publish.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PublishBody {
    /// What the golden is to be called; no recipe's name. The same name again has a
    /// later shop take the former one's place.
    #[schema(required, value_type = String, pattern = "^[a-z][a-z0-9-]{0,63}$", examples("spring-sale"))]
    golden: Option<String>,
    /// What people are told; without it, what they are told of the shop's own golden.
    #[schema(max_length = 80)]
    title: Option<String>,
    /// How many of it are to be ready; without it as many as before, or 1 if it is new.
    #[schema(minimum = 0, examples(2))]
    pool: Option<usize>,
}

/// The longest title: a line on a phone.
const TITLE_MAX: usize = 80;

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
pub(crate) struct SavedAnswer {
    /// The instance that it was and will be.
    #[schema(value_type = Id)]
    pub(crate) id: String,
    pub(crate) golden: String,
    /// What it stands on, which is held for it.
    pub(crate) snapshot: String,
    pub(crate) url: String,
    #[schema(value_type = String, format = DateTime)]
    pub(crate) saved_at: Timestamp,
    /// Until when it is kept.
    #[schema(value_type = String, format = DateTime)]
    pub(crate) until: Timestamp,
    /// What it takes of the disk.
    pub(crate) bytes: u64,
}

impl SavedAnswer {
    pub(crate) fn of(saved: &Saved) -> Self {
        Self {
            id: saved.id.to_string(),
            golden: saved.golden.to_string(),
            snapshot: saved.snapshot.to_string(),
            url: saved.access.url.clone(),
            saved_at: whole_ms(saved.saved_at),
            until: whole_ms(saved.until),
            bytes: saved.bytes(),
        }
    }
}

/// One that cannot be opened any more.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct UnreadableAnswer {
    #[schema(value_type = Id)]
    pub(crate) id: String,
    /// Why not.
    pub(crate) why: String,
}

/// All kept shops.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SavedList {
    pub(crate) saved: Vec<SavedAnswer>,
    /// Those whose record cannot be read; they take a place until they are removed.
    pub(crate) unreadable: Vec<UnreadableAnswer>,
}

impl SavedList {
    pub(crate) fn of(entries: &[Entry]) -> Self {
        let unreadable = |entry: &Entry| {
            let why = Chain(entry.saved.as_ref().err()?).to_string();
            Some(UnreadableAnswer { id: entry.id.to_string(), why })
        };
        Self {
            saved: entries
                .iter()
                .filter_map(|entry| entry.saved.as_ref().ok())
                .map(SavedAnswer::of)
                .collect(),
            unreadable: entries.iter().filter_map(unreadable).collect(),
        }
    }
}

/// Keeps an instance as it is now, to be opened when it is gone.
///
/// The shop stands still for some tenths of a second and goes on. Whoever has the key
/// gets it back, at the same address and with the same credentials. An instance is kept
/// once: the later one takes the former one's place, and has another key.
#[utoipa::path(
    post, path = "/api/v1/demo/{id}/save", tag = "saved", operation_id = "save_instance",
    params(("id" = inline(Id), Path)),
    responses(
        (status = 201, description = "It is kept", body = SaveAnswer),
        (status = 404, description = "The instance is unknown, or its end is long past; or no shops are kept here"),
        (status = 409, description = "It is nobody's, is being changed, cannot be kept, or is another node's"),
        (status = 410, description = "Its time is over"),
        (status = 500, description = "A defect of this service"),
        (status = 503, description = "As much as may be is kept already, or it cannot be frozen now"),
        (status = 507, description = "No disk is left for it")
    )
)]
pub(super) async fn save(
    State(api): State<ApiState>,
    PathId(id): PathId,
) -> Result<(StatusCode, Json<SaveAnswer>), Problem> {
    let kept = api.provisioner.save(&id).await?;
    let key = kept.key.expose_secret().to_owned();
    Ok((StatusCode::CREATED, Json(SaveAnswer { saved: SavedAnswer::of(&kept.saved), key })))
}

/// Lists all kept shops, for the operator.
#[utoipa::path(get, path = "/api/v1/saved", tag = "saved", operation_id = "list_saved", responses(
    (status = 200, description = "All, by instance", body = SavedList),
    (status = 404, description = "No shops are kept here"),
    (status = 500, description = "A defect of this service"),
    (status = 503, description = "The disk does not answer")
))]
pub(super) async fn list(State(api): State<ApiState>) -> Result<Json<SavedList>, Problem> {
    let entries = api.provisioner.keeping()?.on_shelf(Shelf::list).await?;
    Ok(Json(SavedList::of(&entries)))
}

/// Opens a kept shop; it stays kept.
///
/// Counts as an acquire does. So does an attempt with a wrong key.
#[utoipa::path(
    post, path = "/api/v1/saved/{id}/open", tag = "saved", operation_id = "open_saved",
    params(("id" = inline(Id), Path)),
    request_body(content = OpenBody, example = json!({ "key": "3q9fJ0cXv1", "ttl": "30m" })),
    responses(
        (status = 201, description = "The instance, as it was when it was kept", body = AcquireAnswer,
            headers(("Location" = String, description = "Where it is shown"))),
        (status = 400, description = "The body is not valid"),
        (status = 404, description = "Nothing is kept of that instance that this key opens"),
        (status = 409, description = "The instance that it was is still there"),
        (status = 413, description = "The body is too large"),
        (status = 415, description = "The body is not JSON by its own account"),
        (status = 429, description = "The client has had as many instances as it may"),
        (status = 500, description = "What is kept is damaged, or a defect of this service"),
        (status = 503, description = "No place is left, its golden is not restored here, or something does not answer"),
        (status = 507, description = "No disk or memory is left for it")
    )
)]
pub(super) async fn open(
    State(api): State<ApiState>,
    PathId(id): PathId,
    Asker(client): Asker,
    JsonBody(body): JsonBody<OpenBody>,
) -> Result<Response, Problem> {
    let key = body.key.ok_or_else(|| Problem::invalid("the body has no key"))?;
    let max = api.provisioner.terms().max_ttl;
    let ttl =
        body.ttl.as_ref().map(|given| ttl::parse(given, max)).transpose().map_err(AcquireError::from)?;
    let opened = api.provisioner.open(OpenRequest { id, key, ttl, client, holder: None }).await?;
    let location = format!("/api/v1/demo/{}", opened.instance.id);
    let answer = AcquireAnswer::of(&opened, Timestamp::now());
    let answer = answer.ok_or_else(|| Problem::of(ErrorKind::Bug, &SavedError::Lost))?;
    let mut response = (StatusCode::CREATED, [(header::LOCATION, location)], Json(answer)).into_response();
    limits::tell(response.headers_mut(), &opened.standings);
    Ok(response)
}

/// Removes a kept shop, for the operator; one that is not there is fine.
#[utoipa::path(
    delete, path = "/api/v1/saved/{id}", tag = "saved", operation_id = "remove_saved",
    params(("id" = inline(Id), Path)),
    responses(
        (status = 204, description = "It is not kept any more"),
        (status = 404, description = "No instance can have that name, or no shops are kept here"),
        (status = 500, description = "A defect of this service"),
        (status = 503, description = "It cannot be removed now")
    )
)]
pub(super) async fn remove(State(api): State<ApiState>, PathId(id): PathId) -> Result<StatusCode, Problem> {
    api.provisioner.keeping()?.on_shelf(move |shelf| shelf.remove(&id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Begins to make a golden of a kept shop, and to serve it, for the operator.
///
/// Its files are booted anew, confined as a shop is, given a golden's identity, warmed and
/// frozen: no process of the shop's goes on, and each copy has its own address, password
/// and keys. Visitors are led to it by `/?golden=NAME`. It stays kept as well.
#[utoipa::path(
    post, path = "/api/v1/saved/{id}/publish", tag = "saved", operation_id = "publish_saved",
    params(("id" = inline(Id), Path)),
    request_body(content = PublishBody, example = json!({ "golden": "spring-sale", "title": "Spring sale", "pool": 2 })),
    responses(
        (status = 202, description = "It was begun", body = TaskAnswer,
            headers(("Location" = String, description = "Where it is shown"))),
        (status = 400, description = "The body, the name, the title or the pool is not valid"),
        (status = 404, description = "Nothing is kept of that instance"),
        (status = 409, description = "A recipe or a golden of another node has that name, another task is under way, or the daemon restores no snapshots"),
        (status = 413, description = "The body is too large"),
        (status = 415, description = "The body is not JSON by its own account"),
        (status = 500, description = "A defect of this service"),
        (status = 503, description = "The disk does not answer")
    )
)]
pub(super) async fn publish(
    State(api): State<ApiState>,
    PathId(id): PathId,
    JsonBody(body): JsonBody<PublishBody>,
) -> Result<Response, Problem> {
    let golden = body.golden.ok_or_else(|| Problem::invalid("the body has no golden"))?;
    Ok(begun(begin(&api, id, &golden, (body.title, body.pool)).await?))
}

/// As the console's form does it.
pub(crate) async fn begin(
    api: &ApiState,
    kept: InstanceId,
    golden: &str,
    (title, pool): (Option<String>, Option<usize>),
) -> Result<Task, Problem> {
    check_target(api, pool)?;
    let golden = golden.parse().map_err(|error: IdError| Problem::invalid(error.to_string()))?;
    let title = title.map(|title| title.trim().to_owned()).filter(|title| !title.is_empty());
    if title.as_ref().is_some_and(|title| title.chars().count() > TITLE_MAX) {
        return Err(Problem::invalid(format!("a title has {TITLE_MAX} characters at most")));
    }
    let of = kept.clone();
    api.provisioner.keeping()?.on_shelf(move |shelf| shelf.get(&of)).await?;
    Ok(api.desk.publish(Publication { kept, golden, title, pool }).await?)
}
