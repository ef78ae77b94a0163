//! Which snapshot each golden is restored from, where an operator has said so,
//! and which were refused.
//!
//! ```text
//! SNAPSHOT_DIR/served.json   {"version": 1,
//!                             "promoted": {"<golden>": "<snapshot id>"},
//!                             "promoted_at": {"<golden>": "<time>"},
//!                             "refused": {"<snapshot id>": "<why>"},
//!                             "published": ["<golden>"],
//!                             "pools": {"<golden>": <how many are to be ready>},
//!                             "withdrawn": {"<golden>": "<time>"},
//!                             "check": ..}                            [`crate::sealed`]
//! ```
//!
//! A published golden was a visitor's shop: no setting names it, so the next daemon
//! serves it because it stands here. That one was withdrawn is kept for [`TOLD_FOR`], for the
//! other nodes: whichever has not heard of it would bring it back. A golden that is not named
//! is restored from its newest usable snapshot. The file appears by one rename, when it is on
//! the disk: whoever dies in between leaves the one before. Written by the daemon alone, which
//! has one task at a time for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::{DiskError, ErrorKind};
use crate::id::{GoldenName, SnapshotId};
use crate::sealed;

/// The version this program writes.
const VERSION: u16 = 1;

/// The file's name.
pub const FILE: &str = "served.json";

/// The file half written; not named as a snapshot half written is, which others remove.
const UNFINISHED: &str = ".served.json.new";

/// A line a snapshot: some thousand of them.
const SIZE_MAX: u64 = 1 << 20;

/// For how long it is known that a golden was withdrawn: NATS may be away, or another node
/// may tell at the same moment that it serves it.
pub const TOLD_FOR: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What an operator has said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    version: u16,
    #[serde(default)]
    promoted: BTreeMap<GoldenName, SnapshotId>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    promoted_at: BTreeMap<GoldenName, Timestamp>,
    #[serde(default)]
    refused: BTreeMap<SnapshotId, String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    published: BTreeSet<GoldenName>,
    /// Of those that were published.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pools: BTreeMap<GoldenName, usize>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    withdrawn: BTreeMap<GoldenName, Timestamp>,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Not of the form.
    #[error("{} is not of this program's form: remove it, and promote again what shall be served", .path.display())]
    Form {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// Of a later program.
    #[error("{} has version {found}, this program knows {VERSION}: use a newer one, or remove the file", .path.display())]
    Version {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u16,
    },
}

impl ChoiceError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Disk(error) => error.kind(),
            Self::Form { .. } | Self::Version { .. } => ErrorKind::Incompatible,
        }
    }
}

fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ChoiceError + 'a {
    move |source| DiskError::at(doing, path)(source).into()
}

impl Choice {
    /// Reads what was said; nothing when there is no file.
    ///
    /// # Errors
    /// [`ChoiceError`]
    pub fn read(snapshot_dir: &Path) -> Result<Self, ChoiceError> {
        use io::Read as _;
        let path = snapshot_dir.join(FILE);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other.map_err(at("open", &path))?,
        };
        let mut bytes = Vec::new();
        file.take(SIZE_MAX).read_to_end(&mut bytes).map_err(at("read", &path))?;
        #[derive(Deserialize)]
        struct Head {
            version: u16,
        }
        // Its version first: a later form may be another one altogether.
        let form = |source| ChoiceError::Form { path: path.clone(), source };
        let Head { version } = serde_json::from_slice(&bytes).map_err(form)?;
        if version != VERSION {
            return Err(ChoiceError::Version { path, found: version });
        }
        sealed::open(&bytes).map_err(form)
    }

    /// Writes it.
    ///
    /// # Errors
    /// [`ChoiceError::Disk`]; what was said before counts then.
    pub fn write(&self, snapshot_dir: &Path) -> Result<(), ChoiceError> {
        let (path, new) = (snapshot_dir.join(FILE), snapshot_dir.join(UNFINISHED));
        let written = Self { version: VERSION, ..self.clone() };
        let bytes = sealed::seal(&written).and_then(|sealed| serde_json::to_vec_pretty(&sealed));
        let bytes = bytes.map_err(io::Error::from).map_err(at("write", &new))?;
        let open = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new);
        let mut file = open.map_err(at("create", &new))?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(at("write", &new))?;
        std::fs::rename(&new, &path).map_err(at("rename", &new))?;
        File::open(snapshot_dir).and_then(|dir| dir.sync_all()).map_err(at("sync", snapshot_dir))
    }

    /// Reads what was said, changes it, writes it; blocks on the disk.
    ///
    /// # Errors
    /// [`ChoiceError`]; what was said before counts then.
    pub fn change(snapshot_dir: &Path, change: impl FnOnce(&mut Self)) -> Result<(), ChoiceError> {
        let mut choice = Self::read(snapshot_dir)?;
        change(&mut choice);
        choice.write(snapshot_dir)
    }

    /// The snapshot that a golden was promoted to, if one was.
    #[must_use]
    pub fn promoted(&self, golden: &GoldenName) -> Option<&SnapshotId> {
        self.promoted.get(golden)
    }

    /// All that were promoted.
    pub fn all_promoted(&self) -> impl Iterator<Item = &SnapshotId> {
        self.promoted.values()
    }

    /// When a snapshot was promoted, at whatever node; none of one that is not, or was by
    /// a program that did not write it down.
    #[must_use]
    pub fn promoted_at(&self, id: &SnapshotId) -> Option<Timestamp> {
        let (golden, _) = self.promoted.iter().find(|(_, promoted)| *promoted == id)?;
        self.said_at(golden)
    }

    /// When a golden was promoted or published last, if that was written down.
    #[must_use]
    pub fn said_at(&self, golden: &GoldenName) -> Option<Timestamp> {
        self.promoted_at.get(golden).copied()
    }

    /// Why a snapshot was refused, if it was.
    #[must_use]
    pub fn refused(&self, id: &SnapshotId) -> Option<&str> {
        self.refused.get(id).map(String::as_str)
    }

    /// Has a golden restored from a snapshot, which is thereby no longer refused.
    pub fn promote(&mut self, golden: GoldenName, id: SnapshotId, at: Timestamp) {
        self.refused.remove(&id);
        self.promoted_at.insert(golden.clone(), at);
        self.promoted.insert(golden, id);
    }

    /// Goldens that were visitors' shops, by name.
    pub fn published(&self) -> impl Iterator<Item = &GoldenName> {
        self.published.iter()
    }

    /// Whether a golden was a visitor's shop.
    #[must_use]
    pub fn is_published(&self, golden: &GoldenName) -> bool {
        self.published.contains(golden)
    }

    /// When a golden was withdrawn that was a visitor's shop, if it was.
    #[must_use]
    pub fn withdrawn(&self, golden: &GoldenName) -> Option<Timestamp> {
        self.withdrawn.get(golden).copied()
    }

    /// How many of a published golden are to be ready, if it was said.
    #[must_use]
    pub fn pool(&self, golden: &GoldenName) -> Option<usize> {
        self.pools.get(golden).copied()
    }

    /// Has a golden that no setting names be served from a snapshot since that time, that
    /// many of it ready.
    pub fn publish(&mut self, golden: GoldenName, (id, at): (SnapshotId, Timestamp), pool: usize) {
        self.promote(golden.clone(), id, at);
        self.withdrawn.remove(&golden);
        self.published.insert(golden.clone());
        self.set_pool(&golden, pool);
    }

    /// Has that many of a published golden be ready.
    pub fn set_pool(&mut self, golden: &GoldenName, pool: usize) {
        if self.published.contains(golden) {
            self.pools.insert(golden.clone(), pool);
        }
    }

    /// Has a published golden be none any more, and that be known as said at that time.
    pub fn withdraw(&mut self, golden: &GoldenName, at: Timestamp) {
        self.withdrawn.retain(|_, before| at.duration_since(*before) < TOLD_FOR);
        self.withdrawn.insert(golden.clone(), at);
        self.published.remove(golden);
        self.pools.remove(golden);
        self.promoted.remove(golden);
        self.promoted_at.remove(golden);
    }

    /// Has a snapshot never be taken for the newest.
    pub fn refuse(&mut self, id: SnapshotId, why: &str) {
        self.refused.insert(id, why.to_owned());
    }

    /// Forgets all about a snapshot that is gone.
    pub fn forget(&mut self, id: &SnapshotId) {
        self.refused.remove(id);
        self.promoted.retain(|_, promoted| promoted != id);
        self.promoted_at.retain(|golden, _| self.promoted.contains_key(golden));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn id(text: &str) -> SnapshotId {
        text.parse().unwrap()
    }

    #[test]
    fn what_was_said_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Choice::read(dir.path()).unwrap(), Choice::default(), "nothing was said");
        let mut choice = Choice::default();
        let shop: GoldenName = "shop".parse().unwrap();
        choice.refuse(id("shop-1-a"), "its front page does not come");
        choice.promote(shop.clone(), id("shop-2-b"), Timestamp::UNIX_EPOCH);
        choice.write(dir.path()).unwrap();
        let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut again = Choice::read(dir.path()).unwrap();
        assert_eq!(again.promoted(&shop), Some(&id("shop-2-b")));
        assert_eq!(again.promoted_at(&id("shop-2-b")), Some(Timestamp::UNIX_EPOCH));
        assert_eq!(again.promoted_at(&id("shop-1-a")), None);
        assert_eq!(again.refused(&id("shop-1-a")), Some("its front page does not come"));
        again.promote(shop.clone(), id("shop-1-a"), Timestamp::UNIX_EPOCH);
        assert_eq!(again.refused(&id("shop-1-a")), None, "it was tried again, and works");
        again.forget(&id("shop-1-a"));
        assert_eq!(again.promoted(&shop), None);
        assert_eq!(again.published().count(), 0);
        again.set_pool(&shop, 2);
        assert_eq!(again.pool(&shop), None, "nothing is said of what was not published");
        again.publish(shop.clone(), (id("shop-3-c"), Timestamp::UNIX_EPOCH), 3);
        again.write(dir.path()).unwrap();
        let again = Choice::read(dir.path()).unwrap();
        assert!(again.promoted(&shop) == Some(&id("shop-3-c")) && again.published().eq([&shop]));
        assert_eq!(again.pool(&shop), Some(3));
        let mut again = again;
        again.withdraw(&shop, Timestamp::UNIX_EPOCH);
        assert!(again.promoted(&shop).is_none() && !again.is_published(&shop));
        assert_eq!(again.pool(&shop), None);
        again.write(dir.path()).unwrap();
        let mut again = Choice::read(dir.path()).unwrap();
        assert_eq!(again.withdrawn(&shop), Some(Timestamp::UNIX_EPOCH), "the others may not know yet");
        let later = Timestamp::UNIX_EPOCH + TOLD_FOR;
        again.publish(shop.clone(), (id("shop-4-d"), later), 1);
        assert_eq!(again.withdrawn(&shop), None, "it is served again");
        again.withdraw(&shop, later);
        again.withdraw(&"other".parse().unwrap(), later + TOLD_FOR);
        assert_eq!(again.withdrawn(&shop), None, "all have had the time to hear of it");
    }

    #[test]
    fn a_write_that_died_leaves_what_was_said_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut choice = Choice::default();
        choice.promote("shop".parse().unwrap(), id("shop-1-a"), Timestamp::UNIX_EPOCH);
        choice.write(dir.path()).unwrap();
        std::fs::write(dir.path().join(UNFINISHED), "{\"vers").unwrap();
        assert_eq!(Choice::read(dir.path()).unwrap().all_promoted().count(), 1);
        choice.promote("shop".parse().unwrap(), id("shop-2-b"), Timestamp::UNIX_EPOCH);
        choice.write(dir.path()).unwrap();
        assert_eq!(Choice::read(dir.path()).unwrap().all_promoted().next(), Some(&id("shop-2-b")));
    }

    #[test]
    fn a_damaged_file_says_nothing_else_than_before() {
        let dir = tempfile::tempdir().unwrap();
        let mut choice = Choice::default();
        choice.promote("shop".parse().unwrap(), id("shop-1-a"), Timestamp::UNIX_EPOCH);
        choice.refuse(id("shop-2-b"), "its front page does not come");
        choice.write(dir.path()).unwrap();
        let read = || match Choice::read(dir.path()) {
            Ok(choice) => Some(choice),
            Err(error) => {
                assert!(error.to_string().contains("served.json"), "{error}");
                None
            }
        };
        sealed::damaged_is_refused_or_the_same(&dir.path().join(FILE), read);
    }

    #[test]
    fn a_file_of_a_later_program_or_of_none_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let told = |text: &str| {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            Choice::read(dir.path()).unwrap_err().to_string()
        };
        assert!(told("{\"version\": 2, \"new\": []}").contains("has version 2, this program knows 1"));
        assert!(told("{\"version\": 1, \"promoted\": {\"..\": \"x\"}}").contains("remove it"));
        assert!(told("nonsense").contains("remove it"));
    }
}
