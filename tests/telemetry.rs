//! What a daemon tells of itself: its JSON log and its traces. One test, since a
//! process has one log.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "common/collector.rs"]
mod collector;
mod common;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use collector::{Collector, Span, below};
use common::Host;
use demo_multiplexer::telemetry::{self, FIELDS, Options};
use demo_multiplexer::testing::eventually;
use serde_json::Value;

/// Everything that this process logs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_acquire_and_release_is_logged_and_traced() {
    rustls::crypto::ring::default_provider().install_default().unwrap();
    let (log, collector) = (Log::default(), Collector::start().await);
    let writer = log.clone();
    let url = collector.url();
    let options = Options { level: "trace", format: "json", otlp_url: Some(&url) };
    let telemetry = telemetry::start_to(options, move || writer.clone(), false).unwrap();

    let host = Host::new();
    let daemon = host.start(&[]).await;
    let got = daemon.acquire().await;
    let id = got.id();
    daemon.get(&format!("/api/v1/demo/{id}")).await;
    let request = got.headers["x-request-id"].to_str().unwrap().to_owned();
    let released = daemon.delete(&format!("/api/v1/demo/{id}")).await;
    assert_eq!(released.status, 204);
    eventually("it is taken down", async || host.restore.traces().is_empty().then_some(())).await;
    daemon.stop().await;
    // As main does it: the runtime has ended.
    tokio::task::spawn_blocking(|| telemetry.stop()).await.unwrap();

    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    the_log_has_the_fixed_names(&lines);
    the_log_tells_the_instances_life(&lines, &id, &request);
    let spans = collector.spans();
    the_trace_leads_from_the_request_to_the_record(&spans, &id, &request);

    let password = got.json()["admin_password"].as_str().unwrap().to_owned();
    let link = got.json()["admin_login_url"].as_str().unwrap().to_owned();
    let token = link.split_once("token=").unwrap().1.to_owned();
    for secret in [password, token, format!("key-of-{id}")] {
        assert!(!text.contains(&secret), "no secret is ever logged");
        assert!(spans.iter().all(|span| !contains(&span.raw, secret.as_bytes())), "nor is one traced");
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// What the format itself adds to a line.
const FRAME: [&str; 5] = ["timestamp", "level", "target", "message", "spans"];

/// Our own lines; libraries have words of their own.
fn own(lines: &[Value]) -> impl Iterator<Item = &Value> {
    lines.iter().filter(|line| line["target"].as_str().unwrap().starts_with("demo_multiplexer"))
}

fn the_log_has_the_fixed_names(lines: &[Value]) {
    assert!(own(lines).count() > 5, "the log is there");
    assert!(lines.len() > own(lines).count(), "LOG_LEVEL=trace shows libraries, too");
    let known: BTreeSet<&str> = FIELDS.iter().map(|(name, _)| *name).collect();
    assert_eq!(known.len(), FIELDS.len(), "a name is listed twice");
    for line in own(lines) {
        let fields = line.as_object().unwrap().keys().map(String::as_str);
        for field in fields.filter(|field| !FRAME.contains(field)) {
            assert!(known.contains(field), "{field} is not one of FIELDS: {line}");
        }
        for span in line["spans"].as_array().into_iter().flatten() {
            for field in span.as_object().unwrap().keys().filter(|field| *field != "name") {
                assert!(known.contains(field.as_str()), "{field} is not one of FIELDS: {line}");
            }
        }
        assert!(line["message"].is_string() && line["timestamp"].is_string(), "{line}");
    }
}

fn the_log_tells_the_instances_life(lines: &[Value], id: &str, request: &str) {
    let of_instance = own(lines).filter(|line| line["instance_id"] == id && line["happened"].is_string());
    let life: Vec<&str> = of_instance.map(|line| line["happened"].as_str().unwrap()).collect();
    assert_eq!(life, ["warming", "assigned", "expired", "gone"], "one line for each change");
    let assigned =
        own(lines).find(|line| line["instance_id"] == id && line["happened"] == "assigned").unwrap();
    assert_eq!((&assigned["source"], &assigned["golden"]), (&"restore".into(), &"shop".into()));
    assert_eq!(assigned["level"], "INFO");
    let spans = assigned["spans"].as_array().unwrap();
    let names: Vec<&str> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["request", "acquire", "make"]);
    assert_eq!(spans[0]["request_id"], request);
    assert_eq!(spans[0]["route"], "/api/v1/demo/acquire");
}

fn the_trace_leads_from_the_request_to_the_record(spans: &[Span], id: &str, request: &str) {
    assert!(spans.iter().all(|span| span.service == "demo-multiplexer" && span.ended >= span.begun));
    let with = |name: &str, key: &str, value: &str| -> Vec<&Span> {
        let has = |span: &&Span| span.name == name && span.attributes.get(key).is_some_and(|it| it == value);
        spans.iter().filter(has).collect()
    };
    let [root] = with("request", "request_id", request)[..] else { panic!("{spans:#?}") };
    assert!(root.parent.is_empty(), "a request is where a trace begins");
    let [acquire] = below(root, spans)[..] else { panic!("{spans:#?}") };
    assert_eq!((acquire.name.as_str(), acquire.attributes["golden"].as_str()), ("acquire", "shop"));
    let [make] = below(acquire, spans)[..] else { panic!("{spans:#?}") };
    assert_eq!((make.name.as_str(), make.attributes["instance_id"].as_str()), ("make", id));
    assert_eq!(make.attributes["source"], "restore");
    // What lies between, on a real engine, is in podman_criu.rs.
    let steps: Vec<&str> = below(make, spans).iter().map(|span| span.name.as_str()).collect();
    assert_eq!(steps, ["record", "route", "record"]);
    assert!(root.begun <= acquire.begun && make.ended <= acquire.ended);
}
