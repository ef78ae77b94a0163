//! One test's part of the host.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::{PROGRAM, golden};

/// Where everything of these tests lies: below STATE_DIR, on a file system that
/// the project's daemons like.
pub(crate) fn tests_dir() -> PathBuf {
    let state_dir = std::env::var_os("STATE_DIR").unwrap_or_else(|| "/var/lib/demo-multiplexer".into());
    Path::new(&state_dir).join("tests")
}

/// How many tests may run at once; each has a network of its own.
const LANES: u32 = 64;

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    /// Its standard output; it must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}{}", self.out, self.err);
        self.out
    }

    #[track_caller]
    pub(crate) fn json(self) -> serde_json::Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Its standard error; it must have failed.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        assert!(matches!(self.code, Some(1..)), "{:?} {}{}", self.code, self.out, self.err);
        self.err
    }
}

/// Runs a program to its end.
pub(crate) async fn run(program: &str, args: &[&str]) -> Said {
    said(tokio::process::Command::new(program).args(args)).await
}

async fn said(command: &mut tokio::process::Command) -> Said {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    Said {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A directory and a network that are this test's.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) dir: PathBuf,
    lane: u32,
    /// What the program finds at /etc/hosts, if not the host's own.
    pub(crate) hosts: Option<PathBuf>,
    /// Held as long as the lane is used.
    _lane: File,
    /// Shared, or exclusive for a test that is alone.
    _turn: File,
}

impl Place {
    /// A place beside others. None when this is not a host for such tests.
    pub(crate) async fn beside_others(name: &'static str) -> Option<Self> {
        Self::take(name, File::lock_shared).await
    }

    /// A place while no other test has one. None as above.
    pub(crate) async fn alone(name: &'static str) -> Option<Self> {
        Self::take(name, File::lock).await
    }

    /// A place beside others without the frozen golden. None as above.
    pub(crate) async fn without_golden(name: &'static str) -> Option<Self> {
        if !is_host() {
            return None;
        }
        Some(Self::made(name, File::lock_shared).await)
    }

    /// A place while no other test has one, without the frozen golden. None as above.
    pub(crate) async fn alone_without_golden(name: &'static str) -> Option<Self> {
        if !is_host() {
            return None;
        }
        Some(Self::made(name, File::lock).await)
    }

    async fn take(name: &'static str, turn: fn(&File) -> std::io::Result<()>) -> Option<Self> {
        if !is_host() {
            return None;
        }
        // Before the turn: whoever is alone shall not wait for an image to be built.
        golden::ensure().await;
        let place = Self::made(name, turn).await;
        golden::lend_prepared(&place.state_dir());
        Some(place)
    }

    async fn made(name: &'static str, turn: fn(&File) -> std::io::Result<()>) -> Self {
        let taken = tokio::task::spawn_blocking(move || {
            let tests = tests_dir();
            let waiting = lock_file(&tests.join("turn"));
            turn(&waiting).unwrap();
            let (lane, file) = (0..LANES)
                .find_map(|n| {
                    let file = lock_file(&tests.join(format!("lane-{n}")));
                    file.try_lock().ok().map(|()| (n, file))
                })
                .expect("a free lane");
            Self { dir: tests.join(name), lane, hosts: None, _lane: file, _turn: waiting }
        });
        let place = taken.await.unwrap();
        // What a killed test left.
        place.clear();
        std::fs::create_dir_all(place.state_dir()).unwrap();
        place
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub(crate) fn bridge(&self) -> String {
        format!("dmt{}", self.lane)
    }

    /// The parent of the instances' cgroups.
    pub(crate) fn cgroup(&self) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(self.cgroup_parent())
    }

    fn cgroup_parent(&self) -> String {
        format!("demo-multiplexer-test-{}", self.lane)
    }

    pub(crate) fn address(&self) -> std::net::SocketAddr {
        // Below the ports that the kernel gives to outgoing connections.
        ([127, 0, 0, 1], 20_000 + u16::try_from(self.lane).unwrap()).into()
    }

    pub(crate) fn network(&self, prefix: u8) -> String {
        format!("10.{}.0.0/{prefix}", 100 + self.lane)
    }

    /// This place's number, which no other test has meanwhile.
    pub(crate) fn lane(&self) -> u32 {
        self.lane
    }

    /// Has whoever removes what is prepared here remove links to what is lent, and nothing
    /// that others restore from.
    pub(crate) fn has_its_own(&self, kind: &str) {
        let own = self.state_dir().join(kind);
        let lent = std::fs::read_link(&own).unwrap();
        std::fs::remove_file(&own).unwrap();
        std::fs::create_dir(&own).unwrap();
        for entry in std::fs::read_dir(&lent).unwrap().flatten() {
            std::os::unix::fs::symlink(entry.path(), own.join(entry.file_name())).unwrap();
        }
    }

    /// Has daemons here write their own snapshots and prepare what they need themselves:
    /// what is there is copied, what the first daemon of all has prepared is only lent.
    pub(crate) async fn has_its_own_snapshots(&self, shared: &Path) -> PathBuf {
        ["prepared", "images"].into_iter().for_each(|kind| self.has_its_own(kind));
        let own = self.dir.join("snapshots");
        run("cp", &["-a", shared.to_str().unwrap(), own.to_str().unwrap()]).await.ok();
        own
    }

    /// The bridge's own address.
    pub(crate) fn gateway(&self) -> String {
        format!("10.{}.0.1", 100 + self.lane)
    }

    /// The settings of this place, with those changes.
    pub(crate) fn settings(&self, changes: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut settings: Vec<(String, String)> = [
            ("GOLDEN", golden::NAME.to_owned()),
            ("RECIPE_DIR", golden::recipes().display().to_string()),
            ("SNAPSHOT_DIR", golden::snapshots().display().to_string()),
            ("TRUSTED_SNAPSHOT_KEYS", golden::public_key().display().to_string()),
            ("STATE_DIR", self.state_dir().display().to_string()),
            ("LISTEN", self.address().to_string()),
            ("BRIDGE_NAME", self.bridge()),
            ("BRIDGE_SUBNET", self.network(24)),
            ("CGROUP_PARENT", self.cgroup_parent()),
            ("POOL_TARGET_SIZE", "0".into()),
            ("SLOTS_AHEAD", "0".into()),
            ("COLD_START", "refused".into()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        settings.extend(changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        settings
    }

    /// The program with this place's settings, to be started.
    pub(crate) fn program(&self, args: &[&str], changes: &[(&str, &str)]) -> std::process::Command {
        let mut command = std::process::Command::new(PROGRAM);
        command.args(args).env_clear().current_dir(&self.dir).stdin(Stdio::null());
        command
            .env("HOME", "/root")
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs(self.settings(changes));
        if let Some(profile) = std::env::var_os("LLVM_PROFILE_FILE") {
            command.env("LLVM_PROFILE_FILE", profile);
        }
        if let Some(hosts) = &self.hosts {
            show_as_hosts(&mut command, hosts);
        }
        command
    }

    /// Runs a command of the program to its end.
    pub(crate) async fn cli(&self, args: &[&str]) -> Said {
        self.cli_with(args, &[]).await
    }

    pub(crate) async fn cli_with(&self, args: &[&str], changes: &[(&str, &str)]) -> Said {
        said(&mut self.program(args, changes).into()).await
    }

    /// Runs a command in an instance; it must succeed.
    pub(crate) async fn inside(&self, id: &str, command: &[&str]) -> String {
        let args = [&["exec", id, "--"], command].concat();
        self.cli(&args).await.ok().trim_end().to_owned()
    }

    /// One statement in a shop's database.
    pub(crate) async fn sql(&self, id: &str, statement: &str) -> String {
        self.inside(id, &["mariadb", "--batch", "--skip-column-names", "wordpress", "--execute", statement])
            .await
    }

    /// Ids of all instances that left a cgroup, an interface or a directory.
    pub(crate) fn traces(&self) -> Traces {
        Traces {
            cgroups: ids(&self.cgroup()),
            interfaces: ids(&Path::new("/sys/class/net").join(self.bridge()).join("brif"))
                .into_iter()
                .filter_map(|name| name.strip_prefix("dm-").map(str::to_owned))
                .collect(),
            dirs: ids(&self.state_dir().join("instances")),
        }
    }

    /// Fails when anything of any instance is left.
    pub(crate) fn nothing_is_left(&self) -> Result<(), String> {
        super::same(&self.traces(), &Traces::default())
    }

    /// Kills and removes whatever is here, by its own names only.
    fn clear(&self) {
        let quietly =
            |program: &str, args: &[&str]| drop(std::process::Command::new(program).args(args).output());
        let state = self.state_dir();
        let label = format!("label=demo-multiplexer.instances={}", state.join("instances").display());
        quietly("podman", &["rm", "--force", "--time=0", "--filter", &label]);
        let cgroup = self.cgroup();
        drop(std::fs::write(cgroup.join("cgroup.kill"), "1"));
        let deadline = Instant::now() + Duration::from_secs(5);
        while !remove_cgroup(&cgroup) && Instant::now() < deadline {
            std::thread::yield_now();
        }
        quietly("ip", &["link", "delete", &self.bridge()]);
        let table = format!("demo-multiplexer-{}", self.bridge());
        quietly("nft", &["delete", "table", "inet", &table]);
        // One test's state directory is a file system of its own.
        quietly("umount", &["--quiet", "--lazy", state.to_str().unwrap()]);
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the daemon's log ends:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
            eprintln!("left: {:?}", self.traces());
        }
        self.clear();
    }
}

/// Has a program find a file at /etc/hosts, in a mount namespace of its own, and
/// keep what it writes to itself, as the daemon's unit has it.
fn show_as_hosts(command: &mut std::process::Command, file: &Path) {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::process::CommandExt as _;

    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    let file = std::ffi::CString::new(file.as_os_str().as_bytes()).unwrap();
    let none = None::<&std::ffi::CStr>;
    let enter = move || {
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
        Ok(mount(Some(file.as_c_str()), c"/etc/hosts", none, MsFlags::MS_BIND, none)?)
    };
    // SAFETY: four system calls on strings that the closure owns.
    unsafe { command.pre_exec(enter) };
}

/// What of instances can be found on the host.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Traces {
    pub(crate) cgroups: Vec<String>,
    pub(crate) interfaces: Vec<String>,
    pub(crate) dirs: Vec<String>,
}

impl Traces {
    /// The same ids everywhere.
    pub(crate) fn all(ids: &[String]) -> Self {
        Self { cgroups: ids.to_vec(), interfaces: ids.to_vec(), dirs: ids.to_vec() }
    }
}

/// Names of the directories in one; none when it is not there.
fn ids(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn remove_cgroup(path: &Path) -> bool {
    for name in ids(path) {
        remove_cgroup(&path.join(name));
    }
    match std::fs::remove_dir(path) {
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        Ok(()) => true,
    }
}

pub(crate) fn lock_file(path: &Path) -> File {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    OpenOptions::new().create(true).append(true).open(path).unwrap()
}

/// Whether this is a host for such tests; says why when it is not, and fails
/// where it has to be one.
fn is_host() -> bool {
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|is| is == value);
    if is("DEMO_LAB", "1") {
        return true;
    }
    let required = std::env::var("REQUIRE").is_ok_and(|names| names.split(',').any(|name| name == "podman"));
    assert!(!required && !is("CI", "true"), "these tests need podman and CRIU: run make test");
    println!("skipped: needs podman and CRIU (run make test)");
    false
}
