//! The one listener: API and shops on the same address, told apart by Host.
//!
//! Called by [`crate::app`]. Accepts until told to stop, then lets requests
//! under way finish. Each connection is a task of its own.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::api::Peer;
use crate::proxy::Proxy;
use crate::proxy::host::{Target, authority, target};

/// How long a client may take for its request's headers. Longer than any real
/// one needs; without it a few thousand idle sockets would use up all files.
const HEADERS_DEADLINE: Duration = Duration::from_secs(30);

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

/// Who answers what.
#[derive(Debug, Clone)]
pub struct Edges {
    /// For everything that is not a shop's.
    pub api: Router,
    /// For `<label>.<base_domain>`.
    pub proxy: Proxy,
    /// In lower case.
    pub base_domain: Arc<str>,
}

impl Edges {
    /// Answers one request.
    pub async fn answer(&self, request: http::Request<Body>, peer: SocketAddr) -> Response {
        let host = authority(request.uri(), request.headers()).to_owned();
        match target(&host, &self.base_domain) {
            Target::Shop(label) => self.proxy.handle(request, label, &host, peer.ip()).await,
            Target::Api => {
                let mut request = request;
                request.extensions_mut().insert(Peer(peer));
                let Ok(response) = self.api.clone().oneshot(request).await;
                response
            }
        }
    }
}

/// Serves until `stop`; then no connection is accepted any more, and those with
/// a request under way are given until `deadline`.
pub async fn serve(listener: TcpListener, edges: Edges, stop: CancellationToken, deadline: Duration) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                connections.spawn(connection(stream, peer, edges.clone(), stop.clone()));
            }
            Err(error) => {
                tracing::warn!(error = %error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(deadline, connections.wait()).await.is_err() {
        tracing::warn!("some requests were still under way and are cut off");
    }
}

/// Serves one connection; after `stop` until its present request is answered.
async fn connection(stream: TcpStream, peer: SocketAddr, edges: Edges, stop: CancellationToken) {
    // Answers are small; waiting to fill a packet only delays them.
    let _ = stream.set_nodelay(true);
    // Without it a client costs a place for a quarter of an hour, or for ever.
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, SEND_DEADLINE_MS);
    let asked = CancellationToken::new();
    let has_asked = asked.clone();
    let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
        has_asked.cancel();
        let edges = edges.clone();
        async move { Ok::<_, Infallible>(edges.answer(request.map(Body::new), peer).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_DEADLINE)
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
    use crate::proxy::PublicFace;

    /// Both ends of a connection that is served by a listener which is told to stop.
    async fn connect() -> (TcpStream, tokio::task::JoinHandle<()>) {
        let edges = Edges {
            api: Router::new().route("/livez", get(async || "alive")),
            proxy: Proxy::new(
                Arc::default(),
                PublicFace { scheme: "http", port: 80 },
                TrustedProxies::default(),
            ),
            base_domain: "localhost".into(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let stop = CancellationToken::new();
        stop.cancel();
        (client, tokio::spawn(connection(stream, peer, edges, stop)))
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
