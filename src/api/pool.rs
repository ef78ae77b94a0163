//! `/api/v1/pool/stats`: what is ready, what was handed out, what fails.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;

use super::ApiState;
use super::dto::{FailureStats, GoldenStats, Latency, StatsAnswer, whole_ms};
use super::problem::Problem;
use crate::config::ColdStart;
use crate::instance::State as InstanceState;
use crate::provision::GoldenRuntime;
use crate::store::StoreError;

/// Tells what is ready, what was handed out and what fails.
#[utoipa::path(get, path = "/api/v1/pool/stats", tag = "pool", operation_id = "pool_stats", responses(
    (status = 200, description = "By golden", body = StatsAnswer),
    (status = 500, description = "A record cannot be read"),
    (status = 503, description = "The store does not answer")
))]
pub(super) async fn stats(State(api): State<ApiState>) -> Result<Json<StatsAnswer>, Problem> {
    let lifecycle = api.provisioner.lifecycle();
    let mut goldens = Vec::new();
    for golden in lifecycle.goldens().iter() {
        goldens.push(of_golden(&api, golden).await?);
    }
    Ok(Json(StatsAnswer {
        instances: lifecycle.max_instances() - lifecycle.room(),
        max_instances: lifecycle.max_instances(),
        clients_waiting: lifecycle.gate().clients_waiting(),
        drained: lifecycle.aim().is_drained(),
        goldens,
    }))
}

async fn of_golden(api: &ApiState, golden: &GoldenRuntime) -> Result<GoldenStats, StoreError> {
    let lifecycle = api.provisioner.lifecycle();
    let counts = lifecycle.store().counts(&golden.name).await?;
    let count = |state: InstanceState| (state.as_str(), counts.get(&state).copied().unwrap_or(0));
    let tally = lifecycle.tally().of(&golden.name);
    let pool = api.pool.borrow().get(&golden.name).cloned().unwrap_or_default();
    let latencies: BTreeMap<_, _> =
        tally.quantiles().into_iter().map(|(source, of)| (source, Latency::from(of))).collect();
    Ok(GoldenStats {
        golden: golden.name.to_string(),
        title: golden.title.clone(),
        target: lifecycle.aim().target(&golden.name, pool.usual),
        states: InstanceState::ALL.into_iter().map(count).collect(),
        in_flight: pool.in_flight,
        hit_ratio: tally.hit_ratio(),
        acquire_ms: latencies,
        failures: FailureStats {
            total: tally.failures,
            in_a_row: pool.failures_in_a_row,
            last_error: tally.last_failure.as_ref().map(|failure| failure.error.clone()),
            last_at: tally.last_failure.as_ref().map(|failure| whole_ms(failure.at)),
            retry_at: pool.retry_at.map(whole_ms),
        },
        handed_over: tally.handed_over,
        no_restore: golden.restore.as_ref().err().cloned(),
        cold_start: golden.may_be_booted() && api.provisioner.terms().cold_start == ColdStart::Allowed,
    })
}
