//! Jobs and events over a real NATS server: what any job queue holds, and what
//! becomes of a daemon when the server dies, hangs, forgets, or was never there.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;
#[path = "nats/events.rs"]
mod events;
#[path = "nats/faults.rs"]
mod faults;
#[path = "nats/server.rs"]
mod server;
#[path = "common/slow.rs"]
mod slow;
#[path = "nats/strain.rs"]
mod strain;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_trait::async_trait;
use common::{Daemon, Host};
use demo_multiplexer::config::{Config, NatsConfig, SETTINGS, Values};
use demo_multiplexer::engine::Phase;
use demo_multiplexer::error::ErrorKind;
use demo_multiplexer::id::NodeName;
use demo_multiplexer::jobs::conformance::{self, Fixture};
use demo_multiplexer::jobs::jetstream::{self, JetStreamQueue};
use demo_multiplexer::jobs::{Job, JobQueue, Kind, Verdict};
use demo_multiplexer::nats::Nats;
use demo_multiplexer::testing::eventually;
use futures_util::StreamExt as _;
use serde_json::Value;
use server::Server;

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

/// The settings that lead to a server, checked.
fn settings(changes: &[(&str, &str)]) -> NatsConfig {
    let mut values: Values =
        SETTINGS.iter().map(|setting| (setting.name.to_owned(), setting.default.to_owned())).collect();
    for (name, value) in changes {
        values.insert((*name).to_owned(), (*value).to_owned());
    }
    Config::check(&values).unwrap().nats.unwrap()
}

/// A queue of a node with that prefix, ready for use.
async fn queue(server: &Server, prefix: &str, of: &str) -> JetStreamQueue {
    let settings = settings(&[("NATS_URL", &server.url()), ("NATS_PREFIX", prefix)]);
    let nats = Nats::open(&settings, &node(of), jetstream::streams(prefix)).await.unwrap();
    nats.up().await;
    JetStreamQueue::new(Arc::new(nats), prefix, node(of))
}

/// A client of the test's own.
async fn client(server: &Server) -> async_nats::jetstream::Context {
    async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

/// All that is in a stream now, in order: subject and message.
async fn kept(server: &Server, stream: &str) -> Vec<(String, Value)> {
    let context = client(server).await;
    let config = pull::Config { deliver_policy: DeliverPolicy::All, ..pull::Config::default() };
    let consumer = context.create_consumer_on_stream(config, stream).await.unwrap();
    let mut messages = Vec::new();
    let mut batch = consumer.fetch().max_messages(100_000).messages().await.unwrap();
    while let Some(Ok(message)) = batch.next().await {
        let body = serde_json::from_slice(&message.payload).unwrap();
        messages.push((message.subject.to_string(), body));
    }
    // It would stay for seconds, and a stream has places for so many only.
    context.delete_consumer_from_stream(&consumer.cached_info().name, stream).await.unwrap();
    messages
}

/// How many jobs wait or are in hand.
async fn jobs_left(server: &Server) -> u64 {
    let context = client(server).await;
    let stream = context.get_stream("demo-multiplexer-jobs").await.unwrap();
    stream.cached_info().state.messages
}

async fn link_is(daemon: &Daemon, queue: &str) {
    eventually(&format!("jobs go over {queue}"), async || {
        (daemon.get("/health").await.json()["jobs"]["queue"] == queue).then_some(())
    })
    .await;
}

async fn pool_has(daemon: &Daemon, ready: usize) {
    eventually("the pool is full", async || (daemon.states().await["ready"] == ready).then_some(())).await;
}

struct Prefixes {
    server: Server,
    number: AtomicUsize,
    now: Mutex<String>,
}

#[async_trait]
impl Fixture for Prefixes {
    async fn fresh(&self) -> Arc<dyn JobQueue> {
        let prefix = format!("test-{}", self.number.fetch_add(1, Ordering::SeqCst));
        self.now.lock().unwrap().clone_from(&prefix);
        Arc::new(queue(&self.server, &prefix, "here").await.with_ack_wait(Duration::from_secs(1)))
    }

    async fn dead(&self, _: &Arc<dyn JobQueue>) -> Vec<String> {
        let prefix = self.now.lock().unwrap().clone();
        let letters = kept(&self.server, &format!("{prefix}-dead")).await;
        letters.iter().map(|(_, letter)| letter["reason"].as_str().unwrap().to_owned()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_jetstream_queue_conforms() {
    if server::is_there("the_jetstream_queue_conforms") {
        let (number, now) = (AtomicUsize::new(0), Mutex::default());
        conformance::suite(&Prefixes { server: Server::start(), number, now }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_its_own_jobs_only() {
    if !server::is_there("a_node_gets_its_own_jobs_only") {
        return;
    }
    let server = Server::start();
    // A host name with dots, and what it must not be taken for.
    let (one, other) = (queue(&server, "p", "shop.example").await, queue(&server, "p", "shop-example").await);
    let mine = Job::provision("shop".parse().unwrap());
    one.submit(&mine).await.unwrap();
    let came = tokio::time::timeout(Duration::from_millis(500), other.next(Kind::Provision)).await;
    assert!(came.is_err(), "{came:?}");
    assert_eq!(one.next(Kind::Provision).await.job, mine);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_keeps_its_pool_by_jobs_over_nats() {
    if !server::is_there("a_daemon_keeps_its_pool_by_jobs_over_nats") {
        return;
    }
    let (server, host) = (Server::start(), Host::new());
    let daemon = host.start(&[("NATS_URL", &server.url()), ("POOL_TARGET_SIZE", "3")]).await;
    link_is(&daemon, "nats").await;
    pool_has(&daemon, 3).await;
    let id = daemon.acquire().await.id();
    pool_has(&daemon, 3).await;
    // Its end is a job as well.
    host.restore.kill(&id.parse().unwrap());
    eventually("it is gone", async || {
        (daemon.get(&format!("/api/v1/demo/{id}")).await.status != 200).then_some(())
    })
    .await;
    eventually("every job is over", async || (jobs_left(&server).await == 0).then_some(())).await;
    let metrics = daemon.get("/metrics").await;
    for kind in ["provision", "reap"] {
        let series = format!("demo_multiplexer_job_attempts_total{{kind=\"{kind}\",outcome=\"done\"}}");
        assert!(metrics.text().contains(&series), "{}", metrics.text());
    }
    assert_eq!(host.restore.attempts(), 7, "three for each golden and one more: no job was done twice");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_share_one_nats() {
    if !server::is_there("two_daemons_share_one_nats") {
        return;
    }
    let server = Server::start();
    let (one, other) = (Host::new(), Host::new());
    let start = async |host: &Host, name: &str| {
        let set = [("NATS_URL", server.url()), ("NODE_NAME", name.into()), ("POOL_TARGET_SIZE", "2".into())];
        let set: Vec<(&str, &str)> = set.iter().map(|(name, value)| (*name, value.as_str())).collect();
        host.start(&set).await
    };
    let daemons = [start(&one, "one").await, start(&other, "other").await];
    for (daemon, host) in daemons.iter().zip([&one, &other]) {
        pool_has(daemon, 2).await;
        eventually("both pools are full", async || (host.restore.running().len() == 4).then_some(())).await;
        assert_eq!(host.restore.attempts(), 4, "nobody did the other's work");
    }
    // One that dies takes nothing from the other, and finds its own jobs again.
    let [first, second] = daemons;
    first.stop().await;
    second.acquire().await;
    pool_has(&second, 2).await;
    let first = start(&one, "one").await;
    pool_has(&first, 2).await;
    assert_eq!(one.restore.attempts(), 4, "it adopted what it had");
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_former_life_are_no_reason_to_overshoot() {
    if !server::is_there("jobs_of_a_former_life_are_no_reason_to_overshoot") {
        return;
    }
    let (server, host) = (Server::start(), Host::new());
    let former = queue(&server, "demo-multiplexer", "here").await;
    for _ in 0..20 {
        former.submit(&Job::provision("shop".parse().unwrap())).await.unwrap();
    }
    drop(former);
    let set = [("NATS_URL", server.url()), ("NODE_NAME", "here".into()), ("POOL_TARGET_SIZE", "2".into())];
    let set: Vec<(&str, &str)> = set.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let daemon = host.start(&set).await;
    pool_has(&daemon, 2).await;
    eventually("every job is over", async || (jobs_left(&server).await == 0).then_some(())).await;
    assert_eq!(daemon.states().await["ready"], 2);
    assert_eq!(host.restore.attempts(), 4, "two for each golden, whatever was asked for");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_use_is_laid_aside_with_the_reason() {
    if !server::is_there("what_is_no_use_is_laid_aside_with_the_reason") {
        return;
    }
    let (server, host) = (Server::start(), Host::new());
    let here = queue(&server, "demo-multiplexer", "here").await.with_ack_wait(Duration::from_millis(300));
    // One that its takers die of, one of a later program, one that is no job.
    let deadly = Job::provision("shop".parse().unwrap());
    here.submit(&deadly).await.unwrap();
    for attempt in 1..5 {
        assert_eq!(here.next(Kind::Provision).await.attempt, attempt);
    }
    // The last one not by dying: the daemon's own queue has more patience.
    let last = here.next(Kind::Provision).await;
    last.receipt.settle(Verdict::Again(Duration::ZERO)).await.unwrap();
    drop((last, here));
    let context = client(&server).await;
    let subject = "demo-multiplexer.jobs.here.provision";
    for body in [r#"{"version":2,"id":"x","kind":"provision","golden":"shop"}"#, "hello"] {
        context.publish(subject, body.into()).await.unwrap().await.unwrap();
    }
    // And a golden that cannot be restored here, however often it is tried.
    host.restore.fail_make(Some((Phase::Restore, ErrorKind::Incompatible)));
    let set = [("NATS_URL", server.url()), ("NODE_NAME", "here".into()), ("POOL_TARGET_SIZE", "1".into())];
    let set: Vec<(&str, &str)> = set.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let daemon = host.start(&set).await;
    let wanted = [
        "nobody finished it in 5 attempts",
        "it is of version 2, this program reads up to 1",
        "it cannot be read: expected value at line 1 column 1",
        "the script says so",
    ];
    let letters = eventually("all are laid aside", async || {
        let letters = kept(&server, "demo-multiplexer-dead").await;
        let found =
            |reason: &&str| letters.iter().any(|(_, l)| l["reason"].as_str().unwrap().contains(*reason));
        wanted.iter().all(found).then_some(letters)
    })
    .await;
    let by_reason: BTreeMap<&str, &Value> =
        letters.iter().map(|(_, letter)| (letter["reason"].as_str().unwrap(), letter)).collect();
    let deadly_one = by_reason[wanted[0]];
    assert_eq!((&deadly_one["job"]["id"], &deadly_one["attempts"]), (&deadly.id.into(), &6.into()));
    assert_eq!((&deadly_one["node"], &by_reason[wanted[2]]["job"]), (&"here".into(), &"hello".into()));
    assert!(letters.iter().all(|(subject, _)| subject == "demo-multiplexer.dead.here.provision"));
    daemon.stop().await;
}
