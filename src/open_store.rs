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
use crate::instance::Instance;
use crate::store::Store;
use crate::store::embedded::{EmbeddedStore, OpenStoreError};
use crate::store::kept::KeptStore;
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
    /// A file of the daemon beside the store cannot be used.
    #[error("cannot read or write {}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The store, and what this host knows besides.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The own records as a former daemon last knew them, should the store have
    /// lost them.
    pub remembered: Vec<Instance>,
}

/// Opens the store that the settings name.
///
/// # Errors
/// [`StoreOpenError`]; a Valkey that does not answer is waited for first.
pub async fn open_store(config: &Config) -> Result<Opened, StoreOpenError> {
    match &config.store {
        StoreAt::Embedded(path) => {
            let store = EmbeddedStore::open(path, &config.node)?;
            Ok(Opened { store: Arc::new(store), remembered: Vec::new() })
        }
        StoreAt::Valkey(at) => {
            let path = config.state_dir.join("daemon-id");
            let mark = mark(&path).map_err(|source| StoreOpenError::File { path, source })?;
            let store = Arc::new(ValkeyStore::open(at, &config.node, &mark).await?);
            let path = config.state_dir.join("records");
            let (store, remembered) = KeptStore::beside(store, path.clone())
                .map_err(|source| StoreOpenError::File { path, source })?;
            Ok(Opened { store: Arc::new(store), remembered })
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
