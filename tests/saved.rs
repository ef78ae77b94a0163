//! Shops that their visitors keep, on real CRIU: what comes back, and what is left.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::time::Duration;

use host::daemon::{Daemon, Shop};
use host::{Place, eventually, web};
use serde_json::{Value, json};

const OWN: &str = "UPDATE wp_options SET option_value = 'Mine' WHERE option_name = 'blogdescription'";

async fn post(daemon: &Daemon<'_>, path: &str, body: &Value) -> web::Reply {
    let headers = [("content-type", "application/json")];
    web::send(daemon.address(), "POST", "localhost", path, &headers, &body.to_string()).await.unwrap()
}

async fn save(daemon: &Daemon<'_>, shop: &Shop, name: &str) -> web::Reply {
    post(daemon, &format!("/api/v1/demo/{}/save", shop.id()), &json!({ "name": name })).await
}

async fn open(daemon: &Daemon<'_>, name: &str, key: &str) -> web::Reply {
    post(daemon, &format!("/api/v1/saved/{name}/open"), &json!({ "key": key, "ttl": "1h" })).await
}

fn names(place: &Place, dir: &str) -> Vec<String> {
    std::fs::read_dir(place.state_dir().join(dir)).map_or_else(
        |_| Vec::new(),
        |all| all.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect(),
    )
}

#[tokio::test]
async fn a_kept_shop_comes_back_with_all_that_was_in_it_at_its_address_and_with_its_key_alone() {
    let Some(place) = Place::beside_others("saved").await else { return };
    let daemon = place.lasting_daemon(&[("SAVED_MAX", "1")]).await;
    let shop = daemon.acquire("restore").await;
    let mut visitor = shop.browser();
    assert!(visitor.log_in(shop.text("admin_password")).await);
    place.sql(shop.id(), OWN).await;
    place.inside(shop.id(), &["sh", "-c", "echo kept >/tmp/mine; ln -s /etc/passwd /tmp/link"]).await;
    let kept = save(&daemon, &shop, "my-shop").await;
    assert_eq!(kept.status, 201, "{} {}", kept.text(), place.log());
    let key = kept.json()["key"].as_str().unwrap().to_owned();
    assert_eq!(names(&place, "asleep"), Vec::<String>::new(), "what was frozen on the way is gone");
    shop.answers().await;
    assert!(visitor.is_in().await, "it goes on");
    save(&daemon, &shop, "my-shop").await.problem(409);
    save(&daemon, &shop, "another").await.problem(503);
    save(&daemon, &shop, "../../etc").await.problem(400);
    assert_eq!(open(&daemon, "my-shop", &key).await.status, 409, "it is still there");

    // What comes after it was kept is not in it.
    place.sql(shop.id(), &OWN.replace("Mine", "Later")).await;
    daemon.release(shop.id()).await;
    daemon.holds_nothing().await;
    assert_eq!(shop.get("/").await.status, 410);
    daemon.kill().await;

    let daemon = place.daemon(&[]).await;
    open(&daemon, "my-shop", "another key").await.problem(404);
    open(&daemon, "no-shop", &key).await.problem(404);
    let opened = open(&daemon, "my-shop", &key).await;
    assert_eq!(opened.status, 201, "{} {}", opened.text(), place.log());
    for field in ["id", "url", "admin_password"] {
        assert_eq!(opened.json()[field], shop.answer[field], "{field}");
    }
    let page = shop.get("/").await;
    assert!(page.status == 200 && page.text().contains("Mine"), "{} {}", page.status, page.text());
    assert!(visitor.is_in().await, "with the session that it had");
    assert_eq!(place.inside(shop.id(), &["cat", "/tmp/mine"]).await, "kept");
    let checked = place.inside(shop.id(), &["mariadb-check", "--all-databases"]).await;
    assert!(checked.lines().all(|line| line.ends_with("OK")), "{checked}");
    daemon.release(shop.id()).await;
    daemon.holds_nothing().await;

    // It stays kept until it is removed.
    let list = daemon.get("/api/v1/saved").await.json();
    assert_eq!((&list["saved"][0]["name"], list["saved"].as_array().unwrap().len()), (&json!("my-shop"), 1));
    assert!(!list.to_string().contains(&key));
    assert!(place.cli(&["saved", "ls"]).await.ok().contains("my-shop"));
    place.cli(&["saved", "rm", "my-shop"]).await.ok();
    open(&daemon, "my-shop", &key).await.problem(404);
    assert_eq!((names(&place, "saved"), names(&place, "asleep")), (Vec::new(), Vec::new()));
    assert!(!place.log().contains(&key), "a key is no log's business");
    daemon.stop().await;
}

#[tokio::test]
async fn a_damaged_shop_is_not_opened_and_one_with_a_file_that_is_all_hole_is_not_kept() {
    let Some(place) = Place::beside_others("saved-damaged").await else { return };
    let daemon = place.daemon(&[]).await;
    let shop = daemon.acquire("restore").await;
    let key = save(&daemon, &shop, "whole").await.json()["key"].as_str().unwrap().to_owned();
    place.inside(shop.id(), &["truncate", "-s", "4T", "/tmp/sparse"]).await;
    save(&daemon, &shop, "sparse").await.problem(409);
    place.inside(shop.id(), &["rm", "/tmp/sparse"]).await;
    shop.answers().await;
    daemon.release(shop.id()).await;
    daemon.holds_nothing().await;
    let archive = place.state_dir().join("saved/whole/files.tar.zst");
    let mut bytes = std::fs::read(&archive).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&archive, bytes).unwrap();
    assert!(open(&daemon, "whole", &key).await.status >= 500);
    daemon.holds_nothing().await;
    assert_eq!((names(&place, "saved"), names(&place, "asleep")), (vec!["whole".to_owned()], Vec::new()));
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_killed_while_a_shop_is_kept_or_opened_leaves_no_half_of_it() {
    let Some(place) = Place::beside_others("saved-killed").await else { return };
    for milliseconds in [30, 200, 400] {
        let daemon = place.lasting_daemon(&[]).await;
        let shop = daemon.acquire("restore").await;
        place.sql(shop.id(), OWN).await;
        let (address, id) = (daemon.address(), shop.id().to_owned());
        let asked = tokio::spawn(async move {
            let headers = [("content-type", "application/json")];
            let path = format!("/api/v1/demo/{id}/save");
            web::send(address, "POST", "localhost", &path, &headers, r#"{"name":"half"}"#).await
        });
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        daemon.kill().await;
        drop(asked.await.unwrap());
        let daemon = place.daemon(&[]).await;
        assert!(shop.get("/").await.text().contains("Mine"), "{milliseconds} ms: it goes on");
        eventually("no half is left", 20, async || {
            let (saved, asleep) = (names(&place, "saved"), names(&place, "asleep"));
            let whole = saved.is_empty() || saved == ["half"];
            if whole && asleep.is_empty() { Ok(()) } else { Err(format!("{saved:?} {asleep:?}")) }
        })
        .await;
        place.cli(&["saved", "rm", "half"]).await.ok();
        daemon.release(shop.id()).await;
        daemon.holds_nothing().await;
        daemon.stop().await;
    }
}
