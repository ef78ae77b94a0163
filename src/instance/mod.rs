//! The instance: one shop of one visitor, as the store keeps it.
//!
//! Owned by the store; changed only through its atomic operations. Pure
//! vocabulary: no I/O, no clock.
//!
//! ```text
//!            restore ok          acquire            ttl over / release
//! warming ------------> ready ------------> assigned ------------> expired -> (gone)
//!    |                    |                    |
//!    +--------------------+----- died ---------+----------------> failed  -> (gone)
//! ```
//!
//! Invariants: `ready -> assigned` happens once in an instance's life, in one
//! atomic store operation, so nobody gets an instance that was somebody's
//! before; `generation` grows by one with every stored change; an `assigned`
//! instance has `expires_at`; its id and address stay the same when what runs for
//! it is made anew, in another slot.

pub mod event;
mod record;
mod state;
pub mod trace;

use std::net::Ipv4Addr;

use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize, Serializer};

pub use self::record::{RECORD_VERSION, RecordError};
pub use self::state::{State, Transition};
use crate::id::{GoldenName, InstanceId, NodeName, SnapshotId};

/// How a shop came to be, as the acquire answer tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Claimed ready from the pool.
    Pool,
    /// Restored from the snapshot while the client waited.
    Restore,
    /// Booted from the image while the client waited: the visible fallback.
    Cold,
}

impl Source {
    /// All of them, the best one first.
    pub const ALL: [Self; 3] = [Self::Pool, Self::Restore, Self::Cold];

    /// The word used in answers, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pool => "pool",
            Self::Restore => "restore",
            Self::Cold => "cold",
        }
    }
}

/// Which driver made a container and therefore has to end it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// CRIU driven directly on a prepared snapshot.
    Criu,
    /// A container run by Podman from the golden image.
    Podman,
    /// A container run by a Docker engine.
    Docker,
}

impl EngineKind {
    /// The word used in answers and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Criu => "criu",
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }
}

/// What is needed to reach, watch and end a running container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The driver that made it.
    pub engine: EngineKind,
    /// Its first process, as the host sees it.
    pub pid: i32,
    /// That process's start time in clock ticks since boot: with `pid` it
    /// names one process for ever, which `pid` alone does not.
    pub start_ticks: u64,
    /// Where its web server listens.
    pub address: Ipv4Addr,
    /// The web server's port.
    pub port: u16,
}

/// What the visitor is given to get in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Access {
    /// The shop's front page.
    pub url: String,
    /// The back office.
    pub admin_url: String,
    /// The back office's login name.
    pub admin_email: String,
    /// The back office's password; stored in the 0600 store, never logged.
    #[serde(serialize_with = "expose")]
    pub admin_password: SecretString,
    /// What login links are made of; none when the golden takes none.
    #[serde(default)]
    pub one_click: Option<OneClick>,
}

/// What links are made of that sign the administrator in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OneClick {
    /// Where they lead, with `{token}` in the token's place.
    pub url: String,
    /// Signs the tokens; known to this instance and to the daemon.
    #[serde(serialize_with = "expose")]
    pub key: SecretString,
}

fn expose<S: Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secrecy::ExposeSecret::expose_secret(secret))
}

/// One instance, as stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Instance {
    /// The record's version, [`RECORD_VERSION`] when written by this program.
    pub version: u16,
    /// Grows by one with every stored change.
    pub generation: u64,
    /// Its name.
    pub id: InstanceId,
    /// Which golden it is a copy of.
    pub golden: GoldenName,
    /// The daemon that made it, and alone may end it.
    pub node: NodeName,
    /// The snapshot it was restored from; none after a cold start.
    pub snapshot: Option<SnapshotId>,
    /// Where it stands in its life.
    pub state: State,
    /// How it was made: restored or booted.
    pub made_by: Source,
    /// How its visitor got it; set at hand-over, so that a repeated request is
    /// answered with the same word.
    pub source: Option<Source>,
    /// When its making began.
    pub created_at: Timestamp,
    /// When it was handed out.
    pub assigned_at: Option<Timestamp>,
    /// When its time is over; set at hand-over.
    pub expires_at: Option<Timestamp>,
    /// Its processes; none while it is being made.
    pub container: Option<Container>,
    /// What its things on the host are named, since version 3; none: as itself.
    /// One that was made anew has a slot of another name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<InstanceId>,
    /// Its address and credentials; none while it is being made.
    pub access: Option<Access>,
    /// The client's key: the same key gets the same instance.
    pub idempotency_key: Option<String>,
    /// When its node was given up, if it failed with it; programs that know of no
    /// nodes pass over it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_at: Option<Timestamp>,
}

impl Instance {
    /// A new record in `warming`, before anything of it exists.
    #[must_use]
    pub fn warming(id: InstanceId, golden: GoldenName, node: NodeName, now: Timestamp) -> Self {
        Self {
            version: RECORD_VERSION,
            generation: 0,
            id,
            golden,
            node,
            snapshot: None,
            state: State::Warming,
            made_by: Source::Restore,
            source: None,
            created_at: now,
            assigned_at: None,
            expires_at: None,
            container: None,
            slot: None,
            access: None,
            idempotency_key: None,
            lost_at: None,
        }
    }

    /// The same, asleep: nothing of it is on the host but what is kept.
    #[must_use]
    pub fn asleep(self) -> Self {
        Self { state: State::Hibernated, container: None, slot: None, ..self }
    }

    /// What its things on the host are named.
    #[must_use]
    pub fn slot(&self) -> &InstanceId {
        self.slot.as_ref().unwrap_or(&self.id)
    }

    /// Whether things of that name on the host are its: one that sleeps has none.
    #[must_use]
    pub fn is_in(&self, slot: &InstanceId) -> bool {
        self.state != State::Hibernated && self.slot() == slot
    }

    /// Whether it is the live instance of the client with that key.
    #[must_use]
    pub fn is_held_under(&self, key: &str, now: Timestamp) -> bool {
        matches!(self.state, State::Assigned | State::Hibernated)
            && self.idempotency_key.as_deref() == Some(key)
            && !self.is_due_at(now)
    }

    /// Whether its time is over at `now`.
    #[must_use]
    pub fn is_due_at(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|deadline| deadline <= now)
    }
}
