//! The event stream, as somebody else's program sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use demo_multiplexer::testing::eventually;
use futures_util::StreamExt as _;
use serde_json::Value;

use super::common::{Daemon, Host};
use super::server::{self, Server};
use super::{client, kept, link_is};

const STREAM: &str = "demo-multiplexer-events";

/// Reads with a durable consumer of that name until `happened` was seen of the
/// instance; answers all events of it in the order in which they came.
async fn follow(server: &Server, durable: &str, id: &str, happened: &str) -> Vec<(String, Value)> {
    let context = client(server).await;
    let config = pull::Config {
        durable_name: Some(durable.into()),
        deliver_policy: DeliverPolicy::All,
        ack_policy: AckPolicy::Explicit,
        ..pull::Config::default()
    };
    let consumer = context.create_consumer_on_stream(config, STREAM).await.unwrap();
    let mut messages = consumer.messages().await.unwrap();
    let mut seen = Vec::new();
    let last = async {
        while let Some(message) = messages.next().await {
            let message = message.unwrap();
            message.ack().await.unwrap();
            let event: Value = serde_json::from_slice(&message.payload).unwrap();
            if event["instance_id"] == id {
                let is_last = event["happened"] == happened;
                seen.push((message.subject.to_string(), event));
                if is_last {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), last)
        .await
        .unwrap_or_else(|_| panic!("{happened} never came"));
    seen
}

fn words(events: &[(String, Value)]) -> Vec<&str> {
    events.iter().map(|(_, event)| event["happened"].as_str().unwrap()).collect()
}

async fn one_life(daemon: &Daemon) -> String {
    let id = daemon.acquire().await.id();
    let more = daemon.post(&format!("/api/v1/demo/{id}/extend"), r#"{"ttl": "5m"}"#).await;
    assert_eq!(more.status, 200, "{}", more.text());
    assert_eq!(daemon.delete(&format!("/api/v1/demo/{id}")).await.status, 204);
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_sees_a_whole_life_in_order_and_again() {
    if !server::is_there("a_subscriber_sees_a_whole_life_in_order_and_again") {
        return;
    }
    let (server, host) = (Server::start(), Host::new());
    let daemon = host.start(&[("NATS_URL", &server.url())]).await;
    link_is(&daemon, "nats").await;
    let id = one_life(&daemon).await;
    let seen = follow(&server, "one", &id, "gone").await;
    assert_eq!(words(&seen), ["warming", "assigned", "extended", "expired", "gone"]);
    for (subject, event) in &seen {
        assert_eq!(*subject, format!("demo-multiplexer.events.shop.{}", event["happened"].as_str().unwrap()));
        fits_the_schema(event);
    }
    // Who comes later gets the same, and who was there gets what is new.
    assert_eq!(follow(&server, "other", &id, "gone").await, seen);
    let next = one_life(&daemon).await;
    let more = follow(&server, "one", &next, "gone").await;
    assert_eq!(words(&more).first(), Some(&"warming"));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_an_outage_come_late_once_and_in_order() {
    if !server::is_there("events_of_an_outage_come_late_once_and_in_order") {
        return;
    }
    let (mut server, host) = (Server::start(), Host::new());
    let daemon = host.start(&[("NATS_URL", &server.url()), ("POOL_TARGET_SIZE", "2")]).await;
    link_is(&daemon, "nats").await;
    let mut ids = BTreeSet::new();
    for round in 0..30 {
        ids.insert(one_life(&daemon).await);
        match round {
            10 => server.kill(),
            20 => server.start_again(),
            _ => {}
        }
    }
    let events = eventually("all came", async || {
        let context = client(&server).await;
        context.get_stream(STREAM).await.ok()?;
        let events = kept(&server, STREAM).await;
        let gone = |event: &&(String, Value)| event.1["happened"] == "gone";
        (events.iter().filter(gone).count() >= ids.len()).then_some(events)
    })
    .await;
    let mut lives: BTreeMap<&str, Vec<(u64, &str)>> = BTreeMap::new();
    for (_, event) in &events {
        let what = (event["generation"].as_u64().unwrap(), event["happened"].as_str().unwrap());
        lives.entry(event["instance_id"].as_str().unwrap()).or_default().push(what);
    }
    for id in &ids {
        let life = &lives[id.as_str()];
        assert!(life.is_sorted_by_key(|(generation, _)| generation), "in order: {life:?}");
        let distinct: BTreeSet<_> = life.iter().collect();
        assert_eq!(distinct.len(), life.len(), "once: {life:?}");
        assert_eq!((life.first().unwrap().1, life.last().unwrap().1), ("warming", "gone"), "{life:?}");
    }
    daemon.stop().await;
}

/// Holds an event against the schema that the README prints: of JSON Schema the
/// words that it uses, and no others.
fn fits_the_schema(event: &Value) {
    let schema: Value = serde_json::from_str(include_str!("../../src/instance/event.schema.json")).unwrap();
    let properties = schema["properties"].as_object().unwrap();
    let event = event.as_object().unwrap();
    for name in schema["required"].as_array().unwrap() {
        assert!(event.contains_key(name.as_str().unwrap()), "{name} is missing: {event:?}");
    }
    for (name, value) in event {
        let rule = properties.get(name).unwrap_or_else(|| panic!("{name} is not in the schema"));
        for (word, of) in rule.as_object().unwrap() {
            let holds = match word.as_str() {
                "description" | "format" => true,
                "const" => value == of,
                "enum" => of.as_array().unwrap().contains(value),
                "minimum" => value.as_u64() >= of.as_u64(),
                "type" => {
                    let kind = match value {
                        Value::Null => "null",
                        Value::String(_) => "string",
                        Value::Number(_) => "integer",
                        other => panic!("{name}: {other}"),
                    };
                    of == kind || of.as_array().is_some_and(|kinds| kinds.contains(&kind.into()))
                }
                other => panic!("the test does not know {other}"),
            };
            assert!(holds, "{name}: {value} does not keep {word} {of}");
        }
        if rule["format"] == "date-time"
            && let Some(text) = value.as_str()
        {
            text.parse::<jiff::Timestamp>().unwrap();
        }
    }
}
