//! A snapshot comes to be served behind live traffic.
//!
//! ```text
//! load     unpacked, what can be made ahead is made       (nothing to undo)
//! canary   one shop is made of it, its front page fetched  fails: refused, the old one stays
//! record   written down for the next start                 fails: the old one stays
//! turn     shops are made of it from now on                (the point of no return)
//! replace  ready shops of the old one go, one by one,
//!          each when a new one is ready                    fails: they stay until somebody gets them
//! drain    what waited ahead of the old one is removed     (what is left is told)
//! ```
//!
//! A golden that is new to the daemon comes the same way, but for what there is none of
//! before: it is served when its trial shop is there and it is written down.
//!
//! Invariants: the pool is never emptier than it was by more than what clients
//! take; the canary is a shop like any other and goes to the pool; a snapshot
//! whose canary failed is never taken for the newest again, unless an operator
//! promotes it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::port::{Loaded, Say, Workshop, WorkshopError};
use super::switch_of;
use crate::error::{Chain, ErrorKind};
use crate::id::{GoldenName, SnapshotId};
use crate::instance::{Instance, State};
use crate::provision::errors::MakeError;
use crate::provision::gate::Rank;
use crate::provision::{GoldenRuntime, Lifecycle, Order};
use crate::restore::{FirstPage, Make, Served, Switch};

/// How often, and how long apart, it is looked for shops of a withdrawn golden that are
/// still in the making: a restore takes tenths of a second, some seconds under load.
const WITHDRAW_ROUNDS: u32 = 100;
const WITHDRAW_PAUSE: Duration = Duration::from_millis(100);

/// The snapshot is not served; what was served before still is.
#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    /// Its golden is none of this daemon's.
    #[error("golden {golden} is not served by this daemon")]
    NotServed {
        /// Which.
        golden: GoldenName,
    },
    /// Its golden is only booted here, since it had no snapshot at the start.
    #[error("golden {golden} had no snapshot when the daemon was started: start it again to serve this one")]
    OnlyBooted {
        /// Which.
        golden: GoldenName,
    },
    /// The trial shop was no good.
    #[error("snapshot {id} is refused, its trial shop was no good; {served} is served on")]
    Canary {
        /// Which.
        id: SnapshotId,
        /// What is served.
        served: SnapshotId,
        /// What was wrong.
        #[source]
        source: MakeError,
    },
    /// The trial shop could not be tried.
    #[error("no trial shop of snapshot {id} can be made now; {served} is served on")]
    NoRoom {
        /// Which.
        id: SnapshotId,
        /// What is served.
        served: SnapshotId,
        /// Why not.
        #[source]
        source: MakeError,
    },
    /// The trial shop of a new golden was no good, or cannot be tried now.
    #[error("golden {golden} is not served: no trial shop of snapshot {id} could be made")]
    Trial {
        /// Of which golden.
        golden: GoldenName,
        /// Which.
        id: SnapshotId,
        /// Why not.
        #[source]
        source: MakeError,
    },
    /// It could not be loaded or written down.
    #[error(transparent)]
    Workshop(#[from] WorkshopError),
}

impl RefreshError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotServed { .. } | Self::OnlyBooted { .. } => ErrorKind::Conflict,
            Self::Canary { .. } => ErrorKind::Incompatible,
            Self::NoRoom { source, .. } | Self::Trial { source, .. } => source.kind(),
            Self::Workshop(error) => error.kind,
        }
    }
}

/// Serves a snapshot that was promoted at that time; answers what came of it.
///
/// # Cancel safety
/// Not cancel-safe: spawn it.
pub(super) async fn refresh(
    lifecycle: &Lifecycle,
    workshop: &Arc<dyn Workshop>,
    (id, at): (&SnapshotId, Timestamp),
    say: Say<'_>,
) -> Result<String, RefreshError> {
    let loaded = load(workshop, id, say).await?;
    turn_to(lifecycle, workshop, (id, at), loaded, say).await
}

async fn load(workshop: &Arc<dyn Workshop>, id: &SnapshotId, say: Say<'_>) -> Result<Loaded, WorkshopError> {
    say("loading it");
    let loaded = workshop.load(id).await;
    if let Err(error) = &loaded
        // A full disk says nothing about the snapshot.
        && matches!(error.kind, ErrorKind::Incompatible | ErrorKind::Invalid)
    {
        let why = Chain(error).to_string();
        refuse(workshop, id, &why).await;
    }
    loaded
}

/// Has a golden that is served be restored from what was loaded.
async fn turn_to(
    lifecycle: &Lifecycle,
    workshop: &Arc<dyn Workshop>,
    (id, at): (&SnapshotId, Timestamp),
    Loaded { golden, maker, .. }: Loaded,
    say: Say<'_>,
) -> Result<String, RefreshError> {
    let Some(runtime) = lifecycle.golden(&golden) else { return Err(RefreshError::NotServed { golden }) };
    let Some(switch) = switch_of(&runtime) else { return Err(RefreshError::OnlyBooted { golden }) };
    let served = switch.served();
    say("making a trial shop");
    if let Err(source) = make_one(lifecycle, &golden, &maker).await {
        tell_left(maker.engine().drain().await);
        return match &source {
            MakeError::Launch(error) if !matches!(error.kind, ErrorKind::NoSpace | ErrorKind::Exhausted) => {
                let why = Chain(&source).to_string();
                refuse(workshop, id, &why).await;
                Err(RefreshError::Canary { id: id.clone(), served, source })
            }
            MakeError::Launch(_) | MakeError::Full { .. } | MakeError::Store(_) => {
                Err(RefreshError::NoRoom { id: id.clone(), served, source })
            }
        };
    }
    say("its front page is there; writing it down");
    if let Err(error) = workshop.promote(&golden, id, at).await {
        tell_left(maker.engine().drain().await);
        return Err(error.into());
    }
    let old = switch.turn(Served { snapshot: id.clone(), maker: Arc::clone(&maker) });
    tracing::info!(golden = %golden, snapshot_id = %id, before = %served, "snapshot is served");
    say("serving it; replacing what is ready");
    let left = replace(lifecycle, &golden, &maker, id, say).await;
    say("removing what waited of the former one");
    tell_left(old.engine().drain().await);
    Ok(match left {
        0 => format!("{id} is served, {served} was"),
        left => {
            format!("{id} is served, {served} was; {left} ready ones of it stay until somebody gets them")
        }
    })
}

/// Serves a golden that was published, from this snapshot; answers what came of it.
///
/// # Cancel safety
/// Not cancel-safe: spawn it.
pub(super) async fn introduce(
    lifecycle: &Lifecycle,
    workshop: &Arc<dyn Workshop>,
    id: &SnapshotId,
    pool: Option<usize>,
    say: Say<'_>,
) -> Result<String, RefreshError> {
    let loaded = load(workshop, id, say).await?;
    if lifecycle.golden(&loaded.golden).is_some() {
        // It was published before.
        let golden = loaded.golden.clone();
        let served = turn_to(lifecycle, workshop, (id, Timestamp::now()), loaded, say).await?;
        if let Some(pool) = pool {
            workshop.set_pool(&golden, pool).await?;
            lifecycle.aim().set_usual(&golden, pool);
            lifecycle.look_at_pool();
        }
        return Ok(served);
    }
    let Loaded { golden, title, about, maker } = loaded;
    say("making a trial shop");
    if let Err(source) = make_one(lifecycle, &golden, &maker).await {
        tell_left(maker.engine().drain().await);
        return Err(RefreshError::Trial { golden, id: id.clone(), source });
    }
    say("its front page is there; writing it down");
    let served = Switch::new(Served { snapshot: id.clone(), maker });
    let engine = Arc::clone(served.engine());
    let pool = match workshop.introduce(&golden, id, pool, &engine).await {
        Ok(pool) => pool,
        Err(error) => {
            tell_left(engine.drain().await);
            return Err(error.into());
        }
    };
    lifecycle.aim().set_usual(&golden, pool);
    let name = golden.clone();
    lifecycle.serve_too(GoldenRuntime { name, title, about, restore: Ok(Arc::new(served)), cold: None });
    tracing::info!(golden = %golden, snapshot_id = %id, "published golden is served");
    Ok(format!("{golden} is served, restored from {id}"))
}

/// Serves a published golden no more; answers what came of it. Visitors' shops live on.
///
/// # Cancel safety
/// Not cancel-safe: spawn it.
pub(super) async fn withdraw(
    lifecycle: &Lifecycle,
    workshop: &Arc<dyn Workshop>,
    golden: &GoldenName,
) -> Result<String, WorkshopError> {
    // None, when nothing could be made of it at the start.
    let engines = lifecycle.golden(golden).map(|runtime| runtime.engines()).unwrap_or_default();
    workshop.withdraw(golden, &engines).await?;
    lifecycle.serve_no_more(golden);
    lifecycle.aim().forget(golden);
    // One may be in the making, and is ready in a moment; the reaper ends what comes later.
    for round in 0..WITHDRAW_ROUNDS {
        if round > 0 {
            tokio::time::sleep(WITHDRAW_PAUSE).await;
        }
        for spare in own_in(lifecycle, golden, State::Ready).await {
            let still_ready = |present: &Instance| present.state == State::Ready;
            if let Err(error) = lifecycle.end(spare, State::Expired, still_ready).await {
                tracing::warn!(error = %Chain(&error), "ready shop of a withdrawn golden not taken down yet");
            }
        }
        if own_in(lifecycle, golden, State::Warming).await.is_empty() {
            break;
        }
    }
    for engine in engines {
        tell_left(engine.drain().await);
    }
    tracing::info!(golden = %golden, "published golden is served no more");
    Ok(format!("{golden} is served no more"))
}

async fn refuse(workshop: &Arc<dyn Workshop>, id: &SnapshotId, why: &str) {
    if let Err(error) = workshop.refuse(id, why).await {
        tracing::warn!(snapshot_id = %id, error = %Chain(&error), "snapshot's refusal is not written down");
    }
}

fn tell_left(failed: Vec<crate::engine::CleanupError>) {
    for error in failed {
        tracing::warn!(error = %Chain(&error), "something made ahead was not removed completely");
    }
}

/// Makes one for the pool, its front page fetched.
async fn make_one(
    lifecycle: &Lifecycle,
    golden: &GoldenName,
    maker: &Arc<dyn Make>,
) -> Result<Instance, MakeError> {
    let permit = lifecycle.gate().enter(Rank::Pool).await;
    let order = Order { golden, maker, first_page: FirstPage::Fetched, idempotency_key: None, permit };
    lifecycle.make(order, |record| record.state = State::Ready).await
}

/// Replaces the ready shops of other snapshots; answers how many are left.
async fn replace(
    lifecycle: &Lifecycle,
    golden: &GoldenName,
    maker: &Arc<dyn Make>,
    id: &SnapshotId,
    say: Say<'_>,
) -> usize {
    // The canary is the first new one: an old one may go for it.
    let mut made = 1;
    loop {
        let ready = own_in(lifecycle, golden, State::Ready).await;
        let Some(old) = ready.iter().find(|instance| instance.snapshot.as_ref() != Some(id)) else {
            return 0;
        };
        let left = ready.iter().filter(|instance| instance.snapshot.as_ref() != Some(id)).count();
        if made == 0 {
            match make_one(lifecycle, golden, maker).await {
                Ok(_) => made += 1,
                // One goes first where there is no place for both; never the last one.
                Err(MakeError::Full { .. }) if ready.len() > 1 => made += 1,
                Err(error) => {
                    tracing::warn!(error = %Chain(&error), "ready shops of the former snapshot stay");
                    return left;
                }
            }
            continue;
        }
        made -= 1;
        let still_ready = |present: &Instance| present.state == State::Ready;
        if let Err(error) = lifecycle.end(old.clone(), State::Expired, still_ready).await {
            tracing::warn!(instance_id = %old.id, error = %Chain(&error), "former snapshot's shop not taken down yet");
            return left;
        }
        say(&format!("{} of the former one left", left - 1));
    }
}

/// This node's shops of a golden in that state, the oldest first.
async fn own_in(lifecycle: &Lifecycle, golden: &GoldenName, state: State) -> Vec<Instance> {
    let own = lifecycle.store().own().await;
    let mut found = own.unwrap_or_else(|error| {
        tracing::warn!(error = %Chain(&error), "ready shops of the former snapshot stay");
        Vec::new()
    });
    found.retain(|instance| instance.golden == *golden && instance.state == state);
    found.sort_by_key(|instance| instance.created_at);
    found
}
