//! Pages of which other sites may ask the API from a browser (CORS_ORIGINS).
//!
//! A layer outside of [`super::access`], so that a page can also read why it was
//! refused. Only for what visitors use; an operator's page is the operator's own
//! tool's business. Credentials in a browser's sense (cookies) are never allowed:
//! the API has none.

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::ApiState;
use super::access::{Who, who};
use crate::config::Origins;

/// What a page may send. `*` goes without tokens: see [`Origins::Any`].
const HEADERS: &str = "content-type, idempotency-key, last-event-id, x-request-id";
const HEADERS_WITH_TOKEN: &str = "authorization, content-type, idempotency-key, last-event-id, x-request-id";

/// What a page may read beside the body.
const EXPOSED: &str = "location, retry-after, ratelimit, ratelimit-limit, ratelimit-policy, \
                       ratelimit-remaining, ratelimit-reset, x-request-id";

/// How long a browser may remember a preflight's answer: browsers cap it at two
/// hours, and a changed setting is soon enough known after one.
const MAX_AGE: &str = "3600";

/// Answers preflights, and adds to answers what lets a page read them.
pub(super) async fn around(State(api): State<ApiState>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    if path.is_none() || !matches!(who(path), Who::Acquirer | Who::Holder) {
        return next.run(request).await;
    }
    let allowed = allowed(&api.cors_origins, request.headers().get(ORIGIN));
    let preflight =
        request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match &allowed {
        Some(_) if preflight => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            say_what_is_allowed(response.headers_mut(), &api.cors_origins);
            response
        }
        _ => next.run(request).await,
    };
    let headers = response.headers_mut();
    if matches!(&*api.cors_origins, Origins::Listed(listed) if !listed.is_empty()) {
        headers.append(VARY, HeaderValue::from_static("Origin"));
    }
    if let Some(allowed) = allowed {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    }
    response
}

/// What the answer to a page of this origin says, if it may be read there.
fn allowed(origins: &Origins, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
    let origin = origin?;
    match origins {
        Origins::Any => Some(HeaderValue::from_static("*")),
        Origins::Listed(listed) => listed.iter().find(|it| *it == origin).cloned(),
    }
}

fn say_what_is_allowed(headers: &mut HeaderMap, origins: &Origins) {
    let sent = match origins {
        Origins::Any => HEADERS,
        Origins::Listed(_) => HEADERS_WITH_TOKEN,
    };
    for (name, value) in [
        (ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, DELETE"),
        (ACCESS_CONTROL_ALLOW_HEADERS, sent),
        (ACCESS_CONTROL_MAX_AGE, MAX_AGE),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_allowed_when_it_is_listed_to_the_letter() {
        let site = HeaderValue::from_static("https://www.example.com");
        let listed = Origins::Listed(vec![site.clone()]);
        assert_eq!(allowed(&listed, Some(&site)), Some(site));
        for other in
            ["https://example.com", "https://www.example.com.evil.org", "http://www.example.com", "null"]
        {
            assert_eq!(allowed(&listed, Some(&HeaderValue::from_static(other))), None, "{other}");
            let any = allowed(&Origins::Any, Some(&HeaderValue::from_static(other)));
            assert_eq!(any, Some(HeaderValue::from_static("*")));
        }
        assert_eq!(allowed(&Origins::Any, None), None, "nobody's page");
    }
}
