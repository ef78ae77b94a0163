//! The manifest: what a snapshot is and what it needs to run.
//!
//! The format's version is independent of the program's. A sample of every
//! version ever written lies in `snapshots/samples/` and is read by a test.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::config::DatabaseMode;
use crate::error::ErrorKind;
use crate::golden::recipe::Recipe;
use crate::id::SnapshotId;

/// The newest format version that this program writes and reads.
pub const FORMAT_VERSION: u32 = 2;

/// The oldest that it reads, and the one it writes where that says all: a
/// snapshot without a shared database.
const FORMAT_VERSION_BUNDLED: u32 = 1;

/// A manifest is a few kilobytes; anything bigger is not one.
pub const SIZE_MAX: u64 = 1 << 20;

/// The archive of CRIU's images.
pub const MEMORY_ARCHIVE: &str = "memory.tar.zst";

/// The archive of changed files.
pub const FILES_ARCHIVE: &str = "files.tar.zst";

/// The archive of the database, of a snapshot whose clones share a server.
pub const DATABASE_ARCHIVE: &str = "database.tar.zst";

/// What a snapshot is and what it needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`format_version`] of its database mode when written by this program.
    pub format_version: u32,
    /// Its name.
    pub id: SnapshotId,
    /// When it was taken.
    pub created_at: Timestamp,
    /// The image the golden ran from: Podman's image id.
    pub image_id: String,
    /// Permission bits of the image's root directory: a clone's must be the same.
    pub root_mode: u32,
    /// The host it was taken on.
    pub host: HostFacts,
    /// Where its clones have their databases; since version 2.
    #[serde(default, skip_serializing_if = "DatabaseMode::is_bundled")]
    pub database: DatabaseMode,
    /// Its archives by file name.
    pub archives: BTreeMap<String, Archive>,
    /// The recipe it was made by.
    pub recipe: Recipe,
}

/// One archive of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Archive {
    /// BLAKE3 of the compressed file, hexadecimal.
    pub blake3: String,
    /// Size compressed, in bytes.
    pub bytes: u64,
    /// Size of the unpacked content, in bytes.
    pub raw_bytes: u64,
}

/// What of a host a frozen process depends on, and what helps to explain a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Such as `x86_64`.
    pub architecture: String,
    /// The kernel's release.
    pub kernel: String,
    /// The processor's feature flags, sorted.
    pub cpu_features: Vec<String>,
    /// CRIU's version.
    pub criu: String,
    /// Podman's version.
    pub podman: String,
    /// crun's version.
    pub crun: String,
}

/// A manifest that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or not of the form.
    #[error("the manifest cannot be read")]
    Form(#[source] serde_json::Error),
    /// Written by another version of the format.
    #[error(
        "the manifest has format version {found}; this program reads {FORMAT_VERSION_BUNDLED} to {FORMAT_VERSION}: take the snapshot anew, or use the program it was taken with"
    )]
    Version {
        /// The manifest's version.
        found: u64,
    },
    /// Of the form, but it makes no sense.
    #[error("the manifest is no snapshot's: {0}")]
    Sense(String),
}

impl ManifestError {
    /// What the caller can do.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Form(_) | Self::Sense(_) => ErrorKind::Invalid,
            Self::Version { .. } => ErrorKind::Incompatible,
        }
    }
}

/// The version in which a snapshot is written: an older program does not know
/// of shared databases, and would restore shops that have none.
#[must_use]
pub const fn format_version(database: DatabaseMode) -> u32 {
    match database {
        DatabaseMode::Bundled => FORMAT_VERSION_BUNDLED,
        DatabaseMode::Shared => FORMAT_VERSION,
    }
}

impl Manifest {
    /// Reads a manifest; the version is looked at before anything else.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Versioned {
            format_version: u64,
        }
        let Versioned { format_version } = serde_json::from_slice(bytes).map_err(ManifestError::Form)?;
        if !(u64::from(FORMAT_VERSION_BUNDLED)..=u64::from(FORMAT_VERSION)).contains(&format_version) {
            return Err(ManifestError::Version { found: format_version });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(ManifestError::Form)?;
        manifest.check().map_err(ManifestError::Sense)?;
        Ok(manifest)
    }

    /// Names in it become paths, so each has the form that its kind always has.
    fn check(&self) -> Result<(), String> {
        let hex = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !hex(&self.image_id) {
            return Err(format!("image_id {:?} is not 64 hexadecimal digits", self.image_id));
        }
        if self.root_mode > 0o7777 {
            return Err(format!("root_mode {:o} is no mode", self.root_mode));
        }
        for (name, archive) in &self.archives {
            if ![MEMORY_ARCHIVE, FILES_ARCHIVE, DATABASE_ARCHIVE].contains(&name.as_str()) {
                return Err(format!("{name:?} is no archive of a snapshot"));
            }
            if !hex(&archive.blake3) {
                return Err(format!("the blake3 of {name} is not 64 hexadecimal digits"));
            }
        }
        self.recipe.check().map_err(|problem| format!("recipe: {problem}"))
    }

    /// The manifest as it is written to disk.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a manifest has string keys only");
        bytes.push(b'\n');
        bytes
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> Manifest {
        let text = include_bytes!("../../snapshots/samples/v1.json");
        Manifest::parse(text).unwrap()
    }

    #[test]
    fn the_sample_of_version_1_loads_and_is_written_back_the_same() {
        let again = Manifest::parse(&sample().to_bytes()).unwrap();
        assert_eq!(again, sample());
    }

    #[test]
    fn the_sample_of_version_2_shares_a_server_and_one_of_version_1_does_not() {
        let shared = Manifest::parse(include_bytes!("../../snapshots/samples/v2.json")).unwrap();
        assert_eq!((sample().database, shared.database), (DatabaseMode::Bundled, DatabaseMode::Shared));
        for manifest in [sample(), shared] {
            assert_eq!(Manifest::parse(&manifest.to_bytes()).unwrap(), manifest);
            assert_eq!(manifest.format_version, format_version(manifest.database));
        }
    }

    #[test]
    fn a_recipe_in_a_manifest_is_the_recipe_to_the_last_digit() {
        let mut manifest = sample();
        manifest.recipe.run.cpu_max = 0.123_456_789_014_790_7;
        assert_eq!(Manifest::parse(&manifest.to_bytes()).unwrap(), manifest);
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let text = String::from_utf8(sample().to_bytes()).unwrap();
        for (good, bad, why) in [
            ("\"9f86d081", "\"../../../", "image_id"),
            ("\"files.tar.zst\"", "\"../files.tar.zst\"", "no archive"),
            ("\"files.tar.zst\"", "\"/dev/zero\"", "no archive"),
            ("\"af1349b9", "\"zz1349b9", "blake3"),
            ("365", "365000", "root_mode"),
            ("\"memory_max\": \"64M\"", "\"memory_max\": \"64X\"", "recipe: memory_max"),
        ] {
            assert!(text.contains(good), "{good}");
            let error = Manifest::parse(text.replacen(good, bad, 1).as_bytes()).unwrap_err();
            assert!(matches!(&error, ManifestError::Sense(told) if told.contains(why)), "{bad}: {error}");
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn another_version_is_refused_before_its_fields_are_looked_at() {
        let error = Manifest::parse(br#"{"format_version": 3, "new": true}"#).unwrap_err();
        assert!(matches!(error, ManifestError::Version { found: 3 }));
        assert!(matches!(
            Manifest::parse(br#"{"format_version": 0}"#),
            Err(ManifestError::Version { found: 0 })
        ));
        assert!(Manifest::parse(b"{").is_err());
        assert!(Manifest::parse(br#"{"format_version": 1}"#).is_err());
        assert!(Manifest::parse(br#"{"format_version": 99999999999999999999}"#).is_err());
    }
}
