//! The pages of a running daemon, on a scripted engine: what needs no browser.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Answer, Daemon, Host, send_to};
use http::Method;

/// What a browser sends with a page that it opens.
const FRENCH: [(&str, &str); 1] = [("accept-language", "fr-FR,fr;q=0.9,en;q=0.1")];

async fn page(daemon: &Daemon, path: &str, headers: &[(&str, &str)]) -> Answer {
    daemon.send(Method::GET, path, headers, "").await
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

#[tokio::test]
async fn a_page_comes_in_the_visitors_language_and_loads_nothing_from_elsewhere() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let (english, french) = (page(&daemon, "/", &[]).await, page(&daemon, "/", &FRENCH).await);
    assert!(
        english.text().contains("<html lang=\"en\">") && english.text().contains("Try a shop of your own")
    );
    assert!(french.text().contains("<html lang=\"fr\">") && french.text().contains("votre propre boutique"));
    assert!(english.text().contains("The shop shop") && english.text().contains("The other shop"));
    for answer in [&english, &french] {
        assert_eq!(answer.status, 200);
        assert_eq!(header(answer, "content-type"), "text/html; charset=utf-8");
        assert_eq!(header(answer, "cache-control"), "no-store");
        assert!(header(answer, "vary").contains("Accept-Language"));
        let policy = header(answer, "content-security-policy");
        assert!(
            policy.contains("default-src 'self'") && policy.contains("frame-ancestors 'none'"),
            "{policy}"
        );
        assert!(!answer.headers["x-request-id"].is_empty());
        for attribute in ["src=\"", "href=\""] {
            for target in answer.text().split(attribute).skip(1) {
                assert!(target.starts_with(['/', '#']), "{attribute}{}", &target[..40.min(target.len())]);
            }
        }
        assert!(!answer.text().contains("style=") && !answer.text().contains(" onclick"));
    }
    assert_eq!(header(&french, "content-language"), "fr");
}

#[tokio::test]
async fn what_a_page_loads_is_kept_for_ever_under_its_contents_name() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let landing = page(&daemon, "/", &[]).await;
    let assets: Vec<&str> = landing
        .text()
        .split('"')
        .filter(|text| text.starts_with("/assets/") && !text.contains('#'))
        .collect();
    assert!(assets.len() >= 3, "{assets:?}");
    for asset in assets {
        let answer = page(&daemon, asset, &[]).await;
        assert_eq!(answer.status, 200, "{asset}");
        assert_eq!(header(&answer, "cache-control"), "public, max-age=31536000, immutable");
        let tag = header(&answer, "etag");
        let again = page(&daemon, asset, &[("if-none-match", tag)]).await;
        assert_eq!((again.status.as_u16(), again.body.len()), (304, 0));
        let (front, _) = asset.rsplit_once('.').unwrap();
        assert_eq!(page(&daemon, &format!("{front}0.css"), &[]).await.status, 404, "another content's name");
    }
    assert_eq!(page(&daemon, "/assets/..%2fweb.key", &[]).await.status, 404);
}

#[tokio::test]
async fn visitors_pages_are_where_visitors_are_and_only_if_they_may_acquire() {
    let host = Host::new();
    let daemon = host.start(&[("ADMIN_LISTEN", "127.0.0.1:0")]).await;
    assert_eq!(page(&daemon, "/", &[]).await.status, 200);
    let admin = send_to(daemon.admin.unwrap(), Method::GET, "/", &[], "").await;
    admin.problem(404);
    daemon.stop().await;

    let token = format!("a:acquire:{}", "0".repeat(64));
    let closed = [("ACQUIRE", "token"), ("API_TOKENS", token.as_str())];
    let daemon = host.start(&closed).await;
    page(&daemon, "/", &[]).await.problem(404);
    daemon.stop().await;

    let daemon = host.start(&[closed[0], closed[1], ("LANDING", "on")]).await;
    assert_eq!(page(&daemon, "/", &[]).await.status, 200, "the operator wants both");
    daemon.stop().await;
    let daemon = host.start(&[("LANDING", "off")]).await;
    page(&daemon, "/", &[]).await.problem(404);
}
