//! One flight a key: requests with the same idempotency key take turns.
//!
//! The second one begins when the first has ended, and then finds the first
//! one's instance in the store. A failed first one leaves the second to try for
//! itself. Used by acquire only; the turn is held by the work, not by the
//! client's request, so a client that hangs up does not let another one start
//! the same work twice.

use std::collections::HashMap;

use tokio::sync::OwnedMutexGuard;

use crate::sync::{Arc, Mutex, PoisonError};

/// The keys in flight.
#[derive(Debug, Default)]
pub(super) struct Flights {
    /// A std lock: held for one map operation, never across an await.
    keys: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// The turn of one request, or its wait for one; dropping it lets the next one with
/// its key begin.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    flights: &'a Flights,
    key: String,
    /// Given up at drop, while the map stands still.
    of_key: Option<Arc<tokio::sync::Mutex<()>>>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Flights {
    /// Waits for the key's turn.
    pub(super) async fn turn(&self, key: &str) -> Turn<'_> {
        let of_key = {
            let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(keys.entry(key.to_owned()).or_default())
        };
        // From here on whoever stops waiting leaves no key behind.
        let mut turn =
            Turn { flights: self, key: key.to_owned(), of_key: Some(Arc::clone(&of_key)), guard: None };
        turn.guard = Some(of_key.lock_owned().await);
        turn
    }
}

#[cfg(test)]
impl Flights {
    /// Whether nobody flies.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut keys = self.flights.keys.lock().unwrap_or_else(PoisonError::into_inner);
        (self.guard, self.of_key) = (None, None);
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
        let mut impatient = Box::pin(flights.turn("a"));
        assert!((&mut impatient).now_or_never().is_none());
        drop(first);
        assert!(second.now_or_never().is_some());
        drop(impatient);
        assert!(flights.is_empty(), "no key is kept for ever");
    }
}
