//! Podman's own ways: cold, import of an export, in place.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::{BenchError, Timing, until_200};
use crate::checkpoint::Origin;
use crate::checkpoint::golden::{Boot, Golden, HOST};
use crate::engine::podman::cli::{self, RunSpec};
use crate::golden::recipe::Recipe;
use crate::host::net;
use crate::restore::probe;

/// The measured container's name.
const NAME: &str = "dm-bench";

/// One page of a cold shop.
const PAGE_DEADLINE: Duration = Duration::from_secs(60);

/// Boots the golden's image once.
///
/// # Errors
/// [`BenchError`]; the container is removed in any case.
pub async fn cold(
    recipe: &Recipe,
    image: &str,
    devices: &Path,
    profile: &Path,
) -> Result<Timing, BenchError> {
    cli::remove(NAME).await?;
    let netns = net::lone_namespace().await?;
    let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()));
    let spec = RunSpec {
        name: NAME,
        image,
        netns: &path,
        recipe,
        controllers: &[],
        io_max: None,
        devices,
        profile,
        criu_config: None,
        database: None,
    };
    let args = cli::run_args(&spec);
    let begun = Instant::now();
    let timing = async {
        cli::podman(&args).await?;
        let running = begun.elapsed();
        let address = ([127, 0, 0, 1], recipe.run.port).into();
        let page = || {
            let stream = net::connect_in(netns.as_fd(), recipe.run.port);
            probe::get_over(stream, address, HOST, &recipe.ready.path, PAGE_DEADLINE)
        };
        let first_200 = until_200(begun, &recipe.ready.contains, page).await?;
        Ok(Timing { running, first_200 })
    };
    let timing = timing.await;
    cli::remove(NAME).await?;
    timing
}

/// A golden at rest that is exported and checkpointed the stock way.
#[derive(Debug)]
pub struct Stock<'a> {
    golden: Golden,
    recipe: &'a Recipe,
    dir: PathBuf,
}

impl<'a> Stock<'a> {
    /// Boots, warms and quiesces a golden.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn boot(
        recipe: &'a Recipe,
        image: &str,
        state_dir: &Path,
        say: &(dyn Fn(&str) + Sync),
    ) -> Result<Self, BenchError> {
        let dir = state_dir.join("bench");
        std::fs::create_dir_all(&dir)
            .map_err(|source| BenchError::Io { doing: "make a directory", source })?;
        let origin = Origin::Recipe;
        let boot = Boot { recipe, image, state_dir, database: None, origin };
        let golden = Golden::boot(&boot, say).await?;
        let stock = Self { golden, recipe, dir };
        stock.golden.warm(recipe, origin, say).await?;
        stock.golden.quiesce(recipe, say).await?;
        Ok(stock)
    }

    /// Exports the golden while it runs on; `compress` is Podman's word.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn export(&self, compress: &str) -> Result<PathBuf, BenchError> {
        let path = self.dir.join(format!("export.{compress}"));
        let args = [
            "container",
            "checkpoint",
            "--leave-running",
            "--file-locks",
            "--compress",
            compress,
            "--export",
        ];
        let mut args: Vec<String> = args.map(str::to_owned).into();
        args.push(path.display().to_string());
        args.push(self.golden.name().to_owned());
        cli::podman(&args).await?;
        Ok(path)
    }

    /// Imports an export once.
    ///
    /// # Errors
    /// [`BenchError`]; the container is removed in any case.
    pub async fn import(&self, export: &Path) -> Result<Timing, BenchError> {
        cli::remove(NAME).await?;
        let export = export.display().to_string();
        let args = ["container", "restore", "--file-locks", "--import", &export, "--name", NAME];
        let begun = Instant::now();
        let timing = async {
            cli::podman(&args).await?;
            self.timed(begun).await
        };
        let timing = timing.await;
        cli::remove(NAME).await?;
        timing
    }

    async fn timed(&self, begun: Instant) -> Result<Timing, BenchError> {
        let running = begun.elapsed();
        let page = || self.golden.page(&self.recipe.ready.path);
        let first_200 = until_200(begun, &self.recipe.ready.contains, page).await?;
        Ok(Timing { running, first_200 })
    }

    /// Checkpoints the golden where it is and keeps its files, so that it can
    /// be restored again and again.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn freeze(&self) -> Result<(), BenchError> {
        cli::podman(&["container", "checkpoint", "--keep", "--file-locks", self.golden.name()]).await?;
        let upper = cli::upper_dir(self.golden.name()).await?;
        copy(&upper, &self.dir.join("upper")).await
    }

    /// Restores the frozen golden in place once.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn in_place(&self) -> Result<Timing, BenchError> {
        let name = self.golden.name();
        let begun = Instant::now();
        cli::podman(&["container", "restore", "--keep", "--file-locks", name]).await?;
        let timing = self.timed(begun).await;
        cli::podman(&["kill", name]).await?;
        cli::podman(&["wait", name]).await?;
        // The memory that is restored next knows the files as they were.
        let upper = cli::upper_dir(name).await?;
        copy(&self.dir.join("upper"), &upper).await?;
        timing
    }

    /// Removes what this made.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn remove(self) -> Result<(), BenchError> {
        self.golden.remove().await?;
        std::fs::remove_dir_all(&self.dir)
            .map_err(|source| BenchError::Io { doing: "remove a directory", source })
    }
}

/// Makes `to` hold exactly what `from` holds.
async fn copy(from: &Path, to: &Path) -> Result<(), BenchError> {
    let failed = |source| BenchError::Io { doing: "copy the golden's files", source };
    match std::fs::remove_dir_all(to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let status = tokio::process::Command::new("cp")
        .args(["--archive", "--reflink=auto", "--no-target-directory", "--"])
        .arg(from)
        .arg(to)
        .stdin(Stdio::null())
        .status()
        .await
        .map_err(failed)?;
    if status.success() {
        Ok(())
    } else {
        Err(failed(std::io::Error::other(format!("cp ended with {status}"))))
    }
}
