//! What holds for counted acquires.

use jiff::SignedDuration;

use super::{Arc, Fixture, Store, at};
use crate::store::{Admission, Allowance, Ticket, Window};

pub(super) async fn run(fixture: &dyn Fixture) {
    a_full_window_refuses_until_its_oldest_leaves(fixture).await;
    a_refusal_counts_in_no_window(fixture).await;
    what_came_to_nothing_is_forgiven(fixture).await;
    clients_at_once_never_exceed_a_window(fixture).await;
}

fn window(seconds: i64, limit: u32) -> Window {
    Window { length: SignedDuration::from_secs(seconds), limit }
}

fn left(limit: u32, remaining: u32, resets_in: i64) -> Allowance {
    Allowance { limit, remaining, resets_in: SignedDuration::from_secs(resets_in) }
}

async fn ask(store: &dyn Store, client: &str, windows: &[Window], second: i64) -> Admission {
    store.admit(client, windows, at(second)).await.expect("it is answered")
}

fn admitted(admission: Admission) -> (Ticket, Vec<Allowance>) {
    match admission {
        Admission::Admitted { ticket, allowances } => (ticket, allowances),
        Admission::Refused { .. } => panic!("there is room: {admission:?}"),
    }
}

async fn a_full_window_refuses_until_its_oldest_leaves(fixture: &dyn Fixture) {
    let store = fixture.fresh().await;
    let windows = [window(60, 2)];
    assert_eq!(admitted(ask(&*store, "a", &windows, 0).await).1, [left(2, 1, 60)]);
    assert_eq!(admitted(ask(&*store, "a", &windows, 10).await).1, [left(2, 0, 50)]);
    let refused = ask(&*store, "a", &windows, 15).await;
    let wait = SignedDuration::from_secs(45);
    assert_eq!(refused, Admission::Refused { retry_after: wait, allowances: vec![left(2, 0, 45)] });
    admitted(ask(&*store, "b", &windows, 15).await);
    assert!(
        matches!(ask(&*store, "a", &windows, 59).await, Admission::Refused { .. }),
        "not a moment too early"
    );
    assert_eq!(admitted(ask(&*store, "a", &windows, 60).await).1, [left(2, 0, 10)], "nor too late");
}

async fn a_refusal_counts_in_no_window(fixture: &dyn Fixture) {
    let store = fixture.fresh().await;
    let windows = [window(10, 1), window(100, 3)];
    admitted(ask(&*store, "a", &windows, 0).await);
    for second in 1..10 {
        let refused = ask(&*store, "a", &windows, second).await;
        assert!(
            matches!(&refused, Admission::Refused { allowances, .. } if allowances[1].remaining == 2),
            "{refused:?}"
        );
    }
    admitted(ask(&*store, "a", &windows, 10).await);
    assert_eq!(admitted(ask(&*store, "a", &windows, 20).await).1, [left(1, 0, 10), left(3, 0, 80)]);
    let Admission::Refused { retry_after, .. } = ask(&*store, "a", &windows, 25).await else {
        panic!("both are full")
    };
    assert_eq!(retry_after, SignedDuration::from_secs(75), "the window that is full for longest counts");
}

async fn what_came_to_nothing_is_forgiven(fixture: &dyn Fixture) {
    let store = fixture.fresh().await;
    let windows = [window(60, 1)];
    let (ticket, _) = admitted(ask(&*store, "a", &windows, 0).await);
    for _ in 0..2 {
        store.forgive("a", &ticket).await.expect("absent is fine");
        store.forgive("nobody", &ticket).await.expect("absent is fine");
    }
    admitted(ask(&*store, "a", &windows, 1).await);
}

async fn clients_at_once_never_exceed_a_window(fixture: &dyn Fixture) {
    let store = fixture.fresh().await;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..60 {
        let store = Arc::clone(&store);
        asking.spawn(async move { ask(&*store, "a", &[window(60, 20)], 0).await });
    }
    let answers = asking.join_all().await;
    let count = answers.iter().filter(|answer| matches!(answer, Admission::Admitted { .. })).count();
    assert_eq!(count, 20, "exact, also under concurrency");
}
