//! Podman, through its command line.
//!
//! Not the `podman-api` crate: it lacks what a checkpoint needs (file locks,
//! keep), cannot join a network namespace by path, and wants a running service.
//! Every call has a deadline and its error carries what Podman said.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::golden::recipe::Recipe;

/// Any call but a build; the slowest seen is an import of a 95 MB export, 5 s.
const DEADLINE: Duration = Duration::from_secs(120);

/// A build installs a shop: minutes on a small host.
const BUILD_DEADLINE: Duration = Duration::from_secs(30 * 60);

/// What systemd tells the daemon and nobody else. Podman would hand the sockets
/// on to a container, and mount one into it that no clone finds again. Where it
/// sees INVOCATION_ID it leaves a container's keeper, conmon, in the cgroup of
/// the unit, which that container is to outlive.
const FROM_SYSTEMD: &[&str] = &[
    "NOTIFY_SOCKET",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "INVOCATION_ID",
];

/// Podman did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PodmanError {
    /// It could not be started, or not in time.
    #[error("cannot run podman {verb}")]
    Start {
        /// The sub-command.
        verb: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It says it failed.
    #[error("podman {verb} failed: {said}")]
    Failed {
        /// The sub-command.
        verb: String,
        /// The end of what it printed.
        said: String,
    },
}

impl PodmanError {
    /// Whether Podman says that the thing does not exist.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Failed { said, .. } if said.contains("no such") || said.contains("not known") || said.contains("no container"))
    }
}

/// How a container of a golden is run.
#[derive(Debug)]
pub struct RunSpec<'a> {
    /// The container's name.
    pub name: &'a str,
    /// The golden's image.
    pub image: &'a str,
    /// A path to the network namespace it joins.
    pub netns: &'a Path,
    /// Its recipe.
    pub recipe: &'a Recipe,
    /// Cgroup controllers whose limits are in force on this host.
    pub controllers: &'a [String],
    /// Its cgroup's io.max, if it is to have one.
    pub io_max: Option<String>,
    /// The directory of device nodes that becomes its /dev.
    pub devices: &'a Path,
    /// Which system calls it may make ([`super::profile`]).
    pub profile: &'a Path,
    /// A file with CRIU's options, for a container that is to be checkpointed.
    pub criu_config: Option<&'a Path>,
    /// The directory of the shared database server's socket; none when the
    /// container starts a server of its own.
    pub database: Option<&'a Path>,
}

/// Runs one `podman` command and answers what it printed, without the last newline.
///
/// # Errors
/// [`PodmanError`].
pub async fn podman<S: AsRef<OsStr>>(args: &[S]) -> Result<String, PodmanError> {
    run(command(args), args, DEADLINE, Stdio::piped()).await
}

/// Runs one `podman` command with an input and an output of its own, and with
/// more in its environment.
///
/// # Errors
/// [`PodmanError`].
pub async fn podman_piped<S: AsRef<OsStr>>(
    args: &[S],
    environment: &[(&str, &str)],
    (input, output): (Stdio, Stdio),
) -> Result<(), PodmanError> {
    let mut command = command(args);
    command.envs(environment.iter().copied()).stdin(input).stdout(output);
    run(command, args, BUILD_DEADLINE, Stdio::piped()).await.map(|_| ())
}

/// Runs one `podman` command that takes minutes; what it says goes to stderr as it comes.
///
/// # Errors
/// [`PodmanError`].
pub async fn podman_long<S: AsRef<OsStr>>(args: &[S]) -> Result<String, PodmanError> {
    run(command(args), args, BUILD_DEADLINE, Stdio::inherit()).await
}

fn command<S: AsRef<OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new("podman");
    for name in FROM_SYSTEMD {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    command
}

async fn run<S: AsRef<OsStr>>(
    mut command: Command,
    args: &[S],
    deadline: Duration,
    stderr: Stdio,
) -> Result<String, PodmanError> {
    let verb: Vec<_> = args.iter().take(2).map(|arg| arg.as_ref().to_string_lossy()).collect();
    let verb = verb.join(" ");
    let child =
        command.stderr(stderr).spawn().map_err(|source| PodmanError::Start { verb: verb.clone(), source })?;
    let output = match tokio::time::timeout(deadline, child.wait_with_output()).await {
        Ok(output) => output.map_err(|source| PodmanError::Start { verb: verb.clone(), source })?,
        Err(_) => return Err(PodmanError::Start { verb, source: io::ErrorKind::TimedOut.into() }),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(PodmanError::Failed { verb, said: end_of(said.trim(), 2000) });
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

fn end_of(text: &str, most: usize) -> String {
    let mut from = text.len().saturating_sub(most);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text[from..].to_owned()
}

/// The arguments of `podman run` for a golden: the fewest mounts that still
/// isolate, since each costs a restore its share.
#[must_use]
pub fn run_args(spec: &RunSpec<'_>) -> Vec<String> {
    let run = &spec.recipe.run;
    let mut args: Vec<String> =
        ["run", "--detach", "--pull=never", "--name", spec.name].map(str::to_owned).into();
    args.push(format!("--network=ns:{}", spec.netns.display()));
    args.push(format!("--volume={}:/dev:ro,rprivate", spec.devices.display()));
    let fixed = [
        // hosts, hostname and resolv.conf come from the image: no bind mounts.
        "--no-hosts",
        "--no-hostname",
        "--dns=none",
        // No /dev/shm of its own: a bind mount that nothing in a shop uses.
        "--ipc=none",
        "--systemd=false",
        "--log-driver=none",
        "--security-opt=no-new-privileges",
        // With no-new-privileges the kernel stacks Podman's profile on crun's own
        // (Debian 13), and the sum forbids all signals: php-fpm could not end a
        // worker, and nothing would ever come to rest.
        "--security-opt=apparmor=unconfined",
        "--cap-drop=all",
    ];
    args.extend(fixed.map(str::to_owned));
    args.push(format!("--security-opt=seccomp={}", spec.profile.display()));
    args.extend(run.capabilities.iter().map(|name| format!("--cap-add={name}")));
    let has = |controller: &str| spec.controllers.iter().any(|have| have == controller);
    if has("memory") {
        args.push(format!("--memory={}", run.memory_max.to_lowercase()));
    }
    if has("pids") {
        args.push(format!("--pids-limit={}", run.pids_max));
    }
    if has("cpu") {
        args.push(format!("--cpus={}", run.cpu_max));
    }
    if let Some(io_max) = &spec.io_max {
        args.push(format!("--cgroup-conf=io.max={io_max}"));
    }
    if let Some(config) = spec.criu_config {
        args.push(format!("--annotation=org.criu.config={}", config.display()));
        // It is warmed up and frozen, and may wish to know (podman/common/start).
        args.push("--env=WARM_UP=yes".to_owned());
    }
    if let (Some(host), Some(inside)) = (spec.database, run.socket_directory()) {
        args.push(format!("--volume={}:{inside}:ro,rprivate,noexec,nosuid,nodev", host.display()));
        args.push("--env=DATABASE_MODE=shared".to_owned());
    }
    args.push(spec.image.to_owned());
    args
}

/// One field of `podman inspect`, as a Go template.
///
/// # Errors
/// [`PodmanError`].
pub async fn inspect(name: &str, field: &str) -> Result<String, PodmanError> {
    podman(&["container", "inspect", "--format", field, name]).await
}

/// The host's pid of a container's first process.
///
/// # Errors
/// [`PodmanError`].
pub async fn pid(name: &str) -> Result<i32, PodmanError> {
    let text = inspect(name, "{{.State.Pid}}").await?;
    match text.parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(PodmanError::Failed { verb: "inspect".into(), said: format!("{name} does not run") }),
    }
}

/// Removes a container, killing it; absent is fine.
///
/// # Errors
/// [`PodmanError`].
pub async fn remove(name: &str) -> Result<(), PodmanError> {
    match podman(&["rm", "--force", "--time=0", "--ignore", name]).await {
        Err(error) if !error.is_absent() => Err(error),
        _ => Ok(()),
    }
}

/// An image's id by name or id; none when it is not there.
///
/// # Errors
/// [`PodmanError`].
pub async fn image_id(name: &str) -> Result<Option<String>, PodmanError> {
    match podman(&["image", "inspect", "--format", "{{.Id}}", name]).await {
        Ok(id) => Ok(Some(id)),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Name and id of the newest image of a repository; none when it has none.
///
/// # Errors
/// [`PodmanError`].
pub async fn newest_image(repository: &str) -> Result<Option<(String, String)>, PodmanError> {
    let filter = format!("reference={repository}");
    let lines = podman(&[
        "images",
        "--sort=created",
        "--no-trunc",
        "--format={{.Repository}}:{{.Tag}} {{.Id}}",
        "--filter",
        &filter,
    ])
    .await?;
    let newest = lines.lines().next().and_then(|line| line.split_once(' '));
    Ok(newest.map(|(name, id)| (name.to_owned(), id.trim_start_matches("sha256:").to_owned())))
}

/// Removes an image's name, and the image with its last one; absent is fine. One that a
/// container runs stays.
///
/// # Errors
/// [`PodmanError`].
pub async fn remove_image(name: &str) -> Result<(), PodmanError> {
    match podman(&["image", "rm", name]).await {
        Err(error) if !error.is_absent() => Err(error),
        _ => Ok(()),
    }
}

/// Writes an image into a new archive, which [`load_image`] reads.
///
/// # Errors
/// [`PodmanError`].
pub async fn save_image(id: &str, path: &Path) -> Result<(), PodmanError> {
    let path = path.as_os_str();
    let args =
        [OsStr::new("save"), "--format".as_ref(), "oci-archive".as_ref(), "-o".as_ref(), path, id.as_ref()];
    podman_long(&args).await.map(drop)
}

/// Reads an image from an archive; its id is what it is made of.
///
/// # Errors
/// [`PodmanError`].
pub async fn load_image(path: &Path) -> Result<(), PodmanError> {
    podman_long(&[OsStr::new("load"), "-i".as_ref(), path.as_os_str()]).await.map(drop)
}

/// Where a container's overlay keeps what it changed.
///
/// # Errors
/// [`PodmanError`].
pub async fn upper_dir(name: &str) -> Result<PathBuf, PodmanError> {
    inspect(name, "{{.GraphDriver.Data.UpperDir}}").await.map(PathBuf::from)
}

/// Versions of Podman and of the runtime it uses.
///
/// # Errors
/// [`PodmanError`].
pub async fn versions() -> Result<(String, String), PodmanError> {
    let podman_version = podman(&["version", "--format", "{{.Client.Version}}"]).await?;
    let runtime =
        podman(&["info", "--format", "{{.Host.OCIRuntime.Name}} {{.Host.OCIRuntime.Version}}"]).await?;
    let runtime = runtime.lines().next().unwrap_or_default().to_owned();
    Ok((podman_version, runtime))
}
