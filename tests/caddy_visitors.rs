//! What visitors do with their shops, behind a real Caddy: the daemon's pages and
//! what becomes of the routes when a shop is made anew, sleeps and is woken.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "common/caddy.rs"]
mod caddy;
mod common;
#[path = "common/front.rs"]
mod front;

use std::net::SocketAddr;

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use common::Host;
use demo_multiplexer::testing::eventually;
use http::Method;

use self::caddy::Caddy;
use self::front::{Front, plain_shops, shops};

/// A visitor's browser at the site behind Caddy: it keeps cookies, follows no redirect.
struct Visitor {
    client: reqwest::Client,
    origin: String,
    cookies: Vec<(String, String)>,
}

impl Visitor {
    fn of(caddy: &Caddy) -> Self {
        let origin = format!("https://localhost:{}", caddy.https.port());
        Self { client: caddy.browser(&["localhost"]), origin, cookies: Vec::new() }
    }

    async fn ask(&mut self, method: Method, path: &str) -> reqwest::Response {
        let cookies: Vec<String> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let send = async || {
            let request = self.client.request(method.clone(), format!("{}{path}", self.origin));
            let request =
                request.header("cookie", cookies.join("; ")).header("sec-fetch-site", "same-origin");
            let request = request.header("origin", &self.origin);
            request.header("content-type", "application/x-www-form-urlencoded").send().await
        };
        // Caddy may close a connection whose request is on its way when it takes a new route.
        let answer = match send().await {
            Err(error) if error.is_request() => send().await.unwrap(),
            answer => answer.unwrap(),
        };
        for cookie in answer.headers().get_all("set-cookie") {
            let cookie = cookie.to_str().unwrap();
            assert!(cookie.starts_with("__Host-") && cookie.contains("Secure"), "{cookie}");
            let (name, value) = cookie.split(';').next().unwrap().split_once('=').unwrap();
            self.cookies.retain(|(known, _)| known != name);
            self.cookies.push((name.to_owned(), value.to_owned()));
        }
        answer
    }

    async fn get(&mut self, path: &str) -> reqwest::Response {
        self.ask(Method::GET, path).await
    }

    /// Sends a form; answers where it leads.
    async fn post(&mut self, path: &str) -> String {
        leads_to(&self.ask(Method::POST, path).await)
    }
}

fn leads_to(answer: &reqwest::Response) -> String {
    assert_eq!(answer.status(), 303, "{answer:?}");
    answer.headers()["location"].to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_visitor_gets_a_shop_sees_to_it_and_ends_it() {
    if !caddy::is_there("caddy_visitors") {
        return;
    }
    let front = Front::start(shops(plain_shops()).await, &[]).await;
    let mut visitor = Visitor::of(&front.caddy);
    assert!(visitor.get("/").await.text().await.unwrap().contains("A shop of your own"));
    let page = visitor.post("/demo").await;
    let id = page.strip_prefix("/demo/").unwrap();
    assert!(front.route(id).await.is_some(), "in force when the answer is there");
    // The scripted shops know nothing of Caddy.
    let shop = format!("http://{id}.localhost/");
    let shown = visitor.get(&page).await.text().await.unwrap();
    assert!(shown.contains(&shop) && shown.contains(&format!("password-of-{id}")), "{shown}");

    let mut told = visitor.get(&format!("{page}/status")).await;
    assert!(
        String::from_utf8_lossy(&told.chunk().await.unwrap().unwrap()).contains("\"state\":\"assigned\"")
    );
    assert_eq!(visitor.post(&format!("{page}/extend")).await, format!("{page}?done=extend"));
    assert!(visitor.post(&format!("{page}/login")).await.starts_with(&format!("{shop}login?token=")));
    assert_eq!(visitor.post(&format!("{page}/reset")).await, format!("{page}?done=reset"));
    assert_eq!(front.visit(id, "/").await.text().await.unwrap(), "the shop");
    assert_eq!(visitor.post("/demo").await, page, "a second click makes no second shop");
    assert_eq!(visitor.post(&format!("{page}/release")).await, "/?done=release");
    let mut rest = String::new();
    while let Some(chunk) = told.chunk().await.unwrap() {
        rest.push_str(&String::from_utf8_lossy(&chunk));
    }
    assert!(rest.contains("\"state\":\"expired\""), "told at once, and then over: {rest}");
    let ended = front.visit(id, "/").await;
    let (status, text) = (ended.status(), ended.text().await.unwrap());
    assert!(status == 410 && text.contains(&format!("{}/", visitor.origin)), "offers a new one: {text}");
}

#[tokio::test]
async fn who_finds_no_room_waits_and_gets_in() {
    if !caddy::is_there("caddy_visitors") {
        return;
    }
    let front = Front::start(shops(plain_shops()).await, &[("MAX_INSTANCES", "1")]).await;
    let taken = front.acquire().await;
    let mut visitor = Visitor::of(&front.caddy);
    let wait = visitor.post("/demo").await;
    assert!(wait.starts_with("/wait?"), "{wait}");
    let waiting = visitor.get(&wait).await;
    assert_eq!(waiting.headers()["refresh"], "3");
    assert!(waiting.text().await.unwrap().contains("1 of 1"));
    assert_eq!(front.daemon.delete(&format!("/api/v1/demo/{taken}")).await.status, 204);
    let page = eventually("it gets in", async || {
        let answer = visitor.get(&wait).await;
        (answer.status() == 303).then(|| leads_to(&answer))
    })
    .await;
    assert!(visitor.get(&page).await.text().await.unwrap().contains("Time left"), "{page}");
}

#[tokio::test]
async fn other_sites_may_frame_the_button_and_nothing_else() {
    if !caddy::is_there("caddy_visitors") {
        return;
    }
    let front = Front::start(shops(plain_shops()).await, &[]).await;
    let mut visitor = Visitor::of(&front.caddy);
    let button = visitor.get("/embed/button?golden=shop").await;
    assert!(!button.headers().contains_key("x-frame-options"), "{:?}", button.headers());
    let policy = button.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("frame-ancestors 'self' *"), "{policy}");
    for path in ["/", "/embed", "/demo/aaaaaaaaaaaa"] {
        let answer = visitor.get(path).await;
        assert_eq!(answer.headers()["x-frame-options"], "DENY", "{path}");
        assert_eq!(answer.headers().get_all("content-security-policy").iter().count(), 1, "{path}");
        assert_eq!(
            answer.headers()["referrer-policy"],
            "same-origin",
            "{path}: our own forms say whose they are"
        );
    }
    let id = front.acquire().await;
    assert_eq!(front.visit(&id, "/").await.headers()["x-frame-options"], "SAMEORIGIN");
}

#[tokio::test]
async fn a_shop_that_sleeps_is_woken_by_a_visit_and_led_to_directly_again() {
    if !caddy::is_there("caddy_visitors") {
        return;
    }
    let front = Front::start(shops(plain_shops()).await, &[]).await;
    let id = front.acquire().await;
    let change = async |what: &str| {
        let answer = front.daemon.post(&format!("/api/v1/demo/{id}/{what}"), "").await;
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
    };
    for wake in ["a visit", "wake", "reset"] {
        change("hibernate").await;
        assert_eq!(front.route(&id).await, None, "Caddy leads nowhere when the answer is there");
        match wake {
            "a visit" => assert_eq!(front.visit(&id, "/").await.text().await.unwrap(), "the shop"),
            _ => change(wake).await,
        }
        assert!(front.route(&id).await.is_some(), "{wake}: in force when the answer is there");
        assert_eq!(front.visit(&id, "/").await.text().await.unwrap(), "the shop", "{wake}");
    }
    assert_eq!(front.host.restore.thaws(), 2);
}

#[tokio::test]
async fn the_banner_of_a_shop_behind_caddy_leads_to_its_owners_page() {
    if !caddy::is_there("caddy_visitors") {
        return;
    }
    let shop = Router::new()
        .route("/", get(async || Html("<!doctype html><html><body><h1>Hello</h1></body></html>")));
    let host = Host::with_shops_at(shops(shop).await);
    let listen = SocketAddr::from(([127, 0, 0, 1], caddy::free_port()));
    let mut caddy = Caddy::new(listen, &[]);
    let (listen, port) = (listen.to_string(), caddy.https.port().to_string());
    // All requests pass the built-in proxy, whose the banner is.
    let settings =
        [("LISTEN", &*listen), ("PUBLIC_SCHEME", "https"), ("PUBLIC_PORT", &*port), ("BANNER", "on")];
    let daemon = host.start(&settings).await;
    caddy.start().await;
    let mut visitor = Visitor::of(&caddy);
    let page = visitor.post("/demo").await;
    let name = format!("{}.localhost", page.strip_prefix("/demo/").unwrap());
    let browser = caddy.browser(&[&name]);
    let at =
        |path: &str| browser.get(format!("https://{name}:{port}{path}")).header("sec-fetch-dest", "document");
    let front_page =
        at("/").header("accept-encoding", "identity").send().await.unwrap().text().await.unwrap();
    assert!(front_page.contains("<demo-multiplexer-banner"), "{front_page}");
    assert!(front_page.contains(&format!("data-manage=\"{}{page}\"", visitor.origin)), "{front_page}");
    let status = at("/.demo-multiplexer/status").send().await.unwrap();
    assert!(status.json::<serde_json::Value>().await.unwrap()["seconds_left"].as_i64() > Some(3500));
    let owners = visitor.get(&page).await.text().await.unwrap();
    for part in ["more", "reset", "end"] {
        assert!(owners.contains(&format!("id=\"{part}\"")), "#{part}: {owners}");
    }
    daemon.stop().await;
}
