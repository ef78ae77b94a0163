//! Objects and files, one at a time.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use async_nats::jetstream::object_store::{GetErrorKind, InfoErrorKind};
use futures_util::TryStreamExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt as _;

use super::pieces::{Pieces, digest, read_piece};
use super::{
    Blob, Depot, DepotError, LIST_DEADLINE, Moved, OBJECT_DEADLINE, REPLACED_EVERY, SMALL, at, nats,
};

impl Depot {
    /// Sends a file in pieces, but for those that are there.
    pub(super) async fn send_file(&self, blob: &Blob, path: &Path) -> Result<Moved, DepotError> {
        let list = format!("archive/{}", blob.blake3);
        if self.has(&list).await? {
            return Ok(Moved { bytes: 0, spared: blob.bytes });
        }
        let whole = path.to_owned();
        let pieces = blocking(move || Pieces::of(&whole)).await.map_err(at("read", path))?;
        let mut file = File::open(path).map_err(at("open", path))?;
        let mut moved = Moved::default();
        for name in &pieces.pieces {
            let (read, back) =
                blocking(move || Ok((read_piece(&mut file)?, file))).await.map_err(at("read", path))?;
            file = back;
            // It was changed meanwhile: the next try reads it anew.
            if digest(&read) != *name {
                return Err(DepotError::Damaged { what: path.display().to_string() });
            }
            let (object, bytes) = (format!("piece/{name}"), read.len() as u64);
            if self.has(&object).await? {
                moved.spared += bytes;
            } else {
                self.put(&object, &read).await?;
                moved.bytes += bytes;
            }
        }
        self.put(&list, &json(&pieces)).await?;
        Ok(moved)
    }

    /// Fetches a file in pieces, behind those that it has.
    pub(super) async fn fetch_file(&self, blob: &Blob, path: &Path) -> Result<Moved, DepotError> {
        let list = format!("archive/{}", blob.blake3);
        let damaged = || DepotError::Damaged { what: list.clone() };
        let pieces: Option<Pieces> = self.small(&list).await?;
        let pieces = pieces.filter(|it| it.makes_sense() && it.bytes == blob.bytes).ok_or_else(damaged)?;
        let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let (mut file, expected) = (file.map_err(at("open", path))?, pieces.clone());
        let looked = blocking(move || Ok((expected.already_in(&mut file)?, file))).await;
        let (there, mut file) = looked.map_err(at("read", path))?;
        let mut moved = Moved { bytes: 0, spared: file.metadata().map_err(at("read", path))?.len() };
        for name in &pieces.pieces[there..] {
            let object = format!("piece/{name}");
            let piece = self.get(&object).await?.ok_or_else(damaged)?;
            if digest(&piece) != *name {
                return Err(DepotError::Damaged { what: object });
            }
            moved.bytes += piece.len() as u64;
            file =
                blocking(move || file.write_all(&piece).map(|()| file)).await.map_err(at("write", path))?;
        }
        blocking(move || file.sync_all()).await.map_err(at("write", path))?;
        Ok(moved)
    }

    pub(super) async fn has(&self, name: &str) -> Result<bool, DepotError> {
        match self.store.info(name).await {
            Ok(info) => Ok(!info.deleted),
            Err(error) if error.kind() == InfoErrorKind::NotFound => Ok(false),
            Err(error) => Err(nats("look into")(error)),
        }
    }

    pub(super) async fn put(&self, name: &str, bytes: &[u8]) -> Result<(), DepotError> {
        let mut bytes = bytes;
        let put = tokio::time::timeout(OBJECT_DEADLINE, self.store.put(name, &mut bytes)).await;
        put.map_err(nats("write to"))?.map(drop).map_err(nats("write to"))
    }

    async fn get(&self, name: &str) -> Result<Option<Vec<u8>>, DepotError> {
        let read = async {
            loop {
                let object = match self.store.get(name).await {
                    Ok(object) => object,
                    Err(error) if error.kind() == GetErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(nats("read from")(error)),
                };
                let (written_as, mut bytes) = (object.info().nuid.clone(), Vec::new());
                let mut content = object.take(SMALL);
                tokio::select! {
                    read = content.read_to_end(&mut bytes) => {
                        return read.map(|_| Some(bytes)).map_err(nats("read from"));
                    }
                    () = self.is_replaced(name, &written_as) => {}
                }
            }
        };
        tokio::time::timeout(OBJECT_DEADLINE, read).await.map_err(nats("read from"))?
    }

    /// Waits until there is another object of that name, or none: what is read of this one
    /// when its content is removed never ends.
    async fn is_replaced(&self, name: &str, written_as: &str) {
        loop {
            tokio::time::sleep(REPLACED_EVERY).await;
            match self.store.info(name).await {
                Ok(info) if info.deleted || info.nuid != written_as => return,
                Err(error) if error.kind() == InfoErrorKind::NotFound => return,
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// An object that is JSON.
    pub(super) async fn small<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, DepotError> {
        let Some(bytes) = self.get(name).await? else { return Ok(None) };
        let damaged = |_| DepotError::Damaged { what: name.to_owned() };
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    /// All objects, with when each was written, in seconds since 1970.
    pub(super) async fn all(&self) -> Result<Vec<(String, i64)>, DepotError> {
        let listed = async {
            let mut list = self.store.list().await.map_err(nats("list"))?;
            let mut all = Vec::new();
            while let Some(info) = list.try_next().await.map_err(nats("list"))? {
                all.push((info.name, info.modified.map_or(0, |at| at.unix_timestamp())));
            }
            Ok(all)
        };
        // A list that a server has begun and not ended, since it died, never ends.
        tokio::time::timeout(LIST_DEADLINE, listed).await.map_err(nats("list"))?
    }

    /// Objects that the snapshots which are there are made of.
    pub(super) async fn needed(&self) -> Result<BTreeSet<String>, DepotError> {
        let mut needed = BTreeSet::new();
        for id in self.list().await? {
            let Some(sent) = self.small::<super::Sent>(&format!("snapshot/{id}")).await? else { continue };
            let damaged = |_| DepotError::Damaged { what: format!("snapshot/{id}") };
            let manifest = super::Manifest::parse(sent.manifest.as_bytes()).map_err(damaged)?;
            let image = format!("image/{}", manifest.image_id);
            let mut blobs: Vec<Blob> = manifest.archives.values().map(Blob::from).collect();
            blobs.extend(self.small::<Blob>(&image).await?);
            needed.insert(image);
            for blob in blobs {
                let list = format!("archive/{}", blob.blake3);
                let pieces = self.small::<Pieces>(&list).await?;
                needed.extend(
                    pieces.into_iter().flat_map(|it| it.pieces).map(|piece| format!("piece/{piece}")),
                );
                needed.insert(list);
            }
        }
        Ok(needed)
    }
}

pub(super) fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("texts and numbers are JSON")
}

/// Disk work beside the runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
