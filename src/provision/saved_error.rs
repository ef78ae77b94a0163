//! Why a shop was not kept, or not opened.

use super::change::ChangeError;
use super::errors::{AcquireError, of_freezing, of_making};
use crate::engine::{FreezeError, LaunchError};
use crate::error::{ErrorKind, kind_of_io};
use crate::id::{GoldenName, InstanceId};
use crate::snapshot::shelf::ShelfError;
use crate::store::StoreError;

/// A shop was not kept, or not opened.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// This daemon keeps none.
    #[error("no shops are kept here (SAVED_MAX)")]
    Nowhere,
    /// As an acquire would have been refused: the client's limit, or nothing is handed out.
    #[error(transparent)]
    Acquire(#[from] AcquireError),
    /// For a reason that has nothing to do with keeping.
    #[error(transparent)]
    Change(#[from] ChangeError),
    /// The shelf.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// It could not be frozen.
    #[error("the shop cannot be kept and {}", .0.and_it())]
    Freeze(#[source] FreezeError),
    /// It is there, or something of it is.
    #[error("instance {id} is still there: release it, or go on with it")]
    StillThere {
        /// Which.
        id: InstanceId,
    },
    /// Its holder has another one of its golden, and has one of each.
    #[error("whoever asks has another instance of that golden, {other}: release it first")]
    Holds {
        /// Which.
        other: InstanceId,
    },
    /// No place is left.
    #[error("all {max} places of this host are taken")]
    Full {
        /// MAX_INSTANCES.
        max: usize,
    },
    /// Its golden is not restored here.
    #[error("shops of {golden} are not restored here any more")]
    NoDriver {
        /// Of which golden.
        golden: GoldenName,
    },
    /// What is kept is no good, or the disk says no.
    #[error("what is kept of the shop cannot be unpacked")]
    Unpack(#[source] std::io::Error),
    /// It could not be started.
    #[error("the shop that is kept cannot be started")]
    Thaw(#[source] LaunchError),
    /// The store refused.
    #[error("cannot write the opened shop down")]
    Store(#[source] StoreError),
    /// It takes longer than a client waits.
    #[error("it was not done after {} s", .after.as_secs())]
    TooSlow {
        /// How long was waited.
        after: std::time::Duration,
    },
    /// Keeping it takes longer than a client waits.
    #[error("the shop was not kept within {} s, since this host has too much to do: it goes on, and what was kept of it before still is; try again", .after.as_secs())]
    NotKept {
        /// How long was waited.
        after: std::time::Duration,
    },
    /// The daemon is being stopped.
    #[error("the service is being stopped")]
    Stopping,
    /// The work ended without an answer.
    #[error("the work on this request ended without an answer")]
    Lost,
}

impl SavedError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Nowhere => ErrorKind::NotFound,
            Self::Acquire(error) => error.kind(),
            Self::Change(error) => error.kind(),
            Self::StillThere { .. } | Self::Holds { .. } => ErrorKind::Conflict,
            Self::Shelf(error) => error.kind(),
            Self::Freeze(error) => of_freezing(error.kind()),
            Self::Full { .. } => ErrorKind::Exhausted,
            Self::NoDriver { .. } | Self::TooSlow { .. } | Self::NotKept { .. } | Self::Stopping => {
                ErrorKind::Unavailable
            }
            Self::Unpack(error) => of_making(kind_of_io(error)),
            Self::Thaw(error) => of_making(error.kind),
            Self::Store(error) => of_making(error.kind()),
            Self::Lost => ErrorKind::Bug,
        }
    }
}
