//! The checkpoint procedure: a golden is booted once and frozen.
//!
//! Called by `demo-multiplexer snapshot create`. Phases and their undo:
//!
//! ```text
//! boot        `podman run` in a network namespace without any way out   undo: podman rm
//! warm        the recipe's pages and commands                           (nothing to undo)
//! quiesce     idle workers gone, the recipe's commands, no connection   (nothing to undo)
//! checkpoint  `podman container checkpoint`, which stops it             undo: podman rm
//! collect     zero pages left out; CRIU's images, spec and overlay upper into archives       undo: remove them
//! publish     manifest, sync, rename                                    (the end)
//! ```
//!
//! Why not Podman's export: it calls stat on the *host's* path of each changed
//! file and leaves out what is not there, a whole database directory for
//! instance. The upper directory is the truth.
//!
//! The container is `dm-golden-<name>`; one left by a procedure that died is
//! removed by the next.

pub mod golden;
mod zero;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use self::golden::{Golden, GoldenError};
use crate::engine::podman::cli::{self, PodmanError};
use crate::golden::build::Image;
use crate::golden::recipe::Recipe;
use crate::id::SnapshotId;
use crate::snapshot::archive::{self, ArchiveError};
use crate::snapshot::catalog::{Catalog, CatalogError};
use crate::snapshot::manifest::{FILES_ARCHIVE, FORMAT_VERSION, MEMORY_ARCHIVE, Manifest};
use crate::snapshot::prepare::{self, FactsError};

/// The snapshot could not be taken; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The golden did not boot, warm or quiesce.
    #[error("the golden is not fit to be frozen")]
    Golden(#[from] GoldenError),
    /// Podman or CRIU refused to freeze it.
    #[error("the golden cannot be frozen{}", .log)]
    Freeze {
        /// The end of CRIU's log, after a colon.
        log: String,
        /// What Podman said.
        #[source]
        source: PodmanError,
    },
    /// The recipe's container keeps what only this host has.
    #[error(
        "{command:?} in the golden still has the pipes it was started with: redirect stdin, stdout and stderr to files before anything else"
    )]
    Pipes {
        /// The process that holds one.
        command: String,
    },
    /// Where Podman keeps the container.
    #[error("the frozen golden's files cannot be found")]
    Find(#[source] PodmanError),
    /// The disk.
    #[error("cannot read {}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The archives.
    #[error("the snapshot cannot be written")]
    Archive(#[from] ArchiveError),
    /// The catalogue.
    #[error("the snapshot cannot be written")]
    Catalog(#[from] CatalogError),
    /// The host's facts for the manifest.
    #[error("this host cannot be looked at")]
    Facts(#[from] FactsError),
}

/// Boots, warms, freezes and stores a golden; `say` is told each step.
///
/// # Errors
/// [`CheckpointError`]; nothing is left.
///
/// # Cancel safety
/// A dropped call leaves the container; the next call removes it.
pub async fn create(
    recipe: &Recipe,
    image: &Image,
    catalog: &Catalog,
    state_dir: &Path,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Manifest, CheckpointError> {
    let host = prepare::host_facts().await?;
    let created_at = Timestamp::now();
    let id = SnapshotId::new(&recipe.name, created_at);
    // Taken first: it also says that no other snapshot is being made.
    let writer = catalog.begin(id.clone())?;
    let golden = Golden::boot(recipe, &image.name, state_dir, say).await?;
    let frozen = freeze(&golden, recipe, say).await;
    let result = match frozen {
        Ok(frozen) => collect(frozen, writer.dir(), say).await,
        Err(error) => Err(error),
    };
    let removed = golden.remove().await;
    let (archives, root_mode) = result?;
    removed?;
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        id,
        created_at,
        image_id: image.id.clone(),
        root_mode,
        host,
        archives,
        recipe: recipe.clone(),
    };
    writer.finish(&manifest)?;
    Ok(manifest)
}

/// Where the frozen golden's parts lie.
struct Frozen {
    images: PathBuf,
    spec: PathBuf,
    upper: PathBuf,
    root_mode: u32,
}

async fn freeze(
    golden: &Golden,
    recipe: &Recipe,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Frozen, CheckpointError> {
    golden.warm(recipe, say).await?;
    golden.quiesce(recipe, say).await?;
    if let Some(command) = golden.holds_foreign_pipe().await? {
        return Err(CheckpointError::Pipes { command });
    }
    let root = PathBuf::from(format!("/proc/{}/root", golden.pid()));
    let root_mode = std::fs::metadata(&root)
        .map(|metadata| metadata.permissions().mode() & 0o7777)
        .map_err(|source| CheckpointError::Io { path: root, source })?;
    let spec = cli::inspect(golden.name(), "{{.OCIConfigPath}}").await.map_err(CheckpointError::Find)?;
    let spec = PathBuf::from(spec);
    let upper = cli::upper_dir(golden.name()).await.map_err(CheckpointError::Find)?;
    let userdata = spec.parent().unwrap_or_else(|| Path::new("/")).to_owned();
    say("freezing it");
    let frozen = cli::podman(&["container", "checkpoint", "--keep", "--file-locks", golden.name()]).await;
    frozen.map_err(|source| {
        let tail = crate::engine::criu::log::tail(&userdata.join("dump.log"));
        let log = if tail.is_empty() { tail } else { format!("; CRIU's log ends:\n{tail}\n") };
        CheckpointError::Freeze { log, source }
    })?;
    let images = userdata.join("checkpoint");
    Ok(Frozen { images, spec, upper, root_mode })
}

type Archives = std::collections::BTreeMap<String, crate::snapshot::manifest::Archive>;

async fn collect(
    frozen: Frozen,
    dir: &Path,
    say: &(dyn Fn(&str) + Sync),
) -> Result<(Archives, u32), CheckpointError> {
    say("compressing memory and files");
    let dir = dir.to_owned();
    let packing = tokio::task::spawn_blocking(move || {
        zero::leave_out(&frozen.images)
            .map_err(|source| CheckpointError::Io { path: frozen.images.clone(), source })?;
        let memory = [(prepare::IMAGES, frozen.images.as_path()), (prepare::SPEC, frozen.spec.as_path())];
        let files = [("", frozen.upper.as_path())];
        let mut archives = Archives::new();
        archives.insert(MEMORY_ARCHIVE.to_owned(), archive::pack(&memory, &dir.join(MEMORY_ARCHIVE))?);
        archives.insert(FILES_ARCHIVE.to_owned(), archive::pack(&files, &dir.join(FILES_ARCHIVE))?);
        Ok((archives, frozen.root_mode))
    });
    packing.await.unwrap_or_else(|error| {
        Err(CheckpointError::Io { path: PathBuf::from("the archives"), source: io::Error::other(error) })
    })
}
