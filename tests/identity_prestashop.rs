//! What makes a clone of PrestaShop its own, on a real one: needs its source in
//! PRESTASHOP_SRC, and takes minutes when no golden of it is frozen yet.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use host::daemon::{Daemon, Shop};
use host::identity::{INI, Next, all_differ, holders, ini, login_path, look_ahead, put};
use host::web::{Browser, Reply, send};
use host::{Place, golden};

const ROOT: &str = "/var/www/prestashop";

/// A daemon's place and settings; none without PrestaShop.
async fn at(name: &'static str) -> Option<(Place, [(&'static str, String); 3])> {
    let place = Place::beside_others(name).await?;
    Some((place, golden::prestashop().await?))
}

async fn daemon<'a>(place: &'a Place, settings: &[(&'static str, String); 3]) -> Daemon<'a> {
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    place.daemon(&settings).await
}

/// Runs a script in the shop as its web server's user, with PrestaShop loaded.
async fn php(place: &Place, shop: &Shop, script: &str) -> String {
    let loaded = format!("<?php chdir('{ROOT}'); require '{ROOT}/config/config.inc.php'; {script}");
    put(place, shop, "/tmp/script.php", &loaded).await;
    let user = ["setpriv", "--reuid=www-data", "--regid=www-data", "--clear-groups"];
    place.inside(shop.id(), &[&user[..], &["php", "/tmp/script.php"]].concat()).await
}

#[tokio::test]
async fn two_clones_generate_nothing_alike() {
    let Some((place, settings)) = at("ps-next").await else { return };
    let daemon = daemon(&place, &settings).await;
    let shops = [daemon.acquire("restore").await, daemon.acquire("restore").await];
    let script = include_str!("host/next-prestashop.php");
    let mut seen = Vec::new();
    for shop in &shops {
        seen.push(look_ahead(&place, shop, ROOT, script, "prestashop").await);
    }
    all_differ(&seen);
    let keys = |next: &Next| next.keys.clone();
    for (shop, first) in shops.iter().zip([keys(&seen[0]), keys(&seen[1])]) {
        let second = Next::of(&shop.get("/next.php").await.json());
        assert_eq!(second.keys, first, "keys stay what they are");
        assert_ne!(first["hash of the customer"], first["hash of the admin"]);
        seen.push(second);
    }
    // But for a hash of the second and the customer's key.
    for name in seen[0].next.keys().filter(|name| *name != "reset token of a customer") {
        let values: std::collections::BTreeSet<&str> = seen.iter().map(|it| it.next[name].as_str()).collect();
        assert_eq!(values.len(), seen.len(), "{name}: {values:?}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn the_goldens_own_secrets_are_in_no_clone_and_open_nothing() {
    let Some((place, settings)) = at("ps-golden-secrets").await else { return };
    let daemon = daemon(&place, &settings).await;
    let shop = daemon.acquire("restore").await;
    shop.answers().await;
    assert!(is_in(&mut link_followed(&shop).await).await, "so that the back office has been used");
    let secret = ini(&place, &shop, golden::IDENTITY_FILE, "secret").await;
    // What keys.php derives of it, among it what was in compiled code once.
    let derive = format!(
        "foreach (['secret', 'cookie_key', 'new_cookie_key'] as $use) echo $key = hash_hmac('sha256', $use, '{secret}'), ' '; \
         echo hash('sha256', $key);"
    );
    let derived = place.inside(shop.id(), &["php", "-r", &derive]).await;
    let needles: Vec<&str> = std::iter::once(secret.as_str()).chain(derived.split_whitespace()).collect();
    assert_eq!(needles.len(), 5);
    for needle in needles {
        assert_eq!(holders(&place, &shop, needle), Vec::<String>::new(), "processes with {needle}");
        let found = place
            .cli(&[
                "exec",
                shop.id(),
                "--",
                "grep",
                "-rlF",
                needle,
                "/etc",
                "/golden",
                "/var",
                "/run",
                "/tmp",
            ])
            .await;
        assert_eq!(found.out.trim(), if needle == secret { golden::IDENTITY_FILE } else { "" }, "{found:?}");
    }
    let own = ini(&place, &shop, INI, "secret").await;
    assert_ne!(own, secret);

    let golden_password = place.inside(shop.id(), &["cat", golden::PASSWORD_FILE]).await;
    for (email, password, good) in [
        (shop.text("admin_email"), golden_password.as_str(), false),
        ("admin@golden.invalid", golden_password.as_str(), false),
        ("admin@golden.invalid", shop.text("admin_password"), false),
        (shop.text("admin_email"), shop.text("admin_password"), true),
    ] {
        assert_eq!(log_in(&shop, email, password).await, good, "{email}");
    }
    // The sample customers: addresses that everybody knows, and no password.
    for email in [CUSTOMER, "anonymous@psgdpr.com"] {
        for password in ["123456789", "prestashop", "pub", shop.text("admin_password"), &golden_password] {
            assert!(!customer_logs_in(&mut shop.browser(), email, password).await, "{email} {password}");
        }
    }
    give_password(&place, &shop).await;
    assert!(customer_logs_in(&mut shop.browser(), CUSTOMER, PASSWORD).await, "the visitor may give one");
    daemon.stop().await;
}

/// Logs in to the back office; whether it let us in.
async fn log_in(shop: &Shop, email: &str, password: &str) -> bool {
    let mut browser = shop.browser();
    browser.get("/admin-demo/index.php?controller=AdminLogin").await;
    let fields = [("email", email), ("passwd", password), ("submitLogin", "1")];
    browser.post("/admin-demo/index.php?controller=AdminLogin", &fields).await;
    is_in(&mut browser).await
}

/// Whether the back office takes us for its administrator.
async fn is_in(browser: &mut Browser) -> bool {
    let reply = browser.get("/admin-demo/").await;
    let location = reply.header("location").unwrap_or_else(|| panic!("{} {}", reply.status, reply.text()));
    assert!(location.contains("AdminDashboard") || location.contains("AdminLogin"), "{location}");
    location.contains("AdminDashboard")
}

async fn link_followed(shop: &Shop) -> Browser {
    let mut browser = shop.browser();
    let reply = browser.get(&login_path(shop)).await;
    assert_eq!(reply.status, 302, "{}", reply.text());
    browser
}

/// A sample customer of PrestaShop's, and a password for him.
const CUSTOMER: &str = "pub@prestashop.com";
const PASSWORD: &str = "a good pass phrase";

/// Gives it to him, as the back office does.
async fn give_password(place: &Place, shop: &Shop) {
    let script = format!("$c = new Customer(2); $c->setWsPasswd('{PASSWORD}'); exit($c->update() ? 0 : 1);");
    php(place, shop, &script).await;
}

async fn customer_logs_in(browser: &mut Browser, email: &str, password: &str) -> bool {
    browser.get("/login").await;
    let fields = [("email", email), ("password", password), ("submitLogin", "1")];
    let reply = browser.post("/login", &fields).await;
    reply.status == 302 && browser.get("/my-account").await.status == 200
}

#[tokio::test]
async fn what_one_clone_issues_the_other_refuses() {
    let Some((place, settings)) = at("ps-refused").await else { return };
    let daemon = daemon(&place, &settings).await;
    let shops = [daemon.acquire("restore").await, daemon.acquire("restore").await];
    for (shop, other) in [(&shops[0], &shops[1]), (&shops[1], &shops[0])] {
        // The login link: here, once.
        assert_eq!(shop.browser().get(&login_path(other)).await.status, 403);
        let mut browser = link_followed(shop).await;
        assert!(is_in(&mut browser).await);
        let again = shop.browser().get(&login_path(shop)).await;
        assert!(again.status == 403 && again.text().contains("/admin-demo/\""), "{}", again.text());

        // The administrator's cookies, under the other's names.
        let mut thief = other.browser();
        thief.get("/admin-demo/").await;
        let names: Vec<String> =
            thief.cookies.keys().filter(|name| name.starts_with("PrestaShop-")).cloned().collect();
        let values: Vec<&String> = browser
            .cookies
            .iter()
            .filter(|(name, _)| name.starts_with("PrestaShop-"))
            .map(|(_, value)| value)
            .collect();
        assert_eq!((names.len(), values.len()), (1, 1));
        thief.cookies.insert(names[0].clone(), values[0].clone());
        assert!(!is_in(&mut thief).await, "the cookies of the one at the other");
    }

    // The token in each of the back office's addresses.
    let script =
        "echo Tools::getAdminToken('AdminModules' . (int) Tab::getIdFromClassName('AdminModules') . '1');";
    let admin = [php(&place, &shops[0], script).await, php(&place, &shops[1], script).await];
    // The one in the front office's forms, which counts once a customer is logged in.
    for shop in &shops {
        give_password(&place, shop).await;
    }
    let mut customers = [shops[0].browser(), shops[1].browser()];
    for browser in &mut customers {
        assert!(customer_logs_in(browser, CUSTOMER, PASSWORD).await);
    }
    let front = [front_token(&mut customers[0]).await, front_token(&mut customers[1]).await];
    // A key of the web service.
    let script = "Configuration::updateValue('PS_WEBSERVICE', 1); $key = new WebserviceKey(); $key->key = Tools::passwdGen(32); \
                  $key->active = true; $key->add(); WebserviceKey::setPermissionForAccount($key->id, ['shops' => ['GET' => 1]]); \
                  echo $key->key;";
    let service = [php(&place, &shops[0], script).await, php(&place, &shops[1], script).await];
    for (mine, theirs) in [(0, 1), (1, 0)] {
        let shop = &shops[mine];
        let mut browser = shop.browser();
        let fields = [
            ("email", shop.text("admin_email")),
            ("passwd", shop.text("admin_password")),
            ("submitLogin", "1"),
        ];
        browser.post("/admin-demo/index.php?controller=AdminLogin", &fields).await;
        for (token, good) in [(&admin[mine], true), (&admin[theirs], false)] {
            let page = browser
                .get(&format!(
                    "/admin-demo/index.php?controller=AdminModules&configure=ps_banner&token={token}"
                ))
                .await;
            assert_eq!(page.status, 200);
            assert_eq!(page.text().contains("Invalid security token"), !good, "{}", page.text());
            assert_eq!(page.text().contains("BANNER_IMG"), good, "{}", page.text());
        }
        for (token, good) in [(&front[mine], true), (&front[theirs], false)] {
            let fields = [
                ("token", token.as_str()),
                ("id_product", "6"),
                ("qty", "1"),
                ("add", "1"),
                ("action", "update"),
            ];
            let before = in_carts(&place, shop).await;
            let reply = customers[mine].post("/cart", &fields).await;
            assert_eq!(in_carts(&place, shop).await - before, u32::from(good), "{}", reply.status);
        }
        for (key, status) in [(&service[mine], 200), (&service[theirs], 401)] {
            let reply = shop.get(&format!("/api/shops?ws_key={key}")).await;
            assert_eq!(reply.status, status, "{}", reply.text());
        }
    }
    access_tokens(&place, &shops).await;
    daemon.stop().await;
}

/// How many of the product with number 6 are in carts.
async fn in_carts(place: &Place, shop: &Shop) -> u32 {
    let statement = "SELECT COALESCE(SUM(quantity), 0) FROM ps_cart_product WHERE id_product = 6";
    place.inside(shop.id(), &["mariadb", "-N", "prestashop", "-e", statement]).await.parse().unwrap()
}

async fn front_token(browser: &mut Browser) -> String {
    let page = browser.get("/").await;
    let text = page.text();
    let token = text.split_once("\"static_token\":\"").unwrap_or_else(|| panic!("{text}")).1;
    token.split('"').next().unwrap().to_owned()
}

/// What the back office's API signs: it has a pair of its own that works.
async fn access_tokens(place: &Place, shops: &[Shop; 2]) {
    let sign = "$rsa = new Lcobucci\\JWT\\Signer\\Rsa\\Sha256(); $key = Lcobucci\\JWT\\Signer\\Key\\InMemory::file('/etc/golden/api-private.pem'); \
                $now = new DateTimeImmutable(); echo Lcobucci\\JWT\\Configuration::forSymmetricSigner($rsa, $key)->builder() \
                ->permittedFor('a program')->identifiedBy('1')->relatedTo('1')->issuedAt($now)->canOnlyBeUsedAfter($now) \
                ->expiresAt($now->modify('+1 hour'))->withClaim('scopes', [])->getToken($rsa, $key)->toString();";
    let tokens = [php(place, &shops[0], sign).await, php(place, &shops[1], sign).await];
    for (mine, theirs) in [(0, 1), (1, 0)] {
        for (token, said) in [(&tokens[mine], "good"), (&tokens[theirs], "refused")] {
            let check = format!(
                "$server = new League\\OAuth2\\Server\\ResourceServer(new PrestaShopBundle\\Security\\OAuth2\\Repository\\AccessTokenRepository(), \
                 new League\\OAuth2\\Server\\CryptKey('/etc/golden/api-public.pem')); \
                 $request = (new Nyholm\\Psr7\\ServerRequest('GET', '/'))->withHeader('Authorization', 'Bearer {token}'); \
                 try {{ $server->validateAuthenticatedRequest($request); echo 'good'; }} \
                 catch (League\\OAuth2\\Server\\Exception\\OAuthServerException $e) {{ echo 'refused'; }}"
            );
            assert_eq!(php(place, &shops[mine], &check).await, said);
        }
        // The server that gives out tokens is built from these files, and knows no client.
        let fields = "grant_type=client_credentials&client_id=a&client_secret=b";
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let path = "/admin-demo/index.php/api/oauth2/token";
        let shop = &shops[mine];
        let reply: Reply = send(shop.address(), "POST", shop.host(), path, &headers, fields).await.unwrap();
        assert!(
            reply.status == 401 && reply.text().contains("invalid_client"),
            "{} {}",
            reply.status,
            reply.text()
        );
    }
}

/// What a visitor leaves in a shop: a name, accounts, a key of the API, and a file with all
/// parameters, as a page of the back office saves it.
const VISITED: &str = "
    $product = new Product(1); $product->name = [1 => 'Spring teapot']; $product->update();
    $friend = new Employee();
    $friend->firstname = $friend->lastname = 'Friend'; $friend->email = 'friend@example.com';
    $friend->id_profile = 1; $friend->id_lang = 1; $friend->active = true;
    $friend->setWsPasswd('a good pass phrase');
    $key = new WebserviceKey(); $key->key = str_repeat('A', 32); $key->active = true;
    $file = _PS_ROOT_DIR_ . '/app/config/parameters.php';
    $all = var_export(require $file, true);
    exit($friend->add() && $key->add() && file_put_contents($file, \"<?php return $all;\") ? 0 : 1);";

#[tokio::test]
async fn a_published_shop_shows_what_its_visitor_made_and_nothing_opens_it_that_the_visitor_knows() {
    let Some((place, mut settings)) = at("ps-published").await else { return };
    settings[1].1 = place.has_its_own_snapshots(settings[1].1.as_ref()).await.display().to_string();
    let daemon = daemon(&place, &settings).await;
    let shop = daemon.acquire("restore").await;
    let mut visitor = link_followed(&shop).await;
    assert!(is_in(&mut visitor).await);
    php(&place, &shop, VISITED).await;
    // So that what is compiled has the visitor's secrets in it.
    place.inside(shop.id(), &["sh", "-c", &format!("rm -rf {ROOT}/var/cache/prod")]).await;
    assert!(shop.get("/").await.text().contains("Spring teapot"));
    assert!(is_in(&mut visitor).await);
    assert!(log_in(&shop, "friend@example.com", PASSWORD).await);
    let secret = ini(&place, &shop, INI, "secret").await;
    let derive = format!("echo hash_hmac('sha256', 'cookie_key', '{secret}');");
    let cookie_key = place.inside(shop.id(), &["php", "-r", &derive]).await;
    let found = place.inside(shop.id(), &["grep", "-rlF", &cookie_key, ROOT]).await;
    assert!(found.contains("parameters.php"), "{found}");
    daemon.keep(shop.id()).await;
    let ended = daemon.publish(shop.id(), "spring").await;
    assert_eq!(ended["state"], "done", "{ended} {}", place.log());
    let steps = ended["steps"].to_string();
    assert!(!steps.contains("left out"), "it is as warm as any golden: {steps}");

    let copies = [daemon.acquire_of("spring").await, daemon.acquire_of("spring").await];
    let mut secrets = vec![secret.clone()];
    for copy in &copies {
        let page = copy.get("/").await;
        assert!(
            page.status == 200 && page.text().contains("Spring teapot"),
            "{} {}",
            page.status,
            page.text()
        );
        for former in [shop.id(), "golden.invalid"] {
            assert!(!page.text().contains(former), "{former}: {}", page.text());
        }
        assert!(is_in(&mut link_followed(copy).await).await, "by its link");
        for (email, password, good) in [
            (copy.text("admin_email"), copy.text("admin_password"), true),
            (copy.text("admin_email"), shop.text("admin_password"), false),
            (shop.text("admin_email"), shop.text("admin_password"), false),
            ("friend@example.com", PASSWORD, false),
        ] {
            assert_eq!(log_in(copy, email, password).await, good, "{email}");
        }
        let count = "echo Db::getInstance()->getValue('SELECT COUNT(*) FROM ps_webservice_account');";
        assert_eq!(php(&place, copy, count).await, "0", "a key of the API");
        for needle in [&secret, &cookie_key] {
            assert_eq!(holders(&place, copy, needle), Vec::<String>::new(), "processes with {needle}");
            let places = ["/etc", "/golden", "/var", "/run", "/tmp"];
            let found = [&["exec", copy.id(), "--", "grep", "-rlF", needle], &places[..]].concat();
            assert_eq!(place.cli(&found).await.out.trim(), "", "files with {needle}");
        }
        secrets.push(ini(&place, copy, INI, "secret").await);
    }
    secrets.sort();
    secrets.dedup();
    assert_eq!(secrets.len(), 3, "no two share a secret");
    daemon.stop().await;
}
