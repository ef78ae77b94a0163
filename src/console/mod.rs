//! `/admin`: the operator's console, pages over the API.
//!
//! The router is put beside the API's, with the visitors' pages. All it shows and
//! does is in the public API; here it is drawn, and forms become the same calls.
//!
//! ```text
//! /admin                  gauges, charts, target, drain      /admin/sign-in, /admin/sign-out
//! /admin/instances[/ID]   list, logs, release, extend, reset, hibernate, wake, log in
//! /admin/snapshots        snapshots, goldens, tasks
//! /admin/saved            shops that their visitors have kept
//! /admin/limits           clients near a limit
//! /admin/events           the last changes
//! /admin/live             the API's event stream, for the pages' script
//! ```
//!
//! Invariants: nobody but an operator ([`session`]) sees or does anything; with an
//! ADMIN_LISTEN it is there only; what changes something is a form of our own
//! origin; every page is whole without a script, which only has it read again when
//! something has happened.

mod act;
mod chart;
mod instances;
mod overview;
mod pages;
mod saved;
mod session;
mod snapshots;
mod texts;
mod top;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use http::{HeaderName, Method, StatusCode, header};
use jiff::Timestamp;

use self::session::Auth;
use crate::api::problem::Problem;
use crate::api::{ApiState, Door, Peer, chronicle};
use crate::web::{Site, origin};

/// What the pages stand on.
#[derive(Debug, Clone)]
pub(crate) struct Console {
    api: ApiState,
    site: Arc<Site>,
    auth: Arc<Auth>,
}

/// The console as a service; `header` is ADMIN_AUTH_HEADER.
pub fn router(api: ApiState, site: Arc<Site>, header: Option<HeaderName>) -> Router {
    let auth = Arc::new(Auth::new(&site, header));
    let console = Console { api: api.clone(), site, auth };
    let live = Router::new().route("/admin/live", get(chronicle::events_stream)).with_state(api);
    let inside = Router::new()
        .route("/admin", get(overview::show))
        .route("/admin/instances", get(instances::list))
        .route("/admin/instances/{id}", get(instances::show))
        .route("/admin/instances/{id}/{verb}", post(act::instance))
        .route("/admin/pool/{verb}", post(act::pool))
        .route("/admin/snapshots", get(snapshots::show))
        .route("/admin/snapshots/{verb}", post(act::snapshots))
        .route("/admin/saved", get(saved::show))
        .route("/admin/saved/{verb}", post(saved::act))
        .route("/admin/limits", get(pages::limits))
        .route("/admin/limits/clear", post(act::clear))
        .route("/admin/events", get(pages::events))
        .route("/admin/sign-out", post(pages::sign_out))
        .with_state(console.clone())
        .merge(live)
        .layer(from_fn_with_state(console.clone(), operators_only));
    let entrance =
        Router::new().route("/admin/sign-in", get(pages::entrance).post(pages::sign_in)).with_state(console);
    inside.merge(entrance).layer(from_fn(origin::guard)).layer(from_fn(at_its_door))
}

/// It is not at LISTEN when there is an ADMIN_LISTEN.
async fn at_its_door(request: Request, next: Next) -> Response {
    match request.extensions().get::<Door>() {
        Some(Door::Public) => Problem::not_found("there is nothing here").into_response(),
        _ => next.run(request).await,
    }
}

/// Whose connection it is; without a socket, as in some tests, nobody's in particular.
fn peer_of(request: &Request) -> IpAddr {
    request.extensions().get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip())
}

/// Sends everybody else to the entrance.
async fn operators_only(State(console): State<Console>, mut request: Request, next: Next) -> Response {
    let peer = peer_of(&request);
    let operator = console.auth.operator(&console.api, request.headers(), peer, Timestamp::now());
    match operator {
        Some(operator) => {
            request.extensions_mut().insert(operator);
            next.run(request).await
        }
        None if request.method() == Method::GET && request.uri().path() != "/admin/live" => {
            (StatusCode::SEE_OTHER, [(header::LOCATION, "/admin/sign-in")]).into_response()
        }
        None => Problem::token_missing().into_response(),
    }
}
