//! What the probes saw. Plain values, so that judgement can be tested without a
//! host.

use std::net::Ipv4Addr;

use super::doors::Doors;
use super::packages::Family;
use super::way_out::WayOut;
use crate::engine::docker::api::Version;
use crate::route::caddy::Surroundings;

/// What a program answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is not installed.
    Missing,
    /// It ended with an error or not in time; what it said.
    Failed(String),
    /// It succeeded; what it printed.
    Said(String),
}

/// A trial's outcome; none when it was left out: it needs root, or what another finding says is missing.
pub(super) type Tried<T = ()> = Option<Result<T, String>>;

/// Everything that was seen.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// The distribution, for the names of packages.
    pub(super) family: Family,
    /// The effective user.
    pub(super) uid: u32,
    /// The effective capabilities, one bit each.
    pub(super) capabilities: u64,
    /// The kernel's release.
    pub(super) kernel: String,
    /// Cgroup v2: the controllers offered, or why it cannot be used.
    pub(super) cgroup: Tried<Vec<String>>,
    /// `criu --version`, by its protocol.
    pub(super) criu: Answer,
    /// `criu check`.
    pub(super) criu_check: Answer,
    /// A process of another user, frozen and thawed.
    pub(super) checkpoint: Tried,
    /// CRIU's cache of what the kernel can do.
    pub(super) criu_cache: Tried,
    /// `criu check --feature uffd-noncoop`.
    pub(super) userfaultfd: Answer,
    /// `podman --version`.
    pub(super) podman: Answer,
    /// The Docker engine, or why it does not answer; none when Podman is used.
    pub(super) docker: Tried<Version>,
    /// The runtime that Podman uses.
    pub(super) runtime: Option<Result<Runtime, String>>,
    /// STATE_DIR.
    pub(super) state: Tried<StateDir>,
    /// Bytes of memory.
    pub(super) memory: u64,
    /// Files that a process may have open; none when there is no bound.
    pub(super) files: Option<u64>,
    /// A bridge and a veth pair, made in a namespace of their own.
    pub(super) network: Tried,
    /// What is on the host under BRIDGE_NAME.
    pub(super) bridge: Bridge,
    /// The host's IPv4 routes.
    pub(super) routes: Vec<Route>,
    /// `nft list tables`.
    pub(super) nftables: Answer,
    /// The shared database server: its version, when all that a daemon asks of
    /// it works.
    pub(super) database: Tried<String>,
    /// NATS and its JetStream; none when NATS_URL is empty.
    pub(super) nats: Tried,
    /// LISTEN.
    pub(super) listen: Listen,
    /// Caddy, or why it cannot be looked at; none with the built-in router.
    pub(super) router: Option<Result<Surroundings, String>>,
    /// Tokens, keys.
    pub(super) doors: Doors,
    /// The way out of shops; none when no golden lists what they may reach.
    pub(super) way_out: Option<WayOut>,
    /// Programs that building a golden takes and that are not there.
    pub(super) tools_missing: Vec<&'static str>,
    /// Goldens of the settings whose recipe cannot be read, and why.
    pub(super) recipes_unread: Vec<(String, String)>,
}

/// The OCI runtime.
#[derive(Debug, Clone)]
pub(super) struct Runtime {
    /// Podman's name for it, such as `crun`.
    pub(super) name: String,
    /// `crun --version`.
    pub(super) version: Answer,
    /// Whether the dynamic linker knows libcriu, which crun loads when it checkpoints.
    pub(super) libcriu: bool,
}

/// What STATE_DIR's file system can do.
#[derive(Debug, Clone)]
pub(super) struct StateDir {
    /// The file system's kind.
    pub(super) kind: String,
    /// An overlay mounted on it, and a file copied up.
    pub(super) overlay: Result<(), String>,
    /// A file cloned by reference.
    pub(super) reflink: Result<(), String>,
    /// Bytes free.
    pub(super) free: u64,
}

/// What is on the host under BRIDGE_NAME.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bridge {
    /// Nothing.
    Absent,
    /// A bridge: a daemon's, running or ended.
    Present,
    /// An interface of another kind.
    Other,
}

/// One IPv4 route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    /// Where it goes out.
    pub(super) interface: String,
    /// Its network.
    pub(super) network: Ipv4Addr,
    /// Its prefix length.
    pub(super) prefix: u8,
}

/// Whether the daemon can listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Listen {
    /// It can.
    Free,
    /// A daemon of ours does already.
    Daemon,
    /// Something else does.
    Taken,
    /// The kernel refuses.
    Refused(String),
}

/// Reads `/proc/net/route`: after a headline one route a line, addresses in
/// hexadecimal and in the machine's byte order.
pub(super) fn parse_routes(text: &str) -> Vec<Route> {
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let number = |n: usize| u32::from_str_radix(fields.get(n)?, 16).ok().map(u32::to_be);
        let prefix = u8::try_from(number(7)?.count_ones()).ok()?;
        Some(Route { interface: (*fields.first()?).to_owned(), network: Ipv4Addr::from(number(1)?), prefix })
    };
    text.lines().skip(1).filter_map(route).collect()
}

/// Reads the value of a line such as `CapEff:\t000001ff`, `MemTotal: 8 kB`.
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}
