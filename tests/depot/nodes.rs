//! Three daemons that serve what is promoted at one of them: on scripted workshops, whose
//! snapshots travel through a real NATS.

use std::sync::Arc;

use demo_multiplexer::engine::Phase;
use demo_multiplexer::error::ErrorKind;
use demo_multiplexer::id::SnapshotId;
use demo_multiplexer::instance::EngineKind;
use demo_multiplexer::snapshot::depot::{Shared, Standing};
use demo_multiplexer::testing::workshop::{ScriptedWorkshop, Travels};
use demo_multiplexer::testing::{Script, eventually};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::common::{self, Daemon};
use crate::server::{self, Server};
use crate::{Host, depot, noise};

const SNAPSHOTS: &str = "/api/v1/snapshots";
pub(crate) const OLD: &str = "shop-1-aaaa";
pub(crate) const NEW: &str = "shop-2-bbbb";

/// A daemon that serves OLD.
pub(crate) struct Node {
    pub(crate) files: Host,
    pub(crate) daemon: Daemon,
    /// What its own shops run on, which outlives the daemon.
    pub(crate) host: common::Host,
    pub(crate) workshop: Arc<ScriptedWorkshop>,
    /// Makes the shops of what comes from others.
    pub(crate) new: Arc<Script>,
}

impl Node {
    /// `first` has taken OLD and sent it; none: it is the first one.
    pub(crate) async fn start(nats: &Server, first: Option<&Self>) -> Self {
        let (files, host) = (Host::new(), common::Host::new());
        let (depot, _) = depot(nats).await;
        let catalog = match first {
            Some(first) => {
                let catalog = files.catalog(&[&first.files]);
                depot.fetch(&catalog, &OLD.parse().unwrap()).await.unwrap();
                catalog
            }
            None => {
                files.take(OLD, b"old");
                files.take(NEW, &noise(4));
                let catalog = files.catalog(&[]);
                depot.send(&catalog, &OLD.parse().unwrap()).await.unwrap();
                catalog
            }
        };
        let new = Script::quiet(EngineKind::Criu);
        let workshop = ScriptedWorkshop::sharing(Travels { depot, catalog, script: Arc::clone(&new) });
        workshop.add(OLD, "shop", &host.restore);
        if first.is_none() {
            workshop.add(NEW, "shop", &new);
        }
        let daemon = host.start_serving(OLD, &workshop, &[("POOL_TARGET_SIZE", "1")]).await;
        Self { files, daemon, host, workshop, new }
    }

    /// One that has no snapshot, so that it boots its golden; it trusts `first`.
    async fn start_bare(nats: &Server, first: &Self) -> Self {
        let (files, host, new) = (Host::new(), common::Host::new(), Script::quiet(EngineKind::Criu));
        let (depot, _) = depot(nats).await;
        let catalog = files.catalog(&[&first.files]);
        let workshop = ScriptedWorkshop::sharing(Travels { depot, catalog, script: Arc::clone(&new) });
        let daemon = host.start_booting(&workshop, &[]).await;
        Self { files, daemon, host, workshop, new }
    }

    async fn promote(&self, id: &str) -> Value {
        self.daemon.ended(&self.daemon.post(&format!("{SNAPSHOTS}/{id}/promote"), "").await).await
    }

    /// Waits until it serves that one, and its pool is of it.
    pub(crate) async fn serves(&self, id: &str) {
        eventually("it is served, and nothing else is ready", async || {
            let ready = self.daemon.get("/api/v1/demo?state=ready").await.json();
            let ready = ready["instances"].as_array().unwrap();
            let only = ready.iter().all(|one| one["snapshot"] == id) && ready.len() == 1;
            (only && self.served().await == json!([id])).then_some(())
        })
        .await;
    }

    pub(crate) async fn served(&self) -> Value {
        let all = self.daemon.get(SNAPSHOTS).await.json();
        let served = all["snapshots"].as_array().unwrap().iter().filter(|one| one["served"] == true);
        served.map(|one| one["id"].clone()).collect()
    }

    /// What it did because of the others, the newest first.
    pub(crate) async fn followed(&self) -> Vec<Value> {
        let tasks = self.daemon.get("/api/v1/tasks").await.json();
        let tasks = tasks["tasks"].as_array().unwrap().iter();
        tasks.filter(|task| task["kind"] == "follow" && task["state"] != "running").cloned().collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_promoted_at_one_node_is_served_by_all_whose_trial_shop_is_good() {
    if !server::is_there("what_is_promoted_at_one_node_is_served_by_all_whose_trial_shop_is_good") {
        return;
    }
    let nats = Server::start();
    let a = Node::start(&nats, None).await;
    let (b, c) = (Node::start(&nats, Some(&a)).await, Node::start(&nats, Some(&a)).await);
    c.new.fail_make(Some((Phase::Probe, ErrorKind::Bug)));
    for node in [&a, &b, &c] {
        node.serves(OLD).await;
    }
    let bare = Node::start_bare(&nats, &a).await;
    assert_eq!(bare.daemon.acquire().await.json()["source"], "cold");

    let task = a.promote(NEW).await;
    assert!(task["result"].as_str().unwrap().ends_with("the other nodes are told"), "{task}");
    b.serves(NEW).await;
    b.files.catalog(&[&a.files]).verify(&NEW.parse().unwrap()).unwrap();
    eventually("who had none has it too", async || (bare.served().await == json!([NEW])).then_some(())).await;
    // From its pool, if that was filled by now.
    assert_ne!(bare.daemon.acquire().await.json()["source"], "cold");
    let refusal = eventually("the one whose trial shop is no good says so", async || {
        c.followed().await.into_iter().next()
    })
    .await;
    let error = refusal["error"].as_str().unwrap();
    assert!(error.contains("is refused") && error.contains(&format!("{OLD} is served on")), "{error}");
    c.serves(OLD).await;
    assert_eq!(c.daemon.acquire().await.status, 201, "its visitors notice nothing");
    assert!(c.new.traces().is_empty(), "nothing of the trial is left");

    // An operator has second thoughts, at another node.
    b.promote(OLD).await;
    a.serves(OLD).await;
    b.serves(OLD).await;
    eventually("it follows the others", async || (bare.served().await == json!([OLD])).then_some(())).await;
    assert_eq!(c.followed().await.len(), 1, "what was refused was not tried again");
    for node in [a, b, c, bare] {
        node.daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_promoted_while_nats_was_away_is_told_later() {
    if !server::is_there("what_was_promoted_while_nats_was_away_is_told_later") {
        return;
    }
    let mut nats = Server::start();
    let a = Node::start(&nats, None).await;
    let b = Node::start(&nats, Some(&a)).await;
    a.promote(OLD).await;
    nats.kill();
    // It is served here whatever becomes of NATS.
    let begun = a.daemon.post(&format!("{SNAPSHOTS}/{NEW}/promote"), "").await;
    assert_eq!(begun.status, 202, "{}", begun.text());
    a.serves(NEW).await;
    nats.start_again();
    b.serves(NEW).await;
    for node in [a, b] {
        node.daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_served_somewhere_is_not_removed_for_all() {
    if !server::is_there("what_is_served_somewhere_is_not_removed_for_all") {
        return;
    }
    let (nats, here) = (Server::start(), Host::new());
    let (depot, _) = depot(&nats).await;
    let (old, new) = (here.take(OLD, b"old"), here.take(NEW, b"new"));
    let golden = "shop".parse().unwrap();
    assert_eq!(depot.served(&golden).await.unwrap(), None);
    let promoted = |id: &SnapshotId, second| {
        let at = Timestamp::from_second(second).unwrap();
        Shared { snapshot: id.clone(), at, standing: Standing::Promoted }
    };
    for (second, id) in [(5, &old), (7, &new)] {
        depot.send(&here.catalog(&[]), id).await.unwrap();
        let said = promoted(id, second);
        depot.serve(&golden, &said).await.unwrap();
        assert_eq!(depot.served(&golden).await.unwrap(), Some(said));
    }
    depot.serve(&golden, &promoted(&old, 6)).await.unwrap();
    let last = depot.served(&golden).await.unwrap().unwrap().snapshot;
    assert_eq!(last, new, "the last one that was promoted counts");
    depot.remove(&[old, new.clone()]).await.unwrap();
    assert_eq!(depot.list().await.unwrap(), [new]);
}
