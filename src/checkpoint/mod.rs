//! The checkpoint procedure: a golden is booted once and frozen.
//!
//! Called by `demo-multiplexer snapshot create`. Phases and their undo:
//!
//! ```text
//! database    with a shared server: a database there, as the image was
//!             built with it, instead of the one inside                 undo: drop it
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
//!
//! An image that was made of a visitor's shop ([`Origin::Shop`]) is booted within the
//! limits of a shop and given a golden's identity first ([`shop`]).

pub mod golden;
mod shop;
pub(crate) mod zero;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use self::golden::{Boot, Golden, GoldenError};
use crate::config::DatabaseMode;
use crate::database::{DatabaseError, Mover, Root, Scratch, Server};
use crate::engine::podman::cli::{self, PodmanError};
use crate::failpoint;
use crate::golden::build::Image;
use crate::golden::recipe::Recipe;
use crate::host::tree::{self, Bounds};
use crate::id::SnapshotId;
use crate::snapshot::archive::{self, ArchiveError};
use crate::snapshot::catalog::{Catalog, CatalogError};
use crate::snapshot::manifest::{self, DATABASE_ARCHIVE, FILES_ARCHIVE, MEMORY_ARCHIVE, Manifest};
use crate::snapshot::prepare::{self, FactsError};

/// The snapshot could not be taken; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The golden did not boot, warm or quiesce.
    #[error("the golden is not fit to be frozen")]
    Golden(#[from] GoldenError),
    /// The shared server, or the way to it.
    #[error("the golden's database cannot be had on the shared server")]
    Database(#[from] DatabaseError),
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

/// What a checkpoint is made from.
#[derive(Debug)]
pub struct Checkpoint<'a> {
    /// The golden's recipe.
    pub recipe: &'a Recipe,
    /// Its image.
    pub image: &'a Image,
    /// Where the snapshot goes.
    pub catalog: &'a Catalog,
    /// The daemon's own files.
    pub state_dir: &'a Path,
    /// The server that the clones will share; none when each has its own.
    pub server: Option<&'a Arc<Server>>,
    /// Whose the image's content is.
    pub origin: Origin<'a>,
}

/// Whose the content of an image is.
#[derive(Debug, Clone, Copy)]
pub enum Origin<'a> {
    /// The recipe's, which has built it.
    Recipe,
    /// A visitor's, whose shop it was.
    Shop {
        /// Cgroup controllers whose limits are in force on this host.
        controllers: &'a [String],
        /// What it may write while it is booted and warmed.
        bounds: Bounds,
    },
}

/// Boots, warms, freezes and stores a golden; `say` is told each step.
///
/// # Errors
/// [`CheckpointError`]; nothing is left.
///
/// # Cancel safety
/// A dropped call leaves the container and the database; the next call removes
/// them.
pub async fn create(
    checkpoint: &Checkpoint<'_>,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Manifest, CheckpointError> {
    let Checkpoint { recipe, image, .. } = *checkpoint;
    let host = prepare::host_facts().await?;
    let created_at = Timestamp::now();
    let id = SnapshotId::new(&recipe.name, created_at);
    // Taken first: it also says that no other snapshot is being made.
    let writer = checkpoint.catalog.begin(id.clone())?;
    let scratch = match checkpoint.server {
        None => None,
        Some(server) => {
            say("copying its database to the shared server");
            let mover = Mover::of(recipe, Root::Image(image.name.clone()), server)?;
            Some(Scratch::make(server, &id, &mover, writer.dir()).await?)
        }
    };
    let result = boot_and_collect(checkpoint, scratch.as_ref(), writer.dir(), say).await;
    let dropped = match scratch {
        Some(scratch) => scratch.drop().await,
        None => Ok(()),
    };
    let (archives, root_mode) = result?;
    dropped?;
    let database = checkpoint.server.map_or(DatabaseMode::Bundled, |_| DatabaseMode::Shared);
    let manifest = Manifest {
        format_version: manifest::format_version(database),
        id,
        created_at,
        image_id: image.id.clone(),
        root_mode,
        host,
        database,
        archives,
        recipe: recipe.clone(),
    };
    stop_at("checkpoint:before-publish")?;
    writer.finish(&manifest)?;
    Ok(manifest)
}

fn stop_at(point: &'static str) -> Result<(), CheckpointError> {
    failpoint::hit(point).map_err(|source| CheckpointError::Io { path: point.into(), source })
}

async fn boot_and_collect(
    checkpoint: &Checkpoint<'_>,
    scratch: Option<&Scratch>,
    dir: &Path,
    say: &(dyn Fn(&str) + Sync),
) -> Result<(Archives, u32), CheckpointError> {
    let Checkpoint { recipe, image, state_dir, .. } = *checkpoint;
    stop_at("checkpoint:before-boot")?;
    let origin = checkpoint.origin;
    let boot = Boot { recipe, image: &image.name, state_dir, database: scratch.map(Scratch::own), origin };
    let golden = Golden::boot(&boot, say).await?;
    let dump = dir.join(prepare::DUMP);
    let frozen = async {
        golden.warm(recipe, origin, say).await?;
        golden.quiesce(recipe, say).await?;
        stop_at("checkpoint:before-freeze")?;
        let program = recipe.run.database_program.as_deref();
        if let (Some(program), Some(_)) = (program, scratch) {
            say("copying its database from the shared server");
            golden.export_database(program, &dump).await?;
        }
        freeze(&golden, say).await
    };
    let result = match frozen.await {
        Ok(mut frozen) => {
            frozen.dump = scratch.map(|_| dump.clone());
            match stop_at("checkpoint:after-freeze").and_then(|()| frozen.is_within(origin)) {
                Ok(()) => collect(frozen, dir, say).await,
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
    };
    let removed = golden.remove().await;
    let collected = result?;
    removed?;
    if scratch.is_some() {
        std::fs::remove_file(&dump).map_err(|source| CheckpointError::Io { path: dump.clone(), source })?;
    }
    Ok(collected)
}

/// Where the frozen golden's parts lie.
struct Frozen {
    images: PathBuf,
    spec: PathBuf,
    upper: PathBuf,
    root_mode: u32,
    /// Its database as SQL, if it was on a shared server.
    dump: Option<PathBuf>,
}

impl Frozen {
    /// Whether what a visitor's shop has written is no more than it may.
    fn is_within(&self, origin: Origin<'_>) -> Result<(), CheckpointError> {
        let Origin::Shop { bounds, .. } = origin else { return Ok(()) };
        let checked = tree::check(&self.upper, bounds);
        checked.map_err(|source| CheckpointError::Io { path: self.upper.clone(), source })
    }
}

async fn freeze(golden: &Golden, say: &(dyn Fn(&str) + Sync)) -> Result<Frozen, CheckpointError> {
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
    Ok(Frozen { images, spec, upper, root_mode, dump: None })
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
        if let Some(dump) = &frozen.dump {
            let database = [(prepare::DUMP, dump.as_path())];
            let packed = archive::pack(&database, &dir.join(DATABASE_ARCHIVE))?;
            archives.insert(DATABASE_ARCHIVE.to_owned(), packed);
        }
        Ok((archives, frozen.root_mode))
    });
    packing.await.unwrap_or_else(|error| {
        Err(CheckpointError::Io { path: PathBuf::from("the archives"), source: io::Error::other(error) })
    })
}
