//! Snapshots between hosts: to and from the object store in NATS, with the images
//! that they stand on.
//!
//! Called by `snapshot push` and `pull`, by the daemon's workshop when it has taken,
//! promoted or removed one or another node has, and at the daemon's start for a golden
//! that has none. The only file that knows both Podman's images and the depot.

use std::path::PathBuf;

use async_nats::jetstream::Context;

use crate::config::{Config, NodeSecretError};
use crate::engine::podman::cli::{self, PodmanError};
use crate::error::{Chain, ErrorKind};
use crate::host::slots::make_private;
use crate::id::{GoldenName, SnapshotId};
use crate::nats::{self, NatsError};
use crate::node::pass::NodeSecret;
use crate::promote::{self, Say, Shared, Source, Standing, Told};
use crate::snapshot::catalog::{Catalog, CatalogError};
use crate::snapshot::depot::{BUCKET_BYTES, Depot, DepotError, Moved};
use crate::snapshot::served::{Choice, ChoiceError};
use crate::template::images;

/// A snapshot did not get from one host to the other.
#[derive(Debug, thiserror::Error)]
pub enum CourierError {
    /// There is no object store.
    #[error("snapshots travel by NATS: set NATS_URL")]
    NoNats,
    /// NATS.
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// The catalogue.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The object store.
    #[error(transparent)]
    Depot(#[from] DepotError),
    /// Podman.
    #[error("the snapshot's image cannot be packed or unpacked")]
    Podman(#[from] PodmanError),
    /// The image that came is another one.
    #[error("the image that came with snapshot {id} is not {image}, which it stands on")]
    Image {
        /// Which.
        id: SnapshotId,
        /// Podman's image id.
        image: String,
    },
    /// The nodes' secret.
    #[error("what the nodes tell each other cannot be sealed")]
    Secret(#[from] NodeSecretError),
    /// What is written down of goldens.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    /// A temporary file.
    #[error("cannot use a temporary file in STATE_DIR")]
    Temporary(#[source] std::io::Error),
}

impl CourierError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoNats | Self::Nats(_) | Self::Podman(_) => ErrorKind::Unavailable,
            Self::Catalog(error) => error.kind(),
            Self::Depot(error) => error.kind(),
            Self::Image { .. } => ErrorKind::Invalid,
            Self::Secret(_) => ErrorKind::Unavailable,
            Self::Choice(error) => error.kind(),
            Self::Temporary(error) => crate::error::kind_of_io(error),
        }
    }
}

async fn depot(config: &Config) -> Result<Depot, CourierError> {
    let settings = config.nats.as_ref().ok_or(CourierError::NoNats)?;
    let jetstream: Context = nats::connect(settings, &config.node).await?;
    let depot = Depot::open(&jetstream, &settings.prefix, BUCKET_BYTES).await?;
    Ok(match &config.nodes {
        Some(nodes) => depot.known_by(NodeSecret::new(nodes.load_secret()?)),
        None => depot,
    })
}

/// Where an image's archive is while it travels; what an interrupted transfer has
/// brought is still there the next time.
fn image_file(config: &Config, image: &str) -> PathBuf {
    config.state_dir.join(format!("arriving-image-{image}.tar"))
}

/// Sends a snapshot and its image, but for what is there.
///
/// # Errors
/// [`CourierError`]; call again, nothing is sent twice.
pub async fn push(
    config: &Config,
    catalog: &Catalog,
    id: &SnapshotId,
    say: Say<'_>,
) -> Result<Moved, CourierError> {
    let manifest = catalog.manifest(id)?;
    let depot = depot(config).await?;
    let mut moved = Moved::default();
    if !depot.has_image(&manifest.image_id).await? {
        say("pack the image");
        make_private(&config.state_dir).map_err(CourierError::Temporary)?;
        let dir = tempfile::tempdir_in(&config.state_dir).map_err(CourierError::Temporary)?;
        let path = dir.path().join("image.tar");
        cli::save_image(&manifest.image_id, &path).await?;
        say("send the image");
        moved += depot.send_image(&manifest.image_id, &path).await?;
    }
    say("send the snapshot");
    moved += depot.send(catalog, id).await?;
    Ok(moved)
}

/// Fetches a snapshot and its image, but for what is here; when a golden is named, it has to
/// be one of it.
///
/// # Errors
/// [`CourierError`]; call again, what has arrived is not fetched again.
pub async fn pull(
    config: &Config,
    catalog: &Catalog,
    (golden, id): (Option<&GoldenName>, &SnapshotId),
    say: Say<'_>,
) -> Result<Moved, CourierError> {
    let depot = depot(config).await?;
    // Whose it is comes first.
    let manifest = match golden {
        Some(golden) => depot.manifest_of(catalog, golden, id).await?,
        None => depot.manifest(catalog, id).await?,
    };
    let image = manifest.image_id;
    let mut moved = Moved::default();
    if cli::image_id(&image).await?.is_none() {
        say("fetch the image");
        make_private(&config.state_dir).map_err(CourierError::Temporary)?;
        let path = image_file(config, &image);
        moved += depot.fetch_image(id, &image, &path).await?;
        say("unpack the image");
        cli::load_image(&path).await?;
        std::fs::remove_file(&path).map_err(CourierError::Temporary)?;
        if cli::image_id(&image).await?.is_none() {
            return Err(CourierError::Image { id: id.clone(), image });
        }
    }
    images::adopt(&config.state_dir, &manifest.recipe.name, &image).await?;
    if catalog.inspect(id).is_err() {
        say("fetch the snapshot");
        moved += depot.fetch(catalog, id).await?;
    }
    Ok(moved)
}

/// The newest snapshot of a golden that is in the object store and of a trusted host.
///
/// # Errors
/// [`CourierError`]
pub async fn newest(
    config: &Config,
    catalog: &Catalog,
    golden: &GoldenName,
) -> Result<Option<SnapshotId>, CourierError> {
    let depot = depot(config).await?;
    let mut newest = None;
    for id in depot.list().await? {
        match depot.manifest(catalog, &id).await {
            Ok(manifest)
                if manifest.recipe.name == *golden && manifest.database == config.database_mode() =>
            {
                if newest.as_ref().is_none_or(|(at, _)| *at < manifest.created_at) {
                    newest = Some((manifest.created_at, id));
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(snapshot_id = %id, error = %Chain(&error), "snapshot in NATS passed over")
            }
        }
    }
    Ok(newest.map(|(_, id)| id))
}

/// Whether several hosts share a NATS, so that what is promoted at one is served by all.
#[must_use]
pub fn is_shared(config: &Config) -> bool {
    config.nats.is_some() && config.nodes.is_some()
}

/// What the nodes have told, as it was read last: it is read anew when something in the
/// object store has changed, of which many small objects have to be listed.
#[derive(Debug, Default)]
pub struct Heard(tokio::sync::Mutex<Option<((i128, u64), Told)>>);

/// What was said of goldens last, at any node.
///
/// # Errors
/// [`CourierError`]
pub async fn told(config: &Config, heard: &Heard) -> Result<Told, CourierError> {
    let mut heard = heard.0.lock().await;
    let depot = depot(config).await?;
    // Before it is read: what is written meanwhile is read the next time.
    let state = depot.state().await?;
    if let Some((_, told)) = heard.as_ref().filter(|(read, _)| *read == state) {
        return Ok(told.clone());
    }
    let told = depot.told().await?;
    *heard = Some((state, told.clone()));
    Ok(told)
}

/// Tells the other nodes what was said here. What is served is sent before, and what is
/// withdrawn removed afterwards.
///
/// # Errors
/// [`CourierError`]; call again.
pub async fn share(
    config: &Config,
    catalog: &Catalog,
    golden: &GoldenName,
    shared: &Shared,
    say: Say<'_>,
) -> Result<(), CourierError> {
    if shared.standing != Standing::Withdrawn {
        push(config, catalog, &shared.snapshot, say).await?;
        return Ok(depot(config).await?.serve(golden, shared).await?);
    }
    let depot = depot(config).await?;
    depot.serve(golden, shared).await?;
    Ok(depot.remove(&depot.list_of(golden).await?).await?)
}

/// Whether another node has a golden of that name that its settings name.
///
/// # Errors
/// [`CourierError`]
pub async fn is_named_elsewhere(config: &Config, golden: &GoldenName) -> Result<bool, CourierError> {
    let depot = depot(config).await?;
    Ok(match depot.served(golden).await? {
        Some(shared) => shared.standing == Standing::Promoted,
        // Of those who take a snapshot, it was sent.
        None => !depot.list_of(golden).await?.is_empty(),
    })
}

/// Removes snapshots from the object store, and what no other one needs.
///
/// # Errors
/// [`CourierError`]; what is left is removed the next time.
pub async fn remove(config: &Config, ids: &[SnapshotId]) -> Result<(), CourierError> {
    Ok(depot(config).await?.remove(ids).await?)
}

/// As [`push`], for a daemon that has taken a snapshot where several hosts share a
/// NATS; what does not work is logged, and `snapshot push` does it later.
pub async fn offer(config: &Config, catalog: &Catalog, id: &SnapshotId, say: Say<'_>) {
    if !is_shared(config) {
        return;
    }
    match push(config, catalog, id, say).await {
        Ok(moved) => {
            tracing::info!(snapshot_id = %id, bytes = moved.bytes, "snapshot sent to the other nodes")
        }
        Err(error) => {
            tracing::warn!(snapshot_id = %id, error = %Chain(&error), "snapshot not sent: `snapshot push` it");
        }
    }
}

/// As [`remove`], for those that are removed here where several hosts share a NATS;
/// what does not work is logged.
pub async fn removed(config: &Config, ids: &[SnapshotId]) {
    if !is_shared(config) || ids.is_empty() {
        return;
    }
    if let Err(error) = remove(config, ids).await {
        tracing::warn!(error = %Chain(&error), "old snapshots are in NATS still; the next prune removes them");
    }
}

/// What the other nodes serve of a golden, else the newest one that they have sent.
///
/// # Errors
/// [`CourierError`]
pub async fn wanted(
    config: &Config,
    catalog: &Catalog,
    golden: &GoldenName,
) -> Result<Option<SnapshotId>, CourierError> {
    let depot = depot(config).await?;
    let is_published = Choice::read(&config.snapshot_dir)?.is_published(golden);
    let served = depot.served(golden).await?;
    match (promote::source_of(is_published, served.as_ref().map(|shared| shared.standing)), served) {
        (Source::Nowhere, _) => return Ok(None),
        (Source::Served, Some(Shared { snapshot: id, .. })) => {
            match depot.manifest_of(catalog, golden, &id).await {
                Ok(manifest) if manifest.database == config.database_mode() => return Ok(Some(id)),
                Ok(_) => {}
                Err(error) => {
                    // Asked again and again for a golden that is only booted.
                    tracing::debug!(snapshot_id = %id, error = %Chain(&error), "what other nodes serve cannot be fetched");
                }
            }
        }
        (Source::Served | Source::Newest, _) => {}
    }
    newest(config, catalog, golden).await
}

/// As [`pull`], for a golden that this host has no snapshot of; what does not work
/// is logged, and the golden is served as without.
pub async fn fetch_missing(config: &Config, catalog: &Catalog, golden: &GoldenName) {
    if !is_shared(config) {
        return;
    }
    let fetched = async {
        let Some(id) = wanted(config, catalog, golden).await? else { return Ok(None) };
        let moved = pull(config, catalog, (Some(golden), &id), &|_| {}).await?;
        Ok::<_, CourierError>(Some((id, moved)))
    };
    match fetched.await {
        Ok(Some((id, moved))) => {
            tracing::info!(golden = %golden, snapshot_id = %id, bytes = moved.bytes, "snapshot fetched from another node");
        }
        Ok(None) => {
            tracing::info!(golden = %golden, "no other node has sent a snapshot that is trusted here")
        }
        Err(error) => tracing::warn!(golden = %golden, error = %Chain(&error), "snapshot not fetched"),
    }
}
