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
//! nothing leads to the old one -> destroy it; what is kept of one that slept -> remove it
//! ```
//!
//! One that sleeps is awake afterwards, and takes a place for that; if it fails, it
//! sleeps on.
//!
//! Invariants: at each moment the record names one shop, which runs or is kept;
//! whatever the daemon's death leaves behind is named by no record, an orphan to the
//! next one's sweep; an instance that ends meanwhile ends, and the new shop with it.
//! For as long as it takes, the host holds one shop more than MAX_INSTANCES says if
//! the old one runs.

use std::net::SocketAddr;
use std::sync::Arc;

use jiff::Timestamp;
use tracing::Instrument as _;

use super::Provisioner;
use super::change::{ChangeError, Left};
use super::errors::ResetError;
use super::gate::Rank;
use super::ledger::Doing;
use super::lifecycle::Lifecycle;
use super::sleep::turn_of;
use crate::config::ColdStart;
use crate::error::Chain;
use crate::id::InstanceId;
use crate::instance::event::Happened;
use crate::instance::{Instance, State};
use crate::metrics;
use crate::peers::call::Call;
use crate::restore::{FirstPage, Made, Make, Shop};
use crate::store::StoreError;

impl Provisioner {
    /// Makes an assigned instance anew, awake or not; answers its record.
    ///
    /// # Errors
    /// [`ResetError`]; the instance is as it was, or over.
    ///
    /// # Cancel safety
    /// Safe: the work goes on without its client.
    pub async fn reset(self: &Arc<Self>, id: &InstanceId, now: Timestamp) -> Result<Instance, ResetError> {
        let (this, id) = (Arc::clone(self), id.clone());
        self.at_length(async move {
            match this.by_its_owner(&id, Call::Reset(id.clone())).await? {
                Some(done) => Ok(done),
                None => this.reset_alone(&id, now).await,
            }
        })
        .await
    }

    async fn reset_alone(&self, id: &InstanceId, now: Timestamp) -> Result<Instance, ResetError> {
        let mut instance = self.own(id, now).await?;
        let ledger = &self.lifecycle.ledger;
        let busy = || ResetError::from(ChangeError::Busy { id: id.clone() });
        // Who asks a sleeping shop for a page meanwhile waits, as for one who wakes it.
        let turn = match instance.state {
            State::Hibernated if ledger.doing(id) != Some(Doing::Asleep) => return Err(busy()),
            State::Hibernated => Some(self.flights.turn(&turn_of(id)).await),
            _ => None,
        };
        if turn.is_some() {
            instance = self.own(id, now).await?;
        }
        let maker = self.maker_of(&instance)?;
        match instance.state {
            // It was woken before its turn came.
            State::Assigned if turn.is_some() || !ledger.try_change(id) => return Err(busy()),
            State::Assigned => {}
            State::Hibernated => ledger.try_wake(id)?,
            _ => return Err(ChangeError::not_assigned(&instance).into()),
        }
        let span = tracing::info_span!("reset", instance_id = %id, golden = %instance.golden);
        let done = self.lifecycle.make_anew(id, instance.state, &*maker).instrument(span).await;
        match &done {
            Err(_) if instance.state == State::Hibernated => ledger.asleep(id),
            Ok(_) | Err(_) => ledger.changed(id),
        }
        // If it was to end meanwhile, nobody could.
        self.lifecycle.reap.now();
        done
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
    /// Makes the shop that replaces an instance's, which is in that state, and has it
    /// do so.
    async fn make_anew(
        self: &Arc<Self>,
        id: &InstanceId,
        state: State,
        maker: &dyn Make,
    ) -> Result<Instance, ResetError> {
        let permit = self.gate.enter(Rank::Client).await;
        // What it is now: whoever changed it while this waited comes first.
        let before = match self.store.get(id).await.map_err(ChangeError::Store)? {
            Some(before) if before.state == state => before,
            Some(_) | None => return Err(ChangeError::Gone { id: id.clone() }.into()),
        };
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
                if left.is_none() {
                    self.wake_anew(&record.id).await;
                }
                self.leave_later(left);
                Ok(record)
            }
            Err(error) => {
                self.leave_later(Some(new));
                Err(error.into())
            }
        }
    }

    /// Has the record name the new shop, and the route lead to it; answers also what
    /// ran before, if it did.
    async fn replace(
        &self,
        before: Instance,
        slot: InstanceId,
        made: Made,
    ) -> Result<(Instance, Option<Left>), ChangeError> {
        let left = self.engine_of(&before).zip(before.container.clone());
        let left = left.map(|(engine, container)| Left { engine, slot: before.slot().clone(), container });
        let upstream = SocketAddr::from((made.container.address, made.container.port));
        let renewed = |mut record: Instance| {
            record.state = State::Assigned;
            record.slot = Some(slot.clone());
            record.container = Some(made.container.clone());
            record.access = Some(made.access.clone());
            record.snapshot.clone_from(&made.snapshot);
            record.made_by = made.made_by;
            record
        };
        let record = self.change(before, renewed, |record| record.slot() == &slot).await?;
        if let Some(left) = &left {
            self.ledger.begin_slot(&left.slot);
        }
        self.ledger.note(&record);
        self.ledger.end_slot(&slot);
        self.routes.replace(&record.id, upstream);
        self.events.happened(&record, Happened::Reset);
        Ok((record, left))
    }

    /// What is left to do when the instance slept: its visitors are led to it past the
    /// one who would wake it, and what was kept is removed.
    async fn wake_anew(&self, id: &InstanceId) {
        // If the router does not take it, its keeper tries again; the built-in proxy
        // serves the instance until then.
        let _ = self.routes.settle().await;
        self.ledger.woken(id);
        for engine in self.engines() {
            if let Err(error) = engine.forget(id).await {
                tracing::warn!(instance_id = %id, error = %error, "files of a shop that slept not removed yet");
            }
        }
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

    /// Whether there is an instance of that name, or somebody is at it.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn is_held(&self, id: &InstanceId) -> Result<bool, StoreError> {
        Ok(self.ledger.doing(id).is_some() || self.store.get(id).await?.is_some())
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
