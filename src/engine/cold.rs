//! What the drivers that boot a shop share: waiting until it is up.
//!
//! Called by [`super::podman`] and [`super::docker`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::host::process;

/// How often a booting shop is asked whether it is up.
const POLL: Duration = Duration::from_millis(5);

/// Asks a booting shop for its front page: whether it is up.
pub type Ready = Arc<dyn Fn(SocketAddr) -> futures_util::future::BoxFuture<'static, bool> + Send + Sync>;

/// A booted shop that is not up.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Its first process is gone.
    #[error("the shop ended while it booted")]
    Ended,
    /// It takes too long.
    #[error("the shop did not come up within {} s", .0.as_secs())]
    Deadline(Duration),
}

/// A booting shop.
#[derive(Debug, Clone, Copy)]
pub(super) struct Booting {
    /// Its first process.
    pub pid: i32,
    /// When that started, in clock ticks since boot.
    pub start_ticks: u64,
    /// Where it will listen.
    pub address: SocketAddr,
    /// How long it may take.
    pub within: Duration,
}

impl Booting {
    /// Returns when the shop is up.
    pub(super) async fn until_up(self, ready: &Ready) -> Result<(), BootError> {
        let up = async {
            while !ready(self.address).await {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::select! {
            () = up => Ok(()),
            () = process::ended_by_name(self.pid, self.start_ticks) => Err(BootError::Ended),
            () = tokio::time::sleep(self.within) => Err(BootError::Deadline(self.within)),
        }
    }
}
