//! The port to the state: which instances there are and whose they are.
//!
//! Every operation is atomic. A change names the generation it was based on; a
//! stale writer is refused, not merged. The embedded store ([`embedded`]) is
//! one file of this host; several daemons share a networked one ([`valkey`]).
//! [`metered`] goes around either.
//!
//! Each record is its node's: the daemon that made the instance. A store is
//! opened for one node and knows which records are its *own*. Any daemon may
//! change any record (hand it out, extend it, mark it as over), only the
//! instance's own takes it down and forgets its record.
//!
//! Durability: when an operation has answered, the change survives the death
//! of the daemon at the next instant. An admission survives with the next
//! change after it, which is the record of what the client was admitted for.
//! Cancel safety: a dropped call may or may not have taken effect, never half.

#[cfg(any(test, feature = "testing"))]
pub mod conformance;
pub mod embedded;
pub mod kept;
pub mod metered;
pub mod valkey;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};

use crate::error::ErrorKind;
use crate::id::{GoldenName, InstanceId, NodeName};
use crate::instance::{Instance, State};
use crate::node::{Heard, Report};

/// How long the records of a lost node's instances are kept: as long as any could
/// have lived, so that their visitors are told what became of them.
pub const LOST_KEPT: SignedDuration = SignedDuration::from_hours(24);

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No such instance.
    #[error("instance {id} is unknown")]
    Unknown {
        /// Which.
        id: InstanceId,
    },
    /// Somebody changed the record since it was read.
    #[error("instance {id} changed meanwhile: generation {found}, expected {expected}")]
    Stale {
        /// Which.
        id: InstanceId,
        /// The writer's generation.
        expected: u64,
        /// The stored generation.
        found: u64,
    },
    /// The record cannot move to that state.
    #[error("instance {id} is {from}, it cannot become {to}", from = .from.as_str(), to = .to.as_str())]
    Denied {
        /// Which.
        id: InstanceId,
        /// Its state.
        from: State,
        /// The state asked for.
        to: State,
    },
    /// An instance of that id is there already.
    #[error("instance {id} exists already")]
    Exists {
        /// Which.
        id: InstanceId,
    },
    /// A record this program does not understand.
    #[error("record of {key:?} cannot be read")]
    Record {
        /// The record's key.
        key: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The disk below the store is full.
    #[error("no space is left for the store: {doing}")]
    Full {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store itself does not answer.
    #[error("the store does not answer: {doing}")]
    Unavailable {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown { .. } => ErrorKind::NotFound,
            Self::Stale { .. } | Self::Denied { .. } | Self::Exists { .. } => ErrorKind::Conflict,
            Self::Record { .. } => ErrorKind::Bug,
            Self::Full { .. } => ErrorKind::NoSpace,
            Self::Unavailable { .. } => ErrorKind::Unavailable,
        }
    }
}

/// Who takes an instance from the pool, and for how long.
#[derive(Debug, Clone)]
pub struct Claim {
    /// From which golden's pool.
    pub golden: GoldenName,
    /// The present time.
    pub now: Timestamp,
    /// When the visitor's time is over.
    pub expires_at: Timestamp,
    /// The client's key: a live instance claimed under it is answered again.
    pub idempotency_key: Option<String>,
}

/// What became of a claim.
#[derive(Debug, Clone)]
pub enum Claimed {
    /// A ready instance, now assigned.
    New(Instance),
    /// The live instance that this idempotency key got before.
    Again(Instance),
    /// No instance is ready.
    Empty,
}

/// One sliding window of a client's acquires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// How long it is.
    pub length: SignedDuration,
    /// Acquires in it at most.
    pub limit: u32,
}

/// What a window leaves a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Acquires in the window at most.
    pub limit: u32,
    /// How many of them are left.
    pub remaining: u32,
    /// Until the oldest counted acquire leaves the window; zero when none is
    /// counted.
    pub resets_in: SignedDuration,
}

/// Whether a client may acquire; the allowances stand in the order of the
/// windows asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It may, and is counted.
    Admitted {
        /// Takes it back.
        ticket: Ticket,
        /// With this acquire counted.
        allowances: Vec<Allowance>,
    },
    /// It may not, and is not counted.
    Refused {
        /// When every window has room again, if nobody else takes it.
        retry_after: SignedDuration,
        /// As they stand.
        allowances: Vec<Allowance>,
    },
}

/// Names one counted acquire of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket(pub String);

/// The port.
#[async_trait]
pub trait Store: Send + Sync + fmt::Debug {
    /// The node it was opened for.
    fn node(&self) -> &NodeName;

    /// Adds a record; it gets generation 1. With an idempotency key the record
    /// is found by [`Store::claim`] under that key once it is assigned.
    async fn insert(&self, instance: Instance) -> Result<Instance, StoreError>;

    /// Reads a record.
    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, StoreError>;

    /// Replaces a record if its generation is still `instance.generation` and
    /// its state may change so; answers it with the next generation.
    async fn update(&self, instance: Instance) -> Result<Instance, StoreError>;

    /// Takes the golden's oldest ready instance (by `created_at`), of the own
    /// node first, then of any, in O(log n) at most; the same instance is never
    /// claimed twice. A key is good for as long as its instance is somebody's
    /// and not due at `claim.now`.
    async fn claim(&self, claim: Claim) -> Result<Claimed, StoreError>;

    /// Reads the instance that [`Store::claim`] would answer again under that
    /// key.
    async fn held(&self, key: &str, now: Timestamp) -> Result<Option<Instance>, StoreError> {
        let all = self.list().await?;
        let held = all.into_iter().find(|instance| instance.is_held_under(key, now));
        Ok(held.map(Arc::unwrap_or_clone))
    }

    /// Forgets a record; absent is fine.
    async fn remove(&self, id: &InstanceId) -> Result<(), StoreError>;

    /// Whether an instance was somebody's and was forgotten within a day, at whichever
    /// node, as far as that is remembered: so many ended ones, and no more. A store of one
    /// host remembers none; its routes do ([`crate::route`]).
    async fn has_ended(&self, _id: &InstanceId) -> Result<bool, StoreError> {
        Ok(false)
    }

    /// Writes a record that the store has lost, as it is: there is none, or one
    /// of an earlier generation. One that is as late is refused as
    /// [`StoreError::Stale`].
    async fn write_again(&self, instance: Instance) -> Result<(), StoreError>;

    /// Reads all records of all nodes, in no order, each as it is at some moment of the
    /// call. Shared ones: who reads thousands keeps nobody waiting for their copies.
    async fn list(&self) -> Result<Vec<Arc<Instance>>, StoreError>;

    /// Reads the node's own records, as [`Store::list`] does. To be called every second or
    /// so: it is also how other daemons see that this one lives.
    async fn own(&self) -> Result<Vec<Arc<Instance>>, StoreError>;

    /// Reads up to `limit` own records whose `expires_at` is not after `now` and
    /// whose state is not final, the earliest first.
    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Instance>, StoreError>;

    /// Counts a golden's own records by state, in O(states).
    async fn counts(&self, golden: &GoldenName) -> Result<BTreeMap<State, usize>, StoreError>;

    /// Counts an acquire of `client` in all windows, or in none when one is
    /// full; exact at any `now`, also under concurrency. What was counted at
    /// `now - length` has just left the window.
    async fn admit(&self, client: &str, windows: &[Window], now: Timestamp) -> Result<Admission, StoreError>;

    /// Takes back a counted acquire that came to nothing; absent is fine.
    async fn forgive(&self, client: &str, ticket: &Ticket) -> Result<(), StoreError>;

    /// Takes back all that was counted of a client; absent is fine.
    async fn absolve(&self, client: &str) -> Result<(), StoreError>;

    /// Says what this node has to say of itself to the others, in place of what it
    /// said before; none takes that back. `beat` is another word each time. Ready
    /// instances of a node that has announced itself are claimed by others only
    /// while it speaks and is not closed. A store of one host has nobody who listens.
    async fn announce(&self, _report: Option<&Report>, _beat: &str) -> Result<(), StoreError> {
        Ok(())
    }

    /// Says that this node speaks and that its report is what it was; false when the
    /// store has none: then it is to be announced.
    async fn beat(&self, _beat: &str) -> Result<bool, StoreError> {
        Ok(true)
    }

    /// Reads what all nodes have announced and who of them is late, in no order.
    async fn nodes(&self) -> Result<Vec<Heard>, StoreError> {
        Ok(Vec::new())
    }

    /// Marks up to `limit` instances of a node as failed and lost, if its last
    /// beat is still that one; answers them. None is left when it
    /// answers none. Of a node that has been lost for [`LOST_KEPT`] everything is
    /// forgotten.
    async fn lose(
        &self,
        _node: &NodeName,
        _beat: &str,
        _now: Timestamp,
        _limit: usize,
    ) -> Result<Vec<Instance>, StoreError> {
        Ok(Vec::new())
    }

    /// Answers when the store works.
    async fn ping(&self) -> Result<(), StoreError>;
}
