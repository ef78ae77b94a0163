//! What an operator does to a running daemon over the API: the pool's target, the
//! drain, the list of instances, their logs, what happened, who is near a limit.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::time::Duration;

use common::{Answer, Daemon, Host};
use demo_multiplexer::testing::eventually;
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

const TARGET: &str = "/api/v1/pool/target";
const DRAIN: &str = "/api/v1/pool/drain";
const VISITOR: (&str, &str) = ("x-forwarded-for", "203.0.113.5");

async fn put(daemon: &Daemon, body: &Value) -> Answer {
    daemon.send(Method::PUT, TARGET, &[("content-type", "application/json")], &body.to_string()).await
}

async fn ready_are(daemon: &Daemon, golden: usize, wanted: usize) {
    eventually("as many are ready as wanted", async || {
        let stats = daemon.get("/api/v1/pool/stats").await.json();
        (stats["goldens"][golden]["states"]["ready"] == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_target_set_at_run_time_fills_the_pool_and_empties_it_again() {
    let host = Host::new();
    let daemon = host.start(&[("MAX_INSTANCES", "8")]).await;
    let answer = put(&daemon, &json!({ "golden": "shop", "target": 3 })).await.json();
    assert_eq!(answer["goldens"][0], json!({ "golden": "shop", "target": 3, "usual": 0 }));
    assert_eq!(answer["goldens"][1]["target"], 0, "the other golden's stays");
    assert_eq!(answer["max_instances"], 8);
    ready_are(&daemon, 0, 3).await;
    assert_eq!(daemon.get("/api/v1/pool/stats").await.json()["goldens"][0]["target"], 3);
    put(&daemon, &json!({ "target": 1 })).await;
    ready_are(&daemon, 0, 1).await;
    ready_are(&daemon, 1, 1).await;
    put(&daemon, &json!({})).await;
    ready_are(&daemon, 0, 0).await;
    assert_eq!(daemon.get(TARGET).await.json()["goldens"][0]["target"], 0, "the settings' again");
    daemon.stop().await;
}

#[tokio::test]
async fn a_target_beyond_the_host_or_of_no_golden_is_refused() {
    let host = Host::new();
    let daemon = host.start(&[("MAX_INSTANCES", "8")]).await;
    let told = put(&daemon, &json!({ "target": 9 })).await.problem(400);
    assert!(told.contains("more than MAX_INSTANCES, which is 8"), "{told}");
    let told = put(&daemon, &json!({ "golden": "shoop", "target": 1 })).await.problem(400);
    assert!(told.contains("there are: shop, other"), "{told}");
    assert_eq!(put(&daemon, &json!({ "target": -1 })).await.status, 400);
    assert_eq!(daemon.get(TARGET).await.json()["goldens"][0]["target"], 0, "nothing has changed");
    daemon.stop().await;
}

#[tokio::test]
async fn a_drained_pool_hands_out_nothing_and_keeps_what_it_has() {
    let host = Host::new();
    let daemon = host.start(&[("POOL_TARGET_SIZE", "2")]).await;
    ready_are(&daemon, 0, 2).await;
    ready_are(&daemon, 1, 2).await;
    let acquire = "/api/v1/demo/acquire";
    let key = [("idempotency-key", "mine")];
    let mine = daemon.send(Method::POST, acquire, &key, "").await.id();
    ready_are(&daemon, 0, 2).await;
    let attempts = host.restore.attempts();
    let answer = daemon.post(DRAIN, "").await.json();
    assert!(answer["drained"] == true && answer["since"].is_string(), "{answer}");
    let again = daemon.post(DRAIN, "").await.json();
    assert_eq!(again, answer, "once is enough");

    let refused = daemon.acquire().await;
    assert!(refused.headers.contains_key("retry-after"));
    assert!(refused.problem(503).contains("the operator has drained the pool"));
    let ready = daemon.get("/readyz").await;
    assert_eq!((ready.status.as_u16(), ready.text()), (503, "drained\n"));
    assert_eq!(daemon.get("/livez").await.status, 200);
    assert_eq!(daemon.send(Method::POST, acquire, &key, "").await.id(), mine, "it has one already");
    put(&daemon, &json!({ "target": 0 })).await;
    daemon.delete(&format!("/api/v1/demo/{mine}")).await;
    // Both of these would have had the pool looked at.
    let stats = daemon.get("/api/v1/pool/stats").await.json();
    assert_eq!((&stats["drained"], &stats["goldens"][0]["states"]["ready"]), (&json!(true), &json!(2)));
    assert_eq!(host.restore.attempts(), attempts, "nothing was made");

    assert_eq!(daemon.delete(DRAIN).await.json(), json!({ "drained": false, "since": null }));
    assert_eq!(daemon.get("/readyz").await.text(), "ready\n");
    ready_are(&daemon, 0, 0).await;
    assert_eq!(daemon.acquire().await.status, 201);
    daemon.stop().await;
}

#[tokio::test]
async fn the_list_is_searched_filtered_and_sorted() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let first = daemon.acquire().await.id();
    let second = daemon.post("/api/v1/demo/acquire", r#"{"golden": "other"}"#).await.id();
    put(&daemon, &json!({ "golden": "shop", "target": 1 })).await;
    ready_are(&daemon, 0, 1).await;
    let ids = async |query: &str| -> (Vec<String>, Value) {
        let answer = daemon.get(&format!("/api/v1/demo{query}")).await.json();
        let all = answer["instances"].as_array().unwrap().iter();
        (all.map(|it| it["id"].as_str().unwrap().to_owned()).collect(), answer["total"].clone())
    };
    assert_eq!(ids(&format!("?q={first}")).await, (vec![first.clone()], json!(1)));
    assert_eq!(ids("?golden=other").await.0, std::slice::from_ref(&second));
    assert_eq!(ids("?state=assigned&sort=-created").await.0, [second.clone(), first.clone()]);
    let (one, total) = ids("?limit=1").await;
    assert_eq!((one, total), (vec![first.clone()], json!(3)));
    let shown = daemon.get(&format!("/api/v1/demo?q={second}")).await.json();
    assert_eq!(shown["instances"][0]["shell_command"], format!("demo-multiplexer exec {second} -- sh"));
    for wrong in ["?state=sleepy", "?sort=size", "?limit=0", "?limit=x", "?colour=red"] {
        daemon.get(&format!("/api/v1/demo{wrong}")).await.problem(400);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn logs_are_of_shops_that_run_and_for_the_operator() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let id = daemon.acquire().await.id();
    let path = format!("/api/v1/demo/{id}/logs");
    // The scripted shop's process is none: it has the pid of another.
    let told = daemon.get(&path).await.problem(409);
    assert!(told.contains("does not run"), "{told}");
    daemon.get(&format!("{path}?tail=0")).await.problem(400);
    daemon.get("/api/v1/demo/aaaaaaaaaaaa/logs").await.problem(404);
    daemon.send(Method::GET, &path, &[VISITOR], "").await.problem(403);
    daemon.delete(&format!("/api/v1/demo/{id}")).await;
    let gone = daemon.get(&path).await;
    assert!(matches!(gone.status.as_u16(), 404 | 410), "{}", gone.text());
    daemon.stop().await;
}

#[tokio::test]
async fn only_the_operator_steers() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    for (method, path) in
        [(Method::GET, TARGET), (Method::PUT, TARGET), (Method::POST, DRAIN), (Method::DELETE, DRAIN)]
    {
        daemon.send(method, path, &[VISITOR], "").await.problem(403);
    }
    assert_eq!(daemon.get("/readyz").await.text(), "ready\n");
    daemon.stop().await;
}

#[tokio::test]
async fn what_happened_is_told_the_newest_first_and_as_it_comes() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let stream = common::send(
        daemon.address,
        http::Request::get("/api/v1/events/stream").header("host", "localhost:8080").body("".into()).unwrap(),
    )
    .await;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let mut stream = stream.into_body();
    let id = daemon.acquire().await.id();
    let mut told = String::new();
    while !told.contains("\"happened\":\"assigned\"") || !told.contains("event: sample\n") {
        let frame = tokio::time::timeout(Duration::from_secs(20), stream.frame()).await;
        let frame = frame.expect("it is told in time").expect("the stream goes on").unwrap();
        told.push_str(std::str::from_utf8(&frame.into_data().unwrap()).unwrap());
    }
    assert!(told.starts_with("retry: "), "{told}");
    assert!(told.contains("event: change\n"), "{told}");
    let events = daemon.get("/api/v1/events?limit=2").await.json();
    let events = events["events"].as_array().unwrap().clone();
    assert_eq!(events.len(), 2);
    assert_eq!((&events[0]["happened"], &events[0]["instance_id"]), (&json!("assigned"), &json!(id)));
    assert_eq!(events[1]["happened"], "warming");
    let last = format!("id: {}\n", events[0]["number"]);
    assert!(told.contains(&last), "{told}");

    // Who comes back is told what was missed, and no more.
    let seen = events[1]["number"].to_string();
    let again = http::Request::get("/api/v1/events/stream")
        .header("host", "localhost:8080")
        .header("last-event-id", seen)
        .body("".into())
        .unwrap();
    let mut again = common::send(daemon.address, again).await.into_body();
    let first = again.frame().await.unwrap().unwrap().into_data().unwrap();
    let first = std::str::from_utf8(&first).unwrap();
    assert!(first.contains(&last) && !first.contains("\"happened\":\"warming\""), "{first}");
    daemon.get("/api/v1/events?limit=0").await.problem(400);
    daemon.stop().await;
}

#[tokio::test]
async fn a_stopped_daemon_ends_its_event_streams() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let stream = http::Request::get("/api/v1/events/stream").header("host", "localhost:8080");
    let stream = common::send(daemon.address, stream.body("".into()).unwrap()).await.into_body();
    let (whole, ()) = tokio::join!(stream.collect(), daemon.stop());
    assert!(whole.is_ok(), "it ends as an answer does");
}

#[tokio::test]
async fn the_history_has_what_acquires_took_and_how_the_host_is() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    daemon.acquire().await.id();
    // It is made first and handed over then: a sample may be taken between the two.
    let (made, sample) = eventually("what was made and its acquire are in the samples", async || {
        let history = daemon.get("/api/v1/history?minutes=5").await.json();
        assert_eq!(history["every_seconds"], 5);
        let samples = history["samples"].as_array().unwrap().clone();
        let made = samples.iter().find(|sample| sample["made"] == 1)?.clone();
        Some((made, samples.into_iter().find(|sample| sample["acquires"]["restore"]["count"] == 1)?))
    })
    .await;
    assert_eq!(sample["hit_ratio"], 0.0);
    assert!(made["phases_ms"]["restore"].as_f64().unwrap() >= 1.0, "{made}");
    let number = |field: &str| sample[field].as_u64().unwrap();
    assert!(number("memory_used_bytes") > 0 && number("memory_used_bytes") < number("memory_bytes"));
    assert!(number("disk_bytes") > 0 && number("disk_used_bytes") <= number("disk_bytes"));
    for wrong in ["?minutes=0", "?minutes=61", "?hours=1"] {
        daemon.get(&format!("/api/v1/history{wrong}")).await.problem(400);
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_client_at_its_limit_is_seen_and_cleared() {
    let host = Host::new();
    let daemon = host.start(&[("RATE_LIMIT_HOURLY", "2")]).await;
    let acquire = async |client: &str| {
        daemon.send(Method::POST, "/api/v1/demo/acquire", &[("x-forwarded-for", client)], "").await.status
    };
    assert_eq!(acquire("203.0.113.9").await, 201);
    for expected in [201, 201, 429] {
        assert_eq!(acquire("203.0.113.5").await, expected);
    }
    let limits = daemon.get("/api/v1/limits").await.json();
    assert_eq!((&limits["hourly"], &limits["clients"][0]["client"]), (&json!(2), &json!("ip:203.0.113.5")));
    let first = &limits["clients"][0];
    assert_eq!(
        (&first["hour_left"], &first["refused"], &first["limited"]),
        (&json!(0), &json!(1), &json!(true))
    );
    assert_eq!(limits["clients"][1]["limited"], false);
    assert_eq!(daemon.delete("/api/v1/limits/ip:203.0.113.5").await.status, 204);
    assert_eq!(acquire("203.0.113.5").await, 201, "it begins anew");
    assert_eq!(daemon.delete("/api/v1/limits/ip:198.51.100.1").await.status, 204, "nobody is fine");
    daemon.delete("/api/v1/limits/everybody").await.problem(400);
    daemon.stop().await;
}
