//! What the listener and the built-in proxy refuse and take out, over real
//! sockets: hosts, framing, bounds, what a shop says to a browser.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::routing::any;
use bytes::Bytes;
use common::edge::{
    Wishes, echo_upstream, front, front_with, raw, slow_upstream, until_closed, upgraded, upstream,
};
use common::{Answer, send};
use demo_multiplexer::testing::eventually;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A server that keeps what it is sent, as bytes, and answers when a chunked body
/// has ended.
async fn recording_upstream() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, seen) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let kept = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let kept = Arc::clone(&kept);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    kept.lock().unwrap().extend_from_slice(&buffer[..n]);
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
                    let whole = kept.lock().unwrap().ends_with(b"\r\n0\r\n\r\n");
                    if whole && stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, seen)
}

#[tokio::test]
async fn a_body_has_one_end_for_everybody_on_the_way() {
    // A request that is passed on half is not waited for.
    let wishes = Wishes { patience: Duration::from_secs(1), ..Wishes::default() };
    let (front, (upstream, seen)) = (front_with(wishes).await, recording_upstream().await);
    let id = front.shop(upstream);
    let send = async |framing: &str, body: &str| {
        seen.lock().unwrap().clear();
        let head = format!("POST /first HTTP/1.1\r\nHost: {id}.demo.example\r\nConnection: close\r\n");
        let answer = raw(front.address, format!("{head}{framing}\r\n\r\n{body}").as_bytes()).await;
        (answer, String::from_utf8(seen.lock().unwrap().clone()).unwrap())
    };
    let smuggled = "0\r\n\r\nGET /admin HTTP/1.1\r\nHost: x\r\n\r\n";
    for framing in [
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: +4",
        "Content-Length: 4, 5",
        "Content-Length: -1",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: xchunked",
        "Content-Length : 4",
        "X: y\r\n Content-Length: 4",
        "Transfer-Encoding:\x0bchunked",
    ] {
        let (answer, seen) = send(framing, smuggled).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{framing:?}: {answer:?}");
        assert_eq!(seen, "", "{framing:?}: nothing reaches the shop");
    }
    // A length beside an encoding is dropped, and the connection with it: what
    // follows the body is nobody's request.
    for framing in
        ["Content-Length: 6\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 6"]
    {
        let (answer, seen) = send(framing, &format!("3\r\nEND\r\n{smuggled}")).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.matches("HTTP/").count() == 1, "{answer:?}");
        assert!(seen.ends_with("\r\n\r\n3\r\nEND\r\n0\r\n\r\n"), "{seen:?}");
        assert!(!seen.contains("/admin"), "{seen:?}");
        assert_eq!(seen.matches("content-length").count() + seen.matches("chunked").count(), 1, "{seen:?}");
    }
}

#[tokio::test]
async fn a_shop_reads_its_own_host_however_it_is_written() {
    let router = Router::new().fallback(async |request: Request| {
        let shown = request.headers()["host"].to_str().unwrap().to_owned();
        format!("{} {shown}", request.uri())
    });
    let (front, (upstream, _)) = (front().await, upstream(router).await);
    let id = front.shop(upstream);
    let host = format!("{id}.demo.example");
    let ask = async |target: &str, hosts: &[&str]| {
        let hosts: String = hosts.iter().map(|host| format!("Host: {host}\r\n")).collect();
        raw(front.address, format!("GET {target} HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n").as_bytes())
            .await
    };
    for (target, written, shown) in [
        ("/a?b", host.to_uppercase(), format!("/a?b {host}")),
        ("/", format!("{host}.:8080"), format!("/ {host}:8080")),
        (&*format!("http://{host}/a"), host.clone(), format!("/a {host}")),
    ] {
        let answer = ask(target, &[&written]).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(&shown), "{written}: {answer:?}");
    }
    let elsewhere = format!("http://{host}/");
    for (target, hosts) in [
        ("/", &[&*host, "evil.org"][..]),
        ("/", &[&*host, &*host]),
        ("/", &[]),
        (&*elsewhere, &["evil.org"]),
        ("/", &[&*format!("user@{host}")]),
        ("/", &[&*format!("evil.org@{host}:80")]),
        ("/", &[&*format!("{host}:99999")]),
        ("/", &[&*format!("{host}/..")]),
        ("/", &[&*format!("{}.{host}", "a".repeat(300))]),
        ("/", &["[::1"]),
    ] {
        let answer = ask(target, hosts).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{target} {hosts:?}: {answer:?}");
    }
    let connect = format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n");
    assert!(raw(front.address, connect.as_bytes()).await.starts_with("HTTP/1.1 400 "));
    assert!(ask("/", &["[::1]:80"]).await.ends_with("the API"));
    let old = raw(front.address, b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(old.ends_with("the API"), "{old:?}");
}

#[tokio::test]
async fn headers_are_bounded_in_number_size_and_time() {
    let front = front_with(Wishes { headers: Duration::from_millis(300), ..Wishes::default() }).await;
    let request =
        |more: &str| format!("GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n");
    let many: String = (0..120).map(|n| format!("X-{n}: 1\r\n")).collect();
    let large = format!("X: {}\r\n", "x".repeat(40_000));
    for more in [&many, &large] {
        let answer = raw(front.address, request(more).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{:?}", &answer[..answer.len().min(80)]);
    }
    let fits = format!("Cookie: {}\r\n", "x".repeat(30_000));
    assert!(raw(front.address, request(&fits).as_bytes()).await.starts_with("HTTP/1.1 200 "));
    let long = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(70_000));
    let answer = raw(front.address, long.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 414 ") || answer.starts_with("HTTP/1.1 431 "), "{answer:.80}");

    // One that says nothing, one that goes on saying little, one that is done and stays.
    let mut silent = TcpStream::connect(front.address).await.unwrap();
    let mut slow = TcpStream::connect(front.address).await.unwrap();
    let mut idle = TcpStream::connect(front.address).await.unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let trickle = async {
        for byte in b"GET / HTTP/1.1\r\nHost: localhost\r\nX: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
        {
            if slow.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        until_closed(&mut slow).await;
    };
    let (_, idle, ()) = tokio::join!(until_closed(&mut silent), until_closed(&mut idle), trickle);
    assert!(idle.ends_with("the API"), "{idle:?}");
    eventually("all places are free", async || (front.connections.open() == 0).then_some(())).await;
}

#[tokio::test]
async fn there_are_so_many_connections_and_a_client_has_its_share() {
    let front = front_with(Wishes { connections: 16, ..Wishes::default() }).await;
    let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut held = vec![TcpStream::connect(front.address).await.unwrap()];
    held.push(TcpStream::connect(front.address).await.unwrap());
    eventually("both have a place", async || (front.connections.open() == 2).then_some(())).await;
    let mut third = TcpStream::connect(front.address).await.unwrap();
    let refused = until_closed(&mut third).await;
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("Retry-After: 5"), "{refused:?}");
    drop(held);
    eventually("a place is free", async || {
        raw(front.address, request).await.starts_with("HTTP/1.1 200 ").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_websocket_keeps_its_place_until_it_ends() {
    let wishes = Wishes { connections: 2, trusted: "127.0.0.1", ..Wishes::default() };
    let (front, upstream) = (front_with(wishes).await, echo_upstream().await);
    let id = front.shop(upstream);
    let sockets = (upgraded(&front, &id).await, upgraded(&front, &id).await);
    assert_eq!(front.connections.open(), 2);
    let mut third = TcpStream::connect(front.address).await.unwrap();
    assert!(
        until_closed(&mut third).await.starts_with("HTTP/1.1 503 "),
        "trusted, and still no more than all"
    );
    drop(sockets);
    eventually("both places are free", async || (front.connections.open() == 0).then_some(())).await;
}

#[tokio::test]
async fn a_body_beyond_the_bound_is_refused_and_the_shop_never_has_it_whole() {
    let whole = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&whole);
    let router = Router::new().fallback(async move |request: Request| {
        let read = request.into_body().collect().await;
        counted.fetch_add(usize::from(read.is_ok()), Ordering::SeqCst);
        "read"
    });
    let front = front_with(Wishes { body_max: 1000, ..Wishes::default() }).await;
    let id = front.shop(upstream(router).await.0);
    let post = async |pieces: usize, length: Option<usize>| {
        let piece = Bytes::from(vec![b'x'; 100]);
        let body = futures_util::stream::iter(
            std::iter::repeat_n(piece, pieces).map(|piece| Ok::<_, Infallible>(Frame::data(piece))),
        );
        let mut request = http::Request::post("/").header("host", format!("{id}.demo.example"));
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let request = request.body(Body::new(StreamBody::new(body))).unwrap();
        Answer::read(send(front.address, request).await).await
    };
    assert_eq!(post(10, Some(1000)).await.text(), "read");
    assert_eq!(post(10, None).await.text(), "read");
    assert_eq!(whole.load(Ordering::SeqCst), 2);
    for length in [None, Some(1100)] {
        let answer = post(11, length).await;
        assert_eq!(answer.status, 413, "{length:?}: {}", answer.text());
        assert!(answer.text().contains("This upload is too large"));
    }
    assert_eq!(whole.load(Ordering::SeqCst), 2, "the shop was never given all of it");
    // Who asks first is told before it sends anything.
    let head = format!(
        "POST / HTTP/1.1\r\nHost: {id}.demo.example\r\nContent-Length: 5000\r\nExpect: 100-continue\r\n\r\n"
    );
    assert!(raw(front.address, head.as_bytes()).await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn a_shop_has_its_time_for_an_answer_and_a_visitor_for_a_body() {
    let router = Router::new()
        .route("/hangs", any(async || std::future::pending::<&str>().await))
        .route("/reads", any(async |body: Bytes| format!("{}", body.len())));
    let front = front_with(Wishes { patience: Duration::from_millis(400), ..Wishes::default() }).await;
    let id = front.shop(upstream(router).await.0);
    let page = front.get(&format!("{id}.demo.example"), "/hangs").await;
    assert_eq!(page.status, 504);
    assert!(page.text().contains("This shop takes too long"));

    let mut stalled = TcpStream::connect(front.address).await.unwrap();
    let head = format!("POST /reads HTTP/1.1\r\nHost: {id}.demo.example\r\nConnection: close\r\n");
    stalled.write_all(format!("{head}Content-Length: 10\r\n\r\nabc").as_bytes()).await.unwrap();
    assert!(until_closed(&mut stalled).await.starts_with("HTTP/1.1 408 "));

    // Slow and steady takes longer than the patience, and arrives.
    let mut steady = TcpStream::connect(front.address).await.unwrap();
    steady.write_all(format!("{head}Content-Length: 10\r\n\r\n").as_bytes()).await.unwrap();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        steady.write_all(b"x").await.unwrap();
    }
    let answer = until_closed(&mut steady).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("10"), "{answer:?}");
}

#[tokio::test]
async fn an_answer_that_has_begun_has_all_the_time() {
    let patience = Duration::from_millis(200);
    let front = front_with(Wishes { patience, ..Wishes::default() }).await;
    let (slow, pieces) = slow_upstream().await;
    let id = front.shop(slow);
    pieces.send("first").await.unwrap();
    let request = http::Request::get("/").header("host", format!("{id}.demo.example"));
    let mut body = send(front.address, request.body(Body::empty()).unwrap()).await.into_body();
    body.frame().await.unwrap().unwrap();
    tokio::time::sleep(patience * 3).await;
    pieces.send("second").await.unwrap();
    assert_eq!(&body.frame().await.unwrap().unwrap().into_data().unwrap()[..], b"second");
}

#[tokio::test]
async fn what_a_shop_says_reaches_no_other_one() {
    let router = Router::new().fallback(async || {
        let headers = [
            ("set-cookie", "a=1; Domain=.demo.example; Path=/"),
            ("set-cookie", "b=2; HttpOnly"),
            ("cache-control", "public, s-maxage=60"),
            ("strict-transport-security", "max-age=1; includeSubDomains"),
            ("alt-svc", "h3=\":9\""),
            ("x-robots-tag", "all"),
            ("access-control-allow-origin", "*"),
            ("clear-site-data", "\"cookies\""),
        ];
        (axum::response::AppendHeaders(headers), "hi")
    });
    let (front, (upstream, _)) = (front().await, upstream(router).await);
    let id = front.shop(upstream);
    let answer = front.get(&format!("{id}.demo.example"), "/").await;
    let cookies: Vec<&str> =
        answer.headers.get_all("set-cookie").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(cookies, ["a=1; Path=/", "b=2; HttpOnly"]);
    assert_eq!(answer.headers["cache-control"], "private");
    assert!(!answer.headers.contains_key("alt-svc"));
    assert!(!answer.headers.contains_key("strict-transport-security"));
    let robots: Vec<_> = answer.headers.get_all("x-robots-tag").iter().collect();
    assert_eq!(robots, ["noindex, nofollow"]);
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    assert_eq!(answer.headers["clear-site-data"], "\"cookies\"");
}
