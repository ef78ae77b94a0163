//! Starting CRIU where the clone is to live.
//!
//! CRIU is started inside the clone's cgroup, so that the tree sits there from
//! its first moment, inside a cgroup namespace that ends there, so that a clone
//! sees no name of a sibling, and inside a mount namespace of its own in which
//! the clone's file systems are mounted. Nothing is ever mounted on the host: when
//! CRIU has ended only the clone's own namespace holds the overlay, and when
//! the clone has ended nothing does. A restore's cost therefore does not grow
//! with the number of clones, as it does when CRIU copies a mount table that
//! holds all of them (criu#268).

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Stdio;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::io::{FdFlags, fcntl_setfd};
use tokio::process::{Child, Command};

/// A file system mounted for the clone.
#[derive(Debug, Clone)]
pub(super) struct Mount {
    /// What is mounted: a directory of the host, else the kind's own name.
    source: CString,
    kind: &'static CStr,
    target: CString,
    options: CString,
    flags: MsFlags,
}

impl Mount {
    /// The clone's root: `lowers` (the top one first) below `upper`.
    pub(super) fn overlay(lowers: &[&Path], upper: &Path, work: &Path, target: &Path) -> io::Result<Self> {
        let mut options = b"lowerdir=".to_vec();
        for (n, lower) in lowers.iter().enumerate() {
            if n > 0 {
                options.push(b':');
            }
            options.extend(plain(lower)?);
        }
        for (key, path) in [(",upperdir=", upper), (",workdir=", work)] {
            options.extend(key.as_bytes());
            options.extend(plain(path)?);
        }
        // Data of throw-away clones need not be on disk when they are unmounted.
        options.extend(b",volatile");
        Ok(Self {
            source: c"overlay".to_owned(),
            kind: c"overlay",
            target: CString::new(target.as_os_str().as_bytes())?,
            options: CString::new(options)?,
            flags: MsFlags::MS_NODEV,
        })
    }

    /// A small tmpfs, for what the golden had as a bind of one.
    pub(super) fn tmpfs(target: &Path) -> io::Result<Self> {
        Ok(Self {
            source: c"tmpfs".to_owned(),
            kind: c"tmpfs",
            target: CString::new(target.as_os_str().as_bytes())?,
            options: c"size=64m,mode=1777".to_owned(),
            flags: MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        })
    }

    /// A directory or file of the host that the clone may look into.
    pub(super) fn read_only(source: &Path, target: &Path) -> io::Result<Self> {
        Ok(Self {
            source: CString::new(source.as_os_str().as_bytes())?,
            kind: c"none",
            target: CString::new(target.as_os_str().as_bytes())?,
            options: c"".to_owned(),
            flags: MsFlags::MS_BIND,
        })
    }

    fn mount(&self) -> io::Result<()> {
        let [source, target, options] = [&self.source, &self.target, &self.options].map(CString::as_c_str);
        mount(Some(source), target, Some(self.kind), self.flags, Some(options))?;
        if self.flags.contains(MsFlags::MS_BIND) {
            // The flags of a bind are set by a second call (mount(2)).
            let read_only = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
            let flags = self.flags | MsFlags::MS_REMOUNT | read_only;
            mount(Some(source), target, Some(self.kind), flags, Some(options))?;
        }
        Ok(())
    }
}

/// A path that needs no escaping inside overlayfs options.
fn plain(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.iter().any(|byte| matches!(byte, b':' | b',' | b'\\' | 0)) {
        return Err(io::Error::other(format!(
            "{} has a character that overlayfs gives a meaning",
            path.display()
        )));
    }
    Ok(bytes.to_vec())
}

/// Where a `criu swrk` is started.
#[derive(Debug)]
pub(super) struct Place<'a> {
    /// The server's end of the request socket.
    pub(super) socket: OwnedFd,
    /// Descriptors that CRIU needs beside it; they keep their numbers.
    pub(super) inherit: Vec<RawFd>,
    /// The clone's cgroup directory.
    pub(super) cgroup: &'a Path,
    /// Mounted in order, in CRIU's own mount namespace.
    pub(super) mounts: Vec<Mount>,
    /// Where what CRIU prints goes: it prints only when it cannot even start.
    pub(super) stderr: File,
}

/// Starts `criu swrk` in a clone's place.
pub(super) fn swrk(place: Place<'_>) -> io::Result<Child> {
    let procs = File::options().write(true).open(place.cgroup.join("cgroup.procs"))?;
    let socket = place.socket.as_raw_fd();
    let mut command = Command::new("criu");
    command
        .arg("swrk")
        .arg(socket.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(place.stderr)
        .kill_on_drop(true);
    let (inherit, mounts) = (place.inherit, place.mounts);
    let enter = move || -> io::Result<()> {
        (&procs).write_all(b"0")?;
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)?;
        let none = None::<&CStr>;
        mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        for mount in &mounts {
            mount.mount()?;
        }
        for descriptor in inherit.iter().copied().chain([socket]) {
            // SAFETY: they were open before the fork, and nothing has closed them since.
            let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
            fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec `enter` makes only system calls on descriptors and
    // strings made before the fork; none allocates, and none takes a lock.
    unsafe { command.pre_exec(enter) };
    command.spawn()
    // `place.socket` closes here: CRIU's end is then CRIU's alone, and its
    // death is seen as the end of the socket.
}

/// Starts `criu swrk` as the host sees things. The server's end of the socket is its
/// standard input, so nothing has to be done between fork and exec.
pub(super) fn bare(server: OwnedFd) -> io::Result<Child> {
    let mut command = Command::new("criu");
    command.arg("swrk").arg("0").stdin(server).stdout(Stdio::null()).stderr(Stdio::null());
    command.kill_on_drop(true).spawn()
    // The command's own copy closes here: CRIU's end is CRIU's alone.
}
