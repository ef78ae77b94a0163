//! Processes by identity: a pid with its start time, a pidfd to wait on.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Field 22 of `/proc/PID/stat`: when the process started, in clock ticks since
/// boot. Counted after the command name, which may contain anything (proc(5)).
fn start_ticks_field(stat: &str) -> Option<u64> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// When a process started, in clock ticks since boot.
///
/// # Errors
/// `NotFound` when there is no such process.
pub fn start_ticks(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    start_ticks_field(&stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has no start time")))
}

/// Bytes of memory that are the process's own: resident and not of a file;
/// zero when it is gone. Shared anonymous memory is nobody's here.
#[must_use]
pub fn memory(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = own.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}

/// Whether a process is the first one of its pid namespace (and not of ours).
#[must_use]
pub fn is_init(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let pids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let pids: Vec<&str> = pids.split_ascii_whitespace().collect();
    pids.len() > 1 && pids.last() == Some(&"1")
}

/// Opens a handle to the process that has this pid *and* start time; none when
/// it is gone, be its pid reused or not.
///
/// # Errors
/// When the kernel refuses for another reason.
pub fn open(pid: i32, ticks: u64) -> io::Result<Option<OwnedFd>> {
    let Some(raw) = Pid::from_raw(pid) else { return Ok(None) };
    let handle = match pidfd_open(raw, PidfdFlags::NONBLOCK) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // Read after the handle is open: the pid cannot be reused in between
    // without the handle pointing at the dead one.
    match start_ticks(pid) {
        Ok(found) if found == ticks => Ok(Some(handle)),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns when the process has ended.
///
/// # Errors
/// When the handle cannot be watched.
pub async fn ended(handle: OwnedFd) -> io::Result<()> {
    let handle = watch(handle, Interest::READABLE)?;
    handle.readable().await?.retain_ready();
    Ok(())
}

/// Returns when the process of this pid and start time is not there any more.
pub async fn ended_by_name(pid: i32, ticks: u64) {
    if let Ok(Some(handle)) = open(pid, ticks) {
        // A handle that cannot be watched counts as ended: the caller looks again.
        drop(ended(handle).await);
    }
}

/// Registers a descriptor with the runtime's reactor.
///
/// # Errors
/// When it cannot be polled.
pub fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open and stays the same descriptor as long as the
    // AsyncFd owns it.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}

/// Kills the process; gone already is fine.
///
/// # Errors
/// When the kernel refuses.
pub fn kill(handle: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(handle, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_blanks_and_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 1000 2";
        assert_eq!(start_ticks_field(stat), Some(12345));
    }

    #[tokio::test]
    async fn a_process_is_known_by_pid_and_start_time() {
        let mut child = tokio::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id().unwrap()).unwrap();
        let ticks = start_ticks(pid).unwrap();
        assert!(open(pid, ticks + 1).unwrap().is_none(), "another process of that pid");
        let handle = open(pid, ticks).unwrap().unwrap();
        kill(&handle).unwrap();
        ended(handle).await.unwrap();
        child.wait().await.unwrap();
        assert!(open(pid, ticks).unwrap().is_none(), "gone");
    }
}
