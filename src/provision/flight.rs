//! One flight a key: requests with the same idempotency key take turns.
//!
//! The second one begins when the first has ended, and then finds the first
//! one's instance in the store. A failed first one leaves the second to try for
//! itself. Used by acquire only; the turn is held by the work, not by the
//! client's request, so a client that hangs up does not let another one start
//! the same work twice.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OwnedMutexGuard;

/// The keys in flight.
#[derive(Debug, Default)]
pub(super) struct Flights {
    /// A std lock: held for one map operation, never across an await.
    keys: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// The turn of one request; dropping it lets the next one with its key begin.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    flights: &'a Flights,
    key: String,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Flights {
    /// Waits for the key's turn.
    pub(super) async fn turn(&self, key: &str) -> Turn<'_> {
        let of_key = {
            let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(keys.entry(key.to_owned()).or_default())
        };
        let guard = of_key.lock_owned().await;
        Turn { flights: self, key: key.to_owned(), guard: Some(guard) }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut keys = self.flights.keys.lock().unwrap_or_else(PoisonError::into_inner);
        self.guard = None;
        // One reference is the map's own: nobody else waits or flies.
        if keys.get(&self.key).is_some_and(|of_key| Arc::strong_count(of_key) == 1) {
            keys.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn the_same_key_takes_turns_and_leaves_nothing() {
        let flights = Flights::default();
        let first = flights.turn("a").await;
        let mut second = Box::pin(flights.turn("a"));
        assert!((&mut second).now_or_never().is_none(), "the first one still flies");
        assert!(flights.turn("b").now_or_never().is_some(), "another key does not wait");
        drop(first);
        assert!(second.now_or_never().is_some());
        assert!(flights.keys.lock().unwrap().is_empty(), "no key is kept for ever");
    }
}
