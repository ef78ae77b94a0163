//! Puts shops to sleep that nobody has asked for HIBERNATE_AFTER.
//!
//! One task, only where that is set and the built-in proxy leads visitors: nobody
//! else knows when a shop was asked last. Wakes on a tick, takes no input: it looks at
//! the routes and the store anew. One shop at a time; one that cannot be frozen goes
//! on, and is left alone for as long again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Router};
use crate::error::Chain;
use crate::id::InstanceId;
use crate::instance::State;
use crate::provision::{Doing, Provisioner};
use crate::route::memory::Lookup;

/// How late a shop may fall asleep, at most.
const TICK_MAX: Duration = Duration::from_secs(10);

/// The least time between two looks.
const TICK_MIN: Duration = Duration::from_millis(200);

/// How long nobody may ask a shop until it sleeps, where that can be known.
#[must_use]
pub fn after(config: &Config) -> Duration {
    match config.router {
        Router::Embedded => config.hibernate_after,
        Router::Caddy(_) => {
            if !config.hibernate_after.is_zero() {
                tracing::warn!(
                    "HIBERNATE_AFTER does nothing with ROUTER=caddy: Caddy leads visitors past the proxy, \
                     so nobody knows who is asked; the API's hibernate works"
                );
            }
            Duration::ZERO
        }
    }
}

/// Runs until `stop`; ends at once when no shop is to sleep.
pub async fn keep(provisioner: Arc<Provisioner>, after: Duration, stop: CancellationToken) {
    if after.is_zero() {
        return;
    }
    let mut tick = tokio::time::interval((after / 4).clamp(TICK_MIN, TICK_MAX));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut left_alone: HashMap<InstanceId, Instant> = HashMap::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        left_alone.retain(|_, until| *until > Instant::now());
        for id in idle(&provisioner, after).await {
            if stop.is_cancelled() || left_alone.contains_key(&id) {
                continue;
            }
            if let Err(error) = provisioner.hibernate(&id).await {
                tracing::warn!(instance_id = %id, error = %Chain(&error), "idle shop does not sleep");
                left_alone.insert(id, Instant::now() + after);
            }
        }
    }
}

/// Instances that may sleep now.
async fn idle(provisioner: &Provisioner, after: Duration) -> Vec<InstanceId> {
    let lifecycle = provisioner.lifecycle();
    // An outage of the store is the reaper's to tell.
    let own = lifecycle.store().own().await.unwrap_or_default();
    let assigned = own.iter().filter(|instance| instance.state == State::Assigned);
    let quiet = |id: &InstanceId| match lifecycle.routes().lookup(id.as_str()) {
        Lookup::Found(route) => route.activity.idle_for().is_some_and(|idle| idle >= after),
        Lookup::Asleep(_) | Lookup::Gone | Lookup::Unknown => false,
    };
    assigned
        .map(|instance| &instance.id)
        .filter(|id| lifecycle.doing(id) == Some(Doing::Living) && quiet(id))
        .cloned()
        .collect()
}
