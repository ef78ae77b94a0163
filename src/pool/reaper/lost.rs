//! What the store has lost: a server without persistence that was started again,
//! one that was emptied, a replica that had not yet got the last changes.
//!
//! An instance that lives is worth more than a store's word: its record is
//! written again from what this daemon knows. A loss is believed when two passes
//! in a row see it, so that a change on its way is not taken for one.

use super::Reaper;
use crate::error::Chain;
use crate::store::StoreError;

impl Reaper {
    /// Writes the records that the last look at the store has not found.
    pub(super) async fn write_lost_again(&mut self) {
        let lost = self.lifecycle.lost();
        let (mut missing, mut written) = (std::collections::HashSet::new(), 0);
        for record in lost {
            let seen = (record.id.clone(), record.generation);
            if !self.missing.contains(&seen) {
                missing.insert(seen);
                continue;
            }
            match self.lifecycle.store().write_again(record.clone()).await {
                Ok(()) => {
                    written += 1;
                    self.lifecycle.seen(&record);
                }
                // Somebody has changed it meanwhile: it is there.
                Err(StoreError::Stale { .. }) => {}
                Err(error) => {
                    tracing::warn!(instance_id = %record.id, error = %Chain(&error), "lost record not written again yet");
                    missing.insert(seen);
                }
            }
        }
        if written > 0 {
            tracing::warn!(written, "the store had lost records of living instances; they are written again");
        }
        self.missing = missing;
    }
}
