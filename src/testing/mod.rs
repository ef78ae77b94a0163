//! A scripted engine and maker, for tests: shops without containers.
//!
//! [`Script`] is both what tests steer (hold makings, fail phases, kill shops,
//! refuse to destroy) and what they look at (what runs, what left traces). A new
//! engine on the same script is what a new daemon would have.

pub mod fuzz;
pub mod lossy;
pub mod workshop;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::engine::{
    CleanupError, ContainerEngine, Dependency, DestroyError, Freeze, FreezeError, LaunchError, Launched,
    Phase, Then,
};
use crate::error::ErrorKind;
use crate::id::{InstanceId, SnapshotId};
use crate::instance::trace::{Depth, Kind, Trace};
use crate::instance::{Access, Container, EngineKind, OneClick, Source};
use crate::provision::{GoldenAbout, GoldenRuntime};
use crate::restore::{FirstPage, Made, Make, Served, Shop, Switch};

/// What the scripted host does and has.
#[derive(Debug)]
pub struct Script {
    state: Mutex<ScriptState>,
    held: watch::Sender<bool>,
}

#[derive(Debug)]
struct ScriptState {
    kind: EngineKind,
    upstream: SocketAddrV4,
    /// The shops that run; each token is cancelled when its shop ends.
    running: BTreeMap<InstanceId, CancellationToken>,
    /// Directories, namespaces and the like: what `traces` finds.
    traces: BTreeSet<InstanceId>,
    fail_make: Option<(Phase, ErrorKind)>,
    leave_traces: bool,
    fail_destroy: bool,
    fail_freeze: bool,
    fail_thaw: bool,
    /// Names under which a frozen shop is kept.
    frozen: BTreeSet<InstanceId>,
    thaws: usize,
    /// Why what all shops stand on does not answer.
    outage: Option<String>,
    /// How long a launch takes.
    takes: Duration,
    attempts: usize,
    at_once: usize,
    most_at_once: usize,
    first_pages: Vec<FirstPage>,
    /// The next shop's process id, which is how `ended` finds it again.
    next_pid: i32,
    pids: BTreeMap<i32, CancellationToken>,
}

impl Script {
    /// A host with nothing on it, whose shops all answer at `upstream`.
    #[must_use]
    pub fn new(kind: EngineKind, upstream: SocketAddrV4) -> Arc<Self> {
        let state = ScriptState {
            kind,
            upstream,
            running: BTreeMap::new(),
            traces: BTreeSet::new(),
            fail_make: None,
            leave_traces: false,
            fail_destroy: false,
            fail_freeze: false,
            fail_thaw: false,
            frozen: BTreeSet::new(),
            thaws: 0,
            outage: None,
            takes: Duration::ZERO,
            attempts: 0,
            at_once: 0,
            most_at_once: 0,
            first_pages: Vec::new(),
            next_pid: 1,
            pids: BTreeMap::new(),
        };
        Arc::new(Self { state: Mutex::new(state), held: watch::channel(false).0 })
    }

    /// A host whose shops answer nowhere.
    #[must_use]
    pub fn quiet(kind: EngineKind) -> Arc<Self> {
        Self::new(kind, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9))
    }

    fn lock(&self) -> MutexGuard<'_, ScriptState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A maker on this host.
    #[must_use]
    pub fn maker(self: &Arc<Self>) -> Arc<dyn Make> {
        let engine: Arc<dyn ContainerEngine> = Arc::new(ScriptedEngine(Arc::clone(self)));
        Arc::new(ScriptedMaker { script: Arc::clone(self), engine, snapshot: None })
    }

    /// A maker on this host whose shops come from that snapshot.
    #[must_use]
    pub fn maker_of(self: &Arc<Self>, snapshot: &SnapshotId) -> Arc<dyn Make> {
        let engine: Arc<dyn ContainerEngine> = Arc::new(ScriptedEngine(Arc::clone(self)));
        Arc::new(ScriptedMaker { script: Arc::clone(self), engine, snapshot: Some(snapshot.clone()) })
    }

    /// Has makings wait in their restore until [`Script::let_go`].
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    /// Ends [`Script::hold`].
    pub fn let_go(&self) {
        self.held.send_replace(false);
    }

    /// Has every launch take so long.
    pub fn takes(&self, long: Duration) {
        self.lock().takes = long;
    }

    /// Has every making fail in a phase; none lets them succeed again.
    pub fn fail_make(&self, failure: Option<(Phase, ErrorKind)>) {
        self.lock().fail_make = failure;
    }

    /// Has failed makings leave traces, and say so.
    pub fn leave_traces(&self, leave: bool) {
        self.lock().leave_traces = leave;
    }

    /// Has every destroy fail.
    pub fn fail_destroy(&self, fail: bool) {
        self.lock().fail_destroy = fail;
    }

    /// Has every freezing fail.
    pub fn fail_freeze(&self, fail: bool) {
        self.lock().fail_freeze = fail;
    }

    /// Has every thawing fail.
    pub fn fail_thaw(&self, fail: bool) {
        self.lock().fail_thaw = fail;
    }

    /// Puts a frozen shop there.
    pub fn add_frozen(&self, id: &InstanceId) {
        self.lock().frozen.insert(id.clone());
    }

    /// Loses a frozen shop.
    pub fn lose_frozen(&self, id: &InstanceId) {
        self.lock().frozen.remove(id);
    }

    /// Names under which a frozen shop is kept.
    #[must_use]
    pub fn frozen(&self) -> Vec<InstanceId> {
        self.lock().frozen.iter().cloned().collect()
    }

    /// How many shops were thawed.
    #[must_use]
    pub fn thaws(&self) -> usize {
        self.lock().thaws
    }

    /// A shop that runs in a slot from now on.
    fn run(&self, slot: &InstanceId, kind: EngineKind) -> Launched {
        let mut state = self.lock();
        let (pid, ended) = (state.next_pid, CancellationToken::new());
        state.next_pid += 1;
        state.running.insert(slot.clone(), ended.clone());
        state.pids.insert(pid, ended);
        let container = Container {
            engine: kind,
            pid,
            start_ticks: 1,
            address: *state.upstream.ip(),
            port: state.upstream.port(),
        };
        let phases = vec![(Phase::Restore, Duration::from_millis(1))];
        Launched { container, snapshot: None, database: None, phases }
    }

    /// Has what all shops stand on not answer; none has it answer again.
    pub fn outage(&self, reason: Option<&str>) {
        self.lock().outage = reason.map(str::to_owned);
    }

    /// Ends a shop's first process, as a crash does.
    pub fn kill(&self, id: &InstanceId) {
        if let Some(ended) = self.lock().running.remove(id) {
            ended.cancel();
        }
    }

    /// Puts traces there that nobody has a record of.
    pub fn add_trace(&self, id: &InstanceId) {
        self.lock().traces.insert(id.clone());
    }

    /// The shops that run.
    #[must_use]
    pub fn running(&self) -> Vec<InstanceId> {
        self.lock().running.keys().cloned().collect()
    }

    /// What the host has traces of.
    #[must_use]
    pub fn traces(&self) -> Vec<InstanceId> {
        self.lock().traces.iter().cloned().collect()
    }

    /// How many makings were begun.
    #[must_use]
    pub fn attempts(&self) -> usize {
        self.lock().attempts
    }

    /// How many makings ran at once at most.
    #[must_use]
    pub fn most_at_once(&self) -> usize {
        self.lock().most_at_once
    }

    /// Whether each making was to fetch the first page, in order.
    #[must_use]
    pub fn first_pages(&self) -> Vec<FirstPage> {
        self.lock().first_pages.clone()
    }

    fn failure(&self, id: &InstanceId, phase: Phase, kind: ErrorKind) -> LaunchError {
        let mut cleanup = Vec::new();
        if self.lock().leave_traces {
            cleanup.push(CleanupError { step: "remove the directory", source: io::ErrorKind::Other.into() });
        } else {
            self.lock().traces.remove(id);
        }
        self.lock().running.remove(id);
        LaunchError { id: id.clone(), phase, kind, source: "the script says so".into(), cleanup }
    }
}

/// The script as an engine.
#[derive(Debug)]
struct ScriptedEngine(Arc<Script>);

#[async_trait]
impl ContainerEngine for ScriptedEngine {
    fn kind(&self) -> EngineKind {
        self.0.lock().kind
    }

    fn source(&self) -> Source {
        match self.kind() {
            EngineKind::Criu => Source::Restore,
            EngineKind::Podman | EngineKind::Docker => Source::Cold,
        }
    }

    fn dependency(&self) -> Option<Dependency> {
        let outage = self.0.lock().outage.clone()?;
        Some(Dependency { name: "database", outage: Some(outage) })
    }

    async fn launch(&self, id: &InstanceId) -> Result<Launched, LaunchError> {
        let kind = self.kind();
        self.0.lock().traces.insert(id.clone());
        let mut held = self.0.held.subscribe();
        // The sender lives in the script, which outlives this borrow.
        let _ = held.wait_for(|held| !held).await;
        let takes = self.0.lock().takes;
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        let failing = self.0.lock().fail_make;
        if let Some((phase @ (Phase::Slot | Phase::Restore | Phase::Adopt), kind)) = failing {
            return Err(self.0.failure(id, phase, kind));
        }
        Ok(self.0.run(id, kind))
    }

    async fn freeze(&self, freeze: Freeze<'_>) -> Result<(), FreezeError> {
        let mut state = self.0.lock();
        if state.fail_freeze || !state.running.contains_key(freeze.slot) {
            return Err(FreezeError::Io { step: "freeze it", source: io::ErrorKind::Other.into() });
        }
        state.frozen.insert(freeze.id.clone());
        if freeze.then == Then::Stop
            && let Some(ended) = state.running.remove(freeze.slot)
        {
            ended.cancel();
        }
        Ok(())
    }

    async fn thaw(&self, slot: &InstanceId, from: &InstanceId) -> Result<Launched, LaunchError> {
        let kind = self.kind();
        self.0.lock().traces.insert(slot.clone());
        let mut held = self.0.held.subscribe();
        // As above.
        let _ = held.wait_for(|held| !held).await;
        let fails = {
            let mut state = self.0.lock();
            state.thaws += 1;
            state.fail_thaw || !state.frozen.contains(from)
        };
        if fails {
            return Err(self.0.failure(slot, Phase::Restore, ErrorKind::Incompatible));
        }
        Ok(self.0.run(slot, kind))
    }

    async fn forget(&self, id: &InstanceId) -> io::Result<()> {
        self.0.lock().frozen.remove(id);
        Ok(())
    }

    async fn frozen(&self) -> io::Result<Vec<InstanceId>> {
        Ok(self.0.frozen())
    }

    async fn destroy(&self, id: &InstanceId, _: Option<&Container>) -> Result<(), DestroyError> {
        let mut state = self.0.lock();
        if state.fail_destroy {
            let left = CleanupError { step: "unmount", source: io::ErrorKind::ResourceBusy.into() };
            return Err(DestroyError { id: id.clone(), cleanup: vec![left] });
        }
        if let Some(ended) = state.running.remove(id) {
            ended.cancel();
        }
        state.traces.remove(id);
        Ok(())
    }

    async fn adopt(&self, id: &InstanceId, _: &Container) -> bool {
        self.0.lock().running.contains_key(id)
    }

    async fn fell_asleep(&self, id: &InstanceId, container: &Container) -> bool {
        let state = self.0.lock();
        state.frozen.contains(id)
            && state.pids.get(&container.pid).is_some_and(CancellationToken::is_cancelled)
    }

    async fn ended(&self, container: &Container) {
        let ended = self.0.lock().pids.get(&container.pid).cloned();
        if let Some(ended) = ended {
            ended.cancelled().await;
        }
    }

    async fn traces(&self, _: Depth) -> io::Result<Vec<Trace>> {
        let ids = self.0.traces().into_iter();
        Ok(ids.map(|id| Trace::of(id, Kind::Directory, "scripted")).collect())
    }
}

/// The script as a maker.
#[derive(Debug)]
struct ScriptedMaker {
    script: Arc<Script>,
    engine: Arc<dyn ContainerEngine>,
    snapshot: Option<SnapshotId>,
}

#[async_trait]
impl Make for ScriptedMaker {
    async fn make(&self, shop: Shop<'_>, first_page: FirstPage) -> Result<Made, LaunchError> {
        let id = shop.id;
        {
            let mut state = self.script.lock();
            state.attempts += 1;
            state.at_once += 1;
            state.most_at_once = state.most_at_once.max(state.at_once);
            state.first_pages.push(first_page);
        }
        let launched = self.engine.launch(shop.slot).await;
        self.script.lock().at_once -= 1;
        let launched = launched?;
        let failing = self.script.lock().fail_make;
        if let Some((phase @ (Phase::Personalize | Phase::Probe), kind)) = failing {
            return Err(self.script.failure(shop.slot, phase, kind));
        }
        let kept = shop.access.map(|access| access.admin_password.clone());
        Ok(Made {
            container: launched.container,
            access: Access {
                url: format!("http://{id}.localhost/"),
                admin_url: format!("http://{id}.localhost/admin"),
                admin_email: format!("{id}@example.com"),
                admin_password: kept.unwrap_or_else(|| format!("password-of-{}", shop.slot).into()),
                one_click: Some(OneClick {
                    url: format!("http://{id}.localhost/login?token={{token}}"),
                    key: format!("key-of-{id}").into(),
                }),
            },
            snapshot: self.snapshot.clone(),
            made_by: self.engine.source(),
            phases: launched.phases,
        })
    }

    fn engine(&self) -> &Arc<dyn ContainerEngine> {
        &self.engine
    }
}

/// A golden restored by one script from a snapshot that can be changed.
///
/// # Panics
/// When a name is none.
#[must_use]
pub fn runtime_of(snapshot: &str, name: &str, restore: &Arc<Script>) -> GoldenRuntime {
    let snapshot: SnapshotId = snapshot.parse().expect("a snapshot id");
    let served = Served { maker: restore.maker_of(&snapshot), snapshot };
    GoldenRuntime { restore: Ok(Arc::new(Switch::new(served))), ..runtime(name, restore, None) }
}

/// A golden restored by one script and, if given, booted by another.
///
/// # Panics
/// When the name is no golden name.
#[must_use]
pub fn runtime(name: &str, restore: &Arc<Script>, cold: Option<&Arc<Script>>) -> GoldenRuntime {
    GoldenRuntime {
        name: name.parse().expect("a golden name"),
        title: format!("The {name} shop"),
        about: GoldenAbout { version: "1.2".into(), opens_modules: true, ..GoldenAbout::default() },
        restore: Ok(restore.maker()),
        cold: cold.map(Script::maker),
    }
}

/// Waits until `check` answers something, for half a minute at most: the machine may be busy.
///
/// # Panics
/// With `what` when it does not come true in time.
pub async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "not within 30 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
