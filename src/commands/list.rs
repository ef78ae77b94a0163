//! `ls`: all instances of the daemon on this host.

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use http::Method;
use jiff::SignedDuration;
use serde_json::Value;

use super::client::{Api, print_json, text};
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
        let mut table = Table::new();
        table.load_style(NOTHING);
        table.set_header(["ID", "GOLDEN", "STATE", "MADE BY", "LEFT", "URL"]);
        for instance in answer["instances"].as_array().into_iter().flatten() {
            let fields = ["id", "golden", "state", "made_by"].map(|field| text(instance, field));
            let [id, golden, state, made_by] = fields;
            table.add_row([id, golden, state, made_by, left(instance), text(instance, "url")]);
        }
        println!("{table}");
        Ok(())
    }
}

fn left(instance: &Value) -> String {
    match instance["ttl_seconds"].as_i64() {
        Some(seconds) => format!("{:#}", SignedDuration::from_secs(seconds)),
        None => "-".into(),
    }
}
