//! The images that visitors' shops became on their way to a snapshot.
//!
//! Podman has them, by a name of their own and with a label that says whose they are; those
//! that came from other nodes by a name that says it. A snapshot's files are prepared from its
//! image, so an image is needed for as long as a snapshot of it is there. Called by the workshop, which removes those that no snapshot
//! needs any more, and by whoever audits the host for what a dead daemon has left.
//!
//! Invariants: no other daemon's image is touched; none is while a snapshot is there
//! whose image is not known.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::config::Config;
use crate::engine::podman::cli::{self, PodmanError};
use crate::error::ErrorKind;
use crate::id::{GoldenName, SnapshotId};
use crate::instance::trace::{Kind, Owner, Trace};
use crate::provision::audit::Beside;
use crate::snapshot::catalog::{Catalog, CatalogError};

/// How their names begin; the golden's follows, and when it was made.
const REPOSITORY: &str = "localhost/demo-multiplexer-template-";

/// How the name of one begins that another node has made; this daemon's hash follows, since
/// the label is the other one's.
const FETCHED: &str = "localhost/demo-multiplexer-fetched-";

/// The tag.
const STAMP: &str = "%Y%m%dt%H%M%Sz";

/// For how long an image without a snapshot may be one of which a snapshot is being
/// taken: Podman has half an hour for each of its steps, of which few take seconds.
const IN_THE_MAKING: SignedDuration = SignedDuration::from_hours(1);

/// It is not known which images nobody needs, or one cannot be removed.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// Podman.
    #[error(transparent)]
    Podman(#[from] PodmanError),
    /// The snapshots.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// One of the snapshots.
    #[error("it is not known which image snapshot {id} needs")]
    Unreadable {
        /// Which.
        id: SnapshotId,
        /// Why.
        #[source]
        source: CatalogError,
    },
}

impl ImagesError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Podman(_) => ErrorKind::Unavailable,
            Self::Catalog(error) | Self::Unreadable { source: error, .. } => error.kind(),
        }
    }
}

/// A name for a new one.
pub(super) fn name_of(golden: &GoldenName, now: Timestamp) -> String {
    format!("{REPOSITORY}{golden}:{}", now.strftime(STAMP))
}

/// The label that says whose they are.
const LABEL: &str = "demo-multiplexer.templates";

/// Name and value of the label.
pub(super) fn label(state_dir: &Path) -> (&'static str, String) {
    (LABEL, state_dir.display().to_string())
}

/// How the names of those begin that came to this daemon from other nodes.
fn fetched(state_dir: &Path) -> String {
    let hash = blake3::hash(state_dir.as_os_str().as_bytes()).to_hex();
    format!("{FETCHED}{}-", &hash[..16])
}

/// Gives an image that came with a snapshot of a golden a name by which it is found again,
/// if it was made of a visitor's shop. Again is fine.
///
/// # Errors
/// [`PodmanError`]
pub async fn adopt(state_dir: &Path, golden: &GoldenName, image: &str) -> Result<(), PodmanError> {
    let format = format!("{{{{index .Labels \"{LABEL}\"}}}} {{{{range .RepoTags}}}}{{{{.}}}} {{{{end}}}}");
    let found = cli::podman(&["image", "inspect", "--format", &format, image]).await?;
    let (whose, names) = found.split_once(' ').unwrap_or((&found, ""));
    let (_, own) = label(state_dir);
    let prefix = fetched(state_dir);
    let is_found = |name: &str| name.starts_with(&prefix) || (whose == own && name.starts_with(REPOSITORY));
    if whose.is_empty() || names.split(' ').any(is_found) {
        return Ok(());
    }
    let name = format!("{prefix}{golden}:{}", Timestamp::now().strftime(STAMP));
    cli::podman(&["tag", image, &name]).await.map(drop)
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    name: String,
    id: String,
    golden: GoldenName,
    made_at: Timestamp,
}

impl Found {
    /// From a line of Podman's list: name and id.
    fn of(line: &str, prefix: &str) -> Option<Self> {
        let (name, id) = line.split_once(' ')?;
        let (golden, tag) = name.strip_prefix(prefix)?.split_once(':')?;
        let made_at = TimeZone::UTC.to_timestamp(DateTime::strptime(STAMP, tag).ok()?).ok()?;
        let id = id.trim_start_matches("sha256:").to_owned();
        Some(Self { golden: golden.parse().ok()?, name: name.to_owned(), id, made_at })
    }
}

async fn all(state_dir: &Path) -> Result<Vec<Found>, PodmanError> {
    let (name, value) = label(state_dir);
    let prefix = fetched(state_dir);
    let own = (format!("label={name}={value}"), REPOSITORY);
    let others = (format!("reference={prefix}*"), prefix.as_str());
    let mut all = Vec::new();
    for (filter, prefix) in [own, others] {
        let format = "--format={{.Repository}}:{{.Tag}} {{.Id}}";
        let lines = cli::podman(&["images", "--no-trunc", format, "--filter", &filter]).await?;
        all.extend(lines.lines().filter_map(|line| Found::of(line, prefix)));
    }
    Ok(all)
}

/// Images that the snapshots are made of.
fn needed(catalog: &Catalog) -> Result<BTreeSet<String>, ImagesError> {
    let image = |id: SnapshotId| match catalog.inspect(&id) {
        Ok(manifest) => Ok(manifest.image_id),
        Err(source) => Err(ImagesError::Unreadable { id, source }),
    };
    // Whoever signed it: it may be trusted yet.
    catalog.list()?.into_iter().map(|entry| image(entry.id)).collect()
}

/// Those that no snapshot needs. The snapshots are read last: one that appears meanwhile
/// is among them.
async fn unneeded(state_dir: &Path, catalog: &Catalog) -> Result<Vec<Found>, ImagesError> {
    let mut all = all(state_dir).await?;
    if !all.is_empty() {
        let needed = needed(catalog)?;
        all.retain(|image| !needed.contains(&image.id));
    }
    Ok(all)
}

/// Removes those that no snapshot needs, while none is being made.
///
/// # Errors
/// [`ImagesError`]; call it again.
pub async fn forget(state_dir: &Path, catalog: &Catalog) -> Result<(), ImagesError> {
    for image in unneeded(state_dir, catalog).await? {
        cli::remove_image(&image.name).await?;
        tracing::info!(image = image.name, "image removed, no snapshot needs it any more");
    }
    Ok(())
}

/// What an audit looks for beside instances: images that a daemon which died has left.
#[derive(Debug)]
pub struct Unneeded {
    config: Arc<Config>,
}

impl Unneeded {
    /// Of the daemon with these settings.
    #[must_use]
    pub const fn new(config: Arc<Config>) -> Self {
        Self { config }
    }
}

#[async_trait]
impl Beside for Unneeded {
    async fn traces(&self) -> io::Result<Vec<Trace>> {
        let catalog = Catalog::of(&self.config).map_err(io::Error::other)?;
        let found = unneeded(&self.config.state_dir, &catalog).await.map_err(io::Error::other)?;
        let oldest = Timestamp::now() - IN_THE_MAKING;
        let left = found.into_iter().filter(|image| image.made_at < oldest);
        let trace =
            |image: Found| Trace { owner: Owner::Golden(image.golden), kind: Kind::Image, what: image.name };
        Ok(left.map(trace).collect())
    }

    async fn remove(&self, trace: &Trace) -> io::Result<()> {
        cli::remove_image(&trace.what).await.map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_told_by_its_name_from_what_others_have_made() {
        let golden: GoldenName = "spring-sale".parse().unwrap();
        let at: Timestamp = "2026-03-04T05:06:07Z".parse().unwrap();
        let name = name_of(&golden, at);
        let found = Found::of(&format!("{name} sha256:abc"), REPOSITORY).unwrap();
        assert_eq!(found, Found { name: name.clone(), id: "abc".into(), golden, made_at: at });
        let [one, other] = ["/one", "/other"].map(|state_dir| fetched(Path::new(state_dir)));
        let name_here = format!("{one}spring-sale:20260304t050607z abc");
        assert_eq!(Found::of(&name_here, &one).unwrap().golden, found.golden);
        assert_eq!(Found::of(&name_here, &other), None, "another daemon's");
        for other in [
            "localhost/demo-multiplexer-golden-shop:20260304t050607z abc".to_owned(),
            format!("{REPOSITORY}spring-sale:latest abc"),
            format!("{REPOSITORY}Spring:20260304t050607z abc"),
            name,
            String::new(),
        ] {
            assert_eq!(Found::of(&other, REPOSITORY), None, "{other}");
        }
    }
}
