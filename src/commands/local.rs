//! Finding an instance's processes on this host, for commands that enter it.
//!
//! Asks the kernel, not the daemon: pids are nobody's business over the API.

use anyhow::bail;

use super::Context;
use crate::engine::podman::cli;
use crate::host::{cgroup, process};
use crate::id::InstanceId;

/// The first process of an instance, as the host sees it.
///
/// # Errors
/// When it does not run on this host.
pub(super) async fn pid_of(context: &Context, id: &InstanceId) -> anyhow::Result<i32> {
    let parent = cgroup::Parent::open(&context.config.cgroup_parent)?;
    for pid in parent.processes(id)? {
        if process::is_init(pid) {
            return Ok(pid);
        }
    }
    // A cold instance is in Podman's own cgroup.
    match cli::pid(&format!("dm-{id}")).await {
        Ok(pid) => Ok(pid),
        Err(_) => bail!("instance {id} does not run on this host"),
    }
}
