//! A listener with the built-in proxy and nothing behind it, web servers to be
//! its shops, and clients that speak in bytes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use bytes::Bytes;
use demo_multiplexer::api::Door;
use demo_multiplexer::connections::Connections;
use demo_multiplexer::id::InstanceId;
use demo_multiplexer::listener::{Bounds, Edges, serve};
use demo_multiplexer::proxy::{Parts, Proxy, PublicFace};
use demo_multiplexer::route::RouteTable as _;
use demo_multiplexer::route::memory::MemoryRoutes;
use http::StatusCode;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Answer, send};

pub(crate) struct Front {
    pub(crate) address: SocketAddr,
    pub(crate) routes: Arc<MemoryRoutes>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) stop: CancellationToken,
}

impl Drop for Front {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What a test may want otherwise; the bodies' bound is above any other test's.
pub(crate) struct Wishes {
    pub(crate) body_max: u64,
    pub(crate) patience: Duration,
    pub(crate) headers: Duration,
    pub(crate) connections: usize,
    /// Who is no client of its own, but carries many.
    pub(crate) trusted: &'static str,
}

impl Default for Wishes {
    fn default() -> Self {
        let long = Duration::from_secs(60);
        Self { body_max: 64 << 20, patience: long, headers: long, connections: 1000, trusted: "" }
    }
}

/// A listener with an API that says so, and no routes yet.
pub(crate) async fn front() -> Front {
    front_with(Wishes::default()).await
}

pub(crate) async fn front_with(wishes: Wishes) -> Front {
    let routes = Arc::new(MemoryRoutes::default());
    let edges = Edges {
        api: Router::new().fallback(async || "the API"),
        proxy: Proxy::new(Parts {
            routes: Arc::clone(&routes),
            face: PublicFace { scheme: "https", port: 443 },
            trusted: "".parse().unwrap(),
            body_max: wishes.body_max,
            patience: wishes.patience,
            banner: None,
            waker: None,
            landing: None,
            elsewhere: None,
        }),
        base_domain: "demo.example".into(),
        door: Door::Only,
        nodes: None,
    };
    let connections = Connections::new(wishes.connections, wishes.trusted.parse().unwrap());
    let bounds = Bounds {
        headers: wishes.headers,
        connections: Arc::clone(&connections),
        drain: Duration::from_secs(1),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    tokio::spawn(serve(listener, edges, bounds, stop.clone()));
    Front { address, routes, connections, stop }
}

impl Front {
    /// A shop at that address; answers its id.
    pub(crate) fn shop(&self, upstream: SocketAddr) -> InstanceId {
        let id = InstanceId::random();
        self.routes.ensure(&id, upstream);
        id
    }

    pub(crate) async fn get(&self, host: &str, path: &str) -> Answer {
        let request = http::Request::get(path).header("host", host).body(Body::empty()).unwrap();
        Answer::read(send(self.address, request).await).await
    }
}

/// A web server; answers its address and how many connections it has had.
pub(crate) async fn upstream(router: Router) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, connections) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            let service = hyper_util::service::TowerToHyperService::new(router.clone());
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            tokio::spawn(connection);
        }
    });
    (address, connections)
}

/// A body that sends what the channel brings.
pub(crate) fn streamed(receiver: mpsc::Receiver<&'static str>) -> Response {
    let frames = futures_util::stream::unfold(receiver, async |mut receiver| {
        let text = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(text.as_bytes()))), receiver))
    });
    Body::new(StreamBody::new(frames)).into_response()
}

/// A server whose one answer is sent piece by piece by the test.
pub(crate) async fn slow_upstream() -> (SocketAddr, mpsc::Sender<&'static str>) {
    let (sender, receiver) = mpsc::channel(1);
    let receiver = Arc::new(std::sync::Mutex::new(Some(receiver)));
    let router = Router::new().fallback(async move || streamed(receiver.lock().unwrap().take().unwrap()));
    (upstream(router).await.0, sender)
}

/// A server that speaks an echo protocol after an upgrade.
pub(crate) async fn echo_upstream() -> SocketAddr {
    let router = Router::new().fallback(any(async |mut request: Request| {
        assert_eq!(request.headers()["connection"], "upgrade");
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut io = TokioIo::new(upgrade.await.unwrap());
            let mut buffer = [0; 1024];
            while let Ok(n @ 1..) = io.read(&mut buffer).await {
                io.write_all(&buffer[..n]).await.unwrap();
            }
        });
        (StatusCode::SWITCHING_PROTOCOLS, [("connection", "upgrade"), ("upgrade", "websocket")])
    }));
    upstream(router).await.0
}

/// Asks for a websocket and answers the stream after the 101.
pub(crate) async fn upgraded(front: &Front, id: &InstanceId) -> TcpStream {
    let mut stream = TcpStream::connect(front.address).await.unwrap();
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {id}.demo.example\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(head.contains("upgrade: websocket\r\n") && head.contains("connection: upgrade\r\n"), "{head}");
    stream
}

/// Sends bytes as they are, and reads until the other end closes.
pub(crate) async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // It may be refused before all of it is sent.
    let _ = stream.write_all(bytes).await;
    until_closed(&mut stream).await
}

pub(crate) async fn until_closed(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
    // A reset after the answer is an end like any other.
    let _ = read.expect("the connection is closed");
    String::from_utf8_lossy(&answer).into_owned()
}
