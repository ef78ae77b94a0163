//! Keeping a visitor's shop, and opening it again under the same address.
//!
//! Called by the API. What is kept is the shelf's ([`crate::snapshot::shelf`]).
//!
//! ```text
//! keep                                     open
//!   the right to change it   give it back    a place on the host      forget
//!   freeze, it goes on       forget          record "warming"         remove
//!   onto the shelf           the shelf's own verified, unpacked       remove
//!   (the frozen removed)                     thaw                     the driver's own
//!                                            record "assigned", route (it is there)
//! ```
//!
//! Invariants: one instance of that name is there at a time, so what is kept can be
//! opened only when the former one is gone; what was kept stays so when it is opened.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use tracing::Instrument as _;

use super::gate::Rank;
use super::lifecycle::Lifecycle;
use super::reset::Left;
use super::saved_error::SavedError;
use super::{Acquired, Handed, Provisioner};
use crate::config::Config;
use crate::engine::criu::freeze::FrozenDir;
use crate::engine::{ContainerEngine, Freeze, Launched, Then};
use crate::error::Chain;
use crate::id::{InstanceId, SavedName};
use crate::identity;
use crate::instance::{Instance, Source, State};
use crate::snapshot::shelf::{Limits, Saved, Shelf, ShelfError};
use crate::store::StoreError;

/// Letters and digits of a key: 190 bits.
const KEY_LENGTH: usize = 32;

/// Where shops are kept.
#[derive(Debug, Clone)]
pub struct Keeping {
    /// What is kept.
    pub shelf: Shelf,
    /// Where it lies frozen on its way.
    pub frozen: FrozenDir,
}

impl Keeping {
    /// Where the settings say.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let limits = Limits {
            max: config.saved_max,
            max_bytes: config.saved_max_bytes,
            keep: config.saved_keep,
            // What it has of the golden's files counts for the one, and its holes for the other.
            files_max: config.disk_max.saturating_mul(2),
        };
        Self { shelf: Shelf::of(&config.state_dir, limits), frozen: FrozenDir::of(&config.state_dir) }
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

impl Provisioner {
    /// Where shops are kept.
    ///
    /// # Errors
    /// [`SavedError::Nowhere`].
    pub fn keeping(&self) -> Result<&Keeping, SavedError> {
        self.keeping.as_ref().ok_or(SavedError::Nowhere)
    }

    /// Keeps an assigned instance as it is now; it goes on.
    ///
    /// # Errors
    /// [`SavedError`]; nothing is kept, and it goes on.
    ///
    /// # Cancel safety
    /// Safe: the work goes on without its client, and what was kept without anybody
    /// who has its key is removed.
    pub async fn save(&self, id: &InstanceId, name: SavedName) -> Result<Kept, SavedError> {
        let keeping = self.keeping()?.clone();
        let instance = self.show(id, Timestamp::now()).await.map_err(SavedError::Lease)?;
        if instance.state != State::Assigned {
            return Err(SavedError::NotAssigned { id: id.clone(), state: instance.state });
        }
        if !self.lifecycle.is_own(&instance) {
            return Err(SavedError::Elsewhere { id: id.clone(), node: instance.node });
        }
        keeping.shelf.has_room(&name)?;
        if !self.lifecycle.ledger.try_change(id) {
            return Err(SavedError::Busy { id: id.clone() });
        }
        let lifecycle = Arc::clone(&self.lifecycle);
        let work = async move {
            let kept = lifecycle.keep(&keeping, &instance, name).await;
            lifecycle.ledger.changed(&instance.id);
            lifecycle.reap.now();
            kept
        };
        let work = self.lifecycle.tasks.spawn(work.in_current_span());
        work.await.map_err(|_| SavedError::Lost)?
    }

    /// Opens what is kept under a name.
    ///
    /// # Errors
    /// [`SavedError`]; it is kept as before, and nothing else is left.
    ///
    /// # Cancel safety
    /// Safe: the work goes on without its client, and the instance lives its time.
    pub async fn open(
        &self,
        name: &SavedName,
        key: &SecretString,
        ttl: Option<SignedDuration>,
    ) -> Result<Acquired, SavedError> {
        let begun = Instant::now();
        if self.is_stopping() {
            return Err(SavedError::Stopping);
        }
        let keeping = self.keeping()?.clone();
        let saved = keeping.shelf.find(name, key, Timestamp::now())?;
        let engine = self.lifecycle.restorer(&saved.golden);
        let engine = engine.ok_or_else(|| SavedError::NoDriver { golden: saved.golden.clone() })?;
        let (lifecycle, ttl) = (Arc::clone(&self.lifecycle), ttl.unwrap_or(self.terms.default_ttl));
        let work = async move { lifecycle.open(&keeping, saved, &engine, ttl).await };
        let work = self.lifecycle.tasks.spawn(work.in_current_span());
        let instance = work.await.map_err(|_| SavedError::Lost)??;
        let handed = Handed::Now(Source::Restore);
        Ok(Acquired { instance, handed, took: begun.elapsed(), standings: Vec::new() })
    }
}

impl Lifecycle {
    async fn keep(
        &self,
        keeping: &Keeping,
        instance: &Instance,
        name: SavedName,
    ) -> Result<Kept, SavedError> {
        let (Some(container), Some(engine)) = (&instance.container, self.engine_of(instance)) else {
            return Err(SavedError::Busy { id: instance.id.clone() });
        };
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
                let (keeping, instance, frozen) = (keeping.clone(), instance.clone(), frozen.clone());
                let key: SecretString = identity::alnum(KEY_LENGTH).into();
                let put = tokio::task::spawn_blocking(move || {
                    let parts = (&*keeping.frozen.images(&frozen), &*keeping.frozen.upper(&frozen));
                    let saved = keeping.shelf.put((&name, &key), &instance, parts, Timestamp::now())?;
                    Ok(Kept { saved, key })
                });
                put.await.map_err(|_| SavedError::Lost).flatten()
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
    fn restorer(&self, golden: &crate::id::GoldenName) -> Option<Arc<dyn ContainerEngine>> {
        let engines = self.golden(golden)?.engines();
        engines.into_iter().find(|engine| engine.source() == Source::Restore)
    }

    async fn open(
        self: &Arc<Self>,
        keeping: &Keeping,
        saved: Saved,
        engine: &Arc<dyn ContainerEngine>,
        ttl: SignedDuration,
    ) -> Result<Instance, SavedError> {
        let id = saved.id.clone();
        if self.ledger.doing(&id).is_some() {
            return Err(SavedError::StillThere { id });
        }
        if !self.ledger.try_begin(&id) {
            return Err(SavedError::Full { max: self.max_instances() });
        }
        let record = saved.warming(self.store.node().clone(), Timestamp::now());
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
        let opened = self.open_in_place(keeping, &saved, engine, record.clone(), ttl).await;
        if let Err(error) = &opened {
            tracing::warn!(instance_id = %id, error = %Chain(error), "kept shop not opened");
            self.undo_open(record).await;
        }
        opened
    }

    /// Takes away what a failed opening has left; the reaper comes again if that fails.
    async fn undo_open(&self, record: Instance) {
        let id = record.id.clone();
        if let Err(error) = self.end(record.clone(), State::Failed, |_| true).await {
            tracing::warn!(instance_id = %id, error = %Chain(&error), "instance not thrown away yet");
            self.unwanted(&record);
        }
    }

    async fn open_in_place(
        self: &Arc<Self>,
        keeping: &Keeping,
        saved: &Saved,
        engine: &Arc<dyn ContainerEngine>,
        mut record: Instance,
        ttl: SignedDuration,
    ) -> Result<Instance, SavedError> {
        let permit = self.gate.enter(Rank::Client).await;
        let (frozen, slot) = (InstanceId::random(), engine.next_bare_id());
        self.ledger.begin_slot(&frozen);
        self.ledger.begin_slot(&slot);
        let thawed = self.unpack_and_thaw(keeping, saved, &**engine, (&frozen, &slot)).await;
        self.forget_frozen(&**engine, &frozen).await;
        drop(permit);
        let thawed = thawed.inspect_err(|_| self.ledger.end_slot(&slot));
        let Launched { container, .. } = thawed?;
        let left = Left { engine: Arc::clone(engine), slot: slot.clone(), container: container.clone() };
        let upstream = SocketAddr::from((container.address, container.port));
        let now = Timestamp::now();
        (record.container, record.slot) = (Some(container), Some(slot.clone()));
        record.access = Some(saved.access.clone());
        record.state = State::Assigned;
        record.source = Some(Source::Restore);
        (record.assigned_at, record.expires_at) = (Some(now), Some(now + ttl));
        let written = self.store.update(record).await;
        let written = written.inspect_err(|_| self.leave_later(Some(left)));
        let record = written.map_err(SavedError::Store)?;
        self.ledger.lives(&record.id);
        self.ledger.note(&record);
        self.ledger.end_slot(&slot);
        self.routes.revive(&record.id);
        self.routes.ensure(&record.id, upstream);
        // If the router does not take it, its keeper tries again.
        let _ = self.routes.settle().await;
        self.events.changed(&record);
        self.reap.now();
        Ok(record)
    }

    async fn unpack_and_thaw(
        &self,
        keeping: &Keeping,
        saved: &Saved,
        engine: &dyn ContainerEngine,
        (frozen, slot): (&InstanceId, &InstanceId),
    ) -> Result<Launched, SavedError> {
        let (keeping, kept, to) = (keeping.clone(), saved.clone(), frozen.clone());
        let unpacked = tokio::task::spawn_blocking(move || {
            keeping.frozen.receive(&to, &kept.snapshot, |dir| {
                keeping.shelf.unpack(&kept, dir).map_err(|error| match error {
                    ShelfError::Io { source, .. } => source,
                    other => std::io::Error::other(other),
                })
            })
        });
        let unpacked = unpacked.await.map_err(|_| SavedError::Lost)?;
        unpacked.map_err(SavedError::Unpack)?;
        engine.thaw(slot, frozen).await.map_err(SavedError::Thaw)
    }
}
