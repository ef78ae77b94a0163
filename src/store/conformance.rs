//! What any store must hold, whatever is behind it: one suite for all.
//!
//! An implementation's test calls [`suite`] with a [`Fixture`]. Each check
//! begins with an empty store and is named in the panic when it fails.

mod model;
mod nodes;

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};

use super::{Admission, Allowance, Claim, Claimed, Store, StoreError, Ticket, Window};
use crate::id::{GoldenName, InstanceId, NodeName};
use crate::instance::{Instance, Source, State};

/// Makes stores for the suite.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// An empty store.
    async fn fresh(&self) -> Arc<dyn Store>;

    /// The same store as a new daemon finds it after the old one has died.
    async fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store>;

    /// The same store, opened for another daemon; none when it is one daemon's.
    async fn beside(&self, _store: &Arc<dyn Store>, _node: &NodeName) -> Option<Arc<dyn Store>> {
        None
    }
}

/// Runs every check.
///
/// # Panics
/// With the check's claim when the store does not hold it.
pub async fn suite(fixture: &dyn Fixture) {
    concurrent_claims_never_share_an_instance(fixture).await;
    the_oldest_ready_instance_is_claimed_first(fixture).await;
    a_claim_takes_from_its_own_golden_only(fixture).await;
    a_claim_hands_the_instance_over(fixture).await;
    a_stale_update_is_refused(fixture).await;
    a_denied_transition_is_refused(fixture).await;
    an_update_of_an_unknown_instance_is_refused(fixture).await;
    an_id_is_inserted_once(fixture).await;
    a_key_answers_the_same_live_instance(fixture).await;
    a_key_is_free_again_after_its_instance(fixture).await;
    a_restored_instance_is_found_under_its_key(fixture).await;
    one_key_at_once_gets_one_instance(fixture).await;
    due_instances_come_in_the_order_of_their_deadlines(fixture).await;
    counts_follow_every_change(fixture).await;
    remove_is_idempotent(fixture).await;
    what_was_answered_survives_a_reopening(fixture).await;
    a_window_slides(fixture).await;
    a_client_is_counted_in_all_windows_or_in_none(fixture).await;
    clients_at_once_get_what_the_limit_allows(fixture).await;
    what_came_to_nothing_is_forgiven(fixture).await;
    a_client_that_is_absolved_begins_anew(fixture).await;
    a_lowered_limit_counts_what_was_admitted_before(fixture).await;
    a_clock_that_goes_back_loses_no_count(fixture).await;
    admissions_survive_with_the_next_change(fixture).await;
    nodes::run(fixture).await;
    model::run(fixture).await;
    fixture.fresh().await.ping().await.expect("a working store answers a ping");
}

/// A golden's name for tests.
///
/// # Panics
/// When the text is no golden name.
#[must_use]
pub fn golden(name: &str) -> GoldenName {
    name.parse().expect("a golden name")
}

/// A node's name for tests; [`Fixture::fresh`]'s own is `here`.
///
/// # Panics
/// When the text is no node name.
#[must_use]
pub fn node(name: &str) -> NodeName {
    name.parse().expect("a node name")
}

/// A fixed time, `seconds` after the suite's beginning.
///
/// # Panics
/// Never for the seconds that tests use.
#[must_use]
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_800_000_000 + seconds)
}

/// A new instance in the given state, made at `at(second)`.
#[must_use]
pub fn instance(golden: &GoldenName, state: State, second: i64) -> Instance {
    let mut instance = Instance::warming(InstanceId::random(), golden.clone(), node("here"), at(second));
    instance.state = state;
    instance
}

/// A claim at `at(0)` for a minute.
#[must_use]
pub fn claim(golden: &GoldenName, key: Option<&str>) -> Claim {
    Claim { golden: golden.clone(), now: at(0), expires_at: at(60), idempotency_key: key.map(str::to_owned) }
}

async fn add(store: &dyn Store, instance: Instance) -> Instance {
    store.insert(instance).await.expect("a new id is inserted")
}

async fn claimed(store: &dyn Store, wanted: Claim) -> Option<Instance> {
    match store.claim(wanted).await.expect("a claim is answered") {
        Claimed::New(instance) | Claimed::Again(instance) => Some(instance),
        Claimed::Empty => None,
    }
}

async fn concurrent_claims_never_share_an_instance(fixture: &dyn Fixture) {
    const READY: usize = 150;
    const CLIENTS: usize = 200;
    let (store, shop) = (fixture.fresh().await, golden("shop"));
    for second in 0..READY {
        add(&*store, instance(&shop, State::Ready, second as i64)).await;
    }
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let (store, wanted) = (Arc::clone(&store), claim(&shop, None));
        clients.spawn(async move { claimed(&*store, wanted).await });
    }
    let got: Vec<InstanceId> = clients.join_all().await.into_iter().flatten().map(|i| i.id).collect();
    let distinct: HashSet<&InstanceId> = got.iter().collect();
    assert_eq!((got.len(), distinct.len()), (READY, READY), "each ready instance is claimed exactly once");
}

async fn the_oldest_ready_instance_is_claimed_first(fixture: &dyn Fixture) {
    let (store, shop) = (fixture.fresh().await, golden("shop"));
    for second in [3, 1, 2] {
        add(&*store, instance(&shop, State::Ready, second)).await;
    }
    for second in [1, 2, 3] {
        let got = claimed(&*store, claim(&shop, None)).await.expect("one is left");
        assert_eq!(got.created_at, at(second), "the oldest ready instance is claimed first");
    }
    assert!(matches!(store.claim(claim(&shop, None)).await, Ok(Claimed::Empty)), "an empty pool says so");
}

async fn a_claim_takes_from_its_own_golden_only(fixture: &dyn Fixture) {
    let store = fixture.fresh().await;
    add(&*store, instance(&golden("other"), State::Ready, 0)).await;
    for state in [State::Warming, State::Assigned, State::Expired, State::Failed] {
        add(&*store, instance(&golden("shop"), state, 0)).await;
    }
    let got = claimed(&*store, claim(&golden("shop"), None)).await;
    assert!(got.is_none(), "only ready instances of the golden are claimed");
}

async fn a_claim_hands_the_instance_over(fixture: &dyn Fixture) {
    let (store, shop) = (fixture.fresh().await, golden("shop"));
    let ready = add(&*store, instance(&shop, State::Ready, 0)).await;
    let got = claimed(&*store, claim(&shop, Some("key"))).await.expect("one is ready");
    assert_eq!(got.state, State::Assigned);
    assert_eq!(got.source, Some(Source::Pool));
    assert_eq!((got.assigned_at, got.expires_at), (Some(at(0)), Some(at(60))));
    assert_eq!(got.generation, ready.generation + 1, "a claim is a change");
    let stored = store.get(&got.id).await.expect("a read is answered").expect("it is there");
    assert_eq!((stored.state, stored.generation), (got.state, got.generation));
    assert_eq!(stored.idempotency_key.as_deref(), Some("key"));
}

async fn a_stale_update_is_refused(fixture: &dyn Fixture) {
    let (store, shop) = (fixture.fresh().await, golden("shop"));
    let first = add(&*store, instance(&shop, State::Warming, 0)).await;
    assert_eq!(first.generation, 1, "an inserted record has generation 1");
    let mut changed = first.clone();
    changed.state = State::Ready;
    let second = store.update(changed.clone()).await.expect("the present generation may change");
    assert_eq!(second.generation, 2);
    let error = store.update(changed).await.expect_err("a stale writer is refused");
    assert!(matches!(error, StoreError::Stale { expected: 1, found: 2, .. }), "{error}");
}

async fn a_denied_transition_is_refused(fixture: &dyn Fixture) {
    let (store, shop) = (fixture.fresh().await, golden("shop"));
    let mut gone = add(&*store, instance(&shop, State::Expired, 0)).await;
    gone.state = State::Ready;
    let error = store.update(gone.clone()).await.expect_err("nothing follows a final state");
    assert!(matches!(error, StoreError::Denied { from: State::Expired, to: State::Ready, .. }), "{error}");
    let stored = store.get(&gone.id).await.expect("a read is answered").expect("it is there");
    assert_eq!((stored.state, stored.generation), (State::Expired, 1), "a refused update changes nothing");
}

async fn an_update_of_an_unknown_instance_is_refused(fixture: &dyn Fixture) {
    let store = fixture.fresh().await;
    let error = store.update(instance(&golden("shop"), State::Ready, 0)).await.expect_err("it is unknown");
    assert!(matches!(error, StoreError::Unknown { .. }), "{error}");
}

async fn an_id_is_inserted_once(fixture: &dyn Fixture) {
    let store = fixture.fresh().await;
    let first = add(&*store, instance(&golden("shop"), State::Warming, 0)).await;
    let error = store.insert(first).await.expect_err("the id is taken");
    assert!(matches!(error, StoreError::Exists { .. }), "{error}");
}

async fn a_key_answers_the_same_live_instance(fixture: &dyn Fixture) {
    let (store, shop) = (fixture.fresh().await, golden("shop"));
    for second in 0..3 {
        add(&*store, instance(&shop, State::Ready, second)).await;
    }
    let first = claimed(&*store, claim(&shop, Some("a"))).await.expect("one is ready");
    let again = store.claim(claim(&shop, Some("a"))).await.expect("a claim is answered");
    assert!(matches!(again, Claimed::Again(ref it) if it.id == first.id), "{again:?}");
    assert_eq!(held(&*store, "a", at(59)).await, Some(first.id.clone()), "a look finds it too");
    assert_eq!(held(&*store, "a", at(60)).await, None, "a due instance is not live");
    assert_eq!(held(&*store, "b", at(0)).await, None, "a look takes nothing");
    let other = claimed(&*store, claim(&shop, Some("b"))).await.expect("one is ready");
    assert_ne!(first.id, other.id, "another key gets another instance");
}

async fn held(store: &dyn Store, key: &str, now: Timestamp) -> Option<InstanceId> {
    store.held(key, now).await.expect("a read is answered").map(|instance| instance.id)
}

async fn a_key_is_free_again_after_its_instance(fixture: &dyn Fixture) {
    let (store, shop) = (fixture.fresh().await, golden("shop"));
    for second in 0..3 {
        add(&*store, instance(&shop, State::Ready, second)).await;
    }
    let first = claimed(&*store, claim(&shop, Some("a"))).await.expect("one is ready");
    let late = Claim { now: at(60), expires_at: at(120), ..claim(&shop, Some("a")) };
    let second = store.claim(late).await.expect("a claim is answered");
    let Claimed::New(mut second) = second else { panic!("a due instance is not live: {second:?}") };
    // The first one's end must not take the key from the second.
    let mut expired = store.get(&first.id).await.expect("a read is answered").expect("it is there");
    expired.state = State::Expired;
    store.update(expired).await.expect("it may expire");
    store.remove(&first.id).await.expect("it may be removed");
    let again = claimed(&*store, claim(&shop, Some("a"))).await.expect("the key is held");
    assert_eq!(again.id, second.id, "the key leads to its present holder");
    second.state = State::Expired;
    store.update(second).await.expect("it may expire");
    let third = store.claim(claim(&shop, Some("a"))).await.expect("a claim is answered");
    assert!(matches!(third, Claimed::New(_)), "an expired instance frees its key: {third:?}");
}

async fn a_restored_instance_is_found_under_its_key(fixture: &dyn Fixture) {
    let (store, shop) = (fixture.fresh().await, golden("shop"));
    let mut made = instance(&shop, State::Warming, 0);
    made.idempotency_key = Some("a".into());
    let mut made = add(&*store, made).await;
    let early = store.claim(claim(&shop, Some("a"))).await.expect("a claim is answered");
    assert!(matches!(early, Claimed::Empty), "a warming instance is not handed out: {early:?}");
    made.state = State::Assigned;
    made.expires_at = Some(at(60));
    let made = store.update(made).await.expect("it may be assigned");
    let again = store.claim(claim(&shop, Some("a"))).await.expect("a claim is answered");
    assert!(matches!(again, Claimed::Again(ref it) if it.id == made.id), "{again:?}");
}

async fn one_key_at_once_gets_one_instance(fixture: &dyn Fixture) {
    let (store, shop) = (fixture.fresh().await, golden("shop"));
    for second in 0..20 {
        add(&*store, instance(&shop, State::Ready, second)).await;
    }
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (store, wanted) = (Arc::clone(&store), claim(&shop, Some("same")));
        clients.spawn(async move { claimed(&*store, wanted).await.expect("one is ready").id });
    }
    let ids: HashSet<InstanceId> = clients.join_all().await.into_iter().collect();
    assert_eq!(ids.len(), 1, "one key gets one instance, however many ask at once");
}

async fn due_instances_come_in_the_order_of_their_deadlines(fixture: &dyn Fixture) {
    let (store, shop) = (fixture.fresh().await, golden("shop"));
    for deadline in [30, 10, 20, 40] {
        let mut held = instance(&shop, State::Assigned, 0);
        held.expires_at = Some(at(deadline));
        add(&*store, held).await;
    }
    let mut gone = instance(&shop, State::Expired, 0);
    gone.expires_at = Some(at(5));
    add(&*store, gone).await;
    add(&*store, instance(&shop, State::Ready, 0)).await;
    let deadlines = |due: Vec<Instance>| due.into_iter().filter_map(|i| i.expires_at).collect::<Vec<_>>();
    let due = store.due(at(30), 10).await.expect("a read is answered");
    assert_eq!(deadlines(due), [at(10), at(20), at(30)], "a deadline is due when it is reached");
    let due = store.due(at(30), 2).await.expect("a read is answered");
    assert_eq!(deadlines(due), [at(10), at(20)], "the limit keeps the earliest");
    assert!(store.due(at(9), 10).await.expect("a read is answered").is_empty());
}

async fn counts_follow_every_change(fixture: &dyn Fixture) {
    let (store, shop) = (fixture.fresh().await, golden("shop"));
    let mut one = add(&*store, instance(&shop, State::Warming, 0)).await;
    add(&*store, instance(&shop, State::Ready, 1)).await;
    add(&*store, instance(&golden("other"), State::Ready, 1)).await;
    one.state = State::Failed;
    let one = store.update(one).await.expect("it may fail");
    claimed(&*store, claim(&shop, None)).await.expect("one is ready");
    let counts = store.counts(&shop).await.expect("a read is answered");
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), [(State::Assigned, 1), (State::Failed, 1)]);
    store.remove(&one.id).await.expect("it may be removed");
    let counts = store.counts(&shop).await.expect("a read is answered");
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), [(State::Assigned, 1)]);
    assert_eq!(store.list().await.expect("a read is answered").len(), 2);
}

async fn remove_is_idempotent(fixture: &dyn Fixture) {
    let store = fixture.fresh().await;
    let one = add(&*store, instance(&golden("shop"), State::Ready, 0)).await;
    for _ in 0..2 {
        store.remove(&one.id).await.expect("absent is fine");
    }
    assert!(store.get(&one.id).await.expect("a read is answered").is_none());
    assert!(claimed(&*store, claim(&golden("shop"), None)).await.is_none(), "a removed one is not claimed");
}

async fn what_was_answered_survives_a_reopening(fixture: &dyn Fixture) {
    let (store, shop) = (fixture.fresh().await, golden("shop"));
    for second in [2, 1, 3] {
        add(&*store, instance(&shop, State::Ready, second)).await;
    }
    let held = claimed(&*store, claim(&shop, Some("a"))).await.expect("one is ready");
    let gone = add(&*store, instance(&shop, State::Failed, 9)).await;
    store.remove(&gone.id).await.expect("it may be removed");

    let store = fixture.reopen(store).await;
    let stored = store.get(&held.id).await.expect("a read is answered").expect("it is there");
    assert_eq!((stored.state, stored.generation), (State::Assigned, held.generation));
    assert_eq!((stored.expires_at, stored.source), (Some(at(60)), Some(Source::Pool)));
    assert!(store.get(&gone.id).await.expect("a read is answered").is_none(), "removed stays removed");
    let again = claimed(&*store, claim(&shop, Some("a"))).await.expect("the key is held");
    assert_eq!(again.id, held.id, "the key survives");
    let next = claimed(&*store, claim(&shop, None)).await.expect("one is ready");
    assert_eq!(next.created_at, at(2), "the order survives");
    assert_eq!(store.due(at(60), 10).await.expect("a read is answered").len(), 2, "deadlines survive");
    let counts = store.counts(&shop).await.expect("a read is answered");
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), [(State::Ready, 1), (State::Assigned, 2)]);
}

const fn window(seconds: i64, limit: u32) -> Window {
    Window { length: SignedDuration::from_secs(seconds), limit }
}

/// What is left in each window and until when, in seconds.
fn left(allowances: &[Allowance]) -> Vec<(u32, i64)> {
    allowances.iter().map(|it| (it.remaining, it.resets_in.as_secs())).collect()
}

async fn admitted(store: &dyn Store, client: &str, windows: &[Window], second: i64) -> Ticket {
    match store.admit(client, windows, at(second)).await.expect("an admission is answered") {
        Admission::Admitted { ticket, .. } => ticket,
        refused @ Admission::Refused { .. } => panic!("{client} is admitted at {second}: {refused:?}"),
    }
}

/// After how many seconds it may come again.
async fn refused(store: &dyn Store, client: &str, windows: &[Window], second: i64) -> i64 {
    match store.admit(client, windows, at(second)).await.expect("an admission is answered") {
        Admission::Refused { retry_after, .. } => retry_after.as_secs(),
        admitted @ Admission::Admitted { .. } => panic!("{client} is refused at {second}: {admitted:?}"),
    }
}

async fn a_window_slides(fixture: &dyn Fixture) {
    let (store, windows) = (fixture.fresh().await, [window(60, 2)]);
    let first = store.admit("one", &windows, at(0)).await.expect("an admission is answered");
    let Admission::Admitted { allowances, .. } = first else { panic!("nothing is counted yet") };
    assert_eq!(left(&allowances), [(1, 60)], "it is counted itself");
    assert_eq!(allowances[0].limit, 2);
    let second = store.admit("one", &windows, at(40)).await.expect("an admission is answered");
    let Admission::Admitted { allowances, .. } = second else { panic!("one is left") };
    assert_eq!(left(&allowances), [(0, 20)], "the oldest one leaves first");
    let third = store.admit("one", &windows, at(50)).await.expect("an admission is answered");
    let Admission::Refused { retry_after, allowances } = third else { panic!("the window is full") };
    assert_eq!((retry_after.as_secs(), left(&allowances)), (10, vec![(0, 10)]));
    assert_eq!(refused(&*store, "one", &windows, 59).await, 1, "a refused one is not counted");
    admitted(&*store, "other", &windows, 59).await;
    admitted(&*store, "one", &windows, 60).await;
    assert_eq!(refused(&*store, "one", &windows, 99).await, 1, "until the one of 40 leaves");
    admitted(&*store, "one", &windows, 100).await;
    assert_eq!(left_of(&*store, "one", &windows, 1000).await, [(1, 60)], "all of it is long past");
}

/// What is left after one more acquire.
async fn left_of(store: &dyn Store, client: &str, windows: &[Window], second: i64) -> Vec<(u32, i64)> {
    match store.admit(client, windows, at(second)).await.expect("an admission is answered") {
        Admission::Admitted { allowances, .. } | Admission::Refused { allowances, .. } => left(&allowances),
    }
}

async fn a_client_is_counted_in_all_windows_or_in_none(fixture: &dyn Fixture) {
    let (store, windows) = (fixture.fresh().await, [window(10, 1), window(100, 2)]);
    admitted(&*store, "one", &windows, 0).await;
    for second in 1..10 {
        assert_eq!(refused(&*store, "one", &windows, second).await, 10 - second);
    }
    // Nine refusals later the long window still has one.
    admitted(&*store, "one", &windows, 10).await;
    assert_eq!(refused(&*store, "one", &windows, 15).await, 85, "the window that is full longest counts");
    assert_eq!(left_of(&*store, "one", &windows, 50).await, [(1, 0), (0, 50)], "the short one has room");
    admitted(&*store, "one", &windows, 100).await;
    for second in 100..120 {
        admitted(&*store, "one", &[], second).await;
    }
    assert_eq!(refused(&*store, "one", &windows, 109).await, 1, "without windows nobody is counted");
}

async fn clients_at_once_get_what_the_limit_allows(fixture: &dyn Fixture) {
    const TASKS: usize = 64;
    let store = fixture.fresh().await;
    let mut clients = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let store = Arc::clone(&store);
        clients.spawn(async move {
            // Clocks of several hosts agree to some milliseconds only.
            let now = at(0) + SignedDuration::from_millis((task % 7) as i64);
            let windows = [window(3600, 10), window(86_400, 30)];
            store.admit("one", &windows, now).await.expect("an admission is answered")
        });
    }
    let all = clients.join_all().await;
    let tickets: HashSet<String> = all
        .into_iter()
        .filter_map(|admission| match admission {
            Admission::Admitted { ticket, .. } => Some(ticket.0),
            Admission::Refused { .. } => None,
        })
        .collect();
    assert_eq!(tickets.len(), 10, "exactly the limit, each with a ticket of its own");
}

async fn what_came_to_nothing_is_forgiven(fixture: &dyn Fixture) {
    let (store, windows) = (fixture.fresh().await, [window(60, 2)]);
    let first = admitted(&*store, "one", &windows, 0).await;
    admitted(&*store, "one", &windows, 0).await;
    store.forgive("other", &first).await.expect("another client's ticket takes nothing back");
    store.forgive("one", &Ticket("no ticket".into())).await.expect("absent is fine");
    assert_eq!(refused(&*store, "one", &windows, 1).await, 59);
    for _ in 0..2 {
        store.forgive("one", &first).await.expect("again is fine");
    }
    admitted(&*store, "one", &windows, 1).await;
    assert_eq!(refused(&*store, "one", &windows, 1).await, 59, "one is forgiven, the other counts");
}

async fn a_client_that_is_absolved_begins_anew(fixture: &dyn Fixture) {
    let (store, windows) = (fixture.fresh().await, [window(60, 2)]);
    for client in ["one", "other"] {
        admitted(&*store, client, &windows, 0).await;
        admitted(&*store, client, &windows, 1).await;
    }
    store.absolve("one").await.expect("it is taken back");
    store.absolve("nobody").await.expect("absent is fine");
    admitted(&*store, "one", &windows, 2).await;
    assert_eq!(refused(&*store, "other", &windows, 2).await, 58, "the other one's is still counted");
}

async fn a_lowered_limit_counts_what_was_admitted_before(fixture: &dyn Fixture) {
    let (store, lowered) = (fixture.fresh().await, [window(60, 1)]);
    for second in [0, 10, 20] {
        admitted(&*store, "one", &[window(60, 3)], second).await;
    }
    assert_eq!(refused(&*store, "one", &lowered, 30).await, 50, "all three have to leave");
    admitted(&*store, "one", &lowered, 80).await;
}

async fn a_clock_that_goes_back_loses_no_count(fixture: &dyn Fixture) {
    let (store, windows) = (fixture.fresh().await, [window(60, 2)]);
    admitted(&*store, "one", &windows, 1000).await;
    admitted(&*store, "one", &windows, 900).await;
    assert_eq!(refused(&*store, "one", &windows, 900).await, 60, "what lies ahead counts, too");
    admitted(&*store, "one", &windows, 960).await;
    assert_eq!(refused(&*store, "one", &windows, 1019).await, 1);
}

async fn admissions_survive_with_the_next_change(fixture: &dyn Fixture) {
    let (store, shop, windows) = (fixture.fresh().await, golden("shop"), [window(60, 2)]);
    admitted(&*store, "one", &windows, 0).await;
    let forgiven = admitted(&*store, "one", &windows, 0).await;
    store.forgive("one", &forgiven).await.expect("it is taken back");
    add(&*store, instance(&shop, State::Ready, 0)).await;
    let store = fixture.reopen(store).await;
    admitted(&*store, "one", &windows, 10).await;
    assert_eq!(refused(&*store, "one", &windows, 20).await, 40, "the first one is still counted");
}
