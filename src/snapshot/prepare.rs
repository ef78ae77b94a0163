//! Making a snapshot ready to be restored: unpacked once, used by every clone.
//!
//! Steps: check the host, flatten the image ([`flatten`]), verify and unpack the archives,
//! move memory to where clones map it, write the manifest, record digests of all of it.
//! Each directory appears by one rename; what begins with `.new-` is a former prepare's,
//! removed by the next one. What is there already is looked at and mended ([`intact`]).
//! Called by `serve` and `bench` at start, and before a snapshot is promoted.

use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Advice, SeekFrom};

use super::archive::{self, ArchiveError};
use super::catalog::{Catalog, CatalogError};
use super::compat::{self, Incompatible};
use super::flatten::{self, ROOTFS};
use super::intact::{self, Ask, keep_whole};
use super::manifest::{DATABASE_ARCHIVE, FILES_ARCHIVE, HostFacts, MEMORY_ARCHIVE, Manifest};
use super::mapped::{self, Whose};
use super::names;
use crate::config::{DatabaseMode, units};
use crate::engine::criu::images;
use crate::engine::criu::{self, RestoreSource, plan};
use crate::engine::podman::cli::{self, PodmanError};
use crate::error::{DiskError, ErrorKind};
use crate::failpoint;
use crate::host::cgroup::{IoLimits, Limits};
use crate::host::facts;
use crate::host::slots::make_private;
use crate::id::SnapshotId;

/// The container's OCI spec, beside CRIU's images in the memory archive.
pub const SPEC: &str = "config.json";

/// CRIU's images in the memory archive.
pub const IMAGES: &str = "images";

/// The database as SQL, alone in its archive.
pub const DUMP: &str = "database.sql";

/// Names of what is half made.
const UNFINISHED: &str = ".new-";

/// A snapshot could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// It does not fit this host.
    #[error("snapshot {id} cannot run on this host")]
    Incompatible {
        /// Which.
        id: SnapshotId,
        /// Why not.
        #[source]
        source: Incompatible,
    },
    /// It is not in the catalogue or not whole.
    #[error("the snapshot cannot be read")]
    Catalog(#[from] CatalogError),
    /// An archive is no good.
    #[error("snapshot {id} cannot be unpacked")]
    Archive {
        /// Which.
        id: SnapshotId,
        /// Why not.
        #[source]
        source: ArchiveError,
    },
    /// The image it stands on is not there.
    #[error("the image {image} of snapshot {id} is not on this host: build the golden and take a snapshot")]
    Image {
        /// Which.
        id: SnapshotId,
        /// Podman's image id.
        image: String,
    },
    /// Podman.
    #[error("the snapshot's image cannot be read")]
    Podman(#[from] PodmanError),
    /// The host's own facts.
    #[error("this host cannot be looked at")]
    Facts(#[from] FactsError),
    /// The disk has changed it, and a fresh copy is another one.
    #[error(
        "{} is damaged and cannot be mended: when no shop runs, sleeps or is kept on it, remove {} and start again",
        .path.display(), .tree.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What it belongs to.
        tree: PathBuf,
    },
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl PrepareError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Incompatible { .. } | Self::Image { .. } => ErrorKind::Incompatible,
            Self::Catalog(error) => error.kind(),
            Self::Archive { source, .. } => source.kind(),
            Self::Damaged { .. } => ErrorKind::Invalid,
            Self::Disk(error) => error.kind(),
            Self::Podman(_) | Self::Facts(_) => ErrorKind::Unavailable,
        }
    }
}

pub(super) fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> PrepareError + 'a {
    move |source| DiskError::at(doing, path)(source).into()
}

/// A fact of this host could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// The processor.
    #[error("the processor's features cannot be read")]
    Cpu(#[source] io::Error),
    /// CRIU.
    #[error("CRIU's version cannot be asked")]
    Criu(#[source] criu::RestoreError),
    /// Podman.
    #[error("Podman's version cannot be asked")]
    Podman(#[source] PodmanError),
}

/// What of this host a snapshot depends on.
///
/// # Errors
/// [`FactsError`].
pub async fn host_facts() -> Result<HostFacts, FactsError> {
    let (major, minor, sub) = criu::version().await.map_err(FactsError::Criu)?;
    let (podman, crun) = cli::versions().await.map_err(FactsError::Podman)?;
    Ok(HostFacts {
        architecture: facts::architecture(),
        kernel: facts::kernel(),
        cpu_features: facts::cpu_features().map_err(FactsError::Cpu)?,
        criu: format!("{major}.{minor}.{sub}"),
        podman,
        crun,
    })
}

/// A snapshot ready to be restored.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// What the restore driver needs.
    pub source: RestoreSource,
    /// The image's files.
    pub image: PathBuf,
    /// The database as SQL, of a snapshot whose clones share a server.
    pub dump: PathBuf,
}

/// Prepares a snapshot, or finds it prepared.
///
/// # Errors
/// [`PrepareError`]; what was half done is removed.
pub async fn prepare(
    catalog: &Catalog,
    id: &SnapshotId,
    ours: &HostFacts,
    state_dir: &Path,
    deadline: Duration,
) -> Result<Prepared, PrepareError> {
    let manifest = catalog.manifest(id)?;
    compat::check(&manifest.host, ours)
        .map_err(|source| PrepareError::Incompatible { id: id.clone(), source })?;
    let parent = state_dir.join("prepared");
    let dir = parent.join(id.as_str());
    make_private(&parent).map_err(at("make", &parent))?;
    sweep(&parent)?;
    flatten::ensure(state_dir, &manifest).await?;
    let unpack = async |new: &Path| {
        failpoint::hit("prepare:before-unpack").map_err(at("unpack", new))?;
        let (archives, to, wanted) = (catalog.path(id), new.to_owned(), manifest.clone());
        let unpacked = tokio::task::spawn_blocking(move || unpack(&archives, &wanted, &to));
        unpacked.await.map_err(io::Error::other).map_err(at("unpack", new))?
    };
    if !dir.join("manifest.json").is_file() {
        let new = parent.join(format!("{UNFINISHED}{id}"));
        let renamed = || failpoint::hit("prepare:before-rename").and_then(|()| std::fs::rename(&new, &dir));
        if let Err(error) = unpack(&new).await.and_then(|()| renamed().map_err(at("rename", &new))) {
            drop(std::fs::remove_dir_all(&new));
            return Err(error);
        }
    }
    let tree = flatten::place(state_dir, &manifest);
    keep_whole(&tree, Ask::Nothing, async |new| flatten::copy(&manifest, new).await).await?;
    keep_whole(&dir, Ask::Files, unpack).await?;
    let image = tree.join(ROOTFS);
    let source = restore_source(&manifest, &dir, image.clone(), deadline)?;
    let memory = dir.join("upper").join(mapped::DIR).join(manifest.id.as_str());
    let read = [source.images.clone(), memory];
    // Nobody waits for it, and a restore reads what is not there yet by itself.
    drop(tokio::task::spawn_blocking(move || read.iter().try_for_each(|dir| read_ahead(dir))));
    Ok(Prepared { manifest: Arc::new(manifest), source, image, dump: dir.join(DUMP) })
}

/// What restoring a snapshot needs that was prepared before, for a shop that stands on
/// it: whatever the catalogue says now.
///
/// # Errors
/// [`PrepareError`]: it is not there any more, or not whole.
pub fn found(state_dir: &Path, id: &SnapshotId, deadline: Duration) -> Result<RestoreSource, PrepareError> {
    let (manifest, [_, image]) = stands_on(state_dir, id)?;
    restore_source(&manifest, &dir_of(state_dir, id), image, deadline)
}

/// The manifest of a snapshot that was prepared before, and the lower directories of its
/// clones, the top one first.
///
/// # Errors
/// As above.
pub fn stands_on(state_dir: &Path, id: &SnapshotId) -> Result<(Manifest, [PathBuf; 2]), PrepareError> {
    let dir = dir_of(state_dir, id);
    let path = dir.join("manifest.json");
    let manifest = std::fs::read(&path).map_err(at("read", &path))?;
    let manifest =
        Manifest::parse(&manifest).map_err(|source| CatalogError::Manifest { id: id.clone(), source })?;
    let image = flatten::place(state_dir, &manifest).join(ROOTFS);
    Ok((manifest, [dir.join("upper"), image]))
}

/// The OCI spec of the container that a prepared snapshot was.
///
/// # Errors
/// As above.
pub fn spec(state_dir: &Path, id: &SnapshotId) -> Result<serde_json::Value, PrepareError> {
    read_spec(&dir_of(state_dir, id))
}

fn read_spec(dir: &Path) -> Result<serde_json::Value, PrepareError> {
    let path = dir.join(SPEC);
    let spec = std::fs::read(&path).and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::from));
    spec.map_err(at("read", &path))
}

fn dir_of(state_dir: &Path, id: &SnapshotId) -> PathBuf {
    state_dir.join("prepared").join(id.as_str())
}

/// Has the kernel read what every restore reads, so that the first one after a
/// boot is as fast as the next.
fn read_ahead(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let file = std::fs::File::open(entry?.path())?;
        // Only what is there: these files are mostly holes, which would fill the memory with zeros.
        let mut at = 0;
        while let Ok(begin) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
            at = rustix::fs::seek(&file, SeekFrom::Hole(begin))?;
            rustix::fs::fadvise(&file, begin, NonZeroU64::new(at - begin), Advice::WillNeed)?;
        }
    }
    Ok(())
}

/// Removes what a prepare that died has left.
pub(super) fn sweep(parent: &Path) -> Result<(), PrepareError> {
    for entry in std::fs::read_dir(parent).map_err(at("read", parent))?.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            std::fs::remove_dir_all(entry.path()).map_err(at("remove", &entry.path()))?;
        }
    }
    Ok(())
}

fn unpack(archives: &Path, manifest: &Manifest, to: &Path) -> Result<(), PrepareError> {
    let upper = to.join("upper");
    make_private(to).map_err(at("make", to))?;
    make_private(&upper).map_err(at("make", &upper))?;
    let mut archives_of = vec![(MEMORY_ARCHIVE, to), (FILES_ARCHIVE, upper.as_path())];
    if manifest.database == DatabaseMode::Shared {
        archives_of.push((DATABASE_ARCHIVE, to));
    }
    for (name, into) in archives_of {
        let archived = |source| PrepareError::Archive { id: manifest.id.clone(), source };
        let Some(expected) = manifest.archives.get(name) else {
            let missing = io::Error::other("the manifest does not name it");
            return Err(archived(DiskError::at("find", &archives.join(name))(missing).into()));
        };
        archive::unpack(&archives.join(name), expected, into).map_err(archived)?;
    }
    let run = &manifest.recipe.run;
    let whose = Whose { programs: &run.mapped_memory, unshare: run.unshare_memory };
    let images = to.join(IMAGES);
    let mapped = mapped::map_memory(&images, &upper, &manifest.id, whose)
        .map_err(at("rewrite the images in", &images))?;
    tracing::debug!(private = mapped.private, shared = mapped.shared, "pages that clones map");
    let path = to.join("manifest.json");
    std::fs::write(&path, manifest.to_bytes()).map_err(at("write", &path))?;
    intact::record(to).map_err(at("digest", to))?;
    sync(to).map_err(at("sync", to))
}

/// Has all files of a file system on the disk: a directory that appears by a
/// rename is whole after a power cut, too.
pub(super) fn sync(dir: &Path) -> io::Result<()> {
    std::fs::File::open(dir).and_then(|dir| Ok(rustix::fs::syncfs(dir)?))
}

/// Does what blocks beside the runtime.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other).flatten()
}

/// Whether what was prepared of a snapshot is as it was made, by what was found last where
/// that is good; for a shop that stands on it, whichever is served. Blocks.
///
/// # Errors
/// When it is not, or not there any more.
pub fn is_whole(state_dir: &Path, id: &SnapshotId) -> io::Result<()> {
    let (manifest, _) = stands_on(state_dir, id).map_err(io::Error::other)?;
    for tree in [dir_of(state_dir, id), flatten::place(state_dir, &manifest)] {
        if let Some(name) = intact::damaged(&tree, Ask::Nothing)?.first() {
            let damaged = format!("{} is damaged", tree.join(name).display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, damaged));
        }
    }
    Ok(())
}

/// Reads all that was prepared of a snapshot, whenever this was last done; answers a file
/// that is not as it was made. Blocks.
///
/// # Errors
/// When it cannot be read; what is not prepared is fine.
pub fn verify(state_dir: &Path, manifest: &Manifest) -> io::Result<Option<PathBuf>> {
    let mut first = None;
    // Both, so that the next start mends both.
    for tree in [dir_of(state_dir, &manifest.id), flatten::place(state_dir, manifest)] {
        let damaged = intact::damaged_in_full(&tree)?;
        first = first.or_else(|| damaged.first().map(|name| tree.join(name)));
    }
    Ok(first)
}

fn restore_source(
    manifest: &Manifest,
    dir: &Path,
    image: PathBuf,
    deadline: Duration,
) -> Result<RestoreSource, PrepareError> {
    let spec = read_spec(dir)?;
    let run = &manifest.recipe.run;
    let images = dir.join(IMAGES);
    let mut written = images::written(&images).map_err(at("read", &images))?;
    written.extend(manifest.recipe.personalize.files.iter().map(|file| file.path.clone()));
    let lowers = vec![dir.join("upper"), image];
    Ok(RestoreSource {
        snapshot: manifest.id.clone(),
        images,
        written,
        names: names::read(&lowers, run.names.as_deref()),
        lowers,
        root_mode: manifest.root_mode,
        externals: plan::externals(&spec, |path| Path::new(path).is_dir()),
        limits: Limits {
            // Checked when the recipe was read.
            memory_max: units::bytes(&run.memory_max).unwrap_or(u64::MAX),
            pids_max: run.pids_max,
            cpu_max: run.cpu_max,
            io: IoLimits::of(run),
        },
        port: run.port,
        deadline,
    })
}

/// Snapshots on whose files instances run: `lowers` are their overlays'.
#[must_use]
pub fn in_use(state_dir: &Path, lowers: &BTreeSet<PathBuf>) -> Vec<SnapshotId> {
    let prepared = state_dir.join("prepared");
    let names = lowers.iter().filter_map(|lower| lower.strip_prefix(&prepared).ok()?.iter().next()?.to_str());
    names.filter_map(|name| name.parse().ok()).collect()
}

/// Removes prepared snapshots and images that no snapshot in `keep` needs and
/// none of `lowers` lies in.
///
/// # Errors
/// When one cannot be removed.
pub fn forget(state_dir: &Path, keep: &[&Manifest], lowers: &BTreeSet<PathBuf>) -> Result<(), PrepareError> {
    let used = |path: &Path| lowers.iter().any(|lower| lower.starts_with(path));
    let snapshots = |name: &str| keep.iter().any(|manifest| manifest.id.as_str() == name);
    let images = |name: &str| keep.iter().any(|manifest| manifest.image_id == name);
    retain(&state_dir.join("prepared"), |name, path| snapshots(name) || used(path))?;
    retain(&state_dir.join("images"), |name, path| images(name) || used(path))
}

/// Removes the entries of a directory that are not wanted; absent is fine.
fn retain(parent: &Path, wanted: impl Fn(&str, &Path) -> bool) -> Result<(), PrepareError> {
    let entries = match std::fs::read_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(at("read", parent))?,
    };
    for entry in entries.flatten() {
        if !wanted(&entry.file_name().to_string_lossy(), &entry.path()) {
            std::fs::remove_dir_all(entry.path()).map_err(at("remove", &entry.path()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_instances_stand_on_is_neither_pruned_nor_forgotten() {
        let state = tempfile::tempdir().unwrap();
        let id = "wordpress-20260101t000000z-0001";
        let lower = |path: &str| state.path().join(path);
        for path in
            [&format!("prepared/{id}/upper"), "prepared/old/upper", "images/used/rootfs", "images/old/rootfs"]
        {
            std::fs::create_dir_all(lower(path)).unwrap();
        }
        let lowers = BTreeSet::from([
            lower(&format!("prepared/{id}/upper")),
            lower("images/used/rootfs"),
            "/elsewhere/prepared/x/upper".into(),
        ]);
        assert_eq!(in_use(state.path(), &lowers), [id.parse().unwrap()]);
        forget(state.path(), &[], &lowers).unwrap();
        let left = |kind: &str| {
            let entries = std::fs::read_dir(lower(kind)).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!((left("prepared"), left("images")), (vec![id.to_owned()], vec!["used".to_owned()]));
    }
}
