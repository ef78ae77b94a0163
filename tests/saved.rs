//! Shops that their visitors keep, on real CRIU: what comes back, with which key, what is
//! refused, and what becomes of one that is published. A daemon that dies meanwhile:
//! `crash.rs`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use host::daemon::{Daemon, Shop};
use host::{Place, eventually, golden, web};
use serde_json::{Value, json};

const OWN: &str = "UPDATE wp_options SET option_value = 'Mine' WHERE option_name = 'blogdescription'";

/// A visitor from elsewhere; the tests themselves are this host's own, who has no limits.
const VISITOR: (&str, &str) = ("x-forwarded-for", "203.0.113.5");

async fn post(daemon: &Daemon<'_>, path: &str, body: &Value, more: &[(&str, &str)]) -> web::Reply {
    let headers = [&[("content-type", "application/json")], more].concat();
    web::send(daemon.address(), "POST", "localhost", path, &headers, &body.to_string()).await.unwrap()
}

async fn save(daemon: &Daemon<'_>, shop: &Shop) -> web::Reply {
    post(daemon, &format!("/api/v1/demo/{}/save", shop.id()), &json!({}), &[]).await
}

async fn open(daemon: &Daemon<'_>, id: &str, key: &str, more: &[(&str, &str)]) -> web::Reply {
    let body = json!({ "key": key, "ttl": "1h" });
    post(daemon, &format!("/api/v1/saved/{id}/open"), &body, more).await
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
    let former = daemon.keep(shop.id()).await;
    place.sql(shop.id(), OWN).await;
    place.inside(shop.id(), &["sh", "-c", "echo kept >/tmp/mine; ln -s /etc/passwd /tmp/link"]).await;
    let key = daemon.keep(shop.id()).await;
    assert_eq!(names(&place, "asleep"), Vec::<String>::new(), "what was frozen on the way is gone");
    shop.answers().await;
    assert!(visitor.is_in().await, "it goes on");
    let other = daemon.acquire("restore").await;
    save(&daemon, &other).await.problem(503);
    daemon.release(other.id()).await;
    assert_eq!(open(&daemon, shop.id(), &key, &[]).await.status, 409, "it is still there");

    // What comes after it was kept is not in it.
    place.sql(shop.id(), &OWN.replace("Mine", "Later")).await;
    daemon.release(shop.id()).await;
    daemon.holds_nothing().await;
    assert_eq!(shop.get("/").await.status, 410);
    daemon.kill().await;

    let settings = [("RATE_LIMIT_HOURLY", "3"), ("TRUSTED_PROXIES", "127.0.0.1")];
    let daemon = place.daemon(&settings).await;
    open(&daemon, shop.id(), &former, &[]).await.problem(404);
    open(&daemon, other.id(), &key, &[]).await.problem(404);
    for _ in 0..3 {
        open(&daemon, shop.id(), "a guess", &[VISITOR]).await.problem(404);
    }
    open(&daemon, shop.id(), &key, &[VISITOR]).await.problem(429);
    let opened = open(&daemon, shop.id(), &key, &[]).await;
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
    // Keeping what was opened keeps what it has become.
    let key = daemon.keep(shop.id()).await;
    daemon.release(shop.id()).await;
    daemon.holds_nothing().await;

    // It stays kept until it is removed.
    let list = daemon.get("/api/v1/saved").await.json();
    assert_eq!((&list["saved"][0]["id"], list["saved"].as_array().unwrap().len()), (&json!(shop.id()), 1));
    assert!(!list.to_string().contains(&key));
    assert!(place.cli(&["saved", "ls"]).await.ok().contains(shop.id()));
    place.cli(&["saved", "rm", shop.id()]).await.ok();
    open(&daemon, shop.id(), &key, &[]).await.problem(404);
    assert_eq!((names(&place, "saved"), names(&place, "asleep")), (Vec::new(), Vec::new()));
    for key in [former, key] {
        assert!(!place.log().contains(&key), "a key is no log's business");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_damaged_shop_is_not_opened_and_one_with_a_file_that_is_all_hole_is_not_kept() {
    let Some(place) = Place::beside_others("saved-damaged").await else { return };
    let daemon = place.daemon(&[("SAVED_KEEP", "1h")]).await;
    let shop = daemon.acquire("restore").await;
    place.inside(shop.id(), &["truncate", "-s", "4T", "/tmp/sparse"]).await;
    save(&daemon, &shop).await.problem(409);
    place.inside(shop.id(), &["rm", "/tmp/sparse"]).await;
    let key = daemon.keep(shop.id()).await;
    shop.answers().await;
    daemon.release(shop.id()).await;
    daemon.holds_nothing().await;
    let archive = place.state_dir().join("saved").join(shop.id()).join("files.tar.zst");
    let mut bytes = std::fs::read(&archive).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&archive, bytes).unwrap();
    let opened = open(&daemon, shop.id(), &key, &[]).await;
    assert!(opened.status >= 500, "{} {}", opened.status, opened.text());
    daemon.holds_nothing().await;
    assert_eq!((names(&place, "saved"), names(&place, "asleep")), (vec![shop.id().to_owned()], Vec::new()));
    daemon.stop().await;
}

/// What Podman has of shops of this place that became goldens.
async fn images(place: &Place) -> String {
    let own = format!("label=demo-multiplexer.templates={}", place.state_dir().display());
    host::place::run("podman", &["images", "--quiet", "--no-trunc", "--filter", &own]).await.ok()
}

#[tokio::test]
async fn a_published_shop_is_a_golden_and_its_copies_are_each_their_own_also_after_a_restart() {
    let Some(place) = Place::beside_others("published").await else { return };
    // Of a run that failed.
    for image in images(&place).await.lines() {
        host::place::run("podman", &["rmi", "--force", image]).await.ok();
    }
    let snapshots = place.has_its_own_snapshots(&golden::snapshots()).await;
    let settings = [("SNAPSHOT_DIR", snapshots.to_str().unwrap())];
    let daemon = place.lasting_daemon(&settings).await;
    let shop = daemon.acquire("restore").await;
    for statement in [OWN, "UPDATE wp_options SET option_value = 'Spring' WHERE option_name = 'blogname'"] {
        place.sql(shop.id(), statement).await;
    }
    // What the tests' own recipe makes before a checkpoint, and makes again.
    place
        .sql(
            shop.id(),
            "DROP VIEW object_a; DROP VIEW object_z; DROP TABLE object_child; DROP TABLE object_parent; \
             DROP FUNCTION object_seven; DROP TABLE before_the_checkpoint",
        )
        .await;
    let account = "INSERT INTO wp_users (ID, user_login, user_pass) VALUES (77, 'friend', MD5('secret'))";
    place.sql(shop.id(), account).await;
    let script = "cd /usr/share/wordpress; cp /bin/sh wp-content/suid; chmod 4755 wp-content/suid; \
                  mkfifo /tmp/fifo; echo mine >/golden/mine; rm wp-trackback.php";
    place.inside(shop.id(), &["sh", "-c", script]).await;
    daemon.keep(shop.id()).await;
    let path = format!("/api/v1/saved/{}/publish", shop.id());
    let refused = daemon.post(&path, &json!({ "golden": "wordpress" })).await;
    assert!(refused.problem(409).contains("publish wordpress"));
    let ended = daemon.publish(shop.id(), "spring").await;
    assert_eq!(ended["state"], "done", "{ended} {}", place.log());
    place.cli_with(&["saved", "rm", shop.id()], &settings).await.ok();

    let landing = daemon.get("/?golden=spring").await;
    assert!(landing.text().contains("Spring sale"), "{}", landing.text());
    let copies = [daemon.acquire_of("spring").await, daemon.acquire_of("spring").await];
    let mut secrets = vec![shop.text("admin_password").to_owned()];
    for copy in &copies {
        let page = copy.get("/").await;
        assert!(page.status == 200 && page.text().contains("Mine"), "{} {}", page.status, page.text());
        assert!(!page.text().contains(shop.id()), "the former address is nowhere: {}", page.text());
        let (mut former, mut own) = (copy.browser(), copy.browser());
        assert!(!former.log_in(shop.text("admin_password")).await, "the visitor's password is of no use");
        assert!(own.log_in(copy.text("admin_password")).await, "{}", place.log());
        let mode =
            place.inside(copy.id(), &["stat", "-c", "%a", "/usr/share/wordpress/wp-content/suid"]).await;
        assert_eq!(mode, "755", "a stranger's file gives no rights");
        let left = place.inside(copy.id(), &["sh", "-c", "cat /golden/mine; cd /usr/share/wordpress; ls /tmp/fifo wp-trackback.php 2>/dev/null; true"]).await;
        assert_eq!(left, "mine");
        let friend = "SELECT user_pass FROM wp_users WHERE ID = 77";
        assert_eq!(place.sql(copy.id(), friend).await, "!", "an account of the visitor's own opens no copy");
        secrets.push(copy.text("admin_password").to_owned());
        secrets.push(place.inside(copy.id(), &["grep", "secret", "/etc/golden/instance.ini"]).await);
    }
    let count = secrets.len();
    secrets.sort();
    secrets.dedup();
    assert_eq!(secrets.len(), count, "no two share a secret");
    daemon.kill().await;

    let daemon = place.daemon(&settings).await;
    assert!(copies[0].get("/").await.text().contains("Mine"), "it is adopted");
    let last = daemon.acquire_of("spring").await;
    assert!(last.get("/").await.text().contains("Mine"));
    let targets = daemon.get("/api/v1/pool/target").await.json();
    let spring = targets["goldens"].as_array().unwrap().iter().find(|it| it["golden"] == "spring");
    assert_eq!(spring.unwrap(), &json!({ "golden": "spring", "target": 1, "usual": 1 }));

    // Withdrawn while one of its shops lives, then once more when none does.
    for copy in &copies {
        daemon.release(copy.id()).await;
    }
    assert_eq!(images(&place).await.lines().count(), 1);
    place.cli_with(&["saved", "withdraw", "spring"], &settings).await.ok();
    assert!(last.get("/").await.text().contains("Mine"), "visitors' shops live on");
    assert_eq!(images(&place).await.lines().count(), 1, "a shop runs on what was made of it");
    let snapshots = daemon.get("/api/v1/snapshots").await.json();
    let of_spring = snapshots["snapshots"].as_array().unwrap().iter().find(|it| it["golden"] == "spring");
    let id = of_spring.unwrap()["id"].as_str().unwrap().to_owned();
    daemon.release(last.id()).await;
    daemon.release(shop.id()).await;
    daemon.holds_nothing().await;
    let path = format!("/api/v1/snapshots/{id}");
    let removed = web::send(daemon.address(), "DELETE", "localhost", &path, &[], "").await.unwrap();
    assert_eq!(removed.status, 202, "{}", removed.text());
    eventually("its image is gone with it", 60, async || match images(&place).await {
        none if none.is_empty() => Ok(()),
        some => Err(some),
    })
    .await;
    daemon.stop().await;
}
