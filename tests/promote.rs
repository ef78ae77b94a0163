//! Snapshots of a running daemon over the API, on a scripted workshop: taken,
//! verified, tried and promoted behind live traffic, removed.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::sync::Arc;

use common::{Daemon, Host};
use demo_multiplexer::engine::Phase;
use demo_multiplexer::error::ErrorKind;
use demo_multiplexer::instance::EngineKind;
use demo_multiplexer::testing::workshop::ScriptedWorkshop;
use demo_multiplexer::testing::{Script, eventually};
use http::Method;
use serde_json::{Value, json};

const SNAPSHOTS: &str = "/api/v1/snapshots";
const OLD: &str = "shop-1-aaaa";
const NEW: &str = "shop-2-bbbb";
const VISITOR: (&str, &str) = ("x-forwarded-for", "203.0.113.5");

/// A daemon that serves OLD and has NEW as well, whose shops another script makes.
struct World {
    host: Host,
    daemon: Daemon,
    workshop: Arc<ScriptedWorkshop>,
    new: Arc<Script>,
}

impl World {
    async fn start(changes: &[(&str, &str)]) -> Self {
        let (host, workshop) = (Host::new(), ScriptedWorkshop::new());
        let new = Script::quiet(EngineKind::Criu);
        workshop.add(OLD, "shop", &host.restore);
        workshop.add(NEW, "shop", &new);
        let daemon = host.start_serving(OLD, &workshop, changes).await;
        Self { host, daemon, workshop, new }
    }

    async fn snapshot(&self, id: &str) -> Value {
        let all = self.daemon.get(SNAPSHOTS).await.json();
        let found = all["snapshots"].as_array().unwrap().iter().find(|it| it["id"] == id);
        found.unwrap_or_else(|| panic!("no {id}: {all}")).clone()
    }

    async fn promote(&self, id: &str) -> Value {
        self.daemon.ended(&self.daemon.post(&format!("{SNAPSHOTS}/{id}/promote"), "").await).await
    }

    /// Snapshots of the ready instances, sorted.
    async fn ready(&self) -> Vec<String> {
        let all = self.daemon.get("/api/v1/demo?state=ready").await.json();
        let of = |it: &Value| it["snapshot"].as_str().unwrap().to_owned();
        let mut ready: Vec<String> = all["instances"].as_array().unwrap().iter().map(of).collect();
        ready.sort();
        ready
    }

    async fn ready_are(&self, wanted: &[&str]) {
        eventually("the pool is as wanted", async || (self.ready().await == wanted).then_some(())).await;
    }
}

#[tokio::test]
async fn a_promoted_snapshot_replaces_the_pool_and_never_empties_it() {
    let world = World::start(&[("POOL_TARGET_SIZE", "3")]).await;
    world.ready_are(&[OLD, OLD, OLD]).await;
    let mine = world.daemon.acquire().await.id();
    world.ready_are(&[OLD, OLD, OLD]).await;

    // How few are ready at any moment meanwhile.
    let watching = async {
        let mut fewest = usize::MAX;
        loop {
            let count = world.ready().await.len();
            fewest = fewest.min(count);
            if world.snapshot(NEW).await["served"] == true && world.ready().await == [NEW, NEW, NEW] {
                return fewest;
            }
        }
    };
    let (task, fewest) = tokio::join!(world.promote(NEW), watching);
    assert_eq!((&task["state"], &task["kind"]), (&json!("done"), &json!("promote")), "{task}");
    assert!(fewest >= 2, "only {fewest} were ready");
    world.ready_are(&[NEW, NEW, NEW]).await;

    let (old, new) = (world.snapshot(OLD).await, world.snapshot(NEW).await);
    assert_eq!(
        (&old["served"], &new["served"], &new["promoted"]),
        (&json!(false), &json!(true), &json!(true))
    );
    assert_eq!(old["instances"], 1, "the visitor's stays");
    assert_eq!(world.daemon.get(&format!("/api/v1/demo/{mine}")).await.json()["snapshot"], OLD);
    let goldens = world.daemon.get("/api/v1/goldens").await.json();
    assert_eq!(goldens["goldens"][0]["snapshot"], NEW);
    let next = world.daemon.acquire().await.id();
    assert_eq!(world.daemon.get(&format!("/api/v1/demo/{next}")).await.json()["snapshot"], NEW);
    assert!(world.new.first_pages().contains(&demo_multiplexer::restore::FirstPage::Fetched));
    // The visitor's shop of the former snapshot can still be ended.
    assert_eq!(world.daemon.delete(&format!("/api/v1/demo/{mine}")).await.status, 204);
    world.daemon.stop().await;
}

#[tokio::test]
async fn a_snapshot_whose_trial_shop_is_no_good_is_refused_and_the_old_one_stays() {
    let world = World::start(&[("POOL_TARGET_SIZE", "2")]).await;
    world.ready_are(&[OLD, OLD]).await;
    world.new.fail_make(Some((Phase::Probe, ErrorKind::Bug)));
    let task = world.promote(NEW).await;
    assert_eq!(task["state"], "failed");
    let error = task["error"].as_str().unwrap();
    assert!(error.contains("is refused") && error.contains(&format!("{OLD} is served on")), "{error}");
    assert_eq!(world.snapshot(OLD).await["served"], true);
    let refused = world.snapshot(NEW).await;
    assert!(refused["refused"].as_str().unwrap().contains("phase probe"), "{refused}");
    assert!(world.new.traces().is_empty(), "nothing of the trial is left");
    world.ready_are(&[OLD, OLD]).await;

    // It is mended, and an operator wants it after all.
    world.new.fail_make(None);
    assert_eq!(world.promote(NEW).await["state"], "done");
    assert_eq!(world.snapshot(NEW).await["refused"], Value::Null);
    world.daemon.stop().await;
}

#[tokio::test]
async fn a_host_without_room_refuses_no_snapshot_for_it() {
    let world = World::start(&[("POOL_TARGET_SIZE", "0"), ("MAX_INSTANCES", "1")]).await;
    let mine = world.daemon.acquire().await.id();
    let task = world.promote(NEW).await;
    assert!(task["error"].as_str().unwrap().contains("no trial shop"), "{task}");
    assert_eq!(world.snapshot(NEW).await["refused"], Value::Null, "it is not its fault");
    world.daemon.delete(&format!("/api/v1/demo/{mine}")).await;
    eventually("the place is free", async || {
        (world.daemon.get("/api/v1/pool/stats").await.json()["instances"] == 0).then_some(())
    })
    .await;
    assert_eq!(world.promote(NEW).await["state"], "done");
    world.daemon.stop().await;
}

#[tokio::test]
async fn one_task_runs_at_a_time_and_tells_how_far_it_is() {
    let world = World::start(&[]).await;
    world.workshop.hold();
    let begun = world.daemon.post(SNAPSHOTS, r#"{"golden": "shop"}"#).await;
    assert_eq!((begun.status.as_u16(), &begun.json()["state"]), (202, &json!("running")));
    let path = begun.headers["location"].to_str().unwrap();
    eventually("it says what it does", async || {
        let task = world.daemon.get(path).await.json();
        (task["steps"] == json!(["booting it"])).then_some(())
    })
    .await;
    let told = world.daemon.post(&format!("{SNAPSHOTS}/{OLD}/verify"), "").await.problem(409);
    assert!(told.contains("create of shop is under way"), "{told}");
    world.workshop.let_go();
    let task = world.daemon.ended(&begun).await;
    let made = task["result"].as_str().unwrap().to_owned();
    assert_eq!(world.snapshot(&made).await["served"], false, "it is served when it is promoted");
    assert_eq!(world.daemon.get("/api/v1/tasks").await.json()["tasks"][0]["number"], task["number"]);
    world.daemon.post(SNAPSHOTS, r#"{"golden": "shoop"}"#).await.problem(400);
    world.daemon.get("/api/v1/tasks/99").await.problem(404);
    world.daemon.stop().await;
}

#[tokio::test]
async fn verifying_tells_a_damaged_snapshot_and_it_is_not_served() {
    let world = World::start(&[]).await;
    let verify = async |id: &str| {
        world.daemon.ended(&world.daemon.post(&format!("{SNAPSHOTS}/{id}/verify"), "").await).await
    };
    assert_eq!(verify(NEW).await["result"], "whole");
    world.workshop.damage(NEW);
    assert!(verify(NEW).await["error"].as_str().unwrap().contains("damaged"));
    assert_eq!(world.promote(NEW).await["state"], "failed");
    assert_eq!(world.snapshot(OLD).await["served"], true);
    world.daemon.post(&format!("{SNAPSHOTS}/shop-7-cccc/verify"), "").await.problem(404);
    world.daemon.stop().await;
}

#[tokio::test]
async fn what_is_in_use_is_neither_removed_nor_pruned() {
    let world = World::start(&[]).await;
    let mine = world.daemon.acquire().await.id();
    let told = world.daemon.delete(&format!("{SNAPSHOTS}/{OLD}")).await.problem(409);
    assert!(told.contains("promote another one first"), "{told}");
    assert_eq!(world.promote(NEW).await["state"], "done");
    let told = world.daemon.delete(&format!("{SNAPSHOTS}/{OLD}")).await.problem(409);
    assert!(told.contains(&format!("{mine} runs on its files")), "{told}");
    let pruned =
        world.daemon.ended(&world.daemon.post(&format!("{SNAPSHOTS}/prune"), r#"{"keep": 1}"#).await).await;
    assert_eq!(pruned["result"], "nothing to remove", "{pruned}");
    world.daemon.post(&format!("{SNAPSHOTS}/prune"), r#"{"keep": 0}"#).await.problem(400);
    world.workshop.add("shop-0-dddd", "shop", &world.host.restore);
    let removed = world.daemon.delete(&format!("{SNAPSHOTS}/shop-0-dddd")).await;
    assert_eq!(world.daemon.ended(&removed).await["result"], "removed");
    world.daemon.stop().await;
}

#[tokio::test]
async fn snapshots_are_the_operators_and_a_daemon_may_have_none() {
    let world = World::start(&[]).await;
    for (method, path) in [
        (Method::GET, SNAPSHOTS.to_owned()),
        (Method::POST, SNAPSHOTS.to_owned()),
        (Method::POST, format!("{SNAPSHOTS}/{NEW}/promote")),
        (Method::DELETE, format!("{SNAPSHOTS}/{NEW}")),
        (Method::GET, "/api/v1/tasks".to_owned()),
    ] {
        world.daemon.send(method, &path, &[VISITOR], "").await.problem(403);
    }
    world.daemon.stop().await;
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let told = daemon.get(SNAPSHOTS).await.problem(409);
    assert!(told.contains("restores no snapshots"), "{told}");
    daemon.stop().await;
}

/// The golden `shop` as the daemon shows it, and of what its ready ones are.
async fn shop_of(daemon: &Daemon) -> (Value, Vec<Value>) {
    let goldens = daemon.get("/api/v1/goldens").await.json();
    let ready = daemon.get("/api/v1/demo?state=ready&golden=shop").await.json();
    let ready = ready["instances"].as_array().unwrap().iter().filter(|one| one["golden"] == "shop");
    (goldens["goldens"][0].clone(), ready.map(|one| one["snapshot"].clone()).collect())
}

#[tokio::test]
async fn a_golden_that_is_only_booted_is_restored_as_soon_as_there_is_a_snapshot() {
    let (host, workshop) = (Host::new(), ScriptedWorkshop::new());
    let changes = [("POOL_TARGET_SIZE", "2"), ("COLD_START", "allowed")];
    let daemon = host.start_booting(&workshop, &changes).await;
    let booted = [Value::Null, Value::Null];
    eventually("two booted ones are ready", async || (shop_of(&daemon).await.1 == booted).then_some(()))
        .await;
    let mine = daemon.acquire().await.id();
    let shown = shop_of(&daemon).await.0;
    assert_eq!(
        (&shown["golden"], &shown["no_restore"]),
        (&json!("shop"), &json!("no snapshot of it is there"))
    );

    // One that is no good changes nothing but what is said.
    let (bad, new) = (Script::quiet(EngineKind::Criu), Script::quiet(EngineKind::Criu));
    bad.fail_make(Some((Phase::Probe, ErrorKind::Bug)));
    workshop.add(OLD, "shop", &bad);
    let shown = eventually("it is tried", async || {
        let shown = shop_of(&daemon).await.0;
        shown["no_restore"].as_str().is_some_and(|why| why.contains(OLD)).then_some(shown)
    })
    .await;
    let why = shown["no_restore"].as_str().unwrap();
    assert!(why.contains("is refused") && why.contains("its golden is booted on"), "{why}");
    assert!(bad.traces().is_empty(), "nothing of the trial is left");
    assert_eq!(daemon.get("/health").await.json()["pool"]["shop"]["status"], "degraded");

    workshop.add(NEW, "shop", &new);
    eventually("the pool is restored from it", async || {
        let (shown, ready) = shop_of(&daemon).await;
        (shown["snapshot"] == NEW && ready == [json!(NEW), json!(NEW)]).then_some(())
    })
    .await;
    let (shown, _) = shop_of(&daemon).await;
    assert_eq!(
        (&shown["golden"], &shown["no_restore"]),
        (&json!("shop"), &Value::Null),
        "it is the first one still"
    );
    let next = daemon.get(&format!("/api/v1/demo/{}", daemon.acquire().await.id())).await.json();
    assert_eq!(next["snapshot"], NEW);
    assert!(new.first_pages().contains(&demo_multiplexer::restore::FirstPage::Fetched), "it was tried");
    let listed = daemon.get(SNAPSHOTS).await.json();
    let listed = listed["snapshots"].as_array().unwrap().iter().find(|it| it["id"] == NEW).cloned().unwrap();
    assert_eq!((&listed["served"], &listed["promoted"]), (&json!(true), &json!(false)), "nobody promoted it");
    let tasks = daemon.get("/api/v1/tasks").await.json();
    let begun = |state: &str| {
        let all = tasks["tasks"].as_array().unwrap().iter();
        all.filter(|it| it["kind"] == "begin" && it["state"] == state).count()
    };
    assert_eq!((begun("done"), begun("failed")), (1, 1), "{tasks}");
    assert_eq!(daemon.get("/health").await.json()["pool"]["shop"]["status"], "ok");

    // The visitor's booted shop is what it was, and ends.
    assert_eq!(daemon.get(&format!("/api/v1/demo/{mine}")).await.json()["made_by"], "cold");
    assert_eq!(daemon.delete(&format!("/api/v1/demo/{mine}")).await.status, 204);
    eventually("no booted one is left", async || host.cold.traces().is_empty().then_some(())).await;
    // A later one is an operator's to promote.
    let taken = daemon.ended(&daemon.post(SNAPSHOTS, r#"{"golden": "shop"}"#).await).await;
    assert_eq!((&taken["state"], shop_of(&daemon).await.0["snapshot"].clone()), (&json!("done"), json!(NEW)));
    daemon.stop().await;
}

#[tokio::test]
async fn an_operator_may_promote_what_a_booted_golden_is_to_be_restored_from() {
    let (host, workshop) = (Host::new(), ScriptedWorkshop::new());
    let daemon = host.start_booting(&workshop, &[]).await;
    let bad = Script::quiet(EngineKind::Criu);
    bad.fail_make(Some((Phase::Probe, ErrorKind::Bug)));
    workshop.add(OLD, "shop", &bad);
    eventually("it is refused", async || {
        let why = shop_of(&daemon).await.0["no_restore"].clone();
        why.as_str().is_some_and(|why| why.contains("is refused")).then_some(())
    })
    .await;
    bad.fail_make(None);
    let promoted = daemon.post(&format!("{SNAPSHOTS}/{OLD}/promote"), "").await;
    assert_eq!(daemon.ended(&promoted).await["state"], "done");
    assert_eq!(shop_of(&daemon).await.0["snapshot"], OLD);
    let listed = daemon.get(SNAPSHOTS).await.json();
    assert_eq!(listed["snapshots"][0]["promoted"], true, "{listed}");
    daemon.stop().await;
}
