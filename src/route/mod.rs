//! Which instance answers under which host name, and the port to whatever
//! leads a request there.
//!
//! Two tables stand behind the port. The one in [`memory`] is always there: the
//! built-in proxy reads it. With `ROUTER=caddy` a second one, [`caddy`], has
//! Caddy lead requests straight to the instances. [`Routes`] holds both and is
//! what making and ending use; [`keeper`] looks after the second one.
//!
//! ```text
//! ensure, replace, remove    what is wanted, from now on; at once and without failing
//! settle                     what is wanted is in force: in Caddy, where that is the router
//! repair                     the same, and what others changed meanwhile is undone
//! ```
//!
//! Invariants: the table in memory comes first when a route is made and first
//! when it is removed; the router's own site leads a host that it has no route
//! for to the built-in proxy. So a router without routes (it was down, it was
//! restarted, somebody emptied it) serves every shop all the same, and an
//! instance is handed out although its route is not in force yet: its address
//! works as soon as the router does. The other way round there is no such
//! latitude: an address is free for the next instance only when no route leads
//! to it any more.

pub mod activity;
pub mod caddy;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
mod ended;
pub mod keeper;
pub mod memory;
pub mod open;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use self::memory::{Lookup, MemoryRoutes};
use crate::error::ErrorKind;
use crate::failpoint;
use crate::id::InstanceId;

/// Instances and where their requests go.
pub type Targets = BTreeMap<InstanceId, SocketAddr>;

/// Why a table does not hold what is wanted.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// No process is there, so it serves nothing either.
    #[error("nobody listens at the router's admin API {address}")]
    Absent {
        /// CADDY_ADMIN_URL.
        address: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It does not answer, or not in time.
    #[error("the router's admin API {address} does not answer")]
    Unavailable {
        /// CADDY_ADMIN_URL.
        address: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The change waits for another one that hangs.
    #[error("the router did not take a change within {} s", .after.as_secs())]
    TooSlow {
        /// How long was waited.
        after: Duration,
    },
    /// An earlier change failed, and the keeper tries it again.
    #[error("the router has not taken an earlier change yet")]
    Pending,
    /// The router answers with an error.
    #[error("the router answers {status} to {doing}: {said}")]
    Refused {
        /// What was asked of it.
        doing: &'static str,
        /// Its status.
        status: u16,
        /// What it said.
        said: String,
    },
    /// The router answers something else than its documentation says.
    #[error("the router's answer to {doing} cannot be read")]
    Unreadable {
        /// What was asked of it.
        doing: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The router does not serve BASE_DOMAIN.
    #[error(
        "the router has no site for *.{base_domain}: start it with this project's Caddyfile and BASE_DOMAIN"
    )]
    NoSite {
        /// BASE_DOMAIN.
        base_domain: String,
    },
    /// Others kept changing the router's configuration.
    #[error("the router's configuration is being changed by others")]
    Busy,
}

impl RouteError {
    /// Whether the router leads nowhere: it is not there, or has none of this
    /// daemon's routes.
    #[must_use]
    pub const fn leads_nowhere(&self) -> bool {
        matches!(self, Self::Absent { .. } | Self::NoSite { .. })
    }

    /// What the caller can do.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Absent { .. }
            | Self::Unavailable { .. }
            | Self::TooSlow { .. }
            | Self::Pending
            | Self::NoSite { .. } => ErrorKind::Unavailable,
            Self::Busy => ErrorKind::Conflict,
            Self::Refused { .. } | Self::Unreadable { .. } => ErrorKind::Bug,
        }
    }
}

/// The port.
#[async_trait]
pub trait RouteTable: Send + Sync + fmt::Debug {
    /// Wants the route from now on; one that is wanted already stays.
    fn ensure(&self, id: &InstanceId, upstream: SocketAddr);

    /// Wants a route that is there to lead elsewhere; one that is not there is
    /// made, but for one that was removed.
    fn replace(&self, id: &InstanceId, upstream: SocketAddr);

    /// Wants it no more; absent is fine.
    fn remove(&self, id: &InstanceId);

    /// Answers when every change before this call is in force; many callers at
    /// once share the work. After an error the changes are still wanted, and
    /// [`RouteTable::repair`] is to be called until it succeeds; until then
    /// this fails at once. Cancel-safe.
    async fn settle(&self) -> Result<(), RouteError>;

    /// Reads the routes that are in force.
    async fn list(&self) -> Result<Targets, RouteError>;

    /// Has the table hold what is wanted, whatever became of it meanwhile;
    /// answers how many routes were wrong or missing. What is not of this
    /// daemon stays as it is.
    async fn repair(&self) -> Result<usize, RouteError>;
}

/// The routes of this host: the table in memory, and the router in front.
#[derive(Debug, Default)]
pub struct Routes {
    memory: Arc<MemoryRoutes>,
    router: Option<Arc<dyn RouteTable>>,
    /// What the keeper saw last.
    trouble: Mutex<Option<String>>,
}

impl Routes {
    /// The table in memory and, if there is one, the router.
    #[must_use]
    pub fn new(router: Option<Arc<dyn RouteTable>>) -> Self {
        Self { memory: Arc::default(), router, trouble: Mutex::default() }
    }

    /// The same, which remembers in that directory what has ended.
    #[must_use]
    pub fn remembering(self, state_dir: &Path) -> Self {
        Self { memory: Arc::new(MemoryRoutes::remembering(state_dir)), ..self }
    }

    /// The table in memory.
    #[must_use]
    pub const fn memory(&self) -> &Arc<MemoryRoutes> {
        &self.memory
    }

    /// The router in front, if there is one.
    #[must_use]
    pub const fn router(&self) -> Option<&Arc<dyn RouteTable>> {
        self.router.as_ref()
    }

    /// Looks a label up.
    #[must_use]
    pub fn lookup(&self, label: &str) -> Lookup {
        self.memory.lookup(label)
    }

    /// Wants a route, without waiting for the router.
    pub fn ensure(&self, id: &InstanceId, upstream: SocketAddr) {
        self.memory.ensure(id, upstream);
        if let Some(router) = &self.router {
            router.ensure(id, upstream);
            // Whoever removed it meanwhile may have come to the router first.
            if !matches!(self.memory.lookup(id.as_str()), Lookup::Found(_)) {
                router.remove(id);
            }
        }
    }

    /// Wants a route to lead elsewhere, without waiting for the router: its
    /// connections end. One that was removed stays so.
    pub fn replace(&self, id: &InstanceId, upstream: SocketAddr) {
        self.memory.replace(id, upstream);
        if let Some(router) = &self.router {
            router.replace(id, upstream);
            if !matches!(self.memory.lookup(id.as_str()), Lookup::Found(_)) {
                router.remove(id);
            }
        }
    }

    /// Waits until nothing leads to where a route was replaced from.
    ///
    /// A router that is not there leads nowhere, and comes back without routes.
    ///
    /// # Errors
    /// [`RouteError`]: the router may still lead there; call again later.
    pub async fn left(&self) -> Result<(), RouteError> {
        match self.settle().await {
            Err(error) if !error.leads_nowhere() => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Has an instance's route lead to whoever wakes it, without waiting for the
    /// router: its connections end, and the built-in proxy gets its requests.
    pub fn sleep(&self, id: &InstanceId) {
        self.memory.sleep(id);
        if let Some(router) = &self.router {
            router.remove(id);
        }
    }

    /// Has a removed id get a route again: its instance is opened anew, or was in the
    /// time of a former daemon.
    pub fn revive(&self, id: &InstanceId) {
        self.memory.revive(id);
    }

    /// Wants a route no more, without waiting for the router.
    pub fn remove(&self, id: &InstanceId) {
        self.memory.remove(id);
        if let Some(router) = &self.router {
            router.remove(id);
        }
    }

    /// Waits until the router has taken all changes.
    ///
    /// # Errors
    /// [`RouteError`]; the keeper tries again.
    pub async fn settle(&self) -> Result<(), RouteError> {
        failpoint::hit("route:before-settle").map_err(stopped)?;
        match &self.router {
            Some(router) => router.settle().await,
            None => Ok(()),
        }
    }

    /// Removes a route and waits until nothing leads to its instance any more.
    ///
    /// A router that is not there leads nowhere, and comes back without routes.
    ///
    /// # Errors
    /// [`RouteError`]: the router may still lead there; call again later.
    pub async fn withdraw(&self, id: &InstanceId) -> Result<(), RouteError> {
        self.remove(id);
        failpoint::hit("route:after-removal").map_err(stopped)?;
        self.left().await
    }

    /// Why the router does not have all routes, if so.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

fn stopped(error: std::io::Error) -> RouteError {
    RouteError::Unavailable { address: "of a fail point".into(), source: Box::new(error) }
}

#[cfg(test)]
mod tests;
