//! What was done and its answer lost: a relay between store and server loses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use demo_multiplexer::error::ErrorKind;
use demo_multiplexer::instance::State;
use demo_multiplexer::store::conformance::{at, claim, golden, instance, node};
use demo_multiplexer::store::{Admission, Claimed, Store, Window};
use demo_multiplexer::testing::eventually;
use jiff::SignedDuration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::server::{self, Server};
use crate::{at as settings, open};

/// Passes answers on.
const PASS: usize = 0;
/// Swallows them; the connection stays.
const SWALLOW: usize = 1;
/// Cuts the connection instead of passing the next one on, then passes again.
const CUT: usize = 2;

struct Relay {
    url: String,
    answers: Arc<AtomicUsize>,
}

impl Relay {
    async fn to(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let (answers, port) = (Arc::new(AtomicUsize::new(PASS)), server.port);
        let what = Arc::clone(&answers);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                tokio::spawn(relay(client, server, Arc::clone(&what)));
            }
        });
        Self { url, answers }
    }

    fn set(&self, what: usize) {
        self.answers.store(what, Ordering::SeqCst);
    }
}

async fn relay(client: TcpStream, server: TcpStream, answers: Arc<AtomicUsize>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
    let mut bytes = [0; 16 * 1024];
    while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
        let cut = answers.compare_exchange(CUT, PASS, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if cut {
            return;
        }
        let pass = answers.load(Ordering::SeqCst) == PASS;
        if pass && to_client.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

/// A store behind a relay, with its scripts in the server.
async fn store(relay: &Relay) -> Arc<dyn Store> {
    let store = open(&settings(&[("STORE_URL", &relay.url)]), &node("here")).await.unwrap();
    let other = golden("other");
    let mut one = store.insert(instance(&other, State::Ready, 0)).await.unwrap();
    store.claim(claim(&other, None)).await.unwrap();
    one = store.get(&one.id).await.unwrap().unwrap();
    one = store.update(one).await.unwrap();
    store.remove(&one.id).await.unwrap();
    store.admit("warm-up", &[], at(0)).await.unwrap();
    store
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_answer_is_lost_is_taken_back() {
    if !server::is_there("a_claim_whose_answer_is_lost_is_taken_back") {
        return;
    }
    let server = Server::start().await;
    let relay = Relay::to(&server).await;
    let (store, shop) = (store(&relay).await, golden("shop"));
    let one = store.insert(instance(&shop, State::Ready, 0)).await.unwrap();
    let two = store.insert(instance(&shop, State::Ready, 1)).await.unwrap();
    relay.set(SWALLOW);
    let (nameless, keyed) = tokio::join!(store.claim(claim(&shop, None)), async {
        // After the other one.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        store.claim(claim(&shop, Some("a"))).await
    });
    for answer in [nameless, keyed] {
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    relay.set(PASS);
    eventually("nobody got it, so it is over", async || {
        let state = store.get(&one.id).await.ok()??.state;
        (state == State::Expired).then_some(())
    })
    .await;
    let again = store.claim(claim(&shop, Some("a"))).await.unwrap();
    assert!(matches!(again, Claimed::Again(ref it) if it.id == two.id), "its client has a key: {again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_not_even_noticed() {
    if !server::is_there("a_cut_connection_is_not_even_noticed") {
        return;
    }
    let server = Server::start().await;
    let relay = Relay::to(&server).await;
    let (store, shop) = (store(&relay).await, golden("shop"));
    relay.set(CUT);
    let one = store.insert(instance(&shop, State::Ready, 0)).await.expect("what was done is not done again");
    store.insert(instance(&shop, State::Ready, 1)).await.unwrap();
    relay.set(CUT);
    let claimed = store.claim(claim(&shop, None)).await.unwrap();
    let Claimed::New(mut claimed) = claimed else { panic!("{claimed:?}") };
    assert_eq!(claimed.id, one.id, "the one that the lost answer named");
    claimed.expires_at = Some(at(90));
    relay.set(CUT);
    let extended = store.update(claimed).await.unwrap();
    assert_eq!(store.get(&one.id).await.unwrap().unwrap().generation, extended.generation);
    let counts = store.counts(&shop).await.unwrap();
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), [(State::Ready, 1), (State::Assigned, 1)]);
    let window = Window { length: SignedDuration::from_secs(60), limit: 2 };
    relay.set(CUT);
    let Admission::Admitted { allowances, .. } = store.admit("a", &[window], at(0)).await.unwrap() else {
        panic!("there is room")
    };
    assert_eq!(allowances[0].remaining, 1, "counted once");
    relay.set(CUT);
    store.remove(&one.id).await.unwrap();
}
