//! A stranger with root, and more, inside a shop: what cannot be reached.
//!
//! The attacker works in a clone's network namespace with all of the host's
//! capabilities, which root in the container does not have: what is refused
//! here does not hang on capabilities alone.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::Duration;

use self::host::daemon::Shop;
use self::host::place::run;
use self::host::{Daemon, Place, eventually};

/// Long enough for an answer on one host, short enough for many refusals.
const PATIENCE: Duration = Duration::from_millis(600);

/// A clone as its attacker knows it.
struct Clone {
    pid: String,
    address: Ipv4Addr,
}

impl Clone {
    async fn of(place: &Place, shop: &Shop) -> Self {
        let processes = std::fs::read_to_string(place.cgroup().join(shop.id()).join("cgroup.procs")).unwrap();
        let pid = processes.lines().next().unwrap().to_owned();
        let shown = inside(&pid, &["ip", "-4", "-oneline", "address", "show", "dev", "eth0"]).await;
        let address = shown.split_whitespace().nth(3).unwrap().split('/').next().unwrap().parse().unwrap();
        Self { pid, address }
    }

    /// Does something in its network namespace, as root of the host.
    async fn does<T: Send + 'static>(&self, what: impl FnOnce() -> T + Send + 'static) -> T {
        let netns = std::fs::File::open(format!("/proc/{}/ns/net", self.pid)).unwrap();
        // A thread of its own, which ends there: its namespace is not the process's.
        let worker = std::thread::spawn(move || {
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(netns.as_fd(), kind).unwrap();
            what()
        });
        tokio::task::spawn_blocking(move || worker.join().unwrap()).await.unwrap()
    }

    /// Whether anything answers there.
    async fn reaches(&self, target: SocketAddr) -> bool {
        self.does(move || TcpStream::connect_timeout(&target, PATIENCE).is_ok()).await
    }

    /// Sends a datagram; whether the kernel let it go is not looked at.
    async fn sends(&self, target: SocketAddr) {
        self.does(move || {
            let any = if target.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
            if let Ok(socket) = UdpSocket::bind(any) {
                drop(socket.send_to(b"let me in", target));
            }
        })
        .await;
    }

    async fn ip(&self, args: &[&str]) {
        inside(&self.pid, &[&["ip"], args].concat()).await;
    }
}

async fn inside(pid: &str, command: &[&str]) -> String {
    run("nsenter", &[&["--target", pid, "--net", "--"], command].concat()).await.ok()
}

/// Two shops of a daemon that listens everywhere.
async fn two_shops<'a>(place: &'a Place, port: u16) -> (Daemon<'a>, [Shop; 2]) {
    let listen = format!("0.0.0.0:{port}");
    let daemon = place.daemon(&[("LISTEN", &listen), ("POOL_TARGET_SIZE", "0")]).await;
    let shops = [daemon.acquire("restore").await, daemon.acquire("restore").await];
    (daemon, shops)
}

/// How many packets the firewall's chain has dropped.
async fn dropped(place: &Place, chain: &str) -> u64 {
    let table = format!("demo-multiplexer-{}", place.bridge());
    let rules = run("nft", &["list", "chain", "inet", &table, chain]).await.ok();
    let counts = rules.lines().filter(|line| line.ends_with("drop"));
    counts.map(|line| line.split("packets ").nth(1).unwrap().split(' ').next().unwrap()).map(number).sum()
}

fn number(text: &str) -> u64 {
    text.parse().unwrap()
}

#[tokio::test]
async fn nothing_but_the_proxys_own_connections_gets_out_of_a_shop() {
    let Some(place) = Place::beside_others("reach").await else { return };
    let port = place.address().port();
    let (daemon, shops) = two_shops(&place, port).await;
    let (attacker, victim) = (Clone::of(&place, &shops[0]).await, Clone::of(&place, &shops[1]).await);
    let gateway: Ipv4Addr = place.gateway().parse().unwrap();

    // Services of the host, as Valkey or Caddy's admin port might listen.
    let tcp = TcpListener::bind((gateway, 0)).unwrap();
    let udp = UdpSocket::bind("[::]:0").unwrap();
    udp.set_nonblocking(true).unwrap();
    let (tcp_port, udp_port) = (tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
    assert!(TcpStream::connect_timeout(&(gateway, tcp_port).into(), PATIENCE).is_ok(), "from the host it is");

    // A way out, as if the container had one.
    attacker.ip(&["route", "replace", "default", "via", &gateway.to_string()]).await;
    for (what, target) in [
        ("the daemon's API", (gateway, port).into()),
        ("a service of the host", (gateway, tcp_port).into()),
        ("the daemon at the lab's own address", (own_address().await, port).into()),
        ("the sibling's shop", (victim.address, 80).into()),
        ("the sibling's database", (victim.address, 3306).into()),
        ("the cloud's metadata", ([169, 254, 169, 254], 80).into()),
        ("the internet", ([192, 0, 2, 1], 443).into()),
    ] as [(&str, SocketAddr); 7]
    {
        assert!(!attacker.reaches(target).await, "{what} answers at {target}");
    }
    attacker.sends((gateway, udp_port).into()).await;

    // IPv6, which the namespace has off: its owner turns it on.
    inside(&attacker.pid, &["sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6 || true"]).await;
    let link = inside(&attacker.pid, &["ip", "-oneline", "link", "show", "dev", "eth0"]).await;
    let all_nodes = format!("[ff02::1%{}]:{udp_port}", link.split(':').next().unwrap());
    attacker.sends(all_nodes.parse().unwrap()).await;

    let mut heard = [0; 64];
    let nothing = udp.recv_from(&mut heard).unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::WouldBlock, "a datagram came through");
    assert!(dropped(&place, "to_host").await > 0, "the firewall saw the attempts");

    // And yet both shops answer their visitors.
    for shop in &shops {
        shop.answers().await;
    }
    daemon.stop().await;
}

/// An address that the host has apart from the bridge.
async fn own_address() -> Ipv4Addr {
    let shown = run("ip", &["-4", "-oneline", "address", "show", "scope", "global"]).await.ok();
    let own = shown.lines().find(|line| !line.contains(": dmt") && !line.contains(": dmux"));
    own.unwrap().split_whitespace().nth(3).unwrap().split('/').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn nobody_passes_for_a_neighbour() {
    let Some(place) = Place::beside_others("spoof").await else { return };
    let port = place.address().port();
    let (daemon, shops) = two_shops(&place, port).await;
    let (attacker, victim) = (Clone::of(&place, &shops[0]).await, Clone::of(&place, &shops[1]).await);
    let victims_page = shops[1].get("/").await.text().into_owned();
    assert!(victims_page.contains(shops[1].host()));
    let gateway: SocketAddr = (place.gateway().parse::<Ipv4Addr>().unwrap(), 9).into();

    // The neighbour's address beside its own: dropped by the firewall.
    let as_victim = format!("{}/24", victim.address);
    let before = dropped(&place, "sender").await;
    attacker.ip(&["address", "add", &as_victim, "dev", "eth0"]).await;
    let from = victim.address;
    attacker
        .does(move || UdpSocket::bind((from, 0)).unwrap().send_to(b"it is me", gateway).map(drop))
        .await
        .unwrap();
    eventually("a packet with a stolen address is dropped", 5, async || {
        let now = dropped(&place, "sender").await;
        if now > before { Ok(()) } else { Err(format!("{now} packets")) }
    })
    .await;

    // It claims the address before everybody: nobody believes it.
    let owner = neighbour(&place, victim.address).await;
    attacker.ip(&["link", "set", "dev", "eth0", "arp", "on"]).await;
    attacker.ip(&["address", "del", &as_victim, "dev", "eth0"]).await;
    inside(&attacker.pid, &["sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/eth0/arp_notify"]).await;
    attacker.ip(&["address", "add", &as_victim, "dev", "eth0"]).await;
    attacker.ip(&["link", "set", "dev", "eth0", "down"]).await;
    attacker.ip(&["link", "set", "dev", "eth0", "up"]).await;
    assert_eq!(neighbour(&place, victim.address).await, owner);
    assert!(owner.contains("PERMANENT"), "{owner}");

    // The neighbour's hardware address as well: the bridge drops all of it, and
    // learns nothing from it.
    let octets = victim.address.octets().map(|octet| format!("{octet:02x}")).join(":");
    attacker.ip(&["link", "set", "dev", "eth0", "address", &format!("02:64:{octets}")]).await;
    attacker
        .does(move || UdpSocket::bind((from, 0)).unwrap().send_to(b"it is me", gateway).map(drop))
        .await
        .unwrap();
    let table = run("bridge", &["fdb", "show", "br", &place.bridge()]).await.ok();
    let behind: Vec<&str> =
        table.lines().filter(|line| line.starts_with(&format!("02:64:{octets}"))).collect();
    assert!(
        matches!(behind[..], [only] if only.contains(&format!("dm-{}", shops[1].id()))),
        "the address is behind one port: {behind:?}"
    );

    // The neighbour's visitors still get the neighbour's pages.
    for _ in 0..3 {
        let page = shops[1].get("/").await;
        assert!(page.status == 200 && page.text().contains(shops[1].host()), "{}", page.status);
    }
    daemon.stop().await;
}

/// What the host knows of who has an address.
async fn neighbour(place: &Place, address: Ipv4Addr) -> String {
    run("ip", &["neighbour", "show", &address.to_string(), "dev", &place.bridge()])
        .await
        .ok()
        .trim()
        .to_owned()
}

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
        // CHOWN DAC_OVERRIDE KILL SETGID SETUID NET_BIND_SERVICE, as the recipe says.
        assert_eq!(bits & !0x4e3, 0, "{line}");
    }
    assert!(!seen.contains("NoNewPrivs:\t0"), "{seen}");
    // Restored with the filter that it was frozen with; the command itself has none.
    let own = ["sh", "grep"];
    let names: Vec<&str> = seen.lines().filter_map(|line| line.strip_prefix("Name:\t")).collect();
    let filters: Vec<&str> = seen.lines().filter_map(|line| line.strip_prefix("Seccomp:\t")).collect();
    for (name, filter) in names.iter().zip(&filters).filter(|(name, _)| !own.contains(name)) {
        assert_eq!(*filter, "2", "{name}");
    }
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

/// A state directory on a file system of its own.
struct Disk(String);

impl Disk {
    async fn mount(place: &Place, mkfs: &[&str], options: &str) -> Option<Self> {
        let (state, image) = (place.state_dir(), place.dir.join("disk"));
        std::fs::File::create(&image).unwrap().set_len(2 << 30).unwrap();
        let (state, image) = (state.to_str().unwrap(), image.to_str().unwrap());
        run(mkfs[0], &[&mkfs[1..], &[image]].concat()).await.ok();
        std::fs::remove_dir_all(state).unwrap();
        std::fs::create_dir_all(state).unwrap();
        let mounted = run("mount", &["-o", options, image, state]).await;
        if mounted.code != Some(0) {
            println!("skipped: this kernel does not mount {}: {}", mkfs[0], mounted.err);
            return None;
        }
        host::golden::lend_prepared(std::path::Path::new(state));
        Some(Self(state.into()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg("--lazy").arg(&self.0).output());
    }
}

const FILL: &str = "dd if=/dev/zero of=/var/tmp/full bs=1M count=600 2>&1; sync";

#[tokio::test]
async fn a_shop_fills_no_more_of_a_btrfs_disk_than_it_may() {
    let Some(place) = Place::beside_others("btrfs").await else { return };
    let Some(_disk) = Disk::mount(&place, &["mkfs.btrfs", "-q"], "loop").await else { return };
    the_file_system_refuses(&place, "btrfs simple quotas").await;
    let qgroups = run("btrfs", &["qgroup", "show", "-r", place.state_dir().to_str().unwrap()]).await.ok();
    assert!(!qgroups.contains("/instances/"), "a quota is left: {qgroups}");
}

#[tokio::test]
async fn a_shop_fills_no_more_of_an_xfs_disk_than_it_may() {
    let Some(place) = Place::beside_others("prjquota").await else { return };
    let options = "loop,prjquota";
    let Some(_disk) = Disk::mount(&place, &["mkfs.xfs", "-q"], options).await else { return };
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    if !mounts
        .lines()
        .any(|line| line.contains(place.state_dir().to_str().unwrap()) && line.contains("prjquota"))
    {
        println!("skipped: this kernel has no XFS quota; make test-vm has");
        return;
    }
    the_file_system_refuses(&place, "XFS project quotas").await;
}

async fn the_file_system_refuses(place: &Place, who: &str) {
    let daemon = place.daemon(&[("DISK_MAX", "400M")]).await;
    assert!(place.log().contains(who), "{}", place.log());
    let shops = [daemon.acquire("restore").await, daemon.acquire("restore").await];
    let said = place.inside(shops[0].id(), &["sh", "-c", FILL]).await;
    assert!(said.contains("quota exceeded") || said.contains("No space left"), "{said}");
    // The neighbour writes as before, and the filler's own shop still reads.
    place
        .inside(shops[1].id(), &["sh", "-ec", "dd if=/dev/zero of=/var/tmp/some bs=1M count=50; sync"])
        .await;
    shops[1].answers().await;
    for shop in &shops {
        daemon.release(shop.id()).await;
    }
    daemon.holds_nothing().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_shop_that_fills_a_disk_without_quotas_is_ended() {
    let Some(place) = Place::beside_others("filler").await else { return };
    let daemon = place.daemon(&[("DISK_MAX", "400M")]).await;
    assert!(place.log().contains("a watcher"), "the lab's disk has no quotas: {}", place.log());
    let shops = [daemon.acquire("restore").await, daemon.acquire("restore").await];
    drop(place.cli(&["exec", shops[0].id(), "--", "sh", "-c", FILL]).await);
    eventually("the filler is gone", 30, async || {
        let left = daemon.ids().await;
        if left.iter().any(|id| id == shops[0].id()) { Err(format!("{left:?}")) } else { Ok(()) }
    })
    .await;
    assert!(place.log().contains("instance had more than it may and was ended"));
    shops[1].answers().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_shop_that_forks_or_hoards_without_end_harms_itself_alone() {
    let Some(place) = Place::beside_others("bomb").await else { return };
    let daemon = place.daemon(&[]).await;
    let controllers = std::fs::read_to_string(place.cgroup().join("cgroup.controllers")).unwrap();
    println!("controllers in force: {:?}; what they do not hold, the daemon watches", controllers.trim());
    let neighbour = daemon.acquire("restore").await;
    // The recipe allows 128 processes and 512 MB.
    let fork = "for n in $(seq 400); do sleep 60 & done 2>/dev/null; wait";
    let hoard =
        "exec php -d memory_limit=-1 -r 'for (;;) { $a[] = str_repeat(\"x\", 1 << 20); usleep(500); }'";
    for (what, attack) in [("processes", fork), ("memory", hoard)] {
        let shop = daemon.acquire("restore").await;
        let exec = ["exec", shop.id(), "--", "sh", "-c", attack];
        let (place, id) = (&place, shop.id());
        let attacked = async { tokio::time::timeout(Duration::from_secs(40), place.cli(&exec)).await };
        let watched = eventually("it is ended or held", 40, async || {
            let processes = std::fs::read_to_string(place.cgroup().join(id).join("cgroup.procs"));
            let count = processes.as_deref().map_or(0, |all| all.lines().count());
            let held = controllers.contains("pids") && controllers.contains("memory");
            match (held, daemon.ids().await.iter().any(|other| other == id)) {
                (true, _) if count <= 128 => Ok(()),
                (_, false) => Ok(()),
                (_, true) => Err(format!("{count} processes")),
            }
        });
        let (_, ()) = tokio::join!(attacked, watched);
        if !controllers.contains(if what == "memory" { "memory" } else { "pids" }) {
            assert!(place.log().contains(&format!("\"what\":\"{what}\"")), "{what}: {}", place.log());
        }
        neighbour.answers().await;
    }
    daemon.stop().await;
}

#[tokio::test]
async fn whoever_flushes_the_hosts_rules_opens_the_shops_for_seconds_only() {
    let Some(place) = Place::beside_others("flush").await else { return };
    let port = place.address().port();
    let (daemon, shops) = two_shops(&place, port).await;
    let attacker = Clone::of(&place, &shops[0]).await;
    let api = (place.gateway().parse::<Ipv4Addr>().unwrap(), port).into();
    let table = format!("demo-multiplexer-{}", place.bridge());
    run("nft", &["delete", "table", "inet", &table]).await.ok();
    assert!(attacker.reaches(api).await, "without its table the host is open: the test sees the difference");
    eventually("the table is back", 15, async || {
        if attacker.reaches(api).await { Err("still open".into()) } else { Ok(()) }
    })
    .await;
    shops[0].answers().await;
    assert!(place.log().contains("somebody had removed the instances' firewall"));

    // A new daemon finds it there, and the living shops stay reachable.
    daemon.kill().await;
    let listen = format!("0.0.0.0:{port}");
    let daemon = place.daemon(&[("LISTEN", &listen)]).await;
    assert!(!attacker.reaches(api).await);
    for shop in &shops {
        shop.answers().await;
    }
    daemon.stop().await;
}
