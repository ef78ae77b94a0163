//! What is served: the goldens of the settings, and those that were published since.
//!
//! Read by whoever hands out, makes or shows; changed by an operator's order
//! ([`crate::promote`]). Invariant: whoever has read it goes on with what it read, so a
//! golden that is served no more still ends its shops.

use std::sync::{Arc, PoisonError};

use super::GoldenRuntime;
use super::lifecycle::Lifecycle;
use crate::engine::ContainerEngine;
use crate::id::GoldenName;

/// What is served, as of one moment.
pub type Goldens = Arc<[Arc<GoldenRuntime>]>;

impl Lifecycle {
    /// A golden that is served.
    #[must_use]
    pub fn golden(&self, name: &GoldenName) -> Option<Arc<GoldenRuntime>> {
        self.goldens().iter().find(|golden| golden.name == *name).cloned()
    }

    /// All goldens that are served, the default one first.
    #[must_use]
    pub fn goldens(&self) -> Goldens {
        Arc::clone(&self.goldens.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves one more golden from now on, the last one; in the place of the one of its name,
    /// if there is one.
    pub fn serve_too(&self, golden: GoldenRuntime) {
        let golden = Arc::new(golden);
        self.change_goldens(|all| match all.iter_mut().find(|other| other.name == golden.name) {
            Some(other) => *other = golden,
            None => all.push(golden),
        });
        self.refill.now();
    }

    /// Serves a golden no more; its shops live on.
    pub fn serve_no_more(&self, name: &GoldenName) {
        self.change_goldens(|all| all.retain(|golden| golden.name != *name));
    }

    fn change_goldens(&self, change: impl FnOnce(&mut Vec<Arc<GoldenRuntime>>)) {
        let mut goldens = self.goldens.write().unwrap_or_else(PoisonError::into_inner);
        let mut all = goldens.to_vec();
        change(&mut all);
        *goldens = all.into();
    }

    /// Every driver of every golden.
    pub fn engines(&self) -> Vec<Arc<dyn ContainerEngine>> {
        self.goldens().iter().flat_map(|golden| golden.engines()).collect()
    }
}
