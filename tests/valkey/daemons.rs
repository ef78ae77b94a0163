//! Daemons on one Valkey, each on a scripted host of its own.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use demo_multiplexer::app::OnExit;
use demo_multiplexer::testing::eventually;
use http::StatusCode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::common::{Answer, Daemon, Host};
use crate::server::{self, Server};

/// What every daemon here is told.
pub(crate) fn settings<'a>(
    url: &'a str,
    node: &'a str,
    more: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    [&[("STORE_URL", url), ("NODE_NAME", node)], more].concat()
}

pub(crate) async fn ready(daemon: &Daemon, wanted: usize) {
    // Some hundred instances take a debug build more than ten seconds.
    for _ in 0..6000 {
        if daemon.states().await["ready"] == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not {wanted} ready: {}", daemon.states().await);
}

fn node_of(all: &Answer, id: &str) -> String {
    let all = all.json();
    let one = all["instances"].as_array().unwrap().iter().find(|one| one["id"] == id);
    one.map(|one| one["node"].as_str().unwrap().to_owned()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_at_once_get_five_thousand_instances() {
    const CLIENTS: usize = 5000;
    // More than a listener's backlog holds are reset by the kernel, not by us.
    let connections = Arc::new(Semaphore::new(500));
    if !server::is_there("five_thousand_at_once_get_five_thousand_instances") {
        return;
    }
    // Both ends of each connection are in this process.
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let server = Server::start().await;
    let url = server.url();
    let (here, there) = (Host::new(), Host::new());
    let more = [("POOL_TARGET_SIZE", "500"), ("MAX_INSTANCES", "4000"), ("RESTORE_CONCURRENCY", "32")];
    let daemons = [
        Arc::new(here.start(&settings(&url, "here", &more)).await),
        Arc::new(there.start(&settings(&url, "there", &more)).await),
    ];
    for daemon in &daemons {
        ready(daemon, 500).await;
    }
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        // Unevenly, so that one has to hand out the other's.
        let daemon = Arc::clone(&daemons[usize::from(number % 5 == 0)]);
        let connections = Arc::clone(&connections);
        clients.spawn(async move {
            // As a client does that is told to come again: a busy machine answers late.
            loop {
                let connection = connections.acquire().await;
                let answer = daemon.acquire().await;
                drop(connection);
                if answer.status == StatusCode::CREATED {
                    return answer.id();
                }
                answer.problem(503);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
    }
    let ids = clients.join_all().await;
    let ids: HashSet<String> = ids.into_iter().collect();
    assert_eq!(ids.len(), CLIENTS, "no instance twice");
    eventually("none is somebody's without having been handed out", async || {
        (assigned(&daemons[0]).await == ids).then_some(())
    })
    .await;
}

/// The ids of all that is somebody's, on whatever node.
async fn assigned(daemon: &Daemon) -> HashSet<String> {
    let all = daemon.get("/api/v1/demo").await.json();
    let all = all["instances"].as_array().unwrap().iter();
    all.filter(|one| one["state"] == "assigned").map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn any_daemon_hands_out_shows_extends_and_releases() {
    if !server::is_there("any_daemon_hands_out_shows_extends_and_releases") {
        return;
    }
    let server = Server::start().await;
    let url = server.url();
    let (here, there) = (Host::new(), Host::new());
    let first = here.start(&settings(&url, "here", &[("POOL_TARGET_SIZE", "1")])).await;
    ready(&first, 1).await;
    let second = there.start(&settings(&url, "there", &[])).await;
    let got = second.acquire().await;
    let id = got.id();
    assert_eq!(got.json()["source"], "pool", "another node's pool is better than a restore");
    assert_eq!(got.json()["admin_password"], format!("password-of-{id}"));
    assert_eq!(node_of(&second.get("/api/v1/demo").await, &id), "here");
    assert!(there.restore.traces().is_empty(), "nothing was made for it");
    ready(&first, 1).await;

    let path = format!("/api/v1/demo/{id}");
    let extended = second.post(&format!("{path}/extend"), r#"{"ttl": 600}"#).await;
    assert!(extended.json()["ttl_seconds"].as_i64() > Some(4000), "{}", extended.text());
    assert!(here.restore.running().iter().any(|running| running.as_str() == id));
    assert_eq!(second.delete(&path).await.status, StatusCode::NO_CONTENT);
    assert_eq!(first.get(&path).await.status, StatusCode::GONE, "for every daemon at once");
    eventually("its own daemon takes it down", async || {
        (!here.restore.traces().iter().any(|trace| trace.as_str() == id)).then_some(())
    })
    .await;
    eventually("its record goes", async || {
        (node_of(&first.get("/api/v1/demo").await, &id).is_empty()).then_some(())
    })
    .await;
    for daemon in [first, second] {
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_ends_adopts_and_counts_its_own_only() {
    if !server::is_there("a_daemon_ends_adopts_and_counts_its_own_only") {
        return;
    }
    let server = Server::start().await;
    let url = server.url();
    let (here, there) = (Host::new(), Host::new());
    let with_pool = |node| settings(&url, node, &[("POOL_TARGET_SIZE", "2")]);
    let second = there.start(&with_pool("there")).await;
    ready(&second, 2).await;
    let theirs = second.acquire().await.id();
    ready(&second, 2).await;
    let first = here.start(&with_pool("here")).await;
    ready(&first, 2).await;
    let mine = first.acquire().await.id();
    ready(&first, 2).await;
    assert_eq!(first.states().await["assigned"], 1);
    first.stop().await;

    let before = (here.restore.running(), there.restore.running());
    let first = here.start(&with_pool("here")).await;
    assert_eq!(first.get(&format!("/api/v1/demo/{mine}")).await.status, StatusCode::OK);
    assert_eq!(first.states().await["assigned"], 1, "adopted");
    assert_eq!((here.restore.running(), there.restore.running()), before, "nothing was taken down or made");
    first.stop().await;

    // As `serve --ephemeral`: what it takes down is its own.
    let first = here.start_with(&with_pool("here"), OnExit::DestroyInstances).await;
    first.stop().await;
    assert!(here.restore.traces().is_empty());
    assert_eq!(there.restore.running(), before.1);
    let left = second.get("/api/v1/demo").await.json();
    let nodes: HashSet<&str> = left["instances"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one: &Value| one["node"].as_str().unwrap())
        .collect();
    assert_eq!(nodes, HashSet::from(["there"]));
    assert_eq!(second.get(&format!("/api/v1/demo/{theirs}")).await.status, StatusCode::OK);
}
