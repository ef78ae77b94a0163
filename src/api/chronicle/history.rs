//! The last hour in samples: pure, but for the reading of the host.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::dto::{ms, whole_ms};
use crate::host::memory;
use crate::provision::pulse::{Beat, Spread};

/// How often a sample is taken: often enough to see a burst pass.
pub(super) const EVERY: Duration = Duration::from_secs(5);

/// An hour of them; at some 600 bytes each this is below half a megabyte.
const KEPT: usize = 720;

/// What was, at one moment, and what had happened since the one before.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Sample {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Instances by state, of all goldens.
    #[schema(value_type = BTreeMap<String, usize>)]
    pub states: BTreeMap<&'static str, usize>,
    /// How many were to be ready, of all goldens.
    pub target: usize,
    /// Clients that waited for a restore.
    pub clients_waiting: usize,
    /// Hand-overs by source.
    #[schema(value_type = BTreeMap<String, SampleLatency>)]
    pub acquires: BTreeMap<&'static str, SampleLatency>,
    /// The part of them that came from the pool; null when there were none.
    #[schema(required)]
    pub hit_ratio: Option<f64>,
    /// Instances that were made.
    pub made: u32,
    /// The mean time of each phase of making them, in milliseconds.
    #[schema(value_type = BTreeMap<String, f64>)]
    pub phases_ms: BTreeMap<&'static str, f64>,
    /// Instances that could not be made.
    pub failures: u32,
    /// Clients that got none.
    pub turned_away: u32,
    /// Of the host.
    pub memory_used_bytes: u64,
    /// Of the host.
    pub memory_bytes: u64,
    /// Of the file system that STATE_DIR is on.
    pub disk_used_bytes: u64,
    /// Of the file system that STATE_DIR is on.
    pub disk_bytes: u64,
}

/// How long hand-overs took, in milliseconds; within a twelfth.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct SampleLatency {
    /// Of how many.
    pub count: u32,
    /// The median.
    pub p50: f64,
    /// 95 of 100 are not above it.
    pub p95: f64,
}

impl SampleLatency {
    fn of(spread: &Spread) -> Self {
        let quantile = |percent| ms(spread.quantile(percent).unwrap_or_default());
        Self { count: spread.count(), p50: quantile(50), p95: quantile(95) }
    }
}

/// What a sample is taken of, beside the beat.
#[derive(Debug, Default)]
pub(super) struct Look {
    pub(super) states: BTreeMap<&'static str, usize>,
    pub(super) target: usize,
    pub(super) clients_waiting: usize,
    /// Used and whole.
    pub(super) memory: (u64, u64),
    /// Used and whole.
    pub(super) disk: (u64, u64),
}

impl Sample {
    pub(super) fn of(beat: &Beat, look: Look, at: Timestamp) -> Self {
        let all: u32 = beat.acquires.values().map(Spread::count).sum();
        let hits = beat.acquires.get("pool").map_or(0, Spread::count);
        let mean = |(count, sum): &(u32, Duration)| ms(*sum / (*count).max(1));
        Self {
            at: whole_ms(at),
            states: look.states,
            target: look.target,
            clients_waiting: look.clients_waiting,
            acquires: beat.acquires.iter().map(|(of, spread)| (*of, SampleLatency::of(spread))).collect(),
            hit_ratio: (all > 0).then(|| f64::from(hits) / f64::from(all)),
            made: beat.made,
            phases_ms: beat.phases.iter().map(|(phase, sum)| (*phase, mean(sum))).collect(),
            failures: beat.failures,
            turned_away: beat.turned_away,
            memory_used_bytes: look.memory.0,
            memory_bytes: look.memory.1,
            disk_used_bytes: look.disk.0,
            disk_bytes: look.disk.1,
        }
    }
}

/// Memory and disk of the host, used and whole; what cannot be read is zero.
pub(super) fn host(state_dir: &Path) -> ((u64, u64), (u64, u64)) {
    let memory = memory::of_host().unwrap_or_default();
    let disk = rustix::fs::statvfs(state_dir).map(|it| {
        let whole = it.f_blocks * it.f_frsize;
        (whole - it.f_bfree * it.f_frsize, whole)
    });
    (memory, disk.unwrap_or_default())
}

/// The last samples, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Samples {
    kept: VecDeque<Sample>,
    /// How many there were in all.
    pub(super) taken: u64,
}

impl Samples {
    pub(super) fn add(&mut self, sample: Sample) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(sample);
        self.taken += 1;
    }

    pub(super) fn last(&self) -> Option<&Sample> {
        self.kept.back()
    }

    /// Those taken at or after a moment.
    pub(super) fn since(&self, from: Timestamp) -> Vec<Sample> {
        self.kept.iter().filter(|sample| sample.at >= from).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(second: i64) -> Sample {
        Sample::of(&Beat::default(), Look::default(), Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn an_hour_is_kept_and_no_more() {
        let mut samples = Samples::default();
        (0..KEPT as i64 + 10).for_each(|second| samples.add(sample(second)));
        assert_eq!((samples.kept.len(), samples.taken), (KEPT, KEPT as u64 + 10));
        let last = samples.since(Timestamp::from_second(KEPT as i64 + 8).unwrap());
        assert_eq!(last.len(), 2);
        assert_eq!(samples.last().unwrap().at, last[1].at);
    }

    #[test]
    fn nothing_that_happened_is_no_ratio() {
        assert_eq!(sample(1).hit_ratio, None);
        assert!(sample(1).acquires.is_empty());
    }

    #[test]
    fn the_host_has_memory_and_a_disk() {
        let ((used, memory), (filled, disk)) = host(Path::new("/"));
        assert!(used > 0 && used < memory, "{used} of {memory}");
        assert!(filled <= disk && disk > 0, "{filled} of {disk}");
    }
}
