//! Snapshots in JetStream's object store, where the other nodes find them.
//!
//! ```text
//! bucket <NATS_PREFIX>-snapshots
//!   piece/<blake3>      up to 4 MiB of an archive
//!   archive/<blake3>    which pieces, in which order (JSON, with its version)
//!   image/<image id>    the archive of the image that snapshots stand on, as `podman save` wrote it
//!   snapshot/<id>       manifest, signature and the image (JSON, with its version)
//!   served/<golden>     which one was promoted or published last, and when; or that the
//!                       golden was withdrawn (JSON, with its version)
//! ```
//!
//! Called by the workshop and by `snapshot push` and `pull`. What has the same
//! content has the same name, so nothing is sent twice: not an archive that is
//! there, not the pieces that an interrupted transfer has left. A snapshot's own
//! object comes last, so what can be seen is whole.
//!
//! Invariants: a manifest that no trusted key has signed is refused before
//! anything of it is fetched; each piece is digested as it arrives and each archive
//! against the manifest before the snapshot appears, by one rename; what is fetched
//! leaves [`ROOM`] on the disk; that a golden was published or withdrawn is believed of
//! who knows the nodes' secret ([`served`]).

mod pieces;
mod served;
mod transfer;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::object_store::{self, ObjectStore};
use serde::{Deserialize, Serialize};

pub use self::pieces::PIECE;
pub use self::served::{Shared, Standing, Told};
use self::transfer::{blocking, json};
use super::archive;
use super::catalog::{Catalog, CatalogError};
use super::manifest::{Archive, Manifest};
use crate::error::{DiskError, ErrorKind};
use crate::id::{GoldenName, SnapshotId};
use crate::node::pass::NodeSecret;

/// The version this program writes into a snapshot's object.
const VERSION: u16 = 1;

/// How long one object may take: a piece is 4 MiB, on the slowest link that is of
/// use a minute.
const OBJECT_DEADLINE: Duration = Duration::from_secs(60);

/// How often it is looked whether what is being read was replaced meanwhile.
const REPLACED_EVERY: Duration = Duration::from_millis(500);

/// How long the names of all objects may take: some thousand, a quarter of a kilobyte each.
const LIST_DEADLINE: Duration = Duration::from_secs(15);

/// What is left on the disk for shops, whatever is fetched.
pub const ROOM: u64 = 2 << 30;

/// The bucket's bound, unless an operator has made it with another one: some
/// snapshots with their images. A server that has less room says so.
pub const BUCKET_BYTES: u64 = 8 << 30;

/// How long parts of what is being sent are left alone that nothing names yet.
const SETTLED: Duration = Duration::from_secs(3600);

/// The largest object that is read whole: a manifest, a list of pieces.
const SMALL: u64 = 16 << 20;

/// A snapshot was not sent or fetched.
#[derive(Debug, thiserror::Error)]
pub enum DepotError {
    /// JetStream.
    #[error("cannot {doing} the object store in NATS")]
    Nats {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nobody has sent it.
    #[error("snapshot {id} is not in the object store: `snapshot push` it on the host that has it")]
    Unknown {
        /// Which.
        id: SnapshotId,
    },
    /// It is of another golden than was said.
    #[error("snapshot {id} in the object store is none of golden {golden}")]
    OtherGolden {
        /// Which.
        id: SnapshotId,
        /// What was said.
        golden: GoldenName,
    },
    /// That a golden was published or withdrawn is only told by who knows the secret.
    #[error("published goldens are told to other nodes with NODE_SECRET_FILE only")]
    NoSecret,
    /// The object store has something else.
    #[error("{what} in the object store is damaged, or of a later program")]
    Damaged {
        /// Which object.
        what: String,
    },
    /// The catalogue.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// An archive is not what its manifest says.
    #[error("what was fetched is not whole; it is fetched anew the next time")]
    Archive(#[source] archive::ArchiveError),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// There is no room.
    #[error("{needed} bytes are to be fetched and {free} are free in {}; {ROOM} are left for shops", .path.display())]
    NoSpace {
        /// How much.
        needed: u64,
        /// How much there is.
        free: u64,
        /// Where.
        path: PathBuf,
    },
}

impl DepotError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Nats { .. } => ErrorKind::Unavailable,
            Self::Unknown { .. } => ErrorKind::NotFound,
            Self::Damaged { .. } | Self::Archive(_) | Self::OtherGolden { .. } => ErrorKind::Invalid,
            Self::NoSecret => ErrorKind::Conflict,
            Self::Catalog(error) => error.kind(),
            Self::Disk(error) => error.kind(),
            Self::NoSpace { .. } => ErrorKind::NoSpace,
        }
    }
}

fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DepotError + 'a {
    move |source| DiskError::at(doing, path)(source).into()
}

fn nats<E: std::error::Error + Send + Sync + 'static>(doing: &'static str) -> impl FnOnce(E) -> DepotError {
    move |source| DepotError::Nats { doing, source: Box::new(source) }
}

/// A snapshot's own object.
#[derive(Debug, Serialize, Deserialize)]
struct Sent {
    version: u16,
    /// As it lies in the catalogue, which its signature is over.
    manifest: String,
    /// Hexadecimal.
    signature: String,
}

/// What names an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// BLAKE3 of all of it, hexadecimal.
    pub blake3: String,
    /// Its size.
    pub bytes: u64,
}

impl From<&Archive> for Blob {
    fn from(archive: &Archive) -> Self {
        Self { blake3: archive.blake3.clone(), bytes: archive.bytes }
    }
}

/// How much was moved, and how much was there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Bytes that went over the network.
    pub bytes: u64,
    /// Bytes that were there already.
    pub spared: u64,
}

impl std::ops::AddAssign for Moved {
    fn add_assign(&mut self, more: Self) {
        self.bytes += more.bytes;
        self.spared += more.spared;
    }
}

/// The object store.
pub struct Depot {
    store: ObjectStore,
    /// To look whether something has changed.
    jetstream: Context,
    stream: String,
    secret: Option<NodeSecret>,
}

impl std::fmt::Debug for Depot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Depot").finish_non_exhaustive()
    }
}

impl Depot {
    /// Opens the bucket, and makes it, for so many bytes, if there is none.
    ///
    /// # Errors
    /// [`DepotError::Nats`]
    pub async fn open(jetstream: &Context, prefix: &str, bytes: u64) -> Result<Self, DepotError> {
        let bucket = format!("{prefix}-snapshots");
        let stream = format!("OBJ_{bucket}");
        let opened = |store| Self { store, jetstream: jetstream.clone(), stream, secret: None };
        if let Ok(store) = jetstream.get_object_store(&bucket).await {
            return Ok(opened(store));
        }
        let config = object_store::Config {
            bucket,
            max_bytes: bytes.cast_signed(),
            ..object_store::Config::default()
        };
        Ok(opened(jetstream.create_object_store(config).await.map_err(nats("make"))?))
    }

    /// With the secret that the nodes know.
    #[must_use]
    pub fn known_by(self, secret: NodeSecret) -> Self {
        Self { secret: Some(secret), ..self }
    }

    /// Sends a snapshot of the catalogue.
    ///
    /// # Errors
    /// [`DepotError`]; call again, what is there is not sent again.
    pub async fn send(&self, catalog: &Catalog, id: &SnapshotId) -> Result<Moved, DepotError> {
        let manifest = catalog.manifest(id)?;
        let (text, signature) = catalog.signed(id)?;
        let mut moved = Moved::default();
        for (name, archive) in &manifest.archives {
            moved += self.send_file(&archive.into(), &catalog.path(id).join(name)).await?;
        }
        let signature = signature.iter().map(|byte| format!("{byte:02x}")).collect();
        let sent = Sent { version: VERSION, manifest: text, signature };
        self.put(&format!("snapshot/{id}"), &json(&sent)).await?;
        Ok(moved)
    }

    /// Whether the image that snapshots stand on is there.
    ///
    /// # Errors
    /// [`DepotError::Nats`]
    pub async fn has_image(&self, image: &str) -> Result<bool, DepotError> {
        self.has(&format!("image/{image}")).await
    }

    /// Sends an image's archive.
    ///
    /// # Errors
    /// [`DepotError`]; as above.
    pub async fn send_image(&self, image: &str, path: &Path) -> Result<Moved, DepotError> {
        let file = path.to_owned();
        let blob = blocking(move || blob_of(&file)).await.map_err(at("read", path))?;
        let moved = self.send_file(&blob, path).await?;
        self.put(&format!("image/{image}"), &json(&blob)).await?;
        Ok(moved)
    }

    /// Fetches an image's archive.
    ///
    /// # Errors
    /// [`DepotError`]; call again, what has arrived is not fetched again.
    pub async fn fetch_image(&self, id: &SnapshotId, image: &str, path: &Path) -> Result<Moved, DepotError> {
        let blob: Option<Blob> = self.small(&format!("image/{image}")).await?;
        let blob = blob.ok_or_else(|| DepotError::Unknown { id: id.clone() })?;
        room_for(path.parent().unwrap_or(path), blob.bytes)?;
        self.fetch_file(&blob, path).await
    }

    /// The snapshots that are there, sorted.
    ///
    /// # Errors
    /// [`DepotError::Nats`]
    pub async fn list(&self) -> Result<Vec<SnapshotId>, DepotError> {
        let names = self.all().await?;
        let mut ids: Vec<SnapshotId> =
            names.iter().filter_map(|(name, _)| name.strip_prefix("snapshot/")?.parse().ok()).collect();
        ids.sort();
        Ok(ids)
    }

    /// A snapshot's manifest, if a key that the catalogue trusts has signed it.
    ///
    /// # Errors
    /// [`DepotError`]
    pub async fn manifest(&self, catalog: &Catalog, id: &SnapshotId) -> Result<Manifest, DepotError> {
        let (manifest, _, _) = self.offered(catalog, id).await?;
        Ok(manifest)
    }

    /// As above, of a snapshot that is said to be of that golden.
    ///
    /// # Errors
    /// [`DepotError`]
    pub async fn manifest_of(
        &self,
        catalog: &Catalog,
        golden: &GoldenName,
        id: &SnapshotId,
    ) -> Result<Manifest, DepotError> {
        let manifest = self.manifest(catalog, id).await?;
        match manifest.recipe.name == *golden {
            true => Ok(manifest),
            false => Err(DepotError::OtherGolden { id: id.clone(), golden: golden.clone() }),
        }
    }

    async fn offered(
        &self,
        catalog: &Catalog,
        id: &SnapshotId,
    ) -> Result<(Manifest, String, Vec<u8>), DepotError> {
        let name = format!("snapshot/{id}");
        let sent: Option<Sent> = self.small(&name).await?;
        let sent = sent.ok_or_else(|| DepotError::Unknown { id: id.clone() })?;
        let signature = from_hex(&sent.signature).filter(|_| sent.version == VERSION);
        let signature = signature.ok_or(DepotError::Damaged { what: name })?;
        let manifest = catalog.trusted(id, sent.manifest.as_bytes(), &signature)?;
        Ok((manifest, sent.manifest, signature))
    }

    /// Fetches a snapshot into the catalogue.
    ///
    /// # Errors
    /// [`DepotError`]; nothing appears. Call again, what has arrived is not fetched
    /// again.
    pub async fn fetch(&self, catalog: &Catalog, id: &SnapshotId) -> Result<Moved, DepotError> {
        let (manifest, text, signature) = self.offered(catalog, id).await?;
        let dir = catalog.arriving(id)?;
        let present = |name: &String| std::fs::metadata(dir.join(name)).map_or(0, |it| it.len());
        let all: u64 = manifest.archives.values().map(|archive| archive.bytes).sum();
        let there: u64 = manifest.archives.keys().map(present).sum();
        room_for(&dir, all.saturating_sub(there))?;
        let mut moved = Moved::default();
        for (name, archive) in &manifest.archives {
            let path = dir.join(name);
            moved += self.fetch_file(&archive.into(), &path).await?;
            let (file, expected) = (path.clone(), archive.clone());
            let verified = tokio::task::spawn_blocking(move || archive::verify(&file, &expected)).await;
            if let Ok(Err(error)) = verified {
                // Each piece was what the list says, so the list is wrong.
                std::fs::remove_file(&path).map_err(at("remove", &path))?;
                return Err(DepotError::Archive(error));
            }
        }
        catalog.arrived(id, &text, &signature)?;
        Ok(moved)
    }

    /// Removes snapshots that no node serves, and what no other one needs and nobody has
    /// begun to send within the last hour.
    ///
    /// # Errors
    /// [`DepotError`]; what is left is removed the next time.
    pub async fn remove(&self, ids: &[SnapshotId]) -> Result<(), DepotError> {
        let served = self.all_served().await?;
        for id in ids.iter().filter(|id| !served.contains(id)) {
            let name = format!("snapshot/{id}");
            if self.has(&name).await? {
                self.store.delete(&name).await.map_err(nats("remove a snapshot from"))?;
            }
        }
        let needed = self.needed().await?;
        let now = jiff::Timestamp::now().as_second();
        for (name, modified) in self.all().await? {
            let is_part = ["piece/", "archive/", "image/"].iter().any(|kind| name.starts_with(kind));
            if is_part && !needed.contains(&name) && now - modified > SETTLED.as_secs().cast_signed() {
                self.store.delete(&name).await.map_err(nats("remove what nobody needs from"))?;
            }
        }
        Ok(())
    }
}

/// Refuses what would leave too little room where `dir` lies.
fn room_for(dir: &Path, bytes: u64) -> Result<(), DepotError> {
    let found = rustix::fs::statvfs(dir).map_err(|error| at("look at", dir)(error.into()))?;
    let free = found.f_bavail * found.f_frsize;
    match free.checked_sub(bytes).is_some_and(|left| left >= ROOM) {
        true => Ok(()),
        false => Err(DepotError::NoSpace { needed: bytes, free, path: dir.to_owned() }),
    }
}

/// Digests a whole file.
fn blob_of(path: &Path) -> io::Result<Blob> {
    let mut hasher = blake3::Hasher::new();
    let bytes = io::copy(&mut std::fs::File::open(path)?, &mut hasher)?;
    Ok(Blob { blake3: hasher.finalize().to_hex().to_string(), bytes })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
