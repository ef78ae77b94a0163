//! Shops that their visitors have kept: what lies on the disk, and for how long.
//!
//! Owns `STATE_DIR/saved`. One directory for each instance that was kept, root's
//! alone, which appears by one rename, as snapshots do, and takes the place of what was
//! kept of the instance before; names that begin with a dot are nobody's:
//!
//! ```text
//! STATE_DIR/saved/<instance id>/
//!   saved.json       its form's version, whose it is, digests of the archives
//!   memory.tar.zst   CRIU's images
//!   files.tar.zst    what the shop had changed
//! ```
//!
//! Whoever knows a shop's key may open it; here is only the key's hash. Invariants:
//! nothing of an archive is used before its digest was found right; what a stranger
//! made is packed only within bounds, and nothing of it is followed; the snapshot that
//! a kept shop stands on is held ([`Shelf::lowers`]).
//!
//! Called by [`crate::provision`], which has one caller at a time write, by
//! [`crate::pool::pruner`], which removes what was kept for long enough, and by whoever
//! removes snapshots.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};

pub use self::wish::{Waiting, Wish};
use super::archive::{self, ArchiveError};
use super::manifest::{Archive, FILES_ARCHIVE, MEMORY_ARCHIVE};
use super::prepare::{self, IMAGES};
use crate::error::{ErrorKind, kind_of_io};
use crate::failpoint;
use crate::host::slots::make_private;
use crate::host::tree::{self, Bounds};
use crate::id::{GoldenName, InstanceId, NodeName, SnapshotId};
use crate::instance::{Access, Instance, Source};

/// The version this program writes into `saved.json`.
const VERSION: u16 = 1;

const RECORD: &str = "saved.json";
const UNFINISHED: &str = ".new-";

/// A record is about a kilobyte.
const RECORD_MAX: u64 = 64 * 1024;

/// A shop's own files: no more of them, and none deeper, than any shop has.
const ENTRIES_MAX: usize = 200_000;
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
    /// Bytes of one shop's files at most, by their own account: what is larger than a
    /// shop may write is full of holes.
    pub files_max: u64,
}

/// A kept shop, as it is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saved {
    version: u16,
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
    pub fn warming(&self, node: NodeName, now: Timestamp) -> Instance {
        let mut record = Instance::warming(self.id.clone(), self.golden.clone(), node, now);
        record.made_by = Source::Restore;
        record.snapshot = Some(self.snapshot.clone());
        record
    }
}

fn hash(key: &SecretString) -> blake3::Hash {
    blake3::hash(key.expose_secret().as_bytes())
}

/// What lies on the shelf.
#[derive(Debug)]
pub struct Entry {
    /// The instance that was kept.
    pub id: InstanceId,
    /// What is written down of it, or why that cannot be read.
    pub saved: io::Result<Saved>,
}

/// A shop cannot be kept, or what is kept cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// As many as may be are kept.
    #[error("{max} shops are kept, which is as many as may be (SAVED_MAX)")]
    Full {
        /// SAVED_MAX.
        max: usize,
    },
    /// All together take as much as they may.
    #[error("the shops that are kept take all of the room there is for them (SAVED_MAX_BYTES)")]
    NoRoom,
    /// None is kept, not any more, or the key is not its.
    #[error("nothing is kept of instance {id}, or another key opens it")]
    Unknown {
        /// Which.
        id: InstanceId,
    },
    /// It was not restored.
    #[error("only shops that were restored from a snapshot can be kept")]
    NotRestored,
    /// Nobody waits for its key any more.
    #[error("nobody waits for the shop's key any more, so it is not kept")]
    Unwanted,
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
            Self::NotRestored | Self::Files(_) => ErrorKind::Conflict,
            Self::Unwanted => ErrorKind::Unavailable,
            Self::Unknown { .. } => ErrorKind::NotFound,
            Self::Archive(error) => of_own(error.kind()),
            Self::Io { source, .. } => of_own(kind_of_io(source)),
        }
    }
}

/// A file of the daemon's own that is missing, or not as it was, is nothing that the caller
/// asked wrongly for.
const fn of_own(kind: ErrorKind) -> ErrorKind {
    match kind {
        ErrorKind::NotFound | ErrorKind::Invalid => ErrorKind::Bug,
        other => other,
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
        Self { dir: dir_of(state_dir), limits }
    }

    /// What may be kept.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// What the files of one shop may be.
    #[must_use]
    pub const fn bounds(&self) -> Bounds {
        Bounds { bytes: self.limits.files_max, entries: ENTRIES_MAX, depth: DEPTH_MAX }
    }

    fn path(&self, id: &InstanceId) -> PathBuf {
        self.dir.join(id.as_str())
    }

    /// All that is kept, by instance.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>, ShelfError> {
        entries(&self.dir).map_err(at("read the kept shops"))
    }

    /// Whether that instance may be kept, beside what is kept of others.
    ///
    /// # Errors
    /// [`ShelfError`] says why not.
    pub fn has_room(&self, id: &InstanceId) -> Result<(), ShelfError> {
        let (others, bytes) = self.others(id)?;
        if others >= self.limits.max {
            return Err(ShelfError::Full { max: self.limits.max });
        }
        if bytes >= self.limits.max_bytes {
            return Err(ShelfError::NoRoom);
        }
        Ok(())
    }

    /// How many other instances are kept, and their bytes.
    fn others(&self, id: &InstanceId) -> Result<(usize, u64), ShelfError> {
        let others: Vec<Entry> = self.list()?.into_iter().filter(|entry| entry.id != *id).collect();
        let bytes = others.iter().filter_map(|entry| entry.saved.as_ref().ok()).map(Saved::bytes).sum();
        Ok((others.len(), bytes))
    }

    /// Keeps what is frozen of an instance, in place of what was kept of it before;
    /// nothing else touches it meanwhile, and nobody else writes here. Blocks.
    ///
    /// # Errors
    /// [`ShelfError`]; what was kept before still is. [`ShelfError::Unwanted`] when the wish
    /// was given up before it was in its place.
    pub fn put(
        &self,
        (key, wish): (&SecretString, &Wish),
        instance: &Instance,
        (images, upper): (&Path, &Path),
        now: Timestamp,
    ) -> Result<Saved, ShelfError> {
        self.has_room(&instance.id)?;
        make_private(&self.dir).map_err(at("make the directory of kept shops"))?;
        let new = self.dir.join(format!("{UNFINISHED}{}", instance.id));
        tree::remove(&new).map_err(at("remove what was half kept"))?;
        let put = self.pack(&new, (key, wish, instance), (images, upper), now);
        let put = put.and_then(|saved| self.put_in_place(&new, &saved.id, wish).map(|()| saved));
        // Half of it, or what was kept before. What cannot be removed now is swept.
        drop(tree::remove(&new));
        put
    }

    fn pack(
        &self,
        new: &Path,
        (key, wish, instance): (&SecretString, &Wish, &Instance),
        (images, upper): (&Path, &Path),
        now: Timestamp,
    ) -> Result<Saved, ShelfError> {
        let (Some(snapshot), Some(access)) = (instance.snapshot.clone(), instance.access.clone()) else {
            return Err(ShelfError::NotRestored);
        };
        failpoint::hit("save:before-pack").map_err(at("pass a fail point"))?;
        tree::check(upper, self.bounds()).map_err(ShelfError::Files)?;
        make_private(new).map_err(at("make a directory for it"))?;
        let memory = archive::pack(&[(IMAGES, images)], &new.join(MEMORY_ARCHIVE))?;
        if wish.is_given_up() {
            // The files take longer than the memory, and others wait for the processor.
            return Err(ShelfError::Unwanted);
        }
        let saved = Saved {
            version: VERSION,
            id: instance.id.clone(),
            golden: instance.golden.clone(),
            snapshot,
            saved_at: now,
            until: now + self.limits.keep,
            key: hash(key).to_hex().to_string(),
            access,
            memory,
            files: archive::pack(&[("", upper)], &new.join(FILES_ARCHIVE))?,
        };
        if self.others(&instance.id)?.1.saturating_add(saved.bytes()) > self.limits.max_bytes {
            return Err(ShelfError::NoRoom);
        }
        let bytes = serde_json::to_vec_pretty(&saved).map_err(io::Error::from);
        let written = bytes.and_then(|bytes| {
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(new.join(RECORD))?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            File::open(new)?.sync_all()
        });
        written.map_err(at("write its record"))?;
        Ok(saved)
    }

    /// Afterwards `new` is what was there before, if anything was.
    fn put_in_place(&self, new: &Path, id: &InstanceId, wish: &Wish) -> Result<(), ShelfError> {
        let place = self.path(id);
        failpoint::hit("save:before-rename").map_err(at("pass a fail point"))?;
        if !wish.settle() {
            return Err(ShelfError::Unwanted);
        }
        let renamed = match renameat_with(CWD, new, CWD, &place, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => renameat_with(CWD, new, CWD, &place, RenameFlags::EXCHANGE),
            renamed => renamed,
        };
        let synced = renamed.map_err(io::Error::from).and_then(|()| File::open(&self.dir)?.sync_all());
        synced.map_err(at("put it in its place"))
    }

    /// Finds a kept shop by its key, if it is kept for longer than `now`.
    ///
    /// # Errors
    /// [`ShelfError::Unknown`] also when the key is another one.
    pub fn find(&self, id: &InstanceId, key: &SecretString, now: Timestamp) -> Result<Saved, ShelfError> {
        let found = read(&self.dir, id).map_err(at("read what is kept"))?;
        let found = found.filter(|saved| saved.opens_with(key) && saved.until > now);
        found.ok_or_else(|| ShelfError::Unknown { id: id.clone() })
    }

    /// What is kept of an instance, for whoever needs no key.
    ///
    /// # Errors
    /// [`ShelfError::Unknown`] when nothing is.
    pub fn get(&self, id: &InstanceId) -> Result<Saved, ShelfError> {
        let found = read(&self.dir, id).map_err(at("read what is kept"))?;
        found.ok_or_else(|| ShelfError::Unknown { id: id.clone() })
    }

    /// Verifies a kept shop and unpacks it into the empty directory `into`. Blocks.
    ///
    /// # Errors
    /// [`ShelfError::Archive`]: it is not what was kept, or the disk says no.
    pub fn unpack(&self, saved: &Saved, into: &Path) -> Result<(), ShelfError> {
        archive::unpack(&self.path(&saved.id).join(MEMORY_ARCHIVE), &saved.memory, into)?;
        let upper = into.join("upper");
        make_private(&upper).map_err(at("make a directory for its files"))?;
        self.unpack_files(saved, &upper)
    }

    /// Verifies what a kept shop had changed and unpacks it into the empty directory
    /// `into`. Blocks.
    ///
    /// # Errors
    /// As above.
    pub fn unpack_files(&self, saved: &Saved, into: &Path) -> Result<(), ShelfError> {
        Ok(archive::unpack(&self.path(&saved.id).join(FILES_ARCHIVE), &saved.files, into)?)
    }

    /// Removes what is kept of an instance; absent is fine.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, id: &InstanceId) -> Result<(), ShelfError> {
        tree::remove(&self.path(id)).map_err(at("remove what is kept"))
    }

    /// Removes what was kept for long enough; answers of how many.
    ///
    /// # Errors
    /// The first that cannot be removed.
    pub fn prune(&self, now: Timestamp) -> Result<usize, ShelfError> {
        let kept = self.list()?.into_iter().filter_map(|entry| entry.saved.ok());
        let mut removed = 0;
        for saved in kept.filter(|saved| saved.until <= now) {
            self.remove(&saved.id)?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Removes what is half kept; for when nobody writes.
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

    /// Directories that each kept shop of that daemon stands on, once it is opened.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn lowers(state_dir: &Path) -> io::Result<Vec<(InstanceId, [PathBuf; 2])>> {
        let kept = entries(&dir_of(state_dir))?.into_iter().filter_map(|entry| entry.saved.ok());
        // One that is not there any more holds nothing back.
        let stands_on =
            |saved: Saved| Some((saved.id, prepare::stands_on(state_dir, &saved.snapshot).ok()?.1));
        Ok(kept.filter_map(stands_on).collect())
    }
}

fn dir_of(state_dir: &Path) -> PathBuf {
    state_dir.join("saved")
}

fn entries(dir: &Path) -> io::Result<Vec<Entry>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let entry = |id: InstanceId| {
        let saved = read(dir, &id).and_then(|saved| saved.ok_or_else(|| io::ErrorKind::NotFound.into()));
        Entry { saved, id }
    };
    let mut found: Vec<Entry> = ids.map(entry).collect();
    found.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(found)
}

fn read(dir: &Path, id: &InstanceId) -> io::Result<Option<Saved>> {
    let file = match File::open(dir.join(id.as_str()).join(RECORD)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut bytes = Vec::new();
    file.take(RECORD_MAX).read_to_end(&mut bytes)?;
    #[derive(Deserialize)]
    struct Versioned {
        version: u16,
    }
    // Its version first: a later form may be another one altogether.
    let Versioned { version } = serde_json::from_slice(&bytes)?;
    if version != VERSION {
        return Err(io::Error::other(format!("it is of version {version}: a later program wrote it")));
    }
    let saved: Saved = serde_json::from_slice(&bytes)?;
    match saved.id == *id {
        true => Ok(Some(saved)),
        false => Err(io::Error::other(format!("it is of another instance, {}", saved.id))),
    }
}

#[cfg(test)]
mod tests;
mod wish;
