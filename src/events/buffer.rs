//! Events that wait to be published: first in, first out, bounded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::instance::event::InstanceEvent;

/// The buffer. One puts in, one takes out.
#[derive(Debug)]
pub(super) struct Buffer {
    capacity: usize,
    /// A std lock: held for one operation, never across an await.
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Arc<InstanceEvent>>,
    is_closed: bool,
}

impl Buffer {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, state: Mutex::default(), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts one in; answers how many had to go for it. The oldest go: whoever
    /// follows an instance is better off with its present state.
    pub(super) fn push(&self, event: Arc<InstanceEvent>) -> u64 {
        let dropped = {
            let mut state = self.lock();
            let full = state.waiting.len() >= self.capacity;
            if full {
                state.waiting.pop_front();
            }
            state.waiting.push_back(event);
            u64::from(full)
        };
        self.changed.notify_one();
        dropped
    }

    /// Nothing more is put in.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_one();
    }

    /// Waits for the oldest and leaves it there; none when there is none left
    /// and none to come.
    pub(super) async fn first(&self) -> Option<Arc<InstanceEvent>> {
        loop {
            {
                let state = self.lock();
                if let Some(first) = state.waiting.front() {
                    return Some(Arc::clone(first));
                }
                if state.is_closed {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    /// Takes that one out, unless it had to go meanwhile.
    pub(super) fn done(&self, event: &Arc<InstanceEvent>) {
        let mut state = self.lock();
        if state.waiting.front().is_some_and(|first| Arc::ptr_eq(first, event)) {
            state.waiting.pop_front();
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.lock().waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::id::InstanceId;
    use crate::instance::Instance;
    use crate::instance::event::Happened;

    fn event(generation: u64) -> Arc<InstanceEvent> {
        let golden = "shop".parse().unwrap();
        let mut instance =
            Instance::warming(InstanceId::random(), golden, "here".parse().unwrap(), Timestamp::UNIX_EPOCH);
        instance.generation = generation;
        Arc::new(InstanceEvent::of(&instance, Happened::Ready, Timestamp::UNIX_EPOCH))
    }

    #[tokio::test]
    async fn the_oldest_go_first_and_go_when_it_is_full() {
        let buffer = Buffer::new(2);
        assert_eq!((buffer.push(event(1)), buffer.push(event(2))), (0, 0));
        let first = buffer.first().await.unwrap();
        assert_eq!(first.generation, 1);
        assert_eq!(buffer.push(event(3)), 1, "one had to go");
        buffer.done(&first);
        assert_eq!(buffer.len(), 2, "the one that went is not taken out again");
        buffer.close();
        for generation in [2, 3] {
            let first = buffer.first().await.unwrap();
            assert_eq!(first.generation, generation);
            buffer.done(&first);
        }
        assert_eq!(buffer.first().await, None);
    }
}
