//! What the nodes serve: the last snapshot of each golden that was promoted at one.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::transfer::json;
use super::{Depot, DepotError};
use crate::id::{GoldenName, SnapshotId};

/// The version this program writes.
const VERSION: u16 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    version: u16,
    snapshot: SnapshotId,
    promoted_at: Timestamp,
}

impl Depot {
    /// The snapshot of a golden that was promoted last, and when; none when none was.
    ///
    /// # Errors
    /// [`DepotError`]
    pub async fn served(&self, golden: &GoldenName) -> Result<Option<(SnapshotId, Timestamp)>, DepotError> {
        let name = format!("served/{golden}");
        match self.small::<Mark>(&name).await? {
            Some(mark) if mark.version == VERSION => Ok(Some((mark.snapshot, mark.promoted_at))),
            Some(_) => Err(DepotError::Damaged { what: name }),
            None => Ok(None),
        }
    }

    /// Tells that a snapshot was promoted, unless another one was later. Of two that are
    /// told at once the earlier one may stand there, until the other's node looks again.
    ///
    /// # Errors
    /// [`DepotError`]; call again.
    pub async fn serve(&self, golden: &GoldenName, id: &SnapshotId, at: Timestamp) -> Result<(), DepotError> {
        if self.served(golden).await?.is_some_and(|(_, told)| told >= at) {
            return Ok(());
        }
        let mark = Mark { version: VERSION, snapshot: id.clone(), promoted_at: at };
        self.put(&format!("served/{golden}"), &json(&mark)).await
    }

    /// All that are served.
    pub(super) async fn all_served(&self) -> Result<Vec<SnapshotId>, DepotError> {
        let mut served = Vec::new();
        for (name, _) in self.all().await? {
            let golden = name.strip_prefix("served/").and_then(|name| name.parse().ok());
            let Some(golden) = golden else { continue };
            served.extend(self.served(&golden).await?.map(|(id, _)| id));
        }
        Ok(served)
    }
}
