//! What memory processes take of the host.
//!
//! Called by the bench, for the host as a whole by the chronicle, and by the pool's reaper
//! for what the daemon itself has no more use for. A process's own account (`PSS`) divides what several
//! share among them, but leaves out shared memory that none of them has touched
//! since it was restored, and that takes as much: it is added here.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// Memory of a group of processes, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Their share of all pages that they have mapped.
    pub proportional: u64,
    /// Shared memory that is theirs but not mapped.
    pub unmapped: u64,
    /// Pages that nobody else has and that are on no disk.
    pub private_dirty: u64,
    /// Pages that others have mapped as well.
    pub shared: u64,
    /// Swapped out.
    pub swapped: u64,
}

impl Memory {
    /// All that would be free without them, but for what is swapped out.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.proportional + self.unmapped
    }
}

/// Measures processes; those that have ended meanwhile count nothing.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn of(pids: &[i32]) -> io::Result<Memory> {
    let mut memory = Memory::default();
    let mut kept = BTreeMap::new();
    let mut mapped = 0;
    for pid in pids {
        let Some(rollup) = read(format!("/proc/{pid}/smaps_rollup"))? else { continue };
        let bytes = |name: &str| kib(&rollup, name) * 1024;
        memory.proportional += bytes("Pss:");
        memory.private_dirty += bytes("Private_Dirty:");
        memory.shared += bytes("Shared_Clean:") + bytes("Shared_Dirty:");
        memory.swapped += bytes("SwapPss:");
        mapped += bytes("Pss_Shmem:");
        for area in read(format!("/proc/{pid}/maps"))?.unwrap_or_default().lines() {
            if !area.contains("/memfd:") && !area.contains("/dev/zero") {
                continue;
            }
            let range = area.split_whitespace().next().unwrap_or_default();
            if let Ok(file) = std::fs::metadata(PathBuf::from(format!("/proc/{pid}/map_files/{range}"))) {
                kept.insert((file.dev(), file.ino()), file.blocks() * 512);
            }
        }
    }
    memory.unmapped = kept.values().sum::<u64>().saturating_sub(mapped);
    Ok(memory)
}

/// The host's memory: used, as far as it could not be had for something else,
/// and all of it, in bytes.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn of_host() -> io::Result<(u64, u64)> {
    let meminfo = std::fs::read_to_string("/proc/meminfo")?;
    let bytes = |name: &str| kib(&meminfo, name) * 1024;
    let whole = bytes("MemTotal:");
    Ok((whole.saturating_sub(bytes("MemAvailable:")), whole))
}

/// Gives what this process has freed back to the host: glibc keeps what lies between the
/// few things that stay (malloc_trim(3)), with a thousand instances five times as much as
/// is in use. Takes milliseconds, in which others may wait for memory.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time on any thread; it takes the allocator's locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn read(path: String) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        // ESRCH: it ended while it was read.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn kib(rollup: &str, name: &str) -> u64 {
    let line = rollup.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processes_own_memory_is_found_and_nobodys_is_none() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = of(&[own]).unwrap();
        let held = vec![1_u8; 8 << 20];
        let after = of(&[own]).unwrap();
        assert!(after.private_dirty > before.private_dirty && after.total() >= after.proportional);
        drop(held);
        // No process has it: above any limit of pid_max.
        assert_eq!(of(&[i32::MAX]).unwrap(), Memory::default());
    }

    #[test]
    #[cfg(target_env = "gnu")]
    fn what_was_freed_between_things_that_stay_is_given_back() {
        let own = i32::try_from(std::process::id()).unwrap();
        let mut many: Vec<Vec<u8>> = (0..65_536).map(|_| vec![1; 1024]).collect();
        let mut count = 0;
        many.retain(|_| {
            count += 1;
            count % 64 == 0
        });
        let before = of(&[own]).unwrap().private_dirty;
        give_back();
        let after = of(&[own]).unwrap().private_dirty;
        assert!(after + (32 << 20) < before, "{before} bytes before, {after} after");
        assert_eq!(many.len(), 1024);
    }
}
