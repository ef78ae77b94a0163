//! The two procedures that every instance passes: made once, ended once.
//!
//! Called by acquire (a client waits), by the pool's reconciler and by its
//! reaper; the one place where state, route, container and record of an
//! instance change together. Phases of making and their undo:
//!
//! ```text
//! place in the ledger            forget
//! record "warming"               remove
//! launch, personalize, probe     the maker's own; else destroy
//! route                          remove
//! record "ready" or "assigned"   end: see below
//! ```
//!
//! Ending, each step idempotent, so that it can be begun again at any point:
//!
//! ```text
//! record "expired" or "failed" -> route removed -> destroy -> record removed -> place free
//! ```
//!
//! Invariants: a record is written before anything of its instance exists and
//! removed after all of it is gone, so whatever the daemon's death leaves
//! behind has a record; what fails to be removed keeps the record, and the
//! reaper comes again; an address is given up only after nothing leads to it.

use std::net::SocketAddr;
use std::sync::{Arc, RwLock};

use jiff::Timestamp;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use super::GoldenRuntime;
use super::errors::{EndError, MakeError};
use super::events::Events;
use super::gate::{Gate, Permit};
use super::goldens::Goldens;
use super::ledger::{Doing, Ledger, is_somebodys};
use super::tally::Tally;
use crate::engine::{ContainerEngine, LaunchError, Phase};
use crate::error::Chain;
use crate::id::{GoldenName, InstanceId};
use crate::instance::event::Happened;
use crate::instance::{Instance, State};
use crate::metrics;
use crate::pool::Nudge;
use crate::pool::aim::Aim;
use crate::restore::{FirstPage, Make, Shop};
use crate::route::Routes;
use crate::store::{Store, StoreError};

/// How often a change is tried again after somebody else's. Each round has
/// another writer succeed, and an instance has few.
const STALE_ROUNDS: usize = 5;

/// What making and ending stand on.
#[derive(Debug)]
pub struct Lifecycle {
    pub(super) store: Arc<dyn Store>,
    pub(super) routes: Arc<Routes>,
    /// A std lock: held for one operation, never across an await.
    pub(super) goldens: RwLock<Goldens>,
    pub(super) gate: Gate,
    pub(super) tally: Tally,
    /// Wakes the reconciler: the pool has changed.
    pub(super) refill: Nudge,
    /// Wakes the reaper: there is something to watch or to take down.
    pub(super) reap: Nudge,
    /// Work that outlives the request that began it; the drain waits for it.
    pub(super) tasks: TaskTracker,
    pub(super) ledger: Ledger,
    pub(super) events: Events,
    pub(super) aim: Aim,
}

/// What a [`Lifecycle`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// The state.
    pub store: Arc<dyn Store>,
    /// The routes.
    pub routes: Arc<Routes>,
    /// What is served.
    pub goldens: Vec<GoldenRuntime>,
    /// Instances of all states this host holds at most.
    pub max_instances: usize,
    /// Restores that run at once.
    pub restore_concurrency: usize,
    /// Wakes the reconciler.
    pub refill: Nudge,
    /// Wakes the reaper.
    pub reap: Nudge,
}

/// One instance to make.
#[derive(Debug)]
pub struct Order<'a> {
    /// Of which golden.
    pub golden: &'a GoldenName,
    /// In which way.
    pub maker: &'a Arc<dyn Make>,
    /// Whether somebody waits for it.
    pub first_page: FirstPage,
    /// The waiting client's key.
    pub idempotency_key: Option<String>,
    /// The right to do it now; held until it is done.
    pub permit: Permit,
}

/// Whether an instance was taken down by this call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Nothing of it is left.
    Gone,
    /// Somebody else is at it.
    InProgress,
    /// It is no longer what it was to be ended for.
    Kept,
}

impl Lifecycle {
    /// Puts the parts together; nothing is started.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            store: parts.store,
            routes: parts.routes,
            goldens: RwLock::new(parts.goldens.into_iter().map(Arc::new).collect()),
            gate: Gate::new(parts.restore_concurrency),
            tally: Tally::default(),
            refill: parts.refill,
            reap: parts.reap,
            tasks: TaskTracker::new(),
            ledger: Ledger::new(parts.max_instances),
            events: Events::default(),
            aim: Aim::default(),
        }
    }

    /// Makes one instance. `hand_over` gives the finished record the state it
    /// begins its life with (ready, or assigned with a deadline); it is called
    /// at the last moment, when it is clear whether anybody still waits.
    ///
    /// # Errors
    /// [`MakeError`]; nothing of the instance is left, or its record is, and
    /// the reaper sees to the rest.
    ///
    /// # Cancel safety
    /// Not cancel-safe: spawn it.
    pub async fn make(
        &self,
        order: Order<'_>,
        hand_over: impl FnOnce(&mut Instance) + Send,
    ) -> Result<Instance, MakeError> {
        let engine = order.maker.engine();
        let id = engine.next_id();
        if !self.ledger.try_begin(&id) {
            engine.unused(&id);
            return Err(MakeError::Full { max: self.ledger.max() });
        }
        let source = engine.source().as_str();
        let span = tracing::info_span!("make", instance_id = %id, golden = %order.golden, source);
        self.make_in_place(id, order, hand_over).instrument(span).await
    }

    /// Makes the instance that has its place in the ledger.
    async fn make_in_place(
        &self,
        id: InstanceId,
        order: Order<'_>,
        hand_over: impl FnOnce(&mut Instance) + Send,
    ) -> Result<Instance, MakeError> {
        let engine = order.maker.engine();
        let node = self.store.node().clone();
        let mut record = Instance::warming(id.clone(), order.golden.clone(), node, Timestamp::now());
        record.made_by = order.maker.engine().source();
        record.idempotency_key = order.idempotency_key;
        let mut record = match self.store.insert(record).instrument(Phase::Record.span()).await {
            Ok(record) => record,
            Err(error) => {
                self.ledger.forget(&id);
                engine.unused(&id);
                return Err(MakeError::Store(error));
            }
        };
        self.events.changed(&record);
        let made = match order.maker.make(Shop::new(&id), order.first_page).await {
            Ok(made) => made,
            Err(error) => return Err(self.not_made(record, error).await),
        };
        metrics::made(order.golden, made.made_by, &made.phases);
        self.tally.made(order.golden, made.made_by, &made.phases);
        let upstream = SocketAddr::from((made.container.address, made.container.port));
        self.routes.ensure(&id, upstream);
        // If the router does not take it, its keeper tells and tries again; the
        // built-in proxy serves the instance until then.
        let _ = self.routes.settle().instrument(Phase::Route.span()).await;
        record.snapshot = made.snapshot;
        record.made_by = made.made_by;
        record.container = Some(made.container);
        record.access = Some(made.access);
        hand_over(&mut record);
        let stored = self.finish(&record).instrument(Phase::Record.span()).await;
        // Not before: a client that waited at the gate claims first, and shall
        // find this one.
        order.permit.made();
        match stored {
            Ok(record) => {
                self.ledger.lives(&id);
                // Else a client has it already, which was told.
                if self.ledger.note(&record) {
                    self.events.changed(&record);
                }
                // So that its end is watched from now on.
                self.reap.now();
                Ok(record)
            }
            Err(error) => {
                self.not_finished(record).await;
                Err(MakeError::Store(error))
            }
        }
    }

    /// The maker failed: it has cleaned up, but for what the error names.
    async fn not_made(&self, record: Instance, error: LaunchError) -> MakeError {
        metrics::make_failed(&record.golden, record.made_by, error.phase);
        self.tally.failed(&record.golden, record.made_by, error.kind, Chain(&error).to_string());
        if error.cleanup.is_empty() && self.store.remove(&record.id).await.is_ok() {
            self.ledger.forget(&record.id);
        } else {
            self.throw_away(record).await;
        }
        MakeError::Launch(error)
    }

    /// Takes down what was made and cannot be used; the reaper comes again if
    /// that fails, or if the store cannot say whose it is.
    pub(super) async fn throw_away(&self, record: Instance) {
        let id = record.id.clone();
        let is_nobodys = |present: &Instance| !is_somebodys(present, &record);
        let ended = match self.mark(record.clone(), State::Failed, is_nobodys).await {
            Ok(Some(record)) => self.take_down(record).await,
            Ok(None) => match self.store.get(&id).await {
                // The store has lost it.
                Ok(None) => self.take_down(record.clone()).await,
                // Others are at it.
                Ok(Some(present)) if is_nobodys(&present) => return self.given_up(&record),
                Ok(Some(present)) => return self.keep_if_somebodys(&Arc::new(present)),
                Err(source) => Err(EndError::Store { id: id.clone(), source }),
            },
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            tracing::warn!(instance_id = %id, error = %Chain(&error), "instance not thrown away yet");
            self.given_up(&record);
        }
    }

    /// Ends an instance: marks it and takes it down, if `still` holds for its
    /// present record.
    ///
    /// # Errors
    /// [`EndError`]; the record is kept, call again later.
    ///
    /// # Cancel safety
    /// Not cancel-safe: spawn it.
    pub async fn end(
        &self,
        instance: Instance,
        to: State,
        still: impl Fn(&Instance) -> bool + Send + Sync,
    ) -> Result<Ended, EndError> {
        match self.mark(instance, to, still).await? {
            Some(instance) => self.take_down(instance).await,
            None => Ok(Ended::Kept),
        }
    }

    /// Gives the record its final state and removes the route: from here on
    /// nobody reaches the instance or gets it. None when there is nothing to
    /// end, or `still` no longer holds.
    ///
    /// # Errors
    /// [`EndError::Store`]; [`EndError::Route`]: it is marked, and the router
    /// may still lead to it.
    pub(super) async fn mark(
        &self,
        mut instance: Instance,
        to: State,
        still: impl Fn(&Instance) -> bool + Send + Sync,
    ) -> Result<Option<Instance>, EndError> {
        let id = instance.id.clone();
        let failed = |source| EndError::Store { id: id.clone(), source };
        for _ in 0..STALE_ROUNDS {
            if instance.state.is_final() {
                self.withdraw(&id).await?;
                return Ok(Some(instance));
            }
            if !still(&instance) {
                return Ok(None);
            }
            let mut ended = instance.clone();
            // One that was never whole has not expired, it has failed.
            ended.state = if instance.state == State::Warming { State::Failed } else { to };
            match self.store.update(ended).await {
                Ok(ended) => {
                    self.ledger.note(&ended);
                    self.events.changed(&ended);
                    if ended.state == State::Expired && ended.is_due_at(Timestamp::now()) {
                        metrics::lease_expired(&ended.golden);
                    }
                    if instance.state == State::Ready {
                        self.refill.now();
                    }
                    self.withdraw(&id).await?;
                    return Ok(Some(ended));
                }
                Err(StoreError::Unknown { .. }) => return Ok(None),
                Err(StoreError::Stale { .. } | StoreError::Denied { .. }) => {
                    match self.store.get(&id).await.map_err(failed)? {
                        Some(present) => instance = present,
                        None => return Ok(None),
                    }
                }
                Err(error) => return Err(failed(error)),
            }
        }
        // Others are at it; the next pass finds it again.
        Ok(None)
    }

    async fn withdraw(&self, id: &InstanceId) -> Result<(), EndError> {
        let withdrawn = self.routes.withdraw(id).await;
        withdrawn.map_err(|source| EndError::Route { id: id.clone(), source })
    }

    /// Takes a marked instance down; see the module's second diagram. Another
    /// node's is left to its own daemon, which sees the mark within a second.
    ///
    /// # Errors
    /// [`EndError`]; the record is kept, call again later.
    ///
    /// # Cancel safety
    /// Not cancel-safe: spawn it.
    pub(super) async fn take_down(&self, instance: Instance) -> Result<Ended, EndError> {
        if !self.is_own(&instance) || !self.ledger.try_end(&instance.id) {
            return Ok(Ended::InProgress);
        }
        let ended = self.take_down_alone(&instance).await;
        match &ended {
            Ok(()) => {
                self.ledger.forget(&instance.id);
                metrics::reaped(instance.state.as_str());
                self.events.happened(&instance, Happened::Gone);
                // A place is free.
                self.refill.now();
            }
            Err(_) => {
                self.ledger.lives(&instance.id);
                metrics::cleanup_failed();
            }
        }
        ended.map(|()| Ended::Gone)
    }

    async fn take_down_alone(&self, instance: &Instance) -> Result<(), EndError> {
        let engines = self.engines_of(instance);
        if engines.is_empty() {
            let engine = instance.container.as_ref().map(|container| container.engine);
            return Err(EndError::NoDriver { id: instance.id.clone(), engine });
        }
        for engine in engines {
            engine.destroy(instance.slot(), instance.container.as_ref()).await.map_err(EndError::Destroy)?;
            let forgotten = engine.forget(&instance.id).await;
            forgotten.map_err(|source| EndError::Frozen { id: instance.id.clone(), source })?;
        }
        let removed = self.store.remove(&instance.id).await;
        removed.map_err(|source| EndError::Store { id: instance.id.clone(), source })
    }

    /// The drivers that can end an instance: the one that made it; when it never
    /// got that far, each that might have.
    fn engines_of(&self, instance: &Instance) -> Vec<Arc<dyn ContainerEngine>> {
        let mut own: Vec<Arc<dyn ContainerEngine>> =
            self.golden(&instance.golden).map(|golden| golden.engines()).unwrap_or_default();
        own.extend(self.engines());
        match &instance.container {
            // Its own golden's driver stands first.
            Some(container) => {
                own.into_iter().find(|engine| engine.kind() == container.engine).into_iter().collect()
            }
            None => {
                let mut seen = Vec::new();
                own.retain(|engine| {
                    let new = !seen.contains(&engine.kind());
                    seen.push(engine.kind());
                    new
                });
                own
            }
        }
    }

    /// The driver that runs an instance's container.
    #[must_use]
    pub fn engine_of(&self, instance: &Instance) -> Option<Arc<dyn ContainerEngine>> {
        instance.container.as_ref()?;
        self.engines_of(instance).into_iter().next()
    }

    /// Has nobody reach an instance any more.
    pub fn close_route(&self, id: &InstanceId) {
        self.routes.remove(id);
    }

    /// The routes.
    #[must_use]
    pub const fn routes(&self) -> &Arc<Routes> {
        &self.routes
    }

    /// The state.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The gate that restores pass.
    #[must_use]
    pub const fn gate(&self) -> &Gate {
        &self.gate
    }

    /// What has happened since the start.
    #[must_use]
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Tells of every change of an instance.
    #[must_use]
    pub const fn events(&self) -> &Events {
        &self.events
    }

    /// Work that outlives the request that began it.
    #[must_use]
    pub const fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// What is being done with an instance at the moment.
    #[must_use]
    pub fn doing(&self, id: &InstanceId) -> Option<Doing> {
        self.ledger.doing(id)
    }

    /// How many more instances this host may hold.
    #[must_use]
    pub fn room(&self) -> usize {
        self.ledger.room()
    }

    /// How many instances this host may hold.
    #[must_use]
    pub const fn max_instances(&self) -> usize {
        self.ledger.max()
    }
}
