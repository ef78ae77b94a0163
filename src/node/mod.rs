//! Several hosts that serve one domain: what each says of itself to the others,
//! and what follows from it. Pure: no I/O, no clock.
//!
//! Nodes share a Valkey and nothing else. Each says every second there that it is
//! there, and what has changed of its [`Report`]; [`watch`] judges by what it reads who
//! is there. What one node asks of another, or passes on to it, bears a [`pass`];
//! what it leaves for all where others may write, too, a [`seal`].

pub mod pass;
pub mod seal;
pub mod watch;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::watch::Condition;
use crate::id::{GoldenName, NodeName};

/// The version this program writes into reports. A later program's is read as far
/// as it is understood: while nodes are upgraded one after the other, both are
/// there.
pub const REPORT_VERSION: u16 = 1;

/// Whether a node means to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It serves.
    Serving,
    /// Its daemon was stopped and is to come back: an upgrade, a restart.
    Parting,
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_VERSION`] when written by this program.
    pub version: u16,
    /// Who.
    pub node: NodeName,
    /// NODE_ADDRESS: where its daemon is reached.
    pub address: String,
    /// Its program's version.
    pub program: String,
    /// Whether it means to stay.
    pub stage: Stage,
    /// Whether an operator has drained it.
    pub drained: bool,
    /// How many more instances it may hold.
    pub room: usize,
    /// How many it may hold.
    pub max_instances: usize,
    /// What it serves.
    pub goldens: BTreeMap<GoldenName, GoldenReport>,
}

impl Report {
    /// Whether its ready instances are for nobody now.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.drained || self.stage == Stage::Parting
    }

    /// What decides whether this node is asked for something.
    fn matters(&self) -> Self {
        let mut matters = self.clone();
        matters.room = self.room.min(1);
        matters.goldens.values_mut().for_each(|golden| golden.ready = 0);
        matters
    }
}

/// A node that has not said that it is there for longer than it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Late {
    /// The last word it said: another one means that it spoke in between.
    pub beat: String,
    /// For how long it has been silent, by the store's clock.
    pub silence: Duration,
}

/// What is heard of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Its last report.
    pub report: Report,
    /// Whether it is late.
    pub late: Option<Late>,
}

/// A report is said again after this, whatever was said: the store may have lost it.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// A whole report is read by every node. Up to so many nodes tell every change of a
/// number at once; more wait, so that all of them together tell so many in a second.
const TOLD_A_SECOND: usize = 50;

/// Whether a report is to be said, or only that this node is there. `said` is the last
/// one and how long ago it was; so many nodes read it.
#[must_use]
pub fn is_news(said: Option<(&Report, Duration)>, now: &Report, nodes: usize) -> bool {
    let Some((said, ago)) = said else { return true };
    let pause = Duration::from_secs((nodes / TOLD_A_SECOND) as u64);
    ago >= SAY_AGAIN || said.matters() != now.matters() || (said != now && ago >= pause)
}

/// What a node says of one golden.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoldenReport {
    /// Instances that are ready there.
    pub ready: usize,
    /// Whether it can make one now.
    pub makes: bool,
}

/// The nodes that can make an instance of a golden, the one with the most room
/// first.
#[must_use]
pub fn makers<'a>(
    nodes: impl IntoIterator<Item = (&'a Report, Condition)>,
    golden: &GoldenName,
) -> Vec<NodeName> {
    let fit = |report: &Report| {
        !report.is_closed() && report.room > 0 && report.goldens.get(golden).is_some_and(|it| it.makes)
    };
    let nodes = nodes.into_iter().filter(|(report, condition)| *condition == Condition::Here && fit(report));
    let mut found: Vec<&Report> = nodes.map(|(report, _)| report).collect();
    found.sort_by(|one, other| other.room.cmp(&one.room).then_with(|| one.node.cmp(&other.node)));
    found.into_iter().map(|report| report.node.clone()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What a node that can make a `shop` says.
    pub(crate) fn report(node: &str, room: usize) -> Report {
        Report {
            version: REPORT_VERSION,
            node: node.parse().unwrap(),
            address: format!("{node}:8080"),
            program: "1.2.3".into(),
            stage: Stage::Serving,
            drained: false,
            room,
            max_instances: 64,
            goldens: [("shop".parse().unwrap(), GoldenReport { ready: 0, makes: true })].into(),
        }
    }

    #[test]
    fn the_node_with_the_most_room_is_asked_first_and_those_that_cannot_not_at_all() {
        let golden: GoldenName = "shop".parse().unwrap();
        let mut cannot = report("cannot", 99);
        cannot.goldens.clear();
        let drained = Report { drained: true, ..report("drained", 99) };
        let parting = Report { stage: Stage::Parting, ..report("parting", 99) };
        let nodes = [
            (report("few", 2), Condition::Here),
            (report("many", 7), Condition::Here),
            (report("full", 0), Condition::Here),
            (report("silent", 99), Condition::Silent),
            (report("lost", 99), Condition::Lost),
            (cannot, Condition::Here),
            (drained, Condition::Here),
            (parting, Condition::Here),
        ];
        let nodes = nodes.iter().map(|(report, condition)| (report, *condition));
        let names: Vec<String> = makers(nodes, &golden).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["many", "few"]);
    }

    /// A node that speaks.
    pub(crate) fn heard(node: &str, room: usize) -> Heard {
        Heard { report: report(node, room), late: None }
    }

    /// A node that has not spoken for so long.
    pub(crate) fn late(node: &str, beat: &str, silence: Duration) -> Heard {
        Heard { late: Some(Late { beat: beat.into(), silence }), ..heard(node, 3) }
    }

    #[test]
    fn numbers_wait_where_there_are_many_nodes_and_what_matters_does_not() {
        let said = report("a", 5);
        let news = |now: &Report, ago, nodes| {
            let ago = Duration::from_secs(ago);
            is_news(Some((&said, ago)), now, nodes)
        };
        assert!(is_news(None, &said, 3));
        assert!(!news(&said, 59, 3) && news(&said, 60, 3), "it is said again");
        let fewer = report("a", 4);
        assert!(news(&fewer, 0, 49), "few nodes are told at once");
        assert!(!news(&fewer, 19, 1000) && news(&fewer, 20, 1000));
        for now in [report("a", 0), Report { drained: true, ..said.clone() }] {
            assert!(news(&now, 0, 1000), "{now:?}");
        }
    }

    #[test]
    fn what_a_later_program_adds_to_a_report_is_passed_over() {
        let mut value = serde_json::to_value(report("a", 3)).unwrap();
        value["version"] = 9.into();
        value["more"] = "of it".into();
        let read: Report = serde_json::from_value(value).unwrap();
        assert_eq!((read.version, read.room), (9, 3));
    }
}
