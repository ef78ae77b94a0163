//! A daemon that fails, panics or is killed at each step of an instance's life,
//! and CRIU in the middle of a restore: what was promised is kept, and what is
//! nobody's is gone.
//!
//! After each, `doctor --audit` has to find nothing within five seconds of the
//! next daemon's start, a shop that a visitor has since the beginning must be as
//! it was, and whoever was answered must have what the answer says.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use demo_multiplexer::failpoint::{NAMES, VARIABLE};
use host::daemon::Shop;
use host::place::run;
use host::web::{self, Reply};
use host::{Daemon, Place, eventually, golden, same};
use serde_json::{Value, json};

/// What has a daemon pass a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// A client acquires.
    Acquire,
    /// The pool is filled.
    Pool,
    /// A client releases what it has.
    Release,
    /// A shop's time is over.
    Expiry,
}

/// Every point of a daemon that serves, and what leads there.
const POINTS: &[(&str, By)] = &[
    ("store:before-claim", By::Acquire),
    ("store:after-claim", By::Acquire),
    ("store:before-insert", By::Acquire),
    ("store:after-insert", By::Acquire),
    ("slot:after-network", By::Acquire),
    ("slot:after-directory", By::Acquire),
    ("slot:after-cgroup", By::Acquire),
    ("restore:before-criu", By::Acquire),
    ("restore:after-criu", By::Acquire),
    ("personalize:before", By::Acquire),
    ("personalize:after-files", By::Acquire),
    ("personalize:after", By::Acquire),
    ("probe:before", By::Pool),
    ("route:before-settle", By::Acquire),
    ("store:before-update", By::Acquire),
    ("store:after-update", By::Acquire),
    ("acquire:before-answer", By::Acquire),
    ("route:after-removal", By::Release),
    ("store:before-update", By::Expiry),
    ("destroy:before", By::Release),
    ("destroy:after-cgroup", By::Release),
    ("destroy:after-network", By::Expiry),
    ("destroy:after-directory", By::Release),
    ("store:before-remove", By::Release),
    ("store:after-remove", By::Release),
];

/// What has a daemon pass a point with a shop that its visitor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum With {
    /// It is kept.
    Save,
    /// It is put to sleep.
    Hibernate,
    /// It is woken.
    Wake,
    /// It is opened, from what was kept of it.
    Open,
}

/// Points that keeping, sleeping and their ways back pass, in the order in which one
/// shop is taken through them.
const OF_A_SHOP: &[(&str, With)] = &[
    ("freeze:before-files", With::Save),
    ("freeze:before-word", With::Save),
    ("save:before-pack", With::Save),
    ("save:before-rename", With::Save),
    ("freeze:before-word", With::Hibernate),
    ("sleep:before-record", With::Hibernate),
    ("wake:before-record", With::Wake),
    ("open:before-unpack", With::Open),
    ("open:before-thaw", With::Open),
    ("open:before-record", With::Open),
];

/// Points of `snapshot create` and of a daemon's start.
const OTHERS: &[&str] = &[
    "checkpoint:before-boot",
    "checkpoint:before-freeze",
    "checkpoint:after-freeze",
    "checkpoint:before-publish",
    "prepare:before-unpack",
    "prepare:before-rename",
];

#[test]
fn every_fail_point_is_gone_through() {
    let points = POINTS.iter().map(|(name, _)| name).chain(OF_A_SHOP.iter().map(|(name, _)| name));
    let gone_through: BTreeSet<&str> = points.chain(OTHERS).copied().collect();
    assert_eq!(gone_through, NAMES.iter().copied().collect());
}

/// A place whose daemons can be had to fail.
struct Trial {
    place: Place,
    file: PathBuf,
}

impl Trial {
    async fn begin(name: &'static str) -> Option<Self> {
        let place = Place::beside_others(name).await?;
        let file = place.dir.join("fail");
        Some(Self { place, file })
    }

    async fn daemon(&self, pool: &str) -> Daemon<'_> {
        let file = self.file.to_str().unwrap();
        let settings = [("POOL_TARGET_SIZE", pool), (VARIABLE, file), ("MAX_INSTANCES", "40")];
        self.place.lasting_daemon(&settings).await
    }

    fn arm(&self, point: &str, action: &str) {
        std::fs::write(&self.file, format!("{point}={action}\n")).unwrap();
    }

    fn disarm(&self) {
        drop(std::fs::remove_file(&self.file));
    }

    fn times(&self, point: &str) -> usize {
        self.place.log().matches(&format!("fail point {point}: ")).count()
    }

    async fn was_passed(&self, point: &str, before: usize) {
        eventually(&format!("{point} is passed"), 20, async || {
            if self.times(point) > before { Ok(()) } else { Err("it is not".to_owned()) }
        })
        .await;
    }

    async fn audit(&self) -> Result<(), String> {
        let said = self.place.cli(&["doctor", "--audit", "--json"]).await;
        if said.code == Some(0) { Ok(()) } else { Err(said.out + &said.err) }
    }

    /// Nothing is here that nobody knows of, within five seconds.
    async fn is_clean(&self, after: &str) {
        eventually(&format!("nothing is nobody's after {after}"), 5, async || self.audit().await).await;
    }

    async fn finish(&self, daemon: Daemon<'_>) {
        daemon.kill().await;
        self.place.cli(&["reap", "--all"]).await.ok();
        self.place.nothing_is_left().unwrap();
    }
}

async fn post(daemon: &Daemon<'_>, body: Value) -> Result<Reply, String> {
    let (headers, body) = ([("content-type", "application/json")], body.to_string());
    web::send(daemon.address(), "POST", "localhost", "/api/v1/demo/acquire", &headers, &body).await
}

/// Does what leads to a point; the answer, if one came.
async fn lead(daemon: &Daemon<'_>, by: By, shop: Option<&Shop>) -> Option<Reply> {
    match (by, shop) {
        (By::Acquire, _) => post(daemon, json!({ "ttl": "5m" })).await.ok(),
        (By::Release, Some(shop)) => {
            let path = format!("/api/v1/demo/{}", shop.id());
            web::send(daemon.address(), "DELETE", "localhost", &path, &[], "").await.ok()
        }
        // By itself.
        (By::Pool | By::Expiry, _) | (By::Release, None) => None,
    }
}

/// A shop for what is about to be tried with it.
async fn subject(daemon: &Daemon<'_>, by: By) -> Option<Shop> {
    match by {
        By::Release => Some(daemon.acquire_any().await),
        By::Expiry => Some(daemon.acquire_for("restore", "1s").await),
        By::Acquire | By::Pool => None,
    }
}

/// Whoever was given a shop has it: it is listed, and its page comes.
async fn keeps_its_promise(daemon: &Daemon<'_>, answer: Option<Reply>, after: &str) {
    let Some(answer) = answer.filter(|answer| answer.status == 201) else { return };
    let answer = answer.json();
    let (id, host) = (answer["id"].as_str().unwrap(), answer["url"].as_str().unwrap());
    let shown = daemon.get(&format!("/api/v1/demo/{id}")).await;
    assert_eq!(shown.json()["expires_at"], answer["expires_at"], "{after}: {}", shown.text());
    let host = host.trim_start_matches("http://").trim_end_matches('/');
    let page = web::get(daemon.address(), host, "/").await.unwrap();
    assert!(
        page.status == 200 && page.text().contains(golden::TITLE),
        "{after}: {} {}",
        page.status,
        page.text()
    );
}

async fn is_as_it_was(daemon: &Daemon<'_>, shop: &Shop, after: &str) {
    let page = shop.get("/").await;
    assert!(page.status == 200 && page.text().contains("Mine"), "{after}: {} {}", page.status, page.text());
    let shown = daemon.get(&format!("/api/v1/demo/{}", shop.id())).await.json();
    assert_eq!(shown["expires_at"], shop.answer["expires_at"], "{after}");
}

async fn visited(trial: &Trial, daemon: &Daemon<'_>) -> Shop {
    let shop = daemon.acquire("restore").await;
    trial
        .place
        .sql(shop.id(), "UPDATE wp_options SET option_value = 'Mine' WHERE option_name = 'blogdescription'")
        .await;
    shop
}

/// One daemon's death at each point; the next one's start is looked at.
async fn dies_everywhere(name: &'static str, action: &str) {
    let Some(trial) = Trial::begin(name).await else { return };
    let mut daemon = trial.daemon("0").await;
    let witness = visited(&trial, &daemon).await;
    for (point, by) in POINTS {
        let after = format!("{action} at {point}, by {by:?}");
        if *by == By::Pool {
            daemon.kill().await;
            daemon = trial.daemon("1").await;
            daemon.pool_has(1).await;
        }
        let (before, shop) = (trial.times(point), subject(&daemon, *by).await);
        trial.arm(point, action);
        if *by == By::Pool {
            // It is filled again.
            drop(post(&daemon, json!({ "ttl": "5m" })).await);
        }
        let answer = lead(&daemon, *by, shop.as_ref()).await;
        daemon.dies().await;
        trial.disarm();
        assert!(trial.times(point) > before, "{after}: it died of something else");
        daemon = trial.daemon("0").await;
        trial.is_clean(&after).await;
        is_as_it_was(&daemon, &witness, &after).await;
        keeps_its_promise(&daemon, answer, &after).await;
    }
    daemon.acquire("restore").await.answers().await;
    trial.finish(daemon).await;
}

#[tokio::test]
async fn a_daemon_killed_at_any_step_leaves_nothing_and_keeps_its_promises() {
    dies_everywhere("crash-killed", "abort").await;
}

#[tokio::test]
async fn a_daemon_that_panics_at_any_step_leaves_nothing_and_keeps_its_promises() {
    dies_everywhere("crash-panics", "panic").await;
}

/// A call that the daemon may not live to answer.
async fn call(daemon: &Daemon<'_>, path: &str, body: &Value) -> Option<Reply> {
    let headers = [("content-type", "application/json")];
    web::send(daemon.address(), "POST", "localhost", path, &headers, &body.to_string()).await.ok()
}

async fn with(daemon: &Daemon<'_>, shop: &Shop, with: With, key: &str) -> Option<Reply> {
    let demo = format!("/api/v1/demo/{}", shop.id());
    match with {
        With::Save => call(daemon, &format!("{demo}/save"), &json!({})).await,
        With::Hibernate => call(daemon, &format!("{demo}/hibernate"), &json!({})).await,
        With::Wake => call(daemon, &format!("{demo}/wake"), &json!({})).await,
        With::Open => {
            let body = json!({ "key": key, "ttl": "1h" });
            call(daemon, &format!("/api/v1/saved/{}/open", shop.id()), &body).await
        }
    }
}

#[tokio::test]
async fn a_daemon_killed_while_a_shop_is_kept_opened_put_to_sleep_or_woken_loses_nothing_of_it() {
    let Some(trial) = Trial::begin("crash-kept").await else { return };
    let mut daemon = trial.daemon("0").await;
    let shop = visited(&trial, &daemon).await;
    let mut key = String::new();
    for (point, what) in OF_A_SHOP {
        let (after, before) = (format!("death at {point}, {what:?}"), trial.times(point));
        match what {
            With::Save | With::Hibernate => {}
            With::Wake => {
                let asleep = with(&daemon, &shop, With::Hibernate, "").await.unwrap();
                assert_eq!(asleep.status, 200, "{}", asleep.text());
            }
            With::Open => {
                if key.is_empty() {
                    let kept = with(&daemon, &shop, With::Save, "").await.unwrap();
                    key = kept.json()["key"].as_str().unwrap().to_owned();
                }
                daemon.release(shop.id()).await;
                daemon.holds_nothing().await;
            }
        }
        trial.arm(point, "abort");
        drop(with(&daemon, &shop, *what, &key).await);
        daemon.dies().await;
        trial.disarm();
        assert!(trial.times(point) > before, "{after}: it died of something else");
        daemon = trial.daemon("0").await;
        trial.is_clean(&after).await;
        if *what == With::Open {
            eventually("it can be opened", 20, async || {
                let opened = with(&daemon, &shop, With::Open, &key).await.unwrap();
                if opened.status == 201 { Ok(()) } else { Err(opened.text().into_owned()) }
            })
            .await;
        }
        // Which wakes one that sleeps.
        let page = shop.get("/").await;
        assert!(
            page.status == 200 && page.text().contains("Mine"),
            "{after}: {} {}",
            page.status,
            page.text()
        );
        eventually("nothing half kept is left", 20, async || {
            let names = |dir: &str| {
                let all =
                    std::fs::read_dir(trial.place.state_dir().join(dir)).into_iter().flatten().flatten();
                all.map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
            };
            let (saved, asleep) = (names("saved"), names("asleep"));
            let whole = saved.iter().all(|name| name == shop.id()) && asleep.is_empty();
            if whole { Ok(()) } else { Err(format!("{after}: {saved:?} {asleep:?}")) }
        })
        .await;
    }
    trial.finish(daemon).await;
}

#[tokio::test]
async fn a_step_that_fails_is_undone_while_the_daemon_serves_on() {
    let Some(trial) = Trial::begin("crash-errors").await else { return };
    let daemon = trial.daemon("0").await;
    let witness = visited(&trial, &daemon).await;
    for (point, by) in POINTS.iter().filter(|(_, by)| *by != By::Pool) {
        let after = format!("an error at {point}, by {by:?}");
        let (before, shop) = (trial.times(point), subject(&daemon, *by).await);
        trial.arm(point, "error");
        let answer = lead(&daemon, *by, shop.as_ref()).await;
        trial.was_passed(point, before).await;
        trial.disarm();
        if *by == By::Acquire {
            // One that says what to do, or a shop all the same.
            let answer = answer.as_ref().unwrap_or_else(|| panic!("{after}: no answer"));
            assert!(matches!(answer.status, 201 | 500 | 503 | 507), "{after}: {}", answer.text());
        }
        trial.is_clean(&after).await;
        is_as_it_was(&daemon, &witness, &after).await;
        keeps_its_promise(&daemon, answer, &after).await;
        if let Some(shop) = shop {
            eventually(&format!("it is over after {after}"), 5, async || {
                same(&shop.get("/").await.status, &410)
            })
            .await;
        }
    }
    daemon.acquire("restore").await.answers().await;
    trial.finish(daemon).await;
}

/// Kills each CRIU that has a process beside it, until `stop`: the one that restores,
/// and one that is just being started for the next visitor.
fn kill_criu_at_work(cgroup: &Path, stop: &AtomicBool) {
    // In the lab a script stands before it.
    let is_criu = |pid: &&str| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("criu"))
    };
    while !stop.load(Ordering::Relaxed) {
        for entry in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
            let procs = std::fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default();
            // The first one is the server that the daemon talks to; a second one, and it is at work.
            if procs.lines().nth(1).is_some()
                && let Some(server) = procs.lines().find(is_criu)
            {
                let server = nix::unistd::Pid::from_raw(server.parse().unwrap());
                // It may have ended by itself.
                let _ = nix::sys::signal::kill(server, nix::sys::signal::Signal::SIGKILL);
            }
        }
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn a_criu_killed_in_mid_restore_is_an_answer_and_leaves_nothing() {
    let Some(trial) = Trial::begin("crash-criu").await else { return };
    let daemon = trial.daemon("0").await;
    let mut refused = 0;
    // One may have been done before the signal came.
    for round in 0..10 {
        let (stop, cgroup) = (Arc::new(AtomicBool::new(false)), trial.place.cgroup());
        let seen = Arc::clone(&stop);
        let killer = tokio::task::spawn_blocking(move || kill_criu_at_work(&cgroup, &seen));
        let answer = post(&daemon, json!({ "ttl": "5m" })).await.unwrap();
        stop.store(true, Ordering::Relaxed);
        killer.await.unwrap();
        assert!(matches!(answer.status, 201 | 500 | 503), "{}", answer.text());
        refused += usize::from(answer.status != 201);
        trial.is_clean(&format!("CRIU's death, round {round}")).await;
        keeps_its_promise(&daemon, Some(answer), "CRIU's death").await;
        if refused == 2 {
            break;
        }
    }
    assert!(refused > 0, "no restore was hit");
    daemon.acquire("restore").await.answers().await;
    trial.finish(daemon).await;
}

#[tokio::test]
async fn a_checkpoint_that_fails_or_is_killed_leaves_no_snapshot_and_the_next_one_is_whole() {
    let Some(trial) = Trial::begin("crash-checkpoint").await else { return };
    let _lock = golden::only_one_boots().await;
    let (file, dir) = (trial.file.to_str().unwrap(), trial.place.dir.join("snapshots"));
    let settings = [("SNAPSHOT_DIR", dir.to_str().unwrap()), (VARIABLE, file)];
    let snapshots = || {
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        // The catalogue's lock stays.
        names.filter(|name| name != ".lock").collect::<Vec<_>>()
    };
    let container = async || {
        let all = run("podman", &["ps", "--all", "--format", "{{.Names}}"]).await.ok();
        all.lines().any(|name| name == "dm-golden-wordpress")
    };
    for (point, action) in [
        ("checkpoint:before-boot", "error"),
        ("checkpoint:before-freeze", "error"),
        ("checkpoint:after-freeze", "abort"),
        ("checkpoint:before-publish", "abort"),
    ] {
        trial.arm(point, action);
        let said = trial.place.cli_with(&["snapshot", "create", golden::NAME], &settings).await;
        let passed = said.err.contains(&format!("fail point {point}: "));
        assert!(said.code != Some(0) && passed, "{point}: {:?} {}", said.code, said.err);
        if action == "error" {
            assert_eq!(
                (snapshots(), container().await),
                (Vec::new(), false),
                "{point}: it cleans up after itself"
            );
        }
        let listed = trial.place.cli_with(&["snapshot", "list", "--json"], &settings).await.json();
        assert_eq!(listed, json!([]), "{point}: what is not whole is not shown");
    }
    trial.disarm();
    trial.place.cli_with(&["snapshot", "create", golden::NAME], &settings).await.ok();
    assert_eq!((snapshots().len(), container().await), (1, false), "{:?}", snapshots());
    trial.place.cli_with(&["snapshot", "verify"], &settings).await.ok();
}

#[tokio::test]
async fn a_daemon_killed_while_it_prepares_prepares_anew() {
    let Some(trial) = Trial::begin("crash-prepare").await else { return };
    // What it prepares by itself; the image's files are lent.
    let prepared = trial.place.state_dir().join("prepared");
    std::fs::remove_file(&prepared).unwrap();
    let file = trial.file.to_str().unwrap();
    for point in ["prepare:before-unpack", "prepare:before-rename"] {
        for action in ["error", "abort"] {
            trial.arm(point, action);
            let said = trial.place.cli_with(&["serve"], &[(VARIABLE, file)]).await;
            assert!(said.code != Some(0) && trial.times(point) == 0, "{point}: {}", said.err);
            assert!(said.err.contains(&format!("fail point {point}: ")), "{point}: {}", said.err);
            let left = std::fs::read_dir(&prepared).unwrap().flatten().map(|entry| entry.file_name());
            let whole = left.filter(|name| !name.as_encoded_bytes().starts_with(b".new-")).count();
            assert_eq!(whole, 0, "{point}: nothing half made has a whole one's name");
        }
    }
    trial.disarm();
    let daemon = trial.daemon("0").await;
    assert_eq!(std::fs::read_dir(&prepared).unwrap().count(), 1, "what the killed ones left is gone");
    daemon.acquire("restore").await.answers().await;
    trial.finish(daemon).await;
}
