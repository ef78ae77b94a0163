//! Whose a bridge and a cgroup are: one daemon's, by its STATE_DIR.
//!
//! Two daemons on one host with the same CGROUP_PARENT or BRIDGE_NAME would take
//! each other's instances for orphans and give out each other's addresses. So
//! the first one leaves its STATE_DIR on both (an extended attribute, the
//! interface's alias), where it lies for as long as they are there, which is for
//! as long as an instance may be. Called by whoever opens the host's side, before
//! anything is searched or made.

use std::io;
use std::path::{Path, PathBuf};

use super::cgroup::Parent;
use super::net::Network;

/// On the cgroup's directory. Only root reads and writes those.
const ATTRIBUTE: &str = "trusted.demo-multiplexer.state-dir";

/// A bridge or a cgroup that is another daemon's.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Another daemon runs, or its instances do.
    #[error(
        "{what} belongs to the daemon on STATE_DIR {}: set other CGROUP_PARENT, BRIDGE_NAME and BRIDGE_SUBNET for \
         this one, or end that one and its instances (`reap --all`)", .owner.display()
    )]
    Taken {
        /// The setting, with its value.
        what: String,
        /// The other one's STATE_DIR.
        owner: PathBuf,
    },
    /// The host does not say.
    #[error("cannot tell whose {what} is")]
    Io {
        /// The setting, with its value.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Takes the daemon's bridge and cgroup for `state_dir`.
///
/// # Errors
/// [`ClaimError`]; what is another's stays so.
pub async fn take(network: &Network, cgroups: &Parent, state_dir: &Path) -> Result<(), ClaimError> {
    let own = std::fs::canonicalize(state_dir);
    let own = own.map_err(|source| ClaimError::Io { what: "STATE_DIR".into(), source })?;
    let what = format!("CGROUP_PARENT={}", cgroups.name());
    let failed = |source| ClaimError::Io { what: what.clone(), source };
    let occupied = !cgroups.instances().map_err(failed)?.is_empty();
    match judge(read(cgroups.path()).map_err(failed)?, &own, occupied) {
        Verdict::Own => {}
        Verdict::Free => write(cgroups.path(), &own).map_err(failed)?,
        Verdict::Others(owner) => return Err(ClaimError::Taken { what, owner }),
    }
    let what = format!("BRIDGE_NAME={}", network.bridge_name());
    let failed = |source| ClaimError::Io { what: what.clone(), source };
    let occupied = !network.ports().await.map_err(failed)?.is_empty();
    match judge(network.owner().await.map_err(failed)?, &own, occupied) {
        Verdict::Own => Ok(()),
        Verdict::Free => network.set_owner(&own).await.map_err(failed),
        Verdict::Others(owner) => Err(ClaimError::Taken { what, owner }),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Own,
    Free,
    Others(PathBuf),
}

/// What was left by somebody who is not there, and of whom nothing is, is free.
fn judge(owner: Option<PathBuf>, own: &Path, occupied: bool) -> Verdict {
    match owner {
        None => Verdict::Free,
        Some(owner) if owner == own => Verdict::Own,
        Some(owner) if occupied || runs(&owner) => Verdict::Others(owner),
        Some(_) => Verdict::Free,
    }
}

/// Whether a daemon holds the lock of that STATE_DIR.
fn runs(state_dir: &Path) -> bool {
    let lock = std::fs::File::open(state_dir.join("lock"));
    lock.is_ok_and(|file| matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock)))
}

fn read(cgroup: &Path) -> io::Result<Option<PathBuf>> {
    use std::os::unix::ffi::OsStringExt as _;
    let mut value = vec![0; libc::PATH_MAX as usize];
    match rustix::fs::getxattr(cgroup, ATTRIBUTE, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(std::ffi::OsString::from_vec(value).into()))
        }
        // A kernel without attributes on cgroups tells of nobody.
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn write(cgroup: &Path, owner: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let value = owner.as_os_str().as_bytes();
    match rustix::fs::setxattr(cgroup, ATTRIBUTE, value, rustix::fs::XattrFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_one_has_or_runs_on_is_its_own() {
        let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let others = || Some(other.path().to_owned());
        assert_eq!(judge(None, own.path(), true), Verdict::Free, "instances of before there were owners");
        assert_eq!(judge(Some(own.path().to_owned()), own.path(), true), Verdict::Own);
        assert_eq!(judge(others(), own.path(), true), Verdict::Others(other.path().to_owned()));
        assert_eq!(judge(others(), own.path(), false), Verdict::Free, "nobody runs there");
        let lock = std::fs::File::create(other.path().join("lock")).unwrap();
        lock.lock().unwrap();
        assert_eq!(judge(others(), own.path(), false), Verdict::Others(other.path().to_owned()));
        drop(lock);
        assert_eq!(judge(others(), own.path(), false), Verdict::Free);
    }
}
