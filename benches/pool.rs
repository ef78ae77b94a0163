//! What it costs to take an instance from the pool and to bring a route about,
//! without HTTP and without containers: the embedded store and a real Valkey.
//!
//! See benches/README.md.

#[path = "../tests/common/mod.rs"]
#[allow(clippy::unwrap_used, reason = "a tool of the tests")]
mod common;
#[path = "../tests/valkey/server.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "a tool of the tests")]
mod server;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use demo_multiplexer::id::{GoldenName, InstanceId, NodeName};
use demo_multiplexer::instance::{Instance, State};
use demo_multiplexer::open_store::open_store;
use demo_multiplexer::route::RouteTable as _;
use demo_multiplexer::route::memory::MemoryRoutes;
use demo_multiplexer::store::{Claim, Claimed, Store};
use jiff::{SignedDuration, Timestamp};
use tokio::runtime::Runtime;

/// Instances in the pool, most of which stay.
const READY: usize = 100;

/// Claims before the pool is filled up again, which is not counted.
const BATCH: u64 = 50;

fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = Runtime::new()?;
    let mut criterion = Criterion::default().configure_from_args();
    claims(&mut criterion, &runtime, "embedded", &[])?;
    if server::is_there("the bench of claims with Valkey") {
        let valkey = runtime.block_on(server::Server::start());
        claims(&mut criterion, &runtime, "valkey", &[("STORE_URL", &valkey.url())])?;
    }
    routes(&mut criterion);
    criterion.final_summary();
    Ok(())
}

fn claims(
    criterion: &mut Criterion,
    runtime: &Runtime,
    kind: &str,
    changes: &[(&str, &str)],
) -> anyhow::Result<()> {
    let host = common::Host::new();
    std::fs::create_dir_all(host.state_dir())?;
    let config = host.config(changes);
    let store = runtime.block_on(open_store(&config))?.store;
    let golden: GoldenName = "shop".parse()?;
    runtime.block_on(fill(&*store, &golden, READY));
    let mut group = criterion.benchmark_group("claim");
    group.bench_function(BenchmarkId::from_parameter(kind), |bencher| {
        bencher.iter_custom(|iterations| {
            let mut total = Duration::ZERO;
            let mut left = iterations;
            while left > 0 {
                let batch = left.min(BATCH);
                total += runtime.block_on(claim(&*store, &golden, batch));
                left -= batch;
            }
            total
        });
    });
    group.finish();
    Ok(())
}

/// Puts ready instances there.
async fn fill(store: &dyn Store, golden: &GoldenName, count: usize) {
    for _ in 0..count {
        let node: &NodeName = store.node();
        let warming = Instance::warming(InstanceId::random(), golden.clone(), node.clone(), Timestamp::now());
        let warming = store.insert(warming).await.expect("a new id");
        let ready = Instance { state: State::Ready, ..warming };
        store.update(ready).await.expect("nobody else knows it");
    }
}

/// Claims so many and answers how long that took; then they are replaced.
async fn claim(store: &dyn Store, golden: &GoldenName, count: u64) -> Duration {
    let now = Timestamp::now();
    let claim = Claim {
        golden: golden.clone(),
        now,
        expires_at: now + SignedDuration::from_hours(1),
        idempotency_key: None,
    };
    let mut claimed = Vec::new();
    let begun = Instant::now();
    for _ in 0..count {
        match store.claim(claim.clone()).await.expect("the store answers") {
            Claimed::New(instance) => claimed.push(instance.id),
            Claimed::Again(_) | Claimed::Empty => panic!("the pool has instances, and there is no key"),
        }
    }
    let took = begun.elapsed();
    fill(store, golden, claimed.len()).await;
    for id in claimed {
        store.remove(&id).await.expect("the store answers");
    }
    took
}

/// A route added and removed in the table that the built-in proxy reads.
fn routes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    for present in [10, 1000] {
        let table = Arc::new(MemoryRoutes::default());
        let shop = SocketAddr::from(([10, 77, 0, 2], 80));
        for _ in 0..present {
            table.ensure(&InstanceId::random(), shop);
        }
        group.bench_function(BenchmarkId::new("add-and-remove", present), |bencher| {
            bencher.iter(|| {
                let id = InstanceId::random();
                table.ensure(&id, shop);
                table.remove(&id);
            });
        });
    }
    group.finish();
}
