//! What has happened since the start: hand-overs, their latencies, failures.
//!
//! Written by provisioning, read by `/api/v1/pool/stats` and `/health`. The
//! Prometheus series are written beside it, by [`crate::metrics`]; this one
//! keeps what a series cannot: exact quantiles and the last error's text.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::pulse::Pulse;
use crate::engine::Phase;
use crate::error::ErrorKind;
use crate::id::GoldenName;
use crate::instance::Source;

/// How many latencies are kept for each golden and source: enough for a p99
/// with ten values above it.
const KEPT: usize = 1024;

/// So many restores must have failed in a row before clients are spared the
/// next attempt: one failure may be bad luck, three are a broken golden.
const BROKEN_AFTER: u32 = 3;

/// For how long clients are spared it. The reconciler goes on trying, and its
/// first success ends it sooner.
const BROKEN_FOR: Duration = Duration::from_secs(30);

/// What happened with one golden.
#[derive(Debug, Clone, Default)]
pub struct GoldenTally {
    /// Hand-overs by source, since the start.
    pub handed_over: BTreeMap<&'static str, u64>,
    /// Latencies of the last hand-overs by source.
    latencies: BTreeMap<&'static str, VecDeque<Duration>>,
    /// Instances that could not be made, since the start.
    pub failures: u64,
    /// How many restores failed in a row, up to now. Cold starts do not count,
    /// nor does what the host had no room for: that says nothing of the golden.
    pub failures_in_a_row: u32,
    /// The last one.
    pub last_failure: Option<Failure>,
}

/// An instance that could not be made.
#[derive(Debug, Clone)]
pub struct Failure {
    /// When.
    pub at: Timestamp,
    /// The error with its sources.
    pub error: String,
    clock: Instant,
}

/// Quantiles of the last latencies of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantiles {
    /// Of how many values.
    pub count: usize,
    /// The median.
    pub p50: Duration,
    /// 95 of 100 are not above it.
    pub p95: Duration,
    /// 99 of 100 are not above it.
    pub p99: Duration,
}

/// The tally of all goldens.
#[derive(Debug, Default)]
pub struct Tally {
    /// A std lock: held for a few map operations, never across an await.
    goldens: Mutex<HashMap<GoldenName, GoldenTally>>,
    pulse: Pulse,
    /// When the pool last gave one away; a std lock, as the other.
    claimed_at: Mutex<Option<tokio::time::Instant>>,
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, HashMap<GoldenName, GoldenTally>> {
        self.goldens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the pool has given one away, now.
    pub(super) fn claimed(&self) {
        *self.claimed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(tokio::time::Instant::now());
    }

    /// When the pool last gave one away, if it did.
    #[must_use]
    pub fn claimed_at(&self) -> Option<tokio::time::Instant> {
        *self.claimed_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a client got an instance.
    pub(super) fn handed_over(&self, golden: &GoldenName, source: Source, took: Duration) {
        self.pulse.handed_over(source, took);
        let mut goldens = self.lock();
        let of_golden = goldens.entry(golden.clone()).or_default();
        *of_golden.handed_over.entry(source.as_str()).or_default() += 1;
        let latencies = of_golden.latencies.entry(source.as_str()).or_default();
        if latencies.len() == KEPT {
            latencies.pop_front();
        }
        latencies.push_back(took);
    }

    /// Notes that an instance could not be made.
    pub(super) fn failed(&self, golden: &GoldenName, way: Source, kind: ErrorKind, error: String) {
        self.pulse.failed();
        let no_room = matches!(kind, ErrorKind::Exhausted | ErrorKind::NoSpace);
        let mut goldens = self.lock();
        let of_golden = goldens.entry(golden.clone()).or_default();
        of_golden.failures += 1;
        of_golden.failures_in_a_row += u32::from(way == Source::Restore && !no_room);
        of_golden.last_failure = Some(Failure { at: Timestamp::now(), error, clock: Instant::now() });
    }

    /// Notes that a client got none.
    pub(super) fn turned_away(&self) {
        self.pulse.turned_away();
    }

    /// Notes that one could, in these phases.
    pub(super) fn made(&self, golden: &GoldenName, way: Source, phases: &[(Phase, Duration)]) {
        self.pulse.made(phases);
        if way == Source::Restore {
            self.lock().entry(golden.clone()).or_default().failures_in_a_row = 0;
        }
    }

    /// Whether restores of the golden fail so steadily that a client is better
    /// off with the fallback at once.
    pub(super) fn is_broken(&self, golden: &GoldenName) -> bool {
        self.lock().get(golden).is_some_and(|of_golden| {
            of_golden.failures_in_a_row >= BROKEN_AFTER
                && of_golden.last_failure.as_ref().is_some_and(|last| last.clock.elapsed() < BROKEN_FOR)
        })
    }

    /// What has happened since the last look.
    #[must_use]
    pub const fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// A golden's tally.
    #[must_use]
    pub fn of(&self, golden: &GoldenName) -> GoldenTally {
        self.lock().get(golden).cloned().unwrap_or_default()
    }
}

impl GoldenTally {
    /// The part of hand-overs that came from the pool; none before the first.
    #[must_use]
    pub fn hit_ratio(&self) -> Option<f64> {
        let all: u64 = self.handed_over.values().sum();
        let hits = self.handed_over.get(Source::Pool.as_str()).copied().unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "a ratio shown with two digits")]
        (all > 0).then(|| hits as f64 / all as f64)
    }

    /// Quantiles of the last hand-overs by source.
    #[must_use]
    pub fn quantiles(&self) -> BTreeMap<&'static str, Quantiles> {
        self.latencies
            .iter()
            .map(|(source, latencies)| {
                let mut sorted: Vec<Duration> = latencies.iter().copied().collect();
                sorted.sort_unstable();
                // The smallest value that is not below `percent` of all.
                let at = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1];
                (*source, Quantiles { count: sorted.len(), p50: at(50), p95: at(95), p99: at(99) })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_last_values_only() {
        let (tally, shop) = (Tally::default(), "shop".parse().unwrap());
        for ms in (0..KEPT as u64).chain(std::iter::repeat_n(7, KEPT)) {
            tally.handed_over(&shop, Source::Pool, Duration::from_millis(ms));
        }
        let seven = Duration::from_millis(7);
        let quantiles = tally.of(&shop).quantiles()["pool"];
        assert_eq!(quantiles, Quantiles { count: KEPT, p50: seven, p95: seven, p99: seven });
    }

    #[test]
    fn quantiles_of_one_to_a_hundred() {
        let (tally, shop) = (Tally::default(), "shop".parse().unwrap());
        (1..=100).for_each(|ms| tally.handed_over(&shop, Source::Restore, Duration::from_millis(ms)));
        let quantiles = tally.of(&shop).quantiles()["restore"];
        let ms = Duration::from_millis;
        assert_eq!((quantiles.p50, quantiles.p95, quantiles.p99), (ms(50), ms(95), ms(99)));
        assert_eq!(tally.of(&shop).hit_ratio(), Some(0.0));
    }

    #[test]
    fn a_golden_is_broken_after_failures_in_a_row() {
        let (tally, shop) = (Tally::default(), "shop".parse().unwrap());
        let fail = |kind| tally.failed(&shop, Source::Restore, kind, "no".into());
        (0..BROKEN_AFTER).for_each(|_| fail(ErrorKind::NoSpace));
        assert!(!tally.is_broken(&shop), "the host's full disk is no fault of the golden");
        (0..BROKEN_AFTER).for_each(|_| fail(ErrorKind::Incompatible));
        assert!(tally.is_broken(&shop));
        tally.made(&shop, Source::Cold, &[]);
        assert!(tally.is_broken(&shop), "a cold start proves nothing about restores");
        tally.made(&shop, Source::Restore, &[]);
        assert!(!tally.is_broken(&shop), "one success mends it");
        assert_eq!(tally.of(&shop).failures, 6);
    }
}
