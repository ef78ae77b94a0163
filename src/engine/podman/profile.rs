//! Which system calls a golden's processes may make; its clones keep the filter.
//!
//! Podman's own profile is made for all that people run, containers in
//! containers included: anybody in it may make a user namespace, is root in
//! there, and may mount, trace and ask the kernel for whatever only root may;
//! and some let it talk to the hypervisor. No shop does. So ours is the
//! distribution's, which is kept up to date for new system calls, without those,
//! and for this machine's own architecture alone: a 32-bit program is ended at its
//! first system call. Each process of a clone loads the filter anew, and the
//! other architectures' rules are two thirds of it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

/// Where a host has its profile, the first one that is there
/// (containers-seccomp.json(5)).
const HOSTS: &[&str] = &["/etc/containers/seccomp.json", "/usr/share/containers/seccomp.json"];

/// Taken out of it: mounts, namespaces, key rings (they are not in namespaces),
/// other processes' memory and descriptors, and what has had many holes.
const REFUSED: &[&str] = &[
    "add_key",
    "bpf",
    "fanotify_init",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "kcmp",
    "keyctl",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "open_tree_attr",
    "perf_event_open",
    "pidfd_getfd",
    "pivot_root",
    "process_madvise",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "request_key",
    "setns",
    // The 32-bit way to all kinds of sockets; a filter cannot look behind it.
    "socketcall",
    "umount",
    "umount2",
    "unshare",
    "userfaultfd",
];

/// CLONE_NEW* of clone(2) but for CLONE_NEWTIME, which lies among the signal's
/// bits and has no meaning there.
const NAMESPACES: u32 = 0x7e02_0000;

/// Written anew below: clone and clone3 as they may be called, socket for the
/// families that a shop has.
const REPLACED: &[&str] = &["clone", "clone3", "socket"];

/// AF_UNIX, AF_INET, AF_INET6, with any protocol.
const FAMILIES: &[i32] = &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];

/// Where the profile lies, below the state directory.
const FILE: &str = "seccomp.json";

/// Writes the profile for this host's Podman and answers where.
///
/// # Errors
/// When the host's own cannot be read, or STATE_DIR not be written.
pub fn write(state_dir: &Path) -> io::Result<PathBuf> {
    static ONE_WRITER: Mutex<()> = Mutex::new(());
    let _one = ONE_WRITER.lock().unwrap_or_else(PoisonError::into_inner);
    let path = state_dir.join(FILE);
    // Whole at any time: another container may just be starting with it.
    let new = state_dir.join(format!("{FILE}.{}", std::process::id()));
    std::fs::write(&new, ours(&hosts()?)?.to_string())?;
    std::fs::rename(&new, &path)?;
    Ok(path)
}

fn hosts() -> io::Result<Value> {
    for path in HOSTS {
        match std::fs::read(path) {
            Ok(text) => return serde_json::from_slice(&text).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("{} is missing: it comes with the package that Podman's settings come with", HOSTS[1]),
    ))
}

/// The host's profile without what is refused.
fn ours(hosts: &Value) -> io::Result<Value> {
    let mut profile = hosts.clone();
    let rules =
        profile["syscalls"].as_array_mut().ok_or_else(|| io::Error::other("no profile: no syscalls"))?;
    for rule in rules.iter_mut() {
        if let Some(names) = rule["names"].as_array_mut() {
            names.retain(|name| {
                name.as_str().is_none_or(|name| !REFUSED.contains(&name) && !REPLACED.contains(&name))
            });
        }
    }
    rules.retain(|rule| rule["names"].as_array().is_none_or(|names| !names.is_empty()));
    rules.extend([
        json!({"names": REFUSED, "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EPERM}),
        allowed(
            "clone",
            &[json!({"index": 0, "value": NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"})],
        ),
        // A filter cannot look behind a pointer; the C library then takes clone.
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}),
    ]);
    let is = |index: u32, value: i32| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
    rules.extend(FAMILIES.iter().map(|family| allowed("socket", &[is(0, *family)])));
    // What asks for the machine's own addresses.
    rules.push(allowed("socket", &[is(0, libc::AF_NETLINK), is(2, libc::NETLINK_ROUTE)]));
    for machine in profile["archMap"].as_array_mut().into_iter().flatten() {
        machine["subArchitectures"] = json!([]);
    }
    Ok(profile)
}

/// A rule that lets one system call pass with such arguments; with others the
/// profile's default holds.
fn allowed(name: &str, args: &[Value]) -> Value {
    json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": args})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_allowed_by_no_rule() {
        let hosts = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}],
            "syscalls": [
                {"names": ["read", "mount", "clone", "clone3", "socket"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["setns", "bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            ],
        });
        let ours = ours(&hosts).unwrap();
        let rules = ours["syscalls"].as_array().unwrap();
        assert_eq!(rules[0]["names"], json!(["read"]));
        let allowed = rules.iter().filter(|rule| rule["action"] == "SCMP_ACT_ALLOW");
        let unasked: Vec<&Value> = allowed.filter(|rule| rule["args"].is_null()).collect();
        assert!(matches!(unasked[..], [read] if read["names"] == json!(["read"])), "{unasked:?}");
        assert_eq!(ours["defaultAction"], "SCMP_ACT_ERRNO");
        let own = json!([{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []}]);
        assert_eq!(ours["archMap"], own, "and no other architecture's calls");
    }

    #[test]
    fn a_file_without_rules_is_no_profile() {
        assert!(super::ours(&json!({})).is_err());
    }
}
