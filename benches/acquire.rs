//! The service's promise: an acquire is answered within 500 ms, be the pool
//! full or empty.
//!
//! Runs the whole daemon in this process, on a real snapshot, over HTTP. Exits
//! non-zero when a median breaks the promise; needs what `serve` needs (root,
//! CRIU, a snapshot of GOLDEN), see benches/README.md.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode};
use demo_multiplexer::bench::service::Service;
use demo_multiplexer::config::{self, Config, Values};
use tokio::runtime::Runtime;

/// The promise.
const PROMISE: Duration = Duration::from_millis(500);

/// Acquires of each kind; a restore of each is made in well below a second.
const SAMPLES: usize = 20;

/// A pool that one acquire does not empty.
const POOL_TARGET: usize = 2;

fn main() -> anyhow::Result<()> {
    let values = config::collect(std::path::Path::new("."), Values::new())?;
    let config = Config::check(&values)?;
    let runtime = Runtime::new()?;
    let mut criterion = Criterion::default().configure_from_args();
    let pool = measure(&mut criterion, &runtime, &config, "pool", POOL_TARGET)?;
    let empty = measure(&mut criterion, &runtime, &config, "empty-pool", 0)?;
    criterion.final_summary();
    for (kind, median) in [("pool", pool), ("empty-pool", empty)] {
        println!("acquire/{kind}: median {median:.1?}, promised {PROMISE:.0?}");
        anyhow::ensure!(median <= PROMISE, "acquire/{kind} breaks the promise: {median:.1?} > {PROMISE:.0?}");
    }
    Ok(())
}

/// Benches acquires from a pool of `target` and answers their median.
fn measure(
    criterion: &mut Criterion,
    runtime: &Runtime,
    config: &Config,
    kind: &str,
    target: usize,
) -> anyhow::Result<Duration> {
    let service = runtime.block_on(Service::start(config, target))?;
    let mut seen = Vec::new();
    let mut group = criterion.benchmark_group("acquire");
    group.sample_size(SAMPLES).sampling_mode(SamplingMode::Flat).noise_threshold(0.05);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(5));
    group.bench_function(BenchmarkId::from_parameter(kind), |bencher| {
        bencher.iter_custom(|iterations| {
            let mut total = Duration::ZERO;
            for _ in 0..iterations {
                // The refill of the last acquire is not this one's cost.
                let acquire = async {
                    service.wait_until_full().await?;
                    service.acquire().await
                };
                let took = runtime.block_on(acquire).expect("an acquire on a healthy host is answered");
                seen.push(took);
                total += took;
            }
            total
        });
    });
    group.finish();
    let begun = Instant::now();
    runtime.block_on(service.stop())?;
    println!("acquire/{kind}: {} acquires, stopped in {:.1?}", seen.len(), begun.elapsed());
    seen.sort();
    seen.get(seen.len() / 2).copied().ok_or_else(|| anyhow::anyhow!("no acquire was measured"))
}
