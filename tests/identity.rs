//! What makes a clone its own: keys, secrets and random numbers, the login link,
//! the clocks. Two clones of one real WordPress are compared and set against
//! each other; `identity_prestashop.rs` does the same with PrestaShop.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use host::daemon::Shop;
use host::identity::{INI, Next, all_differ, holders, ini, login_path, look_ahead, processes, put, token_of};
use host::web::{Reply, send};
use host::{Place, eventually, golden};
use serde_json::{Value, json};

/// The document root.
const ROOT: &str = "/usr/share/wordpress";

#[tokio::test]
async fn two_clones_generate_nothing_alike() {
    let Some(place) = Place::beside_others("next").await else { return };
    let daemon = place.daemon(&[]).await;
    // The first page of each is the one that asks: nothing has been drawn before.
    let shops = [daemon.acquire("restore").await, daemon.acquire("restore").await];
    let script = include_str!("host/next-wordpress.php");
    let mut seen: Vec<Next> = Vec::new();
    for shop in &shops {
        seen.push(look_ahead(&place, shop, ROOT, script, golden::NAME).await);
    }
    all_differ(&seen);
    // A worker's second request, and the command line.
    for shop in &shops {
        seen.push(Next::of(&shop.get("/next.php").await.json()));
        let said = place
            .inside(
                shop.id(),
                &[
                    "setpriv",
                    "--reuid=www-data",
                    "--regid=www-data",
                    "--clear-groups",
                    "sh",
                    "-euc",
                    &format!("cd {ROOT}; DATABASE={} php next.php", golden::NAME),
                ],
            )
            .await;
        seen.push(Next::of(&serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))));
    }
    for name in seen[0].next.keys() {
        let values: std::collections::BTreeSet<&str> =
            seen.iter().map(|next| next.next[name].as_str()).collect();
        assert_eq!(values.len(), seen.len(), "{name}: {values:?}");
    }
    // What an operator's files say of each.
    for path in ["/etc/machine-id", "/etc/golden/instance.ini"] {
        let [one, two] = [
            place.inside(shops[0].id(), &["cat", path]).await,
            place.inside(shops[1].id(), &["cat", path]).await,
        ];
        assert!(one.len() >= 32 && one != two, "{path}: {one} {two}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn the_goldens_own_secrets_are_in_no_clone_and_good_for_nothing() {
    let Some(place) = Place::beside_others("golden-secrets").await else { return };
    let daemon = place.daemon(&[]).await;
    let shop = daemon.acquire("restore").await;
    shop.answers().await;
    let secret = ini(&place, &shop, golden::IDENTITY_FILE, "secret").await;
    // In no file but the one that this test's golden keeps it in.
    let found = place
        .cli(&[
            "exec",
            shop.id(),
            "--",
            "grep",
            "-rlF",
            &secret,
            "/etc",
            "/golden",
            "/var",
            "/usr/share/wordpress",
            "/run",
            "/tmp",
        ])
        .await;
    assert_eq!(found.out.trim(), golden::IDENTITY_FILE, "{found:?}");
    // In no process: neither it nor what was derived from it.
    let derive = format!(
        "foreach (['AUTH_KEY', 'LOGGED_IN_SALT', 'NONCE_KEY'] as $use) echo hash_hmac('sha256', $use, '{secret}'), ' ';"
    );
    let derived = place.inside(shop.id(), &["php", "-r", &derive]).await;
    for needle in std::iter::once(secret.as_str()).chain(derived.split_whitespace()) {
        assert_eq!(
            holders(&place, &shop, needle),
            Vec::<String>::new(),
            "processes with the golden's secret"
        );
    }
    let key = ini(&place, &shop, INI, "login_key").await;
    assert!(
        place.sql(shop.id(), &format!("SELECT '{key}'")).await == key
            && !holders(&place, &shop, &key).is_empty(),
        "the search finds what is there"
    );

    // A cookie that is right in all but the key it is made with.
    put(&place, &shop, "/tmp/forge.php", FORGE).await;
    for (secret, good) in [(format!("'{secret}'"), false), ("null".to_owned(), true)] {
        let command = format!("define('FORGED_SECRET', {secret}); require '/tmp/forge.php';");
        let made = place
            .inside(
                shop.id(),
                &[
                    "setpriv",
                    "--reuid=www-data",
                    "--regid=www-data",
                    "--clear-groups",
                    "php",
                    "-d",
                    "auto_prepend_file=",
                    "-r",
                    &command,
                ],
            )
            .await;
        let mut browser = shop.browser();
        for cookie in made.lines() {
            let (name, value) = cookie.split_once('=').unwrap_or_else(|| panic!("{made}"));
            browser.cookies.insert(name.to_owned(), value.to_owned());
        }
        assert_eq!(browser.cookies.len(), 2);
        assert_eq!(browser.is_in().await, good, "{made}");
    }
    let password = place.inside(shop.id(), &["cat", golden::PASSWORD_FILE]).await;
    assert!(password.len() == 24 && !shop.browser().log_in(&password).await, "the golden's own password");
    daemon.stop().await;
}

/// The administrator's cookies, made with the clone's own secret or another.
const FORGE: &str = r#"<?php
$instance = parse_ini_file('/etc/golden/instance.ini', false, INI_SCANNER_RAW);
$instance['host'] = substr(strstr($instance['url'], '//'), 2);
$instance['secret'] = FORGED_SECRET ?? $instance['secret'];
define('INSTANCE', $instance);
function instance_key(string $use): string { return hash_hmac('sha256', $use, INSTANCE['secret']); }
$_SERVER += ['HTTP_HOST' => INSTANCE['host'], 'REQUEST_URI' => '/', 'REQUEST_METHOD' => 'GET', 'SERVER_PROTOCOL' => 'HTTP/1.1'];
require '/usr/share/wordpress/wp-load.php';
$token = WP_Session_Tokens::get_instance(1)->create(2000000000);
foreach (['auth' => AUTH_COOKIE, 'logged_in' => LOGGED_IN_COOKIE] as $scheme => $name) {
    echo $name, '=', rawurlencode(wp_generate_auth_cookie(1, 2000000000, $scheme, $token)), "\n";
}
"#;

#[tokio::test]
async fn what_one_clone_issues_the_other_refuses() {
    let Some(place) = Place::beside_others("refused").await else { return };
    let daemon = place.daemon(&[]).await;
    let shops = [daemon.acquire("restore").await, daemon.acquire("restore").await];
    let mut issued = Vec::new();
    let mut browsers = Vec::new();
    for shop in &shops {
        put(&place, shop, &format!("{ROOT}/wp-content/mu-plugins/issue.php"), ISSUE).await;
        let mut browser = shop.browser();
        assert!(browser.log_in(shop.text("admin_password")).await);
        issued.push(browser.get("/?issue").await.json());
        browsers.push(browser);
    }
    for (mine, theirs) in [(0, 1), (1, 0)] {
        let (shop, own, foreign) = (&shops[mine], &issued[mine], &issued[theirs]);
        // A nonce, with the right cookies of this shop.
        let cookies: Vec<String> =
            browsers[mine].cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let cookies = cookies.join("; ");
        for (nonce, status) in [(&own["nonce"], 200), (&foreign["nonce"], 403)] {
            let said = me(shop, &[("cookie", &cookies), ("x-wp-nonce", nonce.as_str().unwrap())]).await;
            assert_eq!(said.status, status, "{}", said.text());
        }
        // An application password.
        for (password, status) in [(&own["application"], 200), (&foreign["application"], 401)] {
            let said = me(shop, &[("authorization", password.as_str().unwrap())]).await;
            assert_eq!(said.status, status, "{}", said.text());
        }
        // A link that resets the password.
        assert!(takes_reset(shop, &own["reset"]).await, "its own");
        assert!(!takes_reset(shop, &foreign["reset"]).await, "the other's");
        // A session of PHP's.
        for (session, seen) in [(&own["session"], "kept"), (&foreign["session"], "")] {
            let mut browser = shop.browser();
            browser.cookies.insert("PHPSESSID".to_owned(), session.as_str().unwrap().to_owned());
            assert_eq!(browser.get("/?session").await.text(), seen);
        }
    }
    daemon.stop().await;
}

/// Issues one of each for whoever is logged in, and reads a session.
const ISSUE: &str = r#"<?php
add_filter('wp_is_application_passwords_available', '__return_true');
add_action('init', function () {
    if (isset($_GET['session'])) {
        session_start();
        exit($_SESSION['mark'] ?? '');
    }
    if (!isset($_GET['issue']) || !current_user_can('manage_options')) {
        return;
    }
    session_start();
    $_SESSION['mark'] = 'kept';
    [$password] = WP_Application_Passwords::create_new_application_password(1, ['name' => 'a program']);
    wp_send_json([
        'nonce' => wp_create_nonce('wp_rest'),
        'application' => 'Basic ' . base64_encode("admin:$password"),
        'reset' => get_password_reset_key(wp_get_current_user()),
        'session' => session_id(),
    ]);
});
"#;

/// Asks WordPress's interface who we are.
async fn me(shop: &Shop, headers: &[(&str, &str)]) -> Reply {
    send(shop.address(), "GET", shop.host(), "/wp-json/wp/v2/users/me?context=edit", headers, "")
        .await
        .unwrap()
}

/// Whether a reset key leads to the form for a new password.
async fn takes_reset(shop: &Shop, key: &Value) -> bool {
    let mut browser = shop.browser();
    browser.get(&format!("/wp-login.php?action=rp&key={}&login=admin", key.as_str().unwrap())).await;
    let page = browser.get("/wp-login.php?action=rp").await;
    match page.status {
        200 => page.text().contains("id=\"resetpassform\""),
        302 if page.header("location").unwrap().contains("error=invalidkey") => false,
        _ => panic!("{} {}", page.status, page.text()),
    }
}

#[tokio::test]
async fn a_login_link_signs_in_once_in_time_and_only_where_it_belongs() {
    let Some(place) = Place::beside_others("link").await else { return };
    let daemon = place.daemon(&[("POOL_TARGET_SIZE", "1")]).await;
    daemon.pool_has(1).await;
    let shops = [daemon.acquire("pool").await, daemon.acquire_any().await];
    for (shop, other) in [(&shops[0], &shops[1]), (&shops[1], &shops[0])] {
        assert_eq!(shop.browser().get(&login_path(other)).await.status, 403, "the other's link");
        // Who only looks whether it is there does not use it up.
        for (method, headers) in
            [("HEAD", &[][..]), ("GET", &[("sec-purpose", "prefetch")][..]), ("POST", &[][..])]
        {
            let looked =
                send(shop.address(), method, shop.host(), &login_path(shop), headers, "").await.unwrap();
            assert_eq!(looked.status, 405, "{method}");
        }
        let mut browser = shop.browser();
        let reply = browser.get(&login_path(shop)).await;
        assert_eq!(
            (reply.status, reply.header("location")),
            (302, Some(format!("http://{}/wp-admin/", shop.host()).as_str()))
        );
        assert_eq!(
            (reply.header("referrer-policy"), reply.header("cache-control")),
            (Some("no-referrer"), Some("no-store, private")) // the proxy adds `private` to all
        );
        assert!(browser.is_in().await);

        let again = shop.browser().get(&login_path(shop)).await;
        assert_eq!(again.status, 403, "used");
        assert!(
            again.text().contains(&format!("href=\"http://{}/wp-login.php\"", shop.host())),
            "{}",
            again.text()
        );
        assert!(again.headers.get_all("set-cookie").iter().next().is_none());
    }

    let shop = &shops[0];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let nonce = "0123456789abcdef0123456789abcdef";
    for (expires, nonce, status) in
        [(now - 1, nonce, 403), (now + 30, nonce, 302), (now + 30, "../../../tmp/a-file-of-mine", 403)]
    {
        let token = signed(&place, shop, expires, nonce).await;
        assert_eq!(shop.get(&format!("/demo-login?token={token}")).await.status, status, "{token}");
    }
    let far = signed(&place, shop, now + 30, &nonce.replace('0', "f")).await;
    for token in
        [far.replacen("1", "2", 1), far.to_uppercase(), far[..far.len() - 1].to_owned(), String::new()]
    {
        assert_eq!(shop.get(&format!("/demo-login?token={token}")).await.status, 403, "{token}");
    }
    for query in ["", "?token", "?token[]=a", "?other=1"] {
        assert_eq!(shop.get(&format!("/demo-login{query}")).await.status, 403, "{query}");
    }
    // Many at once: one gets in.
    let path = format!("/demo-login?token={far}");
    let all = futures_util::future::join_all((0..8).map(|_| shop.get(&path))).await;
    let mut statuses: Vec<u16> = all.iter().map(|reply| reply.status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [302, 403, 403, 403, 403, 403, 403, 403]);

    // Who asks again under the same key has lost the first answer, and gets a link that works.
    let asked = json!({ "idempotency_key": "a key" });
    let [one, two] = [daemon.try_acquire(&asked).await.json(), daemon.try_acquire(&asked).await.json()];
    assert_eq!(one["id"], two["id"]);
    assert_ne!(one["admin_login_url"], two["admin_login_url"]);
    daemon.stop().await;
}

/// A token signed with the shop's own key.
async fn signed(place: &Place, shop: &Shop, expires: u64, nonce: &str) -> String {
    let key = ini(place, shop, INI, "login_key").await;
    let script = format!("echo $text = '{expires}.{nonce}', '.', hash_hmac('sha256', $text, '{key}');");
    place.inside(shop.id(), &["php", "-r", &script]).await
}

#[tokio::test]
async fn a_login_link_is_shown_once_and_is_in_no_log() {
    let Some(place) = Place::beside_others("link-logs").await else { return };
    let daemon = place.daemon(&[("LOG_LEVEL", "debug")]).await;
    let shop = daemon.acquire("restore").await;
    let token = token_of(&shop);
    let shown = daemon.get(&format!("/api/v1/demo/{}", shop.id())).await;
    assert!(shown.status == 200 && !shown.text().contains("login"), "{}", shown.text());
    let listed = place.cli(&["ls", "--json"]).await.ok();
    assert!(listed.contains(shop.id()) && !listed.contains("login"), "{listed}");

    // PHP does not answer: the link is still good, and what is logged then is nobody's key.
    let master =
        processes(&place, &shop).into_iter().find(|(_, name)| name.starts_with("php-fpm: master")).unwrap().0;
    assert!(std::process::Command::new("kill").args(["-STOP", &master]).status().unwrap().success());
    let asked = shop.clone();
    let hung = tokio::spawn(async move { asked.get(&login_path(&asked)).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(std::process::Command::new("kill").args(["-KILL", &master]).status().unwrap().success());
    let failed = hung.await.unwrap();
    assert!([502, 504].contains(&failed.status), "{}", failed.status);
    assert_eq!(shop.get("/").await.status, 502, "and this is logged");
    let logs = place.cli(&["logs", shop.id()]).await.ok();
    assert!(logs.contains("GET / HTTP/1.1"), "{logs}");
    let key = ini(&place, &shop, INI, "login_key").await;
    for log in [&logs, &place.log()] {
        assert!(!log.contains(&token) && !log.contains(&key), "{log}");
    }
    assert!(place.log().contains(shop.id()));
    daemon.stop().await;
}

#[tokio::test]
async fn a_clone_has_the_right_time_and_its_own_clock_goes_on_where_it_stood() {
    let Some(place) = Place::beside_others("time").await else { return };
    let daemon = place.daemon(&[]).await;
    let began = Instant::now();
    let shop = daemon.acquire("restore").await;
    let cron = "SELECT MD5(option_value) FROM wp_options WHERE option_name = 'cron'";
    let schedule = place.sql(shop.id(), cron).await;
    shop.answers().await;
    assert_eq!(place.sql(shop.id(), cron).await, schedule, "a visitor's page runs no old schedule");
    put(
        &place,
        &shop,
        &format!("{ROOT}/clock.php"),
        "<?php echo json_encode(['time' => microtime(true), 'monotonic' => hrtime(true)]);",
    )
    .await;
    let clock = |said: Value| (said["time"].as_f64().unwrap(), said["monotonic"].as_u64().unwrap());

    // The wall clock, to everybody who asks.
    let host = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let before = host();
    let (time, monotonic) = clock(shop.get("/clock.php").await.json());
    let sql = place.sql(shop.id(), "SELECT UNIX_TIMESTAMP(NOW(6)), UNIX_TIMESTAMP(SYSDATE(6))").await;
    let date = place.inside(shop.id(), &["date", "+%s.%N"]).await;
    let after = host();
    for seen in
        sql.split_whitespace().chain([date.as_str()]).map(|text| text.parse::<f64>().unwrap()).chain([time])
    {
        assert!(before - 0.01 <= seen && seen <= after + 0.01, "{before} {seen} {after}");
    }

    // The other one: not before the checkpoint, and no further than what has
    // passed since: the golden ran some seconds more, the clone since `began`.
    let at_checkpoint: u64 = place.inside(shop.id(), &["cat", golden::CLOCK_FILE]).await.parse().unwrap();
    let passed = Duration::from_nanos(monotonic.checked_sub(at_checkpoint).expect("it went backwards"));
    let most = began.elapsed() + Duration::from_secs(60);
    assert!(passed < most, "{passed:?}, and the clone is not older than {most:?}");
    // Commands inside see the same one.
    let inside: u64 = place.inside(shop.id(), &["php", "-r", "echo hrtime(true);"]).await.parse().unwrap();
    let (_, later) = clock(shop.get("/clock.php").await.json());
    assert!(monotonic < inside && inside < later, "{monotonic} {inside} {later}");

    // What waits by the clock waits as long as it should: a statement, and
    // php-fpm, whose pool of the warm-up ends a worker a second after its last request.
    let slept = Instant::now();
    place.sql(shop.id(), "SELECT SLEEP(1)").await;
    assert!(slept.elapsed() >= Duration::from_secs(1));
    place.inside(shop.id(), &["ln", "-sfn", "warm-up.sock", "/run/php/php.sock"]).await;
    let asked = Instant::now();
    shop.answers().await;
    let workers = || {
        processes(&place, &shop).iter().filter(|(_, name)| name.starts_with("php-fpm: pool warm-up")).count()
    };
    assert!(workers() > 0);
    eventually("the idle worker leaves", 30, async || {
        if workers() == 0 { Ok(()) } else { Err(workers().to_string()) }
    })
    .await;
    assert!(asked.elapsed() >= Duration::from_secs(1), "{:?}", asked.elapsed());

    // php-fpm may count on that worker until it has seen its end; a page that comes just then waits for ever.
    place.inside(shop.id(), &["ln", "-sfn", "fpm.sock", "/run/php/php.sock"]).await;

    // The schedule is behind by as long as the golden lay there: each event runs
    // once when somebody asks for it, and is then due in the future again.
    assert_eq!(shop.get("/wp-cron.php?doing_wp_cron").await.status, 200);
    put(
        &place,
        &shop,
        &format!("{ROOT}/due.php"),
        "<?php require 'wp-load.php'; echo count(wp_get_ready_cron_jobs()), ' ', count(_get_cron_array());",
    )
    .await;
    eventually("nothing is due", 20, async || {
        let due = shop.get("/due.php").await.text().into_owned();
        if due.starts_with("0 ") && !due.ends_with(" 0") { Ok(()) } else { Err(due) }
    })
    .await;
    daemon.stop().await;
}
