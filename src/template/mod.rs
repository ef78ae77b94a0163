//! A shop that its visitor has kept becomes an image that goldens are frozen from.
//!
//! Called by the workshop, one at a time; what then happens to the image is what
//! happens to every golden's ([`crate::checkpoint`]), so that its snapshot stands alone,
//! is of the usual form, and holds the shop's files but no process of it. Phases:
//!
//! ```text
//! the image that the shop's snapshot stands on, copied by reference    remove the directory
//! what the golden had changed, laid over it                            as above
//! what the shop had changed: verified, unpacked, laid over it          as above
//! the recipe's [template] removed                                      as above
//! packed, imported by Podman                                           as above; the image is named
//! ```
//!
//! Owns `STATE_DIR/template`, root's alone, and the images ([`images`]). The shop is a stranger's, administrator and
//! all: nothing of it is followed or run here, see [`crate::host::layers`] for what is
//! left out of it.

pub mod images;

use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde_json::Value;

use crate::engine::podman::cli::{self, PodmanError};
use crate::error::{ErrorKind, kind_of_io};
use crate::golden::images::Image;
use crate::golden::recipe::{Ready, Recipe};
use crate::host::slots::make_private;
use crate::host::{layers, tree};
use crate::id::GoldenName;
use crate::snapshot::archive::{self, ArchiveError};
use crate::snapshot::prepare::{self, PrepareError};
use crate::snapshot::shelf::{Saved, Shelf, ShelfError};

/// Where a snapshot's own memory is mapped from, in the files of a clone: no golden's.
const MEMORY: &str = ".memory";

/// What Podman sets by itself in a container's environment.
const SET_BY_PODMAN: [&str; 4] = ["HOSTNAME", "HOME", "TERM", "container"];

/// No such image could be made; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// What is kept.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
    /// What the shop stands on.
    #[error("what the shop stands on cannot be found")]
    Prepare(#[from] PrepareError),
    /// The disk, or files that no golden has.
    #[error("cannot {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It could not be packed.
    #[error("the shop's files cannot be packed")]
    Pack(#[source] ArchiveError),
    /// Podman.
    #[error("Podman does not take it")]
    Podman(#[from] PodmanError),
}

impl TemplateError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Shelf(error) => error.kind(),
            Self::Prepare(error) => error.kind(),
            Self::Io { source, .. } => kind_of_io(source),
            Self::Pack(error) => error.kind(),
            Self::Podman(_) => ErrorKind::Unavailable,
        }
    }
}

fn at(doing: &'static str) -> impl FnOnce(io::Error) -> TemplateError {
    move |source| TemplateError::Io { doing, source }
}

/// What is to be made of what.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The kept shop.
    pub saved: &'a Saved,
    /// Where it is kept.
    pub shelf: &'a Shelf,
    /// The daemon's own files.
    pub state_dir: &'a Path,
    /// What the golden is to be called.
    pub golden: &'a GoldenName,
    /// What people are to be told; none: what they are told of the shop's own golden.
    pub title: Option<&'a str>,
}

/// Makes the image; answers the recipe that it is to be frozen by. `say` is told each
/// step.
///
/// # Errors
/// [`TemplateError`].
///
/// # Cancel safety
/// A dropped call leaves a directory, which the next one removes.
pub async fn make(
    wanted: &Wanted<'_>,
    say: &(dyn Fn(&str) + Sync),
) -> Result<(Recipe, Image), TemplateError> {
    let dir = wanted.state_dir.join("template");
    remove(&dir).await?;
    let made = make_in(wanted, &dir, say).await;
    let removed = remove(&dir).await;
    let made = made?;
    removed?;
    Ok(made)
}

async fn remove(dir: &Path) -> Result<(), TemplateError> {
    let dir = dir.to_owned();
    blocking("remove the directory that it is made in", move || tree::remove(&dir)).await
}

async fn blocking<T: Send + 'static>(
    doing: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, TemplateError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(io::Error::other).flatten().map_err(at(doing))
}

async fn make_in(
    wanted: &Wanted<'_>,
    dir: &Path,
    say: &(dyn Fn(&str) + Sync),
) -> Result<(Recipe, Image), TemplateError> {
    let (root, own, packed) = (dir.join("root"), dir.join("own"), dir.join("root.tar.zst"));
    for made in [dir, &root, &own] {
        make_private(made).map_err(at("make a directory for it"))?;
    }
    let (manifest, lowers) = prepare::stands_on(wanted.state_dir, &wanted.saved.snapshot)?;
    let spec = prepare::spec(wanted.state_dir, &wanted.saved.snapshot)?;
    let [frozen, image] = lowers;
    say("copying what the shop stands on");
    tree::copy(&image, &root).await.map_err(at("copy the image"))?;
    say("laying the shop's files over it");
    let (shelf, saved) = (wanted.shelf.clone(), wanted.saved.clone());
    let (unpacked, bounds) = (own.clone(), wanted.shelf.bounds());
    let unpack = tokio::task::spawn_blocking(move || shelf.unpack_files(&saved, &unpacked)).await;
    unpack.map_err(io::Error::other).map_err(at("unpack it"))??;
    let (to, remove) = (root.clone(), manifest.recipe.template.remove.clone());
    blocking("make one tree of the shop's files", move || {
        tree::check(&own, bounds)?;
        layers::lay_over(&frozen, &to, MEMORY)?;
        layers::lay_over(&own, &to, MEMORY)?;
        // A container's devices are mounted there, whatever an image has.
        let remove = remove.iter().map(String::as_str).chain(["/dev/"]);
        remove.into_iter().try_for_each(|path| tree::remove_below(&to, path))
    })
    .await?;
    say("making an image of it");
    let (from, to) = (root, packed.clone());
    let pack = tokio::task::spawn_blocking(move || archive::pack(&[("", &from)], &to)).await;
    pack.map_err(io::Error::other).map_err(at("pack it"))?.map_err(TemplateError::Pack)?;
    let image = import(wanted.state_dir, wanted.golden, &packed, &spec).await?;
    Ok((recipe_of(manifest.recipe, wanted.golden, wanted.title), image))
}

/// Not named as a built golden's, so that none is booted from it as it is: it has the
/// kept shop's identity.
async fn import(
    state_dir: &Path,
    golden: &GoldenName,
    packed: &Path,
    spec: &Value,
) -> Result<Image, TemplateError> {
    let name = images::name_of(golden, Timestamp::now());
    let (label, whose) = images::label(state_dir);
    let mut args = vec!["import".to_owned(), format!("--change=LABEL {label}={}", Value::from(whose))];
    args.extend(changes(spec).into_iter().map(|change| format!("--change={change}")));
    args.extend([packed.display().to_string(), name.clone()]);
    cli::podman_long(&args).await?;
    let id = cli::image_id(&name).await?;
    let id = id.ok_or_else(|| io::Error::other("it is not there")).map_err(at("find the image"))?;
    Ok(Image { name, id })
}

/// How a container of the image is run: as the golden's was.
fn changes(spec: &Value) -> Vec<String> {
    let process = &spec["process"];
    let mut changes = vec![format!("ENTRYPOINT {}", process["args"])];
    if let Some(cwd) = process["cwd"].as_str() {
        changes.push(format!("WORKDIR {cwd}"));
    }
    let environment = process["env"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let set = environment.filter_map(|line| line.split_once('='));
    let own = set.filter(|(name, _)| !SET_BY_PODMAN.contains(name));
    changes.extend(own.map(|(name, value)| format!("ENV {name}={}", Value::from(value))));
    changes
}

/// The recipe of the shop's own golden, but for what the visitor may have changed and
/// for what it was built from.
fn recipe_of(recipe: Recipe, golden: &GoldenName, title: Option<&str>) -> Recipe {
    Recipe {
        name: golden.clone(),
        title: title.map_or_else(|| recipe.title.clone(), str::to_owned),
        common: None,
        base: None,
        source: None,
        // Its text is the visitor's: a whole page has to do.
        ready: Ready { contains: "</html>".to_owned(), ..recipe.ready },
        ..recipe
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_image_runs_what_the_golden_ran() {
        let spec = json!({"process": {
            "args": ["/golden/start", "a \"b\""], "cwd": "/",
            "env": ["PATH=/usr/bin:/bin", "HOSTNAME=x", "container=podman", "GREETING=say \"hi\""],
        }});
        assert_eq!(
            changes(&spec),
            [
                r#"ENTRYPOINT ["/golden/start","a \"b\""]"#,
                "WORKDIR /",
                r#"ENV PATH="/usr/bin:/bin""#,
                r#"ENV GREETING="say \"hi\"""#,
            ]
        );
    }

    #[test]
    fn a_published_goldens_recipe_asks_for_nothing_that_the_visitor_may_have_changed() {
        let own = crate::snapshot::manifest::tests::sample().recipe;
        let golden: GoldenName = "spring-sale".parse().unwrap();
        let recipe = recipe_of(own.clone(), &golden, None);
        assert_eq!((&recipe.name, &recipe.title), (&golden, &own.title));
        assert_eq!((recipe.ready.contains.as_str(), &recipe.ready.path), ("</html>", &own.ready.path));
        assert_eq!(recipe.personalize, own.personalize);
        assert_eq!(recipe_of(own, &golden, Some("Spring sale")).title, "Spring sale");
        recipe.check().unwrap();
    }
}
