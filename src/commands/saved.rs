//! `save`, `saved`: shops that their visitors keep.

use std::io::BufRead as _;

use anyhow::Context as _;
use comfy_table::Cell;
use http::Method;
use serde_json::json;

use super::client::{Api, print_fields, print_json, text};
use super::{Context, Output, paint};
use crate::id::{InstanceId, SavedName};

/// `save ID NAME`
#[derive(Debug, clap::Args)]
pub(super) struct Save {
    /// Which instance
    id: InstanceId,
    /// What it is to be called
    name: SavedName,
}

impl Save {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let path = format!("/api/v1/demo/{}/save", self.id);
        let answer = Api::of(context)?.call(Method::POST, &path, Some(json!({ "name": self.name }))).await?;
        match context.output {
            Output::Json => print_json(&answer)?,
            Output::Text => print_fields(&answer, &[("Name", "name"), ("Key", "key"), ("Until", "until")]),
        }
        Ok(())
    }
}

/// `saved ls|open|rm`
#[derive(Debug, clap::Args)]
pub(super) struct Saved {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// List all kept shops
    Ls,
    /// Open a kept shop; its key is read from the standard input
    Open {
        /// What it is called
        name: SavedName,
        /// For how long, such as 30m; without it DEFAULT_TTL
        #[arg(long, allow_hyphen_values = true)]
        ttl: Option<String>,
    },
    /// Remove a kept shop
    Rm {
        /// What it is called
        name: SavedName,
    },
}

impl Saved {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let api = Api::of(context)?;
        match self.what {
            What::Ls => list(context, &api).await,
            What::Open { name, ttl } => {
                let mut key = String::new();
                std::io::stdin().lock().read_line(&mut key).context("no key on the standard input")?;
                let mut body = json!({ "key": key.trim() });
                if let Some(ttl) = ttl {
                    body["ttl"] = ttl.into();
                }
                let answer =
                    api.call(Method::POST, &format!("/api/v1/saved/{name}/open"), Some(body)).await?;
                match context.output {
                    Output::Json => print_json(&answer)?,
                    Output::Text => print_fields(
                        &answer,
                        &[
                            ("Shop", "url"),
                            ("Id", "id"),
                            ("Until", "expires_at"),
                            ("Took (ms)", "acquire_ms"),
                        ],
                    ),
                }
                Ok(())
            }
            What::Rm { name } => {
                api.call(Method::DELETE, &format!("/api/v1/saved/{name}"), None).await?;
                match context.output {
                    Output::Json => print_json(&json!({ "name": name, "removed": true }))?,
                    Output::Text => println!("{name} removed"),
                }
                Ok(())
            }
        }
    }
}

async fn list(context: &Context, api: &Api) -> anyhow::Result<()> {
    let answer = api.call(Method::GET, "/api/v1/saved", None).await?;
    if context.output == Output::Json {
        return print_json(&answer);
    }
    let mut table = paint::table(["NAME", "GOLDEN", "SAVED", "UNTIL", "BYTES", "ID"]);
    for saved in answer["saved"].as_array().into_iter().flatten() {
        let fields = ["name", "golden", "saved_at", "until", "bytes", "id"];
        table.add_row(fields.map(|field| Cell::new(text(saved, field))));
    }
    println!("{table}");
    Ok(())
}
