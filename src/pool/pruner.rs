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
use crate::snapshot::shelf::{Shelf, ShelfError};

/// How late a kept shop may go: it was there for days.
const TICK: Duration = Duration::from_secs(60);

/// Runs until `stop`; ends at once where none is kept.
pub async fn keep(provisioner: Arc<Provisioner>, stop: CancellationToken) {
    let Ok(keeping) = provisioner.keeping() else { return };
    let shelf = keeping.shelf.clone();
    let swept = in_background(shelf.clone(), |shelf| shelf.sweep().map(|()| Vec::new())).await;
    tell(swept);
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        tell(in_background(shelf.clone(), |shelf| shelf.prune(Timestamp::now())).await);
    }
}

type Pruned = Result<Vec<crate::id::SavedName>, ShelfError>;

async fn in_background(shelf: Shelf, work: impl FnOnce(&Shelf) -> Pruned + Send + 'static) -> Pruned {
    tokio::task::spawn_blocking(move || work(&shelf)).await.unwrap_or_else(|_| Ok(Vec::new()))
}

fn tell(pruned: Pruned) {
    match pruned {
        Ok(pruned) if pruned.is_empty() => {}
        Ok(pruned) => tracing::info!(removed = pruned.len(), "kept shops whose time is over removed"),
        Err(error) => tracing::warn!(error = %Chain(&error), "kept shops not pruned yet"),
    }
}
