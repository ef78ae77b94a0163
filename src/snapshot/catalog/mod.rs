//! The snapshots at rest: write, list, choose, verify, prune.
//!
//! Owns SNAPSHOT_DIR. A snapshot is written into a directory whose name begins
//! with a dot and appears by one rename; what begins with a dot is nobody's
//! snapshot and is removed by the next write.

mod arrivals;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::config::{Config, DatabaseMode};
use crate::error::{Chain, DiskError, ErrorKind};
use crate::host::slots::make_private;
use crate::id::{GoldenName, SnapshotId};
use crate::snapshot::archive::{self, ArchiveError};
use crate::snapshot::manifest::{Manifest, ManifestError, SIZE_MAX};
use crate::snapshot::served::{Choice, ChoiceError};
use crate::snapshot::signature::{KeyError, Keys, SignatureError};

const MANIFEST: &str = "manifest.json";
const SIGNATURE: &str = "manifest.sig";

/// The catalogue could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// No such snapshot.
    #[error("snapshot {id} is unknown: `snapshot list` shows those that are there")]
    Unknown {
        /// Which.
        id: SnapshotId,
    },
    /// Its manifest is no good.
    #[error("snapshot {id} cannot be used")]
    Manifest {
        /// Which.
        id: SnapshotId,
        /// Why not.
        #[source]
        source: ManifestError,
    },
    /// Nobody we trust has signed it.
    #[error("snapshot {id} is not trusted")]
    Signature {
        /// Which.
        id: SnapshotId,
        /// Why not.
        #[source]
        source: SignatureError,
    },
    /// The host's keys.
    #[error("this host's keys for snapshots cannot be used")]
    Key(#[from] KeyError),
    /// An archive is no good.
    #[error("snapshot {id} cannot be used")]
    Archive {
        /// Which.
        id: SnapshotId,
        /// Why not.
        #[source]
        source: ArchiveError,
    },
    /// What was promoted is not known.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl CatalogError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown { .. } => ErrorKind::NotFound,
            Self::Manifest { source, .. } => source.kind(),
            // Only an operator can help; a cold start may still do.
            Self::Signature { .. } => ErrorKind::Incompatible,
            Self::Key(_) => ErrorKind::Unavailable,
            Self::Choice(error) => error.kind(),
            Self::Archive { source, .. } => source.kind(),
            Self::Disk(error) => error.kind(),
        }
    }
}

fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CatalogError + 'a {
    move |source| DiskError::at(doing, path)(source).into()
}

/// What `list` knows of one snapshot.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub id: SnapshotId,
    /// Its manifest, or why it cannot be used.
    pub manifest: Result<Manifest, CatalogError>,
}

impl Entry {
    /// What only one snapshot is the newest of.
    fn kind(&self) -> (&str, DatabaseMode) {
        (self.id.golden(), self.manifest.as_ref().map(|manifest| manifest.database).unwrap_or_default())
    }
}

/// The directory of snapshots.
#[derive(Debug, Clone)]
pub struct Catalog {
    dir: PathBuf,
    keys: Keys,
}

impl Catalog {
    /// Opens the catalogue that the settings name, with this host's keys.
    ///
    /// # Errors
    /// When the directory cannot be made, or a key cannot be read.
    pub fn of(config: &Config) -> Result<Self, CatalogError> {
        let keys = Keys::load(&config.state_dir, &config.trusted_snapshot_keys)?;
        Self::open(&config.snapshot_dir, keys)
    }

    /// Opens the directory, making it if need be; `keys` say whose snapshots
    /// are trusted.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(dir: &Path, keys: Keys) -> Result<Self, CatalogError> {
        make_private(dir).map_err(at("make", dir))?;
        Ok(Self { dir: dir.to_owned(), keys })
    }

    /// Where a snapshot lies.
    #[must_use]
    pub fn path(&self, id: &SnapshotId) -> PathBuf {
        self.dir.join(id.as_str())
    }

    /// All snapshots, usable or not, sorted by name.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>, CatalogError> {
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(at("read", &self.dir))? {
            let entry = entry.map_err(at("read", &self.dir))?;
            if !entry.path().join(MANIFEST).is_file() {
                continue;
            }
            ids.extend(entry.file_name().to_str().and_then(|name| name.parse::<SnapshotId>().ok()));
        }
        ids.sort();
        Ok(ids.into_iter().map(|id| Entry { manifest: self.manifest(&id), id }).collect())
    }

    /// Reads a snapshot's manifest, if a trusted key has signed it.
    ///
    /// # Errors
    /// [`CatalogError`], which says what is wrong with it.
    pub fn manifest(&self, id: &SnapshotId) -> Result<Manifest, CatalogError> {
        let bytes = self.read(id, MANIFEST)?.ok_or_else(|| CatalogError::Unknown { id: id.clone() })?;
        // Its version first: a newer program's signature may be of another form.
        let manifest = parse(id, &bytes)?;
        let signature = self.read(id, SIGNATURE)?;
        let trusted = self.keys.check(&bytes, signature.as_deref());
        trusted.map_err(|source| CatalogError::Signature { id: id.clone(), source })?;
        Ok(manifest)
    }

    /// Reads a snapshot's manifest, whoever wrote it: to be looked at, not used.
    ///
    /// # Errors
    /// [`CatalogError`], which says what is wrong with it.
    pub fn inspect(&self, id: &SnapshotId) -> Result<Manifest, CatalogError> {
        let bytes = self.read(id, MANIFEST)?.ok_or_else(|| CatalogError::Unknown { id: id.clone() })?;
        parse(id, &bytes)
    }

    /// Signs a snapshot that is there with this host's key, after its archives
    /// were found whole.
    ///
    /// # Errors
    /// [`CatalogError`]; it is as trusted as before.
    pub fn sign(&mut self, id: &SnapshotId) -> Result<Manifest, CatalogError> {
        let bytes = self.read(id, MANIFEST)?.ok_or_else(|| CatalogError::Unknown { id: id.clone() })?;
        let manifest = parse(id, &bytes)?;
        self.verify_archives(id, &manifest)?;
        self.keys.ensure_own()?;
        let (dir, new) = (self.path(id), self.path(id).join(".new-sig"));
        drop(std::fs::remove_file(&new));
        write_signature(&self.keys, &bytes, &new)?;
        let path = dir.join(SIGNATURE);
        std::fs::rename(&new, &path).map_err(at("rename", &new))?;
        sync_dir(&dir)?;
        Ok(manifest)
    }

    /// Where the public key lies that others need to trust this host's
    /// snapshots; made if need be.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn public_key(&mut self) -> Result<PathBuf, CatalogError> {
        self.keys.ensure_own()?;
        Ok(self.keys.public_path())
    }

    fn read(&self, id: &SnapshotId, name: &str) -> Result<Option<Vec<u8>>, CatalogError> {
        use io::Read as _;
        let path = self.path(id).join(name);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(at("open", &path))?,
        };
        let mut bytes = Vec::new();
        file.take(SIZE_MAX).read_to_end(&mut bytes).map_err(at("read", &path))?;
        Ok(Some(bytes))
    }

    /// The newest usable snapshot of a golden whose clones have their databases
    /// there, if there is one.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn newest(
        &self,
        golden: &GoldenName,
        database: DatabaseMode,
    ) -> Result<Option<Manifest>, CatalogError> {
        let usable = self.list()?.into_iter().filter_map(|entry| entry.manifest.ok());
        Ok(usable
            .filter(|manifest| manifest.recipe.name == *golden && manifest.database == database)
            .max_by(|a, b| a.created_at.cmp(&b.created_at)))
    }

    /// The snapshot that a golden is restored from: the one it was promoted to,
    /// else the newest usable one that no canary refused.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn chosen(
        &self,
        golden: &GoldenName,
        database: DatabaseMode,
    ) -> Result<Option<Manifest>, CatalogError> {
        let choice = Choice::read(&self.dir).unwrap_or_else(|error| {
            tracing::warn!(error = %Chain(&error), "what was promoted is not known, the newest is served");
            Choice::default()
        });
        let chosen = self.chosen_by(&choice, golden, database)?;
        if let Some(promoted) = choice.promoted(golden)
            && chosen.as_ref().is_none_or(|manifest| manifest.id != *promoted)
        {
            tracing::warn!(golden = %golden, snapshot_id = %promoted, "promoted snapshot cannot be used, the newest is served");
        }
        Ok(chosen)
    }

    /// As [`Catalog::chosen`], by what was said; for whoever asks again and again.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn chosen_by(
        &self,
        choice: &Choice,
        golden: &GoldenName,
        database: DatabaseMode,
    ) -> Result<Option<Manifest>, CatalogError> {
        let usable = self.list()?.into_iter().filter_map(|entry| entry.manifest.ok());
        let fitting = usable.filter(|it| it.recipe.name == *golden && it.database == database);
        let fitting = fitting.filter(|it| choice.refused(&it.id).is_none());
        Ok(fitting.max_by_key(|it| (choice.promoted(golden) == Some(&it.id), it.created_at)))
    }

    /// Why [`Catalog::newest`] found none: what is wrong with the newest one
    /// that is there; none when there is none at all.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn why_unusable(&self, golden: &GoldenName) -> Result<Option<CatalogError>, CatalogError> {
        let of_golden = self.list()?.into_iter().filter(|entry| entry.id.golden() == golden.as_str());
        Ok(of_golden.filter_map(|entry| entry.manifest.err()).next_back())
    }

    /// Digests a snapshot's archives.
    ///
    /// # Errors
    /// [`CatalogError::Archive`] names the damaged one.
    pub fn verify(&self, id: &SnapshotId) -> Result<Manifest, CatalogError> {
        let manifest = self.manifest(id)?;
        self.verify_archives(id, &manifest)?;
        Ok(manifest)
    }

    fn verify_archives(&self, id: &SnapshotId, manifest: &Manifest) -> Result<(), CatalogError> {
        for (name, expected) in &manifest.archives {
            archive::verify(&self.path(id).join(name), expected)
                .map_err(|source| CatalogError::Archive { id: id.clone(), source })?;
        }
        Ok(())
    }

    /// Begins a new snapshot; what a former one left unfinished is removed.
    ///
    /// # Errors
    /// When the disk says no, or another snapshot is being written.
    pub fn begin(&self, id: SnapshotId) -> Result<Writer, CatalogError> {
        let lock_path = self.dir.join(".lock");
        let lock = File::options().create(true).append(true).mode(0o600).open(&lock_path);
        let lock = lock.map_err(at("open", &lock_path))?;
        lock.try_lock()
            .map_err(|error| at("lock (another snapshot is being written)", &lock_path)(error.into()))?;
        for entry in std::fs::read_dir(&self.dir).map_err(at("read", &self.dir))?.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b".new-") {
                std::fs::remove_dir_all(entry.path()).map_err(at("remove", &entry.path()))?;
            }
        }
        let dir = self.dir.join(format!(".new-{id}"));
        make_private(&dir).map_err(at("make", &dir))?;
        let mut keys = self.keys.clone();
        keys.ensure_own()?;
        let (target, parent) = (self.path(&id), self.dir.clone());
        Ok(Writer { target, parent, dir, keys, _lock: lock, done: false })
    }

    /// Removes all but the newest `keep` snapshots of each golden and place of its database, those in
    /// `in_use` and those promoted aside; answers what was removed.
    ///
    /// # Errors
    /// When one cannot be removed, or it is not known which are promoted.
    pub fn prune(&self, keep: usize, in_use: &[SnapshotId]) -> Result<Vec<SnapshotId>, CatalogError> {
        let mut removed = Vec::new();
        // Not known, everything may be what is served.
        let choice = Choice::read(&self.dir)?;
        let entries = self.list()?;
        for (position, entry) in entries.iter().enumerate() {
            let newer = entries[position + 1..].iter().filter(|other| other.kind() == entry.kind()).count();
            let is_promoted = choice.all_promoted().any(|promoted| *promoted == entry.id);
            if newer >= keep && !is_promoted && !in_use.contains(&entry.id) {
                self.remove(&entry.id)?;
                removed.push(entry.id.clone());
            }
        }
        Ok(removed)
    }

    /// Removes a snapshot: first from sight by a rename, then from disk.
    ///
    /// # Errors
    /// When it is not there, or cannot be removed.
    pub fn remove(&self, id: &SnapshotId) -> Result<(), CatalogError> {
        let path = self.path(id);
        let hidden = self.dir.join(format!(".new-gone-{id}"));
        match std::fs::rename(&path, &hidden) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CatalogError::Unknown { id: id.clone() });
            }
            renamed => renamed.map_err(at("remove", &path))?,
        }
        std::fs::remove_dir_all(&hidden).map_err(at("remove", &hidden))
    }
}

/// A snapshot being written; dropped before [`Writer::finish`] it leaves nothing.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    target: PathBuf,
    parent: PathBuf,
    keys: Keys,
    _lock: File,
    done: bool,
}

impl Writer {
    /// Where the archives go.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes and signs the manifest and lets the snapshot appear.
    ///
    /// # Errors
    /// When the disk says no; nothing appears then.
    pub fn finish(mut self, manifest: &Manifest) -> Result<(), CatalogError> {
        use io::Write as _;
        let path = self.dir.join(MANIFEST);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = file.map_err(at("create", &path))?;
        let bytes = manifest.to_bytes();
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(at("write", &path))?;
        write_signature(&self.keys, &bytes, &self.dir.join(SIGNATURE))?;
        sync_dir(&self.dir)?;
        std::fs::rename(&self.dir, &self.target).map_err(at("rename", &self.dir))?;
        self.done = true;
        sync_dir(&self.parent)
    }
}

fn parse(id: &SnapshotId, bytes: &[u8]) -> Result<Manifest, CatalogError> {
    let named = |manifest: Manifest| match manifest.id == *id {
        true => Ok(manifest),
        false => Err(ManifestError::Sense(format!("it is of snapshot {}", manifest.id))),
    };
    let parsed = Manifest::parse(bytes).and_then(named);
    parsed.map_err(|source| CatalogError::Manifest { id: id.clone(), source })
}

fn write_signature(keys: &Keys, manifest: &[u8], path: &Path) -> Result<(), CatalogError> {
    use io::Write as _;
    let signature = keys.sign(manifest).ok_or_else(|| io::Error::other("this host has no key yet"));
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    let written = signature.and_then(|signature| {
        let mut file = file?;
        file.write_all(&signature)?;
        file.sync_all()
    });
    written.map_err(at("write", path))
}

fn sync_dir(path: &Path) -> Result<(), CatalogError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(at("sync", path))
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.done {
            // What cannot be removed now is removed by the next `begin`.
            drop(std::fs::remove_dir_all(&self.dir));
        }
    }
}
