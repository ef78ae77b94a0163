//! Requests for shops of other nodes, passed on to the proxy there.
//!
//! ```text
//! label -> record in the shared store -> its node -> that node's daemon, with a pass
//! lost 410   over 410   no such instance 404   its node is not there now 503
//! ```
//!
//! Bodies stream both ways and upgrades are tunnelled, as to a shop of this host.
//! What the shop and the banner say is that node's; here only the way is added.
//! Each request has a connection of its own: one that is kept would be closed by a
//! daemon that is stopped just when the next request goes out on it. A daemon that
//! is being started again is waited for.
//!
//! Invariants: a request that came from a node is never passed on; a client's word
//! about forwarding is replaced before it is signed; connections end when their
//! node is lost.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Uri};
use hyper::body::Body as _;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::connect::UpstreamIo;
use super::host::Host;
use super::pages::Page;
use super::upload::{self, Late, Upload};
use super::{Proxy, finish};
use crate::error::Chain;
use crate::id::{InstanceId, NodeName};
use crate::metrics;
use crate::node::pass::{HEADER, Kind};
use crate::peers::{CONNECT_DEADLINE, Peers, Way};
use crate::route::memory::Route;
use crate::store::{Store, StoreError};

/// How long a node that does not take connections is tried: a daemon that is
/// started again listens within this time, and a lost one is known to be.
const HOLD: Duration = Duration::from_secs(10);

/// How long a node is waited for that has not been heard of yet, or not again: it
/// reports each second, and what it has ready can be claimed before that is read here.
const HEARD_OF: Duration = Duration::from_secs(3);

/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// How often a request without a body is sent again whose connection broke: its
/// node's daemon was stopped with it in hand.
const AGAIN: u32 = 3;

/// Beyond the other proxy's own patience, whose answer says more.
const MARGIN: Duration = Duration::from_secs(5);

/// Instances whose node is remembered, some hundred bytes each; an instance stays
/// where it is. When all places are taken, it is begun anew.
const REMEMBERED: usize = 16_384;

/// The way to shops of other nodes.
#[derive(Debug)]
pub(super) struct Elsewhere {
    peers: Arc<Peers>,
    store: Arc<dyn Store>,
    client: Client<NodeConnector, Upload>,
    /// A std lock: held for one map operation, never across an await.
    owners: Mutex<HashMap<InstanceId, NodeName>>,
}

impl Elsewhere {
    pub(super) fn new(peers: Arc<Peers>, store: Arc<dyn Store>) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(0)
            .set_host(false)
            .build(NodeConnector(Arc::clone(&peers)));
        Self { peers, store, client, owners: Mutex::default() }
    }

    /// The node that has an instance, if it is another one that is there.
    async fn owner(&self, id: &InstanceId) -> Result<NodeName, Page> {
        let known = self.owners.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        let node = match known {
            Some(node) if !matches!(self.peers.way_to(&node), Way::Lost) => node,
            // Whether the shop is lost with its node, its record says.
            _ => self.look_up(id).await?,
        };
        let give_up = Instant::now() + HEARD_OF;
        loop {
            match self.peers.way_to(&node) {
                Way::To { .. } => return Ok(node),
                Way::Lost | Way::Unknown if Instant::now() < give_up => tokio::time::sleep(PAUSE).await,
                Way::Lost => return Err(Page::Lost),
                Way::Unknown => return Err(Page::Away),
            }
        }
    }

    async fn look_up(&self, id: &InstanceId) -> Result<NodeName, Page> {
        let silent = |error: StoreError| {
            tracing::info!(instance_id = %id, error = %Chain(&error), "no word of whose node a shop is on");
            Page::Away
        };
        let Some(record) = self.store.get(id).await.map_err(silent)? else {
            return Err(match self.store.has_ended(id).await.map_err(silent)? {
                true => Page::Gone,
                false => Page::Unknown,
            });
        };
        if record.lost_at.is_some() {
            return Err(Page::Lost);
        }
        if record.state.is_final() {
            return Err(Page::Gone);
        }
        if record.node == *self.peers.own() {
            return Err(Page::Unknown);
        }
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        if owners.len() >= REMEMBERED {
            owners.clear();
        }
        owners.insert(id.clone(), record.node.clone());
        Ok(record.node)
    }

    /// What there is to say when nothing came back.
    fn silence(&self, node: &NodeName) -> Page {
        match self.peers.way_to(node) {
            Way::Lost => Page::Lost,
            Way::To { .. } | Way::Unknown => Page::Away,
        }
    }
}

impl Proxy {
    /// Answers a request to a shop that is not on this host.
    pub(super) async fn pass_on(
        &self,
        mut request: Request<Body>,
        label: &str,
        (host, host_value): (&Host, &HeaderValue),
        peer: IpAddr,
    ) -> Result<Response, Page> {
        let elsewhere = self.elsewhere.as_ref().ok_or(Page::Unknown)?;
        let id: InstanceId = label.parse().map_err(|_| Page::Unknown)?;
        let node = elsewhere.owner(&id).await?;
        if upload::says_too_large(request.headers(), self.body_max) {
            return Err(Page::TooLarge);
        }
        let visitor = self.made_ours(&mut request, host_value, peer);
        *request.uri_mut() = node_uri(&node, request.uri());
        let pass =
            elsewhere.peers.pass(Kind::Visit, &node, request.method(), request.uri(), request.headers());
        request.headers_mut().insert(HEADER, pass);
        let may_repeat = visitor.is_none()
            && matches!(*request.method(), Method::GET | Method::HEAD)
            && request.body().is_end_stream();
        let repeats = if may_repeat { AGAIN } else { 0 };
        let answered = self.exchange_elsewhere(elsewhere, request, &node, repeats).await;
        metrics::node_forwarded(answered.is_ok());
        finish(answered?, visitor, host)
    }

    async fn exchange_elsewhere(
        &self,
        elsewhere: &Elsewhere,
        request: Request<Body>,
        node: &NodeName,
        repeats: u32,
    ) -> Result<Response, Page> {
        let (parts, body) = request.into_parts();
        let (mut body, mut left) = (Some(body), repeats);
        loop {
            let (upload, mut progress) = Upload::new(body.take().unwrap_or_default(), self.body_max);
            let mut attempt = Request::new(upload);
            *attempt.method_mut() = parts.method.clone();
            *attempt.uri_mut() = parts.uri.clone();
            *attempt.headers_mut() = parts.headers.clone();
            let asked = elsewhere.client.request(attempt);
            match progress.wait(asked, self.patience + MARGIN).await {
                Ok(Ok(response)) => return Ok(response.map(Body::new)),
                Ok(Err(_)) if progress.too_large() => return Err(Page::TooLarge),
                Ok(Err(error)) => {
                    tracing::info!(node = %node, error = %Chain(&error), "shop's node does not answer");
                    if left == 0 || matches!(elsewhere.peers.way_to(node), Way::Lost) {
                        return Err(elsewhere.silence(node));
                    }
                    left -= 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(Late::Visitor) => return Err(Page::Stalled),
                Err(Late::Shop) => {
                    tracing::info!(node = %node, "shop's node does not answer in time");
                    return Err(Page::Late);
                }
            }
        }
    }
}

/// Opens connections to nodes, by name.
#[derive(Debug, Clone)]
struct NodeConnector(Arc<Peers>);

impl tower::Service<Uri> for NodeConnector {
    type Response = UpstreamIo;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<UpstreamIo>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (peers, node) = (Arc::clone(&self.0), uri.host().unwrap_or_default().parse::<NodeName>());
        Box::pin(async move {
            let node = node.map_err(io::Error::other)?;
            let give_up = Instant::now() + HOLD;
            loop {
                let Way::To { address, gone, .. } = peers.way_to(&node) else {
                    return Err(io::ErrorKind::NotConnected.into());
                };
                let connected = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(&address)).await;
                let error = match connected {
                    Ok(Ok(stream)) => {
                        stream.set_nodelay(true)?;
                        return Ok(UpstreamIo::new(stream, way(gone)));
                    }
                    Ok(Err(error)) => error,
                    Err(_) => io::ErrorKind::TimedOut.into(),
                };
                if Instant::now() >= give_up {
                    return Err(error);
                }
                tokio::time::sleep(PAUSE).await;
            }
        })
    }
}

/// A node as a connection's other end: it is no shop that could fall asleep.
fn way(gone: tokio_util::sync::CancellationToken) -> Route {
    Route {
        id: InstanceId::random(),
        upstream: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        epoch: 1,
        activity: Arc::default(),
        gone,
    }
}

/// The node's name as authority, the path as it came.
fn node_uri(node: &NodeName, uri: &Uri) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(http::uri::Scheme::HTTP);
    parts.authority = node.as_str().parse().ok();
    parts.path_and_query =
        Some(uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")));
    Uri::from_parts(parts).expect("a node's name is a valid authority")
}
