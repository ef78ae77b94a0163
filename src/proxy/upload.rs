//! A request's body on its way to a shop, and how long the answer may take.
//!
//! Two bounds: the body's size (SHOP_BODY_MAX), and the time in which nothing
//! happens before the answer begins (SHOP_TIMEOUT). A slow upload goes on for as
//! long as it moves; the shop's own time begins when the last byte is sent. The
//! answer's body has no bound: downloads, event streams and websockets last.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::watch;

/// A body that is larger than the bound.
#[derive(Debug, thiserror::Error)]
#[error("the body is larger than a shop's may be")]
pub(super) struct TooLarge;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    /// The visitor stopped sending.
    Visitor,
    /// The shop has everything and says nothing.
    Shop,
}

/// Whether the body is too large by its own account.
pub(super) fn says_too_large(headers: &HeaderMap, most: u64) -> bool {
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    // hyper has read it before and refuses what is no number.
    length.and_then(|text| text.parse::<u64>().ok()).is_some_and(|length| length > most)
}

/// A body that counts and tells.
#[derive(Debug)]
pub(super) struct Upload {
    body: Body,
    left: u64,
    progress: watch::Sender<bool>,
}

/// What is known of an upload that hyper has taken.
#[derive(Debug)]
pub(super) struct Progress(watch::Receiver<bool>);

impl Upload {
    /// Watches over a body.
    pub(super) fn new(body: Body, most: u64) -> (Self, Progress) {
        let (progress, receiver) = watch::channel(false);
        (Self { body, left: most, progress }, Progress(receiver))
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let Some(Ok(frame)) = frame else { return Poll::Ready(frame.map(|it| it.map_err(Into::into))) };
        let size = frame.data_ref().map_or(0, Bytes::len) as u64;
        match self.left.checked_sub(size) {
            Some(left) => {
                self.left = left;
                self.progress.send_replace(false);
                Poll::Ready(Some(Ok(frame)))
            }
            None => {
                self.progress.send_replace(true);
                Poll::Ready(Some(Err(TooLarge.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Progress {
    /// Whether it turned out too large on the way.
    pub(super) fn too_large(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits for the answer, as long as something moves.
    ///
    /// # Errors
    /// [`Late`], when nothing has for `patience`.
    pub(super) async fn wait<T>(
        &mut self,
        answer: impl Future<Output = T>,
        patience: Duration,
    ) -> Result<T, Late> {
        let mut answer = pin!(answer);
        let mut sending = true;
        loop {
            tokio::select! {
                answer = answer.as_mut() => return Ok(answer),
                // Ends when the body is dropped, which is when all of it is sent.
                moved = self.0.changed(), if sending => sending = moved.is_ok(),
                () = tokio::time::sleep(patience) => {
                    return Err(if sending { Late::Visitor } else { Late::Shop });
                }
            }
        }
    }
}
