//! What runs at once in one daemon, in thousands of interleavings: each lock that is
//! taken lets another task go first. A failing one is printed as a schedule that
//! `shuttle::replay` repeats.
//!
//! The modules are the daemon's own, built here on the locks below.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "modules of the library, of which parts are used"
)]

#[path = "../src/connections.rs"]
mod connections;
#[path = "../src/provision/flight.rs"]
mod flight;
#[path = "../src/provision/gate.rs"]
mod gate;
#[path = "../src/provision/ledger.rs"]
mod ledger;

mod change {
    pub use demo_multiplexer::provision::errors::ChangeError;
}

mod sync {
    pub use std::sync::{Arc, LockResult, MutexGuard, PoisonError};

    /// A lock before which any other task may run; outside of an exploration, an
    /// ordinary one.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(std::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Self(std::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
            // All tasks of an exploration are on one thread, and none is left inside.
            super::step();
            self.0.lock()
        }
    }
}

use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use demo_multiplexer::id::InstanceId;
use demo_multiplexer::{client, id, instance};
use futures_util::FutureExt as _;
use shuttle::{future, thread};

/// Schedules of each exploration, at random; each takes about a tenth of a millisecond.
const SCHEDULES: usize = 3_000;

thread_local!(static EXPLORING: Cell<bool> = const { Cell::new(false) });

/// Lets another task go first.
fn step() {
    if EXPLORING.get() {
        thread::yield_now();
    }
}

fn explore(scenario: impl Fn() + Send + Sync + 'static) {
    EXPLORING.set(true);
    shuttle::check_random(scenario, SCHEDULES);
    EXPLORING.set(false);
}

/// Gives up after that many looks.
async fn impatiently<T>(work: impl Future<Output = T>, looks: usize) -> Option<T> {
    let (mut work, mut left) = (Box::pin(work), looks);
    std::future::poll_fn(move |context| match work.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            context.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await
}

/// So many at once, and the most there were.
#[derive(Debug, Default)]
struct AtOnce {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl AtOnce {
    fn within(&self) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        step();
        self.now.fetch_sub(1, Ordering::SeqCst);
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

#[test]
fn the_gate_lets_in_as_many_as_it_has_places_and_loses_none() {
    explore(|| {
        let (gate, inside) = (gate::Gate::new(2), Arc::new(AtOnce::default()));
        let mut tasks = Vec::new();
        for n in 0..5 {
            let (gate, inside) = (gate.clone(), Arc::clone(&inside));
            let rank = if n % 2 == 0 { gate::Rank::Client } else { gate::Rank::Pool };
            tasks.push(future::spawn(async move {
                // The last two stop waiting some time, perhaps with a permit on its way.
                let permit = match n {
                    3.. => impatiently(gate.enter(rank), n - 3).await,
                    _ => Some(gate.enter(rank).await),
                };
                let Some(permit) = permit else { return };
                inside.within();
                if n == 0 { permit.made() } else { drop(permit) }
            }));
        }
        for task in tasks {
            future::block_on(task).unwrap();
        }
        assert!(inside.most() <= 2, "{} at once", inside.most());
        assert_eq!(gate.clients_waiting(), 0);
        let both = [gate.enter(gate::Rank::Pool).now_or_never(), gate.enter(gate::Rank::Pool).now_or_never()];
        assert!(both.iter().all(Option::is_some), "a place is lost");
        assert!(gate.enter(gate::Rank::Client).now_or_never().is_none(), "there is one too many");
    });
}

#[test]
fn one_key_is_at_work_once_and_no_key_is_kept() {
    explore(|| {
        let (flights, inside) = (Arc::new(flight::Flights::default()), Arc::new(AtOnce::default()));
        let mut tasks = Vec::new();
        for n in 0..4 {
            let (flights, inside) = (Arc::clone(&flights), Arc::clone(&inside));
            tasks.push(future::spawn(async move {
                let turn = match n {
                    3 => impatiently(flights.turn("key"), 1).await,
                    _ => Some(flights.turn("key").await),
                };
                if turn.is_some() {
                    inside.within();
                }
            }));
        }
        for task in tasks {
            future::block_on(task).unwrap();
        }
        assert_eq!(inside.most(), 1);
        assert!(flights.is_empty(), "a key is kept for ever");
    });
}

#[test]
fn no_more_instances_are_begun_than_there_are_places_and_one_ends_each() {
    explore(|| {
        let ledger = Arc::new(ledger::Ledger::new(2));
        let ids: Vec<InstanceId> = (0..3).map(|_| InstanceId::random()).collect();
        let (ended, changed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtOnce::default()));
        let makers: Vec<_> = ids
            .iter()
            .cloned()
            .map(|id| {
                let ledger = Arc::clone(&ledger);
                thread::spawn(move || {
                    let begun = ledger.try_begin(&id);
                    if begun {
                        ledger.lives(&id);
                    }
                    assert!(ledger.len() <= 2);
                    begun
                })
            })
            .collect();
        let begun: Vec<bool> = makers.into_iter().map(|maker| maker.join().unwrap()).collect();
        assert_eq!(begun.iter().filter(|begun| **begun).count(), 2);
        let one = ids[begun.iter().position(|begun| *begun).unwrap()].clone();
        let others: Vec<_> = (0..4)
            .map(|n| {
                let (ledger, one) = (Arc::clone(&ledger), one.clone());
                let (ended, changed) = (Arc::clone(&ended), Arc::clone(&changed));
                thread::spawn(move || {
                    if n < 2 {
                        if ledger.try_change(&one) {
                            changed.within();
                            ledger.changed(&one);
                        }
                    } else if ledger.try_end(&one) {
                        ended.fetch_add(1, Ordering::SeqCst);
                        assert_eq!(changed.now.load(Ordering::SeqCst), 0, "ended under who changes it");
                    }
                })
            })
            .collect();
        for other in others {
            other.join().unwrap();
        }
        assert!(changed.most() <= 1 && ended.load(Ordering::SeqCst) <= 1);
        assert!(matches!(ledger.doing(&one), Some(ledger::Doing::Ending | ledger::Doing::Living)));
    });
}

#[test]
fn a_sleeper_is_woken_by_one_and_only_into_a_free_place() {
    explore(|| {
        let ledger = Arc::new(ledger::Ledger::new(1));
        let (sleeper, new) = (InstanceId::random(), InstanceId::random());
        ledger.lives(&sleeper);
        ledger.asleep(&sleeper);
        let wakers: Vec<_> = (0..2)
            .map(|_| {
                let (ledger, sleeper) = (Arc::clone(&ledger), sleeper.clone());
                thread::spawn(move || ledger.try_wake(&sleeper).is_ok())
            })
            .collect();
        let begun = ledger.try_begin(&new);
        let woken = wakers.into_iter().filter_map(|waker| waker.join().unwrap().then_some(())).count();
        assert_eq!(woken + usize::from(begun), 1, "one place, one who has it");
        assert_eq!(ledger.len(), 1);
    });
}

#[test]
fn connections_have_places_and_clients_their_share_whoever_comes_and_goes() {
    explore(|| {
        let connections = connections::Connections::new(16, client::TrustedProxies::default());
        let peers: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        let clients: Vec<_> = (0..6)
            .map(|n| {
                let connections = Arc::clone(&connections);
                thread::spawn(move || {
                    let place = connections.place(peers[n % 2]);
                    step();
                    place.is_some()
                })
            })
            .collect();
        let placed = clients.into_iter().filter_map(|client| client.join().unwrap().then_some(())).count();
        assert!(placed >= 4, "two each have room: {placed}");
        assert_eq!(connections.open(), 0);
        assert!(connections.place(peers[0]).is_some());
    });
}
