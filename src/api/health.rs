//! `/health`, `/livez`, `/readyz`, `/metrics`: for whoever watches the daemon.
//!
//! `/livez`: the process answers. `/readyz`: send it requests. `/health`: each
//! thing it stands on, for people; 503 when it cannot do its work. Who is no
//! watcher gets the one word: names, versions and errors are none of theirs.

use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::{StatusCode, header};
use serde_json::{Value, json};

use super::ApiState;
use super::access::{Details, details};
use super::dto::ms;
use super::problem::Problem;
use crate::error::Chain;
use crate::instance::State as InstanceState;
use crate::metrics;
use crate::shutdown::Phase;

/// A store that takes longer than this for an empty commit (1 ms on a healthy
/// disk) holds up every acquire.
const STORE_DEADLINE: Duration = Duration::from_secs(2);

/// `GET /livez`.
pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// `GET /readyz`.
pub(super) async fn readyz(State(api): State<ApiState>) -> Response {
    let phase = *api.phase.borrow();
    match phase {
        Phase::Serving => "ready\n".into_response(),
        Phase::Starting | Phase::Draining | Phase::Stopped => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", phase.as_str())).into_response()
        }
    }
}

/// `GET /health`.
pub(super) async fn health(State(api): State<ApiState>, extension: Option<Extension<Details>>) -> Response {
    let phase = *api.phase.borrow();
    let (store_up, store) = store_health(&api).await;
    let (engines_up, engines) = engine_health(&api).await;
    let (pools_well, pool) = pool_health(&api);
    let (status, word) = match (store_up, phase, pools_well && engines_up) {
        (false, ..) => (StatusCode::SERVICE_UNAVAILABLE, "down"),
        (_, Phase::Starting | Phase::Draining | Phase::Stopped, _) => {
            (StatusCode::SERVICE_UNAVAILABLE, phase.as_str())
        }
        (true, Phase::Serving, false) => (StatusCode::OK, "degraded"),
        (true, Phase::Serving, true) => (StatusCode::OK, "ok"),
    };
    if !details(extension) {
        return (status, Json(json!({ "status": word }))).into_response();
    }
    let body = json!({
        "status": word,
        "phase": phase.as_str(),
        "version": env!("CARGO_PKG_VERSION"),
        "store": store,
        "engines": engines,
        "pool": pool,
    });
    (status, Json(body)).into_response()
}

async fn store_health(api: &ApiState) -> (bool, Value) {
    let began = Instant::now();
    let ping = api.provisioner.lifecycle().store().ping();
    let error = match tokio::time::timeout(STORE_DEADLINE, ping).await {
        Ok(Ok(())) => return (true, json!({ "status": "ok", "ms": ms(began.elapsed()) })),
        Ok(Err(error)) => Chain(&error).to_string(),
        Err(_) => format!("no answer within {} s", STORE_DEADLINE.as_secs()),
    };
    (false, json!({ "status": "down", "error": error }))
}

/// Programs that drivers ask for their containers, one entry each. Without one
/// nothing can be made, but what runs goes on and what is ready is handed out.
async fn engine_health(api: &ApiState) -> (bool, Value) {
    let mut all_up = true;
    let mut engines = serde_json::Map::new();
    for engine in api.provisioner.lifecycle().engines() {
        let kind = engine.kind().as_str();
        if engines.contains_key(kind) {
            continue;
        }
        if let Some(answer) = engine.health().await {
            all_up &= answer.is_ok();
            let entry = match answer {
                Ok(()) => json!({ "status": "ok" }),
                Err(error) => json!({ "status": "down", "error": Chain(&error).to_string() }),
            };
            engines.insert(kind.to_owned(), entry);
        }
    }
    (all_up, Value::Object(engines))
}

/// A golden is well when it can be restored and the pool's last attempt worked.
fn pool_health(api: &ApiState) -> (bool, Value) {
    let status = api.pool.borrow();
    let mut all_well = true;
    let mut goldens = serde_json::Map::new();
    for golden in api.provisioner.lifecycle().goldens() {
        let of = status.get(&golden.name).cloned().unwrap_or_default();
        let entry = match (&golden.restore, of.failures_in_a_row) {
            (Err(reason), _) => json!({ "status": "degraded", "no_restore": reason }),
            (Ok(_), 0) => json!({ "status": "ok" }),
            (Ok(_), failures) => json!({
                "status": "degraded",
                "failures_in_a_row": failures,
                "retry_at": of.retry_at.map(super::dto::whole_ms),
            }),
        };
        all_well &= golden.restore.is_ok() && of.failures_in_a_row == 0;
        goldens.insert(golden.name.to_string(), entry);
    }
    (all_well, Value::Object(goldens))
}

/// `GET /metrics`, in Prometheus' text format.
pub(super) async fn prometheus(State(api): State<ApiState>) -> Result<Response, Problem> {
    let lifecycle = api.provisioner.lifecycle();
    // All or nothing: gauges of some goldens only would look like expiries.
    let mut seen = Vec::new();
    for golden in lifecycle.goldens() {
        seen.push((golden, lifecycle.store().counts(&golden.name).await?));
    }
    for (golden, counts) in seen {
        let target = api.pool.borrow().get(&golden.name).map_or(0, |of| of.target);
        metrics::pool_state(&golden.name, target, |state: InstanceState| {
            counts.get(&state).copied().unwrap_or(0)
        });
    }
    metrics::daemon_phase(*api.phase.borrow());
    metrics::instances_max(lifecycle.max_instances());
    let text = api.metrics.render();
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}
