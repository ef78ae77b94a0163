//! What becomes of a daemon and its instances when the server is killed, hangs,
//! or forgets everything.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use demo_multiplexer::error::{Chain, ErrorKind};
use demo_multiplexer::instance::State;
use demo_multiplexer::store::Claimed;
use demo_multiplexer::store::conformance::{claim, golden, instance, node};
use demo_multiplexer::testing::eventually;
use http::StatusCode;

use crate::common::{Answer, Daemon, Host};
use crate::daemons::{ready, settings};
use crate::server::{self, Server};
use crate::{at, open};

/// Clients that acquire, one after the other, until told to stop; answers the
/// ids they were given and the statuses of the refusals.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<Vec<Answer>>>,
}

impl Load {
    fn on(daemon: &Arc<Daemon>, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = || {
            let (daemon, stop) = (Arc::clone(daemon), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut answers = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let answer = daemon.acquire().await;
                    // So that a short test does not fill the host.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    answers.push(answer);
                }
                answers
            })
        };
        Self { clients: (0..clients).map(|_| client()).collect(), stop }
    }

    /// The ids handed out and how many were refused.
    async fn stop(self) -> (HashSet<String>, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let (mut ids, mut refused) = (HashSet::new(), 0);
        for client in self.clients {
            for answer in client.await.unwrap() {
                if answer.status == StatusCode::CREATED {
                    assert!(ids.insert(answer.id()), "{} was handed out twice", answer.id());
                } else {
                    answer.problem(503);
                    assert!(answer.headers.contains_key("retry-after"), "{}", answer.text());
                    refused += 1;
                }
            }
        }
        (ids, refused)
    }
}

async fn daemon(host: &Host, server: &Server, more: &[(&str, &str)]) -> Arc<Daemon> {
    Arc::new(host.start(&settings(&server.url(), "here", more)).await)
}

/// Waits until it hands out again.
async fn hands_out_again(daemon: &Daemon) -> String {
    eventually("it hands out again", async || {
        let answer = daemon.acquire().await;
        (answer.status == StatusCode::CREATED).then(|| answer.id())
    })
    .await
}

async fn states(daemon: &Daemon) -> Vec<(String, String)> {
    let all = daemon.get("/api/v1/demo").await.json();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    all["instances"].as_array().unwrap().iter().map(|one| (text(&one["id"]), text(&one["state"]))).collect()
}

/// Every instance handed out lives and has its record, and nothing else is anybody's.
async fn nothing_is_lost(host: &Host, daemon: &Daemon, handed_out: &HashSet<String>) {
    eventually("what nobody got is taken down", async || {
        let assigned: HashSet<String> = states(daemon)
            .await
            .into_iter()
            .filter(|(_, state)| state != "ready" && state != "warming")
            .map(|(id, _)| id)
            .collect();
        (assigned == *handed_out).then_some(())
    })
    .await;
    let running = || host.restore.running().iter().map(ToString::to_string).collect::<HashSet<String>>();
    assert!(handed_out.is_subset(&running()), "each of them lives");
    // Until the pool is full again some are only begun.
    eventually("every record has its instance, and every instance its record", async || {
        let known: HashSet<String> = states(daemon).await.into_iter().map(|(id, _)| id).collect();
        (known == running()).then_some(())
    })
    .await;
}

const PLENTY: &[(&str, &str)] =
    &[("POOL_TARGET_SIZE", "20"), ("MAX_INSTANCES", "3000"), ("RESTORE_CONCURRENCY", "8")];

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_under_load_loses_nothing() {
    if !server::is_there("a_server_killed_under_load_loses_nothing") {
        return;
    }
    let (host, mut server) = (Host::new(), Server::start().await);
    let daemon = daemon(&host, &server, PLENTY).await;
    ready(&daemon, 20).await;
    let mut handed_out = HashSet::new();
    for away in [Duration::from_millis(100), Duration::from_secs(3)] {
        let load = Load::on(&daemon, 16);
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.kill();
        tokio::time::sleep(away).await;
        if away > Duration::from_secs(2) {
            let health = daemon.get("/health").await;
            assert_eq!((health.status.as_u16(), &health.json()["store"]["status"]), (503, &"down".into()));
        }
        server.start_again().await;
        handed_out.insert(hands_out_again(&daemon).await);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (ids, refused) = load.stop().await;
        assert!(!ids.is_empty());
        assert!(refused > 0 || away < Duration::from_secs(2), "away for longer than a call is tried again");
        handed_out.extend(ids);
        nothing_is_lost(&host, &daemon, &handed_out).await;
    }
    ready(&daemon, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_under_load_loses_nothing() {
    if !server::is_there("a_server_that_hangs_under_load_loses_nothing") {
        return;
    }
    let (host, server) = (Host::new(), Server::start().await);
    let daemon = daemon(&host, &server, PLENTY).await;
    ready(&daemon, 20).await;
    let load = Load::on(&daemon, 16);
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.pause();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let answer = tokio::time::timeout(Duration::from_secs(20), daemon.acquire()).await;
    answer.expect("an answer, whatever the server does").problem(503);
    server.resume();
    let again = hands_out_again(&daemon).await;
    let (mut handed_out, refused) = load.stop().await;
    assert!(refused > 0);
    handed_out.insert(again);
    nothing_is_lost(&host, &daemon, &handed_out).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_store_a_daemon_says_so_and_keeps_what_lives() {
    if !server::is_there("without_its_store_a_daemon_says_so_and_keeps_what_lives") {
        return;
    }
    let (host, mut server) = (Host::new(), Server::start().await);
    let daemon = daemon(&host, &server, &[("POOL_TARGET_SIZE", "2")]).await;
    ready(&daemon, 2).await;
    let held = daemon.acquire().await.id();
    let short = daemon.post("/api/v1/demo/acquire", r#"{"ttl": 2}"#).await.id();
    ready(&daemon, 2).await;
    let before = host.restore.running();
    server.kill();
    let path = format!("/api/v1/demo/{held}");
    for answer in [
        daemon.acquire().await,
        daemon.get(&path).await,
        daemon.get("/api/v1/demo").await,
        daemon.get("/api/v1/pool/stats").await,
        daemon.get("/metrics").await,
        daemon.post(&format!("{path}/extend"), "").await,
        daemon.delete(&path).await,
    ] {
        let detail = answer.problem(503);
        assert!(answer.headers.contains_key("retry-after"), "{detail}");
        assert!(!detail.contains("127.0.0.1"), "where the store is is no client's business: {detail}");
    }
    assert_eq!(daemon.get("/livez").await.status, StatusCode::OK);
    assert_eq!(daemon.get("/readyz").await.status, StatusCode::OK, "it still serves the shops");
    assert_eq!(host.restore.running(), before, "whatever is over, nothing is taken down without the store");
    server.start_again().await;
    eventually("what was over meanwhile expires", async || {
        (!host.restore.traces().iter().any(|trace| trace.as_str() == short)).then_some(())
    })
    .await;
    assert_eq!(daemon.get(&path).await.status, StatusCode::OK);
    assert_eq!(daemon.delete(&path).await.status, StatusCode::NO_CONTENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_emptied_server_gets_the_records_of_what_lives_again() {
    if !server::is_there("an_emptied_server_gets_the_records_of_what_lives_again") {
        return;
    }
    let (host, mut server) = (Host::new(), Server::with(&["--appendonly", "no"]).await);
    let daemon = daemon(&host, &server, PLENTY).await;
    ready(&daemon, 20).await;
    let load = Load::on(&daemon, 8);
    tokio::time::sleep(Duration::from_millis(500)).await;
    server.run(&["FLUSHALL"]).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (mut handed_out, refused) = load.stop().await;
    assert_eq!(refused, 0, "an empty store takes new ones");
    nothing_is_lost(&host, &daemon, &handed_out).await;
    ready(&daemon, 20).await;

    let last = daemon.post("/api/v1/demo/acquire", r#"{"idempotency_key": "mine"}"#).await;
    handed_out.insert(last.id());
    server.kill();
    server.start_again().await;
    let shown = eventually("its record is back", async || {
        let shown = daemon.get(&format!("/api/v1/demo/{}", last.id())).await;
        (shown.status == StatusCode::OK).then(|| shown.json())
    })
    .await;
    assert_eq!(shown["expires_at"], last.json()["expires_at"]);
    let again = daemon.post("/api/v1/demo/acquire", r#"{"idempotency_key": "mine"}"#).await;
    assert_eq!((again.status, again.id()), (StatusCode::OK, last.id()), "and its key leads to it");
    nothing_is_lost(&host, &daemon, &handed_out).await;
    ready(&daemon, 20).await;

    // Also a daemon that starts on an emptied server knows what lives on its host.
    Arc::into_inner(daemon).unwrap().stop().await;
    server.run(&["FLUSHALL"]).await;
    let daemon = self::daemon(&host, &server, PLENTY).await;
    nothing_is_lost(&host, &daemon, &handed_out).await;
    ready(&daemon, 20).await;
    let shown = daemon.get(&format!("/api/v1/demo/{}", last.id())).await.json();
    assert_eq!(shown["expires_at"], last.json()["expires_at"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_caller_gave_up_on_is_not_done_later() {
    if !server::is_there("what_its_caller_gave_up_on_is_not_done_later") {
        return;
    }
    let server = Server::start().await;
    let store = open(&at(&[("STORE_URL", &server.url())]), &node("here")).await.unwrap();
    let shop = golden("shop");
    // The server has the script from here on.
    assert!(matches!(store.claim(claim(&shop, None)).await, Ok(Claimed::Empty)));
    let one = store.insert(instance(&shop, State::Ready, 0)).await.unwrap();
    server.pause();
    // With a key, so that it is not taken back either.
    let error = store.claim(claim(&shop, Some("a"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(Chain(&error).to_string().contains("no answer within 2 s"), "{error:?}");
    server.resume();
    // The old connection's commands come before what a later connection sends.
    for _ in 0..20 {
        store.ping().await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(store.get(&one.id).await.unwrap().unwrap().state, State::Ready);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_gone_back_in_time_gives_nobodys_shop_to_another() {
    if !server::is_there("a_server_gone_back_in_time_gives_nobodys_shop_to_another") {
        return;
    }
    let (host, mut server) = (Host::new(), Server::start().await);
    let daemon = daemon(&host, &server, &[("POOL_TARGET_SIZE", "1")]).await;
    ready(&daemon, 1).await;
    // As a machine that died right after the hand-over comes back without it.
    let files = server.dir().join("appendonlydir");
    let copy = server.dir().join("copy");
    copy_files(&files, &copy);
    let held = daemon.acquire().await.id();
    server.kill();
    std::fs::remove_dir_all(&files).unwrap();
    std::fs::rename(&copy, &files).unwrap();
    server.start_again().await;
    for _ in 0..3 {
        let other = eventually("it hands out", async || {
            let answer = daemon.acquire().await;
            (answer.status == StatusCode::CREATED).then(|| answer.id())
        })
        .await;
        assert_ne!(other, held);
    }
    eventually("its record says whose it is", async || {
        let shown = daemon.get(&format!("/api/v1/demo/{held}")).await;
        (shown.status == StatusCode::OK && shown.json()["state"] == "assigned").then_some(())
    })
    .await;
}

pub(crate) fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
