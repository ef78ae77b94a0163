//! A finished instance whose record the store took, without anybody hearing of it: its
//! connection broke. Others may have the instance before its maker asks again.

use super::*;

/// Makes one for the pool; as its record is about to be written, `first` happens to the
/// record as it is to be.
async fn warm_after(
    world: &World,
    first: impl AsyncFnOnce(Instance) + Send,
) -> Result<Instance, errors::MakeError> {
    let hand_over = |record: &mut Instance| {
        record.state = State::Ready;
        let whole = record.clone();
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(first(whole)));
    };
    world.make_for_pool(hand_over).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_was_claimed_before_its_maker_heard_of_it_stays_its_clients() {
    let world = world(4, ColdStart::Refused);
    let mut held = None;
    let made = warm_after(&world, async |record| {
        world.store.update(record).await.unwrap();
        held = Some(world.acquire().await.unwrap().instance);
    });
    let made = made.await.unwrap();
    let held = held.unwrap();
    assert_eq!((&made.id, made.state), (&held.id, State::Ready), "it was made, for the pool");
    assert_eq!(world.restore.running(), std::slice::from_ref(&held.id), "and is not taken down");
    let present = world.store.get(&held.id).await.unwrap().unwrap();
    assert_eq!((present.state, present.expires_at), (State::Assigned, held.expires_at));
    assert_eq!(world.provisioner.lifecycle().doing(&held.id), Some(Doing::Living));
    assert_ne!(world.acquire().await.unwrap().instance.id, held.id, "handed out once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_was_ended_before_its_maker_heard_of_it_is_taken_down() {
    let world = world(4, ColdStart::Refused);
    let made = warm_after(&world, async |record| {
        let mut ready = world.store.update(record).await.unwrap();
        ready.state = State::Expired;
        world.store.update(ready).await.unwrap();
    });
    assert!(matches!(made.await, Err(errors::MakeError::Store(_))));
    world.assert_nothing_is_left().await;
}
