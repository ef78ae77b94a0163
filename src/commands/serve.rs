//! `serve`: the daemon in the foreground, until SIGINT or SIGTERM.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::app::{App, OnExit, StateLock};
use crate::config::Config;
use crate::golden::recipe::Recipe;
use crate::provision::GoldenRuntime;

/// `serve`
#[derive(Debug, clap::Args)]
pub(super) struct Serve {
    /// Take all instances down when stopped, instead of leaving them to the next daemon
    #[arg(long)]
    ephemeral: bool,
}

impl Serve {
    pub(super) async fn run(self, context: Context) -> anyhow::Result<()> {
        let stop = CancellationToken::new();
        // Before anything else, so that no signal finds a half-built daemon.
        let signals = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::spawn(on_signal(signals, stop.clone()));
        let config = context.config;
        let lock = StateLock::take(&config)?;
        let goldens = goldens(&config)?;
        let on_exit = if self.ephemeral { OnExit::DestroyInstances } else { OnExit::KeepInstances };
        let app = App::build(config, lock, goldens, on_exit).await?;
        app.run(stop).await?;
        Ok(())
    }
}

/// The first signal drains, the second one ends the process at once: whatever
/// is then half-done, the next daemon takes down.
async fn on_signal((mut interrupt, mut terminate): (Signal, Signal), stop: CancellationToken) {
    for round in 0.. {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if round > 0 {
            std::process::exit(130);
        }
        stop.cancel();
    }
}

/// The goldens that GOLDEN names, each with its ways of being made.
fn goldens(config: &Config) -> anyhow::Result<Vec<GoldenRuntime>> {
    let mut goldens = Vec::new();
    for name in &config.goldens {
        let (_, recipe) =
            Recipe::load(name, &config.recipe_dir).with_context(|| format!("cannot serve {name}"))?;
        goldens.push(GoldenRuntime {
            name: recipe.name,
            title: recipe.title,
            restore: Err("no engine is there".into()),
            cold: None,
        });
    }
    Ok(goldens)
}
