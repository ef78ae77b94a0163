//! Why provisioning refused, one enum an operation.

use jiff::{SignedDuration, Timestamp};

pub use super::change::ChangeError;
use super::limits::{Reached, Standing, seconds};
use super::ttl::TtlError;
use crate::engine::{DestroyError, FreezeError, LaunchError};
use crate::error::{Chain, ErrorKind};
use crate::golden::similar::did_you_mean;
use crate::id::{GoldenName, InstanceId, NodeName};
use crate::instance::{EngineKind, State};
use crate::route::RouteError;
use crate::store::StoreError;

/// An instance could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The host holds as many as it may.
    #[error("all {max} places of this host are taken")]
    Full {
        /// MAX_INSTANCES.
        max: usize,
    },
    /// The engine could not, or the clone was not fit.
    #[error(transparent)]
    Launch(LaunchError),
    /// It could not be written down, and was thrown away.
    #[error(transparent)]
    Store(StoreError),
}

impl MakeError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Full { .. } => ErrorKind::Exhausted,
            Self::Launch(error) => error.kind,
            Self::Store(error) => error.kind(),
        }
    }
}

/// An instance could not be taken down completely; its record is kept.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// No driver of this daemon made it.
    #[error("no driver is there to take instance {id} down: it runs under {engine:?}")]
    NoDriver {
        /// Which.
        id: InstanceId,
        /// What made it; none when it never ran.
        engine: Option<EngineKind>,
    },
    /// The driver left something behind.
    #[error(transparent)]
    Destroy(DestroyError),
    /// What was kept of it while it slept.
    #[error("cannot remove what is kept of instance {id}")]
    Frozen {
        /// Which.
        id: InstanceId,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The router may still lead to it.
    #[error("cannot remove the route of instance {id}")]
    Route {
        /// Which.
        id: InstanceId,
        /// Why.
        #[source]
        source: RouteError,
    },
    /// The store could not be asked or told.
    #[error("cannot change the record of instance {id}")]
    Store {
        /// Which.
        id: InstanceId,
        /// Why.
        #[source]
        source: StoreError,
    },
}

impl EndError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            // Not before the daemon is started with other settings.
            Self::NoDriver { .. } => ErrorKind::Incompatible,
            Self::Destroy(_) | Self::Route { .. } | Self::Frozen { .. } => ErrorKind::Unavailable,
            Self::Store { source, .. } => source.kind(),
        }
    }
}

/// A client did not get an instance.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// No such golden is served.
    #[error("golden {golden:?} is unknown; there are: {}{}", .known.join(", "), did_you_mean(.golden, .known))]
    UnknownGolden {
        /// What was asked for.
        golden: String,
        /// What is served.
        known: Vec<String>,
    },
    /// The time asked for is not accepted.
    #[error(transparent)]
    Ttl(#[from] TtlError),
    /// The key is empty, too long or not printable.
    #[error("the idempotency key is not 1 to 255 printable ASCII characters")]
    Key,
    /// The key belongs to an instance of another golden.
    #[error("this idempotency key was used for golden {golden}")]
    KeyReused {
        /// That instance's golden.
        golden: GoldenName,
    },
    /// The client has had as many as it may.
    #[error(
        "this client has had as many instances as it may, {}: the next one in {:#}",
        Reached(.standings),
        SignedDuration::from_secs(seconds(*.retry_after).into())
    )]
    Limited {
        /// Until it may have the next one.
        retry_after: SignedDuration,
        /// How it stands in each window.
        standings: Vec<Standing>,
    },
    /// Nothing is ready and there is no way to make one.
    #[error("no instance of {golden} is ready, and it cannot be made: {reason}")]
    NoWay {
        /// Of which golden.
        golden: GoldenName,
        /// Why it cannot be restored, and that no cold start is allowed.
        reason: String,
    },
    /// What the shops stand on does not answer.
    #[error("the shops of {golden} need the shared {dependency}, which is down: {reason}")]
    Outage {
        /// Of which golden.
        golden: GoldenName,
        /// Its name in `/health`.
        dependency: &'static str,
        /// Why it does not answer.
        reason: String,
    },
    /// Nothing was ready and making one failed.
    #[error("no instance of {golden} was ready and making one failed")]
    Make {
        /// Of which golden.
        golden: GoldenName,
        /// Why.
        #[source]
        source: MakeError,
    },
    /// Nothing was ready, the restore failed and so did the cold start.
    #[error("no instance of {golden} was ready, and neither a restore nor a cold start worked (restore: {})", Chain(.restore))]
    Neither {
        /// Of which golden.
        golden: GoldenName,
        /// Why the restore failed.
        restore: Box<MakeError>,
        /// Why the cold start failed.
        #[source]
        cold: Box<MakeError>,
    },
    /// The store refused.
    #[error("cannot claim an instance")]
    Store(#[source] StoreError),
    /// So many wait already that this one would wait too long.
    #[error(
        "no instance of {golden} is ready, and so many wait for one that it would take {:.0} s to begin with another \
         (ACQUIRE_WAIT is {:.0} s)", .wait.as_secs_f64(), .most.as_secs_f64()
    )]
    Crowded {
        /// Of which golden.
        golden: GoldenName,
        /// How long it would wait.
        wait: std::time::Duration,
        /// ACQUIRE_WAIT.
        most: std::time::Duration,
    },
    /// The client has gone before its turn came.
    #[error("the client hung up while it waited")]
    HungUp,
    /// It takes longer than a client waits.
    #[error("no instance was there after {} s", .after.as_secs())]
    TooSlow {
        /// How long was waited.
        after: std::time::Duration,
    },
    /// The daemon is being stopped.
    #[error("the service is being stopped")]
    Stopping,
    /// An operator has drained the pool.
    #[error("no instances are handed out for now: the operator has drained the pool")]
    Drained,
    /// The work ended without an answer.
    #[error("the work on this request ended without an answer")]
    Lost,
}

impl AcquireError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownGolden { .. } | Self::Key => ErrorKind::Invalid,
            Self::Ttl(error) => error.kind(),
            Self::KeyReused { .. } => ErrorKind::Conflict,
            Self::Limited { .. } => ErrorKind::Limited,
            Self::Crowded { .. } => ErrorKind::Exhausted,
            Self::HungUp
            | Self::NoWay { .. }
            | Self::Outage { .. }
            | Self::TooSlow { .. }
            | Self::Stopping
            | Self::Drained => ErrorKind::Unavailable,
            Self::Make { source, .. } => of_making(source.kind()),
            Self::Neither { cold, .. } => of_making(cold.kind()),
            Self::Store(error) => of_making(error.kind()),
            Self::Lost => ErrorKind::Bug,
        }
    }
}

/// What a failure while making means to the client: a file that is missing or a
/// record that is refused there is this host's, not the request's.
pub(super) const fn of_making(kind: ErrorKind) -> ErrorKind {
    match kind {
        ErrorKind::NotFound | ErrorKind::Conflict | ErrorKind::Gone | ErrorKind::Invalid => ErrorKind::Bug,
        ErrorKind::Exhausted
        | ErrorKind::Limited
        | ErrorKind::Unavailable
        | ErrorKind::NoSpace
        | ErrorKind::Incompatible
        | ErrorKind::Bug => kind,
    }
}

/// As [`of_making`], of one that could not be frozen.
pub(super) const fn of_freezing(kind: ErrorKind) -> ErrorKind {
    match kind {
        // Its kind of shop cannot, or it is over now; whatever else is the host's.
        ErrorKind::Conflict | ErrorKind::Gone => kind,
        other => of_making(other),
    }
}

/// An instance could not be shown, extended or released.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// No such instance, or its end is long past.
    #[error("instance {id} is unknown")]
    Unknown {
        /// What was asked for.
        id: String,
    },
    /// Its time is over.
    #[error("the time of instance {id} is over")]
    Gone {
        /// Which.
        id: InstanceId,
    },
    /// It ended with the host it ran on.
    #[error("instance {id} is lost: its node {node} does not answer any more")]
    Lost {
        /// Which.
        id: InstanceId,
        /// Where it was.
        node: NodeName,
    },
    /// It is nobody's, so there is nothing to extend.
    #[error("instance {id} is {}, not assigned", .state.as_str())]
    NotAssigned {
        /// Which.
        id: InstanceId,
        /// Its state.
        state: State,
    },
    /// It would live longer than any may.
    #[error("instance {id} may live until {latest} at most (MAX_TTL is {max:#} from its hand-over)")]
    BeyondMax {
        /// Which.
        id: InstanceId,
        /// The latest end it can have.
        latest: Timestamp,
        /// MAX_TTL.
        max: SignedDuration,
    },
    /// The time asked for is not accepted.
    #[error(transparent)]
    Ttl(#[from] TtlError),
    /// Others kept changing it.
    #[error("instance {id} is being changed by others")]
    Busy {
        /// Which.
        id: InstanceId,
    },
    /// The store refused.
    #[error("cannot read or change the instance")]
    Store(#[source] StoreError),
    /// It is over, but the router may still lead to it.
    #[error("the instance is not out of reach yet")]
    Route(#[source] RouteError),
}

impl LeaseError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unknown { .. } => ErrorKind::NotFound,
            Self::Gone { .. } | Self::Lost { .. } => ErrorKind::Gone,
            Self::NotAssigned { .. } | Self::BeyondMax { .. } | Self::Busy { .. } => ErrorKind::Conflict,
            Self::Ttl(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Route(error) => error.kind(),
        }
    }
}

/// An instance was not made anew; it is as it was, or over.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// It could not be changed at all.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// Its golden cannot be made now.
    #[error("{golden} cannot be made anew: {reason}")]
    NoWay {
        /// Which golden.
        golden: GoldenName,
        /// Why.
        reason: String,
    },
    /// The new shop could not be made; the old one goes on.
    #[error("the new shop could not be made, the old one goes on")]
    Launch(#[source] LaunchError),
}

impl ResetError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Change(error) => error.kind(),
            Self::NoWay { .. } => ErrorKind::Unavailable,
            Self::Launch(error) => of_making(error.kind),
        }
    }
}

/// An instance was not put to sleep, or not woken.
#[derive(Debug, thiserror::Error)]
pub enum SleepError {
    /// It could not be changed at all.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The router may still lead to it.
    #[error("visitors may still be led past the one who would wake it")]
    Route(#[source] RouteError),
    /// It could not be frozen.
    #[error("it cannot be put to sleep and {}", .0.and_it())]
    Freeze(#[source] FreezeError),
    /// No driver of this daemon can wake it.
    #[error("no driver is there to wake instance {id}: its golden is not served any more")]
    NoDriver {
        /// Which.
        id: InstanceId,
    },
    /// It could not be woken, and sleeps on.
    #[error("it cannot be woken")]
    Thaw(#[source] LaunchError),
}

impl SleepError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Change(error) => error.kind(),
            Self::Route(error) => error.kind(),
            Self::Freeze(error) => of_freezing(error.kind()),
            Self::Thaw(error) => of_making(error.kind),
            Self::NoDriver { .. } => ErrorKind::Unavailable,
        }
    }
}
