//! How long an acquire from the pool takes end to end. Prints, asserts nothing:
//! run it with `cargo test --release --all-features --test latency -- --ignored --nocapture`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::time::{Duration, Instant};

use axum::body::Body;
use common::Host;
use demo_multiplexer::testing::eventually;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Acquires, one after the other on one connection; answers each one's time.
async fn acquires(address: std::net::SocketAddr, count: usize) -> Vec<Duration> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut times = Vec::new();
    for _ in 0..count {
        let request = http::Request::post("/api/v1/demo/acquire").header("host", "localhost");
        sender.ready().await.unwrap();
        let began = Instant::now();
        let response = sender.send_request(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 201);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        times.push(began.elapsed());
        assert!(std::str::from_utf8(&body).unwrap().contains(r#""source":"pool""#));
    }
    times
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a check"]
async fn acquire_latency() {
    let host = Host::new();
    let daemon = host.start(&[("POOL_TARGET_SIZE", "450"), ("MAX_INSTANCES", "10000")]).await;
    for clients in [1, 8, 32] {
        eventually("enough is ready", async || {
            (daemon.states().await["ready"].as_u64() >= Some(450)).then_some(())
        })
        .await;
        let each = 416 / clients;
        let all = futures_util::future::join_all((0..clients).map(|_| acquires(daemon.address, each))).await;
        let mut times: Vec<Duration> = all.into_iter().flatten().collect();
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1];
        println!(
            "{clients:>3} clients  p50 {:?}  p95 {:?}  p99 {:?}  max {:?}",
            at(50),
            at(95),
            at(99),
            at(100)
        );
    }
}
