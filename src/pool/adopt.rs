//! The first look of a new daemon: what did the former one leave behind?
//!
//! Called once, before anything is served. Every record of this node either becomes a living
//! instance again or is marked for the reaper, whose first pass then takes it
//! down:
//!
//! ```text
//! ready, assigned   and still running, not due   adopted: route, place, watched again
//! ready of a golden no longer served           failed: nobody would claim it
//! assigned      and frozen instead, not due    asleep: its daemon died before it could
//!                                              write that down
//!                   else                         failed (ended meanwhile) or expired (due)
//! warming                                        failed: its maker is gone
//! hibernated    and frozen, not due              asleep again
//!                   else                         failed, or expired
//! expired, failed                                as they are
//! ```
//!
//! Idempotent: a daemon that dies here is followed by one that begins again.

use std::sync::Arc;

use jiff::Timestamp;

use crate::instance::{Instance, State};
use crate::provision::Lifecycle;
use crate::store::StoreError;

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// Instances that live on.
    pub adopted: usize,
    /// Instances that are taken down.
    pub dropped: usize,
}

/// Goes through all records of the former daemon.
///
/// # Errors
/// When the store cannot be read or changed: then nothing may be served.
pub async fn adopt_all(lifecycle: &Arc<Lifecycle>, now: Timestamp) -> Result<Found, StoreError> {
    let mut found = Found::default();
    for instance in lifecycle.store().own().await? {
        // Even one that is about to go holds its place until it is gone.
        lifecycle.adopted(&instance);
        if lives_on(lifecycle, &instance, now).await || fell_asleep(lifecycle, &instance, now).await? {
            found.adopted += 1;
        } else {
            found.dropped += 1;
            drop_record(lifecycle, Arc::unwrap_or_clone(instance), now).await?;
        }
    }
    Ok(found)
}

async fn lives_on(lifecycle: &Arc<Lifecycle>, instance: &Instance, now: Timestamp) -> bool {
    match instance.state {
        State::Ready if lifecycle.golden(&instance.golden).is_none() => return false,
        State::Ready | State::Assigned => {}
        State::Hibernated => return !instance.is_due_at(now) && lifecycle.is_frozen(&instance.id).await,
        State::Warming | State::Expired | State::Failed => return false,
    }
    if instance.is_due_at(now) {
        return false;
    }
    match (&instance.container, lifecycle.engine_of(instance)) {
        (Some(container), Some(engine)) => engine.adopt(instance.slot(), container).await,
        _ => false,
    }
}

/// Whether an instance that does not run ended by being frozen; it is written down then.
async fn fell_asleep(
    lifecycle: &Arc<Lifecycle>,
    instance: &Instance,
    now: Timestamp,
) -> Result<bool, StoreError> {
    if instance.state != State::Assigned || instance.is_due_at(now) {
        return Ok(false);
    }
    let (Some(container), Some(engine)) = (&instance.container, lifecycle.engine_of(instance)) else {
        return Ok(false);
    };
    if !engine.fell_asleep(&instance.id, container).await {
        return Ok(false);
    }
    let asleep = lifecycle.store().update(instance.clone().asleep()).await?;
    lifecycle.adopted(&asleep);
    Ok(true)
}

async fn drop_record(
    lifecycle: &Arc<Lifecycle>,
    instance: Instance,
    now: Timestamp,
) -> Result<(), StoreError> {
    lifecycle.close_route(&instance.id);
    if instance.state.is_final() {
        return Ok(());
    }
    let due = instance.is_due_at(now) && instance.state != State::Warming;
    let mut ended = instance;
    ended.state = if due { State::Expired } else { State::Failed };
    lifecycle.store().update(ended).await.map(|ended| lifecycle.seen(&ended))
}
