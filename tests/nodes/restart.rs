//! An upgrade: all nodes are started again, one after the other, while visitors are
//! on them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http::{Method, StatusCode};
use tokio::sync::RwLock;

use crate::is_fit;
use crate::machine::{Socket, Trio};

#[tokio::test(flavor = "multi_thread")]
async fn nodes_on_lent_sockets_are_started_again_without_a_failed_request() {
    if is_fit("nodes_on_lent_sockets_are_started_again_without_a_failed_request") {
        all_are_started_again(Socket::Lent).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_behind_a_load_balancer_are_started_again_without_a_failed_request() {
    if is_fit("nodes_behind_a_load_balancer_are_started_again_without_a_failed_request") {
        all_are_started_again(Socket::Own).await;
    }
}

/// One after the other, while visitors come in through all of them: also through the one
/// that is started again, where its socket stays.
async fn all_are_started_again(socket: Socket) {
    let pool = ("POOL_TARGET_SIZE", "1");
    let trio = Trio::on_sockets(socket, &[("a", &[pool]), ("b", &[pool]), ("c", &[pool])]).await;
    let mut shops = Vec::new();
    for name in ["a", "b", "c"] {
        trio.ready(name, 1).await;
        let id = trio.at(name).acquire().await.id();
        assert_eq!(trio.node_of(&id).await, name);
        shops.push(id);
    }
    let (trio, shops) = (Arc::new(trio), Arc::new(shops));
    // What a load balancer in front knows: where nothing new is sent for now.
    let out = Arc::new(RwLock::new(None));
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut visitors = tokio::task::JoinSet::new();
    for number in 0..6 {
        let (trio, shops, out) = (Arc::clone(&trio), Arc::clone(&shops), Arc::clone(&out));
        let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
        visitors.spawn(async move {
            let mut at = number;
            while !stop.load(Ordering::SeqCst) {
                at += 1;
                let machine = trio.all()[at % 3];
                // Held until it is answered: who takes a node out waits for those under way.
                let out = out.read().await;
                if *out == Some(machine.name.clone()) {
                    continue;
                }
                let id = &shops[(at / 3) % 3];
                let page = machine.shop(Method::GET, id, "/page", &[], "").await;
                assert_eq!(page.status, StatusCode::OK, "{id} through {}: {}", machine.name, page.text());
                if at % 7 == 0 {
                    let got = machine.acquire().await;
                    assert_eq!(got.status, StatusCode::CREATED, "at {}: {}", machine.name, got.text());
                    let path = format!("/api/v1/demo/{}", got.id());
                    assert_eq!(machine.delete(&path).await.status, StatusCode::NO_CONTENT);
                }
                served.fetch_add(1, Ordering::SeqCst);
                drop(out);
                tokio::task::yield_now().await;
            }
        });
    }
    for name in ["a", "b", "c"] {
        if socket == Socket::Own {
            *out.write().await = Some(name.to_owned());
        }
        let before = served.load(Ordering::SeqCst);
        trio.at(name).restart().await;
        *out.write().await = None;
        demo_multiplexer::testing::eventually("visitors were served", async || {
            (served.load(Ordering::SeqCst) > before + 30).then_some(())
        })
        .await;
    }
    stop.store(true, Ordering::SeqCst);
    visitors.join_all().await;
    for id in shops.iter() {
        let page = trio.at("a").shop(Method::GET, id, "/", &[], "").await;
        assert_eq!(page.status, StatusCode::OK, "it outlived the daemons");
    }
}
