//! The procedure that makes one shop: launch, personalize, probe.
//!
//! Called by provisioning (while a client waits) and by the pool's reconciler
//! (ahead of time). Phases and their undo:
//!
//! ```text
//! launch (slot, restore, adopt)   undone by the driver itself, or by destroy
//! personalize                     undone by destroy: the clone is thrown away
//! probe                           undone by destroy
//! ```
//!
//! Invariant: what [`Maker::make`] answers has its own identity already; until
//! then no route leads to it.

mod port;

use std::sync::Arc;
use std::time::Duration;

pub use self::port::Make;

use crate::engine::{ContainerEngine, LaunchError, Phase};
use crate::golden::recipe::Recipe;
use crate::id::{InstanceId, SnapshotId};
use crate::instance::{Access, Container, Source};

/// A shop that may be handed out.
#[derive(Debug)]
pub struct Made {
    /// Its processes.
    pub container: Container,
    /// Its address and credentials.
    pub access: Access,
    /// The snapshot it came from, if any.
    pub snapshot: Option<SnapshotId>,
    /// Restored or booted.
    pub made_by: Source,
    /// How long each phase took, in order.
    pub phases: Vec<(Phase, Duration)>,
}

/// Whether the first page is fetched before the shop is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstPage {
    /// Fetched: made ahead of time, so the visitor finds a warm worker.
    Fetched,
    /// Left to the visitor, who is waiting already.
    LeftToVisitor,
}

/// Makes shops of one golden with one engine.
#[derive(Debug)]
pub struct Maker {
    engine: Arc<dyn ContainerEngine>,
    recipe: Arc<Recipe>,
}

impl Maker {
    /// Makes one shop.
    ///
    /// # Errors
    /// [`LaunchError`] with the phase; nothing is left but what it names.
    ///
    /// # Cancel safety
    /// Not cancel-safe: spawn it.
    pub async fn make(&self, id: &InstanceId, first_page: FirstPage) -> Result<Made, LaunchError> {
        let _ = (id, first_page, &self.engine, &self.recipe);
        todo!()
    }

    /// The engine, to end, adopt and watch what this makes.
    #[must_use]
    pub fn engine(&self) -> &Arc<dyn ContainerEngine> {
        &self.engine
    }

    /// The golden's recipe.
    #[must_use]
    pub fn recipe(&self) -> &Arc<Recipe> {
        &self.recipe
    }
}
