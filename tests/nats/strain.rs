//! What becomes of a daemon whose NATS is there and no help: slow, without room,
//! or closed to it.

use std::time::{Duration, Instant};

use demo_multiplexer::testing::eventually;

use super::common::{Daemon, Host};
use super::server::{self, Server};
use super::slow::Slow;
use super::{link_is, pool_has};

/// The daemon serves, and `/health` says why it does without NATS.
async fn does_without(daemon: &Daemon, why: &str) {
    pool_has(daemon, 2).await;
    assert_eq!(daemon.acquire().await.status, 201);
    let jobs = eventually("health says why", async || {
        let jobs = daemon.get("/health").await.json()["jobs"].clone();
        jobs["error"].as_str().is_some_and(|said| said.contains(why)).then_some(jobs)
    })
    .await;
    assert_eq!((&jobs["status"], &jobs["queue"]), (&"degraded".into(), &"process".into()), "{jobs}");
    pool_has(daemon, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_is_waited_for_by_nobody() {
    if !server::is_there("a_slow_server_is_waited_for_by_nobody") {
        return;
    }
    let (host, server) = (Host::new(), Server::start());
    let slow = Slow::to(server.address().rsplit_once(':').unwrap().1.parse().unwrap()).await;
    let url = format!("nats://{}", slow.address);
    let daemon = host.start(&[("NATS_URL", &url), ("POOL_TARGET_SIZE", "2")]).await;
    link_is(&daemon, "nats").await;
    pool_has(&daemon, 2).await;
    slow.by(Duration::from_millis(300));
    for _ in 0..5 {
        let began = Instant::now();
        assert_eq!(daemon.acquire().await.status, 201);
        // A restore by the script takes no time, a job over the bus takes there and back.
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
    pool_has(&daemon, 2).await;
    slow.by(Duration::ZERO);
    link_is(&daemon, "nats").await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_room_leaves_the_jobs_to_the_process() {
    if !server::is_there("a_server_without_room_leaves_the_jobs_to_the_process") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("nats.conf");
    std::fs::write(&file, "jetstream { max_file_store: 1M, max_memory_store: 1M }\n").unwrap();
    let (host, server) = (Host::new(), Server::with(&["--config", file.to_str().unwrap()]));
    let daemon = host.start(&[("NATS_URL", &server.url()), ("POOL_TARGET_SIZE", "2")]).await;
    does_without(&daemon, "insufficient").await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_let_it_in_is_done_without() {
    if !server::is_there("a_server_that_does_not_let_it_in_is_done_without") {
        return;
    }
    let (host, server) = (Host::new(), Server::with(&["-js", "--user", "me", "--pass", "right"]));
    let url = format!("nats://me:wrong@{}", server.address());
    let daemon = host.start(&[("NATS_URL", &url), ("POOL_TARGET_SIZE", "2")]).await;
    does_without(&daemon, "authorization").await;
    let health = daemon.get("/health").await;
    assert!(!health.text().contains("wrong"), "{}", health.text());
    daemon.stop().await;
}
