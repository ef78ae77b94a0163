//! Of its own records a daemon reads only what has changed. It misses nothing, whatever
//! becomes of the server in between.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use demo_multiplexer::instance::{Instance, State};
use demo_multiplexer::store::Store;
use demo_multiplexer::store::conformance::{golden, instance, node};

use crate::server::{self, Server};
use crate::{at, open};

/// What the store has of a node's, read by one that reads it for the first time.
async fn truth(store: &dyn Store) -> BTreeMap<String, String> {
    let all = store.list().await.unwrap();
    texts(all.into_iter().filter(|one| one.node == *store.node()).collect())
}

fn texts(all: Vec<Arc<Instance>>) -> BTreeMap<String, String> {
    all.into_iter().map(|one| (one.id.to_string(), one.to_record().unwrap())).collect()
}

/// What the store has is what the daemon reads, now.
async fn sees_all(store: &dyn Store) {
    assert_eq!(texts(store.own().await.unwrap()), truth(store).await);
}

async fn add(store: &dyn Store, count: i64) -> Vec<Instance> {
    let mut added = Vec::new();
    for second in 0..count {
        let mut new = instance(&golden("shop"), State::Ready, second);
        new.node = node("here");
        added.push(store.insert(new).await.unwrap());
    }
    added
}

/// As when somebody releases it.
async fn end(store: &dyn Store, instance: &Instance) {
    let mut over = store.get(&instance.id).await.unwrap().unwrap();
    over.state = State::Expired;
    store.update(over).await.unwrap();
}

struct World {
    server: Server,
    here: Arc<dyn Store>,
    there: Arc<dyn Store>,
}

impl World {
    async fn start() -> Self {
        let server = Server::start().await;
        let at = at(&[("STORE_URL", &server.url())]);
        let here = open(&at, &node("here")).await.unwrap();
        let there = open(&at, &node("there")).await.unwrap();
        Self { server, here, there }
    }

    fn files(&self) -> std::path::PathBuf {
        self.server.dir().join("appendonlydir")
    }

    /// The server is again what it was when that copy was made.
    async fn go_back_to(&mut self, copy: &Path) {
        self.server.kill();
        std::fs::remove_dir_all(self.files()).unwrap();
        std::fs::rename(copy, self.files()).unwrap();
        self.server.start_again().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lost_its_last_writes_is_read_whole() {
    if !server::is_there("a_server_that_lost_its_last_writes_is_read_whole") {
        return;
    }
    let mut world = World::start().await;
    let made = add(&*world.here, 6).await;
    sees_all(&*world.here).await;
    let copy = world.server.dir().join("copy");
    crate::faults::copy_files(&world.files(), &copy);
    for one in &made[..3] {
        end(&*world.there, one).await;
    }
    sees_all(&*world.here).await;
    // What takes over lacks those, and others are made there before it is read.
    world.go_back_to(&copy).await;
    for one in &made[3..] {
        end(&*world.there, one).await;
    }
    world.there.remove(&made[5].id).await.unwrap();
    sees_all(&*world.here).await;

    world.server.run(&["FLUSHALL"]).await;
    add(&*world.there, 2).await;
    sees_all(&*world.here).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_lost_is_made_up_for() {
    if !server::is_there("an_answer_that_was_lost_is_made_up_for") {
        return;
    }
    let world = World::start().await;
    let made = add(&*world.here, 2).await;
    sees_all(&*world.here).await;
    end(&*world.there, &made[0]).await;
    // It is done, and nobody hears of it.
    world.server.pause();
    let reading = tokio::time::timeout(Duration::from_millis(200), world.here.own());
    assert!(reading.await.is_err(), "its command lies in the socket");
    world.server.resume();
    sees_all(&*world.here).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reading_costs_what_has_changed_and_not_what_there_is() {
    if !server::is_there("a_reading_costs_what_has_changed_and_not_what_there_is") {
        return;
    }
    let world = World::start().await;
    let made = add(&*world.here, 300).await;
    sees_all(&*world.here).await;
    end(&*world.there, &made[7]).await;
    let sent = || async {
        let redis::Value::BulkString(info) = world.server.run(&["INFO", "stats"]).await else {
            panic!("a text")
        };
        let info = String::from_utf8(info).unwrap();
        let line = info
            .lines()
            .find_map(|line| line.trim().strip_prefix("total_net_output_bytes:").map(str::to_owned));
        line.unwrap().parse::<u64>().unwrap()
    };
    let asking = sent().await;
    let asking = sent().await - asking;
    let before = sent().await;
    for _ in 0..10 {
        world.here.own().await.unwrap();
    }
    let cost = sent().await - before - asking;
    // Three hundred records would be a hundred thousand bytes each time.
    assert!(cost < 10_000, "{cost} bytes for ten readings and one change");
    sees_all(&*world.here).await;
}
