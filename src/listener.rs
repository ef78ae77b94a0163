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
use crate::node::pass::{self, Kind};
use crate::peers::{FromNode, Peers};
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

/// How long a client may take nothing of what is sent to it: its host is gone,
/// or it keeps the connection and does not read. The kernel hangs up on it then,
/// which ends the answer wherever it stands. Long enough for a train's tunnel.
const SEND_DEADLINE_MS: u32 = 30_000;
/// How long a client that has just connected may take for its first request when
/// the daemon stops: one that has something to ask does so at once, and one that
/// only connects ahead, as browsers do, shall not hold up the end.
const FIRST_REQUEST_DEADLINE: Duration = Duration::from_millis(500);

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
    /// The other nodes, and who answers their calls.
    pub nodes: Option<(Arc<Peers>, Router)>,
}

impl Edges {
    /// Answers one request.
    pub async fn answer(&self, mut request: http::Request<Body>, peer: SocketAddr) -> Response {
        let host = match Host::of(&request) {
            Ok(host) if is_plainly_framed(&request) => host,
            Ok(_) | Err(_) => return self.proxy.refuse(),
        };
        // Nobody else's word, and no shop's to see.
        if let Some(pass) = request.headers_mut().remove(&pass::HEADER)
            && let Some((peers, calls)) = &self.nodes
        {
            match peers.admit(&request, &pass) {
                Ok(FromNode { kind: Kind::Call, .. }) => {
                    let Ok(response) = calls.clone().oneshot(request).await;
                    return response;
                }
                Ok(from) => drop(request.extensions_mut().insert(from)),
                Err(error) => {
                    tracing::warn!(client = %peer.ip(), error = %error, "a node's request is refused");
                    return self.proxy.refuse();
                }
            }
        }
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
    // Without it a client costs a place for a quarter of an hour, or for ever.
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, SEND_DEADLINE_MS);
    let asked = CancellationToken::new();
    let has_asked = asked.clone();
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        has_asked.cancel();
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
            // hyper would close a connection that it has not read from yet: its
            // client, who found the door open, would be turned away.
            let first_request = tokio::time::timeout(FIRST_REQUEST_DEADLINE, asked.cancelled());
            tokio::select! {
                served = connection.as_mut() => served,
                _ = first_request => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Err(error) = served {
        tracing::debug!(error = %crate::error::Chain(&error), "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::client::TrustedProxies;
    use crate::proxy::{Parts, PublicFace};

    /// Both ends of a connection that is served by a listener which is told to stop.
    async fn connect() -> (TcpStream, tokio::task::JoinHandle<()>) {
        let edges = Edges {
            api: Router::new().route("/livez", get(async || "alive")),
            proxy: Proxy::new(Parts {
                routes: Arc::default(),
                face: PublicFace { scheme: "http", port: 80 },
                trusted: TrustedProxies::default(),
                body_max: 1000,
                patience: HEADERS_DEADLINE,
                banner: None,
                waker: None,
                landing: None,
                elsewhere: None,
            }),
            base_domain: "localhost".into(),
            door: Door::Only,
            nodes: None,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let place = Connections::new(8, TrustedProxies::default()).place(peer.ip()).unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        (client, tokio::spawn(connection(stream, peer, edges, place, HEADERS_DEADLINE, stop)))
    }

    #[tokio::test]
    async fn a_client_that_has_just_connected_is_answered_once_when_the_daemon_stops() {
        let (mut client, served) = connect().await;
        // The server's turn: it would close here.
        tokio::task::yield_now().await;
        client.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("alive"), "{answer}");
        served.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_asks_nothing_does_not_hold_up_the_end() {
        let (mut client, served) = connect().await;
        served.await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "closed");
    }
}
