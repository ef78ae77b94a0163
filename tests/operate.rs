//! What an operator does to a running daemon over the API: the pool's target, the
//! drain, the list of instances, their logs.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Answer, Daemon, Host};
use demo_multiplexer::testing::eventually;
use http::Method;
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
