//! The device nodes of all shops: one directory, mounted read-only as /dev.
//!
//! A tmpfs of its own for each clone would be filled by CRIU from an archive,
//! which costs a `tar` process (12 ms of a restore). Read-only, one directory
//! does for all: nodes work, nothing can be made, renamed or chmodded there.
//! Terminals, message queues and shared memory are left out; no shop uses them.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, chmod, makedev, mknodat};

use super::slots::make_private;

/// Name, major and minor of what programs expect (devices.txt of the kernel).
const NODES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Links that programs expect.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Makes the directory below `state_dir`, or finds it made; idempotent.
///
/// # Errors
/// When the disk or the kernel says no.
pub fn ensure(state_dir: &Path) -> io::Result<PathBuf> {
    let dir = state_dir.join("devices");
    make_private(&dir)?;
    for &(name, major, minor) in NODES {
        let path = dir.join(name);
        match mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), makedev(major, minor)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        // mknod's own mode is cut by the umask.
        chmod(&path, Mode::from_raw_mode(0o666))?;
    }
    for (name, target) in LINKS {
        match symlink(target, dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    chmod(&dir, Mode::from_raw_mode(0o755))?;
    Ok(dir)
}
