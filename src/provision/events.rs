//! The one place where a change of an instance is told: a line in the log, and
//! an event for everybody in this process who listens.
//!
//! Owned by the life cycle; called after the change is stored. Telling never
//! waits: a listener that lags behind loses events and is told how many.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::broadcast;

use crate::instance::Instance;
use crate::instance::event::{Happened, InstanceEvent};

/// How many events wait for the slowest listener: some seconds' worth of a
/// burst of restores; at 200 bytes each this is below a megabyte.
const BACKLOG: usize = 4096;

/// Tells of changes.
#[derive(Debug)]
pub struct Events(broadcast::Sender<Arc<InstanceEvent>>);

impl Default for Events {
    fn default() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }
}

impl Events {
    /// All that is told from now on.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Arc<InstanceEvent>> {
        self.0.subscribe()
    }

    /// Tells that the record has its present state.
    pub(super) fn changed(&self, instance: &Instance) {
        self.happened(instance, instance.state.into());
    }

    /// Tells that something happened to the instance.
    pub(super) fn happened(&self, instance: &Instance, happened: Happened) {
        let event = InstanceEvent::of(instance, happened, Timestamp::now());
        tracing::info!(
            instance_id = %event.instance_id,
            golden = %event.golden,
            happened = happened.as_str(),
            generation = event.generation,
            source = event.source.unwrap_or(event.made_by).as_str(),
            "instance changed"
        );
        // Nobody listens: fine.
        let _ = self.0.send(Arc::new(event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::InstanceId;
    use crate::instance::State;

    #[test]
    fn every_listener_hears_it_and_none_is_fine() {
        let events = Events::default();
        let golden = "wordpress".parse().expect("a name");
        let mut instance = Instance::warming(
            InstanceId::random(),
            golden,
            "here".parse().expect("a name"),
            Timestamp::now(),
        );
        events.changed(&instance);
        let (mut one, mut other) = (events.listen(), events.listen());
        instance.state = State::Ready;
        events.changed(&instance);
        events.happened(&instance, Happened::Gone);
        for listener in [&mut one, &mut other] {
            assert_eq!(listener.try_recv().expect("told").happened, Happened::Ready);
            assert_eq!(listener.try_recv().expect("told").happened, Happened::Gone);
        }
    }
}
