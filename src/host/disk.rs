//! Which disk a directory's files are written to, for limits on it.
//!
//! Called by [`super::cgroup`].

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

/// The disk below a directory as `major:minor`; none when what is read and
/// written there reaches no block device, or several.
pub(super) fn below(dir: &Path) -> Option<String> {
    let device = std::fs::metadata(dir).ok()?.dev();
    let device = match major(device) {
        // btrfs and others number their own: the mount table names the device.
        0 => {
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
            let mount = super::quota::mount_of(&mounts, &std::fs::canonicalize(dir).ok()?)?;
            std::fs::metadata(mount.source).ok()?.rdev()
        }
        _ => device,
    };
    whole(&format!("/sys/dev/block/{}:{}", major(device), minor(device)))
}

/// The number of the whole disk: a partition has no limits of its own
/// (cgroup-v2.rst).
fn whole(entry: &str) -> Option<String> {
    let mut entry: PathBuf = std::fs::canonicalize(entry).ok()?;
    if entry.join("partition").try_exists().ok()? {
        entry.pop();
    }
    std::fs::read_to_string(entry.join("dev")).ok().map(|number| number.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_memory_is_on_no_disk() {
        assert_eq!(below(Path::new("/proc")), None);
        assert_eq!(below(Path::new("/no/such/directory")), None);
    }

    #[test]
    fn a_partition_s_disk_is_the_directory_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let partition = dir.path().join("vda/vda1");
        std::fs::create_dir_all(&partition).unwrap();
        std::fs::write(partition.join("partition"), "1\n").unwrap();
        std::fs::write(partition.join("dev"), "254:1\n").unwrap();
        std::fs::write(dir.path().join("vda/dev"), "254:0\n").unwrap();
        let of = |path: &str| whole(dir.path().join(path).to_str().unwrap());
        assert_eq!(of("vda/vda1").as_deref(), Some("254:0"));
        assert_eq!(of("vda").as_deref(), Some("254:0"));
    }
}
