//! What a shop says to a browser stays its own. Pure.
//!
//! All shops are below one domain, and whoever has a shop's back office can have
//! it send any header. What reaches further than the shop's own host is taken
//! out: cookies for the whole domain, promises about other ports and names.
//!
//! Caches in front keep answers by their whole URL, host included (RFC 9111, 2),
//! so two shops share none, and no header is needed for that. An answer that sets
//! a cookie is one visitor's, though, and is marked so.

use http::header::{ALT_SVC, CACHE_CONTROL, SET_COOKIE, STRICT_TRANSPORT_SECURITY};
use http::{HeaderMap, HeaderValue};

/// Cuts an answer's headers down to the shop at `name`.
pub(crate) fn keep_to(headers: &mut HeaderMap, name: &str) {
    // Another service for this host may be any port of the shop's choosing.
    headers.remove(ALT_SVC);
    let reaches_below = headers.get_all(STRICT_TRANSPORT_SECURITY).iter().any(|value| {
        directives(value.as_bytes(), b';').any(|it| it.eq_ignore_ascii_case(b"includesubdomains"))
    });
    if reaches_below {
        headers.remove(STRICT_TRANSPORT_SECURITY);
    }
    if !headers.contains_key(SET_COOKIE) {
        return;
    }
    let cookies: Vec<HeaderValue> =
        headers.get_all(SET_COOKIE).iter().map(|cookie| own_cookie(cookie, name)).collect();
    headers.remove(SET_COOKIE);
    for cookie in cookies {
        headers.append(SET_COOKIE, cookie);
    }
    make_private(headers);
}

/// The cookie without a Domain other than the shop's own host: the browser then
/// sends it to that host alone.
fn own_cookie(cookie: &HeaderValue, name: &str) -> HeaderValue {
    let is_wider = |attribute: &[u8]| {
        let mut parts = attribute.splitn(2, |byte| *byte == b'=');
        let key = parts.next().unwrap_or_default().trim_ascii();
        let domain = parts.next().unwrap_or_default().trim_ascii();
        let domain = domain.strip_prefix(b".").unwrap_or(domain);
        key.eq_ignore_ascii_case(b"domain") && !domain.eq_ignore_ascii_case(name.as_bytes())
    };
    let parts: Vec<&[u8]> = cookie.as_bytes().split(|byte| *byte == b';').collect();
    // The first part is name and value.
    if !parts.iter().skip(1).any(|part| is_wider(part)) {
        return cookie.clone();
    }
    let kept = parts.iter().enumerate().filter(|(n, part)| *n == 0 || !is_wider(part)).map(|(_, part)| *part);
    // Parts of a valid value make a valid value.
    HeaderValue::from_bytes(&kept.collect::<Vec<_>>().join(&b';')).unwrap_or_else(|_| cookie.clone())
}

/// For one visitor's own cache only; what else the shop says stands.
fn make_private(headers: &mut HeaderMap) {
    let shared = |directive: &&[u8]| {
        let key = directive.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
        !key.eq_ignore_ascii_case(b"public")
            && !key.eq_ignore_ascii_case(b"s-maxage")
            && !key.eq_ignore_ascii_case(b"private")
    };
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for value in headers.get_all(CACHE_CONTROL) {
        kept.extend(directives(value.as_bytes(), b',').filter(shared).map(<[u8]>::to_vec));
    }
    kept.push(b"private".to_vec());
    if let Ok(value) = HeaderValue::from_bytes(&kept.join(&b", "[..])) {
        headers.insert(CACHE_CONTROL, value);
    }
}

fn directives(value: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    value.split(move |byte| *byte == separator).map(<[u8]>::trim_ascii).filter(|it| !it.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAME: &str = "abc.demo.example";

    fn kept(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        keep_to(&mut headers, NAME);
        headers
    }

    #[test]
    fn a_cookie_for_more_than_the_shop_is_the_shops_alone() {
        for (set, expected) in [
            ("a=b; Domain=.demo.example; Path=/", "a=b; Path=/"),
            ("a=b; path=/; DOMAIN=demo.example", "a=b; path=/"),
            ("a=b;domain = .Demo.Example ;Secure", "a=b;Secure"),
            ("a=b; Domain=localhost", "a=b"),
            ("a=b; Domain=", "a=b"),
            ("a=b; Domain", "a=b"),
            ("a=b; Domain=abc.demo.example; Domain=demo.example", "a=b; Domain=abc.demo.example"),
            ("a=b; Domain=x.abc.demo.example", "a=b"),
            ("a=b; Domain=xabc.demo.example", "a=b"),
            ("a=b; \tDomain=\tdemo.example", "a=b"),
        ] {
            assert_eq!(kept(&[("set-cookie", set)])["set-cookie"], expected, "{set}");
        }
        for own in [
            "a=b; Domain=abc.demo.example; HttpOnly",
            "a=b; Domain=.ABC.demo.example",
            "domain=.demo.example",
            "a=domain=x; Path=/",
            "__Host-a=b; Secure; Path=/",
        ] {
            assert_eq!(kept(&[("set-cookie", own)])["set-cookie"], own, "{own}");
        }
        let many = kept(&[("set-cookie", "a=1; Domain=demo.example"), ("set-cookie", "b=2")]);
        assert_eq!(many.get_all("set-cookie").iter().collect::<Vec<_>>(), ["a=1", "b=2"]);
    }

    #[test]
    fn an_answer_with_a_cookie_is_one_visitors() {
        for (said, expected) in [
            (None, "private"),
            (Some("public, max-age=60"), "max-age=60, private"),
            (Some("max-age=60, s-maxage = 600"), "max-age=60, private"),
            (Some("no-store"), "no-store, private"),
            (Some("private, max-age=0"), "max-age=0, private"),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(said) = said {
                headers.insert("cache-control", HeaderValue::from_static(said));
            }
            headers.insert("set-cookie", HeaderValue::from_static("a=b"));
            keep_to(&mut headers, NAME);
            assert_eq!(headers["cache-control"], expected, "{said:?}");
        }
        assert_eq!(kept(&[("cache-control", "public, max-age=60")])["cache-control"], "public, max-age=60");
        assert!(!kept(&[]).contains_key("cache-control"));
    }

    #[test]
    fn promises_about_more_than_the_shop_are_taken_out() {
        for wide in [
            "max-age=1; includeSubDomains",
            "INCLUDESUBDOMAINS;max-age=1",
            "max-age=1 ;includesubdomains ; preload",
        ] {
            assert!(!kept(&[("strict-transport-security", wide)]).contains_key("strict-transport-security"));
        }
        let headers = kept(&[
            ("strict-transport-security", "max-age=1"),
            ("alt-svc", "h3=\":9999\""),
            ("clear-site-data", "\"*\""),
            ("access-control-allow-origin", "*"),
        ]);
        assert!(!headers.contains_key("alt-svc"));
        for own in ["strict-transport-security", "clear-site-data", "access-control-allow-origin"] {
            assert!(headers.contains_key(own), "{own}");
        }
    }

    proptest! {
        #[test]
        fn no_way_to_write_a_cookie_reaches_the_whole_domain(
            parts in proptest::collection::vec(
                prop_oneof![
                    Just("Domain=demo.example".to_owned()), Just(" dOmAin\t= .demo.example".to_owned()),
                    Just("Domain=abc.demo.example".to_owned()), "[ -:<-~]{0,12}",
                ], 1..6)
        ) {
            let Ok(value) = HeaderValue::from_str(&parts.join(";")) else { return Ok(()) };
            let mut headers = HeaderMap::new();
            headers.insert(SET_COOKIE, value);
            keep_to(&mut headers, NAME);
            let left = headers[SET_COOKIE].to_str().unwrap();
            for attribute in left.split(';').skip(1) {
                let (key, domain) = attribute.split_once('=').unwrap_or((attribute, ""));
                let domain = domain.trim().trim_start_matches('.');
                prop_assert!(!key.trim().eq_ignore_ascii_case("domain") || domain == NAME, "{}", left);
            }
        }
    }
}
