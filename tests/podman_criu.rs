//! What is true of every clone of a real golden: WordPress with MariaDB and
//! PHP, frozen by Podman, restored by CRIU, reached through the daemon's proxy.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "common/collector.rs"]
mod collector;
mod host;

use std::collections::BTreeSet;

use collector::{Collector, Span, below};
use host::daemon::Shop;
use host::identity::login_path;
use host::{Place, golden};
use serde_json::json;

#[tokio::test]
async fn a_row_written_just_before_the_checkpoint_is_in_every_restore_and_all_tables_are_clean() {
    let Some(place) = Place::beside_others("rows").await else { return };
    let daemon = place.daemon(&[]).await;
    let (one, two) = (daemon.acquire("restore").await, daemon.acquire("restore").await);
    for shop in [&one, &two] {
        let rows = "SELECT COUNT(*), SUM(LENGTH(note)) FROM before_the_checkpoint";
        let expected = format!("{}\t{}", golden::ROWS, golden::ROWS * 200);
        assert_eq!(place.sql(shop.id(), rows).await, expected);
        let checked = place.inside(shop.id(), &["mariadb-check", "--all-databases", "--extended"]).await;
        let bad: Vec<&str> = checked.lines().filter(|line| !line.ends_with("OK")).collect();
        assert_eq!(bad, Vec::<&str>::new());
        assert!(
            checked.contains("wordpress.before_the_checkpoint") && checked.contains("mysql.db"),
            "{checked}"
        );
    }
    // And they go on from there, each on files of its own.
    place.sql(one.id(), "DELETE FROM before_the_checkpoint WHERE id > 10").await;
    for (shop, rows) in [(&one, 10), (&two, golden::ROWS)] {
        let count = place.sql(shop.id(), "SELECT COUNT(*) FROM before_the_checkpoint").await;
        assert_eq!(count, rows.to_string());
    }
    daemon.stop().await;
}

#[tokio::test]
async fn an_acquired_shop_answers_at_its_url_and_takes_only_the_password_it_was_given() {
    let Some(place) = Place::beside_others("acquired").await else { return };
    let daemon = place.daemon(&[("POOL_TARGET_SIZE", "1")]).await;
    daemon.pool_has(1).await;
    let pooled = daemon.acquire("pool").await;
    is_a_whole_shop(&place, &pooled).await;
    daemon.stop().await;

    let daemon = place.daemon(&[]).await;
    let restored = daemon.acquire("restore").await;
    is_a_whole_shop(&place, &restored).await;
    assert_eq!(restored.get("/").await.header("x-powered-by"), None);

    daemon.release(restored.id()).await;
    assert_eq!(restored.get("/").await.status, 410, "released");
    daemon.stop().await;
}

async fn is_a_whole_shop(place: &Place, shop: &Shop) {
    shop.answers().await;
    assert_eq!(shop.text("url"), format!("http://{}.localhost:{}/", shop.id(), place.address().port()));
    let front = shop.get("/").await;
    let link = format!("http://{}/how-we-pack/", shop.host());
    assert!(front.text().contains(&link), "its links lead to itself: {}", front.text());
    assert!(!front.text().contains("golden.invalid"), "{}", front.text());

    let golden_password = place.inside(shop.id(), &["cat", golden::PASSWORD_FILE]).await;
    assert_eq!(golden_password.len(), 24);
    assert!(!shop.browser().log_in(&golden_password).await, "the golden's own password");
    assert!(!shop.browser().log_in("admin").await);
    let mut browser = shop.browser();
    assert!(browser.log_in(shop.text("admin_password")).await, "the password of the answer");
    let admin_page = shop.text("admin_url").strip_prefix(&format!("http://{}", shop.host())).unwrap();
    assert_eq!(browser.get(admin_page).await.status, 200);
    let email = place.sql(shop.id(), "SELECT user_email FROM wp_users WHERE ID = 1").await;
    assert_eq!(email, shop.text("admin_email"));
}

/// How many rows of WordPress's global styles are as `is` says.
async fn styles(place: &Place, shop: &Shop, is: &str) -> String {
    let named = r"option_name LIKE '\_transient\_%global\_styles%' AND";
    place.sql(shop.id(), &format!("SELECT COUNT(*) FROM wp_options WHERE {named} {is}")).await
}

/// What MariaDB has answered by heart, and what it has worked out and learned.
async fn known_and_learned(place: &Place, shop: &Shop) -> (u64, u64) {
    let said = place.sql(shop.id(), "SHOW GLOBAL STATUS LIKE 'Qcache_%s'").await;
    let of = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{said}"));
        line.trim().parse::<u64>().unwrap()
    };
    (of("Qcache_hits"), of("Qcache_inserts"))
}

#[tokio::test]
async fn a_first_page_finds_what_the_golden_worked_out_until_somebody_logs_in() {
    let Some(place) = Place::beside_others("first-page").await else { return };
    let daemon = place.daemon(&[]).await;
    let shop = daemon.acquire("restore").await;
    let lasting = "autoload = 'yes'";
    assert_eq!(styles(&place, &shop, lasting).await, "2");
    let (known, learned) = known_and_learned(&place, &shop).await;
    shop.answers().await;
    let (known, learned) = {
        let after = known_and_learned(&place, &shop).await;
        (after.0 - known, after.1 - learned)
    };
    // New are those from the two tables that personalizing has written to.
    assert!(known > learned && known > 10, "{known} known, {learned} learned");
    assert_eq!(styles(&place, &shop, "autoload = 'no'").await, "0", "the page wrote none anew");

    let mut browser = shop.browser();
    browser.get(&login_path(&shop)).await;
    assert!(browser.is_in().await);
    assert_eq!(styles(&place, &shop, lasting).await, "0");
    // From now on as WordPress has it: written anew, for a minute.
    shop.answers().await;
    assert_eq!(styles(&place, &shop, "autoload = 'no'").await, "4", "two of them, and their ends");
    daemon.stop().await;
}

#[tokio::test]
async fn the_banner_is_on_a_shops_front_changes_nothing_else_of_it_and_not_the_back_office() {
    const ELEMENT: &str = "<demo-multiplexer-banner";
    let Some(place) = Place::beside_others("banner").await else { return };
    let daemon = place.daemon(&[("BANNER", "on")]).await;
    let shop = daemon.acquire("restore").await;
    let mut browser = shop.browser();
    for path in ["/", "/how-we-pack/", "/wp-login.php"] {
        // Asked for as by a program, it is as the shop made it.
        let plain = shop.get(path).await;
        let page = browser.get(path).await;
        assert_eq!((plain.status, page.status), (200, 200), "{path}");
        let (page, plain) = (page.text(), plain.text());
        let (before, rest) = page.split_once(ELEMENT).unwrap_or_else(|| panic!("{path}: {page}"));
        let (_, after) = rest.split_once("</script>").unwrap();
        assert!(after.starts_with("</body>"), "{path}: {after}");
        assert_eq!(format!("{before}{after}"), plain, "{path}");
    }
    let status = shop.get("/.demo-multiplexer/status").await.json();
    assert!((3000..=3600).contains(&status["seconds_left"].as_i64().unwrap()), "{status}");
    assert!(browser.log_in(shop.text("admin_password")).await, "through a login page with the banner");
    for path in ["/wp-admin/", "/wp-admin/users.php", "/wp-admin/options-general.php"] {
        let page = browser.get(path).await;
        assert!(page.status == 200 && page.text().contains("wpadminbar"), "{path}");
        assert!(!page.text().contains(ELEMENT), "{path}");
    }
    for path in ["/feed/", "/wp-json/"] {
        let page = browser.get(path).await;
        assert!(page.status == 200 && !page.text().contains(ELEMENT), "{path}: {}", page.text());
    }
    daemon.stop().await;
}

#[tokio::test]
async fn two_clones_share_no_secret_and_see_nothing_of_each_other() {
    let Some(place) = Place::beside_others("two").await else { return };
    let daemon = place.daemon(&[("POOL_TARGET_SIZE", "1")]).await;
    daemon.pool_has(1).await;
    let shops = [daemon.acquire("pool").await, daemon.acquire("restore").await];

    let (passwords, hosts) =
        (shops.each_ref().map(|s| s.text("admin_password")), shops.each_ref().map(Shop::host));
    assert!(passwords[0] != passwords[1] && hosts[0] != hosts[1]);
    let gateway = place.gateway();
    let address = format!(
        "echo strtok(stream_socket_get_name(stream_socket_client('udp://{gateway}:9'), false), ':');"
    );
    for command in [
        &["hostname"][..],
        &["cat", "/etc/golden/instance.ini"],
        &["sed", "-n", "/^secret/p", "/etc/golden/instance.ini"],
        &["php", "-r", &address],
        &["mariadb", "-N", "wordpress", "-e", "SELECT user_pass FROM wp_users WHERE ID = 1"],
        &[
            "mariadb",
            "-N",
            "wordpress",
            "-e",
            "SELECT option_value FROM wp_options WHERE option_name = 'siteurl'",
        ],
        &["php", "-r", "echo bin2hex(random_bytes(16));"],
    ] {
        let seen = [place.inside(shops[0].id(), command).await, place.inside(shops[1].id(), command).await];
        assert!(!seen[0].is_empty() && seen[0] != seen[1], "{command:?}: {seen:?}");
    }

    let mut browsers = shops.each_ref().map(Shop::browser);
    assert!(browsers[0].log_in(passwords[0]).await && browsers[1].log_in(passwords[1]).await);
    assert!(!shops[1].browser().log_in(passwords[0]).await, "the password of the one at the other");

    // The cookies of the one, under the names that the other looks for.
    let logged_in = browsers[1].cookies.keys().find(|name| name.starts_with("wordpress_logged_in_"));
    let suffix = logged_in.unwrap().rsplit_once('_').unwrap().1.to_owned();
    let mut thief = shops[1].browser();
    for (name, value) in &browsers[0].cookies {
        thief.cookies.insert(name.clone(), value.clone());
        if let Some((kind, _)) = name.rsplit_once('_') {
            thief.cookies.insert(format!("{kind}_{suffix}"), value.clone());
        }
    }
    assert!(!thief.is_in().await, "the cookies of the one at the other");
    assert!(browsers[0].is_in().await, "they are good where they came from");

    // What one writes, in its database and in its files.
    place
        .sql(
            shops[0].id(),
            "UPDATE wp_posts SET post_title = 'Changed by one' WHERE post_name = 'how-we-pack'",
        )
        .await;
    place
        .inside(shops[0].id(), &["sh", "-c", "echo one >/usr/share/wordpress/wp-content/uploads/one.txt"])
        .await;
    assert!(shops[0].get("/how-we-pack/").await.text().contains("Changed by one"));
    assert!(!shops[1].get("/how-we-pack/").await.text().contains("Changed by one"));
    assert_eq!(shops[0].get("/wp-content/uploads/one.txt").await.text(), "one\n");
    assert_eq!(shops[1].get("/wp-content/uploads/one.txt").await.status, 404);
    // Nor do they reach each other over the bridge, which answers only for itself.
    let own = place.inside(shops[0].id(), &["php", "-r", &address]).await;
    let other = place.inside(shops[1].id(), &["php", "-r", &address]).await;
    for (target, code) in [(own, 0), (other, 9)] {
        let reach = format!("exit(@fsockopen('{target}', 80, $n, $s, 1) ? 0 : 9);");
        let tried = place.cli(&["exec", shops[0].id(), "--", "php", "-r", &reach]).await;
        assert_eq!(tried.code, Some(code), "{target}: {tried:?}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn eight_acquires_at_once_on_an_empty_pool_all_answer() {
    let Some(place) = Place::beside_others("eight").await else { return };
    let daemon = place.daemon(&[]).await;
    let shops = futures_util::future::join_all((0..8).map(|_| daemon.acquire("restore"))).await;
    futures_util::future::join_all(shops.iter().map(Shop::answers)).await;
    let distinct: BTreeSet<&str> = shops.iter().map(Shop::id).collect();
    assert_eq!(distinct.len(), 8);
    assert_eq!(daemon.stats().await["goldens"][0]["states"]["assigned"], 8);
    daemon.stop().await;
}

#[tokio::test]
async fn an_operator_reads_logs_and_runs_commands_inside() {
    let Some(place) = Place::beside_others("operator").await else { return };
    let daemon = place.daemon(&[]).await;
    let shop = daemon.acquire("restore").await;
    shop.answers().await;
    assert_eq!(place.inside(shop.id(), &["hostname"]).await, shop.id());
    for code in [0, 1, 7, 255] {
        let said = place
            .cli(&["exec", shop.id(), "--", "sh", "-c", &format!("echo out; echo err >&2; exit {code}")])
            .await;
        assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (Some(code), "out\n", "err\n"));
    }
    assert_eq!(place.cli(&["exec", shop.id(), "--", "no-such-command"]).await.code, Some(127));
    // It ends with its instance: it is in its cgroup.
    let cgroup = place.inside(shop.id(), &["cat", "/proc/self/cgroup"]).await;
    assert!(cgroup.lines().any(|line| line == "0::/"), "{cgroup}");

    let marker = "a line for the log";
    place.inside(shop.id(), &["sh", "-c", &format!("echo {marker} >>/var/log/golden/php.log")]).await;
    let logs = place.cli(&["logs", shop.id()]).await.ok();
    for file in ["start.log", "nginx.log", "php-fpm.log", "php.log", "mariadb.log"] {
        assert!(logs.contains(&format!("==> /var/log/golden/{file} <==")), "{logs}");
    }
    assert!(logs.contains(marker), "{logs}");
    let logs = place.cli(&["logs", shop.id(), "--json"]).await.json();
    assert_eq!(logs["/var/log/golden/php.log"].as_str().map(|log| log.contains(marker)), Some(true));

    for args in [["exec", "aaaaaaaaaaaa", "true"], ["logs", "aaaaaaaaaaaa", "--json"]] {
        let said = place.cli(&args).await.refused();
        assert!(said.contains("instance aaaaaaaaaaaa does not run on this host"), "{said}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn the_command_line_acquires_extends_lists_and_releases() {
    let Some(place) = Place::beside_others("commands").await else { return };
    let daemon = place.daemon(&[]).await;
    let got = place.cli(&["acquire", "--ttl", "5m", "--json"]).await.json();
    let id = got["id"].as_str().unwrap();
    assert_eq!((&got["source"], &got["state"]), (&json!("restore"), &json!("assigned")));
    assert_eq!(daemon.ids().await, [id]);
    let extended = place.cli(&["extend", id, "10m", "--json"]).await.json();
    assert!(extended["ttl_seconds"].as_i64().unwrap() > 300, "{extended}");
    place.cli(&["release", id]).await.ok();
    daemon.holds_nothing().await;
    let said = place.cli(&["acquire", "--golden", "nowhere"]).await.refused();
    assert!(said.contains("golden \"nowhere\" is unknown; there are: wordpress"), "{said}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_restore_is_traced_phase_by_phase() {
    let Some(place) = Place::beside_others("traced").await else { return };
    let collector = Collector::start().await;
    let url = collector.url();
    let daemon = place.daemon(&[("OTLP_URL", &url)]).await;
    let restored = daemon.acquire("restore").await;
    let metrics = daemon.get("/metrics").await;
    for form in ["compressed", "raw"] {
        let size = format!("demo_multiplexer_snapshot_size_bytes{{golden=\"wordpress\",form=\"{form}\"}} ");
        assert!(metrics.text().contains(&size), "{}", metrics.text());
    }
    daemon.stop().await;
    let spans = collector.spans();
    let made = making_of(&spans, restored.id());
    let steps =
        ["record", "restore slot", "restore restore", "restore adopt", "personalize", "route", "record"];
    assert_eq!(steps_of(made, &spans), steps);
    let acquire = spans.iter().find(|span| span.id == made.parent).expect("a client waited for it");
    let request = spans.iter().find(|span| span.id == acquire.parent).expect("it asked over HTTP");
    assert_eq!((acquire.name.as_str(), request.name.as_str()), ("acquire", "request"));

    let daemon = place.daemon(&[("OTLP_URL", &url), ("POOL_TARGET_SIZE", "1")]).await;
    daemon.pool_has(1).await;
    let pooled = daemon.acquire("pool").await;
    daemon.stop().await;
    let spans = collector.spans();
    let made = making_of(&spans, pooled.id());
    assert!(made.parent.is_empty(), "nobody asked for it");
    assert!(steps_of(made, &spans).contains(&"probe".to_owned()), "the pool looks at the first page");
    let password = pooled.text("admin_password").as_bytes();
    assert!(spans.iter().all(|span| !span.raw.windows(password.len()).any(|part| part == password)));
}

fn making_of<'a>(spans: &'a [Span], id: &str) -> &'a Span {
    let made = |span: &&Span| span.name == "make" && span.attributes["instance_id"] == id;
    spans.iter().find(made).unwrap_or_else(|| panic!("no making of {id}: {spans:#?}"))
}

/// The steps of a making in order, restores with their phase.
fn steps_of(made: &Span, spans: &[Span]) -> Vec<String> {
    let step = |span: &Span| match span.attributes.get("phase") {
        Some(phase) => format!("{} {phase}", span.name),
        None => span.name.clone(),
    };
    below(made, spans).into_iter().map(step).collect()
}
