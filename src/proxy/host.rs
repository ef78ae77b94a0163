//! Whose request is it, by its Host? Pure.
//!
//! `<label>.<BASE_DOMAIN>` is a shop's, with or without a port; everything else
//! (BASE_DOMAIN itself, an address, any other name, none) is the API's.

use http::header::HOST;
use http::{HeaderMap, Uri};

/// Whose request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// The API's.
    Api,
    /// A shop's, with this label; it may hold anything, dots included.
    Shop(&'a str),
}

/// The authority a request was sent to, as the client wrote it: the one of an
/// absolute request target, else the Host header.
#[must_use]
pub fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> &'a str {
    match uri.authority() {
        Some(authority) => authority.as_str(),
        None => headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default(),
    }
}

/// Decides by the authority; `base_domain` is in lower case.
#[must_use]
pub fn target<'a>(authority: &'a str, base_domain: &str) -> Target<'a> {
    let host = host_of(authority);
    let host = host.strip_suffix('.').unwrap_or(host);
    let Some(split) = host.len().checked_sub(base_domain.len()) else { return Target::Api };
    let Some((front, domain)) = host.split_at_checked(split) else { return Target::Api };
    match front.strip_suffix('.') {
        Some(label) if !label.is_empty() && domain.eq_ignore_ascii_case(base_domain) => Target::Shop(label),
        _ => Target::Api,
    }
}

/// The host without user and port.
fn host_of(authority: &str) -> &str {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.starts_with('[') {
        return host;
    }
    match host.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_below_the_base_domain_is_a_shops() {
        for host in ["abc.demo.example", "abc.demo.example:8080", "ABC.Demo.Example.", "abc.demo.example.:80"]
        {
            let Target::Shop(label) = target(host, "demo.example") else { panic!("{host}") };
            assert!(label.eq_ignore_ascii_case("abc"), "{host}");
        }
        assert_eq!(target("a.b.localhost", "localhost"), Target::Shop("a.b"));
    }

    #[test]
    fn everything_else_is_the_apis() {
        for host in [
            "demo.example",
            "demo.example:80",
            ".demo.example",
            "xdemo.example",
            "127.0.0.1:8080",
            "[::1]:80",
            "localhost",
            "",
            "other.org",
            "abc.demo.example.evil.org",
            "é",
        ] {
            assert_eq!(target(host, "demo.example"), Target::Api, "{host}");
        }
    }
}
