//! The report's plots: where a restore's time goes, how times are spread, how
//! they grow with clones. Pure.

use super::report::{Report, WayResult, name_of};
use super::svg::{Anchor, Area, Bar, Labels, Scale, Svg};

/// Wide enough for a README, which shows it at most this wide.
const WIDTH: f64 = 760.0;

/// One row of a timeline.
const ROW: f64 = 26.0;

/// The plots that the report has data for, each with the end of its file name.
#[must_use]
pub fn all(report: &Report) -> Vec<(&'static str, String)> {
    let plots = [
        ("timeline", (!report.phases.is_empty()).then(|| timeline(report))),
        ("latency", (!report.ways.is_empty()).then(|| latency(report))),
        ("scaling", (!report.concurrent.is_empty()).then(|| scaling(report))),
    ];
    plots.into_iter().filter_map(|(name, plot)| Some((name, plot?))).collect()
}

/// Phases one below the other, each beginning where the last one ended.
fn timeline(report: &Report) -> String {
    let phases = &report.phases;
    let height = 120.0 + phases.len() as f64 * ROW;
    let title = format!("One restored {} shop, by phase (medians)", report.golden);
    let mut svg = Svg::new(WIDTH, height, &title);
    let all: f64 = phases.iter().map(|phase| phase.ms.median).sum();
    // Rows are counted from below, as a y axis is.
    let rows = phases.len() as f64;
    let area = Area::draw(
        &mut svg,
        (Scale::linear(all * 1.15), Scale::Rows),
        Labels { x: "ms since the restore was asked for", y: "" },
    );
    let mut begin = 0.0;
    for (n, phase) in phases.iter().enumerate() {
        let (x, _) = area.at(begin, 0.0);
        let (end, bottom) = area.at(begin + phase.ms.median, 0.0);
        let y = bottom - (rows - n as f64) * ROW + 3.0;
        let words = format!("{} {:.1} ms", phase.phase, phase.ms.median);
        let tip = format!("{words} (p95 {:.1} ms)", phase.ms.p95);
        svg.bar(Bar { x, y, width: end - x, height: ROW - 6.0, colour: n, tip: &tip });
        svg.text((end + 6.0, y + 14.0), Anchor::Start, &words);
        begin += phase.ms.median;
    }
    svg.finish()
}

/// How many of 100 were at least as fast, for each way.
fn latency(report: &Report) -> String {
    let title = format!("From the click to the first page of a {} shop", report.golden);
    // Seven names stand in one row.
    let mut svg = Svg::new(WIDTH + 240.0, 400.0, &title);
    let every = || report.ways.iter().flat_map(|way| &way.first_200_samples_ms).copied();
    let (least, most) = (every().fold(f64::MAX, f64::min), every().fold(0.0, f64::max));
    let area = Area::draw(
        &mut svg,
        (Scale::log(least.min(most), most), Scale::Linear(100.0)),
        Labels { x: "ms to the first 200 of the front page (logarithmic)", y: "% of the iterations" },
    );
    for (n, WayResult { way, first_200_ms, first_200_samples_ms, .. }) in report.ways.iter().enumerate() {
        let mut samples = first_200_samples_ms.clone();
        samples.sort_by(f64::total_cmp);
        let share = 100.0 / samples.len().max(1) as f64;
        let mut points = Vec::with_capacity(samples.len() * 2);
        for (n, &sample) in samples.iter().enumerate() {
            points.push(area.at(sample, n as f64 * share));
            points.push(area.at(sample, (n + 1) as f64 * share));
        }
        svg.path(&points, n);
        let tip = format!("{}: median {:.1} ms", name_of(*way), first_200_ms.median);
        svg.dot(area.at(first_200_ms.median, 50.0), n, &tip);
    }
    let names: Vec<String> = report.ways.iter().map(|way| name_of(way.way)).collect();
    let legend: Vec<(usize, &str)> = names.iter().map(String::as_str).enumerate().collect();
    svg.legend((150.0, 48.0), &legend);
    svg.finish()
}

/// Clones at once against the time until all, and half of them, answered.
fn scaling(report: &Report) -> String {
    let title = format!("{} clones restored at once", report.golden);
    let mut svg = Svg::new(WIDTH, 360.0, &title);
    let clones = report.concurrent.iter().map(|point| point.clones).max().unwrap_or(1);
    let most = report.concurrent.iter().map(|point| point.all_200_ms).fold(0.0, f64::max);
    let area = Area::draw(
        &mut svg,
        (Scale::linear(clones as f64), Scale::linear(most)),
        Labels { x: "clones restored at once", y: "ms to the first 200 of the front page" },
    );
    let all: Vec<_> = report.concurrent.iter().map(|point| (point.clones, point.all_200_ms)).collect();
    let half: Vec<_> =
        report.concurrent.iter().map(|point| (point.clones, point.first_200_ms.median)).collect();
    for (colour, points) in [all, half].iter().enumerate() {
        let places: Vec<_> = points.iter().map(|&(clones, ms)| area.at(clones as f64, ms)).collect();
        svg.path(&places, colour);
        for (&(clones, ms), &(x, y)) in points.iter().zip(&places) {
            svg.dot((x, y), colour, &format!("{clones} clones: {ms:.0} ms"));
            if colour == 0 {
                svg.text((x - 6.0, y - 8.0), Anchor::End, &format!("{ms:.0}"));
            }
        }
    }
    svg.legend((480.0, 48.0), &[(0, "all answer"), (1, "half of them do")]);
    svg.finish()
}
