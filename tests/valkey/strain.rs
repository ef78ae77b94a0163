//! What becomes of a daemon whose server is there and no help: slow, full, or
//! closed to it from now on.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use demo_multiplexer::testing::eventually;
use http::StatusCode;

use crate::common::Host;
use crate::daemons::{ready, settings};
use crate::server::{self, Server};
use crate::slow::Slow;

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_makes_answers_late_and_none_wrong() {
    if !server::is_there("a_slow_server_makes_answers_late_and_none_wrong") {
        return;
    }
    let (host, server) = (Host::new(), Server::start().await);
    let slow = Slow::to(server.port).await;
    let url = format!("redis://{}", slow.address);
    let daemon = host.start(&settings(&url, "here", &[("POOL_TARGET_SIZE", "4")])).await;
    ready(&daemon, 4).await;
    slow.by(Duration::from_millis(200));
    let mut ids = HashSet::new();
    for _ in 0..3 {
        let began = Instant::now();
        let answer = daemon.acquire().await;
        let took = began.elapsed();
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        assert!(took >= Duration::from_millis(400), "there and back: {took:?}");
        assert!(ids.insert(answer.id()), "handed out twice");
    }
    // Slower than a call may take: it is away, and what was done meanwhile is undone or known.
    slow.by(Duration::from_secs(3));
    let began = Instant::now();
    let refused = daemon.acquire().await;
    refused.problem(503);
    assert!(refused.headers.contains_key("retry-after") && began.elapsed() < Duration::from_secs(5));
    slow.by(Duration::ZERO);
    let last = eventually("it hands out again", async || {
        let answer = daemon.acquire().await;
        (answer.status == StatusCode::CREATED).then(|| answer.id())
    })
    .await;
    assert!(ids.insert(last));
    for id in &ids {
        assert_eq!(daemon.get(&format!("/api/v1/demo/{id}")).await.json()["state"], "assigned");
    }
    ready(&daemon, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_hands_out_nothing_new_and_loses_nothing() {
    if !server::is_there("a_full_server_hands_out_nothing_new_and_loses_nothing") {
        return;
    }
    let (host, server) = (Host::new(), Server::start().await);
    let daemon = host.start(&settings(&server.url(), "here", &[("POOL_TARGET_SIZE", "2")])).await;
    ready(&daemon, 2).await;
    let held = daemon.acquire().await.id();
    ready(&daemon, 2).await;
    server.run(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).await;
    server.run(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let refused = eventually("there is no room", async || {
        let answer = daemon.acquire().await;
        (answer.status != StatusCode::CREATED).then_some(answer)
    })
    .await;
    assert_eq!(refused.status, StatusCode::INSUFFICIENT_STORAGE, "{}", refused.text());
    let path = format!("/api/v1/demo/{held}");
    assert_eq!(daemon.get(&path).await.json()["state"], "assigned", "what is there can be read");
    assert!(host.restore.running().iter().any(|id| id.as_str() == held), "and lives");
    server.run(&["CONFIG", "SET", "maxmemory", "0"]).await;
    eventually("it hands out again", async || {
        (daemon.acquire().await.status == StatusCode::CREATED).then_some(())
    })
    .await;
    assert_eq!(daemon.delete(&path).await.status, StatusCode::NO_CONTENT);
    ready(&daemon, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_no_longer_lets_it_in_is_as_good_as_away() {
    if !server::is_there("a_server_that_no_longer_lets_it_in_is_as_good_as_away") {
        return;
    }
    let user = ["--user", "demo", "on", ">geheim", "~*", "+@all"];
    let server = Server::with(&[&["--appendonly", "yes"][..], &user].concat()).await;
    let url = format!("redis://demo:geheim@127.0.0.1:{}", server.port);
    let host = Host::new();
    let daemon = host.start(&settings(&url, "here", &[("POOL_TARGET_SIZE", "1")])).await;
    ready(&daemon, 1).await;
    let held = daemon.acquire().await.id();
    server.run(&["ACL", "SETUSER", "demo", "resetpass", ">another"]).await;
    server.run(&["CLIENT", "KILL", "USER", "demo"]).await;
    let refused = eventually("it is not let in", async || {
        let answer = daemon.acquire().await;
        (answer.status != StatusCode::CREATED).then_some(answer)
    })
    .await;
    let told = refused.problem(503);
    assert!(refused.headers.contains_key("retry-after") && !told.contains("geheim"), "{told}");
    assert!(host.restore.running().iter().any(|id| id.as_str() == held), "shops live on");
    server.run(&["ACL", "SETUSER", "demo", "resetpass", ">geheim"]).await;
    eventually("it hands out again", async || {
        (daemon.acquire().await.status == StatusCode::CREATED).then_some(())
    })
    .await;
    assert_eq!(daemon.get(&format!("/api/v1/demo/{held}")).await.status, StatusCode::OK);
}
