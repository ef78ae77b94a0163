//! Who is there, by what was read of the nodes' reports. Pure.
//!
//! ```text
//! here     it speaks
//! silent   it does not, since SILENT_AFTER
//! away     it said that it would part, and is not back yet
//! lost     silent since LOST_AFTER, or away since AWAY_AT_MOST: its instances are over
//! ```
//!
//! The store says who is late, and for how long by its clock. Silence counts only
//! while the store answers: whoever could not read did not listen. After the store was
//! away every node has its whole time again, else the first daemon that is back would
//! take all the others for lost. Nor is anybody lost because the store's clock was set:
//! a node that was not late at the last look has been silent since then, and no longer.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Heard, Late, Report, Stage};
use crate::id::NodeName;

/// From then on the store calls a node late: one of its words is missing.
pub const LATE_AFTER: Duration = Duration::from_secs(2);

/// From then on nothing new is asked of a node: three of its words are missing.
pub const SILENT_AFTER: Duration = Duration::from_secs(3);

/// From then on a node's instances are over. Visitors are to be told within ten
/// seconds, and marking and the last look before it take up to two; sooner, a
/// pause of the host (a snapshot of its machine, a full disk) would cost shops.
pub const LOST_AFTER: Duration = Duration::from_secs(7);

/// How long a daemon that was stopped may take to come back: its shops live on
/// meanwhile. An upgrade takes seconds, the host's restart ends its shops anyway.
pub const AWAY_AT_MOST: Duration = Duration::from_secs(300);

/// Looks further apart than this heard nothing in between.
pub const GAP_AT_MOST: Duration = Duration::from_secs(3);

/// How it stands with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Condition {
    /// It speaks.
    Here,
    /// It does not, for now.
    Silent,
    /// It was stopped and is to come back.
    Away,
    /// It is given up.
    Lost,
}

impl Condition {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Here, Self::Silent, Self::Away, Self::Lost];

    /// The word used in answers and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Silent => "silent",
            Self::Away => "away",
            Self::Lost => "lost",
        }
    }
}

/// What is known of one node.
#[derive(Debug, Clone)]
pub struct Sighting {
    /// Its last report.
    pub report: Report,
    /// Since when it has been silent.
    pub since: Instant,
    /// Its last word, when it is late.
    pub beat: Option<String>,
}

impl Sighting {
    /// How it stood at the last look, at `at`.
    #[must_use]
    pub fn condition(&self, at: Instant) -> Condition {
        let silence = at.saturating_duration_since(self.since);
        match self.report.stage {
            Stage::Parting if silence >= AWAY_AT_MOST => Condition::Lost,
            Stage::Parting => Condition::Away,
            Stage::Serving if silence >= LOST_AFTER => Condition::Lost,
            Stage::Serving if silence >= SILENT_AFTER => Condition::Silent,
            Stage::Serving => Condition::Here,
        }
    }
}

/// What was read so far.
#[derive(Debug, Default)]
pub struct Watch {
    seen: BTreeMap<NodeName, Sighting>,
    looked: Option<Instant>,
}

impl Watch {
    /// Takes in what the store answered at `at`.
    pub fn look(&mut self, heard: Vec<Heard>, at: Instant) {
        let before = self.looked.replace(at);
        let listened = before.filter(|before| at.saturating_duration_since(*before) <= GAP_AT_MOST);
        let mut seen = std::mem::take(&mut self.seen);
        for Heard { report, late } in heard {
            let since = match (&late, seen.remove(&report.node), listened) {
                (Some(late), Some(known), Some(before)) => silent_since(late, &known, before, at),
                _ => at,
            };
            let beat = late.map(|late| late.beat);
            self.seen.insert(report.node.clone(), Sighting { report, since, beat });
        }
    }

    /// All nodes with how they stood at the last look; none before the first one.
    pub fn all(&self) -> impl Iterator<Item = (&Sighting, Condition)> {
        let at = self.looked;
        self.seen.values().filter_map(move |seen| Some((seen, seen.condition(at?))))
    }

    /// How it stands with one.
    #[must_use]
    pub fn of(&self, node: &NodeName) -> Option<(&Sighting, Condition)> {
        let seen = self.seen.get(node)?;
        Some((seen, seen.condition(self.looked?)))
    }
}

/// Since when a node is silent that is late, by what was known of it at the look before.
fn silent_since(late: &Late, known: &Sighting, before: Instant, at: Instant) -> Instant {
    if known.beat.as_ref() == Some(&late.beat) {
        return known.since;
    }
    let by_its_clock = at.checked_sub(late.silence).unwrap_or(at);
    let not_late_then = before.checked_sub(LATE_AFTER).unwrap_or(before);
    by_its_clock.max(not_late_then)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{heard, late, report};
    use super::*;

    fn condition(watch: &Watch) -> Condition {
        watch.of(&"a".parse().unwrap()).expect("it was seen").1
    }

    /// What the store says of a node that spoke so long ago.
    fn silent_for(beat: &str, silence: Duration) -> Vec<Heard> {
        if silence < LATE_AFTER { vec![heard("a", 3)] } else { vec![late("a", beat, silence)] }
    }

    #[test]
    fn a_node_that_stops_speaking_is_silent_then_lost_and_back_with_its_next_word() {
        let (mut watch, begun) = (Watch::default(), Instant::now());
        for second in 0..=8 {
            let silence = Duration::from_secs(second);
            watch.look(silent_for("1", silence), begun + silence);
            let expected = match second {
                0..3 => Condition::Here,
                3..7 => Condition::Silent,
                _ => Condition::Lost,
            };
            assert_eq!(condition(&watch), expected, "after {second} s");
        }
        watch.look(vec![heard("a", 3)], begun + Duration::from_secs(9));
        assert_eq!(condition(&watch), Condition::Here);
    }

    #[test]
    fn a_daemon_that_was_stopped_has_time_to_come_back() {
        let (mut watch, begun) = (Watch::default(), Instant::now());
        for second in 0..=300 {
            let silence = Duration::from_secs(second);
            let mut said = silent_for("1", silence);
            said[0].report = Report { stage: Stage::Parting, ..report("a", 1) };
            watch.look(said, begun + silence);
            let expected = if second < 300 { Condition::Away } else { Condition::Lost };
            assert_eq!(condition(&watch), expected, "after {second} s");
        }
    }

    #[test]
    fn nobody_is_lost_because_the_store_was_away() {
        let (mut watch, begun) = (Watch::default(), Instant::now());
        let after =
            |seconds| (silent_for("1", Duration::from_secs(seconds)), begun + Duration::from_secs(seconds));
        for (seconds, expected, why) in [
            (0, Condition::Here, "it speaks"),
            (60, Condition::Here, "nobody could have spoken meanwhile"),
            (62, Condition::Here, "its time runs from then on"),
            (63, Condition::Silent, "its time runs from then on"),
            (67, Condition::Here, "nobody listened for too long"),
        ] {
            let (said, at) = after(seconds);
            watch.look(said, at);
            assert_eq!(condition(&watch), expected, "{why}");
        }
    }

    #[test]
    fn nobody_is_lost_because_the_stores_clock_was_set() {
        let (mut watch, begun) = (Watch::default(), Instant::now());
        watch.look(vec![heard("a", 3)], begun);
        watch.look(silent_for("1", Duration::from_secs(3600)), begun + Duration::from_secs(1));
        assert_eq!(condition(&watch), Condition::Silent, "it may be");
        watch.look(vec![heard("a", 3)], begun + Duration::from_secs(2));
        assert_eq!(condition(&watch), Condition::Here);
    }

    #[test]
    fn a_node_that_the_store_has_forgotten_is_unknown() {
        let (mut watch, begun) = (Watch::default(), Instant::now());
        watch.look(vec![heard("a", 3)], begun);
        watch.look(Vec::new(), begun + Duration::from_secs(1));
        assert!(watch.of(&"a".parse().unwrap()).is_none() && watch.all().next().is_none());
    }

    proptest! {
        #[test]
        fn a_node_that_speaks_within_its_time_is_never_lost(pauses in proptest::collection::vec(0_u64..6000, 1..60)) {
            let (mut watch, mut now) = (Watch::default(), Instant::now());
            for (beat, pause) in pauses.iter().enumerate() {
                let spoke = now;
                while now < spoke + Duration::from_millis(*pause) {
                    watch.look(silent_for(&beat.to_string(), now - spoke), now);
                    prop_assert!(condition(&watch) != Condition::Lost);
                    now += Duration::from_millis(700);
                }
            }
        }
    }
}
