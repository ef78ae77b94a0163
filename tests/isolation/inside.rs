//! What confines the processes of a shop, as they see it and as the host does.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::host::Place;
use super::host::daemon::Shop;
use super::{number, two_shops};

/// CHOWN DAC_OVERRIDE KILL SETGID SETUID NET_BIND_SERVICE, as the recipe says.
const CAPABILITIES: u64 = 0x4e3;

#[tokio::test]
async fn a_shop_sees_nothing_of_its_siblings_but_itself() {
    let Some(place) = Place::beside_others("sight").await else { return };
    let daemon = place.daemon(&[("POOL_TARGET_SIZE", "1"), ("COLD_START", "allowed")]).await;
    daemon.pool_has(1).await;
    let shops = [daemon.acquire("pool").await, daemon.acquire("restore").await];
    let names: Vec<String> = daemon.ids().await;
    assert!(names.len() >= 2);
    // Who knows a shop's name can end it.
    for shop in &shops {
        let look = "find / -xdev; find /sys/fs/cgroup /dev; cat /proc/*/cgroup /proc/*/cmdline /proc/*/mountinfo; \
                    cat /proc/*/environ /proc/net/*; true";
        let seen = place.inside(shop.id(), &["sh", "-c", look]).await;
        assert!(seen.contains("/usr/bin") && seen.contains("nginx"), "it does look");
        for name in names.iter().filter(|name| *name != shop.id()) {
            assert!(!seen.contains(name.as_str()), "{} sees {name}", shop.id());
        }
        let processes = place.inside(shop.id(), &["sh", "-c", "ls -d /proc/[0-9]* | wc -l"]).await;
        assert!(number(&processes) < 20, "{processes} processes: another's, too?");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_shop_keeps_its_locks_and_an_operator_s_command_brings_no_key() {
    let Some(place) = Place::beside_others("locks").await else { return };
    let daemon = place.daemon(&[]).await;
    let shop = daemon.acquire("restore").await;
    // So that there is a worker.
    shop.answers().await;
    let statuses = "grep -hE '^(Name|CapBnd|CapEff|NoNewPrivs|Seccomp):' /proc/[0-9]*/status";
    let seen = place.inside(shop.id(), &["sh", "-c", statuses]).await;
    assert!(seen.contains("php-fpm") && seen.contains("mariadbd"), "{seen}");
    for line in seen.lines().filter(|line| line.starts_with("Cap")) {
        let bits = u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
        assert_eq!(bits & !CAPABILITIES, 0, "{line}");
    }
    assert!(!seen.contains("NoNewPrivs:\t0"), "{seen}");
    // The command itself has the shop's filter, too.
    assert!(!seen.contains("Seccomp:\t0"), "{seen}");
    // Of a session of its own, it cannot type into the operator's terminal.
    let own = place.inside(shop.id(), &["sh", "-c", "exec cat /proc/$$/stat"]).await;
    let fields: Vec<&str> = own.rsplit(") ").next().unwrap().split(' ').collect();
    assert_eq!((fields[3], fields[4]), (own.split(' ').next().unwrap(), "0"), "session and terminal: {own}");
    // Root inside is not root outside.
    for attempt in [
        "mount -t tmpfs none /mnt",
        "mknod /tmp/disk b 7 0",
        "echo x >/proc/sys/kernel/core_pattern",
        "echo 1 >/sys/fs/cgroup/cgroup.freeze",
        "hostname other",
        "chroot /",
        "ip link set eth0 down || exit 1",
    ] {
        let said = place.cli(&["exec", shop.id(), "--", "sh", "-c", attempt]).await;
        assert!(matches!(said.code, Some(1..=127)), "{attempt}: {said:?}");
    }
    assert_eq!(place.cli(&["exec", shop.id(), "--", "sh", "-c", "exit 7"]).await.code, Some(7));
    assert_eq!(place.cli(&["exec", shop.id(), "--", "sh", "-c", "kill -9 $$"]).await.code, Some(137));
    let said = place.cli(&["exec", shop.id(), "--", "no-such-program"]).await.refused();
    assert!(said.contains("no-such-program is not in the instance"), "{said}");
    // Nor do its logs lead out, hang or fill whoever reads them.
    let traps = "cd /var/log/golden; rm -f php.log nginx.log; mkfifo php.log; ln -s /proc/1/environ nginx.log; \
                 truncate -s 8G mariadb.log; printf '\\033]0;owned\\007' >start.log";
    place.inside(shop.id(), &["sh", "-c", traps]).await;
    let said = tokio::time::timeout(Duration::from_secs(20), place.cli(&["logs", shop.id()])).await.unwrap();
    assert!(!said.out.contains('\u{1b}'), "{said:?}");
    assert!(said.out.len() < 4 << 20, "{} bytes", said.out.len());
    shop.answers().await;
    daemon.stop().await;
}

/// One process as the host sees it.
struct Process(PathBuf);

impl Process {
    /// All processes of a shop.
    fn all(place: &Place, shop: &Shop) -> Vec<Self> {
        let pids = std::fs::read_to_string(place.cgroup().join(shop.id()).join("cgroup.procs")).unwrap();
        pids.lines().map(|pid| Self(Path::new("/proc").join(pid))).collect()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.join(name)).unwrap()
    }

    fn status(&self) -> impl Fn(&str) -> String {
        let status = self.read("status");
        move |field| {
            let line = status.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
            line.unwrap_or_else(|| panic!("no {field} in {status}")).trim().to_owned()
        }
    }

    fn namespace(&self, kind: &str) -> PathBuf {
        std::fs::read_link(self.0.join("ns").join(kind)).unwrap()
    }

    /// Its descriptors: number and what is behind.
    fn descriptors(&self) -> Vec<(String, String)> {
        let entries = std::fs::read_dir(self.0.join("fd")).into_iter().flatten().flatten();
        let named = entries.filter_map(|entry| {
            let target = std::fs::read_link(entry.path()).ok()?;
            Some((entry.file_name().into_string().unwrap(), target.to_string_lossy().into_owned()))
        });
        named.collect()
    }
}

#[tokio::test]
async fn every_process_of_a_shop_is_confined_as_the_golden_was() {
    let Some(place) = Place::beside_others("confined").await else { return };
    let (daemon, shops) = two_shops(&place, place.address().port()).await;
    for shop in &shops {
        // So that there is a worker.
        shop.answers().await;
        let processes = Process::all(&place, shop);
        assert!(processes.len() >= 5, "tini, MariaDB, php-fpm, nginx and workers");
        for process in &processes {
            let field = process.status();
            let name = field("Name");
            assert_eq!((field("Seccomp"), field("NoNewPrivs")), ("2".into(), "1".into()), "{name}");
            assert!(number(&field("Seccomp_filters")) >= 1, "{name}");
            let root = field("Uid").starts_with('0');
            let bits = |set: &str| u64::from_str_radix(&field(set), 16).unwrap();
            let whole = if root { CAPABILITIES } else { 0 };
            let sets = ["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"].map(bits);
            assert_eq!(sets, [CAPABILITIES, whole, whole, 0, 0], "{name}");
        }
    }
    // Nor does it share a namespace with the host or with its sibling.
    let firsts = shops.each_ref().map(|shop| Process::all(&place, shop).remove(0));
    let host = Process("/proc/1".into());
    for kind in ["pid", "mnt", "ipc", "uts", "net", "cgroup", "time"] {
        let seen: HashSet<PathBuf> = [&host, &firsts[0], &firsts[1]].map(|it| it.namespace(kind)).into();
        assert_eq!(seen.len(), 3, "{kind}: {seen:?}");
        for (shop, first) in shops.iter().zip(&firsts) {
            for process in Process::all(&place, shop) {
                assert_eq!(process.namespace(kind), first.namespace(kind), "{}", process.read("comm"));
            }
        }
    }
    daemon.stop().await;
}

#[tokio::test]
async fn no_descriptor_of_a_shop_leads_out_of_it() {
    let Some(place) = Place::beside_others("descriptors").await else { return };
    let (daemon, shops) = two_shops(&place, place.address().port()).await;
    shops[0].answers().await;
    let processes = Process::all(&place, &shops[0]);
    let mut shared = HashSet::new();
    for process in &processes {
        let (name, mounts) = (process.read("comm"), process.read("mountinfo"));
        let mounts: HashSet<&str> = mounts.lines().map(|line| line.split(' ').next().unwrap()).collect();
        for (descriptor, target) in process.descriptors() {
            if !target.starts_with('/') {
                shared.insert(target);
                continue;
            }
            // A file of the host lies on a mount that is not in the shop's table.
            let info = process.read(&format!("fdinfo/{descriptor}"));
            let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap().trim();
            assert!(mounts.contains(mount), "{name}'s {descriptor} is {target}, on mount {mount}");
        }
        let device = |link: &str| std::fs::metadata(process.0.join(link)).unwrap().dev();
        assert_eq!(device("cwd"), device("root"), "{name} works elsewhere");
        // Programs and libraries are the shop's own, CRIU's are gone.
        for line in process.read("maps").lines() {
            let Some(at) = line.find('/') else { continue };
            let path = &line[at..];
            let inside = process.0.join("root").join(&path[1..]);
            assert!(path.ends_with(" (deleted)") || inside.symlink_metadata().is_ok(), "{name} maps {path}");
        }
    }
    assert!(shared.iter().any(|name| name.starts_with("socket:")), "nginx listens: {shared:?}");
    shared.retain(|name| name.starts_with("pipe:") || name.starts_with("socket:"));
    // Nobody else has the other end of a pipe, or the same socket.
    let own: HashSet<&Path> = processes.iter().map(|process| process.0.as_path()).collect();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let process = Process(entry.path());
        let is_process = entry.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        if !is_process || own.contains(process.0.as_path()) {
            continue;
        }
        for (descriptor, target) in process.descriptors() {
            assert!(!shared.contains(&target), "{:?} has the shop's {target} as {descriptor}", process.0);
        }
    }
    daemon.stop().await;
}
