//! Snapshots of a running daemon: taken, verified, promoted, removed.
//!
//! Called by the API. The [`Desk`] takes one order at a time, does it in the
//! background and remembers how it went ([`task`]); what is done to files is the
//! [`Workshop`]'s ([`port`]); how a snapshot comes to be served behind live
//! traffic is [`refresh`]'s. Where there are several nodes, what is promoted at one is
//! served by all ([`follow`], [`shared`], [`follower`]), and so is what was a visitor's shop
//! ([`publish`]).
//!
//! Not responsible for: what is served after a restart, which
//! [`crate::snapshot::served`] remembers.

mod follow;
pub mod follower;
mod port;
mod publish;
mod refresh;
mod shared;
mod task;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;

pub use self::port::{Listed, Loaded, Publication, Say, Workshop, WorkshopError};
use self::refresh::RefreshError;
pub use self::shared::{Shared, Source, Standing, Told, source_of};
use self::task::Board;
pub use self::task::{Kind, Outcome, Task};
use crate::error::{Chain, ErrorKind};
use crate::id::{self, GoldenName, InstanceId, SnapshotId};
use crate::provision::audit::Beside;
use crate::provision::{GoldenRuntime, Lifecycle};
use crate::restore::Switch;
use crate::store::StoreError;

/// An order was not taken, or not done.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// Another one is under way.
    #[error("{} of {} is under way, since {}: wait until it has ended", .kind.as_str(), .subject, .since)]
    Busy {
        /// What.
        kind: Kind,
        /// Of what.
        subject: String,
        /// Since when.
        since: Timestamp,
    },
    /// There are no snapshots in this daemon's mode.
    #[error("this daemon restores no snapshots (CONTAINER_MODE=docker)")]
    NoSnapshots,
    /// No such golden is served.
    #[error("golden {golden:?} is unknown; there are: {}", .known.join(", "))]
    UnknownGolden {
        /// What was asked for.
        golden: String,
        /// What is served.
        known: Vec<String>,
    },
    /// No such snapshot.
    #[error("snapshot {id} is unknown")]
    UnknownSnapshot {
        /// Which.
        id: SnapshotId,
    },
    /// No such golden was published.
    #[error("golden {golden} was not published: what settings name is served until they say otherwise")]
    NotPublished {
        /// Which.
        golden: GoldenName,
    },
    /// It is of another golden than was told.
    #[error("snapshot {id} is none of golden {golden}, of which it was told")]
    OtherGolden {
        /// Which.
        id: SnapshotId,
        /// What was told.
        golden: GoldenName,
    },
    /// Settings name it at one node, and it was published at another one.
    #[error(
        "golden {golden} was published at one node, and settings of another one name it; both go on \
         with their own: `saved withdraw` it where it was published, and publish it by another name"
    )]
    Clash {
        /// Which.
        golden: GoldenName,
    },
    /// It is in use.
    #[error("snapshot {id} is in use: {by}")]
    InUse {
        /// Which.
        id: SnapshotId,
        /// By what.
        by: String,
    },
    /// The workshop could not.
    #[error(transparent)]
    Workshop(#[from] WorkshopError),
    /// The store could not be asked.
    #[error("cannot find out what is in use")]
    Store(#[from] StoreError),
    /// It is not served.
    #[error(transparent)]
    Refresh(Box<RefreshError>),
}

impl DeskError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Busy { .. } | Self::NoSnapshots | Self::InUse { .. } | Self::Clash { .. } => {
                ErrorKind::Conflict
            }
            Self::UnknownGolden { .. } | Self::OtherGolden { .. } => ErrorKind::Invalid,
            Self::UnknownSnapshot { .. } | Self::NotPublished { .. } => ErrorKind::NotFound,
            Self::Workshop(error) => error.kind,
            Self::Store(error) => error.kind(),
            Self::Refresh(error) => error.kind(),
        }
    }
}

/// What a daemon serves.
#[derive(Debug)]
pub struct Stock {
    /// The goldens, the default one first.
    pub goldens: Vec<GoldenRuntime>,
    /// Who has their snapshots; none where nothing is restored.
    pub workshop: Option<Arc<dyn Workshop>>,
    /// How many of a published golden are to be ready.
    pub pools: BTreeMap<GoldenName, usize>,
    /// What an audit looks for beside instances.
    pub beside: Option<Arc<dyn Beside>>,
}

impl From<Vec<GoldenRuntime>> for Stock {
    fn from(goldens: Vec<GoldenRuntime>) -> Self {
        Self { goldens, workshop: None, pools: BTreeMap::new(), beside: None }
    }
}

/// A snapshot, and who has it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// As the catalogue has it.
    pub listed: Listed,
    /// Whether shops are made of it now.
    pub served: bool,
    /// Instances of this daemon that came from it.
    pub instances: Vec<InstanceId>,
}

/// Takes orders about snapshots; clones are the same desk.
#[derive(Debug, Clone)]
pub struct Desk(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    lifecycle: Arc<Lifecycle>,
    workshop: Option<Arc<dyn Workshop>>,
    /// A std lock: held for a few operations, never across an await.
    board: Mutex<Board>,
    /// Tells that a task has gone on.
    told: watch::Sender<u64>,
}

impl Desk {
    /// A desk; without a workshop there are no snapshots.
    #[must_use]
    pub fn new(lifecycle: Arc<Lifecycle>, workshop: Option<Arc<dyn Workshop>>) -> Self {
        Self(Arc::new(Parts { lifecycle, workshop, board: Mutex::default(), told: watch::Sender::new(0) }))
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn workshop(&self) -> Result<&Arc<dyn Workshop>, DeskError> {
        self.0.workshop.as_ref().ok_or(DeskError::NoSnapshots)
    }

    /// Tells each time that a task has gone on.
    #[must_use]
    pub fn told(&self) -> watch::Receiver<u64> {
        self.0.told.subscribe()
    }

    /// The last tasks, the newest first.
    #[must_use]
    pub fn tasks(&self) -> Vec<Task> {
        self.board().all()
    }

    /// Which snapshot each golden is restored from; those that are restored only.
    #[must_use]
    pub fn served(&self) -> BTreeMap<GoldenName, SnapshotId> {
        let goldens = self.0.lifecycle.goldens();
        goldens.iter().filter_map(|golden| Some((golden.name.clone(), switch_of(golden)?.served()))).collect()
    }

    /// All snapshots.
    ///
    /// # Errors
    /// There are none in this mode, or they cannot be read.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, DeskError> {
        let served = self.served();
        let mut instances: BTreeMap<SnapshotId, Vec<InstanceId>> = BTreeMap::new();
        for instance in self.0.lifecycle.store().own().await? {
            if let Some(snapshot) = instance.snapshot.clone() {
                instances.entry(snapshot).or_default().push(instance.id.clone());
            }
        }
        let listed = self.workshop()?.list().await?;
        let mut with_use = |listed: Listed| Snapshot {
            served: served.values().any(|id| *id == listed.id),
            instances: instances.remove(&listed.id).unwrap_or_default(),
            listed,
        };
        Ok(listed.into_iter().map(&mut with_use).collect())
    }

    /// Begins to take a snapshot; of the first golden when none is named.
    ///
    /// # Errors
    /// [`DeskError`]; nothing was begun.
    pub fn create(&self, golden: Option<&str>) -> Result<Task, DeskError> {
        let goldens = self.0.lifecycle.goldens();
        let meant = goldens.iter().find(|known| golden.is_none_or(|golden| known.name.as_str() == golden));
        let Some(meant) = meant else {
            let known = goldens.iter().map(|golden| golden.name.to_string()).collect();
            let golden = golden.unwrap_or_default().chars().take(80).collect();
            return Err(DeskError::UnknownGolden { golden, known });
        };
        self.begin(Order::Create(meant.name.clone()))
    }

    /// Begins to digest a snapshot's archives.
    ///
    /// # Errors
    /// [`DeskError`]; nothing was begun.
    pub async fn verify(&self, id: &SnapshotId) -> Result<Task, DeskError> {
        self.find(id).await?;
        self.begin(Order::Verify(id.clone()))
    }

    /// Begins to try a snapshot and to have the pool restored from it.
    ///
    /// # Errors
    /// [`DeskError`]; nothing was begun.
    pub async fn promote(&self, id: &SnapshotId) -> Result<Task, DeskError> {
        self.find(id).await?;
        self.begin(Order::Promote(id.clone()))
    }

    /// Begins to remove all but the newest `keep` snapshots of each golden, and
    /// those in use.
    ///
    /// # Errors
    /// [`DeskError`]; nothing was begun.
    pub fn prune(&self, keep: usize) -> Result<Task, DeskError> {
        self.begin(Order::Prune(keep))
    }

    /// Begins to remove a snapshot.
    ///
    /// # Errors
    /// [`DeskError`]; nothing was begun.
    pub async fn remove(&self, id: &SnapshotId) -> Result<Task, DeskError> {
        let found = self.find(id).await?;
        if found.served {
            let by = "shops are restored from it; promote another one first".to_owned();
            return Err(DeskError::InUse { id: id.clone(), by });
        }
        if !found.instances.is_empty() {
            let by = found.instances.iter().map(|instance| format!("{instance} runs on its files"));
            let by = id::few(&by.collect::<Vec<_>>());
            return Err(DeskError::InUse { id: id.clone(), by });
        }
        self.begin(Order::Remove(id.clone()))
    }

    async fn find(&self, id: &SnapshotId) -> Result<Snapshot, DeskError> {
        let all = self.snapshots().await?;
        let found = all.into_iter().find(|snapshot| snapshot.listed.id == *id);
        found.ok_or_else(|| DeskError::UnknownSnapshot { id: id.clone() })
    }

    /// Snapshots that shops are made of, or run on.
    async fn in_use(&self) -> Result<Vec<SnapshotId>, DeskError> {
        let mut used: Vec<SnapshotId> = self.served().into_values().collect();
        let own = self.0.lifecycle.store().own().await?;
        used.extend(own.iter().filter_map(|instance| instance.snapshot.clone()));
        used.sort();
        used.dedup();
        Ok(used)
    }

    fn say(&self, step: &str) {
        self.board().step(step);
        self.0.told.send_modify(|count| *count += 1);
    }

    /// Does an order in the background, if none is under way.
    fn begin(&self, order: Order) -> Result<Task, DeskError> {
        let workshop = Arc::clone(self.workshop()?);
        let (kind, subject) = (order.kind(), order.subject());
        let begun = self.board().begin(kind, &subject, Timestamp::now());
        let task = begun.map_err(|running| DeskError::Busy {
            kind: running.kind,
            subject: running.subject,
            since: running.began_at,
        })?;
        let desk = self.clone();
        self.0.lifecycle.tasks().spawn(async move {
            let outcome = match desk.work(order, &workshop).await {
                Ok(result) => {
                    tracing::info!(kind = kind.as_str(), subject, result, "operator's order done");
                    Outcome::Done(result)
                }
                Err(error) => {
                    let error = Chain(&error).to_string();
                    tracing::warn!(kind = kind.as_str(), subject, error, "operator's order failed");
                    Outcome::Failed(error)
                }
            };
            desk.board().end(outcome, Timestamp::now());
            desk.0.told.send_modify(|count| *count += 1);
        });
        Ok(task)
    }

    async fn work(&self, order: Order, workshop: &Arc<dyn Workshop>) -> Result<String, DeskError> {
        let say = |step: &str| self.say(step);
        match order {
            Order::Create(golden) => Ok(workshop.create(&golden, &say).await?.to_string()),
            Order::Verify(id) => {
                workshop.verify(&id).await?;
                Ok("whole".to_owned())
            }
            Order::Promote(id) => {
                let at = Timestamp::now();
                let done = refresh::refresh(&self.0.lifecycle, workshop, (&id, at), &say).await;
                let done = done.map_err(|error| DeskError::Refresh(Box::new(error)))?;
                Ok(self.share(workshop, (&id, at), done).await)
            }
            Order::Follow(golden) | Order::Begin(golden) => self.do_follow(&golden, workshop).await,
            Order::Publish(wanted) => self.do_publish(&wanted, workshop).await,
            Order::Withdraw(golden) => self.do_withdraw(&golden, workshop).await,
            Order::Prune(keep) => {
                let removed = workshop.prune(keep, &self.in_use().await?).await?;
                let names: Vec<&str> = removed.iter().map(SnapshotId::as_str).collect();
                Ok(if names.is_empty() { "nothing to remove".to_owned() } else { names.join(", ") })
            }
            Order::Remove(id) => {
                workshop.remove(&id, &self.in_use().await?).await?;
                Ok("removed".to_owned())
            }
        }
    }
}

/// What is to be done.
#[derive(Debug)]
enum Order {
    Create(GoldenName),
    Verify(SnapshotId),
    Promote(SnapshotId),
    Follow(GoldenName),
    Begin(GoldenName),
    Publish(Publication),
    Withdraw(GoldenName),
    Prune(usize),
    Remove(SnapshotId),
}

impl Order {
    const fn kind(&self) -> Kind {
        match self {
            Self::Create(_) => Kind::Create,
            Self::Verify(_) => Kind::Verify,
            Self::Promote(_) => Kind::Promote,
            Self::Follow(_) => Kind::Follow,
            Self::Begin(_) => Kind::Begin,
            Self::Publish(_) => Kind::Publish,
            Self::Withdraw(_) => Kind::Withdraw,
            Self::Prune(_) => Kind::Prune,
            Self::Remove(_) => Kind::Remove,
        }
    }

    fn subject(&self) -> String {
        match self {
            Self::Create(golden) | Self::Follow(golden) | Self::Begin(golden) | Self::Withdraw(golden) => {
                golden.to_string()
            }
            Self::Publish(wanted) => wanted.golden.to_string(),
            Self::Verify(id) | Self::Promote(id) | Self::Remove(id) => id.to_string(),
            Self::Prune(keep) => format!("all but {keep}"),
        }
    }
}

fn switch_of(golden: &GoldenRuntime) -> Option<&Switch> {
    golden.restore.as_ref().ok()?.switch()
}
