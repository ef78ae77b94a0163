//! `webhook test`: tells every receiver that this is a trial, once, and says what
//! each answered.
//!
//! Needs no daemon: it signs with the secret of the settings, so a receiver that
//! takes the trial takes the daemon's events too.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, bail};
use comfy_table::Cell;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::client::print_json;
use super::paint::{self, Tone};
use super::{Context, Output};
use crate::error::Chain;
use crate::webhook::notice::Notice;
use crate::webhook::send::Sender;

/// `webhook`
#[derive(Debug, clap::Args)]
pub(super) struct Webhook {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Send a signed trial to each of WEBHOOK_URLS; fails when one does not take it
    Test,
}

impl Webhook {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<ExitCode> {
        let Verb::Test = self.verb;
        let Some(webhooks) = &context.config.webhooks else {
            bail!("WEBHOOK_URLS is empty: set it, and WEBHOOK_SECRET_FILE, as the daemon has them");
        };
        let secret = webhooks.secret.load()?;
        let senders = Sender::all(&webhooks.urls, &secret).context("cannot make an HTTP client")?;
        let notice = Notice::test(Timestamp::now(), context.config.node.clone());
        let mut results = Vec::new();
        for sender in senders {
            let begun = Instant::now();
            let sent = sender.send(&notice).await;
            let error = sent.err().map(|error| Chain(&error).to_string());
            let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            results.push(
                json!({"url": sender.url().to_string(), "took": error.is_none(), "error": error, "ms": took}),
            );
        }
        let all_took = results.iter().all(|result| result["took"] == true);
        match context.output {
            Output::Json => print_json(&json!({ "webhooks": results }))?,
            Output::Text => print_table(&results),
        }
        Ok(if all_took { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn print_table(results: &[Value]) {
    let mut table = paint::table(["WEBHOOK", "MS", "RESULT"]);
    for result in results {
        let said = match result["error"].as_str() {
            None => Tone::Good.cell("took it"),
            Some(error) => Tone::Bad.cell(error),
        };
        let url = Cell::new(result["url"].as_str().unwrap_or_default());
        table.add_row([url, Cell::new(&result["ms"]), said]);
    }
    println!("{table}");
}
