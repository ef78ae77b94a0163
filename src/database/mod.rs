//! Databases on a server that all shops share (`DATABASE_MODE=shared`).
//!
//! Called through the driver that [`SharedEngine`] puts around another one, and
//! by the checkpoint procedure ([`Scratch`]). Names on the server, all with
//! DATABASE_PREFIX in front, so that two daemons on one server do not meet:
//!
//! ```text
//! <instance id>    a clone's database, and its user of the same name
//! t_<16 hex>       a snapshot's template: the database as it was at the checkpoint
//! new_<16 hex>     a golden's database while `snapshot create` runs
//! ```
//!
//! A clone's life: [`copy`] fills a new database from the template, then a user
//! is made who may use that database and nothing else; both wait in the supply
//! under the id of an instance to come; [`SharedEngine`] hands them to the
//! instance and drops them with it. The user goes first and the database last,
//! so whatever a death leaves behind is found by the names of databases.
//!
//! Invariants: the template is only read; it is whole when its comment is the
//! snapshot's name, and made anew from the snapshot when it is not; a user's
//! password is random, known to its clone alone, and in no log.
//!
//! Shops reach the server by its unix socket, whose directory is mounted
//! read-only into each: no address is open to them, no connection is in a
//! snapshot, and a server that was started again is found again.

mod copy;
mod engine;
mod mover;
mod server;
mod template;

pub use self::engine::SharedEngine;
pub use self::mover::{Mover, Root};
pub use self::server::{Server, Version};
pub use self::template::{Scratch, Template};

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::engine::podman::PodmanError;
use crate::error::ErrorKind;

/// What the server, or the way to it, refused.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// DATABASE_PASSWORD_FILE.
    #[error("cannot read DATABASE_PASSWORD_FILE {}", .path.display())]
    PasswordFile {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The server said no, or was not there.
    #[error("the shared database server refused to {doing}")]
    Server {
        /// What it was asked, as an imperative, without names or values.
        doing: &'static str,
        /// Why.
        #[source]
        source: mysql_async::Error,
    },
    /// The server said nothing.
    #[error("the shared database server did not {doing} within {} s", .deadline.as_secs())]
    Deadline {
        /// What it was asked.
        doing: &'static str,
        /// How long it had.
        deadline: Duration,
    },
    /// The golden's own program.
    #[error("the golden's database program failed to {doing}")]
    Program {
        /// What it was to do.
        doing: &'static str,
        /// What Podman says.
        #[source]
        source: PodmanError,
    },
    /// The disk.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The recipe does not say how.
    #[error(
        "golden {golden} cannot share a database server: its recipe has no run.database_program (see podman/README.md)"
    )]
    NoProgram {
        /// Which.
        golden: String,
    },
    /// A shop would not find the socket in the directory that it is shown.
    #[error(
        "the socket {} of DATABASE_URL must be called as the golden's, {theirs}: have the server listen there", .ours.display()
    )]
    SocketName {
        /// The server's.
        ours: PathBuf,
        /// What the recipe says.
        theirs: String,
    },
}

/// `ER_DISK_FULL` and `ER_RECORD_FILE_FULL`.
const FULL: [u16; 2] = [1021, 1114];

/// `ER_BAD_DB_ERROR` and `ER_NO_SUCH_TABLE`.
const ABSENT: [u16; 2] = [1049, 1146];

impl DatabaseError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Server { source: mysql_async::Error::Server(said), .. } if FULL.contains(&said.code) => {
                ErrorKind::NoSpace
            }
            Self::Io { source, .. } | Self::PasswordFile { source, .. } => crate::error::kind_of_io(source),
            Self::Server { .. } | Self::Deadline { .. } | Self::Program { .. } => ErrorKind::Unavailable,
            Self::NoProgram { .. } | Self::SocketName { .. } => ErrorKind::Invalid,
        }
    }

    /// Whether the server itself was not there, whatever it was asked.
    fn is_outage(&self) -> bool {
        match self {
            Self::Server { source, .. } => !matches!(source, mysql_async::Error::Server(_)),
            Self::Deadline { .. } => true,
            Self::PasswordFile { .. }
            | Self::Program { .. }
            | Self::Io { .. }
            | Self::NoProgram { .. }
            | Self::SocketName { .. } => false,
        }
    }

    /// Whether a database or table is not there.
    fn is_absence(&self) -> bool {
        matches!(self, Self::Server { source: mysql_async::Error::Server(said), .. } if ABSENT.contains(&said.code))
    }
}

/// `doing`, as the error of whatever the server refuses.
fn refused(doing: &'static str) -> impl Fn(mysql_async::Error) -> DatabaseError {
    move |source| DatabaseError::Server { doing, source }
}

/// A name as SQL writes it.
fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}
