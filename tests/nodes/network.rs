//! Hosts on one machine: a network namespace each, all on one bridge.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// The bridge and the namespaces; dropping it removes them.
#[derive(Debug)]
pub(crate) struct Network {
    /// The bridge's name, with which all others begin.
    name: String,
    subnet: [u8; 3],
    hosts: Vec<String>,
}

fn ip(line: &str) {
    let done = Command::new("ip").args(line.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {line}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Network {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = std::process::id() % 5_000 * 8 + NUMBER.fetch_add(1, Ordering::SeqCst) % 8;
        let name = format!("dmn{number}");
        let subnet =
            [10, 128 + u8::try_from(number / 256 % 64).unwrap(), u8::try_from(number % 256).unwrap()];
        let network = Self { name, subnet, hosts: Vec::new() };
        ip(&format!("link add {} type bridge", network.name));
        ip(&format!("addr add {}/24 dev {}", network.address(1), network.name));
        ip(&format!("link set {} up", network.name));
        network
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.subnet;
        Ipv4Addr::new(a, b, c, host)
    }

    /// Where the test itself is.
    pub(crate) fn own(&self) -> Ipv4Addr {
        self.address(1)
    }

    /// Adds a host; answers its namespace and address.
    pub(crate) fn add(&mut self, host: &str) -> (String, Ipv4Addr) {
        let (netns, link) = (format!("{}-{host}", self.name), format!("{}{host}", self.name));
        let address = self.address(10 + u8::try_from(self.hosts.len()).unwrap());
        self.hosts.push(host.to_owned());
        ip(&format!("netns add {netns}"));
        ip(&format!("link add {link} type veth peer name eth0 netns {netns}"));
        ip(&format!("link set {link} master {} up", self.name));
        ip(&format!("-n {netns} link set lo up"));
        ip(&format!("-n {netns} addr add {address}/24 dev eth0"));
        ip(&format!("-n {netns} link set eth0 up"));
        (netns, address)
    }

    /// Takes a host's cable out.
    pub(crate) fn cut(&self, host: &str) {
        ip(&format!("link set {}{host} down", self.name));
    }

    /// Puts it in again.
    pub(crate) fn mend(&self, host: &str) {
        ip(&format!("link set {}{host} up", self.name));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &self.hosts {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}-{host}", self.name)]).output();
            let _ = Command::new("ip").args(["link", "del", &format!("{}{host}", self.name)]).output();
        }
        let _ = Command::new("ip").args(["link", "del", &self.name]).output();
    }
}
