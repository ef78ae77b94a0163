//! What has happened since the last look, for charts: how long acquires took by
//! source, how long each phase of a restore took, what failed.
//!
//! Written by the tally, in O(1) and without memory that grows; taken by the
//! chronicle every few seconds ([`Pulse::take`]), which begins a new beat.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::engine::Phase;
use crate::instance::Source;

/// Buckets of one doubling: a quantile is at most a twelfth too large.
const BUCKETS_A_DOUBLING: f64 = 8.0;

/// Everything shorter is in the first bucket, in microseconds.
const SHORTEST: f64 = 16.0;

/// 16 microseconds doubled 24 times are four minutes, longer than any client waits.
const BUCKETS: usize = 24 * 8;

/// What is happening now.
#[derive(Debug, Default)]
pub struct Pulse(Mutex<Beat>);

/// What happened between two looks.
#[derive(Debug, Default, Clone)]
pub struct Beat {
    /// Hand-overs by source.
    pub acquires: BTreeMap<&'static str, Spread>,
    /// Phases of what was made: how often, and how long together.
    pub phases: BTreeMap<&'static str, (u32, Duration)>,
    /// Instances that were made.
    pub made: u32,
    /// Instances that could not be made.
    pub failures: u32,
    /// Clients that got none.
    pub turned_away: u32,
}

/// How long something took, each time.
#[derive(Debug, Clone)]
pub struct Spread {
    count: u32,
    buckets: [u32; BUCKETS],
}

impl Default for Spread {
    fn default() -> Self {
        Self { count: 0, buckets: [0; BUCKETS] }
    }
}

impl Spread {
    fn add(&mut self, took: Duration) {
        self.count = self.count.saturating_add(1);
        self.buckets[bucket(took)] += 1;
    }

    /// How many there were.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// The time that `percent` of 100 are not above; none when there were none.
    #[must_use]
    pub fn quantile(&self, percent: u32) -> Option<Duration> {
        let rank = (u64::from(self.count) * u64::from(percent)).div_ceil(100).max(1);
        let mut seen = 0;
        let found = self.buckets.iter().position(|count| {
            seen += u64::from(*count);
            seen >= rank
        });
        found.map(upper_end)
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the buckets")]
fn bucket(took: Duration) -> usize {
    let doublings = (took.as_secs_f64() * 1e6 / SHORTEST).max(1.0).log2();
    ((doublings * BUCKETS_A_DOUBLING) as usize).min(BUCKETS - 1)
}

#[expect(clippy::cast_precision_loss, reason = "some two hundred buckets")]
fn upper_end(bucket: usize) -> Duration {
    Duration::from_secs_f64(SHORTEST * ((bucket + 1) as f64 / BUCKETS_A_DOUBLING).exp2() / 1e6)
}

impl Pulse {
    /// A std lock: held for a few operations, never across an await.
    fn lock(&self) -> MutexGuard<'_, Beat> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers what happened since the last call.
    #[must_use]
    pub fn take(&self) -> Beat {
        std::mem::take(&mut *self.lock())
    }

    pub(super) fn handed_over(&self, source: Source, took: Duration) {
        self.lock().acquires.entry(source.as_str()).or_default().add(took);
    }

    pub(super) fn made(&self, phases: &[(Phase, Duration)]) {
        let mut beat = self.lock();
        beat.made += 1;
        for (phase, took) in phases {
            let (count, sum) = beat.phases.entry(phase.as_str()).or_default();
            *count += 1;
            *sum += *took;
        }
    }

    pub(super) fn failed(&self) {
        self.lock().failures += 1;
    }

    pub(super) fn turned_away(&self) {
        self.lock().turned_away += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_near_what_it_is_of() {
        let mut spread = Spread::default();
        assert_eq!(spread.quantile(50), None);
        (1..=100).for_each(|ms| spread.add(Duration::from_millis(ms)));
        for (percent, expected) in [(50, 0.050), (95, 0.095), (99, 0.099)] {
            let found = spread.quantile(percent).unwrap().as_secs_f64();
            assert!(found >= expected && found < expected * 1.1, "p{percent}: {found}");
        }
    }

    #[test]
    fn the_shortest_and_the_longest_have_a_place() {
        let mut spread = Spread::default();
        spread.add(Duration::ZERO);
        spread.add(Duration::from_secs(86_400));
        assert_eq!(spread.count(), 2);
        assert!(spread.quantile(50).unwrap() < Duration::from_micros(20));
        assert!(spread.quantile(99).unwrap() > Duration::from_secs(200));
    }

    #[test]
    fn a_beat_is_taken_once() {
        let pulse = Pulse::default();
        pulse.handed_over(Source::Pool, Duration::from_millis(1));
        pulse.made(&[(Phase::Restore, Duration::from_millis(80)), (Phase::Probe, Duration::from_millis(9))]);
        pulse.made(&[(Phase::Restore, Duration::from_millis(120))]);
        pulse.failed();
        pulse.turned_away();
        let beat = pulse.take();
        assert_eq!((beat.made, beat.failures, beat.turned_away), (2, 1, 1));
        assert_eq!(beat.phases["restore"], (2, Duration::from_millis(200)));
        assert_eq!(beat.acquires["pool"].count(), 1);
        assert_eq!(pulse.take().made, 0);
    }
}
