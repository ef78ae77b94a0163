//! The daemon as a process of its own.

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::process::{Child, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::place::Place;
use super::web::{self, Reply};
use super::{eventually, golden};

/// A running daemon; killed when it is dropped.
#[derive(Debug)]
pub(crate) struct Daemon<'a> {
    place: &'a Place,
    child: Child,
    ended: bool,
}

impl Place {
    /// Starts a daemon that takes everything down when it is stopped, and
    /// waits until it serves.
    pub(crate) async fn daemon(&self, changes: &[(&str, &str)]) -> Daemon<'_> {
        self.serve(&["serve", "--ephemeral"], changes).await
    }

    /// Starts a daemon that leaves its instances to the next one.
    pub(crate) async fn lasting_daemon(&self, changes: &[(&str, &str)]) -> Daemon<'_> {
        self.serve(&["serve"], changes).await
    }

    async fn serve(&self, args: &[&str], changes: &[(&str, &str)]) -> Daemon<'_> {
        let _preparing = golden::only_one_prepares().await;
        let log = OpenOptions::new().create(true).append(true).open(self.dir.join("log")).unwrap();
        let mut command = self.program(args, changes);
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut daemon = Daemon { place: self, child, ended: false };
        eventually("the daemon serves", 120, async || {
            if let Some(status) = daemon.child.try_wait().unwrap() {
                daemon.ended = true;
                panic!("the daemon ended with {status}: {}", self.log());
            }
            match web::get(self.address(), "localhost", "/readyz").await {
                Ok(reply) if reply.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        daemon
    }

    /// What all daemons of this place have logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Daemon<'_> {
    pub(crate) fn address(&self) -> SocketAddr {
        self.place.address()
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// SIGTERM, and nothing of any instance is left.
    pub(crate) async fn stop(self) {
        let place = self.place;
        let status = self.end(Signal::SIGTERM).await;
        assert!(status.success(), "{status}: {}", place.log());
        // The kernel takes interfaces down in its own time.
        eventually("nothing is left", 10, async || place.nothing_is_left()).await;
    }

    /// SIGKILL: what a crash looks like.
    pub(crate) async fn kill(self) {
        self.end(Signal::SIGKILL).await;
    }

    /// Waits until it has died by itself.
    pub(crate) async fn dies(mut self) {
        eventually("the daemon dies", 20, async || {
            let ended = self.child.try_wait().unwrap();
            ended.map(|status| assert!(!status.success(), "{status}")).ok_or_else(|| "it runs".to_owned())
        })
        .await;
        self.ended = true;
    }

    async fn end(mut self, signal: Signal) -> ExitStatus {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
        let status = eventually("the daemon ends", 60, async || {
            self.child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())
        })
        .await;
        self.ended = true;
        status
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        web::get(self.address(), "localhost", path).await.unwrap()
    }

    /// POSTs an acquire; any answer.
    pub(crate) async fn try_acquire(&self, body: &Value) -> Reply {
        let headers = [("content-type", "application/json")];
        let body = body.to_string();
        web::send(self.address(), "POST", "localhost", "/api/v1/demo/acquire", &headers, &body).await.unwrap()
    }

    /// Acquires an instance from that source.
    pub(crate) async fn acquire(&self, source: &str) -> Shop {
        self.acquire_for(source, "1h").await
    }

    pub(crate) async fn acquire_for(&self, source: &str, ttl: &str) -> Shop {
        let shop = self.acquired(&json!({ "ttl": ttl })).await;
        assert_eq!(shop.answer["source"], source, "{}", shop.answer);
        shop
    }

    /// Acquires an instance, wherever it comes from.
    pub(crate) async fn acquire_any(&self) -> Shop {
        self.acquired(&json!({})).await
    }

    /// Acquires an instance of that golden.
    pub(crate) async fn acquire_of(&self, golden: &str) -> Shop {
        self.acquired(&json!({ "golden": golden, "ttl": "1h" })).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        let headers = [("content-type", "application/json")];
        web::send(self.address(), "POST", "localhost", path, &headers, &body.to_string()).await.unwrap()
    }

    /// Has a shop be kept; answers its key.
    pub(crate) async fn keep(&self, id: &str) -> String {
        let reply = self.post(&format!("/api/v1/demo/{id}/save"), &json!({})).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply.json()["key"].as_str().unwrap().to_owned()
    }

    /// Publishes what was kept of an instance, one of it to be ready; answers the task.
    pub(crate) async fn publish(&self, id: &str, golden: &str) -> Value {
        let body = json!({ "golden": golden, "title": "Spring sale", "pool": 1 });
        let begun = self.post(&format!("/api/v1/saved/{id}/publish"), &body).await;
        assert_eq!(begun.status, 202, "{}", begun.text());
        let task = format!("/api/v1/tasks/{}", begun.json()["number"]);
        eventually("it is published", 900, async || {
            let task = self.get(&task).await.json();
            if task["state"] == "running" { Err(task.to_string()) } else { Ok(task) }
        })
        .await
    }

    async fn acquired(&self, body: &Value) -> Shop {
        let reply = self.try_acquire(body).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        Shop::of(reply.json(), self)
    }

    pub(crate) async fn release(&self, id: &str) {
        let path = format!("/api/v1/demo/{id}");
        let reply = web::send(self.address(), "DELETE", "localhost", &path, &[], "").await.unwrap();
        assert_eq!(reply.status, 204, "{}", reply.text());
    }

    /// `/api/v1/pool/stats`.
    pub(crate) async fn stats(&self) -> Value {
        self.get("/api/v1/pool/stats").await.json()
    }

    /// Waits until that many instances wait in the pool.
    pub(crate) async fn pool_has(&self, ready: u64) {
        eventually("the pool is full", 60, async || {
            let stats = self.stats().await;
            match stats["goldens"][0]["states"]["ready"] == ready {
                true => Ok(()),
                false => Err(stats.to_string()),
            }
        })
        .await;
    }

    /// All instances that the daemon knows, sorted.
    pub(crate) async fn ids(&self) -> Vec<String> {
        let all = self.place.cli(&["ls", "--json"]).await.json();
        let mut ids: Vec<String> = all["instances"]
            .as_array()
            .unwrap()
            .iter()
            .map(|instance| instance["id"].as_str().unwrap().to_owned())
            .collect();
        ids.sort();
        ids
    }

    /// Waits until the daemon knows of no instance and none has left a trace.
    pub(crate) async fn holds_nothing(&self) {
        eventually("nothing is left", 20, async || {
            self.place.nothing_is_left()?;
            super::same(&self.ids().await, &Vec::new())
        })
        .await;
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if !self.ended {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// One acquired instance.
#[derive(Debug, Clone)]
pub(crate) struct Shop {
    pub(crate) answer: Value,
    address: SocketAddr,
}

impl Shop {
    /// The instance of that answer.
    pub(crate) fn of(answer: Value, daemon: &Daemon<'_>) -> Self {
        Self { answer, address: daemon.address() }
    }

    #[track_caller]
    pub(crate) fn text(&self, field: &str) -> &str {
        self.answer[field].as_str().unwrap_or_else(|| panic!("no {field}: {}", self.answer))
    }

    pub(crate) fn id(&self) -> &str {
        self.text("id")
    }

    /// Where the proxy is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// `host:port` of its url.
    pub(crate) fn host(&self) -> &str {
        self.text("url").trim_start_matches("http://").trim_end_matches('/')
    }

    /// A page through the proxy; any answer.
    pub(crate) async fn get(&self, path: &str) -> Reply {
        web::get(self.address, self.host(), path).await.unwrap()
    }

    /// The front page answers with the shop's title.
    pub(crate) async fn answers(&self) {
        let page = self.get("/").await;
        assert_eq!(page.status, 200, "{}", page.text());
        assert!(page.text().contains(golden::TITLE), "{}", page.text());
    }

    pub(crate) fn browser(&self) -> web::Browser {
        web::Browser::new(self.address, self.host())
    }
}
