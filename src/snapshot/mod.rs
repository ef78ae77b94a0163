//! Snapshots: a golden, frozen while it ran.
//!
//! At rest a snapshot is a directory of four or five files, all 0600:
//!
//! ```text
//! SNAPSHOT_DIR/<snapshot id>/
//!   manifest.json    what it is, what it needs, digests of the archives
//!   manifest.sig     an ed25519 signature over it ([`signature`])
//!   memory.tar.zst   CRIU's images and the container's OCI spec
//!   files.tar.zst    what the running golden had changed on its image: the overlay upper
//!   database.tar.zst its database as SQL, when its clones share a server
//! ```
//!
//! It appears by one rename, when all of it is on disk. The image it stands on
//! is Podman's, named by its id in the manifest.
//!
//! Before use it is *prepared* once ([`prepare`]):
//!
//! ```text
//! STATE_DIR/images/<image id>/rootfs      the image, flattened ([`flatten`]); shared by its snapshots
//! STATE_DIR/prepared/<snapshot id>/
//!   upper/                                files.tar.zst, unpacked
//!   upper/.memory/                        what clones map instead of copying it ([`mapped`])
//!   images/                               memory.tar.zst, unpacked, the rest of it
//!   database.sql                          database.tar.zst, unpacked
//!   manifest.json                         last: what has it is whole
//! both: digests, checked                  whether a disk has changed it since ([`intact`])
//! ```
//!
//! Which one is served, where an operator has said so: [`served`]. How others get it: [`depot`].
//!
//! [`manifest`] and [`compat`] are pure; [`archive`], [`catalog`],
//! [`prepare`], [`served`] and [`signature`] touch the disk.

pub mod archive;
pub mod catalog;
pub mod compat;
pub mod depot;
mod flatten;
mod intact;
pub mod manifest;
mod mapped;
mod names;
pub mod prepare;
pub mod served;
pub mod shelf;
pub mod signature;
