//! What is done with instances while no daemon runs: `reap`, `doctor --audit`.
//!
//! Instances outlive the daemon, and so does the time they were given: nobody
//! would end them until it comes back. Called by `demo-multiplexer reap`, which
//! a timer runs, and which a package that is removed runs with `--all`, and by
//! `doctor --audit`. Both hold the daemon's lock meanwhile. Goldens need not be there: ending an instance
//! takes no image and no snapshot, so both drivers are stood in for.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::{self, StateLock};
use crate::config::{ColdStart, Config, ContainerMode};
use crate::database::Server;
use crate::engine::criu::freeze::FrozenDir;
use crate::engine::{
    self, CleanupError, ContainerEngine, DestroyError, LaunchError, Launched, Phase, podman,
};
use crate::error::ErrorKind;
use crate::host::cgroup::Parent;
use crate::host::claim;
use crate::host::net::Network;
use crate::host::process;
use crate::host::quota::Quota;
use crate::host::slots::{Parts as SlotParts, Slots};
use crate::id::{GoldenName, InstanceId};
use crate::instance::trace::{Depth, Trace};
use crate::instance::{Container, EngineKind, Instance, Source};
use crate::open_jobs::Jobs;
use crate::open_store::{Opened, open_store};
use crate::pool::adopt::adopt_all;
use crate::pool::reaper::{Certainty, Reaper};
use crate::pool::{Nudge, Target};
use crate::provision::audit::{Audit, Auditor, Beside};
use crate::provision::{GoldenAbout, GoldenRuntime, Lifecycle, Parts};
use crate::restore::{FirstPage, Made, Make, Shop};
use crate::route;
use crate::template::images::Unneeded;

/// What is taken down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// What is over: due, died, left over, orphaned.
    Over,
    /// Everything, and the bridge and the cgroup that instances share.
    All,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reaped {
    /// Instances taken down.
    pub ended: usize,
    /// Instances that live on.
    pub alive: usize,
}

/// Takes instances down; the lock says that no daemon runs.
///
/// # Errors
/// When the store or the host cannot be used, or something could not be removed.
pub async fn reap(config: &Config, _lock: &StateLock, whom: Whom) -> anyhow::Result<Reaped> {
    let mut care = Care::open(config).await?;
    let before = care.lifecycle.store().own().await?.len();
    let reaped = care.end_what_is_over(whom).await;
    care.close().await;
    reaped?;
    let alive = care.lifecycle.store().own().await?.len();
    if whom == Whom::All {
        let left = care.slots.traces(Depth::Names).await?;
        anyhow::ensure!(
            alive == 0 && left.is_empty(),
            "not taken down: {alive} instances, traces of {left:?}"
        );
        care.slots.network().remove_bridge().await.context("cannot remove the bridge")?;
        care.slots.cgroups().remove().context("cannot remove the instances' cgroup")?;
    }
    Ok(Reaped { ended: before.saturating_sub(alive), alive })
}

/// Searches the host for what is nobody's, and with `mend` takes it down; the
/// lock says that no daemon runs.
///
/// # Errors
/// When the store or the host cannot be used.
pub async fn audit(config: &Config, _lock: &StateLock, mend: bool) -> anyhow::Result<Audit> {
    let care = Care::open(config).await?;
    let audited = async {
        for instance in care.lifecycle.store().own().await? {
            care.lifecycle.adopted(&instance);
            if let (Some(container), Some(engine)) =
                (&instance.container, care.lifecycle.engine_of(&instance))
            {
                engine.adopt(&instance.id, container).await;
            }
        }
        let beside = (config.container_mode == ContainerMode::Podman)
            .then(|| Arc::new(Unneeded::new(Arc::new(config.clone()))) as Arc<dyn Beside>);
        let auditor = Auditor::new(Arc::clone(&care.lifecycle), Arc::clone(care.jobs.dispatch()));
        let auditor = auditor.and(beside);
        anyhow::Ok(auditor.audit(mend).await)
    };
    let audited = audited.await;
    care.close().await;
    audited
}

/// What stands in for a daemon meanwhile.
struct Care {
    slots: Arc<Slots>,
    lifecycle: Arc<Lifecycle>,
    jobs: Jobs,
    /// What a former daemon knew, until it is taken over.
    remembered: Vec<Instance>,
    workers: TaskTracker,
    stop: CancellationToken,
}

impl Care {
    async fn open(config: &Config) -> anyhow::Result<Self> {
        let network = Network::open(&config.bridge_name, config.bridge_subnet).await?;
        let cgroups = Parent::open(&config.cgroup_parent).context("cannot open the instances' cgroup")?;
        claim::take(&network, &cgroups, &config.state_dir).await?;
        let quota = Quota::open(&config.state_dir, config.disk_max).await?;
        let slots = Arc::new(Slots::new(SlotParts { network, cgroups, quota }, &config.state_dir, 0)?);
        let database = config.database.clone().map(Server::open).transpose()?;
        let Opened { store, remembered } = open_store(config).await?;
        let recorded = store.own().await?.into_iter().map(|instance| instance.golden.clone());
        let lifecycle = Arc::new(Lifecycle::new(Parts {
            store,
            routes: Arc::new(route::open::open(config)?),
            goldens: stand_ins(&slots, database.as_ref(), recorded.collect())?,
            max_instances: config.max_instances,
            restore_concurrency: 1,
            refill: Nudge::default(),
            reap: Nudge::default(),
        }));
        let nothing = Target { ready: 0, starts: 1, cold_start: ColdStart::Refused };
        let alone = Config { nats: None, ..config.clone() };
        let mut jobs = Jobs::open(&alone, &lifecycle, nothing, Nudge::default()).await?;
        let (workers, stop) = (TaskTracker::new(), CancellationToken::new());
        jobs.begin((&workers, &stop), (&workers, &stop));
        Ok(Self { slots, lifecycle, jobs, remembered, workers, stop })
    }

    async fn end_what_is_over(&mut self, whom: Whom) -> anyhow::Result<()> {
        let (lifecycle, jobs) = (&self.lifecycle, Arc::clone(self.jobs.dispatch()));
        let mut reaper = Reaper::new(Arc::clone(lifecycle), Nudge::default(), jobs);
        let now = Timestamp::now();
        lifecycle.recall(std::mem::take(&mut self.remembered)).await?;
        adopt_all(lifecycle, now).await?;
        route::keeper::look(lifecycle.routes()).await;
        reaper.pass(now).await;
        reaper.settle().await;
        if whom == Whom::All {
            // No client's request adds to it.
            lifecycle.tasks().close();
            app::destroy_all(lifecycle).await;
        }
        reaper.sweep_orphans(Certainty::AtOnce).await;
        Ok(())
    }

    async fn close(&self) {
        self.stop.cancel();
        self.workers.close();
        self.workers.wait().await;
    }
}

/// The recorded instances' goldens, which nobody serves now, with drivers that
/// only end. One more for what has no record.
fn stand_ins(
    slots: &Arc<Slots>,
    database: Option<&Arc<Server>>,
    recorded: BTreeSet<GoldenName>,
) -> anyhow::Result<Vec<GoldenRuntime>> {
    let maker = |made_by| -> Arc<dyn Make> {
        let (slots, database) = (Arc::clone(slots), database.cloned());
        Arc::new(StandIn { engine: Arc::new(Driver { made_by, slots, database }) })
    };
    let nobody: GoldenName = "nobody".parse()?;
    let runtime = |name| GoldenRuntime {
        name,
        title: String::new(),
        about: GoldenAbout::default(),
        restore: Ok(maker(MadeBy::Criu)),
        cold: Some(maker(MadeBy::Podman)),
    };
    Ok(recorded.into_iter().chain([nobody]).map(runtime).collect())
}

/// A maker that makes nothing.
#[derive(Debug)]
struct StandIn {
    engine: Arc<dyn ContainerEngine>,
}

#[async_trait]
impl Make for StandIn {
    async fn make(&self, shop: Shop<'_>, _: FirstPage) -> Result<Made, LaunchError> {
        Err(makes_nothing(shop.slot))
    }

    fn engine(&self) -> &Arc<dyn ContainerEngine> {
        &self.engine
    }
}

fn makes_nothing(id: &InstanceId) -> LaunchError {
    LaunchError {
        id: id.clone(),
        phase: Phase::Slot,
        kind: ErrorKind::Bug,
        source: "no instance is made while no daemon runs".into(),
        cleanup: Vec::new(),
    }
}

/// The driver that is stood in for.
#[derive(Debug, Clone, Copy)]
enum MadeBy {
    Criu,
    Podman,
}

/// Ends what a driver has made.
#[derive(Debug)]
struct Driver {
    made_by: MadeBy,
    slots: Arc<Slots>,
    /// The server that shops share, if they do.
    database: Option<Arc<Server>>,
}

#[async_trait]
impl ContainerEngine for Driver {
    fn kind(&self) -> EngineKind {
        match self.made_by {
            MadeBy::Criu => EngineKind::Criu,
            MadeBy::Podman => EngineKind::Podman,
        }
    }

    fn source(&self) -> Source {
        match self.made_by {
            MadeBy::Criu => Source::Restore,
            MadeBy::Podman => Source::Cold,
        }
    }

    async fn launch(&self, id: &InstanceId) -> Result<Launched, LaunchError> {
        Err(makes_nothing(id))
    }

    async fn forget(&self, id: &InstanceId) -> io::Result<()> {
        let (dir, id) = (FrozenDir::of(self.slots.state_dir()), id.clone());
        tokio::task::spawn_blocking(move || dir.remove(&id)).await.map_err(io::Error::other)?
    }

    async fn frozen(&self) -> io::Result<Vec<InstanceId>> {
        FrozenDir::of(self.slots.state_dir()).list()
    }

    async fn destroy(&self, id: &InstanceId, container: Option<&Container>) -> Result<(), DestroyError> {
        let mut failed = engine::end_strays(&self.slots, id, container).await;
        match self.made_by {
            MadeBy::Podman => failed.extend(podman::undo(&self.slots, id).await),
            MadeBy::Criu => {
                let slot = self.slots.remove(id).await.into_iter();
                failed.extend(slot.map(|(step, source)| CleanupError { step, source }));
            }
        }
        // Behind the container: it has connections.
        if let Some(server) = &self.database
            && let Err(error) = server.drop_of(id).await
        {
            failed.push(CleanupError { step: "drop the database", source: io::Error::other(error) });
        }
        engine::destroyed(&self.slots, id, container, failed).await
    }

    async fn adopt(&self, _id: &InstanceId, container: &Container) -> bool {
        self.slots.adopt(container).await
    }

    async fn fell_asleep(&self, id: &InstanceId, container: &Container) -> bool {
        FrozenDir::of(self.slots.state_dir()).is_end_of(id, container)
    }

    async fn ended(&self, container: &Container) {
        process::ended_by_name(container.pid, container.start_ticks).await;
    }

    async fn traces(&self, depth: Depth) -> io::Result<Vec<Trace>> {
        let mut traces = match self.made_by {
            MadeBy::Podman => podman::traces(&self.slots, depth).await?,
            MadeBy::Criu => self.slots.traces(depth).await?,
        };
        if let Some(server) = &self.database {
            traces.extend(server.traces().await.map_err(io::Error::other)?);
        }
        Ok(traces)
    }

    async fn shut(&self, address: Ipv4Addr) -> io::Result<()> {
        self.slots.network().shut(address).await
    }
}
