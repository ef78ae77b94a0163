//! `logs ID`: the log files that the golden's recipe names, read from outside.

use anyhow::Context as _;
use http::Method;

use super::client::{Api, text};
use super::{Context, Output, local};
use crate::golden::recipe::Recipe;
use crate::id::InstanceId;
use crate::restore::logs;
use crate::snapshot::catalog::Catalog;

/// `logs`
#[derive(Debug, clap::Args)]
pub(super) struct Logs {
    /// Which instance
    id: InstanceId,
    /// Lines of each file
    #[arg(long, default_value_t = 50)]
    tail: usize,
}

impl Logs {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let pid = local::pid_of(context, &self.id).await?;
        let answer = Api::of(context)?.call(Method::GET, &format!("/api/v1/demo/{}", self.id), None).await?;
        let files = log_files(context, &text(&answer, "golden"))?;
        let mut all = serde_json::Map::new();
        for end in logs::ends(pid, &files, self.tail) {
            let shown = end.text.unwrap_or_else(|error| format!("(cannot be read: {error})"));
            if context.output == Output::Text {
                println!("==> {} <==\n{shown}", end.path);
            }
            all.insert(end.path, shown.into());
        }
        match context.output {
            Output::Json => super::client::print_json(&all.into()),
            Output::Text => Ok(()),
        }
    }
}

/// The log files of a golden: from its newest snapshot, else from its recipe.
fn log_files(context: &Context, golden: &str) -> anyhow::Result<Vec<String>> {
    let name = golden.parse()?;
    if let Some(manifest) = Catalog::of(&context.config)?.newest(&name, context.config.database_mode())? {
        return Ok(manifest.recipe.run.logs);
    }
    let recipe = Recipe::load(golden, &context.config.recipe_dir);
    let (_, recipe) = recipe
        .with_context(|| format!("no snapshot of {golden} here: set SNAPSHOT_DIR as the daemon has it"))?;
    Ok(recipe.run.logs)
}
