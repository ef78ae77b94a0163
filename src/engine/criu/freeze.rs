//! Freezing a restored shop, and what is kept of it.
//!
//! Called through [`super::CriuEngine`]. What is kept is a directory, root's alone:
//!
//! ```text
//! STATE_DIR/asleep/<instance id>/
//!   frozen.json   its form's version, the snapshot that the shop stands on, and the
//!                 process that ends with it
//!   digests       of CRIU's images ([`crate::host::digests`])
//!   images/       CRIU's
//!   upper/        what the shop has changed, a copy by reference
//! ```
//!
//! Phases and their undo:
//!
//! ```text
//! ask CRIU to dump the tree              it goes on running
//! CRIU says it is all written, and waits:
//!   copy the files, write frozen.json, let the directory appear by a rename
//!   say so                               no: the tree goes on running, remove the directory
//! CRIU ends the tree, or lets it go on   (nothing to undo)
//! CRIU died, and a part of the tree with it: end what is left ([`super::maimed`])
//! ```
//!
//! Invariants: the files are those of the moment of the memory, since nothing of the
//! tree runs while they are copied; until a whole directory is there, nothing is
//! ended: a daemon that dies closes CRIU's socket, which CRIU takes for a no. So a
//! tree that is gone and that `frozen.json` names fell asleep, whether or not
//! somebody lived to write that down. Images that a disk has damaged are nobody's shop:
//! they are read beside the restore, which takes longer (60 MB are 15 ms). The files have
//! no digests: a database has checks of its own in its pages.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::maimed::Children;
use super::plan::External;
use super::rpc::{CGROUPS_IGNORE, Client, NETWORK_LOCK_SKIP, Options, RpcError};
use super::{CriuEngine, EXTERNAL_NETNS, LOG_LEVEL, RestoreSource, log, spawn};
use crate::engine::{ContainerEngine as _, Freeze, FreezeError, LaunchError, Launched, Phase, Then};
use crate::error::kind_of_io;
use crate::failpoint;
use crate::host::digests::Digests;
use crate::host::slots::make_private;
use crate::host::{process, tree};
use crate::id::{InstanceId, SnapshotId};
use crate::instance::Container;
use crate::sealed;
use crate::snapshot::prepare;

/// The version this program writes into `frozen.json`.
const VERSION: u16 = 1;

const RECORD: &str = "frozen.json";
const LOG_FILE: &str = "dump.log";
const DIGESTS: &str = "digests";

/// Names of what is half written.
const UNFINISHED: &str = ".new-";

/// How long CRIU may take: a shop's memory is below a gigabyte. The tree stands still
/// meanwhile.
const DEADLINE: Duration = Duration::from_secs(60);

/// Files that are open and have no name, such as a database's temporary tables, are
/// kept up to this size each.
const GHOST_MAX: u32 = 64 << 20;

/// What is known of a frozen shop.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u16,
    snapshot: SnapshotId,
    /// The first process of the tree, pid and start time, where the tree ends with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ends: Option<(i32, u64)>,
}

/// Where frozen shops are.
#[derive(Debug, Clone)]
pub struct FrozenDir(PathBuf);

impl FrozenDir {
    /// Below the daemon's own directory.
    #[must_use]
    pub fn of(state_dir: &Path) -> Self {
        Self(state_dir.join("asleep"))
    }

    fn path(&self, id: &InstanceId) -> PathBuf {
        self.0.join(id.as_str())
    }

    /// CRIU's images of a frozen shop.
    #[must_use]
    pub fn images(&self, id: &InstanceId) -> PathBuf {
        self.path(id).join("images")
    }

    /// Its files.
    #[must_use]
    pub fn upper(&self, id: &InstanceId) -> PathBuf {
        self.path(id).join("upper")
    }

    /// The snapshot that a frozen shop stands on.
    ///
    /// # Errors
    /// When there is none of that name, or a later program wrote it.
    pub fn snapshot(&self, id: &InstanceId) -> io::Result<SnapshotId> {
        Ok(self.read(id)?.snapshot)
    }

    /// Whether what is kept under that name is all that there was of a container when
    /// it ended.
    #[must_use]
    pub fn is_end_of(&self, id: &InstanceId, container: &Container) -> bool {
        self.read(id).is_ok_and(|record| record.ends == Some((container.pid, container.start_ticks)))
    }

    fn read(&self, id: &InstanceId) -> io::Result<Record> {
        let path = self.path(id).join(RECORD);
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let bytes = std::fs::read(&path).map_err(named)?;
        let record: Record = sealed::open(&bytes).map_err(io::Error::from).map_err(named)?;
        match record.version {
            VERSION => Ok(record),
            other => {
                Err(named(io::Error::other(format!("it is of version {other}: a later program wrote it"))))
            }
        }
    }

    /// Fails when CRIU's images of a frozen shop are not what was written. Blocks.
    fn verify(&self, id: &InstanceId) -> io::Result<()> {
        let digests = match Digests::read(&self.path(id).join(DIGESTS)) {
            // A former program's.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            read => read?,
        };
        let images = self.images(id);
        match digests.differing(&images)?.first() {
            None => Ok(()),
            Some(name) => {
                let damaged = format!("{} is damaged", images.join(name).display());
                Err(io::Error::new(io::ErrorKind::InvalidData, damaged))
            }
        }
    }

    /// Takes in a shop that was frozen before: `fill` puts its images and files into
    /// the directory that it is given. Blocks.
    ///
    /// # Errors
    /// As `fill`, or when the disk says no; nothing is there then.
    pub fn receive(
        &self,
        id: &InstanceId,
        snapshot: &SnapshotId,
        fill: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<()> {
        let new = self.0.join(format!("{UNFINISHED}{id}"));
        self.remove(id)?;
        let received = (|| {
            make_private(&new)?;
            fill(&new)?;
            digest(&new)?;
            let record = Record { version: VERSION, snapshot: snapshot.clone(), ends: None };
            std::fs::write(new.join(RECORD), sealed::seal(&record)?.to_string())?;
            std::fs::rename(&new, self.path(id))
        })();
        if received.is_err() {
            // What cannot be removed now is swept.
            drop(self.remove(id));
        }
        received
    }

    /// Names of all that is there, whole or not.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> io::Result<Vec<InstanceId>> {
        let entries = match std::fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let name = name.to_str().map(|name| name.strip_prefix(UNFINISHED).unwrap_or(name));
            found.extend(name.and_then(|name| name.parse::<InstanceId>().ok()));
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Directories that each frozen shop of that daemon stands on, once it is thawed.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn lowers(state_dir: &Path) -> io::Result<Vec<(InstanceId, Vec<PathBuf>)>> {
        let dir = Self::of(state_dir);
        let stands_on = |id: InstanceId| {
            let snapshot = dir.snapshot(&id).ok()?;
            // One that is not there any more holds nothing back.
            Some((id, prepare::found(state_dir, &snapshot, DEADLINE).ok()?.lowers))
        };
        Ok(dir.list()?.into_iter().filter_map(stands_on).collect())
    }

    /// Removes what is there of a frozen shop; absent is fine.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, id: &InstanceId) -> io::Result<()> {
        tree::remove(&self.path(id))?;
        tree::remove(&self.0.join(format!("{UNFINISHED}{id}")))
    }
}

/// Records what CRIU's images in a directory are. Blocks.
fn digest(dir: &Path) -> io::Result<()> {
    // Beside them CRIU goes on writing its log and statistics.
    let is_image = |name: &Path| name.extension().is_some_and(|extension| extension == "img");
    Digests::of(&dir.join("images"), is_image)?.write(&dir.join(DIGESTS))
}

/// One freezing.
struct Freezing<'a> {
    /// Under which name it is kept.
    id: &'a InstanceId,
    /// What runs.
    container: &'a Container,
    /// Its files.
    upper: &'a Path,
    /// The snapshot that it stands on.
    snapshot: &'a SnapshotId,
    /// The mounts that CRIU is not to look into.
    externals: &'a [External],
    /// What becomes of it.
    then: Then,
}

impl CriuEngine {
    /// Freezes a shop of this driver's kind, whichever snapshot it stands on.
    pub(super) async fn freeze_now(&self, freeze: Freeze<'_>) -> Result<(), FreezeError> {
        let snapshot = freeze.snapshot.unwrap_or(&self.source.snapshot);
        let found = prepare::found(self.slots.state_dir(), snapshot, self.source.deadline);
        let found = found.map_err(|error| FreezeError::Io {
            step: "find the snapshot that it stands on",
            source: io::Error::other(error),
        })?;
        let freezing = Freezing {
            id: freeze.id,
            container: freeze.container,
            upper: &self.slots.dirs(freeze.slot).upper,
            snapshot,
            externals: &found.externals,
            then: freeze.then,
        };
        self::freeze(&self.frozen_dir(), freezing).await
    }

    /// A driver for what is frozen under that name.
    pub(super) fn of_frozen(&self, id: &InstanceId) -> io::Result<Self> {
        let (dir, state_dir) = (self.frozen_dir(), self.slots.state_dir());
        let found = prepare::found(state_dir, &dir.snapshot(id)?, self.source.deadline);
        let found = found.map_err(io::Error::other)?;
        let source = RestoreSource { images: dir.images(id), written: Vec::new(), ..found };
        Ok(Self { changed: Some(dir.upper(id)), ..Self::new(source, Arc::clone(&self.slots))? })
    }

    /// Launches what is frozen under a name.
    pub(super) async fn thaw_now(
        &self,
        slot: &InstanceId,
        from: &InstanceId,
    ) -> Result<Launched, LaunchError> {
        let failed = |phase, step, error, cleanup| LaunchError {
            id: slot.clone(),
            phase,
            kind: kind_of_io(&error),
            source: Box::new(super::io_at(step)(error)),
            cleanup,
        };
        let driver = match self.of_frozen(from) {
            Ok(driver) => driver,
            Err(error) => {
                self.slots.unused(slot);
                return Err(failed(Phase::Slot, "find what was frozen", error, Vec::new()));
            }
        };
        let (dir, id) = (self.frozen_dir(), from.clone());
        let (state_dir, snapshot) = (self.slots.state_dir().to_owned(), driver.source.snapshot.clone());
        let verified = tokio::task::spawn_blocking(move || {
            prepare::is_whole(&state_dir, &snapshot)?;
            dir.verify(&id)
        });
        let launched = driver.launch(slot).await;
        match verified.await.map_err(io::Error::other).flatten() {
            Ok(()) => launched,
            Err(error) => {
                let cleanup = if launched.is_ok() { self.undo(slot).await } else { Vec::new() };
                Err(failed(Phase::Restore, "use what was frozen", error, cleanup))
            }
        }
    }

    pub(super) fn frozen_dir(&self) -> FrozenDir {
        FrozenDir::of(self.slots.state_dir())
    }
}

fn io_at(step: &'static str) -> impl FnOnce(io::Error) -> FreezeError {
    move |source| FreezeError::Io { step, source }
}

/// Freezes a shop.
///
/// # Errors
/// [`FreezeError`]; nothing is kept.
async fn freeze(dir: &FrozenDir, freezing: Freezing<'_>) -> Result<(), FreezeError> {
    let id = freezing.id.clone();
    let frozen = dump(dir, freezing).await;
    if frozen.is_err() {
        let dir = dir.clone();
        let removed = tokio::task::spawn_blocking(move || dir.remove(&id)).await;
        if let Err(error) = removed.map_err(io::Error::other).flatten() {
            tracing::warn!(error = %error, "what a failed freezing has left is not removed yet");
        }
    }
    frozen
}

async fn dump(dir: &FrozenDir, freezing: Freezing<'_>) -> Result<(), FreezeError> {
    let Freezing { id, container, upper, snapshot, externals, then } = freezing;
    let new = dir.0.join(format!("{UNFINISHED}{id}"));
    let (images, files) = (new.join("images"), new.join("upper"));
    dir.remove(id).map_err(io_at("remove what was kept before"))?;
    for made in [&images, &files] {
        make_private(made).map_err(io_at("make a directory for it"))?;
    }
    let gone = || io::Error::new(io::ErrorKind::NotFound, "its first process is gone");
    let alive = process::open(container.pid, container.start_ticks).map_err(io_at("find its process"))?;
    let alive = alive.ok_or_else(gone).map_err(io_at("find its process"))?;
    let children = Children::of(container.pid).map_err(io_at("find its processes"))?;
    let netns = std::fs::metadata(format!("/proc/{}/ns/net", container.pid));
    let netns = netns.map_err(io_at("find its network"))?.ino();
    let images_dir = File::open(&images).map_err(io_at("open the directory of its images"))?;
    let mut external: Vec<String> =
        externals.iter().map(|External { key, .. }| format!("mnt[{key}]:{key}")).collect();
    external.push(format!("net[{netns}]:{EXTERNAL_NETNS}"));
    let options = Options {
        images_dir_fd: images_dir.as_raw_fd(),
        work_dir_fd: Some(images_dir.as_raw_fd()),
        pid: Some(container.pid),
        leave_running: Some(then == Then::GoOn),
        log_level: Some(LOG_LEVEL),
        log_file: Some(LOG_FILE.into()),
        external,
        manage_cgroups_mode: Some(CGROUPS_IGNORE),
        network_lock: Some(NETWORK_LOCK_SKIP),
        file_locks: Some(true),
        shell_job: Some(true),
        // Whoever is connected still is not any more.
        tcp_close: Some(true),
        ghost_limit: Some(GHOST_MAX),
        notify_scripts: Some(true),
        ..Options::default()
    };
    failpoint::hit("freeze:before-dump").map_err(io_at("pass a fail point"))?;
    let (client, server) = Client::pair().map_err(io_at("make a socket for CRIU"))?;
    let mut criu = spawn::bare(server).map_err(io_at("start CRIU"))?;
    let written = async {
        let images = new.clone();
        let digested = tokio::task::spawn_blocking(move || digest(&images));
        let copied = tree::copy(upper, &files).await;
        digested.await.map_err(io::Error::other).flatten()?;
        copied?;
        let ends = (then == Then::Stop).then_some((container.pid, container.start_ticks));
        let record = Record { version: VERSION, snapshot: snapshot.clone(), ends };
        std::fs::write(new.join(RECORD), sealed::seal(&record)?.to_string())?;
        failpoint::hit("freeze:before-rename")?;
        std::fs::rename(&new, dir.path(id))?;
        failpoint::hit("freeze:after-rename")
    };
    let mut kept = Ok(());
    let answer = tokio::time::timeout(DEADLINE, async {
        let said = client.dump(options, async {
            kept = written.await;
            kept.is_ok()
        });
        said.await
    });
    let answer = answer.await;
    // Its word is given, or it is killed, which lets the tree go on.
    if answer.is_err() {
        drop(criu.start_kill());
    }
    drop(criu.wait().await);
    kept.map_err(io_at("copy its files"))?;
    let log = || log::tail(&images.join(LOG_FILE)) + &log::tail(&dir.images(id).join(LOG_FILE));
    let has_died = matches!(answer, Err(_) | Ok(Err(RpcError::Silent(_) | RpcError::Form(_))));
    if has_died && children.is_one_gone().await {
        process::kill(&alive).map_err(io_at("end what is left of it"))?;
        return Err(FreezeError::Maimed { log: log() });
    }
    match answer {
        Ok(Ok(())) => Ok(()),
        Ok(Err(source)) => Err(FreezeError::Criu { log: log(), source: Box::new(source) }),
        Err(_) => Err(FreezeError::Deadline { deadline: DEADLINE }),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::instance::EngineKind;

    fn container(pid: i32) -> Container {
        Container { engine: EngineKind::Criu, pid, start_ticks: 7, address: Ipv4Addr::LOCALHOST, port: 80 }
    }

    fn kept(record: &Record) -> (tempfile::TempDir, FrozenDir, InstanceId) {
        let (state, id) = (tempfile::tempdir().unwrap(), InstanceId::random());
        let dir = FrozenDir::of(state.path());
        std::fs::create_dir_all(dir.path(&id)).unwrap();
        std::fs::write(dir.path(&id).join(RECORD), sealed::seal(record).unwrap().to_string()).unwrap();
        (state, dir, id)
    }

    fn snapshot() -> SnapshotId {
        "shop-20260101t000000z-0001".parse().unwrap()
    }

    #[test]
    fn what_is_kept_is_the_end_of_one_container_alone() {
        let (_state, dir, id) = kept(&Record { version: VERSION, snapshot: snapshot(), ends: Some((3, 7)) });
        assert!(dir.is_end_of(&id, &container(3)));
        assert!(!dir.is_end_of(&id, &container(4)), "another one, woken since");
        assert!(!dir.is_end_of(&InstanceId::random(), &container(3)));
        let (_state, dir, id) = kept(&Record { version: VERSION, snapshot: snapshot(), ends: None });
        assert!(!dir.is_end_of(&id, &container(3)), "it was to go on");
    }

    #[test]
    fn a_damaged_record_never_names_another_snapshot() {
        let (_state, dir, id) = kept(&Record { version: VERSION, snapshot: snapshot(), ends: Some((3, 7)) });
        let read = || match dir.snapshot(&id) {
            Ok(snapshot) => Some(snapshot),
            Err(error) => {
                assert!(error.to_string().contains("frozen.json"), "{error}");
                None
            }
        };
        sealed::damaged_is_refused_or_the_same(&dir.path(&id).join(RECORD), read);
    }

    #[test]
    fn an_image_that_a_disk_has_damaged_is_named_and_one_of_a_former_program_is_used() {
        let (_state, dir, id) = kept(&Record { version: VERSION, snapshot: snapshot(), ends: None });
        std::fs::create_dir(dir.images(&id)).unwrap();
        let (pages, log) = (dir.images(&id).join("pages-1.img"), dir.images(&id).join(LOG_FILE));
        std::fs::write(&pages, vec![3; 9000]).unwrap();
        dir.verify(&id).unwrap();
        digest(&dir.path(&id)).unwrap();
        std::fs::write(log, "written later").unwrap();
        dir.verify(&id).unwrap();
        std::fs::write(&pages, [vec![3; 8999], vec![2]].concat()).unwrap();
        let told = dir.verify(&id).unwrap_err().to_string();
        assert!(told.contains(pages.to_str().unwrap()) && told.contains("is damaged"), "{told}");
    }

    #[test]
    fn a_later_programs_record_says_so_and_one_of_before_is_read() {
        let (_state, dir, id) = kept(&Record { version: VERSION + 1, snapshot: snapshot(), ends: None });
        assert!(dir.snapshot(&id).unwrap_err().to_string().contains("a later program wrote it"));
        let former = format!(r#"{{"version":1,"snapshot":"{}"}}"#, snapshot());
        std::fs::write(dir.path(&id).join(RECORD), former).unwrap();
        assert_eq!(dir.snapshot(&id).unwrap(), snapshot());
        assert!(!dir.is_end_of(&id, &container(3)));
    }
}
