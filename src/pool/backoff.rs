//! How long to hold back after failures. Pure: time is a parameter.

use std::time::Duration;

use tokio::time::Instant;

/// The first pause: a hiccup is over by then.
const FIRST: Duration = Duration::from_secs(1);

/// The longest pause. Longer, and a repaired golden would leave the pool empty
/// for longer than a person waits; shorter, and a broken one keeps a core busy.
pub const LONGEST: Duration = Duration::from_secs(60);

/// The pause after so many failures before the present one.
#[must_use]
pub fn pause_after(failures: u32) -> Duration {
    FIRST.saturating_mul(1 << failures.min(16)).min(LONGEST)
}

/// Failures in a row and the pause they ask for, doubled with each.
#[derive(Debug, Clone, Copy, Default)]
pub struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// Notes a failure at `now`; answers the pause before the next attempt.
    pub fn failed(&mut self, now: Instant) -> Duration {
        let pause = pause_after(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + pause);
        pause
    }

    /// Notes a success.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// How many failed in a row.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// How long the pause still is; none when it is over.
    #[must_use]
    pub fn pause_at(&self, now: Instant) -> Option<Duration> {
        self.until.and_then(|until| until.checked_duration_since(now)).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_end_with_a_success() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        let pauses: Vec<u64> = (0..8).map(|_| backoff.failed(now).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(backoff.pause_at(now + Duration::from_secs(59)).is_some());
        assert!(backoff.pause_at(now + Duration::from_secs(60)).is_none());
        backoff.succeeded();
        assert!(backoff.pause_at(now).is_none());
        assert_eq!(backoff.failed(now), FIRST);
    }

    #[test]
    fn a_thousand_failures_do_not_overflow() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        (0..1000).for_each(|_| assert!(backoff.failed(now) <= LONGEST));
    }
}
