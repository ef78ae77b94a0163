//! `/api/v1/goldens`: what this daemon serves, and no more.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiState;
use super::extract::PathOf;
use super::problem::Problem;
use super::snapshots::{TaskAnswer, begun};
use crate::config::ColdStart;
use crate::id::GoldenName;

/// All goldens, the default one first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GoldensAnswer {
    goldens: Vec<GoldenAnswer>,
}

/// One golden.
#[derive(Debug, Serialize, ToSchema)]
struct GoldenAnswer {
    golden: String,
    /// For people.
    title: String,
    /// The snapshot that it is restored from; null when it is only booted.
    #[schema(required)]
    snapshot: Option<String>,
    /// Why it cannot be restored, if it cannot.
    #[schema(required)]
    no_restore: Option<String>,
    /// Whether it may be booted when it cannot be restored.
    cold_start: bool,
}

/// Begins to serve a golden no more that was a visitor's shop.
///
/// Nobody gets a copy of it any more; those that visitors have live on. Its snapshots go,
/// but for what those need. Where several nodes share a NATS, it goes from all of them.
#[utoipa::path(
    delete, path = "/api/v1/goldens/{golden}", tag = "saved", operation_id = "withdraw_golden",
    params(("golden" = String, Path, description = "Its name", example = "spring-sale")),
    responses(
        (status = 202, description = "It was begun", body = TaskAnswer,
            headers(("Location" = String, description = "Where it is shown"))),
        (status = 404, description = "No such golden was published"),
        (status = 409, description = "Another task is under way, or the daemon restores no snapshots"),
        (status = 500, description = "What is served cannot be read"),
        (status = 503, description = "The disk does not answer")
    )
)]
pub(super) async fn withdraw(
    State(api): State<ApiState>,
    PathOf(golden): PathOf<GoldenName>,
) -> Result<Response, Problem> {
    Ok(begun(api.desk.withdraw(&golden).await?))
}

/// Lists the goldens that are served.
#[utoipa::path(get, path = "/api/v1/goldens", tag = "pool", operation_id = "list_goldens", responses(
    (status = 200, description = "All, the default one first", body = GoldensAnswer)
))]
pub(super) async fn list(State(api): State<ApiState>) -> Json<GoldensAnswer> {
    let served = api.desk.served();
    let cold = api.provisioner.terms().cold_start == ColdStart::Allowed;
    let goldens = api.provisioner.lifecycle().goldens();
    let goldens = goldens.iter().map(|golden| GoldenAnswer {
        golden: golden.name.to_string(),
        title: golden.title.clone(),
        snapshot: served.get(&golden.name).map(ToString::to_string),
        no_restore: golden.restore.as_ref().err().cloned(),
        cold_start: cold && golden.may_be_booted(),
    });
    Json(GoldensAnswer { goldens: goldens.collect() })
}
