//! The line of visitors for whom there is no instance yet: who is next.
//!
//! Owned by the visitors' pages, one line for each golden, in the memory of this
//! daemon. A visitor takes a place by asking and keeps it by asking again, which
//! the waiting page does by itself; one who stops is forgotten. Clients of the
//! API stand in no line.
//!
//! Invariants: a visitor has one place in a line and never loses it to one who
//! came later; a line is bounded.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::id::GoldenName;

/// How often a waiting page asks again.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(3);

/// When a visitor who does not ask any more has left: five times, so that a slow
/// train costs nobody a place.
const FORGOTTEN: Duration = Duration::from_secs(15);

/// Visitors in one line at most; those after them would wait for hours.
const LONGEST: usize = 500;

/// The lines.
#[derive(Debug, Default)]
pub(super) struct Lines(Mutex<HashMap<GoldenName, Vec<Place>>>);

#[derive(Debug)]
struct Place {
    holder: String,
    asked: Instant,
}

/// Where a visitor stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    /// How many are served before.
    pub(super) ahead: usize,
    /// How many wait, this one included.
    pub(super) length: usize,
}

impl Lines {
    /// How many are to be served before this visitor, who may have no place yet.
    pub(super) fn ahead(&self, golden: &GoldenName, holder: &str, now: Instant) -> usize {
        self.with(golden, now, |line| {
            line.iter().position(|place| place.holder == holder).unwrap_or(line.len())
        })
    }

    /// Keeps the visitor's place, or gives one at the end; none when the line is
    /// too long.
    pub(super) fn stand(&self, golden: &GoldenName, holder: &str, now: Instant) -> Option<Standing> {
        self.with(golden, now, |line| {
            let ahead = line.iter().position(|place| place.holder == holder);
            let ahead = match ahead {
                Some(ahead) => {
                    line[ahead].asked = now;
                    ahead
                }
                None if line.len() >= LONGEST => return None,
                None => {
                    line.push(Place { holder: holder.to_owned(), asked: now });
                    line.len() - 1
                }
            };
            Some(Standing { ahead, length: line.len() })
        })
    }

    /// Gives the place up.
    pub(super) fn leave(&self, golden: &GoldenName, holder: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get_mut(golden) {
            line.retain(|place| place.holder != holder);
        }
    }

    fn with<T>(&self, golden: &GoldenName, now: Instant, use_it: impl FnOnce(&mut Vec<Place>) -> T) -> T {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let line = lines.entry(golden.clone()).or_default();
        line.retain(|place| now.saturating_duration_since(place.asked) < FORGOTTEN);
        use_it(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden() -> GoldenName {
        "shop".parse().unwrap()
    }

    fn ahead(lines: &Lines, holder: &str, now: Instant) -> Option<usize> {
        lines.stand(&golden(), holder, now).map(|standing| standing.ahead)
    }

    #[test]
    fn who_came_first_is_served_first() {
        let (lines, now) = (Lines::default(), Instant::now());
        assert_eq!(lines.ahead(&golden(), "a", now), 0, "nobody waits");
        assert_eq!(
            [ahead(&lines, "a", now), ahead(&lines, "b", now), ahead(&lines, "c", now)],
            [Some(0), Some(1), Some(2)]
        );
        assert_eq!(ahead(&lines, "b", now + ASK_AGAIN), Some(1), "asking again keeps the place");
        assert_eq!(lines.ahead(&golden(), "d", now), 3, "one without a place comes after all");
        lines.leave(&golden(), "a");
        assert_eq!(lines.stand(&golden(), "c", now), Some(Standing { ahead: 1, length: 2 }));
        let other: GoldenName = "other".parse().unwrap();
        assert_eq!(lines.ahead(&other, "d", now), 0, "each golden has its own line");
    }

    #[test]
    fn who_stops_asking_is_forgotten() {
        let (lines, now) = (Lines::default(), Instant::now());
        ahead(&lines, "a", now);
        ahead(&lines, "b", now + ASK_AGAIN);
        assert_eq!(ahead(&lines, "b", now + FORGOTTEN), Some(0));
        assert_eq!(ahead(&lines, "a", now + FORGOTTEN), Some(1), "back, at the end");
    }

    #[test]
    fn a_line_has_an_end() {
        let (lines, now) = (Lines::default(), Instant::now());
        for n in 0..LONGEST {
            assert!(ahead(&lines, &n.to_string(), now).is_some());
        }
        assert_eq!(ahead(&lines, "late", now), None);
        assert_eq!(ahead(&lines, "7", now), Some(7), "those in it stay");
    }
}
