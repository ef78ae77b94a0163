//! Webhooks of a daemon on a scripted engine, at a real HTTP receiver.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;
#[path = "common/receiver.rs"]
mod receiver;

use std::process::Stdio;
use std::time::Duration;

use common::{Daemon, Host};
use demo_multiplexer::testing::eventually;
use http::Method;
use receiver::{Receiver, Reply, SECRET};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

const ACQUIRE: &str = "/api/v1/demo/acquire";

/// A daemon that tells these.
async fn telling(host: &Host, receivers: &[&Receiver]) -> Daemon {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let urls: Vec<String> = receivers.iter().map(|receiver| receiver.url()).collect();
    host.start(&[("WEBHOOK_URLS", &urls.join(",")), ("WEBHOOK_SECRET", SECRET)]).await
}

async fn released(daemon: &Daemon, id: &str) {
    assert_eq!(daemon.delete(&format!("/api/v1/demo/{id}")).await.status, 204);
}

#[tokio::test]
async fn a_lease_is_told_from_its_beginning_to_its_end_and_signed() {
    let (host, receiver) = (Host::new(), Receiver::start().await);
    let daemon = telling(&host, &[&receiver]).await;
    let id = daemon.acquire().await.id();
    daemon.post(&format!("/api/v1/demo/{id}/extend"), r#"{"ttl": "2h"}"#).await;
    released(&daemon, &id).await;
    let taken = receiver.taken(2).await;
    let [acquired, released] = [taken[0].json(), taken[1].json()];
    assert_eq!((&acquired["event"], &released["event"]), (&json!("acquired"), &json!("released")));
    for (came, body) in taken.iter().zip([&acquired, &released]) {
        assert_eq!((&body["version"], &body["instance"]["id"]), (&json!(1), &json!(id)));
        assert_eq!(body["instance"]["golden"], "shop");
        assert_eq!(came.header("x-demo-multiplexer-event"), body["event"]);
        assert_eq!(came.header("x-demo-multiplexer-delivery"), body["id"]);
        assert_eq!(came.header("content-type"), "application/json");
        assert!(came.is_signed_with(SECRET) && !came.is_signed_with("fedcba9876543210"));
        let text = String::from_utf8_lossy(&came.body);
        assert!(!text.contains("password") && !text.contains("@example.com"), "{text}");
    }
    assert_ne!(acquired["id"], released["id"]);
    assert_eq!(acquired["instance"]["source"], "restore");
    daemon.stop().await;
    assert_eq!(receiver.came().len(), 2, "and of nothing else");
}

#[tokio::test]
async fn a_lease_that_runs_out_and_one_that_dies_are_told_apart() {
    let (host, receiver) = (Host::new(), Receiver::start().await);
    let daemon = telling(&host, &[&receiver]).await;
    daemon.post(ACQUIRE, r#"{"ttl": 1}"#).await;
    assert_eq!(receiver.events(2).await, ["acquired", "expired"]);
    let id = daemon.acquire().await.id();
    host.restore.kill(&id.parse().unwrap());
    assert_eq!(receiver.events(4).await[2..], ["acquired", "failed"]);
}

#[tokio::test]
async fn shops_of_the_pool_are_nobodys_and_not_told_of() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (host, receiver) = (Host::new(), Receiver::start().await);
    let settings =
        [("WEBHOOK_URLS", &*receiver.url()), ("WEBHOOK_SECRET", SECRET), ("POOL_TARGET_SIZE", "1")];
    let daemon = host.start(&settings).await;
    eventually("the pool is full", async || (daemon.states().await["ready"] == 1).then_some(())).await;
    let ready = host.restore.running();
    host.restore.kill(&ready[0]);
    eventually("it was seen", async || (!host.restore.running().contains(&ready[0])).then_some(())).await;
    eventually("the pool is full again", async || (daemon.states().await["ready"] == 1).then_some(())).await;
    daemon.acquire().await;
    assert_eq!(receiver.events(1).await, ["acquired"]);
    assert_eq!(receiver.came()[0].json()["instance"]["source"], "pool");
}

#[tokio::test]
async fn what_a_receiver_does_not_take_comes_again_before_anything_else() {
    let (host, receiver) = (Host::new(), Receiver::start().await);
    receiver.reply(&[Reply::Status(500), Reply::Redirect]);
    let daemon = telling(&host, &[&receiver]).await;
    let id = daemon.acquire().await.id();
    released(&daemon, &id).await;
    assert_eq!(receiver.events(2).await, ["acquired", "released"]);
    let came = receiver.came();
    let ids: Vec<Value> = came.iter().map(|it| it.json()["id"].clone()).collect();
    assert_eq!(ids[..3], vec![ids[0].clone(); 3], "the first event, three times");
    assert_eq!(came.len(), 4);
    assert!(came.iter().all(|it| it.path == "/hook"), "no redirect is followed: {came:?}");
    let scrape = daemon.get("/metrics").await;
    for (outcome, count) in [("delivered", 2), ("failed", 2)] {
        let line = format!("demo_multiplexer_webhook_deliveries_total{{outcome=\"{outcome}\"}} ");
        let value = scrape.text().lines().find_map(|it| it.strip_prefix(&line)).map(str::parse::<u64>);
        // Other tests of this process count there too.
        assert!(value.clone().unwrap().unwrap() >= count, "{line}{value:?}");
    }
}

#[tokio::test]
async fn a_receiver_that_is_away_hears_all_later_and_holds_up_nobody() {
    let (host, mut away, here) = (Host::new(), Receiver::away().await, Receiver::start().await);
    let daemon = telling(&host, &[&away, &here]).await;
    let id = daemon.acquire().await.id();
    released(&daemon, &id).await;
    assert_eq!(here.events(2).await, ["acquired", "released"]);
    assert!(away.came().is_empty());
    away.come().await;
    assert_eq!(away.events(2).await, ["acquired", "released"]);
    away.leave().await;
    let id = daemon.acquire().await.id();
    here.taken(3).await;
    away.come().await;
    released(&daemon, &id).await;
    assert_eq!(away.events(4).await, ["acquired", "released", "acquired", "released"]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_receiver_that_does_not_answer_is_asked_again() {
    let (host, receiver) = (Host::new(), Receiver::start().await);
    receiver.reply(&[Reply::Hang]);
    let daemon = telling(&host, &[&receiver]).await;
    daemon.acquire().await;
    assert_eq!(receiver.events(1).await, ["acquired"]);
    assert_eq!(receiver.came().len(), 2);
}

#[tokio::test]
async fn what_waits_survives_the_daemon() {
    let (host, mut receiver) = (Host::new(), Receiver::away().await);
    let daemon = telling(&host, &[&receiver]).await;
    let id = daemon.acquire().await.id();
    daemon.stop().await;
    let spool = host.state_dir().join("webhooks");
    let queue = std::fs::read_dir(&spool).unwrap().map(|entry| entry.unwrap().path());
    let queue: Vec<_> = queue.filter(|path| !path.ends_with("open")).collect();
    assert!(!queue[0].to_str().unwrap().contains("hush"), "{queue:?}");
    assert_eq!(common::names_in(&queue[0]).len(), 1);
    receiver.come().await;
    let daemon = telling(&host, &[&receiver]).await;
    assert_eq!(receiver.events(1).await, ["acquired"]);
    released(&daemon, &id).await;
    assert_eq!(receiver.events(2).await, ["acquired", "released"]);
    daemon.stop().await;
    assert!(common::names_in(&queue[0]).is_empty() && common::names_in(&spool.join("open")).is_empty());
}

#[tokio::test]
async fn what_a_daemon_stored_and_did_not_tell_is_told_by_the_next() {
    let (host, receiver) = (Host::new(), Receiver::start().await);
    // As one that is killed between the record and the telling.
    let mute = host.start(&[]).await;
    let id = mute.acquire().await.id();
    mute.stop().await;
    let daemon = telling(&host, &[&receiver]).await;
    let acquired = receiver.taken(1).await[0].json();
    assert_eq!((&acquired["event"], &acquired["instance"]["id"]), (&json!("acquired"), &json!(id)));
    daemon.stop().await;
    let mute = host.start(&[]).await;
    released(&mute, &id).await;
    eventually("nothing is left", async || host.restore.traces().is_empty().then_some(())).await;
    mute.stop().await;
    let daemon = telling(&host, &[&receiver]).await;
    assert_eq!(receiver.events(2).await, ["acquired", "released"]);
    daemon.stop().await;
    telling(&host, &[&receiver]).await.stop().await;
    assert_eq!(receiver.came().len(), 2, "once is enough");
}

/// The program's trial.
async fn webhook_test(settings: &[(&str, &str)], args: &[&str]) -> std::process::Output {
    let dir = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_demo-multiplexer"));
    command.args(["webhook", "test"]).args(args).current_dir(dir.path()).env_clear();
    command.envs(settings.iter().copied()).output().await.unwrap()
}

#[tokio::test]
async fn a_trial_says_what_each_receiver_answers() {
    let (good, bad) = (Receiver::start().await, Receiver::start().await);
    bad.reply(&[Reply::Status(404), Reply::Status(404)]);
    let urls = format!("{},{}", good.url(), bad.url());
    let settings = [("WEBHOOK_URLS", &*urls), ("WEBHOOK_SECRET", SECRET)];
    let output = webhook_test(&settings, &["--json"]).await;
    assert_eq!(output.status.code(), Some(1));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["webhooks"][0]["took"], true);
    assert_eq!(told["webhooks"][1]["error"], "it answered 404");
    let output = webhook_test(&settings, &[]).await;
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("took it") && told.contains("it answered 404") && !told.contains("hush"), "{told}");
    assert_eq!(good.came()[0].json()["instance"], Value::Null);
    assert!(good.came()[0].is_signed_with(SECRET));
    let output = webhook_test(&settings[..1], &[]).await;
    assert_eq!(output.status.code(), Some(64));
    let output = webhook_test(&[], &[]).await;
    assert!(String::from_utf8(output.stderr).unwrap().contains("WEBHOOK_URLS is empty"));
}

/// The example, which ends with the test.
struct Example {
    _child: Child,
    output: Lines<BufReader<ChildStdout>>,
}

impl Example {
    /// None where Python is not.
    fn start(secret_file: &std::path::Path) -> Option<Self> {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/webhook_receiver.py");
        let mut command = Command::new("python3");
        command.args([program, "0"]).env("WEBHOOK_SECRET_FILE", secret_file).stdout(Stdio::piped());
        match command.kill_on_drop(true).spawn() {
            Ok(mut child) => {
                let output = BufReader::new(child.stdout.take().unwrap()).lines();
                Some(Self { _child: child, output })
            }
            Err(_) if std::env::var("CI").is_err() => {
                println!("skipped: python3 is not installed");
                None
            }
            Err(error) => panic!("python3: {error}"),
        }
    }

    /// What it prints next, within half a minute.
    async fn line(&mut self, what: &str) -> String {
        let line = tokio::time::timeout(Duration::from_secs(30), self.output.next_line());
        let line = line.await.unwrap_or_else(|_| panic!("it does not tell {what}"));
        line.unwrap().unwrap().trim_end().to_owned()
    }
}

#[tokio::test]
async fn the_example_receiver_takes_what_is_signed_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, SECRET).unwrap();
    let Some(mut example) = Example::start(&file) else { return };
    let url = example.line("where it listens").await.strip_prefix("listening on ").unwrap().to_owned();
    let output =
        webhook_test(&[("WEBHOOK_URLS", &url), ("WEBHOOK_SECRET", "fedcba9876543210")], &["--json"]).await;
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["webhooks"][0]["error"], "it answered 401", "another secret");
    let output = webhook_test(&[("WEBHOOK_URLS", &url), ("WEBHOOK_SECRET", SECRET)], &[]).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(example.line("of the trial").await, "test", "nothing was printed before");
    // A message of yesterday, whoever signed it then.
    let address = url.trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
    let old = ("x-demo-multiplexer-signature", "t=1700000000,v1=00");
    let answer = common::send_to(address, Method::POST, "/", &[old], "{}").await;
    assert_eq!(answer.status, 401);
    let host = Host::new();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let daemon = host.start(&[("WEBHOOK_URLS", &url), ("WEBHOOK_SECRET", SECRET)]).await;
    let id = daemon.acquire().await.id();
    assert_eq!(example.line("of the lease").await, format!("acquired {id} shop"));
}
