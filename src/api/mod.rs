//! The REST API: requests in, calls to provisioning, JSON out.
//!
//! Called by the listener for every request that is not a shop's; [`router`] is
//! also what tests drive. Holds no state of its own. Every error is
//! `application/problem+json`; the status comes from [`problem`] alone. Routes
//! and the OpenAPI document ([`document`]) are made from one list.
//!
//! Layers, from the outside: the request's span, deadline and error body
//! ([`request`]), pages of other sites ([`cors`]), who may ask ([`access`]).
//!
//! Not responsible for: the rules of handing out ([`crate::provision`]).

pub(crate) mod access;
mod audit;
pub mod chronicle;
mod cors;
mod demo;
mod dto;
mod extract;
mod goldens;
mod health;
pub(crate) mod instances;
mod limited;
mod limits;
pub(crate) mod logs;
pub(crate) mod nodes;
mod openapi;
mod pool;
pub mod problem;
mod request;
mod sleep;
mod snapshots;
pub mod status;
pub(crate) mod steer;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use http::{Method, Uri};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use self::access::{Access, Door};
pub(crate) use self::audit::AuditAnswer;
use self::chronicle::Chronicle;
pub use self::nodes::calls;
use self::problem::Problem;
use self::status::StatusHub;
use crate::client::TrustedProxies;
use crate::config::Origins;
use crate::nats::Link;
use crate::pool::PoolStatus;
use crate::promote::Desk;
use crate::provision::Provisioner;
use crate::provision::audit::Auditor;
use crate::shutdown::Phase;

/// What the handlers stand on.
#[derive(Clone)]
pub struct ApiState {
    /// Hands out and takes back.
    pub provisioner: Arc<Provisioner>,
    /// Searches the host.
    pub auditor: Arc<Auditor>,
    /// How the reconciler stands.
    pub pool: watch::Receiver<PoolStatus>,
    /// Where the daemon stands.
    pub phase: watch::Receiver<Phase>,
    /// Whose word about their callers is taken.
    pub trusted_proxies: TrustedProxies,
    /// Who may ask for what.
    pub access: Access,
    /// Whose pages may ask at all.
    pub cors_origins: Arc<Origins>,
    /// BASE_DOMAIN.
    pub base_domain: Arc<str>,
    /// Streams that watch an instance.
    pub status: Arc<StatusHub>,
    /// The last changes and the last hour.
    pub chronicle: Arc<Chronicle>,
    /// Takes orders about snapshots.
    pub desk: Desk,
    /// Whether NATS can be used; none when jobs stay in the process anyway.
    pub nats: Option<watch::Receiver<Link>>,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
}

impl std::fmt::Debug for ApiState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiState").finish_non_exhaustive()
    }
}

/// The other end of the connection that a request came by; an extension of the
/// request, absent in tests without a socket.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// The API as a service, and beside it `pages` for people, which see to it
/// themselves who may ask for what.
pub fn router(state: ApiState, pages: Router) -> Router {
    let (router, _) = routes().split_for_parts();
    router
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(state.clone(), access::check))
        .layer(from_fn_with_state(state.clone(), cors::around))
        .with_state(state)
        .merge(pages)
        .layer(from_fn(request::around))
}

/// The API as an OpenAPI 3.1 document.
#[must_use]
pub fn document() -> utoipa::openapi::OpenApi {
    let (_, document) = routes().split_for_parts();
    openapi::finish(document)
}

/// Every route, with its part of the document: there is no other way to add one.
fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::with_openapi(openapi::head())
        .routes(routes!(instances::list))
        .routes(routes!(demo::acquire))
        .routes(routes!(demo::show, demo::release))
        .routes(routes!(demo::extend))
        .routes(routes!(demo::reset))
        .routes(routes!(sleep::hibernate))
        .routes(routes!(sleep::wake))
        .routes(routes!(status::status))
        .routes(routes!(logs::show))
        .routes(routes!(pool::stats))
        .routes(routes!(audit::look, audit::mend))
        .routes(routes!(steer::targets, steer::set_target))
        .routes(routes!(steer::drain, steer::undrain))
        .routes(routes!(nodes::list))
        .routes(routes!(goldens::list))
        .routes(routes!(chronicle::events))
        .routes(routes!(chronicle::events_stream))
        .routes(routes!(chronicle::history))
        .routes(routes!(snapshots::list, snapshots::create))
        .routes(routes!(snapshots::prune))
        .routes(routes!(snapshots::remove))
        .routes(routes!(snapshots::verify))
        .routes(routes!(snapshots::promote))
        .routes(routes!(snapshots::tasks))
        .routes(routes!(snapshots::task))
        .routes(routes!(limited::show))
        .routes(routes!(limited::clear))
        .routes(routes!(tls::ask))
        .routes(routes!(health::health))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(health::prometheus))
        .routes(routes!(openapi::json))
        .routes(routes!(openapi::page))
}

async fn unknown_path(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(100).collect();
    Problem::not_found(format!("there is nothing at {path}"))
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(100).collect();
    Problem::method_not_allowed(format!("{path} does not take {method}; see Allow for what it takes"))
}
