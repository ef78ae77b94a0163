//! Two faults at once: a maker's word arrived and its answer did not, nor did those to
//! its further tries; and by that word others have the instance meanwhile.

use super::*;
use crate::provision::gate::Rank;
use crate::provision::{Doing, Order};
use crate::restore::FirstPage;
use crate::store::{Claim, Claimed};

struct Pair {
    world: World,
    script: Arc<Script>,
    /// As the maker reaches it.
    lossy: Arc<LossyStore>,
    /// As another node does.
    store: Arc<dyn Store>,
    _dir: tempfile::TempDir,
}

fn pair() -> Pair {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let store = store_in(dir.path());
    let lossy = Arc::new(LossyStore::new(Arc::clone(&store)));
    let world = daemon_on(Arc::clone(&lossy) as Arc<dyn Store>, &script, 8);
    Pair { world, script, lossy, store, _dir: dir }
}

impl Pair {
    /// Has one made for the pool, whose maker loses the answer to its last word; then
    /// `meanwhile` happens.
    async fn make_and_lose<F>(&self, then: Then, meanwhile: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let golden = Arc::clone(&self.world.lifecycle.goldens()[0]);
        let order = Order {
            golden: &golden.name,
            maker: golden.restore.as_ref().unwrap(),
            first_page: FirstPage::Fetched,
            idempotency_key: None,
            permit: self.world.lifecycle.gate().enter(Rank::Pool).await,
        };
        let made = self.world.lifecycle.make(order, |record| {
            record.state = State::Ready;
            self.lossy.lose_an_answer(then, meanwhile);
        });
        made.await.expect_err("it has heard nothing");
    }

    fn running(&self) -> InstanceId {
        let running = self.script.running();
        assert_eq!(running.len(), 1, "{running:?}");
        running[0].clone()
    }

    /// Some passes later it runs, and is whose the store says that it is.
    async fn lives_on(&self, held: &Instance) {
        let mut reaper = self.world.reaper();
        for _ in 0..3 {
            reaper.pass(Timestamp::now()).await;
            reaper.settle().await;
        }
        assert_eq!(self.running(), held.id);
        assert_eq!(self.world.lifecycle.doing(&held.id), Some(Doing::Living));
        let present = self.store.get(&held.id).await.unwrap().unwrap();
        assert_eq!((present.state, present.expires_at), (State::Assigned, held.expires_at));
    }
}

/// Another node's client takes one.
async fn claims(store: &dyn Store) -> Instance {
    let now = Timestamp::now();
    let expires_at = now + SignedDuration::from_mins(1);
    let claim = Claim { golden: "shop".parse().unwrap(), now, expires_at, idempotency_key: None };
    let Claimed::New(claimed) = store.claim(claim).await.unwrap() else { panic!("none is ready") };
    claimed
}

#[tokio::test]
async fn what_another_node_claimed_while_its_maker_heard_nothing_is_its_clients() {
    for then in [Then::Up, Then::Down] {
        let pair = pair();
        let (store, told) = (Arc::clone(&pair.store), Arc::new(std::sync::OnceLock::new()));
        let tell = Arc::clone(&told);
        pair.make_and_lose(then, async move || tell.set(claims(&*store).await).unwrap()).await;
        let held = told.get().unwrap();
        assert_eq!(pair.running(), held.id, "it stays while the store cannot be asked: {then:?}");
        pair.lossy.is_back();
        pair.lives_on(held).await;
        let mut reaper = pair.world.reaper();
        reaper.pass(held.expires_at.unwrap()).await;
        reaper.settle().await;
        assert!(pair.script.traces().is_empty(), "and not longer than its time");
    }
}

#[tokio::test]
async fn what_nobody_claimed_is_taken_down_when_the_store_can_be_asked() {
    let pair = pair();
    pair.make_and_lose(Then::Up, async || {}).await;
    assert!(pair.script.traces().is_empty(), "at once");
    pair.make_and_lose(Then::Down, async || {}).await;
    let mut reaper = pair.world.reaper();
    reaper.pass(Timestamp::now()).await;
    reaper.settle().await;
    pair.running();
    pair.lossy.is_back();
    reaper.pass(Timestamp::now()).await;
    reaper.settle().await;
    assert!(pair.script.traces().is_empty() && pair.store.list().await.unwrap().is_empty());
    assert_eq!(pair.world.lifecycle.room(), 8);
}

#[tokio::test]
async fn what_was_given_up_and_is_claimed_here_is_that_clients() {
    let pair = pair();
    pair.make_and_lose(Then::Down, async || {}).await;
    pair.lossy.is_back();
    let held = pair.world.acquire().await;
    pair.lives_on(&held).await;
}

#[tokio::test]
async fn a_client_that_was_told_no_comes_back_with_its_key_for_what_was_made_for_it() {
    let pair = pair();
    let acquire = async |key: Option<&str>| {
        let request = AcquireRequest { idempotency_key: key.map(str::to_owned), ..AcquireRequest::default() };
        pair.world.provisioner.acquire(request).await
    };
    pair.lossy.lose_an_answer(Then::Down, async || {});
    acquire(Some("key")).await.expect_err("nobody heard");
    let made = pair.running();
    pair.lossy.is_back();
    let mut reaper = pair.world.reaper();
    reaper.pass(Timestamp::now()).await;
    reaper.settle().await;
    let held = acquire(Some("key")).await.unwrap().instance;
    assert_eq!(held.id, made);
    pair.lives_on(&held).await;

    // Without a key nobody comes back.
    pair.world.provisioner.release(&held.id).await.unwrap();
    pair.lossy.lose_an_answer(Then::Down, async || {});
    acquire(None).await.expect_err("nobody heard");
    pair.lossy.is_back();
    reaper.pass(Timestamp::now()).await;
    reaper.settle().await;
    assert!(pair.script.traces().is_empty());
}
