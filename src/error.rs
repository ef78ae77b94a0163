//! What a caller can do about an error, and how an error is printed.
//!
//! Every operation has its own error enum; [`ErrorKind`] is the one thing they
//! share: the API maps it to a status, the reconciler to a retry. [`Chain`]
//! prints an error with all its sources on one line; it is used where an error
//! is logged, which is once, at the edge.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What the caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The thing asked for does not exist: 404.
    NotFound,
    /// The request is refused in the present state: 409.
    Conflict,
    /// The instance existed and its time is over: 410.
    Gone,
    /// The client has done this as often as it may: 429 with Retry-After.
    Limited,
    /// No instance, address or slot is left for now: 503 with Retry-After.
    Exhausted,
    /// Something this service stands on does not answer: 503 with Retry-After.
    Unavailable,
    /// No disk or memory for another instance: 507.
    NoSpace,
    /// The snapshot does not fit this host; a cold start may still do.
    Incompatible,
    /// The input is wrong: 400.
    Invalid,
    /// A defect of this program or of the golden: 500.
    Bug,
}

impl ErrorKind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Limited,
        Self::NotFound,
        Self::Conflict,
        Self::Gone,
        Self::Exhausted,
        Self::Unavailable,
        Self::NoSpace,
        Self::Incompatible,
        Self::Invalid,
        Self::Bug,
    ];
}

/// Prints an error followed by all its sources, separated by `: `.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

/// The disk has refused to do something to a file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}", .path.display())]
pub struct DiskError {
    /// What was to be done, as an imperative.
    pub doing: &'static str,
    /// To which file.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

impl DiskError {
    /// Makes one of what the disk said.
    pub fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self { doing, path: path.to_owned(), source }
    }

    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        kind_of_io(&self.source)
    }
}

/// Tells a full disk from every other I/O error.
#[must_use]
pub fn kind_of_io(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        _ => ErrorKind::Unavailable,
    }
}
