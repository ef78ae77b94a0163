//! What this daemon has another node do, and does for one.
//!
//! ```text
//! no ready instance anywhere, and none can be made here
//!   -> the node with the most room makes one, which is then ready in the shared
//!      store -> claimed here, as any other
//! reset, sleep, wake, logs of an instance of another node -> that node's daemon
//! ```
//!
//! So a client's key, its count and its hand-over stay in one atomic operation of
//! the store, on the node that the client asked; an answer that is lost between
//! the nodes leaves a ready instance in the pool and nothing else.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::acquire::{Gone, Wish};
use super::change::ChangeError;
use super::errors::{AcquireError, MakeError};
use super::lifecycle::Order;
use super::{GoldenRuntime, Handed, Lifecycle, Provisioner};
use crate::config::ColdStart;
use crate::error::Chain;
use crate::id::{GoldenName, InstanceId};
use crate::instance::{Instance, Source, State};
use crate::peers::Peers;
use crate::peers::call::Call;
use crate::restore::{FirstPage, Make};

/// Nodes that are asked for one acquire: the second one when another client was
/// quicker with what the first one made, or when it failed.
const NODES_ASKED: usize = 2;

impl Provisioner {
    /// Has other nodes help out.
    #[must_use]
    pub fn with_peers(self, peers: Option<Arc<Peers>>) -> Self {
        Self { peers, ..self }
    }

    /// The other nodes, if this daemon is one of several.
    #[must_use]
    pub const fn peers(&self) -> Option<&Arc<Peers>> {
        self.peers.as_ref()
    }

    /// Whether an instance of a golden can be made here now.
    #[must_use]
    pub fn can_make(&self, golden: &GoldenRuntime) -> bool {
        let restores = golden.restore.is_ok() && !self.lifecycle.tally.is_broken(&golden.name);
        let boots = golden.cold.is_some() && self.terms.cold_start == ColdStart::Allowed;
        (restores || boots) && golden.outage().is_none() && !self.is_stopping()
    }

    /// Makes an instance that is ready, for a node that has no room.
    ///
    /// # Errors
    /// [`AcquireError`]; nothing is left behind.
    ///
    /// # Cancel safety
    /// Not cancel-safe: spawn it.
    pub async fn make_for_another(&self, golden: &GoldenName) -> Result<Instance, AcquireError> {
        if self.is_stopping() {
            return Err(AcquireError::Stopping);
        }
        if self.lifecycle.aim().is_drained() {
            return Err(AcquireError::Drained);
        }
        let name = || golden.clone();
        let runtime = self.lifecycle.golden(golden).ok_or_else(|| AcquireError::UnknownGolden {
            golden: golden.to_string(),
            known: self.lifecycle.goldens().iter().map(|golden| golden.name.to_string()).collect(),
        })?;
        if let Some((dependency, reason)) = runtime.outage() {
            return Err(AcquireError::Outage { golden: name(), dependency, reason });
        }
        let maker = self.maker_for_another(runtime)?;
        if self.lifecycle.room() == 0 {
            let source = MakeError::Full { max: self.lifecycle.max_instances() };
            return Err(AcquireError::Make { golden: name(), source });
        }
        let stays = CancellationToken::new();
        let permit = self.enter(golden, &stays).await.map_err(|refusal| refusal.into_error(name()))?;
        let first_page = FirstPage::LeftToVisitor;
        let order = Order { golden, maker, first_page, idempotency_key: None, permit };
        let made = self.lifecycle.make(order, |record| record.state = State::Ready).await;
        made.map_err(|source| AcquireError::Make { golden: name(), source })
    }

    fn maker_for_another<'a>(&self, golden: &'a GoldenRuntime) -> Result<&'a Arc<dyn Make>, AcquireError> {
        let broken = self.lifecycle.tally.is_broken(&golden.name);
        match (&golden.restore, &golden.cold, self.terms.cold_start) {
            (Ok(restore), ..) if !broken => Ok(restore),
            (_, Some(cold), ColdStart::Allowed) => Ok(cold),
            (Ok(restore), ..) => Ok(restore),
            (Err(reason), ..) => {
                Err(AcquireError::NoWay { golden: golden.name.clone(), reason: reason.clone() })
            }
        }
    }

    /// Gets an instance that another node makes, after this one could not, for
    /// that reason.
    pub(super) async fn obtain_elsewhere(
        &self,
        wish: &Wish,
        refused: AcquireError,
        gone: Gone<'_>,
    ) -> Result<(Instance, Handed), AcquireError> {
        let Some(peers) = self.peers.as_ref().filter(|_| may_be_cured_elsewhere(&refused)) else {
            return Err(refused);
        };
        // A drained node has not even looked.
        if let Some(got) = self.claim(wish).await? {
            return Ok(got);
        }
        let call = Call::Make(wish.golden.name.clone());
        for node in peers.makers(&wish.golden.name).into_iter().take(NODES_ASKED) {
            let made = tokio::select! {
                made = peers.ask(&node, &call) => made,
                // What is made meanwhile is in the pool.
                () = gone.cancelled() => return Err(AcquireError::HungUp),
            };
            match made {
                Ok(answer) => {
                    if let Some((instance, handed)) = self.claim(wish).await? {
                        tracing::info!(instance_id = %instance.id, node = %node, "instance made by another node");
                        return Ok((instance, as_made(handed, &answer)));
                    }
                }
                Err(error) => {
                    tracing::info!(node = %node, error = %Chain(&error), "another node could not help out");
                }
            }
        }
        Err(refused)
    }

    /// Has an instance's own daemon do something with it, where that is another
    /// one; answers its record after that. None when it is to be done here.
    pub(super) async fn by_its_owner(
        &self,
        id: &InstanceId,
        call: Call,
    ) -> Result<Option<Instance>, ChangeError> {
        let Some(peers) = &self.peers else { return Ok(None) };
        let now = Timestamp::now();
        let instance = self.show(id, now).await.map_err(ChangeError::Lease)?;
        if self.lifecycle.is_own(&instance) {
            return Ok(None);
        }
        peers.ask(&instance.node, &call).await.map_err(ChangeError::There)?;
        self.show(id, now).await.map(Some).map_err(ChangeError::Lease)
    }
}

/// How the instance came to be, for the answer: somebody waited while it was made.
fn as_made(handed: Handed, answer: &Value) -> Handed {
    let made_by = answer["made_by"].as_str();
    let source = Source::ALL.into_iter().find(|source| Some(source.as_str()) == made_by);
    match (handed, source) {
        (Handed::Now(_), Some(source)) => Handed::Now(source),
        (handed, _) => handed,
    }
}

/// Another node has other room, other snapshots and another host.
fn may_be_cured_elsewhere(error: &AcquireError) -> bool {
    match error {
        AcquireError::Drained
        | AcquireError::NoWay { .. }
        | AcquireError::Crowded { .. }
        | AcquireError::Neither { .. } => true,
        AcquireError::Make { source, .. } => !matches!(source, MakeError::Store(_)),
        AcquireError::UnknownGolden { .. }
        | AcquireError::Ttl(_)
        | AcquireError::Key
        | AcquireError::KeyReused { .. }
        | AcquireError::Limited { .. }
        | AcquireError::Store(_)
        // What is ready here would be claimed first, and answers no page.
        | AcquireError::Outage { .. }
        | AcquireError::HungUp
        | AcquireError::TooSlow { .. }
        | AcquireError::Stopping
        | AcquireError::Lost => false,
    }
}

impl Lifecycle {
    /// Tells of an instance that was marked as lost with its node.
    pub fn lost_elsewhere(&self, instance: &Instance) {
        self.events.changed(instance);
    }
}
