//! Handing instances out and taking them back: acquire, show, extend, reset, keep,
//! open, release.
//!
//! Called by the API. An acquire takes the first of these that works, and the
//! answer, the metrics and the log say which one it was:
//!
//! ```text
//! (something that the shops stand on is down: refused, there is no use in any)
//! key held -> the same instance again, also for a client at its limit
//!   (an operator has drained the pool: refused from here on)
//!   (from here on the acquire is counted: limits)
//! pool     -> one atomic claim in the store
//! restore  -> made while the client waits (clients go before the pool)
//! cold     -> booted while the client waits, if COLD_START allows
//! (another node makes one, if none of these works here: elsewhere)
//! ```
//!
//! Who would have to wait for others longer than ACQUIRE_WAIT is refused at once,
//! and who hangs up before its instance is begun with gives its place to the next
//! ([`gate`]): else a service that is offered more than it can make would make
//! shops for clients that have left, and nobody would get an answer any more.
//!
//! Invariants: an instance is handed out once; never more than MAX_INSTANCES;
//! work that was begun goes on when its client hangs up, and what it made then goes to the
//! pool (restored, not yet handed out), is kept for the client's return (it gave
//! an idempotency key), or is released.
//!
//! Not responsible for: filling the pool, expiry ([`crate::pool`]).

mod acquire;
pub mod audit;
mod change;
mod elsewhere;
pub mod errors;
mod events;
mod flight;
pub mod gate;
mod goldens;
mod lease;
mod ledger;
mod lifecycle;
pub mod limits;
mod memory;
pub mod pulse;
mod reset;
mod saved;
mod saved_error;
mod sleep;
pub mod standing;
mod steer;
mod tally;
#[cfg(test)]
mod tests;
pub mod ttl;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::SignedDuration;

pub use self::events::Events;
pub use self::goldens::Goldens;
pub use self::ledger::{Doing, Found};
pub use self::lifecycle::{Ended, Lifecycle, Order, Parts};
use self::limits::{Limits, Standing};
pub use self::saved::{Keeping, Kept, OpenRequest};
pub use self::saved_error::SavedError;
pub use self::tally::{Failure, GoldenTally, Quantiles, Tally};
use crate::client::Client;
use crate::config::{ColdStart, Config};
use crate::engine::ContainerEngine;
use crate::golden::recipe::{About, Recipe};
use crate::id::GoldenName;
use crate::instance::{Instance, Source};
use crate::peers::Peers;
use crate::restore::Make;

/// One golden as it is served.
#[derive(Debug, Clone)]
pub struct GoldenRuntime {
    /// Its name.
    pub name: GoldenName,
    /// Shown to people.
    pub title: String,
    /// Told to people beside it.
    pub about: GoldenAbout,
    /// How it is restored, or why it cannot be: no snapshot, or none that fits
    /// this host. In Docker mode, where nothing is restored and nothing is
    /// fallen back to, the one way to boot it.
    pub restore: Result<Arc<dyn Make>, String>,
    /// How it is booted from the image; none when that is not possible.
    pub cold: Option<Arc<dyn Make>>,
}

/// What people are told of a golden beside its title.
#[derive(Debug, Clone, Default)]
pub struct GoldenAbout {
    /// Of the shop's software.
    pub version: String,
    /// The software's own name and the shop's language.
    pub said: About,
    /// Whether a login link can lead to a module's page.
    pub opens_modules: bool,
}

impl GoldenAbout {
    /// What a recipe says.
    #[must_use]
    pub fn of(recipe: &Recipe) -> Self {
        Self {
            version: recipe.version.clone(),
            said: recipe.about.clone(),
            opens_modules: recipe.admin.one_click_module,
        }
    }
}

impl GoldenRuntime {
    /// Its drivers.
    #[must_use]
    pub fn engines(&self) -> Vec<Arc<dyn ContainerEngine>> {
        self.restore.iter().chain(&self.cold).map(|maker| Arc::clone(maker.engine())).collect()
    }

    /// Whether any of its shops may be a booted one.
    #[must_use]
    pub fn may_be_booted(&self) -> bool {
        self.engines().iter().any(|engine| engine.source() == Source::Cold)
    }

    /// What its restored shops stand on and that does not answer now: its name,
    /// and why.
    #[must_use]
    pub fn outage(&self) -> Option<(&'static str, String)> {
        let dependency = self.restore.as_ref().ok()?.engine().dependency()?;
        Some((dependency.name, dependency.outage?))
    }

    /// How the pool makes one; none when there is no way.
    #[must_use]
    pub fn warm_maker(&self, cold_start: ColdStart) -> Option<&Arc<dyn Make>> {
        match (&self.restore, cold_start) {
            (Ok(maker), _) => Some(maker),
            (Err(_), ColdStart::Allowed) => self.cold.as_ref(),
            (Err(_), ColdStart::Refused) => None,
        }
    }
}

/// What a client asks for.
#[derive(Debug, Clone, Default)]
pub struct AcquireRequest {
    /// Which golden; none takes the first one served.
    pub golden: Option<String>,
    /// For how long; none takes DEFAULT_TTL.
    pub ttl: Option<SignedDuration>,
    /// The same key of the same client gets the same instance for as long as it
    /// lives.
    pub idempotency_key: Option<String>,
    /// Who asks.
    pub client: Client,
    /// Whose the key is, if not the client's: a visitor who is known by more than
    /// an address. Never what a client may choose.
    pub holder: Option<String>,
}

/// What a client gets.
#[derive(Debug, Clone)]
pub struct Acquired {
    /// The instance, assigned.
    pub instance: Instance,
    /// Whether it was handed over now or before, under the same key.
    pub handed: Handed,
    /// How long it took.
    pub took: Duration,
    /// How the client stands in the limits, if this was counted.
    pub standings: Vec<Standing>,
}

/// Whether this answer handed the instance over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handed {
    /// It did, from there.
    Now(Source),
    /// An earlier one with the same key did.
    Before,
}

/// The rules of handing out.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// When the client names no time.
    pub default_ttl: SignedDuration,
    /// The longest time after the hand-over.
    pub max_ttl: SignedDuration,
    /// Whether a cold start is an acceptable last resort.
    pub cold_start: ColdStart,
    /// How long a client may have to wait for others before its instance is made.
    pub wait: Duration,
    /// How long a client waits at most; the work goes on after it.
    pub patience: Duration,
    /// How often one client may acquire.
    pub limits: Limits,
}

impl Terms {
    /// The rules that the settings state.
    ///
    /// A client's patience covers a restore that runs into its deadline and the
    /// cold start after it; proxies in front give up at about the same time.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            default_ttl: config.default_ttl,
            max_ttl: config.max_ttl,
            cold_start: config.cold_start,
            wait: config.acquire_wait,
            patience: config.restore_deadline() * 2,
            limits: Limits { hourly: config.rate_limit_hourly, daily: config.rate_limit_daily },
        }
    }
}

/// Hands instances out and takes them back.
#[derive(Debug)]
pub struct Provisioner {
    lifecycle: Arc<Lifecycle>,
    terms: Terms,
    flights: flight::Flights,
    clients: standing::Clients,
    /// Where shops are kept; none where none is.
    keeping: Option<Keeping>,
    stopping: AtomicBool,
    /// The other nodes, if this daemon is one of several.
    peers: Option<Arc<Peers>>,
}

impl Provisioner {
    /// Puts the parts together; nothing is started.
    #[must_use]
    pub fn new(lifecycle: Arc<Lifecycle>, terms: Terms) -> Self {
        let (flights, clients) = (flight::Flights::default(), standing::Clients::default());
        let stopping = AtomicBool::new(false);
        Self { lifecycle, terms, flights, clients, keeping: None, stopping, peers: None }
    }

    /// Has it keep shops there.
    #[must_use]
    pub fn keeping_in(self, keeping: Keeping) -> Self {
        Self { keeping: Some(keeping), ..self }
    }

    /// The procedures and what they stand on.
    #[must_use]
    pub const fn lifecycle(&self) -> &Arc<Lifecycle> {
        &self.lifecycle
    }

    /// The rules of handing out.
    #[must_use]
    pub const fn terms(&self) -> Terms {
        self.terms
    }

    /// Refuses further acquires; those under way go on.
    pub fn stop_intake(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}
