//! What promoting needs of whoever has the snapshots.
//!
//! Two implementations: the workshop of a host with Podman and CRIU, and the
//! scripted one that tests drive.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use super::shared::{Shared, Told};
use crate::engine::ContainerEngine;
use crate::error::ErrorKind;
use crate::id::{GoldenName, InstanceId, SnapshotId};
use crate::provision::GoldenAbout;
use crate::restore::Make;
use crate::snapshot::served::Choice;

/// One snapshot of the catalogue.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its name.
    pub id: SnapshotId,
    /// Of which golden; none when its manifest cannot be used.
    pub golden: Option<GoldenName>,
    /// When it was taken.
    pub created_at: Option<Timestamp>,
    /// Compressed, in bytes.
    pub bytes: u64,
    /// Unpacked, in bytes.
    pub raw_bytes: u64,
    /// Why it cannot be used: damaged, of another version, or signed by nobody
    /// who is trusted.
    pub unusable: Option<String>,
    /// Whether a restart would serve it because an operator said so.
    pub promoted: bool,
    /// When that was; none when nobody has written it down.
    pub promoted_at: Option<Timestamp>,
    /// Why a canary refused it.
    pub refused: Option<String>,
}

/// A visitor's shop that is to become a golden.
#[derive(Debug, Clone)]
pub struct Publication {
    /// What was kept of that instance.
    pub kept: InstanceId,
    /// Its name.
    pub golden: GoldenName,
    /// What people are told; none: what they are told of the shop's own golden.
    pub title: Option<String>,
    /// How many are to be ready; none: as many as before, if it was published before.
    pub pool: Option<usize>,
}

/// What can be made of a snapshot.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Of which golden.
    pub golden: GoldenName,
    /// What people are told of it, by its recipe.
    pub title: String,
    /// As above.
    pub about: GoldenAbout,
    /// By whom.
    pub maker: Arc<dyn Make>,
}

/// The workshop could not.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}")]
pub struct WorkshopError {
    /// What was asked for, as an imperative.
    pub doing: String,
    /// What the caller can do.
    pub kind: ErrorKind,
    /// Why not.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Is told each step of long work.
pub type Say<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// The port. One call at a time changes anything; the desk sees to that.
#[async_trait]
pub trait Workshop: Send + Sync + fmt::Debug {
    /// All snapshots, usable or not, sorted by name.
    async fn list(&self) -> Result<Vec<Listed>, WorkshopError>;

    /// Builds, boots, warms and freezes a golden. Not cancel-safe.
    async fn create(&self, golden: &GoldenName, say: Say<'_>) -> Result<SnapshotId, WorkshopError>;

    /// Digests a snapshot's archives.
    async fn verify(&self, id: &SnapshotId) -> Result<(), WorkshopError>;

    /// Prepares a snapshot; what can be made ahead is made.
    async fn load(&self, id: &SnapshotId) -> Result<Loaded, WorkshopError>;

    /// Writes down that a golden is restored from this snapshot from now on, since it was
    /// promoted at that time.
    async fn promote(&self, golden: &GoldenName, id: &SnapshotId, at: Timestamp)
    -> Result<(), WorkshopError>;

    /// How often to look whether something else is to be served.
    fn looks_every(&self) -> Duration;

    /// Whether there are other nodes, which serve what is promoted here.
    fn is_shared(&self) -> bool {
        false
    }

    /// The snapshot from which a golden could be restored that is only booted: the one of
    /// those here that a start would choose, else one that another node has.
    async fn first(&self, golden: &GoldenName) -> Result<Option<SnapshotId>, WorkshopError>;

    /// What can be made ahead for a golden that was only booted is made ahead from now on.
    /// Nothing is written down: the next start chooses by itself.
    fn begin(&self, id: &SnapshotId, engine: &Arc<dyn ContainerEngine>);

    /// What was said of goldens last, at any node.
    async fn told(&self) -> Result<Told, WorkshopError> {
        Ok(Told::new())
    }

    /// Tells the other nodes what was said here, and sends the snapshot to where they find it;
    /// of a withdrawn golden it removes what is there.
    async fn share(
        &self,
        _golden: &GoldenName,
        _shared: &Shared,
        _say: Say<'_>,
    ) -> Result<(), WorkshopError> {
        Ok(())
    }

    /// Fetches a snapshot of a golden that another node has sent; it appears when it is whole,
    /// of that golden, and a trusted host's.
    async fn fetch(&self, golden: &GoldenName, id: &SnapshotId, say: Say<'_>) -> Result<(), WorkshopError>;

    /// Writes down that this snapshot is not to be served, and why.
    async fn refuse(&self, id: &SnapshotId, why: &str) -> Result<(), WorkshopError>;

    /// Removes one snapshot that is not in use.
    async fn remove(&self, id: &SnapshotId, in_use: &[SnapshotId]) -> Result<(), WorkshopError>;

    /// Whether a visitor's shop may become a golden of that name.
    async fn may_publish(&self, golden: &GoldenName) -> Result<(), WorkshopError>;

    /// Makes a snapshot of what is kept of an instance, as of a golden of its own. Not
    /// cancel-safe.
    async fn publish(&self, wanted: &Publication, say: Say<'_>) -> Result<SnapshotId, WorkshopError>;

    /// Writes down that a golden that no setting names is served, from this snapshot, since
    /// that was said at that time, and how many are to be ready, which it answers; what can be
    /// made ahead for it is made ahead from now on.
    async fn introduce(
        &self,
        golden: &GoldenName,
        said: (&SnapshotId, Timestamp),
        pool: Option<usize>,
        engine: &Arc<dyn ContainerEngine>,
    ) -> Result<usize, WorkshopError>;

    /// Writes down how many of a published golden are to be ready.
    async fn set_pool(&self, golden: &GoldenName, pool: usize) -> Result<(), WorkshopError>;

    /// What was written down.
    async fn choice(&self) -> Result<Choice, WorkshopError>;

    /// Writes down that a published golden is served no more, since that was said at that
    /// time; for its drivers nothing is made ahead any more.
    async fn withdraw(
        &self,
        golden: &GoldenName,
        at: Timestamp,
        engines: &[Arc<dyn ContainerEngine>],
    ) -> Result<(), WorkshopError>;

    /// Removes a golden's snapshots, but for those in use; answers which.
    async fn clear(
        &self,
        golden: &GoldenName,
        in_use: &[SnapshotId],
    ) -> Result<Vec<SnapshotId>, WorkshopError>;

    /// Removes all but the newest `keep` of each golden and those in use.
    async fn prune(&self, keep: usize, in_use: &[SnapshotId]) -> Result<Vec<SnapshotId>, WorkshopError>;
}
