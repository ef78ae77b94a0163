//! Forgets what was said and made of snapshots that are gone.
//!
//! Called by whoever has removed some from the catalogue, holding the daemon's lock or
//! being the daemon: `snapshot rm` and `prune`, and the workshop. Calling it again does
//! what is left of it.
//!
//! Invariant: what an instance runs on stays, and so does what another snapshot needs.

use crate::config::{Config, ContainerMode};
use crate::database::{DatabaseError, Server, Template};
use crate::error::{ErrorKind, kind_of_io};
use crate::id::SnapshotId;
use crate::snapshot::catalog::{Catalog, CatalogError};
use crate::snapshot::manifest::Manifest;
use crate::snapshot::prepare::{self, PrepareError};
use crate::snapshot::served::{Choice, ChoiceError};
use crate::template::images::{self, ImagesError};
use crate::uses::Uses;

/// Why something of them is left; what was removed before stays removed.
#[derive(Debug, thiserror::Error)]
pub enum ForgetError {
    /// What is said of them.
    #[error("cannot write down what is served")]
    Choice(#[source] ChoiceError),
    /// Nobody waited for that.
    #[error("cannot write down what is served")]
    Lost(#[source] std::io::Error),
    /// Which ones are left.
    #[error("cannot read the catalogue")]
    Catalog(#[source] CatalogError),
    /// What was unpacked of them.
    #[error("cannot remove what was prepared")]
    Prepared(#[source] PrepareError),
    /// Their templates on a shared server.
    #[error("cannot remove databases")]
    Databases(#[source] DatabaseError),
    /// What they are made of.
    #[error("cannot remove images that no snapshot needs")]
    Images(#[source] ImagesError),
}

impl ForgetError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Choice(source) => source.kind(),
            Self::Lost(source) => kind_of_io(source),
            Self::Catalog(source) => source.kind(),
            Self::Prepared(source) => source.kind(),
            Self::Databases(source) => source.kind(),
            Self::Images(source) => source.kind(),
        }
    }
}

/// Forgets those; `server` is the shared one, if there is one.
///
/// # Errors
/// [`ForgetError`]; call it again.
pub async fn forget(
    config: &Config,
    (catalog, gone): (&Catalog, &[SnapshotId]),
    server: Option<&Server>,
    uses: &Uses,
) -> Result<(), ForgetError> {
    if !gone.is_empty() {
        let (dir, ids) = (config.snapshot_dir.clone(), gone.to_vec());
        let forget = move |choice: &mut Choice| ids.iter().for_each(|id| choice.forget(id));
        let written = tokio::task::spawn_blocking(move || Choice::change(&dir, forget));
        let written = written.await.map_err(|error| ForgetError::Lost(error.into()))?;
        written.map_err(ForgetError::Choice)?;
    }
    let listed = catalog.list().map_err(ForgetError::Catalog)?;
    let kept: Vec<Manifest> = listed.into_iter().filter_map(|entry| entry.manifest.ok()).collect();
    let manifests: Vec<&Manifest> = kept.iter().collect();
    prepare::forget(&config.state_dir, &manifests, uses.lowers()).map_err(ForgetError::Prepared)?;
    if let Some(server) = server {
        let ids: Vec<&SnapshotId> = kept.iter().map(|manifest| &manifest.id).collect();
        Template::forget(server, &ids).await.map_err(ForgetError::Databases)?;
    }
    if config.container_mode == ContainerMode::Podman {
        images::forget(&config.state_dir, catalog).await.map_err(ForgetError::Images)?;
    }
    Ok(())
}
