//! Visitors' shops that are published at one node of several: served by all, withdrawn by
//! all, whoever was away meanwhile. Scripted workshops, and a real NATS.

use std::time::Duration;

use demo_multiplexer::id::GoldenName;
use demo_multiplexer::promote::Workshop as _;
use demo_multiplexer::snapshot::depot::{DepotError, Shared, Standing};
use demo_multiplexer::testing::{eventually, runtime_of};
use http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::nodes::{NEW, Node, OLD};
use crate::server::{self, Server};
use crate::{Host, depot, depot_of_nobody};

/// What the scripted workshop makes of the kept shop.
const SPRING: &str = "spring-1-aaaa";
const KEPT: &str = "aaaabbbbcccc";

impl Node {
    /// Publishes a kept shop as `spring`; answers what came of it.
    async fn publish(&self) -> String {
        self.files.take_of("spring", SPRING, b"spring");
        self.host.keep(KEPT);
        let path = format!("/api/v1/saved/{KEPT}/publish");
        let begun = self.daemon.post(&path, r#"{"golden": "spring"}"#).await;
        let task = self.daemon.ended(&begun).await;
        assert_eq!(task["state"], "done", "{task}");
        task["result"].as_str().unwrap().to_owned()
    }

    async fn withdraw(&self) -> String {
        let begun = self.daemon.send(Method::DELETE, "/api/v1/goldens/spring", &[], "").await;
        let task = self.daemon.ended(&begun).await;
        assert_eq!(task["state"], "done", "{task}");
        task["result"].as_str().unwrap().to_owned()
    }

    async fn acquire_spring(&self) -> (u16, Value) {
        let answer = self.daemon.post("/api/v1/demo/acquire", r#"{"golden": "spring"}"#).await;
        (answer.status.as_u16(), answer.json())
    }

    /// Waits until it hands a copy of `spring` out; answers its id.
    async fn hands_out_spring(&self) -> String {
        eventually("it hands out what was published", async || {
            let (status, copy) = self.acquire_spring().await;
            (status == 201).then(|| copy["id"].as_str().unwrap().to_owned())
        })
        .await
    }

    async fn knows_spring_no_more(&self) {
        eventually("it is withdrawn, and nothing of it is ready", async || {
            let all = self.daemon.get("/api/v1/demo?golden=spring&state=ready").await.json();
            (all["total"] == 0 && self.acquire_spring().await.0 == 400).then_some(())
        })
        .await;
    }

    /// The same node, its daemon started again on what it has written down.
    async fn start_again(mut self) -> Self {
        self.daemon.stop().await;
        let shop = runtime_of(OLD, "shop", &self.host.restore);
        let choice = self.workshop.choice().await.unwrap();
        let published = choice.published().filter_map(|golden| Some((golden, choice.promoted(golden)?)));
        let published = published.map(|(golden, id)| runtime_of(id.as_str(), golden.as_str(), &self.new));
        let goldens = std::iter::once(shop).chain(published).collect();
        self.daemon = self.host.start_stock(goldens, &self.workshop, &[]).await;
        self
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_golden_published_at_one_node_is_handed_out_at_another_and_withdrawn_everywhere() {
    if !server::is_there("a_golden_published_at_one_node_is_handed_out_at_another_and_withdrawn_everywhere") {
        return;
    }
    let nats = Server::start();
    let (store, _) = depot(&nats).await;
    let a = Node::start(&nats, None).await;
    let b = Node::start(&nats, Some(&a)).await;
    let done = a.publish().await;
    assert!(done.ends_with("the other nodes are told"), "{done}");
    let copy = b.hands_out_spring().await;
    let path = format!("/api/v1/demo/{copy}");
    assert_eq!(b.daemon.get(&path).await.json()["snapshot"], SPRING);
    b.files.catalog(&[&a.files]).verify(&SPRING.parse().unwrap()).unwrap();
    assert!(b.daemon.get("/?golden=spring").await.text().contains("The spring shop"));
    assert_eq!(store.list().await.unwrap().len(), 2, "what is served somewhere is there");

    // Where it was not published.
    let done = b.withdraw().await;
    assert!(done.ends_with("0 of its snapshots removed; the other nodes are told"), "{done}");
    a.knows_spring_no_more().await;
    b.knows_spring_no_more().await;
    assert_eq!(b.daemon.get(&path).await.json()["state"], "assigned", "visitors' shops live on");
    eventually("nothing of it is left for others", async || {
        (store.list().await.unwrap().len() == 1).then_some(())
    })
    .await;
    let spring: GoldenName = "spring".parse().unwrap();
    assert_eq!(store.served(&spring).await.unwrap().unwrap().standing, Standing::Withdrawn);
    let again = a.daemon.send(Method::DELETE, "/api/v1/goldens/spring", &[], "").await;
    assert_eq!(again.status, 404, "{}", again.text());
    for node in [&a, &b] {
        assert_eq!(node.served().await, json!([OLD]));
    }

    // The same name again is another golden.
    a.publish().await;
    b.hands_out_spring().await;
    for node in [a, b] {
        node.daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_learns_what_was_withdrawn_meanwhile() {
    if !server::is_there("who_was_away_learns_what_was_withdrawn_meanwhile") {
        return;
    }
    let mut nats = Server::start();
    let a = Node::start(&nats, None).await;
    let b = Node::start(&nats, Some(&a)).await;
    a.publish().await;
    b.hands_out_spring().await;

    nats.kill();
    let b = b.start_again().await;
    assert_eq!(b.acquire_spring().await.0, 201, "it is there again without NATS, too");
    let done = a.withdraw().await;
    assert!(done.contains("the other nodes are told later"), "{done}");
    nats.start_again();
    b.knows_spring_no_more().await;
    let b = b.start_again().await;
    assert_eq!(b.served().await, json!([OLD]));
    for node in [a, b] {
        node.daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_settings_name_is_not_replaced_by_what_another_node_publishes() {
    if !server::is_there("what_settings_name_is_not_replaced_by_what_another_node_publishes") {
        return;
    }
    let nats = Server::start();
    let a = Node::start(&nats, None).await;
    let b = Node::start(&nats, Some(&a)).await;
    let (store, _) = depot(&nats).await;
    store.send(&a.files.catalog(&[]), &NEW.parse().unwrap()).await.unwrap();
    let said = Shared { snapshot: NEW.parse().unwrap(), at: Timestamp::now(), standing: Standing::Published };
    for golden in ["shop", "winter"] {
        store.serve(&golden.parse().unwrap(), &said).await.unwrap();
    }
    let why = |task: &Value| task["error"].as_str().unwrap_or_default().to_owned();
    eventually("an operator is told of the clash", async || {
        let tasks = b.followed().await;
        let clash = tasks.iter().find(|task| task["subject"] == "shop")?;
        assert!(why(clash).contains("publish it by another name"), "{clash}");
        Some(())
    })
    .await;
    eventually("no golden is made of another one's snapshot", async || {
        let tasks = b.followed().await;
        let winter = tasks.iter().find(|task| task["subject"] == "winter")?;
        assert!(why(winter).contains("none of golden winter"), "{winter}");
        Some(())
    })
    .await;
    assert_eq!(b.served().await, json!([OLD]));
    for node in [a, b] {
        node.daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_knows_the_nodes_secret_publishes_and_withdraws() {
    if !server::is_there("only_who_knows_the_nodes_secret_publishes_and_withdraws") {
        return;
    }
    let (nats, here) = (Server::start(), Host::new());
    let (nodes, _) = depot(&nats).await;
    let (stranger, _) = depot_of_nobody(&nats).await;
    let spring: GoldenName = "spring".parse().unwrap();
    let id = here.take_of("spring", SPRING, b"spring");
    nodes.send(&here.catalog(&[]), &id).await.unwrap();
    let now = Timestamp::now();
    let said = |standing, seconds| {
        let at = now + SignedDuration::from_secs(seconds);
        Shared { snapshot: id.clone(), at, standing }
    };
    nodes.serve(&spring, &said(Standing::Published, 0)).await.unwrap();
    let before = nodes.state().await.unwrap();
    assert_eq!(nodes.told().await.unwrap()[&spring], said(Standing::Published, 0));
    assert_eq!(nodes.state().await.unwrap(), before, "reading changes nothing");
    assert!(stranger.told().await.unwrap().is_empty());

    let refused = stranger.serve(&spring, &said(Standing::Withdrawn, 1)).await.unwrap_err();
    assert!(matches!(refused, DepotError::NoSecret), "{refused}");
    let forger = stranger.known_by(crate::NodeSecret::new("another one's".to_owned().into()));
    forger.serve(&spring, &said(Standing::Withdrawn, 2)).await.unwrap();
    assert_ne!(nodes.state().await.unwrap(), before, "a change is seen");
    assert_eq!(nodes.told().await.unwrap().get(&spring), None, "it says nothing");
    nodes.remove(std::slice::from_ref(&id)).await.unwrap();
    assert_eq!(nodes.list().await.unwrap(), std::slice::from_ref(&id), "it takes nothing away either");

    // The node that serves it tells again, and whoever withdraws it is believed.
    nodes.serve(&spring, &said(Standing::Published, 0)).await.unwrap();
    nodes.serve(&spring, &said(Standing::Withdrawn, 3)).await.unwrap();
    nodes.serve(&spring, &said(Standing::Published, 2)).await.unwrap();
    assert_eq!(nodes.told().await.unwrap()[&spring].standing, Standing::Withdrawn, "the last word counts");
    nodes.remove(std::slice::from_ref(&id)).await.unwrap();
    assert!(nodes.list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_replaced_while_it_is_read_is_read_again() {
    if !server::is_there("what_is_replaced_while_it_is_read_is_read_again") {
        return;
    }
    let nats = Server::start();
    let (nodes, jetstream) = depot(&nats).await;
    let spring: GoldenName = "spring".parse().unwrap();
    let said =
        Shared { snapshot: SPRING.parse().unwrap(), at: Timestamp::now(), standing: Standing::Published };
    nodes.serve(&spring, &said).await.unwrap();

    // Who writes a name anew removes its former content, which somebody may just be reading.
    let bucket = jetstream.get_object_store("test-snapshots").await.unwrap();
    let mut written = Vec::new();
    bucket.get("served/spring").await.unwrap().read_to_end(&mut written).await.unwrap();
    let content = jetstream.get_stream("OBJ_test-snapshots").await.unwrap();
    content.purge().filter("$O.test-snapshots.C.>").await.unwrap();
    let read = tokio::time::timeout(Duration::from_secs(20), nodes.told());
    let replaced = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        bucket.put("served/spring", &mut &written[..]).await.unwrap();
    };
    let (told, ()) = tokio::join!(read, replaced);
    assert_eq!(told.expect("it is read in time").unwrap()[&spring], said);
}
