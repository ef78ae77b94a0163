//! Making a shop anew, on real CRIU: what stays, what goes, and what is left when
//! the daemon dies on the way.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::time::Duration;

use host::daemon::{Daemon, Shop};
use host::{Place, eventually, web};

const OWN: &str = "UPDATE wp_options SET option_value = 'Mine' WHERE option_name = 'blogdescription'";

fn path(shop: &Shop) -> String {
    format!("/api/v1/demo/{}/reset", shop.id())
}

async fn reset(daemon: &Daemon<'_>, shop: &Shop) -> web::Reply {
    web::send(daemon.address(), "POST", "localhost", &path(shop), &[], "").await.unwrap()
}

/// One shop's things are on the host, and no other's.
async fn holds_one(place: &Place) {
    eventually("one shop is left", 20, async || {
        let traces = place.traces();
        let one = [&traces.cgroups, &traces.interfaces, &traces.dirs].iter().all(|all| all.len() == 1);
        if one { Ok(()) } else { Err(format!("{traces:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_reset_shop_has_the_goldens_content_its_own_address_and_the_same_password() {
    let Some(place) = Place::beside_others("reset").await else { return };
    let daemon = place.daemon(&[]).await;
    let shop = daemon.acquire("restore").await;
    place.sql(shop.id(), OWN).await;
    assert!(shop.get("/").await.text().contains("Mine"));
    let before = daemon.get(&format!("/api/v1/demo/{}", shop.id())).await.json();
    let mut visitor = shop.browser();
    assert!(visitor.log_in(shop.text("admin_password")).await);

    let reply = reset(&daemon, &shop).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let after = reply.json();
    for field in ["id", "url", "admin_url", "admin_email", "expires_at", "assigned_at", "state"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    let page = shop.get("/").await;
    assert!(page.status == 200 && !page.text().contains("Mine"), "{} {}", page.status, page.text());
    assert!(!visitor.is_in().await, "a session of the former shop");
    assert!(shop.browser().log_in(shop.text("admin_password")).await);
    assert_eq!(place.inside(shop.id(), &["hostname"]).await, shop.id());
    holds_one(&place).await;

    let again = place.cli(&["reset", shop.id(), "--json"]).await.json();
    assert_eq!(again["url"], shop.text("url"));
    shop.answers().await;
    holds_one(&place).await;
    daemon.release(shop.id()).await;
    daemon.holds_nothing().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_reset_shop_is_adopted_by_the_next_daemon() {
    let Some(place) = Place::beside_others("reset-adopt").await else { return };
    let daemon = place.lasting_daemon(&[]).await;
    let shop = daemon.acquire("restore").await;
    assert_eq!(reset(&daemon, &shop).await.status, 200);
    place.sql(shop.id(), OWN).await;
    daemon.kill().await;
    let daemon = place.daemon(&[]).await;
    assert!(shop.get("/").await.text().contains("Mine"));
    holds_one(&place).await;
    assert_eq!(reset(&daemon, &shop).await.status, 200);
    assert!(!shop.get("/").await.text().contains("Mine"));
    daemon.release(shop.id()).await;
    daemon.holds_nothing().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_killed_anywhere_in_a_reset_leaves_one_whole_shop() {
    let Some(place) = Place::beside_others("reset-killed").await else { return };
    // What it takes is some tenths of a second; the last one is past it.
    for milliseconds in [5, 60, 150, 300, 600] {
        let daemon = place.lasting_daemon(&[]).await;
        let shop = daemon.acquire("restore").await;
        place.sql(shop.id(), OWN).await;
        let (address, path) = (daemon.address(), path(&shop));
        let asked =
            tokio::spawn(async move { web::send(address, "POST", "localhost", &path, &[], "").await });
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        daemon.kill().await;
        let answered = asked.await.unwrap().is_ok_and(|reply| reply.status == 200);
        let daemon = place.daemon(&[]).await;
        shop.answers().await;
        let is_old = shop.get("/").await.text().contains("Mine");
        assert!(!(answered && is_old), "{milliseconds} ms: it was said to be anew");
        assert!(shop.browser().log_in(shop.text("admin_password")).await, "{milliseconds} ms");
        holds_one(&place).await;
        daemon.release(shop.id()).await;
        daemon.holds_nothing().await;
        daemon.stop().await;
    }
}
