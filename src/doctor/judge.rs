//! From what was seen to what it means. Pure.
//!
//! One function a finding, in the order in which they are printed: what stands
//! first is what the rest stands on.

use super::database;
use super::facts::{Answer, Bridge, Facts, Listen, StateDir};
use super::trial::without_harmless;
use super::{Finding, Status, cgroups, docker, doors, nats, packages, router, way_out};
use crate::config::{Config, Subnet};
use crate::connections;

/// cgroup.kill came with it (cgroup-v2.rst).
const KERNEL_LEAST: (u32, u32) = (5, 14);

/// Older ones do not start on kernels from 6.13 on.
const CRIU_LEAST: (u32, u32) = (4, 1);

/// The first whose checkpoints can be kept without being exported.
const PODMAN_LEAST: (u32, u32) = (4, 4);

/// A small golden's base, image, snapshot and prepared copy: about 1.5 GiB.
const FREE_LEAST: u64 = 2 << 30;

/// Room for several goldens and what visitors upload.
const FREE_GOOD: u64 = 10 << 30;

/// What a clone takes with one PHP worker alive: 86 MB were measured.
const MEMORY_EACH: u64 = 90 << 20;

/// Capabilities without which some step is refused, by number (capabilities(7)).
///
/// Left out: CHECKPOINT_RESTORE, which SYS_ADMIN includes, and SYS_RESOURCE,
/// which the trial of a checkpoint judges better.
const CAPABILITIES: &[(u8, &str)] = &[
    (0, "CHOWN"),
    (1, "DAC_OVERRIDE"),
    (2, "DAC_READ_SEARCH"),
    (3, "FOWNER"),
    (5, "KILL"),
    (6, "SETGID"),
    (7, "SETUID"),
    (8, "SETPCAP"),
    (12, "NET_ADMIN"),
    (18, "SYS_CHROOT"),
    (19, "SYS_PTRACE"),
    (21, "SYS_ADMIN"),
    // CRIU sets the clock of a clone's time namespace.
    (25, "SYS_TIME"),
    (27, "MKNOD"),
];

const SYS_RESOURCE: u8 = 24;

pub(super) fn ok(name: &'static str, seen: impl Into<String>) -> Finding {
    Finding { name, status: Status::Ok, seen: seen.into(), advice: None }
}

pub(super) fn warn(name: &'static str, seen: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { name, status: Status::Warn, seen: seen.into(), advice: Some(advice.into()) }
}

pub(super) fn fail(name: &'static str, seen: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { name, status: Status::Fail, seen: seen.into(), advice: Some(advice.into()) }
}

/// Judges everything; a check that was left out has no finding.
pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let host = [
        Some(root(facts)),
        capabilities(facts, config),
        Some(kernel(facts)),
        cgroups::hierarchy(facts),
        cgroups::controllers(facts),
        docker::engine(facts, config),
    ];
    let restoring = [
        Some(criu(facts)),
        criu_check(facts),
        checkpoint(facts),
        criu_cache(facts),
        userfaultfd(facts),
        Some(podman(facts)),
        runtime(facts),
    ];
    let rest = [
        memory(facts, config),
        Some(files(facts, config)),
        network(facts),
        Some(bridge(facts, config)),
        Some(nftables(facts)),
        database::judge(facts, config),
        nats::judge(facts),
        Some(listen(facts, config)),
        router::judge(facts.router.as_ref(), config),
        way_out::judge(facts.way_out.as_ref(), config),
        Some(golden_tools(facts)),
        Some(recipes(facts, config)),
    ];
    let (host, restoring) = (host.into_iter(), restoring.into_iter());
    let rest = rest.into_iter().flatten().chain(doors::judge(&facts.doors, config));
    let state = state_dir(facts, config);
    if docker::is_mode(config) {
        let findings = host.flatten().chain(state).chain(rest);
        return findings.filter(docker::matters).collect();
    }
    host.chain(restoring).flatten().chain(state).chain(rest).collect()
}

fn root(facts: &Facts) -> Finding {
    if facts.uid == 0 {
        return ok("root", "runs as root");
    }
    fail(
        "root",
        format!("runs as user {}: checks that need root were left out", facts.uid),
        "run it as root: sudo demo-multiplexer doctor",
    )
}

fn capabilities(facts: &Facts, config: &Config) -> Option<Finding> {
    if facts.uid != 0 {
        return None;
    }
    let has = |bit: u8| facts.capabilities >> bit & 1 == 1;
    let missing: Vec<String> =
        CAPABILITIES.iter().filter(|(bit, _)| !has(*bit)).map(|(_, name)| format!("CAP_{name}")).collect();
    let name = "capabilities";
    if !missing.is_empty() {
        return Some(fail(
            name,
            format!("missing: {}", missing.join(", ")),
            "run on the host itself or in a privileged container; in a systemd unit widen CapabilityBoundingSet=",
        ));
    }
    Some(match (has(SYS_RESOURCE), &facts.checkpoint) {
        (true, _) => ok(name, "all that are needed"),
        // It is CRIU that needs it.
        (false, _) if docker::is_mode(config) => ok(name, "all that are needed"),
        (false, Some(Ok(()))) => {
            ok(name, "CAP_SYS_RESOURCE is missing, yet CRIU can read other users' limits here")
        }
        (false, _) => fail(
            name,
            "missing: CAP_SYS_RESOURCE, without which CRIU cannot read other users' limits",
            "run where the bounding set has it; for tests on such a machine see tests/lab/README.md",
        ),
    })
}

/// The first two numbers in a text, such as those of `podman version 5.8.6`.
fn version(text: &str) -> Option<(u32, u32)> {
    let numbers =
        text.split_ascii_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut parts = numbers.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel(facts: &Facts) -> Finding {
    match version(&facts.kernel) {
        Some(found) if found < KERNEL_LEAST => fail(
            "kernel",
            format!("Linux {} is older than {}.{}", facts.kernel, KERNEL_LEAST.0, KERNEL_LEAST.1),
            "use a newer distribution or its newer kernel",
        ),
        _ => ok("kernel", format!("Linux {}", facts.kernel)),
    }
}

fn criu(facts: &Facts) -> Finding {
    let install = || facts.family.install(packages::CRIU);
    match &facts.criu {
        Answer::Missing => fail("criu", "no criu in PATH", install()),
        Answer::Failed(why) => fail("criu", why, install()),
        Answer::Said(text) => match version(text) {
            Some(found) if found < CRIU_LEAST => fail(
                "criu",
                format!("CRIU {text} is older than {}.{}", CRIU_LEAST.0, CRIU_LEAST.1),
                install(),
            ),
            _ => ok("criu", format!("CRIU {text}")),
        },
    }
}

fn criu_check(facts: &Facts) -> Option<Finding> {
    match &facts.criu_check {
        Answer::Missing => None,
        Answer::Said(_) => Some(ok("criu-check", "criu check: looks good")),
        // It needs root; the finding on root says so.
        Answer::Failed(_) if facts.uid != 0 => None,
        Answer::Failed(why) => Some(fail(
            "criu-check",
            format!("criu check: {}", without_harmless(why)),
            "a distribution's own kernel has what CRIU needs (CONFIG_CHECKPOINT_RESTORE and others); boot one",
        )),
    }
}

fn checkpoint(facts: &Facts) -> Option<Finding> {
    Some(match facts.checkpoint.as_ref()? {
        Ok(()) => ok("checkpoint", "CRIU froze a process of another user and thawed it"),
        Err(why) => fail(
            "checkpoint",
            format!("CRIU cannot freeze and thaw a process of another user:\n{why}"),
            "mend what the findings above say; in a container or VM with reduced privileges it cannot work",
        ),
    })
}

fn criu_cache(facts: &Facts) -> Option<Finding> {
    Some(match facts.criu_cache.as_ref()? {
        Ok(()) => ok("criu-cache", "/run/criu.kdat can be written"),
        Err(why) => warn(
            "criu-cache",
            format!("{why}; CRIU then asks the kernel anew at each restore, which takes 10 to 50 ms"),
            "let /run be writable",
        ),
    })
}

fn userfaultfd(facts: &Facts) -> Option<Finding> {
    match &facts.userfaultfd {
        Answer::Missing => None,
        Answer::Failed(_) if facts.uid != 0 => None,
        Answer::Said(_) => Some(ok("userfaultfd", "there, so memory could be loaded lazily")),
        Answer::Failed(_) => Some(warn(
            "userfaultfd",
            "CRIU does not find it: memory cannot be loaded lazily",
            "nothing, unless goldens are large; a kernel with CONFIG_USERFAULTFD has it",
        )),
    }
}

fn podman(facts: &Facts) -> Finding {
    let install = || facts.family.install(packages::PODMAN);
    match &facts.podman {
        Answer::Missing => fail("podman", "no podman in PATH", install()),
        Answer::Failed(why) => fail("podman", why, "mend what it says, or install it anew"),
        Answer::Said(text) => match version(text) {
            Some(found) if found < PODMAN_LEAST => fail(
                "podman",
                format!("{text} is older than {}.{}", PODMAN_LEAST.0, PODMAN_LEAST.1),
                install(),
            ),
            Some(_) => ok("podman", text.trim_start_matches("podman version ").to_owned()),
            None => fail("podman", format!("podman --version says {text:?}"), install()),
        },
    }
}

fn runtime(facts: &Facts) -> Option<Finding> {
    let name = "runtime";
    let runtime = match facts.runtime.as_ref()? {
        Ok(runtime) => runtime,
        Err(why) => {
            return Some(fail(
                name,
                format!("podman info: {why}"),
                "mend what it says: no container runs before",
            ));
        }
    };
    if runtime.name != "crun" {
        let install = facts.family.install(packages::CRUN);
        return Some(fail(
            name,
            format!("Podman uses {}; snapshots need crun", runtime.name),
            format!(
                "{install}, then set runtime = \"crun\" below [engine] in /etc/containers/containers.conf"
            ),
        ));
    }
    let version = match &runtime.version {
        Answer::Said(text) if text.split_ascii_whitespace().any(|word| word == "+CRIU") => {
            text.lines().next().unwrap_or_default()
        }
        Answer::Said(_) => {
            return Some(fail(
                name,
                "this crun was built without CRIU (crun --version does not say +CRIU)",
                format!("take the distribution's: {}", facts.family.install(packages::CRUN)),
            ));
        }
        Answer::Missing => return Some(fail(name, "crun is missing", facts.family.install(packages::CRUN))),
        Answer::Failed(why) => return Some(fail(name, why, facts.family.install(packages::CRUN))),
    };
    Some(if runtime.libcriu {
        ok(name, format!("{version} with CRIU"))
    } else {
        fail(name, "crun cannot load libcriu", facts.family.install(packages::LIBCRIU))
    })
}

/// Directory, overlay, reflink and space hang together: one look at STATE_DIR.
fn state_dir(facts: &Facts, config: &Config) -> Vec<Finding> {
    let path = config.state_dir.display();
    let state = match &facts.state {
        None => return Vec::new(),
        Some(Err(why)) => {
            return vec![fail("state-dir", why, format!("let {path} be writable, or set STATE_DIR"))];
        }
        Some(Ok(state)) => state,
    };
    let overlay = match &state.overlay {
        Ok(()) => ok("overlayfs", "can be mounted on STATE_DIR"),
        Err(why) => fail(
            "overlayfs",
            format!("cannot be mounted on {path} ({}): {why}", state.kind),
            "load it (modprobe overlay); set STATE_DIR to a directory on XFS, btrfs or ext4",
        ),
    };
    vec![
        ok("state-dir", format!("{path} is writable, on {}", state.kind)),
        overlay,
        reflink(facts, state, config),
        space(state, config),
    ]
}

fn reflink(facts: &Facts, state: &StateDir, config: &Config) -> Finding {
    let Err(why) = &state.reflink else {
        return ok("reflink", "files are copied by reference");
    };
    let path = config.state_dir.display();
    let install = facts.family.install(packages::XFSPROGS);
    warn(
        "reflink",
        format!("{} cannot copy files by reference ({why}): each restore copies 0.1 GB and more", state.kind),
        format!(
            "put STATE_DIR on XFS or btrfs; a loop file will do ({install}): truncate -s 40G {path}.img && \
             mkfs.xfs -m reflink=1 {path}.img && mkdir -p {path} && mount -o loop {path}.img {path}"
        ),
    )
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

fn space(state: &StateDir, config: &Config) -> Finding {
    let seen = format!("{} free in STATE_DIR", gib(state.free));
    let advice = format!("free some, or set STATE_DIR elsewhere than {}", config.state_dir.display());
    if state.free < FREE_LEAST {
        fail("space", format!("{seen}; a golden and its snapshot take {}", gib(FREE_LEAST)), advice)
    } else if state.free < FREE_GOOD {
        warn("space", format!("{seen}; {} are enough for some goldens", gib(FREE_GOOD)), advice)
    } else {
        ok("space", seen)
    }
}

fn memory(facts: &Facts, config: &Config) -> Option<Finding> {
    if facts.memory == 0 {
        return None;
    }
    let (room, wanted) = (facts.memory / MEMORY_EACH, config.max_instances as u64);
    Some(if room < wanted {
        warn(
            "memory",
            format!("{}: room for about {room} instances; MAX_INSTANCES is {wanted}", gib(facts.memory)),
            format!("set MAX_INSTANCES to {room} or less, or add memory"),
        )
    } else {
        ok("memory", format!("{}: room for {wanted} instances", gib(facts.memory)))
    })
}

fn files(facts: &Facts, config: &Config) -> Finding {
    let (fitting, wanted) = (connections::that_fit(facts.files), config.edges.max_connections);
    if fitting < wanted {
        let most = facts.files.unwrap_or_default();
        return warn(
            "files",
            format!("{most} open files at most: room for {fitting} connections; MAX_CONNECTIONS is {wanted}"),
            "raise LimitNOFILE in the unit (systemctl edit demo-multiplexer), or ulimit -Hn where it is started \
             by hand",
        );
    }
    ok("files", format!("enough for {wanted} connections at once"))
}

fn network(facts: &Facts) -> Option<Finding> {
    Some(match facts.network.as_ref()? {
        Ok(()) => ok("network", "namespaces, bridges and veth pairs can be made"),
        Err(why) => fail(
            "network",
            why,
            "load the modules (modprobe bridge veth), and run outside containers without CAP_NET_ADMIN",
        ),
    })
}

/// Whether two networks share an address.
fn overlap(a: (std::net::Ipv4Addr, u8), b: Subnet) -> bool {
    let shorter = u32::from(a.1.min(b.prefix));
    let mask = u32::MAX.checked_shl(32 - shorter).unwrap_or(0);
    u32::from(a.0) & mask == u32::from(b.network) & mask
}

fn bridge(facts: &Facts, config: &Config) -> Finding {
    let (name, subnet) = (&config.bridge_name, config.bridge_subnet);
    let own = format!("{}/{}", subnet.network, subnet.prefix);
    if facts.bridge == Bridge::Other {
        return fail("bridge", format!("{name} exists and is no bridge"), "set BRIDGE_NAME to a free name");
    }
    let others = facts.routes.iter().filter(|route| route.interface != *name && route.prefix > 0);
    let mut hits = others.filter(|route| overlap((route.network, route.prefix), subnet));
    match hits.next() {
        Some(route) => {
            let seen = format!(
                "{own} overlaps the route to {}/{} by {}",
                route.network, route.prefix, route.interface
            );
            let advice = "set BRIDGE_SUBNET to a network that nothing else here uses, such as 172.29.0.0/16";
            // A longer prefix takes addresses of instances away; a shorter one
            // only loses, on this host, what is behind it in our network.
            if route.prefix >= subnet.prefix {
                fail("bridge", seen, advice)
            } else {
                warn("bridge", seen, advice)
            }
        }
        None if facts.bridge == Bridge::Present => ok("bridge", format!("{name} is there, {own} is its own")),
        None => ok("bridge", format!("{name} and {own} are free")),
    }
}

fn nftables(facts: &Facts) -> Finding {
    let name = "nftables";
    match &facts.nftables {
        Answer::Said(_) => ok(name, "rules can be listed"),
        Answer::Failed(_) if facts.uid != 0 => ok(name, "nft is installed"),
        Answer::Missing => warn(
            name,
            "no nft in PATH: containers that Podman gives a network of its own have none",
            facts.family.install(packages::NFTABLES),
        ),
        Answer::Failed(why) => warn(name, why, "load it: modprobe nf_tables"),
    }
}

fn listen(facts: &Facts, config: &Config) -> Finding {
    let address = config.listen;
    match &facts.listen {
        Listen::Free => ok("listen", format!("{address} is free")),
        Listen::Daemon => ok("listen", format!("a daemon answers at {address}")),
        Listen::Taken => fail(
            "listen",
            format!("another program listens at {address}"),
            format!("end it (ss -ltnp 'sport = {}' names it), or set LISTEN", address.port()),
        ),
        Listen::Refused(why) => {
            fail("listen", format!("{address}: {why}"), "set LISTEN to an address of this host")
        }
    }
}

fn golden_tools(facts: &Facts) -> Finding {
    if facts.tools_missing.is_empty() {
        return ok("golden-tools", "what building a golden takes is there");
    }
    warn(
        "golden-tools",
        format!(
            "missing: {}; goldens are built with them, and PrestaShop's keys made with openssl",
            facts.tools_missing.join(", ")
        ),
        facts.family.install_programs(&facts.tools_missing),
    )
}

fn recipes(facts: &Facts, config: &Config) -> Finding {
    if facts.recipes_unread.is_empty() {
        return ok("recipes", config.goldens.join(", "));
    }
    let seen: Vec<String> =
        facts.recipes_unread.iter().map(|(golden, why)| format!("{golden}: {why}")).collect();
    warn(
        "recipes",
        format!("{}; only building a golden needs them", seen.join("\n")),
        "set RECIPE_DIR to the folder of recipes (podman/ in a checkout), or GOLDEN to a recipe's own folder",
    )
}
