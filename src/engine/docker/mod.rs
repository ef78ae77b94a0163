//! The driver for a Docker engine: boots the golden's image in a container of
//! its own. Docker cannot restore a snapshot, so every shop is a cold start.
//!
//! Called through [`super::ContainerEngine`]. Phases of a launch and their undo:
//!
//! ```text
//! slot      address, interface, directories, as in the other drivers   undo: remove it
//! restore   create and start the container without a network, name
//!           its process by pid and start time, move the slot's
//!           interface into its namespace, wait until the front page
//!           is right                                                   undo: remove the container
//! ```
//!
//! Invariants: a container carries the label of this daemon's instances, so
//! none of another daemon's is ever touched; it is never restarted by Docker: a
//! shop that has ended is replaced. Nothing is created ahead: creating takes
//! 20 ms of the 540 ms that a start and the first page take.

pub mod api;
pub mod images;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::{Value, json};
use tracing::Instrument as _;

pub use self::api::{Docker, DockerError};
use super::cold::{BootError, Booting, Ready};
use super::{CleanupError, ContainerEngine, DestroyError, LaunchError, Launched, Phase};
use crate::error::ErrorKind;
use crate::golden::recipe::Recipe;
use crate::host::cgroup::IoLimits;
use crate::host::net::NetError;
use crate::host::process;
use crate::host::slots::{Slot, SlotError, Slots};
use crate::id::InstanceId;
use crate::instance::trace::{Depth, Kind, Trace};
use crate::instance::{Container, EngineKind, Source};

/// Names of our containers: this and the instance id.
const PREFIX: &str = "dm-";

/// Marks our containers with the directory of the daemon's instances.
const LABEL: &str = "demo-multiplexer.instances";

/// The container's name of an instance.
#[must_use]
pub fn name_of(id: &InstanceId) -> String {
    format!("{PREFIX}{id}")
}

/// Why a start failed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No slot.
    #[error("no slot for the container")]
    Slot(#[source] SlotError),
    /// The recipe asks for something that makes no sense.
    #[error("the recipe cannot be used: {0}")]
    Recipe(String),
    /// Docker said no.
    #[error("Docker did not boot the golden")]
    Docker(#[source] DockerError),
    /// The container runs and has no network.
    #[error("the container cannot be given its address")]
    Network(#[source] NetError),
    /// The container runs, but its process is not there.
    #[error("the booted process cannot be found")]
    Process(#[source] io::Error),
    /// The shop did not come up.
    #[error(transparent)]
    Boot(BootError),
}

impl StartError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Slot(error) => error.kind(),
            Self::Recipe(_) => ErrorKind::Bug,
            Self::Docker(error) if error.kind() == ErrorKind::NoSpace => ErrorKind::NoSpace,
            Self::Docker(_) | Self::Network(_) | Self::Process(_) | Self::Boot(_) => ErrorKind::Unavailable,
        }
    }
}

/// Whether a container may have come to be, which then has to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    Perhaps,
}

/// The driver.
pub struct DockerEngine {
    docker: Arc<Docker>,
    recipe: Arc<Recipe>,
    image: String,
    slots: Arc<Slots>,
    ready: Ready,
}

impl fmt::Debug for DockerEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DockerEngine").field("image", &self.image).finish_non_exhaustive()
    }
}

impl DockerEngine {
    /// A driver for one golden's image, by id; `ready` tells when a shop is up.
    #[must_use]
    pub fn new(
        docker: Arc<Docker>,
        recipe: Arc<Recipe>,
        image: String,
        slots: Arc<Slots>,
        ready: Ready,
    ) -> Self {
        Self { docker, recipe, image, slots, ready }
    }

    fn spec(&self, id: &InstanceId) -> Result<Value, StartError> {
        let spec = Spec {
            id,
            image: &self.image,
            recipe: &self.recipe,
            instances: &self.slots.instances().display().to_string(),
            devices: &self.slots.devices().display().to_string(),
            controllers: self.slots.cgroups().controllers(),
            disk: self.slots.cgroups().disk(),
        };
        spec.json().map_err(StartError::Recipe)
    }

    /// Boots a shop in the slot; answers its first process with its start time.
    async fn boot(&self, slot: &Slot, left: &mut Left) -> Result<(i32, u64), StartError> {
        let name = name_of(&slot.id);
        let created = self.docker.create(&name, &self.spec(&slot.id)?).await;
        if !created.as_ref().is_err_and(DockerError::was_not_sent) {
            *left = Left::Perhaps;
        }
        created.map_err(StartError::Docker)?;
        let pid = self.docker.start(&name).await.map_err(StartError::Docker)?;
        let (start_ticks, netns) = namespace_of(pid).map_err(StartError::Process)?;
        let network = self.slots.network();
        let address = slot.lease.address();
        network.move_into(slot.netns.as_fd(), netns, address).await.map_err(StartError::Network)?;
        let booting = Booting {
            pid,
            start_ticks,
            address: SocketAddr::from((address, self.recipe.run.port)),
            within: Duration::from_secs(self.recipe.ready.timeout_seconds),
        };
        booting.until_up(&self.ready).await.map_err(StartError::Boot)?;
        Ok((pid, start_ticks))
    }

    async fn undo(&self, id: &InstanceId, left: Left) -> Vec<CleanupError> {
        let mut cleanup = Vec::new();
        if left == Left::Perhaps
            && let Err(error) = self.docker.remove(&name_of(id)).await
        {
            let source = io::Error::other(error);
            cleanup.push(CleanupError { step: "remove the Docker container", source });
        }
        let failed = self.slots.remove(id).await;
        cleanup.extend(failed.into_iter().map(|(step, source)| CleanupError { step, source }));
        cleanup
    }
}

/// The network namespace of a container's first process, with that process's
/// start time.
///
/// # Errors
/// When the process has ended, also when its pid is somebody else's by now:
/// that one's network is left alone.
fn namespace_of(pid: i32) -> io::Result<(u64, OwnedFd)> {
    let start_ticks = process::start_ticks(pid)?;
    let netns = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
    if !process::is_init(pid) || process::open(pid, start_ticks)?.is_none() {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok((start_ticks, netns.into()))
}

/// What a container is made of.
#[derive(Debug)]
struct Spec<'a> {
    id: &'a InstanceId,
    image: &'a str,
    recipe: &'a Recipe,
    /// The directory of this daemon's instances.
    instances: &'a str,
    /// The directory of device nodes that becomes its /dev.
    devices: &'a str,
    /// Cgroup controllers whose limits are in force on this host: Docker
    /// refuses a container with a limit that it cannot hold.
    controllers: &'a [String],
    /// The disk that limits are about, as `major:minor`.
    disk: Option<&'a str>,
}

impl Spec<'_> {
    /// The body of the request that creates it.
    fn json(&self) -> Result<Value, String> {
        let run = &self.recipe.run;
        let mut host = json!({
            // The slot's interface is moved in; Docker's networks are not used.
            "NetworkMode": "none",
            "IpcMode": "none",
            // The database knows root on the host by its number.
            "UsernsMode": "host",
            "CapDrop": ["ALL"],
            "CapAdd": run.capabilities,
            "SecurityOpt": ["no-new-privileges"],
            // In place of Docker's own: nothing can be made or filled there.
            "Binds": [format!("{}:/dev:ro,rprivate", self.devices)],
            "RestartPolicy": {"Name": "no"},
            // A golden writes its log files inside; nothing else says anything.
            "LogConfig": {"Type": "none"},
        });
        let has = |controller: &str| self.controllers.iter().any(|have| have == controller);
        if has("memory") {
            let bytes = crate::config::units::bytes(&run.memory_max)?;
            host["Memory"] = bytes.into();
            // The sum of memory and swap: no swap.
            host["MemorySwap"] = bytes.into();
        }
        if has("pids") {
            host["PidsLimit"] = run.pids_max.into();
        }
        if let Some(disk) = self.disk {
            let limits = IoLimits::of(run);
            for (key, limit) in [("BlkioDeviceReadBps", limits.read), ("BlkioDeviceWriteBps", limits.write)] {
                if let Some(rate) = limit {
                    host[key] = json!([{"Path": format!("/dev/block/{disk}"), "Rate": rate}]);
                }
            }
        }
        if has("cpu") {
            #[expect(clippy::cast_possible_truncation, reason = "a few cores")]
            let nano_cpus = (run.cpu_max * 1e9) as i64;
            host["NanoCpus"] = nano_cpus.into();
        }
        Ok(json!({
            "Image": self.image,
            "Hostname": self.id.as_str(),
            "Labels": {LABEL: self.instances},
            "HostConfig": host,
        }))
    }
}

#[async_trait]
impl ContainerEngine for DockerEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Docker
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

    async fn health(&self) -> Option<io::Result<()>> {
        Some(self.docker.ping().await.map_err(io::Error::other))
    }

    async fn launch(&self, id: &InstanceId) -> Result<Launched, LaunchError> {
        let begun = Instant::now();
        let (mut phase, mut left) = (Phase::Slot, Left::Nothing);
        let mut phases = Vec::with_capacity(2);
        let result = async {
            let slot = self.slots.take(id).instrument(phase.span()).await.map_err(StartError::Slot)?;
            phases.push((phase, begun.elapsed()));
            phase = Phase::Restore;
            let mark = Instant::now();
            let (pid, start_ticks) = self.boot(&slot, &mut left).instrument(phase.span()).await?;
            phases.push((phase, mark.elapsed()));
            Ok::<_, StartError>((slot, pid, start_ticks))
        };
        match result.await {
            Ok((slot, pid, start_ticks)) => Ok(Launched {
                container: Container {
                    engine: EngineKind::Docker,
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
                let cleanup = self.undo(id, left).await;
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
        cleanup.extend(self.undo(id, Left::Perhaps).await);
        super::destroyed(&self.slots, id, container, cleanup).await
    }

    async fn adopt(&self, _id: &InstanceId, container: &Container) -> bool {
        self.slots.adopt(container).await
    }

    async fn ended(&self, container: &Container) {
        process::ended_by_name(container.pid, container.start_ticks).await;
    }

    async fn traces(&self, depth: Depth) -> io::Result<Vec<Trace>> {
        let label = format!("{LABEL}={}", self.slots.instances().display());
        let names = self.docker.names(&label).await.map_err(io::Error::other)?;
        let container =
            |name: &String| Some(Trace::of(name.strip_prefix(PREFIX)?.parse().ok()?, Kind::Container, name));
        let mut traces: Vec<Trace> = names.iter().filter_map(container).collect();
        traces.extend(self.slots.traces(depth).await?);
        Ok(traces)
    }

    async fn shut(&self, address: Ipv4Addr) -> io::Result<()> {
        self.slots.network().shut(address).await
    }
}
