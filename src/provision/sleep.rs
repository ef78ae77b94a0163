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
//! woken [`WAKE_ATTEMPTS`] times in a row has failed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::Instrument as _;

use super::Provisioner;
use super::elsewhere::OwnerError;
use super::errors::SleepError;
use super::gate::Rank;
use super::ledger::NoWake;
use super::lifecycle::Lifecycle;
use super::reset::Left;
use crate::engine::{ContainerEngine, Freeze, Launched, Then};
use crate::error::{Chain, ErrorKind};
use crate::id::InstanceId;
use crate::instance::event::Happened;
use crate::instance::{Instance, State};
use crate::peers::call::Call;
use crate::store::StoreError;

/// After so many failures in a row it is no hiccup.
const WAKE_ATTEMPTS: u32 = 3;

/// How often the record is written again, after somebody else's change or while the
/// store does not answer.
const ROUNDS: usize = 30;

/// How long a store that does not answer is left alone.
const STORE_PAUSE: Duration = Duration::from_secs(1);

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
        self.alone(async move {
            let done = this.hibernate_alone(&id).await;
            this.or_elsewhere(done, Call::Hibernate(id)).await
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
        self.alone(async move {
            let done = this.wake_alone(&id).await;
            this.or_elsewhere(done, Call::Wake(id)).await
        })
        .await
    }

    /// Has an instance's own daemon do it, where that is another one.
    async fn or_elsewhere(
        &self,
        done: Result<Instance, SleepError>,
        call: Call,
    ) -> Result<Instance, SleepError> {
        let Err(SleepError::Elsewhere { id, node }) = done else { return done };
        match self.ask_owner(&id, &node, call).await {
            None => Err(SleepError::Elsewhere { id, node }),
            Some(asked) => asked.map_err(|error| match error {
                OwnerError::Call(error) => SleepError::There(error),
                OwnerError::Lease(error) => SleepError::Lease(error),
            }),
        }
    }

    async fn alone(
        &self,
        work: impl Future<Output = Result<Instance, SleepError>> + Send + 'static,
    ) -> Result<Instance, SleepError> {
        if self.is_stopping() {
            return Err(SleepError::Stopping);
        }
        let work = self.lifecycle.tasks.spawn(work.in_current_span());
        match tokio::time::timeout(self.terms.patience, work).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(SleepError::Lost),
            Err(_) => Err(SleepError::TooSlow { after: self.terms.patience }),
        }
    }

    async fn hibernate_alone(&self, id: &InstanceId) -> Result<Instance, SleepError> {
        let _turn = self.flights.turn(&turn_of(id)).await;
        let instance = self.sleeper(id).await?;
        match instance.state {
            State::Assigned => {}
            State::Hibernated => return Ok(instance),
            state => return Err(SleepError::NotAssigned { id: id.clone(), state }),
        }
        if !self.lifecycle.ledger.try_change(id) {
            return Err(SleepError::Busy { id: id.clone() });
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
        let instance = self.sleeper(id).await?;
        match instance.state {
            State::Hibernated => {}
            State::Assigned => return Ok(instance),
            state => return Err(SleepError::NotAssigned { id: id.clone(), state }),
        }
        self.lifecycle.ledger.try_wake(id).map_err(|refused| match refused {
            NoWake::Full => SleepError::Full { max: self.lifecycle.max_instances() },
            NoWake::Busy => SleepError::Busy { id: id.clone() },
        })?;
        let done = self.lifecycle.wake(instance).await;
        match &done {
            Ok(_) => self.lifecycle.ledger.changed(id),
            Err(_) => self.lifecycle.ledger.asleep(id),
        }
        self.lifecycle.reap.now();
        if let Err(error @ (SleepError::Thaw(_) | SleepError::Freeze(_))) = &done {
            self.lifecycle.not_woken(id, error).await;
        }
        done
    }

    /// An own instance whose time is not over.
    async fn sleeper(&self, id: &InstanceId) -> Result<Instance, SleepError> {
        let instance = self.show(id, Timestamp::now()).await.map_err(SleepError::Lease)?;
        if self.lifecycle.is_own(&instance) {
            return Ok(instance);
        }
        Err(SleepError::Elsewhere { id: id.clone(), node: instance.node })
    }
}

fn turn_of(id: &InstanceId) -> String {
    // No client's key begins so: those have their scope in front.
    format!("asleep {id}")
}

impl Lifecycle {
    async fn hibernate(self: &Arc<Self>, instance: Instance) -> Result<Instance, SleepError> {
        let id = instance.id.clone();
        let (Some(container), Some(engine)) = (instance.container.clone(), self.engine_of(&instance)) else {
            return Err(SleepError::Busy { id });
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
        let asleep = |mut record: Instance| {
            record.state = State::Hibernated;
            (record.container, record.slot) = (None, None);
            record
        };
        let is_so = |record: &Instance| record.state == State::Hibernated;
        self.change(instance.clone(), asleep, is_so).await
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
                if let Err(error) = engine.forget(&id).await {
                    tracing::warn!(instance_id = %id, error = %error, "files of a woken shop not removed yet");
                }
                Ok(record)
            }
            Err(error) => {
                self.leave_later(Some(left));
                Err(error)
            }
        }
    }

    /// Has a record change, whoever else changes it; `is_so` knows it again.
    async fn change(
        &self,
        mut present: Instance,
        change: impl Fn(Instance) -> Instance + Send + Sync,
        is_so: impl Fn(&Instance) -> bool + Send + Sync,
    ) -> Result<Instance, SleepError> {
        let (id, from) = (present.id.clone(), present.state);
        for _ in 0..ROUNDS {
            let unclear = match self.store.update(change(present.clone())).await {
                Ok(record) => return Ok(record),
                // It may have been written all the same.
                Err(error) if error.kind() == ErrorKind::Unavailable => true,
                Err(StoreError::Stale { .. } | StoreError::Denied { .. }) => false,
                Err(StoreError::Unknown { .. }) => return Err(SleepError::Gone { id }),
                Err(error) => return Err(SleepError::Store(error)),
            };
            if unclear {
                tokio::time::sleep(STORE_PAUSE).await;
            }
            match self.store.get(&id).await {
                Ok(Some(found)) if is_so(&found) => return Ok(found),
                Ok(Some(found)) if found.state == from => present = found,
                Ok(_) => return Err(SleepError::Gone { id }),
                Err(error) if error.kind() == ErrorKind::Unavailable => {}
                Err(error) => return Err(SleepError::Store(error)),
            }
        }
        Err(SleepError::Busy { id })
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
