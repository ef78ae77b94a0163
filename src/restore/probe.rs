//! Asking a shop for a page, as the proxy would.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A shop's page is some hundred kilobytes at most.
const BODY_MAX: usize = 16 << 20;

/// A page, whatever its status.
#[derive(Debug)]
pub struct Page {
    /// Its status.
    pub status: StatusCode,
    /// Where it redirects to.
    pub location: Option<String>,
    /// Its content.
    pub body: Bytes,
}

/// No page came.
#[derive(Debug, thiserror::Error)]
#[error("no page {path} from {address}")]
pub struct ProbeError {
    /// Who was asked.
    pub address: SocketAddr,
    /// For what.
    pub path: String,
    /// Why it did not come.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// GETs one page over a connection of its own, which is closed afterwards: a
/// connection that lives through a checkpoint breaks clones.
///
/// # Errors
/// [`ProbeError`] when no whole answer came in time.
pub async fn get(
    address: SocketAddr,
    host: &str,
    path: &str,
    deadline: Duration,
) -> Result<Page, ProbeError> {
    get_over(TcpStream::connect(address), address, host, path, deadline).await
}

/// As [`get`], over the connection that `connect` makes.
///
/// # Errors
/// [`ProbeError`] when no whole answer came in time.
pub async fn get_over(
    connect: impl Future<Output = io::Result<TcpStream>>,
    address: SocketAddr,
    host: &str,
    path: &str,
    deadline: Duration,
) -> Result<Page, ProbeError> {
    let failed = |source| ProbeError { address, path: path.to_owned(), source };
    let page = async { fetch(connect.await?, host, path).await };
    match tokio::time::timeout(deadline, page).await {
        Ok(Ok(page)) => Ok(page),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(failed(io::Error::from(io::ErrorKind::TimedOut).into())),
    }
}

async fn fetch(
    stream: TcpStream,
    host: &str,
    path: &str,
) -> Result<Page, Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::get(path)
        .header(header::HOST, host)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, BODY_MAX).collect().await?.to_bytes();
    drop(sender);
    driver.abort();
    let location =
        parts.headers.get(header::LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Ok(Page { status: parts.status, location, body })
}

impl Page {
    /// Whether it is a 200 that contains `text`.
    #[must_use]
    pub fn shows(&self, text: &str) -> bool {
        self.status == StatusCode::OK && memmem(&self.body, text.as_bytes())
    }
}

fn memmem(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|window| window == needle)
}
