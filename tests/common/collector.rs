//! An OpenTelemetry collector that keeps what it is sent: as much of OTLP's
//! protobuf as tells spans, their parents and their attributes.

// Each test binary uses its own part of this file.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use bytes::Bytes;
use prost::Message;

#[derive(Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    resources: Vec<ResourceSpans>,
}

#[derive(Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scopes: Vec<ScopeSpans>,
}

#[derive(Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<RawSpan>,
}

#[derive(Message)]
struct RawSpan {
    #[prost(bytes, tag = "1")]
    trace: Vec<u8>,
    #[prost(bytes, tag = "2")]
    id: Vec<u8>,
    #[prost(bytes, tag = "4")]
    parent: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(fixed64, tag = "7")]
    begun: u64,
    #[prost(fixed64, tag = "8")]
    ended: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
}

#[derive(Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Value>,
}

#[derive(Message)]
struct Value {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
}

/// One span.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    pub(crate) service: String,
    pub(crate) trace: Vec<u8>,
    pub(crate) id: Vec<u8>,
    pub(crate) parent: Vec<u8>,
    pub(crate) name: String,
    /// Nanoseconds since 1970.
    pub(crate) begun: u64,
    pub(crate) ended: u64,
    /// Those that are texts.
    pub(crate) attributes: BTreeMap<String, String>,
    /// The whole request it came in.
    pub(crate) raw: Bytes,
}

/// A collector at an address of this host.
#[derive(Debug, Clone)]
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let spans = Arc::<Mutex<Vec<Span>>>::default();
        let router = Router::new().route("/v1/traces", post(keep)).with_state(Arc::clone(&spans));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, spans }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }
}

/// Answers an empty response message, which says that all was taken.
async fn keep(State(kept): State<Arc<Mutex<Vec<Span>>>>, body: Bytes) -> &'static [u8] {
    let request = Request::decode(body.clone()).expect("an export request");
    let text = |attributes: Vec<KeyValue>| -> BTreeMap<String, String> {
        attributes.into_iter().filter_map(|it| Some((it.key, it.value?.text?))).collect()
    };
    for ResourceSpans { resource, scopes } in request.resources {
        let of = text(resource.unwrap_or_default().attributes);
        let service = of.get("service.name").cloned().unwrap_or_default();
        let spans = scopes.into_iter().flat_map(|scope| scope.spans).map(|raw| Span {
            service: service.clone(),
            trace: raw.trace,
            id: raw.id,
            parent: raw.parent,
            name: raw.name,
            begun: raw.begun,
            ended: raw.ended,
            attributes: text(raw.attributes),
            raw: body.clone(),
        });
        kept.lock().unwrap().extend(spans);
    }
    b""
}

/// The spans right below one, in the order they began.
pub(crate) fn below<'a>(parent: &Span, all: &'a [Span]) -> Vec<&'a Span> {
    let mut found: Vec<&Span> =
        all.iter().filter(|span| span.parent == parent.id && span.trace == parent.trace).collect();
    found.sort_by_key(|span| span.begun);
    found
}
