//! `/api/v1/audit`: what is on this host and nobody's, as the running daemon
//! sees it; what `doctor --audit` asks.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::ApiState;
use super::problem::Problem;
use crate::instance::trace::Trace;
use crate::provision::audit::Audit;
use crate::provision::errors::AcquireError;

/// What was found.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AuditAnswer {
    /// Whether nothing is there, or nothing any more, that should not be.
    clean: bool,
    /// What was nobody's.
    found: Vec<TraceAnswer>,
    /// What of it could not be taken down; null when nothing was to be.
    left: Option<Vec<TraceAnswer>>,
    /// What could not be searched, and why.
    not_searched: Vec<String>,
}

/// One thing.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TraceAnswer {
    /// process, mount, netns, veth, cgroup, directory, container, nft, database, image, route, job or record.
    #[schema(examples("veth"))]
    kind: &'static str,
    /// The instance's name, or its address; of an image, the golden's name.
    #[schema(examples("4irtg5lio2z5"))]
    owner: String,
    /// Which one.
    #[schema(examples("dm-4irtg5lio2z5"))]
    what: String,
}

impl From<Trace> for TraceAnswer {
    fn from(trace: Trace) -> Self {
        Self { kind: trace.kind.as_str(), owner: trace.owner.to_string(), what: trace.what }
    }
}

impl AuditAnswer {
    /// For a host where no daemon ever ran.
    pub(crate) fn nothing(mend: bool) -> Self {
        Audit { left: mend.then(Vec::new), ..Audit::default() }.into()
    }
}

impl From<Audit> for AuditAnswer {
    fn from(audit: Audit) -> Self {
        let all = |traces: Vec<Trace>| traces.into_iter().map(TraceAnswer::from).collect();
        Self {
            clean: audit.is_clean(),
            found: all(audit.found),
            left: audit.left.map(all),
            not_searched: audit.not_searched,
        }
    }
}

/// Searches this host for what is nobody's.
///
/// Processes, mounts, namespaces, interfaces, cgroups, directories, containers,
/// firewall entries, databases, routes and jobs without a record, records whose
/// instance is not there, and images of published goldens that no snapshot needs.
/// Takes a second.
#[utoipa::path(get, path = "/api/v1/audit", tag = "pool", operation_id = "audit", responses(
    (status = 200, description = "What was found", body = AuditAnswer),
    (status = 500, description = "The search ended without an answer")
))]
pub(super) async fn look(State(api): State<ApiState>) -> Result<Json<AuditAnswer>, Problem> {
    audit(&api, false).await
}

/// Searches this host for what is nobody's, and takes it down.
#[utoipa::path(post, path = "/api/v1/audit", tag = "pool", operation_id = "mend", responses(
    (status = 200, description = "What was found, and what of it is left", body = AuditAnswer),
    (status = 500, description = "The search ended without an answer")
))]
pub(super) async fn mend(State(api): State<ApiState>) -> Result<Json<AuditAnswer>, Problem> {
    audit(&api, true).await
}

/// Goes on when its client hangs up: what is taken down is taken down whole.
async fn audit(api: &ApiState, mend: bool) -> Result<Json<AuditAnswer>, Problem> {
    let auditor = Arc::clone(&api.auditor);
    let tasks = api.provisioner.lifecycle().tasks();
    let audited = tasks.spawn(async move { auditor.audit(mend).await }).await;
    let audited = audited.map_err(|_| Problem::from(AcquireError::Lost))?;
    Ok(Json(audited.into()))
}
