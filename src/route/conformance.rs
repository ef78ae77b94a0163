//! What any route table must hold, whatever is behind it: one suite for all.
//!
//! An implementation's test calls [`suite`] with an empty table.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{RouteTable, Targets};
use crate::id::InstanceId;

/// Runs every check; the table is empty again after each.
///
/// # Panics
/// With the check's claim when the table does not hold it.
pub async fn suite(table: &dyn RouteTable) {
    a_route_is_in_force_once_settled(table).await;
    adding_and_removing_again_change_nothing(table).await;
    many_changes_at_once_are_all_in_force(table).await;
    repairing_what_is_whole_changes_nothing(table).await;
}

fn upstream(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 77, 1, n], 80))
}

async fn listed(table: &dyn RouteTable) -> Targets {
    table.list().await.expect("the routes are listed")
}

async fn a_route_is_in_force_once_settled(table: &dyn RouteTable) {
    assert_eq!(listed(table).await, BTreeMap::new(), "the suite begins with an empty table");
    let (one, other) = (InstanceId::random(), InstanceId::random());
    table.ensure(&one, upstream(1));
    table.ensure(&other, upstream(2));
    table.settle().await.expect("the table takes routes");
    assert_eq!(listed(table).await, [(one.clone(), upstream(1)), (other.clone(), upstream(2))].into());
    table.remove(&one);
    table.settle().await.expect("the table gives routes up");
    assert_eq!(listed(table).await, [(other.clone(), upstream(2))].into(), "only the other one is left");
    table.remove(&other);
    table.settle().await.expect("the table gives the last route up");
    assert_eq!(listed(table).await, BTreeMap::new());
}

async fn adding_and_removing_again_change_nothing(table: &dyn RouteTable) {
    let id = InstanceId::random();
    for _ in 0..2 {
        table.ensure(&id, upstream(1));
        table.settle().await.expect("the same route again is fine");
    }
    // Whoever comes with another target and does not say so is wrong.
    table.ensure(&id, upstream(2));
    table.settle().await.expect("a route that is there is fine");
    assert_eq!(listed(table).await, [(id.clone(), upstream(1))].into(), "a route keeps its target");
    table.replace(&id, upstream(3));
    table.settle().await.expect("a route is led elsewhere");
    assert_eq!(listed(table).await, [(id.clone(), upstream(3))].into(), "whoever says so is right");
    for _ in 0..2 {
        table.remove(&id);
        table.settle().await.expect("removing an absent route is fine");
    }
    assert_eq!(listed(table).await, BTreeMap::new());
}

async fn many_changes_at_once_are_all_in_force(table: &dyn RouteTable) {
    let ids: Vec<InstanceId> = (0..50).map(|_| InstanceId::random()).collect();
    let add = |(n, id)| async move {
        table.ensure(id, upstream(n));
        table.settle().await.expect("many routes at once are taken");
        assert!(listed(table).await.contains_key(id), "in force for whoever has settled");
    };
    futures_util::future::join_all((0..).zip(&ids).map(add)).await;
    assert_eq!(listed(table).await.len(), ids.len());
    let take = |id| async move {
        table.remove(id);
        table.settle().await.expect("many routes at once are given up");
        assert!(!listed(table).await.contains_key(id), "gone for whoever has settled");
    };
    futures_util::future::join_all(ids.iter().map(take)).await;
    assert_eq!(listed(table).await, BTreeMap::new());
}

async fn repairing_what_is_whole_changes_nothing(table: &dyn RouteTable) {
    let id = InstanceId::random();
    table.ensure(&id, upstream(1));
    table.settle().await.expect("the table takes a route");
    assert_eq!(table.repair().await.expect("a whole table is looked at"), 0);
    assert_eq!(listed(table).await, [(id.clone(), upstream(1))].into());
    table.remove(&id);
    // Without settling: a repair brings into force what is wanted.
    table.repair().await.expect("a repair takes changes along");
    assert_eq!(listed(table).await, BTreeMap::new());
}
