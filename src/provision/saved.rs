//! Keeping a visitor's shop, and opening it again under the same address.
//!
//! Called by the API and the visitors' pages. What is kept is the shelf's
//! ([`crate::snapshot::shelf`]). Phases and their undo:
//!
//! ```text
//! keep                                     open
//!   its turn, the right to    give both      counted, as an acquire   forgiven, unless the key was wrong
//!     change the instance       back         a place on the host      forget
//!   freeze, it goes on        forget         record "warming"         remove
//!   onto the shelf            the shelf's    verified, unpacked       remove
//!   (the frozen removed)        own          thaw                     the driver's own
//!                                            record "assigned", route (it is there)
//! ```
//!
//! Invariants: one shop is kept at a time, so that the quotas hold and visitors who keep
//! theirs take one processor at most; one instance of a name is there at a time, so what
//! is kept can be opened only when the former one is gone; what was kept stays so when it
//! is opened; a key is told once, and whoever tries keys is counted as one who acquires.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use tracing::Instrument as _;

use super::acquire::key_of;
use super::change::{ChangeError, Left};
use super::errors::AcquireError;
use super::gate::Rank;
use super::lifecycle::Lifecycle;
use super::limits::Counted;
use super::saved_error::SavedError;
use super::{Acquired, Handed, Provisioner};
use crate::client::Client;
use crate::config::Config;
use crate::engine::criu::freeze::FrozenDir;
use crate::engine::{ContainerEngine, Freeze, Launched, Then};
use crate::error::Chain;
use crate::failpoint;
use crate::id::{GoldenName, InstanceId};
use crate::identity;
use crate::instance::{Container, Instance, Source, State};
use crate::snapshot::shelf::{Limits, Saved, Shelf, ShelfError, Waiting, Wish};
use crate::store::StoreError;

/// Letters and digits of a key: 190 bits.
const KEY_LENGTH: usize = 32;

/// Where shops are kept.
#[derive(Debug, Clone)]
pub struct Keeping {
    /// What is kept.
    pub shelf: Shelf,
    /// Where it lies frozen on its way.
    frozen: FrozenDir,
    /// Who writes on the shelf.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Keeping {
    /// Where the settings say.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let limits = Limits {
            max: config.saved_max,
            max_bytes: config.saved_max_bytes,
            keep: config.saved_keep,
            // A copy of a golden's file counts whole, though it takes nothing of DISK_MAX.
            files_max: config.disk_max.saturating_mul(2),
        };
        let (shelf, frozen) = (Shelf::of(&config.state_dir, limits), FrozenDir::of(&config.state_dir));
        Self { shelf, frozen, turn: Arc::default() }
    }

    /// Removes what a former daemon has half kept.
    ///
    /// # Errors
    /// [`SavedError::Shelf`].
    pub async fn sweep(&self) -> Result<(), SavedError> {
        let _turn = self.turn.lock().await;
        self.on_shelf(Shelf::sweep).await
    }

    /// Does something with the shelf where it may block.
    ///
    /// # Errors
    /// [`SavedError::Shelf`].
    pub async fn on_shelf<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shelf) -> Result<T, ShelfError> + Send + 'static,
    ) -> Result<T, SavedError> {
        let shelf = self.shelf.clone();
        let done = tokio::task::spawn_blocking(move || work(&shelf)).await;
        Ok(done.map_err(|_| SavedError::Lost)??)
    }
}

/// A shop that was kept.
#[derive(Debug)]
pub struct Kept {
    /// What is written down of it.
    pub saved: Saved,
    /// What opens it; told once.
    pub key: SecretString,
}

/// Who wants what is kept.
#[derive(Debug)]
pub struct OpenRequest {
    /// Of which instance.
    pub id: InstanceId,
    /// What was told when it was kept.
    pub key: SecretString,
    /// For how long; none takes DEFAULT_TTL.
    pub ttl: Option<SignedDuration>,
    /// Who asks.
    pub client: Client,
    /// Whose it is then: a visitor who is known by more than an address.
    pub holder: Option<String>,
}

impl Provisioner {
    /// Where shops are kept.
    ///
    /// # Errors
    /// [`SavedError::Nowhere`].
    pub fn keeping(&self) -> Result<&Keeping, SavedError> {
        self.keeping.as_ref().ok_or(SavedError::Nowhere)
    }

    /// Whether this daemon lets shops be kept at all.
    #[must_use]
    pub fn keeps_shops(&self) -> bool {
        self.keeping.as_ref().is_some_and(|keeping| keeping.shelf.limits().max > 0)
    }

    /// Keeps an assigned instance as it is now, in place of what was kept of it before;
    /// it goes on.
    ///
    /// # Errors
    /// [`SavedError`]; what was kept before still is, with the key that it had, and the
    /// instance goes on.
    ///
    /// # Cancel safety
    /// Safe: what nobody waits for any more is not kept.
    pub async fn save(self: &Arc<Self>, id: &InstanceId) -> Result<Kept, SavedError> {
        if self.is_stopping() {
            return Err(SavedError::Stopping);
        }
        if !self.keeps_shops() {
            return Err(SavedError::Nowhere);
        }
        let keeping = self.keeping()?.clone();
        self.subject(id).await?;
        let (patience, begun) = (self.terms.patience, tokio::time::Instant::now());
        let too_slow = SavedError::NotKept { after: patience };
        let turn = tokio::time::timeout(patience, Arc::clone(&keeping.turn).lock_owned()).await;
        let Ok(turn) = turn else { return Err(too_slow) };
        if !self.lifecycle.ledger.try_change(id) {
            return Err(ChangeError::Busy { id: id.clone() }.into());
        }
        let (this, id, wish) = (Arc::clone(self), id.clone(), Wish::default());
        let waiting = Waiting { wish: wish.clone(), id: id.clone() };
        let span = tracing::info_span!("save", instance_id = %id);
        let work = async move {
            // As it is now: while this waited it may have been made anew.
            let kept = match this.subject(&id).await {
                Ok(instance) => this.lifecycle.keep(&keeping, &instance, wish.clone()).await,
                Err(error) => Err(error),
            };
            wish.settle();
            drop(turn);
            this.lifecycle.ledger.changed(&id);
            // If it was to end meanwhile, nobody could.
            this.lifecycle.reap.now();
            kept
        };
        let mut work = self.lifecycle.tasks.spawn(work.instrument(span));
        let kept = match tokio::time::timeout_at(begun + patience, &mut work).await {
            Ok(kept) => kept,
            Err(_) if waiting.wish.give_up() => return Err(too_slow),
            // It is being put in its place at this moment.
            Err(_) => work.await,
        };
        kept.map_err(|_| SavedError::Lost)?
    }

    /// An instance that may be kept.
    async fn subject(&self, id: &InstanceId) -> Result<Instance, SavedError> {
        let instance = self.show(id, Timestamp::now()).await.map_err(ChangeError::Lease)?;
        if instance.state != State::Assigned {
            return Err(ChangeError::not_assigned(&instance).into());
        }
        if !self.lifecycle.is_own(&instance) {
            return Err(ChangeError::Elsewhere { id: id.clone(), node: instance.node }.into());
        }
        Ok(instance)
    }

    /// Opens what is kept of an instance, as that instance.
    ///
    /// # Errors
    /// [`SavedError`]; it is kept as before, and nothing else is left.
    ///
    /// # Cancel safety
    /// Safe: the work goes on without its client, and the instance lives its time.
    pub async fn open(self: &Arc<Self>, request: OpenRequest) -> Result<Acquired, SavedError> {
        let begun = Instant::now();
        if self.is_stopping() {
            return Err(SavedError::Stopping);
        }
        let keeping = self.keeping()?.clone();
        if self.lifecycle.aim().is_drained() {
            return Err(AcquireError::Drained.into());
        }
        let counted = self.count(&request.client, Timestamp::now()).await?;
        let (this, patience) = (Arc::clone(self), self.terms.patience);
        let span = tracing::info_span!("open", instance_id = %request.id);
        let work = async move { this.open_counted(&keeping, request, counted).await };
        let work = self.lifecycle.tasks.spawn(work.instrument(span));
        let opened = tokio::time::timeout(patience, work).await;
        let opened = opened.map_err(|_| SavedError::TooSlow { after: patience })?;
        let (instance, counted) = opened.map_err(|_| SavedError::Lost)??;
        let standings = counted.map(|counted| counted.standings).unwrap_or_default();
        let handed = Handed::Now(Source::Restore);
        Ok(Acquired { instance, handed, took: begun.elapsed(), standings })
    }

    async fn open_counted(
        &self,
        keeping: &Keeping,
        request: OpenRequest,
        counted: Option<Counted>,
    ) -> Result<(Instance, Option<Counted>), SavedError> {
        let opened = self.open_in_turn(keeping, request).await;
        match opened {
            Ok(instance) => Ok((instance, counted)),
            // Stays counted: else keys could be tried without end.
            Err(error @ SavedError::Shelf(ShelfError::Unknown { .. })) => Err(error),
            Err(error) => {
                self.forgive(counted).await;
                Err(error)
            }
        }
    }

    async fn open_in_turn(&self, keeping: &Keeping, request: OpenRequest) -> Result<Instance, SavedError> {
        // No client's key begins so: those have their scope in front.
        let _turn = self.flights.turn(&format!("saved {}", request.id)).await;
        let OpenRequest { id, key, ttl, holder, .. } = request;
        let saved = keeping.on_shelf(move |shelf| shelf.find(&id, &key, Timestamp::now())).await?;
        let engine = self.lifecycle.restorer(&saved.golden);
        let engine = engine.ok_or_else(|| SavedError::NoDriver { golden: saved.golden.clone() })?;
        let ttl = ttl.unwrap_or(self.terms.default_ttl);
        // As an acquire of that visitor's has it.
        let held_under = holder.map(|holder| key_of(&holder, saved.golden.as_str()));
        if let Some(key) = &held_under
            && let Some(other) =
                self.lifecycle.store.held(key, Timestamp::now()).await.map_err(SavedError::Store)?
        {
            return Err(match other.id == saved.id {
                true => SavedError::StillThere { id: saved.id },
                false => SavedError::Holds { other: other.id },
            });
        }
        self.lifecycle.open(keeping, saved, &engine, (ttl, held_under)).await
    }
}

impl Lifecycle {
    async fn keep(&self, keeping: &Keeping, instance: &Instance, wish: Wish) -> Result<Kept, SavedError> {
        let (Some(container), Some(engine)) = (&instance.container, self.engine_of(instance)) else {
            return Err(ChangeError::Busy { id: instance.id.clone() }.into());
        };
        let of = instance.id.clone();
        keeping.on_shelf(move |shelf| shelf.has_room(&of)).await?;
        // It is nobody's name, so what is frozen for the shelf is not taken for a shop that sleeps.
        let frozen = InstanceId::random();
        self.ledger.begin_slot(&frozen);
        let freeze = Freeze {
            id: &frozen,
            slot: instance.slot(),
            container,
            snapshot: instance.snapshot.as_ref(),
            then: Then::GoOn,
        };
        let kept = match engine.freeze(freeze).await {
            Ok(()) => {
                let (images, upper) = (keeping.frozen.images(&frozen), keeping.frozen.upper(&frozen));
                let instance = instance.clone();
                let key: SecretString = identity::alnum(KEY_LENGTH).into();
                let put = move |shelf: &Shelf| {
                    let saved = shelf.put((&key, &wish), &instance, (&images, &upper), Timestamp::now())?;
                    Ok(Kept { saved, key })
                };
                keeping.on_shelf(put).await
            }
            Err(error) => Err(SavedError::Freeze(error)),
        };
        self.forget_frozen(&*engine, &frozen).await;
        kept
    }

    /// Removes what was frozen on the way; what stays is swept.
    async fn forget_frozen(&self, engine: &dyn ContainerEngine, frozen: &InstanceId) {
        if let Err(error) = engine.forget(frozen).await {
            tracing::warn!(error = %error, "frozen files not removed yet");
        }
        self.ledger.end_slot(frozen);
    }

    /// A driver that restores shops of that golden.
    fn restorer(&self, golden: &GoldenName) -> Option<Arc<dyn ContainerEngine>> {
        let engines = self.golden(golden)?.engines();
        engines.into_iter().find(|engine| engine.source() == Source::Restore)
    }

    async fn open(
        self: &Arc<Self>,
        keeping: &Keeping,
        saved: Saved,
        engine: &Arc<dyn ContainerEngine>,
        terms: (SignedDuration, Option<String>),
    ) -> Result<Instance, SavedError> {
        let id = saved.id.clone();
        if self.ledger.doing(&id).is_some() {
            return Err(SavedError::StillThere { id });
        }
        if !self.ledger.try_begin(&id) {
            return Err(SavedError::Full { max: self.max_instances() });
        }
        let mut record = saved.warming(self.store.node().clone(), Timestamp::now());
        record.idempotency_key = terms.1;
        let record = match self.store.insert(record).await {
            Ok(record) => record,
            Err(error) => {
                self.ledger.forget(&id);
                return Err(match error {
                    StoreError::Exists { id } => SavedError::StillThere { id },
                    other => SavedError::Store(other),
                });
            }
        };
        let opened = self.open_in_place(keeping, &saved, engine, (record.clone(), terms.0)).await;
        if opened.is_err()
            && let Err(error) = self.end(record.clone(), State::Failed, |_| true).await
        {
            tracing::warn!(instance_id = %id, error = %Chain(&error), "instance not thrown away yet");
            self.unwanted(&record);
        }
        opened
    }

    async fn open_in_place(
        self: &Arc<Self>,
        keeping: &Keeping,
        saved: &Saved,
        engine: &Arc<dyn ContainerEngine>,
        (mut record, ttl): (Instance, SignedDuration),
    ) -> Result<Instance, SavedError> {
        let permit = self.gate.enter(Rank::Client).await;
        let frozen = InstanceId::random();
        self.ledger.begin_slot(&frozen);
        let thawed = self.unpack_and_thaw(keeping, saved, &**engine, &frozen).await;
        self.forget_frozen(&**engine, &frozen).await;
        drop(permit);
        let (slot, container) = thawed?;
        let left = Left { engine: Arc::clone(engine), slot: slot.clone(), container: container.clone() };
        let upstream = SocketAddr::from((container.address, container.port));
        let now = Timestamp::now();
        (record.container, record.slot) = (Some(container), Some(slot.clone()));
        record.access = Some(saved.access.clone());
        record.state = State::Assigned;
        record.source = Some(Source::Restore);
        (record.assigned_at, record.expires_at) = (Some(now), Some(now + ttl));
        let written = match failpoint::hit("open:before-record") {
            Ok(()) => self.store.update(record).await.map_err(SavedError::Store),
            Err(error) => Err(SavedError::Unpack(error)),
        };
        let record = written.inspect_err(|_| self.leave_later(Some(left)))?;
        self.ledger.lives(&record.id);
        self.ledger.note(&record);
        self.ledger.end_slot(&slot);
        self.routes.revive(&record.id);
        self.routes.ensure(&record.id, upstream);
        // If the router does not take it, its keeper tries again.
        let _ = self.routes.settle().await;
        self.events.changed(&record);
        // So that its end is watched from now on.
        self.reap.now();
        Ok(record)
    }

    /// Answers also the slot, which is noted as one that somebody is at.
    async fn unpack_and_thaw(
        &self,
        keeping: &Keeping,
        saved: &Saved,
        engine: &dyn ContainerEngine,
        frozen: &InstanceId,
    ) -> Result<(InstanceId, Container), SavedError> {
        let (keeping, kept, to) = (keeping.clone(), saved.clone(), frozen.clone());
        let unpacked = tokio::task::spawn_blocking(move || {
            failpoint::hit("open:before-unpack")?;
            keeping.frozen.receive(&to, &kept.snapshot, |dir| {
                keeping.shelf.unpack(&kept, dir).map_err(|error| match error {
                    ShelfError::Io { source, .. } => source,
                    other => std::io::Error::other(other),
                })
            })?;
            failpoint::hit("open:before-thaw")
        });
        let unpacked = unpacked.await.map_err(|_| SavedError::Lost)?;
        unpacked.map_err(SavedError::Unpack)?;
        let slot = engine.next_bare_id();
        self.ledger.begin_slot(&slot);
        match engine.thaw(&slot, frozen).await {
            Ok(Launched { container, .. }) => Ok((slot, container)),
            Err(error) => {
                // What it left behind is an orphan now.
                self.ledger.end_slot(&slot);
                Err(SavedError::Thaw(error))
            }
        }
    }
}
