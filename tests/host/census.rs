//! Counting what a host is full of.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::eventually;
use super::place::Place;

/// Counts by name, of the whole host as this process sees it.
pub(crate) type Census = BTreeMap<&'static str, usize>;

/// Counts everything that instances are made of. A connection kept open shows, so
/// ask again until it has settled.
pub(crate) fn take(place: &Place, daemon: i32) -> Census {
    let own = std::process::id().to_string();
    let processes = processes();
    let namespaces = |kind: &str| {
        let links = processes.iter().filter_map(|process| std::fs::read_link(process.join(kind)).ok());
        links.collect::<BTreeSet<PathBuf>>().len()
    };
    let mounts = std::fs::read_to_string(format!("/proc/{own}/mountinfo")).unwrap();
    Census::from([
        ("processes", processes.len()),
        ("mounts", mounts.lines().count()),
        ("network namespaces", namespaces("ns/net")),
        ("mount namespaces", namespaces("ns/mnt")),
        ("interfaces", entries(Path::new("/sys/class/net")).len()),
        ("cgroups", directories(Path::new("/sys/fs/cgroup"))),
        ("instance directories", entries(&place.state_dir().join("instances")).len()),
        ("files in STATE_DIR", entries(&place.state_dir()).len()),
        ("descriptors of the daemon", entries(Path::new(&format!("/proc/{daemon}/fd"))).len()),
        ("threads of the daemon", lasting_threads(daemon)),
    ])
}

/// Returns when no count has changed for three seconds: what is watched, and what waits
/// in a slot, comes after the shop and the slot.
pub(crate) async fn rest(place: &Place, daemon: i32) {
    let mut seen = (take(place, daemon), Instant::now());
    eventually("the host is at rest", 60, async || {
        let now = take(place, daemon);
        if now != seen.0 {
            seen = (now, Instant::now());
        }
        if seen.1.elapsed() > Duration::from_secs(3) { Ok(()) } else { Err(format!("{:?}", seen.0)) }
    })
    .await;
}

/// All but PHP's workers, which come and go with visitors and never without their
/// master.
fn processes() -> Vec<PathBuf> {
    let mut all = entries(Path::new("/proc"));
    all.retain(|path| path.file_name().unwrap().as_encoded_bytes().iter().all(u8::is_ascii_digit));
    let command = |process: &PathBuf| std::fs::read(process.join("cmdline")).unwrap_or_default();
    all.retain(|process| !command(process).starts_with(b"php-fpm: pool"));
    all
}

/// What all processes are called, to see which one is too many.
pub(crate) fn commands() -> Vec<String> {
    let name = |process: &PathBuf| std::fs::read_to_string(process.join("comm")).unwrap_or_default();
    processes().iter().map(|process| name(process).trim().to_owned()).collect()
}

/// Threads but those of the runtime, whose pool for blocking work grows with a
/// burst and shrinks after ten seconds without one.
fn lasting_threads(daemon: i32) -> usize {
    let threads = entries(Path::new(&format!("/proc/{daemon}/task")));
    let name = |thread: &PathBuf| std::fs::read_to_string(thread.join("comm")).unwrap_or_default();
    threads.iter().filter(|thread| !name(thread).starts_with("tokio-rt-worker")).count()
}

/// Resident memory of a process, in KiB.
pub(crate) fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn directories(dir: &Path) -> usize {
    entries(dir).into_iter().filter(|path| path.is_dir()).map(|path| 1 + directories(&path)).sum()
}
