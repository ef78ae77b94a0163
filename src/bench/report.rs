//! What the bench found, as a table and as JSON. Pure.

use std::time::Duration;

use serde::Serialize;

use super::at_rest::AtRest;
use super::back_office::BackOffice;
use super::{Timing, Way};
use crate::engine::Phase;
use crate::host::memory::Memory;

/// Median and high percentiles, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The 95th percentile, by nearest rank.
    pub p95: f64,
    /// The 99th percentile, by nearest rank: below 100 iterations the slowest.
    pub p99: f64,
}

impl Spread {
    /// Summarises durations; none when there are none.
    #[must_use]
    pub fn of(durations: &[Duration]) -> Option<Self> {
        let mut sorted: Vec<f64> = durations.iter().map(|d| d.as_secs_f64() * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        let rank =
            |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => *sorted.get(middle)?,
            _ => (sorted.get(middle.checked_sub(1)?)? + sorted.get(middle)?) / 2.0,
        };
        Some(Self { median: round(median), p95: round(rank(95)?), p99: round(rank(99)?) })
    }
}

/// Bytes in MiB.
pub(super) fn mib(bytes: f64) -> f64 {
    round(bytes / f64::from(1 << 20))
}

/// A hundredth of a millisecond is below what any run repeats.
fn round(ms: f64) -> f64 {
    (ms * 100.0).round() / 100.0
}

/// One way's result.
#[derive(Debug, Clone, Serialize)]
pub struct WayResult {
    /// Which way.
    pub way: Way,
    /// How many iterations.
    pub n: usize,
    /// To running.
    pub running_ms: Spread,
    /// To the first 200 of the front page.
    pub first_200_ms: Spread,
    /// Each iteration's, in order.
    pub first_200_samples_ms: Vec<f64>,
}

impl WayResult {
    /// Summarises a way's iterations; none when there are none.
    #[must_use]
    pub fn of(way: Way, timings: &[Timing]) -> Option<Self> {
        let running: Vec<Duration> = timings.iter().map(|timing| timing.running).collect();
        let first: Vec<Duration> = timings.iter().map(|timing| timing.first_200).collect();
        Some(Self {
            way,
            n: timings.len(),
            running_ms: Spread::of(&running)?,
            first_200_ms: Spread::of(&first)?,
            first_200_samples_ms: first.iter().map(|it| round(it.as_secs_f64() * 1e3)).collect(),
        })
    }
}

/// One phase of making a shop.
#[derive(Debug, Clone, Serialize)]
pub struct PhaseResult {
    /// Its name.
    pub phase: &'static str,
    /// How long it took.
    pub ms: Spread,
}

impl PhaseResult {
    /// Summarises what several makings took, phase by phase, in their order.
    #[must_use]
    pub fn of(makings: &[Vec<(Phase, Duration)>]) -> Vec<Self> {
        let first = makings.first().map(Vec::as_slice).unwrap_or_default();
        let summed = first.iter().filter_map(|(phase, _)| {
            let same = makings.iter().flatten().filter(|(other, _)| other == phase);
            let took: Vec<Duration> = same.map(|(_, took)| *took).collect();
            Some(Self { phase: phase.as_str(), ms: Spread::of(&took)? })
        });
        summed.collect()
    }
}

/// Many clones at once.
#[derive(Debug, Clone, Serialize)]
pub struct Concurrent {
    /// How many.
    pub clones: usize,
    /// Until the last one's front page answered 200.
    pub all_200_ms: f64,
    /// Until each one's did.
    pub first_200_ms: Spread,
}

/// The n-th clone while all before it live.
#[derive(Debug, Clone, Serialize)]
pub struct Nth {
    /// Its number.
    pub clone: usize,
    /// To running.
    pub running_ms: f64,
    /// To the first 200 of its front page.
    pub first_200_ms: f64,
}

impl Nth {
    /// One clone's result.
    #[must_use]
    pub fn of(clone: usize, timing: Timing) -> Self {
        let ms = |duration: Duration| round(duration.as_secs_f64() * 1e3);
        Self { clone, running_ms: ms(timing.running), first_200_ms: ms(timing.first_200) }
    }
}

/// What one clone takes of the host, in the mean of all that live.
#[derive(Debug, Clone, Serialize)]
pub struct Footprint {
    /// When it was looked at.
    pub when: &'static str,
    /// How many clones lived.
    pub clones: usize,
    /// All of its memory, in MiB: its share of mapped pages, and shared memory
    /// that it has not touched.
    pub memory_mib: f64,
    /// Its share of mapped pages (PSS), in MiB.
    pub pss_mib: f64,
    /// Of it, pages that are nobody else's and on no disk.
    pub private_dirty_mib: f64,
    /// Pages that others have mapped too.
    pub shared_mib: f64,
    /// Swapped out.
    pub swap_mib: f64,
    /// Disk, in MiB.
    pub disk_mib: f64,
}

impl Footprint {
    /// Of the clones' mean and the disk for each, in bytes.
    #[must_use]
    pub fn of(
        when: &'static str,
        clones: usize,
        mean: impl Fn(fn(&Memory) -> u64) -> f64,
        disk: f64,
    ) -> Self {
        Self {
            when,
            clones,
            memory_mib: mib(mean(Memory::total)),
            pss_mib: mib(mean(|memory| memory.proportional)),
            private_dirty_mib: mib(mean(|memory| memory.private_dirty)),
            shared_mib: mib(mean(|memory| memory.shared)),
            swap_mib: mib(mean(|memory| memory.swapped)),
            disk_mib: mib(disk),
        }
    }

    fn row(&self) -> [String; 8] {
        let mib = |value: f64| format!("{value:.1}");
        [
            self.when.to_owned(),
            self.clones.to_string(),
            mib(self.memory_mib),
            mib(self.pss_mib),
            mib(self.private_dirty_mib),
            mib(self.shared_mib),
            mib(self.swap_mib),
            format!("{:.2}", self.disk_mib),
        ]
    }
}

/// The machine measured on.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Cores.
    pub cores: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// The state directory's file system.
    pub file_system: String,
}

/// Versions measured with.
#[derive(Debug, Clone, Serialize)]
pub struct Versions {
    /// This program's.
    pub demo_multiplexer: String,
    /// The kernel's.
    pub kernel: String,
    /// Podman's.
    pub podman: String,
    /// crun's.
    pub crun: String,
    /// CRIU's.
    pub criu: String,
}

/// All of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The golden's name.
    pub golden: String,
    /// What keeps the service's state.
    pub store: &'static str,
    /// What leads visitors to instances.
    pub router: &'static str,
    /// Where.
    pub machine: Machine,
    /// With what.
    pub versions: Versions,
    /// One entry a way.
    pub ways: Vec<WayResult>,
    /// Where the time of a restore goes, the first page included.
    pub phases: Vec<PhaseResult>,
    /// Many at once.
    pub concurrent: Vec<Concurrent>,
    /// One after the other.
    pub nth: Vec<Nth>,
    /// What they take.
    pub footprints: Vec<Footprint>,
    /// The snapshot itself.
    pub at_rest: Option<AtRest>,
    /// The back office's first page and a later one.
    pub back_office: Option<BackOffice>,
}

impl Report {
    fn median(&self, way: Way, of: fn(&WayResult) -> Spread) -> Option<f64> {
        self.ways.iter().find(|result| result.way == way).map(|result| of(result).median)
    }

    /// Rows of the table of ways: name, n, five times, and how many times
    /// faster than Podman's zstd import (to running) and than a cold start (to
    /// the first 200).
    #[must_use]
    pub fn rows(&self) -> Vec<[String; 9]> {
        let import = self.median(Way::PodmanImportZstd, |result| result.running_ms);
        let cold = self.median(Way::Cold, |result| result.first_200_ms);
        let times = |base: Option<f64>, own: f64| match base {
            Some(base) if own > 0.0 => format!("{:.1}x", base / own),
            _ => String::new(),
        };
        self.ways
            .iter()
            .map(|result| {
                [
                    name_of(result.way),
                    result.n.to_string(),
                    format!("{:.1}", result.running_ms.median),
                    format!("{:.1}", result.running_ms.p95),
                    format!("{:.1}", result.running_ms.p99),
                    format!("{:.1}", result.first_200_ms.median),
                    format!("{:.1}", result.first_200_ms.p95),
                    times(import, result.running_ms.median),
                    times(cold, result.first_200_ms.median),
                ]
            })
            .collect()
    }

    /// The report as text: tables in Markdown, fit for the README.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = format!(
            "golden {}, store {}, router {}, {} ({} cores, {} MiB, {}), kernel {}, podman {}, {}, criu {}\n\n",
            self.golden,
            self.store,
            self.router,
            self.machine.cpu,
            self.machine.cores,
            self.machine.memory_mib,
            self.machine.file_system,
            self.versions.kernel,
            self.versions.podman,
            self.versions.crun,
            self.versions.criu,
        );
        if !self.ways.is_empty() {
            let head =
                ["way", "n", "running ms", "p95", "p99", "first 200 ms", "p95", "vs import zstd", "vs cold"];
            out += &table(&head.map(str::to_owned), &self.rows());
        }
        if !self.phases.is_empty() {
            let rows: Vec<[String; 3]> = self
                .phases
                .iter()
                .map(|it| [it.phase.to_owned(), format!("{:.1}", it.ms.median), format!("{:.1}", it.ms.p95)])
                .collect();
            out += "\n";
            out += &table(&["phase of a restore", "ms", "p95"].map(str::to_owned), &rows);
        }
        if !self.concurrent.is_empty() {
            let rows: Vec<[String; 4]> = self
                .concurrent
                .iter()
                .map(|c| {
                    let ms = |value: f64| format!("{value:.0}");
                    [
                        c.clones.to_string(),
                        ms(c.all_200_ms),
                        ms(c.first_200_ms.median),
                        ms(c.first_200_ms.p95),
                    ]
                })
                .collect();
            out += "\n";
            out +=
                &table(&["clones at once", "all answer ms", "first 200 ms", "p95"].map(str::to_owned), &rows);
        }
        if !self.nth.is_empty() {
            let rows: Vec<[String; 3]> = self
                .nth
                .iter()
                .map(|n| {
                    [n.clone.to_string(), format!("{:.1}", n.running_ms), format!("{:.1}", n.first_200_ms)]
                })
                .collect();
            out += "\n";
            out += &table(&["clone number", "running ms", "first 200 ms"].map(str::to_owned), &rows);
        }
        if !self.footprints.is_empty() {
            let head = ["a clone", "of", "memory MiB", "PSS", "private dirty", "shared", "swap", "disk MiB"];
            let rows: Vec<[String; 8]> = self.footprints.iter().map(Footprint::row).collect();
            out += "\n";
            out += &table(&head.map(str::to_owned), &rows);
        }
        if let Some(at_rest) = &self.at_rest {
            let head = ["memory MiB", "unpacked", "files MiB", "unpacked", "prepare ms", "p95"];
            out += "\n";
            out += &table(&head.map(str::to_owned), &[at_rest.row()]);
        }
        if let Some(back_office) = &self.back_office {
            out += "\n";
            out += &table(&["back office", "n", "ms", "p95"].map(str::to_owned), &back_office.rows());
        }
        out
    }
}

/// A way's name on the command line.
#[must_use]
pub fn name_of(way: Way) -> String {
    clap::ValueEnum::to_possible_value(&way).map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn table<const N: usize>(head: &[String; N], rows: &[[String; N]]) -> String {
    let width: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].len()).chain([head[column].len()]).max().unwrap_or(0)
    });
    let line = |cells: &[String; N]| {
        let cells: Vec<String> =
            cells.iter().zip(width).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule: [String; N] = std::array::from_fn(|column| "-".repeat(width[column]));
    let body: String = rows.iter().map(line).collect();
    line(head) + &line(&rule) + &body
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(values: &[u64]) -> Vec<Duration> {
        values.iter().map(|&value| Duration::from_millis(value)).collect()
    }

    #[test]
    fn median_and_p95_are_those_of_the_book() {
        assert_eq!(Spread::of(&ms(&[3, 1, 2])), Some(Spread { median: 2.0, p95: 3.0, p99: 3.0 }));
        assert_eq!(Spread::of(&ms(&[4, 1, 2, 3])).map(|s| s.median), Some(2.5));
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(Spread::of(&ms(&hundred)), Some(Spread { median: 50.5, p95: 95.0, p99: 99.0 }));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn ways_have_the_names_of_the_fixed_interface() {
        let names: Vec<String> = Way::ALL.iter().map(|way| serde_json::to_string(way).unwrap()).collect();
        let wanted = "\"cold\" \"podman-import-zstd\" \"podman-import-none\" \"podman-in-place\" \"direct\" \"pool\" \"empty-pool\"";
        assert_eq!(names.join(" "), wanted);
    }

    #[test]
    fn phases_keep_their_order_and_are_summed_up_over_makings() {
        let making = |slot, restore| {
            vec![(Phase::Slot, Duration::from_millis(slot)), (Phase::Restore, Duration::from_millis(restore))]
        };
        let phases = PhaseResult::of(&[making(1, 50), making(3, 60), making(2, 40)]);
        let found: Vec<_> = phases.iter().map(|it| (it.phase, it.ms.median)).collect();
        assert_eq!(found, [("slot", 2.0), ("restore", 50.0)]);
        assert!(PhaseResult::of(&[]).is_empty());
    }
}
