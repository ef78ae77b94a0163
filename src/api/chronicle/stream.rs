//! `GET /api/v1/events/stream`: changes and samples as server-sent events.
//!
//! A stream has no buffer of its own: it reads what is kept when its client has
//! taken the last message. A client that lags behind by more than is kept misses
//! changes, which it sees by their numbers.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};
use tokio::sync::watch;

use super::{Chronicle, STREAMS};
use crate::api::ApiState;
use crate::api::dto::ServerSentEvent;
use crate::api::problem::Problem;
use crate::error::ErrorKind;

/// Why a stream was not opened.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("all {STREAMS} event streams of this daemon are taken")]
    Full,
    #[error("the service is being stopped")]
    Stopping,
}

/// Streams changes of instances and samples of the pool as server-sent events.
///
/// `change` (as in `/api/v1/events`) with each change of an instance, `sample`
/// (as in `/api/v1/history`) at first and every five seconds. With
/// `Last-Event-ID` the changes since that one are told first, as far as they are
/// kept. Ends when the service is stopped.
#[utoipa::path(
    get, path = "/api/v1/events/stream", tag = "pool", operation_id = "watch_events",
    params(("Last-Event-ID" = Option<String>, Header, description = "The last change seen: only later ones are told")),
    responses(
        (status = 200, description = "The stream, of these events", body = ServerSentEvent, content_type = "text/event-stream"),
        (status = 503, description = "As many streams are open as may be, or the service is being stopped")
    )
)]
pub(crate) async fn events_stream(
    State(api): State<ApiState>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.trim().parse().ok());
    let follower = Follower::of(&api.chronicle, seen)?;
    let no_buffering = (HeaderName::from_static("x-accel-buffering"), "no");
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), no_buffering];
    let body = Body::from_stream(futures_util::stream::unfold(follower, Follower::next));
    Ok((headers, body).into_response())
}

/// One open stream; its place is free when it is dropped.
#[derive(Debug)]
struct Follower {
    chronicle: Arc<Chronicle>,
    told: watch::Receiver<bool>,
    /// The last change told.
    change: u64,
    /// How many samples there were when the last one was told.
    sample: u64,
    is_new: bool,
}

impl Follower {
    fn of(chronicle: &Arc<Chronicle>, seen: Option<u64>) -> Result<Self, Problem> {
        let told = chronicle.told.subscribe();
        if *told.borrow() {
            return Err(Problem::of(ErrorKind::Unavailable, &StreamError::Stopping));
        }
        let mut kept = chronicle.lock();
        if kept.streams >= STREAMS {
            return Err(Problem::of(ErrorKind::Exhausted, &StreamError::Full));
        }
        kept.streams += 1;
        // A number of a former daemon's says nothing here.
        let change = seen.filter(|seen| *seen <= kept.last).unwrap_or(kept.last);
        drop(kept);
        Ok(Self { chronicle: Arc::clone(chronicle), told, change, sample: 0, is_new: true })
    }

    /// Waits for the next messages; none ends the answer.
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        loop {
            let is_over = *self.told.borrow_and_update();
            let text = self.unread();
            if !text.is_empty() {
                return Some((Ok(text.into()), self));
            }
            if is_over {
                return None;
            }
            self.told.changed().await.ok()?;
        }
    }

    fn unread(&mut self) -> String {
        let mut text = String::new();
        if std::mem::take(&mut self.is_new) {
            // Something at once, so that whoever is between sees that it is open.
            text.push_str("retry: 3000\n\n");
        }
        let kept = self.chronicle.lock();
        for change in kept.changes.iter().filter(|change| change.number > self.change) {
            let data = serde_json::to_string(change).unwrap_or_default();
            let _ = write!(text, "id: {}\nevent: change\ndata: {data}\n\n", change.number);
        }
        self.change = kept.last;
        if let Some(sample) = kept.samples.last().filter(|_| kept.samples.taken > self.sample) {
            let data = serde_json::to_string(sample).unwrap_or_default();
            let _ = write!(text, "event: sample\ndata: {data}\n\n");
        }
        self.sample = kept.samples.taken;
        text
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.chronicle.lock().streams -= 1;
    }
}
