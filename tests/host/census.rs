//! Counting what a host is full of.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::place::Place;

/// Counts by name, of the whole host as this process sees it.
pub(crate) type Census = BTreeMap<&'static str, usize>;

/// Counts everything that instances are made of. A connection kept open or a
/// worker about to leave shows, so ask again until it has settled.
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

fn processes() -> Vec<PathBuf> {
    let mut all = entries(Path::new("/proc"));
    all.retain(|path| path.file_name().unwrap().as_encoded_bytes().iter().all(u8::is_ascii_digit));
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

/// Has idle PHP workers end, which would else stay for half a minute.
pub(crate) async fn end_workers(place: &Place) {
    for instance in place.traces().cgroups {
        // A slot has nothing that runs yet.
        if workers_of(place, &instance) > 0 {
            place.inside(&instance, &["/golden/end-workers"]).await;
        }
    }
}

/// How many PHP workers are there.
pub(crate) fn workers(place: &Place) -> usize {
    place.traces().cgroups.iter().map(|instance| workers_of(place, instance)).sum()
}

fn workers_of(place: &Place, instance: &str) -> usize {
    let procs = std::fs::read_to_string(place.cgroup().join(instance).join("cgroup.procs"));
    let command = |pid: &str| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    procs.unwrap_or_default().lines().filter(|pid| command(pid).starts_with(b"php-fpm: pool")).count()
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn directories(dir: &Path) -> usize {
    entries(dir).into_iter().filter(|path| path.is_dir()).map(|path| 1 + directories(&path)).sum()
}
