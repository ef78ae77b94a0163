//! The snapshots at rest: write, list, choose, verify, prune.
//!
//! Owns SNAPSHOT_DIR. A snapshot is written into a directory whose name begins
//! with a dot and appears by one rename; what begins with a dot is nobody's
//! snapshot and is removed by the next write.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::archive::{self, ArchiveError};
use super::manifest::{Manifest, ManifestError, SIZE_MAX};
use crate::config::DatabaseMode;
use crate::error::ErrorKind;
use crate::host::slots::make_private;
use crate::id::{GoldenName, SnapshotId};

const MANIFEST: &str = "manifest.json";

/// The catalogue could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// No such snapshot.
    #[error("snapshot {id} is unknown")]
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
    /// An archive is no good.
    #[error("snapshot {id} cannot be used")]
    Archive {
        /// Which.
        id: SnapshotId,
        /// Why not.
        #[source]
        source: ArchiveError,
    },
    /// The disk.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl CatalogError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown { .. } => ErrorKind::NotFound,
            Self::Manifest { source, .. } => source.kind(),
            Self::Archive { source: ArchiveError::Damaged { .. }, .. } => ErrorKind::Invalid,
            Self::Archive { source: ArchiveError::Io { source, .. }, .. } | Self::Io { source, .. } => {
                crate::error::kind_of_io(source)
            }
        }
    }
}

fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CatalogError + 'a {
    move |source| CatalogError::Io { doing, path: path.to_owned(), source }
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
    /// The golden's name, also when the manifest is unreadable: ids are
    /// `<golden>-<time>-<hex>`.
    fn golden(&self) -> &str {
        let id = self.id.as_str();
        id.rsplitn(3, '-').nth(2).unwrap_or(id)
    }

    /// What only one snapshot is the newest of.
    fn kind(&self) -> (&str, DatabaseMode) {
        (self.golden(), self.manifest.as_ref().map(|manifest| manifest.database).unwrap_or_default())
    }
}

/// The directory of snapshots.
#[derive(Debug, Clone)]
pub struct Catalog {
    dir: PathBuf,
}

impl Catalog {
    /// Opens the directory, making it if need be.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(dir: &Path) -> Result<Self, CatalogError> {
        make_private(dir).map_err(at("make", dir))?;
        Ok(Self { dir: dir.to_owned() })
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

    /// Reads a snapshot's manifest.
    ///
    /// # Errors
    /// [`CatalogError`], which says what is wrong with it.
    pub fn manifest(&self, id: &SnapshotId) -> Result<Manifest, CatalogError> {
        use io::Read as _;
        let path = self.path(id).join(MANIFEST);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CatalogError::Unknown { id: id.clone() });
            }
            other => other.map_err(at("open", &path))?,
        };
        let mut bytes = Vec::new();
        file.take(SIZE_MAX).read_to_end(&mut bytes).map_err(at("read", &path))?;
        Manifest::parse(&bytes).map_err(|source| CatalogError::Manifest { id: id.clone(), source })
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

    /// Why [`Catalog::newest`] found none: what is wrong with the newest one
    /// that is there; none when there is none at all.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn why_unusable(&self, golden: &GoldenName) -> Result<Option<CatalogError>, CatalogError> {
        let of_golden = self.list()?.into_iter().filter(|entry| entry.golden() == golden.as_str());
        Ok(of_golden.filter_map(|entry| entry.manifest.err()).next_back())
    }

    /// Digests a snapshot's archives.
    ///
    /// # Errors
    /// [`CatalogError::Archive`] names the damaged one.
    pub fn verify(&self, id: &SnapshotId) -> Result<Manifest, CatalogError> {
        let manifest = self.manifest(id)?;
        for (name, expected) in &manifest.archives {
            archive::verify(&self.path(id).join(name), expected)
                .map_err(|source| CatalogError::Archive { id: id.clone(), source })?;
        }
        Ok(manifest)
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
        Ok(Writer { target: self.path(&id), parent: self.dir.clone(), dir, _lock: lock, done: false })
    }

    /// Removes all but the newest `keep` snapshots of each golden and place of its database, those in
    /// `in_use` aside; answers what was removed.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn prune(&self, keep: usize, in_use: &[SnapshotId]) -> Result<Vec<SnapshotId>, CatalogError> {
        let mut removed = Vec::new();
        let entries = self.list()?;
        for (position, entry) in entries.iter().enumerate() {
            let newer = entries[position + 1..].iter().filter(|other| other.kind() == entry.kind()).count();
            if newer >= keep && !in_use.contains(&entry.id) {
                self.remove(&entry.id)?;
                removed.push(entry.id.clone());
            }
        }
        Ok(removed)
    }

    /// Removes a snapshot: first from sight by a rename, then from disk.
    fn remove(&self, id: &SnapshotId) -> Result<(), CatalogError> {
        let path = self.path(id);
        let hidden = self.dir.join(format!(".new-gone-{id}"));
        std::fs::rename(&path, &hidden).map_err(at("remove", &path))?;
        std::fs::remove_dir_all(&hidden).map_err(at("remove", &hidden))
    }
}

/// A snapshot being written; dropped before [`Writer::finish`] it leaves nothing.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    target: PathBuf,
    parent: PathBuf,
    _lock: File,
    done: bool,
}

impl Writer {
    /// Where the archives go.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes the manifest and lets the snapshot appear.
    ///
    /// # Errors
    /// When the disk says no; nothing appears then.
    pub fn finish(mut self, manifest: &Manifest) -> Result<(), CatalogError> {
        use io::Write as _;
        let path = self.dir.join(MANIFEST);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let mut file = file.map_err(at("create", &path))?;
        file.write_all(&manifest.to_bytes()).and_then(|()| file.sync_all()).map_err(at("write", &path))?;
        sync_dir(&self.dir)?;
        std::fs::rename(&self.dir, &self.target).map_err(at("rename", &self.dir))?;
        self.done = true;
        sync_dir(&self.parent)
    }
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

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::sample;
    use super::*;

    fn catalog() -> (tempfile::TempDir, Catalog) {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(&dir.path().join("snapshots")).unwrap();
        (dir, catalog)
    }

    fn write(catalog: &Catalog, time: &str) -> Manifest {
        let mut manifest = sample();
        manifest.created_at = time.parse().unwrap();
        manifest.id = SnapshotId::new(&manifest.recipe.name, manifest.created_at);
        let writer = catalog.begin(manifest.id.clone()).unwrap();
        let archive =
            archive::pack(&[("", writer.dir().parent().unwrap())], &writer.dir().join("memory.tar.zst"));
        manifest.archives = [("memory.tar.zst".to_owned(), archive.unwrap())].into();
        writer.finish(&manifest).unwrap();
        manifest
    }

    #[test]
    fn a_finished_snapshot_is_listed_and_verifies() {
        let (_dir, catalog) = catalog();
        let manifest = write(&catalog, "2026-01-01T00:00:00Z");
        assert_eq!(catalog.list().unwrap().len(), 1);
        assert_eq!(catalog.verify(&manifest.id).unwrap(), manifest);
        assert_eq!(catalog.newest(&manifest.recipe.name, DatabaseMode::Bundled).unwrap(), Some(manifest));
    }

    #[test]
    fn an_unfinished_snapshot_is_never_seen_and_leaves_nothing() {
        let (_dir, catalog) = catalog();
        let id = SnapshotId::new(&sample().recipe.name, jiff::Timestamp::now());
        let writer = catalog.begin(id.clone()).unwrap();
        std::fs::write(writer.dir().join("memory.tar.zst"), "half").unwrap();
        assert!(catalog.begin(id).is_err(), "one at a time");
        let dir = writer.dir().to_owned();
        std::mem::forget(writer);
        assert!(catalog.list().unwrap().is_empty());
        // As after kill -9: the lock is gone with its holder, the directory is not.
        assert!(dir.is_dir());
    }

    #[test]
    fn a_damaged_archive_and_a_foreign_version_are_told_apart() {
        let (_dir, catalog) = catalog();
        let manifest = write(&catalog, "2026-01-01T00:00:00Z");
        let path = catalog.path(&manifest.id);
        let archive = path.join("memory.tar.zst");
        let mut bytes = std::fs::read(&archive).unwrap();
        bytes[7] ^= 1;
        std::fs::write(&archive, bytes).unwrap();
        let error = catalog.verify(&manifest.id).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        let text = std::fs::read_to_string(path.join(MANIFEST)).unwrap();
        std::fs::write(path.join(MANIFEST), text.replace("\"format_version\": 1", "\"format_version\": 99"))
            .unwrap();
        let error = catalog.verify(&manifest.id).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
        assert_eq!(catalog.newest(&manifest.recipe.name, DatabaseMode::Bundled).unwrap(), None, "not chosen");
        assert_eq!(catalog.list().unwrap().len(), 1, "but listed");
        let why = catalog.why_unusable(&manifest.recipe.name).unwrap().unwrap();
        assert_eq!(why.kind(), ErrorKind::Incompatible, "{why}");
        assert!(catalog.why_unusable(&"other".parse().unwrap()).unwrap().is_none());
    }

    #[test]
    fn pruning_keeps_the_newest_and_those_in_use() {
        let (_dir, catalog) = catalog();
        let made: Vec<Manifest> =
            (1..=4).map(|day| write(&catalog, &format!("2026-01-0{day}T00:00:00Z"))).collect();
        let removed = catalog.prune(2, std::slice::from_ref(&made[0].id)).unwrap();
        assert_eq!(removed, [made[1].id.clone()]);
        assert_eq!(catalog.list().unwrap().len(), 3);
    }
}
