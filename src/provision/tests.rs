//! Acquire, lease and life cycle on a scripted engine and the real store.

mod claimed;

use std::collections::HashSet;

use jiff::Timestamp;

use super::errors::{AcquireError, ChangeError, LeaseError, ResetError};
use super::*;
use crate::engine::Phase;
use crate::error::ErrorKind;
use crate::id::InstanceId;
use crate::instance::{EngineKind, State};
use crate::pool::Nudge;
use crate::route::Routes;
use crate::route::memory::Lookup;
use crate::store::Store;
use crate::store::embedded::EmbeddedStore;
use crate::testing::{Script, eventually, runtime};

const MINUTE: SignedDuration = SignedDuration::from_mins(1);

struct World {
    provisioner: Arc<Provisioner>,
    store: Arc<dyn Store>,
    routes: Arc<Routes>,
    restore: Arc<Script>,
    cold: Arc<Script>,
    _dir: tempfile::TempDir,
}

fn world(max_instances: usize, cold_start: ColdStart) -> World {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> =
        Arc::new(EmbeddedStore::open(&dir.path().join("store"), &"here".parse().unwrap()).unwrap());
    let (restore, cold) = (Script::quiet(EngineKind::Criu), Script::quiet(EngineKind::Podman));
    let routes = Arc::new(Routes::default());
    let lifecycle = Lifecycle::new(Parts {
        store: Arc::clone(&store),
        routes: Arc::clone(&routes),
        goldens: vec![runtime("shop", &restore, Some(&cold)), runtime("other", &restore, None)],
        max_instances,
        restore_concurrency: 2,
        refill: Nudge::default(),
        reap: Nudge::default(),
    });
    let terms = Terms {
        default_ttl: MINUTE,
        max_ttl: MINUTE * 60,
        cold_start,
        wait: Duration::from_secs(5),
        patience: Duration::from_secs(10),
        limits: Limits { hourly: 2, daily: 0 },
    };
    let provisioner = Arc::new(Provisioner::new(Arc::new(lifecycle), terms));
    World { provisioner, store, routes, restore, cold, _dir: dir }
}

impl World {
    async fn acquire(&self) -> Result<Acquired, AcquireError> {
        self.provisioner.acquire(AcquireRequest::default()).await
    }

    async fn acquire_with(&self, key: &str) -> Result<Acquired, AcquireError> {
        let request = AcquireRequest { idempotency_key: Some(key.into()), ..AcquireRequest::default() };
        self.provisioner.acquire(request).await
    }

    /// One instance in the pool.
    async fn warm(&self) -> Instance {
        self.make_for_pool(|record| record.state = State::Ready).await.unwrap()
    }

    /// Makes an instance as the pool does, with that last touch to its record.
    async fn make_for_pool(
        &self,
        hand_over: impl FnOnce(&mut Instance) + Send,
    ) -> Result<Instance, errors::MakeError> {
        let lifecycle = self.provisioner.lifecycle();
        let golden = Arc::clone(&lifecycle.goldens()[0]);
        let order = Order {
            golden: &golden.name,
            maker: golden.restore.as_ref().unwrap(),
            first_page: crate::restore::FirstPage::Fetched,
            idempotency_key: None,
            permit: lifecycle.gate().enter(gate::Rank::Pool).await,
        };
        lifecycle.make(order, hand_over).await
    }

    async fn assert_nothing_is_left(&self) {
        assert!(self.store.list().await.unwrap().is_empty(), "no record");
        assert!(self.restore.traces().is_empty() && self.cold.traces().is_empty(), "no traces");
        assert!(self.routes.memory().is_empty(), "no route");
        let lifecycle = self.provisioner.lifecycle();
        assert_eq!(lifecycle.room(), lifecycle.max_instances(), "no place");
    }
}

#[tokio::test]
async fn a_ready_instance_is_handed_over_at_once() {
    let world = world(4, ColdStart::Allowed);
    let warm = world.warm().await;
    let got = world.acquire().await.unwrap();
    assert_eq!((&got.instance.id, got.handed), (&warm.id, Handed::Now(Source::Pool)));
    assert_eq!(world.restore.attempts(), 1, "nothing was made for it");
    assert!(matches!(world.routes.lookup(warm.id.as_str()), Lookup::Found(_)));
}

#[tokio::test]
async fn an_empty_pool_means_a_restore_while_the_client_waits() {
    let world = world(4, ColdStart::Allowed);
    let got = world.acquire().await.unwrap();
    assert_eq!(got.handed, Handed::Now(Source::Restore));
    assert_eq!(got.instance.state, State::Assigned);
    assert_eq!(world.restore.first_pages(), [crate::restore::FirstPage::LeftToVisitor]);
    let (assigned, expires) = (got.instance.assigned_at.unwrap(), got.instance.expires_at.unwrap());
    assert_eq!(expires.duration_since(assigned), MINUTE);
}

#[tokio::test]
async fn a_failed_restore_falls_back_to_a_cold_start_visibly() {
    let world = world(4, ColdStart::Allowed);
    world.restore.fail_make(Some((Phase::Restore, ErrorKind::Incompatible)));
    let got = world.acquire().await.unwrap();
    assert_eq!(got.handed, Handed::Now(Source::Cold));
    assert_eq!(got.instance.made_by, Source::Cold);
    assert_eq!(world.store.list().await.unwrap().len(), 1, "the failed attempt left no record");
}

#[tokio::test]
async fn steady_failures_spare_clients_the_attempt() {
    let world = world(8, ColdStart::Allowed);
    world.restore.fail_make(Some((Phase::Restore, ErrorKind::Bug)));
    for _ in 0..5 {
        world.acquire().await.unwrap();
    }
    assert_eq!(world.restore.attempts(), 3, "after three in a row it is not tried again at once");
}

#[tokio::test]
async fn a_refused_cold_start_is_an_error() {
    let world = world(4, ColdStart::Refused);
    world.restore.fail_make(Some((Phase::Restore, ErrorKind::Incompatible)));
    let error = world.acquire().await.unwrap_err();
    assert!(matches!(error, AcquireError::Make { .. }), "{error}");
    assert_eq!(world.cold.attempts(), 0);
    world.assert_nothing_is_left().await;
}

#[tokio::test]
async fn while_what_the_shops_stand_on_is_down_none_is_handed_out_and_none_is_lost() {
    let world = world(4, ColdStart::Allowed);
    let warm = world.warm().await;
    world.restore.outage(Some("connection refused"));
    let error = world.acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("database, which is down: connection refused"), "{error}");
    assert_eq!((world.restore.attempts(), world.cold.attempts()), (1, 0), "nothing is made either");
    world.restore.outage(None);
    assert_eq!(world.acquire().await.unwrap().instance.id, warm.id);
}

#[tokio::test]
async fn a_failure_in_any_phase_leaves_nothing() {
    let world = world(4, ColdStart::Allowed);
    for phase in [Phase::Slot, Phase::Restore, Phase::Adopt, Phase::Personalize, Phase::Probe] {
        for (leave, kind) in [(false, ErrorKind::Bug), (true, ErrorKind::Bug), (true, ErrorKind::NoSpace)] {
            for script in [&world.restore, &world.cold] {
                script.fail_make(Some((phase, kind)));
                script.leave_traces(leave);
            }
            let error = world.acquire().await.unwrap_err();
            assert_eq!(error.kind(), kind, "{phase}: {error}");
            world.assert_nothing_is_left().await;
        }
    }
}

#[tokio::test]
async fn no_free_address_is_exhausted_and_not_tried_cold() {
    let world = world(4, ColdStart::Allowed);
    world.restore.fail_make(Some((Phase::Slot, ErrorKind::Exhausted)));
    assert_eq!(world.acquire().await.unwrap_err().kind(), ErrorKind::Exhausted);
    assert_eq!(world.cold.attempts(), 0, "a cold start needs an address as well");
}

#[tokio::test]
async fn the_host_never_holds_more_than_it_may() {
    let world = world(3, ColdStart::Allowed);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let provisioner = Arc::clone(&world.provisioner);
        clients.spawn(async move { provisioner.acquire(AcquireRequest::default()).await });
    }
    let answers = clients.join_all().await;
    let (got, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((got.len(), refused.len()), (3, 7));
    assert!(refused.into_iter().all(|answer| answer.unwrap_err().kind() == ErrorKind::Exhausted));
    assert_eq!(world.restore.running().len(), 3);
    assert!(world.restore.most_at_once() <= 2, "the gate lets two restore at once");
}

#[tokio::test]
async fn the_same_key_at_once_gets_one_instance() {
    let world = world(20, ColdStart::Allowed);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let provisioner = Arc::clone(&world.provisioner);
        let request = AcquireRequest { idempotency_key: Some("k".into()), ..AcquireRequest::default() };
        clients.spawn(async move { provisioner.acquire(request).await.unwrap() });
    }
    let answers = clients.join_all().await;
    let ids: HashSet<&InstanceId> = answers.iter().map(|got| &got.instance.id).collect();
    assert_eq!((ids.len(), world.restore.attempts()), (1, 1));
    assert_eq!(answers.iter().filter(|got| got.handed == Handed::Before).count(), 9);
}

#[tokio::test]
async fn a_key_is_bound_to_its_golden() {
    let world = world(4, ColdStart::Allowed);
    world.acquire_with("k").await.unwrap();
    let request = AcquireRequest {
        golden: Some("other".into()),
        idempotency_key: Some("k".into()),
        ..AcquireRequest::default()
    };
    let error = world.provisioner.acquire(request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(matches!(world.acquire_with("").await, Err(AcquireError::Key)));
    assert!(matches!(world.acquire_with("a\nb").await, Err(AcquireError::Key)));
}

#[tokio::test]
async fn an_unknown_golden_is_answered_with_those_that_are_served() {
    let world = world(4, ColdStart::Allowed);
    let request = AcquireRequest { golden: Some("magento".into()), ..AcquireRequest::default() };
    let error = world.provisioner.acquire(request).await.unwrap_err();
    assert_eq!(error.to_string(), "golden \"magento\" is unknown; there are: shop, other");
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn what_was_made_for_a_client_that_hung_up_goes_to_the_pool() {
    let world = world(4, ColdStart::Allowed);
    world.restore.hold();
    let provisioner = Arc::clone(&world.provisioner);
    let client = tokio::spawn(async move { provisioner.acquire(AcquireRequest::default()).await });
    eventually("the restore begins", async || (world.restore.attempts() == 1).then_some(())).await;
    client.abort();
    assert!(client.await.unwrap_err().is_cancelled());
    world.restore.let_go();
    let ready = eventually("it is ready", async || {
        world.store.list().await.unwrap().into_iter().find(|i| i.state == State::Ready)
    })
    .await;
    assert!(ready.expires_at.is_none() && ready.assigned_at.is_none());
    assert_eq!(world.acquire().await.unwrap().instance.id, ready.id);
}

#[tokio::test]
async fn a_client_that_hung_up_finds_its_instance_under_its_key() {
    let world = world(4, ColdStart::Allowed);
    world.restore.hold();
    let provisioner = Arc::clone(&world.provisioner);
    let request = AcquireRequest { idempotency_key: Some("k".into()), ..AcquireRequest::default() };
    let client = tokio::spawn(async move { provisioner.acquire(request).await });
    eventually("the restore begins", async || (world.restore.attempts() == 1).then_some(())).await;
    client.abort();
    world.restore.let_go();
    let again = world.acquire_with("k").await.unwrap();
    assert_eq!((again.handed, world.restore.attempts()), (Handed::Before, 1));
}

#[tokio::test]
async fn extending_moves_the_end_up_to_the_longest_time() {
    let world = world(4, ColdStart::Allowed);
    let got = world.acquire().await.unwrap().instance;
    let now = Timestamp::now();
    let before = got.expires_at.unwrap();
    let extended = world.provisioner.extend(&got.id, Some(MINUTE * 5), now).await.unwrap();
    assert_eq!(extended.expires_at, Some(before + MINUTE * 5));
    let error = world.provisioner.extend(&got.id, Some(MINUTE * 55), now).await.unwrap_err();
    assert!(
        matches!(error, LeaseError::BeyondMax { latest, .. } if latest == got.assigned_at.unwrap() + MINUTE * 60)
    );
    let kept = world.provisioner.show(&got.id, now).await.unwrap();
    assert_eq!(kept.expires_at, extended.expires_at, "a refused extension changes nothing");
    world.provisioner.extend(&got.id, Some(MINUTE * 54), now).await.expect("exactly to the limit");
    let huge = world.provisioner.extend(&got.id, Some(SignedDuration::MAX), now).await.unwrap_err();
    assert_eq!(huge.kind(), ErrorKind::Conflict, "{huge}");
}

#[tokio::test]
async fn a_ready_instance_has_nothing_to_extend() {
    let world = world(4, ColdStart::Allowed);
    let warm = world.warm().await;
    let error = world.provisioner.extend(&warm.id, None, Timestamp::now()).await.unwrap_err();
    assert!(matches!(error, LeaseError::NotAssigned { state: State::Ready, .. }), "{error}");
}

#[tokio::test]
async fn release_is_idempotent_and_leaves_nothing() {
    let world = world(4, ColdStart::Allowed);
    let got = world.acquire().await.unwrap().instance;
    for _ in 0..3 {
        world.provisioner.release(&got.id).await.unwrap();
        assert!(world.routes.memory().is_empty(), "nobody reaches it from the answer on");
    }
    eventually("it is gone", async || world.store.list().await.unwrap().is_empty().then_some(())).await;
    eventually("its place is free", async || (world.provisioner.lifecycle().room() == 4).then_some(())).await;
    world.assert_nothing_is_left().await;
    let error = world.provisioner.show(&got.id, Timestamp::now()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Gone, "{error}");
    let error = world.provisioner.show(&InstanceId::random(), Timestamp::now()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[tokio::test]
async fn an_instance_that_cannot_be_taken_down_keeps_its_record() {
    let world = world(4, ColdStart::Allowed);
    let got = world.acquire().await.unwrap().instance;
    world.restore.fail_destroy(true);
    let lifecycle = world.provisioner.lifecycle();
    lifecycle.end(got.clone(), State::Expired, |_| true).await.unwrap_err();
    let kept = world.store.get(&got.id).await.unwrap().unwrap();
    assert_eq!(kept.state, State::Expired);
    assert!(world.routes.memory().is_empty(), "nobody reaches it all the same");
    assert_eq!(lifecycle.room(), 3, "it still takes a place");
    world.restore.fail_destroy(false);
    assert_eq!(lifecycle.end(kept, State::Expired, |_| true).await.unwrap(), Ended::Gone);
    world.assert_nothing_is_left().await;
}

#[tokio::test]
async fn an_extension_that_comes_first_keeps_the_instance() {
    let world = world(4, ColdStart::Allowed);
    let got = world.acquire().await.unwrap().instance;
    let at_end = got.expires_at.unwrap();
    // The reaper has read the record; then the client extends.
    world.provisioner.extend(&got.id, Some(MINUTE), Timestamp::now()).await.unwrap();
    let ended = world.provisioner.lifecycle().end(got, State::Expired, |i| i.is_due_at(at_end)).await;
    assert_eq!(ended.unwrap(), Ended::Kept);
}

#[tokio::test]
async fn nothing_is_taken_in_while_stopping() {
    let world = world(4, ColdStart::Allowed);
    world.provisioner.stop_intake();
    assert!(matches!(world.acquire().await, Err(AcquireError::Stopping)));
}

/// A request of a client that has limits: two in an hour.
fn remote() -> AcquireRequest {
    let client = Client::Remote(crate::client::ClientKey::of_address([203, 0, 113, 5].into()));
    AcquireRequest { client, ..AcquireRequest::default() }
}

#[tokio::test]
async fn a_client_that_hangs_up_is_counted_once_the_work_has_begun() {
    let world = world(9, ColdStart::Refused);
    world.restore.hold();
    for attempt in 1..=2 {
        let provisioner = Arc::clone(&world.provisioner);
        let client = tokio::spawn(async move { provisioner.acquire(remote()).await });
        eventually("the restore begins", async || (world.restore.attempts() == attempt).then_some(())).await;
        client.abort();
        let _ = client.await;
    }
    world.restore.let_go();
    let error = world.provisioner.acquire(remote()).await.unwrap_err();
    assert!(matches!(error, AcquireError::Limited { .. }), "{error}");
}

#[tokio::test]
async fn a_client_that_was_told_it_takes_too_long_is_not_counted() {
    let world = world(9, ColdStart::Refused);
    let terms = Terms { patience: Duration::from_millis(50), ..world.provisioner.terms() };
    let hasty = Arc::new(Provisioner::new(Arc::clone(world.provisioner.lifecycle()), terms));
    world.restore.hold();
    // On a busy machine the work may not have begun within its patience, and one
    // that never began is forgiven a moment later.
    while world.restore.attempts() < 2 {
        let error = hasty.acquire(remote()).await.unwrap_err();
        assert!(matches!(error, AcquireError::TooSlow { .. } | AcquireError::Limited { .. }), "{error}");
        tokio::task::yield_now().await;
    }
    world.restore.let_go();
    // What each acquire leaves to be done is done: an instance is ready a moment
    // before its client is forgiven.
    let tasks = world.provisioner.lifecycle().tasks();
    tasks.close();
    tasks.wait().await;
    let all = world.store.list().await.unwrap();
    assert_eq!(all.iter().filter(|it| it.state == State::Ready).count(), 2, "they go to the pool");
    for _ in 0..2 {
        world.provisioner.acquire(remote()).await.unwrap();
    }
}

fn route_of(world: &World, id: &InstanceId) -> crate::route::memory::Route {
    match world.routes.lookup(id.as_str()) {
        Lookup::Found(route) => route,
        other => panic!("no route: {other:?}"),
    }
}

#[tokio::test]
async fn a_reset_shop_is_another_one_under_the_same_name_with_the_same_password() {
    let world = world(1, ColdStart::Refused);
    let before = world.acquire().await.unwrap().instance;
    let (route, mut events) = (route_of(&world, &before.id), world.provisioner.lifecycle().events().listen());
    let after = world.provisioner.reset(&before.id, Timestamp::now()).await.unwrap();
    assert_eq!((&after.id, after.expires_at, after.state), (&before.id, before.expires_at, State::Assigned));
    assert!(after.generation > before.generation && after.slot() != before.slot());
    let password = |record: &Instance| {
        use secrecy::ExposeSecret as _;
        record.access.as_ref().unwrap().admin_password.expose_secret().to_owned()
    };
    assert_eq!(password(&after), password(&before));
    assert!(route.gone.is_cancelled() && route_of(&world, &before.id).epoch != route.epoch);
    assert_eq!(events.recv().await.unwrap().happened, crate::instance::event::Happened::Reset);
    eventually("the old shop is gone", async || {
        (world.restore.traces() == [after.slot().clone()]).then_some(())
    })
    .await;
    world.provisioner.release(&before.id).await.unwrap();
    eventually("all of it is gone", async || world.restore.traces().is_empty().then_some(())).await;
    eventually("and its record", async || world.store.list().await.unwrap().is_empty().then_some(())).await;
    world.assert_nothing_is_left().await;
}

#[tokio::test]
async fn a_reset_that_fails_in_any_phase_leaves_the_old_shop_and_nothing_else() {
    let world = world(2, ColdStart::Allowed);
    let before = world.acquire().await.unwrap().instance;
    let route = route_of(&world, &before.id);
    for phase in [Phase::Slot, Phase::Restore, Phase::Adopt, Phase::Personalize, Phase::Probe] {
        world.restore.fail_make(Some((phase, ErrorKind::Unavailable)));
        let error = world.provisioner.reset(&before.id, Timestamp::now()).await.unwrap_err();
        assert!(matches!(error, ResetError::Launch(_)), "{phase}: {error}");
        assert_eq!(world.restore.traces(), [before.slot().clone()], "{phase}");
        assert!(!route.gone.is_cancelled(), "{phase}: it serves");
        assert_eq!(world.store.get(&before.id).await.unwrap().unwrap().generation, before.generation);
    }
    world.restore.fail_make(None);
    world.provisioner.reset(&before.id, Timestamp::now()).await.unwrap();
}

#[tokio::test]
async fn a_shop_that_is_released_while_it_is_reset_ends_whole() {
    let world = world(2, ColdStart::Refused);
    let shop = world.acquire().await.unwrap().instance;
    world.restore.hold();
    let provisioner = Arc::clone(&world.provisioner);
    let id = shop.id.clone();
    let reset = tokio::spawn(async move { provisioner.reset(&id, Timestamp::now()).await });
    eventually("it is being made", async || (world.restore.traces().len() == 2).then_some(())).await;
    let again = world.provisioner.reset(&shop.id, Timestamp::now()).await.unwrap_err();
    assert!(matches!(again, ResetError::Change(ChangeError::Busy { .. })), "{again}");
    world.provisioner.release(&shop.id).await.unwrap();
    assert!(matches!(world.routes.lookup(shop.id.as_str()), Lookup::Gone), "nobody reaches it");
    world.restore.let_go();
    assert!(matches!(reset.await.unwrap(), Err(ResetError::Change(ChangeError::Gone { .. }))));
    eventually("the new shop is gone", async || (world.restore.traces() == [shop.id.clone()]).then_some(()))
        .await;
    // What the reaper does with it.
    let record = world.store.get(&shop.id).await.unwrap().unwrap();
    let ended = world.provisioner.lifecycle().end(record, State::Expired, |_| true).await.unwrap();
    assert_eq!(ended, Ended::Gone);
    world.assert_nothing_is_left().await;
}

#[tokio::test]
async fn a_shop_that_is_nobodys_is_not_reset() {
    let world = world(2, ColdStart::Refused);
    let warm = world.warm().await;
    let error = world.provisioner.reset(&warm.id, Timestamp::now()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    let error = world.provisioner.reset(&InstanceId::random(), Timestamp::now()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}
