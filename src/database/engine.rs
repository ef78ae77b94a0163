//! A driver around a driver: each of its shops has a database of its own on the
//! shared server.
//!
//! A database is copied for the id of an instance to come, which the inner
//! driver names, and waits in the supply under it:
//!
//! ```text
//! making --copied--> waiting --next_id--> named --launch--> the instance's
//!    ^                  ^------unused--------'
//!    '-- whenever fewer wait than shall, and the server answers
//! ```
//!
//! One task fills the supply; [`SharedEngine::drain`] ends it. What a daemon
//! that died leaves of a supply has no record, so the next one takes it for
//! what it is, an orphan.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{DatabaseError, Template};
use crate::engine::{
    CleanupError, ContainerEngine, Dependency, DestroyError, LaunchError, Launched, OwnDatabase, Phase,
};
use crate::error::Chain;
use crate::id::InstanceId;
use crate::instance::trace::{Depth, Trace};
use crate::instance::{Container, EngineKind, Source};

/// How long after a failure the next copy is tried: what is missing (the
/// server, its disk) comes back in seconds at best.
const PAUSE: Duration = Duration::from_secs(2);

/// A driver whose shops share a database server.
#[derive(Debug)]
pub struct SharedEngine {
    supply: Arc<Supply>,
    filling: TaskTracker,
    stop: CancellationToken,
}

/// Databases that wait.
#[derive(Debug)]
struct Supply {
    inner: Arc<dyn ContainerEngine>,
    template: Template,
    /// How many shall wait.
    ahead: usize,
    ready: Mutex<Ready>,
    taken: Notify,
}

/// Whether enough databases wait.
enum Filled {
    Enough,
    NotYet,
}

#[derive(Debug, Default)]
struct Ready {
    /// Being copied: part of it is on the server.
    making: HashSet<InstanceId>,
    /// Nobody's yet.
    waiting: HashMap<InstanceId, OwnDatabase>,
    /// Named to somebody who is about to launch it or to give it back.
    named: HashMap<InstanceId, OwnDatabase>,
    /// Could not be copied whole: part of it may be on the server.
    broken: HashSet<InstanceId>,
}

impl Ready {
    fn knows(&self, id: &InstanceId) -> bool {
        self.making.contains(id) || self.waiting.contains_key(id) || self.named.contains_key(id)
    }
}

impl SharedEngine {
    /// Puts the driver around `inner` and begins to fill its supply, of `ahead`
    /// databases.
    #[must_use]
    pub fn start(inner: Arc<dyn ContainerEngine>, template: Template, ahead: usize) -> Self {
        let (ready, taken) = (Mutex::default(), Notify::new());
        let supply = Arc::new(Supply { inner, template, ahead, ready, taken });
        let (filling, stop) = (TaskTracker::new(), CancellationToken::new());
        filling.spawn(Arc::clone(&supply).keep_filled(stop.clone()));
        filling.close();
        Self { supply, filling, stop }
    }
}

impl Drop for SharedEngine {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Supply {
    fn ready(&self) -> MutexGuard<'_, Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn keep_filled(self: Arc<Self>, stop: CancellationToken) {
        let server = self.template.server();
        while stop.run_until_cancelled(server.is_up()).await.is_some() {
            let pause = match self.add_one(&stop).await {
                Ok(Filled::NotYet) => continue,
                Ok(Filled::Enough) => None,
                Err(error) => {
                    // An outage is told of by the server's own watch.
                    if server.outage().is_none() {
                        tracing::warn!(error = %Chain(&error), "no database can be copied ahead");
                    }
                    Some(PAUSE)
                }
            };
            let wait = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => self.taken.notified().await,
                }
            };
            stop.run_until_cancelled(wait).await;
        }
    }

    /// Copies one database, if too few wait. One that is half made when `stop`
    /// comes is dropped by [`SharedEngine::drain`].
    async fn add_one(&self, stop: &CancellationToken) -> Result<Filled, DatabaseError> {
        if self.ready().waiting.len() >= self.ahead {
            return Ok(Filled::Enough);
        }
        self.drop_broken().await;
        // So that the id named next is that of a slot that waits; without one
        // the launch makes its slot itself.
        if let Err(error) = self.inner.fill().await {
            tracing::debug!(error = %error, "no slot is ready for a database copied ahead");
        }
        let id = self.inner.next_id();
        self.ready().making.insert(id.clone());
        let Some(copied) = stop.run_until_cancelled(self.template.copy_for(&id)).await else {
            return Ok(Filled::NotYet);
        };
        let copied = {
            let mut ready = self.ready();
            ready.making.remove(&id);
            copied.map(|own| ready.waiting.insert(id.clone(), own))
        };
        match copied {
            Ok(_) => Ok(Filled::NotYet),
            Err(error) => {
                // Nobody gets this id any more; what is left of it is dropped when
                // the server answers again.
                self.ready().broken.insert(id.clone());
                self.discard_slot(&id).await;
                Err(error)
            }
        }
    }

    async fn drop_broken(&self) {
        let broken: Vec<InstanceId> = self.ready().broken.iter().cloned().collect();
        for id in broken {
            if self.drop_database(&id).await.is_none() {
                self.ready().broken.remove(&id);
            }
        }
    }

    /// Throws the slot of an id away that cannot be used again: something on
    /// the server may still have its name.
    async fn discard_slot(&self, id: &InstanceId) -> Vec<CleanupError> {
        self.inner.destroy(id, None).await.err().map(|error| error.cleanup).unwrap_or_default()
    }

    /// The database that waits under that id, or one that is copied now.
    async fn take(&self, id: &InstanceId) -> Result<OwnDatabase, DatabaseError> {
        let own = {
            let mut ready = self.ready();
            ready.named.remove(id).or_else(|| ready.waiting.remove(id))
        };
        self.taken.notify_one();
        match own {
            Some(own) => Ok(own),
            None => self.template.copy_for(id).await,
        }
    }

    async fn drop_database(&self, id: &InstanceId) -> Option<CleanupError> {
        {
            let mut ready = self.ready();
            ready.waiting.remove(id);
            ready.named.remove(id);
        }
        let dropped = self.template.server().drop_of(id).await;
        let left = |error| CleanupError { step: "drop the database", source: io::Error::other(error) };
        dropped.err().map(left)
    }
}

#[async_trait]
impl ContainerEngine for SharedEngine {
    fn kind(&self) -> EngineKind {
        self.supply.inner.kind()
    }

    fn source(&self) -> Source {
        self.supply.inner.source()
    }

    fn dependency(&self) -> Option<Dependency> {
        Some(Dependency { name: "database", outage: self.supply.template.server().outage() })
    }

    fn next_id(&self) -> InstanceId {
        let mut ready = self.supply.ready();
        let waiting = ready.waiting.keys().next().cloned();
        let Some((id, own)) = waiting.and_then(|id| ready.waiting.remove_entry(&id)) else {
            drop(ready);
            return self.supply.inner.next_id();
        };
        ready.named.insert(id.clone(), own);
        id
    }

    fn unused(&self, id: &InstanceId) {
        let mut ready = self.supply.ready();
        match ready.named.remove(id) {
            Some(own) => {
                ready.waiting.insert(id.clone(), own);
            }
            None => {
                drop(ready);
                self.supply.inner.unused(id);
            }
        }
    }

    async fn fill(&self) -> io::Result<()> {
        self.supply.inner.fill().await
    }

    async fn drain(&self) -> Vec<CleanupError> {
        self.stop.cancel();
        self.filling.wait().await;
        let ids: Vec<InstanceId> = {
            let ready = self.supply.ready();
            let named = ready.waiting.keys().chain(ready.named.keys());
            named.chain(&ready.making).chain(&ready.broken).cloned().collect()
        };
        let mut failed = Vec::new();
        for id in ids {
            failed.extend(self.supply.drop_database(&id).await);
            self.supply.ready().making.remove(&id);
            self.supply.inner.unused(&id);
        }
        failed.extend(self.supply.inner.drain().await);
        failed
    }

    async fn launch(&self, id: &InstanceId) -> Result<Launched, LaunchError> {
        let begun = Instant::now();
        let own = match self.supply.take(id).await {
            Ok(own) => own,
            Err(error) => {
                let mut cleanup = self.supply.discard_slot(id).await;
                cleanup.extend(self.supply.drop_database(id).await);
                let (kind, source) = (error.kind(), Box::new(error));
                return Err(LaunchError { id: id.clone(), phase: Phase::Database, kind, source, cleanup });
            }
        };
        let taken = begun.elapsed();
        match self.supply.inner.launch(id).await {
            Ok(mut launched) => {
                launched.phases.insert(0, (Phase::Database, taken));
                launched.database = Some(own);
                Ok(launched)
            }
            Err(mut error) => {
                error.cleanup.extend(self.supply.drop_database(id).await);
                Err(error)
            }
        }
    }

    async fn destroy(&self, id: &InstanceId, container: Option<&Container>) -> Result<(), DestroyError> {
        let destroyed = self.supply.inner.destroy(id, container).await;
        // Behind the container: it has connections.
        let left = self.supply.drop_database(id).await;
        match (destroyed, left) {
            (destroyed, None) => destroyed,
            (Ok(()), Some(left)) => Err(DestroyError { id: id.clone(), cleanup: vec![left] }),
            (Err(mut error), Some(left)) => {
                error.cleanup.push(left);
                Err(error)
            }
        }
    }

    async fn adopt(&self, id: &InstanceId, container: &Container) -> bool {
        self.supply.inner.adopt(id, container).await
    }

    async fn ended(&self, container: &Container) {
        self.supply.inner.ended(container).await;
    }

    async fn traces(&self, depth: Depth) -> io::Result<Vec<Trace>> {
        let mut traces = self.supply.inner.traces(depth).await?;
        traces.extend(self.supply.template.server().traces().await.map_err(io::Error::other)?);
        let ready = self.supply.ready();
        traces.retain(|trace| !trace.instance().is_some_and(|id| ready.knows(id)));
        Ok(traces)
    }

    async fn shut(&self, address: Ipv4Addr) -> io::Result<()> {
        self.supply.inner.shut(address).await
    }
}
