//! `save`, `saved`: shops that their visitors keep.

use std::io::BufRead as _;

use anyhow::Context as _;
use comfy_table::Cell;
use http::Method;
use serde_json::json;

use super::client::{Api, print_fields, print_json, text};
use super::{Context, Output, paint, promote};
use crate::id::{GoldenName, InstanceId};

/// `save ID`
#[derive(Debug, clap::Args)]
pub(super) struct Save {
    /// Which instance
    id: InstanceId,
}

impl Save {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let path = format!("/api/v1/demo/{}/save", self.id);
        let answer = Api::of(context)?.call(Method::POST, &path, None).await?;
        match context.output {
            Output::Json => print_json(&answer)?,
            Output::Text => print_fields(
                &answer,
                &[("Id", "id"), ("Key", "key"), ("Kept until", "until"), ("Bytes", "bytes")],
            ),
        }
        Ok(())
    }
}

/// `saved ls|open|publish|withdraw|rm`
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
        /// The instance that it was
        id: InstanceId,
        /// For how long, such as 30m; without it DEFAULT_TTL
        #[arg(long, allow_hyphen_values = true)]
        ttl: Option<String>,
    },
    /// Make a golden of a kept shop, which the daemon serves from then on
    Publish {
        /// The instance that it was
        id: InstanceId,
        /// What the golden is to be called
        golden: GoldenName,
        /// What people are told of it
        #[arg(long)]
        title: Option<String>,
        /// How many of it are to be ready; without it as many as before, or 1
        #[arg(long)]
        pool: Option<usize>,
    },
    /// Serve a golden no more that was made of a kept shop
    Withdraw {
        /// The golden
        golden: GoldenName,
    },
    /// Remove a kept shop
    Rm {
        /// The instance that it was
        id: InstanceId,
    },
}

impl Saved {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let api = Api::of(context)?;
        match self.what {
            What::Ls => list(context, &api).await,
            What::Open { id, ttl } => open(context, &api, &id, ttl).await,
            What::Publish { id, golden, title, pool } => {
                let body = json!({ "golden": golden.as_str(), "title": title, "pool": pool });
                let begun =
                    api.call(Method::POST, &format!("/api/v1/saved/{id}/publish"), Some(body)).await?;
                promote::follow(context, &api, &begun).await
            }
            What::Withdraw { golden } => {
                let begun = api.call(Method::DELETE, &format!("/api/v1/goldens/{golden}"), None).await?;
                promote::follow(context, &api, &begun).await
            }
            What::Rm { id } => {
                api.call(Method::DELETE, &format!("/api/v1/saved/{id}"), None).await?;
                match context.output {
                    Output::Json => print_json(&json!({ "id": id.as_str(), "removed": true }))?,
                    Output::Text => println!("{id} removed"),
                }
                Ok(())
            }
        }
    }
}

async fn open(context: &Context, api: &Api, id: &InstanceId, ttl: Option<String>) -> anyhow::Result<()> {
    let mut key = String::new();
    std::io::stdin().lock().read_line(&mut key).context("no key on the standard input")?;
    let mut body = json!({ "key": key.trim() });
    if let Some(ttl) = ttl {
        body["ttl"] = ttl.into();
    }
    let answer = api.call(Method::POST, &format!("/api/v1/saved/{id}/open"), Some(body)).await?;
    let fields = [("Shop", "url"), ("Id", "id"), ("Until", "expires_at"), ("Took (ms)", "acquire_ms")];
    match context.output {
        Output::Json => print_json(&answer)?,
        Output::Text => print_fields(&answer, &fields),
    }
    Ok(())
}

async fn list(context: &Context, api: &Api) -> anyhow::Result<()> {
    let answer = api.call(Method::GET, "/api/v1/saved", None).await?;
    if context.output == Output::Json {
        return print_json(&answer);
    }
    let mut table = paint::table(["ID", "GOLDEN", "SAVED", "UNTIL", "BYTES"]);
    for saved in answer["saved"].as_array().into_iter().flatten() {
        let fields = ["id", "golden", "saved_at", "until", "bytes"];
        table.add_row(fields.map(|field| Cell::new(text(saved, field))));
    }
    println!("{table}");
    for broken in answer["unreadable"].as_array().into_iter().flatten() {
        eprintln!("{} cannot be read: {}", text(broken, "id"), text(broken, "why"));
    }
    Ok(())
}
