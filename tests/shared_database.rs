//! What is true of shops that share a database server: a real MariaDB, 11.8 and
//! 10.11, that is killed and started again.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;
#[path = "common/slow.rs"]
mod slow;

use std::time::{Duration, Instant};

use host::daemon::{Daemon, Shop};
use host::mariadb::{ADMIN, Kind, MariaDb};
use host::{Place, eventually, golden, mariadb, same};
use serde_json::json;

/// A server, and a place whose daemons use it.
async fn at(name: &'static str, kind: Kind) -> Option<(Place, MariaDb)> {
    let place = Place::beside_others(name).await?;
    if !mariadb::is_installed() {
        return None;
    }
    golden::ensure_shared().await;
    Some((place, MariaDb::start(name, kind).await))
}

/// Its settings with those changes.
fn with<'a>(server: &'a [(&'static str, String)], more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    server.iter().map(|(name, value)| (*name, value.as_str())).chain(more.iter().copied()).collect()
}

/// What a shop says of its own database.
async fn own(place: &Place, shop: &Shop, field: &str) -> String {
    let script = format!("sed -n 's/^{field} = \"\\(.*\\)\"$/\\1/p' /etc/golden/instance.ini");
    place.inside(shop.id(), &["sh", "-euc", &script]).await
}

/// One statement in a shop's database, as the shop.
async fn sql(place: &Place, shop: &Shop, statement: &str) -> String {
    place.inside(shop.id(), &["/golden/database", "sql", statement]).await
}

/// Waits until the server has nothing but templates and what is not this daemon's.
async fn only_templates_are_left(server: &MariaDb, foreign: &[&str]) {
    eventually("the server holds templates only", 20, async || {
        let (databases, users) = server.census().await;
        let left: Vec<&String> =
            databases.iter().chain(&users).filter(|name| !name.contains("_t_")).collect();
        same(&left.iter().map(|name| name.as_str()).collect::<Vec<_>>(), &foreign.to_vec())
    })
    .await;
}

async fn each_has_a_database_of_its_own(name: &'static str, kind: Kind) {
    let Some((place, server)) = at(name, kind).await else { return };
    let settings = server.settings();
    let daemon = place.daemon(&with(&settings, &[("POOL_TARGET_SIZE", "1")])).await;
    daemon.pool_has(1).await;
    let shops = [daemon.acquire("pool").await, daemon.acquire_any().await];
    for shop in &shops {
        is_a_whole_shop(&place, shop).await;
    }
    let names = [own(&place, &shops[0], "database").await, own(&place, &shops[1], "database").await];
    let passwords = [
        own(&place, &shops[0], "database_password").await,
        own(&place, &shops[1], "database_password").await,
    ];
    assert!(names[0] != names[1] && passwords[0] != passwords[1]);
    assert!(!place.log().contains(&passwords[0]), "a password in the log");

    // What one writes is the one's alone.
    sql(
        &place,
        &shops[0],
        "UPDATE wp_posts SET post_title = 'Changed by one' WHERE post_name = 'how-we-pack'",
    )
    .await;
    assert!(shops[0].get("/how-we-pack/").await.text().contains("Changed by one"));
    assert!(!shops[1].get("/how-we-pack/").await.text().contains("Changed by one"));

    // The one's user sees nothing of the other, of the template, of the server.
    let as_one = |statement: String| {
        let (server, user, password) = (&server, &names[0], &passwords[0]);
        async move { server.try_sql_as(user, Some(password), &statement).await }
    };
    let seen = as_one("SHOW DATABASES".into()).await.unwrap();
    assert_eq!(seen, [names[0].clone(), "information_schema".into()]);
    let template = server.census().await.0.into_iter().find(|name| name.contains("_t_")).unwrap();
    for refused in [
        format!("SELECT * FROM {}.wp_options", names[1]),
        format!("SELECT * FROM `{template}`.wp_options"),
        "SELECT * FROM mysql.global_priv".into(),
        format!("CREATE DATABASE {}x", names[0]),
        // In a grant an underscore is any character.
        format!("CREATE DATABASE {}", names[0].replace('_', "x")),
        format!("GRANT SELECT ON {0}.* TO {1}@localhost", names[0], names[1]),
        "SELECT 1 INTO OUTFILE '/tmp/dmux-test'".into(),
        "SET GLOBAL max_connections = 1".into(),
        "SHUTDOWN".into(),
    ] {
        let error = as_one(refused.clone()).await.expect_err(&refused).to_string();
        assert!(error.contains("denied") || error.contains("doesn't exist"), "{refused}: {error}");
    }
    // Id, user, ...: connections that are about to close may be among them.
    let mine = as_one("SHOW PROCESSLIST".into()).await.unwrap();
    assert!(mine.iter().all(|row| row.split('\t').nth(1) == Some(&names[0])), "{mine:?}");

    // No server runs inside, and the directory shown is not theirs to change.
    let running = place.inside(shops[0].id(), &["sh", "-c", "cat /proc/[0-9]*/comm"]).await;
    assert!(running.contains("nginx") && !running.contains("mariadbd"), "{running}");
    let written = place.cli(&["exec", shops[0].id(), "--", "touch", "/run/mysqld/x"]).await.refused();
    assert!(written.contains("Read-only file system"), "{written}");

    daemon.release(shops[0].id()).await;
    eventually("the released shop's database and user are gone", 20, async || {
        let (databases, users) = server.census().await;
        same(&(databases.contains(&names[0]), users.contains(&names[0])), &(false, false))
    })
    .await;
    shops[1].answers().await;
    daemon.stop().await;
    only_templates_are_left(&server, &[]).await;
}

async fn is_a_whole_shop(place: &Place, shop: &Shop) {
    shop.answers().await;
    let golden_password = place.inside(shop.id(), &["cat", golden::PASSWORD_FILE]).await;
    assert!(!shop.browser().log_in(&golden_password).await, "the golden's own password");
    let mut browser = shop.browser();
    assert!(browser.log_in(shop.text("admin_password")).await, "the password of the answer");
    let rows = sql(place, shop, "SELECT COUNT(*), SUM(LENGTH(note)) FROM before_the_checkpoint").await;
    assert!(rows.ends_with(&format!("{}\t{}", golden::ROWS, golden::ROWS * 200)), "{rows}");
    let checked = place
        .inside(
            shop.id(),
            &["/golden/database", "sql", "CHECK TABLE wp_posts, wp_options, before_the_checkpoint EXTENDED"],
        )
        .await;
    assert_eq!(checked.matches("\tstatus\tOK").count(), 3, "{checked}");
}

#[tokio::test]
async fn each_clone_has_a_database_of_its_own_and_no_way_into_another_on_11_8() {
    each_has_a_database_of_its_own("shared-own", Kind::Host).await;
}

#[tokio::test]
async fn each_clone_has_a_database_of_its_own_and_no_way_into_another_on_10_11() {
    each_has_a_database_of_its_own("shared-old", Kind::Golden).await;
}

#[tokio::test]
async fn keys_views_triggers_counters_and_odd_rows_survive_the_way_into_a_clone() {
    let Some((place, server)) = at("shared-objects", Kind::Host).await else { return };
    let settings = server.settings();
    let daemon = place.daemon(&with(&settings, &[])).await;
    let shop = daemon.acquire("restore").await;
    let answer = async |statement: &str| sql(&place, &shop, statement).await;
    let rows = answer("SELECT id, HEX(name), len FROM object_parent ORDER BY id").await;
    assert!(rows.ends_with("0\t5A6FEB\t3\n7\t736576656E\t5"), "{rows}");
    assert!(answer("SELECT name FROM object_a").await.ends_with("seven"));
    answer("INSERT INTO object_parent (name) VALUES ('next')").await;
    assert!(answer("SELECT id, name FROM object_parent WHERE id > 7").await.ends_with("500\tNEXT"));
    let orphan = ["exec", shop.id(), "--", "/golden/database", "sql", "INSERT INTO object_child VALUES (8)"];
    let refused = place.cli(&orphan).await.refused();
    assert!(refused.contains("foreign key constraint fails"), "{refused}");
    let name = own(&place, &shop, "database").await;
    let definers = server
        .sql(&format!(
            "SELECT definer FROM information_schema.views WHERE table_schema = '{name}' \
             UNION SELECT definer FROM information_schema.triggers WHERE trigger_schema = '{name}' \
             UNION SELECT definer FROM information_schema.routines WHERE routine_schema = '{name}'"
        ))
        .await;
    assert_eq!(definers, [format!("{name}@localhost")], "nobody else's rights");
    daemon.stop().await;
}

#[tokio::test]
async fn killing_the_server_under_load_loses_no_instance_and_all_answer_within_five_seconds() {
    let Some((place, mut server)) = at("shared-kill", Kind::Host).await else { return };
    let settings = server.settings();
    let daemon = place.daemon(&with(&settings, &[("POOL_TARGET_SIZE", "1"), ("SLOTS_AHEAD", "2")])).await;
    let shops = [daemon.acquire_any().await, daemon.acquire_any().await, daemon.acquire_any().await];
    let released = daemon.acquire_any().await;
    let released_name = own(&place, &released, "database").await;
    daemon.pool_has(1).await;
    let before = daemon.ids().await;

    let stop = tokio_util::sync::CancellationToken::new();
    let load: Vec<_> = shops
        .iter()
        .cloned()
        .map(|shop| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut pages = 0;
                while !stop.is_cancelled() {
                    pages += usize::from(shop.get("/").await.status == 200);
                }
                pages
            })
        })
        .collect();
    sql(&place, &shops[0], "CREATE TABLE kept (n INT); INSERT INTO kept VALUES (4711)").await;
    server.kill();

    eventually("the outage is known", 10, async || {
        let health = daemon.get("/health").await;
        same(
            &(health.status, health.json()["dependencies"]["database"]["status"].clone()),
            &(503, json!("down")),
        )
    })
    .await;
    let refused = daemon.try_acquire(&json!({})).await;
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    let problem = refused.problem(503);
    assert!(problem.contains("shared database, which is down"), "{problem}");
    assert_eq!(daemon.get("/readyz").await.status, 200, "whoever has a shop is still let through");
    daemon.release(released.id()).await;

    server.go_on().await;
    let back = Instant::now();
    for shop in &shops {
        eventually("the shop answers again", 5, async || same(&shop.get("/").await.status, &200)).await;
    }
    eventually("instances are handed out again", 5, async || {
        let reply = daemon.try_acquire(&json!({ "idempotency_key": "after" })).await;
        same(&reply.status, &201)
    })
    .await;
    let recovered = back.elapsed();
    assert!(recovered < Duration::from_secs(5), "{recovered:?}");
    println!("all answer {recovered:?} after the server does");
    stop.cancel();
    for pages in load {
        assert!(pages.await.unwrap() > 0);
    }
    assert!(sql(&place, &shops[0], "SELECT n FROM kept").await.ends_with("4711"));
    eventually("what was released in the outage is gone", 90, async || {
        let (databases, users) = server.census().await;
        let after = daemon.ids().await;
        same(&(databases.contains(&released_name), users.contains(&released_name)), &(false, false))?;
        same(&after.contains(&released.id().to_owned()), &false)?;
        let lost: Vec<&String> =
            before.iter().filter(|id| *id != released.id() && !after.contains(id)).collect();
        same(&lost, &Vec::new())
    })
    .await;
    assert_eq!(daemon.get("/health").await.json()["dependencies"]["database"]["status"], "ok");
    daemon.stop().await;
    only_templates_are_left(&server, &[]).await;
}

#[tokio::test]
async fn a_killed_daemons_databases_are_adopted_or_dropped_and_anothers_left_alone() {
    let Some((place, server)) = at("shared-orphans", Kind::Host).await else { return };
    let settings = server.settings();
    let changes = with(&settings, &[("POOL_TARGET_SIZE", "1"), ("SLOTS_AHEAD", "2")]);
    let daemon: Daemon<'_> = place.lasting_daemon(&changes).await;
    let shop = daemon.acquire_any().await;
    shop.answers().await;
    let name = own(&place, &shop, "database").await;
    let prefix = name.strip_suffix(shop.id()).unwrap().to_owned();
    // Another daemon's, by its prefix, and one that looks like ours.
    let foreign = ["dmux_other_aaaaaaaaaaaa", "dmux_other_new_x"];
    let orphan = format!("{prefix}bbbbbbbbbbbb");
    for database in foreign.iter().copied().chain([orphan.as_str()]) {
        server.sql(&format!("CREATE DATABASE {database}")).await;
        server.sql(&format!("CREATE USER {database}@localhost")).await;
    }
    eventually("databases wait", 30, async || {
        let waiting = server.census().await.0.len();
        // Two shops', the template, three made here, and at least one that waits.
        if waiting >= 7 { Ok(()) } else { Err(waiting.to_string()) }
    })
    .await;
    daemon.kill().await;

    let daemon = place.daemon(&with(&settings, &[("POOL_TARGET_SIZE", "0")])).await;
    shop.answers().await;
    eventually("what nobody has is gone, what somebody has is not", 20, async || {
        let (databases, users) = server.census().await;
        same(&databases.contains(&orphan), &false)?;
        same(&users.contains(&orphan), &false)?;
        same(&databases.contains(&name), &true)
    })
    .await;
    server.sql(&format!("CREATE DATABASE {orphan}")).await;
    let audit = place.cli_with(&["doctor", "--audit", "--fix", "--json"], &with(&settings, &[])).await.json();
    let found: Vec<_> =
        audit["found"].as_array().unwrap().iter().map(|it| (&it["kind"], &it["what"])).collect();
    assert_eq!(found, [(&json!("database"), &json!(orphan))], "{audit:#}");
    assert_eq!(audit["left"], json!([]));
    assert!(!server.census().await.0.contains(&orphan));
    shop.answers().await;
    daemon.release(shop.id()).await;
    daemon.stop().await;
    let left: Vec<&str> = foreign.iter().chain(&foreign).copied().collect();
    only_templates_are_left(&server, &left).await;
}

#[tokio::test]
async fn a_template_that_is_lost_or_damaged_is_made_again_from_the_snapshot() {
    let Some((place, server)) = at("shared-template", Kind::Host).await else { return };
    let settings = server.settings();
    let daemon = place.daemon(&with(&settings, &[])).await;
    daemon.acquire("restore").await.answers().await;
    let template = server.census().await.0.into_iter().find(|name| name.contains("_t_")).unwrap();
    for loss in [format!("DROP DATABASE `{template}`"), format!("DROP TABLE `{template}`.wp_posts")] {
        server.sql(&loss).await;
        // Those that were copied before are whole; one of the next was not there.
        eventually("shops are made from the new template", 60, async || {
            let made = daemon.try_acquire(&json!({})).await;
            let tables = server
                .sql(&format!("SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = '{template}' AND table_name = 'wp_posts'"))
                .await;
            same(&(made.status, tables), &(201, vec!["1".to_owned()]))
        })
        .await;
        daemon.acquire("restore").await.answers().await;
    }
    daemon.stop().await;
}

#[tokio::test]
async fn doctor_tells_a_server_that_serves_from_one_that_does_not() {
    let Some((place, mut server)) = at("shared-doctor", Kind::Host).await else { return };
    let settings = server.settings();
    let finding = async |changes: &[(&str, &str)]| {
        let said = place.cli_with(&["doctor", "--json"], changes).await;
        let report: serde_json::Value = serde_json::from_str(&said.out).unwrap();
        let all = report["findings"].as_array().unwrap().clone();
        let found = all.into_iter().find(|finding| finding["name"] == "database");
        (said.code, found.unwrap_or_default())
    };
    assert!(finding(&[]).await.1.is_null(), "nothing is asked of a bundled one");
    let (_, fit) = finding(&with(&settings, &[])).await;
    assert_eq!(fit["status"], "ok", "{fit}");
    assert_eq!(server.census().await, (Vec::new(), Vec::new()), "the trial leaves nothing");
    server.sql("CREATE USER weak@localhost IDENTIFIED BY 'weak'").await;
    let url = server.url("weak:weak");
    let weak = with(&settings, &[("DATABASE_URL", &url), ("DATABASE_PASSWORD_FILE", "")]);
    let (code, found) = finding(&weak).await;
    assert_eq!((code, &found["status"]), (Some(1), &json!("fail")), "{found}");
    assert!(found["advice"].as_str().unwrap().contains("GRANT"), "{found}");
    server.kill();
    let (code, found) = finding(&with(&settings, &[])).await;
    assert_eq!((code, &found["status"]), (Some(1), &json!("fail")), "{found}");
    assert!(!found.to_string().contains("p@ss") && found.to_string().contains(ADMIN), "{found}");
}

#[tokio::test]
async fn a_server_that_hangs_is_told_of_and_all_answer_again_after_it() {
    let Some((place, server)) = at("shared-hang", Kind::Host).await else { return };
    let settings = server.settings();
    let daemon = place.daemon(&with(&settings, &[("POOL_TARGET_SIZE", "1")])).await;
    let shop = daemon.acquire_any().await;
    daemon.pool_has(1).await;
    server.pause();
    eventually("the outage is known", 20, async || {
        same(&daemon.get("/health").await.json()["dependencies"]["database"]["status"], &json!("down"))
    })
    .await;
    let began = Instant::now();
    let refused = daemon.try_acquire(&json!({})).await;
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    refused.problem(503);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    server.resume();
    eventually("the shop answers again", 10, async || same(&shop.get("/").await.status, &200)).await;
    eventually("instances are handed out again", 10, async || {
        same(&daemon.try_acquire(&json!({ "idempotency_key": "after" })).await.status, &201)
    })
    .await;
    daemon.stop().await;
    only_templates_are_left(&server, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_server_makes_shops_slow_and_none_wrong() {
    let Some((place, server)) = at("shared-slow", Kind::Host).await else { return };
    // Shops are shown the directory that the socket is in.
    let dir = server.socket().parent().unwrap().with_file_name("slow");
    std::fs::create_dir_all(&dir).unwrap();
    let begin = dir.join("mysqld.sock");
    let slow = slow::SlowSocket::between(&begin, server.socket());
    for path in [&dir, &begin] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
    let settings = server.settings();
    let url = settings[1].1.replace(server.socket().to_str().unwrap(), begin.to_str().unwrap());
    let daemon = place.daemon(&with(&settings, &[("DATABASE_URL", &url)])).await;
    let quick = daemon.acquire_any().await;
    let began = Instant::now();
    assert_eq!(quick.get("/").await.status, 200);
    let before = began.elapsed();
    slow.by(Duration::from_millis(20));
    let late = daemon.acquire_any().await;
    for shop in [&quick, &late] {
        let began = Instant::now();
        assert_eq!(shop.get("/").await.status, 200);
        assert!(began.elapsed() > before, "{:?}, and {before:?} before", began.elapsed());
    }
    assert_eq!(daemon.get("/health").await.json()["dependencies"]["database"]["status"], "ok");
    daemon.stop().await;
}
