//! A daemon on a scripted engine, and a client for it.

// Each test binary uses its own part of this file.
#![allow(dead_code)]

pub(crate) mod edge;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use demo_multiplexer::app::{App, AppError, OnExit, StateLock, Stock};
use demo_multiplexer::config::{Config, SETTINGS, Values};
use demo_multiplexer::instance::EngineKind;
use demo_multiplexer::promote::Workshop;
use demo_multiplexer::provision::GoldenRuntime;
use demo_multiplexer::shutdown::Phase;
use demo_multiplexer::testing::workshop::ScriptedWorkshop;
use demo_multiplexer::testing::{Script, eventually, runtime, runtime_of};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// A running daemon.
pub(crate) struct Daemon {
    pub(crate) address: SocketAddr,
    /// ADMIN_LISTEN's.
    pub(crate) admin: Option<SocketAddr>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), AppError>>,
}

/// A state directory and the host behind it, which outlive daemons.
pub(crate) struct Host {
    dir: tempfile::TempDir,
    pub(crate) restore: Arc<Script>,
    pub(crate) cold: Arc<Script>,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            restore: Script::quiet(EngineKind::Criu),
            cold: Script::quiet(EngineKind::Podman),
        }
    }

    /// A host whose restored shops all answer there.
    pub(crate) fn with_shops_at(upstream: impl Into<SocketAddr>) -> Self {
        let SocketAddr::V4(upstream) = upstream.into() else { panic!("IPv4") };
        Self { restore: Script::new(EngineKind::Criu, upstream), ..Self::new() }
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Has an instance's shop be kept, as far as its record goes.
    pub(crate) fn keep(&self, id: &str) {
        let dir = self.state_dir().join("saved").join(id);
        std::fs::create_dir_all(&dir).unwrap();
        let archive = serde_json::json!({ "blake3": "0".repeat(64), "bytes": 1 << 20, "raw_bytes": 2 << 20 });
        let record = serde_json::json!({
            "version": 1, "id": id, "golden": "shop", "snapshot": "shop-1-aaaa",
            "saved_at": "2026-01-01T00:00:00Z", "until": "2126-01-01T00:00:00Z", "key": "0".repeat(64),
            "access": {
                "url": format!("http://{id}.localhost/"), "admin_url": "http://localhost/admin",
                "admin_email": "x@example.com", "admin_password": "secret",
            },
            "memory": archive, "files": archive,
        });
        std::fs::write(dir.join("saved.json"), record.to_string()).unwrap();
    }

    /// The default settings with those changes, on a free port.
    pub(crate) fn config(&self, changes: &[(&str, &str)]) -> Config {
        let mut values: Values =
            SETTINGS.iter().map(|setting| (setting.name.to_owned(), setting.default.to_owned())).collect();
        let state_dir = self.state_dir();
        let own = [
            ("LISTEN", "127.0.0.1:0"),
            ("PUBLIC_PORT", "8080"),
            ("STATE_DIR", state_dir.to_str().unwrap()),
            ("POOL_TARGET_SIZE", "0"),
            ("RESTORE_CONCURRENCY", "2"),
        ];
        for (name, value) in own.iter().chain(changes) {
            values.insert((*name).to_owned(), (*value).to_owned());
        }
        Config::check(&values).unwrap()
    }

    pub(crate) fn goldens(&self) -> Vec<GoldenRuntime> {
        vec![runtime("shop", &self.restore, Some(&self.cold)), runtime("other", &self.restore, None)]
    }

    pub(crate) async fn build(&self, changes: &[(&str, &str)], on_exit: OnExit) -> Result<App, AppError> {
        let config = self.config(changes);
        let lock = StateLock::take(&config)?;
        App::build(config, lock, self.goldens(), on_exit).await
    }

    /// A daemon that serves.
    pub(crate) async fn start(&self, changes: &[(&str, &str)]) -> Daemon {
        self.start_with(changes, OnExit::KeepInstances).await
    }

    /// A daemon that serves the golden `shop` from a snapshot of that workshop's.
    pub(crate) async fn start_serving(
        &self,
        snapshot: &str,
        workshop: &Arc<ScriptedWorkshop>,
        changes: &[(&str, &str)],
    ) -> Daemon {
        self.start_stock(vec![runtime_of(snapshot, "shop", &self.restore)], workshop, changes).await
    }

    /// A daemon whose golden `shop` has no snapshot, and that serves another one beside it.
    pub(crate) async fn start_booting(
        &self,
        workshop: &Arc<ScriptedWorkshop>,
        changes: &[(&str, &str)],
    ) -> Daemon {
        let mut goldens = self.goldens();
        goldens[0].restore = Err("no snapshot of it is there".into());
        self.start_stock(goldens, workshop, changes).await
    }

    /// A daemon that serves those goldens.
    pub(crate) async fn start_stock(
        &self,
        goldens: Vec<GoldenRuntime>,
        workshop: &Arc<ScriptedWorkshop>,
        changes: &[(&str, &str)],
    ) -> Daemon {
        let config = self.config(changes);
        let lock = StateLock::take(&config).unwrap();
        let workshop = Some(Arc::clone(workshop) as Arc<dyn Workshop>);
        let stock = Stock { workshop, ..Stock::from(goldens) };
        Self::run(App::build(config, lock, stock, OnExit::KeepInstances).await.unwrap()).await
    }

    pub(crate) async fn start_with(&self, changes: &[(&str, &str)], on_exit: OnExit) -> Daemon {
        Self::run(self.build(changes, on_exit).await.unwrap()).await
    }

    pub(crate) async fn run(app: App) -> Daemon {
        let (address, mut phase, stop) = (app.address().unwrap(), app.phase(), CancellationToken::new());
        let admin = app.admin_address().unwrap();
        let task = tokio::spawn(app.run(stop.clone()));
        phase.wait_for(|phase| *phase == Phase::Serving).await.unwrap();
        Daemon { address, admin, stop, task }
    }
}

impl Daemon {
    /// Stops it as SIGTERM does and waits until it is gone.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], body).await
    }

    pub(crate) async fn acquire(&self) -> Answer {
        self.post("/api/v1/demo/acquire", "").await
    }

    /// The task that an answer says was begun, when it has ended.
    pub(crate) async fn ended(&self, begun: &Answer) -> Value {
        assert_eq!(begun.status, 202, "{}", begun.text());
        let path = begun.headers["location"].to_str().unwrap();
        eventually("the task ends", async || {
            let task = self.get(path).await.json();
            (task["state"] != "running").then_some(task)
        })
        .await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        send_to(self.address, method, path, headers, body).await
    }

    /// The numbers of `/api/v1/pool/stats` for the first golden.
    pub(crate) async fn states(&self) -> Value {
        self.get("/api/v1/pool/stats").await.json()["goldens"][0]["states"].clone()
    }
}

/// Sends one request to the API and reads the whole answer.
pub(crate) async fn send_to(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "localhost:8080");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = send(address, request.body(Body::from(body.to_owned())).unwrap()).await;
    Answer::read(response).await
}

/// Sends one request on a connection of its own.
pub(crate) async fn send(address: SocketAddr, request: Request<Body>) -> Response<Incoming> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.unwrap()
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) async fn read(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Self { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The detail of a problem of that status.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16) -> String {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        assert_eq!(self.headers["content-type"], "application/problem+json", "{}", self.text());
        let problem = self.json();
        assert_eq!(problem["status"], status);
        assert_eq!(problem["request_id"], self.headers["x-request-id"].to_str().unwrap());
        for field in ["type", "title", "detail"] {
            assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {problem}");
        }
        problem["detail"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(crate) fn id(&self) -> String {
        self.json()["id"].as_str().unwrap_or_else(|| panic!("no id: {}", self.text())).to_owned()
    }
}

/// Whether a directory has nothing of an instance; the store and the lock stay.
pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
