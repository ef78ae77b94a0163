//! `serve`: the daemon in the foreground, until SIGINT or SIGTERM.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::app::{App, OnExit, StateLock, Stock};
use crate::assemble::{self, Host};
use crate::config::{Config, ContainerMode};
use crate::egress::Egress;
use crate::error::Chain;
use crate::id::GoldenName;
use crate::metrics;
use crate::promote::Workshop;
use crate::provision::GoldenRuntime;
use crate::provision::audit::Beside;
use crate::shutdown::Phase;
use crate::snapshot::served::Choice;
use crate::template::images::Unneeded;
use crate::workshop::{HostWorkshop, usual_pool};

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
        // Before anything happens that counts.
        metrics::install();
        raise_open_files();
        let config = context.config;
        let lock = StateLock::take(&config)?;
        let host = Arc::new(Host::open(&config).await?);
        let shared = Arc::new(config.clone());
        let mut goldens = Vec::new();
        for name in &config.goldens {
            goldens.push(assemble::golden(name, &shared, &host).await?.runtime);
        }
        let mut pools = BTreeMap::new();
        for (name, pool) in published(&config) {
            match assemble::golden(name.as_str(), &shared, &host).await {
                Ok(assembled) => {
                    goldens.push(assembled.runtime);
                    pools.insert(name, pool);
                }
                // It was not asked for by a setting; the others are served.
                Err(error) => {
                    tracing::warn!(golden = %name, error = %format!("{error:#}"), "published golden not served");
                }
            }
        }
        host.engines.add(goldens.iter().flat_map(GoldenRuntime::engines));
        let workshop = match config.container_mode {
            ContainerMode::Podman => {
                let workshop = HostWorkshop::new(shared, context.values, Arc::clone(&host));
                Some(Arc::new(workshop) as Arc<dyn Workshop>)
            }
            ContainerMode::Docker => None,
        };
        let beside = (config.container_mode == ContainerMode::Podman)
            .then(|| Arc::new(Unneeded::new(Arc::new(config.clone()))) as Arc<dyn Beside>);
        let stock = Stock { goldens, workshop, pools, beside };
        let on_exit = if self.ephemeral { OnExit::DestroyInstances } else { OnExit::KeepInstances };
        // It may wait for the store.
        let app = tokio::select! {
            app = App::build(config, lock, stock, on_exit) => app?,
            () = stop.cancelled() => return Ok(()),
        };
        let filling = tokio::spawn(fill(app.phase(), Arc::clone(&host), stop.clone()));
        let guarding = tokio::spawn(assemble::keep_guarded(Arc::clone(&host.slots), stop.clone()));
        let egress = Arc::clone(&host.egress);
        let leading_out = tokio::spawn(lead_out(app.phase(), egress, stop.clone()));
        let ran = app.run(stop.clone()).await;
        // Also when the daemon ended by itself.
        stop.cancel();
        filling.await?;
        guarding.await?;
        leading_out.await?;
        for failed in assemble::drain(&host.slots, &host.engines.all()).await {
            tracing::warn!(error = %Chain(&failed), "something made ahead was not removed completely");
        }
        Ok(ran?)
    }
}

/// Takes as many open files as this process may have: each client is one, and
/// what a shell or a unit gives at first is enough for a few hundred.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(error = %error, "the limit of open files stays as it is");
    }
}

/// Makes things ahead, as soon as the former daemon's instances are known: before,
/// a slot would be given the address of one that lives.
async fn fill(mut phase: watch::Receiver<Phase>, host: Arc<Host>, stop: CancellationToken) {
    if phase.wait_for(|phase| *phase != Phase::Starting).await.is_ok() {
        assemble::keep_filled(Arc::clone(&host.slots), host.engines.clone(), stop).await;
    }
}

/// Goldens that were visitors' shops, and that no setting names; and how many of each are
/// to be ready.
fn published(config: &Config) -> Vec<(GoldenName, usize)> {
    if config.container_mode == ContainerMode::Docker {
        return Vec::new();
    }
    // Said wrongly, it says nothing; the catalogue tells.
    let choice = Choice::read(&config.snapshot_dir).unwrap_or_default();
    choice
        .published()
        .filter(|name| !config.goldens.iter().any(|golden| golden == name.as_str()))
        .map(|name| (name.clone(), choice.pool(name).unwrap_or_else(|| usual_pool(config))))
        .collect()
}

/// Keeps what shops may reach outside, as soon as the former daemon's are known:
/// before, theirs would be closed.
async fn lead_out(mut phase: watch::Receiver<Phase>, egress: Arc<Egress>, stop: CancellationToken) {
    if phase.wait_for(|phase| *phase != Phase::Starting).await.is_ok() {
        egress.keep(stop).await;
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
