//! What a reset, sleeping and waking have in common: the work that goes on without
//! its client, the record that is changed whoever else changes it, and the shop
//! that ran before, which is taken down when nothing leads to it any more.
//!
//! Called by [`super::reset`], [`super::sleep`] and [`super::saved`]; each holds the right to change
//! the instance ([`super::ledger`]) while it uses this. Failures that are the same
//! for all of them are [`ChangeError`].

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::Instrument as _;

use super::Provisioner;
use super::errors::{LeaseError, of_making};
use super::lifecycle::Lifecycle;
use crate::engine::ContainerEngine;
use crate::error::{Chain, ErrorKind};
use crate::id::{InstanceId, NodeName};
use crate::instance::{Container, Instance, State};
use crate::metrics;
use crate::peers::call::CallError;
use crate::store::StoreError;

/// How often the record is written again, after somebody else's change or while the
/// store does not answer.
const ROUNDS: usize = 30;

/// How long a store that does not answer is left alone.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// How often a shop that was replaced is tried to be taken down, the pause doubled
/// each time; after that it is an orphan for the reaper's sweep.
const LEAVE_ATTEMPTS: u32 = 5;

/// What runs for an instance was not changed, for a reason that has nothing to do
/// with how.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// It cannot be read, or is no more.
    #[error(transparent)]
    Lease(LeaseError),
    /// It is not in a state to be changed so.
    #[error("instance {id} is {}, not assigned", .state.as_str())]
    NotAssigned {
        /// Which.
        id: InstanceId,
        /// Its state.
        state: State,
    },
    /// Its daemon is another one.
    #[error("instance {id} runs on node {node}: ask that node's daemon")]
    Elsewhere {
        /// Which.
        id: InstanceId,
        /// Who made it.
        node: NodeName,
    },
    /// That daemon was asked.
    #[error(transparent)]
    There(CallError),
    /// Somebody is changing or ending it.
    #[error("instance {id} is being changed already")]
    Busy {
        /// Which.
        id: InstanceId,
    },
    /// It ended meanwhile.
    #[error("the time of instance {id} is over")]
    Gone {
        /// Which.
        id: InstanceId,
    },
    /// It sleeps, and no place is left for one more that is awake.
    #[error("all {max} places of this host are taken")]
    Full {
        /// MAX_INSTANCES.
        max: usize,
    },
    /// The store refused; the instance is as it was.
    #[error("cannot write the instance's record, it is as it was")]
    Store(#[source] StoreError),
    /// It takes longer than a client waits; the work goes on.
    #[error("it was not done within {} s, and goes on", .after.as_secs())]
    TooSlow {
        /// How long was waited.
        after: Duration,
    },
    /// The daemon is being stopped.
    #[error("the service is being stopped")]
    Stopping,
    /// The work ended without an answer.
    #[error("the work on this request ended without an answer")]
    Lost,
}

impl ChangeError {
    pub(super) fn not_assigned(instance: &Instance) -> Self {
        Self::NotAssigned { id: instance.id.clone(), state: instance.state }
    }

    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Lease(error) => error.kind(),
            Self::NotAssigned { .. } | Self::Busy { .. } | Self::Elsewhere { .. } => ErrorKind::Conflict,
            Self::There(error) => error.kind(),
            Self::Gone { .. } => ErrorKind::Gone,
            Self::Full { .. } => ErrorKind::Exhausted,
            Self::Store(error) => of_making(error.kind()),
            Self::TooSlow { .. } | Self::Stopping => ErrorKind::Unavailable,
            Self::Lost => ErrorKind::Bug,
        }
    }
}

/// A shop that runs for nobody.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) engine: Arc<dyn ContainerEngine>,
    pub(super) slot: InstanceId,
    pub(super) container: Container,
}

impl Provisioner {
    /// Does the work, for as long as a client waits at most; it goes on after that.
    pub(super) async fn at_length<E: From<ChangeError> + Send + 'static>(
        &self,
        work: impl Future<Output = Result<Instance, E>> + Send + 'static,
    ) -> Result<Instance, E> {
        if self.is_stopping() {
            return Err(ChangeError::Stopping.into());
        }
        let work = self.lifecycle.tasks.spawn(work.in_current_span());
        match tokio::time::timeout(self.terms.patience, work).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(ChangeError::Lost.into()),
            Err(_) => Err(ChangeError::TooSlow { after: self.terms.patience }.into()),
        }
    }

    /// An own instance whose time is not over.
    pub(super) async fn own(&self, id: &InstanceId, now: Timestamp) -> Result<Instance, ChangeError> {
        let instance = self.show(id, now).await.map_err(ChangeError::Lease)?;
        if self.lifecycle.is_own(&instance) {
            return Ok(instance);
        }
        Err(ChangeError::Elsewhere { id: id.clone(), node: instance.node })
    }
}

impl Lifecycle {
    /// Has a record change, whoever else changes it; `is_so` knows it again.
    pub(super) async fn change(
        &self,
        mut present: Instance,
        change: impl Fn(Instance) -> Instance + Send + Sync,
        is_so: impl Fn(&Instance) -> bool + Send + Sync,
    ) -> Result<Instance, ChangeError> {
        let (id, from) = (present.id.clone(), present.state);
        for _ in 0..ROUNDS {
            let unclear = match self.store.update(change(present.clone())).await {
                Ok(record) => return Ok(record),
                // It may have been written all the same.
                Err(error) if error.kind() == ErrorKind::Unavailable => true,
                Err(StoreError::Stale { .. } | StoreError::Denied { .. }) => false,
                Err(StoreError::Unknown { .. }) => return Err(ChangeError::Gone { id }),
                Err(error) => return Err(ChangeError::Store(error)),
            };
            if unclear {
                tokio::time::sleep(STORE_PAUSE).await;
            }
            match self.store.get(&id).await {
                Ok(Some(found)) if is_so(&found) => return Ok(found),
                Ok(Some(found)) if found.state == from => present = found,
                Ok(_) => return Err(ChangeError::Gone { id }),
                Err(error) if error.kind() == ErrorKind::Unavailable => {}
                Err(error) => return Err(ChangeError::Store(error)),
            }
        }
        Err(ChangeError::Busy { id })
    }

    /// As [`Lifecycle::change`], of what has happened already: a store that is away or
    /// full is waited for as long as it takes, since until then its record says another
    /// thing than what runs or is kept.
    pub(super) async fn write_down(
        &self,
        present: Instance,
        change: impl Fn(Instance) -> Instance + Send + Sync,
        is_so: impl Fn(&Instance) -> bool + Send + Sync,
    ) -> Result<Instance, ChangeError> {
        loop {
            match self.change(present.clone(), &change, &is_so).await {
                Err(ChangeError::Store(error)) if error.kind() == ErrorKind::NoSpace => {}
                Err(ChangeError::Busy { .. }) => {}
                other => return other,
            }
            tokio::time::sleep(STORE_PAUSE).await;
        }
    }

    /// Takes down a shop that runs for nobody, when nothing leads to it any more.
    pub(super) fn leave_later(self: &Arc<Self>, left: Option<Left>) {
        let Some(left) = left else { return };
        let this = Arc::clone(self);
        self.tasks.spawn(async move {
            for attempt in 0..LEAVE_ATTEMPTS {
                match this.leave(&left).await {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::warn!(slot = %left.slot, attempt, error, "replaced shop not taken down yet");
                        metrics::cleanup_failed();
                    }
                }
                tokio::time::sleep(Duration::from_secs(1 << attempt)).await;
            }
            this.ledger.end_slot(&left.slot);
        });
    }

    async fn leave(&self, left: &Left) -> Result<(), String> {
        self.routes.left().await.map_err(|error| Chain(&error).to_string())?;
        let destroyed = left.engine.destroy(&left.slot, Some(&left.container)).await;
        destroyed.map_err(|error| Chain(&error).to_string())
    }
}
