//! The built-in proxy against a real web server, over real sockets.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::convert::Infallible;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use common::edge::{echo_upstream, front, slow_upstream, upgraded, upstream};
use common::{Answer, send};
use demo_multiplexer::route::RouteTable as _;
use demo_multiplexer::testing::eventually;
use futures_util::StreamExt as _;
use http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Answers the request's headers, one a line.
async fn echo_headers(headers: HeaderMap) -> String {
    headers.iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap())).collect()
}

#[tokio::test]
async fn a_shop_is_reached_by_its_host_and_all_else_is_the_api() {
    let (front, (upstream, _)) = (front().await, upstream(Router::new().fallback(async || "the shop")).await);
    let id = front.shop(upstream);
    for host in [format!("{id}.demo.example"), format!("{id}.DEMO.example:8080")] {
        assert_eq!(front.get(&host, "/").await.text(), "the shop", "{host}");
    }
    for host in ["demo.example", "127.0.0.1:8080", "localhost", "www.other.org"] {
        assert_eq!(front.get(host, "/").await.text(), "the API", "{host}");
    }
}

#[tokio::test]
async fn unknown_ended_and_silent_shops_have_pages() {
    let front = front().await;
    let page = front.get("nobody.demo.example", "/").await;
    assert_eq!(page.status, 404);
    assert!(page.text().contains("There is no shop here") && page.text().contains("nobody.demo.example"));
    assert!(page.headers["content-type"].to_str().unwrap().starts_with("text/html"));
    assert_eq!(page.headers["x-robots-tag"], "noindex, nofollow");
    let script = front.get("<script>.demo.example", "/").await;
    assert_eq!(script.status, 400, "no name at all");

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let id = front.shop(closed);
    assert_eq!(front.get(&format!("{id}.demo.example"), "/").await.status, StatusCode::BAD_GATEWAY);
    front.routes.remove(&id);
    assert_eq!(front.get(&format!("{id}.demo.example"), "/").await.status, StatusCode::GONE);
}

#[tokio::test]
async fn headers_are_rewritten_both_ways() {
    let router = Router::new().fallback(async |headers: HeaderMap| {
        ([("connection", "x-hop"), ("x-hop", "1"), ("x-shop", "1")], echo_headers(headers).await)
    });
    let (front, (upstream, _)) = (front().await, upstream(router).await);
    let id = front.shop(upstream);
    let host = format!("{id}.demo.example:8080");
    let request = http::Request::get("/a/b?c=d")
        .header("host", &host)
        .header("x-forwarded-for", "10.9.9.9")
        .header("x-forwarded-proto", "gopher")
        .header("x-real-ip", "10.9.9.9")
        .header("forwarded", "for=10.9.9.9")
        .header("connection", "x-private")
        .header("x-private", "1")
        .header("te", "trailers")
        .header("cookie", "a=b");
    let answer = Answer::read(send(front.address, request.body(Body::empty()).unwrap()).await).await;
    let mut seen: Vec<&str> = answer.text().lines().collect();
    seen.sort_unstable();
    let host_line = format!("host: {host}");
    let forwarded_host = format!("x-forwarded-host: {host}");
    assert_eq!(
        seen,
        [
            "cookie: a=b",
            &*host_line,
            "x-forwarded-for: 127.0.0.1",
            &*forwarded_host,
            "x-forwarded-port: 443",
            "x-forwarded-proto: https",
            "x-real-ip: 127.0.0.1",
        ]
    );
    assert_eq!(answer.headers["x-robots-tag"], "noindex, nofollow");
    assert_eq!(answer.headers["x-shop"], "1");
    assert!(!answer.headers.contains_key("x-hop"), "named by Connection, it ends here");
}

#[tokio::test]
async fn a_head_request_has_a_length_and_no_body() {
    let (front, (upstream, _)) = (front().await, upstream(Router::new().fallback(async || "12345")).await);
    let id = front.shop(upstream);
    let request = http::Request::head("/").header("host", format!("{id}.demo.example"));
    let answer = Answer::read(send(front.address, request.body(Body::empty()).unwrap()).await).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 0));
    assert_eq!(answer.headers["content-length"], "5");
}

#[tokio::test]
async fn a_large_upload_streams_through() {
    const CHUNK: usize = 1 << 20;
    const CHUNKS: usize = 64;
    let router = Router::new().fallback(async |request: Request| {
        let mut body = request.into_body().into_data_stream();
        let (mut bytes, mut sum) = (0_usize, 0_u64);
        while let Some(chunk) = body.next().await {
            let chunk = chunk.unwrap();
            bytes += chunk.len();
            sum += chunk.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        }
        format!("{bytes} {sum}")
    });
    let (front, (upstream, _)) = (front().await, upstream(router).await);
    let id = front.shop(upstream);
    let chunks = futures_util::stream::iter(
        (0..CHUNKS)
            .map(|n| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![u8::try_from(n).unwrap(); CHUNK])))),
    );
    let request = http::Request::post("/").header("host", format!("{id}.demo.example"));
    let request = request.body(Body::new(StreamBody::new(chunks))).unwrap();
    let answer = Answer::read(send(front.address, request).await).await;
    let sum: u64 = (0..CHUNKS as u64).map(|n| n * CHUNK as u64).sum();
    assert_eq!(answer.text(), format!("{} {sum}", CHUNK * CHUNKS));
}

#[tokio::test]
async fn an_answer_streams_through_piece_by_piece() {
    let (front, (upstream, pieces)) = (front().await, slow_upstream().await);
    let id = front.shop(upstream);
    pieces.send("first").await.unwrap();
    let request = http::Request::get("/").header("host", format!("{id}.demo.example"));
    let mut body = send(front.address, request.body(Body::empty()).unwrap()).await.into_body();
    // The second piece is not even made when the first one is here.
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(&first[..], b"first");
    pieces.send("second").await.unwrap();
    let second = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(&second[..], b"second");
    drop(pieces);
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_websocket_carries_both_ways() {
    let (front, upstream) = (front().await, echo_upstream().await);
    let id = front.shop(upstream);
    let mut stream = upgraded(&front, &id).await;
    for text in ["hello", "again"] {
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut echo = vec![0; text.len()];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, text.as_bytes());
    }
}

#[tokio::test]
async fn open_connections_end_with_their_instance() {
    let (front, echo, (slow, pieces)) = (front().await, echo_upstream().await, slow_upstream().await);
    let (websocket, stream) = (front.shop(echo), front.shop(slow));
    let mut socket = upgraded(&front, &websocket).await;
    pieces.send("first").await.unwrap();
    let request = http::Request::get("/").header("host", format!("{stream}.demo.example"));
    let mut body = send(front.address, request.body(Body::empty()).unwrap()).await.into_body();
    body.frame().await.unwrap().unwrap();
    front.routes.remove(&websocket);
    front.routes.remove(&stream);
    // Neither end of either has said anything; the route's end is enough.
    let ended = tokio::time::timeout(Duration::from_secs(10), socket.read(&mut [0; 8])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)));
    let ended = tokio::time::timeout(Duration::from_secs(10), body.frame()).await.unwrap();
    assert!(ended.unwrap().is_err(), "cut off, not complete");
    drop(pieces);
}

#[tokio::test]
async fn a_connection_is_kept_for_its_instance_and_for_no_other() {
    let (front, (upstream, connections)) =
        (front().await, upstream(Router::new().fallback(async || "hi")).await);
    let first = front.shop(upstream);
    for _ in 0..3 {
        assert_eq!(front.get(&format!("{first}.demo.example"), "/").await.text(), "hi");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1, "kept alive between requests");
    front.routes.remove(&first);
    // The next instance gets the same address.
    let second = front.shop(upstream);
    assert_eq!(front.get(&format!("{second}.demo.example"), "/").await.text(), "hi");
    assert_eq!(connections.load(Ordering::SeqCst), 2, "a new connection for a new instance");
}

#[tokio::test]
async fn a_request_with_two_hosts_is_refused() {
    let (front, (upstream, _)) = (front().await, upstream(Router::new().fallback(async || "hi")).await);
    let id = front.shop(upstream);
    let request = http::Request::get("/").header("host", format!("{id}.demo.example")).header("host", "x");
    let answer = Answer::read(send(front.address, request.body(Body::empty()).unwrap()).await).await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn a_stopped_listener_takes_nothing_more() {
    let front = front().await;
    assert_eq!(front.get("localhost", "/").await.text(), "the API");
    front.stop.cancel();
    eventually("it no longer listens", async || TcpStream::connect(front.address).await.err()).await;
}
