//! How many restores run at once, and who is next: waiting clients go first.
//!
//! Past about one restore a core more of them only make each other slower
//! (32 clones on 2 cores: 6.4 s all at once, 4.5 s two at a time), so all
//! makers pass this gate. Used by acquire (as [`Rank::Client`]) and by the
//! pool's reconciler (as [`Rank::Pool`]), which waits for as long as any client
//! does.
//!
//! Invariant: a permit is in one place: free, held, or on its way to a waiter;
//! a waiter that stops waiting passes it on by dropping it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

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
    free: usize,
    clients: VecDeque<oneshot::Sender<Permit>>,
    pool: VecDeque<oneshot::Sender<Permit>>,
}

/// The right to run one restore; dropping it lets the next one in.
#[derive(Debug)]
pub struct Permit {
    /// None in one that nobody took.
    gate: Option<Gate>,
    /// Whether it had to be waited for.
    pub waited: bool,
}

impl Gate {
    /// A gate for `places` restores at once.
    #[must_use]
    pub fn new(places: usize) -> Self {
        let places = Places { free: places.max(1), clients: VecDeque::new(), pool: VecDeque::new() };
        Self(Arc::new(Mutex::new(places)))
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
                return Permit { gate: Some(self.clone()), waited: false };
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
        self.lock().clients.iter().filter(|waiter| !waiter.is_closed()).count()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self) {
        loop {
            let next = {
                let mut places = self.lock();
                let next = places.clients.pop_front().or_else(|| places.pool.pop_front());
                if next.is_none() {
                    places.free += 1;
                    return;
                }
                next
            };
            let Some(waiter) = next else { return };
            match waiter.send(Permit { gate: Some(self.clone()), waited: true }) {
                Ok(()) => return,
                // It gave up: the place goes to the next one, here and not by the drop.
                Err(mut permit) => permit.gate = None,
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            gate.leave();
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
