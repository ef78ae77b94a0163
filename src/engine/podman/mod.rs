//! The cold driver: boots the golden's image in a slot, as Podman runs it.
//!
//! The visible fallback when nothing can be restored, and the yardstick of the
//! bench. Phases and their undo:
//!
//! ```text
//! slot      as in the restore driver                      undo: remove it
//! restore   `podman run` in the slot's namespace, name the
//!           process by pid and start time, then wait until
//!           the front page is right                       undo: `podman rm --force`
//! ```

pub mod cli;
pub mod profile;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tracing::Instrument as _;

pub use self::cli::PodmanError;
use super::cold::{BootError, Booting, Ready};
use super::{CleanupError, ContainerEngine, DestroyError, LaunchError, Launched, Phase};
use crate::error::ErrorKind;
use crate::golden::recipe::Recipe;
use crate::host::cgroup::IoLimits;
use crate::host::process;
use crate::host::slots::{SlotError, Slots};
use crate::id::InstanceId;
use crate::instance::trace::{Depth, Kind, Trace};
use crate::instance::{Container, EngineKind, Source};

/// Names of our containers: this and the instance id.
const PREFIX: &str = "dm-";

/// Why a cold start failed.
#[derive(Debug, thiserror::Error)]
pub enum ColdStartError {
    /// No slot.
    #[error("no slot for the container")]
    Slot(#[source] SlotError),
    /// Podman said no.
    #[error("Podman did not boot the golden")]
    Podman(#[source] PodmanError),
    /// No filter of system calls.
    #[error("no seccomp profile for the container")]
    Profile(#[source] io::Error),
    /// The process is not there.
    #[error("the booted process cannot be found")]
    Process(#[source] io::Error),
    /// The shop did not come up.
    #[error(transparent)]
    Boot(BootError),
}

impl ColdStartError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Slot(error) => error.kind(),
            Self::Podman(_) | Self::Profile(_) | Self::Process(_) | Self::Boot(_) => ErrorKind::Unavailable,
        }
    }
}

/// The driver.
pub struct PodmanEngine {
    recipe: Arc<Recipe>,
    image: String,
    slots: Arc<Slots>,
    ready: Ready,
}

impl fmt::Debug for PodmanEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodmanEngine").field("image", &self.image).finish_non_exhaustive()
    }
}

impl PodmanEngine {
    /// A driver for one golden's image; `ready` tells when a shop is up.
    #[must_use]
    pub fn new(recipe: Arc<Recipe>, image: String, slots: Arc<Slots>, ready: Ready) -> Self {
        Self { recipe, image, slots, ready }
    }

    /// The image it boots.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.image
    }

    async fn undo(&self, id: &InstanceId) -> Vec<CleanupError> {
        undo(&self.slots, id).await
    }

    async fn boot(&self, id: &InstanceId, netns: PathBuf) -> Result<i32, ColdStartError> {
        let name = format!("{PREFIX}{id}");
        let profile = profile::write(self.slots.state_dir()).map_err(ColdStartError::Profile)?;
        let spec = cli::RunSpec {
            name: &name,
            image: &self.image,
            netns: &netns,
            recipe: &self.recipe,
            controllers: self.slots.cgroups().controllers(),
            io_max: self.slots.cgroups().io_max(IoLimits::of(&self.recipe.run)),
            devices: self.slots.devices(),
            profile: &profile,
            criu_config: None,
            // The image has a server of its own, whatever its snapshots share.
            database: None,
        };
        let mut args = cli::run_args(&spec);
        args.insert(1, format!("--label={}", label(&self.slots)));
        cli::podman(&args).await.map_err(ColdStartError::Podman)?;
        cli::pid(&name).await.map_err(ColdStartError::Podman)
    }
}

#[async_trait]
impl ContainerEngine for PodmanEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Podman
    }

    fn source(&self) -> Source {
        Source::Cold
    }

    fn next_id(&self) -> InstanceId {
        self.slots.next_id()
    }

    fn unused(&self, id: &InstanceId) {
        self.slots.unused(id);
    }

    async fn launch(&self, id: &InstanceId) -> Result<Launched, LaunchError> {
        let begun = Instant::now();
        let mut phase = Phase::Slot;
        let mut phases = Vec::with_capacity(2);
        let result = async {
            let slot = self.slots.take(id).instrument(phase.span()).await.map_err(ColdStartError::Slot)?;
            phases.push((phase, begun.elapsed()));
            phase = Phase::Restore;
            let mark = Instant::now();
            // Podman opens the path once, while this process holds it.
            let netns = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), slot.netns.as_raw_fd()));
            let address = SocketAddr::from((slot.lease.address(), self.recipe.run.port));
            let boot = async {
                let pid = self.boot(id, netns).await?;
                let start_ticks = process::start_ticks(pid).map_err(ColdStartError::Process)?;
                let within = Duration::from_secs(self.recipe.ready.timeout_seconds);
                let booting = Booting { pid, start_ticks, address, within };
                booting.until_up(&self.ready).await.map_err(ColdStartError::Boot)?;
                Ok::<_, ColdStartError>((pid, start_ticks))
            };
            let (pid, start_ticks) = boot.instrument(phase.span()).await?;
            phases.push((phase, mark.elapsed()));
            Ok::<_, ColdStartError>((slot, pid, start_ticks))
        };
        match result.await {
            Ok((slot, pid, start_ticks)) => Ok(Launched {
                container: Container {
                    engine: EngineKind::Podman,
                    pid,
                    start_ticks,
                    address: slot.lease.keep(),
                    port: self.recipe.run.port,
                },
                snapshot: None,
                database: None,
                phases,
            }),
            Err(error) => {
                let cleanup = self.undo(id).await;
                Err(LaunchError {
                    id: id.clone(),
                    phase,
                    kind: error.kind(),
                    source: Box::new(error),
                    cleanup,
                })
            }
        }
    }

    async fn destroy(&self, id: &InstanceId, container: Option<&Container>) -> Result<(), DestroyError> {
        let mut cleanup = super::end_strays(&self.slots, id, container).await;
        cleanup.extend(self.undo(id).await);
        super::destroyed(&self.slots, id, container, cleanup).await
    }

    async fn adopt(&self, _id: &InstanceId, container: &Container) -> bool {
        self.slots.adopt(container).await
    }

    async fn ended(&self, container: &Container) {
        process::ended_by_name(container.pid, container.start_ticks).await;
    }

    async fn traces(&self, depth: Depth) -> io::Result<Vec<Trace>> {
        traces(&self.slots, depth).await
    }

    async fn shut(&self, address: Ipv4Addr) -> io::Result<()> {
        self.slots.network().shut(address).await
    }
}

/// Removes an instance's container and its slot, whatever of it is there.
pub(crate) async fn undo(slots: &Slots, id: &InstanceId) -> Vec<CleanupError> {
    let mut cleanup = Vec::new();
    if let Err(error) = cli::remove(&format!("{PREFIX}{id}")).await {
        cleanup.push(CleanupError { step: "remove the Podman container", source: io::Error::other(error) });
    }
    let failed = slots.remove(id).await;
    cleanup.extend(failed.into_iter().map(|(step, source)| CleanupError { step, source }));
    cleanup
}

/// Tells this daemon's containers from another one's on the same host.
fn label(slots: &Slots) -> String {
    format!("demo-multiplexer.instances={}", slots.instances().display())
}

/// What instances left: containers, and anything of a slot.
pub(crate) async fn traces(slots: &Slots, depth: Depth) -> io::Result<Vec<Trace>> {
    let label = format!("label={}", label(slots));
    let ours = ["--filter", "name=^dm-", "--filter", &label];
    let names = cli::podman(&[&["ps", "--all", "--format", "{{.Names}}"][..], &ours].concat()).await;
    let names = names.map_err(io::Error::other)?;
    let container =
        |name: &str| Some(Trace::of(name.strip_prefix(PREFIX)?.parse().ok()?, Kind::Container, name));
    let mut traces: Vec<Trace> = names.lines().filter_map(container).collect();
    traces.extend(slots.traces(depth).await?);
    Ok(traces)
}
