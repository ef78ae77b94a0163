//! A whole demo shop per visitor, restored from a snapshot in a blink.
//!
//! ```text
//! L4  main, commands, app, workshop, uses, courier, forget, open_{edges,jobs,store} name concrete adapters, wire them
//! L3  api, web, console, proxy, pool::{reconciler, reaper}, jobs::worker, events, webhook, {route,peers}::keeper, promote::follower   edges and workers
//! L2  provision, promote, checkpoint, template, restore, egress, database, snapshot::{archive, catalog, prepare}   procedures
//! L1  engine, store, route, jobs, nats, peers, host ports with their adapters; the kernel
//! L0  id, client, lang, token, connections, error, sealed, sync, config, node, instance, golden::recipe, snapshot::{manifest, compat}, pool::policy   pure
//! ```
//!
//! Arrows point down only; adapters never import each other;
//! `tests/architecture.rs` holds both.

pub mod api;
pub mod app;
pub mod assemble;
pub mod bench;
pub mod caretaker;
pub mod checkpoint;
pub mod client;
pub mod commands;
pub mod config;
pub mod connections;
pub mod console;
pub mod courier;
pub mod database;
pub mod doctor;
pub mod egress;
pub mod engine;
pub mod error;
pub mod events;
pub mod failpoint;
pub mod forget;
pub mod golden;
pub mod host;
pub mod id;
pub mod identity;
pub mod instance;
pub mod jobs;
pub mod lang;
pub mod listener;
pub mod metrics;
pub mod nats;
pub mod node;
pub mod notify;
pub mod open_edges;
pub mod open_jobs;
pub mod open_store;
pub mod peers;
pub mod pool;
pub mod promote;
pub mod provision;
pub mod proxy;
pub mod restore;
pub mod route;
pub mod sealed;
pub mod shutdown;
pub mod snapshot;
pub mod store;
pub mod sync;
pub mod telemetry;
pub mod template;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod token;
pub mod uses;
pub mod web;
pub mod webhook;
pub mod workshop;
