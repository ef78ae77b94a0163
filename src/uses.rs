//! Whom a snapshot may not be taken away from, beside what is made of it: shops that run
//! on its files, sleep or are kept.
//!
//! Called by whoever removes snapshots: the daemon's workshop, and the commands while no
//! daemon runs. The kernel and the disk are asked, so shops that no record knows of count.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use crate::engine::criu::freeze::FrozenDir;
use crate::host::cgroup::Parent;
use crate::host::mounts;
use crate::id::{self, SnapshotId};
use crate::snapshot::prepare;
use crate::snapshot::shelf::Shelf;

/// What is stood on, and by whom.
#[derive(Debug, Default)]
pub struct Uses {
    lowers: BTreeSet<PathBuf>,
    by: BTreeMap<SnapshotId, Vec<String>>,
}

impl Uses {
    /// As of now; instances outlive the daemon, so it need not run.
    ///
    /// # Errors
    /// When cgroups or directories cannot be read.
    pub fn find(cgroups: &Parent, state_dir: &Path) -> io::Result<Self> {
        let mut uses = Self::default();
        for (id, lowers) in mounts::lowers_in_use(cgroups)? {
            uses.add(state_dir, lowers, &format!("{id} runs on its files"));
        }
        // So do those that sleep or are kept, once they run again.
        for (id, lowers) in FrozenDir::lowers(state_dir)? {
            uses.add(state_dir, lowers, &format!("{id} sleeps on them"));
        }
        for (id, lowers) in Shelf::lowers(state_dir)? {
            uses.add(state_dir, lowers, &format!("{id} is kept on them"));
        }
        Ok(uses)
    }

    fn add(&mut self, state_dir: &Path, lowers: impl IntoIterator<Item = PathBuf>, by: &str) {
        let lowers = BTreeSet::from_iter(lowers);
        for snapshot in BTreeSet::from_iter(prepare::in_use(state_dir, &lowers)) {
            self.by.entry(snapshot).or_default().push(by.to_owned());
        }
        self.lowers.extend(lowers);
    }

    /// Directories that may not be removed.
    #[must_use]
    pub const fn lowers(&self) -> &BTreeSet<PathBuf> {
        &self.lowers
    }

    /// Snapshots that somebody stands on.
    pub fn snapshots(&self) -> impl Iterator<Item = &SnapshotId> {
        self.by.keys()
    }

    /// Who stands on a snapshot, in words; none when nobody does.
    #[must_use]
    pub fn by(&self, snapshot: &SnapshotId) -> Option<String> {
        self.by.get(snapshot).map(|by| id::few(by))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stands_on_a_snapshot_is_named() {
        let (dir, mut uses) = (Path::new("/s"), Uses::default());
        let lowers = |id: &str| [format!("/s/prepared/{id}/upper").into(), "/s/images/i/rootfs".into()];
        assert_eq!(uses.by(&"shop-1-a".parse().unwrap()), None);
        uses.add(dir, lowers("shop-1-a"), "x runs on its files");
        uses.add(dir, lowers("shop-2-b"), "y sleeps on them");
        uses.add(dir, lowers("shop-1-a"), "z is kept on them");
        let by = |id: &str| uses.by(&id.parse().unwrap());
        assert_eq!(by("shop-1-a").unwrap(), "x runs on its files, z is kept on them");
        assert_eq!(by("shop-2-b").unwrap(), "y sleeps on them");
        assert_eq!((uses.snapshots().count(), uses.lowers().len()), (2, 3));
    }
}
