//! Who is there, by what was read of the nodes' reports. Pure.
//!
//! ```text
//! here     its report changes
//! silent   it does not, since SILENT_AFTER
//! away     it said that it would part, and is not back yet
//! lost     silent since LOST_AFTER, or away since AWAY_AT_MOST: its instances are over
//! ```
//!
//! Silence counts only while the store answers: whoever could not read did not
//! listen. After the store was away every node has its whole time again, else the
//! first daemon that is back would take all the others for lost.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Report, Stage};
use crate::id::NodeName;

/// From then on nothing new is asked of a node: three of its reports are missing.
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
    /// Since when it has been the same one.
    pub since: Instant,
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
    pub fn look(&mut self, reports: Vec<Report>, at: Instant) {
        let listened = self.looked.is_some_and(|before| at.saturating_duration_since(before) <= GAP_AT_MOST);
        self.looked = Some(at);
        let mut before = std::mem::take(&mut self.seen);
        for report in reports {
            let since = match before.remove(&report.node) {
                Some(known) if listened && known.report.beat == report.beat => known.since,
                Some(_) | None => at,
            };
            self.seen.insert(report.node.clone(), Sighting { report, since });
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::report;
    use super::*;

    fn condition(watch: &Watch) -> Condition {
        watch.of(&"a".parse().unwrap()).expect("it was seen").1
    }

    #[test]
    fn a_node_that_stops_speaking_is_silent_then_lost_and_back_with_its_next_word() {
        let (mut watch, begun) = (Watch::default(), Instant::now());
        for second in 0..=8 {
            watch.look(vec![report("a", "1", 1)], begun + Duration::from_secs(second));
            let expected = match second {
                0..3 => Condition::Here,
                3..7 => Condition::Silent,
                _ => Condition::Lost,
            };
            assert_eq!(condition(&watch), expected, "after {second} s");
        }
        watch.look(vec![report("a", "2", 1)], begun + Duration::from_secs(9));
        assert_eq!(condition(&watch), Condition::Here);
    }

    #[test]
    fn a_daemon_that_was_stopped_has_time_to_come_back() {
        let (mut watch, begun) = (Watch::default(), Instant::now());
        let parting = Report { stage: Stage::Parting, ..report("a", "1", 1) };
        for second in 0..=300 {
            watch.look(vec![parting.clone()], begun + Duration::from_secs(second));
            let expected = if second < 300 { Condition::Away } else { Condition::Lost };
            assert_eq!(condition(&watch), expected, "after {second} s");
        }
    }

    #[test]
    fn nobody_is_lost_because_the_store_was_away() {
        let (mut watch, begun) = (Watch::default(), Instant::now());
        watch.look(vec![report("a", "1", 1)], begun);
        watch.look(vec![report("a", "1", 1)], begun + Duration::from_secs(60));
        assert_eq!(condition(&watch), Condition::Here, "nobody could have spoken meanwhile");
        watch.look(vec![report("a", "1", 1)], begun + Duration::from_secs(63));
        assert_eq!(condition(&watch), Condition::Silent, "its time runs from then on");
    }

    #[test]
    fn a_node_that_the_store_has_forgotten_is_unknown() {
        let (mut watch, begun) = (Watch::default(), Instant::now());
        watch.look(vec![report("a", "1", 1)], begun);
        watch.look(Vec::new(), begun + Duration::from_secs(1));
        assert!(watch.of(&"a".parse().unwrap()).is_none() && watch.all().next().is_none());
    }

    proptest! {
        #[test]
        fn a_node_that_speaks_within_its_time_is_never_lost(pauses in proptest::collection::vec(0_u64..6000, 1..60)) {
            let (mut watch, mut now) = (Watch::default(), Instant::now());
            for (beat, pause) in pauses.iter().enumerate() {
                let until = now + Duration::from_millis(*pause);
                while now < until {
                    watch.look(vec![report("a", &beat.to_string(), 1)], now);
                    prop_assert!(condition(&watch) != Condition::Lost);
                    now += Duration::from_millis(700);
                }
            }
        }
    }
}
