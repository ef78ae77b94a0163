//! What the embedded store's work costs with 10, 100, 1,000 and 100,000 records
//! in it, and how much memory a record takes.
//!
//! `claim` is what an acquire waits for, with the durable commit (and the next
//! ready record put in for it, in the same time); `counts` is the reconciler's
//! look and each scrape's; `due` and `own` are the reaper's every look. All but
//! `own`, which reads what there is, should not grow. Needs no root.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode};
use demo_multiplexer::id::{GoldenName, InstanceId, NodeName};
use demo_multiplexer::instance::{Instance, State};
use demo_multiplexer::store::embedded::EmbeddedStore;
use demo_multiplexer::store::{Claim, Claimed, Store};
use jiff::{SignedDuration, Timestamp};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// The last is records only: no host runs that many.
const PRESENT: [usize; 4] = [10, 100, 1_000, 100_000];

fn main() -> anyhow::Result<()> {
    let runtime = Runtime::new()?;
    let mut criterion = Criterion::default().configure_from_args();
    let mut memory = Vec::new();
    for present in PRESENT {
        let dir = tempfile::tempdir()?;
        let before = resident()?;
        let shop = Shop::with(&runtime, &dir.path().join("store.redb"), present)?;
        memory.push((present, resident()?.saturating_sub(before)));
        measure(&mut criterion, &runtime, &shop, present)?;
    }
    criterion.final_summary();
    for (present, bytes) in memory {
        println!("growth/memory/{present}: {} KiB more than before", bytes / 1024);
    }
    Ok(())
}

/// A store in which one record is ready and the others are somebody's.
struct Shop {
    store: Arc<EmbeddedStore>,
    golden: GoldenName,
    node: NodeName,
    now: Timestamp,
}

impl Shop {
    fn with(runtime: &Runtime, path: &std::path::Path, present: usize) -> anyhow::Result<Self> {
        let (golden, node): (GoldenName, NodeName) = ("shop".parse()?, "here".parse()?);
        let store = Arc::new(EmbeddedStore::open(path, &node)?);
        let shop = Self { store, golden, node, now: Timestamp::now() };
        runtime.block_on(async {
            let mut inserting = JoinSet::new();
            for n in 1..present {
                let mut record = shop.record(State::Assigned);
                record.expires_at = Some(shop.now + SignedDuration::from_secs(3600 + i64::try_from(n)?));
                let store = Arc::clone(&shop.store);
                inserting.spawn(async move { store.insert(record).await });
            }
            while let Some(inserted) = inserting.join_next().await {
                inserted??;
            }
            shop.store.insert(shop.record(State::Ready)).await?;
            anyhow::Ok(())
        })?;
        Ok(shop)
    }

    fn record(&self, state: State) -> Instance {
        let (golden, node) = (self.golden.clone(), self.node.clone());
        let mut record = Instance::warming(InstanceId::random(), golden, node, self.now);
        record.state = state;
        record
    }

    /// Takes the ready one and puts another in its place; the time of both.
    async fn claim(&self) -> anyhow::Result<Duration> {
        let claim = Claim {
            golden: self.golden.clone(),
            now: self.now,
            expires_at: self.now + SignedDuration::from_secs(60),
            idempotency_key: None,
        };
        let begun = Instant::now();
        let claimed = self.store.claim(claim).await?;
        self.store.insert(self.record(State::Ready)).await?;
        let took = begun.elapsed();
        let Claimed::New(claimed) = claimed else { anyhow::bail!("nothing was claimed: {claimed:?}") };
        self.store.remove(&claimed.id).await?;
        Ok(took)
    }

    async fn look(&self, what: &str) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        match what {
            "claim" => return self.claim().await,
            "counts" => drop(self.store.counts(&self.golden).await?),
            "due" => drop(self.store.due(self.now, 256).await?),
            _ => drop(self.store.own().await?),
        }
        Ok(begun.elapsed())
    }
}

fn measure(criterion: &mut Criterion, runtime: &Runtime, shop: &Shop, present: usize) -> anyhow::Result<()> {
    for what in ["claim", "counts", "due", "own"] {
        let mut failed = None;
        let mut group = criterion.benchmark_group(format!("growth/{what}"));
        group.sample_size(20).sampling_mode(SamplingMode::Flat);
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
        group.bench_function(BenchmarkId::from_parameter(present), |bencher| {
            bencher.iter_custom(|iterations| {
                let mut total = Duration::ZERO;
                for _ in 0..iterations {
                    match runtime.block_on(shop.look(what)) {
                        Ok(took) => total += took,
                        Err(error) => failed = Some(error),
                    }
                }
                // Criterion takes no zero.
                total.max(Duration::from_nanos(1))
            });
        });
        group.finish();
        if let Some(error) = failed {
            return Err(error);
        }
    }
    Ok(())
}

/// This process's memory, in bytes (proc_pid_statm(5)).
fn resident() -> anyhow::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split_whitespace().nth(1).unwrap_or_default().parse()?;
    Ok(pages * rustix::param::page_size() as u64)
}
