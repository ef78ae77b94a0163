//! `GET /api/v1/demo/{id}/logs`: the ends of a shop's own log files.

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::ApiState;
use super::extract::{Asked, PathId};
use super::instances::shell_command;
use super::openapi::Id;
use super::problem::Problem;
use crate::error::ErrorKind;
use crate::id::InstanceId;
use crate::instance::{Instance, Source};
use crate::peers::call::Call;
use crate::restore::logs::{self, LogEnd};

/// Lines of each file when nobody says how many.
const TAIL: usize = 50;

/// More is read with the `logs` command, on the host.
const TAIL_MAX: usize = 2_000;

/// How much of each file.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Tail {
    /// Lines of each file.
    #[param(minimum = 1, maximum = 2000)]
    tail: Option<usize>,
}

impl Tail {
    /// How many lines of each file.
    pub(super) fn lines(&self) -> Result<usize, Problem> {
        match self.tail.unwrap_or(TAIL) {
            lines @ 1..=TAIL_MAX => Ok(lines),
            _ => Err(Problem::invalid(format!("tail is 1 to {TAIL_MAX} lines"))),
        }
    }
}

/// A shop's log files.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LogsAnswer {
    #[schema(value_type = Id)]
    id: String,
    files: Vec<LogFile>,
    /// Opens a shell in it, typed on its host.
    shell_command: String,
}

/// One of them.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(super) struct LogFile {
    /// Its path within the shop.
    path: String,
    /// Its last lines.
    #[schema(required)]
    text: Option<String>,
    /// Why they cannot be read.
    #[schema(required)]
    error: Option<String>,
}

impl From<LogEnd> for LogFile {
    fn from(LogEnd { path, text }: LogEnd) -> Self {
        let (text, error) = match text {
            Ok(text) => (Some(text), None),
            Err(error) => (None, Some(error)),
        };
        Self { path, text, error }
    }
}

impl From<LogFile> for LogEnd {
    fn from(LogFile { path, text, error }: LogFile) -> Self {
        Self { path, text: text.ok_or_else(|| error.unwrap_or_default()) }
    }
}

/// Shows the last lines of the log files that an instance's golden names.
#[utoipa::path(
    get, path = "/api/v1/demo/{id}/logs", tag = "demo", operation_id = "instance_logs",
    params(("id" = inline(Id), Path), Tail),
    responses(
        (status = 200, description = "The files that are there", body = LogsAnswer),
        (status = 400, description = "The query is not valid"),
        (status = 404, description = "The instance is unknown, or its end is long past"),
        (status = 409, description = "It does not run, or on another node that shares no NODE_ADDRESS"),
        (status = 410, description = "Its time is over"),
        (status = 500, description = "Its record cannot be read"),
        (status = 503, description = "The store does not answer")
    )
)]
pub(super) async fn show(
    State(api): State<ApiState>,
    PathId(id): PathId,
    Asked(tail): Asked<Tail>,
) -> Result<Json<LogsAnswer>, Problem> {
    let tail = tail.lines()?;
    let instance = api.provisioner.show(&id, Timestamp::now()).await?;
    let files = read(&api, &instance, tail).await?;
    let shell_command = shell_command(&instance);
    Ok(Json(LogsAnswer {
        id: id.to_string(),
        files: files.into_iter().map(LogFile::from).collect(),
        shell_command,
    }))
}

/// Reads an instance's log files, on whichever node.
///
/// # Errors
/// It does not run, or its node does not answer.
pub(crate) async fn read(api: &ApiState, instance: &Instance, tail: usize) -> Result<Vec<LogEnd>, Problem> {
    let (id, node) = (&instance.id, &instance.node);
    if api.provisioner.lifecycle().store().node() == node {
        return read_here(api, instance, tail).await;
    }
    let Some(peers) = api.provisioner.peers() else {
        let error = NotHere::Elsewhere { id: id.clone(), node: node.to_string() };
        return Err(Problem::of(ErrorKind::Conflict, &error));
    };
    let answer = peers.ask(node, &Call::Logs(id.clone(), tail)).await?;
    let files: Vec<LogFile> = serde_json::from_value(answer["files"].clone()).unwrap_or_default();
    Ok(files.into_iter().map(LogEnd::from).collect())
}

/// Reads the log files of an instance of this host.
///
/// # Errors
/// It does not run.
pub(super) async fn read_here(
    api: &ApiState,
    instance: &Instance,
    tail: usize,
) -> Result<Vec<LogEnd>, Problem> {
    let (lifecycle, id) = (api.provisioner.lifecycle(), &instance.id);
    let not_running = || Problem::of(ErrorKind::Conflict, &NotHere::Dead { id: id.clone() });
    let Some(container) = &instance.container else { return Err(not_running()) };
    let golden = lifecycle.golden(&instance.golden);
    let maker = golden.and_then(|golden| match instance.made_by {
        Source::Restore => golden.restore.as_ref().ok().or(golden.cold.as_ref()),
        Source::Pool | Source::Cold => golden.cold.as_ref().or_else(|| golden.restore.as_ref().ok()),
    });
    let files = maker.map(|maker| maker.log_files()).unwrap_or_default();
    let process = (container.pid, container.start_ticks);
    let reading = tokio::task::spawn_blocking(move || logs::ends_of(process, &files, tail));
    match reading.await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(_)) | Err(_) => Err(not_running()),
    }
}

/// Why there is nothing to read.
#[derive(Debug, thiserror::Error)]
enum NotHere {
    #[error("instance {id} does not run")]
    Dead { id: InstanceId },
    #[error("instance {id} runs on {node}: ask the daemon there")]
    Elsewhere { id: InstanceId, node: String },
}
