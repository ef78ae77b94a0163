//! Which CRIU is installed. Called for a snapshot's facts and by `doctor`.

use super::rpc::Client;
use super::{RestoreError, io_at, spawn};

/// Asks the installed CRIU for its version, such as `4.2.1`.
///
/// # Errors
/// [`RestoreError`] when it cannot be started or does not answer.
pub async fn version() -> Result<(u32, u32, u32), RestoreError> {
    let (client, server) = Client::pair().map_err(io_at("make a socket for CRIU"))?;
    let _child = spawn::bare(server).map_err(io_at("start CRIU"))?;
    let answer = client.version().await;
    answer.map_err(|source| RestoreError::Criu { reason: None, log: String::new(), source })
}
