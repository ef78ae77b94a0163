//! The port to whatever runs a shop, and its words.
//!
//! A driver makes one container out of a golden and ends it again. Three stand
//! behind the port: [`criu`] restores a prepared snapshot by driving CRIU
//! itself (the hot path), [`podman`] boots the golden image (the visible
//! fallback), and [`docker`] boots it where Podman is not wanted.
//!
//! Contract: `launch` leaves nothing behind when it fails; its error carries
//! the phase and what the clean-up could not undo. `destroy` is idempotent,
//! goes through all its steps whatever fails, and an instance that is not
//! there is no error. Both may take seconds and are safe to run for many
//! instances at once. Neither is cancel-safe: callers spawn them.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

pub mod cold;
pub mod criu;
pub mod docker;
pub mod podman;

use async_trait::async_trait;
use secrecy::SecretString;

use crate::error::ErrorKind;
use crate::host::slots::Slots;
use crate::id::{InstanceId, SnapshotId};
use crate::instance::trace::{Depth, Trace};
use crate::instance::{Container, EngineKind, Source};

/// A container that has just begun to run.
#[derive(Debug, Clone)]
pub struct Launched {
    /// How to reach and end it.
    pub container: Container,
    /// The snapshot it came from, if any.
    pub snapshot: Option<SnapshotId>,
    /// Its database on a shared server; none when it has a server inside.
    pub database: Option<OwnDatabase>,
    /// How long each phase took, in order.
    pub phases: Vec<(Phase, std::time::Duration)>,
}

/// A shop's own database on a server that shops share.
#[derive(Debug, Clone)]
pub struct OwnDatabase {
    /// Its name.
    pub name: String,
    /// Who may use it, and nothing else.
    pub user: String,
    /// That user's password.
    pub password: SecretString,
    /// The server's socket, on the host.
    pub socket: PathBuf,
}

/// Something beside the host itself that a driver's shops stand on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependency {
    /// What it is called in `/health`.
    pub name: &'static str,
    /// Why it does not answer; none while it does.
    pub outage: Option<String>,
}

/// A step of making an instance; the label of metrics, errors and spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Taking (or copying) a database on the shared server.
    Database,
    /// Taking (or making) a slot: address, network namespace, cgroup, directories.
    Slot,
    /// CRIU, or the cold boot.
    Restore,
    /// Finding and watching the restored process.
    Adopt,
    /// Giving the clone its own identity.
    Personalize,
    /// Waiting for the first page.
    Probe,
    /// Making the address reachable.
    Route,
    /// Writing the record.
    Record,
}

impl Phase {
    /// The word used in errors, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Slot => "slot",
            Self::Restore => "restore",
            Self::Adopt => "adopt",
            Self::Personalize => "personalize",
            Self::Probe => "probe",
            Self::Route => "route",
            Self::Record => "record",
        }
    }

    /// The span of this phase, below that of the making it is part of.
    #[must_use]
    pub fn span(self) -> tracing::Span {
        match self {
            Self::Slot | Self::Database | Self::Restore | Self::Adopt => {
                tracing::info_span!("restore", phase = self.as_str())
            }
            Self::Personalize => tracing::info_span!("personalize"),
            Self::Probe => tracing::info_span!("probe"),
            Self::Route => tracing::info_span!("route"),
            Self::Record => tracing::info_span!("record"),
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A shop could not be made; nothing of it is left but what `cleanup` names.
#[derive(Debug, thiserror::Error)]
#[error("instance {id} failed in phase {phase}{}", leftovers(.cleanup))]
pub struct LaunchError {
    /// Which instance.
    pub id: InstanceId,
    /// Where it failed.
    pub phase: Phase,
    /// What the caller can do.
    pub kind: ErrorKind,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
    /// Steps of the roll-back that failed in turn.
    pub cleanup: Vec<CleanupError>,
}

/// One undo step that did not work.
#[derive(Debug, thiserror::Error)]
#[error("could not {step}")]
pub struct CleanupError {
    /// What was to be undone, as an imperative.
    pub step: &'static str,
    /// Why it was not.
    #[source]
    pub source: std::io::Error,
}

/// What becomes of a shop that was frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It ends.
    Stop,
    /// It goes on.
    GoOn,
}

/// A shop to be frozen.
#[derive(Debug, Clone, Copy)]
pub struct Freeze<'a> {
    /// Under which name it is kept.
    pub id: &'a InstanceId,
    /// What its things on the host are named.
    pub slot: &'a InstanceId,
    /// What runs.
    pub container: &'a Container,
    /// The snapshot that it came from.
    pub snapshot: Option<&'a SnapshotId>,
    /// What becomes of it.
    pub then: Then,
}

/// A shop could not be frozen; nothing is kept, and it goes on, but for
/// [`FreezeError::Maimed`].
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// Shops of this kind cannot.
    #[error("{why}")]
    Unsupported {
        /// Why not.
        why: &'static str,
    },
    /// The kernel or the disk said no.
    #[error("cannot {step}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// CRIU said no.
    #[error("CRIU did not freeze it{}", log_of(.log))]
    Criu {
        /// The log's tail.
        log: String,
        /// CRIU's answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// CRIU died, and a part of the shop with it; the rest was ended.
    #[error("CRIU died and took a part of it along{}", log_of(.log))]
    Maimed {
        /// The log's tail.
        log: String,
    },
    /// It took too long.
    #[error("it was not frozen within {} s", .deadline.as_secs())]
    Deadline {
        /// How long it had.
        deadline: std::time::Duration,
    },
}

fn log_of(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("; its log ends:\n{log}\n") }
}

impl FreezeError {
    /// What has become of it, as the end of a sentence that says what was not done.
    #[must_use]
    pub fn and_it(&self) -> &'static str {
        if matches!(self, Self::Maimed { .. }) { "is over" } else { "goes on" }
    }

    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unsupported { .. } => ErrorKind::Conflict,
            Self::Io { source, .. } => crate::error::kind_of_io(source),
            Self::Criu { log, .. } if log.contains("No space left on device") => ErrorKind::NoSpace,
            Self::Maimed { .. } => ErrorKind::Gone,
            Self::Criu { .. } | Self::Deadline { .. } => ErrorKind::Unavailable,
        }
    }
}

/// An instance could not be taken down completely.
#[derive(Debug, thiserror::Error)]
#[error("instance {id} was not taken down completely{}", leftovers(.cleanup))]
pub struct DestroyError {
    /// Which instance.
    pub id: InstanceId,
    /// What is left.
    pub cleanup: Vec<CleanupError>,
}

fn leftovers(cleanup: &[CleanupError]) -> String {
    cleanup.iter().map(|error| format!(" (left behind: {error}: {})", error.source)).collect()
}

/// The beginning of every `destroy` of an instance in a slot: of one whose first
/// process nobody knows, what no name leads to is searched for and ended.
pub(crate) async fn end_strays(
    slots: &Slots,
    id: &InstanceId,
    container: Option<&Container>,
) -> Vec<CleanupError> {
    if container.is_some() {
        return Vec::new();
    }
    let failed = slots.end_strays(id).await;
    failed.into_iter().map(|(step, source)| CleanupError { step, source }).collect()
}

/// The end of every `destroy` of an instance in a slot: its address is free
/// only when nothing of it is left, since an address may not have two owners.
pub(crate) async fn destroyed(
    slots: &Slots,
    id: &InstanceId,
    container: Option<&Container>,
    cleanup: Vec<CleanupError>,
) -> Result<(), DestroyError> {
    if !cleanup.is_empty() {
        return Err(DestroyError { id: id.clone(), cleanup });
    }
    if let Some(container) = container {
        slots.network().release(container.address).await;
    }
    Ok(())
}

/// The port.
#[async_trait]
pub trait ContainerEngine: Send + Sync + fmt::Debug {
    /// Which driver this is.
    fn kind(&self) -> EngineKind;

    /// How an instance made by it is reported.
    fn source(&self) -> Source;

    /// What its shops stand on beside the host, if anything.
    fn dependency(&self) -> Option<Dependency> {
        None
    }

    /// Names the next instance; a driver that makes things ahead names one
    /// whose things wait.
    fn next_id(&self) -> InstanceId {
        InstanceId::random()
    }

    /// Takes back a name that will not be launched.
    fn unused(&self, _id: &InstanceId) {}

    /// Makes ahead what this driver can make before it is needed, until enough
    /// of it waits.
    ///
    /// # Errors
    /// When something cannot be made now; launches still work or say why not.
    async fn fill(&self) -> std::io::Result<()> {
        Ok(())
    }

    /// Removes what was made ahead; for the end of the daemon.
    async fn drain(&self) -> Vec<CleanupError> {
        Vec::new()
    }

    /// Whether the running program that this driver asks for its containers
    /// answers; none for a driver that needs no such program.
    async fn health(&self) -> Option<std::io::Result<()>> {
        None
    }

    /// Makes and starts one container.
    ///
    /// # Errors
    /// [`LaunchError`]; nothing is left behind.
    async fn launch(&self, id: &InstanceId) -> Result<Launched, LaunchError>;

    /// Ends a container and removes all that belongs to it.
    ///
    /// `container` is absent when the instance never got that far.
    ///
    /// # Errors
    /// [`DestroyError`] names what is left; call again later.
    async fn destroy(&self, id: &InstanceId, container: Option<&Container>) -> Result<(), DestroyError>;

    /// Takes over a container that a former daemon made: its address is marked
    /// as used and its end is watched again. False when it no longer runs.
    async fn adopt(&self, id: &InstanceId, container: &Container) -> bool;

    /// Whether a container that no longer runs ended by being frozen, and is kept
    /// under that name as it was then.
    async fn fell_asleep(&self, _id: &InstanceId, _container: &Container) -> bool {
        false
    }

    /// Returns when the container's first process has ended.
    async fn ended(&self, container: &Container);

    /// Freezes a running container: its memory and files are kept under a name, from
    /// their one moment. What was kept under it before is replaced.
    ///
    /// # Errors
    /// [`FreezeError`]
    async fn freeze(&self, _freeze: Freeze<'_>) -> Result<(), FreezeError> {
        Err(FreezeError::Unsupported { why: "only shops that were restored can be frozen" })
    }

    /// Names a slot for [`ContainerEngine::thaw`].
    fn next_bare_id(&self) -> InstanceId {
        InstanceId::random()
    }

    /// Starts what is kept under a name, in a slot; it stays kept.
    ///
    /// # Errors
    /// [`LaunchError`]; nothing is left of it but what is kept.
    async fn thaw(&self, slot: &InstanceId, _from: &InstanceId) -> Result<Launched, LaunchError> {
        Err(LaunchError {
            id: slot.clone(),
            phase: Phase::Restore,
            kind: ErrorKind::Incompatible,
            source: "only shops that were restored can be thawed".into(),
            cleanup: Vec::new(),
        })
    }

    /// Removes what is kept under a name; absent is fine.
    ///
    /// # Errors
    /// When it cannot be removed; call again later.
    async fn forget(&self, _id: &InstanceId) -> std::io::Result<()> {
        Ok(())
    }

    /// Names under which something is kept, whatever the store says.
    ///
    /// # Errors
    /// When the host cannot be searched.
    async fn frozen(&self) -> std::io::Result<Vec<InstanceId>> {
        Ok(Vec::new())
    }

    /// What this driver finds of instances on the host, whatever the store says;
    /// without what it has made ahead.
    ///
    /// # Errors
    /// When the host cannot be searched.
    async fn traces(&self, depth: Depth) -> std::io::Result<Vec<Trace>>;

    /// Takes from an address whatever it was allowed; for one that no instance has.
    ///
    /// # Errors
    /// When the kernel refuses.
    async fn shut(&self, _address: Ipv4Addr) -> std::io::Result<()> {
        Ok(())
    }
}
