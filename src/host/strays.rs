//! What of an instance is left where no name leads to it: processes outside its
//! cgroup, mounts on the host, network namespaces.
//!
//! Called by [`super::slots`], in a thorough search and when something of an
//! instance is taken down of which nobody knows the first process. Looks at
//! every process of the host; tells the instance's by what only its own have:
//! its root (an overlay whose upper directory is the instance's), its cgroup, or
//! the network namespace that the other end of the instance's port is in.
//!
//! Invariant: a process that only *sees* an instance's mount, as one in another
//! mount namespace may, is nobody's to end.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rtnetlink::Handle;

use super::{netns, process};
use crate::id::InstanceId;
use crate::instance::trace::{Kind, Trace};

/// How long killed processes may take to leave.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// The mount namespaces in which mounts are the host's: the daemon's own, and
/// the one that everybody else began in.
const HOSTS: [&str; 2] = ["self", "1"];

/// One thing found.
#[derive(Debug)]
pub(super) struct Stray {
    id: InstanceId,
    thing: Thing,
}

#[derive(Debug)]
enum Thing {
    Process(Known),
    Mount { of: &'static str, at: PathBuf },
    Netns { name: String, held_by: Vec<Known> },
}

/// A process by its identity.
#[derive(Debug, Clone, Copy)]
struct Known {
    pid: i32,
    start_ticks: u64,
}

impl Stray {
    pub(super) const fn id(&self) -> &InstanceId {
        &self.id
    }

    pub(super) fn into_trace(self) -> Trace {
        let (kind, what) = match self.thing {
            Thing::Process(known) => {
                let name = std::fs::read_to_string(format!("/proc/{}/comm", known.pid)).unwrap_or_default();
                (Kind::Process, format!("{} {}", known.pid, name.trim()))
            }
            Thing::Mount { at, .. } => (Kind::Mount, at.display().to_string()),
            Thing::Netns { name, .. } => (Kind::Netns, name),
        };
        Trace::of(self.id, kind, what)
    }
}

/// Where to look, and by what instances are told.
#[derive(Debug)]
pub(super) struct Search {
    /// Their directories.
    pub(super) instances: PathBuf,
    /// The same without symbolic links, as the kernel names mount points.
    pub(super) real: PathBuf,
    /// Those with a port on the bridge, by the number of the namespace that its
    /// other end is in.
    pub(super) ports: HashMap<i32, InstanceId>,
    /// What is in their cgroups.
    pub(super) members: Vec<(InstanceId, Vec<i32>)>,
}

/// All that is there, of all instances.
///
/// # Errors
/// When the processes or mounts cannot be listed.
pub(super) async fn find(search: Search, handle: &Handle) -> io::Result<Vec<Stray>> {
    let looked = tokio::task::spawn_blocking(move || look(&search).map(|found| (found, search.ports)));
    let ((mut strays, namespaces), ports) = looked.await.map_err(io::Error::other)??;
    if ports.is_empty() {
        return Ok(strays);
    }
    for (name, held_by) in namespaces {
        let Some(first) = held_by.first() else { continue };
        // One that has ended meanwhile holds nothing.
        let Ok(netns) = File::open(format!("/proc/{}/ns/net", first.pid)) else { continue };
        if let Some(id) = netns::number(handle, netns.as_fd()).await?.and_then(|number| ports.get(&number)) {
            strays.push(Stray { id: id.clone(), thing: Thing::Netns { name, held_by } });
        }
    }
    Ok(strays)
}

type Namespaces = BTreeMap<String, Vec<Known>>;

/// What can be seen without entering anything; and the network namespaces there are.
fn look(search: &Search) -> io::Result<(Vec<Stray>, Namespaces)> {
    let mut strays = Vec::new();
    let (mut roots, mut nets) = (Namespaces::new(), Namespaces::new());
    let name = |of: &str, kind: &str| -> Option<String> {
        std::fs::read_link(format!("/proc/{of}/ns/{kind}")).ok()?.to_str().map(str::to_owned)
    };
    let [own_mounts, own_nets] = ["mnt", "net"].map(|kind| HOSTS.map(|of| name(of, kind)));
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(start_ticks) = process::start_ticks(pid) else { continue };
        let known = Known { pid, start_ticks };
        for (kind, own, all) in [("mnt", &own_mounts, &mut roots), ("net", &own_nets, &mut nets)] {
            let of = name(&pid.to_string(), kind);
            if let Some(of) = of.filter(|of| !own.iter().flatten().any(|own| own == of)) {
                all.entry(of).or_default().push(known);
            }
        }
    }
    let mut processes = BTreeMap::new();
    for held_by in roots.into_values() {
        let table =
            held_by.iter().find_map(|it| std::fs::read_to_string(format!("/proc/{}/mountinfo", it.pid)).ok());
        if let Some(id) = table.and_then(|table| root_of(&table, &search.instances)) {
            processes.extend(held_by.into_iter().map(|it| (it.pid, (id.clone(), it))));
        }
    }
    for (id, pids) in &search.members {
        for pid in pids {
            if let Ok(start_ticks) = process::start_ticks(*pid) {
                processes.insert(*pid, (id.clone(), Known { pid: *pid, start_ticks }));
            }
        }
    }
    strays.extend(processes.into_values().map(|(id, known)| Stray { id, thing: Thing::Process(known) }));
    let mut seen = Vec::new();
    for (of, namespace) in HOSTS.into_iter().zip(&own_mounts) {
        if namespace.is_none() || seen.contains(&namespace) {
            continue;
        }
        seen.push(namespace);
        let table = std::fs::read_to_string(format!("/proc/{of}/mountinfo"))?;
        let mounts = mounts_below(&table, &search.real);
        strays.extend(mounts.into_iter().map(|(id, at)| Stray { id, thing: Thing::Mount { of, at } }));
    }
    Ok((strays, nets))
}

/// The fields of a line of a mount table that matter; its form:
/// proc_pid_mountinfo(5).
fn mount_point(line: &str) -> Option<PathBuf> {
    line.split(' ').nth(4).map(|path| path.replace("\\040", " ").into())
}

/// The instance whose directory a path lies in.
fn instance_of(path: &Path, instances: &Path) -> Option<InstanceId> {
    path.strip_prefix(instances).ok()?.iter().next()?.to_str()?.parse().ok()
}

/// The instance whose upper directory is what a process has for its root.
fn root_of(mountinfo: &str, instances: &Path) -> Option<InstanceId> {
    let root = mountinfo.lines().rfind(|line| mount_point(line).is_some_and(|at| at == Path::new("/")))?;
    let options = root.split_once(" - overlay ")?.1.split(' ').nth(1)?;
    let upper = options.split(',').find_map(|option| option.strip_prefix("upperdir="))?;
    instance_of(Path::new(&upper.replace("\\040", " ")), instances)
}

/// Mounts below instances' directories, the last one first: it may lie on another.
fn mounts_below(mountinfo: &str, instances: &Path) -> Vec<(InstanceId, PathBuf)> {
    let points = mountinfo.lines().rev().filter_map(mount_point);
    points.filter_map(|at| Some((instance_of(&at, instances)?, at))).collect()
}

/// Ends one thing: processes are killed, a mount is detached.
///
/// # Errors
/// When the kernel refuses, or a process does not leave.
pub(super) async fn end(stray: Stray) -> io::Result<()> {
    match stray.thing {
        Thing::Process(known) => kill(known).await,
        Thing::Netns { held_by, .. } => {
            for known in held_by {
                kill(known).await?;
            }
            Ok(())
        }
        Thing::Mount { of, at } => {
            let detached =
                std::thread::Builder::new().name("unmount".into()).spawn(move || detach(of, &at))?;
            let joined =
                tokio::task::spawn_blocking(move || detached.join()).await.map_err(io::Error::other)?;
            joined.map_err(|_| io::Error::other("the thread died"))?
        }
    }
}

async fn kill(known: Known) -> io::Result<()> {
    let Some(handle) = process::open(known.pid, known.start_ticks)? else { return Ok(()) };
    process::kill(&handle)?;
    match tokio::time::timeout(KILL_DEADLINE, process::ended(handle)).await {
        Ok(ended) => ended,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "a process outlives SIGKILL")),
    }
}

/// Detaches a mount; for a thread that ends afterwards, since it may enter
/// another mount namespace.
fn detach(of: &str, at: &Path) -> io::Result<()> {
    if of != "self" {
        let namespace = File::open(format!("/proc/{of}/ns/mnt"))?;
        // A thread that shares its working directory cannot change its mounts. This one ends after this.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
        let kind = Some(rustix::thread::LinkNameSpaceType::Mount);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?;
    }
    match rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH) {
        // Gone, with the one it was on.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
        22 1 0:21 / /proc rw - proc proc rw\n\
        90 1 0:50 / / rw - ext4 /dev/vda rw\n\
        99 90 0:52 / / rw,nodev - overlay overlay rw,lowerdir=/b,upperdir=/s/instances/abcdefghijkl/upper,workdir=/w\n";

    #[test]
    fn a_process_is_told_by_the_root_on_top_and_by_no_other_mount() {
        let of = |table: &str| root_of(table, Path::new("/s/instances")).map(|id| id.to_string());
        assert_eq!(of(TABLE).as_deref(), Some("abcdefghijkl"));
        assert_eq!(of(&TABLE.replace("/s/instances", "/another/instances")), None, "another daemon's");
        let seen = TABLE.replace("0:52 / / ", "0:52 / /s/instances/abcdefghijkl/root ");
        assert_eq!(of(&seen), None, "it only sees the mount");
        assert_eq!(of(&TABLE.replace("abcdefghijkl/upper", "not-an-id/upper")), None);
    }

    #[test]
    fn a_mount_below_an_instances_directory_is_its_own() {
        let table = "\
            30 1 0:1 / /s/instances/abcdefghijkl/root rw - overlay overlay rw\n\
            31 30 0:2 / /s/instances/abcdefghijkl/root/x\\040y rw - tmpfs tmpfs rw\n\
            32 1 0:3 / /s/prepared rw - tmpfs tmpfs rw\n";
        let found: Vec<PathBuf> =
            mounts_below(table, Path::new("/s/instances")).into_iter().map(|(_, at)| at).collect();
        let expected = ["/s/instances/abcdefghijkl/root/x y", "/s/instances/abcdefghijkl/root"];
        assert_eq!(found, expected.map(PathBuf::from), "the one on top first");
    }
}
