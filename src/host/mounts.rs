//! What instances' overlays lie on, asked of the kernel.
//!
//! Instances outlive the daemon and its store may be elsewhere: what is mounted
//! is the one sure answer to which files may not be removed.

use std::io;
use std::path::PathBuf;

use super::cgroup::Parent;
use crate::id::InstanceId;

/// The lower directories of each instance that runs below `cgroups`.
///
/// # Errors
/// When the cgroups cannot be read.
pub fn lowers_in_use(cgroups: &Parent) -> io::Result<Vec<(InstanceId, Vec<PathBuf>)>> {
    let mut found = Vec::new();
    for id in cgroups.instances()? {
        // A process that ends meanwhile needs no files.
        let tables = cgroups.processes(&id)?.into_iter();
        let mut tables =
            tables.filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok());
        // One mount namespace an instance: the first process tells of all.
        found.extend(tables.next().map(|table| (id, overlay_lowers(&table))));
    }
    Ok(found)
}

/// The lower directories in a mount table; its form: proc_pid_mountinfo(5).
fn overlay_lowers(mountinfo: &str) -> Vec<PathBuf> {
    let options = mountinfo.lines().filter_map(|line| line.split_once(" - overlay ")?.1.split(' ').nth(1));
    let lowers = options.flat_map(|options| options.split(',')).filter_map(|it| it.strip_prefix("lowerdir="));
    lowers.flat_map(|dirs| dirs.split(':')).map(|dir| dir.replace("\\040", " ").into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_directories_are_read_from_a_mount_table() {
        let table = "\
            22 1 0:21 / /proc rw - proc proc rw\n\
            99 1 0:52 / / rw,nodev - overlay overlay rw,lowerdir=/s/prepared/a/upper:/s/images/b\\0401/rootfs,upperdir=/u,workdir=/w\n";
        let expected: Vec<PathBuf> = vec!["/s/prepared/a/upper".into(), "/s/images/b 1/rootfs".into()];
        assert_eq!(overlay_lowers(table), expected);
    }
}
