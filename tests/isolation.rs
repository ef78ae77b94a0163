//! A stranger with root, and more, inside a shop: what cannot be reached.
//!
//! In this file the attacker works in a clone's network namespace with all of the
//! host's capabilities, which root in the container does not have: what is
//! refused here does not hang on capabilities alone. `attacker` plays root and
//! the web user inside; `inside` looks at what confines them, and `limits` at how
//! much they may take.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "isolation/attacker.rs"]
mod attacker;
mod host;
#[path = "isolation/inside.rs"]
mod inside;
#[path = "isolation/limits.rs"]
mod limits;

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
    // All hosts of the link (multicast).
    attacker.sends(([224, 0, 0, 1], udp_port).into()).await;

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
