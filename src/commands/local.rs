//! Finding an instance's processes on this host, for commands that enter it.
//!
//! Asks the kernel, not the daemon: pids are nobody's business over the API.

use anyhow::bail;

use super::Context;
use crate::config::ContainerMode;
use crate::engine::docker::{self, Docker};
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
    // A cold instance is in the engine's own cgroup.
    let name = docker::name_of(id);
    let pid = match context.config.container_mode {
        ContainerMode::Podman => cli::pid(&name).await.ok(),
        ContainerMode::Docker => match Docker::at(&context.config.docker_socket)?.pid(&name).await {
            Err(error) if !error.is_absent() => return Err(error.into()),
            found => found.ok(),
        },
    };
    match pid {
        Some(pid) => Ok(pid),
        None => bail!("instance {id} does not run on this host"),
    }
}
