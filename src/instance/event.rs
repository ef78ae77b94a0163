//! What is told about a change of an instance, to whoever listens: status
//! streams, subscribers on the message bus.
//!
//! Pure vocabulary. Holds no credential and no address: a listener may be
//! anybody who may know that the instance exists.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Instance, Source, State};
use crate::id::{GoldenName, InstanceId, NodeName};

/// The version this program writes into events.
pub const EVENT_VERSION: u16 = 1;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Happened {
    /// Its making began.
    Warming,
    /// It waits for a visitor.
    Ready,
    /// It is somebody's from now on.
    Assigned,
    /// Its time was moved further.
    Extended,
    /// It is its visitor's still, and as it was when it was handed out.
    Reset,
    /// Its time is over, or it was released.
    Expired,
    /// It sleeps; its visitor may wake it.
    Hibernated,
    /// It slept, and is its visitor's as before.
    Woken,
    /// It died, or could not be made.
    Failed,
    /// Nothing of it is left.
    Gone,
}

impl Happened {
    /// The word used in events, subjects and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Warming => "warming",
            Self::Ready => "ready",
            Self::Assigned => "assigned",
            Self::Extended => "extended",
            Self::Reset => "reset",
            Self::Expired => "expired",
            Self::Hibernated => "hibernated",
            Self::Woken => "woken",
            Self::Failed => "failed",
            Self::Gone => "gone",
        }
    }
}

impl From<State> for Happened {
    fn from(state: State) -> Self {
        match state {
            State::Warming => Self::Warming,
            State::Ready => Self::Ready,
            State::Assigned => Self::Assigned,
            State::Expired => Self::Expired,
            State::Hibernated => Self::Hibernated,
            State::Failed => Self::Failed,
        }
    }
}

/// One change of one instance. `(instance_id, generation, happened)` names it:
/// a listener that saw it before may drop it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceEvent {
    /// The form of this event, [`EVENT_VERSION`] when written by this program.
    pub version: u16,
    /// Which instance.
    pub instance_id: InstanceId,
    /// Its golden.
    pub golden: GoldenName,
    /// The daemon that made it, and alone may end it.
    #[serde(default = "NodeName::unknown")]
    pub node: NodeName,
    /// What happened.
    pub happened: Happened,
    /// The record's generation after it; a later change has a higher one.
    pub generation: u64,
    /// When.
    pub at: Timestamp,
    /// Restored or booted.
    pub made_by: Source,
    /// How its visitor got it; none before that.
    pub source: Option<Source>,
    /// When its time is over; none before it is somebody's.
    pub expires_at: Option<Timestamp>,
}

impl InstanceEvent {
    /// Tells what happened to `instance`, whose record is the one after it.
    #[must_use]
    pub fn of(instance: &Instance, happened: Happened, at: Timestamp) -> Self {
        Self {
            version: EVENT_VERSION,
            instance_id: instance.id.clone(),
            golden: instance.golden.clone(),
            node: instance.node.clone(),
            happened,
            generation: instance.generation,
            at,
            made_by: instance.made_by,
            source: instance.source,
            expires_at: instance.expires_at,
        }
    }
}
