//! The system call filters of a process, for a command that is to have the same.
//!
//! Called by [`super::enter`]. The kernel tells a filter only to whoever traces
//! the process, so it is stopped for an instant and goes on as it was.

use std::io;
use std::ptr;

/// From linux/ptrace.h; the index 0 is the oldest filter.
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;

/// One filter: a classic BPF program.
pub(super) type Filter = Vec<libc::sock_filter>;

/// Reads all filters of a process, the oldest first; none when it has none.
///
/// # Errors
/// When it is gone or traced by somebody else, or when the caller may not know:
/// it lacks CAP_SYS_ADMIN or has a filter of its own (seccomp(2)).
pub(super) fn of(pid: i32) -> io::Result<Vec<Filter>> {
    let traced = Traced::stop(pid)?;
    let mut filters = Vec::new();
    while let Some(filter) = traced.filter(filters.len())? {
        filters.push(filter);
    }
    Ok(filters)
}

/// Puts a filter upon the calling thread, for ever; it must have given up new
/// privileges. Allocates nothing.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn put_on(filter: &Filter) -> io::Result<()> {
    let len = libc::c_ushort::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    let mode = libc::c_ulong::from(libc::SECCOMP_MODE_FILTER);
    // SAFETY: a plain system call; the program lives until it has returned, and
    // the kernel only reads it.
    check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) }.into()).map(drop)
}

/// A process that stands still while this lives.
struct Traced(i32);

impl Traced {
    fn stop(pid: i32) -> io::Result<Self> {
        request(libc::PTRACE_SEIZE, pid, 0, ptr::null_mut())?;
        let traced = Self(pid);
        request(libc::PTRACE_INTERRUPT, pid, 0, ptr::null_mut())?;
        // SAFETY: a plain system call on a process that this thread traces.
        check(unsafe { libc::waitpid(pid, ptr::null_mut(), libc::__WALL) }.into())?;
        Ok(traced)
    }

    fn filter(&self, index: usize) -> io::Result<Option<Filter>> {
        let len = match request(PTRACE_SECCOMP_GET_FILTER, self.0, index, ptr::null_mut()) {
            // ENOENT: no more; EINVAL: not even one.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
                return Ok(None);
            }
            answer => usize::try_from(answer?).unwrap_or_default(),
        };
        let mut filter = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; len];
        request(PTRACE_SECCOMP_GET_FILTER, self.0, index, filter.as_mut_ptr().cast())?;
        Ok(Some(filter))
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // It has ended when this fails.
        drop(request(libc::PTRACE_DETACH, self.0, 0, ptr::null_mut()));
    }
}

fn request(kind: libc::c_uint, pid: i32, at: usize, data: *mut libc::c_void) -> io::Result<libc::c_long> {
    // SAFETY: of the requests made here only GET_FILTER writes, and no more than
    // the filter that `data` was made for.
    check(unsafe { libc::ptrace(kind, pid, at, data) })
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_filters_has_none_and_goes_on() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        match of(pid) {
            Ok(filters) => assert!(filters.is_empty()),
            // Not root.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}"),
        }
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        assert!(!state.contains(") t "), "{state}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
