//! What the desk does by itself: follows what was promoted at another node, tells what was
//! promoted here, and has a golden that is only booted be restored as soon as there is a
//! snapshot of it.

use std::sync::Arc;
use std::time::Duration;

use super::shared::{self, Shared, Step};
use super::{Desk, DeskError, Listed, Order, Task, Workshop, refresh};
use crate::error::Chain;
use crate::id::{GoldenName, SnapshotId};
use crate::provision::GoldenRuntime;

impl Desk {
    /// How often to look whether something else is to be served; none where nothing is
    /// restored.
    #[must_use]
    pub fn looks_every(&self) -> Option<Duration> {
        self.0.workshop.as_ref().map(|workshop| workshop.looks_every())
    }

    /// Goldens that may have to be served from another snapshot: those that are only booted,
    /// and all where there are other nodes.
    #[must_use]
    pub fn looked_at(&self) -> Vec<GoldenName> {
        let is_shared = self.0.workshop.as_ref().is_some_and(|workshop| workshop.is_shared());
        let goldens = self.0.lifecycle.goldens();
        let looked_at = goldens.iter().filter(|golden| is_shared || golden.restore.is_err());
        looked_at.map(|golden| golden.name.clone()).collect()
    }

    /// The snapshot of a golden that is to be begun with, followed, or told of.
    ///
    /// # Errors
    /// It cannot be found out.
    pub async fn wanted(&self, golden: &GoldenName) -> Result<Option<SnapshotId>, DeskError> {
        match self.next(golden).await?.0 {
            Step::Nothing => Ok(None),
            Step::Begin(snapshot) => Ok(Some(snapshot)),
            Step::Follow(shared) | Step::Tell(shared) => Ok(Some(shared.snapshot)),
        }
    }

    /// Begins to serve what was promoted at another node, to tell the others, or to restore
    /// what was only booted.
    ///
    /// # Errors
    /// [`DeskError`]; nothing was begun.
    pub fn follow(&self, golden: &GoldenName) -> Result<Task, DeskError> {
        match self.is_only_booted(golden) {
            true => self.begin(Order::Begin(golden.clone())),
            false => self.begin(Order::Follow(golden.clone())),
        }
    }

    fn is_only_booted(&self, golden: &GoldenName) -> bool {
        self.0.lifecycle.golden(golden).is_some_and(|golden| golden.restore.is_err())
    }

    /// What is to be done about what the nodes serve, and all snapshots that are here.
    async fn next(&self, golden: &GoldenName) -> Result<(Step, Vec<Listed>), DeskError> {
        let workshop = self.workshop()?;
        if self.is_only_booted(golden) {
            let first = workshop.first(golden).await?;
            return Ok((first.map_or(Step::Nothing, Step::Begin), workshop.list().await?));
        }
        let Some(served) = self.served().remove(golden) else { return Ok((Step::Nothing, Vec::new())) };
        if !workshop.is_shared() || self.is_own_alone(golden).await {
            return Ok((Step::Nothing, Vec::new()));
        }
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
        let Some((golden, _)) = golden else { return done };
        if !workshop.is_shared() || self.is_own_alone(&golden).await {
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
            Step::Begin(snapshot) => {
                let is_here = listed.iter().any(|listed| listed.id == snapshot);
                let begun = self.do_begin((&snapshot, is_here), workshop).await;
                begun.inspect_err(|error| self.tell_why(golden, error))
            }
        }
    }

    async fn do_begin(
        &self,
        (snapshot, is_here): (&SnapshotId, bool),
        workshop: &Arc<dyn Workshop>,
    ) -> Result<String, DeskError> {
        let say = |step: &str| self.say(step);
        if !is_here {
            workshop.fetch(snapshot, &say).await?;
        }
        let served = refresh::begin(&self.0.lifecycle, workshop, snapshot, &say).await;
        served.map_err(|error| DeskError::Refresh(Box::new(error)))
    }

    /// Has the newest reason be shown why a golden is only booted.
    fn tell_why(&self, golden: &GoldenName, error: &DeskError) {
        if let Some(runtime) = self.0.lifecycle.golden(golden).filter(|golden| golden.restore.is_err()) {
            let restore = Err(Chain(error).to_string());
            self.0.lifecycle.serve_too(GoldenRuntime { restore, ..(*runtime).clone() });
        }
    }
}
