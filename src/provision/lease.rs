//! What a client does with an instance it has: show, extend, release.

use jiff::{SignedDuration, Timestamp};

use super::Provisioner;
use super::acquire::key_of;
use super::errors::{EndError, LeaseError};
use crate::error::Chain;
use crate::id::InstanceId;
use crate::instance::event::Happened;
use crate::instance::{Instance, State};
use crate::route::memory::Lookup;
use crate::store::StoreError;

/// How often an extension is tried again after somebody else's change.
const STALE_ROUNDS: usize = 5;

impl Provisioner {
    /// Reads an instance whose time is not over at `now`.
    ///
    /// # Errors
    /// [`LeaseError`]: unknown, gone, or the store.
    pub async fn show(&self, id: &InstanceId, now: Timestamp) -> Result<Instance, LeaseError> {
        let instance = self.lifecycle.store.get(id).await.map_err(LeaseError::Store)?;
        match instance {
            Some(Instance { lost_at: Some(_), node, .. }) => Err(LeaseError::Lost { id: id.clone(), node }),
            Some(instance) if instance.state.is_final() || instance.is_due_at(now) => {
                Err(LeaseError::Gone { id: id.clone() })
            }
            Some(instance) => Ok(instance),
            None => {
                let is_over = match self.lifecycle.routes.lookup(id.as_str()) {
                    Lookup::Gone => true,
                    // At another node, maybe.
                    Lookup::Found(_) | Lookup::Asleep(_) | Lookup::Unknown => {
                        self.lifecycle.store.has_ended(id).await.map_err(LeaseError::Store)?
                    }
                };
                Err(match is_over {
                    true => LeaseError::Gone { id: id.clone() },
                    false => LeaseError::Unknown { id: id.to_string() },
                })
            }
        }
    }

    /// Reads the instance that a holder has under a key, if it lives at `now`.
    ///
    /// # Errors
    /// The store.
    pub async fn held(
        &self,
        holder: &str,
        key: &str,
        now: Timestamp,
    ) -> Result<Option<Instance>, StoreError> {
        self.lifecycle.store.held(&key_of(holder, key), now).await
    }

    /// Whether an instance was handed to that holder under that key.
    #[must_use]
    pub fn is_held_by(instance: &Instance, holder: &str, key: &str) -> bool {
        instance.idempotency_key.as_deref() == Some(&key_of(holder, key))
    }

    /// Moves an instance's end `by` further, asleep or not; none takes DEFAULT_TTL.
    ///
    /// # Errors
    /// [`LeaseError`]; beyond MAX_TTL after the hand-over it is refused whole.
    pub async fn extend(
        &self,
        id: &InstanceId,
        by: Option<SignedDuration>,
        now: Timestamp,
    ) -> Result<Instance, LeaseError> {
        let by = by.unwrap_or(self.terms.default_ttl);
        for _ in 0..STALE_ROUNDS {
            let mut instance = self.show(id, now).await?;
            let (State::Assigned | State::Hibernated, Some(assigned_at), Some(expires_at)) =
                (instance.state, instance.assigned_at, instance.expires_at)
            else {
                return Err(LeaseError::NotAssigned { id: id.clone(), state: instance.state });
            };
            let latest = assigned_at + self.terms.max_ttl;
            let beyond = || LeaseError::BeyondMax { id: id.clone(), latest, max: self.terms.max_ttl };
            let later = expires_at.checked_add(by).map_err(|_| beyond())?;
            if later > latest {
                return Err(beyond());
            }
            instance.expires_at = Some(later);
            match self.lifecycle.store.update(instance).await {
                Ok(instance) => {
                    self.lifecycle.seen(&instance);
                    self.lifecycle.events.happened(&instance, Happened::Extended);
                    return Ok(instance);
                }
                Err(StoreError::Stale { .. } | StoreError::Denied { .. }) => {}
                Err(StoreError::Unknown { .. }) => return Err(LeaseError::Gone { id: id.clone() }),
                Err(error) => return Err(LeaseError::Store(error)),
            }
        }
        Err(LeaseError::Busy { id: id.clone() })
    }

    /// Ends an instance; one that is not there is no error.
    ///
    /// Answers when nobody reaches it any more; its processes and files go
    /// right after.
    ///
    /// # Errors
    /// [`LeaseError`]: it is being made, the store, or the router, which is
    /// asked again by the reaper.
    pub async fn release(&self, id: &InstanceId) -> Result<(), LeaseError> {
        let Some(instance) = self.lifecycle.store.get(id).await.map_err(LeaseError::Store)? else {
            return Ok(());
        };
        if instance.state == State::Warming {
            return Err(LeaseError::NotAssigned { id: id.clone(), state: State::Warming });
        }
        let marked = self.lifecycle.mark(instance, State::Expired, |_| true).await;
        let marked = marked.map_err(|error| match error {
            EndError::Store { source, .. } => LeaseError::Store(source),
            EndError::NoDriver { id, .. } | EndError::Frozen { id, .. } => LeaseError::Busy { id },
            EndError::Route { source, .. } => LeaseError::Route(source),
            EndError::Destroy(error) => LeaseError::Busy { id: error.id },
        })?;
        if let Some(instance) = marked {
            let (lifecycle, id) = (self.lifecycle.clone(), id.clone());
            self.lifecycle.tasks.spawn(async move {
                if let Err(error) = lifecycle.take_down(instance).await {
                    tracing::warn!(instance_id = %id, error = %Chain(&error), "instance not taken down yet");
                    lifecycle.reap.now();
                }
            });
        }
        Ok(())
    }
}
