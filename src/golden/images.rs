//! Where a golden's images are built and kept: in Podman, or in a Docker engine.
//!
//! Called by [`super::build`] and by whoever looks an image up. Podman mounts
//! what a build needs; Docker's builder cannot, so there a build is three:
//!
//! ```text
//! mounted     the base, with the shared folder and the release copied in
//! installed   the recipe's Containerfile, on that
//! (the name)  both folders removed again
//! ```
//!
//! A death in between leaves the first two under names that the next build of
//! the golden takes over.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{Config, ContainerMode};
use crate::engine::docker::images::BuildSpec;
use crate::engine::docker::{Docker, DockerError};
use crate::engine::podman::cli::{self, PodmanError};
use crate::id::GoldenName;

/// A golden's image.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Image {
    /// Its name there.
    pub name: String,
    /// Its id there.
    pub id: String,
}

/// Images could not be found, imported or built.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// Podman.
    #[error(transparent)]
    Podman(#[from] PodmanError),
    /// Docker.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// What is sent to Docker.
    #[error("cannot pack {} for the Docker engine", .path.display())]
    Pack {
        /// Which folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Docker's builder mounts nothing, and there is no base to copy into.
    #[error("the recipe has common or [source] but no [base]: with CONTAINER_MODE=docker it needs one")]
    NoBase,
}

/// What is to be built.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// The golden.
    pub golden: &'a GoldenName,
    /// The recipe's folder, with its Containerfile.
    pub folder: &'a Path,
    /// The image's name.
    pub name: &'a str,
    /// The image it is built on, if the recipe has a base.
    pub base: Option<&'a str>,
    /// Folders of this host and where the build finds them.
    pub mounts: &'a [(PathBuf, &'a str)],
    /// Where temporary files go.
    pub work: &'a Path,
}

/// Whoever builds and keeps images.
#[derive(Debug, Clone)]
pub enum Images {
    /// Podman's storage.
    Podman,
    /// A Docker engine.
    Docker(Arc<Docker>),
}

impl Images {
    /// The one that CONTAINER_MODE says; nothing is connected.
    ///
    /// # Errors
    /// [`ImagesError::Docker`] when no client can be made.
    pub fn of(config: &Config) -> Result<Self, ImagesError> {
        Ok(match config.container_mode {
            ContainerMode::Podman => Self::Podman,
            ContainerMode::Docker => Self::Docker(Arc::new(Docker::at(&config.docker_socket)?)),
        })
    }

    /// An image's id by name or id; none when it is not there.
    ///
    /// # Errors
    /// [`ImagesError`].
    pub async fn id(&self, name: &str) -> Result<Option<String>, ImagesError> {
        Ok(match self {
            Self::Podman => cli::image_id(name).await?,
            Self::Docker(docker) => docker.image_id(name).await?,
        })
    }

    /// The newest image built for a golden, whatever the recipe's folder says now.
    ///
    /// # Errors
    /// [`ImagesError`].
    pub async fn newest(&self, golden: &GoldenName) -> Result<Option<Image>, ImagesError> {
        let repository = repository(golden);
        let found = match self {
            Self::Podman => cli::newest_image(&repository).await?,
            Self::Docker(docker) => docker.newest_image(&repository).await?,
        };
        Ok(found.map(|(name, id)| Image { name, id }))
    }

    /// Makes an image of a tar archive of a root file system.
    pub(super) async fn import(&self, archive: &Path, name: &str) -> Result<(), ImagesError> {
        match self {
            Self::Podman => {
                cli::podman_long(&["import".as_ref(), archive.as_os_str(), name.as_ref()]).await?;
            }
            Self::Docker(docker) => docker.import_image(archive, name).await?,
        }
        Ok(())
    }

    /// Builds an image without a network.
    pub(super) async fn build(&self, wanted: &Wanted<'_>) -> Result<(), ImagesError> {
        match self {
            Self::Podman => with_podman(wanted).await?,
            Self::Docker(docker) => {
                let names = ["mounted", "installed"]
                    .map(|step| format!("localhost/demo-multiplexer-building:{}-{step}", wanted.golden));
                forget(docker, &names).await?;
                let built = with_docker(docker, wanted, &names).await;
                // What is built stands on them: only the names go.
                let forgotten = forget(docker, &names).await;
                built?;
                forgotten?;
            }
        }
        Ok(())
    }
}

/// A golden's images but for their tags.
pub(super) fn repository(golden: &GoldenName) -> String {
    format!("localhost/demo-multiplexer-golden-{golden}")
}

async fn with_podman(wanted: &Wanted<'_>) -> Result<(), PodmanError> {
    let mut args: Vec<String> = ["build", "--network=none", "--pull=never", "--format=oci", "--layers=false"]
        .map(str::to_owned)
        .into();
    args.extend(wanted.base.map(|base| format!("--build-arg=BASE={base}")));
    for (path, inside) in wanted.mounts {
        args.push(format!("--volume={}:{inside}:ro", path.display()));
    }
    args.push(format!("--file={}", wanted.folder.join("Containerfile").display()));
    args.push(format!("--tag={}", wanted.name));
    args.push(wanted.folder.display().to_string());
    cli::podman_long(&args).await.map(|_| ())
}

async fn with_docker(
    docker: &Docker,
    wanted: &Wanted<'_>,
    [mounted, installed]: &[String; 2],
) -> Result<(), ImagesError> {
    let context = wanted.work.join("context.tar");
    let folder = (wanted.folder.to_owned(), ".".to_owned());
    if wanted.mounts.is_empty() {
        pack(&context, None, vec![folder]).await?;
        let args: Vec<(&str, &str)> = wanted.base.map(|base| ("BASE", base)).into_iter().collect();
        return step(docker, &context, wanted.name, &args).await;
    }
    let base = wanted.base.ok_or(ImagesError::NoBase)?;
    let copies: String =
        wanted.mounts.iter().map(|(_, inside)| format!("COPY .{inside} {inside}\n")).collect();
    let folders = wanted.mounts.iter().map(|(path, inside)| (path.clone(), format!(".{inside}")));
    pack(&context, Some(format!("FROM {base}\n{copies}")), folders.collect()).await?;
    step(docker, &context, mounted, &[]).await?;
    pack(&context, None, vec![folder]).await?;
    step(docker, &context, installed, &[("BASE", mounted)]).await?;
    let folders: Vec<&str> = wanted.mounts.iter().map(|(_, inside)| *inside).collect();
    let remove = format!("FROM {installed}\nRUN rm -rf {}\n", folders.join(" "));
    pack(&context, Some(remove), Vec::new()).await?;
    step(docker, &context, wanted.name, &[]).await
}

async fn step(docker: &Docker, context: &Path, tag: &str, args: &[(&str, &str)]) -> Result<(), ImagesError> {
    let spec = BuildSpec { context, file: "Containerfile", tag, args };
    Ok(docker.build_image(&spec, &mut |text| eprint!("{text}")).await?)
}

async fn forget(docker: &Docker, names: &[String]) -> Result<(), DockerError> {
    for name in names {
        docker.remove_image(name).await?;
    }
    Ok(())
}

/// Packs a build's context: folders under their names in it, and a Containerfile
/// where the folders bring none.
async fn pack(
    archive: &Path,
    containerfile: Option<String>,
    folders: Vec<(PathBuf, String)>,
) -> Result<(), ImagesError> {
    let (path, target) = (archive.to_owned(), archive.to_owned());
    let packed = tokio::task::spawn_blocking(move || {
        let mut tar = tar::Builder::new(io::BufWriter::new(std::fs::File::create(target)?));
        tar.follow_symlinks(false);
        for (folder, name) in folders {
            tar.append_dir_all(name, folder)?;
        }
        if let Some(text) = containerfile {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(text.len() as u64);
            tar.append_data(&mut header, "Containerfile", text.as_bytes())?;
        }
        tar.into_inner()?.into_inner().map(drop).map_err(io::IntoInnerError::into_error)
    });
    let packed = packed.await.map_err(io::Error::other).and_then(|done| done);
    packed.map_err(|source| ImagesError::Pack { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_context_holds_its_folders_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("recipe");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("install"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.join("link")).unwrap();
        let archive = dir.path().join("context.tar");
        pack(&archive, Some("FROM base\n".into()), vec![(folder, "./golden-src".into())]).await.unwrap();
        let mut found: Vec<(String, tar::EntryType)> =
            tar::Archive::new(std::fs::File::open(archive).unwrap())
                .entries()
                .unwrap()
                .map(|entry| {
                    let entry = entry.unwrap();
                    (entry.path().unwrap().display().to_string(), entry.header().entry_type())
                })
                .filter(|(_, kind)| !kind.is_dir())
                .collect();
        found.sort_by(|one, other| one.0.cmp(&other.0));
        let names: Vec<&str> = found.iter().map(|(name, _)| name.trim_start_matches("./")).collect();
        assert_eq!(names, ["Containerfile", "golden-src/install", "golden-src/link"]);
        assert!(found.iter().any(|(name, kind)| name.ends_with("link") && kind.is_symlink()));
    }
}
