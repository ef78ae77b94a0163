//! What shops may reach outside: what their golden lists, and nothing else.
//!
//! A network namespace of the test's own plays the internet. The daemon finds
//! the test's file at /etc/hosts, which plays the DNS.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::Duration;

use self::host::daemon::Shop;
use self::host::place::run;
use self::host::{Daemon, Place, eventually, golden};

const NAME: &str = "api.egress.example";

/// The internet: two hosts that talk at some ports, behind a link of this host.
struct Internet {
    netns: String,
    link: String,
    lane: u32,
}

impl Internet {
    async fn behind(place: &Place) -> Self {
        let lane = place.lane();
        let internet = Self { netns: format!("dmt-inet-{lane}"), link: format!("dmt-up-{lane}"), lane };
        internet.take_down();
        let Self { netns, link, .. } = &internet;
        let ip = async |line: &str| run("ip", &line.split(' ').collect::<Vec<_>>()).await.ok();
        ip(&format!("netns add {netns}")).await;
        ip(&format!("link add {link} type veth peer name eth0 netns {netns}")).await;
        ip(&format!("address add {}/24 dev {link}", internet.uplink())).await;
        ip(&format!("link set {link} up")).await;
        for host in [2, 3] {
            ip(&format!("-netns {netns} address add {}/24 dev eth0", internet.host(host))).await;
        }
        ip(&format!("-netns {netns} link set eth0 up")).await;
        // What an operator does for the whole host.
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{link}/forwarding"), "1").unwrap();
        for port in [53, 443, 8443] {
            let listener = internet.within(move || TcpListener::bind(("0.0.0.0", port)).unwrap()).await;
            std::thread::spawn(move || listener.incoming().for_each(|stream| talk(stream.unwrap())));
        }
        internet
    }

    /// This host's address there.
    fn uplink(&self) -> Ipv4Addr {
        self.host(1)
    }

    fn host(&self, number: u8) -> Ipv4Addr {
        // RFC 2544's benchmark network: public enough, and nobody's.
        Ipv4Addr::new(198, 18, u8::try_from(self.lane).unwrap(), number)
    }

    async fn within<T: Send + 'static>(&self, what: impl FnOnce() -> T + Send + 'static) -> T {
        in_namespace(format!("/run/netns/{}", self.netns), what).await
    }

    fn take_down(&self) {
        for args in [["link", "delete", &self.link], ["netns", "delete", &self.netns]] {
            drop(std::process::Command::new("ip").args(args).output());
        }
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        self.take_down();
    }
}

/// Says who speaks with whom, then repeats each line.
fn talk(mut stream: TcpStream) {
    std::thread::spawn(move || {
        let (own, peer) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap().ip());
        writeln!(stream, "{own} to {peer}")?;
        for line in BufReader::new(stream.try_clone()?).lines() {
            writeln!(stream, "{}", line?)?;
        }
        std::io::Result::Ok(())
    });
}

/// Does something in a network namespace, in a thread that ends there.
async fn in_namespace<T: Send + 'static>(path: String, what: impl FnOnce() -> T + Send + 'static) -> T {
    let netns = std::fs::File::open(path).unwrap();
    let worker = std::thread::spawn(move || {
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(netns.as_fd(), kind).unwrap();
        what()
    });
    tokio::task::spawn_blocking(move || worker.join().unwrap()).await.unwrap()
}

/// The golden's recipe with a list of what its shops may reach.
fn recipe_with(place: &Place, allow: &[String]) -> String {
    let folder = place.dir.join("recipes");
    std::fs::create_dir_all(folder.join(golden::NAME)).unwrap();
    let own = std::fs::read_to_string(golden::recipes().join(golden::NAME).join("golden.toml")).unwrap();
    let text = format!("{own}\n[network]\nallow = {allow:?}\n");
    std::fs::write(folder.join(golden::NAME).join("golden.toml"), text).unwrap();
    folder.display().to_string()
}

/// A place whose daemons look names up in a file.
async fn place_with_names(name: &'static str) -> Option<Place> {
    let mut place = Place::beside_others(name).await?;
    let hosts = place.dir.join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    place.hosts = Some(hosts);
    Some(place)
}

/// Says what names lead to from now on.
fn lead(place: &Place, names: &[(&str, Ipv4Addr)]) {
    let lines: String = names.iter().map(|(name, address)| format!("{address} {name}\n")).collect();
    std::fs::write(place.hosts.as_ref().unwrap(), format!("127.0.0.1 localhost\n{lines}")).unwrap();
}

/// What a shop's own PHP hears at a host's port.
async fn hears(place: &Place, shop: &Shop, host: &str, port: u16) -> String {
    let code = format!(
        "$s = @fsockopen('{host}', {port}, $e, $m, 0.7); if ($s) stream_set_timeout($s, 1); \
         echo $s ? 'open '.fgets($s) : 'nothing';"
    );
    let as_its_own_user = ["setpriv", "--reuid=www-data", "--regid=www-data", "--clear-groups"];
    place.inside(shop.id(), &[&as_its_own_user[..], &["php", "-r", &code]].concat()).await
}

/// Waits until a shop hears the host of that number under the name.
async fn hears_by_name(place: &Place, shop: &Shop, internet: &Internet, number: u8) {
    let expected = format!("open {}:443 to {}", internet.host(number), internet.uplink());
    eventually("the shop reaches the host by its name", 20, async || {
        host::same(&hears(place, shop, NAME, 443).await, &expected)
    })
    .await;
}

fn netns_of(place: &Place, shop: &Shop) -> String {
    let processes = std::fs::read_to_string(place.cgroup().join(shop.id()).join("cgroup.procs")).unwrap();
    format!("/proc/{}/ns/net", processes.lines().next().unwrap())
}

async fn address_of(place: &Place, shop: &Shop) -> String {
    let netns = format!("--net={}", netns_of(place, shop));
    run("nsenter", &[&netns, "hostname", "-I"]).await.ok().trim().to_owned()
}

async fn routes_of(place: &Place, shop: &Shop) -> String {
    run("nsenter", &[&format!("--net={}", netns_of(place, shop)), "ip", "route"]).await.ok()
}

/// What is in the firewall's sets of shops that may reach something.
async fn elements(place: &Place) -> String {
    let mut all = String::new();
    for set in ["outward", "ways"] {
        let table = format!("demo-multiplexer-{}", place.bridge());
        let listed = run("nft", &["list", "set", "inet", &table, set]).await.ok();
        all.extend(listed.split_once("elements").map(|(_, elements)| elements.to_owned()));
    }
    all
}

fn forwarding(place: &Place) -> String {
    let path = format!("/proc/sys/net/ipv4/conf/{}/forwarding", place.bridge());
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

async fn daemon<'a>(place: &'a Place, recipes: &str) -> Daemon<'a> {
    place.lasting_daemon(&[("RECIPE_DIR", recipes), ("EGRESS_REFRESH", "1s")]).await
}

#[tokio::test]
async fn a_shop_reaches_what_its_golden_lists_and_nothing_else() {
    let Some(place) = place_with_names("egress-reach").await else { return };
    let internet = Internet::behind(&place).await;
    let gateway: Ipv4Addr = place.gateway().parse().unwrap();
    let by_address = SocketAddrV4::new(internet.host(3), 8443);
    let trap = |n: u8| format!("trap{n}.egress.example");
    let traps =
        [Ipv4Addr::LOCALHOST, gateway, internet.uplink(), [169, 254, 169, 254].into(), [10, 1, 2, 3].into()];
    let names: Vec<String> = (0..).zip(traps).map(|(n, _)| trap(n)).collect();
    let led: Vec<(&str, Ipv4Addr)> = names.iter().map(String::as_str).zip(traps).collect();
    lead(&place, &[&[(NAME, internet.host(2))], &led[..]].concat());
    let port = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let own_port = port.local_addr().unwrap().port();
    let listed = [format!("{NAME}:443"), by_address.to_string()].into_iter();
    let listed: Vec<String> = listed.chain(names.iter().map(|name| format!("{name}:{own_port}"))).collect();
    let daemon = daemon(&place, &recipe_with(&place, &listed)).await;
    let (shop, sibling) = (daemon.acquire("restore").await, daemon.acquire("restore").await);

    hears_by_name(&place, &shop, &internet, 2).await;
    let heard = hears(&place, &shop, &by_address.ip().to_string(), 8443).await;
    assert_eq!(heard, format!("open {by_address} to {}", internet.uplink()));
    let routes = routes_of(&place, &shop).await;
    assert!(routes.starts_with(&format!("default via {gateway} dev eth0 ")), "{routes}");

    let sibling_address = address_of(&place, &sibling).await;
    let udp = internet.within(|| UdpSocket::bind(("0.0.0.0", 443)).unwrap()).await;
    udp.set_nonblocking(true).unwrap();
    for (what, host, port) in [
        ("another port of the host", NAME, 8443),
        ("its DNS port", NAME, 53),
        ("another host", &*internet.host(3).to_string(), 443),
        ("the listed host's other port", &*internet.host(3).to_string(), 53),
        ("the sibling", &*sibling_address, 80),
        ("the gateway", &*gateway.to_string(), own_port),
        ("this host's outer address", &*internet.uplink().to_string(), own_port),
        ("the metadata service", "169.254.169.254", 80),
        ("a name that is not listed", "other.egress.example", 443),
    ] {
        assert_eq!(hears(&place, &shop, host, port).await, "nothing", "{what}");
    }
    for name in &names {
        assert_eq!(hears(&place, &shop, name, own_port).await, "nothing", "{name}");
        assert!(
            place.log().contains(&format!("\"host\":\"{name}\""))
                || place.log().contains(&format!("host={name}")),
            "{}",
            place.log()
        );
    }
    let target = SocketAddr::from((internet.host(2), 443));
    in_namespace(netns_of(&place, &shop), move || {
        drop(UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"let me out", target));
    })
    .await;
    assert_eq!(
        hears(&place, &shop, NAME, 443).await.split(' ').next(),
        Some("open"),
        "it still reaches that"
    );
    assert!(udp.recv_from(&mut [0; 16]).is_err(), "a datagram got out");

    // From outside nobody begins.
    let shops_address = elements(&place).await;
    let inward = SocketAddr::from((sibling_address.parse::<Ipv4Addr>().unwrap(), 80));
    run("ip", &["-netns", &internet.netns, "route", "add", "default", "via", &internet.uplink().to_string()])
        .await
        .ok();
    let reached =
        internet.within(move || TcpStream::connect_timeout(&inward, Duration::from_millis(700)).is_ok());
    assert!(!reached.await, "a shop is reached from outside: {shops_address}");
    for shop in [&shop, &sibling] {
        shop.answers().await;
        daemon.release(shop.id()).await;
    }
    eventually("no way is left", 20, async || host::same(&elements(&place).await, &String::new())).await;
    daemon.holds_nothing().await;
}

#[tokio::test]
async fn a_name_is_followed_and_ways_outlive_the_daemon() {
    let Some(place) = place_with_names("egress-follow").await else { return };
    let internet = Internet::behind(&place).await;
    let recipes = recipe_with(&place, &[format!("{NAME}:443")]);
    // Not known at first: the shop is made all the same.
    let first = daemon(&place, &recipes).await;
    let shop = first.acquire("restore").await;
    assert_eq!(hears(&place, &shop, NAME, 443).await, "nothing");
    lead(&place, &[(NAME, internet.host(2))]);
    hears_by_name(&place, &shop, &internet, 2).await;

    let target = SocketAddr::from((internet.host(2), 443));
    let netns = netns_of(&place, &shop);
    let kept =
        in_namespace(netns.clone(), move || TcpStream::connect_timeout(&target, Duration::from_secs(2)));
    let kept = kept.await.unwrap();
    let kept_lines = &mut BufReader::new(kept.try_clone().unwrap());
    let mut says = |word: &str| {
        writeln!(&kept, "{word}").unwrap();
        kept.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut line = String::new();
        while line.trim_end() != word {
            line.clear();
            assert!(kept_lines.read_line(&mut line).unwrap() > 0, "the connection ended");
        }
    };
    says("before");
    lead(&place, &[(NAME, internet.host(3))]);
    hears_by_name(&place, &shop, &internet, 3).await;
    assert_eq!(hears(&place, &shop, &internet.host(2).to_string(), 443).await, "nothing", "the old address");
    says("after");

    // The resolver fails: what was known stays.
    lead(&place, &[]);
    eventually("the failure is told", 20, async || {
        if place.log().contains("is not found") { Ok(()) } else { Err(place.log()) }
    })
    .await;
    hears_by_name(&place, &shop, &internet, 3).await;
    lead(&place, &[(NAME, internet.host(3))]);

    // Somebody takes the firewall away.
    let table = format!("demo-multiplexer-{}", place.bridge());
    run("nft", &["delete", "table", "inet", &table]).await.ok();
    hears_by_name(&place, &shop, &internet, 3).await;

    // While no daemon runs, and while another one takes over.
    first.kill().await;
    hears_by_name(&place, &shop, &internet, 3).await;
    place.cli(&["reap"]).await.ok();
    hears_by_name(&place, &shop, &internet, 3).await;
    let second = daemon(&place, &recipes).await;
    hears_by_name(&place, &shop, &internet, 3).await;
    lead(&place, &[(NAME, internet.host(2))]);
    hears_by_name(&place, &shop, &internet, 2).await;
    second.kill().await;

    // One that died while nobody looked leaves no way.
    std::fs::write(place.cgroup().join(shop.id()).join("cgroup.kill"), "1").unwrap();
    let third = daemon(&place, &recipes).await;
    eventually("no way is left", 20, async || host::same(&elements(&place).await, &String::new())).await;
    third.holds_nothing().await;
}

#[tokio::test]
async fn a_golden_that_lists_nothing_keeps_no_way() {
    let Some(place) = place_with_names("egress-closed").await else { return };
    let internet = Internet::behind(&place).await;
    lead(&place, &[(NAME, internet.host(2))]);
    let open = daemon(&place, &recipe_with(&place, &[format!("{NAME}:443")])).await;
    let before = open.acquire("restore").await;
    hears_by_name(&place, &before, &internet, 2).await;
    assert_eq!(forwarding(&place), "1");
    open.kill().await;

    // The list is gone, so are the ways of the shops that had it.
    let closed = daemon(&place, &golden::recipes().display().to_string()).await;
    let after = closed.acquire("restore").await;
    eventually("the former shop's way is closed", 20, async || {
        host::same(&elements(&place).await, &String::new())
    })
    .await;
    for shop in [&before, &after] {
        for host in [NAME, &*internet.host(2).to_string()] {
            assert_eq!(hears(&place, shop, host, 443).await, "nothing", "{host}");
        }
    }
    assert!(!routes_of(&place, &after).await.contains("default"));
    assert!(!place.inside(after.id(), &["sh", "-c", "cat /etc/hosts || true"]).await.contains(NAME));
    assert_eq!(forwarding(&place), "0");
    // A way that it makes for itself leads nowhere.
    let gateway = place.gateway();
    let own_way = ["ip", "route", "add", "default", "via", &gateway];
    run("nsenter", &[&[&*format!("--net={}", netns_of(&place, &after))], &own_way[..]].concat()).await.ok();
    assert_eq!(hears(&place, &after, &internet.host(2).to_string(), 443).await, "nothing");
    for shop in [before, after] {
        closed.release(shop.id()).await;
    }
    closed.holds_nothing().await;
}
