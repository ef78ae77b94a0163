//! A real Caddy with the repository's Caddyfile, in front of a daemon on a
//! scripted engine: what the Caddyfile
//! itself promises.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "common/caddy.rs"]
mod caddy;
mod common;
#[path = "common/front.rs"]
mod front;

use std::net::SocketAddrV4;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::routing::{any, get};
use common::Host;
use demo_multiplexer::testing::eventually;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use self::caddy::Caddy;
use self::front::{Front, plain_shops, shops};

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
        .header("x-forwarded-user", "evil")
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
async fn what_the_built_in_proxy_promises_of_headers_holds_for_caddys_own_routes() {
    if !caddy::is_there("caddy") {
        return;
    }
    let shop = plain_shops()
        .route(
            "/cookies",
            get(async || {
                let headers = [
                    ("set-cookie", "a=b; Domain=.localhost; Path=/; HttpOnly"),
                    ("set-cookie", "c=d;domain = localhost"),
                    ("set-cookie", "e=domain=x; Path=/"),
                    ("cache-control", "public, max-age=60, s-maxage=600"),
                    ("strict-transport-security", "max-age=5; includeSubDomains"),
                    ("alt-svc", "h3=\":9\""),
                    ("x-robots-tag", "all"),
                ];
                (axum::response::AppendHeaders(headers), "")
            }),
        )
        .route("/picture", get(async || ([("cache-control", "public, max-age=60")], "a picture")));
    let front = Front::start(shops(shop).await, &[]).await;
    let id = front.acquire().await;
    let page = front.visit(&id, "/cookies").await;
    let all = |name: &str| -> Vec<&str> {
        page.headers().get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    };
    assert_eq!(all("set-cookie"), ["a=b; Path=/; HttpOnly", "c=d", "e=domain=x; Path=/"]);
    let kept = all("cache-control").join(", ");
    let kept: Vec<&str> = kept.split(',').map(str::trim).filter(|directive| !directive.is_empty()).collect();
    assert_eq!(kept, ["max-age=60", "private"]);
    assert_eq!(all("strict-transport-security"), ["max-age=5"]);
    assert_eq!(all("x-robots-tag"), ["noindex, nofollow"]);
    assert!(all("alt-svc").iter().all(|value| !value.contains(":9")), "{:?}", all("alt-svc"));
    let picture = front.visit(&id, "/picture").await;
    assert_eq!(picture.headers()["cache-control"], "public, max-age=60", "without a cookie it is as it was");
    assert_eq!(picture.headers()["x-robots-tag"], "noindex, nofollow");
}

#[tokio::test]
async fn caddys_own_routes_bound_bodies_and_patience() {
    if !caddy::is_there("caddy") {
        return;
    }
    let count = axum::routing::post(async |body: axum::body::Bytes| body.len().to_string());
    let never = get(async || std::future::pending::<&str>().await);
    let shop = Router::new().route("/upload", count).route("/never", never);
    let bounds = [("SHOP_BODY_MAX", "1000"), ("SHOP_TIMEOUT", "1s")];
    let front = Front::start(shops(shop).await, &bounds).await;
    let id = front.acquire().await;
    let host = format!("{id}.localhost");
    let (url, browser) =
        (format!("https://{host}:{}", front.caddy.https.port()), front.caddy.browser(&[&host]));
    let upload = async |body: reqwest::Body| {
        let answer = browser.post(format!("{url}/upload")).body(body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(upload("x".repeat(1000).into()).await, (200, "1000".into()));
    assert_eq!(upload("x".repeat(1001).into()).await.0, 413, "of a known length");
    let pieces = futures_util::stream::iter([Ok::<_, std::io::Error>("x".repeat(600)), Ok("x".repeat(600))]);
    assert_eq!(upload(reqwest::Body::wrap_stream(pieces)).await.0, 413, "in pieces");
    let answer = browser.get(format!("{url}/never")).send().await.unwrap();
    assert_eq!(answer.status(), 504);
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
    caddy.start().await;
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
