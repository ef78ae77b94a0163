//! How the client commands speak to the daemon: HTTP to API_URL, or to where it
//! listens.
//!
//! A token comes from the environment (API_TOKEN) or a file (API_TOKEN_FILE),
//! never from the command line, which every user of the host can read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

use super::Context;

/// The largest answer: a list of some thousand instances.
const ANSWER_MAX: usize = 64 << 20;

/// The daemon's API.
#[derive(Debug)]
pub(super) struct Api {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
    /// `Bearer` and the token; hidden from Debug.
    authorization: Option<HeaderValue>,
}

impl Api {
    /// The API that the settings name.
    pub(super) fn of(context: &Context) -> anyhow::Result<Self> {
        let base = match context.value("API_URL") {
            "" => {
                // Everything is answered there, and some of it only there.
                let edges = &context.config.edges;
                let mut listen = edges.admin_listen.unwrap_or(context.config.listen);
                // An address to listen on, not one to call.
                if listen.ip().is_unspecified() {
                    listen.set_ip(match listen.ip() {
                        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
                    });
                }
                format!("http://{listen}")
            }
            url => url.trim_end_matches('/').to_owned(),
        };
        let uri: Uri = base.parse().with_context(|| format!("API_URL={base:?} is not a URL"))?;
        if uri.scheme_str() != Some("http") || uri.host().is_none() {
            bail!("API_URL={base:?}: a URL such as http://127.0.0.1:8080 (only http)");
        }
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        let authorization = authorization(std::env::var("API_TOKEN").ok(), context.value("API_TOKEN_FILE"))?;
        Ok(Self { client, base, authorization })
    }

    /// Its URL, and the token's header.
    pub(super) fn into_parts(self) -> (String, Option<HeaderValue>) {
        (self.base, self.authorization)
    }

    /// Sends a request; an answer of status 400 or above is an error with the
    /// problem's detail.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> anyhow::Result<Value> {
        let url = format!("{}{path}", self.base);
        let body = body.map(|value| value.to_string()).unwrap_or_default();
        let mut request = Request::builder()
            .method(method)
            .uri(&url)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body))?;
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        let response = self.client.request(request).await;
        let response = response.with_context(|| {
            format!(
                "no answer from {}: does the daemon run? Start it (`systemctl start demo-multiplexer`, or `serve`), \
                 or set API_URL to where it listens",
                self.base
            )
        })?;
        let status = response.status();
        let bytes = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        let bytes = bytes.map_err(|error| anyhow::anyhow!("{url}: {error}"))?.to_bytes();
        if status == StatusCode::NO_CONTENT {
            return Ok(Value::Null);
        }
        let answer: Value = serde_json::from_slice(&bytes)
            .with_context(|| format!("{url} answered {status} without JSON"))?;
        if status.is_client_error() || status.is_server_error() {
            let detail = answer["detail"].as_str().unwrap_or("the daemon refused");
            bail!("{detail} ({status}){}", next_step(status, self.authorization.is_some()));
        }
        Ok(answer)
    }
}

/// What somebody without the right token does about it.
const fn next_step(status: StatusCode, has_token: bool) -> &'static str {
    match (status, has_token) {
        (StatusCode::UNAUTHORIZED, false) => {
            ": put it into API_TOKEN, or its file's path into API_TOKEN_FILE"
        }
        (StatusCode::UNAUTHORIZED, true) => {
            ": look at API_TOKEN and API_TOKEN_FILE; an entry counts from the daemon's start"
        }
        (StatusCode::FORBIDDEN, true) => ": `token create` makes one",
        _ => "",
    }
}

/// The header of the token that the operator gave, if any.
fn authorization(given: Option<String>, file: &str) -> anyhow::Result<Option<HeaderValue>> {
    let token = match (given.filter(|token| !token.trim().is_empty()), file) {
        (Some(token), _) => SecretString::from(token),
        (None, "") => return Ok(None),
        (None, path) => {
            let text = std::fs::read_to_string(path);
            text.with_context(|| format!("cannot read API_TOKEN_FILE {path}"))?.into()
        }
    };
    // The error would have no part of the token; neither does this one.
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret().trim()))
        .map_err(|_| anyhow::anyhow!("API_TOKEN or API_TOKEN_FILE does not hold one token on one line"))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// A field of an answer as text; empty when it is not there.
pub(super) fn text(answer: &Value, field: &str) -> String {
    match &answer[field] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Prints an answer as JSON.
pub(super) fn print_json(answer: &Value) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(answer)?);
    Ok(())
}

/// Prints named fields, one a line; without those that the answer has not.
pub(super) fn print_fields(answer: &Value, fields: &[(&str, &str)]) {
    let width = fields.iter().map(|(title, _)| title.len()).max().unwrap_or(0);
    for (title, field) in fields.iter().filter(|(_, field)| !answer[*field].is_null()) {
        println!("{title:<width$}  {}", text(answer, field));
    }
}
