//! Whether somebody has set the host's clock. Pure but for reading it.
//!
//! An instance's end is a time of the wall clock: it is what its visitor was
//! told, and what still means the same to the next daemon, after a reboot, and on
//! other hosts. So it is kept when the clock is set: ahead, instances end at once
//! whose time is over by the new clock; back, they live longer by as much, yet
//! nobody may extend them beyond MAX_TTL. The pool has no end and is not touched.
//! What happened is said once.

use std::time::Instant;

use jiff::{SignedDuration, Timestamp};

/// What a slow pass or a clock being steered does not reach.
const JUMP: SignedDuration = SignedDuration::from_secs(5);

/// The wall clock and the one that nobody sets, read together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    wall: Timestamp,
    steady: Instant,
}

impl Clocks {
    pub(super) fn now() -> Self {
        Self { wall: Timestamp::now(), steady: Instant::now() }
    }

    /// By how much the wall clock was set since `self`; none when it went on as
    /// time does. A host that slept looks as if it was set ahead.
    pub(super) fn set_until(self, later: Self) -> Option<SignedDuration> {
        let passed = SignedDuration::try_from(later.steady.duration_since(self.steady)).ok()?;
        let set = later.wall.duration_since(self.wall).checked_sub(passed)?;
        (set.abs() > JUMP).then_some(set)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_that_was_set_is_told_from_time_that_passed() {
        let day = SignedDuration::from_hours(24);
        let before = Clocks::now();
        let after = |wall: SignedDuration, steady: u64| Clocks {
            wall: before.wall + wall,
            steady: before.steady + Duration::from_secs(steady),
        };
        for (wall, steady, set) in [
            (SignedDuration::from_secs(1), 1, None),
            (day, 86_400, None),
            (SignedDuration::from_secs(4), 1, None),
            (day, 0, Some(day)),
            (SignedDuration::ZERO - day, 0, Some(SignedDuration::ZERO - day)),
            (SignedDuration::ZERO, 86_400, Some(SignedDuration::ZERO - day)),
        ] {
            assert_eq!(before.set_until(after(wall, steady)), set, "{wall:?} {steady}");
        }
    }
}
