//! Goldens that were visitors' shops: an operator publishes and withdraws them at one node,
//! and tells all.
//!
//! What is done here is written down here first, and told then: when the others cannot be
//! told now, [`super::follow`] tells them later.

use std::sync::Arc;

use jiff::Timestamp;

use super::shared::{self, Here, Step};
use super::{Desk, DeskError, Order, Publication, Task, Workshop, refresh};
use crate::error::Chain;
use crate::id::GoldenName;
use crate::snapshot::served::Choice;

impl Desk {
    /// Begins to make a golden of a visitor's shop that was kept, and to serve it.
    ///
    /// # Errors
    /// [`DeskError`]; nothing was begun.
    pub async fn publish(&self, wanted: Publication) -> Result<Task, DeskError> {
        self.workshop()?.may_publish(&wanted.golden).await?;
        self.begin(Order::Publish(wanted))
    }

    /// Goldens that were published, as far as they are known.
    pub async fn published(&self) -> Vec<GoldenName> {
        let choice = match &self.0.workshop {
            Some(workshop) => workshop.choice().await.unwrap_or_default(),
            None => Choice::default(),
        };
        choice.published().cloned().collect()
    }

    /// Begins to serve a published golden no more.
    ///
    /// # Errors
    /// [`DeskError`]; nothing was begun.
    pub async fn withdraw(&self, golden: &GoldenName) -> Result<Task, DeskError> {
        if !self.workshop()?.choice().await?.is_published(golden) {
            return Err(DeskError::NotPublished { golden: golden.clone() });
        }
        self.begin(Order::Withdraw(golden.clone()))
    }

    pub(super) async fn do_publish(
        &self,
        wanted: &Publication,
        workshop: &Arc<dyn Workshop>,
    ) -> Result<String, DeskError> {
        let (say, golden) = (|step: &str| self.say(step), &wanted.golden);
        let at = self.time_after(golden, workshop).await?;
        let id = workshop.publish(wanted, &say).await?;
        let served = refresh::introduce(&self.0.lifecycle, workshop, (&id, at), wanted.pool, &say).await;
        if served.is_err() && self.0.lifecycle.golden(golden).is_none() {
            // It can be made again, and nobody could serve it by itself.
            if let Err(error) = workshop.clear(golden, &self.in_use().await?).await {
                tracing::warn!(error = %Chain(&error), "snapshot of a golden that is not served stays");
            }
        }
        let done = served.map_err(|error| DeskError::Refresh(Box::new(error)))?;
        Ok(self.share(workshop, (&id, at), done).await)
    }

    pub(super) async fn do_withdraw(
        &self,
        golden: &GoldenName,
        workshop: &Arc<dyn Workshop>,
    ) -> Result<String, DeskError> {
        let at = self.time_after(golden, workshop).await?;
        let said = refresh::withdraw(&self.0.lifecycle, workshop, (golden, at)).await?;
        // Before they are removed where the others would find them.
        let told = match self.tell_withdrawn(golden, at, workshop).await {
            Ok(false) => String::new(),
            Ok(true) => "; the other nodes are told".to_owned(),
            Err(error) => {
                tracing::warn!(golden = %golden, error = %Chain(&error), "the other nodes are not told yet");
                format!("; the other nodes are told later: {}", Chain(&error))
            }
        };
        let removed = self.clear(golden, workshop).await?;
        Ok(format!("{said}; {removed} of its snapshots removed{told}"))
    }

    /// Has a golden go that was withdrawn at another node.
    pub(super) async fn do_follow_out(
        &self,
        golden: &GoldenName,
        at: Timestamp,
        workshop: &Arc<dyn Workshop>,
    ) -> Result<String, DeskError> {
        let said = refresh::withdraw(&self.0.lifecycle, workshop, (golden, at)).await?;
        let removed = self.clear(golden, workshop).await?;
        Ok(format!("{said}; {removed} of its snapshots removed"))
    }

    async fn clear(&self, golden: &GoldenName, workshop: &Arc<dyn Workshop>) -> Result<usize, DeskError> {
        Ok(workshop.clear(golden, &self.in_use().await?).await?.len())
    }

    /// Tells the others; answers whether they have heard of the golden at all.
    async fn tell_withdrawn(
        &self,
        golden: &GoldenName,
        at: Timestamp,
        workshop: &Arc<dyn Workshop>,
    ) -> Result<bool, DeskError> {
        let told = self.heard().await?.unwrap_or_default();
        match shared::next(Here::Absent { withdrawn_at: Some(at) }, told.get(golden)) {
            Step::Tell(shared) => {
                workshop.share(golden, &shared, &|step| self.say(step)).await?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// A time at which something is said of a golden, after all that is known to be said.
    async fn time_after(
        &self,
        golden: &GoldenName,
        workshop: &Arc<dyn Workshop>,
    ) -> Result<Timestamp, DeskError> {
        let choice = workshop.choice().await?;
        let here = [choice.withdrawn(golden), choice.said_at(golden)];
        // When it cannot be asked for, the clocks have to do.
        let told = self.heard().await.ok().flatten().and_then(|mut told| told.remove(golden));
        let said = here.into_iter().chain([told.map(|shared| shared.at)]).flatten();
        Ok(shared::time_after(said, Timestamp::now()))
    }
}
