//! A Valkey of the test's own: started, killed, stopped, started again.

use std::ffi::OsString;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpStream;

/// Whether there is a Valkey here: `VALKEY_SERVER`, or one in PATH. Where there
/// is none, the test is to return at once.
///
/// # Panics
/// In CI, and when `REQUIRE` names valkey: there a skipped test is a failed one.
pub(crate) fn is_there(test: &str) -> bool {
    if program().is_some() {
        return true;
    }
    let required = std::env::var("REQUIRE").is_ok_and(|names| names.split(',').any(|name| name == "valkey"));
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!required && !in_ci, "{test} needs valkey-server here: install it");
    // Not eprintln: the test runner would keep it to itself.
    let _ = writeln!(std::io::stderr(), "skipped: {test} needs valkey-server (run make test)");
    false
}

fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("VALKEY_SERVER") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join("valkey-server")).find(|file| file.is_file())
}

/// A port that is free now; another process may take it, so a server that does
/// not start tries the next one.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// One server; dropping it kills it.
pub(crate) struct Server {
    dir: tempfile::TempDir,
    pub(crate) port: u16,
    args: Vec<OsString>,
    child: Child,
}

impl Server {
    /// One that writes every change down.
    pub(crate) async fn start() -> Self {
        Self::with(&["--appendonly", "yes"]).await
    }

    /// One with those settings; `{dir}` in them is its directory, `{port}` its port.
    pub(crate) async fn with(args: &[&str]) -> Self {
        Self::with_files(args, |_| {}).await
    }

    /// The same, with files that `fill` puts into its directory.
    pub(crate) async fn with_files(args: &[&str], fill: impl Fn(&Path)) -> Self {
        for _ in 0..20 {
            let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
            fill(dir.path());
            let set = |arg: &&str| {
                let arg = arg.replace("{dir}", dir.path().to_str().unwrap());
                OsString::from(arg.replace("{port}", &port.to_string()))
            };
            let args: Vec<OsString> = args.iter().map(set).collect();
            let mut child = spawn(dir.path(), port, &args);
            if answers(port, &mut child).await {
                return Self { dir, port, args, child };
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("valkey-server does not start");
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Has it do nothing; its sockets stay open.
    pub(crate) fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// As `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().unwrap();
    }

    /// The same server again, after [`Server::kill`].
    pub(crate) async fn start_again(&mut self) {
        self.child = spawn(self.dir.path(), self.port, &self.args);
        assert!(answers(self.port, &mut self.child).await, "valkey-server does not start again");
    }

    /// Runs a command.
    pub(crate) async fn run(&self, command: &[&str]) -> redis::Value {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut cmd = redis::cmd(command[0]);
        cmd.arg(&command[1..]);
        cmd.query_async(&mut connection).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &Path, port: u16, args: &[OsString]) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    let mut command = Command::new(program().unwrap());
    // A sentinel's configuration file comes first.
    let (file, rest): (Vec<_>, Vec<_>) =
        args.iter().partition(|arg| arg.to_string_lossy().ends_with(".conf"));
    command.args(&file);
    if !rest.iter().any(|arg| *arg == "--port") {
        command.args(["--port", &port.to_string()]);
    }
    // A sentinel knows no "save".
    if file.is_empty() {
        command.args(["--save", ""]);
    }
    command.args(["--bind", "127.0.0.1", "--dir"]).arg(dir).args(rest);
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

/// Whether it listens, at most ten seconds later.
async fn answers(port: u16, child: &mut Child) -> bool {
    for _ in 0..1000 {
        if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}
