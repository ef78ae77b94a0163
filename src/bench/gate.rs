//! Is this program slower than an earlier one? Two programs, the same machine,
//! the same goldens, turn by turn.
//!
//! Called by `bench --against`. A turn is a few iterations by either program, one
//! right after the other, and gives one ratio of medians for each number; who is
//! first changes from turn to turn. Absolute times mean nothing here.
//!
//! ```text
//! the interval of the ratio  all above 1.10   worse: the gate is shut
//!                            all below 1.10   fine
//!                            around it        in doubt: more turns, up to a bound;
//!                                             what is then still in doubt passes, and is told
//! ```

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

/// How much slower is a regression.
pub const TOLERATED: f64 = 1.10;

/// Turns before the first verdict; fewer give no interval worth the name.
const TURNS_MIN: usize = 8;

/// Turns at most: a noisy machine shall not keep the gate busy for ever.
const TURNS_MAX: usize = 24;

/// Iterations of each way in a turn: their median forgets one that was disturbed.
const ITERATIONS: &str = "3";

/// One program's turn: some twenty restores, each a second at the very most.
const TURN_DEADLINE: Duration = Duration::from_secs(300);

/// Resamplings of the bootstrap; more move the bounds by less than a percent.
const RESAMPLINGS: usize = 2_000;

/// The interval is to hold the true ratio in 99 of 100 runs: several numbers are
/// judged at once, and a false alarm costs somebody an afternoon.
const TAIL: f64 = 0.005;

/// The numbers that are compared.
pub const NUMBERS: [(&str, &str); 4] = [
    ("direct", "running_ms"),
    ("direct", "first_200_ms"),
    ("empty-pool", "first_200_ms"),
    ("pool", "running_ms"),
];

/// What the turns say of one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Surely less than the tolerated amount slower.
    Fine,
    /// Surely more.
    Worse,
    /// Neither.
    InDoubt,
}

/// One number's ratios, summed up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judgement {
    /// The median ratio, this program to the other: above 1 is slower.
    pub ratio: f64,
    /// The interval.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// The verdict.
    pub verdict: Verdict,
}

/// Judges ratios, one for each turn; none when there are none.
#[must_use]
pub fn judge(ratios: &[f64]) -> Option<Judgement> {
    let ratio = median(ratios.to_vec())?;
    // The same ratios always give the same verdict.
    let mut random = rand::rngs::StdRng::seed_from_u64(ratios.len() as u64);
    let resampled = || {
        let sample = (0..ratios.len()).map(|_| ratios[random.random_range(0..ratios.len())]).collect();
        median(sample).unwrap_or(ratio)
    };
    let mut medians: Vec<f64> = std::iter::repeat_with(resampled).take(RESAMPLINGS).collect();
    medians.sort_by(f64::total_cmp);
    let at = |part: f64| medians[((RESAMPLINGS - 1) as f64 * part).round() as usize];
    let (low, high) = (at(TAIL), at(1.0 - TAIL));
    let verdict = match (low > TOLERATED, high < TOLERATED) {
        (true, _) => Verdict::Worse,
        (false, true) => Verdict::Fine,
        (false, false) => Verdict::InDoubt,
    };
    Some(Judgement { ratio, low, high, verdict })
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (upper, lower) = (values.get(values.len() / 2)?, values.get(values.len().saturating_sub(1) / 2)?);
    Some(f64::midpoint(*upper, *lower))
}

/// A program could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// It does not start, or its output is lost.
    #[error("cannot run {program}")]
    Run {
        /// Which.
        program: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It takes too long.
    #[error("{program} did not end within {} s", TURN_DEADLINE.as_secs())]
    Deadline {
        /// Which.
        program: String,
    },
    /// It failed; it has said why on stderr.
    #[error("{program} ended with {status}")]
    Failed {
        /// Which.
        program: String,
        /// How.
        status: std::process::ExitStatus,
    },
    /// Its report has not what is compared.
    #[error("the report of {program} lacks {way} {number}: is it too old to be compared with?")]
    Report {
        /// Which.
        program: String,
        /// Which way.
        way: &'static str,
        /// Which of its numbers.
        number: &'static str,
    },
}

/// One program's medians, in the order of [`NUMBERS`].
async fn turn(program: &Path) -> Result<[f64; NUMBERS.len()], GateError> {
    let name = || program.display().to_string();
    let ways = ["--ways", "direct,pool,empty-pool", "--concurrent", "0", "--nth", "0", "-n", ITERATIONS];
    let run = tokio::process::Command::new(program)
        .args(["bench", "--json"])
        .args(ways)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(TURN_DEADLINE, run).await;
    let output = output.map_err(|_| GateError::Deadline { program: name() })?;
    let output = output.map_err(|source| GateError::Run { program: name(), source })?;
    if !output.status.success() {
        return Err(GateError::Failed { program: name(), status: output.status });
    }
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let mut medians = [0.0; NUMBERS.len()];
    for (median, (way, number)) in medians.iter_mut().zip(NUMBERS) {
        *median = median_of(&report, way, number).ok_or_else(|| GateError::Report {
            program: name(),
            way,
            number,
        })?;
    }
    Ok(medians)
}

fn median_of(report: &Value, way: &str, number: &str) -> Option<f64> {
    let ways = report["ways"].as_array()?;
    let result = ways.iter().find(|result| result["way"] == way)?;
    result[number]["median"].as_f64().filter(|median| *median > 0.0)
}

/// Compares `present` with `baseline`, until nothing is in doubt or the turns are
/// used up; answers a judgement for each of [`NUMBERS`], and the turns taken.
///
/// # Errors
/// [`GateError`].
pub async fn compare(
    baseline: &Path,
    present: &Path,
    say: &(dyn Fn(&str) + Sync),
) -> Result<(Vec<Judgement>, usize), GateError> {
    let mut ratios = [const { Vec::new() }; NUMBERS.len()];
    // One of each for nothing: page cache, and snapshots prepared.
    say("warming up");
    turn(baseline).await?;
    turn(present).await?;
    for turns in 1..=TURNS_MAX {
        say(&format!("turn {turns}, of {TURNS_MIN} to {TURNS_MAX}"));
        let (base, own) = if turns % 2 == 0 {
            let base = turn(baseline).await?;
            (base, turn(present).await?)
        } else {
            let own = turn(present).await?;
            (turn(baseline).await?, own)
        };
        for (ratios, (own, base)) in ratios.iter_mut().zip(own.into_iter().zip(base)) {
            ratios.push(own / base);
        }
        let judgements: Vec<Judgement> = ratios.iter().filter_map(|ratios| judge(ratios)).collect();
        let in_doubt = judgements.iter().any(|judgement| judgement.verdict == Verdict::InDoubt);
        if turns == TURNS_MAX || (turns >= TURNS_MIN && !in_doubt) {
            return Ok((judgements, turns));
        }
    }
    unreachable!("the last turn returns")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ratios around `centre`, off by up to `noise` of it, now and then by far more.
    fn noisy(centre: f64, noise: f64, turns: usize, seed: u64) -> Vec<f64> {
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let one = |n| {
            let off = 1.0 + noise * (random.random::<f64>() * 2.0 - 1.0);
            centre * off * if n % 7 == 3 { 2.0 } else { 1.0 }
        };
        (0..turns).map(one).collect()
    }

    #[test]
    fn a_noisy_machine_does_not_shut_the_gate() {
        let shut = (0..40).filter(|seed| {
            let judged = judge(&noisy(1.0, 0.4, TURNS_MAX, *seed)).unwrap();
            judged.verdict == Verdict::Worse
        });
        assert_eq!(shut.count(), 0, "the programs are equally fast");
    }

    #[test]
    fn what_is_far_slower_is_found_in_noise() {
        for seed in 0..10 {
            let judged = judge(&noisy(1.3, 0.1, TURNS_MAX, seed)).unwrap();
            assert_eq!(judged.verdict, Verdict::Worse, "{judged:?}");
        }
    }

    #[test]
    fn what_is_just_as_fast_passes_at_once_on_a_quiet_machine() {
        let judged = judge(&noisy(1.0, 0.03, TURNS_MIN, 1)).unwrap();
        assert!(judged.low <= judged.ratio && judged.ratio <= judged.high);
        let without_far: Vec<f64> =
            noisy(1.0, 0.03, TURNS_MIN, 1).into_iter().filter(|it| *it < 1.5).collect();
        assert_eq!(judge(&without_far).unwrap().verdict, Verdict::Fine);
        assert_eq!(judge(&[1.0, 1.3, 1.05, 1.2, 1.0, 1.3, 0.9, 1.2]).unwrap().verdict, Verdict::InDoubt);
        assert_eq!(judge(&[]), None);
    }

    #[test]
    fn numbers_are_found_in_a_report() {
        let report = serde_json::json!({"ways": [{"way": "pool", "running_ms": {"median": 0.9}}]});
        assert_eq!(median_of(&report, "pool", "running_ms"), Some(0.9));
        assert_eq!(median_of(&report, "direct", "running_ms"), None);
    }
}
