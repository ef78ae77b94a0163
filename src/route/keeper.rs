//! Keeps the router in front as it is wanted: one task, only with a router.
//!
//! Wakes on a tick, takes no input, is idempotent: each round reads the routes
//! that are in force and puts right what differs. So routes are back after the
//! router was restarted, after somebody changed them by hand, and after it was
//! away while instances came and went. The only place that tells of the
//! router's failures, once when they begin and once when they are over.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Routes;
use crate::error::Chain;

/// How often the router is looked at. It is to have its routes again within 5 s
/// after a restart; a look at 1,000 routes costs it 2 ms.
const TICK: Duration = Duration::from_secs(2);

/// Runs until `stop`; ends at once when there is no router.
pub async fn keep(routes: Arc<Routes>, stop: CancellationToken) {
    if routes.router().is_none() {
        return;
    }
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = tick.tick() => look(&routes).await,
        }
    }
}

/// One round; also the first thing that a new daemon does with its router.
pub async fn look(routes: &Routes) {
    let Some(router) = routes.router() else { return };
    let (before, looked) = (routes.trouble(), router.repair().await);
    match &looked {
        Ok(repaired) => {
            if before.is_some() {
                tracing::info!("the router has all routes again");
            }
            if *repaired > 0 {
                tracing::info!(repaired, "routes repaired");
            }
        }
        Err(error) if before.is_none() => {
            tracing::warn!(error = %Chain(error), "the router lacks routes; those visitors are served by the built-in proxy");
        }
        Err(error) => tracing::debug!(error = %Chain(error), "the router lacks routes"),
    }
    routes.set_trouble(looked.err().map(|error| Chain(&error).to_string()));
}
