//! A new snapshot of a real golden comes to be served behind live traffic, and an
//! old one again; what was promoted is what the next daemon serves.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use host::daemon::Daemon;
use host::{Place, eventually, golden, web};
use serde_json::{Value, json};

/// Asks the daemon for long work that succeeds.
async fn done(daemon: &Daemon<'_>, method: &str, path: &str, body: &Value) -> Value {
    let ended = ended(daemon, method, path, body).await;
    assert_eq!(ended["state"], "done", "{ended}");
    ended
}

/// Asks the daemon for long work and waits for its end.
async fn ended(daemon: &Daemon<'_>, method: &str, path: &str, body: &Value) -> Value {
    let headers = [("content-type", "application/json")];
    let begun = web::send(daemon.address(), method, "localhost", path, &headers, &body.to_string()).await;
    let begun = begun.unwrap();
    assert_eq!(begun.status, 202, "{}", begun.text());
    let task = format!("/api/v1/tasks/{}", begun.json()["number"]);
    eventually("the task ends", 120, async || {
        let task = daemon.get(&task).await.json();
        if task["state"] == "running" { Err(task.to_string()) } else { Ok(task) }
    })
    .await
}

/// Waits until all that is ready came from that snapshot, two of them.
async fn pool_is_of(daemon: &Daemon<'_>, snapshot: &str) {
    eventually("the pool is of the new one", 60, async || {
        let all = daemon.get("/api/v1/demo?state=ready").await.json();
        let ready = all["instances"].as_array().unwrap();
        let fits = ready.len() == 2 && ready.iter().all(|it| it["snapshot"] == snapshot);
        if fits { Ok(()) } else { Err(all.to_string()) }
    })
    .await;
}

async fn served(daemon: &Daemon<'_>) -> String {
    daemon.get("/api/v1/goldens").await.json()["goldens"][0]["snapshot"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_snapshot_is_taken_promoted_and_taken_back_while_visitors_have_shops() {
    let Some(place) = Place::beside_others("refresh").await else { return };
    let (old, _) = golden::snapshot();
    let snapshots = place.has_its_own_snapshots(&golden::snapshots()).await;
    let settings = [
        ("SNAPSHOT_DIR", snapshots.to_str().unwrap()),
        ("POOL_TARGET_SIZE", "2"),
        ("SLOTS_AHEAD", "2"),
        ("MAX_INSTANCES", "6"),
    ];
    let daemon = place.lasting_daemon(&settings).await;
    daemon.pool_has(2).await;
    let shop = daemon.acquire("pool").await;

    let booting = golden::only_one_boots().await;
    let taken = done(&daemon, "POST", "/api/v1/snapshots", &json!({ "golden": "wordpress" })).await;
    drop(booting);
    let new = taken["result"].as_str().unwrap().to_owned();
    assert!(taken["steps"].as_array().unwrap().len() > 2, "{taken}");
    assert_eq!(served(&daemon).await, old, "it is not served before it is promoted");
    done(&daemon, "POST", &format!("/api/v1/snapshots/{new}/verify"), &json!({})).await;

    done(&daemon, "POST", &format!("/api/v1/snapshots/{new}/promote"), &json!({})).await;
    assert_eq!(served(&daemon).await, new);
    pool_is_of(&daemon, &new).await;
    assert_eq!(shop.get("/").await.status, 200, "the visitor's shop of the former one lives on");
    let next = daemon.acquire("pool").await;
    assert_eq!(next.get("/").await.status, 200);
    let logs = daemon.get(&format!("/api/v1/demo/{}/logs?tail=5", next.id())).await.json();
    assert!(logs["files"].as_array().is_some_and(|files| !files.is_empty()), "{logs}");

    // Back to the older one, which then counts after a restart, though it is not the newest.
    done(&daemon, "POST", &format!("/api/v1/snapshots/{old}/promote"), &json!({})).await;
    pool_is_of(&daemon, &old).await;
    daemon.kill().await;
    let daemon = place.daemon(&settings).await;
    assert_eq!(served(&daemon).await, old);
    assert_eq!((shop.get("/").await.status, next.get("/").await.status), (200, 200), "both are adopted");

    let path = format!("/api/v1/snapshots/{new}");
    let refused = web::send(daemon.address(), "DELETE", "localhost", &path, &[], "").await.unwrap();
    assert_eq!(refused.status, 409, "a visitor's shop runs on it");
    let kept = format!("/api/v1/demo/{}/save", next.id());
    let kept = web::send(daemon.address(), "POST", "localhost", &kept, &[], "").await.unwrap();
    assert_eq!(kept.status, 201, "{}", kept.text());
    daemon.release(next.id()).await;
    eventually("the shop is gone", 30, async || {
        let all = daemon.get(&format!("/api/v1/demo?q={}", next.id())).await.json();
        if all["total"] == 0 { Ok(()) } else { Err(all.to_string()) }
    })
    .await;
    let held = ended(&daemon, "DELETE", &path, &json!({})).await;
    let why = format!("{} is kept on them", next.id());
    assert!(held["error"].as_str().is_some_and(|held| held.contains(&why)), "{held}");
    place.cli_with(&["saved", "rm", next.id()], &settings).await.ok();
    done(&daemon, "DELETE", &path, &json!({})).await;
    for gone in [snapshots.join(&new), place.state_dir().join("prepared").join(&new)] {
        assert!(!gone.try_exists().unwrap(), "{}", gone.display());
    }
    assert_eq!(daemon.acquire("pool").await.get("/").await.status, 200);
    daemon.stop().await;
}
