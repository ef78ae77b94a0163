//! A scripted workshop, for tests: snapshots without archives. One that shares them with
//! other nodes has such a catalogue, too, so that they can travel.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::watch;

use super::Script;
use crate::engine::ContainerEngine;
use crate::error::ErrorKind;
use crate::id::{GoldenName, SnapshotId};
use crate::promote::{Listed, Loaded, Publication, Say, Shared, Standing, Told, Workshop, WorkshopError};
use crate::provision::GoldenAbout;
use crate::snapshot::catalog::Catalog;
use crate::snapshot::depot::{Depot, DepotError};
use crate::snapshot::served::Choice;

/// What the workshop has and does.
#[derive(Debug)]
pub struct ScriptedWorkshop {
    state: Mutex<ScriptedState>,
    /// While true, taking a snapshot waits.
    held: watch::Sender<bool>,
    travels: Option<Travels>,
}

/// How snapshots come from one node to the other.
#[derive(Debug)]
pub struct Travels {
    /// Where they are left for the others.
    pub depot: Depot,
    /// Those that are here.
    pub catalog: Catalog,
    /// Makes the shops of those that come.
    pub script: Arc<Script>,
}

#[derive(Debug, Default)]
struct ScriptedState {
    snapshots: BTreeMap<SnapshotId, Taken>,
    choice: Choice,
    taken: u32,
}

#[derive(Debug, Clone)]
struct Taken {
    golden: GoldenName,
    script: Arc<Script>,
    is_damaged: bool,
}

impl ScriptedWorkshop {
    /// An empty one.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), held: watch::channel(false).0, travels: None })
    }

    /// An empty one that shares what it has with others.
    #[must_use]
    pub fn sharing(travels: Travels) -> Arc<Self> {
        let travels = Some(travels);
        Arc::new(Self { state: Mutex::default(), held: watch::channel(false).0, travels })
    }

    fn travels(&self) -> Result<&Travels, WorkshopError> {
        self.travels.as_ref().ok_or_else(|| failure(ErrorKind::Bug, "it shares nothing"))
    }

    fn lock(&self) -> MutexGuard<'_, ScriptedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a snapshot there whose shops that script makes.
    ///
    /// # Panics
    /// When a name is none.
    pub fn add(&self, id: &str, golden: &str, script: &Arc<Script>) {
        let golden = golden.parse().expect("a golden name");
        let taken = Taken { golden, script: Arc::clone(script), is_damaged: false };
        self.lock().snapshots.insert(id.parse().expect("a snapshot id"), taken);
    }

    /// Damages a snapshot's archives.
    pub fn damage(&self, id: &str) {
        if let Some((_, taken)) = self.lock().snapshots.iter_mut().find(|(known, _)| known.as_str() == id) {
            taken.is_damaged = true;
        }
    }

    /// Has the taking of snapshots wait until [`ScriptedWorkshop::let_go`].
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    /// Ends [`ScriptedWorkshop::hold`].
    pub fn let_go(&self) {
        self.held.send_replace(false);
    }

    fn find(&self, id: &SnapshotId) -> Result<Taken, WorkshopError> {
        let found = self.lock().snapshots.get(id).cloned();
        found.ok_or_else(|| failure(ErrorKind::NotFound, "it is not there"))
    }
}

fn failure(kind: ErrorKind, why: &'static str) -> WorkshopError {
    WorkshopError { doing: "use the snapshot".into(), kind, source: why.into() }
}

fn not_moved(error: DepotError) -> WorkshopError {
    WorkshopError { doing: "move the snapshot".into(), kind: error.kind(), source: Box::new(error) }
}

#[async_trait]
impl Workshop for ScriptedWorkshop {
    async fn list(&self) -> Result<Vec<Listed>, WorkshopError> {
        let state = self.lock();
        let listed = |(id, taken): (&SnapshotId, &Taken)| {
            let promoted = state.choice.promoted(&taken.golden) == Some(id);
            Listed {
                id: id.clone(),
                golden: Some(taken.golden.clone()),
                created_at: Some(Timestamp::UNIX_EPOCH),
                bytes: 9 << 20,
                raw_bytes: 95 << 20,
                unusable: None,
                promoted,
                promoted_at: state.choice.promoted_at(id),
                refused: state.choice.refused(id).map(str::to_owned),
            }
        };
        Ok(state.snapshots.iter().map(listed).collect())
    }

    async fn create(&self, golden: &GoldenName, say: Say<'_>) -> Result<SnapshotId, WorkshopError> {
        say("booting it");
        let mut held = self.held.subscribe();
        // The sender lives in the workshop, which outlives this borrow.
        let _ = held.wait_for(|held| !held).await;
        say("freezing it");
        let mut state = self.lock();
        state.taken += 1;
        let script = state.snapshots.values().find(|taken| taken.golden == *golden);
        let script = script.map(|taken| Arc::clone(&taken.script));
        let script = script.ok_or_else(|| failure(ErrorKind::NotFound, "no recipe"))?;
        let id = format!("{golden}-9-{:04x}", state.taken);
        let id: SnapshotId = id.parse().map_err(|_| failure(ErrorKind::Bug, "no name"))?;
        let taken = Taken { golden: golden.clone(), script, is_damaged: false };
        state.snapshots.insert(id.clone(), taken);
        Ok(id)
    }

    async fn verify(&self, id: &SnapshotId) -> Result<(), WorkshopError> {
        match self.find(id)?.is_damaged {
            true => Err(failure(ErrorKind::Invalid, "memory.tar.zst is damaged")),
            false => Ok(()),
        }
    }

    async fn load(&self, id: &SnapshotId) -> Result<Loaded, WorkshopError> {
        let taken = self.find(id)?;
        if taken.is_damaged {
            return Err(failure(ErrorKind::Invalid, "memory.tar.zst is damaged"));
        }
        let (title, about) = (format!("The {} shop", taken.golden), GoldenAbout::default());
        Ok(Loaded { maker: taken.script.maker_of(id), golden: taken.golden, title, about })
    }

    async fn promote(
        &self,
        golden: &GoldenName,
        id: &SnapshotId,
        at: Timestamp,
    ) -> Result<(), WorkshopError> {
        self.lock().choice.promote(golden.clone(), id.clone(), at);
        Ok(())
    }

    fn looks_every(&self) -> Duration {
        Duration::from_millis(100)
    }

    fn is_shared(&self) -> bool {
        self.travels.is_some()
    }

    async fn first(&self, golden: &GoldenName) -> Result<Option<SnapshotId>, WorkshopError> {
        let here = {
            let state = self.lock();
            let refused = |id: &SnapshotId| state.choice.refused(id).is_some();
            let fits = |(id, taken): &(&SnapshotId, &Taken)| taken.golden == *golden && !refused(id);
            state.snapshots.iter().rfind(fits).map(|(id, _)| id.clone())
        };
        match (here, &self.travels) {
            (Some(id), _) => Ok(Some(id)),
            (None, Some(_)) => Ok(self.told().await?.remove(golden).map(|shared| shared.snapshot)),
            (None, None) => Ok(None),
        }
    }

    fn begin(&self, _: &SnapshotId, _: &Arc<dyn ContainerEngine>) {}

    async fn told(&self) -> Result<Told, WorkshopError> {
        self.travels()?.depot.told().await.map_err(not_moved)
    }

    async fn share(&self, golden: &GoldenName, shared: &Shared, say: Say<'_>) -> Result<(), WorkshopError> {
        let Travels { depot, catalog, .. } = self.travels()?;
        if shared.standing != Standing::Withdrawn {
            say("send the snapshot");
            depot.send(catalog, &shared.snapshot).await.map_err(not_moved)?;
            return depot.serve(golden, shared).await.map_err(not_moved);
        }
        depot.serve(golden, shared).await.map_err(not_moved)?;
        let sent = depot.list_of(golden).await.map_err(not_moved)?;
        depot.remove(&sent).await.map_err(not_moved)
    }

    async fn fetch(&self, golden: &GoldenName, id: &SnapshotId, say: Say<'_>) -> Result<(), WorkshopError> {
        let Travels { depot, catalog, script } = self.travels()?;
        say("fetch the snapshot");
        depot.manifest_of(catalog, golden, id).await.map_err(not_moved)?;
        depot.fetch(catalog, id).await.map_err(not_moved)?;
        let taken = Taken { golden: golden.clone(), script: Arc::clone(script), is_damaged: false };
        self.lock().snapshots.insert(id.clone(), taken);
        Ok(())
    }

    async fn may_publish(&self, golden: &GoldenName) -> Result<(), WorkshopError> {
        let state = self.lock();
        let is_taken = state.snapshots.values().any(|taken| taken.golden == *golden);
        match is_taken && !state.choice.is_published(golden) {
            true => Err(failure(ErrorKind::Conflict, "a recipe has that name")),
            false => Ok(()),
        }
    }

    async fn publish(&self, wanted: &Publication, say: Say<'_>) -> Result<SnapshotId, WorkshopError> {
        say("laying the shop's files over it");
        let mut state = self.lock();
        let script = state.snapshots.values().next().map(|taken| Arc::clone(&taken.script));
        let script = script.ok_or_else(|| failure(ErrorKind::NotFound, "nothing to stand on"))?;
        let id: SnapshotId =
            format!("{}-1-aaaa", wanted.golden).parse().map_err(|_| failure(ErrorKind::Bug, "no name"))?;
        let golden = wanted.golden.clone();
        state.snapshots.insert(id.clone(), Taken { golden, script, is_damaged: false });
        Ok(id)
    }

    async fn introduce(
        &self,
        golden: &GoldenName,
        (id, at): (&SnapshotId, Timestamp),
        pool: Option<usize>,
        _: &Arc<dyn ContainerEngine>,
    ) -> Result<usize, WorkshopError> {
        let pool = pool.unwrap_or(1);
        self.lock().choice.publish(golden.clone(), (id.clone(), at), pool);
        Ok(pool)
    }

    async fn set_pool(&self, _: &GoldenName, _: usize) -> Result<(), WorkshopError> {
        Ok(())
    }

    async fn choice(&self) -> Result<Choice, WorkshopError> {
        Ok(self.lock().choice.clone())
    }

    async fn withdraw(
        &self,
        golden: &GoldenName,
        at: Timestamp,
        _: &[Arc<dyn ContainerEngine>],
    ) -> Result<(), WorkshopError> {
        self.lock().choice.withdraw(golden, at);
        Ok(())
    }

    async fn refuse(&self, id: &SnapshotId, why: &str) -> Result<(), WorkshopError> {
        self.lock().choice.refuse(id.clone(), why);
        Ok(())
    }

    async fn remove(&self, id: &SnapshotId, _: &[SnapshotId]) -> Result<(), WorkshopError> {
        self.lock().snapshots.remove(id);
        Ok(())
    }

    async fn clear(
        &self,
        golden: &GoldenName,
        in_use: &[SnapshotId],
    ) -> Result<Vec<SnapshotId>, WorkshopError> {
        let mut state = self.lock();
        let of_golden = |(id, taken): (&SnapshotId, &Taken)| {
            (taken.golden == *golden && !in_use.contains(id)).then(|| id.clone())
        };
        let removed: Vec<SnapshotId> = state.snapshots.iter().filter_map(of_golden).collect();
        state.snapshots.retain(|id, _| !removed.contains(id));
        for id in &removed {
            state.choice.forget(id);
            // Those of this node alone have never been there.
            let _ = self.travels.as_ref().map(|travels| travels.catalog.remove(id));
        }
        Ok(removed)
    }

    async fn prune(&self, keep: usize, in_use: &[SnapshotId]) -> Result<Vec<SnapshotId>, WorkshopError> {
        let mut state = self.lock();
        let all: Vec<(SnapshotId, GoldenName)> =
            state.snapshots.iter().map(|(id, taken)| (id.clone(), taken.golden.clone())).collect();
        let mut removed = Vec::new();
        for (position, (id, golden)) in all.iter().enumerate() {
            let newer = all[position + 1..].iter().filter(|(_, other)| other == golden).count();
            if newer >= keep && !in_use.contains(id) {
                state.snapshots.remove(id);
                removed.push(id.clone());
            }
        }
        Ok(removed)
    }
}
