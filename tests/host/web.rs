//! A client: single requests, and a browser that keeps cookies.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// The longest answer waited for: a cold start.
const PATIENCE: Duration = Duration::from_secs(120);

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.body)
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The detail of a problem of that status.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{}", self.text());
        self.json()["detail"].as_str().unwrap().to_owned()
    }
}

/// Sends one request on a connection of its own.
pub(crate) async fn send(
    address: SocketAddr,
    method: &str,
    host: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Result<Reply, String> {
    let mut request = Request::builder().method(method).uri(path).header("host", host);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body.to_owned())).unwrap();
    let exchange = async {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = connected.map_err(|error| error.to_string())?;
        let connection = tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
        connection.abort();
        Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body })
    };
    match tokio::time::timeout(PATIENCE, exchange).await {
        Ok(reply) => reply,
        Err(_) => Err(format!("{method} {path}: no answer")),
    }
}

pub(crate) async fn get(address: SocketAddr, host: &str, path: &str) -> Result<Reply, String> {
    send(address, "GET", host, path, &[], "").await
}

/// Keeps cookies; follows no redirect.
#[derive(Debug, Clone)]
pub(crate) struct Browser {
    address: SocketAddr,
    host: String,
    pub(crate) cookies: BTreeMap<String, String>,
}

impl Browser {
    pub(crate) fn new(address: SocketAddr, host: &str) -> Self {
        Self { address, host: host.to_owned(), cookies: BTreeMap::new() }
    }

    pub(crate) async fn get(&mut self, path: &str) -> Reply {
        self.request("GET", path, "").await
    }

    /// Posts a form.
    pub(crate) async fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Reply {
        let pairs: Vec<String> =
            fields.iter().map(|(name, value)| format!("{name}={}", escape(value))).collect();
        self.request("POST", path, &pairs.join("&")).await
    }

    async fn request(&mut self, method: &str, path: &str, body: &str) -> Reply {
        let cookies: Vec<String> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let cookies = cookies.join("; ");
        let headers = [
            ("accept", "text/html,application/xhtml+xml,*/*;q=0.8"),
            ("content-type", "application/x-www-form-urlencoded"),
            ("cookie", cookies.as_str()),
        ];
        let reply = send(self.address, method, &self.host, path, &headers, body).await.unwrap();
        for cookie in reply.headers.get_all("set-cookie") {
            let pair = cookie.to_str().unwrap().split(';').next().unwrap_or_default();
            if let Some((name, value)) = pair.split_once('=') {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        reply
    }

    /// Logs in to WordPress; whether it let us in.
    pub(crate) async fn log_in(&mut self, password: &str) -> bool {
        self.get("/wp-login.php").await;
        let fields = [
            ("log", "admin"),
            ("pwd", password),
            ("wp-submit", "Log In"),
            ("testcookie", "1"),
            ("redirect_to", "/wp-admin/"),
        ];
        let reply = self.post("/wp-login.php", &fields).await;
        reply.status == 302 && self.is_in().await
    }

    /// Whether the back office takes us for its administrator.
    pub(crate) async fn is_in(&mut self) -> bool {
        let page = self.get("/wp-admin/users.php").await;
        page.status == 200 && page.text().contains("wpadminbar")
    }
}

fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b if b.is_ascii_alphanumeric() => char::from(b).to_string(),
            b => format!("%{b:02X}"),
        })
        .collect()
}
