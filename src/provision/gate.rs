//! How many restores run at once, and who is next: waiting clients go first.
//!
//! Past about one restore a core more of them only make each other slower
//! (32 clones on 2 cores: 6.4 s all at once, 4.5 s two at a time), so all
//! makers pass this gate. Used by acquire (as [`Rank::Client`]) and by the
//! pool's reconciler (as [`Rank::Pool`]), which waits for as long as any client
//! does. It knows how long makings take, and so how long somebody who comes now
//! would wait: who would wait too long is better told at once.
//!
//! Invariant: a permit is in one place: free, held, or on its way to a waiter;
//! a waiter that stops waiting passes it on by dropping it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How long a making is taken to need before one was measured.
const FIRST_GUESS: Duration = Duration::from_millis(500);

/// How much of the estimate the last making is: the fifth before it still has a
/// third of its weight, so that a busier host is noticed within a second or two.
const WEIGHT: f64 = 0.2;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    /// Somebody waits for the answer.
    Client,
    /// Made ahead of time.
    Pool,
}

/// The gate; clones are the same gate.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Mutex<Places>>);

#[derive(Debug)]
struct Places {
    all: usize,
    free: usize,
    clients: VecDeque<oneshot::Sender<Permit>>,
    pool: VecDeque<oneshot::Sender<Permit>>,
    /// Since when each permit is held.
    held: BTreeMap<u64, Instant>,
    next: u64,
    /// How long a making takes, the last ones most.
    typical: Duration,
}

impl Places {
    fn permit(&mut self, gate: &Gate, waited: bool) -> Permit {
        let number = self.next;
        self.next += 1;
        self.held.insert(number, Instant::now());
        Permit { gate: Some(gate.clone()), waited, number }
    }
}

/// The right to run one restore; dropping it lets the next one in.
#[derive(Debug)]
pub struct Permit {
    /// None in one that nobody took.
    gate: Option<Gate>,
    /// Whether it had to be waited for.
    pub waited: bool,
    number: u64,
}

impl Permit {
    /// Gives it back after a making that came to its end: what others wait for.
    pub fn made(self) {
        if let Some(gate) = &self.gate {
            let mut places = gate.lock();
            if let Some(since) = places.held.get(&self.number) {
                places.typical = smoothed(places.typical, since.elapsed());
            }
        }
    }
}

fn smoothed(before: Duration, last: Duration) -> Duration {
    before.mul_f64(1.0 - WEIGHT) + last.mul_f64(WEIGHT)
}

/// How long the next one waits for a place: those before it and itself are let in
/// one after the other, `places` in each `making`.
fn estimate(waiting: usize, places: usize, making: Duration) -> Duration {
    let turns = u32::try_from(waiting + 1).unwrap_or(u32::MAX);
    let places = u32::try_from(places).unwrap_or(u32::MAX).max(1);
    making.saturating_mul(turns) / places
}

impl Gate {
    /// A gate for `places` restores at once.
    #[must_use]
    pub fn new(places: usize) -> Self {
        let all = places.max(1);
        Self(Arc::new(Mutex::new(Places {
            all,
            free: all,
            clients: VecDeque::new(),
            pool: VecDeque::new(),
            held: BTreeMap::new(),
            next: 0,
            typical: FIRST_GUESS,
        })))
    }

    /// Waits for a place.
    ///
    /// # Cancel safety
    /// Dropping the call gives the place up.
    pub async fn enter(&self, rank: Rank) -> Permit {
        let receiver = {
            let mut places = self.lock();
            // Nobody waits while a place is free, so a free one is ours.
            if places.free > 0 {
                places.free -= 1;
                return places.permit(self, false);
            }
            let (sender, receiver) = oneshot::channel();
            match rank {
                Rank::Client => places.clients.push_back(sender),
                Rank::Pool => places.pool.push_back(sender),
            }
            receiver
        };
        receiver.await.expect("a waiter's sender is only dropped after it was used")
    }

    /// How many clients wait.
    #[must_use]
    pub fn clients_waiting(&self) -> usize {
        waiting(&self.lock())
    }

    /// How long a client that comes now has to wait for its place, by how many are
    /// before it and how long makings take at present.
    #[must_use]
    pub fn wait(&self) -> Duration {
        let places = self.lock();
        if places.free > 0 {
            return Duration::ZERO;
        }
        // One that hangs tells more than those that went well before it.
        let oldest = places.held.values().min().map(Instant::elapsed).unwrap_or_default();
        estimate(waiting(&places), places.all, places.typical.max(oldest))
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, number: u64) {
        self.lock().held.remove(&number);
        loop {
            let next = {
                let mut places = self.lock();
                let next = places.clients.pop_front().or_else(|| places.pool.pop_front());
                match next {
                    Some(waiter) => (waiter, places.permit(self, true)),
                    None => {
                        places.free += 1;
                        return;
                    }
                }
            };
            let (waiter, permit) = next;
            match waiter.send(permit) {
                Ok(()) => return,
                // It gave up: the place goes to the next one, here and not by the drop.
                Err(mut permit) => {
                    permit.gate = None;
                    self.lock().held.remove(&permit.number);
                }
            }
        }
    }
}

fn waiting(places: &Places) -> usize {
    places.clients.iter().filter(|waiter| !waiter.is_closed()).count()
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            gate.leave(self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_client_goes_before_the_pool() {
        let gate = Gate::new(1);
        let held = gate.enter(Rank::Pool).await;
        let mut pool = Box::pin(gate.enter(Rank::Pool));
        let mut client = Box::pin(gate.enter(Rank::Client));
        assert!((&mut pool).now_or_never().is_none() && (&mut client).now_or_never().is_none());
        drop(held);
        assert!((&mut pool).now_or_never().is_none(), "the pool came first and waits on");
        let permit = (&mut client).now_or_never().expect("the client is let in");
        assert!(permit.waited);
        drop(permit);
        assert!(pool.now_or_never().is_some());
    }

    #[test]
    fn a_wait_is_so_many_turns_at_so_many_places() {
        let ms = Duration::from_millis;
        assert_eq!(estimate(0, 2, ms(100)), ms(50), "one of the two leaves soon");
        assert_eq!(estimate(9, 2, ms(100)), ms(500));
        assert_eq!(estimate(usize::MAX - 1, 1, ms(100)), ms(100).saturating_mul(u32::MAX));
        assert_eq!(smoothed(ms(100), ms(600)), ms(200));
    }

    #[tokio::test]
    async fn a_wait_grows_with_those_before_and_shrinks_when_they_give_up() {
        let gate = Gate::new(1);
        assert_eq!(gate.wait(), Duration::ZERO, "a place is free");
        let held = gate.enter(Rank::Client).await;
        assert_eq!(gate.wait(), FIRST_GUESS);
        let mut other = Box::pin(gate.enter(Rank::Client));
        assert!((&mut other).now_or_never().is_none());
        assert_eq!(gate.wait(), FIRST_GUESS * 2);
        drop(other);
        assert_eq!(gate.wait(), FIRST_GUESS, "who gave up is not waited for");
        held.made();
        let _held = gate.enter(Rank::Client).await;
        let wait = gate.wait();
        assert!(wait < FIRST_GUESS && wait >= FIRST_GUESS / 2, "measured: {wait:?}");
    }

    #[tokio::test]
    async fn a_place_given_up_goes_to_the_next() {
        let gate = Gate::new(1);
        let held = gate.enter(Rank::Client).await;
        let mut first = Box::pin(gate.enter(Rank::Client));
        let mut second = Box::pin(gate.enter(Rank::Client));
        let mut third = Box::pin(gate.enter(Rank::Client));
        for waiter in [&mut first, &mut second, &mut third] {
            assert!(waiter.now_or_never().is_none());
        }
        assert_eq!(gate.clients_waiting(), 3);
        drop(first);
        drop(held);
        // The second's permit is sent; it gives up without taking it.
        drop(second);
        assert!(third.now_or_never().is_some());
        assert!(gate.enter(Rank::Pool).now_or_never().is_some(), "every place came back");
    }
}
