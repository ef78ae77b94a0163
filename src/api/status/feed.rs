//! What a status stream says next. Pure: no clock, no socket.
//!
//! A watched instance has one [`View`], the present moment of its life, with the
//! messages that all its streams share; a stream has a [`Cursor`], what its
//! client has seen. A client that lags behind goes on with the present view, so
//! it costs no memory: what it misses is over.
//!
//! ```text
//! retry:                     once, when the stream opens
//! event: state, id: N        when the client has not seen generation N
//! event: countdown           each second, while the instance has an end
//! : heartbeat                when nothing was said for HEARTBEAT
//! event: state, retry:       expired, failed, gone: the last message
//! ```

use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};

use crate::api::dto::{CountdownEvent, StatusEvent};
use crate::id::InstanceId;
use crate::instance::event::{Happened, InstanceEvent};
use crate::instance::{Instance, State};

/// Proxies close a connection that is silent for a minute, the strictest for
/// half of one.
const HEARTBEAT: SignedDuration = SignedDuration::from_secs(15);

/// When a client is to come back after the end of its instance: it then gets a
/// 410, so there is no hurry.
const RETRY_FINAL_MS: u32 = 60_000;

/// The word for an instance that has no record any more.
const GONE: &str = "gone";

/// One change of an instance, from its record or from an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fact {
    /// The record's generation.
    generation: u64,
    /// None when nothing of it is left.
    state: Option<State>,
    expires_at: Option<Timestamp>,
}

impl Fact {
    /// The latest one wins; that nothing is left comes after everything.
    fn rank(&self) -> (u64, bool) {
        (self.generation, self.state.is_none())
    }

    fn word(&self) -> &'static str {
        self.state.map_or(GONE, State::as_str)
    }

    fn is_final(&self) -> bool {
        self.state.is_none_or(State::is_final)
    }
}

impl From<&Instance> for Fact {
    fn from(record: &Instance) -> Self {
        Self { generation: record.generation, state: Some(record.state), expires_at: record.expires_at }
    }
}

impl From<&InstanceEvent> for Fact {
    fn from(event: &InstanceEvent) -> Self {
        let state = match event.happened {
            Happened::Warming => Some(State::Warming),
            Happened::Ready => Some(State::Ready),
            Happened::Assigned | Happened::Extended | Happened::Reset | Happened::Woken => {
                Some(State::Assigned)
            }
            Happened::Expired => Some(State::Expired),
            Happened::Hibernated => Some(State::Hibernated),
            Happened::Failed => Some(State::Failed),
            Happened::Gone => None,
        };
        Self { generation: event.generation, state, expires_at: event.expires_at }
    }
}

/// What a client has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    generation: Option<u64>,
    pulse: u64,
}

impl Cursor {
    /// Of a client that comes back with the id of the last event it saw.
    pub(super) const fn resumed(generation: Option<u64>) -> Self {
        Self { generation, pulse: 0 }
    }
}

/// The next message of one stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Next {
    pub(super) message: Bytes,
    /// What the client has seen after it.
    pub(super) cursor: Cursor,
    /// Whether the stream ends with it.
    pub(super) is_last: bool,
}

/// The present moment of one instance.
#[derive(Debug)]
pub(super) struct View {
    id: InstanceId,
    /// None until its record was read.
    fact: Option<Fact>,
    seconds_left: Option<i64>,
    /// Grows with every countdown and heartbeat.
    pulse: u64,
    pulsed_at: Timestamp,
    pulse_message: Bytes,
    state_message: Bytes,
    is_stopping: bool,
}

impl View {
    /// Of an instance that nothing is known about yet.
    pub(super) const fn new(id: InstanceId, now: Timestamp) -> Self {
        Self {
            id,
            fact: None,
            seconds_left: None,
            pulse: 0,
            pulsed_at: now,
            pulse_message: Bytes::new(),
            state_message: Bytes::new(),
            is_stopping: false,
        }
    }

    /// Takes in an event; answers whether it is news.
    pub(super) fn hear(&mut self, event: &InstanceEvent, now: Timestamp) -> bool {
        let mut fact = Fact::from(event);
        // More time does not wake it.
        let known = self.fact.and_then(|known| known.state);
        if event.happened == Happened::Extended && known == Some(State::Hibernated) {
            fact.state = known;
        }
        self.learn(fact, now)
    }

    /// Takes in what is so; answers whether it is news.
    pub(super) fn learn(&mut self, fact: Fact, now: Timestamp) -> bool {
        if self.fact.is_some_and(|known| known.rank() >= fact.rank()) {
            return false;
        }
        self.fact = Some(fact);
        self.seconds_left = seconds_left(&fact, now);
        self.state_message = self.state(&fact);
        true
    }

    /// Takes in that the record is not there any more; answers whether it is
    /// news.
    pub(super) fn learn_gone(&mut self, now: Timestamp) -> bool {
        match self.fact {
            Some(fact) => self.learn(Fact { state: None, ..fact }, now),
            // Whoever opens a stream reads the record first.
            None => false,
        }
    }

    /// Takes in the time; answers whether there is something to say.
    pub(super) fn tick(&mut self, now: Timestamp) -> bool {
        let Some(fact) = self.fact else { return false };
        let left = seconds_left(&fact, now);
        if left != self.seconds_left {
            self.seconds_left = left;
            self.state_message = self.state(&fact);
            self.pulse_message = self.countdown(&fact);
        } else if now.duration_since(self.pulsed_at) >= HEARTBEAT {
            self.pulse_message = Bytes::from_static(b": heartbeat\n\n");
        } else {
            return false;
        }
        self.pulse += 1;
        self.pulsed_at = now;
        true
    }

    /// Takes in that the daemon stops: every stream ends.
    pub(super) const fn stop(&mut self) {
        self.is_stopping = true;
    }

    /// What a stream whose client has seen `cursor` says next; none when it has
    /// said everything.
    pub(super) fn next(&self, cursor: Cursor) -> Option<Next> {
        let fact = self.fact.as_ref()?;
        if fact.is_final() {
            return Some(Next { message: self.state_message.clone(), cursor, is_last: true });
        }
        if self.is_stopping {
            let message = Bytes::from_static(b": the service is being stopped\n\n");
            return Some(Next { message, cursor, is_last: true });
        }
        let cursor_after = Cursor { generation: Some(fact.generation), pulse: self.pulse };
        let message = if cursor.generation != Some(fact.generation) {
            &self.state_message
        } else if cursor.pulse != self.pulse {
            &self.pulse_message
        } else {
            return None;
        };
        Some(Next { message: message.clone(), cursor: cursor_after, is_last: false })
    }

    fn state(&self, fact: &Fact) -> Bytes {
        let retry = if fact.is_final() { format!("retry: {RETRY_FINAL_MS}\n") } else { String::new() };
        let data = StatusEvent {
            instance_id: self.id.as_str(),
            state: fact.word(),
            generation: fact.generation,
            expires_at: fact.expires_at,
            seconds_left: self.seconds_left,
        };
        message(&format!("{retry}id: {}\nevent: state\n", fact.generation), &data)
    }

    fn countdown(&self, fact: &Fact) -> Bytes {
        let data = CountdownEvent {
            instance_id: self.id.as_str(),
            expires_at: fact.expires_at,
            seconds_left: self.seconds_left,
        };
        message("event: countdown\n", &data)
    }
}

/// The first message of a stream: when to come back if it breaks.
pub(super) fn opening(retry_ms: u32) -> Bytes {
    Bytes::from(format!("retry: {retry_ms}\n\n"))
}

fn message(fields: &str, data: &impl serde::Serialize) -> Bytes {
    let data = serde_json::to_string(data).expect("numbers and texts can always be written");
    Bytes::from(format!("{fields}data: {data}\n\n"))
}

fn seconds_left(fact: &Fact, now: Timestamp) -> Option<i64> {
    fact.expires_at.map(|end| end.duration_since(now).as_secs().max(0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::NodeName;

    const END: i64 = 1_000;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn fact(generation: u64, state: State) -> Fact {
        let expires_at = (state == State::Assigned).then(|| at(END));
        Fact { generation, state: Some(state), expires_at }
    }

    fn view(generation: u64, state: State) -> View {
        let mut view = View::new("abcdefghijkl".parse().expect("an id"), at(0));
        assert!(view.learn(fact(generation, state), at(0)));
        view
    }

    /// All that the stream says now, and its cursor after it.
    fn said(view: &View, mut cursor: Cursor) -> (String, Cursor) {
        let mut text = String::new();
        while let Some(next) = view.next(cursor) {
            text.push_str(std::str::from_utf8(&next.message).expect("text"));
            cursor = next.cursor;
            if next.is_last {
                text.push_str("(end)");
                break;
            }
        }
        (text, cursor)
    }

    #[test]
    fn a_new_stream_begins_with_the_state_and_counts_down() {
        let mut view = view(3, State::Assigned);
        let (text, cursor) = said(&view, Cursor::default());
        assert_eq!(
            text,
            "id: 3\nevent: state\ndata: {\"instance_id\":\"abcdefghijkl\",\"state\":\"assigned\",\
             \"generation\":3,\"expires_at\":\"1970-01-01T00:16:40Z\",\"seconds_left\":1000}\n\n"
        );
        assert!(!view.tick(at(0)), "the same second says nothing");
        assert!(view.tick(at(1)));
        let (text, cursor) = said(&view, cursor);
        assert_eq!(
            text,
            "event: countdown\ndata: {\"instance_id\":\"abcdefghijkl\",\
             \"expires_at\":\"1970-01-01T00:16:40Z\",\"seconds_left\":999}\n\n"
        );
        assert_eq!(said(&view, cursor).0, "");
    }

    #[test]
    fn a_client_that_comes_back_is_told_the_state_only_if_it_is_another() {
        let mut view = view(3, State::Assigned);
        view.tick(at(1));
        assert!(said(&view, Cursor::resumed(Some(2))).0.starts_with("id: 3\n"));
        assert!(said(&view, Cursor::resumed(Some(9))).0.starts_with("id: 3\n"), "an id of nobody");
        let (text, _) = said(&view, Cursor::resumed(Some(3)));
        assert!(text.starts_with("event: countdown\n") && !text.contains("event: state"), "{text}");
    }

    #[test]
    fn a_change_is_told_once_and_an_older_one_never() {
        let mut view = view(3, State::Assigned);
        let (_, cursor) = said(&view, Cursor::default());
        assert!(view.learn(fact(4, State::Assigned), at(1)));
        assert!(!view.learn(fact(4, State::Assigned), at(1)) && !view.learn(fact(2, State::Ready), at(1)));
        let (text, cursor) = said(&view, cursor);
        assert!(text.starts_with("id: 4\nevent: state\n"), "{text}");
        assert_eq!(said(&view, cursor).0, "");
    }

    #[test]
    fn the_end_is_the_last_message_with_advice() {
        for state in [State::Expired, State::Failed] {
            let (text, _) = said(&view(5, state), Cursor::resumed(Some(5)));
            assert!(text.starts_with("retry: 60000\nid: 5\nevent: state\n"), "{text}");
            assert!(text.contains(state.as_str()) && text.ends_with("(end)"), "{text}");
        }
        let mut view = view(5, State::Assigned);
        let (_, cursor) = said(&view, Cursor::default());
        assert!(view.learn_gone(at(1)) && !view.learn_gone(at(2)));
        let (text, _) = said(&view, cursor);
        assert!(text.contains("\"state\":\"gone\"") && text.ends_with("(end)"), "{text}");
    }

    #[test]
    fn what_has_no_end_is_kept_alive_by_heartbeats() {
        let mut view = view(1, State::Ready);
        let (text, cursor) = said(&view, Cursor::default());
        assert!(text.contains("\"expires_at\":null,\"seconds_left\":null"), "{text}");
        assert!(!view.tick(at(14)) && view.tick(at(15)) && !view.tick(at(16)) && view.tick(at(30)));
        assert_eq!(said(&view, cursor).0, ": heartbeat\n\n", "two beats missed are one");
    }

    #[test]
    fn an_overdue_instance_stays_at_zero_until_it_is_taken_down() {
        let mut view = view(1, State::Assigned);
        assert!(view.tick(at(END)) && !view.tick(at(END + 1)) && view.tick(at(END + 15)));
        assert_eq!(said(&view, Cursor::resumed(Some(1))).0, ": heartbeat\n\n");
    }

    #[test]
    fn more_time_does_not_wake_a_sleeping_one() {
        let mut view = view(3, State::Hibernated);
        let mut record =
            Instance::warming(view.id.clone(), "shop".parse().expect("a name"), NodeName::unknown(), at(0));
        (record.generation, record.expires_at) = (4, Some(at(END)));
        assert!(view.hear(&InstanceEvent::of(&record, Happened::Extended, at(1)), at(1)));
        assert!(said(&view, Cursor::default()).0.contains("\"state\":\"hibernated\""));
        record.generation = 5;
        assert!(view.hear(&InstanceEvent::of(&record, Happened::Woken, at(2)), at(2)));
        assert!(said(&view, Cursor::default()).0.contains("\"state\":\"assigned\""));
    }

    #[test]
    fn nothing_is_said_before_the_record_was_read() {
        let mut view = View::new("abcdefghijkl".parse().expect("an id"), at(0));
        assert!(!view.tick(at(100)) && !view.learn_gone(at(100)));
        assert_eq!(said(&view, Cursor::default()).0, "");
    }

    #[test]
    fn a_stopping_daemon_ends_the_stream() {
        let mut view = view(1, State::Assigned);
        view.stop();
        assert_eq!(said(&view, Cursor::default()).0, ": the service is being stopped\n\n(end)");
    }

    proptest! {
        /// However changes and ticks come, and however late a client reads: the
        /// ids grow, and the last thing it knows is the present state.
        #[test]
        fn a_client_always_ends_up_at_the_present(
            steps in proptest::collection::vec((0_u8..3, 0_u64..20), 1..60),
        ) {
            let mut view = view(1, State::Assigned);
            let (mut cursor, mut now, mut seen) = (Cursor::default(), 0, Vec::new());
            for (what, n) in steps {
                match what {
                    0 => { view.learn(fact(n, State::Assigned), at(now)); }
                    1 => { now += 1; view.tick(at(now)); }
                    _ => {
                        let (text, after) = said(&view, cursor);
                        cursor = after;
                        seen.extend(text.lines().filter_map(|line| line.strip_prefix("id: ")?.parse::<u64>().ok()));
                    }
                }
            }
            prop_assert!(seen.is_sorted_by(|one, next| one < next), "{seen:?}");
            let (_, cursor) = said(&view, cursor);
            prop_assert_eq!(cursor.generation, view.fact.map(|fact| fact.generation));
            prop_assert_eq!(said(&view, cursor).0, "");
        }
    }
}
