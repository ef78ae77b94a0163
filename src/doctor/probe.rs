//! Looks at the host and tries what it can do; judges nothing.
//!
//! Every call to another program has a deadline. What needs root is left out
//! for anybody else.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, statfs, statvfs};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::process::{Resource, getrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use super::facts::{Answer, Bridge, Facts, Listen, Runtime, StateDir, field, parse_routes};
use super::packages::Family;
use super::{database, docker, doors, nats, router, trial, way_out};
use crate::config::Config;
use crate::engine::criu::{self, RestoreError};
use crate::engine::docker::Docker;
use crate::engine::docker::api::Version;
use crate::error::Chain;
use crate::golden::recipe::Recipe;
use crate::host::{facts, net};

/// The slowest call, `podman info`, takes 0.4 s; on a first start it makes its storage.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

const CGROUP_MOUNT: &str = "/sys/fs/cgroup";

/// CRIU's cache of what the kernel can do.
const CRIU_CACHE: &str = "/run/criu.kdat";

/// What building a golden takes beside Podman.
const TOOLS: &[&str] = &["mmdebstrap", "curl", "unzip", "openssl"];

/// Looks at everything.
pub(super) async fn probe(config: &Config) -> Facts {
    let uid = rustix::process::geteuid().as_raw();
    let root = uid == 0;
    let status = read("/proc/self/status");
    let docker = match docker::is_mode(config) {
        true => Some(docker_version(config).await),
        false => None,
    };
    let restores = docker.is_none();
    let criu = if restores { criu_version().await } else { Answer::Missing };
    let has_criu = matches!(criu, Answer::Said(_));
    let (
        criu_check,
        userfaultfd,
        checkpoint,
        podman,
        runtime,
        network,
        nftables,
        nats,
        listen,
        database,
        router,
    ) = tokio::join!(
        ask_if(restores, "criu", &["check"]),
        ask_if(restores, "criu", &["check", "--feature", "uffd-noncoop"]),
        async { if root && has_criu { Some(trial::checkpoint().await) } else { None } },
        ask_if(restores, "podman", &["--version"]),
        async { if root && restores { runtime().await } else { None } },
        async {
            if root { Some(net::trial().await.map_err(|error| Chain(&error).to_string())) } else { None }
        },
        ask("nft", &["list", "tables"]),
        nats::trial(config),
        listen(config.listen),
        database::trial(config),
        router::probe(config),
    );
    let routes = parse_routes(&read("/proc/net/route"));
    let way_out = way_out::probe(config, &routes).await;
    Facts {
        family: Family::of(&read("/etc/os-release")),
        uid,
        capabilities: field(&status, "CapEff")
            .and_then(|bits| u64::from_str_radix(bits, 16).ok())
            .unwrap_or(0),
        kernel: facts::kernel(),
        cgroup: root.then(cgroup),
        criu,
        criu_check,
        checkpoint,
        criu_cache: (root && restores).then(criu_cache),
        userfaultfd,
        podman,
        docker,
        runtime,
        state: root.then(|| state_dir(&config.state_dir)),
        memory: kilobytes(&read("/proc/meminfo"), "MemTotal") * 1024,
        // A daemon raises its own to what it may have.
        files: getrlimit(Resource::Nofile).maximum,
        network,
        bridge: bridge(&config.bridge_name),
        routes,
        nftables,
        database,
        nats,
        listen,
        router,
        doors: doors::probe(config, root),
        way_out,
        tools_missing: TOOLS.iter().copied().filter(|tool| find_program(tool).is_none()).collect(),
        recipes_unread: recipes(config),
    }
}

/// A file of the kernel's; what cannot be read says nothing.
fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn kilobytes(text: &str, name: &str) -> u64 {
    let value = field(text, name).and_then(|value| value.split_ascii_whitespace().next());
    value.and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

async fn docker_version(config: &Config) -> Result<Version, String> {
    let docker = Docker::at(&config.docker_socket).map_err(|error| Chain(&error).to_string())?;
    docker.version().await.map_err(|error| Chain(&error).to_string())
}

/// Asks a program that matters, or takes it for missing.
async fn ask_if(matters: bool, program: &str, args: &[&str]) -> Answer {
    if matters { ask(program, args).await } else { Answer::Missing }
}

/// Runs a program and answers what it printed, on either stream.
pub(super) async fn ask(program: &str, args: &[&str]) -> Answer {
    let output =
        Command::new(program).args(args).current_dir("/").stdin(Stdio::null()).kill_on_drop(true).output();
    let output = match tokio::time::timeout(DEADLINE, output).await {
        Err(_) => return Answer::Failed(format!("{program} does not end within {} s", DEADLINE.as_secs())),
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Answer::Missing,
        Ok(Err(error)) => return Answer::Failed(format!("{program} cannot be started: {error}")),
        Ok(Ok(output)) => output,
    };
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    let said = said.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n");
    match output.status.success() {
        true => Answer::Said(said),
        false if said.is_empty() => Answer::Failed(format!("{program} ended with {}", output.status)),
        false => Answer::Failed(said),
    }
}

async fn criu_version() -> Answer {
    match tokio::time::timeout(DEADLINE, criu::version()).await {
        Ok(Ok((major, minor, sub))) => Answer::Said(format!("{major}.{minor}.{sub}")),
        Ok(Err(RestoreError::Io { source, .. })) if source.kind() == io::ErrorKind::NotFound => {
            Answer::Missing
        }
        Ok(Err(error)) => Answer::Failed(Chain(&error).to_string()),
        Err(_) => Answer::Failed("CRIU does not answer".into()),
    }
}

async fn runtime() -> Option<Result<Runtime, String>> {
    let format = "--format={{.Host.OCIRuntime.Name}} {{.Host.OCIRuntime.Path}}";
    let said = match ask("podman", &["info", format]).await {
        Answer::Missing => return None,
        Answer::Failed(why) => return Some(Err(why)),
        Answer::Said(said) => said,
    };
    // A warning may stand on the other stream, below.
    let line = said.lines().next().unwrap_or_default();
    let Some((name, path)) = line.split_once(' ') else {
        return Some(Err(format!("podman info says {line:?}")));
    };
    let version = ask(path, &["--version"]).await;
    let libcriu = match ask("ldconfig", &["-p"]).await {
        Answer::Said(libraries) => libraries.contains("libcriu.so"),
        // Nothing is known, so nothing is said against it.
        Answer::Missing | Answer::Failed(_) => true,
    };
    Some(Ok(Runtime { name: name.to_owned(), version, libcriu }))
}

fn cgroup() -> Result<Vec<String>, String> {
    /// CGROUP2_SUPER_MAGIC (statfs(2)).
    const CGROUP2: i64 = 0x6367_7270;
    let kind = statfs(CGROUP_MOUNT).map_err(|error| format!("{CGROUP_MOUNT}: {error}"))?.f_type;
    #[allow(clippy::unnecessary_cast, reason = "its type differs between architectures")]
    if kind as i64 != CGROUP2 {
        return Err(format!(
            "{CGROUP_MOUNT} is not cgroup v2 (the legacy or the hybrid hierarchy is mounted)"
        ));
    }
    tempfile::Builder::new()
        .prefix("demo-multiplexer-doctor-")
        .tempdir_in(CGROUP_MOUNT)
        // By one rmdir: the kernel's files in it cannot be removed one by one.
        .and_then(|trial| std::fs::remove_dir(trial.keep()))
        .map_err(|error| format!("{CGROUP_MOUNT} is cgroup v2, but no cgroup can be made: {error}"))?;
    let offered = std::fs::read_to_string(Path::new(CGROUP_MOUNT).join("cgroup.controllers"))
        .map_err(|error| format!("{CGROUP_MOUNT}/cgroup.controllers: {error}"))?;
    Ok(offered.split_ascii_whitespace().map(str::to_owned).collect())
}

fn criu_cache() -> Result<(), String> {
    let cache = Path::new(CRIU_CACHE);
    let tried = if cache.is_file() {
        File::options().write(true).open(cache).map(drop)
    } else {
        tempfile::NamedTempFile::new_in("/run").map(drop)
    };
    tried.map_err(|error| format!("{CRIU_CACHE} cannot be written: {error}"))
}

/// Tries the directory, or the one above it that exists.
fn state_dir(wanted: &Path) -> Result<StateDir, String> {
    let existing = wanted.ancestors().find(|dir| dir.is_dir()).unwrap_or_else(|| Path::new("/"));
    let at = |error: &dyn std::fmt::Display| format!("{}: {error}", existing.display());
    let dir = tempfile::Builder::new()
        .prefix(".doctor-")
        .tempdir_in(existing)
        .map_err(|error| format!("{} cannot be written: {error}", existing.display()))?;
    let space = statvfs(existing).map_err(|error| at(&error))?;
    Ok(StateDir {
        kind: file_system(existing).map_err(|error| at(&error))?,
        overlay: overlay(dir.path()).map_err(|error| error.to_string()),
        reflink: facts::reflink(dir.path()).map_err(|error| error.to_string()),
        free: space.f_bavail * space.f_frsize,
    })
}

fn file_system(path: &Path) -> io::Result<String> {
    #[allow(clippy::unnecessary_cast, reason = "its type differs between architectures")]
    let magic = statfs(path)?.f_type as i64;
    // statfs(2)
    Ok(match magic {
        0x5846_5342 => "XFS".into(),
        0x9123_683e => "btrfs".into(),
        0xef53 => "ext4".into(),
        0x0102_1994 => "tmpfs".into(),
        0x794c_7630 => "overlayfs".into(),
        0x2fc1_2fc1 => "ZFS".into(),
        other => format!("a file system of kind {other:#x}"),
    })
}

/// Mounts an overlay that hangs in no directory and ends with its descriptor,
/// with the options of a clone's, and changes a file in it.
fn overlay(dir: &Path) -> io::Result<()> {
    let parts = ["lower", "upper", "work"].map(|name| dir.join(name));
    for part in &parts {
        std::fs::create_dir(part)?;
    }
    let [lower, upper, work] = &parts;
    std::fs::write(lower.join("file"), "lower")?;
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("lowerdir", lower), ("upperdir", upper), ("workdir", work)] {
        rustix::mount::fsconfig_set_string(&fs, key, value)?;
    }
    rustix::mount::fsconfig_set_flag(&fs, "volatile")?;
    rustix::mount::fsconfig_create(&fs)?;
    let root = rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)?;
    let open = |flags| -> io::Result<File> {
        let file: OwnedFd = rustix::fs::openat(&root, "file", flags | OFlags::CLOEXEC, Mode::empty())?;
        Ok(File::from(file))
    };
    open(OFlags::WRONLY | OFlags::TRUNC)?.write_all(b"upper")?;
    let mut text = String::new();
    open(OFlags::RDONLY)?.read_to_string(&mut text)?;
    let below = std::fs::read_to_string(lower.join("file"))?;
    if (text.as_str(), below.as_str()) == ("upper", "lower") {
        Ok(())
    } else {
        Err(io::Error::other("a change does not stay in the upper directory"))
    }
}

fn bridge(name: &str) -> Bridge {
    let interface = Path::new("/sys/class/net").join(name);
    if interface.join("bridge").is_dir() {
        Bridge::Present
    } else if interface.is_dir() {
        Bridge::Other
    } else {
        Bridge::Absent
    }
}

async fn listen(address: SocketAddr) -> Listen {
    match TcpListener::bind(address).await {
        Ok(_) => Listen::Free,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => match is_alive(address).await {
            Ok(true) => Listen::Daemon,
            _ => Listen::Taken,
        },
        Err(error) => Listen::Refused(error.to_string()),
    }
}

/// Whether a daemon answers there.
async fn is_alive(mut address: SocketAddr) -> io::Result<bool> {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        Ok(status.ends_with(b" 200"))
    };
    // It is on this host: a second is ample.
    tokio::time::timeout(Duration::from_secs(1), ask).await.unwrap_or(Ok(false))
}

fn recipes(config: &Config) -> Vec<(String, String)> {
    let unread = |golden: &String| match Recipe::load(golden, &config.recipe_dir) {
        Ok(_) => None,
        Err(error) => Some((golden.clone(), Chain(&error).to_string())),
    };
    config.goldens.iter().filter_map(unread).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_is_not_there_is_missing_and_one_that_fails_says_why() {
        assert_eq!(ask("no-such-program", &[]).await, Answer::Missing);
        assert_eq!(
            ask("sh", &["-c", "echo out; echo why >&2; exit 3"]).await,
            Answer::Failed("out\nwhy".into())
        );
        assert_eq!(ask("sh", &["-c", "echo 1.2"]).await, Answer::Said("1.2".into()));
        assert!(matches!(ask("false", &[]).await, Answer::Failed(why) if why.contains("exit status: 1")));
    }

    #[tokio::test]
    async fn a_port_is_free_or_taken() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(listen(address).await, Listen::Taken, "nobody answers /livez there");
        drop(taken);
        assert_eq!(listen(address).await, Listen::Free);
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_judged_by_the_one_above_it() {
        let above = tempfile::tempdir().unwrap();
        let state = state_dir(&above.path().join("a/b")).unwrap();
        assert!(state.free > 0);
        assert_eq!(std::fs::read_dir(above.path()).unwrap().count(), 0, "nothing is left");
    }
}
