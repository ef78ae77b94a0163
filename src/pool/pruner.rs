//! Removes kept shops whose time is over, and at the start what was half kept.
//!
//! One task; wakes on a tick, takes no input, is idempotent.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::error::Chain;
use crate::provision::Provisioner;

/// How late a kept shop may go: it was there for days.
const TICK: Duration = Duration::from_secs(60);

/// Runs until `stop`; ends at once where nothing can be kept.
pub async fn keep(provisioner: Arc<Provisioner>, stop: CancellationToken) {
    let Ok(keeping) = provisioner.keeping() else { return };
    if let Err(error) = keeping.sweep().await {
        tracing::warn!(error = %Chain(&error), "what a former daemon had half kept is not removed yet");
    }
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        match keeping.on_shelf(|shelf| shelf.prune(Timestamp::now())).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "kept shops whose time is over removed"),
            Err(error) => tracing::warn!(error = %Chain(&error), "kept shops not pruned yet"),
        }
    }
}
