//! Several hosts that serve one domain: what each says of itself to the others,
//! and what follows from it. Pure: no I/O, no clock.
//!
//! Nodes share a Valkey and nothing else. Each writes a [`Report`] there every
//! second; [`watch`] judges by what it reads who is there. What one node asks of
//! another, or passes on to it, bears a [`pass`].

pub mod pass;
pub mod watch;

use std::collections::BTreeMap;

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
    /// Another one in each report: who reads the same one twice knows that the
    /// node was silent in between.
    pub beat: String,
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
    pub(crate) fn report(node: &str, beat: &str, room: usize) -> Report {
        Report {
            version: REPORT_VERSION,
            node: node.parse().unwrap(),
            address: format!("{node}:8080"),
            program: "1.2.3".into(),
            beat: beat.into(),
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
        let mut cannot = report("cannot", "1", 99);
        cannot.goldens.clear();
        let drained = Report { drained: true, ..report("drained", "1", 99) };
        let parting = Report { stage: Stage::Parting, ..report("parting", "1", 99) };
        let nodes = [
            (report("few", "1", 2), Condition::Here),
            (report("many", "1", 7), Condition::Here),
            (report("full", "1", 0), Condition::Here),
            (report("silent", "1", 99), Condition::Silent),
            (report("lost", "1", 99), Condition::Lost),
            (cannot, Condition::Here),
            (drained, Condition::Here),
            (parting, Condition::Here),
        ];
        let nodes = nodes.iter().map(|(report, condition)| (report, *condition));
        let names: Vec<String> = makers(nodes, &golden).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["many", "few"]);
    }

    #[test]
    fn what_a_later_program_adds_to_a_report_is_passed_over() {
        let mut value = serde_json::to_value(report("a", "1", 3)).unwrap();
        value["version"] = 9.into();
        value["more"] = "of it".into();
        let read: Report = serde_json::from_value(value).unwrap();
        assert_eq!((read.version, read.room), (9, 3));
    }
}
