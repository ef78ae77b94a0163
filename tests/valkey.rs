//! The store in a real Valkey: what any store holds, and what becomes of it when
//! the server dies, hangs, forgets, or is another one.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "valkey/access.rs"]
mod access;
#[path = "valkey/answers.rs"]
mod answers;
#[path = "valkey/changes.rs"]
mod changes;
mod common;
#[path = "valkey/daemons.rs"]
mod daemons;
#[path = "valkey/faults.rs"]
mod faults;
#[path = "valkey/server.rs"]
mod server;
#[path = "common/slow.rs"]
mod slow;
#[path = "valkey/strain.rs"]
mod strain;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use demo_multiplexer::config::{Config, SETTINGS, StoreAt, ValkeyAt, Values};
use demo_multiplexer::id::NodeName;
use demo_multiplexer::store::Store;
use demo_multiplexer::store::conformance::{self, Fixture, node};
use demo_multiplexer::store::valkey::{OpenValkeyError, ValkeyStore};
use server::Server;

/// The settings that lead to a server, checked.
fn at(changes: &[(&str, &str)]) -> ValkeyAt {
    let mut values: Values =
        SETTINGS.iter().map(|setting| (setting.name.to_owned(), setting.default.to_owned())).collect();
    for (name, value) in changes {
        values.insert((*name).to_owned(), (*value).to_owned());
    }
    match Config::check(&values).unwrap().store {
        StoreAt::Valkey(at) => at,
        StoreAt::Embedded(_) => panic!("no Valkey"),
    }
}

async fn open(at: &ValkeyAt, name: &NodeName) -> Result<Arc<dyn Store>, OpenValkeyError> {
    let patience = std::time::Duration::from_secs(10);
    Ok(Arc::new(ValkeyStore::open_within(at, name, "a-daemon", patience).await?))
}

/// Stores on one server, each with a prefix of its own.
struct Prefixes {
    server: tokio::sync::Mutex<Server>,
    at: ValkeyAt,
    number: AtomicUsize,
    /// Whether a new daemon finds the server killed and started again.
    kill: bool,
}

impl Prefixes {
    fn new(server: Server, kill: bool) -> Self {
        let at = at(&[("STORE_URL", &server.url())]);
        Self { server: tokio::sync::Mutex::new(server), at, number: AtomicUsize::new(0), kill }
    }

    fn present(&self) -> ValkeyAt {
        ValkeyAt { prefix: format!("test-{}", self.number.load(Ordering::SeqCst)), ..self.at.clone() }
    }
}

#[async_trait]
impl Fixture for Prefixes {
    async fn fresh(&self) -> Arc<dyn Store> {
        self.number.fetch_add(1, Ordering::SeqCst);
        open(&self.present(), &node("here")).await.unwrap()
    }

    async fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        drop(store);
        if self.kill {
            let mut server = self.server.lock().await;
            server.kill();
            server.start_again().await;
        }
        open(&self.present(), &node("here")).await.unwrap()
    }

    async fn beside(&self, _: &Arc<dyn Store>, name: &NodeName) -> Option<Arc<dyn Store>> {
        Some(open(&self.present(), name).await.unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_valkey_store_conforms() {
    if server::is_there("the_valkey_store_conforms") {
        conformance::suite(&Prefixes::new(Server::start().await, false)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_there_after_the_servers_death() {
    if server::is_there("what_was_answered_is_there_after_the_servers_death") {
        // Else it puts off writing while its disk is busy.
        let always = ["--appendonly", "yes", "--appendfsync", "always"];
        conformance::suite(&Prefixes::new(Server::with(&always).await, true)).await;
    }
}
