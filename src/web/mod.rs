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

pub(crate) mod assets;
pub mod cookie;
mod landing;
pub(crate) mod origin;
pub(crate) mod page;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

pub use self::page::Site;
use crate::api::Door;
use crate::api::problem::Problem;
use crate::config::Landing;
use crate::provision::Provisioner;

/// What the pages stand on.
#[derive(Debug, Clone)]
pub struct WebState {
    /// What all pages of this service share.
    pub site: Arc<Site>,
    /// Hands out and takes back.
    pub provisioner: Arc<Provisioner>,
    /// Whether visitors get instances here.
    pub landing: Landing,
}

/// The pages as a service; what they load is served at both doors, they
/// themselves where visitors are.
pub fn router(state: WebState) -> Router {
    let visitors = match state.landing {
        Landing::Off => Router::new(),
        Landing::On => Router::new()
            .route("/", get(landing::show))
            .layer(from_fn(origin::guard))
            .layer(from_fn(for_visitors))
            .with_state(state),
    };
    visitors.merge(assets::router())
}

/// Pages of visitors are not at the operator's door.
async fn for_visitors(request: Request, next: Next) -> Response {
    match request.extensions().get::<Door>() {
        Some(Door::Admin) => Problem::not_found("visitors' pages are at LISTEN").into_response(),
        _ => next.run(request).await,
    }
}
