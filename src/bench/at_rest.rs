//! A snapshot at rest: how large it is, and how long preparing it takes.
//!
//! It is prepared in a directory of its own among the instances', on the same
//! image, so that what serves is not touched. There it is an orphan if the bench is
//! killed, which the next daemon or `doctor --audit` takes away.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use super::report::{Spread, mib};
use crate::config::Config;
use crate::host::slots;
use crate::id::InstanceId;
use crate::snapshot::catalog::Catalog;
use crate::snapshot::manifest::{FILES_ARCHIVE, MEMORY_ARCHIVE, Manifest};
use crate::snapshot::prepare;

/// How often it is prepared.
const TRIES: usize = 5;

/// Nothing is restored, so nothing waits so long.
const DEADLINE: Duration = Duration::from_secs(60);

/// What one snapshot takes, and takes to be of use.
#[derive(Debug, Clone, Serialize)]
pub struct AtRest {
    /// Its memory's archive, in MiB.
    pub memory_mib: f64,
    /// The same, unpacked.
    pub memory_raw_mib: f64,
    /// Its changed files' archive, in MiB.
    pub files_mib: f64,
    /// The same, unpacked.
    pub files_raw_mib: f64,
    /// From the archives to what clones are restored from.
    pub prepare_ms: Spread,
}

impl AtRest {
    /// Its row of the table.
    #[must_use]
    pub fn row(&self) -> [String; 6] {
        let sizes = [self.memory_mib, self.memory_raw_mib, self.files_mib, self.files_raw_mib];
        let [memory, memory_raw, files, files_raw] = sizes.map(|size| format!("{size:.1}"));
        let ms = |value: f64| format!("{value:.0}");
        [memory, memory_raw, files, files_raw, ms(self.prepare_ms.median), ms(self.prepare_ms.p95)]
    }
}

/// Measures the snapshot of that manifest, whose image is flattened already.
///
/// # Errors
/// When it cannot be prepared, or the disk says no.
pub async fn measure(config: &Config, manifest: &Manifest) -> anyhow::Result<AtRest> {
    let (catalog, facts) = (Catalog::of(config)?, prepare::host_facts().await?);
    let place = Place::make(&config.state_dir)?;
    let mut took = Vec::with_capacity(TRIES);
    for _ in 0..TRIES {
        let begun = Instant::now();
        prepare::prepare(&catalog, &manifest.id, &facts, &place.0, DEADLINE).await?;
        took.push(begun.elapsed());
        std::fs::remove_dir_all(place.0.join("prepared"))?;
    }
    let size = |name: &str| manifest.archives.get(name).map_or((0, 0), |it| (it.bytes, it.raw_bytes));
    let ((memory, memory_raw), (files, files_raw)) = (size(MEMORY_ARCHIVE), size(FILES_ARCHIVE));
    Ok(AtRest {
        memory_mib: mib(memory as f64),
        memory_raw_mib: mib(memory_raw as f64),
        files_mib: mib(files as f64),
        files_raw_mib: mib(files_raw as f64),
        prepare_ms: Spread::of(&took).context("it was tried")?,
    })
}

/// A state directory of its own with the daemon's images; removed with it.
struct Place(PathBuf);

impl Place {
    fn make(state_dir: &Path) -> std::io::Result<Self> {
        let place = Self(slots::instances(state_dir).join(InstanceId::random().as_str()));
        slots::make_private(&place.0)?;
        std::os::unix::fs::symlink("../../images", place.0.join("images"))?;
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}
