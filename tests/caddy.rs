//! A real Caddy with the repository's Caddyfile, in front of a daemon on a
//! scripted engine.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;
#[path = "common/caddy.rs"]
mod caddy;

use std::net::{SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::routing::{any, get};
use common::{Daemon, Host};
use demo_multiplexer::config::AdminAddress;
use demo_multiplexer::route::caddy::CaddyRoutes;
use demo_multiplexer::route::{RouteTable, conformance};
use demo_multiplexer::testing::eventually;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use self::caddy::Caddy;

/// What a shop shows for its visitor: the headers it got.
async fn headers_shop(request: Request) -> String {
    let mut lines: Vec<String> = request
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap()))
        .collect();
    lines.sort();
    lines.concat()
}

/// A web server that all shops of a host share.
async fn shops(router: Router) -> SocketAddrV4 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("not IPv4") };
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// A daemon with Caddy in front.
struct Front {
    host: Host,
    daemon: Daemon,
    caddy: Caddy,
    listen: String,
}

impl Front {
    /// Both, with `ROUTER=caddy`; the daemon is there first.
    async fn start(shops: SocketAddrV4, settings: &[(&str, &str)]) -> Self {
        let host = Host::with_shops_at(shops);
        let address = SocketAddr::from(([127, 0, 0, 1], caddy::free_port()));
        let listen = address.to_string();
        let mut caddy = Caddy::new(address, &[]);
        let daemon = host.start(&Self::settings(&caddy, &listen, settings)[..]).await;
        caddy.start();
        let front = Self { host, daemon, caddy, listen };
        front.router_is("ok").await;
        front
    }

    fn settings<'a>(
        caddy: &'a Caddy,
        listen: &'a str,
        more: &[(&'a str, &'a str)],
    ) -> Vec<(&'static str, &'static str)> {
        let url = caddy.admin_url();
        let port = caddy.https.port().to_string();
        let own = [
            ("ROUTER", "caddy"),
            ("CADDY_ADMIN_URL", url.as_str()),
            ("NODE_NAME", "one"),
            ("LISTEN", listen),
            ("PUBLIC_SCHEME", "https"),
            ("PUBLIC_PORT", port.as_str()),
        ];
        // A test's few settings may live as long as the test.
        let leak = |text: &str| -> &'static str { Box::leak(text.to_owned().into_boxed_str()) };
        own.iter().chain(more).map(|(name, value)| (leak(name), leak(value))).collect()
    }

    /// Waits until `/health` says so of the router.
    async fn router_is(&self, status: &str) {
        eventually(&format!("the router is {status}"), async || {
            let health = self.daemon.get("/health").await.json();
            (health["router"]["status"] == status).then_some(())
        })
        .await;
    }

    async fn acquire(&self) -> String {
        let answer = self.daemon.acquire().await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.id()
    }

    /// What Caddy has under an instance's `@id`.
    async fn route(&self, id: &str) -> Option<Value> {
        match self.caddy.admin("GET", &format!("/id/dmux-one_{id}"), None).await {
            (200, route) => Some(route),
            (404, _) => None,
            other => panic!("{other:?}"),
        }
    }

    /// The instances that Caddy has routes for.
    async fn routed(&self) -> Vec<String> {
        let (_, container) = self.caddy.admin("GET", "/id/dmux-one", None).await;
        let routes = container["handle"][0]["routes"].as_array().cloned().unwrap_or_default();
        let ids = routes.iter().map(|route| route["@id"].as_str().unwrap().replace("dmux-one_", ""));
        ids.collect()
    }

    /// A visitor's request to a shop.
    async fn visit(&self, id: &str, path: &str) -> reqwest::Response {
        let host = format!("{id}.localhost");
        let url = format!("https://{host}:{}{path}", self.caddy.https.port());
        self.caddy.browser(&[&host]).get(url).send().await.unwrap_or_else(|error| panic!("{error:?}"))
    }
}

fn plain_shops() -> Router {
    Router::new().route("/", get(async || "the shop")).route("/headers", any(headers_shop))
}

#[test]
fn the_caddyfile_is_formatted_and_valid_in_each_form() {
    if !caddy::is_there("caddyfile") {
        return;
    }
    let run = |args: &[&str], settings: &[(&str, &str)]| {
        let home = tempfile::tempdir().unwrap();
        let output = std::process::Command::new("caddy")
            .args(args)
            .arg(caddy::caddyfile())
            .env("HOME", home.path())
            .env("XDG_DATA_HOME", home.path())
            .env("XDG_CONFIG_HOME", home.path())
            .envs(settings.iter().copied())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{settings:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    };
    run(&["fmt", "--diff"], &[]);
    let validate = &["validate", "--adapter", "caddyfile", "--config"];
    run(validate, &[]);
    run(validate, &[("CADDY_TLS", "on-demand"), ("BASE_DOMAIN", "demo.example.com")]);
    run(validate, &[("CADDY_ADMIN", "unix//run/caddy/admin.sock"), ("PROXIES_BEFORE", "10.0.0.0/8 fd00::/8")]);
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(dir.path(), "demo.example.com");
    let files = [("CADDY_TLS", "files"), ("TLS_CERT", cert.as_str()), ("TLS_KEY", key.as_str())];
    run(validate, &files);
}

/// A certificate for a domain and all below it, and its key.
fn certificate(dir: &std::path::Path, domain: &str) -> (String, String) {
    let path = |name: &str| dir.join(name).display().to_string();
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=test", "-addext", &format!("subjectAltName=DNS:{domain},DNS:*.{domain}")])
        .args(["-keyout", &key, "-out", &cert])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    (cert, key)
}

#[tokio::test]
async fn caddy_is_a_route_table() {
    if !caddy::is_there("caddy") {
        return;
    }
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
    for mut caddy in [Caddy::new(nowhere, &[]), Caddy::new(nowhere, &[]).on_a_socket()] {
        caddy.start();
        let address: AdminAddress = caddy.admin_url().parse().unwrap();
        let table = CaddyRoutes::new(address, &"one".parse().unwrap(), "localhost").unwrap();
        conformance::suite(&table).await;
    }
}

#[tokio::test]
async fn a_caddy_without_the_site_or_without_a_process_leads_nowhere() {
    if !caddy::is_there("caddy") {
        return;
    }
    let mut caddy = Caddy::new(SocketAddr::from(([127, 0, 0, 1], 9)), &[]);
    let table = |domain: &str| {
        let address: AdminAddress = caddy.admin_url().parse().unwrap();
        CaddyRoutes::new(address, &"one".parse().unwrap(), domain).unwrap()
    };
    let (other, own) = (table("other.example"), table("localhost"));
    let absent = own.repair().await.unwrap_err();
    assert!(absent.leads_nowhere() && absent.to_string().contains("nobody listens"), "{absent}");
    caddy.start();
    let foreign = other.repair().await.unwrap_err();
    assert!(foreign.leads_nowhere() && foreign.to_string().contains("*.other.example"), "{foreign}");
    own.repair().await.unwrap();
    // Without any configuration at all.
    assert_eq!(caddy.admin("DELETE", "/config/apps", None).await.0, 200);
    assert!(own.repair().await.unwrap_err().leads_nowhere());
}

#[tokio::test]
async fn a_shop_is_acquired_visited_and_released_through_caddy_over_https() {
    if !caddy::is_there("caddy") {
        return;
    }
    let front = Front::start(shops(plain_shops()).await, &[]).await;
    let base = format!("https://localhost:{}", front.caddy.https.port());
    let browser = front.caddy.browser(&["localhost"]);
    let acquired = browser.post(format!("{base}/api/v1/demo/acquire")).send().await.unwrap();
    assert_eq!(acquired.status(), 201);
    let acquired: Value = acquired.json().await.unwrap();
    let id = acquired["id"].as_str().unwrap();
    let route = front.route(id).await.expect("in force when the answer is there");
    assert_eq!(route["match"][0]["host"][0], format!("{id}.localhost"));
    let page = front.visit(id, "/").await;
    assert_eq!(page.headers()["x-robots-tag"], "noindex");
    assert_eq!(page.headers()["x-content-type-options"], "nosniff");
    assert!(!page.headers().contains_key("strict-transport-security"), "not with a CA of one's own");
    assert_eq!((page.status().as_u16(), page.text().await.unwrap().as_str()), (200, "the shop"));
    let released = browser.delete(format!("{base}/api/v1/demo/{id}")).send().await.unwrap();
    assert_eq!(released.status(), 204);
    assert_eq!(front.route(id).await, None, "gone when the answer is there");
    let page = front.visit(id, "/").await;
    assert_eq!(page.status(), 410);
    assert!(page.text().await.unwrap().contains("This demo shop has ended"));
    for inside in ["/metrics", "/api/v1/tls/ask?domain=localhost"] {
        let answer = browser.get(format!("{base}{inside}")).send().await.unwrap();
        assert_eq!(answer.status(), 404, "{inside} is not for visitors");
    }
    assert_eq!(browser.get(format!("{base}/api/v1/demo")).send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn routes_are_made_ahead_and_shops_outlive_the_daemon() {
    if !caddy::is_there("caddy") {
        return;
    }
    let front = Front::start(shops(plain_shops()).await, &[("POOL_TARGET_SIZE", "2")]).await;
    eventually("the pool's routes are there", async || (front.routed().await.len() == 2).then_some(())).await;
    let id = front.acquire().await;
    // A certificate is had while the daemon can still be asked.
    assert_eq!(front.visit(&id, "/").await.status(), 200);
    let Front { host, daemon, caddy, listen } = front;
    daemon.stop().await;
    let away = format!("https://{id}.localhost:{}/", caddy.https.port());
    let browser = caddy.browser(&[&format!("{id}.localhost")]);
    assert_eq!(browser.get(&away).send().await.unwrap().text().await.unwrap(), "the shop");
    // Its time ends with nobody there, so only the next daemon can take the route away.
    host.restore.kill(&id.parse().unwrap());
    let daemon = host.start(&Front::settings(&caddy, &listen, &[("POOL_TARGET_SIZE", "2")])).await;
    let front = Front { host, daemon, caddy, listen };
    assert_eq!(front.route(&id).await, None, "gone before the next daemon serves");
    assert_eq!(front.visit(&id, "/").await.status(), 410);
}

#[tokio::test]
async fn many_acquires_and_releases_at_once_are_all_in_force() {
    if !caddy::is_there("caddy") {
        return;
    }
    let settings = [("RESTORE_CONCURRENCY", "50"), ("MAX_INSTANCES", "60")];
    let front = Front::start(shops(plain_shops()).await, &settings).await;
    let acquire = async || {
        let id = front.acquire().await;
        assert!(front.route(&id).await.is_some(), "in force when the answer is there");
        id
    };
    let ids = futures_util::future::join_all((0..50).map(|_| acquire())).await;
    assert_eq!(front.routed().await.len(), 50);
    let release = async |id: &String| {
        assert_eq!(front.daemon.delete(&format!("/api/v1/demo/{id}")).await.status, 204);
        assert_eq!(front.route(id).await, None, "gone when the answer is there");
    };
    futures_util::future::join_all(ids.iter().map(release)).await;
    assert_eq!(front.routed().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_caddy_killed_under_load_has_its_routes_again_within_five_seconds() {
    if !caddy::is_there("caddy") {
        return;
    }
    let mut front = Front::start(shops(plain_shops()).await, &[("MAX_INSTANCES", "500")]).await;
    let mut lasting = Vec::new();
    for _ in 0..5 {
        lasting.push(front.acquire().await);
    }
    let address = front.daemon.address;
    let (stop, load) = (tokio_util::sync::CancellationToken::new(), Arc::new(tokio::sync::Mutex::new((0, 0))));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (stop, load) = (stop.clone(), Arc::clone(&load));
        clients.spawn(async move {
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            let api = format!("http://{address}/api/v1/demo");
            while !stop.is_cancelled() {
                let acquired = client.post(format!("{api}/acquire")).send().await.unwrap();
                assert_eq!(acquired.status(), 201, "an acquire is answered whatever Caddy does");
                let acquired: Value = acquired.json().await.unwrap();
                let released = client.delete(format!("{api}/{}", acquired["id"].as_str().unwrap())).send();
                let status = released.await.unwrap().status().as_u16();
                let mut load = load.lock().await;
                *(if status == 204 { &mut load.0 } else { &mut load.1 }) += 1;
            }
        });
    }
    let done = async || load.lock().await.0;
    let some = async |more: u32| {
        let so_far = done().await;
        eventually("the load goes on", async || (done().await >= so_far + more).then_some(())).await;
    };
    some(10).await;
    front.caddy.kill();
    some(10).await;
    // Some that begin and some that end while it is away.
    let (born, ended) = (front.acquire().await, lasting.pop().unwrap());
    assert_eq!(front.daemon.delete(&format!("/api/v1/demo/{ended}")).await.status, 204);
    lasting.push(born);
    front.caddy.start();
    let restarted = Instant::now();
    for id in &lasting {
        assert_eq!(front.visit(id, "/").await.status(), 200, "served from the first moment on");
    }
    eventually("the routes are back", async || {
        let routed = front.routed().await;
        lasting.iter().all(|id| routed.contains(id)).then_some(())
    })
    .await;
    assert!(restarted.elapsed() < Duration::from_secs(5), "promised within 5 s: {:?}", restarted.elapsed());
    assert!(!front.routed().await.contains(&ended));
    some(10).await;
    stop.cancel();
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    for id in &lasting {
        assert_eq!(front.visit(id, "/").await.status(), 200, "no instance was lost");
    }
    eventually("nothing but what lives is routed", async || {
        let mut routed = front.routed().await;
        routed.sort();
        lasting.sort();
        (routed == lasting).then_some(())
    })
    .await;
    assert_eq!(load.lock().await.1, 0, "every release was answered");
}

#[tokio::test]
async fn changes_by_hand_are_repaired_and_foreign_routes_stay() {
    if !caddy::is_there("caddy") {
        return;
    }
    let front = Front::start(shops(plain_shops()).await, &[]).await;
    let (one, other) = (front.acquire().await, front.acquire().await);
    let server = "/config/apps/http/servers/srv0/routes/0";
    let foreign = json!({
        "@id": "by-hand",
        "match": [{ "host": ["hand.localhost"] }],
        "handle": [{ "handler": "static_response", "body": "by hand" }],
        "terminal": true,
    });
    assert_eq!(front.caddy.admin("PUT", server, Some(&foreign)).await.0, 200);
    // Another daemon on the same Caddy.
    let second = CaddyRoutes::new(
        front.caddy.admin_url().parse().unwrap(),
        &"one.two".parse().unwrap(),
        "localhost",
    );
    let (second, theirs) = (second.unwrap(), demo_multiplexer::id::InstanceId::random());
    second.ensure(&theirs, SocketAddr::from(([10, 77, 9, 9], 80)));
    second.settle().await.unwrap();
    for (method, path) in [("DELETE", format!("/id/dmux-one_{one}")), ("DELETE", "/id/dmux-one".to_owned())] {
        assert_eq!(front.caddy.admin(method, &path, None).await.0, 200);
        eventually("both routes are back", async || {
            (front.route(&one).await.is_some() && front.route(&other).await.is_some()).then_some(())
        })
        .await;
    }
    let bent = json!({ "handler": "vars", "shop": "192.0.2.1:80" });
    let handler = format!("/id/dmux-one_{one}/handle/0");
    assert_eq!(front.caddy.admin("PATCH", &handler, Some(&bent)).await.0, 200);
    eventually("the bent route is right again", async || {
        (front.route(&one).await? ["handle"][0] != bent).then_some(())
    })
    .await;
    assert_eq!(front.visit(&one, "/").await.status(), 200);
    assert_eq!(front.caddy.admin("GET", "/id/by-hand", None).await.1, foreign, "not ours");
    assert_eq!(second.list().await.unwrap().len(), 1, "another daemon's");
    assert_eq!(second.repair().await.unwrap(), 0);
    // Loading the Caddyfile anew takes everybody's routes away.
    let config = caddy::caddyfile();
    let (_, whole) = front.caddy.admin("GET", "/config/", None).await;
    let mut whole = whole;
    let routes = whole["apps"]["http"]["servers"]["srv0"]["routes"].as_array_mut().unwrap();
    routes.retain(|route| route.get("@id").is_none());
    assert_eq!(front.caddy.admin("POST", "/load", Some(&whole)).await.0, 200, "{config:?}");
    eventually("they are back", async || front.route(&other).await).await;
    assert_eq!(second.repair().await.unwrap(), 1);
}

#[tokio::test]
async fn certificates_are_only_had_for_what_lives() {
    if !caddy::is_there("caddy") {
        return;
    }
    let front = Front::start(shops(plain_shops()).await, &[]).await;
    let id = front.acquire().await;
    let ask = async |domain: &str, headers: &[(&str, &str)]| {
        let path = format!("/api/v1/tls/ask?domain={domain}");
        front.daemon.send(http::Method::GET, &path, headers, "").await.status.as_u16()
    };
    let host = format!("{id}.localhost");
    assert_eq!(ask(&host, &[]).await, 200);
    assert_eq!(ask("localhost", &[]).await, 200);
    assert_eq!(ask(&host, &[("x-forwarded-for", "192.0.2.1")]).await, 403, "not for visitors");
    for unknown in ["aaaaaaaaaaaa.localhost", "www.localhost", "example.org", "", "a.b.localhost"] {
        assert_eq!(ask(unknown, &[]).await, 404, "{unknown}");
    }
    assert_eq!(front.daemon.delete(&format!("/api/v1/demo/{id}")).await.status, 204);
    assert_eq!(ask(&host, &[]).await, 404, "its time is over");
    let unknown = "aaaaaaaaaaaa.localhost";
    let url = format!("https://{unknown}:{}/", front.caddy.https.port());
    let refused = front.caddy.browser(&[unknown]).get(url).send().await.unwrap_err();
    assert!(refused.is_connect(), "no certificate, no connection: {refused:?}");
}

#[tokio::test]
async fn unknown_hosts_get_the_daemons_page() {
    if !caddy::is_there("caddy") {
        return;
    }
    let host = Host::with_shops_at(shops(plain_shops()).await);
    let daemon = host.start(&[("BASE_DOMAIN", "demo.example")]).await;
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(dir.path(), "demo.example");
    let files = [
        ("CADDY_TLS", "files"),
        ("BASE_DOMAIN", "demo.example"),
        ("TLS_CERT", cert.as_str()),
        ("TLS_KEY", key.as_str()),
    ];
    let mut caddy = Caddy::new(daemon.address, &files);
    caddy.start();
    let name = "aaaaaaaaaaaa.demo.example";
    let browser = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(&std::fs::read(&cert).unwrap()).unwrap()])
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .resolve(name, caddy.https);
    let browser = browser.build().unwrap();
    let page = browser.get(format!("https://{name}:{}/", caddy.https.port())).send().await.unwrap();
    assert_eq!(page.status(), 404);
    assert!(page.headers().contains_key("strict-transport-security"));
    assert!(page.text().await.unwrap().contains("There is no shop here"));
    // Plain HTTP: ours go to https, foreign ones are told that nothing is there.
    let plain = async |host: &str| {
        let request = browser.get(format!("http://{}/x?y=1", caddy.http)).header("host", host);
        request.send().await.unwrap()
    };
    let sent = plain(name).await;
    assert_eq!(sent.status(), 308);
    assert_eq!(sent.headers()["location"], format!("https://{name}:{}/x?y=1", caddy.https.port()));
    assert_eq!(plain("other.example").await.status(), 404);
    // The constant layout: no route in Caddy at all, the daemon's proxy has the shop.
    let id = daemon.acquire().await.id();
    let shop = format!("{id}.demo.example");
    let browser = reqwest::Client::builder().tls_danger_accept_invalid_certs(true).no_proxy();
    let browser = browser.resolve(&shop, caddy.https).build().unwrap();
    let page = browser.get(format!("https://{shop}:{}/", caddy.https.port())).send().await.unwrap();
    assert_eq!(page.text().await.unwrap(), "the shop");
}
