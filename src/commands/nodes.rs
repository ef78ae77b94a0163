//! `nodes`: the hosts that share the store, as the daemon on this one sees them.

use comfy_table::Cell;
use http::Method;
use serde_json::Value;

use super::client::{Api, print_json, text};
use super::paint::{self, Tone};
use super::{Context, Output};

/// `nodes`
#[derive(Debug, clap::Args)]
pub(super) struct Nodes {}

impl Nodes {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let answer = Api::of(context)?.call(Method::GET, "/api/v1/nodes", None).await?;
        if context.output == Output::Json {
            return print_json(&answer);
        }
        let mut table = paint::table(["NODE", "ADDRESS", "CONDITION", "READY", "ROOM", "VERSION"]);
        for node in answer["nodes"].as_array().into_iter().flatten() {
            let [name, address, version] =
                ["node", "address", "version"].map(|field| Cell::new(text(node, field)));
            let (condition, tone) = condition(node);
            let room = Cell::new(format!("{} of {}", text(node, "room"), text(node, "max_instances")));
            table.add_row([name, address, tone.cell(condition), Cell::new(ready(node)), room, version]);
        }
        println!("{table}");
        Ok(())
    }
}

fn condition(node: &Value) -> (String, Tone) {
    let condition = text(node, "condition");
    match (condition.as_str(), node["drained"] == true) {
        ("here", true) => ("drained".to_owned(), Tone::Notice),
        ("here", false) => (condition, Tone::Good),
        ("lost", _) => (condition, Tone::Bad),
        _ => {
            let silent = node["silent_ms"].as_u64().unwrap_or_default() / 1000;
            (format!("{condition} for {silent} s"), Tone::Notice)
        }
    }
}

/// `shop 4, other 0`
fn ready(node: &Value) -> String {
    let goldens = node["goldens"].as_array().into_iter().flatten();
    let each: Vec<String> =
        goldens.map(|golden| format!("{} {}", text(golden, "golden"), text(golden, "ready"))).collect();
    each.join(", ")
}
