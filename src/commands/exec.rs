//! `exec ID CMD...`: a command inside an instance, for operators.
//!
//! Enters the instance's namespaces and cgroup from the host with nsenter, as
//! root and with the container's own capabilities' bound: what it starts ends
//! with the instance.

use std::os::unix::process::CommandExt as _;

use super::Context;
use super::local;
use crate::id::InstanceId;

/// `exec`
#[derive(Debug, clap::Args)]
pub(super) struct Exec {
    /// Which instance
    id: InstanceId,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Exec {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let pid = local::pid_of(context, &self.id).await?;
        // Becomes nsenter, so that terminal, signals and exit code are the command's.
        let error = std::process::Command::new("nsenter")
            .args(["--target", &pid.to_string()])
            .args([
                "--mount",
                "--uts",
                "--ipc",
                "--net",
                "--pid",
                "--cgroup",
                "--root",
                "--wd",
                "--join-cgroup",
                "--",
            ])
            .args(&self.command)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("TERM", std::env::var_os("TERM").unwrap_or_default())
            .exec();
        Err(anyhow::Error::new(error).context("cannot run nsenter (package util-linux)"))
    }
}
