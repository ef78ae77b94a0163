//! Settings: read from the installed service's file, `.env`, the environment, a
//! TOML file and flags, in rising order; checked all at once; nothing is opened or bound here.
//!
//! [`SETTINGS`] is the one list of names, defaults and explanations: flags,
//! `.env.example` and docs/settings.md are checked against it.

mod database;
mod edges;
mod nats;
mod nodes;
mod reader;
mod router;
mod settings;
pub(crate) mod sources;
mod store;
mod subnet;
pub mod units;
mod webhooks;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;

pub use self::database::{DatabaseMode, DatabaseServer};
pub use self::edges::{Acquire, Banner, EdgeSettings, Landing, Origins};
pub use self::nats::{NatsConfig, NatsLogin};
pub use self::nodes::{NodeSecretError, NodeSettings};
use self::reader::Reader;
pub use self::router::{AdminAddress, Router};
pub use self::settings::{SETTINGS, Setting};
pub use self::sources::collect;
pub use self::store::{Endpoint, Servers, StoreAt, ValkeyAt};
pub use self::subnet::Subnet;
pub use self::webhooks::{WebhookConfig, WebhookSecret, WebhookSecretError, WebhookUrl};
use crate::client::TrustedProxies;
use crate::id::NodeName;

/// Names and raw values of settings, before they are checked.
pub type Values = BTreeMap<String, String>;

/// Which engine runs the containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerMode {
    /// Podman and CRIU: snapshots and restores.
    Podman,
    /// A Docker engine: cold starts only.
    Docker,
}

/// Whether acquire may boot a shop when it cannot restore one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColdStart {
    /// It may; the answer says `source: cold`.
    Allowed,
    /// It answers 503 instead.
    Refused,
}

/// The settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The golden named by `GOLDEN` first, and further ones after a comma.
    pub goldens: Vec<String>,
    /// How many instances are kept ready for each golden.
    pub pool_target_size: usize,
    /// How many instances this host holds at most, in all states.
    pub max_instances: usize,
    /// How many restores run at once.
    pub restore_concurrency: usize,
    /// How long a client may have to wait before its instance is begun with.
    pub acquire_wait: Duration,
    /// How many slots are made ahead.
    pub slots_ahead: usize,
    /// Which engine runs the containers.
    pub container_mode: ContainerMode,
    /// The Docker engine's socket; of use with [`ContainerMode::Docker`] only.
    pub docker_socket: PathBuf,
    /// Whether a cold start is an acceptable last resort.
    pub cold_start: ColdStart,
    /// The server that shops share; none when each brings its own.
    pub database: Option<DatabaseServer>,
    /// Instances live at `<id>.<base_domain>`.
    pub base_domain: String,
    /// The proxies whose word about their callers is taken.
    pub trusted_proxies: TrustedProxies,
    /// Acquires of one client in an hour at most; 0 is no limit.
    pub rate_limit_hourly: u32,
    /// The same in a day.
    pub rate_limit_daily: u32,
    /// `http` or `https`, as visitors see it.
    pub public_scheme: String,
    /// The port visitors see; none when it is the scheme's own.
    pub public_port: Option<u16>,
    /// Where API and proxy listen.
    pub listen: SocketAddr,
    /// Who may ask for what, and how much at a time.
    pub edges: EdgeSettings,
    /// What leads visitors to instances.
    pub router: Router,
    /// Where the state is kept.
    pub store: StoreAt,
    /// This daemon's name among those that share a Valkey, a NATS or a Caddy.
    pub node: NodeName,
    /// How it is one of several; none when it is the only one.
    pub nodes: Option<NodeSettings>,
    /// NATS, if jobs and events go over it.
    pub nats: Option<NatsConfig>,
    /// Who is told of leases.
    pub webhooks: Option<WebhookConfig>,
    /// All of the daemon's own files.
    pub state_dir: PathBuf,
    /// Snapshots at rest.
    pub snapshot_dir: PathBuf,
    /// Public keys whose snapshots are trusted beside this host's own.
    pub trusted_snapshot_keys: Vec<PathBuf>,
    /// Where recipes named without a slash are looked for.
    pub recipe_dir: PathBuf,
    /// How many bytes an instance may write.
    pub disk_max: u64,
    /// The bridge that instances hang on.
    pub bridge_name: String,
    /// Its network: the first address is the bridge's.
    pub bridge_subnet: Subnet,
    /// How often names that shops may reach are looked up.
    pub egress_refresh: Duration,
    /// The cgroup below which instances live.
    pub cgroup_parent: String,
    /// An instance's time when the client names none.
    pub default_ttl: SignedDuration,
    /// The longest time an instance may live after it was handed out.
    pub max_ttl: SignedDuration,
    /// How long nobody may ask a shop until it sleeps; zero: for ever.
    pub hibernate_after: Duration,
    /// How many shops visitors may keep.
    pub saved_max: usize,
    /// How many bytes they may take together.
    pub saved_max_bytes: u64,
    /// For how long.
    pub saved_keep: SignedDuration,
    /// The collector that traces are sent to.
    pub otlp_url: Option<String>,
}

/// What is wrong with the settings, all of it.
#[derive(Debug, thiserror::Error)]
#[error("{} wrong in the settings:{}", count(.problems.len()), .problems.iter().map(|p| format!("\n  - {p}")).collect::<String>())]
pub struct ConfigError {
    /// One sentence a problem: the setting, its value, what would be right.
    pub problems: Vec<String>,
}

/// The longest, so that an instance's label and a dot still fit in front of it.
const BASE_DOMAIN_MAX: usize = 253 - 13;

/// Whether the proxy can tell hosts below it from others.
fn is_base_domain(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    let label = |label: &str| !label.is_empty() && label.len() <= 63 && label.bytes().all(plain);
    text.len() <= BASE_DOMAIN_MAX && text.split('.').all(label)
}

fn count(n: usize) -> String {
    if n == 1 { "one thing is".into() } else { format!("{n} things are") }
}

impl Config {
    /// Checks raw values and reports every problem at once.
    ///
    /// # Errors
    /// [`ConfigError`] with one sentence a problem.
    pub fn check(values: &Values) -> Result<Self, ConfigError> {
        let mut read = Reader { values, problems: Vec::new() };
        let listen: SocketAddr = read.parse(
            "LISTEN",
            SocketAddr::from(([127, 0, 0, 1], 8080)),
            "an address and port such as 127.0.0.1:8080",
        );
        let public_scheme = read.choice("PUBLIC_SCHEME", &[("http", "http"), ("https", "https")]);
        let public_port = match read.text("PUBLIC_PORT").as_str() {
            "" => Some(listen.port()),
            _ => Some(read.parse("PUBLIC_PORT", 80_u16, "a port number, or empty for LISTEN's")),
        };
        let own_port = if public_scheme == "https" { 443 } else { 80 };
        let state_dir = read.directory("STATE_DIR");
        let store = read.store(&state_dir);
        let node = read.node();
        let nodes = nodes::read(&mut read, &store);
        let base_domain = read.text("BASE_DOMAIN").to_ascii_lowercase();
        if !is_base_domain(&base_domain) {
            read.problems
                .push(format!("BASE_DOMAIN={base_domain:?}: a domain name such as demo.example.com"));
        }
        let default_ttl = read.duration("DEFAULT_TTL");
        let max_ttl = read.duration("MAX_TTL");
        if default_ttl > max_ttl {
            read.problems.push(format!("DEFAULT_TTL={default_ttl:#} is longer than MAX_TTL={max_ttl:#}"));
        }
        let saved_max = read.number("SAVED_MAX", 0..=100_000);
        let saved_max_bytes = units::bytes(&read.text("SAVED_MAX_BYTES")).unwrap_or_else(|problem| {
            read.problems.push(format!("SAVED_MAX_BYTES: {problem}"));
            0
        });
        let saved_keep = read.duration("SAVED_KEEP");
        let hibernate_after = read.duration_or_none("HIBERNATE_AFTER");
        let trusted_proxies = read.text("TRUSTED_PROXIES").parse().unwrap_or_else(|problem| {
            read.problems.push(format!("TRUSTED_PROXIES: {problem}; further ones after a comma"));
            TrustedProxies::default()
        });
        let goldens: Vec<String> = read
            .text("GOLDEN")
            .split(',')
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .collect();
        if goldens.is_empty() {
            read.problems.push("GOLDEN is empty: prestashop, wordpress or a folder".into());
        }
        let trusted_snapshot_keys = read
            .text("TRUSTED_SNAPSHOT_KEYS")
            .split(',')
            .map(str::trim)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
            .collect();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let concurrency = read.number("RESTORE_CONCURRENCY", 0..=256);
        let disk_max = units::bytes(&read.text("DISK_MAX")).unwrap_or_else(|problem| {
            read.problems.push(format!("DISK_MAX: {problem}"));
            u64::MAX
        });
        let bridge_name = read.text("BRIDGE_NAME");
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if !(1..=15).contains(&bridge_name.len())
            || !bridge_name.bytes().all(plain)
            || !bridge_name.starts_with(|c: char| c.is_ascii_alphabetic())
        {
            read.problems.push(format!(
                "BRIDGE_NAME={bridge_name:?}: 15 letters, digits, dots and dashes at most, a letter first"
            ));
        }
        let subnet_text = read.text("BRIDGE_SUBNET");
        let bridge_subnet = subnet_text.parse().unwrap_or_else(|problem| {
            read.problems.push(format!("BRIDGE_SUBNET: {problem}"));
            Subnet { network: Ipv4Addr::new(10, 77, 0, 0), prefix: 16 }
        });
        let egress_refresh = read.duration("EGRESS_REFRESH").unsigned_abs();
        if egress_refresh < Duration::from_secs(1) {
            read.problems.push(format!("EGRESS_REFRESH={egress_refresh:?}: 1s at least"));
        }
        let router = router::read(&mut read);
        let cgroup_parent = read.text("CGROUP_PARENT");
        if cgroup_parent.is_empty() || cgroup_parent.split('/').any(|part| part.is_empty() || part == "..") {
            read.problems
                .push(format!("CGROUP_PARENT={cgroup_parent:?}: a relative path such as demo-multiplexer"));
        }
        let container_mode = read.choice(
            "CONTAINER_MODE",
            &[("podman", ContainerMode::Podman), ("docker", ContainerMode::Docker)],
        );
        let cold_start =
            read.choice("COLD_START", &[("allowed", ColdStart::Allowed), ("refused", ColdStart::Refused)]);
        let docker_socket = match (container_mode, read.text("DOCKER_HOST").strip_prefix("unix://")) {
            (_, Some(path)) if path.starts_with('/') => PathBuf::from(path),
            // Others' programs read it too, so it may name anything here.
            (ContainerMode::Podman, _) => PathBuf::new(),
            (ContainerMode::Docker, _) => {
                read.problems.push(format!(
                    "DOCKER_HOST={:?}: unix:// and the path of a socket of this host, where the shops' \
                     network is made",
                    read.text("DOCKER_HOST")
                ));
                PathBuf::new()
            }
        };
        if (container_mode, cold_start) == (ContainerMode::Docker, ColdStart::Refused) {
            read.problems.push(
                "COLD_START=refused with CONTAINER_MODE=docker: Docker cannot restore snapshots, every \
                 shop is a cold start there; set COLD_START=allowed, or CONTAINER_MODE=podman"
                    .into(),
            );
        }
        let mode = read
            .choice("DATABASE_MODE", &[("bundled", DatabaseMode::Bundled), ("shared", DatabaseMode::Shared)]);
        let database = match mode {
            DatabaseMode::Bundled => None,
            DatabaseMode::Shared => {
                let [url, file, prefix] =
                    ["DATABASE_URL", "DATABASE_PASSWORD_FILE", "DATABASE_PREFIX"].map(|name| read.text(name));
                let checked = DatabaseServer::check(&url, &file, &prefix, &state_dir);
                checked.map_err(|problems| read.problems.extend(problems)).ok()
            }
        };
        let config = Self {
            goldens,
            pool_target_size: read.number("POOL_TARGET_SIZE", 0..=10_000),
            max_instances: read.number("MAX_INSTANCES", 1..=100_000),
            restore_concurrency: if concurrency == 0 { cores + 1 } else { concurrency },
            acquire_wait: read.duration("ACQUIRE_WAIT").unsigned_abs(),
            slots_ahead: read.number("SLOTS_AHEAD", 0..=1_000),
            container_mode,
            docker_socket,
            cold_start,
            database,
            base_domain,
            trusted_proxies,
            rate_limit_hourly: read.limit("RATE_LIMIT_HOURLY"),
            rate_limit_daily: read.limit("RATE_LIMIT_DAILY"),
            public_scheme: public_scheme.to_owned(),
            public_port: public_port.filter(|port| *port != own_port),
            listen,
            edges: EdgeSettings::read(&mut read, listen),
            router,
            trusted_snapshot_keys,
            store,
            node,
            nodes,
            nats: nats::read(&mut read),
            webhooks: webhooks::read(&mut read),
            snapshot_dir: read.directory("SNAPSHOT_DIR"),
            recipe_dir: read.directory("RECIPE_DIR"),
            state_dir,
            disk_max,
            bridge_name,
            bridge_subnet,
            egress_refresh,
            cgroup_parent,
            default_ttl,
            hibernate_after,
            saved_max,
            saved_max_bytes,
            saved_keep,
            max_ttl,
            otlp_url: read.http_url("OTLP_URL"),
        };
        if read.problems.is_empty() { Ok(config) } else { Err(ConfigError { problems: read.problems }) }
    }

    /// `host[:port]` of an instance, as visitors type it.
    #[must_use]
    pub fn host_of(&self, label: &str) -> String {
        match self.public_port {
            Some(port) => format!("{label}.{}:{port}", self.base_domain),
            None => format!("{label}.{}", self.base_domain),
        }
    }

    /// Where the shops' databases are.
    #[must_use]
    pub const fn database_mode(&self) -> DatabaseMode {
        match self.database {
            None => DatabaseMode::Bundled,
            Some(_) => DatabaseMode::Shared,
        }
    }

    /// How long a restore may take before it counts as failed.
    ///
    /// The 32nd of 32 concurrent restores on 2 cores was seen at 6.4 s; a
    /// minute is far from any healthy one and still ends a hung one.
    #[must_use]
    pub const fn restore_deadline(&self) -> Duration {
        Duration::from_secs(60)
    }
}

#[cfg(test)]
mod tests;
