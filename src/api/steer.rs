//! `/api/v1/pool/target` and `/api/v1/pool/drain`: what an operator changes
//! about the pool of a running daemon. After a restart the settings count again.

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::ApiState;
use super::dto::whole_ms;
use super::extract::{Asked, JsonBody};
use super::nodes::{self, OfNode};
use super::problem::Problem;
use crate::id::GoldenName;
use crate::peers::call::Call;

/// What the pool is to keep ready.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TargetAnswer {
    /// No target is above it.
    max_instances: usize,
    goldens: Vec<GoldenTarget>,
}

/// Of one golden.
#[derive(Debug, Serialize, ToSchema)]
struct GoldenTarget {
    golden: String,
    /// What counts.
    target: usize,
    /// POOL_TARGET_SIZE, or what a published golden was given, which counts again after a
    /// restart.
    usual: usize,
}

/// What the pool is to keep ready from now on.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TargetBody {
    /// Of which golden; without it of each.
    #[schema(examples("wordpress"))]
    golden: Option<String>,
    /// How many; without it what is usual.
    #[schema(minimum = 0, examples(8))]
    target: Option<usize>,
}

/// Whether the pool is drained.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DrainAnswer {
    drained: bool,
    #[schema(required, value_type = Option<String>, format = DateTime)]
    since: Option<Timestamp>,
}

/// Tells how many instances of each golden are to be ready.
#[utoipa::path(get, path = "/api/v1/pool/target", tag = "pool", operation_id = "pool_target", responses(
    (status = 200, description = "By golden", body = TargetAnswer)
))]
pub(super) async fn targets(State(api): State<ApiState>) -> Json<TargetAnswer> {
    Json(answer(&api))
}

/// Changes how many are to be ready, until the daemon is started again.
#[utoipa::path(
    put, path = "/api/v1/pool/target", tag = "pool", operation_id = "set_pool_target",
    request_body(content = TargetBody, example = json!({ "target": 8 })),
    responses(
        (status = 200, description = "What counts now", body = TargetAnswer),
        (status = 400, description = "The body is not valid, the golden is unknown or the target is too high"),
        (status = 413, description = "The body is too large"),
        (status = 415, description = "The body is not JSON by its own account")
    )
)]
pub(super) async fn set_target(
    State(api): State<ApiState>,
    JsonBody(body): JsonBody<TargetBody>,
) -> Result<Json<TargetAnswer>, Problem> {
    aim(&api, body.golden.as_deref(), body.target)?;
    Ok(Json(answer(&api)))
}

/// Sets a golden's target, or each one's; none takes what is usual again.
///
/// # Errors
/// The golden is unknown, or the target beyond what the host may hold.
pub(crate) fn aim(api: &ApiState, golden: Option<&str>, target: Option<usize>) -> Result<(), Problem> {
    let lifecycle = api.provisioner.lifecycle();
    check_target(api, target)?;
    let goldens = lifecycle.goldens();
    let all = goldens.iter().map(|golden| &golden.name);
    let meant: Vec<&GoldenName> = all.filter(|name| golden.is_none_or(|it| name.as_str() == it)).collect();
    if meant.is_empty() {
        let known: Vec<&str> = goldens.iter().map(|golden| golden.name.as_str()).collect();
        let asked: String = golden.unwrap_or_default().chars().take(80).collect();
        return Err(Problem::invalid(format!(
            "golden {asked:?} is unknown; there are: {}",
            known.join(", ")
        )));
    }
    for name in meant {
        lifecycle.aim().set_target(name, target);
        tracing::info!(golden = %name, target, "operator has changed the pool's target");
    }
    lifecycle.look_at_pool();
    Ok(())
}

/// Refuses to have more ready than the host may hold.
pub(super) fn check_target(api: &ApiState, target: Option<usize>) -> Result<(), Problem> {
    let max = api.provisioner.lifecycle().max_instances();
    match target.filter(|target| *target > max) {
        Some(target) => {
            let told = format!("a target of {target} is more than MAX_INSTANCES, which is {max}");
            Err(Problem::invalid(told))
        }
        None => Ok(()),
    }
}

fn answer(api: &ApiState) -> TargetAnswer {
    let lifecycle = api.provisioner.lifecycle();
    let pool = api.pool.borrow();
    let of = |name: &GoldenName| {
        let usual = pool.get(name).map_or(0, |of| of.usual);
        GoldenTarget { golden: name.to_string(), target: lifecycle.aim().target(name, usual), usual }
    };
    TargetAnswer {
        max_instances: lifecycle.max_instances(),
        goldens: lifecycle.goldens().iter().map(|golden| of(&golden.name)).collect(),
    }
}

/// Drains the pool: nothing is handed out or made any more, what is there stays.
///
/// Until it is undrained, or the daemon is started again. `/readyz` answers 503
/// meanwhile. A repeated acquire of a live instance by its key is still answered.
#[utoipa::path(post, path = "/api/v1/pool/drain", tag = "pool", operation_id = "drain_pool", params(OfNode), responses(
    (status = 200, description = "It is drained", body = DrainAnswer),
    (status = 400, description = "The query is not valid"),
    (status = 404, description = "There is one node, and it has another name"),
    (status = 500, description = "That node has a defect"),
    (status = 503, description = "That node is not there")
))]
pub(super) async fn drain(
    State(api): State<ApiState>,
    Asked(of): Asked<OfNode>,
) -> Result<Json<Value>, Problem> {
    if let Some(node) = of.other(&api)? {
        return Ok(Json(nodes::ask(&api, &node, &Call::Drain).await?));
    }
    set_drained(&api, true);
    Ok(drained(&api))
}

/// Has the pool hand out and make instances again.
#[utoipa::path(delete, path = "/api/v1/pool/drain", tag = "pool", operation_id = "undrain_pool", params(OfNode), responses(
    (status = 200, description = "It is not drained", body = DrainAnswer),
    (status = 400, description = "The query is not valid"),
    (status = 404, description = "There is one node, and it has another name"),
    (status = 500, description = "That node has a defect"),
    (status = 503, description = "That node is not there")
))]
pub(super) async fn undrain(
    State(api): State<ApiState>,
    Asked(of): Asked<OfNode>,
) -> Result<Json<Value>, Problem> {
    if let Some(node) = of.other(&api)? {
        return Ok(Json(nodes::ask(&api, &node, &Call::Undrain).await?));
    }
    set_drained(&api, false);
    Ok(drained(&api))
}

/// Drains the pool, or ends that.
pub(crate) fn set_drained(api: &ApiState, drained: bool) {
    let lifecycle = api.provisioner.lifecycle();
    if drained {
        lifecycle.aim().drain(Timestamp::now());
        tracing::warn!("operator has drained the pool: nothing is handed out or made");
    } else if lifecycle.aim().undrain() {
        tracing::info!("operator has the pool filled again");
    }
    lifecycle.look_at_pool();
    if let Some(peers) = api.provisioner.peers() {
        peers.tell();
    }
}

/// The answer as JSON, in which another node's is passed on.
pub(super) fn drained(api: &ApiState) -> Json<Value> {
    let since = api.provisioner.lifecycle().aim().drained_since();
    Json(json!(DrainAnswer { drained: since.is_some(), since: since.map(whole_ms) }))
}
