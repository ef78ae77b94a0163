//! `podman/quadlets`: what they keep to, that Podman's generator and systemd
//! take them, and that the units run and do what they are for.
//!
//! They are started under other names and ports, beside whatever runs on this
//! host under the real ones. Where a registry's images are missing, stand-ins
//! made of this host's own packages take their place (`quadlet-image`).

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use host::place::{Said, run};
use host::{Place, eventually, same};

const SERVICES: [&str; 4] = ["caddy", "mariadb", "nats", "valkey"];

/// Where Podman looks for units that do not outlive the host's run.
const UNITS: &str = "/run/containers/systemd";

/// Stands for `demo-multiplexer` in all names.
const NAME: &str = "dmtest-quadlet";

const PASSWORD: &str = "not-a-secret-in-a-test";

fn checkout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// All quadlets, by file name.
fn quadlets() -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(checkout("podman/quadlets")).unwrap();
    let read = |entry: std::fs::DirEntry| {
        let text = std::fs::read_to_string(entry.path()).unwrap();
        (entry.file_name().into_string().unwrap(), text)
    };
    entries.map(|entry| read(entry.unwrap())).collect()
}

/// The values of a key, in order.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

fn image(unit: &str) -> &str {
    values(unit, "Image")[0]
}

#[test]
fn every_container_is_confined_watched_and_bounded() {
    let quadlets = quadlets();
    let containers: Vec<_> = quadlets.iter().filter(|(name, _)| name.ends_with(".container")).collect();
    let names: Vec<String> = SERVICES.map(|name| format!("demo-multiplexer-{name}.container")).into();
    assert_eq!(containers.iter().map(|(name, _)| (*name).clone()).collect::<Vec<_>>(), names);
    for (name, unit) in containers {
        for (key, value) in [
            ("ReadOnly", "true"),
            ("NoNewPrivileges", "true"),
            ("DropCapability", "all"),
            ("Pull", "missing"),
        ] {
            assert_eq!(values(unit, key), [value], "{name}: {key}");
        }
        for key in ["User", "Group", "HealthCmd", "MemoryMax", "TasksMax", "Volume", "StopTimeout"] {
            assert!(!values(unit, key).is_empty(), "{name}: no {key}");
        }
        assert_ne!(values(unit, "User"), ["0"], "{name}");
        let (_, tag) = image(unit).rsplit_once(':').unwrap();
        assert!(tag.starts_with(|c: char| c.is_ascii_digit()) && tag.contains('.'), "{name}: {tag}");
        for port in values(unit, "PublishPort") {
            assert!(port.starts_with("127.0.0.1:"), "{name}: {port}");
        }
        for line in unit.lines().filter(|line| !line.starts_with('#')) {
            let secret = line.to_ascii_lowercase().contains("password");
            assert!(!secret || line.contains("_FILE=/run/secrets/"), "{name}: {line}");
        }
    }
}

#[tokio::test]
async fn podman_s_generator_and_systemd_take_every_unit() {
    let Some(place) = Place::without_golden("quadlets-dryrun").await else { return };
    let mut generator = tokio::process::Command::new("/usr/libexec/podman/quadlet");
    let output = generator
        .arg("-dryrun")
        .env("QUADLET_UNIT_DIRS", checkout("podman/quadlets"))
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let complaint = said.lines().find(|line| !line.contains("Loading source unit file"));
    assert_eq!(complaint, None);

    let units = place.dir.join("units");
    std::fs::create_dir_all(&units).unwrap();
    let mut files = Vec::new();
    for part in String::from_utf8(output.stdout).unwrap().split("\n---").map(|part| format!("\n{part}")) {
        let Some((name, text)) = part.trim_start_matches(['\n', '-']).split_once("---\n") else { continue };
        std::fs::write(units.join(name), text).unwrap();
        files.push(units.join(name).display().to_string());
    }
    assert_eq!(files.len(), quadlets().len(), "{files:?}");
    let path = format!("{}:", units.display());
    let verified = tokio::process::Command::new("systemd-analyze")
        .arg("verify")
        .args(&files)
        .env("SYSTEMD_UNIT_PATH", path)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("demo-multiplexer")).collect();
    assert!(verified.status.success() && ours.is_empty(), "{said}");
}

/// The units under test names; gone when it is dropped.
struct Installed {
    images: Vec<String>,
}

impl Installed {
    /// Makes images and secrets, and writes the units.
    async fn new() -> Self {
        let mut installed = Self { images: Vec::new() };
        installed.clear();
        for service in SERVICES {
            let name = format!("demo-multiplexer-{service}.container");
            let image = image(&quadlets()[&name]).to_owned();
            if run("podman", &["image", "exists", &image]).await.code != Some(0) {
                let script = checkout("tests/quadlet-image");
                run(script.to_str().unwrap(), &[service, &image]).await.ok();
                installed.images.push(image);
            }
        }
        let users = format!("user default on >{PASSWORD} ~* &* +@all\n");
        let nats = format!(
            "authorization {{ user: demo, password: \"{PASSWORD}\" }}\n\
             jetstream {{ max_memory_store: 64M, max_file_store: 256M }}\n"
        );
        for (name, content) in
            [("valkey-acl", users), ("nats-conf", nats), ("mariadb-root", PASSWORD.to_owned())]
        {
            shell(&format!("printf %s '{content}' | podman secret create {NAME}-{name} -")).await.ok();
        }
        std::fs::create_dir_all(format!("/etc/{NAME}")).unwrap();
        let site = "{\n\tadmin {$CADDY_ADMIN}\n\thttp_port {$HTTP_PORT}\n}\nhttp:// {\n\trespond {$BASE_DOMAIN}\n}\n";
        std::fs::write(format!("/etc/{NAME}/Caddyfile"), site).unwrap();
        let settings = "BASE_DOMAIN=demo.example\nHTTP_PORT=20080\n";
        std::fs::write(format!("/etc/{NAME}/{NAME}.env"), settings).unwrap();
        std::fs::create_dir_all(UNITS).unwrap();
        for (name, unit) in quadlets() {
            let unit = unit
                .replace("demo-multiplexer", NAME)
                .replace("/run/caddy", &format!("/run/{NAME}-caddy"))
                .replace("RuntimeDirectory=caddy", &format!("RuntimeDirectory={NAME}-caddy"))
                .replace("127.0.0.1:6379:", "127.0.0.1:20379:")
                .replace("127.0.0.1:4222:", "127.0.0.1:20222:");
            std::fs::write(Path::new(UNITS).join(name.replace("demo-multiplexer", NAME)), unit).unwrap();
        }
        run("systemctl", &["daemon-reload"]).await.ok();
        installed
    }

    fn clear(&self) {
        let quietly =
            |program: &str, args: &[&str]| drop(std::process::Command::new(program).args(args).output());
        let services = SERVICES.map(|service| format!("{NAME}-{service}"));
        for service in &services {
            quietly("systemctl", &["stop", service, &format!("{service}-volume")]);
            quietly("systemctl", &["reset-failed", service]);
            quietly("podman", &["volume", "rm", "--force", service]);
        }
        quietly("systemctl", &["stop", &format!("{NAME}-network")]);
        quietly("podman", &["network", "rm", "--force", NAME]);
        for secret in ["valkey-acl", "nats-conf", "mariadb-root"] {
            quietly("podman", &["secret", "rm", "--ignore", &format!("{NAME}-{secret}")]);
        }
        for entry in std::fs::read_dir(UNITS).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(NAME.as_bytes()) {
                drop(std::fs::remove_file(entry.path()));
            }
        }
        drop(std::fs::remove_dir_all(format!("/etc/{NAME}")));
        quietly("systemctl", &["daemon-reload"]);
        for image in &self.images {
            quietly("podman", &["image", "rm", image]);
        }
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for service in SERVICES {
                let unit = format!("{NAME}-{service}");
                let args = ["--unit", &unit, "--lines=15", "--no-pager", "--output=cat"];
                let log = std::process::Command::new("journalctl").args(args).output().unwrap();
                eprintln!("{unit}:\n{}", String::from_utf8_lossy(&log.stdout));
            }
        }
        self.clear();
    }
}

async fn shell(script: &str) -> Said {
    run("sh", &["-euc", script]).await
}

/// What Podman says of a container.
async fn inspect(service: &str, field: &str) -> String {
    let format = format!("--format={field}");
    run("podman", &["inspect", &format, &format!("{NAME}-{service}")]).await.ok().trim().to_owned()
}

#[tokio::test]
async fn the_units_run_are_healthy_and_serve_only_who_knows_the_password() {
    let Some(_place) = Place::alone_without_golden("quadlets-run").await else { return };
    let _installed = Installed::new().await;
    for service in SERVICES {
        let unit = format!("{NAME}-{service}");
        // Notify=healthy: a unit that is started has answered its health check.
        let started = run("systemctl", &["start", &unit]).await;
        assert_eq!(started.code, Some(0), "{started:?}");
        assert_eq!(inspect(service, "{{.State.Health.Status}}").await, "healthy", "{service}");
        assert_eq!(inspect(service, "{{.HostConfig.ReadonlyRootfs}}").await, "true", "{service}");
        let pid = inspect(service, "{{.State.Pid}}").await;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let of = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim_start_matches(':').trim().to_owned()
        };
        assert!(!of("Uid").starts_with("0\t"), "{service}");
        assert_eq!(of("NoNewPrivs"), "1", "{service}");
        // Bit 10 is NET_BIND_SERVICE.
        let bound = if service == "caddy" { "0000000000000400" } else { "0000000000000000" };
        assert_eq!(of("CapBnd"), bound, "{service}");
    }
    valkey().await;
    nats().await;
    mariadb().await;
    caddy().await;

    // One that dies comes back, with what it held.
    let pid = inspect("valkey", "{{.State.Pid}}").await;
    run("kill", &["-KILL", &pid]).await.ok();
    eventually("Valkey is back and has its data", 30, async || {
        same(&valkey_cli("get kept").await.out.trim().to_owned(), &"yes".to_owned())
    })
    .await;
}

async fn valkey_cli(command: &str) -> Said {
    // A connection to a container that has just gone would hang for a minute.
    shell(&format!("REDISCLI_AUTH={PASSWORD} timeout 3 valkey-cli -p 20379 {command}")).await
}

async fn valkey() {
    let refused = shell("valkey-cli -p 20379 set kept no").await;
    assert!(refused.out.contains("NOAUTH"), "{refused:?}");
    assert_eq!(valkey_cli("set kept yes").await.ok().trim(), "OK");
    let policy = valkey_cli("config get maxmemory-policy").await.ok();
    assert!(policy.contains("noeviction"), "{policy}");
}

async fn nats() {
    let options =
        |password: &str| async_nats::ConnectOptions::with_user_and_password("demo".into(), password.into());
    let refused = options("wrong").connect("nats://127.0.0.1:20222").await;
    assert!(refused.is_err(), "a wrong password");
    let client = options(PASSWORD).connect("nats://127.0.0.1:20222").await.unwrap();
    let jetstream = async_nats::jetstream::new(client);
    let config = async_nats::jetstream::stream::Config {
        name: "jobs".into(),
        subjects: vec!["jobs.*".into()],
        ..Default::default()
    };
    let mut stream = jetstream.create_stream(config).await.unwrap();
    jetstream.publish("jobs.one", "x".into()).await.unwrap().await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 1);
    let outside = shell("curl --silent --max-time 2 http://127.0.0.1:8222/varz").await;
    assert_ne!(outside.code, Some(0), "the monitoring port is not published");
}

async fn mariadb() {
    let query = |password: &str| {
        let socket = format!("/run/{NAME}-mariadb/mysqld.sock");
        format!("MYSQL_PWD='{password}' mariadb --no-defaults --socket={socket} --user=root --batch -N -e")
    };
    let found = shell(&format!("{} 'SELECT @@skip_networking, CURRENT_USER()'", query(PASSWORD))).await.ok();
    assert_eq!(found.trim(), "1\troot@localhost");
    let refused = shell(&format!("{} 'SELECT 1'", query("wrong"))).await.refused();
    assert!(refused.contains("Access denied"), "{refused}");
}

async fn caddy() {
    let page = shell("curl --silent --fail http://127.0.0.1:20080/").await.ok();
    assert_eq!(page, "demo.example", "its settings come from the file");
    let socket = format!("/run/{NAME}-caddy/admin.sock");
    let admin =
        shell(&format!("curl --silent --fail --unix-socket {socket} http://caddy/config/admin")).await;
    assert!(admin.ok().contains("admin.sock"));
}
