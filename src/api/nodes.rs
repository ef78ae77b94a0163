//! `/api/v1/nodes`: who shares the store; and what other nodes' daemons ask this
//! one for ([`calls`], which the listener leads to when a pass says so).

use axum::extract::State;
use axum::middleware::from_fn;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Asked, PathId, PathOf};
use super::problem::Problem;
use super::{ApiState, logs, request, steer, unknown_path};
use crate::error::ErrorKind;
use crate::id::{GoldenName, NodeName};
use crate::instance::{Instance, State as InstanceState};
use crate::peers::call::{BASE, Call, CallError};
use crate::peers::{Known, Peers};
use crate::provision::errors::AcquireError;

/// All nodes that share the store.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct NodesAnswer {
    nodes: Vec<NodeAnswer>,
}

/// One node.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NodeAnswer {
    pub(crate) node: String,
    /// Whether it is the one that answers.
    pub(crate) own: bool,
    /// Where the others reach it; null when it is the only one.
    #[schema(required)]
    pub(crate) address: Option<String>,
    /// here, silent, away (stopped, and to come back) or lost.
    #[schema(example = "here")]
    pub(crate) condition: &'static str,
    /// How long it has not spoken.
    pub(crate) silent_ms: u64,
    /// Its program's version.
    pub(crate) version: String,
    pub(crate) drained: bool,
    /// How many more instances it may hold.
    pub(crate) room: usize,
    pub(crate) max_instances: usize,
    pub(crate) goldens: Vec<NodeGolden>,
}

/// One golden there.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NodeGolden {
    golden: String,
    /// Instances that are ready.
    pub(crate) ready: usize,
    /// Whether it can make one now.
    makes: bool,
}

/// Which node a call is meant for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct OfNode {
    /// Another node's name; without it, the one that is asked.
    #[param(pattern = "^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]
    node: Option<String>,
}

impl OfNode {
    /// The other node that is meant; none when it is this one.
    pub(super) fn other(&self, api: &ApiState) -> Result<Option<NodeName>, Problem> {
        let Some(node) = &self.node else { return Ok(None) };
        let node: NodeName =
            node.parse().map_err(|error: crate::id::IdError| Problem::invalid(error.to_string()))?;
        Ok((node != *api.provisioner.lifecycle().store().node()).then_some(node))
    }
}

/// Lists the nodes that share the store, as the one that is asked sees them.
///
/// Without NODE_ADDRESS that is itself alone.
#[utoipa::path(get, path = "/api/v1/nodes", tag = "pool", operation_id = "list_nodes", responses(
    (status = 200, description = "By name", body = NodesAnswer),
    (status = 500, description = "A record cannot be read"),
    (status = 503, description = "The store does not answer")
))]
pub(super) async fn list(State(api): State<ApiState>) -> Result<Json<NodesAnswer>, Problem> {
    Ok(Json(NodesAnswer { nodes: all(&api).await? }))
}

/// All nodes, by name.
pub(crate) async fn all(api: &ApiState) -> Result<Vec<NodeAnswer>, Problem> {
    let Some(peers) = api.provisioner.peers() else { return Ok(vec![alone(api).await?]) };
    Ok(peers.all().into_iter().map(|known| answer(peers, known)).collect())
}

fn answer(peers: &Peers, Known { report, condition, silent }: Known) -> NodeAnswer {
    let golden = |(name, of): (GoldenName, crate::node::GoldenReport)| NodeGolden {
        golden: name.to_string(),
        ready: of.ready,
        makes: of.makes,
    };
    NodeAnswer {
        own: report.node == *peers.own(),
        node: report.node.to_string(),
        address: Some(report.address),
        condition: condition.as_str(),
        silent_ms: u64::try_from(silent.as_millis()).unwrap_or(u64::MAX),
        version: report.program,
        drained: report.drained,
        room: report.room,
        max_instances: report.max_instances,
        goldens: report.goldens.into_iter().map(golden).collect(),
    }
}

/// The only node there is.
async fn alone(api: &ApiState) -> Result<NodeAnswer, Problem> {
    let lifecycle = api.provisioner.lifecycle();
    let mut goldens = Vec::new();
    for golden in lifecycle.goldens().iter() {
        let counts = lifecycle.store().counts(&golden.name).await?;
        let ready = counts.get(&InstanceState::Ready).copied().unwrap_or(0);
        let makes = api.provisioner.can_make(golden);
        goldens.push(NodeGolden { golden: golden.name.to_string(), ready, makes });
    }
    Ok(NodeAnswer {
        node: lifecycle.store().node().to_string(),
        own: true,
        address: None,
        condition: "here",
        silent_ms: 0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        drained: lifecycle.aim().is_drained(),
        room: lifecycle.room(),
        max_instances: lifecycle.max_instances(),
        goldens,
    })
}

/// Has another node do something.
///
/// # Errors
/// It is not there, or did not do it.
pub(super) async fn ask(api: &ApiState, node: &NodeName, call: &Call) -> Result<Value, Problem> {
    match api.provisioner.peers() {
        Some(peers) => Ok(peers.ask(node, call).await?),
        None => {
            Err(Problem::not_found(format!("node {node} is unknown: without NODE_ADDRESS there is one node")))
        }
    }
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        Self::of(error.kind(), &error)
    }
}

/// What other nodes' daemons ask for; see [`crate::peers::call`].
pub fn calls(api: ApiState) -> Router {
    let calls = Router::new()
        .route("/make/{golden}", post(make))
        .route("/reset/{id}", post(reset))
        .route("/hibernate/{id}", post(hibernate))
        .route("/wake/{id}", post(wake))
        .route("/logs/{id}", get(read_logs))
        .route("/drain", post(drain))
        .route("/undrain", post(undrain))
        .fallback(unknown_path);
    Router::new().nest(BASE, calls).layer(from_fn(request::around)).with_state(api)
}

/// On a task of its own: it goes on when the other node hangs up.
async fn make(
    State(api): State<ApiState>,
    PathOf(golden): PathOf<GoldenName>,
) -> Result<Json<Value>, Problem> {
    let tasks = api.provisioner.lifecycle().tasks();
    let provisioner = api.provisioner.clone();
    let made = tasks.spawn(async move { provisioner.make_for_another(&golden).await }).await;
    let made = made.map_err(|_| Problem::of(ErrorKind::Bug, &AcquireError::Lost))??;
    Ok(Json(json!({ "id": made.id.as_str(), "made_by": made.made_by.as_str() })))
}

async fn reset(State(api): State<ApiState>, PathId(id): PathId) -> Result<Json<Value>, Problem> {
    Ok(done(&api.provisioner.reset(&id, jiff::Timestamp::now()).await?))
}

async fn hibernate(State(api): State<ApiState>, PathId(id): PathId) -> Result<Json<Value>, Problem> {
    Ok(done(&api.provisioner.hibernate(&id).await?))
}

async fn wake(State(api): State<ApiState>, PathId(id): PathId) -> Result<Json<Value>, Problem> {
    Ok(done(&api.provisioner.wake(&id).await?))
}

fn done(instance: &Instance) -> Json<Value> {
    Json(json!({ "id": instance.id.as_str(), "state": instance.state.as_str() }))
}

async fn read_logs(
    State(api): State<ApiState>,
    PathId(id): PathId,
    Asked(tail): Asked<logs::Tail>,
) -> Result<Json<Value>, Problem> {
    let instance = api.provisioner.show(&id, jiff::Timestamp::now()).await?;
    let files = logs::read_here(&api, &instance, tail.lines()?).await?;
    Ok(Json(json!({ "files": files.into_iter().map(logs::LogFile::from).collect::<Vec<_>>() })))
}

async fn drain(State(api): State<ApiState>) -> Json<Value> {
    steer::set_drained(&api, true);
    steer::drained(&api)
}

async fn undrain(State(api): State<ApiState>) -> Json<Value> {
    steer::set_drained(&api, false);
    steer::drained(&api)
}
