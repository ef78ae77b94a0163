//! Whether a form was sent by a page of ours. Pure.
//!
//! All shops are below our domain, so to a browser they are the same *site*, and
//! their cookies' SameSite says nothing: whoever has a shop could have its page
//! send our forms. A browser says whose page it was, by Sec-Fetch-Site where
//! pages are secure and by Origin everywhere; a request that says neither is no
//! browser's, and brings nobody's cookies.

use axum::body::Body;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::header::{HOST, ORIGIN};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};

use crate::api::problem::Problem;

const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses what another origin's page sends, in the API's words.
pub(crate) async fn guard(request: Request<Body>, next: Next) -> Response {
    if is_refused(&request) {
        let detail = "a page of another site has sent this form: open the page here and try again";
        return Problem::forbidden(detail).into_response();
    }
    next.run(request).await
}

/// Whether another origin's page has sent a request that changes something;
/// asking for a page is free to all.
pub(crate) fn is_refused<B>(request: &Request<B>) -> bool {
    let asks = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    !asks && !is_own(request.headers())
}

/// Whether no page of another origin has sent this.
pub(crate) fn is_own(headers: &HeaderMap) -> bool {
    let text =
        |name: &HeaderName| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or_default());
    let site_is_own = match text(&FETCH_SITE) {
        Some(site) => matches!(site, "same-origin" | "none"),
        None => true,
    };
    let origin_is_own = match text(&ORIGIN) {
        Some(origin) => {
            let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            host.is_some() && host == text(&HOST)
        }
        None => true,
    };
    site_is_own && origin_is_own
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(pairs: &[(&'static str, &'static str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        is_own(&headers)
    }

    #[test]
    fn a_form_of_ours_is_told_from_a_shops_and_a_strangers() {
        let host = ("host", "demo.example:8080");
        for ours in [
            &[host, ("sec-fetch-site", "same-origin"), ("origin", "http://demo.example:8080")][..],
            &[host, ("origin", "http://demo.example:8080")],
            &[host, ("sec-fetch-site", "none")],
            &[host],
        ] {
            assert!(own(ours), "{ours:?}");
        }
        for theirs in [
            &[host, ("sec-fetch-site", "same-site"), ("origin", "http://abc.demo.example:8080")][..],
            &[host, ("sec-fetch-site", "cross-site")],
            &[host, ("sec-fetch-site", "same-origin"), ("origin", "http://evil.example")],
            &[host, ("origin", "http://abc.demo.example:8080")],
            &[host, ("origin", "http://demo.example")],
            &[host, ("origin", "null")],
            &[("origin", "http://demo.example:8080")],
        ] {
            assert!(!own(theirs), "{theirs:?}");
        }
    }
}
