//! A receiver of webhooks that answers as it is told, can go away and come back.

// Each test binary uses its own part of this file.
#![allow(dead_code)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use demo_multiplexer::testing::eventually;
use hmac::{Hmac, Mac as _};
use http::{HeaderMap, StatusCode, Uri, header};
use serde_json::Value;
use sha2::Sha256;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What signs in these tests.
pub(crate) const SECRET: &str = "0123456789abcdef";

/// One answer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reply {
    Status(u16),
    /// To another page of this receiver.
    Redirect,
    /// None, ever.
    Hang,
}

/// What came.
#[derive(Debug, Clone)]
pub(crate) struct Came {
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) taken: bool,
}

impl Came {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    pub(crate) fn event(&self) -> String {
        self.json()["event"].as_str().unwrap().to_owned()
    }

    /// What everybody's HMAC makes of body and time.
    pub(crate) fn is_signed_with(&self, secret: &str) -> bool {
        let signature = self.header("x-demo-multiplexer-signature");
        let (time, mac) = signature.strip_prefix("t=").and_then(|rest| rest.split_once(",v1=")).unwrap();
        let mut own = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        own.update(format!("{time}.").as_bytes());
        own.update(&self.body);
        let own: String = own.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        own == mac
    }
}

#[derive(Debug, Default)]
struct Script {
    replies: VecDeque<Reply>,
    came: Vec<Came>,
}

/// The receiver.
#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    script: Arc<Mutex<Script>>,
    serving: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Receiver {
    /// One that listens and takes everything.
    pub(crate) async fn start() -> Self {
        let mut receiver = Self::away().await;
        receiver.come().await;
        receiver
    }

    /// One whose address nobody listens at yet.
    pub(crate) async fn away() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { address: listener.local_addr().unwrap(), script: Arc::default(), serving: None }
    }

    pub(crate) async fn come(&mut self) {
        let listener = tokio::net::TcpListener::bind(self.address).await.unwrap();
        let router = Router::new().fallback(take).with_state(Arc::clone(&self.script));
        let gone = CancellationToken::new();
        let until = gone.clone().cancelled_owned();
        let task = tokio::spawn(async move {
            axum::serve(listener, router).with_graceful_shutdown(until).await.unwrap();
        });
        self.serving = Some((gone, task));
    }

    /// Goes away, with its connections.
    pub(crate) async fn leave(&mut self) {
        let (gone, task) = self.serving.take().unwrap();
        gone.cancel();
        task.await.unwrap();
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/hook?token=hush", self.address)
    }

    /// What the next requests are answered; 204 after that.
    pub(crate) fn reply(&self, replies: &[Reply]) {
        self.script.lock().unwrap().replies.extend(replies);
    }

    pub(crate) fn came(&self) -> Vec<Came> {
        self.script.lock().unwrap().came.clone()
    }

    /// Waits until it has taken so many; answers them.
    pub(crate) async fn taken(&self, count: usize) -> Vec<Came> {
        eventually("the receiver is told", async || {
            let taken: Vec<Came> = self.came().into_iter().filter(|it| it.taken).collect();
            (taken.len() >= count).then_some(taken)
        })
        .await
    }

    /// The words of what it has taken.
    pub(crate) async fn events(&self, count: usize) -> Vec<String> {
        self.taken(count).await.iter().map(Came::event).collect()
    }
}

async fn take(
    State(script): State<Arc<Mutex<Script>>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let reply = {
        let mut script = script.lock().unwrap();
        let reply = script.replies.pop_front().unwrap_or(Reply::Status(204));
        let taken = matches!(reply, Reply::Status(200..=299));
        script.came.push(Came { path: uri.path().to_owned(), headers, body, taken });
        reply
    };
    match reply {
        Reply::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Reply::Redirect => {
            (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, "/elsewhere")]).into_response()
        }
        Reply::Hang => std::future::pending().await,
    }
}
