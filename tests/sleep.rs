//! Shops that sleep: on a scripted engine what becomes of them, on real CRIU what is
//! left in them. A daemon that dies meanwhile: `crash.rs`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;
mod host;

use std::net::SocketAddr;

use axum::Router;
use common::{Daemon, Host, edge};
use demo_multiplexer::engine::Phase;
use demo_multiplexer::error::ErrorKind;
use demo_multiplexer::id::InstanceId;
use demo_multiplexer::testing::eventually;
use host::{Place, web};
use http::{Method, StatusCode};

/// Shops that all say so.
async fn shops() -> SocketAddr {
    edge::upstream(Router::new().fallback(async || "the shop")).await.0
}

async fn change(daemon: &Daemon, id: &str, what: &str) -> common::Answer {
    daemon.post(&format!("/api/v1/demo/{id}/{what}"), "").await
}

async fn page(daemon: &Daemon, id: &str) -> common::Answer {
    daemon.send(Method::GET, "/", &[("host", &format!("{id}.localhost:8080"))], "").await
}

async fn state(daemon: &Daemon, id: &str) -> String {
    daemon.get(&format!("/api/v1/demo/{id}")).await.json()["state"].as_str().unwrap_or("none").to_owned()
}

fn parsed(id: &str) -> InstanceId {
    id.parse().unwrap()
}

#[tokio::test]
async fn a_sleeping_shop_takes_no_place_and_the_next_request_wakes_it() {
    let host = Host::with_shops_at(shops().await);
    let daemon = host.start(&[("MAX_INSTANCES", "1")]).await;
    let id = daemon.acquire().await.id();
    let asleep = change(&daemon, &id, "hibernate").await;
    assert_eq!((asleep.status, &asleep.json()["state"]), (StatusCode::OK, &"hibernated".into()));
    assert_eq!(change(&daemon, &id, "hibernate").await.status, StatusCode::OK, "it sleeps already");
    eventually("its slot is given up", async || host.restore.traces().is_empty().then_some(())).await;
    assert_eq!(host.restore.frozen(), [parsed(&id)]);

    let other = daemon.acquire().await.id();
    let full = page(&daemon, &id).await;
    assert_eq!(
        (full.status, full.headers["retry-after"].to_str().unwrap()),
        (StatusCode::SERVICE_UNAVAILABLE, "5")
    );
    assert!(change(&daemon, &id, "wake").await.problem(503).contains("places"));
    assert_eq!(state(&daemon, &id).await, "hibernated", "and it does not fail of that");
    daemon.delete(&format!("/api/v1/demo/{other}")).await;
    eventually("its place is free", async || host.restore.traces().is_empty().then_some(())).await;

    let woken = page(&daemon, &id).await;
    assert_eq!((woken.status, woken.text()), (StatusCode::OK, "the shop"));
    assert_eq!(state(&daemon, &id).await, "assigned");
    assert_eq!(change(&daemon, &id, "wake").await.status, StatusCode::OK, "it is awake already");
    assert!(host.restore.frozen().is_empty(), "what was kept is gone");
    daemon.delete(&format!("/api/v1/demo/{id}")).await;
    eventually("nothing is left", async || host.restore.traces().is_empty().then_some(())).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_key_whose_shop_sleeps_gets_that_shop() {
    let host = Host::with_shops_at(shops().await);
    let daemon = host.start(&[]).await;
    let body = r#"{"idempotency_key": "one"}"#;
    let first = daemon.post("/api/v1/demo/acquire", body).await;
    let id = first.json()["id"].as_str().unwrap().to_owned();
    change(&daemon, &id, "hibernate").await;
    let again = daemon.post("/api/v1/demo/acquire", body).await;
    assert_eq!(
        (again.status, &again.json()["id"]),
        (StatusCode::OK, &first.json()["id"]),
        "{}",
        again.text()
    );
    assert_eq!(page(&daemon, &id).await.status, StatusCode::OK, "which wakes");
    daemon.stop().await;
}

#[tokio::test]
async fn requests_that_come_at_once_wake_a_shop_once() {
    let host = Host::with_shops_at(shops().await);
    let daemon = host.start(&[]).await;
    let id = daemon.acquire().await.id();
    change(&daemon, &id, "hibernate").await;
    host.restore.hold();
    let asked = futures_util::future::join_all((0..8).map(|_| page(&daemon, &id)));
    let let_go = async {
        eventually("it is being woken", async || (!host.restore.traces().is_empty()).then_some(())).await;
        host.restore.let_go();
    };
    let (pages, ()) = tokio::join!(asked, let_go);
    assert!(pages.iter().all(|page| page.status == StatusCode::OK && page.text() == "the shop"));
    assert_eq!(host.restore.thaws(), 1);
    daemon.stop().await;
}

#[tokio::test]
async fn a_shop_that_cannot_be_frozen_goes_on_and_one_that_cannot_be_woken_fails_in_the_end() {
    let host = Host::with_shops_at(shops().await);
    let daemon = host.start(&[]).await;
    let id = daemon.acquire().await.id();
    host.restore.fail_freeze(true);
    change(&daemon, &id, "hibernate").await.problem(503);
    assert_eq!(
        (page(&daemon, &id).await.status, state(&daemon, &id).await.as_str()),
        (StatusCode::OK, "assigned")
    );
    assert!(host.restore.frozen().is_empty());

    host.restore.fail_freeze(false);
    change(&daemon, &id, "hibernate").await;
    host.restore.fail_thaw(true);
    for _ in 0..2 {
        assert_eq!(page(&daemon, &id).await.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(state(&daemon, &id).await, "hibernated", "nothing in it is lost");
    }
    assert_eq!(page(&daemon, &id).await.status, StatusCode::GONE, "the third time it has failed");
    eventually("nothing is left", async || {
        (host.restore.traces().is_empty() && host.restore.frozen().is_empty()).then_some(())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_sleeping_shop_gets_more_time_and_sleeps_on() {
    let host = Host::with_shops_at(shops().await);
    let daemon = host.start(&[("BANNER", "on")]).await;
    let id = daemon.acquire().await.id();
    change(&daemon, &id, "hibernate").await;
    let end = async || daemon.get(&format!("/api/v1/demo/{id}")).await.json()["expires_at"].clone();
    let before = end().await;
    let extended = change(&daemon, &id, "extend").await;
    assert_eq!(extended.status, StatusCode::OK, "{}", extended.text());
    assert_eq!(extended.json()["state"], "hibernated");
    assert!(end().await.as_str() > before.as_str());
    // A page of it that was left open asks by itself.
    let host_name = format!("{id}.localhost:8080");
    let asked = daemon.send(Method::GET, "/.demo-multiplexer/status", &[("host", &host_name)], "").await;
    assert!(asked.json()["seconds_left"].as_i64() > Some(3600), "{}", asked.text());
    assert_eq!((host.restore.thaws(), host.restore.frozen()), (0, vec![parsed(&id)]), "nobody has woken it");
    assert_eq!(page(&daemon, &id).await.text(), "the shop");
    daemon.stop().await;
}

#[tokio::test]
async fn a_sleeping_shop_that_is_reset_is_its_golden_again_and_awake() {
    let host = Host::with_shops_at(shops().await);
    let daemon = host.start(&[("MAX_INSTANCES", "1")]).await;
    let id = daemon.acquire().await.id();
    change(&daemon, &id, "hibernate").await;
    let free = async || {
        eventually("its place is free", async || host.restore.traces().is_empty().then_some(())).await;
    };
    free().await;
    let other = daemon.acquire().await.id();
    assert!(change(&daemon, &id, "reset").await.problem(503).contains("places"));
    daemon.delete(&format!("/api/v1/demo/{other}")).await;
    free().await;
    host.restore.fail_make(Some((Phase::Restore, ErrorKind::Unavailable)));
    change(&daemon, &id, "reset").await.problem(503);
    assert_eq!(
        (state(&daemon, &id).await.as_str(), host.restore.frozen()),
        ("hibernated", vec![parsed(&id)]),
        "it sleeps on"
    );
    host.restore.fail_make(None);
    host.restore.hold();
    let meanwhile = async {
        eventually("it is made anew", async || (!host.restore.traces().is_empty()).then_some(())).await;
        let let_go = async {
            change(&daemon, &id, "reset").await.problem(409);
            host.restore.let_go();
        };
        tokio::join!(page(&daemon, &id), let_go).0
    };
    let (reset, visited) = tokio::join!(change(&daemon, &id, "reset"), meanwhile);
    assert_eq!((reset.status, &reset.json()["state"]), (StatusCode::OK, &"assigned".into()));
    assert_eq!(visited.text(), "the shop", "who asks meanwhile waits for it");
    assert_eq!((host.restore.thaws(), host.restore.frozen()), (0, Vec::new()), "what slept is gone");
    assert_eq!(page(&daemon, &id).await.text(), "the shop");
    daemon.delete(&format!("/api/v1/demo/{id}")).await;
    free().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_sleeping_shops_time_runs_on_and_its_end_takes_what_is_kept() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let id = daemon.post("/api/v1/demo/acquire", r#"{"ttl": "2s"}"#).await.id();
    change(&daemon, &id, "hibernate").await;
    let longer = daemon.post(&format!("/api/v1/demo/{id}/extend"), r#"{"ttl": "1s"}"#).await;
    assert_eq!((longer.status, &longer.json()["state"]), (StatusCode::OK, &"hibernated".into()));
    assert_eq!(host.restore.frozen(), [parsed(&id)], "it sleeps on");
    eventually("it is over", async || host.restore.frozen().is_empty().then_some(())).await;
    assert_eq!(page(&daemon, &id).await.status, StatusCode::GONE);
    daemon.stop().await;
}

#[tokio::test]
async fn the_next_daemon_lets_it_sleep_and_removes_what_is_nobodys() {
    let host = Host::with_shops_at(shops().await);
    let daemon = host.start(&[]).await;
    let id = daemon.acquire().await.id();
    let lost = daemon.acquire().await.id();
    for id in [&id, &lost] {
        change(&daemon, id, "hibernate").await;
    }
    daemon.stop().await;
    let nobodys = InstanceId::random();
    host.restore.add_frozen(&nobodys);
    host.restore.lose_frozen(&parsed(&lost));
    let daemon = host.start(&[]).await;
    assert_eq!(host.restore.frozen(), [parsed(&id)], "the one that is nobody's is gone");
    assert_eq!(state(&daemon, &id).await, "hibernated");
    assert_eq!(page(&daemon, &lost).await.status, StatusCode::GONE, "nothing is there to wake");
    assert_eq!(page(&daemon, &id).await.text(), "the shop");
    daemon.stop().await;
}

#[tokio::test]
async fn a_shop_whose_daemon_died_before_it_wrote_down_that_it_sleeps_sleeps() {
    let host = Host::with_shops_at(shops().await);
    let daemon = host.start(&[]).await;
    let (id, dead) = (daemon.acquire().await.id(), daemon.acquire().await.id());
    daemon.stop().await;
    for id in [&id, &dead] {
        host.restore.kill(&parsed(id));
    }
    host.restore.add_frozen(&parsed(&id));
    let daemon = host.start(&[]).await;
    assert_eq!(state(&daemon, &id).await, "hibernated");
    assert_eq!(page(&daemon, &id).await.text(), "the shop");
    assert_eq!(page(&daemon, &dead).await.status, StatusCode::GONE, "of that one nothing is kept");
    daemon.stop().await;
}

#[tokio::test]
async fn a_shop_that_nobody_asks_falls_asleep_by_itself_and_one_that_is_asked_does_not() {
    let host = Host::with_shops_at(shops().await);
    let daemon = host.start(&[("HIBERNATE_AFTER", "4s")]).await;
    let (quiet, asked) = (daemon.acquire().await.id(), daemon.acquire().await.id());
    eventually("the quiet one sleeps", async || {
        assert_eq!(page(&daemon, &asked).await.status, StatusCode::OK);
        (state(&daemon, &quiet).await == "hibernated").then_some(())
    })
    .await;
    assert_eq!(state(&daemon, &asked).await, "assigned");
    daemon.stop().await;
}

const OWN: &str = "UPDATE wp_options SET option_value = 'Mine' WHERE option_name = 'blogdescription'";

async fn asked(daemon: &host::Daemon<'_>, id: &str, what: &str) -> web::Reply {
    let path = format!("/api/v1/demo/{id}/{what}");
    web::send(daemon.address(), "POST", "localhost", &path, &[], "").await.unwrap()
}

fn turn_a_bit(path: &std::path::Path) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let (middle, mut byte) = (file.metadata().unwrap().len() / 2, [0]);
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
}

fn frozen(place: &Place) -> Vec<String> {
    std::fs::read_dir(place.state_dir().join("asleep")).map_or_else(
        |_| Vec::new(),
        |all| all.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect(),
    )
}

#[tokio::test]
async fn a_real_shop_sleeps_without_a_process_and_wakes_as_it_was_again_and_again() {
    let Some(place) = Place::beside_others("sleep").await else { return };
    let daemon = place.daemon(&[]).await;
    let shop = daemon.acquire("restore").await;
    let mut visitor = shop.browser();
    assert!(visitor.log_in(shop.text("admin_password")).await);
    for round in 1..=3 {
        let mine = format!("Mine {round}");
        place.sql(shop.id(), &OWN.replace("Mine", &mine)).await;
        assert!(shop.get("/").await.text().contains(&mine));
        let reply = asked(&daemon, shop.id(), "hibernate").await;
        assert_eq!(reply.status, 200, "round {round}: {} {}", reply.text(), place.log());
        host::eventually("nothing of it runs", 20, async || place.nothing_is_left()).await;
        assert_eq!(frozen(&place), [shop.id()]);
        let page = shop.get("/").await;
        assert!(page.status == 200 && page.text().contains(&mine), "round {round}: {}", page.text());
        assert!(visitor.is_in().await, "round {round}: it is the same session");
        assert_eq!(frozen(&place), Vec::<String>::new());
        let checked = place.inside(shop.id(), &["mariadb-check", "--all-databases"]).await;
        assert!(checked.lines().all(|line| line.ends_with("OK")), "{checked}");
    }
    assert_eq!(asked(&daemon, shop.id(), "hibernate").await.status, 200);
    let reset = asked(&daemon, shop.id(), "reset").await;
    assert_eq!((reset.status, reset.json()["state"].as_str()), (200, Some("assigned")), "{}", reset.text());
    let page = shop.get("/").await;
    assert!(page.status == 200 && !page.text().contains("Mine"), "{}", page.text());
    assert!(shop.browser().log_in(shop.text("admin_password")).await, "the password stays");
    assert_eq!(frozen(&place), Vec::<String>::new());
    // A bit of its memory that a disk has turned: that shop is nobody's any more.
    assert_eq!(asked(&daemon, shop.id(), "hibernate").await.status, 200);
    host::eventually("nothing of it runs", 20, async || place.nothing_is_left()).await;
    turn_a_bit(&place.state_dir().join("asleep").join(shop.id()).join("images/pages-1.img"));
    host::eventually("it is given up", 30, async || {
        let page = shop.get("/").await;
        assert_ne!(page.status, 200, "{}", page.text());
        host::same(&page.status, &410)
    })
    .await;
    assert!(place.log().contains("images/pages-1.img is damaged"), "{}", place.log());
    daemon.holds_nothing().await;
    assert_eq!(frozen(&place), Vec::<String>::new());
    daemon.stop().await;
}
