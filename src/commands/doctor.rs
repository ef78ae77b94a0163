//! `demo-multiplexer doctor`: what this host lacks, and what to do about it.

use std::io::Write as _;
use std::process::ExitCode;

use crate::config::Config;
use crate::doctor::{self, Form};

/// Examines the host and prints what was found; fails when no shop can be
/// frozen and restored here.
///
/// # Errors
/// When the report cannot be printed.
pub async fn run(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let findings = doctor::examine(config).await;
    let report = doctor::report(&findings, if json { Form::Json } else { Form::Text });
    std::io::stdout().write_all(report.text.as_bytes())?;
    Ok(if report.possible { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
