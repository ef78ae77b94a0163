//! What happens around every request: its id, its span, the body of its error.
//!
//! The outermost layer of the router, and the only place that logs a request's
//! error.

use std::time::Duration;

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use tracing::Instrument as _;

use super::problem::Problem;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id taken over from a client or a proxy in front.
const REQUEST_ID_MAX: usize = 64;

/// Until an answer begins; streams may go on. Acquire's own patience is 120 s and
/// tells more, so this ends what has no patience of its own.
const DEADLINE: Duration = Duration::from_secs(150);

/// Runs one request within its span and finishes its answer.
pub(super) async fn around(request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    // The matched path, never the raw one: it names no instance.
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!("request", request_id = %id, method = %request.method(), %route);
    async move {
        let mut response = within(DEADLINE, next.run(request)).await;
        if let Some(problem) = response.extensions_mut().remove::<Problem>() {
            problem.log();
            *response.body_mut() = problem.body(&id);
            response.headers_mut().remove(header::CONTENT_LENGTH);
        }
        let headers = response.headers_mut();
        if let Ok(value) = HeaderValue::from_str(&id) {
            headers.insert(REQUEST_ID, value);
        }
        // Answers hold passwords and are of the moment.
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }
    .instrument(span)
    .await
}

/// The answer, or one that says that there is none in time.
async fn within(deadline: Duration, answer: impl Future<Output = Response>) -> Response {
    let late = |_| Problem::hangs(format!("no answer within {} s", deadline.as_secs())).into_response();
    tokio::time::timeout(deadline, answer).await.unwrap_or_else(late)
}

fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    match given {
        Some(id) if !id.is_empty() && id.len() <= REQUEST_ID_MAX && id.bytes().all(harmless) => id.to_owned(),
        _ => format!("{:016x}", rand::random::<u64>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_that_does_not_come_is_given_up() {
        let late = within(Duration::from_millis(20), std::future::pending()).await;
        assert_eq!(late.status(), 503);
        assert!(late.headers().contains_key(header::RETRY_AFTER));
        let there = within(Duration::from_secs(60), async { "here".into_response() }).await;
        assert_eq!(there.status(), 200);
    }
}
