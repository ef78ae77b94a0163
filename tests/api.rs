//! The daemon over its socket: every status, every promise of the API, on a
//! scripted engine and the real store.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::HashSet;

use common::{Daemon, Host, names_in};
use demo_multiplexer::app::{AppError, OnExit};
use demo_multiplexer::engine::Phase;
use demo_multiplexer::error::ErrorKind;
use demo_multiplexer::testing::eventually;
use http::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

const ACQUIRE: &str = "/api/v1/demo/acquire";

async fn nothing_is_left(host: &Host, daemon: &Daemon) {
    assert_eq!(daemon.get("/api/v1/demo").await.json()["instances"], json!([]));
    assert_eq!(daemon.get("/api/v1/pool/stats").await.json()["instances"], 0);
    assert!(host.restore.traces().is_empty() && host.cold.traces().is_empty());
}

async fn pool_has(daemon: &Daemon, ready: usize) {
    eventually("the pool is full", async || (daemon.states().await["ready"] == ready).then_some(())).await;
}

#[tokio::test]
async fn acquire_answers_all_that_a_visitor_needs() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let got = daemon.acquire().await;
    assert_eq!(got.status, 201, "{}", got.text());
    let answer = got.json();
    let fields: Vec<&String> = answer.as_object().unwrap().keys().collect();
    assert_eq!(
        fields,
        [
            "acquire_ms",
            "admin_email",
            "admin_login_url",
            "admin_password",
            "admin_url",
            "expires_at",
            "golden",
            "id",
            "source",
            "state",
            "url"
        ]
    );
    let id = got.id();
    assert_eq!(got.headers["location"].to_str().unwrap(), format!("/api/v1/demo/{id}"));
    assert_eq!(got.headers["cache-control"], "no-store");
    assert_eq!(answer["admin_password"], format!("password-of-{id}"));
    let link = answer["admin_login_url"].as_str().unwrap();
    let token = link.strip_prefix(&format!("http://{id}.localhost/login?token=")).unwrap();
    assert!(token.len() > 100 && !token.contains('{'), "{link}");
    assert_eq!((&answer["state"], &answer["source"]), (&json!("assigned"), &json!("restore")));
    assert!(answer["acquire_ms"].as_f64().unwrap() > 0.0);

    let shown = daemon.get(&format!("/api/v1/demo/{id}")).await;
    assert_eq!(shown.status, 200);
    for secret in ["password", "login", &format!("key-of-{id}")] {
        assert!(!shown.text().contains(secret), "the acquire answer is the one place: {}", shown.text());
    }
    assert_eq!(shown.json()["ttl_seconds"].as_i64().map(|left| left > 3590), Some(true), "DEFAULT_TTL is 1h");
}

#[tokio::test]
async fn a_pool_hit_says_so_and_is_refilled() {
    let host = Host::new();
    let daemon = host.start(&[("POOL_TARGET_SIZE", "2")]).await;
    pool_has(&daemon, 2).await;
    let got = daemon.post(ACQUIRE, r#"{"golden": "shop", "ttl": "30m"}"#).await;
    assert_eq!(got.json()["source"], "pool");
    pool_has(&daemon, 2).await;
    let stats = daemon.get("/api/v1/pool/stats").await.json();
    let golden = &stats["goldens"][0];
    assert_eq!((&golden["golden"], &golden["target"]), (&json!("shop"), &json!(2)));
    assert_eq!((&golden["hit_ratio"], &golden["handed_over"]["pool"]), (&json!(1.0), &json!(1)));
    assert!(golden["acquire_ms"]["pool"]["p99"].as_f64().unwrap() > 0.0);
    assert_eq!(golden["states"]["assigned"], 1);
}

#[tokio::test]
async fn a_hundred_clients_at_once_get_a_hundred_instances() {
    let host = Host::new();
    let daemon = host.start(&[("POOL_TARGET_SIZE", "30"), ("MAX_INSTANCES", "200")]).await;
    pool_has(&daemon, 30).await;
    let clients = (0..100).map(|_| daemon.acquire());
    let answers = futures_util::future::join_all(clients).await;
    let ids: HashSet<String> = answers.iter().map(common::Answer::id).collect();
    assert_eq!(ids.len(), 100);
    let from = |source: &str| answers.iter().filter(|answer| answer.json()["source"] == source).count();
    assert_eq!(from("pool") + from("restore"), 100);
    assert!(from("pool") >= 30, "the pool is used up first");
}

/// Each wrong request, its status and a part of its explanation.
fn wrong_requests() -> Vec<(Method, &'static str, &'static str, String, u16, &'static str)> {
    let json = "application/json";
    let post = |body: &str, status, detail| (Method::POST, ACQUIRE, json, body.to_owned(), status, detail);
    vec![
        post("{", 400, "the body is not as expected: EOF"),
        post("[]", 400, "not a JSON object"),
        post("\"shop\"", 400, "not a JSON object"),
        post(r#"{"tll": 5}"#, 400, "unknown field `tll`"),
        post(r#"{"golden": 5}"#, 400, "expected a string"),
        post(r#"{"golden": "magento"}"#, 400, "golden \"magento\" is unknown; there are: shop, other"),
        post(r#"{"golden": "../../etc"}"#, 400, "is unknown"),
        post(r#"{"ttl": 0}"#, 400, "ttl 0 is not positive"),
        post(r#"{"ttl": -5}"#, 400, "ttl -5 is not positive"),
        post(r#"{"ttl": "-5m"}"#, 400, "is not positive"),
        post(r#"{"ttl": "soon"}"#, 400, "ttl \"soon\" is not a time"),
        post(r#"{"ttl": 1.5}"#, 400, "is not a time"),
        post(r#"{"ttl": 86401}"#, 400, "longer than the longest allowed, 24h"),
        post(r#"{"ttl": 18446744073709551615}"#, 400, "longer than"),
        post(r#"{"ttl": 1e400}"#, 400, "number out of range"),
        post(r#"{"idempotency_key": ""}"#, 400, "the idempotency key is not"),
        post(&format!(r#"{{"golden": "{}"}}"#, "x".repeat(17_000)), 413, "larger than 16384 bytes"),
        (Method::POST, ACQUIRE, "text/plain", "{}".into(), 415, "Content-Type: application/json"),
        (Method::GET, ACQUIRE, json, String::new(), 405, "does not take GET"),
        (Method::PUT, "/api/v1/demo/abcdefghijkl", json, String::new(), 405, "does not take PUT"),
        (Method::GET, "/nowhere", json, String::new(), 404, "there is nothing at /nowhere"),
        (
            Method::GET,
            "/api/v1/demo/abcdefghijkl",
            json,
            String::new(),
            404,
            "instance abcdefghijkl is unknown",
        ),
        (Method::GET, "/api/v1/demo/NO", json, String::new(), 404, "is not a valid instance id"),
        (
            Method::DELETE,
            "/api/v1/demo/..%2F..%2Fetc",
            json,
            String::new(),
            404,
            "is not a valid instance id",
        ),
        (Method::POST, "/api/v1/demo/abcdefghijkl/extend", json, String::new(), 404, "is unknown"),
    ]
}

#[tokio::test]
async fn a_wrong_request_is_told_what_is_wrong_and_leaves_nothing() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    for (method, path, content_type, body, status, detail) in wrong_requests() {
        let answer = daemon.send(method.clone(), path, &[("content-type", content_type)], &body).await;
        let told = answer.problem(status);
        assert!(told.contains(detail), "{method} {path} {body:.60}: {told}");
        assert_eq!(answer.headers.contains_key("allow"), status == 405, "{method} {path}");
    }
    nothing_is_left(&host, &daemon).await;
    assert_eq!(host.restore.attempts(), 0, "nothing was begun");
}

#[tokio::test]
async fn a_full_host_answers_503_with_retry_after() {
    let host = Host::new();
    let daemon = host.start(&[("MAX_INSTANCES", "2")]).await;
    let first = daemon.acquire().await.id();
    daemon.acquire().await.id();
    let refused = daemon.acquire().await;
    assert!(refused.problem(503).contains("all 2 places of this host are taken"));
    assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() > 0);
    daemon.delete(&format!("/api/v1/demo/{first}")).await;
    eventually("a place is free again", async || (daemon.acquire().await.status == 201).then_some(())).await;
}

#[tokio::test]
async fn a_failure_in_any_phase_is_answered_fittingly_and_leaves_nothing() {
    let host = Host::new();
    let daemon = host.start(&[("COLD_START", "refused"), ("POOL_TARGET_SIZE", "0")]).await;
    for phase in [Phase::Slot, Phase::Restore, Phase::Adopt, Phase::Personalize, Phase::Probe] {
        for (kind, status) in [
            (ErrorKind::Exhausted, 503),
            (ErrorKind::NoSpace, 507),
            (ErrorKind::Incompatible, 503),
            (ErrorKind::Unavailable, 503),
            (ErrorKind::Bug, 500),
            // A file that is missing on the host is not what the client asked for.
            (ErrorKind::NotFound, 500),
        ] {
            host.restore.fail_make(Some((phase, kind)));
            let answer = daemon.acquire().await;
            let told = answer.problem(status);
            assert!(told.contains("no instance of shop was ready"), "{told}");
            let comes_back = matches!(kind, ErrorKind::Exhausted | ErrorKind::Unavailable);
            assert_eq!(answer.headers.contains_key("retry-after"), comes_back, "{kind:?}");
            nothing_is_left(&host, &daemon).await;
        }
    }
    let stats = daemon.get("/api/v1/pool/stats").await.json();
    let failures = &stats["goldens"][0]["failures"];
    assert_eq!(failures["total"], 30);
    assert!(
        failures["last_error"].as_str().unwrap().contains("in phase probe: the script says so"),
        "{failures}"
    );
}

#[tokio::test]
async fn the_fallback_to_a_cold_start_is_told() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    host.restore.fail_make(Some((Phase::Restore, ErrorKind::Incompatible)));
    let got = daemon.acquire().await;
    assert_eq!(got.json()["source"], "cold");
    assert!(daemon.get("/metrics").await.text().contains(r#"source="cold",outcome="ok""#));
}

#[tokio::test]
async fn the_same_key_gets_the_same_instance() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let keyed = async |key: &str| daemon.send(Method::POST, ACQUIRE, &[("idempotency-key", key)], "").await;
    let (one, other, third) = tokio::join!(keyed("a"), keyed("a"), keyed("b"));
    assert_eq!(one.id(), other.id());
    assert_ne!(one.id(), third.id());
    let statuses = [one.status.as_u16(), other.status.as_u16()];
    assert!(statuses == [201, 200] || statuses == [200, 201], "one is new, one is again: {statuses:?}");
    let again = daemon.post(ACQUIRE, r#"{"idempotency_key": "a"}"#).await;
    assert_eq!((again.status.as_u16(), again.id()), (200, one.id()));
    assert_eq!(again.json()["source"], "restore", "the same word as the first time");
    assert_eq!(again.json()["admin_password"], one.json()["admin_password"]);
    let clash = [("idempotency-key", "a"), ("content-type", "application/json")];
    daemon.send(Method::POST, ACQUIRE, &clash, r#"{"idempotency_key": "b"}"#).await.problem(400);
    let elsewhere = daemon.post(ACQUIRE, r#"{"idempotency_key": "a", "golden": "other"}"#).await;
    assert!(elsewhere.problem(409).contains("was used for golden shop"));
}

#[tokio::test]
async fn an_instance_ends_by_itself() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let id = daemon.post(ACQUIRE, r#"{"ttl": 1}"#).await.id();
    let path = format!("/api/v1/demo/{id}");
    let gone = eventually("it is over", async || {
        let answer = daemon.get(&path).await;
        (answer.status == 410).then_some(answer)
    })
    .await;
    assert!(gone.problem(410).contains("is over"));
    daemon.post(&format!("{path}/extend"), r#"{"ttl": 60}"#).await.problem(410);
    eventually("all of it is gone", async || host.restore.traces().is_empty().then_some(())).await;
    eventually("no record", async || {
        (daemon.get("/api/v1/demo").await.json()["instances"] == json!([])).then_some(())
    })
    .await;
    daemon.stop().await;
    // Also to a daemon that never knew it.
    let daemon = host.start(&[]).await;
    daemon.get(&path).await.problem(410);
    let page = daemon.send(Method::GET, "/", &[("host", &format!("{id}.localhost:8080"))], "").await;
    assert_eq!((page.status.as_u16(), page.text().contains("has ended")), (410, true));
}

#[tokio::test]
async fn extending_stops_at_the_longest_time() {
    let host = Host::new();
    let daemon = host.start(&[("MAX_TTL", "1h"), ("DEFAULT_TTL", "10m")]).await;
    let id = daemon.acquire().await.id();
    let path = format!("/api/v1/demo/{id}/extend");
    let longer = daemon.post(&path, r#"{"ttl": "20m"}"#).await;
    assert_eq!(longer.status, 200);
    assert!((1790..=1800).contains(&longer.json()["ttl_seconds"].as_i64().unwrap()), "{}", longer.text());
    assert!((2390..=2400).contains(&daemon.post(&path, "").await.json()["ttl_seconds"].as_i64().unwrap()));
    for ttl in ["\"21m\"", "\"30h\"", "9223372036854775807"] {
        let told = daemon.post(&path, &format!(r#"{{"ttl": {ttl}}}"#)).await.problem(409);
        assert!(told.contains("may live until"), "{told}");
    }
    for ttl in ["0", "-1", "\"x\""] {
        daemon.post(&path, &format!(r#"{{"ttl": {ttl}}}"#)).await.problem(400);
    }
}

#[tokio::test]
async fn releasing_is_idempotent() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let id = daemon.acquire().await.id();
    for _ in 0..3 {
        let answer = daemon.delete(&format!("/api/v1/demo/{id}")).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (204, 0));
    }
    daemon.get(&format!("/api/v1/demo/{id}")).await.problem(410);
    eventually("it is gone", async || host.restore.traces().is_empty().then_some(())).await;
    assert_eq!(daemon.delete("/api/v1/demo/abcdefghijkl").await.status, 204, "absent is fine");
}

#[tokio::test]
async fn a_restart_adopts_what_lives_and_reaps_what_died() {
    let host = Host::new();
    let daemon = host.start(&[("POOL_TARGET_SIZE", "2")]).await;
    let (lives, died) = (daemon.acquire().await, daemon.acquire().await.id());
    let six = async || (host.restore.running().len() == 6).then_some(());
    eventually("two pools of two, and two handed out", six).await;
    let before: HashSet<_> = host.restore.running().into_iter().collect();
    daemon.stop().await;
    assert_eq!(host.restore.running().len(), 6, "instances outlive the daemon");
    host.restore.kill(&died.parse().unwrap());

    let daemon = host.start(&[("POOL_TARGET_SIZE", "2")]).await;
    let listed = daemon.get("/api/v1/demo").await.json();
    let ids: Vec<&str> =
        listed["instances"].as_array().unwrap().iter().map(|i| i["id"].as_str().unwrap()).collect();
    assert!(ids.contains(&lives.id().as_str()) && !ids.contains(&died.as_str()), "{ids:?}");
    let shown = daemon.get(&format!("/api/v1/demo/{}", lives.id())).await.json();
    assert_eq!((&shown["state"], &shown["expires_at"]), (&json!("assigned"), &lives.json()["expires_at"]));
    let next = daemon.acquire().await;
    assert_eq!(next.json()["source"], "pool", "the former pool is still there");
    assert!(before.contains(&next.id().parse().unwrap()));
    assert_ne!(next.id(), lives.id());
}

#[tokio::test]
async fn an_ephemeral_daemon_leaves_nothing() {
    let host = Host::new();
    let daemon = host.start_with(&[("POOL_TARGET_SIZE", "3")], OnExit::DestroyInstances).await;
    daemon.acquire().await;
    pool_has(&daemon, 3).await;
    daemon.stop().await;
    assert!(host.restore.traces().is_empty());
    assert_eq!(names_in(&host.state_dir()), ["ended", "lock", "store.redb", "web.key"]);
}

#[tokio::test]
async fn a_second_daemon_on_the_same_state_is_refused() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let error = host.build(&[], OnExit::KeepInstances).await.err().unwrap();
    assert!(matches!(error, AppError::AlreadyRunning { .. }), "{error}");
    daemon.stop().await;
    host.start(&[]).await.stop().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_its_instance_to_the_pool() {
    let host = Host::new();
    host.restore.hold();
    // With a target of 0 the pool would throw it away at once.
    let daemon = host.start(&[("POOL_TARGET_SIZE", "1"), ("RESTORE_CONCURRENCY", "4")]).await;
    // One for each of the two goldens.
    eventually("the pool's own restores begin", async || (host.restore.attempts() == 2).then_some(())).await;
    let mut client = tokio::net::TcpStream::connect(daemon.address).await.unwrap();
    let request = format!("POST {ACQUIRE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    eventually("the client's restore begins", async || (host.restore.attempts() == 3).then_some(())).await;
    drop(client);
    // The daemon notices by the closed socket; nothing else tells when it has.
    daemon.get("/livez").await;
    host.restore.let_go();
    // One of the two is more than the pool wants; neither is anybody's.
    let states = eventually("one is ready and the other gone", async || {
        let states = daemon.states().await;
        assert_eq!(states["assigned"], 0, "{states}");
        (states["warming"] == 0 && states["ready"] == 1 && states["expired"] == 0).then_some(states)
    })
    .await;
    assert_eq!(states["failed"], 0, "{states}");
    assert_eq!(daemon.acquire().await.json()["source"], "pool");
}

#[tokio::test]
async fn health_tells_what_is_wrong() {
    let host = Host::new();
    let daemon = host.start(&[("POOL_TARGET_SIZE", "1")]).await;
    pool_has(&daemon, 1).await;
    let health = daemon.get("/health").await;
    assert_eq!((health.status.as_u16(), &health.json()["status"]), (200, &json!("ok")), "{}", health.text());
    assert_eq!(daemon.get("/livez").await.status, 200);
    assert_eq!(daemon.get("/readyz").await.text(), "ready\n");
    host.restore.fail_make(Some((Phase::Restore, ErrorKind::Bug)));
    daemon.acquire().await;
    let health = eventually("it degrades", async || {
        let health = daemon.get("/health").await.json();
        (health["status"] == "degraded").then_some(health)
    })
    .await;
    assert!(health["pool"]["shop"]["failures_in_a_row"].as_u64().unwrap() > 0, "{health}");
    assert!(health["pool"]["shop"]["retry_at"].is_string(), "it says when it tries again");
}

#[tokio::test]
async fn the_metrics_mirror_the_state() {
    let host = Host::new();
    let daemon = host.start(&[("POOL_TARGET_SIZE", "1")]).await;
    pool_has(&daemon, 1).await;
    daemon.acquire().await;
    pool_has(&daemon, 1).await;
    let metrics = daemon.get("/metrics").await;
    assert!(metrics.headers["content-type"].to_str().unwrap().starts_with("text/plain"));
    for line in [
        r#"demo_multiplexer_pool_instances{golden="shop",state="ready"} 1"#,
        r#"demo_multiplexer_pool_instances{golden="shop",state="assigned"} 1"#,
        r#"demo_multiplexer_pool_target{golden="shop"} 1"#,
        "demo_multiplexer_build_info{version=",
        "demo_multiplexer_acquire_duration_seconds_bucket{",
        "demo_multiplexer_restore_phase_duration_seconds_bucket{",
    ] {
        assert!(metrics.text().contains(line), "{line} is not in\n{}", metrics.text());
    }
}

#[tokio::test]
async fn the_list_of_all_instances_is_for_this_host_only() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    daemon.acquire().await;
    let listed = daemon.get("/api/v1/demo").await;
    assert_eq!(listed.json()["instances"].as_array().map(Vec::len), Some(1));
    assert!(!listed.text().contains("password"));
    let through_a_proxy =
        daemon.send(Method::GET, "/api/v1/demo", &[("x-forwarded-for", "192.0.2.1")], "").await;
    through_a_proxy.problem(403);
}

#[tokio::test]
async fn a_request_id_is_taken_over_if_it_is_harmless() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let with = async |id: &str| daemon.send(Method::GET, "/livez", &[("x-request-id", id)], "").await;
    assert_eq!(with("abc-123").await.headers["x-request-id"], "abc-123");
    assert_ne!(with("<script>").await.headers["x-request-id"], "<script>");
}

#[tokio::test]
async fn a_stopping_daemon_finishes_what_it_began() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    host.restore.hold();
    let address = daemon.address;
    let client = tokio::spawn(async move {
        let request =
            http::Request::post(ACQUIRE).header("host", "localhost").body(axum::body::Body::empty());
        common::Answer::read(common::send(address, request.unwrap()).await).await
    });
    eventually("the restore begins", async || (host.restore.attempts() == 1).then_some(())).await;
    let stopping = tokio::spawn(daemon.stop());
    stopping_begun(address).await;
    let request = http::Request::post(ACQUIRE).header("host", "localhost").body(axum::body::Body::empty());
    let refused = common::Answer::read(common::send(address, request.unwrap()).await).await;
    assert!(refused.problem(503).contains("being stopped"));
    host.restore.let_go();
    let got: Value = client.await.unwrap().json();
    assert_eq!(got["source"], "restore", "{got}");
    stopping.await.unwrap();
}

/// Returns when the daemon says that it drains.
async fn stopping_begun(address: std::net::SocketAddr) {
    eventually("it drains", async || {
        let request =
            http::Request::get("/readyz").header("host", "localhost").body(axum::body::Body::empty());
        let answer = common::Answer::read(common::send(address, request.unwrap()).await).await;
        (answer.status == 503).then_some(())
    })
    .await;
}
