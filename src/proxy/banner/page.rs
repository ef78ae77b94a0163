//! Which answers are pages that the banner belongs on, and what is put there.
//! Pure.

use axum::response::Response;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LENGTH,
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, RANGE, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use jiff::Timestamp;

use super::splice;
use crate::lang::{Lang, fill, texts};

const FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
const REQUESTED_WITH: HeaderName = HeaderName::from_static("x-requested-with");

/// Whether a browser asks for a document that it will show by itself.
///
/// Browsers say so on https and localhost; elsewhere what they accept has to do.
pub(super) fn is_for_document(method: &Method, headers: &HeaderMap) -> bool {
    let navigates = matches!(*method, Method::GET | Method::POST) && !headers.contains_key(REQUESTED_WITH);
    let wanted = match headers.get(FETCH_DEST) {
        Some(dest) => dest == "document",
        None => contains(headers.get(ACCEPT), "text/html"),
    };
    navigates && wanted
}

/// Asks the shop for a whole page that is not compressed.
pub(super) fn ask_for_plain(headers: &mut HeaderMap) {
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.remove(RANGE);
}

/// Whether an answer is an HTML page that can be read.
pub(crate) fn is_plain_page(response: &Response) -> bool {
    let headers = response.headers();
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.to_ascii_lowercase();
    let html = kind.split(';').next().is_some_and(|essence| essence.trim() == "text/html");
    response.status() == StatusCode::OK
        && html
        // In those `</body>` is other bytes.
        && !kind.contains("utf-16")
        && !kind.contains("utf-32")
        && headers.get(CONTENT_ENCODING).is_none_or(|encoding| encoding == "identity")
        && !headers.contains_key(CONTENT_DISPOSITION)
}

/// What the banner says.
#[derive(Debug)]
pub(crate) struct Insert {
    /// When the shop's time is over.
    pub(crate) until: Timestamp,
    /// In which language.
    pub(crate) lang: Lang,
    /// The owner's page, if there is one.
    pub(crate) manage: Option<String>,
}

texts! {
    /// The banner's texts.
    Texts {
        until: "Demo shop, deleted at {}", "Boutique de démonstration, supprimée à {}";
        left: "Demo shop, deleted in", "Boutique de démonstration, supprimée dans";
        ended: "This demo shop has ended", "Cette démonstration est terminée";
        more: "More time", "Plus de temps";
        reset: "Reset", "Réinitialiser";
        end: "End", "Terminer";
        close: "Close", "Fermer";
    }
}

/// The page with the banner on it.
pub(crate) fn put(response: Response, banner: &Insert) -> Response {
    let (mut parts, body) = response.into_parts();
    let insert = markup(banner, lets_script_in(&parts.headers));
    let headers = &mut parts.headers;
    headers.remove(CONTENT_LENGTH);
    headers.remove(ACCEPT_RANGES);
    weaken_etag(headers);
    // The same URL, asked for by a script, comes without.
    headers.append(VARY, HeaderValue::from_static("Sec-Fetch-Dest, Accept-Language"));
    Response::from_parts(parts, splice::spliced(body, insert))
}

/// The page is no longer what the shop's tag stands for to the byte.
fn weaken_etag(headers: &mut HeaderMap) {
    let Some(tag) = headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")) else { return };
    match HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()) {
        Ok(weak) => headers.insert(ETAG, weak),
        Err(_) => headers.remove(ETAG),
    };
}

/// The element and, where it may run, its script, which finds its words there.
fn markup(banner: &Insert, script: bool) -> String {
    let t = Texts::of(banner.lang);
    let until = fill(t.until, &[&banner.until.strftime("%Y-%m-%d %H:%M UTC").to_string()]);
    let manage = banner.manage.as_deref();
    let (link, words) = match manage {
        Some(manage) => (
            format!(
                " · <a href=\"{manage}\" target=\"_blank\" rel=\"noopener\" style=\"color:inherit\">{}</a>",
                t.more
            ),
            format!(
                " data-manage=\"{manage}\" data-more=\"{}\" data-reset=\"{}\" data-end=\"{}\"",
                t.more, t.reset, t.end
            ),
        ),
        None => (String::new(), String::new()),
    };
    let element = format!(
        "<demo-multiplexer-banner role=\"note\" lang=\"{}\" data-left=\"{}\" data-ended=\"{}\" data-close=\"{}\"{words} \
         style=\"position:fixed;left:12px;bottom:12px;z-index:2147483646;padding:6px 14px;border-radius:20px;\
         font:14px/1.4 system-ui,sans-serif;color:#fff;background:#1d2733\">{until}{link}</demo-multiplexer-banner>",
        banner.lang.code(),
        t.left,
        t.ended,
        t.close
    );
    if !script {
        return element;
    }
    let version = env!("CARGO_PKG_VERSION");
    format!("{element}<script src=\"/.demo-multiplexer/banner.js?v={version}\" defer></script>")
}

/// Whether every policy lets a script of the shop's own host run and ask that
/// host; where one does not say so plainly, it does not.
fn lets_script_in(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CONTENT_SECURITY_POLICY).iter();
    values.map(|value| value.to_str().unwrap_or("default-src")).all(|value| {
        value.split(',').all(|policy| {
            allows(policy, &["script-src-elem", "script-src", "default-src"])
                && allows(policy, &["connect-src", "default-src"])
                && sources(policy, "sandbox").is_none_or(|words| words.contains(&"allow-scripts"))
        })
    })
}

/// Whether the first of these directives that a policy has lets its own host in.
fn allows(policy: &str, directives: &[&str]) -> bool {
    let sources = directives.iter().find_map(|name| sources(policy, name));
    sources.is_none_or(|sources| {
        let has = |word: &str| sources.iter().any(|source| source.eq_ignore_ascii_case(word));
        (has("'self'") || has("*")) && !has("'strict-dynamic'")
    })
}

fn sources<'a>(policy: &'a str, directive: &str) -> Option<Vec<&'a str>> {
    policy.split(';').find_map(|text| {
        let mut words = text.split_ascii_whitespace();
        words.next().filter(|name| name.eq_ignore_ascii_case(directive))?;
        Some(words.collect())
    })
}

fn contains(value: Option<&HeaderValue>, word: &str) -> bool {
    value.and_then(|value| value.to_str().ok()).is_some_and(|text| text.to_ascii_lowercase().contains(word))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_document_is_what_a_browser_shows_by_itself() {
        let html = ("accept", "text/html,application/xhtml+xml");
        for (method, headers, expected) in [
            (Method::GET, &[("sec-fetch-dest", "document"), html][..], true),
            (Method::POST, &[("sec-fetch-dest", "document")], true),
            (Method::GET, &[html], true),
            (Method::GET, &[("sec-fetch-dest", "iframe"), html], false),
            (Method::GET, &[("sec-fetch-dest", "empty"), html], false),
            (Method::GET, &[html, ("x-requested-with", "XMLHttpRequest")], false),
            (Method::GET, &[("accept", "*/*")], false),
            (Method::GET, &[], false),
            (Method::HEAD, &[html], false),
            (Method::PUT, &[html], false),
        ] {
            assert_eq!(is_for_document(&method, &map(headers)), expected, "{method} {headers:?}");
        }
    }

    #[test]
    fn a_page_is_html_that_can_be_read() {
        let answer = |status: u16, headers: &[(&'static str, &'static str)]| {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            *response.headers_mut() = map(headers);
            is_plain_page(&response)
        };
        let html = ("content-type", "text/HTML; charset=UTF-8");
        assert!(answer(200, &[html]) && answer(200, &[html, ("content-encoding", "identity")]));
        for (status, headers) in [
            (404, &[html][..]),
            (206, &[html]),
            (200, &[html, ("content-encoding", "gzip")]),
            (200, &[html, ("content-disposition", "attachment")]),
            (200, &[("content-type", "text/html; charset=utf-16le")]),
            (200, &[("content-type", "application/json")]),
            (200, &[("content-type", "text/htmlx")]),
            (200, &[]),
        ] {
            assert!(!answer(status, headers), "{status} {headers:?}");
        }
    }

    #[test]
    fn a_policy_lets_the_script_in_or_the_text_stands_alone() {
        let csp = |policies: &[&'static str]| {
            let pairs: Vec<_> = policies.iter().map(|policy| ("content-security-policy", *policy)).collect();
            lets_script_in(&map(&pairs))
        };
        assert!(csp(&[]));
        for open in [
            "default-src 'self'",
            "frame-ancestors 'none'",
            "script-src 'self' 'unsafe-inline'; connect-src *",
            "default-src 'none'; script-src 'SELF'; connect-src 'self'",
            "upgrade-insecure-requests",
            "sandbox allow-scripts allow-same-origin",
        ] {
            assert!(csp(&[open]), "{open}");
        }
        for closed in [
            "default-src 'none'",
            "script-src 'nonce-abc'",
            "script-src 'unsafe-inline'",
            "script-src 'self' 'strict-dynamic' 'nonce-abc'",
            "script-src 'self'; connect-src https://api.example",
            "script-src 'self'; script-src-elem 'none'",
            "default-src 'self', script-src 'none'",
            "sandbox",
        ] {
            assert!(!csp(&[closed]), "{closed}");
            assert!(!csp(&["default-src 'self'", closed]), "all policies count");
        }
    }

    #[test]
    fn the_text_says_until_when_and_the_script_comes_only_where_it_may() {
        let until: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let banner = Insert { until, lang: Lang::En, manage: None };
        assert!(markup(&banner, false).contains("Demo shop, deleted at 2026-01-02 03:04 UTC</"));
        assert!(!markup(&banner, false).contains("<script"));
        assert!(!markup(&banner, true).contains("<a "), "there is no page to lead to");
        assert!(markup(&banner, true).contains("<script src=\"/.demo-multiplexer/banner.js?v="));
        let manage = "http://localhost/demo/abcdefghijkl";
        let banner = Insert { until, lang: Lang::Fr, manage: Some(manage.into()) };
        assert!(markup(&banner, false).contains(&format!("<a href=\"{manage}\"")));
        assert!(markup(&banner, true).contains("data-more=\"Plus de temps\""));
    }

    #[test]
    fn every_text_is_in_every_language_and_fits_an_attribute() {
        crate::lang::assert_translated(Texts::ALL, &[]);
        for (key, en, fr) in Texts::ALL {
            assert!(!format!("{en}{fr}").contains(['"', '<', '&']), "{key}");
        }
    }

    #[test]
    fn headers_about_the_bytes_no_longer_hold() {
        let mut response = Response::new(Body::empty());
        *response.headers_mut() = map(&[
            ("content-type", "text/html"),
            ("content-length", "5"),
            ("accept-ranges", "bytes"),
            ("etag", "\"a\""),
            ("vary", "Cookie"),
        ]);
        let headers = put(response, &Insert { until: Timestamp::UNIX_EPOCH, lang: Lang::En, manage: None })
            .into_parts()
            .0
            .headers;
        assert!(!headers.contains_key("content-length") && !headers.contains_key("accept-ranges"));
        assert_eq!(headers["etag"], "W/\"a\"");
        let vary: Vec<_> = headers.get_all("vary").iter().collect();
        assert_eq!(vary, ["Cookie", "Sec-Fetch-Dest, Accept-Language"]);
    }
}
