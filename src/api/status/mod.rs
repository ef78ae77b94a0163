//! `/api/v1/demo/{id}/status`: an instance's life as server-sent events.
//!
//! [`feed`] decides what is said, [`hub`] knows when; here a stream is opened
//! and its messages are sent. An event's id is the record's generation: a client
//! that comes back with `Last-Event-ID` is told the state only if it is another
//! one. Nothing secret is in it: whoever knows the id may watch.

mod feed;
mod hub;

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};
use jiff::Timestamp;

use self::feed::Cursor;
use self::hub::Watching;
pub use self::hub::{StatusError, StatusHub};
use super::ApiState;
use super::dto::ServerSentEvent;
use super::extract::PathId;
use super::openapi::Id;
use super::problem::Problem;
use crate::id::InstanceId;
use crate::provision::Provisioner;

/// The data of a `state` event.
const EXAMPLE: &str = "{\"instance_id\":\"4irtg5lio2z5\",\"state\":\"assigned\",\"generation\":4,\
    \"expires_at\":\"2026-01-01T12:30:00Z\",\"seconds_left\":1799}";

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// nginx collects an answer before it passes it on, unless told not to.
const NO_BUFFERING: (HeaderName, &str) = (HeaderName::from_static("x-accel-buffering"), "no");

/// When a client is to come back after its stream broke, in milliseconds. Each
/// is told another time, so that a restarted daemon does not have all of them
/// at once.
const RETRY_MS: std::ops::Range<u32> = 2_000..5_000;

/// Streams an instance's status as server-sent events.
///
/// `state` (see StatusEvent) at first and with every change, `countdown` (see
/// CountdownEvent) each second, and comments so that the connection is not
/// taken for dead. The stream ends after `expired`, `failed` or `gone`, and
/// when the service is stopped.
#[utoipa::path(
    get, path = "/api/v1/demo/{id}/status", tag = "demo", operation_id = "watch_instance",
    params(
        ("id" = inline(Id), Path),
        ("Last-Event-ID" = Option<String>, Header, description = "The last event seen: only what was missed is told")
    ),
    responses(
        (status = 200, description = "The stream, of these events", body = ServerSentEvent, content_type = "text/event-stream",
            example = json!({ "id": "4", "event": "state", "data": EXAMPLE })),
        (status = 404, description = "The instance is unknown, or its end is long past"),
        (status = 410, description = "Its time is over"),
        (status = 500, description = "Its record cannot be read"),
        (status = 503, description = "As many streams are open as may be, or the store does not answer")
    )
)]
pub(super) async fn status(
    State(api): State<ApiState>,
    PathId(id): PathId,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    open(&api.status, &api.provisioner, &id, &headers).await
}

/// Opens a stream, for whoever may watch that instance.
pub(crate) async fn open(
    hub: &Arc<StatusHub>,
    provisioner: &Provisioner,
    id: &InstanceId,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let watching = hub.watch(id)?;
    let instance = provisioner.show(id, Timestamp::now()).await?;
    watching.learn(&instance);
    // An id that is none of ours is a client that has seen nothing.
    let seen = headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok()?.trim().parse().ok());
    let stream = Stream {
        watching,
        cursor: Cursor::resumed(seen),
        opening: Some(feed::opening(rand::random_range(RETRY_MS))),
        is_over: false,
    };
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), NO_BUFFERING];
    Ok((headers, Body::from_stream(futures_util::stream::unfold(stream, Stream::next))).into_response())
}

/// One open stream.
#[derive(Debug)]
struct Stream {
    watching: Watching,
    cursor: Cursor,
    opening: Option<Bytes>,
    is_over: bool,
}

impl Stream {
    /// Waits for the next message; none ends the answer.
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Self)> {
        if let Some(opening) = self.opening.take() {
            return Some((Ok(opening), self));
        }
        if self.is_over {
            return None;
        }
        loop {
            let next = self.watching.view.borrow_and_update().next(self.cursor);
            if let Some(next) = next {
                self.cursor = next.cursor;
                self.is_over = next.is_last;
                return Some((Ok(next.message), self));
            }
            // The hub keeps the sender for as long as somebody watches.
            self.watching.view.changed().await.ok()?;
        }
    }
}
