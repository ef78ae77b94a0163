//! A real Caddy with the repository's Caddyfile, in front of a daemon on a
//! scripted engine.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "common/caddy.rs"]
mod caddy;
mod common;

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
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
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
    ///
    /// With each change of its routes Caddy closes the connections that have no
    /// request under way, new ones too; a browser then tries again.
    async fn visit(&self, id: &str, path: &str) -> reqwest::Response {
        let host = format!("{id}.localhost");
        let url = format!("https://{host}:{}{path}", self.caddy.https.port());
        let browser = self.caddy.browser(&[&host]);
        for _ in 0..3 {
            match browser.get(&url).send().await {
                Ok(answer) => return answer,
                Err(error) if error.is_request() => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        browser.get(url).send().await.unwrap()
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
    run(
        validate,
        &[("CADDY_ADMIN", "unix//run/caddy/admin.sock"), ("PROXIES_BEFORE", "10.0.0.0/8 fd00::/8")],
    );
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
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
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
    let (stop, load) =
        (tokio_util::sync::CancellationToken::new(), Arc::new(tokio::sync::Mutex::new((0, 0))));
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
    let (_, servers) = front.caddy.admin("GET", "/config/apps/http/servers", None).await;
    let (name, _) =
        servers.as_object().unwrap().iter().find(|(_, it)| it.to_string().contains("dmux-one")).unwrap();
    let first = format!("/config/apps/http/servers/{name}/routes/0");
    let foreign = json!({
        "@id": "by-hand",
        "match": [{ "host": ["hand.localhost"] }],
        "handle": [{ "handler": "static_response", "body": "by hand" }],
        "terminal": true,
    });
    assert_eq!(front.caddy.admin("PUT", &first, Some(&foreign)).await.0, 200);
    // Another daemon on the same Caddy.
    let second =
        CaddyRoutes::new(front.caddy.admin_url().parse().unwrap(), &"one.two".parse().unwrap(), "localhost");
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
        (front.route(&one).await?["handle"][0] != bent).then_some(())
    })
    .await;
    assert_eq!(front.visit(&one, "/").await.status(), 200);
    assert_eq!(front.caddy.admin("GET", "/id/by-hand", None).await.1, foreign, "not ours");
    assert_eq!(second.list().await.unwrap().len(), 1, "another daemon's");
    assert_eq!(second.repair().await.unwrap(), 0);
    // Loading the Caddyfile anew takes everybody's routes away.
    let (_, mut whole) = front.caddy.admin("GET", "/config/", None).await;
    for server in whole["apps"]["http"]["servers"].as_object_mut().unwrap().values_mut() {
        server["routes"].as_array_mut().unwrap().retain(|route| route.get("@id").is_none());
    }
    assert_eq!(front.caddy.admin("POST", "/load", Some(&whole)).await.0, 200);
    eventually("they are back", async || front.route(&other).await).await;
    assert_eq!(second.repair().await.unwrap(), 1);
}

#[tokio::test]
async fn a_caddy_that_hangs_holds_nobody_up_and_keeps_the_address() {
    if !caddy::is_there("caddy") {
        return;
    }
    let front = Front::start(shops(plain_shops()).await, &[]).await;
    let id = front.acquire().await;
    front.caddy.hang();
    // The first change finds out; what comes after does not wait.
    let born = front.acquire().await;
    front.router_is("degraded").await;
    let released = front.daemon.delete(&format!("/api/v1/demo/{id}")).await;
    assert!(released.problem(503).contains("not out of reach yet"));
    assert_eq!(front.daemon.get(&format!("/api/v1/demo/{id}")).await.status, 410, "it is over all the same");
    let traces = front.host.restore.traces();
    assert!(
        traces.contains(&id.parse().unwrap()),
        "its address is nobody else's: Caddy may still lead there"
    );
    front.caddy.go_on();
    front.router_is("ok").await;
    eventually("the reaper comes again", async || {
        (!front.host.restore.traces().contains(&id.parse().unwrap())).then_some(())
    })
    .await;
    assert_eq!(front.routed().await, [born]);
}

#[tokio::test]
async fn what_a_visitor_claims_about_forwarding_ends_at_caddy() {
    if !caddy::is_there("caddy") {
        return;
    }
    let front = Front::start(shops(plain_shops()).await, &[]).await;
    let id = front.acquire().await;
    let host = format!("{id}.localhost");
    let (port, browser) = (front.caddy.https.port(), front.caddy.browser(&[&host]));
    let shown = browser
        .get(format!("https://{host}:{port}/headers"))
        .header("x-forwarded-for", "203.0.113.9")
        .header("x-forwarded-proto", "gopher")
        .header("x-forwarded-server", "evil")
        .header("x-real-ip", "203.0.113.9")
        .header("forwarded", "for=203.0.113.9")
        .send();
    let shown = shown.await.unwrap().text().await.unwrap();
    for line in [
        format!("host: {host}:{port}"),
        "x-forwarded-for: 127.0.0.1".into(),
        "x-real-ip: 127.0.0.1".into(),
        "x-forwarded-proto: https".into(),
        format!("x-forwarded-host: {host}:{port}"),
        format!("x-forwarded-port: {port}"),
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
    }
    for claimed in ["203.0.113.9", "gopher", "evil"] {
        assert!(!shown.contains(claimed), "{claimed} is in\n{shown}");
    }
}

#[tokio::test]
async fn a_dead_shop_gets_the_daemons_page_and_no_request_twice() {
    if !caddy::is_there("caddy") {
        return;
    }
    // Nobody listens there.
    let nowhere = SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, caddy::free_port());
    let front = Front::start(nowhere, &[]).await;
    let id = front.acquire().await;
    let page = front.visit(&id, "/").await;
    assert_eq!((page.status().as_u16(), &page.headers()["retry-after"]), (502, &"5".parse().unwrap()));
    assert!(page.text().await.unwrap().contains("This shop does not answer"));
    let host = format!("{id}.localhost");
    let url = format!("https://{host}:{}/order", front.caddy.https.port());
    let posted = front.caddy.browser(&[&host]).post(url).body("buy").send().await.unwrap();
    assert_eq!(posted.status(), 502);
    assert!(posted.text().await.unwrap().starts_with("This does not answer"));
}

#[tokio::test]
async fn streams_pass_as_they_come_and_outlive_other_shops_routes() {
    if !caddy::is_there("caddy") {
        return;
    }
    let (pieces, receiver) = tokio::sync::mpsc::channel::<&str>(1);
    let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
    let events = get(async move || {
        let stream = futures_util::stream::unfold(receiver, async |receiver| {
            let piece = receiver.lock().await.recv().await?;
            Some((Ok::<_, std::io::Error>(piece), receiver))
        });
        let body = axum::body::Body::from_stream(stream);
        ([("content-type", "text/event-stream")], body)
    });
    let large = get(async || ([("content-type", "text/html")], "many words ".repeat(1000)));
    let shop = Router::new().route("/events", events).route("/large", large).route("/ws", any(echo));
    let front = Front::start(shops(shop).await, &[]).await;
    let id = front.acquire().await;
    let host = format!("{id}.localhost");
    let url = format!("https://{host}:{}", front.caddy.https.port());
    let browser = front.caddy.browser(&[&host]);
    pieces.send("first").await.unwrap();
    let asked = browser.get(format!("{url}/events")).header("accept-encoding", "gzip");
    let mut stream = asked.send().await.unwrap();
    assert!(!stream.headers().contains_key("content-encoding"), "events are not held back to be compressed");
    assert_eq!(stream.chunk().await.unwrap().unwrap(), "first");
    let upgraded = browser.get(format!("{url}/ws")).header("connection", "upgrade").header("upgrade", "echo");
    let mut socket = upgraded.send().await.unwrap().upgrade().await.unwrap();
    for _ in 0..3 {
        let other = front.acquire().await;
        assert_eq!(front.daemon.delete(&format!("/api/v1/demo/{other}")).await.status, 204);
    }
    pieces.send("second").await.unwrap();
    assert_eq!(stream.chunk().await.unwrap().unwrap(), "second");
    socket.write_all(b"still").await.unwrap();
    let mut said = [0; 5];
    socket.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"still");
    let compressed =
        browser.get(format!("{url}/large")).header("accept-encoding", "gzip").send().await.unwrap();
    assert_eq!(compressed.headers()["content-encoding"], "gzip");
}

/// A shop's websocket, as far as a proxy sees one.
async fn echo(mut request: Request) -> impl axum::response::IntoResponse {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut io = hyper_util::rt::TokioIo::new(upgrade.await.unwrap());
        let mut buffer = [0; 64];
        while let Ok(n @ 1..) = io.read(&mut buffer).await {
            io.write_all(&buffer[..n]).await.unwrap();
        }
    });
    (http::StatusCode::SWITCHING_PROTOCOLS, [("connection", "upgrade"), ("upgrade", "echo")])
}

#[tokio::test]
async fn the_access_log_holds_no_secrets() {
    if !caddy::is_there("caddy") {
        return;
    }
    let front = Front::start(shops(plain_shops()).await, &[]).await;
    let id = front.acquire().await;
    let host = format!("{id}.localhost");
    let url = format!("https://{host}:{}/?token=s3cret-query", front.caddy.https.port());
    let request = front.caddy.browser(&[&host]).get(url).header("cookie", "a=s3cret-cookie");
    let request = request.header("x-token", "s3cret-header");
    assert_eq!(request.send().await.unwrap().status(), 200);
    let line = eventually("the request is logged", async || {
        front.caddy.log().lines().find(|line| line.contains("handled request")).map(str::to_owned)
    })
    .await;
    assert!(line.contains(&host), "{line}");
    assert!(!front.caddy.log().contains("s3cret"), "{line}");
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
        .tls_danger_accept_invalid_certs(true)
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
