//! From STORE_URL to the store; called by the daemon at its start.
//!
//! With [`crate::app`] the only one that names concrete stores.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{Config, StoreAt};
use crate::id::InstanceId;
use crate::store::Store;
use crate::store::embedded::{EmbeddedStore, OpenStoreError};
use crate::store::valkey::{OpenValkeyError, ValkeyStore};

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub enum StoreOpenError {
    /// The file cannot be opened.
    #[error(transparent)]
    Embedded(#[from] OpenStoreError),
    /// Valkey cannot be used.
    #[error(transparent)]
    Valkey(#[from] OpenValkeyError),
    /// The daemon's own mark cannot be kept.
    #[error("cannot read or write {}", .path.display())]
    Mark {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Opens the store that the settings name.
///
/// # Errors
/// [`StoreOpenError`]; a Valkey that does not answer is waited for first.
pub async fn open_store(config: &Config) -> Result<Arc<dyn Store>, StoreOpenError> {
    match &config.store {
        StoreAt::Embedded(path) => Ok(Arc::new(EmbeddedStore::open(path, &config.node)?)),
        StoreAt::Valkey(at) => {
            let path = config.state_dir.join("daemon-id");
            let mark = mark(&path).map_err(|source| StoreOpenError::Mark { path, source })?;
            Ok(Arc::new(ValkeyStore::open(at, &config.node, &mark).await?))
        }
    }
}

/// What tells the daemon of this STATE_DIR from every other one, kept across
/// its starts: only one at a time runs on a STATE_DIR, so whoever else has this
/// mark is its dead predecessor.
fn mark(path: &PathBuf) -> io::Result<String> {
    let mut kept = String::new();
    match File::open(path) {
        Ok(mut file) => file.read_to_string(&mut kept)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    // Not whole when its writer died in between.
    if let Ok(id) = kept.trim().parse::<InstanceId>() {
        return Ok(id.to_string());
    }
    let new = InstanceId::random().to_string();
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(new.as_bytes())?;
    file.sync_all()?;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_keeps_its_mark() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon-id");
        let first = mark(&path).unwrap();
        assert_eq!(mark(&path).unwrap(), first);
        std::fs::write(&path, "cut sh").unwrap();
        assert_ne!(mark(&path).unwrap(), first);
    }
}
