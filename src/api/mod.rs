//! The REST API: requests in, calls to provisioning, JSON out.
//!
//! Called by the listener for every request that is not a shop's; [`router`] is
//! also what tests drive. Holds no state of its own. Every error is
//! `application/problem+json`; the status comes from [`problem`] alone.
//!
//! Layers, from the outside: the request's span, deadline and error body
//! ([`request`]), pages of other sites ([`cors`]), who may ask ([`access`]).
//!
//! Not responsible for: the rules of handing out ([`crate::provision`]).

mod access;
mod cors;
mod demo;
mod dto;
mod extract;
mod health;
mod limits;
mod pool;
pub mod problem;
mod request;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{delete, get, post};
use http::{Method, Uri};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;

pub use self::access::{Access, Door};
use self::problem::Problem;
use crate::client::TrustedProxies;
use crate::config::Origins;
use crate::pool::PoolStatus;
use crate::provision::Provisioner;
use crate::shutdown::Phase;

/// What the handlers stand on.
#[derive(Clone)]
pub struct ApiState {
    /// Hands out and takes back.
    pub provisioner: Arc<Provisioner>,
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

/// The API as a service.
pub fn router(state: ApiState) -> Router {
    Router::new()
        .route("/api/v1/demo", get(demo::list))
        .route("/api/v1/demo/acquire", post(demo::acquire))
        .route("/api/v1/demo/{id}", delete(demo::release).get(demo::show))
        .route("/api/v1/demo/{id}/extend", post(demo::extend))
        .route("/api/v1/pool/stats", get(pool::stats))
        .route("/health", get(health::health))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::prometheus))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(state.clone(), access::check))
        .layer(from_fn_with_state(state.clone(), cors::around))
        .layer(from_fn(request::around))
        .with_state(state)
}

async fn unknown_path(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(100).collect();
    Problem::not_found(format!("there is nothing at {path}"))
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(100).collect();
    Problem::method_not_allowed(format!("{path} does not take {method}; see Allow for what it takes"))
}
