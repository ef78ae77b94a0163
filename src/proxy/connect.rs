//! Connections to instances, which end with their instance.
//!
//! The client's pool keys connections by the URI's authority. Here that is the
//! instance id with its route's epoch for a port, never an address: neither is used
//! twice, so a connection kept alive to a shop that is gone is never taken for the
//! next shop at the same address, nor for the one that the same visitor has now.
//! Each connection holds its route's `gone` token; when that is
//! cancelled, the next read fails, which wakes an idle connection in the pool, a
//! streaming body and a websocket alike. A shop with one is not idle.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::route::activity::Activity;
use crate::route::memory::{Lookup, MemoryRoutes, Route};

/// Instances are one hop away, on a bridge of this host: a handshake takes tens
/// of microseconds, and one that takes this long will not come.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// Opens connections to instances, by id.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    routes: Arc<MemoryRoutes>,
}

impl Connector {
    pub(super) fn new(routes: Arc<MemoryRoutes>) -> Self {
        Self { routes }
    }
}

impl tower::Service<Uri> for Connector {
    type Response = UpstreamIo;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<UpstreamIo>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (route, epoch) = (self.routes.lookup(uri.host().unwrap_or_default()), uri.port_u16());
        Box::pin(async move {
            let Lookup::Found(route) = route else { return Err(io::ErrorKind::NotConnected.into()) };
            if Some(route.epoch) != epoch {
                return Err(io::ErrorKind::NotConnected.into());
            }
            let stream = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(route.upstream));
            let stream = stream.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
            // Small writes of a websocket go out at once.
            stream.set_nodelay(true)?;
            Ok(UpstreamIo::new(stream, route))
        })
    }
}

/// A connection to an instance.
pub(super) struct UpstreamIo {
    stream: TokioIo<TcpStream>,
    gone: Pin<Box<WaitForCancellationFutureOwned>>,
    activity: Arc<Activity>,
}

impl Drop for UpstreamIo {
    fn drop(&mut self) {
        self.activity.closed();
    }
}

impl std::fmt::Debug for UpstreamIo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamIo").finish_non_exhaustive()
    }
}

impl UpstreamIo {
    pub(super) fn new(stream: TcpStream, route: Route) -> Self {
        route.activity.opened();
        let gone = Box::pin(route.gone.cancelled_owned());
        Self { stream: TokioIo::new(stream), gone, activity: route.activity }
    }

    fn stream(self: Pin<&mut Self>) -> Pin<&mut TokioIo<TcpStream>> {
        Pin::new(&mut self.get_mut().stream)
    }
}

impl Read for UpstreamIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // An error, not an end: an end would read as the shop's last word.
        if self.gone.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        self.stream().poll_read(cx, buf)
    }
}

impl Write for UpstreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, bufs)
    }
}

impl Connection for UpstreamIo {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}
