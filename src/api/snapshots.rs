//! `/api/v1/snapshots` and `/api/v1/tasks`: snapshots of the running daemon, and
//! the long work on them.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ApiState;
use super::dto::whole_ms;
use super::extract::{JsonBody, PathOf};
use super::openapi::{SnapshotName, TaskKind, TaskState};
use super::problem::Problem;
use crate::id::SnapshotId;
use crate::promote::{Outcome, Snapshot, Task};

/// How many snapshots of each golden are kept when nobody says.
const KEEP: usize = 2;

/// All snapshots.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SnapshotsAnswer {
    snapshots: Vec<SnapshotAnswer>,
}

/// One snapshot.
#[derive(Debug, Serialize, ToSchema)]
struct SnapshotAnswer {
    #[schema(value_type = SnapshotName)]
    id: String,
    /// Null when its manifest cannot be used.
    #[schema(required)]
    golden: Option<String>,
    #[schema(required, value_type = Option<String>, format = DateTime)]
    created_at: Option<Timestamp>,
    /// Compressed.
    bytes: u64,
    /// Unpacked.
    raw_bytes: u64,
    /// Why it cannot be used: not signed by anybody trusted, damaged, of another version.
    #[schema(required)]
    unusable: Option<String>,
    /// Whether the pool is restored from it.
    served: bool,
    /// Whether an operator has said so, which also counts after a restart.
    promoted: bool,
    /// Why its trial shop was no good.
    #[schema(required)]
    refused: Option<String>,
    /// Instances of this daemon that came from it.
    instances: usize,
}

impl From<Snapshot> for SnapshotAnswer {
    fn from(Snapshot { listed, served, instances }: Snapshot) -> Self {
        Self {
            id: listed.id.to_string(),
            golden: listed.golden.map(|golden| golden.to_string()),
            created_at: listed.created_at.map(whole_ms),
            bytes: listed.bytes,
            raw_bytes: listed.raw_bytes,
            unusable: listed.unusable,
            served,
            promoted: listed.promoted,
            refused: listed.refused,
            instances: instances.len(),
        }
    }
}

/// Of which golden.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    /// Without it of the first one served.
    #[schema(examples("wordpress"))]
    golden: Option<String>,
}

/// How many stay.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PruneBody {
    /// Of each golden; without it 2.
    #[schema(minimum = 1, examples(2))]
    keep: Option<usize>,
}

/// The last tasks.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TasksAnswer {
    /// The newest first; one at most is running.
    tasks: Vec<TaskAnswer>,
}

/// Long work that was begun.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TaskAnswer {
    /// Counts them, from the daemon's start.
    number: u64,
    #[schema(value_type = TaskKind)]
    kind: &'static str,
    /// The snapshot or the golden.
    subject: String,
    #[schema(value_type = TaskState)]
    state: &'static str,
    /// What it has said so far, the last one last.
    steps: Vec<String>,
    /// What came of it.
    #[schema(required)]
    result: Option<String>,
    /// Why it failed.
    #[schema(required)]
    error: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    began_at: Timestamp,
    #[schema(required, value_type = Option<String>, format = DateTime)]
    ended_at: Option<Timestamp>,
}

impl From<Task> for TaskAnswer {
    fn from(task: Task) -> Self {
        let state = task.outcome.as_str();
        let (result, error) = match task.outcome {
            Outcome::Running => (None, None),
            Outcome::Done(result) => (Some(result), None),
            Outcome::Failed(error) => (None, Some(error)),
        };
        Self {
            number: task.number,
            kind: task.kind.as_str(),
            subject: task.subject,
            state,
            steps: task.steps,
            result,
            error,
            began_at: whole_ms(task.began_at),
            ended_at: task.ended_at.map(whole_ms),
        }
    }
}

/// A task that was begun: where it is shown.
pub(super) fn begun(task: Task) -> Response {
    let location = format!("/api/v1/tasks/{}", task.number);
    (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(TaskAnswer::from(task))).into_response()
}

/// Lists the snapshots, usable or not.
#[utoipa::path(get, path = "/api/v1/snapshots", tag = "snapshots", operation_id = "list_snapshots", responses(
    (status = 200, description = "All, by name", body = SnapshotsAnswer),
    (status = 409, description = "The daemon restores no snapshots"),
    (status = 500, description = "A record cannot be read"),
    (status = 503, description = "The catalogue or the store does not answer")
))]
pub(super) async fn list(State(api): State<ApiState>) -> Result<Json<SnapshotsAnswer>, Problem> {
    let all = api.desk.snapshots().await?;
    Ok(Json(SnapshotsAnswer { snapshots: all.into_iter().map(SnapshotAnswer::from).collect() }))
}

/// Begins to take a snapshot: builds, boots, warms and freezes a golden.
///
/// It is served when it is promoted, or after a restart if no other was.
#[utoipa::path(
    post, path = "/api/v1/snapshots", tag = "snapshots", operation_id = "create_snapshot",
    request_body(content = CreateBody, example = json!({ "golden": "wordpress" })),
    responses(
        (status = 202, description = "It was begun", body = TaskAnswer,
            headers(("Location" = String, description = "Where it is shown"))),
        (status = 400, description = "The body is not valid, or the golden is unknown"),
        (status = 409, description = "Another task is under way, or the daemon restores no snapshots"),
        (status = 413, description = "The body is too large"),
        (status = 415, description = "The body is not JSON by its own account")
    )
)]
pub(super) async fn create(
    State(api): State<ApiState>,
    JsonBody(body): JsonBody<CreateBody>,
) -> Result<Response, Problem> {
    Ok(begun(api.desk.create(body.golden.as_deref())?))
}

/// Begins to check a snapshot's archives against their digests.
#[utoipa::path(
    post, path = "/api/v1/snapshots/{id}/verify", tag = "snapshots", operation_id = "verify_snapshot",
    params(("id" = inline(SnapshotName), Path)),
    responses(
        (status = 202, description = "It was begun", body = TaskAnswer,
            headers(("Location" = String, description = "Where it is shown"))),
        (status = 404, description = "The snapshot is unknown"),
        (status = 409, description = "Another task is under way, or the daemon restores no snapshots"),
        (status = 500, description = "A record cannot be read"),
        (status = 503, description = "The catalogue or the store does not answer")
    )
)]
pub(super) async fn verify(
    State(api): State<ApiState>,
    PathOf(id): PathOf<SnapshotId>,
) -> Result<Response, Problem> {
    Ok(begun(api.desk.verify(&id).await?))
}

/// Begins to serve a snapshot, behind live traffic.
///
/// One trial shop is made of it first. When its front page does not come, the
/// snapshot is refused and what is served stays; else the pool is restored from
/// it from now on, also after a restart, and ready shops of the former one are
/// replaced one by one.
#[utoipa::path(
    post, path = "/api/v1/snapshots/{id}/promote", tag = "snapshots", operation_id = "promote_snapshot",
    params(("id" = inline(SnapshotName), Path)),
    responses(
        (status = 202, description = "It was begun", body = TaskAnswer,
            headers(("Location" = String, description = "Where it is shown"))),
        (status = 404, description = "The snapshot is unknown"),
        (status = 409, description = "Another task is under way, or the daemon restores no snapshots"),
        (status = 500, description = "A record cannot be read"),
        (status = 503, description = "The catalogue or the store does not answer")
    )
)]
pub(super) async fn promote(
    State(api): State<ApiState>,
    PathOf(id): PathOf<SnapshotId>,
) -> Result<Response, Problem> {
    Ok(begun(api.desk.promote(&id).await?))
}

/// Begins to remove a snapshot that is not in use.
#[utoipa::path(
    delete, path = "/api/v1/snapshots/{id}", tag = "snapshots", operation_id = "remove_snapshot",
    params(("id" = inline(SnapshotName), Path)),
    responses(
        (status = 202, description = "It was begun", body = TaskAnswer,
            headers(("Location" = String, description = "Where it is shown"))),
        (status = 404, description = "The snapshot is unknown"),
        (status = 409, description = "It is in use, another task is under way, or the daemon restores no snapshots"),
        (status = 500, description = "A record cannot be read"),
        (status = 503, description = "The catalogue or the store does not answer")
    )
)]
pub(super) async fn remove(
    State(api): State<ApiState>,
    PathOf(id): PathOf<SnapshotId>,
) -> Result<Response, Problem> {
    Ok(begun(api.desk.remove(&id).await?))
}

/// Begins to remove old snapshots that are not in use.
#[utoipa::path(
    post, path = "/api/v1/snapshots/prune", tag = "snapshots", operation_id = "prune_snapshots",
    request_body(content = PruneBody, example = json!({ "keep": 2 })),
    responses(
        (status = 202, description = "It was begun", body = TaskAnswer,
            headers(("Location" = String, description = "Where it is shown"))),
        (status = 400, description = "The body is not valid"),
        (status = 409, description = "Another task is under way, or the daemon restores no snapshots"),
        (status = 413, description = "The body is too large"),
        (status = 415, description = "The body is not JSON by its own account")
    )
)]
pub(super) async fn prune(
    State(api): State<ApiState>,
    JsonBody(body): JsonBody<PruneBody>,
) -> Result<Response, Problem> {
    let keep = body.keep.unwrap_or(KEEP);
    if keep == 0 {
        return Err(Problem::invalid("keep is 1 at least: a golden without a snapshot can only be booted"));
    }
    Ok(begun(api.desk.prune(keep)?))
}

/// Lists the last tasks.
#[utoipa::path(get, path = "/api/v1/tasks", tag = "snapshots", operation_id = "list_tasks", responses(
    (status = 200, description = "At most 20", body = TasksAnswer)
))]
pub(super) async fn tasks(State(api): State<ApiState>) -> Json<TasksAnswer> {
    Json(TasksAnswer { tasks: api.desk.tasks().into_iter().map(TaskAnswer::from).collect() })
}

/// Shows a task, with what it has said so far.
#[utoipa::path(
    get, path = "/api/v1/tasks/{number}", tag = "snapshots", operation_id = "show_task",
    params(("number" = u64, Path)),
    responses(
        (status = 200, description = "The task", body = TaskAnswer),
        (status = 404, description = "It is unknown, or long past")
    )
)]
pub(super) async fn task(
    State(api): State<ApiState>,
    PathOf(number): PathOf<u64>,
) -> Result<Json<TaskAnswer>, Problem> {
    let found = api.desk.tasks().into_iter().find(|task| task.number == number);
    let task = found.ok_or_else(|| Problem::not_found(format!("task {number} is unknown, or long past")))?;
    Ok(Json(task.into()))
}
