//! A store that has gone back in time: its server died and had not written down what it
//! had answered. Nothing ends for its sake.

use super::*;

/// What the store says of it is `then` from here on.
async fn goes_back(world: &World, then: Instance) {
    world.store.remove(&then.id).await.unwrap();
    world.store.write_again(then).await.unwrap();
}

/// After some passes the shop lives on, and the store says again whose it is.
async fn lives_on(world: &World, script: &Script, held: &Instance, now: Timestamp) {
    let mut reaper = world.reaper();
    eventually("its record is written again", async || {
        reaper.pass(now).await;
        reaper.settle().await;
        assert_eq!(script.running(), std::slice::from_ref(&held.id), "it lives on");
        let present = world.store.get(&held.id).await.unwrap()?;
        (present.state == State::Assigned && present.expires_at == held.expires_at).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_shop_that_the_store_takes_for_one_in_the_making_is_its_visitors() {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 8);
    let held = world.acquire().await;
    let mut warming = Instance { generation: 1, state: State::Warming, ..held.clone() };
    (warming.container, warming.assigned_at, warming.expires_at) = (None, None, None);
    goes_back(&world, warming).await;
    lives_on(&world, &script, &held, Timestamp::now()).await;
}

#[tokio::test]
async fn a_shop_whose_extension_the_store_has_lost_lives_until_its_new_end() {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 8);
    let before = world.acquire().await;
    let longer = Some(SignedDuration::from_mins(10));
    let held = world.provisioner.extend(&before.id, longer, Timestamp::now()).await.unwrap();
    goes_back(&world, before.clone()).await;
    lives_on(&world, &script, &held, before.expires_at.unwrap()).await;
    let mut reaper = world.reaper();
    reaper.pass(held.expires_at.unwrap()).await;
    reaper.settle().await;
    assert!(script.traces().is_empty(), "and not longer");
}
