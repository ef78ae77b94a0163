//! Which headers pass, in either direction. Pure.
//!
//! Host passes unchanged. What a client says about who forwarded its request is
//! removed, since anybody can write it; what this proxy knows is written
//! instead: the client and the trusted proxies after it, and the scheme and port
//! that the last of them names. Hop-by-hop headers, and those that Connection
//! names, end here.

use std::net::IpAddr;

use http::header::{
    CONNECTION, EXPECT, FORWARDED, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::client::Hops;

/// What visitors see of this service.
#[derive(Debug, Clone)]
pub struct PublicFace {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The port in a visitor's address bar, the scheme's own if none is shown.
    pub port: u16,
}

/// Headers of one connection, not of the message (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const ROBOTS: HeaderName = HeaderName::from_static("x-robots-tag");

/// The protocol that a request asks to change to, if it does so validly.
#[must_use]
pub(super) fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let named = tokens(headers, &CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    if named { headers.get(UPGRADE).cloned() } else { None }
}

/// Rewrites a request's headers for the upstream.
pub(crate) fn to_upstream(headers: &mut HeaderMap, host: &HeaderValue, hops: &Hops, face: &PublicFace) {
    let (scheme, port) = seen_by_visitor(headers, hops, face);
    let upgrade = upgrade_of(headers);
    remove_hop_by_hop(headers);
    // The body is sent without waiting, and the client was answered by us.
    headers.remove(EXPECT);
    headers.remove(FORWARDED);
    headers.remove(REAL_IP);
    let claimed: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("x-forwarded-")).cloned().collect();
    for name in claimed {
        headers.remove(name);
    }
    let way: Vec<String> =
        std::iter::once(&hops.client).chain(&hops.proxies).map(IpAddr::to_string).collect();
    for (name, value) in [(FORWARDED_FOR, way.join(", ")), (REAL_IP, hops.client.to_string())] {
        // Addresses only.
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    headers.insert(FORWARDED_PROTO, HeaderValue::from_static(scheme));
    // Not the proxy's: the shop was found by this one.
    headers.insert(FORWARDED_HOST, host.clone());
    headers.insert(FORWARDED_PORT, HeaderValue::from(port));
    headers.insert(HOST, host.clone());
    if let Some(protocol) = upgrade {
        ask_for_upgrade(headers, protocol);
    }
}

/// Scheme and port in the visitor's address bar: as the trusted proxy says, else
/// as the settings do.
fn seen_by_visitor(headers: &HeaderMap, hops: &Hops, face: &PublicFace) -> (&'static str, u16) {
    if hops.proxies.is_empty() {
        return (face.scheme, face.port);
    }
    let said = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (scheme, own_port) = match said(FORWARDED_PROTO) {
        Some("https") => ("https", 443),
        Some("http") => ("http", 80),
        _ => (face.scheme, face.port),
    };
    let port = if scheme == face.scheme { face.port } else { own_port };
    (scheme, said(FORWARDED_PORT).and_then(|port| port.parse().ok()).unwrap_or(port))
}

/// Rewrites an answer's headers for the visitor.
pub(crate) fn to_visitor(headers: &mut HeaderMap, upgraded: bool) {
    let protocol = headers.get(UPGRADE).cloned().filter(|_| upgraded);
    remove_hop_by_hop(headers);
    hide_from_robots(headers);
    if let Some(protocol) = protocol {
        ask_for_upgrade(headers, protocol);
    }
}

/// Demo shops are copies of each other; no search engine shall know them, nor
/// follow their links.
pub(super) fn hide_from_robots(headers: &mut HeaderMap) {
    headers.insert(ROBOTS, HeaderValue::from_static("noindex, nofollow"));
}

fn ask_for_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = tokens(headers, &CONNECTION)
        .filter_map(|token| token.parse().ok())
        .filter(|name| *name != HOST)
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn sent(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        sent_by("192.0.2.7", pairs)
    }

    fn sent_by(peer: &str, pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = map(pairs);
        let face = PublicFace { scheme: "https", port: 443 };
        let host = HeaderValue::from_static("abc.demo.example:8080");
        let trusted = "10.0.0.0/24".parse().unwrap();
        let hops = crate::client::hops(peer.parse().unwrap(), &headers, &trusted);
        to_upstream(&mut headers, &host, &hops, &face);
        headers
    }

    #[test]
    fn what_a_trusted_proxy_says_is_kept_and_extended() {
        let headers = sent_by(
            "10.0.0.1",
            &[
                ("x-forwarded-for", "6.6.6.6, 198.51.100.1, 10.0.0.9"),
                ("x-forwarded-proto", "http"),
                ("x-forwarded-port", "8080"),
                ("x-forwarded-host", "elsewhere.example"),
                ("x-real-ip", "6.6.6.6"),
            ],
        );
        assert_eq!(
            headers["x-forwarded-for"], "198.51.100.1, 10.0.0.9, 10.0.0.1",
            "what the client wrote is not passed on, even so"
        );
        assert_eq!(headers["x-real-ip"], "198.51.100.1");
        assert_eq!(
            (&headers["x-forwarded-proto"], &headers["x-forwarded-port"]),
            (&"http".parse().unwrap(), &"8080".parse().unwrap())
        );
        assert_eq!(headers["x-forwarded-host"], "abc.demo.example:8080");
        for (proto, port, expected) in [("gopher", "x", ("https", "443")), ("http", "", ("http", "80"))] {
            let headers = sent_by(
                "10.0.0.1",
                &[
                    ("x-forwarded-for", "198.51.100.1"),
                    ("x-forwarded-proto", proto),
                    ("x-forwarded-port", port),
                ],
            );
            assert_eq!(headers["x-forwarded-proto"], expected.0);
            assert_eq!(headers["x-forwarded-port"], expected.1);
        }
    }

    #[test]
    fn what_a_client_says_about_forwarding_is_replaced() {
        let headers = sent(&[
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-for", "10.0.0.2"),
            ("x-forwarded-proto", "gopher"),
            ("x-forwarded-server", "evil"),
            ("x-real-ip", "10.0.0.1"),
            ("forwarded", "for=10.0.0.1"),
        ]);
        assert_eq!(headers.get_all("x-forwarded-for").iter().collect::<Vec<_>>(), ["192.0.2.7"]);
        assert_eq!(headers["x-real-ip"], "192.0.2.7");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-host"], "abc.demo.example:8080");
        assert_eq!(headers["x-forwarded-port"], "443");
        assert_eq!(headers["host"], "abc.demo.example:8080");
        assert!(!headers.contains_key("x-forwarded-server") && !headers.contains_key("forwarded"));
    }

    #[test]
    fn hop_by_hop_headers_and_those_that_connection_names_end_here() {
        let headers = sent(&[
            ("connection", "keep-alive, X-Private, host"),
            ("keep-alive", "timeout=5"),
            ("x-private", "1"),
            ("te", "trailers"),
            ("proxy-authorization", "secret"),
            ("upgrade", "websocket"),
            ("cookie", "a=b"),
        ]);
        for name in ["connection", "keep-alive", "x-private", "te", "proxy-authorization", "upgrade"] {
            assert!(!headers.contains_key(name), "{name}");
        }
        assert_eq!(headers["cookie"], "a=b");
        assert_eq!(headers["host"], "abc.demo.example:8080", "Host is not a client's to remove");
    }

    #[test]
    fn a_valid_upgrade_passes_both_ways() {
        let headers = sent(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(
            (&headers["connection"], &headers["upgrade"]),
            (&"upgrade".parse().unwrap(), &"websocket".parse().unwrap())
        );
        let mut answer = map(&[("connection", "upgrade"), ("upgrade", "websocket")]);
        to_visitor(&mut answer, true);
        assert_eq!(answer["upgrade"], "websocket");
        assert_eq!(answer["x-robots-tag"], "noindex, nofollow");
    }
}
