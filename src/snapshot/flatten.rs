//! An image's files as one directory, copied once for all of its snapshots.
//!
//! Called by [`super::prepare`]. By reflink where the file system can: clones must not
//! depend on what somebody removes from Podman.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::intact;
use super::manifest::Manifest;
use super::prepare::{PrepareError, at, blocking, sweep, sync};
use crate::engine::podman::cli;
use crate::host::slots::make_private;

/// The files' directory in an image's own.
pub(super) const ROOTFS: &str = "rootfs";

/// Where a snapshot's image is, or will be.
pub(super) fn place(state_dir: &Path, manifest: &Manifest) -> PathBuf {
    state_dir.join("images").join(&manifest.image_id)
}

/// Copies the image of a snapshot to its place, unless it is there.
///
/// # Errors
/// [`PrepareError`]; nothing is at the place then.
pub(super) async fn ensure(state_dir: &Path, manifest: &Manifest) -> Result<(), PrepareError> {
    let (parent, place) = (state_dir.join("images"), place(state_dir, manifest));
    make_private(&parent).map_err(at("make", &parent))?;
    sweep(&parent)?;
    if place.join(ROOTFS).is_dir() {
        return Ok(());
    }
    let new = parent.join(format!(".new-{}", manifest.image_id));
    let copied = copy(manifest, &new).await;
    let moved = copied.and_then(|()| std::fs::rename(&new, &place).map_err(at("rename", &new)));
    if moved.is_err() {
        drop(std::fs::remove_dir_all(&new));
    }
    moved
}

/// Copies the image of a snapshot into a new directory, with a record of its files.
///
/// # Errors
/// [`PrepareError`]; what was copied is the caller's to remove.
pub(super) async fn copy(manifest: &Manifest, new: &Path) -> Result<(), PrepareError> {
    let image = &manifest.image_id;
    if cli::image_id(image).await?.is_none() {
        return Err(PrepareError::Image { id: manifest.id.clone(), image: image.clone() });
    }
    make_private(new).map_err(at("make", new))?;
    let mounted = cli::podman(&["image", "mount", image]).await?;
    let copied = Command::new("cp")
        .args(["--archive", "--reflink=auto", "--one-file-system", "--"])
        .arg(&mounted)
        .arg(new.join(ROOTFS))
        .stdin(Stdio::null())
        .output()
        .await;
    let unmounted = cli::podman(&["image", "unmount", image]).await;
    let copied = copied.and_then(|output| match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    });
    copied.map_err(at("copy the image to", new))?;
    unmounted?;
    let dir = new.to_owned();
    let recorded = blocking(move || intact::record(&dir)).await;
    recorded.map_err(at("digest", new))?;
    let dir = new.to_owned();
    blocking(move || sync(&dir)).await.map_err(at("sync", new))
}
