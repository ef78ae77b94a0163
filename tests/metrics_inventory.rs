//! Every metric family is touched by something that happens, and every name in a
//! dashboard or an alert is a family.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use common::{Daemon, Host};
use demo_multiplexer::engine::Phase;
use demo_multiplexer::error::ErrorKind;
use demo_multiplexer::metrics::families::{FAMILIES, Family, Kind};
use demo_multiplexer::metrics::{self, Delivery};
use demo_multiplexer::node::watch::Condition;
use demo_multiplexer::testing::eventually;
use http::Method;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

const ACQUIRE: &str = "/api/v1/demo/acquire";

/// The series of a scrape by their family, each as its labels.
type Series = BTreeMap<String, Vec<BTreeSet<String>>>;

/// The family that a series is of.
fn family_of(series: &str) -> Option<&'static Family> {
    let exact = FAMILIES.iter().find(|family| family.name == series);
    exact.or_else(|| {
        let stem = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| series.strip_suffix(suffix))?;
        FAMILIES.iter().find(|family| family.kind == Kind::Histogram && family.name == stem)
    })
}

fn series_of(scrape: &str) -> Series {
    let mut found = Series::new();
    for line in scrape.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let name_end = line.find(['{', ' ']).unwrap();
        let name = &line[..name_end];
        let family = family_of(name).unwrap_or_else(|| panic!("{name} is not in FAMILIES"));
        let inside = line.split_once('{').and_then(|(_, rest)| rest.rsplit_once('}')).map_or("", |it| it.0);
        let labels = inside.split(',').filter_map(|pair| Some(pair.split_once('=')?.0.to_owned()));
        let labels = labels.filter(|label| label != "le").collect();
        found.entry(family.name.to_owned()).or_default().push(labels);
    }
    found
}

/// What happens to a daemon in its life, once.
async fn live(host: &Host, daemon: &Daemon) {
    eventually("the pool is full", async || (daemon.states().await["ready"] == 1).then_some(())).await;
    let from_pool = daemon.acquire().await.id();
    daemon.post(ACQUIRE, r#"{"ttl": 1}"#).await;
    let shop = [("host", format!("{from_pool}.localhost:8080"))];
    daemon.send(Method::GET, "/", &[(shop[0].0, &shop[0].1)], "").await;
    let visitor = [("x-forwarded-for", "203.0.113.5")];
    while daemon.send(Method::POST, ACQUIRE, &visitor, "").await.status != 429 {}
    host.restore.fail_make(Some((Phase::Restore, ErrorKind::Bug)));
    // The first ones are still in the pool.
    while daemon.post(ACQUIRE, r#"{"golden": "other"}"#).await.status != 500 {}
    host.restore.fail_destroy(true);
    daemon.delete(&format!("/api/v1/demo/{from_pool}")).await;
    eventually("a lease expires", async || {
        daemon.get("/metrics").await.text().contains("lease_expirations_total{").then_some(())
    })
    .await;
    eventually("a cleanup fails", async || {
        daemon
            .get("/metrics")
            .await
            .text()
            .contains("\ndemo_multiplexer_cleanup_failures_total ")
            .then_some(())
    })
    .await;
    host.restore.fail_destroy(false);
    eventually("all is taken down", async || {
        daemon.get("/metrics").await.text().contains("reaped_total{").then_some(())
    })
    .await;
}

/// Fills MAX_CONNECTIONS, and one more is refused.
async fn one_connection_too_many(daemon: &Daemon) {
    let mut held = Vec::new();
    let told = eventually("one is refused", async || {
        let mut stream = TcpStream::connect(daemon.address).await.unwrap();
        let mut answer = [0; 12];
        let read = stream.read_exact(&mut answer);
        match tokio::time::timeout(Duration::from_millis(50), read).await {
            Ok(read) => read.ok().map(|_| answer),
            Err(_) => {
                held.push(stream);
                None
            }
        }
    })
    .await;
    assert_eq!((&told[..], held.len()), (&b"HTTP/1.1 503"[..], 16));
}

#[tokio::test]
async fn every_family_is_touched_and_has_the_labels_it_says() {
    metrics::install();
    let host = Host::new();
    let settings = [("POOL_TARGET_SIZE", "1"), ("RATE_LIMIT_HOURLY", "1"), ("MAX_CONNECTIONS", "16")];
    let daemon = host.start(&settings).await;
    live(&host, &daemon).await;
    one_connection_too_many(&daemon).await;
    // Their callers need a real snapshot, a follower of a stream, a Caddy, a NATS, a webhook.
    metrics::webhook(Delivery::Delivered, 1);
    metrics::snapshot_in_use(&"shop".parse().unwrap(), 10, 20);
    metrics::sse_client_came();
    metrics::routes_written(true, std::time::Duration::from_millis(5));
    metrics::event_published();
    // And these other nodes.
    metrics::nodes([Condition::Here]);
    metrics::node_lost();
    metrics::node_called("make", true);
    metrics::node_forwarded(true);
    let scrape = daemon.get("/metrics").await;
    let found = series_of(scrape.text());
    for family in FAMILIES {
        let series = found.get(family.name).unwrap_or_else(|| panic!("nothing touches {}", family.name));
        let expected: BTreeSet<String> = family.labels.iter().map(|label| (*label).to_owned()).collect();
        assert!(series.iter().all(|labels| *labels == expected), "{}: {series:?}", family.name);
        let head = format!("# HELP {} {}\n", family.name, family.help);
        assert!(scrape.text().contains(&head), "{head}");
        let kind = format!("# TYPE {} {}\n", family.name, family.kind.as_str());
        assert!(scrape.text().contains(&kind), "{kind}");
    }
    assert!(scrape.text().contains("\ndemo_multiplexer_sse_clients 1\n"));
    metrics::sse_client_left();
    let scrape = daemon.get("/metrics").await;
    assert!(scrape.text().contains("\ndemo_multiplexer_sse_clients 0\n"), "one that leaves is not counted");
    assert!(scrape.text().contains(r#"demo_multiplexer_daemon_phase{phase="serving"} 1"#));
    assert!(scrape.text().contains(r#"demo_multiplexer_daemon_phase{phase="draining"} 0"#));
    assert!(scrape.text().contains(r#"port="store",op="claim",outcome="ok""#));
}

#[test]
fn dashboards_and_alerts_name_families_only() {
    for (name, at_least) in [("systemd/grafana-dashboard.json", 15), ("systemd/alerts.yaml", 8)] {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
        let mut families = BTreeSet::new();
        for (at, _) in text.match_indices("demo_multiplexer_") {
            let word: String =
                text[at..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            let family =
                family_of(&word).unwrap_or_else(|| panic!("{name} names {word}, which is no family"));
            families.insert(family.name);
        }
        assert!(families.len() >= at_least, "{name} shows {} families", families.len());
    }
}

#[test]
fn the_dashboard_can_be_imported() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/grafana-dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_i64().unwrap()), "an id is used twice: {panel}");
        assert!(panel["title"].as_str().is_some_and(|title| !title.is_empty()), "{panel}");
        let shown = panel["type"] == "row" || panel["targets"].as_array().is_some_and(|it| !it.is_empty());
        assert!(shown, "a panel shows something: {panel}");
        let place = &panel["gridPos"];
        assert!(place["x"].as_i64().unwrap() + place["w"].as_i64().unwrap() <= 24, "{panel}");
    }
    // Importable anywhere: the data source is asked for, none is fixed.
    assert_eq!(dashboard["templating"]["list"][0]["type"], "datasource");
    assert!(!dashboard["uid"].is_null() && dashboard["id"].is_null());
}
