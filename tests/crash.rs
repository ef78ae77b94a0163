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
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use demo_multiplexer::failpoint::{NAMES, VARIABLE};
use host::daemon::Shop;
use host::place::run;
use host::trial::{KEEPING, OPENING, Trial, is_as_it_was};
use host::web::{self, Reply};
use host::{Daemon, eventually, golden, same};
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
    /// A shop is put to sleep.
    Hibernate,
    /// A sleeping shop is asked for.
    Wake,
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
    ("freeze:before-dump", By::Hibernate),
    ("freeze:before-rename", By::Hibernate),
    ("freeze:after-rename", By::Hibernate),
    ("store:before-update", By::Hibernate),
    ("store:after-update", By::Hibernate),
    ("restore:before-criu", By::Wake),
    ("restore:after-criu", By::Wake),
    ("store:before-update", By::Wake),
    ("store:after-update", By::Wake),
    ("wake:before-forget", By::Wake),
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
    let points = POINTS.iter().map(|(name, _)| name).chain(OTHERS).chain(KEEPING).chain(OPENING);
    let gone_through: BTreeSet<&str> = points.copied().collect();
    assert_eq!(gone_through, NAMES.iter().copied().collect());
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
        (By::Hibernate, Some(shop)) => hibernate(daemon, shop).await,
        (By::Wake, Some(shop)) => web::get(daemon.address(), shop.host(), "/").await.ok(),
        // By itself.
        (By::Pool | By::Expiry, _) | (By::Release | By::Hibernate | By::Wake, None) => None,
    }
}

async fn hibernate(daemon: &Daemon<'_>, shop: &Shop) -> Option<Reply> {
    let path = format!("/api/v1/demo/{}/hibernate", shop.id());
    web::send(daemon.address(), "POST", "localhost", &path, &[], "").await.ok()
}

/// A shop for what is about to be tried with it.
async fn subject(trial: &Trial, daemon: &Daemon<'_>, by: By) -> Option<Shop> {
    match by {
        By::Release => Some(daemon.acquire_any().await),
        By::Expiry => Some(daemon.acquire_for("restore", "1s").await),
        By::Hibernate => Some(trial.visited(daemon).await),
        By::Wake => {
            let shop = trial.visited(daemon).await;
            assert_eq!(hibernate(daemon, &shop).await.map(|reply| reply.status), Some(200));
            Some(shop)
        }
        By::Acquire | By::Pool => None,
    }
}

/// Whoever had a shop that slept or was to sleep has it as it was, and nothing else of
/// it is kept; whoever ended one is rid of it.
async fn what_became_of(trial: &Trial, daemon: &Daemon<'_>, by: By, shop: Option<&Shop>, after: &str) {
    let Some(shop) = shop else { return };
    match by {
        By::Hibernate | By::Wake => {
            is_as_it_was(daemon, shop, after).await;
            // What a running daemon could not remove it sweeps with the orphans, each half minute.
            eventually(&format!("nothing is kept of it after {after}"), 40, async || {
                same(&trial.frozen(), &Vec::new())
            })
            .await;
            daemon.release(shop.id()).await;
        }
        By::Release | By::Expiry => {
            eventually(&format!("it is over after {after}"), 5, async || {
                same(&shop.get("/").await.status, &410)
            })
            .await;
        }
        By::Acquire | By::Pool => {}
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

/// One daemon's death at each point; the next one's start is looked at.
async fn dies_everywhere(name: &'static str, action: &str) {
    let Some(trial) = Trial::begin(name).await else { return };
    let mut daemon = trial.daemon("0").await;
    let witness = trial.visited(&daemon).await;
    // For sleep and its end one way to die is enough: what they leave is the same.
    let points = POINTS.iter().filter(|(_, by)| action == "abort" || !matches!(by, By::Hibernate | By::Wake));
    for (point, by) in points {
        let after = format!("{action} at {point}, by {by:?}");
        if *by == By::Pool {
            daemon.kill().await;
            daemon = trial.daemon("1").await;
            daemon.pool_has(1).await;
        }
        let (before, shop) = (trial.times(point), subject(&trial, &daemon, *by).await);
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
        if matches!(by, By::Hibernate | By::Wake) {
            what_became_of(&trial, &daemon, *by, shop.as_ref(), &after).await;
        }
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

#[tokio::test]
async fn a_step_that_fails_is_undone_while_the_daemon_serves_on() {
    let Some(trial) = Trial::begin("crash-errors").await else { return };
    let daemon = trial.daemon("0").await;
    let witness = trial.visited(&daemon).await;
    for (point, by) in POINTS.iter().filter(|(_, by)| *by != By::Pool) {
        let after = format!("an error at {point}, by {by:?}");
        let (before, shop) = (trial.times(point), subject(&trial, &daemon, *by).await);
        trial.arm(point, "error");
        // A store that does not answer is waited for, so nobody is answered before it does.
        let passed = async {
            trial.was_passed(point, before).await;
            if matches!(by, By::Hibernate | By::Wake) {
                trial.disarm();
            }
        };
        let (answer, ()) = tokio::join!(lead(&daemon, *by, shop.as_ref()), passed);
        trial.disarm();
        if *by == By::Acquire {
            // One that says what to do, or a shop all the same.
            let answer = answer.as_ref().unwrap_or_else(|| panic!("{after}: no answer"));
            assert!(matches!(answer.status, 201 | 500 | 503 | 507), "{after}: {}", answer.text());
        }
        trial.is_clean(&after).await;
        is_as_it_was(&daemon, &witness, &after).await;
        keeps_its_promise(&daemon, answer, &after).await;
        what_became_of(&trial, &daemon, *by, shop.as_ref(), &after).await;
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

/// Kills the CRIU that a daemon has dump a shop, so long after it was started.
async fn kill_dumping_criu(daemon: i32, later: Duration) {
    let child = |path: std::path::PathBuf| {
        let stat = std::fs::read_to_string(path.join("stat")).ok()?;
        let (pid, rest) = stat.split_once(" (criu")?;
        // Behind the name: its state, and its parent.
        (rest.split(' ').nth(2)? == daemon.to_string()).then(|| pid.parse::<i32>().unwrap())
    };
    let criu = eventually("CRIU is started", 20, async || {
        let found = std::fs::read_dir("/proc").unwrap().find_map(|entry| child(entry.unwrap().path()));
        found.ok_or_else(|| "it is not".to_owned())
    })
    .await;
    tokio::time::sleep(later).await;
    // It may be done.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(criu), nix::sys::signal::Signal::SIGKILL);
}

#[tokio::test]
async fn a_criu_killed_in_mid_dump_leaves_the_shop_or_nothing_of_it() {
    let Some(trial) = Trial::begin("crash-dump").await else { return };
    let daemon = trial.daemon("0").await;
    let witness = trial.visited(&daemon).await;
    let mut seen = Vec::new();
    for later in [0, 10, 25, 50, 80, 120, 170] {
        let (shop, after) = (trial.visited(&daemon).await, format!("CRIU's death after {later} ms"));
        let killed = kill_dumping_criu(daemon.pid(), Duration::from_millis(later));
        let (answer, ()) = tokio::join!(hibernate(&daemon, &shop), killed);
        let answer = answer.expect("an answer");
        trial.is_clean(&after).await;
        is_as_it_was(&daemon, &witness, &after).await;
        let page = eventually(&format!("it is there or over after {after}"), 20, async || {
            let page = shop.get("/").await;
            if matches!(page.status, 200 | 410) { Ok(page) } else { Err(page.text().into_owned()) }
        })
        .await;
        // A process that the dying CRIU had in its hands may not survive it.
        assert!(page.status == 410 || page.text().contains("Mine"), "{after}: {}", page.text());
        seen.push((later, answer.status, page.status));
        daemon.release(shop.id()).await;
    }
    println!("ms, answer, page: {seen:?}");
    assert!(seen.iter().any(|(_, answer, _)| *answer != 200), "no dump was hit: {seen:?}");
    assert!(trial.frozen().is_empty(), "{:?}", trial.frozen());
    trial.finish(daemon).await;
}

/// The master of a shop's PHP.
fn php_of(trial: &Trial, shop: &Shop) -> nix::unistd::Pid {
    let procs = std::fs::read_to_string(trial.place.cgroup().join(shop.id()).join("cgroup.procs")).unwrap();
    let is_master = |pid: &&str| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"php-fpm: master"))
    };
    nix::unistd::Pid::from_raw(procs.lines().find(is_master).unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_shop_that_lost_its_php_to_a_dying_criu_is_over_at_once() {
    let Some(trial) = Trial::begin("crash-maimed").await else { return };
    let daemon = trial.daemon("0").await;
    let shop = trial.visited(&daemon).await;
    let (point, php) = ("freeze:before-rename", php_of(&trial, &shop));
    let before = trial.times(point);
    trial.arm(point, "wait");
    let torn = async {
        trial.was_passed(point, before).await;
        kill_dumping_criu(daemon.pid(), Duration::ZERO).await;
        nix::sys::signal::kill(php, nix::sys::signal::Signal::SIGKILL).unwrap();
        trial.disarm();
    };
    let (answer, ()) = tokio::join!(hibernate(&daemon, &shop), torn);
    let answer = answer.expect("an answer");
    assert!(answer.status == 410 && answer.text().contains("is over"), "{} {}", answer.status, answer.text());
    eventually("its visitors are told", 5, async || {
        let page = shop.get("/").await;
        if page.status == 410 { Ok(()) } else { Err(format!("{} {}", page.status, page.text())) }
    })
    .await;
    trial.is_clean("its end").await;
    trial.finish(daemon).await;
}

#[tokio::test]
async fn a_checkpoint_that_fails_or_is_killed_leaves_no_snapshot_and_the_next_one_is_whole() {
    let Some(trial) = Trial::begin("crash-checkpoint").await else { return };
    let (small, container_name) = golden::small(&trial.place).await;
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
        all.lines().any(|name| name == container_name)
    };
    for (point, action) in [
        ("checkpoint:before-boot", "error"),
        ("checkpoint:before-freeze", "error"),
        ("checkpoint:after-freeze", "abort"),
        ("checkpoint:before-publish", "abort"),
    ] {
        trial.arm(point, action);
        let said = trial.place.cli_with(&["snapshot", "create", &small], &settings).await;
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
    trial.place.cli_with(&["snapshot", "create", &small], &settings).await.ok();
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
