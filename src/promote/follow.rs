//! What the desk does by itself: follows what was promoted, published or withdrawn at
//! another node, tells what was here, and has a golden that is only booted be restored as
//! soon as there is a snapshot of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::shared::{self, Here, Shared, Standing, Step, Told};
use super::{Desk, DeskError, Order, Task, Workshop, refresh, switch_of};
use crate::error::Chain;
use crate::id::{GoldenName, SnapshotId};
use crate::provision::GoldenRuntime;
use crate::restore::Switch;
use crate::snapshot::served::Choice;

/// What is known when it is looked what is to be done.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// What the nodes have told; none when there are no others, or it cannot be found out.
    told: Option<Told>,
    /// What is written down here.
    choice: Choice,
}

impl Desk {
    /// How often to look whether something else is to be served; none where nothing is
    /// restored.
    #[must_use]
    pub fn looks_every(&self) -> Option<Duration> {
        self.0.workshop.as_ref().map(|workshop| workshop.looks_every())
    }

    /// What all nodes have told; none where there are no others.
    pub(super) async fn heard(&self) -> Result<Option<Told>, DeskError> {
        let workshop = self.workshop()?;
        Ok(if workshop.is_shared() { Some(workshop.told().await?) } else { None })
    }

    /// What is known now; what is not, and why not.
    pub(super) async fn known(&self) -> (Known, Result<(), DeskError>) {
        let choice = async { Ok::<_, DeskError>(self.workshop()?.choice().await?) };
        match (self.heard().await, choice.await) {
            (Ok(told), Ok(choice)) => (Known { told, choice }, Ok(())),
            (Err(error), Ok(choice)) => (Known { told: None, choice }, Err(error)),
            // Without it a published golden looks as if settings named it.
            (_, Err(error)) => (Known::default(), Err(error)),
        }
    }

    /// Goldens of which something may have to be done: those that are only booted, and where
    /// there are other nodes all that are here or there.
    pub(super) fn looked_at(&self, known: &Known) -> BTreeSet<GoldenName> {
        let goldens = self.0.lifecycle.goldens();
        let looked_at = goldens.iter().filter(|golden| known.told.is_some() || golden.restore.is_err());
        let here = looked_at.map(|golden| golden.name.clone());
        here.chain(known.told.iter().flatten().map(|(golden, _)| golden.clone())).collect()
    }

    /// What is to be done about a golden; none: nothing.
    ///
    /// # Errors
    /// It cannot be found out.
    pub(super) async fn wanted(&self, golden: &GoldenName, known: &Known) -> Result<Option<Step>, DeskError> {
        Ok(Some(self.next(golden, known).await?).filter(|step| *step != Step::Nothing))
    }

    /// Begins to do that; it is found out anew when it is done.
    ///
    /// # Errors
    /// [`DeskError`]; nothing was begun.
    pub(super) fn follow(&self, golden: &GoldenName, wanted: &Step) -> Result<Task, DeskError> {
        match wanted {
            Step::Begin(_) => self.begin(Order::Begin(golden.clone())),
            _ => self.begin(Order::Follow(golden.clone())),
        }
    }

    fn is_only_booted(&self, golden: &GoldenName) -> bool {
        self.0.lifecycle.golden(golden).is_some_and(|golden| golden.restore.is_err())
    }

    /// What is to be done about what the nodes serve.
    async fn next(&self, golden: &GoldenName, known: &Known) -> Result<Step, DeskError> {
        let choice = &known.choice;
        let step = match &known.told {
            Some(told) => shared::next(self.here(golden, choice), told.get(golden)),
            None => Step::Nothing,
        };
        match step {
            Step::Withdraw(_) | Step::Clash(_) => Ok(step),
            _ if self.is_only_booted(golden) => {
                let first = self.workshop()?.first(golden).await?;
                Ok(first.map_or(Step::Nothing, Step::Begin))
            }
            // It was tried here. The operator may promote it here, or another one anywhere.
            Step::Follow(shared) | Step::Introduce(shared) if choice.refused(&shared.snapshot).is_some() => {
                Ok(Step::Nothing)
            }
            step => Ok(step),
        }
    }

    fn here(&self, golden: &GoldenName, choice: &Choice) -> Here {
        let runtime = self.0.lifecycle.golden(golden);
        let served = runtime.as_deref().and_then(switch_of).map(Switch::served);
        let promoted = choice.promoted(golden);
        let is_served = served.is_none() || promoted == served.as_ref();
        let said_at = choice.said_at(golden).filter(|_| promoted.is_some() && is_served);
        match (choice.is_published(golden), runtime) {
            (true, _) => Here::Published { served, said_at },
            (false, Some(_)) => Here::Configured { served, said_at },
            (false, None) => Here::Absent { withdrawn_at: choice.withdrawn(golden) },
        }
    }

    /// Tells the other nodes, if there are any, what is served here since that was said at
    /// that time; answers what was done with what came of that.
    pub(super) async fn share(
        &self,
        workshop: &Arc<dyn Workshop>,
        (snapshot, at): (&SnapshotId, Timestamp),
        done: String,
    ) -> String {
        let golden = self.served().into_iter().find(|(_, served)| served == snapshot);
        let Some((golden, _)) = golden.filter(|_| workshop.is_shared()) else { return done };
        let told = async {
            let is_published = workshop.choice().await?.is_published(&golden);
            let standing = if is_published { Standing::Published } else { Standing::Promoted };
            let shared = Shared { snapshot: snapshot.clone(), at, standing };
            workshop.share(&golden, &shared, &|step| self.say(step)).await
        };
        match told.await {
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
        let (known, is_known) = self.known().await;
        if !self.is_only_booted(golden) {
            is_known?;
        }
        let lifecycle = &self.0.lifecycle;
        let served = match self.next(golden, &known).await? {
            Step::Nothing => return Ok("nothing to do".to_owned()),
            Step::Clash(_) => return Err(DeskError::Clash { golden: golden.clone() }),
            Step::Tell(shared) => {
                workshop.share(golden, &shared, &say).await?;
                return Ok(match shared.standing {
                    Standing::Withdrawn => format!("{golden} is withdrawn, the other nodes are told"),
                    _ => format!("{} is served, the other nodes are told", shared.snapshot),
                });
            }
            Step::Withdraw(shared) => return self.do_follow_out(golden, shared.at, workshop).await,
            Step::Begin(snapshot) => {
                let begun = self.do_begin(golden, &snapshot, workshop).await;
                return begun.inspect_err(|error| self.tell_why(golden, error));
            }
            Step::Follow(Shared { snapshot, at, .. }) => {
                self.have_here(golden, &snapshot, workshop).await?;
                refresh::refresh(lifecycle, workshop, (&snapshot, at), &say).await
            }
            Step::Introduce(Shared { snapshot, at, .. }) => {
                self.have_here(golden, &snapshot, workshop).await?;
                refresh::introduce(lifecycle, workshop, (&snapshot, at), None, &say).await
            }
        };
        served.map_err(|error| DeskError::Refresh(Box::new(error)))
    }

    /// Fetches what is not here; what is here has to be of that golden, too, whatever was told.
    async fn have_here(
        &self,
        golden: &GoldenName,
        snapshot: &SnapshotId,
        workshop: &Arc<dyn Workshop>,
    ) -> Result<(), DeskError> {
        let listed = workshop.list().await?.into_iter().find(|listed| listed.id == *snapshot);
        match listed {
            None => Ok(workshop.fetch(golden, snapshot, &|step| self.say(step)).await?),
            Some(listed) if listed.golden.as_ref().is_some_and(|of| of != golden) => {
                Err(DeskError::OtherGolden { id: snapshot.clone(), golden: golden.clone() })
            }
            Some(_) => Ok(()),
        }
    }

    async fn do_begin(
        &self,
        golden: &GoldenName,
        snapshot: &SnapshotId,
        workshop: &Arc<dyn Workshop>,
    ) -> Result<String, DeskError> {
        let say = |step: &str| self.say(step);
        self.have_here(golden, snapshot, workshop).await?;
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
