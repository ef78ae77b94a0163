//! Building a golden's image: base, source, Containerfile.
//!
//! Called by `demo-multiplexer golden build`. Works where no container registry
//! is reachable: the base is made with mmdebstrap from the machine's own apt
//! mirror and imported. Steps and what a death leaves: a temporary directory
//! below STATE_DIR/build, removed by the next build; images appear whole or not
//! at all.
//!
//! Images are named by what they are made of, so an unchanged golden is not
//! built again.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::apt;
pub use super::images::Image;
use super::images::{self, Images, ImagesError, Wanted};
use super::recipe::{Base, Recipe};
use super::source::{self, SourceError};
use crate::error::DiskError;

/// Takes what mmdebstrap copies from the machine that builds out of the base
/// again: its name, its name servers, and where it gets packages from, which
/// may have a password in it. Strangers read a shop's files.
const FORGET_THE_BUILDER: &str = "--customize-hook=cd \"$1/etc\" && rm -rf hostname apt/sources.list \
    apt/sources.list.d/* apt/apt.conf.d/99mmdebstrap && : >resolv.conf";

/// A golden could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Podman or Docker.
    #[error("the golden's image cannot be built")]
    Images(#[from] ImagesError),
    /// Neither says that it failed, and yet.
    #[error("{0} was built and is not there")]
    Vanished(String),
    /// The shop's release.
    #[error("the shop's release cannot be had")]
    Source(#[from] SourceError),
    /// The base.
    #[error("mmdebstrap cannot make the base system{}", .0)]
    Base(String),
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> BuildError + 'a {
    move |source| DiskError::at(doing, path)(source).into()
}

/// What a build needs to know.
#[derive(Debug)]
pub struct Build<'a> {
    /// The recipe's folder.
    pub folder: &'a Path,
    /// The recipe.
    pub recipe: &'a Recipe,
    /// What the user set for the recipe's source setting.
    pub source_setting: &'a str,
    /// Where temporary files go.
    pub state_dir: &'a Path,
    /// Who builds and keeps images.
    pub images: &'a Images,
}

/// Builds the image, or finds it built; `say` is told each step.
///
/// # Errors
/// [`BuildError`].
pub async fn build(build: &Build<'_>, say: &(dyn Fn(&str) + Sync)) -> Result<Image, BuildError> {
    let work = tempdir(build.state_dir)?;
    let source = match &build.recipe.source {
        Some(wanted) => Some(source::resolve(wanted, build.source_setting, work.path(), say).await?),
        None => None,
    };
    let mut hasher = blake3::Hasher::new();
    hash_folder(&mut hasher, build.folder)?;
    let common = build.recipe.common.as_ref().map(|common| build.folder.join(common));
    if let Some(common) = &common {
        hash_folder(&mut hasher, common)?;
    }
    if let Some(base) = &build.recipe.base {
        hasher.update(base_name(base).as_bytes());
    }
    if let Some(source) = &source {
        hasher.update(source.fingerprint.as_bytes());
    }
    let hash = hasher.finalize().to_hex();
    let name = format!("{}:{}", images::repository(&build.recipe.name), &hash[..12]);
    if let Some(id) = build.images.id(&name).await? {
        say(&format!("image {name} is built already"));
        return Ok(Image { name, id });
    }
    let base = match &build.recipe.base {
        Some(base) => Some(ensure_base(build.images, base, work.path(), say).await?),
        None => None,
    };
    let mut mounts = Vec::new();
    for (path, inside) in
        [(common.as_deref(), "/golden-common"), (source.as_ref().map(|s| s.path.as_path()), "/golden-src")]
    {
        if let Some(path) = path {
            mounts.push((path.canonicalize().map_err(at("find", path))?, inside));
        }
    }
    say(&format!("installing {} into {name} (minutes)", build.recipe.title));
    let wanted = Wanted {
        golden: &build.recipe.name,
        folder: build.folder,
        name: &name,
        base: base.as_deref(),
        mounts: &mounts,
        work: work.path(),
    };
    build.images.build(&wanted).await?;
    match build.images.id(&name).await? {
        Some(id) => Ok(Image { name, id }),
        None => Err(BuildError::Vanished(name)),
    }
}

fn tempdir(state_dir: &Path) -> Result<tempfile::TempDir, BuildError> {
    let parent = state_dir.join("build");
    std::fs::create_dir_all(&parent).map_err(at("make", &parent))?;
    tempfile::tempdir_in(&parent).map_err(at("make a directory below", &parent))
}

/// Hashes what the image is made of: every file but golden.toml's own, whose
/// base section is hashed by name and whose rest does not shape the image.
fn hash_folder(hasher: &mut blake3::Hasher, folder: &Path) -> Result<(), BuildError> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(at("read", folder))?;
    entries.sort();
    for path in entries {
        if path.ends_with("golden.toml") {
            continue;
        }
        hasher.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        if path.is_dir() {
            hash_folder(hasher, &path)?;
        } else {
            let content = std::fs::read(&path).map_err(at("read", &path))?;
            hasher.update(&(content.len() as u64).to_le_bytes());
            hasher.update(&content);
        }
    }
    Ok(())
}

fn base_name(base: &Base) -> String {
    let mut packages = base.packages.clone();
    packages.sort();
    let made_of = format!("{} {} {FORGET_THE_BUILDER}", base.suite, packages.join(" "));
    let hash = blake3::hash(made_of.as_bytes()).to_hex();
    format!("localhost/demo-multiplexer-base:{}-{}", base.suite, &hash[..12])
}

/// Makes the base image, or finds it made.
async fn ensure_base(
    images: &Images,
    base: &Base,
    work: &Path,
    say: &(dyn Fn(&str) + Sync),
) -> Result<String, BuildError> {
    let name = base_name(base);
    if images.id(&name).await?.is_some() {
        return Ok(name);
    }
    say(&format!("making the base system {name} from Debian {} (a minute or two)", base.suite));
    let archive = work.join("base.tar");
    let sources = apt::sources_for(&base.suite, Path::new("/etc/apt"));
    let status = Command::new("mmdebstrap")
        .args(["--variant=minbase", "--quiet", "--aptopt=APT::Install-Recommends \"false\""])
        .arg(FORGET_THE_BUILDER)
        .arg(format!("--include={}", base.packages.join(",")))
        .arg(&base.suite)
        .arg(&archive)
        // An empty list lets mmdebstrap take Debian's own mirror.
        .args(&sources)
        .stdin(Stdio::null())
        .stdout(Stdio::inherit())
        .status()
        .await
        .map_err(|error| BuildError::Base(format!(": {error}; install the package mmdebstrap")))?;
    if !status.success() {
        return Err(BuildError::Base(format!(", it ended with {status}")));
    }
    let imported = images.import(&archive, &name).await;
    std::fs::remove_file(&archive).map_err(at("remove", &archive))?;
    imported?;
    Ok(name)
}
