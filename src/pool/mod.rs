//! The pool: instances made ahead of time, so that a click finds one ready.
//!
//! "Warm" means restored, personalized, first page fetched, nobody's. Three
//! parts: [`policy`] decides (pure), [`reconciler`] asks for warm instances,
//! [`reaper`] for the end of what is over; both ask by jobs ([`crate::jobs`]).
//! [`sleeper`] has shops sleep that nobody asks.
//! This file has only what others need to wake them and to read their status,
//! so that provisioning need not know them.

pub mod adopt;
pub mod aim;
pub mod backoff;
pub mod policy;
pub mod pruner;
pub mod reaper;
pub mod reconciler;
pub mod sleeper;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::Notify;

use crate::config::ColdStart;
use crate::id::GoldenName;

/// Wakes a background task before its next tick. It carries no input: the task
/// looks at the world by itself, so a lost or doubled nudge changes nothing.
#[derive(Debug, Clone, Default)]
pub struct Nudge(Arc<Notify>);

impl Nudge {
    /// Wakes the task, or has it go round once more if it is at work.
    pub fn now(&self) {
        self.0.notify_one();
    }

    /// Waits for a nudge.
    pub async fn given(&self) {
        self.0.notified().await;
    }
}

/// What the pool is to be.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// How many are to be ready for each golden of which nothing else is said.
    pub ready: usize,
    /// How many may be in the making at once.
    pub starts: usize,
    /// Whether a golden without a snapshot is kept warm by cold starts.
    pub cold_start: ColdStart,
}

/// How the reconciler stands with each golden.
pub type PoolStatus = BTreeMap<GoldenName, GoldenStatus>;

/// How the reconciler stands with one golden.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GoldenStatus {
    /// How many instances are to be ready.
    pub target: usize,
    /// How many are to be ready as long as no operator says otherwise.
    pub usual: usize,
    /// How many are being made for the pool.
    pub in_flight: usize,
    /// How many attempts failed in a row.
    pub failures_in_a_row: u32,
    /// When it tries again, if it holds back after failures.
    pub retry_at: Option<Timestamp>,
}
