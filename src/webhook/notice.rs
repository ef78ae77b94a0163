//! What a receiver is told: one event of one lease.
//!
//! Pure. Holds no credential: a receiver's log may be read by many.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::{GoldenName, InstanceId, NodeName};
use crate::instance::event::{Happened, InstanceEvent};
use crate::instance::{Instance, Source, State};

/// The version this program writes.
pub const NOTICE_VERSION: u16 = 1;

/// What happened to the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Somebody got an instance.
    Acquired,
    /// Its time was over.
    Expired,
    /// It was ended before its time.
    Released,
    /// It died while it was somebody's.
    Failed,
    /// An operator tries whether receivers listen.
    Test,
}

impl Kind {
    /// The word used in bodies and headers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Acquired => "acquired",
            Self::Expired => "expired",
            Self::Released => "released",
            Self::Failed => "failed",
            Self::Test => "test",
        }
    }
}

/// One event, as it is sent; the body's fields in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The form of this body, [`NOTICE_VERSION`].
    pub version: u16,
    /// Names the event: one that comes again has the same.
    pub id: String,
    /// What happened.
    pub event: Kind,
    /// When.
    pub at: Timestamp,
    /// Which daemon says so.
    pub node: NodeName,
    /// To what; none in a test.
    pub instance: Option<About>,
}

/// The instance that an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Its name, as in the acquire answer.
    pub id: InstanceId,
    /// Its golden.
    pub golden: GoldenName,
    /// Grows with every change of the instance.
    pub generation: u64,
    /// How its visitor got it.
    pub source: Source,
    /// When its time is over, as far as it was known at the event.
    pub expires_at: Option<Timestamp>,
}

impl Notice {
    /// What receivers are told of a change, if it concerns them.
    #[must_use]
    pub fn of_event(event: &InstanceEvent) -> Option<Self> {
        let source = event.source?;
        let kind = match event.happened {
            Happened::Assigned => Kind::Acquired,
            Happened::Expired => ending(event.expires_at, event.at),
            Happened::Failed => Kind::Failed,
            Happened::Warming
            | Happened::Ready
            | Happened::Extended
            | Happened::Reset
            | Happened::Hibernated
            | Happened::Woken
            | Happened::Gone => return None,
        };
        let about = About {
            id: event.instance_id.clone(),
            golden: event.golden.clone(),
            generation: event.generation,
            source,
            expires_at: event.expires_at,
        };
        Some(Self::about(kind, about, event.at, event.node.clone()))
    }

    /// A trial.
    #[must_use]
    pub fn test(now: Timestamp, node: NodeName) -> Self {
        let id = format!("test-{}", now.as_millisecond());
        Self { version: NOTICE_VERSION, id, event: Kind::Test, at: now, node, instance: None }
    }

    fn about(kind: Kind, about: About, at: Timestamp, node: NodeName) -> Self {
        let id = format!("{}-{}-{}", about.id, about.generation, kind.as_str());
        Self { version: NOTICE_VERSION, id, event: kind, at, node, instance: Some(about) }
    }

    /// That the lease which this notice opened is over, without a word of how:
    /// nothing is left of its instance.
    #[must_use]
    pub fn closed(&self, now: Timestamp) -> Option<Self> {
        let mut about = self.instance.clone()?;
        about.generation += 1;
        Some(Self::about(ending(about.expires_at, now), about, now, self.node.clone()))
    }
}

/// What should have been told of an own instance, given whether its lease is
/// known to receivers: the daemon died between the record and the telling.
#[must_use]
pub fn missed(instance: &Instance, is_known: bool, now: Timestamp) -> Option<Notice> {
    let source = instance.source?;
    let kind = match (instance.state, is_known) {
        (State::Assigned | State::Hibernated, false) => Kind::Acquired,
        (State::Expired, true) => ending(instance.expires_at, now),
        (State::Failed, true) => Kind::Failed,
        // One that is over and not known was told of.
        _ => return None,
    };
    let at = if kind == Kind::Acquired { instance.assigned_at.unwrap_or(now) } else { now };
    let about = About {
        id: instance.id.clone(),
        golden: instance.golden.clone(),
        generation: instance.generation,
        source,
        expires_at: instance.expires_at,
    };
    Some(Notice::about(kind, about, at, instance.node.clone()))
}

fn ending(expires_at: Option<Timestamp>, now: Timestamp) -> Kind {
    if expires_at.is_some_and(|end| end <= now) { Kind::Expired } else { Kind::Released }
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan as _;

    use super::*;

    fn instance(state: State) -> Instance {
        let golden = "shop".parse().unwrap();
        let mut instance =
            Instance::warming(InstanceId::random(), golden, "here".parse().unwrap(), Timestamp::UNIX_EPOCH);
        instance.state = state;
        instance.source = Some(Source::Pool);
        instance.expires_at = Some(Timestamp::UNIX_EPOCH + 1.hour());
        instance.generation = 3;
        instance
    }

    fn told(happened: Happened, at: Timestamp) -> Option<Kind> {
        let event = InstanceEvent::of(&instance(State::Assigned), happened, at);
        Notice::of_event(&event).map(|notice| notice.event)
    }

    #[test]
    fn receivers_hear_of_leases_only() {
        let (before, after) = (Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH + 1.hour());
        assert_eq!(told(Happened::Assigned, before), Some(Kind::Acquired));
        assert_eq!(told(Happened::Expired, before), Some(Kind::Released));
        assert_eq!(told(Happened::Expired, after), Some(Kind::Expired));
        assert_eq!(told(Happened::Failed, before), Some(Kind::Failed));
        for quiet in [Happened::Warming, Happened::Ready, Happened::Extended, Happened::Gone] {
            assert_eq!(told(quiet, before), None);
        }
        let mut nobodys = instance(State::Failed);
        nobodys.source = None;
        let event = InstanceEvent::of(&nobodys, Happened::Failed, before);
        assert_eq!(Notice::of_event(&event), None, "one of the pool");
    }

    #[test]
    fn what_a_dead_daemon_did_not_tell_is_told_by_the_next() {
        let now = Timestamp::UNIX_EPOCH;
        let missed = |state, is_known| missed(&instance(state), is_known, now).map(|notice| notice.event);
        assert_eq!(missed(State::Assigned, false), Some(Kind::Acquired));
        assert_eq!(missed(State::Assigned, true), None);
        assert_eq!(missed(State::Failed, true), Some(Kind::Failed));
        assert_eq!(missed(State::Expired, true), Some(Kind::Released));
        assert_eq!(missed(State::Expired, false), None);
        assert_eq!(missed(State::Ready, false), None);
    }

    #[test]
    fn the_same_event_has_the_same_name_however_it_is_found() {
        let instance = instance(State::Assigned);
        let now = Timestamp::UNIX_EPOCH;
        let heard = Notice::of_event(&InstanceEvent::of(&instance, Happened::Assigned, now)).unwrap();
        assert_eq!(super::missed(&instance, false, now).unwrap().id, heard.id);
        let closed = heard.closed(now).unwrap();
        assert_eq!(closed.id, format!("{}-4-released", instance.id));
    }

    #[test]
    fn a_body_is_what_the_documents_say() {
        let mut instance = instance(State::Assigned);
        instance.id = "abcdefghijkl".parse().unwrap();
        let event = InstanceEvent::of(&instance, Happened::Assigned, Timestamp::UNIX_EPOCH);
        let body = serde_json::to_value(Notice::of_event(&event).unwrap()).unwrap();
        let expected = serde_json::json!({
            "version": 1,
            "id": "abcdefghijkl-3-acquired",
            "event": "acquired",
            "at": "1970-01-01T00:00:00Z",
            "node": "here",
            "instance": {
                "id": "abcdefghijkl",
                "golden": "shop",
                "generation": 3,
                "source": "pool",
                "expires_at": "1970-01-01T01:00:00Z",
            },
        });
        assert_eq!(body, expected);
    }
}
