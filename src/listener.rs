//! A listener: API and shops on the same address, told apart by Host, or the API
//! alone on ADMIN_LISTEN.
//!
//! Called by [`crate::app`], once for each address. Accepts until told to stop,
//! then lets requests under way finish. Each connection is a task of its own, and
//! has a place ([`crate::connections`]); without one it is answered 503 and
//! closed.
//!
//! Invariants: what cannot be told for certain ends here with 400 (whose a
//! request is, where its body ends), so API and shops never read a request
//! differently; headers are bounded in time, size and number.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http::header::TRANSFER_ENCODING;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::api::{Door, Peer};
use crate::connections::{Connections, Place};
use crate::metrics;
use crate::proxy::Proxy;
use crate::proxy::host::{Host, Target, target};

/// How long a client may take for its request's headers, and a connection may
/// wait for its next request. Longer than any real one needs.
pub const HEADERS_DEADLINE: Duration = Duration::from_secs(30);

/// Bytes of a request's line and headers: what the shops' nginx takes at most
/// (`large_client_header_buffers`), so nothing that a shop would take is lost.
const HEADERS_BYTES_MAX: usize = 32 << 10;

/// Headers of a request; a browser behind two proxies sends some thirty.
const HEADERS_MAX: usize = 100;

/// A pause after accept has failed: out of file descriptors, most likely, and
/// some are freed at any moment.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What those without a place are told.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// How much is taken in at a time, and for how long.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// See [`HEADERS_DEADLINE`].
    pub headers: Duration,
    /// The places.
    pub connections: Arc<Connections>,
    /// How long requests under way may take at the end.
    pub drain: Duration,
}

/// Who answers what.
#[derive(Debug, Clone)]
pub struct Edges {
    /// For everything that is not a shop's.
    pub api: Router,
    /// For `<label>.<base_domain>`.
    pub proxy: Proxy,
    /// In lower case.
    pub base_domain: Arc<str>,
    /// Which of the addresses this is; shops are not at [`Door::Admin`].
    pub door: Door,
}

impl Edges {
    /// Answers one request.
    pub async fn answer(&self, mut request: http::Request<Body>, peer: SocketAddr) -> Response {
        let host = match Host::of(&request) {
            Ok(host) if is_plainly_framed(&request) => host,
            Ok(_) | Err(_) => return self.proxy.refuse(),
        };
        match target(&host, &self.base_domain) {
            Target::Shop(label) if self.door != Door::Admin => {
                self.proxy.handle(request, label, &host, peer.ip()).await
            }
            Target::Shop(_) | Target::Api => {
                request.extensions_mut().insert(Peer(peer));
                request.extensions_mut().insert(self.door);
                let Ok(response) = self.api.clone().oneshot(request).await;
                response
            }
        }
    }
}

/// Whether everybody on the way sees the same end of the body. hyper has taken
/// care of lengths that differ and of a length beside an encoding; an encoding
/// other than chunked would be undone by nobody.
fn is_plainly_framed(request: &http::Request<Body>) -> bool {
    let mut encodings = request.headers().get_all(TRANSFER_ENCODING).iter();
    encodings.next().is_none_or(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"))
        && encodings.next().is_none()
}

/// Serves until `stop`; then no connection is accepted any more, and those with
/// a request under way are given the time that the bounds say.
pub async fn serve(listener: TcpListener, edges: Edges, bounds: Bounds, stop: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match bounds.connections.place(peer.ip()) {
                Some(place) => {
                    let serving =
                        connection(stream, peer, edges.clone(), place, bounds.headers, stop.clone());
                    connections.spawn(serving);
                }
                None => refuse(stream, peer),
            },
            Err(error) => {
                tracing::warn!(error = %error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(bounds.drain, connections.wait()).await.is_err() {
        tracing::warn!("some requests were still under way and are cut off");
    }
}

/// Says that there is no place, as far as that takes no waiting.
fn refuse(stream: TcpStream, peer: SocketAddr) {
    metrics::connection_refused();
    tracing::debug!(client = %peer.ip(), "too many connections");
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(FULL);
    }
}

/// Serves one connection; after `stop` until its present request is answered.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    edges: Edges,
    place: Arc<Place>,
    headers_deadline: Duration,
    stop: CancellationToken,
) {
    // Answers are small; waiting to fill a packet only delays them.
    let _ = stream.set_nodelay(true);
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        let (edges, mut request) = (edges.clone(), request.map(Body::new));
        // A websocket holds it for longer than this connection's task.
        request.extensions_mut().insert(Arc::clone(&place));
        async move { Ok::<_, Infallible>(edges.answer(request, peer).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(headers_deadline)
        .max_header_size(HEADERS_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(error = %crate::error::Chain(&error), "connection ended");
    }
}
