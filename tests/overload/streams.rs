//! Thousands of status streams at once: everybody hears of a change, an acquire is
//! not held up, each costs little, and nothing is left of them.
//!
//! The daemon is a process of its own (this test binary once more, as [`APART`]), so
//! that what is counted is the daemon's, and both may have as many files as streams.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use demo_multiplexer::testing::eventually;
use futures_util::StreamExt as _;
use http::Method;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinSet;

use crate::common::{Answer, Host, send_to};

/// So many, unless SSE_STREAMS says otherwise: `make soak` has 10,000, which the default
/// of MAX_CONNECTIONS has room for.
const STREAMS: usize = 2_000;

/// They watch so many shops.
const SHOPS: usize = 20;

/// How many are opened at once: fewer than a listener's backlog.
const OPENED_AT_ONCE: usize = 64;

/// What one may cost the daemon: connection, parser and task. 20 KiB were seen.
const EACH_MAX_KIB: usize = 40;

/// What each of a second crowd may add, or of the first while it stays: the allocator lays
/// it out anew. 6 KiB were seen, and after ten crowds as much as after three; with
/// MALLOC_ARENA_MAX=1 nothing more at all.
const AGAIN_KIB: usize = 12;

/// Longer than anything takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// Names the test that is the daemon, and says that it is to be one.
const APART: &str = "streams::the_daemon_of_its_own_process";
const ROLE: &str = "DEMO_MULTIPLEXER_TEST_IS_DAEMON";

fn as_many_files_as_may_be() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    limit.maximum.unwrap_or(u64::MAX)
}

/// Serves until its standard input ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the daemon of another test, which starts it"]
async fn the_daemon_of_its_own_process() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    as_many_files_as_may_be();
    let host = Host::new();
    let settings =
        [("MAX_CONNECTIONS", "32768"), ("SSE_MAX_CLIENTS", "11000"), ("ADMIN_LISTEN", "127.0.0.1:0")];
    let daemon = host.start(&settings).await;
    println!("\nserving {} {}", daemon.address, daemon.admin.unwrap());
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()))
        .await
        .unwrap()
        .unwrap();
    daemon.stop().await;
}

/// What the daemon has.
#[derive(Debug, Clone, Copy)]
struct Census {
    files: usize,
    threads: usize,
    resident_kib: usize,
}

/// The daemon, as a process of its own.
struct Apart {
    child: Child,
    _stdin: ChildStdin,
    /// LISTEN and ADMIN_LISTEN: each has its own places for connections.
    doors: [SocketAddr; 2],
}

impl Apart {
    async fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", APART, "--ignored", "--nocapture", "--test-threads=1"]).env(ROLE, "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let doors = loop {
            let line = lines.next_line().await.unwrap().expect("it says where it listens");
            if let Some(doors) = line.strip_prefix("serving ") {
                let (public, admin) = doors.split_once(' ').unwrap();
                break [public.parse().unwrap(), admin.parse().unwrap()];
            }
        };
        // What it says at its end shall not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { child, _stdin: stdin, doors }
    }

    fn census(&self) -> Census {
        let of = |what: &str| format!("/proc/{}/{what}", self.child.id().unwrap());
        let entries = |what: &str| std::fs::read_dir(of(what)).unwrap().flatten().map(|entry| entry.path());
        let status = std::fs::read_to_string(of("status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        // The pool for blocking work grows with a burst, and shrinks by itself.
        let lasting = |thread: &std::path::PathBuf| {
            !std::fs::read_to_string(thread.join("comm")).unwrap_or_default().starts_with("tokio-rt-worker")
        };
        Census {
            files: entries("fd").count(),
            threads: entries("task").filter(lasting).count(),
            resident_kib: resident.trim().trim_end_matches(" kB").parse().unwrap(),
        }
    }

    async fn send(&self, method: Method, path: &str, body: &str) -> Answer {
        send_to(self.doors[0], method, path, &[("content-type", "application/json")], body).await
    }

    async fn acquire(&self) -> String {
        let answer = self.send(Method::POST, super::ACQUIRE, r#"{"ttl": "10m"}"#).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.id()
    }

    /// Nobody is connected any more.
    async fn is_left_alone(&self, files: usize) {
        eventually("all connections are closed", async || (self.census().files <= files).then_some(())).await;
    }

    async fn stop(self) {
        let Self { mut child, _stdin, .. } = self;
        drop(_stdin);
        let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
        assert!(status.success(), "{status}");
    }
}

/// What one client has heard.
#[derive(Debug, Default)]
struct Heard {
    /// The id of the last event that had one.
    generation: AtomicU64,
    countdowns: AtomicU64,
}

/// Clients, each with a stream, all reading.
struct Crowd {
    heard: Vec<Arc<Heard>>,
    reading: JoinSet<()>,
}

impl Crowd {
    /// Opens the streams, by both doors in turn.
    async fn open(daemon: &Apart, ids: &[String], streams: usize) -> Self {
        let connect = |n: usize| async move {
            let mut stream = TcpStream::connect(daemon.doors[n % 2]).await.unwrap();
            let path = format!("/api/v1/demo/{}/status", ids[n / 2 % ids.len()]);
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            stream
        };
        let mut crowd = Self { heard: Vec::new(), reading: JoinSet::new() };
        let mut opened = futures_util::stream::iter(0..streams).map(connect).buffered(OPENED_AT_ONCE);
        while let Some(stream) = opened.next().await {
            let heard = Arc::<Heard>::default();
            crowd.heard.push(Arc::clone(&heard));
            crowd.reading.spawn(listen(stream, heard));
        }
        crowd
    }

    /// Waits until that is so of each.
    async fn all(&self, what: &str, is_so: impl Fn(usize, &Heard) -> bool) {
        eventually(what, async || {
            self.heard.iter().enumerate().all(|(n, heard)| is_so(n, heard)).then_some(())
        })
        .await;
    }

    async fn all_count_down(&self, times: u64) {
        let before: Vec<u64> =
            self.heard.iter().map(|heard| heard.countdowns.load(Ordering::Relaxed)).collect();
        self.all("everybody hears the time", |n, heard| {
            heard.countdowns.load(Ordering::Relaxed) >= before[n] + times
        })
        .await;
    }
}

/// Reads until it is hung up.
async fn listen(mut stream: TcpStream, heard: Arc<Heard>) {
    let (mut bytes, mut line) = ([0; 512], Vec::new());
    while let Ok(read @ 1..) = stream.read(&mut bytes).await {
        for byte in &bytes[..read] {
            if *byte != b'\n' {
                line.push(*byte);
                continue;
            }
            let text = String::from_utf8_lossy(&line);
            if let Some(id) = text.strip_prefix("id: ") {
                heard.generation.store(id.trim().parse().unwrap(), Ordering::Relaxed);
            } else if text.trim() == "event: countdown" {
                heard.countdowns.fetch_add(1, Ordering::Relaxed);
            }
            line.clear();
        }
    }
}

async fn shown(daemon: &Apart) -> usize {
    let metrics = send_to(daemon.doors[1], Method::GET, "/metrics", &[], "").await;
    assert_eq!(metrics.status, 200, "{}", metrics.text());
    let line = metrics.text().lines().find(|line| line.starts_with("demo_multiplexer_sse_clients "));
    // Not there before the first one.
    line.and_then(|line| line.split(' ').nth(1)).map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_streams_hear_of_every_change_and_leave_nothing() {
    let _alone = super::ALONE.lock().await;
    let streams = std::env::var("SSE_STREAMS").map_or(STREAMS, |text| text.parse().expect("a number"));
    let files = as_many_files_as_may_be();
    // A daemon gives a door 3 connections for 8 files.
    if files < u64::try_from(streams).unwrap() * 3 / 2 {
        return println!("skipped: {streams} streams, and a process may have {files} files");
    }
    let daemon = Apart::start().await;
    let mut ids = Vec::new();
    for _ in 0..SHOPS {
        ids.push(daemon.acquire().await);
    }
    // Whatever is opened once shall be open.
    let idle = daemon.census();
    let first = Crowd::open(&daemon, &ids, 10).await;
    first.all_count_down(1).await;
    drop(first);
    let before = eventually("the first ones have left", async || {
        let seen = daemon.census();
        (shown(&daemon).await == 0 && seen.files <= idle.files + 2).then_some(seen)
    })
    .await;

    let crowd = Crowd::open(&daemon, &ids, streams).await;
    crowd.all_count_down(1).await;
    let opened = daemon.census();
    assert!(opened.files + 2 >= before.files + streams, "{before:?}, then {opened:?}");
    assert_eq!(shown(&daemon).await, streams);

    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        let begun = Instant::now();
        let id = daemon.acquire().await;
        slowest = slowest.max(begun.elapsed());
        assert_eq!(daemon.send(Method::DELETE, &format!("/api/v1/demo/{id}"), "").await.status, 204);
    }

    let begun = Instant::now();
    let mut generations = Vec::new();
    for id in &ids {
        let answer =
            daemon.send(Method::POST, &format!("/api/v1/demo/{id}/extend"), r#"{"ttl": "5m"}"#).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        generations.push(generation(&daemon, id).await);
    }
    crowd
        .all("everybody hears of the change", |n, heard| {
            heard.generation.load(Ordering::Relaxed) >= generations[n / 2 % SHOPS]
        })
        .await;
    let heard_after = begun.elapsed();

    // Nothing piles up.
    crowd.all_count_down(2).await;
    let later = daemon.census();
    drop(crowd);
    daemon.is_left_alone(before.files).await;
    let left = daemon.census();
    let again = Crowd::open(&daemon, &ids, streams).await;
    again.all_count_down(1).await;
    let second = daemon.census();
    drop(again);
    daemon.is_left_alone(before.files).await;

    let each = opened.resident_kib.saturating_sub(before.resident_kib) / streams;
    println!(
        "{streams} streams: {each} KiB each; an acquire meanwhile took {slowest:?} at most, a change of {SHOPS} \
         shops was with everybody after {heard_after:?}\nbefore {before:?}\nopened {opened:?}\nlater  {later:?}\n\
         left   {left:?}\nagain  {second:?}"
    );
    assert!(each <= EACH_MAX_KIB, "{each} KiB for each stream");
    assert!(later.resident_kib <= opened.resident_kib + AGAIN_KIB * streams, "{opened:?}, then {later:?}");
    assert!(
        second.resident_kib <= later.resident_kib + AGAIN_KIB * streams,
        "a second crowd: {later:?}, then {second:?}"
    );
    assert_eq!(left.threads, before.threads);
    // Far below a client's patience, and far above what it takes.
    assert!(slowest < Duration::from_secs(10), "an acquire took {slowest:?}");
    daemon.stop().await;
}

/// The generation that a stream of that shop begins with.
async fn generation(daemon: &Apart, id: &str) -> u64 {
    let one = Crowd::open(daemon, &[id.to_owned()], 1).await;
    eventually("it begins", async || {
        let seen = one.heard[0].generation.load(Ordering::Relaxed);
        (seen > 0).then_some(seen)
    })
    .await
}
