//! A NATS server of the test's own: started, killed, stopped, started again.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Whether there is a NATS server here: `NATS_SERVER`, or one in PATH. Where
/// there is none, the test is to return at once.
///
/// # Panics
/// In CI, and when `REQUIRE` names nats: there a skipped test is a failed one.
pub(crate) fn is_there(test: &str) -> bool {
    if program().is_some() {
        return true;
    }
    let required = std::env::var("REQUIRE").is_ok_and(|names| names.split(',').any(|name| name == "nats"));
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!required && !in_ci, "{test} needs nats-server here: install it");
    // Not eprintln: the test runner would keep it to itself.
    let _ = writeln!(std::io::stderr(), "skipped: {test} needs nats-server (run make test)");
    false
}

fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("NATS_SERVER").filter(|named| !named.is_empty()) {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    // Where Debian has it, which not every PATH names.
    dirs.push("/usr/sbin".into());
    dirs.into_iter().map(|dir| dir.join("nats-server")).find(|file| file.is_file())
}

/// A port that is free now; another process may take it, so a server that does
/// not start tries the next one.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// One server; dropping it kills it.
pub(crate) struct Server {
    dir: tempfile::TempDir,
    port: u16,
    args: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// One with JetStream.
    pub(crate) fn start() -> Self {
        Self::with(&["-js"])
    }

    /// One with those arguments.
    pub(crate) fn with(args: &[&str]) -> Self {
        for _ in 0..20 {
            let mut server = Self::not_yet(args);
            if server.try_start() {
                return server;
            }
        }
        panic!("nats-server does not start");
    }

    /// One that is not running yet; its port is known.
    pub(crate) fn not_yet(args: &[&str]) -> Self {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        Self { dir: tempfile::tempdir().unwrap(), port: free_port(), args, child: None }
    }

    fn try_start(&mut self) -> bool {
        let mut child = spawn(self.dir.path(), self.port, &self.args);
        let answers = answers(self.port, &mut child);
        self.child = Some(child);
        if !answers {
            self.kill();
        }
        answers
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap();
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
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
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    /// Loses all that it has on disk, after [`Server::kill`].
    pub(crate) fn wipe(&self) {
        std::fs::remove_dir_all(self.dir.path().join("store")).unwrap();
    }

    /// Starts it, for the first time or after [`Server::kill`].
    pub(crate) fn start_again(&mut self) {
        assert!(self.try_start(), "nats-server does not start:\n{}", self.log());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(dir: &Path, port: u16, args: &[String]) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    Command::new(program().unwrap())
        .args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--store_dir"])
        .arg(dir.join("store"))
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Whether it greets, at most ten seconds later.
#[expect(clippy::disallowed_methods, reason = "a server is started outside of what is measured")]
fn answers(port: u16, child: &mut Child) -> bool {
    for _ in 0..1000 {
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let mut word = [0; 4];
            if stream.read_exact(&mut word).is_ok() && word == *b"INFO" {
                return true;
            }
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}
