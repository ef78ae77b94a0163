//! The bench: every way to get a shop, side by side in one run.
//!
//! Called by `demo-multiplexer bench`. One iteration of a way begins where a
//! visitor would begin to wait and notes two moments: the container runs, and
//! the shop's front page answers 200 with its own text (asked every 5 ms).
//! What an operator prepares beforehand (images, exports, slots) is made before
//! the clock starts; taking down is not measured. Iterations of one way follow
//! each other; nothing else runs.
//!
//! Beside it: [`gate`] compares two programs, [`load`] offers a fixed rate of
//! visitors to a running daemon, [`trace`] draws one restore.

pub mod at_rest;
pub mod back_office;
pub mod criu_log;
pub mod gate;
pub mod knee;
pub mod load;
pub mod memory;
pub mod plot;
pub mod podman;
pub mod report;
pub mod restore;
pub mod service;
pub mod svg;
pub mod trace;

use std::time::{Duration, Instant};

use crate::checkpoint::golden::GoldenError;
use crate::engine::LaunchError;
use crate::engine::podman::PodmanError;
use crate::restore::probe::{Page, ProbeError};

/// How often the front page is asked for.
const POLL: Duration = Duration::from_millis(5);

/// A shop that shows no front page by then never will.
const DEADLINE: Duration = Duration::from_secs(120);

/// A way to get a shop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// `podman run` of the golden's image.
    Cold,
    /// `podman container restore --import` of a zstd export.
    PodmanImportZstd,
    /// `podman container restore --import` of an uncompressed export.
    PodmanImportNone,
    /// `podman container restore` of a container checkpointed where it is.
    PodmanInPlace,
    /// CRIU driven directly on a prepared snapshot.
    Direct,
    /// Acquire with a full pool.
    Pool,
    /// Acquire with an empty pool.
    EmptyPool,
}

impl Way {
    /// All ways, in the order they are shown.
    pub const ALL: [Self; 7] = [
        Self::Cold,
        Self::PodmanImportZstd,
        Self::PodmanImportNone,
        Self::PodmanInPlace,
        Self::Direct,
        Self::Pool,
        Self::EmptyPool,
    ];
}

/// The two moments of one iteration, since its beginning.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// The container runs; for an acquire: the answer is there.
    pub running: Duration,
    /// The front page answered 200.
    pub first_200: Duration,
}

/// A way could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Podman.
    #[error("Podman refused")]
    Podman(#[from] PodmanError),
    /// The golden.
    #[error("the golden is not fit to be measured")]
    Golden(#[from] GoldenError),
    /// The restore driver.
    #[error("a clone could not be restored")]
    Launch(#[from] LaunchError),
    /// The service.
    #[error("an acquire failed")]
    Acquire(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Taking down.
    #[error("an instance could not be taken down")]
    Destroy(#[from] crate::engine::DestroyError),
    /// Network.
    #[error("no network for a container")]
    Net(#[from] crate::host::net::NetError),
    /// Slots.
    #[error("no slot for a clone")]
    Slot(#[from] crate::host::slots::SlotError),
    /// The page.
    #[error("the front page did not come within {} s; the last answer was {last}", DEADLINE.as_secs())]
    Page {
        /// What came instead.
        last: String,
    },
    /// The disk.
    #[error("cannot {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Asks for the front page until it shows `text`; answers the time since `begun`.
async fn until_200<F>(begun: Instant, text: &str, mut page: impl FnMut() -> F) -> Result<Duration, BenchError>
where
    F: Future<Output = Result<Page, ProbeError>>,
{
    loop {
        let last = match page().await {
            Ok(page) if page.shows(text) => return Ok(begun.elapsed()),
            Ok(page) => format!("{} {}", page.status, page.location.unwrap_or_default()),
            Err(error) => crate::error::Chain(&error).to_string(),
        };
        if begun.elapsed() > DEADLINE {
            return Err(BenchError::Page { last });
        }
        tokio::time::sleep(POLL).await;
    }
}
