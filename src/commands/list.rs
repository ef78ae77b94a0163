//! `ls`: all instances of the daemon on this host.

use comfy_table::Cell;
use http::Method;
use jiff::SignedDuration;
use serde_json::Value;

use super::client::{Api, print_json, text};
use super::paint::{self, Tone};
use super::{Context, Output};

/// `ls`
#[derive(Debug, clap::Args)]
pub(super) struct Ls {}

impl Ls {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let answer = Api::of(context)?.call(Method::GET, "/api/v1/demo", None).await?;
        if context.output == Output::Json {
            return print_json(&answer);
        }
        let mut table = paint::table(["ID", "GOLDEN", "STATE", "MADE BY", "LEFT", "URL"]);
        for instance in answer["instances"].as_array().into_iter().flatten() {
            let [id, golden, made_by, url] =
                ["id", "golden", "made_by", "url"].map(|field| Cell::new(text(instance, field)));
            let state = text(instance, "state");
            table.add_row([id, golden, tone(&state).cell(state), made_by, Cell::new(left(instance)), url]);
        }
        println!("{table}");
        Ok(())
    }
}

fn tone(state: &str) -> Tone {
    match state {
        "ready" | "assigned" => Tone::Good,
        "failed" => Tone::Bad,
        _ => Tone::Notice,
    }
}

fn left(instance: &Value) -> String {
    match instance["ttl_seconds"].as_i64() {
        Some(seconds) => format!("{:#}", SignedDuration::from_secs(seconds)),
        None => "-".into(),
    }
}
