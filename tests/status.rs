//! Status streams over real sockets, on a scripted engine and the real store.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::time::Duration;

use axum::body::Body;
use common::{Daemon, Host, send};
use demo_multiplexer::testing::eventually;
use futures_util::future::join_all;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

/// Longer than any message may take, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(20);

/// One message; a field that it lacks is empty.
#[derive(Debug, Default)]
struct Message {
    id: String,
    event: String,
    retry: String,
    comment: String,
    data: Value,
}

impl Message {
    fn read(text: &str) -> Self {
        let mut message = Self::default();
        for line in text.lines() {
            match line.split_once(": ").unwrap_or_else(|| panic!("not a field: {line:?}")) {
                ("id", value) => message.id = value.to_owned(),
                ("event", value) => message.event = value.to_owned(),
                ("retry", value) => message.retry = value.to_owned(),
                ("data", value) => message.data = serde_json::from_str(value).unwrap(),
                ("", value) => message.comment = value.to_owned(),
                other => panic!("an unknown field: {other:?}"),
            }
        }
        message
    }

    fn seconds_left(&self) -> i64 {
        self.data["seconds_left"].as_i64().unwrap_or_else(|| panic!("{self:?}"))
    }
}

/// A client that reads.
struct Client {
    body: Incoming,
    text: String,
}

impl Client {
    async fn open(daemon: &Daemon, id: &str, headers: &[(&str, &str)]) -> Self {
        let mut request = Request::get(path(id)).header("host", "localhost:8080");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = send(daemon.address, request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        Self { body: response.into_body(), text: String::new() }
    }

    /// The next message; none when the stream has ended as it should.
    async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some((first, rest)) = self.text.split_once("\n\n") {
                let message = Message::read(first);
                self.text = rest.to_owned();
                return Some(message);
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("something is sent");
            let Some(frame) = frame else {
                assert_eq!(self.text, "", "no half message at the end");
                return None;
            };
            self.text.push_str(std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap());
        }
    }

    /// The next message of that kind.
    async fn event(&mut self, event: &str) -> Message {
        loop {
            let message = self.next().await.unwrap_or_else(|| panic!("ended before a {event} event"));
            if message.event == event {
                return message;
            }
        }
    }
}

fn path(id: &str) -> String {
    format!("/api/v1/demo/{id}/status")
}

/// The answer to one who wants to watch, and hangs up at once.
async fn status_of(daemon: &Daemon, id: &str) -> StatusCode {
    let request = Request::get(path(id)).header("host", "localhost:8080").body(Body::empty()).unwrap();
    send(daemon.address, request).await.status()
}

#[tokio::test]
async fn a_stream_begins_with_the_state_and_counts_down_each_second() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let id = daemon.post("/api/v1/demo/acquire", r#"{"ttl": "10m"}"#).await.id();
    let mut client = Client::open(&daemon, &id, &[]).await;
    let opening = client.next().await.unwrap();
    assert!((2000..5000).contains(&opening.retry.parse::<u32>().unwrap()), "{opening:?}");
    let state = client.next().await.unwrap();
    assert_eq!((state.event.as_str(), state.data["state"].as_str()), ("state", Some("assigned")));
    assert_eq!(state.id, state.data["generation"].to_string());
    assert_eq!(state.data["instance_id"], id);
    assert!((595..600).contains(&state.seconds_left()), "{state:?}");
    let shown = daemon.get(&format!("/api/v1/demo/{id}")).await;
    assert_eq!(state.data["expires_at"], shown.json()["expires_at"]);
    let mut left = state.seconds_left();
    for _ in 0..3 {
        let tick = client.next().await.unwrap();
        assert_eq!((tick.event.as_str(), tick.id.as_str()), ("countdown", ""));
        assert_eq!(tick.seconds_left(), left - 1, "no second is missing, none is told twice");
        left -= 1;
    }
}

#[tokio::test]
async fn extension_and_release_are_seen_and_the_stream_ends() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let id = daemon.post("/api/v1/demo/acquire", r#"{"ttl": "10m"}"#).await.id();
    let mut client = Client::open(&daemon, &id, &[]).await;
    let first = client.event("state").await;
    daemon.post(&format!("/api/v1/demo/{id}/extend"), r#"{"ttl": "10m"}"#).await;
    let extended = client.event("state").await;
    assert!(extended.seconds_left() > 1190, "{extended:?}");
    assert!(extended.data["generation"].as_u64() > first.data["generation"].as_u64());
    daemon.delete(&format!("/api/v1/demo/{id}")).await;
    let end = client.event("state").await;
    assert!(["expired", "gone"].contains(&end.data["state"].as_str().unwrap()), "{end:?}");
    assert_eq!(end.retry, "60000");
    assert!(client.next().await.is_none(), "it ends");
    daemon.get(&path(&id)).await.problem(410);
}

#[tokio::test]
async fn an_instance_whose_time_is_over_ends_its_stream() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let id = daemon.post("/api/v1/demo/acquire", r#"{"ttl": 2}"#).await.id();
    let mut client = Client::open(&daemon, &id, &[]).await;
    client.event("state").await;
    let end = client.event("state").await;
    assert!(["expired", "gone"].contains(&end.data["state"].as_str().unwrap()), "{end:?}");
    assert!(client.next().await.is_none());
}

#[tokio::test]
async fn a_client_that_comes_back_goes_on_where_it_was() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let id = daemon.acquire().await.id();
    let seen = Client::open(&daemon, &id, &[]).await.event("state").await.id;
    let mut client = Client::open(&daemon, &id, &[("last-event-id", &seen)]).await;
    client.next().await.unwrap();
    assert_eq!(client.next().await.unwrap().event, "countdown", "the state is not told again");
    drop(client);
    daemon.post(&format!("/api/v1/demo/{id}/extend"), r#"{"ttl": 60}"#).await;
    let mut client = Client::open(&daemon, &id, &[("last-event-id", &seen)]).await;
    client.next().await.unwrap();
    let missed = client.next().await.unwrap();
    assert_eq!(missed.event, "state", "what it missed is told");
    assert!(missed.id.parse::<u64>().unwrap() > seen.parse().unwrap());
    for nonsense in ["x", "", "-1", "99999999999999999999"] {
        let mut client = Client::open(&daemon, &id, &[("last-event-id", nonsense)]).await;
        client.next().await.unwrap();
        assert_eq!(client.next().await.unwrap().event, "state", "{nonsense:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused_before_the_stream_begins() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    daemon.get(&path("abcdefghijkl")).await.problem(404);
    daemon.get(&path("NO")).await.problem(404);
    let id = daemon.acquire().await.id();
    daemon.delete(&format!("/api/v1/demo/{id}")).await;
    daemon.get(&path(&id)).await.problem(410);
    let wrong = daemon.send(Method::POST, &path(&id), &[], "").await;
    wrong.problem(405);
    assert_eq!(wrong.headers["allow"], "GET,HEAD");
}

#[tokio::test]
async fn an_instance_in_the_pool_is_watched_until_it_is_somebodys() {
    let host = Host::new();
    let daemon = host.start(&[("POOL_TARGET_SIZE", "1"), ("GOLDEN", "shop")]).await;
    let ready = eventually("one is ready", async || {
        let listed = daemon.get("/api/v1/demo").await.json();
        let ready = listed["instances"]
            .as_array()?
            .iter()
            .find(|one| one["state"] == "ready" && one["golden"] == "shop")?;
        Some(ready["id"].as_str()?.to_owned())
    })
    .await;
    let mut client = Client::open(&daemon, &ready, &[]).await;
    let state = client.event("state").await;
    assert_eq!((&state.data["state"], &state.data["seconds_left"]), (&Value::from("ready"), &Value::Null));
    assert_eq!(daemon.acquire().await.id(), ready);
    assert_eq!(client.event("state").await.data["state"], "assigned");
    client.event("countdown").await;
}

#[tokio::test]
async fn more_streams_than_allowed_are_told_to_come_back() {
    let host = Host::new();
    let daemon = host.start(&[("SSE_MAX_CLIENTS", "2")]).await;
    let id = daemon.acquire().await.id();
    let first = Client::open(&daemon, &id, &[]).await;
    let _second = Client::open(&daemon, &id, &[]).await;
    let refused = daemon.get(&path(&id)).await;
    assert!(refused.problem(503).contains("all 2 status streams of this daemon are taken"));
    assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() > 0);
    // One that is refused for another reason takes no place.
    daemon.get(&path("abcdefghijkl")).await.problem(503);
    drop(first);
    eventually("the place is free again", async || (status_of(&daemon, &id).await == 200).then_some(()))
        .await;
}

#[tokio::test]
async fn a_stopping_daemon_ends_its_streams_and_does_not_wait_for_them() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let id = daemon.acquire().await.id();
    let mut clients = join_all((0..20).map(|_| Client::open(&daemon, &id, &[]))).await;
    for client in &mut clients {
        client.event("state").await;
    }
    // Nobody reads while it stops.
    let began = tokio::time::Instant::now();
    daemon.stop().await;
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "the listener's deadline is 5 s: {:?}",
        began.elapsed()
    );
    for client in &mut clients {
        let mut last = client.next().await.unwrap();
        while let Some(message) = client.next().await {
            last = message;
        }
        assert_eq!(last.comment, "the service is being stopped");
    }
}

/// A client that keeps the connection and never reads. The smallest buffer a
/// socket can have, so that it is full soon.
#[tokio::test]
async fn a_client_that_never_reads_is_dropped() {
    let host = Host::new();
    let daemon = host.start(&[("SSE_MAX_CLIENTS", "1")]).await;
    let id = daemon.acquire().await.id();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(1).unwrap();
    let mut stream = socket.connect(daemon.address).await.unwrap();
    let request = format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", path(&id));
    stream.write_all(request.as_bytes()).await.unwrap();
    eventually("the one place is taken", async || (status_of(&daemon, &id).await == 503).then_some(())).await;
    let began = tokio::time::Instant::now();
    let deadline = began + Duration::from_secs(120);
    while status_of(&daemon, &id).await == 503 {
        assert!(tokio::time::Instant::now() < deadline, "its place is never free again");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    println!("dropped after {:?}", began.elapsed());
    let gone = stream.read_to_end(&mut Vec::new()).await;
    assert!(gone.is_err(), "it was hung up on: {gone:?}");
}
