//! What holds between the daemons that share a store.

use super::{
    Arc, Claimed, Fixture, InstanceId, Source, State, Store, StoreError, Timestamp, add, at, claim, claimed,
    golden, instance, node,
};
use crate::instance::{Access, Container, EngineKind, Instance, OneClick};
use crate::node::{GoldenReport, REPORT_VERSION, Report, Stage};
use crate::store::LOST_KEPT;

pub(super) async fn run(fixture: &dyn Fixture) {
    a_claim_leaves_the_rest_of_a_record_alone(fixture).await;
    a_lost_record_is_written_again(fixture).await;
    all_of_a_lone_store_is_its_own(fixture).await;
    the_own_nodes_instances_are_claimed_first(fixture).await;
    each_node_sees_its_own_and_may_change_all(fixture).await;
    nodes_at_once_never_share_an_instance(fixture).await;
    closed_and_silent_nodes_are_left_alone(fixture).await;
    a_lost_nodes_instances_are_marked_once(fixture).await;
    what_a_node_says_is_read_by_all(fixture).await;
    a_lost_node_is_forgotten_after_a_day(fixture).await;
    what_has_ended_at_one_node_is_known_to_all(fixture).await;
}

/// A record with every field filled.
fn whole() -> Instance {
    let mut whole = instance(&golden("shop"), State::Ready, 0);
    whole.snapshot = "shop-20260101t000000z-0a1b".parse().ok();
    whole.container = Some(Container {
        engine: EngineKind::Criu,
        pid: 4_194_303,
        // A host that runs for a hundred years.
        start_ticks: 315_360_000_000,
        address: std::net::Ipv4Addr::new(10, 77, 0, 2),
        port: 80,
    });
    whole.access = Some(Access {
        url: "http://x.localhost:8080/".into(),
        admin_url: "http://x.localhost:8080/admin?a=b&c=\"d\"".into(),
        admin_email: "dé\u{1f4a9}mo@example.com".into(),
        admin_password: "pass\\word/\"'".to_owned().into(),
        one_click: Some(OneClick {
            url: "http://x.localhost:8080/in?t={token}".into(),
            key: "k\"\\".to_owned().into(),
        }),
    });
    whole
}

async fn a_claim_leaves_the_rest_of_a_record_alone(fixture: &dyn Fixture) {
    let store = fixture.fresh().await;
    let mut expected = add(&*store, whole()).await;
    let got = claimed(&*store, claim(&golden("shop"), Some("a key"))).await.expect("one is ready");
    expected.state = State::Assigned;
    expected.source = Some(Source::Pool);
    expected.assigned_at = Some(at(0));
    expected.expires_at = Some(at(60));
    expected.idempotency_key = Some("a key".into());
    expected.generation += 1;
    let text = |instance: &Instance| instance.to_record().expect("it is written");
    assert_eq!(text(&got), text(&expected), "a claim changes what it is for");
    let mut stored = store.get(&got.id).await.expect("a read is answered").expect("it is there");
    assert_eq!(text(&stored), text(&expected), "the answer is what is stored");
    stored.expires_at = Some(at(90));
    let changed = store.update(stored).await.expect("it may be extended");
    assert_eq!(changed.generation, expected.generation + 1);
    let due = store.due(at(89), 10).await.expect("a read is answered");
    assert!(due.is_empty(), "an extension moves the deadline");
}

async fn a_lost_record_is_written_again(fixture: &dyn Fixture) {
    let (store, shop) = (fixture.fresh().await, golden("shop"));
    add(&*store, instance(&shop, State::Ready, 0)).await;
    let held = claimed(&*store, claim(&shop, Some("a"))).await.expect("one is ready");
    let error = store.write_again(held.clone()).await.expect_err("it is not lost");
    assert!(matches!(error, StoreError::Stale { .. }), "{error}");
    store.remove(&held.id).await.expect("it may be removed");
    store.write_again(held.clone()).await.expect("there is none");
    let stored = store.get(&held.id).await.expect("a read is answered").expect("it is there");
    assert_eq!((stored.generation, stored.expires_at), (held.generation, Some(at(60))));
    let again = store.claim(claim(&shop, Some("a"))).await.expect("a claim is answered");
    assert!(matches!(again, Claimed::Again(ref it) if it.id == held.id), "its key leads to it: {again:?}");
    let mut later = held.clone();
    later.generation += 2;
    later.state = State::Expired;
    store.write_again(later).await.expect("there is an earlier one");
    assert!(store.due(at(60), 10).await.expect("a read is answered").is_empty());
    let counts = store.counts(&shop).await.expect("a read is answered");
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), [(State::Expired, 1)], "the indices follow");
}

async fn all_of_a_lone_store_is_its_own(fixture: &dyn Fixture) {
    let store = fixture.fresh().await;
    assert_eq!(store.node(), &node("here"));
    for state in [State::Ready, State::Assigned, State::Failed] {
        add(&*store, instance(&golden("shop"), state, 0)).await;
    }
    assert_eq!(store.own().await.expect("a read is answered").len(), 3);
}

fn of_node(name: &str, state: State, second: i64) -> Instance {
    Instance { node: node(name), ..instance(&golden("shop"), state, second) }
}

async fn the_own_nodes_instances_are_claimed_first(fixture: &dyn Fixture) {
    let here = fixture.fresh().await;
    let Some(there) = fixture.beside(&here, &node("there")).await else { return };
    for (name, second) in [("yonder", 1), ("there", 3), ("there", 2), ("here", 9)] {
        add(&*there, of_node(name, State::Ready, second)).await;
    }
    let mut order = Vec::new();
    while let Some(got) = claimed(&*here, claim(&golden("shop"), None)).await {
        order.push((got.node.to_string(), got.created_at));
    }
    let expected = [("here", 9), ("yonder", 1), ("there", 2), ("there", 3)];
    assert_eq!(
        order,
        expected.map(|(name, second)| (name.to_owned(), at(second))),
        "own ones first, then the oldest"
    );
}

async fn each_node_sees_its_own_and_may_change_all(fixture: &dyn Fixture) {
    let here = fixture.fresh().await;
    let Some(there) = fixture.beside(&here, &node("there")).await else { return };
    let mine = add(&*here, of_node("here", State::Ready, 0)).await;
    let mut theirs = of_node("there", State::Assigned, 0);
    theirs.expires_at = Some(at(10));
    let theirs = add(&*there, theirs).await;
    let ids = |all: Vec<Arc<Instance>>| all.iter().map(|i| i.id.clone()).collect::<Vec<InstanceId>>();
    for (store, own) in [(&here, &mine), (&there, &theirs)] {
        assert_eq!(ids(store.own().await.expect("a read is answered")), std::slice::from_ref(&own.id));
        assert_eq!(store.list().await.expect("a read is answered").len(), 2, "all daemons list all");
        let counts = store.counts(&golden("shop")).await.expect("a read is answered");
        assert_eq!(counts.into_iter().collect::<Vec<_>>(), [(own.state, 1)], "a pool counts its own");
    }
    assert!(here.due(at(99), 10).await.expect("a read is answered").is_empty(), "it is not ours to end");
    let due = there.due(at(99), 10).await.expect("a read is answered");
    assert_eq!(due.iter().map(|i| &i.id).collect::<Vec<_>>(), [&theirs.id]);
    let mut over = here.get(&theirs.id).await.expect("a read is answered").expect("it is there");
    over.state = State::Expired;
    here.update(over).await.expect("any daemon may end it");
    let seen = there.own().await.expect("a read is answered");
    assert_eq!(
        (seen[0].state, seen[0].node.clone()),
        (State::Expired, node("there")),
        "and its own one sees it"
    );
    assert_eq!(ids(there.own().await.expect("a read is answered")), std::slice::from_ref(&theirs.id));
    here.remove(&theirs.id).await.expect("it may be removed");
    assert!(there.own().await.expect("a read is answered").is_empty(), "nor does it miss its end");
    let new = add(&*here, of_node("there", State::Ready, 1)).await;
    claimed(&*here, claim(&golden("shop"), None)).await.expect("the own one");
    claimed(&*here, claim(&golden("shop"), None)).await.expect("the other one");
    let seen = there.own().await.expect("a read is answered");
    assert_eq!((seen.len(), &seen[0].id, seen[0].state), (1, &new.id, State::Assigned));
}

async fn nodes_at_once_never_share_an_instance(fixture: &dyn Fixture) {
    const READY: usize = 100;
    let here = fixture.fresh().await;
    let Some(there) = fixture.beside(&here, &node("there")).await else { return };
    for second in 0..READY {
        let name = if second % 3 == 0 { "here" } else { "there" };
        add(&*here, of_node(name, State::Ready, second as i64)).await;
    }
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..READY + 20 {
        let store = Arc::clone(if number % 2 == 0 { &here } else { &there });
        clients.spawn(async move { claimed(&*store, claim(&golden("shop"), None)).await });
    }
    let got: Vec<InstanceId> = clients.join_all().await.into_iter().flatten().map(|i| i.id).collect();
    let distinct: std::collections::HashSet<&InstanceId> = got.iter().collect();
    assert_eq!((got.len(), distinct.len()), (READY, READY), "each ready instance is claimed exactly once");
}

fn report(name: &str) -> Report {
    Report {
        version: REPORT_VERSION,
        node: node(name),
        address: "10.0.0.7:8080".into(),
        program: "1.2.3".into(),
        stage: Stage::Serving,
        drained: false,
        room: 3,
        max_instances: 9,
        goldens: [(golden("shop"), GoldenReport { ready: 1, makes: true })].into(),
    }
}

async fn reports(store: &dyn Store) -> Vec<Report> {
    let heard = store.nodes().await.expect("a read is answered");
    let mut reports: Vec<Report> = heard.into_iter().map(|heard| heard.report).collect();
    reports.sort_by(|one, other| one.node.cmp(&other.node));
    reports
}

async fn what_a_node_says_is_read_by_all(fixture: &dyn Fixture) {
    let here = fixture.fresh().await;
    let Some(there) = fixture.beside(&here, &node("there")).await else { return };
    assert!(!there.beat("0").await.expect("a call is answered"), "it has not said who it is");
    for room in [1, 2] {
        let said = Report { room, ..report("there") };
        there.announce(Some(&said), "1").await.expect("it is written");
        assert_eq!(reports(&*here).await, std::slice::from_ref(&said));
        assert!(there.beat("2").await.expect("a call is answered"));
        assert_eq!(reports(&*here).await, [said], "what it said stays");
    }
    here.announce(Some(&report("here")), "1").await.expect("it is written");
    let said = [report("here"), Report { room: 2, ..report("there") }];
    assert_eq!(reports(&*here).await, said);
    assert_eq!(reports(&*there).await, said, "whoever begins to read later reads all");
    there.announce(None, "").await.expect("it is written");
    assert_eq!(reports(&*here).await, [report("here")], "it is not one of several any more");
}

async fn closed_and_silent_nodes_are_left_alone(fixture: &dyn Fixture) {
    let here = fixture.fresh().await;
    let Some(there) = fixture.beside(&here, &node("there")).await else { return };
    let shop = golden("shop");
    for (name, second) in [("here", 1), ("there", 2)] {
        add(&*there, of_node(name, State::Ready, second)).await;
    }
    let drained = |name| Report { drained: true, ..report(name) };
    here.announce(Some(&drained("here")), "1").await.expect("it is written");
    there.announce(Some(&drained("there")), "1").await.expect("it is written");
    assert!(claimed(&*here, claim(&shop, None)).await.is_none(), "both are drained");
    there.announce(Some(&report("there")), "2").await.expect("it is written");
    let got = claimed(&*here, claim(&shop, None)).await.expect("one is not any more");
    assert_eq!(got.node, node("there"), "the own one is drained still");
    here.announce(Some(&report("here")), "2").await.expect("it is written");
    let got = claimed(&*there, claim(&shop, None)).await.expect("it is open again");
    assert_eq!(got.node, node("here"));
}

async fn a_lost_nodes_instances_are_marked_once(fixture: &dyn Fixture) {
    let here = fixture.fresh().await;
    let Some(there) = fixture.beside(&here, &node("there")).await else { return };
    add(&*there, of_node("there", State::Ready, 1)).await;
    add(&*there, of_node("there", State::Ready, 2)).await;
    let held = claimed(&*there, claim(&golden("shop"), Some("a"))).await.expect("one is ready");
    let mine = add(&*here, of_node("here", State::Ready, 9)).await;
    let lose = async |beat| here.lose(&node("there"), beat, at(7), 1).await.expect("a call is answered");
    assert!(lose("1").await.is_empty(), "it never said anything");
    there.announce(Some(&report("there")), "1").await.expect("it is written");
    assert!(lose("0").await.is_empty(), "it has spoken since");
    let mut lost = lose("1").await;
    assert_eq!(lost.len(), 1, "no more than asked for");
    lost.extend(lose("1").await);
    assert!(lose("1").await.is_empty(), "none is marked twice");
    assert_eq!(lost.len(), 2);
    for instance in &lost {
        assert_eq!((instance.state, instance.lost_at), (State::Failed, Some(at(7))));
        let stored = here.get(&instance.id).await.expect("a read is answered").expect("it is there");
        assert_eq!((stored.state, stored.generation), (State::Failed, instance.generation));
    }
    assert!(here.held("a", at(1)).await.expect("a read is answered").is_none(), "its key is free");
    assert!(there.update(held).await.is_err(), "who was silent cannot go on with it");
    let got = claimed(&*there, claim(&golden("shop"), None)).await.expect("the other node's is there");
    assert_eq!(got.id, mine.id, "and nothing of the lost one's");
    assert_eq!(there.own().await.expect("a read is answered").len(), 2, "it takes them down itself");
}

async fn a_lost_node_is_forgotten_after_a_day(fixture: &dyn Fixture) {
    let here = fixture.fresh().await;
    let Some(there) = fixture.beside(&here, &node("there")).await else { return };
    let shop = add(&*there, of_node("there", State::Ready, 1)).await;
    there.announce(Some(&report("there")), "1").await.expect("it is written");
    assert_eq!(reports(&*here).await.len(), 1);
    let lose = async |now: Timestamp| {
        // Until nothing is left to be done.
        while !here.lose(&node("there"), "1", now, 9).await.expect("a call is answered").is_empty() {}
    };
    lose(at(7)).await;
    let day = LOST_KEPT;
    lose(at(6) + day).await;
    let kept = here.get(&shop.id).await.expect("a read is answered");
    assert!(kept.is_some_and(|kept| kept.lost_at == Some(at(7))), "its visitor is told what became of it");
    assert_eq!(reports(&*here).await.len(), 1);
    lose(at(7) + day).await;
    assert!(here.list().await.expect("a read is answered").is_empty());
    assert!(reports(&*here).await.is_empty());
    assert!(there.own().await.expect("a read is answered").is_empty(), "it would find nothing");
    there.announce(Some(&report("there")), "2").await.expect("it is written");
    assert_eq!(reports(&*here).await.len(), 1, "it may come back");
}

async fn what_has_ended_at_one_node_is_known_to_all(fixture: &dyn Fixture) {
    let here = fixture.fresh().await;
    let Some(there) = fixture.beside(&here, &node("there")).await else { return };
    let mut mine = of_node("there", State::Assigned, 0);
    mine.assigned_at = Some(at(1));
    let (mine, spare) = (add(&*there, mine).await, add(&*there, of_node("there", State::Ready, 0)).await);
    let ended = async |id: &InstanceId| here.has_ended(id).await.expect("a question is answered");
    assert!(!ended(&mine.id).await, "it is there");
    for one in [&mine, &spare] {
        there.remove(&one.id).await.expect("it may be removed");
    }
    assert!(ended(&mine.id).await, "whoever follows its link is told");
    assert!(!ended(&spare.id).await, "nobody has a link to what was nobody's");
    assert!(!ended(&InstanceId::random()).await);
}
