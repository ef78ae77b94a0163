//! CRIU started ahead: in its slot, mounts made, waiting for the word.
//!
//! Owned by [`super::CriuEngine`]. Starting the program, mounting the clone's
//! file systems and copying up the files that it is going to write to takes about
//! a third of a restore; done before the click, the click costs one message. A waiting server ends with its socket,
//! so a daemon that dies leaves none.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use tokio::process::Child;

use super::rpc::Client;
use super::spawn::{self, Mount, Place};
use super::{RestoreError, io_at};
use crate::host::slots::Slot;
use crate::id::InstanceId;

/// Files of the golden that are worth a clone's attention ahead; absolute paths in
/// its root.
#[derive(Debug)]
pub(super) struct Files {
    /// Those that it is going to write to.
    pub(super) written: Vec<String>,
    /// Those that its first page looks up.
    pub(super) names: Vec<String>,
}

/// A slot with a CRIU that waits in it.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) slot: Slot,
    pub(super) client: Client,
    pub(super) criu: Child,
    /// CRIU's words for the clone's external mounts.
    pub(super) external: Vec<String>,
    pub(super) work_dir: File,
}

impl Loaded {
    /// Starts CRIU in the slot.
    pub(super) fn start(slot: Slot, mounts: Vec<Mount>, external: Vec<String>) -> Result<Self, RestoreError> {
        let (client, server) = Client::pair().map_err(io_at("make a socket for CRIU"))?;
        let work_dir = File::open(&slot.dirs.criu).map_err(io_at("open CRIU's directory"))?;
        let stderr = File::create(slot.dirs.criu.join("stderr")).map_err(io_at("open CRIU's directory"))?;
        let inherit = vec![slot.netns.as_raw_fd()];
        let place = Place { socket: server, inherit, cgroup: &slot.cgroup, mounts, stderr };
        let criu = spawn::swrk(place).map_err(io_at("start CRIU"))?;
        Ok(Self { slot, client, criu, external, work_dir })
    }

    /// Has the overlay copy the files up that CRIU is going to open for writing,
    /// some forty of a database's, and the directories of those that are written
    /// anew; and has the kernel find the names that the first page asks for, some
    /// 7 us each in a new overlay (2 of a later page's). What cannot be copied is
    /// left to CRIU, which says why.
    pub(super) async fn with_files(self, files: Arc<Files>) -> Result<Self, RestoreError> {
        let Some(pid) = self.criu.id() else { return Ok(self) };
        let root = format!("/proc/{pid}/root{}", self.slot.dirs.root.display());
        let copied = tokio::task::spawn_blocking(move || {
            let root = OwnedFd::from(File::open(root)?);
            for path in &files.written {
                drop(copy_up(&root, path));
            }
            let found = look_up(&root, &files.names);
            tracing::debug!(found, of = files.names.len(), "names looked up ahead");
            Ok(())
        });
        copied.await.map_err(io::Error::other).flatten().map_err(io_at("copy the clone's files"))?;
        Ok(self)
    }

    /// Whether its CRIU still waits.
    fn waits(&mut self) -> bool {
        matches!(self.criu.try_wait(), Ok(None))
    }
}

/// Opens a file below `root`, wherever links in it lead.
fn open(root: &OwnedFd, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Has the kernel find the names below `root`; answers how many there are.
fn look_up(root: &OwnedFd, names: &[String]) -> usize {
    names.iter().filter(|name| open(root, name, OFlags::PATH).is_ok()).count()
}

/// Opens a file below `root` for writing, or has its directory changed when it is
/// not there.
fn copy_up(root: &OwnedFd, path: &str) -> io::Result<()> {
    match open(root, path, OFlags::RDWR | OFlags::NONBLOCK) {
        Err(Errno::NOENT) => {
            let parent = Path::new(path).parent().and_then(Path::to_str).unwrap_or("/");
            let directory = File::from(open(root, parent, OFlags::RDONLY | OFlags::DIRECTORY)?);
            directory.set_permissions(directory.metadata()?.permissions())
        }
        opened => Ok(opened.map(drop)?),
    }
}

/// Those that wait.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    ready: Mutex<Ready>,
}

#[derive(Debug, Default)]
struct Ready {
    /// Nobody's yet.
    waiting: HashMap<InstanceId, Loaded>,
    /// Named to somebody who is about to launch it or to give it back.
    named: HashMap<InstanceId, Loaded>,
}

impl Ahead {
    fn ready(&self) -> MutexGuard<'_, Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.ready().waiting.len()
    }

    pub(super) fn put(&self, loaded: Loaded) {
        self.ready().waiting.insert(loaded.slot.id.clone(), loaded);
    }

    /// Names one, nobody else's.
    pub(super) fn name(&self) -> Option<InstanceId> {
        let mut ready = self.ready();
        let id = ready.waiting.keys().next().cloned()?;
        let loaded = ready.waiting.remove(&id)?;
        ready.named.insert(id.clone(), loaded);
        Some(id)
    }

    /// Takes back a name; false when it is none of these.
    pub(super) fn unused(&self, id: &InstanceId) -> bool {
        let mut ready = self.ready();
        match ready.named.remove(id) {
            Some(loaded) => ready.waiting.insert(id.clone(), loaded).is_none(),
            None => false,
        }
    }

    /// Takes the one of that name, if its CRIU lives; else its bare slot.
    pub(super) fn take(&self, id: &InstanceId) -> Option<Result<Loaded, Slot>> {
        let mut ready = self.ready();
        let mut loaded = ready.named.remove(id).or_else(|| ready.waiting.remove(id))?;
        Some(if loaded.waits() { Ok(loaded) } else { Err(loaded.slot) })
    }

    /// Lets go of one, whatever became of it.
    pub(super) fn forget(&self, id: &InstanceId) {
        let mut ready = self.ready();
        drop(ready.named.remove(id).or_else(|| ready.waiting.remove(id)));
    }

    /// Ids of all that wait; for the end of the daemon.
    pub(super) fn ids(&self) -> Vec<InstanceId> {
        let ready = self.ready();
        ready.waiting.keys().chain(ready.named.keys()).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_below_the_root_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("shop")).unwrap();
        std::fs::write(dir.path().join("shop/index.php"), "").unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("shop/up")).unwrap();
        let root = OwnedFd::from(File::open(dir.path()).unwrap());
        let names = ["/shop/index.php", "/shop/up/shop/index.php", "/etc/passwd", "/shop/up/etc/passwd"];
        assert_eq!(look_up(&root, &names.map(str::to_owned)), 2);
    }
}
