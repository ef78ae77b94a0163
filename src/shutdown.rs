//! The phases of the daemon's life, for everybody to see.
//!
//! ```text
//! starting -> serving -> draining -> stopped
//! ```
//!
//! Set by [`crate::app`] only. `starting`: the store is open, the former
//! daemon's instances are being adopted; nothing is served yet. `draining`:
//! no new instance is handed out, work under way ends. Readiness never comes
//! back once it is gone.

use tokio::sync::watch;

/// Where the daemon stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Looking at what the former daemon left.
    Starting,
    /// Everything is up.
    Serving,
    /// Being stopped: work under way ends, nothing begins.
    Draining,
    /// Nothing runs any more.
    Stopped,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Starting, Self::Serving, Self::Draining, Self::Stopped];

    /// The word used in answers and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Stopped => "stopped",
        }
    }
}

/// The one who moves the phase on.
#[derive(Debug)]
pub struct PhaseSetter(watch::Sender<Phase>);

impl Default for PhaseSetter {
    fn default() -> Self {
        Self(watch::channel(Phase::Starting).0)
    }
}

impl PhaseSetter {
    /// Moves on.
    pub fn enter(&self, phase: Phase) {
        tracing::info!(phase = phase.as_str(), "daemon phase");
        self.0.send_replace(phase);
    }

    /// A view of the phase.
    #[must_use]
    pub fn view(&self) -> watch::Receiver<Phase> {
        self.0.subscribe()
    }
}
