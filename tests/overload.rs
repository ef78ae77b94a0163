//! More visitors than can be served: those who would wait too long are told at
//! once, nobody who was answered loses anything, no shop is made for somebody
//! who has left, and it is over when they are.
//!
//! The engine is scripted, and each restore takes its time, so what can be served
//! is known. Thousands of status streams: `overload/streams.rs`. Slow senders, large
//! bodies and floods of headers: `proxy_hardened.rs`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;
#[path = "overload/streams.rs"]
mod streams;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::any;
use common::{Answer, Daemon, Host, edge};
use demo_multiplexer::bench::load::{self, LoadReport, Offer};
use demo_multiplexer::testing::eventually;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// A restore, of which [`AT_ONCE`] run at once: 20 shops a second.
const RESTORE: Duration = Duration::from_millis(100);
const AT_ONCE: &str = "2";
const KNEE: f64 = 20.0;

/// Far above what any answer takes here and far below a client's patience: the
/// machine may be busy.
const SOON_MS: f64 = 2_000.0;

const ACQUIRE: &str = "/api/v1/demo/acquire";

/// Held by a test that wants the processors for itself, or takes them.
static ALONE: Mutex<()> = Mutex::const_new(());

async fn visitors(daemon: &Daemon, rate: f64, seconds: u64) -> LoadReport {
    let offer = Offer {
        address: daemon.address,
        authorization: None,
        rate,
        length: Duration::from_secs(seconds),
        stay: Duration::from_millis(200),
        pages: 2,
    };
    load::run(offer).await.unwrap()
}

/// How long at most this host stood still during `work`: what the store waits for
/// on a busy disk, and the runtime on a busy processor, says nothing of the service.
async fn longest_stall<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let over = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&over);
    let watch = tokio::task::spawn_blocking(move || {
        let (mut file, mut longest) = (tempfile::tempfile().unwrap(), Duration::ZERO);
        while !seen.load(Ordering::Relaxed) {
            let begun = Instant::now();
            file.write_all(b"x").and_then(|()| file.sync_data()).unwrap();
            #[allow(clippy::disallowed_methods, reason = "a thread of its own, which measures")]
            std::thread::sleep(Duration::from_millis(10));
            longest = longest.max(begun.elapsed());
        }
        longest
    });
    let done = work.await;
    over.store(true, Ordering::Relaxed);
    (done, watch.await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twice_what_can_be_served_is_told_to_come_back_and_all_is_well_right_after() {
    let _alone = ALONE.lock().await;
    let (shops, _) = edge::upstream(Router::new().fallback(any(async || "a shop"))).await;
    for _ in 0..10 {
        let host = Host::with_shops_at(shops);
        host.restore.takes(RESTORE);
        let settings = [("RESTORE_CONCURRENCY", AT_ONCE), ("ACQUIRE_WAIT", "1s"), ("MAX_INSTANCES", "1000")];
        let daemon = host.start(&settings).await;
        let ((report, after), stall) = longest_stall(async {
            (visitors(&daemon, KNEE * 2.0, 5).await, visitors(&daemon, KNEE / 2.0, 2).await)
        })
        .await;
        println!("{}{}the host stood still for {stall:?} at most", report.to_text(), after.to_text());
        let acquire = &report.acquire;
        // These hold however slow the host is.
        assert_eq!(acquire.failed, 0, "every refusal says when to come back: {report:?}");
        assert_eq!(
            (report.page.failed + report.page.refused, report.page.ok),
            (0, acquire.ok * 2),
            "{report:?}"
        );
        assert_eq!((report.release.failed, report.release.ok), (0, acquire.ok), "{report:?}");
        assert_eq!(host.restore.attempts(), acquire.ok + after.acquire.ok, "no shop is made for nobody");
        eventually("nothing is left", async || host.restore.running().is_empty().then_some(())).await;
        daemon.stop().await;
        if stall > Duration::from_millis(250) {
            continue;
        }
        assert!(acquire.refused > 40, "what cannot be served is not queued: {report:?}");
        // 5 s and one of waiting at 20 a second.
        assert!(acquire.ok > 60, "it goes on serving as many as it can: {report:?}");
        assert!(acquire.ms.max < 1_000.0 + SOON_MS, "nobody waits much longer than ACQUIRE_WAIT: {report:?}");
        assert!(acquire.refused_ms.p90 < SOON_MS / 2.0, "a refusal comes at once: {report:?}");
        assert_eq!((after.acquire.ok, after.acquire.refused, after.acquire.failed), (20, 0, 0), "{after:?}");
        assert!(after.acquire.ms.p50 < SOON_MS / 2.0, "{after:?}");
        return;
    }
    panic!("this host stands still again and again: nothing can be measured");
}

/// A client that asks and has not been answered yet.
async fn ask(daemon: &Daemon) -> TcpStream {
    let mut client = TcpStream::connect(daemon.address).await.unwrap();
    let request = format!("POST {ACQUIRE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    client
}

async fn waiting(daemon: &Daemon, wanted: u64) {
    eventually("so many clients wait", async || {
        let stats = daemon.get("/api/v1/pool/stats").await.json();
        (stats["clients_waiting"] == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn who_hangs_up_while_it_waits_gives_its_place_to_the_next() {
    let host = Host::new();
    host.restore.hold();
    let daemon = host.start(&[("RESTORE_CONCURRENCY", "1"), ("ACQUIRE_WAIT", "1m")]).await;
    let first = tokio::spawn({
        let address = daemon.address;
        async move { common::send_to(address, http::Method::POST, ACQUIRE, &[], "").await }
    });
    eventually("the first one's restore begins", async || (host.restore.attempts() == 1).then_some(())).await;
    let mut impatient = Vec::new();
    for _ in 0..10 {
        impatient.push(ask(&daemon).await);
    }
    waiting(&daemon, 10).await;
    drop(impatient);
    waiting(&daemon, 0).await;
    let last = tokio::spawn({
        let address = daemon.address;
        async move { common::send_to(address, http::Method::POST, ACQUIRE, &[], "").await }
    });
    waiting(&daemon, 1).await;
    host.restore.let_go();
    let (first, last): (Answer, Answer) = (first.await.unwrap(), last.await.unwrap());
    assert_eq!((first.status, last.status), (http::StatusCode::CREATED, http::StatusCode::CREATED));
    assert_eq!(host.restore.attempts(), 2, "none is made for those who have left");
    daemon.stop().await;
}

#[tokio::test]
async fn who_would_wait_longer_than_allowed_is_told_at_once_when_to_come_back() {
    let host = Host::new();
    host.restore.hold();
    let daemon =
        host.start(&[("RESTORE_CONCURRENCY", "1"), ("ACQUIRE_WAIT", "3s"), ("COLD_START", "allowed")]).await;
    let (mut clients, begun) = (Vec::new(), Instant::now());
    // Each is taken to need half a second until one was measured; the sixth would wait for 3 s.
    for _ in 0..12 {
        clients.push(ask(&daemon).await);
    }
    let refused = eventually("a client is refused", async || {
        let answer = daemon.acquire().await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert!(refused.problem(503).contains("ACQUIRE_WAIT is 3 s"), "{}", refused.text());
    let later: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    // For each of those before it as long as the one that hangs has taken by now.
    let most = begun.elapsed().max(Duration::from_millis(500)) * 13;
    assert!((1..=most.as_secs() + 1).contains(&later), "{later} s, {most:?} at most");
    assert_eq!((host.restore.attempts(), host.cold.attempts()), (1, 0), "a cold start would not be faster");
    // One that hangs is told of, too: those who wait are not kept for longer.
    waiting(&daemon, 0).await;
    host.restore.let_go();
    daemon.stop().await;
}
