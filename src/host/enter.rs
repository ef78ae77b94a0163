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
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::seccomp;

/// In this order: the mount namespace goes last, since /proc is the host's
/// until then; a pid namespace holds from the next fork on. A restored shop's
/// monotonic clock goes on from the checkpoint, in a time namespace.
const NAMESPACES: &[&str] = &["cgroup", "ipc", "uts", "net", "time", "pid", "mnt"];

/// Version 3 of the capability structures: two 32-bit words a set (capget(2)).
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityWord {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

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
        // SAFETY: between fork and exec only system calls on descriptors that
        // the closure owns; none allocates, the arguments live long enough.
        unsafe {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            // Until the exec.
            check(libc::prctl(libc::PR_SET_DUMPABLE, 0))?;
            if libc::write(cgroup.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1 {
                return Err(io::Error::last_os_error());
            }
            for namespace in &namespaces {
                check(libc::setns(namespace.as_raw_fd(), 0))?;
            }
            chroot(root.as_raw_fd())?;
            stand_aside()?;
            check(libc::setsid())?;
            give_up(capabilities)?;
        }
        for filter in &filters {
            seccomp::put_on(filter)?;
        }
        Ok(())
    };
    // SAFETY: `enter` keeps to what is allowed after a fork, see there.
    unsafe { command.pre_exec(enter) };
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

unsafe fn chroot(root: RawFd) -> io::Result<()> {
    // SAFETY: plain system calls on an open descriptor and static strings.
    unsafe {
        check(libc::fchdir(root))?;
        check(libc::chroot(c".".as_ptr()))?;
        check(libc::chdir(c"/".as_ptr()))
    }
}

/// Forks, so that the child is inside the pid namespace. The parent becomes
/// what waits for it and never returns.
unsafe fn stand_aside() -> io::Result<()> {
    // SAFETY: this process has one thread; the parent branch only waits and
    // ends without running anything of the program's.
    unsafe {
        let child = libc::fork();
        check(child)?;
        if child == 0 {
            // Whoever waits outside is gone: so is the command.
            return check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL));
        }
        let mut status = 0;
        while libc::waitpid(child, &raw mut status, 0) < 0 {
            if *libc::__errno_location() != libc::EINTR {
                libc::_exit(126);
            }
        }
        let signalled = 128 + libc::WTERMSIG(status);
        libc::_exit(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { signalled })
    }
}

/// Keeps these capabilities and no way to get others.
unsafe fn give_up(keep: u64) -> io::Result<()> {
    let low = u32::try_from(keep & u64::from(u32::MAX)).unwrap_or_default();
    let high = u32::try_from(keep >> 32).unwrap_or_default();
    let word = |bits| CapabilityWord { effective: bits, permitted: bits, inheritable: 0 };
    let header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let words = [word(low), word(high)];
    // SAFETY: plain system calls; both structures have the kernel's layout and
    // live until the call has returned.
    unsafe {
        for capability in 0..64 {
            if keep & (1 << capability) == 0 {
                // EINVAL: beyond the last one that the kernel knows.
                let dropped = check(libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0));
                match dropped {
                    Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(error),
                    _ => {}
                }
            }
        }
        check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0))?;
        if libc::syscall(libc::SYS_capset, &raw const header, words.as_ptr()) < 0 {
            return Err(io::Error::last_os_error());
        }
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    }
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
