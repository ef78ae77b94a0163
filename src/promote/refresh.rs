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
//! before: it is served when its trial shop is there and it is written down. One that was
//! only booted does, too: booted shops that are ready are replaced, and nothing is written
//! down unless an operator said so, since the next start finds the snapshot by itself.
//!
//! Invariants: the pool is never emptier than it was by more than what clients
//! take; the canary is a shop like any other and goes to the pool; a snapshot
//! whose canary failed is never taken for the newest again, unless an operator
//! promotes it.

use std::fmt;
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
    /// The trial shop was no good.
    #[error("snapshot {id} is refused, its trial shop was no good; {before}")]
    Canary {
        /// Which.
        id: SnapshotId,
        /// What is served.
        before: Before,
        /// What was wrong.
        #[source]
        source: MakeError,
    },
    /// The trial shop could not be tried.
    #[error("no trial shop of snapshot {id} can be made now; {before}")]
    NoRoom {
        /// Which.
        id: SnapshotId,
        /// What is served.
        before: Before,
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
            Self::NotServed { .. } => ErrorKind::Conflict,
            Self::Canary { .. } => ErrorKind::Incompatible,
            Self::NoRoom { source, .. } | Self::Trial { source, .. } => source.kind(),
            Self::Workshop(error) => error.kind,
        }
    }
}

/// What is served as long as nothing else is.
#[derive(Debug, Clone)]
pub enum Before {
    /// A snapshot.
    Snapshot(SnapshotId),
    /// None: shops are booted.
    Booted,
}

impl fmt::Display for Before {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(id) => write!(f, "{id} is served on"),
            Self::Booted => write!(f, "its golden is booted on"),
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
    turn_to(lifecycle, workshop, (id, Some(at)), loaded, say).await
}

/// Has a golden that is only booted be restored from a snapshot that is there now; answers
/// what came of it.
///
/// # Cancel safety
/// Not cancel-safe: spawn it.
pub(super) async fn begin(
    lifecycle: &Lifecycle,
    workshop: &Arc<dyn Workshop>,
    id: &SnapshotId,
    say: Say<'_>,
) -> Result<String, RefreshError> {
    say("loading it");
    // One that does not load is not refused: it may fit again, once the host is as it was.
    let loaded = workshop.load(id).await?;
    turn_to(lifecycle, workshop, (id, None), loaded, say).await
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

/// Has a golden that is served be restored from what was loaded, which is written down where
/// it was promoted.
async fn turn_to(
    lifecycle: &Lifecycle,
    workshop: &Arc<dyn Workshop>,
    (id, at): (&SnapshotId, Option<Timestamp>),
    loaded: Loaded,
    say: Say<'_>,
) -> Result<String, RefreshError> {
    let (golden, maker) = (loaded.golden.clone(), Arc::clone(&loaded.maker));
    let Some(runtime) = lifecycle.golden(&golden) else { return Err(RefreshError::NotServed { golden }) };
    let served = switch_of(&runtime).map(Switch::served);
    let before = served.clone().map_or(Before::Booted, Before::Snapshot);
    say("making a trial shop");
    if let Err(source) = make_one(lifecycle, &golden, &maker).await {
        tell_left(maker.engine().drain().await);
        if is_no_good(&source) {
            let why = Chain(&source).to_string();
            refuse(workshop, id, &why).await;
            return Err(RefreshError::Canary { id: id.clone(), before, source });
        }
        return Err(RefreshError::NoRoom { id: id.clone(), before, source });
    }
    say("its front page is there; writing it down");
    if let Some(at) = at
        && let Err(error) = workshop.promote(&golden, id, at).await
    {
        tell_left(maker.engine().drain().await);
        return Err(error.into());
    }
    let old = turn(lifecycle, workshop, &runtime, (id, loaded));
    let was = served.map_or_else(|| "booted shops".to_owned(), |served| served.to_string());
    tracing::info!(golden = %golden, snapshot_id = %id, before = was, "snapshot is served");
    say("serving it; replacing what is ready");
    let left = replace(lifecycle, &golden, &maker, id, say).await;
    if let Some(old) = old {
        say("removing what waited of the former one");
        tell_left(old.engine().drain().await);
    }
    Ok(match left {
        0 => format!("{id} is served in place of {was}"),
        left => {
            format!("{id} is served in place of {was}; {left} ready ones stay until somebody gets them")
        }
    })
}

/// Has shops be made of what was loaded from now on; answers by whom they were until now.
/// What is only booted gets a way to be restored, and keeps the one to be booted.
fn turn(
    lifecycle: &Lifecycle,
    workshop: &Arc<dyn Workshop>,
    runtime: &GoldenRuntime,
    (id, loaded): (&SnapshotId, Loaded),
) -> Option<Arc<dyn Make>> {
    let Loaded { golden: name, title, about, maker } = loaded;
    let served = Served { snapshot: id.clone(), maker };
    if let Some(switch) = switch_of(runtime) {
        return Some(switch.turn(served));
    }
    let switch = Switch::new(served);
    workshop.begin(id, switch.engine());
    let cold = runtime.cold.clone();
    lifecycle.serve_too(GoldenRuntime { name, title, about, restore: Ok(Arc::new(switch)), cold });
    None
}

/// Serves a golden that was published at that time, from this snapshot; answers what came
/// of it.
///
/// # Cancel safety
/// Not cancel-safe: spawn it.
pub(super) async fn introduce(
    lifecycle: &Lifecycle,
    workshop: &Arc<dyn Workshop>,
    (id, at): (&SnapshotId, Timestamp),
    pool: Option<usize>,
    say: Say<'_>,
) -> Result<String, RefreshError> {
    let loaded = load(workshop, id, say).await?;
    if lifecycle.golden(&loaded.golden).is_some() {
        // It was published before.
        let golden = loaded.golden.clone();
        let served = turn_to(lifecycle, workshop, (id, Some(at)), loaded, say).await?;
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
        if is_no_good(&source) {
            let why = Chain(&source).to_string();
            refuse(workshop, id, &why).await;
        }
        return Err(RefreshError::Trial { golden, id: id.clone(), source });
    }
    say("its front page is there; writing it down");
    let served = Switch::new(Served { snapshot: id.clone(), maker });
    let engine = Arc::clone(served.engine());
    let pool = match workshop.introduce(&golden, (id, at), pool, &engine).await {
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

/// Whether a trial shop says something of its snapshot, and not of the host.
fn is_no_good(trial: &MakeError) -> bool {
    match trial {
        MakeError::Launch(error) => !matches!(error.kind, ErrorKind::NoSpace | ErrorKind::Exhausted),
        MakeError::Full { .. } | MakeError::Store(_) => false,
    }
}

/// Serves a published golden no more, since that was said at that time; answers what came of
/// it. Visitors' shops live on.
///
/// # Cancel safety
/// Not cancel-safe: spawn it.
pub(super) async fn withdraw(
    lifecycle: &Lifecycle,
    workshop: &Arc<dyn Workshop>,
    (golden, at): (&GoldenName, Timestamp),
) -> Result<String, WorkshopError> {
    // None, when nothing could be made of it at the start.
    let engines = lifecycle.golden(golden).map(|runtime| runtime.engines()).unwrap_or_default();
    workshop.withdraw(golden, at, &engines).await?;
    lifecycle.serve_no_more(golden);
    lifecycle.aim().forget(golden);
    // One may be in the making, and is ready in a moment; the reaper ends what comes later.
    for round in 0..WITHDRAW_ROUNDS {
        if round > 0 {
            tokio::time::sleep(WITHDRAW_PAUSE).await;
        }
        for spare in own_in(lifecycle, golden, State::Ready).await {
            let still_ready = |present: &Instance| present.state == State::Ready;
            if let Err(error) = lifecycle.end(Arc::unwrap_or_clone(spare), State::Expired, still_ready).await
            {
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
        if let Err(error) = lifecycle.end(Instance::clone(old), State::Expired, still_ready).await {
            tracing::warn!(instance_id = %old.id, error = %Chain(&error), "former snapshot's shop not taken down yet");
            return left;
        }
        say(&format!("{} of the former one left", left - 1));
    }
}

/// This node's shops of a golden in that state, the oldest first.
async fn own_in(lifecycle: &Lifecycle, golden: &GoldenName, state: State) -> Vec<Arc<Instance>> {
    let own = lifecycle.store().own().await;
    let mut found = own.unwrap_or_else(|error| {
        tracing::warn!(error = %Chain(&error), "ready shops of the former snapshot stay");
        Vec::new()
    });
    found.retain(|instance| instance.golden == *golden && instance.state == state);
    found.sort_by_key(|instance| instance.created_at);
    found
}
