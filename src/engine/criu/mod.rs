//! The restore driver: one clone of a prepared snapshot, by CRIU itself.
//!
//! Called through [`super::ContainerEngine`]. Phases of a launch and their undo:
//!
//! ```text
//! slot      take or make directories, cgroup, namespace, address,
//!           with CRIU started in them ([`loaded`])                   undo: remove them
//! restore   ask CRIU to restore, await the pid                       undo: kill the cgroup
//! adopt     name the process by pid and start time                   undo: kill the cgroup
//! ```
//!
//! A shop that was frozen ([`freeze`]) is launched the same way, with the files that
//! it had.
//!
//! Invariants: the images are only read, so any number of restores share them;
//! the clone's files are its overlay upper; all its processes are in its
//! cgroup; nothing of it is mounted on the host.

pub mod freeze;
pub mod images;
mod loaded;
pub mod log;
mod maimed;
pub mod plan;
mod rpc;
mod spawn;
mod version;

use std::fmt;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tracing::Instrument as _;

use self::loaded::{Ahead, Files, Loaded};
use self::plan::{External, StandIn};
pub use self::rpc::RpcError;
use self::rpc::{InheritFd, Options};
use self::spawn::Mount;
pub use self::version::version;
use super::{CleanupError, ContainerEngine, DestroyError, Freeze, FreezeError, LaunchError, Launched, Phase};
use crate::error::{ErrorKind, kind_of_io};
use crate::failpoint;
use crate::host::cgroup::Limits;
use crate::host::slots::{Slot, SlotError, Slots};
use crate::host::{process, tree};
use crate::id::{InstanceId, SnapshotId};
use crate::instance::trace::{Depth, Trace};
use crate::instance::{Container, EngineKind, Source};

/// CRIU's log level: errors only. At crun's level 4 half of a restore's time
/// goes into 49,000 log lines.
const LOG_LEVEL: i32 = 1;

/// The level at which every step has a line.
const LOG_LEVEL_VERBOSE: i32 = 4;

/// How many wait ahead for each golden: a visitor and the one right behind; a
/// burst of more is bound by the restores themselves. Each costs 3 MB. They
/// count among SLOTS_AHEAD.
const LOADED_AHEAD: usize = 2;

/// The log's name in the clone's CRIU directory.
pub const LOG_FILE: &str = "restore.log";

/// The name CRIU's images give to a network namespace crun declared external.
const EXTERNAL_NETNS: &str = "extRootNetNS";

/// A prepared snapshot, as far as restoring needs it.
#[derive(Debug, Clone)]
pub struct RestoreSource {
    /// Its name.
    pub snapshot: SnapshotId,
    /// CRIU's images, unpacked.
    pub images: PathBuf,
    /// Lower directories of a clone's root, the top one first.
    pub lowers: Vec<PathBuf>,
    /// Files of the root that each clone has a copy of its own of soon: those that
    /// CRIU opens for writing, and those that personalizing writes.
    pub written: Vec<String>,
    /// What a clone's first page looks up: absolute paths in its root.
    pub names: Vec<String>,
    /// Permission bits of the root directory: CRIU insists on the golden's.
    pub root_mode: u32,
    /// Mounts that CRIU must be told about.
    pub externals: Vec<External>,
    /// What a clone may use.
    pub limits: Limits,
    /// The web server's port.
    pub port: u16,
    /// How long a restore may take.
    pub deadline: Duration,
}

impl RestoreSource {
    /// Has every clone find a directory of the host, read-only, where the golden
    /// had one as a bind mount.
    pub fn show(&mut self, inside: &str, host: &Path) {
        for external in self.externals.iter_mut().filter(|external| external.key == inside) {
            external.stand_in = StandIn::Host(host.to_owned());
        }
    }
}

/// Why a restore failed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// No slot.
    #[error("no slot for the clone")]
    Slot(#[source] SlotError),
    /// The kernel or the disk said no before CRIU was asked.
    #[error("cannot {step}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// CRIU said no; with the errors of its log.
    #[error("CRIU did not restore{}{}", .reason.map(|r| format!(" ({r})")).unwrap_or_default(), shown(.log))]
    Criu {
        /// The known cause, if it is one.
        reason: Option<&'static str>,
        /// The log's tail.
        log: String,
        /// CRIU's answer.
        #[source]
        source: RpcError,
    },
    /// CRIU did not come to an end.
    #[error("CRIU did not restore within {} s{}", .deadline.as_secs(), shown(.log))]
    Deadline {
        /// How long it had.
        deadline: Duration,
        /// The log's tail.
        log: String,
    },
}

fn shown(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("; its log ends:\n{log}\n") }
}

impl RestoreError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Slot(error) => error.kind(),
            Self::Io { source, .. } => kind_of_io(source),
            Self::Criu { log, .. } if log.contains("No space left on device") => ErrorKind::NoSpace,
            Self::Criu { .. } => ErrorKind::Incompatible,
            Self::Deadline { .. } => ErrorKind::Unavailable,
        }
    }
}

fn io_at(step: &'static str) -> impl FnOnce(io::Error) -> RestoreError {
    move |source| RestoreError::Io { step, source }
}

/// The driver.
pub struct CriuEngine {
    source: RestoreSource,
    log_level: i32,
    images: OwnedFd,
    files: Arc<Files>,
    /// What a clone has changed already, if it is not a new one.
    changed: Option<PathBuf>,
    slots: Arc<Slots>,
    ahead: Ahead,
    /// One filling at a time.
    filling: tokio::sync::Mutex<()>,
}

impl fmt::Debug for CriuEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CriuEngine").field("snapshot", &self.source.snapshot).finish_non_exhaustive()
    }
}

impl CriuEngine {
    /// A driver for one prepared snapshot.
    ///
    /// # Errors
    /// When the images cannot be opened.
    pub fn new(source: RestoreSource, slots: Arc<Slots>) -> io::Result<Self> {
        let images = OwnedFd::from(File::open(&source.images)?);
        let files = Files { written: source.written.clone(), names: source.names.clone() }.into();
        Ok(Self {
            source,
            log_level: LOG_LEVEL,
            images,
            files,
            changed: None,
            slots,
            ahead: Ahead::default(),
            filling: tokio::sync::Mutex::default(),
        })
    }

    /// Has CRIU say what it does and when; slow, for the bench's trace.
    #[must_use]
    pub fn verbose(self) -> Self {
        Self { log_level: LOG_LEVEL_VERBOSE, ..self }
    }

    /// Starts CRIU in a slot; the slot is removed when that fails.
    fn load(&self, slot: Slot) -> Result<Loaded, RestoreError> {
        self.slots.cgroups().limit(&slot.id, self.source.limits).map_err(io_at("set the clone's limits"))?;
        let (mounts, external) = self.stand_ins(&slot).map_err(io_at("lay out the clone's files"))?;
        Loaded::start(slot, mounts, external)
    }

    /// Takes what waits under that id, or makes it now.
    async fn take(&self, id: &InstanceId) -> Result<Loaded, RestoreError> {
        match self.ahead.take(id) {
            Some(Ok(loaded)) => {
                self.slots.release_hold(id);
                Ok(loaded)
            }
            Some(Err(slot)) => {
                self.slots.release_hold(id);
                self.load(slot)
            }
            None => {
                let slot = self.slots.take(id).await.map_err(RestoreError::Slot)?;
                if let Some(changed) = &self.changed {
                    let copied = tree::copy(changed, &slot.dirs.upper).await;
                    copied.map_err(io_at("copy the files that the shop had"))?;
                }
                self.load(slot)
            }
        }
    }

    async fn restore(&self, loaded: Loaded) -> Result<(Slot, i32), RestoreError> {
        let Loaded { slot, client, mut criu, external, work_dir } = loaded;
        failpoint::hit("restore:before-criu").map_err(io_at("pass a fail point"))?;
        let request = client.restore(Options {
            images_dir_fd: self.images.as_raw_fd(),
            work_dir_fd: Some(work_dir.as_raw_fd()),
            log_level: Some(self.log_level),
            log_file: Some(LOG_FILE.into()),
            root: Some(slot.dirs.root.display().to_string()),
            external,
            inherit_fd: vec![InheritFd { key: EXTERNAL_NETNS.into(), fd: slot.netns.as_raw_fd() }],
            manage_cgroups_mode: Some(rpc::CGROUPS_IGNORE),
            network_lock: Some(rpc::NETWORK_LOCK_SKIP),
            file_locks: Some(true),
            shell_job: Some(true),
            tcp_close: self.changed.is_some().then_some(true),
            ..Options::default()
        });
        let answer = tokio::time::timeout(self.source.deadline, request).await;
        let log = || log::tail(&slot.dirs.criu.join(LOG_FILE)) + &log::tail(&slot.dirs.criu.join("stderr"));
        match answer {
            Ok(Ok(pid)) => {
                // CRIU ends by itself now; waiting for it is only to reap it.
                tokio::spawn(async move { criu.wait().await });
                failpoint::hit("restore:after-criu").map_err(io_at("pass a fail point"))?;
                Ok((slot, pid))
            }
            Ok(Err(source)) => {
                drop(criu.wait().await);
                log::can_be_written(&slot.dirs.criu.join(LOG_FILE)).map_err(io_at("write CRIU's log"))?;
                let log = log();
                Err(RestoreError::Criu { reason: log::reason(&log), log, source })
            }
            Err(_) => Err(RestoreError::Deadline { deadline: self.source.deadline, log: log() }),
        }
    }

    /// The clone's mounts, and CRIU's words for the external ones among them.
    fn stand_ins(&self, slot: &Slot) -> io::Result<(Vec<Mount>, Vec<String>)> {
        let dirs = &slot.dirs;
        std::fs::set_permissions(&dirs.upper, std::fs::Permissions::from_mode(self.source.root_mode))?;
        let lowers: Vec<&Path> = self.source.lowers.iter().map(PathBuf::as_path).collect();
        let mut mounts = vec![Mount::overlay(&lowers, &dirs.upper, &dirs.work, &dirs.root)?];
        // Masks of crun's are files of the host, and CRIU leaves all but the first
        // of a kind writable: root inside could change the mode of /dev/null. So
        // they are the clone's own, and read-only before CRIU binds them.
        let (null, empty) = (dirs.external.join("null"), dirs.external.join("empty"));
        std::fs::write(&null, b"")?;
        make_dir(&empty)?;
        for mask in [&null, &empty] {
            mounts.push(Mount::read_only(mask, mask)?);
        }
        let mut words = Vec::new();
        for External { key, stand_in } in &self.source.externals {
            let own = dirs.external.join(plan::file_name(key));
            let path = match stand_in {
                StandIn::Null => &null,
                StandIn::Devices => self.slots.devices(),
                StandIn::EmptyDir => &empty,
                StandIn::File => {
                    std::fs::write(&own, b"")?;
                    &own
                }
                StandIn::Tmpfs => {
                    make_dir(&own)?;
                    mounts.push(Mount::tmpfs(&own)?);
                    &own
                }
                StandIn::Host(directory) => {
                    make_dir(&own)?;
                    mounts.push(Mount::read_only(directory, &own)?);
                    &own
                }
            };
            words.push(format!("mnt[{key}]:{}", path.display()));
        }
        Ok((mounts, words))
    }

    async fn undo(&self, id: &InstanceId) -> Vec<CleanupError> {
        self.ahead.forget(id);
        let failed = self.slots.remove(id).await;
        failed.into_iter().map(|(step, source)| CleanupError { step, source }).collect()
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

#[async_trait]
impl ContainerEngine for CriuEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Criu
    }

    fn source(&self) -> Source {
        Source::Restore
    }

    fn next_id(&self) -> InstanceId {
        self.ahead.name().unwrap_or_else(|| self.slots.next_id())
    }

    fn unused(&self, id: &InstanceId) {
        if !self.ahead.unused(id) {
            self.slots.unused(id);
        }
    }

    async fn fill(&self) -> io::Result<()> {
        let _one = self.filling.lock().await;
        while self.ahead.len() < LOADED_AHEAD.min(self.slots.ahead()) {
            let slot = self.slots.take_held().await.map_err(io::Error::other)?;
            let id = slot.id.clone();
            let loaded = match self.load(slot) {
                Ok(loaded) => loaded.with_files(Arc::clone(&self.files)).await,
                Err(error) => Err(error),
            };
            match loaded {
                Ok(loaded) => self.ahead.put(loaded),
                Err(error) => {
                    self.slots.release_hold(&id);
                    drop(self.undo(&id).await);
                    return Err(io::Error::other(error));
                }
            }
        }
        Ok(())
    }

    async fn drain(&self) -> Vec<CleanupError> {
        let mut cleanup = Vec::new();
        for id in self.ahead.ids() {
            cleanup.extend(self.undo(&id).await);
            self.slots.release_hold(&id);
        }
        cleanup
    }

    async fn launch(&self, id: &InstanceId) -> Result<Launched, LaunchError> {
        let begun = Instant::now();
        let mut phase = Phase::Slot;
        let mut phases = Vec::with_capacity(3);
        let result = async {
            let loaded = self.take(id).instrument(phase.span()).await?;
            phases.push((phase, begun.elapsed()));
            phase = Phase::Restore;
            let mark = Instant::now();
            let (slot, pid) = self.restore(loaded).instrument(phase.span()).await?;
            phases.push((phase, mark.elapsed()));
            phase = Phase::Adopt;
            let start_ticks = phase
                .span()
                .in_scope(|| process::start_ticks(pid))
                .map_err(io_at("find the restored process"))?;
            Ok::<_, RestoreError>((slot, pid, start_ticks))
        };
        match result.await {
            Ok((slot, pid, start_ticks)) => Ok(Launched {
                container: Container {
                    engine: EngineKind::Criu,
                    pid,
                    start_ticks,
                    address: slot.lease.keep(),
                    port: self.source.port,
                },
                snapshot: Some(self.source.snapshot.clone()),
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

    async fn adopt(&self, id: &InstanceId, container: &Container) -> bool {
        let lives = self.slots.adopt(container).await;
        if lives {
            // They are in force since its launch; said again so that what no
            // controller holds is watched by this daemon.
            drop(self.slots.cgroups().limit(id, self.source.limits));
        }
        lives
    }

    async fn fell_asleep(&self, id: &InstanceId, container: &Container) -> bool {
        self.frozen_dir().is_end_of(id, container)
    }

    async fn ended(&self, container: &Container) {
        process::ended_by_name(container.pid, container.start_ticks).await;
    }

    async fn freeze(&self, freeze: Freeze<'_>) -> Result<(), FreezeError> {
        self.freeze_now(freeze).await
    }

    fn next_bare_id(&self) -> InstanceId {
        self.slots.next_id()
    }

    async fn thaw(&self, slot: &InstanceId, from: &InstanceId) -> Result<Launched, LaunchError> {
        self.thaw_now(slot, from).await
    }

    async fn forget(&self, id: &InstanceId) -> io::Result<()> {
        let (dir, id) = (self.frozen_dir(), id.clone());
        tokio::task::spawn_blocking(move || dir.remove(&id)).await.map_err(io::Error::other)?
    }

    async fn frozen(&self) -> io::Result<Vec<InstanceId>> {
        self.frozen_dir().list()
    }

    async fn traces(&self, depth: Depth) -> io::Result<Vec<Trace>> {
        self.slots.traces(depth).await
    }

    async fn shut(&self, address: Ipv4Addr) -> io::Result<()> {
        self.slots.network().shut(address).await
    }
}
