//! Entering an instance from the host without bringing the host's power along.
//!
//! Called by commands that run something inside. Whatever is run there is the
//! stranger's: programs, libraries, files. So the process that becomes it has
//! the instance's namespaces, root, cgroup and system call filters, no
//! capability that the instance has not, and no way to get one. Nor is it of
//! any use on the way: it cannot be looked into, so that its `/proc/PID/exe`
//! does not lead to the host's program, and it leaves the operator's terminal,
//! into which it could type.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sched::{CloneFlags, setns};
use nix::unistd::{ForkResult, chdir, chroot, fchdir, fork, setsid};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Pid, Signal, WaitOptions, WaitStatus, set_dumpable_behavior,
    set_parent_process_death_signal, waitpid,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

use super::seccomp;

/// In this order: the mount namespace goes last, since /proc is the host's
/// until then; a pid namespace holds from the next fork on. A restored shop's
/// monotonic clock goes on from the checkpoint, in a time namespace.
const NAMESPACES: &[&str] = &["cgroup", "ipc", "uts", "net", "time", "pid", "mnt"];

/// Has `command` run inside the instance whose first process is `pid`.
///
/// The process that is spawned waits for the command and ends with its exit
/// code, or with 128 and the signal that ended it.
///
/// # Errors
/// When the process is gone, or the host's own rights do not suffice.
pub fn prepare(command: &mut Command, pid: i32) -> io::Result<()> {
    let of = |name: &str| File::open(format!("/proc/{pid}/{name}"));
    let mut namespaces = Vec::new();
    for name in NAMESPACES {
        match of(&format!("ns/{name}")) {
            // A kernel built without it.
            Err(error) if *name == "time" && error.kind() == io::ErrorKind::NotFound => {}
            opened => namespaces.push(opened?),
        }
    }
    let root = of("root")?;
    let cgroup = cgroup_of(pid)?.join("cgroup.procs");
    let cgroup = File::options().write(true).open(cgroup)?;
    let capabilities = bound_of(pid)?;
    let filters = seccomp::of(pid)?;
    let enter = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // Until the exec.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        (&cgroup).write_all(b"0")?;
        for namespace in &namespaces {
            setns(namespace, CloneFlags::empty())?;
        }
        fchdir(&root)?;
        chroot(c".")?;
        chdir(c"/")?;
        stand_aside()?;
        setsid()?;
        give_up(capabilities)?;
        for filter in &filters {
            seccomp::put_on(filter)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec `enter` makes only system calls on descriptors
    // and values that it owns; none allocates, and none takes a lock.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

/// Forks, so that the child is inside the pid namespace. The parent becomes
/// what waits for it and never returns.
fn stand_aside() -> io::Result<()> {
    // SAFETY: this process has one thread, the one that was forked to become the
    // command; neither branch uses anything of the program's but system calls.
    let child = match unsafe { fork() }? {
        // Whoever waits outside is gone: so is the command.
        ForkResult::Child => return Ok(set_parent_process_death_signal(Some(Signal::KILL))?),
        ForkResult::Parent { child } => child,
    };
    let child = Pid::from_raw(child.as_raw());
    let code = loop {
        match waitpid(child, WaitOptions::empty()) {
            Ok(status) => {
                let status = status.map(|(_, status)| status);
                let signalled = || Some(128 + status?.terminating_signal()?);
                // Neither: it only stopped.
                if let Some(code) = status.and_then(WaitStatus::exit_status).or_else(signalled) {
                    break code;
                }
            }
            Err(Errno::INTR) => {}
            Err(_) => break 126,
        }
    };
    // SAFETY: it ends at once, without running anything of the program's.
    unsafe { libc::_exit(code) }
}

/// Keeps these capabilities and no way to get others.
fn give_up(keep: u64) -> io::Result<()> {
    for capability in (0..64).map(|bit| 1 << bit).filter(|bit| keep & bit == 0) {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(capability)) {
            // Beyond the last one that the kernel knows.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    clear_ambient_capability_set()?;
    let keep = CapabilitySet::from_bits_retain(keep);
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)?;
    Ok(set_no_new_privs(true)?)
}

/// The capabilities that a process can have at most.
fn bound_of(pid: i32) -> io::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let bits = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let bits = bits.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.ok_or_else(|| io::Error::other("the kernel does not tell CapBnd"))
}

/// The cgroup that a process is in, as the host sees it.
fn cgroup_of(pid: i32) -> io::Result<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let path = path.ok_or_else(|| io::Error::other("it is in no cgroup of version 2"))?;
    Ok(Path::new(super::cgroup::MOUNT).join(path))
}
