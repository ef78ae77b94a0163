//! The built-in reverse proxy: a visitor's request to the shop it names.
//!
//! Called by the listener for each request whose Host is below BASE_DOMAIN.
//! Reads the [`MemoryRoutes`], changes nothing. Bodies stream both ways as they
//! come; an upgrade (websocket or other) becomes two byte streams.
//!
//! ```text
//! unknown label 404   ended 410   no answer 502   else the shop's own answer
//! ```
//!
//! Invariants: nothing a client writes about forwarding reaches a shop, through
//! trusted proxies or not; no
//! connection outlives its instance ([`connect`]).

mod connect;
mod headers;
pub mod host;
mod pages;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, StatusCode, Uri, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use self::connect::Connector;
pub use self::headers::PublicFace;
use self::pages::Page;
use crate::client::{TrustedProxies, hops};
use crate::id::InstanceId;
use crate::metrics;
use crate::route::memory::{Lookup, MemoryRoutes};

/// How long an unused connection to a shop is kept. Below the golden's nginx
/// `keepalive_timeout` (5 s), so that the shop never closes one just when the
/// next request goes out on it.
const IDLE: Duration = Duration::from_secs(3);

/// Connections kept to one shop: what a browser opens at once.
const IDLE_PER_SHOP: usize = 8;

/// The proxy; clones share its connections.
#[derive(Debug, Clone)]
pub struct Proxy {
    routes: Arc<MemoryRoutes>,
    face: PublicFace,
    trusted: TrustedProxies,
    client: Client<Connector, Body>,
}

impl Proxy {
    /// A proxy on these routes.
    #[must_use]
    pub fn new(routes: Arc<MemoryRoutes>, face: PublicFace, trusted: TrustedProxies) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_PER_SHOP)
            .set_host(false)
            .build(Connector::new(Arc::clone(&routes)));
        Self { routes, face, trusted, client }
    }

    /// Answers a request to the shop with this label; `host` is the authority
    /// as the client wrote it.
    pub async fn handle(&self, request: Request<Body>, label: &str, host: &str, peer: IpAddr) -> Response {
        let response = self.answer(request, label, host, peer).await;
        metrics::proxied(response.status().as_u16());
        response
    }

    async fn answer(&self, mut request: Request<Body>, label: &str, host: &str, peer: IpAddr) -> Response {
        // With two Hosts the shop might read the other one.
        let one_host = request.headers().get_all(HOST).iter().count() <= 1;
        let Ok(host_value) = HeaderValue::from_str(host) else { return Page::BadRequest.answer(host) };
        if !one_host || request.method() == Method::CONNECT {
            return Page::BadRequest.answer(host);
        }
        let route = match self.routes.lookup(&label.to_ascii_lowercase()) {
            Lookup::Found(route) => route,
            Lookup::Gone => return Page::Gone.answer(host),
            Lookup::Unknown => return Page::Unknown.answer(host),
        };
        let wants_upgrade = headers::upgrade_of(request.headers()).is_some();
        let visitor = wants_upgrade.then(|| hyper::upgrade::on(&mut request));
        let hops = hops(peer, request.headers(), &self.trusted);
        headers::to_upstream(request.headers_mut(), &host_value, &hops, &self.face);
        *request.uri_mut() = upstream_uri(&route.id, request.uri());
        *request.version_mut() = Version::HTTP_11;
        match self.client.request(request).await {
            Ok(response) => finish(response.map(Body::new), visitor, host),
            Err(error) if route.gone.is_cancelled() => {
                tracing::debug!(instance_id = %route.id, error = %crate::error::Chain(&error), "shop ended");
                Page::Gone.answer(host)
            }
            Err(error) => {
                // Not a warning: a visitor who leaves looks the same.
                tracing::info!(instance_id = %route.id, error = %crate::error::Chain(&error), "shop does not answer");
                Page::Silent.answer(host)
            }
        }
    }
}

/// The shop's answer, made the visitor's.
fn finish(mut response: Response, visitor: Option<OnUpgrade>, host: &str) -> Response {
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    match (switching, visitor) {
        (true, Some(visitor)) => {
            let shop = hyper::upgrade::on(&mut response);
            tokio::spawn(tunnel(visitor, shop));
        }
        // Nobody asked for it, so what follows on the wire is no HTTP.
        (true, None) => return Page::Silent.answer(host),
        (false, _) => {}
    }
    headers::to_visitor(response.headers_mut(), switching);
    response
}

/// Carries bytes both ways until either end is done.
async fn tunnel(visitor: OnUpgrade, shop: OnUpgrade) {
    let (Ok(visitor), Ok(shop)) = tokio::join!(visitor, shop) else { return };
    let (mut visitor, mut shop) = (TokioIo::new(visitor), TokioIo::new(shop));
    // An end that goes away is how every websocket ends.
    let _ = tokio::io::copy_bidirectional(&mut visitor, &mut shop).await;
}

/// The instance id as authority (see [`connect`]), the path as it came.
fn upstream_uri(id: &InstanceId, uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(http::uri::Scheme::HTTP);
    parts.authority = id.as_str().parse().ok();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).expect("an instance id is a valid authority")
}
