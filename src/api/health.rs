//! `/health`, `/livez`, `/readyz`, `/metrics`: for whoever watches the daemon.
//!
//! `/livez`: the process answers. `/readyz`: send it requests. `/health`: each
//! thing it stands on, for people; 503 when it cannot do its work. Who is no
//! watcher gets the one word: names, versions and errors are none of theirs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use http::{StatusCode, header};

use super::ApiState;
use super::access::{Details, details};
use super::dto::{
    DependencyHealth, GoldenHealth, Health, HealthAnswer, HealthWord, JobsHealth, RouterHealth, ms, whole_ms,
};
use super::problem::Problem;
use crate::engine::Dependency;
use crate::error::Chain;
use crate::instance::State as InstanceState;
use crate::metrics;
use crate::nats::Link;
use crate::shutdown::Phase;

/// A store that takes longer than this for an empty commit (1 ms on a healthy
/// disk) holds up every acquire.
const STORE_DEADLINE: Duration = Duration::from_secs(2);

/// Says that the process answers.
#[utoipa::path(get, path = "/livez", tag = "health", responses(
    (status = 200, description = "It does", body = String, example = json!("ok\n"))
))]
pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// Says whether requests are to be sent here.
#[utoipa::path(get, path = "/readyz", tag = "health", responses(
    (status = 200, description = "They are", body = String, example = json!("ready\n")),
    (status = 503, description = "It starts, is being stopped or its pool is drained", body = String, example = json!("draining\n"))
))]
pub(super) async fn readyz(State(api): State<ApiState>) -> Response {
    let phase = *api.phase.borrow();
    match phase {
        Phase::Serving if api.provisioner.lifecycle().aim().is_drained() => {
            (StatusCode::SERVICE_UNAVAILABLE, "drained\n").into_response()
        }
        Phase::Serving => "ready\n".into_response(),
        Phase::Starting | Phase::Draining | Phase::Stopped => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", phase.as_str())).into_response()
        }
    }
}

/// Says how each thing is that the daemon stands on; the one word to who is no
/// watcher.
#[utoipa::path(get, path = "/health", tag = "health", responses(
    (status = 200, description = "It does its work, though it may be degraded", body = HealthAnswer),
    (status = 503, description = "It cannot do its work now", body = HealthAnswer)
))]
pub(super) async fn health(State(api): State<ApiState>, extension: Option<Extension<Details>>) -> Response {
    let phase = *api.phase.borrow();
    let (store_up, store) = store_health(&api).await;
    let (pools_well, pool) = pool_health(&api);
    let (standing, dependencies) = dependencies_health(&api).await;
    let (router_well, router) = router_health(&api);
    let (jobs_well, jobs) = jobs_health(&api);
    let all_well = pools_well && standing.makes && router_well && jobs_well;
    let (status, word) = match (store_up && standing.works, phase, all_well) {
        (false, ..) => (StatusCode::SERVICE_UNAVAILABLE, "down"),
        (_, Phase::Starting | Phase::Draining | Phase::Stopped, _) => {
            (StatusCode::SERVICE_UNAVAILABLE, phase.as_str())
        }
        (true, Phase::Serving, false) => (StatusCode::OK, "degraded"),
        (true, Phase::Serving, true) => (StatusCode::OK, "ok"),
    };
    if !details(extension) {
        return (status, Json(HealthAnswer::Word(HealthWord { status: word }))).into_response();
    }
    let version = env!("CARGO_PKG_VERSION");
    let body = HealthAnswer::Whole(Box::new(Health {
        status: word,
        phase: phase.as_str(),
        version,
        store,
        dependencies,
        router,
        jobs,
        pool,
    }));
    (status, Json(body)).into_response()
}

async fn store_health(api: &ApiState) -> (bool, DependencyHealth) {
    let began = Instant::now();
    let ping = api.provisioner.lifecycle().store().ping();
    let error = match tokio::time::timeout(STORE_DEADLINE, ping).await {
        Ok(Ok(())) => {
            let ms = Some(ms(began.elapsed()));
            return (true, DependencyHealth { status: "ok", ms, error: None });
        }
        Ok(Err(error)) => Chain(&error).to_string(),
        Err(_) => format!("no answer within {} s", STORE_DEADLINE.as_secs()),
    };
    (false, DependencyHealth { status: "down", ms: None, error: Some(error) })
}

/// What instances stand on beside the host, by its name, and whether any can be
/// made and whether those that live work: without a container engine what runs
/// goes on, without its database a shop does not.
async fn dependencies_health(api: &ApiState) -> (Standing, BTreeMap<String, DependencyHealth>) {
    let mut standing = Standing { makes: true, works: true };
    let mut all = BTreeMap::new();
    for engine in api.provisioner.lifecycle().engines() {
        if let Some(Dependency { name, outage }) = engine.dependency() {
            standing.works &= outage.is_none();
            all.insert(name.to_owned(), DependencyHealth::of(outage));
        }
        let kind = engine.kind().as_str();
        if !all.contains_key(kind)
            && let Some(answer) = engine.health().await
        {
            standing.makes &= answer.is_ok();
            all.insert(
                kind.to_owned(),
                DependencyHealth::of(answer.err().map(|error| Chain(&error).to_string())),
            );
        }
    }
    (standing, all)
}

/// What follows for instances.
struct Standing {
    makes: bool,
    works: bool,
}

/// Without NATS jobs are done all the same; its daemon alone sees them then, and
/// nobody hears of events.
fn jobs_health(api: &ApiState) -> (bool, JobsHealth) {
    let (status, queue, error) = match api.nats.as_ref().map(|link| link.borrow().clone()) {
        None => ("ok", "process", None),
        Some(Link::Up { .. }) => ("ok", "nats", None),
        Some(Link::Down { why }) => ("degraded", "process", Some(why)),
    };
    (error.is_none(), JobsHealth { status, queue, error })
}

/// A golden is well when it can be restored and the pool's last attempt worked.
fn pool_health(api: &ApiState) -> (bool, BTreeMap<String, GoldenHealth>) {
    let status = api.pool.borrow();
    let mut all_well = true;
    let mut goldens = BTreeMap::new();
    for golden in api.provisioner.lifecycle().goldens().iter() {
        let of = status.get(&golden.name).cloned().unwrap_or_default();
        let entry = match (&golden.restore, of.failures_in_a_row) {
            (Err(reason), _) => GoldenHealth {
                status: "degraded",
                no_restore: Some(reason.clone()),
                ..GoldenHealth::default()
            },
            (Ok(_), 0) => GoldenHealth { status: "ok", ..GoldenHealth::default() },
            (Ok(_), failures) => GoldenHealth {
                status: "degraded",
                failures_in_a_row: Some(failures),
                retry_at: of.retry_at.map(whole_ms),
                ..GoldenHealth::default()
            },
        };
        all_well &= golden.restore.is_ok() && of.failures_in_a_row == 0;
        goldens.insert(golden.name.to_string(), entry);
    }
    (all_well, goldens)
}

/// A router without routes is no more than slower: the built-in proxy serves.
fn router_health(api: &ApiState) -> (bool, RouterHealth) {
    let routes = api.provisioner.lifecycle().routes();
    let kind = if routes.router().is_some() { "caddy" } else { "embedded" };
    let error = routes.router().and_then(|_| routes.trouble());
    let status = if error.is_some() { "degraded" } else { "ok" };
    (error.is_none(), RouterHealth { status, kind, error })
}

/// Tells the metrics, in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "health", responses(
    (status = 200, description = "All series", body = String, content_type = "text/plain"),
    (status = 500, description = "A record cannot be read"),
    (status = 503, description = "The store does not answer")
))]
pub(super) async fn prometheus(State(api): State<ApiState>) -> Result<Response, Problem> {
    let lifecycle = api.provisioner.lifecycle();
    // All or nothing: gauges of some goldens only would look like expiries.
    let (goldens, mut seen) = (lifecycle.goldens(), Vec::new());
    for golden in goldens.iter() {
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
