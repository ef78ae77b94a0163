//! The knee: how many visitors a second the service can take, and what it does
//! with twice as many.
//!
//! Called by `bench --load RATE --knee`. Steps:
//!
//! ```text
//! RATE, then half as many more each time, until a step does not hold ([`holds`])
//! the last rate that held is the knee
//! twice the knee: it has to refuse, at once, what it cannot take
//! half the knee, right after: it has to take all again
//! ```

use serde::Serialize;

use super::load::{self, LoadReport, Offer};

/// The 99th percentile of an acquire beyond which the service does not keep up:
/// twice what it promises for half of them.
const P99_MAX_MS: f64 = 1000.0;

/// What part of the acquires may go wrong.
const WRONG_MAX: f64 = 0.01;

/// How much more each step offers.
const STEP: f64 = 1.5;

/// So many steps at most: 1.5 to the 20th is 3,325 times the first rate.
const STEPS_MAX: usize = 20;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Knee {
    /// Visitors a second; none when already the first step did not hold.
    pub knee: Option<f64>,
    /// Each step.
    pub steps: Vec<LoadReport>,
    /// At twice the knee.
    pub overload: Option<LoadReport>,
    /// At half the knee, right after that.
    pub after: Option<LoadReport>,
}

/// Whether the service kept up.
#[must_use]
pub fn holds(report: &LoadReport) -> bool {
    let acquire = &report.acquire;
    let wrong = acquire.refused + acquire.failed;
    #[expect(clippy::cast_precision_loss, reason = "counts of visitors")]
    let part = wrong as f64 / (acquire.ok + wrong).max(1) as f64;
    acquire.ok > 0 && part <= WRONG_MAX && acquire.ms.p99 <= P99_MAX_MS
}

/// Finds the knee, from the offer's rate on.
///
/// # Errors
/// When the clock's thread cannot be started.
pub async fn find(offer: &Offer) -> std::io::Result<Knee> {
    let at = |rate: f64| load::run(Offer { rate, ..offer.clone() });
    let (mut knee, mut steps, mut rate) = (None, Vec::new(), offer.rate);
    while steps.len() < STEPS_MAX {
        let report = at(rate).await?;
        let held = holds(&report);
        steps.push(report);
        if !held {
            break;
        }
        knee = Some(rate);
        rate *= STEP;
    }
    let Some(found) = knee else { return Ok(Knee { knee, steps, overload: None, after: None }) };
    let (overload, after) = (at(found * 2.0).await?, at(found / 2.0).await?);
    Ok(Knee { knee, steps, overload: Some(overload), after: Some(after) })
}

impl Knee {
    /// The report as a Markdown table.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = match self.knee {
            Some(knee) => format!("The knee is at {knee:.1} visitors a second.\n\n"),
            None => "It does not keep up with the first rate.\n\n".to_owned(),
        };
        out += "| offered | came | ok | refused | failed | p50 ms | p99 | refused after p99 |\n\
                | ------- | ---- | -- | ------- | ------ | ------ | --- | ----------------- |\n";
        for report in self.steps.iter().chain(&self.overload).chain(&self.after) {
            let acquire = &report.acquire;
            out += &format!(
                "| {:.1} | {:.1} | {} | {} | {} | {:.1} | {:.1} | {:.1} |\n",
                report.offered,
                report.came,
                acquire.ok,
                acquire.refused,
                acquire.failed,
                acquire.ms.p50,
                acquire.ms.p99,
                acquire.refused_ms.p99
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::load::{Answers, Percentiles};

    fn report(ok: usize, refused: usize, p99: f64) -> LoadReport {
        let ms = Percentiles { p99, ..Percentiles::default() };
        let none = Answers { ok: 0, refused: 0, failed: 0, ms, refused_ms: ms };
        let acquire = Answers { ok, refused, ..none.clone() };
        LoadReport { offered: 1.0, came: 1.0, acquire, page: none.clone(), release: none, sources: [].into() }
    }

    #[test]
    fn a_step_holds_while_nearly_all_are_answered_in_time() {
        assert!(holds(&report(99, 1, 1000.0)));
        assert!(!holds(&report(98, 2, 10.0)), "refusals");
        assert!(!holds(&report(99, 1, 1000.1)), "late");
        assert!(!holds(&report(0, 0, 0.0)), "nobody was served");
    }
}
