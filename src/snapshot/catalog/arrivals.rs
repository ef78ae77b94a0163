//! Snapshots that come from another host: taken in piece by piece, seen when whole.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use super::{Catalog, CatalogError, MANIFEST, Manifest, SIGNATURE, at, make_private, parse, sync_dir};
use crate::id::SnapshotId;
use crate::snapshot::signature::SignatureError;

impl Catalog {
    /// A snapshot's manifest as it lies there, and the signature over it.
    ///
    /// # Errors
    /// It is not there, or not signed.
    pub fn signed(&self, id: &SnapshotId) -> Result<(String, Vec<u8>), CatalogError> {
        let manifest = self.read(id, MANIFEST)?.ok_or_else(|| CatalogError::Unknown { id: id.clone() })?;
        parse(id, &manifest)?;
        let missing = || CatalogError::Signature { id: id.clone(), source: SignatureError::Missing };
        let signature = self.read(id, SIGNATURE)?.ok_or_else(missing)?;
        // What was parsed as JSON is UTF-8.
        Ok((String::from_utf8_lossy(&manifest).into_owned(), signature))
    }

    /// Reads a manifest that is not in the catalogue, if a trusted key has signed it.
    ///
    /// # Errors
    /// [`CatalogError`], which says what is wrong with it.
    pub fn trusted(
        &self,
        id: &SnapshotId,
        manifest: &[u8],
        signature: &[u8],
    ) -> Result<Manifest, CatalogError> {
        let parsed = parse(id, manifest)?;
        let trusted = self.keys.check(manifest, Some(signature));
        trusted.map_err(|source| CatalogError::Signature { id: id.clone(), source })?;
        Ok(parsed)
    }

    /// Where a snapshot's archives are put until all are there; what an earlier try
    /// has brought is still there.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn arriving(&self, id: &SnapshotId) -> Result<PathBuf, CatalogError> {
        let dir = self.dir.join(format!(".arriving-{id}"));
        make_private(&dir).map_err(at("make", &dir))?;
        Ok(dir)
    }

    /// Lets a snapshot appear whose archives are whole.
    ///
    /// # Errors
    /// When the disk says no; nothing appears then.
    pub fn arrived(&self, id: &SnapshotId, manifest: &str, signature: &[u8]) -> Result<(), CatalogError> {
        use std::io::Write as _;
        let dir = self.arriving(id)?;
        for (name, bytes) in [(SIGNATURE, signature), (MANIFEST, manifest.as_bytes())] {
            let path = dir.join(name);
            let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
            let mut file = file.map_err(at("create", &path))?;
            file.write_all(bytes).and_then(|()| file.sync_all()).map_err(at("write", &path))?;
        }
        sync_dir(&dir)?;
        std::fs::rename(&dir, self.path(id)).map_err(at("rename", &dir))?;
        sync_dir(&self.dir)
    }
}
