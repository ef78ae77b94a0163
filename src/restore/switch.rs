//! A maker whose snapshot can be changed while shops are made.
//!
//! Put around a golden's restoring maker by whoever assembles it; turned by the
//! refresh ([`crate::promote`]). To everybody else it is a maker and an engine
//! like any other.
//!
//! Invariants: a name is launched by the maker that gave it, whatever was turned
//! in between, since what waits under it is that maker's; a shop is ended,
//! adopted and watched by whichever maker is current, since those find a shop by
//! its id alone.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{FirstPage, Made, Make, Shop};
use crate::engine::{
    CleanupError, ContainerEngine, Dependency, DestroyError, Freeze, FreezeError, LaunchError, Launched,
};
use crate::id::{InstanceId, SnapshotId};
use crate::instance::trace::{Depth, Trace};
use crate::instance::{Container, EngineKind, Source};

/// What is made of a snapshot.
#[derive(Debug, Clone)]
pub struct Served {
    /// Which.
    pub snapshot: SnapshotId,
    /// By whom.
    pub maker: Arc<dyn Make>,
}

/// The maker.
pub struct Switch {
    state: Arc<Mutex<State>>,
    engine: Arc<dyn ContainerEngine>,
}

struct State {
    served: Served,
    /// Makers of names that were given and not launched yet.
    named: HashMap<InstanceId, Arc<dyn Make>>,
}

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Switch").field("snapshot", &self.served()).finish_non_exhaustive()
    }
}

/// A std lock: held for one map operation, never across an await.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Switch {
    /// Begins with that snapshot.
    #[must_use]
    pub fn new(served: Served) -> Self {
        let state = Arc::new(Mutex::new(State { served, named: HashMap::new() }));
        Self { engine: Arc::new(SwitchEngine(Arc::clone(&state))), state }
    }

    /// Of which snapshot shops are made now.
    #[must_use]
    pub fn served(&self) -> SnapshotId {
        lock(&self.state).served.snapshot.clone()
    }

    /// Makes shops of another snapshot from now on; answers the maker before, of
    /// which what it has made ahead is to be drained.
    #[must_use]
    pub fn turn(&self, to: Served) -> Arc<dyn Make> {
        std::mem::replace(&mut lock(&self.state).served, to).maker
    }

    fn maker_of(&self, id: &InstanceId) -> Arc<dyn Make> {
        let mut state = lock(&self.state);
        state.named.remove(id).unwrap_or_else(|| Arc::clone(&state.served.maker))
    }
}

#[async_trait]
impl Make for Switch {
    async fn make(&self, shop: Shop<'_>, first_page: FirstPage) -> Result<Made, LaunchError> {
        self.maker_of(shop.slot).make(shop, first_page).await
    }

    fn engine(&self) -> &Arc<dyn ContainerEngine> {
        &self.engine
    }

    fn log_files(&self) -> Vec<String> {
        let maker = Arc::clone(&lock(&self.state).served.maker);
        maker.log_files()
    }

    fn switch(&self) -> Option<&Switch> {
        Some(self)
    }
}

/// Its engine.
struct SwitchEngine(Arc<Mutex<State>>);

impl fmt::Debug for SwitchEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SwitchEngine").field(&lock(&self.0).served.snapshot).finish()
    }
}

impl SwitchEngine {
    fn current(&self) -> Arc<dyn ContainerEngine> {
        Arc::clone(lock(&self.0).served.maker.engine())
    }
}

#[async_trait]
impl ContainerEngine for SwitchEngine {
    fn kind(&self) -> EngineKind {
        self.current().kind()
    }

    fn source(&self) -> Source {
        self.current().source()
    }

    fn dependency(&self) -> Option<Dependency> {
        self.current().dependency()
    }

    fn next_id(&self) -> InstanceId {
        let maker = Arc::clone(&lock(&self.0).served.maker);
        let id = maker.engine().next_id();
        lock(&self.0).named.insert(id.clone(), maker);
        id
    }

    fn unused(&self, id: &InstanceId) {
        let maker = lock(&self.0).named.remove(id);
        match maker {
            Some(maker) => maker.engine().unused(id),
            None => self.current().unused(id),
        }
    }

    async fn fill(&self) -> io::Result<()> {
        self.current().fill().await
    }

    async fn drain(&self) -> Vec<CleanupError> {
        self.current().drain().await
    }

    async fn health(&self) -> Option<io::Result<()>> {
        self.current().health().await
    }

    async fn launch(&self, id: &InstanceId) -> Result<Launched, LaunchError> {
        let maker = lock(&self.0).named.remove(id);
        match maker {
            Some(maker) => maker.engine().launch(id).await,
            None => self.current().launch(id).await,
        }
    }

    async fn destroy(&self, id: &InstanceId, container: Option<&Container>) -> Result<(), DestroyError> {
        lock(&self.0).named.remove(id);
        self.current().destroy(id, container).await
    }

    async fn adopt(&self, id: &InstanceId, container: &Container) -> bool {
        self.current().adopt(id, container).await
    }

    async fn ended(&self, container: &Container) {
        self.current().ended(container).await;
    }

    async fn freeze(&self, freeze: Freeze<'_>) -> Result<(), FreezeError> {
        self.current().freeze(freeze).await
    }

    fn next_bare_id(&self) -> InstanceId {
        self.current().next_bare_id()
    }

    async fn thaw(&self, slot: &InstanceId, from: &InstanceId) -> Result<Launched, LaunchError> {
        self.current().thaw(slot, from).await
    }

    async fn forget(&self, id: &InstanceId) -> io::Result<()> {
        self.current().forget(id).await
    }

    async fn frozen(&self) -> io::Result<Vec<InstanceId>> {
        self.current().frozen().await
    }

    async fn fell_asleep(&self, id: &InstanceId, container: &Container) -> bool {
        self.current().fell_asleep(id, container).await
    }

    async fn traces(&self, depth: Depth) -> io::Result<Vec<Trace>> {
        self.current().traces(depth).await
    }

    async fn shut(&self, address: Ipv4Addr) -> io::Result<()> {
        self.current().shut(address).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::EngineKind;
    use crate::testing::Script;

    fn served(script: &Arc<Script>, snapshot: &str) -> Served {
        let snapshot: SnapshotId = snapshot.parse().unwrap();
        Served { maker: script.maker_of(&snapshot), snapshot }
    }

    #[tokio::test]
    async fn a_name_is_launched_by_the_maker_that_gave_it() {
        let (old, new) = (Script::quiet(EngineKind::Criu), Script::quiet(EngineKind::Criu));
        let switch = Switch::new(served(&old, "shop-1-a"));
        let given = switch.engine().next_id();
        drop(switch.turn(served(&new, "shop-2-b")));
        let made = switch.make(Shop::new(&given), FirstPage::Fetched).await.unwrap();
        assert_eq!(made.snapshot.unwrap().as_str(), "shop-1-a");
        let next = switch.engine().next_id();
        let made = switch.make(Shop::new(&next), FirstPage::Fetched).await.unwrap();
        assert_eq!(made.snapshot.unwrap().as_str(), "shop-2-b");
        assert_eq!((old.attempts(), new.attempts(), switch.served().as_str()), (1, 1, "shop-2-b"));
    }

    #[tokio::test]
    async fn a_name_that_is_not_used_is_forgotten() {
        let script = Script::quiet(EngineKind::Criu);
        let switch = Switch::new(served(&script, "shop-1-a"));
        let given = switch.engine().next_id();
        switch.engine().unused(&given);
        assert!(lock(&switch.state).named.is_empty());
    }
}
