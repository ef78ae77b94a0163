//! Shops that their visitors have kept: what lies on the disk, and for how long.
//!
//! Owns `STATE_DIR/saved`. One directory each, root's alone, which appears by one
//! rename, as snapshots do; names that begin with a dot are nobody's:
//!
//! ```text
//! STATE_DIR/saved/<name>/
//!   saved.json       its form's version, whose it is, digests of the archives
//!   memory.tar.zst   CRIU's images
//!   files.tar.zst    what the shop had changed
//! ```
//!
//! Whoever knows a shop's key may open it; here is only the key's hash. Invariants:
//! nothing of an archive is used before its digest was found right; what a stranger
//! made is packed only within bounds, and nothing of it is followed.
//!
//! Called by [`crate::provision`], and by [`crate::pool::pruner`], which removes what was
//! kept for long enough.

use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

use super::archive::{self, ArchiveError};
use super::manifest::{Archive, FILES_ARCHIVE, MEMORY_ARCHIVE};
use super::prepare::IMAGES;
use crate::error::{ErrorKind, kind_of_io};
use crate::host::slots::make_private;
use crate::host::tree::{self, Bounds};
use crate::id::{GoldenName, InstanceId, SavedName, SnapshotId};
use crate::instance::{Access, Instance, Source};

/// The version this program writes into `saved.json`.
const VERSION: u16 = 1;

const RECORD: &str = "saved.json";
const UNFINISHED: &str = ".new-";

/// A record is about a kilobyte.
const RECORD_MAX: u64 = 64 * 1024;

/// A shop's files: no more of them, and none deeper, than any shop has. What is
/// larger by their own account than a shop may write is full of holes.
const ENTRIES_MAX: usize = 500_000;
const DEPTH_MAX: usize = 128;

/// What may be kept.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Shops at most.
    pub max: usize,
    /// Bytes of all together at most.
    pub max_bytes: u64,
    /// For how long.
    pub keep: SignedDuration,
    /// Bytes of one shop's files at most, before they are compressed.
    pub files_max: u64,
}

/// A kept shop, as it is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saved {
    version: u16,
    /// Its name.
    pub name: SavedName,
    /// The instance that it was and will be.
    pub id: InstanceId,
    /// Of which golden.
    pub golden: GoldenName,
    /// The snapshot that it stands on.
    pub snapshot: SnapshotId,
    /// When it was kept.
    pub saved_at: Timestamp,
    /// Until when it is kept.
    pub until: Timestamp,
    /// BLAKE3 of its key.
    key: String,
    /// Its address and credentials.
    pub access: Access,
    memory: Archive,
    files: Archive,
}

impl Saved {
    /// Whether that is its key; takes as long whatever it is.
    #[must_use]
    pub fn opens_with(&self, key: &SecretString) -> bool {
        // blake3's own comparison takes constant time.
        blake3::Hash::from_hex(&self.key).is_ok_and(|known| known == hash(key))
    }

    /// How much of the disk it takes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.memory.bytes + self.files.bytes
    }

    /// A record of the instance that it becomes again, before anything of it exists.
    #[must_use]
    pub fn warming(&self, node: crate::id::NodeName, now: Timestamp) -> Instance {
        let mut record = Instance::warming(self.id.clone(), self.golden.clone(), node, now);
        record.made_by = Source::Restore;
        record.snapshot = Some(self.snapshot.clone());
        record
    }
}

fn hash(key: &SecretString) -> blake3::Hash {
    blake3::hash(key.expose_secret().as_bytes())
}

/// A shop cannot be kept, or what is kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// As many as may be are kept.
    #[error("{max} shops are kept already, which is as many as may be (SAVED_MAX)")]
    Full {
        /// SAVED_MAX.
        max: usize,
    },
    /// All together take as much as they may.
    #[error("the shops that are kept take all of the room there is for them (SAVED_MAX_BYTES)")]
    NoRoom,
    /// Another one has that name.
    #[error("a shop is kept as {name} already: take another name")]
    Taken {
        /// Which name.
        name: SavedName,
    },
    /// None has that name, or the key is not its.
    #[error("no shop is kept as {name} with that key")]
    Unknown {
        /// Which name.
        name: SavedName,
    },
    /// The shop's files are none that can be kept.
    #[error("the shop's files cannot be kept")]
    Files(#[source] io::Error),
    /// The archives.
    #[error("what is kept cannot be written or read")]
    Archive(#[from] ArchiveError),
    /// The disk.
    #[error("cannot {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl ShelfError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Full { .. } | Self::NoRoom => ErrorKind::Exhausted,
            Self::Taken { .. } | Self::Files(_) => ErrorKind::Conflict,
            Self::Unknown { .. } => ErrorKind::NotFound,
            Self::Archive(ArchiveError::Damaged { .. }) => ErrorKind::Bug,
            Self::Archive(ArchiveError::Io { source, .. }) | Self::Io { source, .. } => {
                match kind_of_io(source) {
                    ErrorKind::NotFound => ErrorKind::Bug,
                    other => other,
                }
            }
        }
    }
}

fn at(doing: &'static str) -> impl FnOnce(io::Error) -> ShelfError {
    move |source| ShelfError::Io { doing, source }
}

/// The directory of kept shops.
#[derive(Debug, Clone)]
pub struct Shelf {
    dir: PathBuf,
    limits: Limits,
}

impl Shelf {
    /// The shelf below the daemon's own directory; touches nothing yet.
    #[must_use]
    pub fn of(state_dir: &Path, limits: Limits) -> Self {
        Self { dir: state_dir.join("saved"), limits }
    }

    fn path(&self, name: &SavedName) -> PathBuf {
        self.dir.join(name.as_str())
    }

    fn read(&self, name: &SavedName) -> io::Result<Option<Saved>> {
        use io::Read as _;
        let file = match std::fs::File::open(self.path(name).join(RECORD)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut bytes = Vec::new();
        file.take(RECORD_MAX).read_to_end(&mut bytes)?;
        #[derive(Deserialize)]
        struct Versioned {
            version: u16,
        }
        let Versioned { version } = serde_json::from_slice(&bytes)?;
        if version != VERSION {
            return Err(io::Error::other(format!(
                "{name} is of version {version}: a later program wrote it"
            )));
        }
        let saved: Saved = serde_json::from_slice(&bytes)?;
        match saved.name == *name {
            true => Ok(Some(saved)),
            false => Err(io::Error::other(format!("{name} holds what is named {}", saved.name))),
        }
    }

    /// All that are kept and can be read, by name.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Saved>, ShelfError> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(at("read the kept shops"))?,
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut found: Vec<Saved> =
            names.filter_map(|name: SavedName| self.read(&name).ok().flatten()).collect();
        found.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(found)
    }

    /// Whether one more may be kept under that name.
    ///
    /// # Errors
    /// [`ShelfError`] says why not.
    pub fn has_room(&self, name: &SavedName) -> Result<(), ShelfError> {
        if self.path(name).try_exists().map_err(at("look for a kept shop"))? {
            return Err(ShelfError::Taken { name: name.clone() });
        }
        let kept = self.list()?;
        if kept.len() >= self.limits.max {
            return Err(ShelfError::Full { max: self.limits.max });
        }
        if kept.iter().map(Saved::bytes).sum::<u64>() >= self.limits.max_bytes {
            return Err(ShelfError::NoRoom);
        }
        Ok(())
    }

    /// Keeps what is frozen of an instance; nothing else touches it meanwhile. Blocks.
    ///
    /// # Errors
    /// [`ShelfError`]; nothing is kept.
    pub fn put(
        &self,
        (name, key): (&SavedName, &SecretString),
        instance: &Instance,
        (images, upper): (&Path, &Path),
        now: Timestamp,
    ) -> Result<Saved, ShelfError> {
        self.has_room(name)?;
        make_private(&self.dir).map_err(at("make the directory of kept shops"))?;
        let new = self.dir.join(format!("{UNFINISHED}{name}"));
        tree::remove(&new).map_err(at("remove what was half kept"))?;
        let put = self.put_in(&new, (name, key), instance, (images, upper), now);
        if put.is_err() {
            // What cannot be removed now is removed by the next one of that name, or pruned.
            drop(tree::remove(&new));
        }
        put
    }

    fn put_in(
        &self,
        new: &Path,
        (name, key): (&SavedName, &SecretString),
        instance: &Instance,
        (images, upper): (&Path, &Path),
        now: Timestamp,
    ) -> Result<Saved, ShelfError> {
        let (Some(snapshot), Some(access)) = (instance.snapshot.clone(), instance.access.clone()) else {
            return Err(ShelfError::Files(io::Error::other("it was not restored from a snapshot")));
        };
        let bounds = Bounds { bytes: self.limits.files_max, entries: ENTRIES_MAX, depth: DEPTH_MAX };
        tree::check(upper, bounds).map_err(ShelfError::Files)?;
        make_private(new).map_err(at("make a directory for it"))?;
        let saved = Saved {
            version: VERSION,
            name: name.clone(),
            id: instance.id.clone(),
            golden: instance.golden.clone(),
            snapshot,
            saved_at: now,
            until: now + self.limits.keep,
            key: hash(key).to_hex().to_string(),
            access,
            memory: archive::pack(&[(IMAGES, images)], &new.join(MEMORY_ARCHIVE))?,
            files: archive::pack(&[("", upper)], &new.join(FILES_ARCHIVE))?,
        };
        let before: u64 = self.list()?.iter().map(Saved::bytes).sum();
        if before + saved.bytes() > self.limits.max_bytes {
            return Err(ShelfError::NoRoom);
        }
        let bytes =
            serde_json::to_vec_pretty(&saved).map_err(|error| at("write its record")(error.into()))?;
        let file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(new.join(RECORD));
        let written = file.and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()));
        written.map_err(at("write its record"))?;
        // A directory of that name would have things in it, so this fails for the later of two.
        std::fs::rename(new, self.path(name)).map_err(at("put it in its place"))?;
        let synced = std::fs::File::open(&self.dir).and_then(|dir| dir.sync_all());
        synced.map_err(at("put it in its place"))?;
        Ok(saved)
    }

    /// Finds a kept shop by name and key, if it is kept for long enough.
    ///
    /// # Errors
    /// [`ShelfError::Unknown`] also when the key is another one.
    pub fn find(&self, name: &SavedName, key: &SecretString, now: Timestamp) -> Result<Saved, ShelfError> {
        let found = self.read(name).map_err(at("read a kept shop"))?;
        let found = found.filter(|saved| saved.opens_with(key) && saved.until > now);
        found.ok_or_else(|| ShelfError::Unknown { name: name.clone() })
    }

    /// Verifies a kept shop and unpacks it into the empty directory `into`. Blocks.
    ///
    /// # Errors
    /// [`ShelfError::Archive`]: it is not what was kept, or the disk says no.
    pub fn unpack(&self, saved: &Saved, into: &Path) -> Result<(), ShelfError> {
        let dir = self.path(&saved.name);
        archive::unpack(&dir.join(MEMORY_ARCHIVE), &saved.memory, into)?;
        let upper = into.join("upper");
        make_private(&upper).map_err(at("make a directory for its files"))?;
        Ok(archive::unpack(&dir.join(FILES_ARCHIVE), &saved.files, &upper)?)
    }

    /// Removes a kept shop; absent is fine. Answers whether it was there.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, name: &SavedName) -> Result<bool, ShelfError> {
        let there = self.path(name).try_exists().map_err(at("look for a kept shop"))?;
        tree::remove(&self.path(name)).map_err(at("remove a kept shop"))?;
        Ok(there)
    }

    /// Removes what was kept for long enough; answers which.
    ///
    /// # Errors
    /// The first that cannot be removed.
    pub fn prune(&self, now: Timestamp) -> Result<Vec<SavedName>, ShelfError> {
        let over = self.list()?.into_iter().filter(|saved| saved.until <= now);
        over.map(|saved| self.remove(&saved.name).map(|_| saved.name)).collect()
    }

    /// Removes what a former daemon has half kept; for the start.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn sweep(&self) -> Result<(), ShelfError> {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return Ok(()) };
        for entry in entries.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
                tree::remove(&entry.path()).map_err(at("remove what was half kept"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::conformance::{golden, instance};

    struct World {
        dir: tempfile::TempDir,
        shelf: Shelf,
        instance: Instance,
    }

    fn world(limits: Limits) -> World {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("images")).unwrap();
        std::fs::create_dir_all(dir.path().join("upper/etc")).unwrap();
        std::fs::write(dir.path().join("images/core-1.img"), "memory").unwrap();
        std::fs::write(dir.path().join("upper/etc/own"), "mine").unwrap();
        let mut instance = instance(&golden("shop"), crate::instance::State::Assigned, 0);
        instance.snapshot = Some("shop-20260101t000000z-0a1b".parse().unwrap());
        instance.access = Some(Access {
            url: "http://x/".into(),
            admin_url: "http://x/admin".into(),
            admin_email: "x@example.com".into(),
            admin_password: "secret".to_owned().into(),
            one_click: None,
        });
        World { shelf: Shelf::of(dir.path(), limits), instance, dir }
    }

    const LIMITS: Limits =
        Limits { max: 2, max_bytes: 1 << 20, keep: SignedDuration::from_hours(1), files_max: 1 << 20 };

    fn key() -> SecretString {
        "the key".to_owned().into()
    }

    impl World {
        fn put(&self, name: &str) -> Result<Saved, ShelfError> {
            let (images, upper) = (self.dir.path().join("images"), self.dir.path().join("upper"));
            let name = name.parse().unwrap();
            self.shelf.put((&name, &key()), &self.instance, (&images, &upper), Timestamp::UNIX_EPOCH)
        }
    }

    #[test]
    fn what_is_kept_is_found_by_its_key_and_comes_back_as_it_was() {
        let world = world(LIMITS);
        let saved = world.put("mine").unwrap();
        let (name, now) = (saved.name.clone(), Timestamp::UNIX_EPOCH);
        let record = std::fs::read_to_string(world.dir.path().join("saved/mine/saved.json")).unwrap();
        assert!(!record.contains("the key"), "only its hash is kept");
        let wrong = world.shelf.find(&name, &"another".to_owned().into(), now).unwrap_err();
        assert!(matches!(wrong, ShelfError::Unknown { .. }));
        let found = world.shelf.find(&name, &key(), now).unwrap();
        let into = world.dir.path().join("into");
        std::fs::create_dir(&into).unwrap();
        world.shelf.unpack(&found, &into).unwrap();
        assert_eq!(std::fs::read(into.join("images/core-1.img")).unwrap(), b"memory");
        assert_eq!(std::fs::read(into.join("upper/etc/own")).unwrap(), b"mine");
        assert!(world.shelf.find(&name, &key(), now + LIMITS.keep).is_err(), "its time is over");
        assert_eq!(world.shelf.prune(now + LIMITS.keep).unwrap(), [name]);
        assert!(world.shelf.list().unwrap().is_empty());
    }

    #[test]
    fn one_changed_byte_is_found_before_anything_is_used() {
        let world = world(LIMITS);
        let saved = world.put("mine").unwrap();
        for archive in [MEMORY_ARCHIVE, FILES_ARCHIVE] {
            let path = world.dir.path().join("saved/mine").join(archive);
            let whole = std::fs::read(&path).unwrap();
            let mut bytes = whole.clone();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let into = world.dir.path().join(archive);
            std::fs::create_dir(&into).unwrap();
            let error = world.shelf.unpack(&saved, &into).unwrap_err();
            assert!(matches!(error, ShelfError::Archive(ArchiveError::Damaged { .. })), "{error}");
            std::fs::write(&path, whole).unwrap();
        }
    }

    #[test]
    fn the_limits_hold_and_what_is_refused_leaves_nothing() {
        let world = world(LIMITS);
        world.put("one").unwrap();
        assert!(matches!(world.put("one"), Err(ShelfError::Taken { .. })));
        // A terabyte by its own account, and nothing on the disk.
        let sparse = world.dir.path().join("upper/sparse");
        std::fs::File::create(&sparse).unwrap().set_len(1 << 40).unwrap();
        assert!(matches!(world.put("two"), Err(ShelfError::Files(_))));
        std::fs::remove_file(sparse).unwrap();
        let deep = world.dir.path().join("upper").join("d/".repeat(DEPTH_MAX + 1));
        std::fs::create_dir_all(deep).unwrap();
        assert!(matches!(world.put("two"), Err(ShelfError::Files(_))));
        std::fs::remove_dir_all(world.dir.path().join("upper/d")).unwrap();
        world.put("two").unwrap();
        assert!(matches!(world.put("three"), Err(ShelfError::Full { max: 2 })));
        assert_eq!(std::fs::read_dir(world.dir.path().join("saved")).unwrap().count(), 2);
        let small = Shelf { limits: Limits { max_bytes: 10, max: 9, ..LIMITS }, ..world.shelf.clone() };
        let world = World { shelf: small, ..world };
        assert!(matches!(world.put("three"), Err(ShelfError::NoRoom)));
    }
}
