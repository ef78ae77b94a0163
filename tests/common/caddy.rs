//! A Caddy of a test's own, with the repository's Caddyfile.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::HashSet;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::Value;

/// The Caddyfile under test.
pub(crate) fn caddyfile() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("Caddyfile")
}

/// Whether there is a Caddy to try things with; where there is none, the test
/// is to return at once.
///
/// # Panics
/// In CI, and when `REQUIRE` names caddy: there a skipped test is a failed one.
pub(crate) fn is_there(test: &str) -> bool {
    // Once, and before any client is made.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let found = Command::new("caddy").arg("version").stdout(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return true;
    }
    let is = |name: &str, wanted: &str| std::env::var(name).is_ok_and(|value| value == wanted);
    let required = std::env::var("REQUIRE").is_ok_and(|names| names.split(',').any(|name| name == "caddy"));
    // The lab has one.
    assert!(!required && !is("CI", "true") && !is("DEMO_LAB", "1"), "{test} needs caddy here");
    let _ = writeln!(std::io::stderr(), "skipped: {test} needs caddy (run make test)");
    false
}

/// A port that is free now and that no other test of this process gets.
pub(crate) fn free_port() -> u16 {
    static TAKEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if TAKEN.lock().unwrap().get_or_insert_default().insert(port) {
            return port;
        }
    }
}

/// A Caddy that ends with the test; its directory outlives restarts.
pub(crate) struct Caddy {
    dir: tempfile::TempDir,
    settings: Vec<(String, String)>,
    child: Option<Child>,
    pub(crate) https: SocketAddr,
    pub(crate) http: SocketAddr,
    admin: Admin,
}

enum Admin {
    Tcp(u16),
    Unix,
}

impl Caddy {
    /// One in front of the daemon at `daemon`, not started yet.
    pub(crate) fn new(daemon: SocketAddr, settings: &[(&str, &str)]) -> Self {
        let port = || SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (https, http) = (port(), port());
        let mut all = vec![
            ("LISTEN".to_owned(), daemon.to_string()),
            ("HTTPS_PORT".to_owned(), https.port().to_string()),
            ("HTTP_PORT".to_owned(), http.port().to_string()),
            ("PUBLIC_PORT".to_owned(), https.port().to_string()),
        ];
        all.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let admin = Admin::Tcp(free_port());
        Self { dir: tempfile::tempdir().unwrap(), settings: all, child: None, https, http, admin }
    }

    /// The same with its admin API on a unix socket.
    pub(crate) fn on_a_socket(mut self) -> Self {
        self.admin = Admin::Unix;
        self
    }

    /// CADDY_ADMIN_URL.
    pub(crate) fn admin_url(&self) -> String {
        match self.admin {
            Admin::Tcp(port) => format!("http://127.0.0.1:{port}"),
            Admin::Unix => format!("unix/{}", self.dir.path().join("admin.sock").display()),
        }
    }

    /// Starts it and waits until its configuration is loaded.
    pub(crate) async fn start(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let admin = match self.admin {
            Admin::Tcp(port) => format!("127.0.0.1:{port}"),
            Admin::Unix => self.admin_url(),
        };
        let log = std::fs::File::options().create(true).append(true).open(self.log_path()).unwrap();
        let child = Command::new("caddy")
            .args(["run", "--adapter", "caddyfile", "--config"])
            .arg(caddyfile())
            .current_dir(self.dir.path())
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .env("CADDY_ADMIN", admin)
            .env("HOME", self.dir.path())
            .env("XDG_DATA_HOME", self.dir.path().join("data"))
            .env("XDG_CONFIG_HOME", self.dir.path().join("config"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        // Its last step: the sites listen.
        while std::net::TcpStream::connect(self.https).is_err() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "caddy is not up:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills it without a warning.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Has it hang until [`Caddy::go_on`].
    pub(crate) fn hang(&self) {
        self.signal(nix::sys::signal::Signal::SIGSTOP);
    }

    pub(crate) fn go_on(&self) {
        self.signal(nix::sys::signal::Signal::SIGCONT);
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = self.child.as_ref().expect("it runs").id();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal).unwrap();
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Asks its admin API; the answer's status and its body, null if it is no JSON.
    pub(crate) async fn admin(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let Admin::Tcp(port) = self.admin else { panic!("only over TCP") };
        let client = reqwest::Client::builder().pool_max_idle_per_host(0).no_proxy().build().unwrap();
        let url = format!("http://127.0.0.1:{port}{path}");
        let ask = async || {
            let request = client.request(method.parse().unwrap(), &url).timeout(Duration::from_secs(10));
            match body {
                Some(body) => request.json(body).send().await,
                None => request.send().await,
            }
        };
        let mut answer = ask().await;
        for _ in 0..5 {
            // A change that somebody else makes at the same moment may end the connection.
            if method == "GET" && answer.as_ref().is_err_and(reqwest::Error::is_request) {
                answer = ask().await;
            }
        }
        let answer = answer.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default())
    }

    /// A browser that trusts this Caddy's CA and finds `hosts` at its port.
    pub(crate) fn browser(&self, hosts: &[&str]) -> reqwest::Client {
        self.browser_builder(hosts).build().unwrap()
    }

    pub(crate) fn browser_builder(&self, hosts: &[&str]) -> reqwest::ClientBuilder {
        let root = std::fs::read(self.dir.path().join("data/caddy/pki/authorities/local/root.crt")).unwrap();
        let root = reqwest::Certificate::from_pem(&root).unwrap();
        let client = reqwest::Client::builder()
            .tls_certs_only([root])
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(20))
            .no_proxy();
        hosts.iter().fold(client, |client, host| client.resolve(host, self.https))
    }
}

impl Drop for Caddy {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // A stopped process, too, is killed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
