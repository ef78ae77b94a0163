//! `bench` other than side by side: the report's files, one restore drawn, two
//! programs compared, a fixed rate of visitors.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use http::Uri;
use jiff::SignedDuration;

use super::client::{Api, print_json};
use super::{Context, Output};
use crate::app::StateLock;
use crate::assemble::{self, Host};
use crate::bench::gate::{self, NUMBERS, TOLERATED, Verdict};
use crate::bench::load::{self, Offer};
use crate::bench::report::Report;
use crate::bench::{knee, plot, trace};
use crate::config::Config;
use crate::engine::criu::CriuEngine;
use crate::restore::Maker;

/// Restores before the one that is drawn: a first one finds nothing in memory.
const WARM_UP: usize = 2;

/// A fixed rate of visitors.
#[derive(Debug, clap::Args)]
pub(super) struct Load {
    /// Only have visitors come to the running daemon, so many a second
    #[arg(long = "load", id = "rate", value_name = "RATE", value_parser = rate)]
    pub(super) rate: Option<f64>,
    /// For how long visitors come
    #[arg(long = "for", visible_alias = "duration", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    length: Duration,
    /// How long each of them stays
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    stay: Duration,
    /// How many pages each of them looks at
    #[arg(long, value_name = "N", default_value_t = 1)]
    browse: u32,
    /// Raise the rate step by step until the service cannot keep up, then offer it twice what it could, then half
    #[arg(long, requires = "rate")]
    knee: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: Option<f64> = text.parse().ok().filter(|rate| (0.01..=100_000.0).contains(rate));
    rate.ok_or_else(|| "visitors a second: a number from 0.01 to 100000".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration: Option<SignedDuration> = text.parse().ok();
    let wrong = || format!("{text:?}: a time such as 500ms, 30s or 2m");
    duration.and_then(|duration| duration.try_into().ok()).ok_or_else(wrong)
}

/// Writes table, numbers and plots, each under the golden's name.
pub(super) fn write_report(report: &Report, dir: &Path) -> anyhow::Result<()> {
    let golden = &report.golden;
    let write = |name: String, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut page = format!("## {golden}\n\n{}", report.to_text());
    for (name, svg) in plot::all(report) {
        let file = format!("{golden}-{name}.svg");
        page += &format!("\n![{golden}, {name}]({file})\n");
        write(file, &svg)?;
    }
    write(format!("{golden}.json"), &serde_json::to_string_pretty(report)?)?;
    write(format!("{golden}.md"), &page)
}

/// Draws one restore.
pub(super) async fn trace(config: &Config, file: &Path, say: &(dyn Fn(&str) + Sync)) -> anyhow::Result<()> {
    let mut config = config.clone();
    config.goldens.truncate(1);
    config.slots_ahead = config.slots_ahead.max(1);
    ensure!(
        config.database.is_none(),
        "--trace draws a shop with a database of its own: DATABASE_MODE=bundled"
    );
    let _lock = StateLock::take(&config).context("the bench needs the machine for itself")?;
    let host = Host::open(&config).await?;
    let shared = Arc::new(config);
    let name = shared.goldens.first().context("no golden is named")?;
    let golden = assemble::golden(name, &shared, &host).await?;
    let prepared = golden.prepared.context("there is no snapshot that could be restored")?;
    let engine = CriuEngine::new(prepared.source.clone(), Arc::clone(&host.slots));
    let engine: Arc<dyn crate::engine::ContainerEngine> =
        Arc::new(engine.context("cannot open the prepared snapshot")?.verbose());
    let maker = Maker::new(
        Arc::clone(&engine),
        Arc::clone(&golden.recipe),
        Arc::clone(&shared),
        Arc::clone(&host.supply),
    );
    let draw = async {
        let mut last = None;
        for n in 0..=WARM_UP {
            say(if n == WARM_UP { "tracing a restore" } else { "warming up" });
            assemble::fill(&host.slots, std::slice::from_ref(&engine)).await?;
            last = Some(trace::take(&maker, &host.slots, &engine.next_id()).await?);
        }
        anyhow::Ok(last)
    };
    let drawn = draw.await;
    let failed = assemble::drain(&host.slots, &[engine]).await.into_iter().next();
    let trace = drawn?.context("nothing was traced")?;
    if let Some(failed) = failed {
        return Err(failed.into());
    }
    std::fs::write(file, trace.to_svg(golden.recipe.name.as_str()))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// Compares with an earlier build; an error when this one is slower.
pub(super) async fn against(
    context: &Context,
    baseline: &Path,
    say: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<()> {
    let present = std::env::current_exe().context("cannot find this program's file")?;
    let (judgements, turns) = gate::compare(baseline, &present, say).await?;
    let mut worse = Vec::new();
    let mut rows = Vec::new();
    if context.output == Output::Text {
        println!("{turns} turns; ratios are this program's times to the baseline's\n");
        println!("| number                  | ratio | 99 % interval | verdict  |");
        println!("| ----------------------- | ----- | ------------- | -------- |");
    }
    for ((way, number), judged) in NUMBERS.iter().zip(&judgements) {
        let name = format!("{way} {number}");
        let verdict = match judged.verdict {
            Verdict::Fine => "fine",
            Verdict::Worse => "worse",
            Verdict::InDoubt => "in doubt",
        };
        if context.output == Output::Text {
            let interval = format!("{:.2} to {:.2}", judged.low, judged.high);
            println!("| {name:<23} | {:<5.2} | {interval:<13} | {verdict:<8} |", judged.ratio);
        }
        rows.push(serde_json::json!({
            "number": name, "ratio": judged.ratio, "low": judged.low, "high": judged.high, "verdict": verdict,
        }));
        if judged.verdict == Verdict::Worse {
            worse.push(name);
        }
    }
    if context.output == Output::Json {
        print_json(&serde_json::json!({ "turns": turns, "numbers": rows }))?;
    }
    let percent = (TOLERATED - 1.0) * 100.0;
    ensure!(
        worse.is_empty(),
        "more than {percent:.0} % slower than {}: {}",
        baseline.display(),
        worse.join(", ")
    );
    Ok(())
}

/// Has visitors come to the daemon that the settings name.
pub(super) async fn load(context: &Context, load: &Load, rate: f64) -> anyhow::Result<()> {
    let (base, authorization) = Api::of(context)?.into_parts();
    let uri: Uri = base.parse().context("API_URL is not a URL")?;
    let authority = uri.authority().context("API_URL names no host")?;
    let door = (authority.host(), authority.port_u16().unwrap_or(80));
    let mut addresses =
        tokio::net::lookup_host(door).await.with_context(|| format!("cannot find {authority}"))?;
    let address = addresses.next().with_context(|| format!("{authority} has no address"))?;
    let offer =
        Offer { address, authorization, rate, length: load.length, stay: load.stay, pages: load.browse };
    if load.knee {
        let knee = knee::find(&offer).await.context("cannot keep time")?;
        return match context.output {
            Output::Json => print_json(&serde_json::to_value(&knee)?),
            Output::Text => {
                print!("{}", knee.to_text());
                Ok(())
            }
        };
    }
    let report = load::run(offer).await.context("cannot keep time")?;
    match context.output {
        Output::Json => print_json(&serde_json::to_value(&report)?),
        Output::Text => {
            print!("{}", report.to_text());
            Ok(())
        }
    }
}
