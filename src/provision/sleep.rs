//! Hibernating and waking: a shop that nobody asks gives its memory back.
//!
//! Called by the API, by the built-in proxy (which holds the request that wakes) and
//! by [`crate::pool::sleeper`]. Phases and their undo:
//!
//! ```text
//! hibernate                                     wake
//!   the right to change it    give it back        the same, and a place on the host
//!   route marked asleep       led to it again     thaw in another slot   the driver's own
//!   freeze, which ends it     the driver's own    record "assigned"      (it is awake)
//!   record "hibernated"       (it sleeps)         route leads to it      (nothing to undo)
//!   its slot removed          an orphan           frozen files removed   swept
//! ```
//!
//! Invariants: an instance that cannot be frozen goes on; a frozen one is kept until
//! its record says that it is awake or over; one who hibernates or wakes an instance
//! is alone at it, and whoever else wants that waits for the outcome; a sleeping
//! instance takes no place of MAX_INSTANCES and its time runs on. One that cannot be
//! woken [`WAKE_ATTEMPTS`] times in a row has failed, unless the host has no room for it.

use std::net::SocketAddr;
use std::sync::Arc;

use jiff::Timestamp;

use super::Provisioner;
use super::change::{ChangeError, Left};
use super::errors::SleepError;
use super::gate::Rank;
use super::lifecycle::Lifecycle;
use crate::engine::{ContainerEngine, Freeze, Launched, Then};
use crate::error::{Chain, ErrorKind};
use crate::failpoint;
use crate::id::InstanceId;
use crate::instance::event::Happened;
use crate::instance::{Instance, State};
use crate::peers::call::Call;

/// After so many failures in a row it is no hiccup.
const WAKE_ATTEMPTS: u32 = 3;

impl Provisioner {
    /// Has an assigned instance sleep; answers its record, also when it sleeps
    /// already.
    ///
    /// # Errors
    /// [`SleepError`]; it goes on, or is over.
    ///
    /// # Cancel safety
    /// Safe: the work goes on without its client.
    pub async fn hibernate(self: &Arc<Self>, id: &InstanceId) -> Result<Instance, SleepError> {
        let (this, id) = (Arc::clone(self), id.clone());
        self.at_length(async move {
            match this.by_its_owner(&id, Call::Hibernate(id.clone())).await? {
                Some(done) => Ok(done),
                None => this.hibernate_alone(&id).await,
            }
        })
        .await
    }

    /// Wakes a sleeping instance; answers its record, also when it is awake.
    ///
    /// # Errors
    /// [`SleepError`]; it sleeps on, or is over.
    ///
    /// # Cancel safety
    /// As above.
    pub async fn wake(self: &Arc<Self>, id: &InstanceId) -> Result<Instance, SleepError> {
        let (this, id) = (Arc::clone(self), id.clone());
        self.at_length(async move {
            match this.by_its_owner(&id, Call::Wake(id.clone())).await? {
                Some(done) => Ok(done),
                None => this.wake_alone(&id).await,
            }
        })
        .await
    }

    async fn hibernate_alone(&self, id: &InstanceId) -> Result<Instance, SleepError> {
        let _turn = self.flights.turn(&turn_of(id)).await;
        let instance = self.own(id, Timestamp::now()).await?;
        match instance.state {
            State::Assigned => {}
            State::Hibernated => return Ok(instance),
            _ => return Err(ChangeError::not_assigned(&instance).into()),
        }
        if !self.lifecycle.ledger.try_change(id) {
            return Err(ChangeError::Busy { id: id.clone() }.into());
        }
        let done = self.lifecycle.hibernate(instance).await;
        match &done {
            Ok(_) => self.lifecycle.ledger.asleep(id),
            Err(_) => self.lifecycle.ledger.changed(id),
        }
        // A place is free; and if it was to end meanwhile, nobody could.
        self.lifecycle.refill.now();
        self.lifecycle.reap.now();
        done
    }

    async fn wake_alone(&self, id: &InstanceId) -> Result<Instance, SleepError> {
        let _turn = self.flights.turn(&turn_of(id)).await;
        let instance = self.own(id, Timestamp::now()).await?;
        match instance.state {
            State::Hibernated => {}
            State::Assigned => return Ok(instance),
            _ => return Err(ChangeError::not_assigned(&instance).into()),
        }
        self.lifecycle.ledger.try_wake(id)?;
        let done = self.lifecycle.wake(instance).await;
        match &done {
            Ok(_) => self.lifecycle.ledger.changed(id),
            Err(_) => self.lifecycle.ledger.asleep(id),
        }
        self.lifecycle.reap.now();
        if let Err(error) = &done
            && tells_of_the_shop(error)
        {
            self.lifecycle.not_woken(id, error).await;
        }
        done
    }
}

/// Whether a failure to wake is the shop's own: what the host has no room for now says
/// nothing about it.
fn tells_of_the_shop(error: &SleepError) -> bool {
    let of_the_host = matches!(error.kind(), ErrorKind::Exhausted | ErrorKind::NoSpace);
    matches!(error, SleepError::Thaw(_)) && !of_the_host
}

/// The turn of one who hibernates or wakes an instance; whoever else wants that waits.
pub(super) fn turn_of(id: &InstanceId) -> String {
    // No client's key begins so: those have their scope in front.
    format!("asleep {id}")
}

impl Lifecycle {
    async fn hibernate(self: &Arc<Self>, instance: Instance) -> Result<Instance, SleepError> {
        let id = instance.id.clone();
        let (Some(container), Some(engine)) = (instance.container.clone(), self.engine_of(&instance)) else {
            return Err(ChangeError::Busy { id }.into());
        };
        self.routes.sleep(&id);
        let left = Left { engine: Arc::clone(&engine), slot: instance.slot().clone(), container };
        match self.freeze_and_record(&instance, &left).await {
            Ok(record) => {
                self.ledger.begin_slot(&left.slot);
                self.ledger.note(&record);
                self.events.changed(&record);
                self.leave_later(Some(left));
                Ok(record)
            }
            Err(error) => {
                let upstream = SocketAddr::from((left.container.address, left.container.port));
                self.routes.replace(&id, upstream);
                Err(error)
            }
        }
    }

    async fn freeze_and_record(&self, instance: &Instance, left: &Left) -> Result<Instance, SleepError> {
        // Nothing may lead to an address that is about to be another's.
        self.routes.left().await.map_err(SleepError::Route)?;
        let freeze = Freeze {
            id: &instance.id,
            slot: &left.slot,
            container: &left.container,
            snapshot: instance.snapshot.as_ref(),
            then: Then::Stop,
        };
        left.engine.freeze(freeze).await.map_err(SleepError::Freeze)?;
        let is_so = |record: &Instance| record.state == State::Hibernated;
        Ok(self.write_down(instance.clone(), Instance::asleep, is_so).await?)
    }

    async fn wake(self: &Arc<Self>, instance: Instance) -> Result<Instance, SleepError> {
        let id = instance.id.clone();
        let engine = self.thawer(&instance).ok_or_else(|| SleepError::NoDriver { id: id.clone() })?;
        let permit = self.gate.enter(Rank::Client).await;
        let slot = engine.next_bare_id();
        self.ledger.begin_slot(&slot);
        let thawed = engine.thaw(&slot, &id).await;
        drop(permit);
        let thawed = thawed.inspect_err(|_| self.ledger.end_slot(&slot));
        let Launched { container, .. } = thawed.map_err(SleepError::Thaw)?;
        let left = Left { engine: Arc::clone(&engine), slot: slot.clone(), container: container.clone() };
        let awake = |mut record: Instance| {
            record.state = State::Assigned;
            (record.container, record.slot) = (Some(container.clone()), Some(slot.clone()));
            record
        };
        let is_so = |record: &Instance| record.slot.as_ref() == Some(&slot);
        match self.change(instance, awake, is_so).await {
            Ok(record) => {
                self.ledger.note(&record);
                self.ledger.end_slot(&slot);
                self.routes.replace(&id, SocketAddr::from((container.address, container.port)));
                // If the router does not take it, its keeper tries again; the
                // built-in proxy serves the instance until then.
                let _ = self.routes.settle().await;
                self.ledger.woken(&id);
                self.events.happened(&record, Happened::Woken);
                let forgotten = match failpoint::hit("wake:before-forget") {
                    Ok(()) => engine.forget(&id).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = forgotten {
                    tracing::warn!(instance_id = %id, error = %error, "files of a woken shop not removed yet");
                }
                Ok(record)
            }
            Err(error) => {
                self.leave_later(Some(left));
                Err(error.into())
            }
        }
    }

    /// The driver that can thaw an instance: one of its golden, else any of its kind.
    fn thawer(&self, instance: &Instance) -> Option<Arc<dyn ContainerEngine>> {
        let own = self.golden(&instance.golden).map(super::GoldenRuntime::engines).unwrap_or_default();
        own.into_iter().chain(self.engines()).find(|engine| engine.source() == instance.made_by)
    }

    /// Whether something is kept of an instance that sleeps.
    pub async fn is_frozen(&self, id: &InstanceId) -> bool {
        for engine in self.engines() {
            if engine.frozen().await.is_ok_and(|frozen| frozen.contains(id)) {
                return true;
            }
        }
        false
    }

    /// Counts a failure to wake; after too many the instance has failed.
    async fn not_woken(&self, id: &InstanceId, error: &SleepError) {
        let attempts = self.ledger.wake_failed(id);
        tracing::warn!(instance_id = %id, attempts, error = %Chain(error), "shop not woken");
        if attempts < WAKE_ATTEMPTS {
            return;
        }
        self.ledger.woken(id);
        let Ok(Some(present)) = self.store.get(id).await else { return };
        let still = |present: &Instance| present.state == State::Hibernated;
        if let Err(error) = self.end(present, State::Failed, still).await {
            tracing::warn!(instance_id = %id, error = %Chain(&error), "instance not taken down yet");
            self.reap.now();
        }
    }
}
