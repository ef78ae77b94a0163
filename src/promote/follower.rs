//! Has this node serve what was promoted or published at another one, and no more what was
//! withdrawn there, tells the others what was here when that could not be told at once, and
//! has a golden that is only booted be restored as soon as there is a snapshot of it, whoever
//! took it. One task.
//!
//! Wakes on a tick, takes no input and is idempotent: what it does are the desk's
//! orders, which an operator sees and which wait for each other.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::shared::Step;
use super::{Desk, DeskError};
use crate::error::Chain;
use crate::id::GoldenName;

/// When one that did not work is tried again: NATS went away, a disk was full. Each time
/// twice as late, up to the second: a key that is not trusted is a matter for people. What
/// the start could not restore is tried again the same way.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(3600));

/// What was begun for a golden last.
#[derive(Debug)]
struct Tried {
    wanted: Step,
    again_at: Instant,
    pause: Duration,
}

/// Runs until `stop`; ends at once where nothing is restored.
pub async fn keep(desk: Desk, stop: CancellationToken) {
    let Some(every) = desk.looks_every() else { return };
    let mut tried: HashMap<GoldenName, Tried> = HashMap::new();
    let mut deaf = false;
    loop {
        // Not all nodes at once.
        let pause = every.mul_f64(rand::random_range(0.75..1.25));
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let looked = look(&desk, &mut tried).await;
        match &looked {
            Err(error) if !deaf => {
                tracing::warn!(error = %Chain(error), "what is to be served is not known");
            }
            Ok(()) if deaf => tracing::info!("what is to be served is known again"),
            Ok(()) | Err(_) => {}
        }
        deaf = looked.is_err();
    }
}

async fn look(desk: &Desk, tried: &mut HashMap<GoldenName, Tried>) -> Result<(), DeskError> {
    // What is only booted does not wait for those who do not answer.
    let (known, is_known) = desk.known().await;
    for golden in desk.looked_at(&known) {
        let Some(wanted) = desk.wanted(&golden, &known).await? else {
            tried.remove(&golden);
            continue;
        };
        let before = tried.get(&golden).filter(|before| before.wanted == wanted);
        if before.is_some_and(|before| Instant::now() < before.again_at) {
            continue;
        }
        let pause = before.map_or(TRY_AGAIN.0, |before| (before.pause * 2).min(TRY_AGAIN.1));
        match desk.follow(&golden, &wanted) {
            Ok(_) => {
                tried.insert(golden, Tried { wanted, again_at: Instant::now() + pause, pause });
            }
            // It is looked again soon.
            Err(DeskError::Busy { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    is_known
}
