//! `GET /api/v1/goldens`: what this daemon serves.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiState;
use crate::config::ColdStart;

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

/// Lists the goldens that are served.
#[utoipa::path(get, path = "/api/v1/goldens", tag = "pool", operation_id = "list_goldens", responses(
    (status = 200, description = "All, the default one first", body = GoldensAnswer)
))]
pub(super) async fn list(State(api): State<ApiState>) -> Json<GoldensAnswer> {
    let served = api.desk.served();
    let cold = api.provisioner.terms().cold_start == ColdStart::Allowed;
    let goldens = api.provisioner.lifecycle().goldens().iter().map(|golden| GoldenAnswer {
        golden: golden.name.to_string(),
        title: golden.title.clone(),
        snapshot: served.get(&golden.name).map(ToString::to_string),
        no_restore: golden.restore.as_ref().err().cloned(),
        cold_start: cold && golden.may_be_booted(),
    });
    Json(GoldensAnswer { goldens: goldens.collect() })
}
