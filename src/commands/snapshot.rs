//! `snapshot create|list|inspect|verify`: the catalogue of snapshots; `promote` and
//! `refresh` ask the daemon ([`super::promote`]), `rm` and `prune` are [`super::removal`]'s.

use anyhow::{Context as _, ensure};
use comfy_table::Cell;
use serde_json::json;

use super::client::print_json;
use super::paint::{self, Tone};
use super::progress::Progress;
use super::{Context, Output, golden, promote, removal};
use crate::checkpoint::{self, Checkpoint, Origin};
use crate::courier;
use crate::database::Server;
use crate::error::Chain;
use crate::golden::recipe::Recipe;
use crate::id::{GoldenName, SnapshotId};
use crate::snapshot::catalog::{Catalog, Entry};
use crate::snapshot::depot::Moved;
use crate::snapshot::manifest::Manifest;
use crate::snapshot::prepare;

/// `snapshot`
#[derive(Debug, clap::Args)]
pub(super) struct Snapshot {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Boot, warm and freeze a golden; builds its image first if need be
    Create {
        /// A recipe's name or folder; GOLDEN's first when left out
        name: Option<String>,
        /// Of each golden that GOLDEN names, one after the other
        #[arg(long, conflicts_with = "name")]
        all: bool,
        /// Do nothing when the newest snapshot was taken of the recipe as it is now, on a host like this
        #[arg(long)]
        if_missing: bool,
    },
    /// List the snapshots
    List,
    /// Show a snapshot's manifest
    Inspect {
        /// Which
        id: SnapshotId,
    },
    /// Check a snapshot's archives, and what is prepared of it, against their digests
    Verify {
        /// Which; all when left out
        id: Option<SnapshotId>,
    },
    /// Trust a snapshot that came from elsewhere or from an older version: sign it with this host's key
    Sign {
        /// Which
        id: SnapshotId,
    },
    /// Say where this host's public key lies, for other hosts to trust
    Key,
    /// Have the running daemon try a snapshot and serve it
    Promote {
        /// Which
        id: SnapshotId,
    },
    /// The same with the newest snapshot that was not refused
    Refresh {
        /// Of which golden; GOLDEN's first when left out
        name: Option<String>,
    },
    /// Send a snapshot to the other hosts' NATS, with its image
    Push {
        /// Which; the newest of GOLDEN's first when left out
        id: Option<SnapshotId>,
    },
    /// Fetch a snapshot that another host has sent
    Pull {
        /// Which; the newest of GOLDEN's first when left out
        id: Option<SnapshotId>,
    },
    /// Remove a snapshot that nothing is made of and nobody stands on, and what was prepared of it
    Rm {
        /// Which
        id: SnapshotId,
    },
    /// Remove old snapshots that no instance runs on, and what was prepared of them
    Prune {
        /// How many of each golden stay
        #[arg(long, default_value_t = 2)]
        keep: usize,
    },
}

impl Snapshot {
    pub(super) async fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut catalog = Catalog::of(&context.config)?;
        match self.verb {
            Verb::Create { all: true, if_missing, .. } => {
                for name in &context.config.goldens {
                    print_manifest(context, &create(context, &catalog, name, if_missing).await?)?;
                }
                Ok(())
            }
            Verb::Create { name, if_missing, .. } => {
                let name = context.golden(name.as_deref());
                print_manifest(context, &create(context, &catalog, name, if_missing).await?)
            }
            Verb::List => list(context, &catalog),
            Verb::Inspect { id } => print_json(&serde_json::to_value(catalog.inspect(&id)?)?),
            Verb::Verify { id } => verify(context, &catalog, id),
            Verb::Sign { id } => print_manifest(context, &catalog.sign(&id)?),
            Verb::Key => {
                let path = catalog.public_key()?;
                match context.output {
                    Output::Json => print_json(&json!({"public_key": path})),
                    Output::Text => {
                        println!("{}", path.display());
                        Ok(())
                    }
                }
            }
            Verb::Promote { id } => promote::promote(context, &id).await,
            Verb::Refresh { name } => promote::refresh(context, name.as_deref()).await,
            Verb::Push { id } => push(context, &catalog, id).await,
            Verb::Pull { id } => pull(context, &catalog, id).await,
            Verb::Rm { id } => removal::remove(context, &catalog, &id).await,
            Verb::Prune { keep } => removal::prune(context, &catalog, keep).await,
        }
    }
}

async fn create(
    context: &Context,
    catalog: &Catalog,
    name: &str,
    if_missing: bool,
) -> anyhow::Result<Manifest> {
    let (folder, recipe) = Recipe::load(name, &context.config.recipe_dir)?;
    let image = golden::build_image(context, &folder, &recipe).await?;
    if if_missing
        && let Some(newest) = catalog.newest(&recipe.name, context.config.database_mode())?
        && newest.recipe == recipe
        && newest.image_id == image.id
        && crate::snapshot::compat::check(&newest.host, &prepare::host_facts().await?).is_ok()
    {
        return Ok(newest);
    }
    let progress = Progress::of_steps();
    let state_dir = &context.config.state_dir;
    let server = context.config.database.clone().map(Server::open).transpose()?;
    let (server, origin) = (server.as_ref(), Origin::Recipe);
    let from = Checkpoint { recipe: &recipe, image: &image, catalog, state_dir, server, origin };
    Ok(checkpoint::create(&from, &|step| progress.say(step)).await?)
}

/// The recipe's name of the golden that is meant when none is named.
fn golden_of(context: &Context) -> anyhow::Result<GoldenName> {
    Ok(Recipe::load(context.golden(None), &context.config.recipe_dir)?.1.name)
}

async fn push(context: &Context, catalog: &Catalog, id: Option<SnapshotId>) -> anyhow::Result<()> {
    let id = match id {
        Some(id) => id,
        None => {
            let newest = catalog.chosen(&golden_of(context)?, context.config.database_mode())?;
            newest.context("there is no snapshot to send: `snapshot create` takes one")?.id
        }
    };
    let progress = Progress::of_steps();
    let moved = courier::push(&context.config, catalog, &id, &|step| progress.say(step)).await?;
    told(context, &id, moved)
}

async fn pull(context: &Context, catalog: &Catalog, id: Option<SnapshotId>) -> anyhow::Result<()> {
    let id = match id {
        Some(id) => id,
        None => {
            let newest = courier::newest(&context.config, catalog, &golden_of(context)?).await?;
            newest.context("no host that is trusted has sent a snapshot of it: `snapshot push` does")?
        }
    };
    let progress = Progress::of_steps();
    let moved = courier::pull(&context.config, catalog, (None, &id), &|step| progress.say(step)).await?;
    told(context, &id, moved)
}

fn told(context: &Context, id: &SnapshotId, moved: Moved) -> anyhow::Result<()> {
    if context.output == Output::Json {
        return print_json(&json!({"id": id, "moved_bytes": moved.bytes, "spared_bytes": moved.spared}));
    }
    println!("{id}  {} moved, {} were there", mib(moved.bytes), mib(moved.spared));
    Ok(())
}

fn print_manifest(context: &Context, manifest: &Manifest) -> anyhow::Result<()> {
    if context.output == Output::Json {
        return print_json(&serde_json::to_value(manifest)?);
    }
    println!("{}", manifest.id);
    Ok(())
}

fn list(context: &Context, catalog: &Catalog) -> anyhow::Result<()> {
    let entries = catalog.list()?;
    if context.output == Output::Json {
        let entries = entries.iter().map(|Entry { id, manifest }| match manifest {
            Ok(manifest) => json!({"id": id, "manifest": manifest}),
            Err(error) => json!({"id": id, "error": Chain(error).to_string()}),
        });
        return print_json(&entries.collect());
    }
    let mut table = paint::table(["ID", "GOLDEN", "TAKEN", "SIZE", "STATE"]);
    for Entry { id, manifest } in entries {
        let (about, state) = match manifest {
            Ok(manifest) => {
                let bytes: u64 = manifest.archives.values().map(|archive| archive.bytes).sum();
                let taken = manifest.created_at.strftime("%Y-%m-%d %H:%M UTC").to_string();
                ([manifest.recipe.name.to_string(), taken, mib(bytes)], Tone::Good.cell("usable"))
            }
            Err(error) => (Default::default(), Tone::Bad.cell(Chain(&error).to_string())),
        };
        let [golden, taken, size] = about.map(Cell::new);
        table.add_row([Cell::new(id), golden, taken, size, state]);
    }
    println!("{table}");
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn verify(context: &Context, catalog: &Catalog, id: Option<SnapshotId>) -> anyhow::Result<()> {
    let ids = match id {
        // One that is not there is not damaged.
        Some(id) => vec![catalog.inspect(&id)?.id],
        None => catalog.list()?.into_iter().map(|entry| entry.id).collect(),
    };
    let (mut broken, mut spoilt, mut results) = (Vec::new(), Vec::new(), Vec::new());
    for id in ids {
        let problem = match catalog.verify(&id) {
            Ok(manifest) => verify_prepared(context, &manifest).inspect(|_| spoilt.push(id.to_string())),
            Err(error) => {
                broken.push(id.to_string());
                Some(Chain(&error).to_string())
            }
        };
        if context.output == Output::Text {
            let style = if problem.is_none() { Tone::Good } else { Tone::Bad }.style();
            anstream::println!("{id}  {style}{}{style:#}", problem.as_deref().unwrap_or("whole"));
        }
        results.push(json!({"id": id, "whole": problem.is_none(), "error": problem}));
    }
    if context.output == Output::Json {
        print_json(&results.into())?;
    }
    ensure!(
        broken.is_empty(),
        "damaged: {}; take them anew (`snapshot create`) and remove them",
        broken.join(", ")
    );
    ensure!(spoilt.is_empty(), "damaged as prepared: {}; look at the disk", spoilt.join(", "));
    Ok(())
}

/// What is wrong with what was prepared of a snapshot, with what to do.
fn verify_prepared(context: &Context, manifest: &Manifest) -> Option<String> {
    let state_dir = &context.config.state_dir;
    match prepare::verify(state_dir, manifest) {
        Ok(None) => None,
        Ok(Some(file)) => {
            Some(format!("{} is damaged: restart the daemon, which puts it right", file.display()))
        }
        Err(error) => {
            Some(format!("what is prepared of it in {} cannot be read: {error}", state_dir.display()))
        }
    }
}
