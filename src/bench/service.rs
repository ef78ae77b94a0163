//! The service's ways: acquire over HTTP, the page through the built-in proxy.
//!
//! A whole daemon runs in this process, on a port and a store of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{BenchError, Timing, until_200};
use crate::app::{App, OnExit, StateLock};
use crate::assemble::{self, Host};
use crate::config::{Config, StoreAt, ValkeyAt};
use crate::engine::ContainerEngine;
use crate::restore::probe;

/// One page through the proxy.
const PAGE_DEADLINE: Duration = Duration::from_secs(30);

/// How long the pool may take to fill again.
const FILL_DEADLINE: Duration = Duration::from_secs(120);

/// A daemon in this process.
#[derive(Debug)]
pub struct Service {
    address: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    config: Arc<Config>,
    contains: String,
    path: String,
    host: Host,
    engines: Vec<Arc<dyn ContainerEngine>>,
    stop: CancellationToken,
    running: JoinHandle<anyhow::Result<()>>,
    filling: JoinHandle<()>,
}

impl Service {
    /// Starts a daemon for the first golden of the settings.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(base: &Config, pool_target: usize) -> anyhow::Result<Self> {
        let mut config = base.clone();
        config.pool_target_size = pool_target;
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.store = match config.store {
            StoreAt::Embedded(_) => StoreAt::Embedded(config.state_dir.join("bench.redb")),
            // Beside a daemon's own records.
            StoreAt::Valkey(at) => StoreAt::Valkey(ValkeyAt { prefix: format!("{}-bench", at.prefix), ..at }),
        };
        config.goldens.truncate(1);
        let name = config.goldens.first().context("no golden is named")?.clone();
        let lock = StateLock::take(&config)?;
        let host = Host::open(&config).await?;
        let shared = Arc::new(config.clone());
        let golden = assemble::golden(&name, &shared, &host).await?;
        let engines = golden.runtime.engines();
        let app = App::build(config, lock, vec![golden.runtime], OnExit::DestroyInstances).await?;
        let address = app.address()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let running = tokio::spawn(async move { Ok(app.run(stopped).await?) });
        host.engines.add(engines.clone());
        let (slots, filled) = (Arc::clone(&host.slots), host.engines.clone());
        let filling = tokio::spawn(assemble::keep_filled(slots, filled, stop.clone()));
        let service = Self {
            address,
            client: Client::builder(TokioExecutor::new()).build(HttpConnector::new()),
            config: shared,
            contains: golden.recipe.ready.contains.clone(),
            path: golden.recipe.ready.path.clone(),
            host,
            engines,
            stop,
            running,
            filling,
        };
        service.wait_until_full().await?;
        Ok(service)
    }

    /// The daemon's address with a path.
    pub(super) fn uri(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The host name of an instance.
    pub(super) fn host_of(&self, id: &str) -> String {
        self.config.host_of(id)
    }

    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> anyhow::Result<Response<Incoming>> {
        Ok(self.client.request(request).await?)
    }

    pub(super) async fn call(&self, method: Method, path: &str) -> anyhow::Result<Value> {
        let request = Request::builder().method(method).uri(self.uri(path)).body(Full::new(Bytes::new()))?;
        let response = self.send(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            bail!("{path} answers {status}: {}", String::from_utf8_lossy(&body));
        }
        if body.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_slice(&body)?) }
    }

    /// Returns when the pool has its target, nothing is being taken down and slots
    /// wait again, so that the next iteration does not share the machine with what
    /// the last one left to do.
    ///
    /// # Errors
    /// When it does not fill.
    pub async fn wait_until_full(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + FILL_DEADLINE;
        loop {
            let (ready, ending) = match self.call(Method::GET, "/api/v1/pool/stats").await {
                Ok(stats) => {
                    let count = |state: &str| stats["goldens"][0]["states"][state].as_u64().unwrap_or(0);
                    (count("ready"), count("expired") + count("failed"))
                }
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => (0, 0),
            };
            if usize::try_from(ready)? >= self.config.pool_target_size && ending == 0 {
                return assemble::fill(&self.host.slots, &self.engines).await;
            }
            if Instant::now() > deadline {
                bail!(
                    "the pool has {ready} instances instead of {}, and {ending} are being taken down",
                    self.config.pool_target_size
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Acquires an instance, fetches its front page, and releases it.
    ///
    /// # Errors
    /// When the service refuses, or hands out from elsewhere than `source`.
    pub async fn once(&self, source: &str) -> anyhow::Result<Timing> {
        let begun = Instant::now();
        let answer = self.call(Method::POST, "/api/v1/demo/acquire").await?;
        let running = begun.elapsed();
        let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
        if text("source") != source {
            bail!("the instance came from {:?}, not from {source:?}", text("source"));
        }
        let id = text("id");
        let host = self.config.host_of(&id);
        let page = || probe::get(self.address, &host, &self.path, PAGE_DEADLINE);
        let first_200 = until_200(begun, &self.contains, page).await?;
        self.call(Method::DELETE, &format!("/api/v1/demo/{id}")).await?;
        Ok(Timing { running, first_200 })
    }

    /// Acquires and releases, without a page: the time to the answer.
    ///
    /// # Errors
    /// As [`Service::once`].
    pub async fn acquire(&self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let answer = self.call(Method::POST, "/api/v1/demo/acquire").await?;
        let took = begun.elapsed();
        self.call(Method::DELETE, &format!("/api/v1/demo/{}", answer["id"].as_str().unwrap_or_default()))
            .await?;
        Ok(took)
    }

    /// Stops the daemon; nothing is left.
    ///
    /// # Errors
    /// When it did not end well.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        self.running.await??;
        self.filling.await?;
        if let Some(failed) = assemble::drain(&self.host.slots, &self.engines).await.into_iter().next() {
            return Err(failed.into());
        }
        match std::fs::remove_file(self.config.state_dir.join("bench.redb")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl From<anyhow::Error> for BenchError {
    fn from(error: anyhow::Error) -> Self {
        Self::Acquire(error.into())
    }
}
