//! `reap`: takes down what is over while no daemon runs.

use std::io::IsTerminal as _;

use serde_json::json;

use super::client::print_json;
use super::{Context, Output};
use crate::app::{AppError, StateLock};
use crate::caretaker::{self, Reaped, Whom};
use crate::host::slots;

/// `reap`
#[derive(Debug, clap::Args)]
pub(super) struct Reap {
    /// Everything: living instances too, the bridge, the cgroup
    #[arg(long)]
    all: bool,
}

impl Reap {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let config = &context.config;
        let whom = if self.all { Whom::All } else { Whom::Over };
        // Without it none has ever run here.
        if !slots::instances(&config.state_dir).is_dir() {
            return print(context, Reaped { ended: 0, alive: 0 });
        }
        match StateLock::take(config) {
            Ok(lock) => print(context, caretaker::reap(config, &lock, whom).await?),
            // The daemon reaps by itself.
            Err(AppError::AlreadyRunning { .. }) if whom == Whom::Over => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn print(context: &Context, reaped: Reaped) -> anyhow::Result<()> {
    let Reaped { ended, alive } = reaped;
    if context.output == Output::Json {
        return print_json(&json!({"ended": ended, "alive": alive}));
    }
    // For the journal: silent when there was nothing to do. Whoever has typed it is answered.
    if ended > 0 || std::io::stdout().is_terminal() {
        println!("{ended} taken down, {alive} live on");
    }
    Ok(())
}
