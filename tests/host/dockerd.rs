//! A Docker engine of the tests' own: its data, its socket, its processes. One
//! test has it at a time; its images stay for the next one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::place::{Place, lock_file, run, tests_dir};
use super::{eventually, golden};

/// What becomes of containers when the engine is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LiveRestore {
    /// They are stopped with it.
    Off,
    /// They run on.
    On,
}

/// A running engine; it is ended when it is dropped, with all its containers.
#[derive(Debug)]
pub(crate) struct Dockerd {
    child: Option<Child>,
    live_restore: LiveRestore,
    _turn: File,
}

/// Where it keeps what a restart of the host takes.
const RUN: &str = "/run/demo-multiplexer-test-docker";

fn dir() -> PathBuf {
    tests_dir().join("docker")
}

fn socket() -> PathBuf {
    dir().join("sock")
}

/// The settings that have a daemon use it, with what a test adds.
pub(crate) fn settings<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    // Leaked: a handful in the life of a test.
    let host: &'static str = format!("unix://{}", socket().display()).leak();
    let recipes: &'static str = concat!(env!("CARGO_MANIFEST_DIR"), "/podman");
    let own = [
        ("CONTAINER_MODE", "docker"),
        ("DOCKER_HOST", host),
        ("COLD_START", "allowed"),
        ("RECIPE_DIR", recipes),
        ("GOLDEN", golden::NAME),
    ];
    own.into_iter().chain(more.iter().copied()).collect()
}

/// Whether there is an engine to test with; fails where there has to be one.
fn is_installed() -> bool {
    if ["/usr/sbin/dockerd", "/usr/bin/dockerd"].iter().any(|path| Path::new(path).is_file()) {
        return true;
    }
    let is =
        |name: &str, value: &str| std::env::var(name).is_ok_and(|is| is.split(',').any(|one| one == value));
    assert!(!is("CI", "true") && !is("REQUIRE", "docker"), "these tests need dockerd (package docker.io)");
    println!("skipped: needs dockerd (package docker.io)");
    false
}

impl Dockerd {
    /// Starts the engine without any container, and with the golden's image. None
    /// where there is none to start.
    pub(crate) async fn start(place: &Place, live_restore: LiveRestore) -> Option<Self> {
        if !is_installed() {
            return None;
        }
        let locked = tokio::task::spawn_blocking(|| {
            let file = lock_file(&dir().join("lock"));
            file.lock().unwrap();
            file
        });
        let mut engine = Self { child: None, live_restore, _turn: locked.await.unwrap() };
        engine.up().await;
        // What a killed test left.
        engine.remove_all();
        lend_base().await;
        place.cli_with(&["golden", "build", golden::NAME], &settings(&[])).await.ok();
        Some(engine)
    }

    /// Starts it again, or for the first time, and waits until it answers.
    pub(crate) async fn up(&mut self) {
        let nothing = dir().join("daemon.json");
        std::fs::write(&nothing, "{}").unwrap();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir().join("log")).unwrap();
        // Ends with this process, however that ends.
        let mut command = std::process::Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "dockerd", "--bridge=none"]);
        command.args(["--iptables=false", "--ip6tables=false", "--exec-opt=native.cgroupdriver=cgroupfs"]);
        command.arg(format!("--live-restore={}", self.live_restore == LiveRestore::On));
        for (option, path) in [
            ("config-file", nothing),
            ("data-root", dir().join("data")),
            ("exec-root", PathBuf::from(RUN)),
            ("pidfile", dir().join("pid")),
        ] {
            command.arg(format!("--{option}={}", path.display()));
        }
        command.arg(format!("--host=unix://{}", socket().display()));
        drop(std::fs::remove_file(dir().join("pid")));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.child = Some(child);
        eventually("dockerd answers", 60, async || match curl("GET", "/_ping", "") {
            answer if answer == "OK" => Ok(()),
            other => Err(other),
        })
        .await;
    }

    /// Stops it as its unit would, and waits for its end.
    pub(crate) async fn down(&mut self) {
        let mut child = self.child.take().unwrap();
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
        eventually("dockerd ends", 60, async || {
            child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())
        })
        .await;
    }

    /// Names of all its containers, sorted.
    pub(crate) fn containers(&self) -> Vec<String> {
        let listed: Value = serde_json::from_str(&curl("GET", "/containers/json?all=1", "")).unwrap();
        let name = |container: &Value| container["Names"][0].as_str().unwrap()[1..].to_owned();
        let mut names: Vec<String> = listed.as_array().unwrap().iter().map(name).collect();
        names.sort();
        names
    }

    /// Names of all its volumes.
    pub(crate) fn volumes(&self) -> usize {
        let listed: Value = serde_json::from_str(&curl("GET", "/volumes", "")).unwrap();
        listed["Volumes"].as_array().map_or(0, Vec::len)
    }

    /// What it knows of an instance's container.
    pub(crate) fn inspect(&self, id: &str) -> Value {
        serde_json::from_str(&curl("GET", &format!("/containers/dm-{id}/json"), "")).unwrap()
    }

    /// Kills an instance's first process from outside.
    pub(crate) fn kill_init(&self, id: &str) {
        let pid = self.inspect(id)["State"]["Pid"].as_i64().unwrap();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    }

    /// Starts a container that no daemon made, with those labels.
    pub(crate) fn run_stray(&self, name: &str, labels: &Value) {
        let image = self.golden_image();
        let body = serde_json::json!({
            "Image": image,
            "Labels": labels,
            "Entrypoint": ["sleep", "600"],
            "HostConfig": {"NetworkMode": "none"},
        });
        let created = curl("POST", &format!("/containers/create?name={name}"), &body.to_string());
        assert!(created.contains("\"Id\""), "{created}");
        assert_eq!(curl("POST", &format!("/containers/{name}/start"), ""), "");
    }

    /// All its images, in Docker's words.
    pub(crate) fn images(&self) -> String {
        curl("GET", "/images/json", "")
    }

    /// The id of the golden's image.
    fn golden_image(&self) -> String {
        let listed: Value = serde_json::from_str(&self.images()).unwrap();
        let repository = format!("localhost/demo-multiplexer-golden-{}:", golden::NAME);
        let is_golden = |image: &&Value| image["RepoTags"].to_string().contains(&repository);
        listed.as_array().unwrap().iter().find(is_golden).unwrap()["Id"].as_str().unwrap().to_owned()
    }

    /// Removes a container.
    pub(crate) fn remove(&self, name: &str) {
        curl("DELETE", &format!("/containers/{name}?force=1&v=1"), "");
    }

    fn remove_all(&self) {
        self.containers().iter().for_each(|name| self.remove(name));
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if std::thread::panicking() {
            let log = std::fs::read_to_string(dir().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("dockerd's log ends:\n{}", lines[lines.len().saturating_sub(15)..].join("\n"));
        }
        let listed = curl("GET", "/containers/json?all=1", "");
        let listed: Value = serde_json::from_str(&listed).unwrap_or_default();
        for container in listed.as_array().into_iter().flatten() {
            let id = container["Id"].as_str().unwrap_or_default();
            curl("DELETE", &format!("/containers/{id}?force=1&v=1"), "");
        }
        let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM);
        drop(child.wait());
        // With live-restore it keeps its data directory mounted on itself.
        drop(std::process::Command::new("umount").arg("--quiet").arg(dir().join("data")).status());
        drop(std::fs::remove_dir_all(RUN));
    }
}

/// One request; what came back, be it an error.
fn curl(method: &str, path: &str, body: &str) -> String {
    let socket = socket().display().to_string();
    let url = format!("http://docker{path}");
    let mut args = vec!["--silent", "--show-error", "--max-time", "60", "--unix-socket", &socket];
    args.extend(["--request", method, &url]);
    if !body.is_empty() {
        args.extend(["--header", "Content-Type: application/json", "--data", body]);
    }
    let output = std::process::Command::new("curl").args(args).output().unwrap();
    [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()
}

/// Hands Podman's base system over, if it has one: making another takes minutes
/// and a package mirror.
async fn lend_base() {
    let base = "localhost/demo-multiplexer-base";
    if curl("GET", "/images/json", "").contains(base) {
        return;
    }
    let listed = run("podman", &["images", "--format={{.Repository}}:{{.Tag}}", base]).await;
    let Some(name) = listed.out.lines().next().map(str::to_owned) else { return };
    let archive = dir().join("base.tar");
    let path = archive.to_str().unwrap();
    drop(std::fs::remove_file(&archive));
    run("podman", &["save", "--quiet", "--format=docker-archive", "--output", path, &name]).await.ok();
    let socket = socket().display().to_string();
    let sent = ["--silent", "--fail", "--unix-socket", &socket, "--upload-file", path, "--request", "POST"];
    let how = ["--header", "Content-Type: application/x-tar", "http://docker/images/load"];
    run("curl", &[&sent[..], &how].concat()).await.ok();
    std::fs::remove_file(&archive).unwrap();
}
