//! `exec ID CMD...`: a command inside an instance, for operators.
//!
//! As the instance's root, with no more rights than that has ([`enter`]): what
//! is run there may be a stranger's. It ends with the instance. A shell has no
//! job control: it is in no session of the operator's terminal.

use std::io::ErrorKind;
use std::process::Command;

use anyhow::Context as _;

use super::Context;
use super::local;
use crate::host::enter;
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
        let (program, args) = self.command.split_first().context("no command")?;
        let mut command = Command::new(program);
        command
            .args(args)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("TERM", std::env::var_os("TERM").unwrap_or_default());
        enter::prepare(&mut command, pid).with_context(|| format!("cannot enter instance {}", self.id))?;
        match command.status() {
            Ok(status) => std::process::exit(status.code().unwrap_or(1)),
            // As a shell says it.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                eprintln!("error: {program} is not in the instance");
                std::process::exit(127)
            }
            Err(error) => Err(error).with_context(|| format!("{program} does not start in the instance")),
        }
    }
}
