//! The pages of the proxy itself: small, self-contained, nothing to load.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};

use super::headers;

/// What the proxy has to say when there is no shop to say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Page {
    /// No such shop.
    Unknown,
    /// Its time is over.
    Gone,
    /// It does not answer.
    Silent,
    /// It has the request and does not answer.
    Late,
    /// The request cannot be passed on.
    BadRequest,
    /// Its body is larger than a shop's may be.
    TooLarge,
    /// Its body stopped on the way.
    Stalled,
    /// The shop it was for has been replaced meanwhile, or put to sleep.
    MadeAnew,
    /// It sleeps and cannot be woken now.
    Asleep,
}

impl Page {
    const fn parts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::Unknown => (
                StatusCode::NOT_FOUND,
                "There is no shop here",
                "Check the address. If it is right, this demo shop ended some time ago.",
            ),
            Self::Gone => (
                StatusCode::GONE,
                "This demo shop has ended",
                "Its time is over and everything in it is deleted. You can start a new one at any time.",
            ),
            Self::Silent => (
                StatusCode::BAD_GATEWAY,
                "This shop does not answer",
                "It is there, but it does not answer at the moment. Try again in a few seconds.",
            ),
            Self::Late => (
                StatusCode::GATEWAY_TIMEOUT,
                "This shop takes too long",
                "It is still at work on your request, or it hangs. Look whether it was done before you try again.",
            ),
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "This upload is too large",
                "A demo shop takes smaller files only.",
            ),
            Self::Stalled => (
                StatusCode::REQUEST_TIMEOUT,
                "This upload stopped on the way",
                "Nothing has arrived for too long. Try again.",
            ),
            Self::MadeAnew => (
                StatusCode::SERVICE_UNAVAILABLE,
                "This shop was just started again",
                "It is there in a moment, and this page is fetched again by itself.",
            ),
            Self::Asleep => (
                StatusCode::SERVICE_UNAVAILABLE,
                "This shop sleeps and does not wake yet",
                "Nothing in it is lost. It is tried again by itself in some seconds.",
            ),
            Self::BadRequest => (
                StatusCode::BAD_REQUEST,
                "This request cannot be passed on",
                "It does not name exactly one host, or it is not clear where it ends.",
            ),
        }
    }

    /// The page for that host.
    pub(super) fn answer(self, host: &str) -> Response {
        let (status, title, text) = self.parts();
        let again = match self {
            Self::MadeAnew => Some("1"),
            Self::Asleep => Some("5"),
            _ => None,
        };
        let refresh = again.map(|seconds| format!("<meta http-equiv=\"refresh\" content=\"{seconds}\">"));
        let refresh = refresh.unwrap_or_default();
        let html = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <meta name=\"robots\" content=\"noindex\">{refresh}<title>{title}</title><style>\
             :root{{color-scheme:light dark}}\
             body{{font:1.1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:18vh auto;padding:0 1.5rem}}\
             h1{{font-size:1.5rem}}code{{overflow-wrap:anywhere}}</style></head>\
             <body><h1>{title}</h1><p>{text}</p><p><code>{}</code></p></body></html>\n",
            escape(host)
        );
        let mut response = Response::new(Body::from(html));
        *response.status_mut() = status;
        for (name, value) in [
            (header::CONTENT_TYPE, "text/html; charset=utf-8"),
            (header::CACHE_CONTROL, "no-store"),
            (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
        ] {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        if let Some(seconds) = again {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        headers::hide_from_robots(response.headers_mut());
        response
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().take(260) {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_sent_is_escaped() {
        assert_eq!(
            escape("<img src='x' onerror=\"a&b\">"),
            "&lt;img src=&#39;x&#39; onerror=&quot;a&amp;b&quot;&gt;"
        );
    }
}
