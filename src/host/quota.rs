//! How much of the disk an instance may write.
//!
//! Owned by [`super::slots`], which makes an instance's directory through it.
//! What the file system of STATE_DIR can do decides who holds the limit:
//!
//! ```text
//! XFS mounted with prjquota   a project of the instance's own; writes fail with ENOSPC
//! btrfs                       a subvolume with a simple quota; writes fail with EDQUOT
//! any other                   nobody at once: [`over`] is asked regularly, and the instance is ended
//! ```
//!
//! What a clone shares with its golden by reference counts on XFS and does not
//! on btrfs, so the limit must leave room for the golden's own changed files.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::slots::make_private;

/// The tools answer in milliseconds; longer, and the file system hangs.
const DEADLINE: Duration = Duration::from_secs(20);

/// Project numbers begin here, above what people write into /etc/projects.
const FIRST_PROJECT: u32 = 0x6400_0000;

/// Who holds the limit.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Holder {
    /// XFS, mounted there.
    Xfs(PathBuf),
    /// btrfs.
    Btrfs,
    /// Whoever asks [`over`].
    Watcher,
}

/// The limit of every instance.
#[derive(Debug, Clone)]
pub struct Quota {
    holder: Holder,
    max: u64,
}

impl Quota {
    /// Looks at the file system below `dir` and turns its quotas on; `max` is in
    /// bytes.
    ///
    /// # Errors
    /// When the file system cannot be looked at, or a tool that it needs fails.
    pub async fn open(dir: &Path, max: u64) -> io::Result<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let holder = match mount_of(&mounts, &std::fs::canonicalize(dir)?) {
            Some(mount) if mount.kind == "btrfs" => {
                // Again is fine; simple ones forget a removed subvolume by themselves.
                run("btrfs", [OsStr::new("quota"), "enable".as_ref(), "--simple".as_ref(), dir.as_ref()])
                    .await?;
                Holder::Btrfs
            }
            Some(mount) if mount.kind == "xfs" && mount.has_project_quota() => Holder::Xfs(mount.point),
            _ => Holder::Watcher,
        };
        Ok(Self { holder, max })
    }

    /// Says who holds the limit.
    #[must_use]
    pub const fn held_by(&self) -> &'static str {
        match self.holder {
            Holder::Xfs(_) => "XFS project quotas",
            Holder::Btrfs => "btrfs simple quotas",
            Holder::Watcher => "a watcher",
        }
    }

    /// Whether somebody has to ask [`over`].
    #[must_use]
    pub fn wants_watching(&self) -> bool {
        self.holder == Holder::Watcher
    }

    /// The limit, in bytes.
    #[must_use]
    pub const fn max(&self) -> u64 {
        self.max
    }

    /// Makes an instance's directory under the limit; `number` is nobody else's
    /// while it lives.
    ///
    /// # Errors
    /// When the disk or a tool says no; whoever called removes what is there.
    pub async fn make(&self, top: &Path, number: u32) -> io::Result<()> {
        match &self.holder {
            Holder::Watcher => make_private(top),
            Holder::Btrfs => {
                run("btrfs", [OsStr::new("subvolume"), "create".as_ref(), top.as_ref()]).await?;
                make_private(top)?;
                let max = self.max.to_string();
                run("btrfs", [OsStr::new("qgroup"), "limit".as_ref(), max.as_ref(), top.as_ref()]).await
            }
            Holder::Xfs(mount) => {
                make_private(top)?;
                let project = FIRST_PROJECT + number;
                let own = format!("project -s -p {} {project}", top.display());
                let limit = format!("limit -p bhard={} {project}", self.max);
                let args = [OsStr::new("-x"), "-c".as_ref(), own.as_ref(), "-c".as_ref(), limit.as_ref()];
                run("xfs_quota", args.into_iter().chain([mount.as_os_str()])).await
            }
        }
    }
}

/// Whether a directory's files take more than `max` bytes of the disk.
///
/// # Errors
/// When it cannot be read; files that vanish meanwhile are none.
pub fn over(dir: &Path, max: u64) -> io::Result<bool> {
    let mut used = 0;
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            // Not followed: a link is what the stranger made of it.
            let Ok(metadata) = entry.metadata() else { continue };
            used += metadata.blocks() * 512;
            if used > max {
                return Ok(true);
            }
            if metadata.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    Ok(false)
}

/// A mounted file system.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    point: PathBuf,
    /// The device, of a file system that has one.
    pub(super) source: PathBuf,
    kind: String,
    options: String,
}

impl Mount {
    fn has_project_quota(&self) -> bool {
        // As XFS prints it, whichever of its names it was mounted with.
        self.options.split(',').any(|option| option == "prjquota")
    }
}

/// The file system that holds a path, by `/proc/self/mountinfo` (proc(5)).
pub(super) fn mount_of(mountinfo: &str, path: &Path) -> Option<Mount> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (own, file_system) = line.split_once(" - ")?;
        let point = PathBuf::from(own.split(' ').nth(4)?.replace("\\040", " "));
        let mut words = file_system.split(' ');
        let kind = words.next()?.to_owned();
        let source = PathBuf::from(words.next()?);
        let options = words.next()?.to_owned();
        path.starts_with(&point).then_some(Mount { point, source, kind, options })
    });
    // Of two at one place the later one is seen.
    mounts.enumerate().max_by_key(|(n, mount)| (mount.point.components().count(), *n)).map(|(_, mount)| mount)
}

async fn run<'a>(program: &str, args: impl IntoIterator<Item = &'a OsStr>) -> io::Result<()> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(DEADLINE, command.output()).await {
        Ok(output) => output,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("{program} does not answer"))),
    };
    let output = output.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(error.kind(), format!("the {program} command is missing")),
        _ => error,
    })?;
    match output.status.success() {
        true => Ok(()),
        false => {
            Err(io::Error::other(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
30 20 7:0 / /var/lib rw,noatime shared:1 - xfs /dev/loop0 rw,inode64,prjquota
31 30 7:1 / /var/lib/demo\\040shops rw - btrfs /dev/loop1 rw,ssd
32 20 7:2 / /srv rw - xfs /dev/loop2 rw,inode64,noquota
33 20 7:3 / /srv rw - ext4 /dev/loop3 rw
";

    #[test]
    fn the_file_system_of_a_path_is_the_innermost_and_latest() {
        let of = |path: &str| mount_of(MOUNTS, Path::new(path)).unwrap();
        assert_eq!(of("/home/x").kind, "ext4");
        assert!(of("/var/lib/state").has_project_quota());
        assert_eq!(of("/var/lib/demo shops/x").kind, "btrfs");
        assert_eq!(of("/var/library").point, Path::new("/"));
        assert_eq!(of("/srv/x").kind, "ext4", "mounted over the other");
        assert!(!mount_of(MOUNTS.lines().nth(3).unwrap(), Path::new("/srv")).unwrap().has_project_quota());
    }

    #[test]
    fn what_is_over_is_measured_in_blocks_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/b");
        std::fs::create_dir_all(&below).unwrap();
        std::fs::File::create(below.join("sparse")).unwrap().set_len(1 << 30).unwrap();
        std::os::unix::fs::symlink("/", below.join("root")).unwrap();
        assert!(!over(dir.path(), 1 << 20).unwrap(), "nothing was written yet");
        std::fs::write(below.join("full"), vec![1; 2 << 20]).unwrap();
        std::fs::File::open(below.join("full")).unwrap().sync_all().unwrap();
        assert!(over(dir.path(), 1 << 20).unwrap());
        assert!(!over(&dir.path().join("gone"), 1).unwrap(), "absent is nothing");
    }
}
