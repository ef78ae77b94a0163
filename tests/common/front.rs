//! A daemon on a scripted engine with a real Caddy in front.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::{SocketAddr, SocketAddrV4};

use axum::Router;
use axum::extract::Request;
use axum::routing::{any, get};
use demo_multiplexer::testing::eventually;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::caddy::{self, Caddy};
use crate::common::{Daemon, Host};

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
pub(crate) async fn shops(router: Router) -> SocketAddrV4 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("not IPv4") };
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

/// A daemon with Caddy in front.
pub(crate) struct Front {
    pub(crate) host: Host,
    pub(crate) daemon: Daemon,
    pub(crate) caddy: Caddy,
    pub(crate) listen: String,
}

impl Front {
    /// Both, with `ROUTER=caddy`; the daemon is there first.
    pub(crate) async fn start(shops: SocketAddrV4, settings: &[(&str, &str)]) -> Self {
        let host = Host::with_shops_at(shops);
        let address = SocketAddr::from(([127, 0, 0, 1], caddy::free_port()));
        let listen = address.to_string();
        // Both read the same file.
        let read_by_both: Vec<_> =
            settings.iter().filter(|(name, _)| name.starts_with("SHOP_")).copied().collect();
        let mut caddy = Caddy::new(address, &read_by_both);
        let daemon = host.start(&Self::settings(&caddy, &listen, settings)[..]).await;
        caddy.start().await;
        let front = Self { host, daemon, caddy, listen };
        front.router_is("ok").await;
        front
    }

    pub(crate) fn settings<'a>(
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
    pub(crate) async fn router_is(&self, status: &str) {
        eventually(&format!("the router is {status}"), async || {
            let health = self.daemon.get("/health").await.json();
            (health["router"]["status"] == status).then_some(())
        })
        .await;
    }

    pub(crate) async fn acquire(&self) -> String {
        let answer = self.daemon.acquire().await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.id()
    }

    /// What Caddy has under an instance's `@id`.
    pub(crate) async fn route(&self, id: &str) -> Option<Value> {
        match self.caddy.admin("GET", &format!("/id/dmux-one_{id}"), None).await {
            (200, route) => Some(route),
            (404, _) => None,
            other => panic!("{other:?}"),
        }
    }

    /// The instances that Caddy has routes for.
    pub(crate) async fn routed(&self) -> Vec<String> {
        let (_, container) = self.caddy.admin("GET", "/id/dmux-one", None).await;
        let routes = container["handle"][0]["mappings"].as_array().cloned().unwrap_or_default();
        let ids = routes.iter().map(|route| route["@id"].as_str().unwrap().replace("dmux-one_", ""));
        ids.collect()
    }

    /// A visitor's request to a shop.
    ///
    /// With each change of its routes Caddy closes the connections that have no
    /// request under way, new ones too; a browser then tries again.
    pub(crate) async fn visit(&self, id: &str, path: &str) -> reqwest::Response {
        let host = format!("{id}.localhost");
        let url = format!("https://{host}:{}{path}", self.caddy.https.port());
        let browser = self.caddy.browser(&[&host]);
        for _ in 0..5 {
            match browser.get(&url).send().await {
                Ok(answer) => return answer,
                Err(error) if error.is_request() => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        browser.get(url).send().await.unwrap()
    }
}

pub(crate) fn plain_shops() -> Router {
    Router::new().route("/", get(async || "the shop")).route("/headers", any(headers_shop))
}
