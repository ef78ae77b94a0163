//! What the last reading knew, so that the next one fetches only what has changed.
//! Pure.
//!
//! Two things are read every second by every daemon: its own records ([`Own`]) and
//! what the nodes say of themselves ([`Nodes`]). Each is read whole at the start, when
//! the server does not go on where the last reading ended (it was emptied, or has gone
//! back in time, or its answer was lost), and once in [`WHOLE_AFTER`], whatever was
//! missed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::id::{InstanceId, NodeName};
use crate::instance::Instance;
use crate::node::{Heard, Late, Report};

/// When everything is read again, at the earliest; at the latest half as much later, so
/// that daemons which were started together do not read together. Only what a program
/// of before this changed, or a person in the server, waits for it.
const WHOLE_AFTER: Duration = Duration::from_secs(240);

/// When it is read whole the next time.
fn next_whole(now: Instant) -> Instant {
    now + WHOLE_AFTER.mul_f64(rand::random_range(1.0..1.5))
}

/// Why an answer cannot be read.
#[derive(Debug)]
pub(super) enum Unread<E> {
    /// It is of another form.
    Form,
    /// A record in it is.
    Record(E),
}

impl<E> From<E> for Unread<E> {
    fn from(error: E) -> Self {
        Self::Record(error)
    }
}

/// The marks of a reading: of the one before, and what its own begins with.
#[derive(Debug)]
pub(super) struct Marks {
    /// Empty when everything is wanted.
    pub(super) before: String,
    pub(super) this: String,
}

/// The own records.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// The mark of the last reading; none when its answer was not heard.
    mark: Option<String>,
    whole_at: Option<Instant>,
    records: HashMap<InstanceId, Arc<Instance>>,
}

impl Own {
    /// Begins a reading; whoever does not end it reads everything the next time.
    pub(super) fn begin(&mut self, now: Instant) -> Marks {
        let before = self.mark.take().filter(|_| self.whole_at.is_some_and(|at| now < at));
        Marks { before: before.unwrap_or_default(), this: InstanceId::random().to_string() }
    }

    /// Takes in what was answered.
    pub(super) fn end<E>(
        &mut self,
        answer: &[String],
        now: Instant,
        read: impl Fn(&str) -> Result<Instance, E>,
    ) -> Result<(), Unread<E>> {
        let [word, mark, rest @ ..] = answer else { return Err(Unread::Form) };
        match word.as_str() {
            "all" => {
                let all =
                    rest.iter().map(|json| read(json).map(|record| (record.id.clone(), Arc::new(record))));
                self.records = all.collect::<Result<_, _>>()?;
                self.whole_at = Some(next_whole(now));
            }
            "changes" => {
                for change in rest.chunks(2) {
                    let [id, json] = change else { return Err(Unread::Form) };
                    let id: InstanceId = id.parse().map_err(|_| Unread::Form)?;
                    match json.is_empty() {
                        true => self.records.remove(&id),
                        false => self.records.insert(id, Arc::new(read(json)?)),
                    };
                }
            }
            _ => return Err(Unread::Form),
        }
        self.mark = Some(mark.clone());
        Ok(())
    }

    /// All of them.
    pub(super) fn records(&self) -> Vec<Arc<Instance>> {
        self.records.values().cloned().collect()
    }
}

/// An answer about the nodes that is of another form.
#[derive(Debug)]
pub(super) struct Misread;

/// What the nodes say of themselves.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    /// The last report's number; empty when all are wanted.
    number: String,
    whole_at: Option<Instant>,
    /// None: one that a later program has changed beyond understanding is not there for
    /// this one, and the others are.
    reports: BTreeMap<String, Option<Report>>,
}

impl Nodes {
    /// After which number it is read; empty for all.
    pub(super) fn since(&mut self, now: Instant) -> &str {
        if self.whole_at.is_none_or(|at| now >= at) {
            self.number.clear();
        }
        &self.number
    }

    /// Takes in an answer of nodes.lua; none when everything is to be read now, since
    /// what is known and what is there are not the same nodes.
    pub(super) fn take(&mut self, answer: &[String], now: Instant) -> Result<Option<Vec<Heard>>, Misread> {
        let [number, there, changed, rest @ ..] = answer else { return Err(Misread) };
        let count = |text: &String| text.parse::<usize>().map_err(|_| Misread);
        let (there, changed) = (count(there)?, count(changed)?);
        let (reports, late) = rest.split_at_checked(changed).ok_or(Misread)?;
        if self.number.is_empty() {
            self.reports.clear();
            self.whole_at = Some(next_whole(now));
        } else if is_before(number, &self.number) {
            self.number.clear();
            return Ok(None);
        }
        for json in reports {
            let value: serde_json::Value = serde_json::from_str(json).map_err(|_| Misread)?;
            let node = value["node"].as_str().ok_or(Misread)?.to_owned();
            self.reports.insert(node, serde_json::from_value(value).ok());
        }
        if self.reports.len() != there && !self.number.is_empty() {
            self.number.clear();
            return Ok(None);
        }
        self.number.clone_from(number);
        let mut late = late_ones(late)?;
        let heard = self.reports.values().flatten();
        Ok(Some(heard.map(|it| Heard { report: it.clone(), late: late.remove(&it.node) }).collect()))
    }
}

/// Whether a number is a smaller one: they are too large for some, not for this one.
fn is_before(number: &str, other: &str) -> bool {
    let value = |text: &str| text.parse::<u64>().unwrap_or_default();
    value(number) < value(other)
}

fn late_ones(texts: &[String]) -> Result<HashMap<NodeName, Late>, Misread> {
    let one = |three: &[String]| {
        let [node, beat, silence] = three else { return Err(Misread) };
        let micros = silence.parse().map_err(|_| Misread)?;
        // A name that is none has no report either.
        let Ok(node) = node.parse::<NodeName>() else { return Ok(None) };
        Ok(Some((node, Late { beat: beat.clone(), silence: Duration::from_micros(micros) })))
    };
    texts.chunks(3).filter_map(|three| one(three).transpose()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::State;
    use crate::node::tests::report;
    use crate::store::conformance::{golden, instance, node};

    fn read(json: &str) -> Result<Instance, String> {
        Instance::from_record(json.as_bytes(), &node("here")).map_err(|error| error.to_string())
    }

    fn json(record: &Instance) -> String {
        record.to_record().unwrap()
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn own_records_are_read_whole_until_an_answer_was_heard() {
        let (mut own, now) = (Own::default(), Instant::now());
        assert_eq!(own.begin(now).before, "");
        assert_eq!(own.begin(now).before, "", "the first answer was not heard");
        own.end(&texts(&["all", "m1"]), now, read).unwrap();
        assert_eq!(own.begin(now).before, "m1");
        assert!(own.end(&texts(&["all", "m2", "{"]), now, read).is_err());
        assert_eq!(own.begin(now).before, "", "what was answered is not known");
    }

    #[test]
    fn changes_are_laid_over_what_is_known() {
        let (mut own, now) = (Own::default(), Instant::now());
        let of = |second| instance(&golden("shop"), State::Ready, second);
        let (stays, goes, comes) = (of(1), of(2), of(3));
        own.end(&texts(&["all", "m1", &json(&stays), &json(&goes)]), now, read).unwrap();
        let changes = ["changes", "m2", goes.id.as_str(), "", comes.id.as_str(), &json(&comes)];
        own.end(&texts(&changes), now, read).unwrap();
        let mut ids: Vec<InstanceId> = own.records().iter().map(|record| record.id.clone()).collect();
        let mut expected = [stays.id, comes.id];
        ids.sort();
        expected.sort();
        assert_eq!(ids, expected);
        assert!(own.end(&texts(&["changes", "m3", "x"]), now, read).is_err());
    }

    #[test]
    fn whatever_was_missed_everything_is_read_after_some_minutes() {
        let (mut own, mut nodes, now) = (Own::default(), Nodes::default(), Instant::now());
        own.end(&texts(&["all", "m1"]), now, read).unwrap();
        assert_eq!(nodes.since(now), "");
        nodes.take(&texts(&["7", "0", "0"]), now).unwrap().unwrap();
        let soon = now + WHOLE_AFTER - Duration::from_secs(1);
        assert_eq!(nodes.since(soon), "7");
        assert_eq!(own.begin(soon).before, "m1");
        own.end(&texts(&["changes", "m2"]), soon, read).unwrap();
        let later = now + WHOLE_AFTER.mul_f64(1.5);
        assert_eq!((nodes.since(later), own.begin(later).before.as_str()), ("", ""));
    }

    #[test]
    fn reports_are_laid_over_what_is_known_and_the_late_ones_are_told() {
        let (mut nodes, now) = (Nodes::default(), Instant::now());
        let of = |name: &str, room| serde_json::to_string(&report(name, room)).unwrap();
        assert_eq!(nodes.since(now), "");
        let later = r#"{"node": "later", "version": 9}"#;
        let answer = ["7", "3", "3", &of("a", 1), &of("b", 1), later];
        let heard = nodes.take(&texts(&answer), now).unwrap().unwrap();
        assert_eq!(heard.len(), 2, "what is not understood is passed over");
        assert_eq!(nodes.since(now), "7");
        let answer = ["9", "3", "1", &of("b", 5), "a", "beat", "2500000"];
        let heard = nodes.take(&texts(&answer), now).unwrap().unwrap();
        assert_eq!(heard[0].late.as_ref().unwrap().silence, Duration::from_millis(2500));
        assert_eq!((heard[1].report.room, heard[1].late.is_none()), (5, true));
        assert_eq!(nodes.since(now), "9");
        assert!(nodes.take(&texts(&["9", "2", "0"]), now).unwrap().is_none(), "one is forgotten");
        assert_eq!(nodes.since(now), "");
        assert_eq!(nodes.take(&texts(&["9", "1", "1", &of("b", 5)]), now).unwrap().unwrap().len(), 1);
        assert!(nodes.take(&texts(&["8", "1", "0"]), now).unwrap().is_none(), "it has gone back");
        assert!(nodes.take(&texts(&["9", "1"]), now).is_err());
    }
}
