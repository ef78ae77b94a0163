//! `bench`: every way to get a shop, side by side in one run.
//!
//! What else `bench` can do stands in [`super::bench_modes`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;

use super::bench_modes::{self, Load};
use super::client::print_json;
use super::progress::Progress;
use super::{Context, Output};
use crate::app::StateLock;
use crate::assemble::{self, Assembled, Host};
use crate::bench::at_rest;
use crate::bench::back_office::BackOffice;
use crate::bench::podman::{self, Stock};
use crate::bench::report::{Machine, PhaseResult, Report, Versions, WayResult};
use crate::bench::restore::Direct;
use crate::bench::service::Service;
use crate::bench::{Timing, Way};
use crate::config::Config;
use crate::engine::podman::profile;
use crate::host::{devices, facts};
use crate::snapshot::prepare;

/// A pool that one acquire does not empty.
const POOL_TARGET: usize = 2;

/// `bench`
#[derive(Debug, clap::Args)]
pub(super) struct Bench {
    /// Iterations of each way
    #[arg(short, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    n: u32,
    /// Only these ways, separated by commas, and nothing else
    #[arg(long, value_delimiter = ',', value_enum)]
    ways: Vec<Way>,
    /// How many clones are restored at once; 0 leaves this part out
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
    concurrent: Vec<usize>,
    /// Which clones of a growing crowd are shown; 0 leaves this part out
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 50])]
    nth: Vec<usize>,
    /// Also write the report and its plots into this directory
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Only draw one restore, phase by phase, with what CRIU's processes do
    #[arg(long, value_name = "FILE.svg", conflicts_with_all = ["against", "rate"])]
    trace: Option<PathBuf>,
    /// Only compare with an earlier build of this program, turn by turn; fails when this one is
    /// more than 10 % slower
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["trace", "rate"])]
    against: Option<PathBuf>,
    #[command(flatten)]
    load: Load,
    /// How many clones are measured for the memory and disk they take; 0 leaves this part out
    #[arg(long, default_value_t = 4)]
    memory: usize,
    /// In how many shops the back office's first page is compared with its tenth; 0 leaves this
    /// part out
    #[arg(long, value_name = "N", default_value_t = 5)]
    back_office: usize,
}

impl Bench {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let progress = Progress::start();
        let say = |step: &str| progress.say(step);
        if let Some(file) = &self.trace {
            return bench_modes::trace(&context.config, file, &say).await;
        }
        if let Some(program) = &self.against {
            return bench_modes::against(context, program, &say).await;
        }
        if let Some(rate) = self.load.rate {
            return bench_modes::load(context, &self.load, rate).await;
        }
        drop(progress);
        self.side_by_side(context).await
    }

    async fn side_by_side(self, context: &Context) -> anyhow::Result<()> {
        let mut config = context.config.clone();
        config.goldens.truncate(1);
        config.slots_ahead = config.slots_ahead.max(1);
        let ways = if self.ways.is_empty() { Way::ALL.to_vec() } else { self.ways.clone() };
        let progress = Progress::start();
        let say = |step: &str| progress.say(step);
        let mut report = self.raw(&config, &ways, &say).await?;
        for (way, target, source) in [(Way::Pool, POOL_TARGET, "pool"), (Way::EmptyPool, 0, "restore")] {
            if ways.contains(&way) {
                let timings = self.acquires(&config, target, source, &say).await?;
                report.ways.extend(WayResult::of(way, &timings));
            }
        }
        if self.back_office > 0 && ways.contains(&Way::Pool) {
            report.back_office = self.back_office(&config, &say).await?;
        }
        drop(progress);
        if let Some(dir) = &self.report {
            bench_modes::write_report(&report, dir)?;
        }
        match context.output {
            Output::Json => print_json(&serde_json::to_value(&report)?),
            Output::Text => {
                print!("{}", report.to_text());
                Ok(())
            }
        }
    }

    /// The ways without the service around them.
    async fn raw(
        &self,
        config: &Config,
        ways: &[Way],
        say: &(dyn Fn(&str) + Sync),
    ) -> anyhow::Result<Report> {
        let _lock = StateLock::take(config).context("the bench needs the machine for itself")?;
        let host = Host::open(config).await?;
        let shared = Arc::new(config.clone());
        let name = config.goldens.first().context("no golden is named")?;
        let golden = assemble::golden(name, &shared, &host).await?;
        let mut report = Report {
            golden: golden.recipe.name.to_string(),
            store: config.store.kind(),
            router: config.router.kind(),
            machine: machine(&config.state_dir),
            versions: versions().await?,
            ways: Vec::new(),
            phases: Vec::new(),
            concurrent: Vec::new(),
            nth: Vec::new(),
            footprints: Vec::new(),
            at_rest: None,
            back_office: None,
        };
        self.stock(&golden, config, ways, &mut report, say).await?;
        if let Ok(maker) = &golden.runtime.restore {
            let direct = Direct {
                engine: Arc::clone(maker.engine()),
                slots: Arc::clone(&host.slots),
                ready: golden.recipe.ready.clone(),
                concurrency: config.restore_concurrency,
            };
            self.direct(&direct, ways, &mut report, say).await?;
            // It is no way to get a shop: it goes with the whole.
            if let Some(prepared) = golden.prepared.as_ref().filter(|_| self.ways.is_empty()) {
                say("the snapshot at rest");
                report.at_rest = Some(at_rest::measure(config, &prepared.manifest).await?);
            }
            if ways.contains(&Way::Direct) {
                let mut makings = Vec::new();
                for n in 1..=self.n {
                    say(&format!("whole shop {n} of {}", self.n));
                    makings.push(direct.make(maker.as_ref()).await?);
                }
                report.phases = PhaseResult::of(&makings);
            }
        }
        let engines = golden.runtime.engines();
        if let Some(failed) = assemble::drain(&host.slots, &engines).await.into_iter().next() {
            return Err(failed.into());
        }
        Ok(report)
    }

    /// Podman's own ways.
    async fn stock(
        &self,
        golden: &Assembled,
        config: &Config,
        ways: &[Way],
        report: &mut Report,
        say: &(dyn Fn(&str) + Sync),
    ) -> anyhow::Result<()> {
        let image = golden.image.as_ref().context("the golden's image is not built")?;
        let devices = devices::ensure(&config.state_dir)?;
        let profile = profile::write(&config.state_dir)?;
        if ways.contains(&Way::Cold) {
            let mut timings = Vec::new();
            for n in 1..=self.n {
                say(&format!("cold start {n} of {}", self.n));
                timings.push(podman::cold(&golden.recipe, &image.id, &devices, &profile).await?);
            }
            report.ways.extend(WayResult::of(Way::Cold, &timings));
        }
        let imports = [(Way::PodmanImportZstd, "zstd"), (Way::PodmanImportNone, "none")];
        if !ways
            .iter()
            .any(|way| matches!(way, Way::PodmanImportZstd | Way::PodmanImportNone | Way::PodmanInPlace))
        {
            return Ok(());
        }
        let stock = Stock::boot(&golden.recipe, &image.id, &config.state_dir, say).await?;
        let measured = async {
            let mut exports = Vec::new();
            for (way, compress) in imports {
                if ways.contains(&way) {
                    exports.push((way, compress, stock.export(compress).await?));
                }
            }
            // Stops the golden: an import listens where it listened.
            stock.freeze().await?;
            for (way, compress, export) in exports {
                let mut timings = Vec::new();
                for n in 1..=self.n {
                    say(&format!("podman import ({compress}) {n} of {}", self.n));
                    timings.push(stock.import(&export).await?);
                }
                report.ways.extend(WayResult::of(way, &timings));
            }
            if ways.contains(&Way::PodmanInPlace) {
                let mut timings = Vec::new();
                for n in 1..=self.n {
                    say(&format!("podman restore in place {n} of {}", self.n));
                    timings.push(stock.in_place().await?);
                }
                report.ways.extend(WayResult::of(Way::PodmanInPlace, &timings));
            }
            anyhow::Ok(())
        };
        let measured = measured.await;
        stock.remove().await?;
        measured
    }

    /// Ours, raw.
    async fn direct(
        &self,
        direct: &Direct,
        ways: &[Way],
        report: &mut Report,
        say: &(dyn Fn(&str) + Sync),
    ) -> anyhow::Result<()> {
        if ways.contains(&Way::Direct) {
            let mut timings = Vec::new();
            for n in 1..=self.n {
                say(&format!("direct restore {n} of {}", self.n));
                timings.push(direct.once().await?);
            }
            report.ways.extend(WayResult::of(Way::Direct, &timings));
        }
        for &clones in self.concurrent.iter().filter(|&&clones| clones > 0) {
            say(&format!("{clones} clones at once"));
            report.concurrent.push(direct.at_once(clones).await?);
        }
        let numbers: Vec<usize> = self.nth.iter().copied().filter(|&n| n > 0).collect();
        if !numbers.is_empty() {
            say("a growing crowd of clones");
            report.nth = direct.nth(&numbers).await?;
        }
        if self.memory > 0 {
            say(&format!("memory of {} clones", self.memory));
            report.footprints = direct.footprints(self.memory).await?;
        }
        Ok(())
    }

    /// The service's ways.
    async fn acquires(
        &self,
        config: &Config,
        target: usize,
        source: &str,
        say: &(dyn Fn(&str) + Sync),
    ) -> anyhow::Result<Vec<Timing>> {
        let times = self.n as usize;
        on_full_pools(config, target, times, async |service, n| {
            say(&format!("acquire (pool of {target}) {n} of {times}"));
            service.once(source).await
        })
        .await
    }

    /// The back office of shops from the pool.
    async fn back_office(
        &self,
        config: &Config,
        say: &(dyn Fn(&str) + Sync),
    ) -> anyhow::Result<Option<BackOffice>> {
        let times = self.back_office;
        let visits = on_full_pools(config, POOL_TARGET, times, async |service, n| {
            say(&format!("back office {n} of {times}"));
            service.back_office().await
        });
        let visits: Vec<_> = visits.await?.into_iter().flatten().collect();
        Ok(BackOffice::of(&visits))
    }
}

/// Does something so many times with a service whose pool is full each time.
async fn on_full_pools<T>(
    config: &Config,
    target: usize,
    times: usize,
    mut once: impl AsyncFnMut(&Service, usize) -> anyhow::Result<T>,
) -> anyhow::Result<Vec<T>> {
    let service = Service::start(config, target).await?;
    let measured = async {
        let mut all = Vec::with_capacity(times);
        for n in 1..=times {
            service.wait_until_full().await?;
            all.push(once(&service, n).await?);
        }
        anyhow::Ok(all)
    };
    let measured = measured.await;
    service.stop().await?;
    measured
}

fn machine(state_dir: &Path) -> Machine {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    Machine {
        cpu: name.trim_start_matches([' ', '\t', ':']).to_owned(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        memory_mib: kib.unwrap_or(0_u64) / 1024,
        file_system: facts::file_system(state_dir),
    }
}

async fn versions() -> anyhow::Result<Versions> {
    let host = prepare::host_facts().await?;
    Ok(Versions {
        demo_multiplexer: env!("CARGO_PKG_VERSION").into(),
        kernel: host.kernel,
        podman: host.podman,
        crun: host.crun,
        criu: host.criu,
    })
}
