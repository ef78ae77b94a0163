//! Which CRIU is installed. Called for a snapshot's facts and by `doctor`.

use std::io;
use std::os::fd::AsRawFd as _;

use super::rpc::Client;
use super::{RestoreError, io_at};

/// Asks the installed CRIU for its version, such as `4.2.1`.
///
/// # Errors
/// [`RestoreError`] when it cannot be started or does not answer.
pub async fn version() -> Result<(u32, u32, u32), RestoreError> {
    let (client, server) = Client::pair().map_err(io_at("make a socket for CRIU"))?;
    let mut criu = tokio::process::Command::new("criu");
    let socket = server.as_raw_fd();
    // SAFETY: one system call on a descriptor opened before the fork.
    unsafe {
        criu.pre_exec(move || match libc::fcntl(socket, libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let spawned = criu
        .arg("swrk")
        .arg(socket.to_string())
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let _child = spawned.map_err(io_at("start CRIU"))?;
    drop(server);
    let answer = client.version().await;
    answer.map_err(|source| RestoreError::Criu { reason: None, log: String::new(), source })
}
