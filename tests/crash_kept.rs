//! A daemon that is killed while a shop is kept or opened: the shop, what was kept of
//! it before and its key are as they were, and nothing half done is left.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use host::daemon::Shop;
use host::trial::{KEEPING, OPENING, Trial};
use host::web::{self, Reply};
use host::{Daemon, eventually};
use serde_json::{Value, json};

/// Freezing's own, which putting to sleep passes, too.
const FREEZING: [&str; 3] = ["freeze:before-dump", "freeze:before-rename", "freeze:after-rename"];

/// A call that the daemon may not live to answer.
async fn call(daemon: &Daemon<'_>, path: &str, body: &Value) -> Option<Reply> {
    let headers = [("content-type", "application/json")];
    web::send(daemon.address(), "POST", "localhost", path, &headers, &body.to_string()).await.ok()
}

async fn save(daemon: &Daemon<'_>, shop: &Shop) -> Option<Reply> {
    call(daemon, &format!("/api/v1/demo/{}/save", shop.id()), &json!({})).await
}

async fn open(daemon: &Daemon<'_>, shop: &Shop, key: &str) -> Option<Reply> {
    call(daemon, &format!("/api/v1/saved/{}/open", shop.id()), &json!({ "key": key, "ttl": "1h" })).await
}

async fn is_mine(shop: &Shop, after: &str) {
    let page = shop.get("/").await;
    let text = page.text();
    assert!(page.status == 200 && text.contains("Mine"), "{after}: {} {text}", page.status);
}

async fn nothing_half_done_is_left(trial: &Trial, shop: &Shop, after: &str) {
    let names = |dir: &str| {
        let all = std::fs::read_dir(trial.place.state_dir().join(dir)).into_iter().flatten().flatten();
        all.map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    eventually(&format!("nothing half done is left after {after}"), 20, async || {
        let (saved, asleep) = (names("saved"), names("asleep"));
        let whole = saved.iter().all(|name| name == shop.id()) && asleep.is_empty();
        if whole { Ok(()) } else { Err(format!("{saved:?} {asleep:?}")) }
    })
    .await;
}

/// Whoever asked goes away before the shop is kept. The former key opens it, below.
async fn is_not_kept_for_nobody(trial: &Trial, daemon: &Daemon<'_>, shop: &Shop) {
    const POINT: &str = "save:before-rename";
    let record = trial.place.state_dir().join("saved").join(shop.id()).join("saved.json");
    let (former, before) = (std::fs::read(&record).unwrap(), trial.times(POINT));
    trial.arm(POINT, "wait");
    tokio::select! {
        reply = save(daemon, shop) => panic!("it was to wait: {:?}", reply.map(|reply| reply.status)),
        () = trial.was_passed(POINT, before) => {}
    }
    // Until the daemon knows, it keeps it.
    eventually("the daemon sees its client go", 20, async || {
        let told = trial.place.log().contains("client gone before its instance was kept");
        if told { Ok(()) } else { Err("it does not".to_owned()) }
    })
    .await;
    trial.disarm();
    nothing_half_done_is_left(trial, shop, "its visitor's going").await;
    assert_eq!(std::fs::read(&record).unwrap(), former, "what was kept before still is");
    is_mine(shop, "its visitor's going").await;
}

#[tokio::test]
async fn a_daemon_killed_while_a_shop_is_kept_or_opened_loses_nothing_of_it() {
    let Some(trial) = Trial::begin("crash-kept").await else { return };
    let mut daemon = trial.daemon("0").await;
    let shop = trial.visited(&daemon).await;
    for point in FREEZING.iter().chain(KEEPING) {
        let (after, before) = (format!("death at {point}"), trial.times(point));
        trial.arm(point, "abort");
        drop(save(&daemon, &shop).await);
        daemon.dies().await;
        trial.disarm();
        assert!(trial.times(point) > before, "{after}: it died of something else");
        daemon = trial.daemon("0").await;
        trial.is_clean(&after).await;
        // Which wakes one that sleeps.
        is_mine(&shop, &after).await;
        nothing_half_done_is_left(&trial, &shop, &after).await;
    }
    let kept = save(&daemon, &shop).await.unwrap();
    let key = kept.json()["key"].as_str().unwrap().to_owned();
    is_not_kept_for_nobody(&trial, &daemon, &shop).await;
    for point in OPENING {
        let (after, before) = (format!("death at {point}"), trial.times(point));
        daemon.release(shop.id()).await;
        daemon.holds_nothing().await;
        trial.arm(point, "abort");
        drop(open(&daemon, &shop, &key).await);
        daemon.dies().await;
        trial.disarm();
        assert!(trial.times(point) > before, "{after}: it died of something else");
        daemon = trial.daemon("0").await;
        trial.is_clean(&after).await;
        eventually("it can be opened", 20, async || {
            let opened = open(&daemon, &shop, &key).await.unwrap();
            if opened.status == 201 { Ok(()) } else { Err(opened.text().into_owned()) }
        })
        .await;
        is_mine(&shop, &after).await;
        nothing_half_done_is_left(&trial, &shop, &after).await;
    }
    trial.finish(daemon).await;
}
