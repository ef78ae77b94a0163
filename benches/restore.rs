//! One clone of a real snapshot: restored, and made a whole shop (restored, given
//! its identity, its first page fetched), with the share of each phase.
//!
//! Needs what `serve` needs: root, CRIU, a snapshot of GOLDEN. See
//! benches/README.md.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, measurement::WallTime};
use demo_multiplexer::app::StateLock;
use demo_multiplexer::assemble::{self, Host};
use demo_multiplexer::bench::restore::Direct;
use demo_multiplexer::config::{self, Config, Values};
use demo_multiplexer::engine::Phase;
use demo_multiplexer::restore::Make;
use tokio::runtime::Runtime;

/// Restores of each kind; criterion wants ten.
const SAMPLES: usize = 20;

fn main() -> anyhow::Result<()> {
    let values = config::collect(std::path::Path::new("."), Values::new())?;
    let mut config = Config::check(&values)?;
    config.goldens.truncate(1);
    config.slots_ahead = config.slots_ahead.max(1);
    let runtime = Runtime::new()?;
    let _lock = StateLock::take(&config).context("the bench needs the machine for itself")?;
    let host = runtime.block_on(Host::open(&config))?;
    let shared = Arc::new(config);
    let name = shared.goldens.first().context("no golden is named")?;
    let golden = runtime.block_on(assemble::golden(name, &shared, &host))?;
    let maker = match &golden.runtime.restore {
        Ok(maker) => Arc::clone(maker),
        Err(reason) => {
            println!("skipped: the bench of restores: {reason}");
            return Ok(());
        }
    };
    let direct = Direct {
        engine: Arc::clone(maker.engine()),
        slots: Arc::clone(&host.slots),
        ready: golden.recipe.ready.clone(),
        concurrency: shared.restore_concurrency,
    };
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("restore");
    group.sample_size(SAMPLES).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));
    measure(&mut group, &runtime, "running", async || Ok(direct.once().await?.running));
    measure(&mut group, &runtime, "first-200", async || Ok(direct.once().await?.first_200));
    measure(&mut group, &runtime, "whole-shop", async || Ok(phases(&direct, &*maker).await?.values().sum()));
    measure(&mut group, &runtime, "personalize", async || {
        Ok(phases(&direct, &*maker).await?.get(Phase::Personalize.as_str()).copied().unwrap_or_default())
    });
    group.finish();
    criterion.final_summary();
    let failed = runtime.block_on(assemble::drain(&host.slots, &golden.runtime.engines()));
    failed.into_iter().next().map_or(Ok(()), |failed| Err(failed.into()))
}

async fn phases(direct: &Direct, maker: &dyn Make) -> anyhow::Result<BTreeMap<&'static str, Duration>> {
    let phases = direct.make(maker).await?;
    Ok(phases.into_iter().map(|(phase, took)| (phase.as_str(), took)).collect())
}

fn measure(
    group: &mut BenchmarkGroup<'_, WallTime>,
    runtime: &Runtime,
    name: &str,
    mut once: impl AsyncFnMut() -> anyhow::Result<Duration>,
) {
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let one = |_| runtime.block_on(once()).expect("a healthy host restores");
            (0..iterations).map(one).sum()
        });
    });
}
