//! The table in memory: which instance answers under which host label.
//!
//! Always there: the built-in proxy reads it on every request, the API tells by
//! it an expired instance from one that never was, and a router in front falls
//! back on both. A new daemon fills it from the store, and with what it knows of those
//! that have ended ([`super::ended`]).
//!
//! Invariants: a label is an instance id and ids are never used twice; a route
//! that is replaced is another route of a later `epoch`; replacing or removing one
//! cancels its `gone` token, and with it every connection that was opened by it;
//! an id whose route was removed gets none again, unless its instance is opened
//! anew from what was kept of it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::activity::Activity;
use super::ended::Ended;
use super::{RouteError, RouteTable, Targets};
use crate::error::Chain;
use crate::id::InstanceId;

/// How many removed labels are remembered, to answer 410 instead of 404.
/// At 60 bytes each this is about a megabyte; older ones become unknown.
pub(super) const REMEMBERED: usize = 16_384;

/// Where an instance's requests go.
#[derive(Debug, Clone)]
pub struct Route {
    /// The instance.
    pub id: InstanceId,
    /// Its web server.
    pub upstream: SocketAddr,
    /// Which of the instance's routes this is: connections are kept for one only.
    pub epoch: u16,
    /// What is going on there.
    pub activity: Arc<Activity>,
    /// Cancelled when the route is replaced or removed.
    pub gone: CancellationToken,
}

impl Route {
    fn first(id: &InstanceId, upstream: SocketAddr) -> Self {
        let (activity, gone) = (Arc::default(), CancellationToken::new());
        Self { id: id.clone(), upstream, epoch: 1, activity, gone }
    }
}

/// What is known about a label.
#[derive(Debug, Clone)]
pub enum Lookup {
    /// It leads to an instance.
    Found(Route),
    /// It leads to one that sleeps.
    Asleep(InstanceId),
    /// It led to one whose time is over.
    Gone,
    /// Nothing was ever there, or too long ago.
    Unknown,
}

/// All routes of this host.
#[derive(Debug, Default)]
pub struct MemoryRoutes {
    /// A std lock: held for one map operation, never across an await.
    routes: RwLock<Routes>,
    /// Where those that have ended are remembered; none where nothing outlives the
    /// process. A std lock: held for one line, never across an await.
    ended: Mutex<Option<Ended>>,
}

#[derive(Debug, Default)]
struct Routes {
    live: HashMap<String, Route>,
    /// Those that sleep, with the epoch of the route that they had.
    asleep: HashMap<String, (InstanceId, u16)>,
    gone: HashSet<String>,
    gone_in_order: VecDeque<String>,
}

impl MemoryRoutes {
    /// A table that remembers what has ended in that directory; if it cannot, it does
    /// without.
    #[must_use]
    pub fn remembering(state_dir: &Path) -> Self {
        let (ended, labels) = match Ended::open(state_dir, Timestamp::now()) {
            Ok((ended, labels)) => (Some(ended), labels),
            Err(error) => {
                tell_forgotten(&error);
                (None, Vec::new())
            }
        };
        let gone = labels.iter().cloned().collect();
        let routes = Routes { gone, gone_in_order: labels.into(), ..Routes::default() };
        Self { routes: RwLock::new(routes), ended: Mutex::new(ended) }
    }

    /// Outlasts the process, if it can.
    fn remember(&self, id: &InstanceId) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Err(error)) = ended.as_mut().map(|ended| ended.add(id, Timestamp::now())) {
            // Told once.
            *ended = None;
            tell_forgotten(&error);
        }
    }

    /// Looks a label up.
    #[must_use]
    pub fn lookup(&self, label: &str) -> Lookup {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((id, _)) = routes.asleep.get(label) {
            return Lookup::Asleep(id.clone());
        }
        match routes.live.get(label) {
            Some(route) => Lookup::Found(route.clone()),
            None if routes.gone.contains(label) => Lookup::Gone,
            None => Lookup::Unknown,
        }
    }

    /// How many routes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.routes.read().unwrap_or_else(PoisonError::into_inner).live.len()
    }

    /// Has a label lead to an instance that sleeps, until it is led elsewhere; one
    /// that was removed stays so.
    pub fn sleep(&self, id: &InstanceId) {
        let route = {
            let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
            if routes.gone.contains(id.as_str()) {
                return;
            }
            let route = routes.live.remove(id.as_str());
            let before = routes.asleep.get(id.as_str()).map_or(0, |(_, epoch)| *epoch);
            let epoch = route.as_ref().map_or(before, |route| route.epoch);
            routes.asleep.insert(id.as_str().to_owned(), (id.clone(), epoch));
            route
        };
        // Outside the lock: it wakes the connections' tasks.
        if let Some(route) = route {
            route.gone.cancel();
        }
    }

    /// Has a removed id get a route again: its instance is opened anew, or was in the
    /// time of a former daemon.
    pub fn revive(&self, id: &InstanceId) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        if routes.gone.remove(id.as_str()) {
            routes.gone_in_order.retain(|gone| gone != id.as_str());
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[async_trait]
impl RouteTable for MemoryRoutes {
    /// One that is there already stays, with its connections. An id whose route
    /// was removed stays without: whoever adds it again lost a race against the
    /// instance's end.
    fn ensure(&self, id: &InstanceId, upstream: SocketAddr) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        if routes.gone.contains(id.as_str()) {
            return;
        }
        routes.live.entry(id.as_str().to_owned()).or_insert_with(|| Route::first(id, upstream));
    }

    fn replace(&self, id: &InstanceId, upstream: SocketAddr) {
        let replaced = {
            let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
            if routes.gone.contains(id.as_str()) {
                return;
            }
            let mut route = Route::first(id, upstream);
            let asleep = routes.asleep.remove(id.as_str()).map(|(_, epoch)| epoch);
            if let Some(epoch) = routes.live.get(id.as_str()).map(|present| present.epoch).or(asleep) {
                // Never 0, which is no port: an epoch stands where one would.
                route.epoch = epoch.checked_add(1).unwrap_or(1);
            }
            routes.live.insert(id.as_str().to_owned(), route)
        };
        // Outside the lock, as below.
        if let Some(route) = replaced {
            route.gone.cancel();
        }
    }

    /// Ends the route's connections; the label is remembered as gone, were it
    /// there or not.
    fn remove(&self, id: &InstanceId) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        let removed = routes.live.remove(id.as_str());
        routes.asleep.remove(id.as_str());
        let is_news = routes.gone.insert(id.as_str().to_owned());
        if is_news {
            routes.gone_in_order.push_back(id.as_str().to_owned());
        }
        if routes.gone_in_order.len() > REMEMBERED
            && let Some(oldest) = routes.gone_in_order.pop_front()
        {
            routes.gone.remove(&oldest);
        }
        drop(routes);
        // Outside the lock: it wakes the connections' tasks.
        if let Some(route) = removed {
            route.gone.cancel();
        }
        if is_news {
            self.remember(id);
        }
    }

    /// A change is in force when it is made.
    async fn settle(&self) -> Result<(), RouteError> {
        Ok(())
    }

    async fn list(&self) -> Result<Targets, RouteError> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        Ok(routes.live.values().map(|route| (route.id.clone(), route.upstream)).collect())
    }

    /// Nobody else changes it.
    async fn repair(&self) -> Result<usize, RouteError> {
        Ok(0)
    }
}

fn tell_forgotten(error: &std::io::Error) {
    tracing::warn!(error = %Chain(error), "a restart makes ended instances unknown ones: STATE_DIR takes no file");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::conformance;

    #[tokio::test]
    async fn it_is_a_route_table() {
        conformance::suite(&MemoryRoutes::default()).await;
    }

    fn upstream() -> SocketAddr {
        SocketAddr::from(([10, 77, 0, 2], 80))
    }

    #[test]
    fn a_removed_route_is_gone_and_its_connections_end() {
        let (table, id) = (MemoryRoutes::default(), InstanceId::random());
        assert!(matches!(table.lookup(id.as_str()), Lookup::Unknown));
        table.ensure(&id, upstream());
        let Lookup::Found(route) = table.lookup(id.as_str()) else { panic!("it was added") };
        table.remove(&id);
        table.remove(&id);
        assert!(route.gone.is_cancelled());
        assert!(matches!(table.lookup(id.as_str()), Lookup::Gone));
        table.ensure(&id, upstream());
        assert!(table.is_empty(), "an ended instance gets no route again");
    }

    #[test]
    fn adding_again_keeps_the_connections() {
        let (table, id) = (MemoryRoutes::default(), InstanceId::random());
        table.ensure(&id, upstream());
        let Lookup::Found(route) = table.lookup(id.as_str()) else { panic!("it was added") };
        table.ensure(&id, upstream());
        assert!(!route.gone.is_cancelled());
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_replaced_route_leads_elsewhere_and_its_connections_end() {
        let (table, id) = (MemoryRoutes::default(), InstanceId::random());
        table.ensure(&id, upstream());
        let Lookup::Found(before) = table.lookup(id.as_str()) else { panic!("it was added") };
        let other = SocketAddr::from(([10, 77, 0, 3], 80));
        table.replace(&id, other);
        let Lookup::Found(after) = table.lookup(id.as_str()) else { panic!("it is there") };
        assert_eq!((after.upstream, after.gone.is_cancelled()), (other, false));
        assert!(before.gone.is_cancelled() && before.epoch != after.epoch);
        table.remove(&id);
        table.replace(&id, other);
        assert!(matches!(table.lookup(id.as_str()), Lookup::Gone), "an ended instance gets no route again");
    }

    #[test]
    fn a_sleeping_instances_label_leads_to_its_waking_and_its_connections_end() {
        let (table, id) = (MemoryRoutes::default(), InstanceId::random());
        table.ensure(&id, upstream());
        let Lookup::Found(before) = table.lookup(id.as_str()) else { panic!("it was added") };
        table.sleep(&id);
        table.sleep(&id);
        assert!(before.gone.is_cancelled());
        assert!(matches!(table.lookup(id.as_str()), Lookup::Asleep(asleep) if asleep == id));
        table.replace(&id, upstream());
        let Lookup::Found(after) = table.lookup(id.as_str()) else { panic!("it is awake") };
        assert_ne!(after.epoch, before.epoch);
        table.sleep(&id);
        table.remove(&id);
        table.sleep(&id);
        assert!(matches!(table.lookup(id.as_str()), Lookup::Gone), "it ended in its sleep");
    }

    #[test]
    fn an_instance_that_is_opened_anew_gets_a_route_again() {
        let (table, id) = (MemoryRoutes::default(), InstanceId::random());
        table.ensure(&id, upstream());
        table.remove(&id);
        table.revive(&id);
        assert!(matches!(table.lookup(id.as_str()), Lookup::Unknown));
        table.ensure(&id, upstream());
        assert!(matches!(table.lookup(id.as_str()), Lookup::Found(_)));
        table.remove(&id);
        assert!(matches!(table.lookup(id.as_str()), Lookup::Gone));
    }

    #[test]
    fn what_has_ended_is_gone_to_the_next_daemon_too_unless_it_was_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let [ended, opened] = [InstanceId::random(), InstanceId::random()];
        let table = MemoryRoutes::remembering(dir.path());
        table.remove(&ended);
        table.remove(&opened);
        let next = MemoryRoutes::remembering(dir.path());
        next.revive(&opened);
        next.ensure(&opened, upstream());
        assert!(matches!(next.lookup(ended.as_str()), Lookup::Gone));
        assert!(matches!(next.lookup(opened.as_str()), Lookup::Found(_)));
    }

    #[test]
    fn the_memory_of_gone_labels_is_bounded() {
        let (table, first) = (MemoryRoutes::default(), InstanceId::random());
        table.remove(&first);
        for _ in 0..REMEMBERED {
            table.remove(&InstanceId::random());
        }
        assert!(matches!(table.lookup(first.as_str()), Lookup::Unknown));
    }
}
