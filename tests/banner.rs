//! The banner on the pages of a running daemon's shops, whose web server is the
//! test's own.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::convert::Infallible;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use common::edge::upstream;
use common::{Answer, Daemon, Host, send};
use demo_multiplexer::testing::eventually;
use http::{HeaderMap, Method};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;

const PAGE: &str =
    "<!doctype html><html><head><title>Shop</title></head><body><h1>Hello</h1></body></html>\n";
const ELEMENT: &str = "<demo-multiplexer-banner";
const SCRIPT: &str = "<script src=\"/.demo-multiplexer/banner.js";

/// A shop: pages of all kinds; each says by a header what it was asked to accept.
fn shop() -> Router {
    Router::new().fallback(async |request: Request| {
        let accepts = request.headers().get("accept-encoding").cloned();
        let mut response = page(request.uri().path());
        if let Some(accepts) = accepts {
            response.headers_mut().insert("x-asked-for", accepts);
        }
        response
    })
}

fn page(path: &str) -> Response {
    let html = ("content-type", "text/html; charset=UTF-8");
    match path {
        "/json" => ([("content-type", "application/json")], "{\"a\": \"</body>\"}").into_response(),
        "/gzip" => ([html, ("content-encoding", "gzip")], PAGE).into_response(),
        "/fragment" => ([html], "<p>part</p>").into_response(),
        "/missing" => (http::StatusCode::NOT_FOUND, [html], PAGE).into_response(),
        "/strict" => ([html, ("content-security-policy", "script-src 'nonce-a'")], PAGE).into_response(),
        "/tagged" => ([html, ("etag", "\"a\"")], PAGE).into_response(),
        "/pieces" => {
            let pieces =
                PAGE.as_bytes().chunks(3).map(|it| Ok::<_, Infallible>(Frame::data(Bytes::from(it))));
            ([html], Body::new(StreamBody::new(futures_util::stream::iter(pieces)))).into_response()
        }
        _ => ([html], PAGE).into_response(),
    }
}

async fn get(daemon: &Daemon, id: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    ask(daemon, Method::GET, id, path, headers).await
}

async fn ask(daemon: &Daemon, method: Method, id: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = http::Request::builder().method(method).uri(path);
    request = request.header("host", format!("{id}.localhost:8080"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Answer::read(send(daemon.address, request.body(Body::empty()).unwrap()).await).await
}

const DOCUMENT: [(&str, &str); 2] = [("sec-fetch-dest", "document"), ("accept-encoding", "gzip, br")];

#[tokio::test]
async fn a_page_of_the_front_has_it_once_and_is_otherwise_the_shops() {
    let host = Host::with_shops_at(upstream(shop()).await.0);
    let daemon = host.start(&[("BANNER", "on")]).await;
    let id = daemon.acquire().await.id();
    for path in ["/", "/pieces", "/tagged", "/administration"] {
        let answer = get(&daemon, &id, path, &DOCUMENT).await;
        let (before, rest) = answer.text().split_once(ELEMENT).unwrap_or_else(|| panic!("{path}"));
        let (banner, after) = rest.split_once("</script>").unwrap();
        assert_eq!(format!("{before}{after}"), PAGE, "{path}");
        assert_eq!(after, "</body></html>\n");
        assert!(banner.contains("Demo shop, deleted at 20") && banner.contains("UTC"), "{banner}");
        assert!(banner.contains(&format!("http://localhost:8080/demo/{id}")), "{banner}");
        assert!(format!("{ELEMENT}{banner}").contains(SCRIPT));
        assert_eq!(answer.headers["x-asked-for"], "identity", "what is compressed cannot be read");
        assert!(!answer.headers.contains_key("content-length"));
        assert_eq!(answer.headers["vary"], "Sec-Fetch-Dest, Accept-Language");
        if path == "/tagged" {
            assert_eq!(answer.headers["etag"], "W/\"a\"");
        }
    }
    let strict = get(&daemon, &id, "/strict", &DOCUMENT).await;
    assert!(strict.text().contains(ELEMENT) && !strict.text().contains("<script"), "the text alone");
    let posted = ask(&daemon, Method::POST, &id, "/", &DOCUMENT).await;
    assert!(posted.text().contains(ELEMENT), "a form's answer is a page too");
}

#[tokio::test]
async fn everything_else_passes_as_it_is() {
    let host = Host::with_shops_at(upstream(shop()).await.0);
    let daemon = host.start(&[("BANNER", "on")]).await;
    let id = daemon.acquire().await.id();
    for path in ["/json", "/gzip", "/missing", "/admin", "/admin/users", "/admin/"] {
        let answer = get(&daemon, &id, path, &DOCUMENT).await;
        let expected = page(path).into_body().collect().await.unwrap().to_bytes();
        assert_eq!(answer.body, expected, "{path}");
        assert!(answer.headers.contains_key("content-length"), "{path}");
    }
    let fragment = get(&daemon, &id, "/fragment", &DOCUMENT).await;
    assert_eq!(fragment.text(), "<p>part</p>", "no end of a page, no banner");
    for headers in [
        &[("accept", "*/*"), ("accept-encoding", "gzip, br")][..],
        &[("sec-fetch-dest", "empty"), ("accept", "text/html"), ("accept-encoding", "gzip, br")],
        &[("sec-fetch-dest", "iframe"), ("accept-encoding", "gzip, br")],
        &[("x-requested-with", "XMLHttpRequest"), ("accept", "text/html"), ("accept-encoding", "gzip, br")],
    ] {
        let answer = get(&daemon, &id, "/", headers).await;
        assert_eq!(answer.text(), PAGE, "{headers:?}");
        assert_eq!(answer.headers["x-asked-for"], "gzip, br", "{headers:?}");
    }
    let head = ask(&daemon, Method::HEAD, &id, "/", &DOCUMENT).await;
    assert_eq!(head.headers["content-length"], PAGE.len().to_string().as_str());
}

#[tokio::test]
async fn without_the_setting_there_is_none_and_the_path_is_the_shops() {
    let host = Host::with_shops_at(upstream(shop()).await.0);
    let daemon = host.start(&[]).await;
    let id = daemon.acquire().await.id();
    for path in ["/", "/.demo-multiplexer/status", "/.demo-multiplexer/banner.js"] {
        let answer = get(&daemon, &id, path, &DOCUMENT).await;
        assert_eq!((answer.text(), answer.headers["x-asked-for"].to_str().unwrap()), (PAGE, "gzip, br"));
    }
}

fn seconds_left(answer: &Answer) -> i64 {
    answer.json()["seconds_left"].as_i64().unwrap()
}

#[tokio::test]
async fn the_status_counts_down_follows_an_extension_and_ends_with_the_shop() {
    let host = Host::with_shops_at(upstream(shop()).await.0);
    let daemon = host.start(&[("BANNER", "on")]).await;
    let id = daemon.post("/api/v1/demo/acquire", r#"{"ttl": "10m"}"#).await.id();
    let path = "/.demo-multiplexer/status";
    let status = get(&daemon, &id, path, &[]).await;
    assert!((590..=600).contains(&seconds_left(&status)), "{}", status.text());
    let field = |name: &str| status.headers[name].to_str().unwrap().to_owned();
    assert_eq!(
        (field("content-type"), field("cache-control")),
        ("application/json".into(), "no-store".into())
    );
    assert_eq!(field("x-robots-tag"), "noindex, nofollow");
    assert!(!status.headers.contains_key("access-control-allow-origin"), "the shop's own pages only");

    daemon.post(&format!("/api/v1/demo/{id}/extend"), r#"{"ttl": "20m"}"#).await;
    eventually("the new time is told", async || {
        (seconds_left(&get(&daemon, &id, path, &[]).await) > 1700).then_some(())
    })
    .await;
    daemon.delete(&format!("/api/v1/demo/{id}")).await;
    eventually("it is gone", async || (get(&daemon, &id, path, &[]).await.status == 410).then_some(())).await;
}

#[tokio::test]
async fn the_script_is_the_programs_and_nothing_below_its_path_reaches_a_shop() {
    let host = Host::with_shops_at(upstream(shop()).await.0);
    let daemon = host.start(&[("BANNER", "on")]).await;
    let id = daemon.acquire().await.id();
    let script = get(&daemon, &id, "/.demo-multiplexer/banner.js?v=1", &[]).await;
    assert_eq!(script.text(), include_str!("../src/proxy/banner/banner.js"));
    let kind = |headers: &HeaderMap| headers["content-type"].to_str().unwrap().to_owned();
    assert_eq!(kind(&script.headers), "text/javascript; charset=utf-8");
    assert_eq!(script.headers["x-content-type-options"], "nosniff");
    for (method, path) in [(Method::GET, "other"), (Method::POST, "status"), (Method::DELETE, "banner.js")] {
        let answer = ask(&daemon, method, &id, &format!("/.demo-multiplexer/{path}"), &[]).await;
        assert_eq!((answer.status.as_u16(), answer.body.len()), (404, 0), "{path}");
    }
}
