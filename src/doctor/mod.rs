//! What this host lacks, and what to do about it.
//!
//! Called by `demo-multiplexer doctor` and by whoever wants to explain why a
//! host is not fit. Phases: [`probe`] looks and tries, and judges nothing;
//! [`judge`] is pure and turns what was seen into findings; [`report`] writes
//! them down. What can be tried is tried (an overlay is mounted, a process of
//! another user is frozen and thawed), because a kernel's configuration does
//! not say what a container, a policy or a missing privilege forbids.
//!
//! Invariant: nothing that was made for a trial is left, and no trial touches
//! an instance.

mod cgroups;
mod database;
mod docker;
mod doors;
mod facts;
mod judge;
mod nats;
mod packages;
mod probe;
mod router;
mod trial;
mod way_out;

#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::config::Config;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Shops can be made; something else is slower or missing.
    Warn,
    /// No shop can be frozen and restored here, or booted by Docker.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name; kept stable for programs that read the JSON form.
    pub name: &'static str,
    /// How much it matters.
    pub status: Status,
    /// What was seen.
    pub seen: String,
    /// What to do; nothing when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// How a report is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// For people, with the colours of a terminal.
    Colored,
    /// One object: `{"possible": bool, "findings": [...]}`.
    Json,
}

/// What was found, written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The text, with its last newline.
    pub text: String,
    /// Whether a shop can be made on this host.
    pub possible: bool,
}

/// Looks at this host; takes about a second.
pub async fn examine(config: &Config) -> Vec<Finding> {
    judge::judge(&probe::probe(config).await, config)
}

/// Writes findings down.
#[must_use]
pub fn report(findings: &[Finding], form: Form) -> Report {
    let possible = findings.iter().all(|finding| finding.status != Status::Fail);
    let text = match form {
        Form::Text => as_text(findings, false),
        Form::Colored => as_text(findings, true),
        Form::Json => {
            let object = serde_json::json!({ "possible": possible, "findings": findings });
            format!("{object:#}\n")
        }
    };
    Report { text, possible }
}

fn as_text(findings: &[Finding], colored: bool) -> String {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Finding { name, status, seen, advice } in findings {
        let (word, color) = match status {
            Status::Ok => ("ok", AnsiColor::Green),
            Status::Warn => ("warn", AnsiColor::Yellow),
            Status::Fail => ("FAIL", AnsiColor::Red),
        };
        let style = if colored { color.on_default() } else { Style::new() };
        // Further lines, such as the end of a log, stand under the first.
        let seen = seen.replace('\n', &format!("\n{:1$}", "", width + 8));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{style}{word:<4}{style:#}  {name:<width$}  {seen}");
        if let Some(advice) = advice {
            let _ = writeln!(text, "{:1$}-> {advice}", "", width + 8);
        }
    }
    let count = |status| findings.iter().filter(|finding| finding.status == status).count();
    let (failures, warnings) = (count(Status::Fail), count(Status::Warn));
    // Docker is looked at only where it is to boot them.
    let by_docker = findings.iter().any(|finding| finding.name == "docker");
    let made = if by_docker { "booted" } else { "frozen and restored" };
    let _ = match (failures, warnings) {
        (0, 0) => writeln!(text, "\nThis host is fit: shops can be {made} here."),
        (0, n) => writeln!(text, "\nShops can be {made} here; {n} to improve."),
        (n, _) => writeln!(text, "\nShops cannot be {made} here: {n} to mend."),
    };
    text
}
