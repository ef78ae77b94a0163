//! `logs ID`: the log files that the golden's recipe names, read from outside.

use std::path::Path;

use anyhow::Context as _;
use http::Method;

use super::client::{Api, text};
use super::{Context, Output, local};
use crate::golden::recipe::Recipe;
use crate::id::InstanceId;
use crate::restore::personalize;
use crate::snapshot::catalog::Catalog;

/// How much of a file is read: a stranger may have filled it.
const MOST: u64 = 1 << 20;

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
        for file in files {
            let content = match personalize::read_end(pid, Path::new(&file), MOST) {
                Ok(content) => String::from_utf8_lossy(&content).into_owned(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                // One spoilt file hides no other.
                Err(error) => format!("(cannot be read: {error})"),
            };
            let lines: Vec<&str> = content.lines().collect();
            let shown = lines[lines.len().saturating_sub(self.tail)..].join("\n");
            if context.output == Output::Text {
                println!("==> {file} <==\n{}", harmless(&shown));
            }
            all.insert(file, shown.into());
        }
        match context.output {
            Output::Json => super::client::print_json(&all.into()),
            Output::Text => Ok(()),
        }
    }
}

/// A text that tells a terminal nothing but letters: it was written by strangers.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c }).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_sends_no_orders_to_the_terminal() {
        assert_eq!(harmless("one\n\ttwo \u{1b}]0;owned\u{7}"), "one\n\ttwo \u{fffd}]0;owned\u{fffd}");
    }
}
