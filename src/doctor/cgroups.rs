//! What cgroups mean for instances' limits. Pure, a part of [`super::judge`].

use super::Finding;
use super::facts::Facts;
use super::judge::{fail, ok, warn};

/// Controllers with what is not limited when they are missing.
const CONTROLLERS: &[&str] = &["memory", "pids", "cpu", "io"];

/// Those without which the daemon looks itself (`host::cgroup`).
const WATCHED: &[&str] = &["memory", "pids"];

pub(super) fn hierarchy(facts: &Facts) -> Option<Finding> {
    Some(match facts.cgroup.as_ref()? {
        Ok(_) => ok("cgroup", "cgroup v2 is the only hierarchy"),
        Err(why) => fail(
            "cgroup",
            why,
            "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line, and run outside containers",
        ),
    })
}

pub(super) fn controllers(facts: &Facts) -> Option<Finding> {
    let offered = facts.cgroup.as_ref()?.as_ref().ok()?;
    let missing: Vec<&str> =
        CONTROLLERS.iter().copied().filter(|wanted| !offered.iter().any(|have| have == wanted)).collect();
    Some(if missing.is_empty() {
        ok("controllers", CONTROLLERS.join(", "))
    } else {
        let (watched, open): (Vec<&str>, Vec<&str>) = missing.iter().partition(|name| WATCHED.contains(name));
        let mut seen = format!("missing: {}", missing.join(", "));
        if !watched.is_empty() {
            let names = watched.join(" and ");
            seen +=
                &format!("; on {names} the daemon looks every few seconds and ends what is over its limit");
        }
        if !open.is_empty() {
            seen += &format!("; limits on {} are not in force", open.join(" and "));
        }
        warn(
            "controllers",
            seen,
            "boot without cgroup v1 mounts and without cgroup_disable= on the kernel's command line",
        )
    })
}
