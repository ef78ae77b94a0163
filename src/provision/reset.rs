//! Making somebody's instance anew: the same id, address, time and credentials, and
//! the golden's content.
//!
//! Called by the API. The new shop is made in another slot while the old one
//! serves, so nothing is given up for one that does not work:
//!
//! ```text
//! the right to change it         give it back
//! restore, personalize, probe    the maker's own
//! record names the new one       (from here on the new one is the instance)
//! route leads to the new one     (nothing to undo)
//! nothing leads to the old one -> destroy it
//! ```
//!
//! Invariants: at each moment the record names one shop, which runs; whatever the
//! daemon's death leaves behind is named by no record, an orphan to the next one's
//! sweep; an instance that ends meanwhile ends, and the new shop with it. For as
//! long as it takes, the host holds one shop more than MAX_INSTANCES says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::Instrument as _;

use super::Provisioner;
use super::elsewhere::OwnerError;
use super::errors::ResetError;
use super::gate::Rank;
use super::ledger::Doing;
use super::lifecycle::Lifecycle;
use crate::config::ColdStart;
use crate::engine::ContainerEngine;
use crate::error::{Chain, ErrorKind};
use crate::id::InstanceId;
use crate::instance::event::Happened;
use crate::instance::{Container, Instance, State};
use crate::metrics;
use crate::peers::call::Call;
use crate::restore::{FirstPage, Made, Make, Shop};
use crate::store::StoreError;

/// How often the record is written again, after somebody else's change or while the
/// store does not answer.
const ROUNDS: usize = 30;

/// How long a store that does not answer is left alone.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// How often a shop that was replaced is tried to be taken down, the pause doubled
/// each time; after that it is an orphan for the reaper's sweep.
const LEAVE_ATTEMPTS: u32 = 5;

/// A shop that runs for nobody.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) engine: Arc<dyn ContainerEngine>,
    pub(super) slot: InstanceId,
    pub(super) container: Container,
}

impl Provisioner {
    /// Makes an assigned instance anew; answers its record.
    ///
    /// # Errors
    /// [`ResetError`]; the instance is as it was, or over.
    ///
    /// # Cancel safety
    /// Safe: the work goes on without its client.
    pub async fn reset(&self, id: &InstanceId, now: Timestamp) -> Result<Instance, ResetError> {
        if self.is_stopping() {
            return Err(ResetError::Stopping);
        }
        let instance = self.show(id, now).await.map_err(ResetError::Lease)?;
        if instance.state != State::Assigned {
            return Err(ResetError::NotAssigned { id: id.clone(), state: instance.state });
        }
        if !self.lifecycle.is_own(&instance) {
            let node = instance.node;
            let asked = self.ask_owner(id, &node, Call::Reset(id.clone())).await;
            let asked = asked.ok_or_else(|| ResetError::Elsewhere { id: id.clone(), node })?;
            return asked.map_err(|error| match error {
                OwnerError::Call(error) => ResetError::There(error),
                OwnerError::Lease(error) => ResetError::Lease(error),
            });
        }
        let maker = self.maker_of(&instance)?;
        if !self.lifecycle.ledger.try_change(id) {
            return Err(ResetError::Busy { id: id.clone() });
        }
        let lifecycle = Arc::clone(&self.lifecycle);
        let span = tracing::info_span!("reset", instance_id = %id, golden = %instance.golden);
        let work = async move {
            let done = lifecycle.make_anew(&instance.id, &*maker).await;
            lifecycle.ledger.changed(&instance.id);
            // If it was to end meanwhile, nobody could.
            lifecycle.reap.now();
            done
        };
        let work = self.lifecycle.tasks.spawn(work.instrument(span));
        match tokio::time::timeout(self.terms.patience, work).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(ResetError::Lost),
            Err(_) => Err(ResetError::TooSlow { after: self.terms.patience }),
        }
    }

    /// How an instance's golden is made at present.
    fn maker_of(&self, instance: &Instance) -> Result<Arc<dyn Make>, ResetError> {
        let golden = || instance.golden.clone();
        let Some(runtime) = self.lifecycle.golden(&instance.golden) else {
            let reason = "it is not served any more (GOLDEN)".to_owned();
            return Err(ResetError::NoWay { golden: golden(), reason });
        };
        if let Some((dependency, reason)) = runtime.outage() {
            let reason = format!("the shared {dependency} is down: {reason}");
            return Err(ResetError::NoWay { golden: golden(), reason });
        }
        match (&runtime.restore, &runtime.cold, self.terms.cold_start) {
            (Ok(maker), ..) | (Err(_), Some(maker), ColdStart::Allowed) => Ok(Arc::clone(maker)),
            (Err(reason), ..) => Err(ResetError::NoWay { golden: golden(), reason: reason.clone() }),
        }
    }
}

impl Lifecycle {
    /// Makes the shop that replaces an instance's, and has it do so.
    async fn make_anew(self: &Arc<Self>, id: &InstanceId, maker: &dyn Make) -> Result<Instance, ResetError> {
        let permit = self.gate.enter(Rank::Client).await;
        // What it is now: whoever changed it while this waited comes first.
        let before = self.present(id).await?;
        let slot = maker.engine().next_id();
        self.ledger.begin_slot(&slot);
        let shop = Shop { id, slot: &slot, access: before.access.as_ref() };
        let made = maker.make(shop, FirstPage::Fetched).await;
        drop(permit);
        let made = made.inspect_err(|error| {
            // What it left behind is an orphan now.
            self.ledger.end_slot(&slot);
            metrics::make_failed(&before.golden, maker.engine().source(), error.phase);
            self.tally.failed(&before.golden, maker.engine().source(), error.kind, Chain(error).to_string());
        });
        let made = made.map_err(ResetError::Launch)?;
        metrics::made(&before.golden, made.made_by, &made.phases);
        self.tally.made(&before.golden, made.made_by, &made.phases);
        let engine = Arc::clone(maker.engine());
        let new = Left { engine, slot: slot.clone(), container: made.container.clone() };
        match self.replace(before, slot, made).await {
            Ok((record, left)) => {
                self.leave_later(left);
                Ok(record)
            }
            Err(error) => {
                self.leave_later(Some(new));
                Err(error)
            }
        }
    }

    /// The record of an instance that is still its visitor's.
    async fn present(&self, id: &InstanceId) -> Result<Instance, ResetError> {
        match self.store.get(id).await.map_err(ResetError::Store)? {
            Some(present) if present.state == State::Assigned => Ok(present),
            Some(_) | None => Err(ResetError::Gone { id: id.clone() }),
        }
    }

    /// Has the record name the new shop, and the route lead to it; answers also what
    /// ran before.
    async fn replace(
        &self,
        before: Instance,
        slot: InstanceId,
        made: Made,
    ) -> Result<(Instance, Option<Left>), ResetError> {
        let id = before.id.clone();
        let upstream = SocketAddr::from((made.container.address, made.container.port));
        let left = self.engine_of(&before).zip(before.container.clone());
        let left = left.map(|(engine, container)| Left { engine, slot: before.slot().clone(), container });
        let renewed = |mut record: Instance| {
            record.slot = Some(slot.clone());
            record.container = Some(made.container.clone());
            record.access = Some(made.access.clone());
            record.snapshot.clone_from(&made.snapshot);
            record.made_by = made.made_by;
            record
        };
        let mut present = before;
        for _ in 0..ROUNDS {
            let written = match self.store.update(renewed(present.clone())).await {
                // It may have been written all the same: that is to be known before either is taken down.
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    tokio::time::sleep(STORE_PAUSE).await;
                    Err(Some(error))
                }
                Err(StoreError::Stale { .. } | StoreError::Denied { .. }) => Err(None),
                Err(StoreError::Unknown { .. }) => return Err(ResetError::Gone { id }),
                Err(error) => return Err(ResetError::Store(error)),
                Ok(record) => Ok(record),
            };
            let record = match written {
                Ok(record) => record,
                Err(unclear) => match (self.present(&id).await, unclear) {
                    (Ok(found), _) if found.slot() == &slot => found,
                    (Ok(found), _) => {
                        present = found;
                        continue;
                    }
                    (Err(ResetError::Store(_)), Some(_)) => continue,
                    (Err(error), _) => return Err(error),
                },
            };
            if let Some(left) = &left {
                self.ledger.begin_slot(&left.slot);
            }
            self.ledger.note(&record);
            self.ledger.end_slot(&slot);
            self.routes.replace(&id, upstream);
            self.events.happened(&record, Happened::Reset);
            return Ok((record, left));
        }
        Err(ResetError::Busy { id })
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

    /// Whether something that is kept of a frozen shop is an instance's, or somebody
    /// is at it.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn is_asleep(&self, id: &InstanceId) -> Result<bool, StoreError> {
        let at_it = self.ledger.doing(id).is_some_and(|doing| doing != Doing::Living);
        if at_it || self.ledger.is_between(id) {
            return Ok(true);
        }
        Ok(self.store.get(id).await?.is_some_and(|record| record.state == State::Hibernated))
    }

    /// Whether traces of that name on this host are an instance's, or of something
    /// that somebody is at.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn is_somebodys(&self, slot: &InstanceId) -> Result<bool, StoreError> {
        if self.ledger.has_slot(slot) {
            return Ok(true);
        }
        Ok(self.store.get(slot).await?.is_some_and(|record| record.is_in(slot)))
    }
}
