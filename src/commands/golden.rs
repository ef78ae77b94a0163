//! `golden build|list`: the images that snapshots are taken of.

use std::path::Path;

use comfy_table::Cell;
use serde_json::json;

use super::client::print_json;
use super::paint::{self, Tone};
use super::progress::Progress;
use super::{Context, Output};
use crate::golden::build::{self, Build, Image};
use crate::golden::images::Images;
use crate::golden::recipe::{self, Recipe};

/// `golden`
#[derive(Debug, clap::Args)]
pub(super) struct Golden {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Build a golden's image, or find it built
    Build {
        /// A recipe's name or folder; GOLDEN's first when left out
        name: Option<String>,
    },
    /// List the recipes and their newest images
    List,
}

impl Golden {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self.verb {
            Verb::Build { name } => {
                let name = context.golden(name.as_deref());
                let (folder, recipe) = Recipe::load(name, &context.config.recipe_dir)?;
                let image = build_image(context, &folder, &recipe).await?;
                match context.output {
                    Output::Json => print_json(&serde_json::to_value(&image)?),
                    Output::Text => {
                        println!("{}", image.name);
                        Ok(())
                    }
                }
            }
            Verb::List => list(context).await,
        }
    }
}

/// Builds a recipe's image and shows the steps.
pub(super) async fn build_image(context: &Context, folder: &Path, recipe: &Recipe) -> anyhow::Result<Image> {
    let setting = recipe.source.as_ref().map_or("", |source| context.value(&source.env)).to_owned();
    let images = Images::of(&context.config)?;
    let state_dir = &context.config.state_dir;
    let build = Build { folder, recipe, source_setting: &setting, state_dir, images: &images };
    let progress = Progress::of_steps();
    let image = build::build(&build, &|step| progress.say(step)).await?;
    Ok(image)
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let images = Images::of(&context.config)?;
    let mut rows = Vec::new();
    for name in recipe::known(&context.config.recipe_dir) {
        let (_, recipe) = Recipe::load(&name, &context.config.recipe_dir)?;
        // Without Podman or Docker the recipes are still worth listing.
        let image = images.newest(&recipe.name).await.ok().flatten();
        rows.push((recipe, image));
    }
    if context.output == Output::Json {
        let rows = rows.iter().map(|(recipe, image)| {
            json!({"name": recipe.name, "title": recipe.title, "version": recipe.version, "image": image})
        });
        return print_json(&rows.collect());
    }
    let mut table = paint::table(["NAME", "TITLE", "VERSION", "IMAGE"]);
    for (recipe, image) in rows {
        let image = image.map_or_else(|| Tone::Notice.cell("not built"), |image| Cell::new(image.name));
        let [name, title, version] = [recipe.name.to_string(), recipe.title, recipe.version].map(Cell::new);
        table.add_row([name, title, version, image]);
    }
    println!("{table}");
    Ok(())
}
