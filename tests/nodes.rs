//! Several hosts that serve one domain: three daemons on scripted engines, each a
//! process in a network of its own, on one real Valkey. Cut off, killed, restarted,
//! drained.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;
mod host;
#[path = "common/lab.rs"]
mod lab;
#[path = "nodes/machine.rs"]
mod machine;
#[allow(dead_code, reason = "the tests of NATS itself need more of it")]
#[path = "nats/server.rs"]
mod nats;
#[path = "nodes/network.rs"]
mod network;
#[path = "nodes/real.rs"]
mod real;
#[path = "nodes/restart.rs"]
mod restart;
#[allow(dead_code, reason = "the tests of Valkey itself need more of it")]
#[path = "valkey/server.rs"]
mod server;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use demo_multiplexer::testing::eventually;
use http::{Method, StatusCode};
use machine::{Machine, Trio};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Whether such a network can be made here.
fn is_fit(test: &str) -> bool {
    lab::host_is_fit(test) && server::is_there(test)
}

/// A shop of that node, got through the other one.
async fn shop_of(trio: &Trio, node: &str, through: &Machine) -> String {
    // One that is back, or whose machine is busy, counts as silent until it has spoken.
    trio.node(node, |node| node["condition"] == "here").await;
    let got = through.acquire().await;
    assert_eq!(got.status, StatusCode::CREATED, "{}", got.text());
    let id = got.id();
    assert_eq!(trio.node_of(&id).await, node);
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_serves_every_shop() {
    if !is_fit("any_node_serves_every_shop") {
        return;
    }
    let trio = Trio::start(&[("a", &[]), ("b", &[("POOL_TARGET_SIZE", "1")]), ("c", &[])]).await;
    let [a, b, c] = trio.all();
    trio.ready("b", 1).await;
    let id = shop_of(&trio, "b", a).await;
    for machine in [a, b, c] {
        let page =
            machine.shop(Method::GET, &id, "/some/page?x=1", &[("x-forwarded-for", "6.6.6.6")], "").await;
        let seen = page.json();
        assert_eq!((page.status, &seen["node"]), (StatusCode::OK, &json!("b")), "through {}", machine.name);
        assert_eq!(
            (&seen["path"], &seen["host"]),
            (&json!("/some/page?x=1"), &json!(format!("{id}.localhost:8080")))
        );
        assert_eq!(seen["x-forwarded-for"], json!(trio.client()), "nobody chooses an address");
        assert_eq!(seen["x-demo-multiplexer-node"], Value::Null, "a pass is no shop's to see");
    }
    let posted = c.shop(Method::POST, &id, "/", &[], &"x".repeat(300_000)).await;
    assert_eq!(posted.json()["bytes"], 300_000, "{}", posted.text());
    assert_eq!(echoed(c, &id).await, b"hello", "an upgrade goes all the way");

    // What only its own daemon can do, through another one.
    let path = format!("/api/v1/demo/{id}");
    let reset = c.post(&format!("{path}/reset"), "").await;
    assert_eq!(
        (reset.status, &reset.json()["state"]),
        (StatusCode::OK, &json!("assigned")),
        "{}",
        reset.text()
    );
    let asleep = a.post(&format!("{path}/hibernate"), "").await;
    assert_eq!(asleep.json()["state"], "hibernated", "{}", asleep.text());
    let woken = c.shop(Method::GET, &id, "/", &[], "").await;
    assert_eq!(woken.json()["node"], "b", "a visitor wakes it through any node");
    let logs = a.get(&format!("{path}/logs")).await;
    assert!(
        logs.problem(409).contains("does not run"),
        "a scripted shop has no process: its daemon was asked"
    );

    // What is nobody's word.
    let forged = [("x-demo-multiplexer-node", "v1 visit a b 1 00")];
    let refused = b.shop(Method::GET, &id, "/", &forged, "").await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    let unknown = a.shop(Method::GET, "aaaaaaaaaaaa", "/", &[], "").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    let door = a.post("/node/v1/drain", "").await;
    assert_eq!(door.status, StatusCode::NOT_FOUND, "without a pass there is no such path");
    let through_a_shop = a.shop(Method::POST, &id, "/node/v1/drain", &[], "").await;
    assert_eq!(through_a_shop.json()["path"], "/node/v1/drain", "a visitor's path is the shop's");

    assert_eq!(a.delete(&path).await.status, StatusCode::NO_CONTENT);
    eventually("its record is forgotten", async || {
        let all = a.get(&format!("/api/v1/demo?q={id}")).await.json();
        (all["total"] == 0).then_some(())
    })
    .await;
    for machine in [a, b, c] {
        let (page, told) = (machine.shop(Method::GET, &id, "/", &[], "").await, machine.get(&path).await);
        let over = (StatusCode::GONE, StatusCode::GONE);
        assert_eq!((page.status, told.status), over, "it is over on every node: {}", machine.name);
    }
    trio.end();
}

/// What comes back through an upgraded connection to a shop.
async fn echoed(machine: &Machine, id: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(machine.address).await.unwrap();
    let head = format!(
        "GET /upgrade HTTP/1.1\r\nhost: {id}.localhost:8080\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    stream.write_all(b"hello").await.unwrap();
    let mut back = vec![0; 5];
    stream.read_exact(&mut back).await.unwrap();
    back
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_room_has_another_one_make_it_and_a_drained_one_is_left_alone() {
    if !is_fit("a_node_without_room_has_another_one_make_it_and_a_drained_one_is_left_alone") {
        return;
    }
    let full = ("MAX_INSTANCES", "1");
    let trio =
        Trio::start(&[("a", &[full]), ("b", &[("MAX_INSTANCES", "2")]), ("c", &[("MAX_INSTANCES", "3")])])
            .await;
    let [a, b, _] = trio.all();
    let mut nodes = Vec::new();
    let mut sources = BTreeSet::new();
    for number in 0..6 {
        let key = json!({ "idempotency_key": format!("client-{number}") }).to_string();
        let got = a.post("/api/v1/demo/acquire", &key).await;
        assert_eq!(got.status, StatusCode::CREATED, "{}", got.text());
        sources.insert(got.json()["source"].as_str().unwrap().to_owned());
        let again = b.post("/api/v1/demo/acquire", &key).await;
        assert_eq!((again.status, again.id()), (StatusCode::OK, got.id()), "a key is good on every node");
        nodes.push(trio.node_of(&got.id()).await);
        trio.heard().await;
    }
    assert_eq!(nodes[0], "a", "here, as long as there is room");
    assert_eq!(nodes.iter().filter(|node| *node == "b").count(), 2, "{nodes:?}");
    assert_eq!(nodes.iter().filter(|node| *node == "c").count(), 3, "{nodes:?}");
    assert_eq!(sources, BTreeSet::from(["restore".to_owned()]), "somebody waited for each");
    a.acquire().await.problem(503);

    let held = a.get("/api/v1/demo").await.json();
    for one in held["instances"].as_array().unwrap() {
        let id = one["id"].as_str().unwrap();
        assert_eq!(a.delete(&format!("/api/v1/demo/{id}")).await.status, StatusCode::NO_CONTENT);
    }
    trio.room("a", 1).await;
    trio.room("b", 2).await;
    trio.room("c", 3).await;
    let drained = a.post("/api/v1/pool/drain?node=c", "").await;
    assert_eq!(drained.json()["drained"], true, "{}", drained.text());
    assert_eq!(a.post("/api/v1/pool/drain", "").await.json()["drained"], true);
    trio.node("c", |node| node["drained"] == true).await;
    for _ in 0..2 {
        let id = a.acquire().await.id();
        assert_eq!(trio.node_of(&id).await, "b", "the only one that is not drained");
    }
    trio.heard().await;
    a.acquire().await.problem(503);
    let undrained = b.delete("/api/v1/pool/drain?node=c").await;
    assert_eq!(undrained.json()["drained"], false, "{}", undrained.text());
    trio.node("c", |node| node["drained"] == false).await;
    assert_eq!(trio.node_of(&a.acquire().await.id()).await, "c");
    assert_eq!(
        a.post("/api/v1/pool/drain?node=nobody", "").await.problem(503),
        "node nobody is not there: `demo-multiplexer nodes` shows who is"
    );
    trio.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_cut_off_loses_its_shops_unless_it_is_back_in_time() {
    if !is_fit("a_node_that_is_cut_off_loses_its_shops_unless_it_is_back_in_time") {
        return;
    }
    let trio = Trio::start(&[("a", &[]), ("b", &[("POOL_TARGET_SIZE", "1")]), ("c", &[])]).await;
    let [a, b, _] = trio.all();
    trio.ready("b", 1).await;
    let id = shop_of(&trio, "b", a).await;
    trio.network.cut("b");
    trio.node("b", |node| node["condition"] == "silent").await;
    // The pool of a node that may be gone is nobody's.
    assert_eq!(trio.node_of(&a.acquire().await.id()).await, "a");
    trio.network.mend("b");
    trio.node("b", |node| node["condition"] == "here").await;
    let page = a.shop(Method::GET, &id, "/", &[], "").await;
    assert_eq!(page.json()["node"], "b", "it was back in time: {}", page.text());

    trio.network.cut("b");
    let page = trio.lost(&id).await;
    assert!(page.text().contains("This shop is lost"), "{}", page.text());
    assert!(a.get(&format!("/api/v1/demo/{id}")).await.problem(410).contains("is lost: its node b"));
    trio.node("b", |node| node["condition"] == "lost").await;
    trio.network.mend("b");
    eventually("it is back and takes down what was given up", async || {
        (b.running().await.iter().all(|running| *running != id)).then_some(())
    })
    .await;
    trio.ready("b", 1).await;
    // Its record is gone with it; who marked it as lost still knows.
    let page = a.shop(Method::GET, &id, "/", &[], "").await;
    assert!([StatusCode::GONE, StatusCode::NOT_FOUND].contains(&page.status), "{}", page.text());
    shop_of(&trio, "b", a).await;
    trio.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_nodes_shops_are_lost_and_it_may_come_back() {
    if !is_fit("a_dead_nodes_shops_are_lost_and_it_may_come_back") {
        return;
    }
    let mut trio = Trio::start(&[("a", &[]), ("b", &[("POOL_TARGET_SIZE", "1")]), ("c", &[])]).await;
    trio.ready("b", 1).await;
    let id = shop_of(&trio, "b", trio.at("a")).await;
    let died = Instant::now();
    trio.kill("b");
    trio.lost(&id).await;
    let took = died.elapsed();
    println!("lost after {took:?}");
    // Ten seconds are promised; a busy machine may take longer for all of it.
    assert!(took < Duration::from_secs(20), "{took:?}");
    let scrape = trio.at("a").get("/metrics").await;
    assert!(scrape.text().contains("demo_multiplexer_nodes_lost_total 1\n"));
    assert!(scrape.text().contains("demo_multiplexer_nodes{condition=\"lost\"} 1\n"));
    trio.start_again("b").await;
    trio.node("b", |node| node["condition"] == "here").await;
    trio.ready("b", 1).await;
    let id = shop_of(&trio, "b", trio.at("c")).await;

    // It dies for good. A day is too long for a test, so its loss is put back by one.
    trio.kill("b");
    trio.lost(&id).await;
    trio.valkey.run(&["HSET", "{demo-multiplexer}:lost", "b", "0"]).await;
    eventually("it is forgotten, and that its shop was there is not", async || {
        let nodes = trio.at("c").get("/api/v1/nodes").await.json();
        let gone = nodes["nodes"].as_array().unwrap().iter().all(|node| node["node"] != "b");
        let shop = trio.at("a").get(&format!("/api/v1/demo/{id}")).await;
        (gone && shop.status == StatusCode::GONE).then_some(())
    })
    .await;
    trio.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_of_the_same_name_is_refused() {
    if !is_fit("a_second_daemon_of_the_same_name_is_refused") {
        return;
    }
    let trio = Trio::start(&[("a", &[])]).await;
    let told = trio.try_another("a").await;
    assert!(told.contains("another daemon with the node name a runs on the store"), "{told}");
    assert_eq!(trio.at("a").acquire().await.status, StatusCode::CREATED, "the first one goes on");
    trio.end();
}
