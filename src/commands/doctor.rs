//! `doctor`: what this host lacks, and what to do about it.

use std::process::ExitCode;

use super::{Context, Output};
use crate::doctor::{self, Form};

/// `doctor`
#[derive(Debug, clap::Args)]
pub(super) struct Doctor {}

impl Doctor {
    /// Fails, without an error of its own, when no shop can be frozen and
    /// restored here.
    pub(super) async fn run(self, context: &Context) -> ExitCode {
        let findings = doctor::examine(&context.config).await;
        let form = match context.output {
            Output::Json => Form::Json,
            Output::Text => Form::Colored,
        };
        let report = doctor::report(&findings, form);
        // Without the colours where no terminal is.
        anstream::print!("{}", report.text);
        if report.possible { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
