//! The built-in reverse proxy: a visitor's request to the shop it names.
//!
//! Called by the listener for each request whose Host is below BASE_DOMAIN.
//! Reads the [`MemoryRoutes`]; a shop that sleeps it has woken, and holds the request
//! meanwhile. Bodies stream both ways as they
//! come; an upgrade (websocket or other) becomes two byte streams.
//!
//! ```text
//! unknown label 404   ended 410   no answer 502   none in time 504   does not wake 503
//! lost with its node 410   its node is away 503
//! body too large 413  body stopped 408            made anew meanwhile 503
//! else the shop's own answer
//! ```
//!
//! Invariants: nothing a client writes about forwarding reaches a shop, through
//! trusted proxies or not, and no Host but the shop's own ([`host`]); nothing a
//! shop says reaches further than its own host ([`own`]); no connection outlives
//! its instance ([`connect`]).

pub(crate) mod banner;
mod connect;
mod elsewhere;
pub(crate) mod headers;
pub mod host;
pub(crate) mod own;
mod pages;
mod upload;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::header::CONNECTION;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, StatusCode, Uri, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use self::banner::Banner;
use self::connect::Connector;
use self::elsewhere::Elsewhere;
pub use self::headers::PublicFace;
use self::host::Host;
use self::pages::{Page, Reader};
use self::upload::{Late, Upload};
use crate::client::{TrustedProxies, hops};
use crate::connections::Place;
use crate::error::Chain;
use crate::lang::Lang;
use crate::metrics;
use crate::peers::{FromNode, Peers};
use crate::provision::Provisioner;
use crate::route::memory::{Lookup, MemoryRoutes, Route};
use crate::store::Store;

/// How long an unused connection to a shop is kept. Below the golden's nginx
/// `keepalive_timeout` (5 s), so that the shop never closes one just when the
/// next request goes out on it.
const IDLE: Duration = Duration::from_secs(3);

/// Connections kept to one shop: what a browser opens at once.
const IDLE_PER_SHOP: usize = 8;

/// What a proxy stands on.
#[derive(Debug)]
pub struct Parts {
    /// Where the shops are.
    pub routes: Arc<MemoryRoutes>,
    /// What visitors see of this service.
    pub face: PublicFace,
    /// Whose word about their callers is taken.
    pub trusted: TrustedProxies,
    /// The largest request body.
    pub body_max: u64,
    /// How long nothing may happen before a shop's answer begins.
    pub patience: Duration,
    /// Who knows until when a shop lives; with it the pages have the banner.
    pub banner: Option<Arc<dyn Store>>,
    /// Who wakes shops that sleep; none where none ever sleeps.
    pub waker: Option<Arc<Provisioner>>,
    /// The landing page's address, if there is one: where visitors get another
    /// shop, and see to the one they have.
    pub landing: Option<String>,
    /// The other nodes, and the store that is shared with them.
    pub elsewhere: Option<(Arc<Peers>, Arc<dyn Store>)>,
}

/// The proxy; clones share its connections.
#[derive(Debug, Clone)]
pub struct Proxy {
    routes: Arc<MemoryRoutes>,
    face: PublicFace,
    trusted: TrustedProxies,
    body_max: u64,
    patience: Duration,
    banner: Option<Arc<Banner>>,
    waker: Option<Arc<Provisioner>>,
    landing: Option<Arc<str>>,
    elsewhere: Option<Arc<Elsewhere>>,
    client: Client<Connector, Upload>,
}

impl Proxy {
    /// Puts a proxy together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { routes, face, trusted, body_max, patience, banner, waker, landing, elsewhere } = parts;
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_PER_SHOP)
            .set_host(false)
            .build(Connector::new(Arc::clone(&routes)));
        let banner = banner.map(|store| Arc::new(Banner::new(store, landing.clone())));
        let landing = landing.map(Into::into);
        let elsewhere = elsewhere.map(|(peers, store)| Arc::new(Elsewhere::new(peers, store)));
        Self { routes, face, trusted, body_max, patience, banner, waker, landing, elsewhere, client }
    }

    /// Answers a request to the shop with this label.
    pub async fn handle(&self, request: Request<Body>, label: &str, host: &Host, peer: IpAddr) -> Response {
        let lang = Lang::of(request.headers());
        let response = match self.answer(request, label, host, peer).await {
            Ok(response) => response,
            Err(page) => page.answer(host.as_str(), self.reader(lang)),
        };
        metrics::proxied(response.status().as_u16());
        response
    }

    /// Answers a request of which nobody knows for certain whose it is; what
    /// follows it on its connection may be as unclear.
    pub fn refuse(&self) -> Response {
        let mut response = Page::BadRequest.answer("", self.reader(Lang::En));
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }

    fn reader(&self, lang: Lang) -> Reader<'_> {
        Reader { lang, landing: self.landing.as_deref() }
    }

    async fn answer(
        &self,
        mut request: Request<Body>,
        label: &str,
        host: &Host,
        peer: IpAddr,
    ) -> Result<Response, Page> {
        let Ok(host_value) = HeaderValue::from_str(host.as_str()) else { return Ok(self.refuse()) };
        if request.method() == Method::CONNECT {
            return Ok(self.refuse());
        }
        let path = request.uri().path().to_owned();
        if let Some(own) = self.banners_own(request.method(), &path, label).await {
            return Ok(own);
        }
        let route = match self.route_of(label).await {
            // What a node has passed on goes no further.
            Err(Page::Unknown)
                if self.elsewhere.is_some() && request.extensions().get::<FromNode>().is_none() =>
            {
                return self.pass_on(request, label, (host, &host_value), peer).await;
            }
            route => route?,
        };
        route.activity.touch();
        if upload::says_too_large(request.headers(), self.body_max) {
            return Err(Page::TooLarge);
        }
        let lang = Lang::of(request.headers());
        let method = request.method().clone();
        let with_banner =
            self.banner.as_ref().filter(|banner| banner.prepare(&method, request.headers_mut()));
        let visitor = self.made_ours(&mut request, &host_value, peer);
        *request.uri_mut() = upstream_uri(&route, request.uri());
        let answer = finish(self.exchange(request, &route).await?, visitor, host)?;
        Ok(match with_banner {
            Some(banner) => banner.put_on(answer, &path, &route.id, lang).await,
            None => answer,
        })
    }

    /// What the banner answers itself. Pages that are left open ask it again and again,
    /// so that keeps no shop awake and wakes none.
    async fn banners_own(&self, method: &Method, path: &str, label: &str) -> Option<Response> {
        let banner = self.banner.as_ref().filter(|_| banner::is_own(path))?;
        let id = match self.routes.lookup(label) {
            Lookup::Found(route) => route.id,
            Lookup::Asleep(id) => id,
            Lookup::Gone | Lookup::Unknown => return None,
        };
        let mut own = banner.answer(method, path, &id).await?;
        headers::hide_from_robots(own.headers_mut());
        Some(own)
    }

    /// Where a label leads; a shop that sleeps is woken first.
    async fn route_of(&self, label: &str) -> Result<Route, Page> {
        let mut lookup = self.routes.lookup(label);
        if let (Lookup::Asleep(id), Some(waker)) = (&lookup, &self.waker) {
            let woken = waker.wake(id).await;
            if let Err(error) = woken {
                tracing::info!(instance_id = %id, error = %Chain(&error), "visitor's shop does not wake");
            }
            lookup = self.routes.lookup(label);
        }
        match lookup {
            Lookup::Found(route) => Ok(route),
            Lookup::Asleep(_) => Err(Page::Asleep),
            Lookup::Gone => Err(Page::Gone),
            Lookup::Unknown => Err(Page::Unknown),
        }
    }

    /// Rewrites a request for whoever comes next; answers the visitor's side of the
    /// upgrade that it asks for, if it does.
    fn made_ours(&self, request: &mut Request<Body>, host: &HeaderValue, peer: IpAddr) -> Option<Visitor> {
        let wants_upgrade = headers::upgrade_of(request.headers()).is_some();
        let visitor = wants_upgrade.then(|| Visitor {
            place: request.extensions().get::<Arc<Place>>().cloned(),
            stream: hyper::upgrade::on(&mut *request),
        });
        let hops = match request.extensions().get::<FromNode>() {
            Some(from) => from.way.clone(),
            None => hops(peer, request.headers(), &self.trusted),
        };
        headers::to_upstream(request.headers_mut(), host, &hops, &self.face);
        *request.version_mut() = Version::HTTP_11;
        visitor
    }

    /// Asks the shop.
    async fn exchange(&self, request: Request<Body>, route: &Route) -> Result<Response, Page> {
        let (parts, body) = request.into_parts();
        let (body, mut progress) = Upload::new(body, self.body_max);
        let asked = self.client.request(Request::from_parts(parts, body));
        match progress.wait(asked, self.patience).await {
            Ok(Ok(response)) => Ok(response.map(Body::new)),
            Ok(Err(_)) if progress.too_large() => Err(Page::TooLarge),
            Ok(Err(error)) if route.gone.is_cancelled() => {
                tracing::debug!(instance_id = %route.id, error = %Chain(&error), "shop ended");
                Err(match self.routes.lookup(route.id.as_str()) {
                    Lookup::Found(_) | Lookup::Asleep(_) => Page::MadeAnew,
                    Lookup::Gone | Lookup::Unknown => Page::Gone,
                })
            }
            Ok(Err(error)) => {
                // Not a warning: a visitor who leaves looks the same.
                tracing::info!(instance_id = %route.id, error = %Chain(&error), "shop does not answer");
                Err(Page::Silent)
            }
            Err(Late::Visitor) => Err(Page::Stalled),
            Err(Late::Shop) => {
                tracing::info!(instance_id = %route.id, "shop does not answer in time");
                Err(Page::Late)
            }
        }
    }
}

/// A visitor who asks for an upgrade.
#[derive(Debug)]
struct Visitor {
    stream: OnUpgrade,
    /// Of the connection; its task ends with the upgrade, the connection does not.
    place: Option<Arc<Place>>,
}

/// The shop's answer, made the visitor's.
fn finish(mut response: Response, visitor: Option<Visitor>, host: &Host) -> Result<Response, Page> {
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    match (switching, visitor) {
        (true, Some(visitor)) => {
            let shop = hyper::upgrade::on(&mut response);
            tokio::spawn(tunnel(visitor, shop));
        }
        // Nobody asked for it, so what follows on the wire is no HTTP.
        (true, None) => return Err(Page::Silent),
        (false, _) => {}
    }
    headers::to_visitor(response.headers_mut(), switching);
    own::keep_to(response.headers_mut(), host.name());
    Ok(response)
}

/// Carries bytes both ways until either end is done.
async fn tunnel(Visitor { stream, place }: Visitor, shop: OnUpgrade) {
    let (Ok(visitor), Ok(shop)) = tokio::join!(stream, shop) else { return };
    let (mut visitor, mut shop) = (TokioIo::new(visitor), TokioIo::new(shop));
    // An end that goes away is how every websocket ends.
    let _ = tokio::io::copy_bidirectional(&mut visitor, &mut shop).await;
    drop(place);
}

/// The instance id and the route's epoch as authority (see [`connect`]), the path
/// as it came.
fn upstream_uri(route: &Route, uri: &Uri) -> Uri {
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(http::uri::Scheme::HTTP);
    parts.authority = format!("{}:{}", route.id, route.epoch).parse().ok();
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).expect("an instance id and a number are a valid authority")
}
