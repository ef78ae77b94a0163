//! Finding an instance's processes on this host, for commands that enter it.
//!
//! Asks the kernel: pids are nobody's business over the API. The daemon is asked only
//! for the slot of an instance that was made anew and so has another one than its own.

use anyhow::bail;

use http::Method;

use super::Context;
use super::client::Api;
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
    if let Some(pid) = pid_in(context, id).await? {
        return Ok(pid);
    }
    let answer = Api::of(context)?.call(Method::GET, &format!("/api/v1/demo/{id}"), None).await;
    let slot = answer.ok().and_then(|answer| answer["slot"].as_str()?.parse::<InstanceId>().ok());
    let pid = match slot {
        Some(slot) if slot != *id => pid_in(context, &slot).await?,
        Some(_) | None => None,
    };
    match pid {
        Some(pid) => Ok(pid),
        None => bail!("instance {id} does not run on this host"),
    }
}

/// The first process in a slot.
async fn pid_in(context: &Context, slot: &InstanceId) -> anyhow::Result<Option<i32>> {
    let parent = cgroup::Parent::open(&context.config.cgroup_parent)?;
    for pid in parent.processes(slot)? {
        if process::is_init(pid) {
            return Ok(Some(pid));
        }
    }
    // A cold instance is in the engine's own cgroup.
    let name = docker::name_of(slot);
    Ok(match context.config.container_mode {
        ContainerMode::Podman => cli::pid(&name).await.ok(),
        ContainerMode::Docker => match Docker::at(&context.config.docker_socket)?.pid(&name).await {
            Err(error) if !error.is_absent() => return Err(error.into()),
            found => found.ok(),
        },
    })
}
