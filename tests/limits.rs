//! Rate limits, client identity and idempotency keys of a running daemon. The
//! tests come from this host; with X-Forwarded-For they are the trusted proxy of
//! whom they name.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::HashSet;
use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use common::{Answer, Daemon, Host};
use demo_multiplexer::engine::Phase;
use demo_multiplexer::error::ErrorKind;
use demo_multiplexer::testing::eventually;
use futures_util::future::join_all;
use http::{HeaderValue, Method};

const ACQUIRE: &str = "/api/v1/demo/acquire";

/// An acquire that a proxy passes on from that client.
async fn acquire_from(daemon: &Daemon, client: &str) -> Answer {
    daemon.send(Method::POST, ACQUIRE, &[("x-forwarded-for", client)], "").await
}

async fn acquire_with_key(daemon: &Daemon, client: &str, key: &str) -> Answer {
    let headers = [("x-forwarded-for", client), ("idempotency-key", key)];
    daemon.send(Method::POST, ACQUIRE, &headers, "").await
}

async fn status_from(daemon: &Daemon, client: &str) -> u16 {
    acquire_from(daemon, client).await.status.as_u16()
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

#[tokio::test]
async fn a_client_gets_what_its_limit_allows_also_at_once() {
    let host = Host::new();
    let daemon = host.start(&[("RATE_LIMIT_HOURLY", "10")]).await;
    let one = (0..64).map(|_| acquire_from(&daemon, "203.0.113.5"));
    let (one, other) = tokio::join!(join_all(one), acquire_from(&daemon, "203.0.113.6"));
    let statuses: Vec<u16> = one.iter().map(|answer| answer.status.as_u16()).collect();
    let count = |status| statuses.iter().filter(|it| **it == status).count();
    assert_eq!((count(201), count(429)), (10, 54), "{statuses:?}");
    assert_eq!(other.status, 201, "another client has its own");
    let metrics = daemon.get("/metrics").await;
    assert!(metrics.text().contains(r#"demo_multiplexer_rate_limited_total{window="hour"}"#));
}

#[tokio::test]
async fn each_answer_tells_where_the_client_stands() {
    let host = Host::new();
    let daemon = host.start(&[("RATE_LIMIT_HOURLY", "2"), ("RATE_LIMIT_DAILY", "5")]).await;
    let first = acquire_from(&daemon, "203.0.113.5").await;
    assert_eq!((first.status.as_u16(), header(&first, "ratelimit-limit")), (201, "2"));
    assert_eq!(header(&first, "ratelimit-remaining"), "1");
    assert_eq!(header(&first, "ratelimit-reset"), "3600");
    assert_eq!(header(&first, "ratelimit-policy"), r#""hour";q=2;w=3600, "day";q=5;w=86400"#);
    assert_eq!(header(&first, "ratelimit"), r#""hour";r=1;t=3600, "day";r=4;t=86400"#);
    acquire_from(&daemon, "203.0.113.5").await;
    let refused = acquire_from(&daemon, "203.0.113.5").await;
    let told = refused.problem(429);
    assert!(
        told.contains("2 in an hour: the next one in 59m") || told.contains("the next one in 1h"),
        "{told}"
    );
    let wait: i64 = header(&refused, "retry-after").parse().unwrap();
    assert!((3500..=3600).contains(&wait), "{wait}");
    assert_eq!((header(&refused, "ratelimit-remaining"), header(&refused, "ratelimit-limit")), ("0", "2"));
    assert!(header(&refused, "ratelimit").contains(r#""day";r=3;"#), "a refusal is not counted");
}

#[tokio::test]
async fn nobody_chooses_who_they_are() {
    let host = Host::new();
    let daemon = host.start(&[("RATE_LIMIT_HOURLY", "3")]).await;
    let forged = ["203.0.113.5", "6.6.6.6, 203.0.113.5", "\u{e9}, 127.0.0.1,203.0.113.5:4711, 127.0.0.1"];
    for said in forged {
        assert_eq!(status_from(&daemon, said).await, 201, "{said}");
    }
    for said in forged.iter().chain(&["::ffff:203.0.113.5", "7.7.7.7,203.0.113.5"]) {
        assert_eq!(status_from(&daemon, said).await, 429, "{said}: one and the same client");
    }
    // What cannot be read is all counted for the proxy.
    for (said, status) in [("x", 201), ("", 201), ("unknown", 201), ("1.2.3.4,", 429), ("_a", 429)] {
        assert_eq!(status_from(&daemon, said).await, status, "{said:?}");
    }
    for header in ["forwarded", "x-real-ip", "via", "x-client-ip"] {
        let headers = [("x-forwarded-for", "203.0.113.5"), (header, "for=9.9.9.9")];
        let answer = daemon.send(Method::POST, ACQUIRE, &headers, "").await;
        assert_eq!(answer.status, 429, "{header} says nothing");
    }
}

#[tokio::test]
async fn without_trusted_proxies_the_other_end_is_the_client() {
    let host = Host::new();
    let daemon = host.start(&[("RATE_LIMIT_HOURLY", "2"), ("TRUSTED_PROXIES", "")]).await;
    let statuses =
        join_all((1..=6).map(async |n| status_from(&daemon, &format!("203.0.113.{n}")).await)).await;
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 2, "{statuses:?}");
}

#[tokio::test]
async fn an_ipv6_client_is_its_whole_network() {
    let host = Host::new();
    let daemon = host.start(&[("RATE_LIMIT_HOURLY", "2")]).await;
    for (client, status) in [
        ("2001:db8:1:2::1", 201),
        ("[2001:db8:1:2:ffff::9]:443", 201),
        ("2001:db8:1:2:3:4:5:6", 429),
        ("2001:db8:1:3::1", 201),
    ] {
        assert_eq!(status_from(&daemon, client).await, status, "{client}");
    }
}

#[tokio::test]
async fn this_hosts_own_clients_have_no_limit_and_zero_is_none() {
    let host = Host::new();
    let daemon = host.start(&[("RATE_LIMIT_HOURLY", "1"), ("RATE_LIMIT_DAILY", "1")]).await;
    for _ in 0..3 {
        let got = daemon.acquire().await;
        assert_eq!((got.status.as_u16(), header(&got, "ratelimit-limit")), (201, ""));
    }
    daemon.stop().await;
    let daemon = host.start(&[("RATE_LIMIT_HOURLY", "0"), ("RATE_LIMIT_DAILY", "0")]).await;
    for _ in 0..3 {
        let got = acquire_from(&daemon, "203.0.113.5").await;
        assert_eq!((got.status.as_u16(), header(&got, "ratelimit-limit")), (201, ""));
    }
}

#[tokio::test]
async fn what_failed_or_was_not_valid_is_not_counted() {
    let host = Host::new();
    let settings = [("RATE_LIMIT_HOURLY", "1"), ("COLD_START", "refused")];
    let daemon = host.start(&settings).await;
    host.restore.fail_make(Some((Phase::Restore, ErrorKind::Unavailable)));
    for _ in 0..3 {
        assert_eq!(status_from(&daemon, "203.0.113.5").await, 503);
    }
    host.restore.fail_make(None);
    let headers = [("x-forwarded-for", "203.0.113.5"), ("content-type", "application/json")];
    daemon.send(Method::POST, ACQUIRE, &headers, r#"{"golden": "magento"}"#).await.problem(400);
    assert_eq!(status_from(&daemon, "203.0.113.5").await, 201);
    assert_eq!(status_from(&daemon, "203.0.113.5").await, 429);
}

#[tokio::test]
async fn a_key_is_answered_beyond_the_limit_and_to_its_own_client_only() {
    let host = Host::new();
    let daemon = host.start(&[("RATE_LIMIT_HOURLY", "1")]).await;
    let at_once = join_all((0..8).map(|_| acquire_with_key(&daemon, "203.0.113.5", "order-1"))).await;
    let ids: HashSet<String> = at_once.iter().map(Answer::id).collect();
    assert_eq!(ids.len(), 1, "one key at once gets one instance, and is counted once");
    assert_eq!(at_once.iter().filter(|answer| answer.status == 201).count(), 1);
    let again = acquire_with_key(&daemon, "203.0.113.5", "order-1").await;
    assert_eq!((again.status.as_u16(), header(&again, "ratelimit-limit")), (200, ""));
    assert_eq!(acquire_with_key(&daemon, "203.0.113.5", "order-2").await.status, 429);

    let guesser = acquire_with_key(&daemon, "203.0.113.6", "order-1").await;
    assert_eq!(guesser.status, 201, "a guessed key is a new one");
    assert_ne!(guesser.id(), again.id());
    assert_ne!(guesser.json()["admin_password"], again.json()["admin_password"]);
    let local = daemon.send(Method::POST, ACQUIRE, &[("idempotency-key", "order-1")], "").await;
    assert!(![again.id(), guesser.id()].contains(&local.id()));
    // A key cannot be written so that it is another client's.
    let crafted = acquire_with_key(&daemon, "203.0.113.7", "ip:203.0.113.5 order-1").await;
    assert!(![again.id(), guesser.id()].contains(&crafted.id()));
}

#[tokio::test]
async fn a_key_is_good_for_as_long_as_its_instance() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let body = r#"{"idempotency_key": "a", "ttl": 1}"#;
    let first = daemon.post(ACQUIRE, body).await.id();
    eventually("it is over", async || {
        (daemon.get(&format!("/api/v1/demo/{first}")).await.status == 410).then_some(())
    })
    .await;
    let second = daemon.post(ACQUIRE, body).await;
    assert_eq!(second.status, 201);
    assert_ne!(second.id(), first);
}

#[tokio::test]
async fn a_restart_keeps_the_count() {
    let host = Host::new();
    let settings = [("RATE_LIMIT_HOURLY", "2")];
    let daemon = host.start(&settings).await;
    assert_eq!(status_from(&daemon, "203.0.113.5").await, 201);
    daemon.stop().await;
    let daemon = host.start(&settings).await;
    assert_eq!(status_from(&daemon, "203.0.113.5").await, 201);
    assert_eq!(status_from(&daemon, "203.0.113.5").await, 429);
}

/// A proxy in front of the daemon, whose callers are all one visitor.
async fn proxy_to(daemon: SocketAddr) -> SocketAddr {
    let pass_on = async move |mut request: Request| {
        request.headers_mut().insert("x-forwarded-for", HeaderValue::from_static("203.0.113.5"));
        common::send(daemon, request).await.map(Body::new)
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(pass_on)).await });
    address
}

#[tokio::test]
async fn the_command_says_how_long_to_wait() {
    let host = Host::new();
    let daemon = host.start(&[("RATE_LIMIT_DAILY", "1")]).await;
    let front = proxy_to(daemon.address).await;
    let acquire = async || {
        let dir = tempfile::tempdir().unwrap();
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_demo-multiplexer"));
        command.arg("acquire").current_dir(dir.path()).env_clear().env("API_URL", format!("http://{front}"));
        command.output().await.unwrap()
    };
    assert!(acquire().await.status.success());
    let refused = acquire().await;
    let told = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(told.contains("1 in a day: the next one in 23h 59m") || told.contains("in 24h"), "{told}");
    assert!(told.contains("429"), "{told}");
}
