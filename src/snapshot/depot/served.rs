//! What the nodes serve: of each golden the snapshot that was promoted last at one, and
//! which goldens there are that no setting names, published at one node and served by all
//! until they are withdrawn at one. Called by the courier, and by [`Depot::remove`].
//!
//! ```text
//! served/<golden>   {"version": 1, "snapshot": "<id>", "promoted_at": "<time>",
//!                    "standing": "published" | "withdrawn",     not of a promoted one
//!                    "seal": "<seal>"}                          nor that
//! ```
//!
//! The last word counts, and a withdrawn golden keeps its mark, so that a node which was
//! away learns of it. What gives all nodes a golden, or takes it from them, is sealed with
//! the secret that they know ([`crate::node::seal`]): a mark without that seal says nothing.
//! What was promoted is not, as former programs have it so: it only chooses among
//! snapshots that a trusted key has signed.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::transfer::json;
use super::{Depot, DepotError, nats};
use crate::error::Chain;
use crate::id::{GoldenName, SnapshotId};

/// The version this program writes.
const VERSION: u16 = 1;

/// What a golden is to the nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Settings name it.
    #[default]
    Promoted,
    /// It was a visitor's shop, which every node serves.
    Published,
    /// It was one, which no node serves any more.
    Withdrawn,
}

impl Standing {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::Published => "published",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// What was said of a golden last, at any node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// The snapshot that it is restored from; or was, when it is withdrawn.
    pub snapshot: SnapshotId,
    /// When it was said, by that node's clock.
    pub at: Timestamp,
    /// What it is now.
    pub standing: Standing,
}

/// What was said of all goldens.
pub type Told = BTreeMap<GoldenName, Shared>;

#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    version: u16,
    snapshot: SnapshotId,
    promoted_at: Timestamp,
    #[serde(default, skip_serializing_if = "is_promoted")]
    standing: Standing,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seal: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_promoted(standing: &Standing) -> bool {
    *standing == Standing::Promoted
}

fn name_of(golden: &GoldenName) -> String {
    format!("served/{golden}")
}

/// What a seal is over: names and times have no space in them.
fn sealed_text(golden: &GoldenName, shared: &Shared) -> String {
    let Shared { snapshot, at, standing } = shared;
    format!("served {golden} {} {snapshot} {at}", standing.as_str())
}

impl Depot {
    /// What was said of a golden last; none when nothing was, or by nobody who knows the
    /// nodes' secret.
    ///
    /// # Errors
    /// [`DepotError`]
    pub async fn served(&self, golden: &GoldenName) -> Result<Option<Shared>, DepotError> {
        Ok(self.mark(golden).await?.and_then(|mark| self.believed(golden, mark)))
    }

    /// What a mark says; none when it would have to be sealed and is not, which is logged.
    fn believed(&self, golden: &GoldenName, mark: Mark) -> Option<Shared> {
        let shared = Shared { snapshot: mark.snapshot, at: mark.promoted_at, standing: mark.standing };
        let is_sealed = |seal: &String| {
            let secret = self.secret.as_ref();
            secret.is_some_and(|secret| secret.has_sealed(&sealed_text(golden, &shared), seal))
        };
        if shared.standing != Standing::Promoted && !mark.seal.as_ref().is_some_and(is_sealed) {
            tracing::warn!(
                golden = %golden,
                standing = shared.standing.as_str(),
                "passed over in NATS: it is not sealed with this node's NODE_SECRET_FILE"
            );
            return None;
        }
        Some(shared)
    }

    async fn mark(&self, golden: &GoldenName) -> Result<Option<Mark>, DepotError> {
        let name = name_of(golden);
        match self.small::<Mark>(&name).await? {
            Some(mark) if mark.version == VERSION => Ok(Some(mark)),
            Some(_) => Err(DepotError::Damaged { what: name }),
            None => Ok(None),
        }
    }

    /// Says what a golden is, unless something was said later. Of two that are said at once
    /// the earlier one may stand there, until the other's node looks again.
    ///
    /// # Errors
    /// [`DepotError`]; call again.
    pub async fn serve(&self, golden: &GoldenName, shared: &Shared) -> Result<(), DepotError> {
        let seal = match (shared.standing, &self.secret) {
            (Standing::Promoted, _) => None,
            (_, Some(secret)) => Some(secret.seal(&sealed_text(golden, shared))),
            (_, None) => return Err(DepotError::NoSecret),
        };
        if self.served(golden).await?.is_some_and(|told| told.at >= shared.at) {
            return Ok(());
        }
        let Shared { snapshot, at, standing } = shared.clone();
        let mark = Mark { version: VERSION, snapshot, promoted_at: at, standing, seal };
        self.put(&name_of(golden), &json(&mark)).await
    }

    /// What was said of all goldens; what cannot be read of one is logged, and says nothing.
    ///
    /// # Errors
    /// [`DepotError::Nats`]
    pub async fn told(&self) -> Result<Told, DepotError> {
        let mut told = Told::new();
        for golden in self.marked().await? {
            match self.served(&golden).await {
                Ok(shared) => told.extend(shared.map(|shared| (golden, shared))),
                Err(error @ DepotError::Damaged { .. }) => {
                    tracing::warn!(golden = %golden, error = %Chain(&error), "passed over in NATS");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(told)
    }

    /// What is another one whenever something was written: the bucket's, and how much was.
    ///
    /// # Errors
    /// [`DepotError::Nats`]
    pub async fn state(&self) -> Result<(i128, u64), DepotError> {
        let stream = self.jetstream.get_stream(&self.stream).await.map_err(nats("look into"))?;
        let info = stream.cached_info();
        Ok((info.created.unix_timestamp_nanos(), info.state.last_sequence))
    }

    /// Goldens of which something was said.
    async fn marked(&self) -> Result<Vec<GoldenName>, DepotError> {
        let all = self.all().await?;
        Ok(all.iter().filter_map(|(name, _)| name.strip_prefix("served/")?.parse().ok()).collect())
    }

    /// All snapshots that are served; whoever has said so.
    pub(super) async fn all_served(&self) -> Result<Vec<SnapshotId>, DepotError> {
        let mut served = Vec::new();
        for golden in self.marked().await? {
            let Some(mark) = self.mark(&golden).await? else { continue };
            let snapshot = mark.snapshot.clone();
            let believed = self.believed(&golden, mark);
            if believed.is_none_or(|shared| shared.standing != Standing::Withdrawn) {
                served.push(snapshot);
            }
        }
        Ok(served)
    }

    /// The snapshots that are there and, by their names, of a golden.
    ///
    /// # Errors
    /// [`DepotError::Nats`]
    pub async fn list_of(&self, golden: &GoldenName) -> Result<Vec<SnapshotId>, DepotError> {
        let mut ids = self.list().await?;
        ids.retain(|id| id.golden() == golden.as_str());
        Ok(ids)
    }
}
