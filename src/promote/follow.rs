//! What the desk does about what other nodes serve: follows what was promoted at one of
//! them, and tells what was promoted here.

use std::sync::Arc;
use std::time::Duration;

use super::shared::{self, Shared, Step};
use super::{Desk, DeskError, Listed, Order, Task, Workshop, refresh};
use crate::error::Chain;
use crate::id::{GoldenName, SnapshotId};

impl Desk {
    /// How often to look what was promoted at other nodes; none where there are none.
    #[must_use]
    pub fn looks_every(&self) -> Option<Duration> {
        self.0.workshop.as_ref()?.looks_every()
    }

    /// The snapshot of a golden that is to be followed, or told of.
    ///
    /// # Errors
    /// It cannot be found out.
    pub async fn wanted(&self, golden: &GoldenName) -> Result<Option<SnapshotId>, DeskError> {
        match self.next(golden).await?.0 {
            Step::Nothing => Ok(None),
            Step::Follow(shared) | Step::Tell(shared) => Ok(Some(shared.snapshot)),
        }
    }

    /// Begins to serve what was promoted at another node, or to tell the others.
    ///
    /// # Errors
    /// [`DeskError`]; nothing was begun.
    pub fn follow(&self, golden: &GoldenName) -> Result<Task, DeskError> {
        self.begin(Order::Follow(golden.clone()))
    }

    /// What is to be done about what the nodes serve, and all snapshots that are here.
    async fn next(&self, golden: &GoldenName) -> Result<(Step, Vec<Listed>), DeskError> {
        let Some(served) = self.served().remove(golden) else { return Ok((Step::Nothing, Vec::new())) };
        if self.is_own_alone(golden).await {
            return Ok((Step::Nothing, Vec::new()));
        }
        let workshop = self.workshop()?;
        let shared = workshop.shared(golden).await?;
        let listed = workshop.list().await?;
        let of = |id: &SnapshotId| listed.iter().find(|listed| listed.id == *id);
        if shared.as_ref().and_then(|shared| of(&shared.snapshot)?.refused.as_ref()).is_some() {
            // It was tried here. The operator may promote it here, or another one anywhere.
            return Ok((Step::Nothing, listed));
        }
        let promoted_at = of(&served).filter(|listed| listed.promoted).and_then(|listed| listed.promoted_at);
        Ok((shared::next(&served, promoted_at, shared), listed))
    }

    /// Whether a golden was a visitor's shop: the others know nothing of it.
    async fn is_own_alone(&self, golden: &GoldenName) -> bool {
        self.published().await.contains(golden)
    }

    /// Tells the other nodes, if there are any, what was promoted here; answers what was
    /// done with what came of that.
    pub(super) async fn share(&self, workshop: &Arc<dyn Workshop>, shared: Shared, done: String) -> String {
        let golden = self.served().into_iter().find(|(_, served)| *served == shared.snapshot);
        let (Some((golden, _)), Some(_)) = (golden, workshop.looks_every()) else { return done };
        if self.is_own_alone(&golden).await {
            return done;
        }
        match workshop.share(&golden, &shared, &|step| self.say(step)).await {
            Ok(()) => format!("{done}; the other nodes are told"),
            Err(error) => {
                tracing::warn!(golden = %golden, error = %Chain(&error), "the other nodes are not told yet");
                format!("{done}; the other nodes are told later: {}", Chain(&error))
            }
        }
    }

    pub(super) async fn do_follow(
        &self,
        golden: &GoldenName,
        workshop: &Arc<dyn Workshop>,
    ) -> Result<String, DeskError> {
        let say = |step: &str| self.say(step);
        // Anew: an operator's order may have come before.
        let (step, listed) = self.next(golden).await?;
        match step {
            Step::Nothing => Ok("nothing to do".to_owned()),
            Step::Tell(shared) => {
                workshop.share(golden, &shared, &say).await?;
                Ok(format!("{} is served, the other nodes are told", shared.snapshot))
            }
            Step::Follow(Shared { snapshot, promoted_at }) => {
                if !listed.iter().any(|listed| listed.id == snapshot) {
                    workshop.fetch(&snapshot, &say).await?;
                }
                let served =
                    refresh::refresh(&self.0.lifecycle, workshop, (&snapshot, promoted_at), &say).await;
                served.map_err(|error| DeskError::Refresh(Box::new(error)))
            }
        }
    }
}
