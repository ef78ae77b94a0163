//! A whole demo shop per visitor, restored from a snapshot in a blink.
//!
//! ```text
//! L4  main, commands, app                    name concrete adapters, wire them
//! L3  api, proxy, pool::{reconciler, reaper} edges and workers
//! L2  provision, checkpoint, restore, snapshot::{archive, catalog, prepare}   procedures
//! L1  engine, store, route, host             ports with their adapters; the kernel
//! L0  id, error, config, instance, golden::recipe, snapshot::{manifest, compat}, pool::policy   pure
//! ```
//!
//! Arrows point down only; adapters never import each other;
//! `tests/architecture.rs` holds both.

pub mod checkpoint;
pub mod config;
pub mod doctor;
pub mod engine;
pub mod error;
pub mod golden;
pub mod host;
pub mod id;
pub mod identity;
pub mod instance;
pub mod restore;
pub mod snapshot;
pub mod store;
