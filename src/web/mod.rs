//! Pages for people, on the base domain: what visitors see.
//!
//! The router is put beside the API's ([`crate::api::router`]), behind the same
//! span and request id; shops' hosts never get here. Also the ground that the
//! operator's pages stand on: [`page`] (layout, policy, answers), [`assets`] (what
//! is loaded), [`cookie`] (signed values), [`origin`] (whose form it is); texts
//! are tables of [`crate::lang`].
//!
//! Invariants: a page loads nothing from elsewhere and runs no script that is
//! not a file of ours; it works without any script; what changes something is a
//! form of our own origin; texts are in every language.

mod acquire;
pub(crate) mod assets;
pub mod cookie;
mod embed;
mod holder;
mod keep;
mod landing;
mod line;
mod message;
pub(crate) mod origin;
pub(crate) mod page;
mod visitor;
mod wish;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};

use self::line::Lines;
use self::message::Say;
use self::page::Shell;
pub use self::page::Site;
use self::wish::Module;
use crate::api::Door;
use crate::api::problem::Problem;
use crate::api::status::StatusHub;
use crate::client::TrustedProxies;
use crate::config::Landing;
use crate::identity::login;
use crate::instance::Access;
use crate::provision::Provisioner;

/// The largest form: three short fields.
const FORM_MAX: usize = 4096;

/// What the pages stand on.
#[derive(Debug, Clone)]
pub struct WebState {
    site: Arc<Site>,
    provisioner: Arc<Provisioner>,
    status: Arc<StatusHub>,
    trusted_proxies: TrustedProxies,
    landing: Landing,
    lines: Arc<Lines>,
}

impl WebState {
    /// Pages of that site, and nobody in a line.
    #[must_use]
    pub fn new(
        site: Arc<Site>,
        provisioner: Arc<Provisioner>,
        status: Arc<StatusHub>,
        edges: (TrustedProxies, Landing),
    ) -> Self {
        let (trusted_proxies, landing) = edges;
        Self { site, provisioner, status, trusted_proxies, landing, lines: Arc::default() }
    }
}

/// The pages as a service; what they load is served at both doors, they
/// themselves where visitors are.
pub fn router(state: WebState) -> Router {
    let visitors = match state.landing {
        Landing::Off => Router::new(),
        Landing::On => Router::new()
            .route("/", get(landing::show))
            .route("/demo", post(acquire::click))
            .route("/wait", get(acquire::wait))
            .route("/demo/{id}", get(holder::show))
            .route("/demo/{id}/status", get(holder::watch))
            .route("/demo/{id}/save", post(keep::save))
            .route("/demo/{id}/{act}", post(holder::act))
            .route("/saved/{id}", get(keep::show).post(keep::open))
            .route("/embed", get(embed::snippets))
            .route("/embed/button", get(embed::button))
            .layer(DefaultBodyLimit::max(FORM_MAX))
            .layer(from_fn_with_state(state.clone(), own_forms))
            .layer(from_fn(for_visitors))
            .with_state(state),
    };
    visitors.merge(assets::router())
}

/// Refuses forms that another origin's page has sent.
async fn own_forms(State(web): State<WebState>, request: Request, next: Next) -> Response {
    if origin::is_refused(&request) {
        return message::say(&web.site, Shell::of(request.headers()), Say::Foreign);
    }
    next.run(request).await
}

/// A link that signs in, to that module's page if one is named; to the login form
/// where the golden takes no such links.
fn login_link(access: &Access, module: Option<&Module>, now: Timestamp) -> SecretString {
    let Some(one_click) = &access.one_click else { return access.admin_url.clone().into() };
    let link = login::link(one_click, now);
    match module {
        Some(module) => format!("{}&module={}", link.expose_secret(), module.as_str()).into(),
        None => link,
    }
}

/// Pages of visitors are not at the operator's door.
async fn for_visitors(request: Request, next: Next) -> Response {
    match request.extensions().get::<Door>() {
        Some(Door::Admin) => Problem::not_found("visitors' pages are at LISTEN").into_response(),
        _ => next.run(request).await,
    }
}
