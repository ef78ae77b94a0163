//! `pool show|target|drain|undrain`: what a running daemon keeps ready.

use comfy_table::Cell;
use http::Method;
use serde_json::{Value, json};

use super::client::{Api, print_json, text};
use super::{Context, Output, paint};
use crate::id::NodeName;

const DRAIN: &str = "/api/v1/pool/drain";

/// `pool`
#[derive(Debug, clap::Args)]
pub(super) struct Pool {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Show what is ready and what is wanted
    Show,
    /// Keep so many ready from now on, until the daemon is started again (--golden says of which)
    Target {
        /// How many; what the settings say when left out
        target: Option<usize>,
    },
    /// Hand out nothing and make nothing; what is there stays
    Drain(OfNode),
    /// Hand out and make instances again
    Undrain(OfNode),
}

/// Whose pool.
#[derive(Debug, clap::Args)]
struct OfNode {
    /// Another node's, by its name
    #[arg(long)]
    node: Option<String>,
}

impl OfNode {
    fn path(&self) -> anyhow::Result<String> {
        let Some(node) = &self.node else { return Ok(DRAIN.to_owned()) };
        // A name needs no escaping in a query.
        let node: NodeName = node.parse()?;
        Ok(format!("{DRAIN}?node={node}"))
    }
}

impl Pool {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let api = Api::of(context)?;
        match self.verb {
            Verb::Show => show(context, &api.call(Method::GET, "/api/v1/pool/stats", None).await?),
            Verb::Target { target } => {
                // Only the flag: GOLDEN in the environment says what a daemon serves.
                let golden = context.flags.get("GOLDEN");
                let mut body = json!({});
                if let Some(golden) = golden {
                    body["golden"] = json!(golden);
                }
                if let Some(target) = target {
                    body["target"] = json!(target);
                }
                let answer = api.call(Method::PUT, "/api/v1/pool/target", Some(body)).await?;
                targets(context, &answer)
            }
            Verb::Drain(of) => drained(context, &api.call(Method::POST, &of.path()?, None).await?),
            Verb::Undrain(of) => drained(context, &api.call(Method::DELETE, &of.path()?, None).await?),
        }
    }
}

fn show(context: &Context, answer: &Value) -> anyhow::Result<()> {
    if context.output == Output::Json {
        return print_json(answer);
    }
    let mut table = paint::table(["GOLDEN", "TARGET", "READY", "ASSIGNED", "COMING"]);
    for golden in answer["goldens"].as_array().into_iter().flatten() {
        let states = &golden["states"];
        let row = [
            text(golden, "golden"),
            text(golden, "target"),
            text(states, "ready"),
            text(states, "assigned"),
            text(golden, "in_flight"),
        ];
        table.add_row(row.map(Cell::new));
    }
    println!("{table}");
    if answer["drained"] == true {
        println!("The pool is drained: `demo-multiplexer pool undrain` has it filled again");
    }
    Ok(())
}

fn targets(context: &Context, answer: &Value) -> anyhow::Result<()> {
    if context.output == Output::Json {
        return print_json(answer);
    }
    for golden in answer["goldens"].as_array().into_iter().flatten() {
        println!("{}: {} are to be ready", text(golden, "golden"), text(golden, "target"));
    }
    Ok(())
}

fn drained(context: &Context, answer: &Value) -> anyhow::Result<()> {
    if context.output == Output::Json {
        return print_json(answer);
    }
    match answer["since"].as_str() {
        Some(since) => println!("drained since {since}"),
        None => println!("not drained"),
    }
    Ok(())
}
