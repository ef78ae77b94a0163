//! `doctor`: what this host lacks, and what is on it that nobody knows of.

use std::process::ExitCode;

use anyhow::Context as _;
use http::Method;
use serde_json::Value;

use super::client::{Api, print_json, text};
use super::{Context, Output, paint};
use crate::api::AuditAnswer;
use crate::app::{AppError, StateLock};
use crate::caretaker;
use crate::doctor::{self, Form};
use crate::host::slots;

/// `doctor`
#[derive(Debug, clap::Args)]
pub(super) struct Doctor {
    /// List what instances left on this host (processes, mounts, namespaces, databases, files ...) and nobody has a
    /// record of
    #[arg(long)]
    audit: bool,
    /// Take down what is found
    #[arg(long, requires = "audit")]
    fix: bool,
}

impl Doctor {
    /// Fails, without an error of its own, when no shop can be frozen and
    /// restored here, or when an audit finds what should not be there.
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        if self.audit {
            let found = self.found(context).await?;
            return print(context, &found);
        }
        let findings = doctor::examine(&context.config).await;
        let form = match context.output {
            Output::Json => Form::Json,
            Output::Text => Form::Colored,
        };
        let report = doctor::report(&findings, form);
        // Without the colours where no terminal is.
        anstream::print!("{}", report.text);
        Ok(if report.possible { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Asks the daemon that runs on STATE_DIR, which knows what it is about to
    /// do; without one, looks by itself.
    async fn found(&self, context: &Context) -> anyhow::Result<Value> {
        let config = &context.config;
        // Without it none has ever run here.
        if !slots::instances(&config.state_dir).is_dir() {
            return Ok(serde_json::to_value(AuditAnswer::nothing(self.fix))?);
        }
        match StateLock::take(config) {
            Ok(lock) => {
                let audit = caretaker::audit(config, &lock, self.fix).await?;
                Ok(serde_json::to_value(AuditAnswer::from(audit))?)
            }
            Err(AppError::AlreadyRunning { .. }) => {
                let method = if self.fix { Method::POST } else { Method::GET };
                let asked = Api::of(context)?.call(method, "/api/v1/audit", None).await;
                asked.context("a daemon runs on STATE_DIR, and only it can tell what is nobody's")
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn print(context: &Context, found: &Value) -> anyhow::Result<ExitCode> {
    let code = if found["clean"] == true { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if context.output == Output::Json {
        print_json(found)?;
        return Ok(code);
    }
    let list = |field: &str| found[field].as_array().cloned().unwrap_or_default();
    let (all, left) = (list("found"), list("left"));
    if !all.is_empty() {
        let mut table = paint::table(["KIND", "OF", "WHAT", ""]);
        for one in &all {
            let done = match (&found["left"], left.contains(one)) {
                (Value::Null, _) => "",
                (_, true) => "still there",
                (_, false) => "taken down",
            };
            table.add_row([text(one, "kind"), text(one, "owner"), text(one, "what"), done.to_owned()]);
        }
        println!("{table}");
    }
    for error in list("not_searched") {
        println!("not searched: {}", error.as_str().unwrap_or_default());
    }
    match (all.len(), &found["left"]) {
        (0, _) => println!("Nothing is here that nobody knows of."),
        (n, Value::Null) => println!("{n} found; take them down with: doctor --audit --fix"),
        (n, _) => println!("{n} found, {} left.", left.len()),
    }
    Ok(code)
}
