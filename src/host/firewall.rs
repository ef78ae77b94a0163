//! What a shop may send, and to whom: nobody, but for answers to the proxy, and
//! the few TCP ports outside that it was allowed.
//!
//! A stranger may have root inside a shop. Owned by [`super::net`], which makes
//! the shops' interfaces; one nftables table for each bridge, whose rules are
//! replaced atomically when the daemon starts, and left in place when it ends,
//! since the instances outlive it. Whoever flushes the host's rules takes ours
//! along: [`Firewall::renew_if_lost`] brings them back.
//!
//! ```text
//! from the bridge: no IPv6, no address but the sender's own    prerouting, before connection tracking
//!                  answers to what the host began              input, accepted
//!                  what the shop is allowed, connections       forward, accepted
//!                    that began so                               and given the host's address
//!                  everything else                             input and forward, dropped
//! to the bridge:   answers to those connections                forward, accepted
//!                  the rest from elsewhere than the host       forward, dropped
//! ```
//!
//! Who the sender is follows from its hardware address: bridge ports are
//! locked, so a frame has its own port's or is dropped, and each hardware
//! address has one address of layer 3. Those pairs are added to the table by the
//! block, when the first address of a block is used: one call of `nft` for 256
//! slots.
//!
//! What is allowed lies in two sets, which outlive the daemon as the shops do:
//! `ways` has each shop with each address and port, `outward` the shops that
//! have any, so that an address's next owner inherits no connection. The
//! kernel's sets are always [`State::ways`], also after a restart, which reads
//! them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write as _;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::config::Subnet;

/// Addresses added to the table at a time.
const BLOCK: u32 = 256;

/// `nft` answers in milliseconds; longer, and something holds the kernel's lock.
const DEADLINE: Duration = Duration::from_secs(10);

/// The rules of one bridge.
#[derive(Debug)]
pub struct Firewall {
    table: String,
    bridge: String,
    subnet: Subnet,
    state: Mutex<State>,
}

/// Each shop with what it may reach outside.
pub type Ways = BTreeMap<Ipv4Addr, BTreeSet<SocketAddrV4>>;

/// What is in the table beside its fixed rules.
#[derive(Debug, Default)]
struct State {
    /// Blocks whose pairs are in it.
    known: HashSet<u32>,
    /// What is allowed; no shop has an empty set.
    ways: Ways,
    /// Whether what goes out gets the host's address.
    disguised: bool,
}

impl Firewall {
    /// Puts the bridge's table in place of a former one.
    ///
    /// # Errors
    /// When `nft` is missing or the kernel refuses the rules.
    pub async fn open(bridge: &str, subnet: Subnet) -> io::Result<Self> {
        let table = table_of(bridge);
        nft(&ruleset(&table, bridge)).await?;
        let ways = read_ways(&list(&["set", "inet", &table, "ways"]).await?)?;
        let state = Mutex::new(State { ways, ..State::default() });
        Ok(Self { table, bridge: bridge.to_owned(), subnet, state })
    }

    /// Lets the owner of an address use it.
    ///
    /// # Errors
    /// When `nft` refuses; the address cannot be used then.
    pub async fn admit(&self, address: Ipv4Addr) -> io::Result<()> {
        let Some(index) = self.subnet.index(address) else {
            return Err(io::Error::other(format!("{address} is not of this network")));
        };
        let block = index / BLOCK;
        let mut state = self.state.lock().await;
        if state.known.contains(&block) {
            return Ok(());
        }
        nft(&pairs(&self.table, self.subnet, block)).await?;
        state.known.insert(block);
        Ok(())
    }

    /// Gives what shops send outside the host's own address; without it nothing
    /// would come back.
    ///
    /// # Errors
    /// When the kernel cannot do it.
    pub async fn disguise(&self) -> io::Result<()> {
        let mut state = self.state.lock().await;
        if !state.disguised {
            nft(&disguise(&self.table, &self.bridge, self.subnet)).await?;
            state.disguised = true;
        }
        Ok(())
    }

    /// Lets one shop reach exactly these addresses outside; none takes all back.
    ///
    /// # Errors
    /// When `nft` refuses; all is as it was then.
    pub async fn allow(&self, shop: Ipv4Addr, reached: BTreeSet<SocketAddrV4>) -> io::Result<()> {
        self.change(|ways| {
            ways.insert(shop, reached);
        })
        .await
    }

    /// Lets these shops reach what is said, and all others nothing.
    ///
    /// # Errors
    /// When `nft` refuses; all is as it was then.
    pub async fn allow_only(&self, wanted: Ways) -> io::Result<()> {
        self.change(|ways| *ways = wanted).await
    }

    /// The table's name.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Every shop that the kernel's sets let out, whatever this daemon knows.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn allowed(&self) -> io::Result<BTreeSet<Ipv4Addr>> {
        let mut shops: BTreeSet<Ipv4Addr> = self.read_ways().await?.into_keys().collect();
        shops.extend(read_outward(&list(&["set", "inet", &self.table, "outward"]).await?)?);
        Ok(shops)
    }

    async fn read_ways(&self) -> io::Result<Ways> {
        read_ways(&list(&["set", "inet", &self.table, "ways"]).await?)
    }

    /// Takes from a shop what the kernel's sets allow it, whatever this daemon knows.
    ///
    /// # Errors
    /// When `nft` refuses.
    pub async fn shut(&self, shop: Ipv4Addr) -> io::Result<()> {
        let mut state = self.state.lock().await;
        let reached = self.read_ways().await?.remove(&shop).unwrap_or_default();
        // Added first, so that there is one to delete.
        let mut rules = String::new();
        for verb in ["add", "delete"] {
            // Writing to a string does not fail.
            let _ = writeln!(rules, "{verb} element inet {} outward {{ {shop} }}", self.table);
        }
        for way in reached {
            let (table, to, port) = (&self.table, way.ip(), way.port());
            let _ = writeln!(rules, "delete element inet {table} ways {{ {shop} . {to} . {port} }}");
        }
        nft(&rules).await?;
        state.ways.remove(&shop);
        Ok(())
    }

    async fn change(&self, change: impl FnOnce(&mut Ways)) -> io::Result<()> {
        let mut state = self.state.lock().await;
        let mut wanted = state.ways.clone();
        change(&mut wanted);
        wanted.retain(|_, reached| !reached.is_empty());
        let rules = changes(&self.table, &state.ways, &wanted);
        if !rules.is_empty() {
            nft(&rules).await?;
            state.ways = wanted;
        }
        Ok(())
    }

    /// Removes the table, when nothing is behind it any more; absent is fine.
    ///
    /// # Errors
    /// When `nft` refuses.
    pub async fn remove(&self) -> io::Result<()> {
        // Made first, so that there is one.
        nft(&format!("table inet {0}\ndelete table inet {0}\n", self.table)).await
    }

    /// Puts the table up again if somebody removed it; answers whether that was
    /// so. Rules that were changed by hand are left as they are.
    ///
    /// # Errors
    /// When `nft` refuses.
    pub async fn renew_if_lost(&self) -> io::Result<bool> {
        let state = self.state.lock().await;
        if nft(&format!("list chain inet {} to_host\n", self.table)).await.is_ok() {
            return Ok(false);
        }
        let mut rules = ruleset(&self.table, &self.bridge);
        for block in &state.known {
            rules.push_str(&pairs(&self.table, self.subnet, *block));
        }
        rules.push_str(&changes(&self.table, &Ways::new(), &state.ways));
        if state.disguised {
            rules.push_str(&disguise(&self.table, &self.bridge, self.subnet));
        }
        nft(&rules).await?;
        Ok(true)
    }
}

/// The name of a bridge's table.
#[must_use]
pub fn table_of(bridge: &str) -> String {
    format!("demo-multiplexer-{bridge}")
}

/// The hardware address of whoever has an address: when that gets a new owner,
/// what neighbours remember of it stays true.
#[must_use]
pub const fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    // 02: locally administered, unicast.
    [0x02, 0x64, a, b, c, d]
}

/// The table with its rules in place of former ones; who may send, and where
/// to, is kept, so that living shops go on as they are.
fn ruleset(table: &str, bridge: &str) -> String {
    format!(
        r#"table inet {table} {{
    set senders {{
        typeof ether saddr . ip saddr
    }}
    set outward {{
        type ipv4_addr
    }}
    set ways {{
        type ipv4_addr . ipv4_addr . inet_service
    }}
    chain sender {{
        type filter hook prerouting priority raw; policy accept;
    }}
    chain to_host {{
        type filter hook input priority filter - 10; policy accept;
    }}
    chain elsewhere {{
        type filter hook forward priority filter - 10; policy accept;
    }}
}}
flush chain inet {table} sender
flush chain inet {table} to_host
flush chain inet {table} elsewhere
table inet {table} {{
    chain sender {{
        iifname "{bridge}" meta nfproto ipv6 counter drop
        iifname "{bridge}" ether saddr . ip saddr != @senders counter drop
    }}
    chain to_host {{
        iifname "{bridge}" ct state established accept
        iifname "{bridge}" counter drop
    }}
    chain elsewhere {{
        iifname "{bridge}" ip saddr @outward ct state established accept
        iifname "{bridge}" ip saddr . ip daddr . tcp dport @ways accept
        iifname "{bridge}" counter drop
        oifname "{bridge}" ct state established accept
        oifname "{bridge}" meta l4proto icmp ct state related accept
        oifname "{bridge}" counter drop
    }}
}}
"#
    )
}

/// The pairs of one block of addresses.
fn pairs(table: &str, subnet: Subnet, block: u32) -> String {
    let mut text = format!("add element inet {table} senders {{ ");
    let first = block * BLOCK;
    for address in (first..first + BLOCK).filter_map(|n| subnet.address(n)) {
        let [a, b, c, d, e, f] = hardware_address(address);
        let mac = format_args!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        // Writing to a string does not fail.
        let _ = write!(text, "{mac} . {address}, ");
    }
    text.push_str("}\n");
    text
}

/// What gives the shops' packets the host's address on their way out.
fn disguise(table: &str, bridge: &str, subnet: Subnet) -> String {
    let Subnet { network, prefix } = subnet;
    format!(
        r#"table inet {table} {{
    chain outgoing {{
        type nat hook postrouting priority srcnat; policy accept;
    }}
}}
flush chain inet {table} outgoing
table inet {table} {{
    chain outgoing {{
        oifname != "{bridge}" ip saddr {network}/{prefix} masquerade
    }}
}}
"#
    )
}

/// What turns the one into the other, as one transaction.
fn changes(table: &str, is: &Ways, wanted: &Ways) -> String {
    let mut text = String::new();
    for (verb, from, to) in [("delete", wanted, is), ("add", is, wanted)] {
        let shops: Vec<String> =
            to.keys().filter(|shop| !from.contains_key(shop)).map(Ipv4Addr::to_string).collect();
        let ways: Vec<String> = to
            .iter()
            .flat_map(|(shop, reached)| reached.iter().map(move |way| (shop, way)))
            .filter(|(shop, way)| !from.get(shop).is_some_and(|reached| reached.contains(way)))
            .map(|(shop, way)| format!("{shop} . {} . {}", way.ip(), way.port()))
            .collect();
        for (set, elements) in [("outward", shops), ("ways", ways)] {
            if !elements.is_empty() {
                // Writing to a string does not fail.
                let _ = writeln!(text, "{verb} element inet {table} {set} {{ {} }}", elements.join(", "));
            }
        }
    }
    text
}

/// Reads the set `ways` as `nft --json` lists it (libnftables-json(5)).
fn read_ways(json: &str) -> io::Result<Ways> {
    let listed: serde_json::Value = serde_json::from_str(json)?;
    let objects = listed["nftables"].as_array().into_iter().flatten();
    let elements = objects.filter_map(|object| object["set"]["elem"].as_array()).flatten();
    let mut ways = Ways::new();
    for element in elements {
        let part = |n: usize| &element["concat"][n];
        let address = |n| part(n).as_str()?.parse::<Ipv4Addr>().ok();
        let port = part(2).as_u64().and_then(|port| u16::try_from(port).ok());
        let (Some(shop), Some(to), Some(port)) = (address(0), address(1), port) else {
            return Err(io::Error::other(format!("nft lists an unknown element {element}")));
        };
        ways.entry(shop).or_default().insert(SocketAddrV4::new(to, port));
    }
    Ok(ways)
}

/// Reads the set `outward` as `nft --json` lists it.
fn read_outward(json: &str) -> io::Result<Vec<Ipv4Addr>> {
    let listed: serde_json::Value = serde_json::from_str(json)?;
    let objects = listed["nftables"].as_array().into_iter().flatten();
    let elements = objects.filter_map(|object| object["set"]["elem"].as_array()).flatten();
    let unknown = |element| io::Error::other(format!("nft lists an unknown element {element}"));
    elements
        .map(|element| element.as_str().and_then(|text| text.parse().ok()).ok_or_else(|| unknown(element)))
        .collect()
}

/// Lists something of the kernel's rules as JSON.
async fn list(what: &[&str]) -> io::Result<String> {
    let output = Command::new("nft")
        .args(["--json", "list"])
        .args(what)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(DEADLINE, output).await {
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "nft does not answer")),
        Ok(Err(error)) => Err(error),
        Ok(Ok(output)) if output.status.success() => {
            String::from_utf8(output.stdout).map_err(io::Error::other)
        }
        Ok(Ok(output)) => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// Has the kernel take rules, all of them or none.
async fn nft(rules: &str) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                io::Error::new(error.kind(), "the nft command is missing: install nftables")
            }
            _ => error,
        })?;
    let mut stdin = child.stdin.take().ok_or_else(|| io::Error::other("nft takes no rules"))?;
    let talk = async {
        let written = stdin.write_all(rules.as_bytes()).await;
        drop(stdin);
        let output = child.wait_with_output().await?;
        match output.status.success() {
            true => written,
            false => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        }
    };
    match tokio::time::timeout(DEADLINE, talk).await {
        Ok(said) => said,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "nft does not answer")),
    }
}

/// Tries whether this kernel takes the rules; the table is gone with the
/// network namespace it is tried in.
///
/// # Errors
/// What `nft` says.
pub(super) async fn trial(bridge: &str, subnet: Subnet) -> io::Result<()> {
    let table = table_of(bridge);
    nft(&format!("{}{}", ruleset(&table, bridge), pairs(&table, subnet, 0))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways(list: &[(&str, &[&str])]) -> Ways {
        let reached = |to: &[&str]| to.iter().map(|to| to.parse().unwrap()).collect();
        list.iter().map(|(shop, to)| (shop.parse().unwrap(), reached(to))).collect()
    }

    #[test]
    fn a_change_takes_away_and_adds_what_differs_and_says_nothing_otherwise() {
        let before = ways(&[("10.0.0.2", &["192.0.2.1:443"]), ("10.0.0.3", &["192.0.2.1:443"])]);
        let after =
            ways(&[("10.0.0.3", &["192.0.2.1:443", "192.0.2.9:25"]), ("10.0.0.4", &["192.0.2.1:443"])]);
        assert_eq!(
            changes("t", &before, &after),
            "delete element inet t outward { 10.0.0.2 }\n\
             delete element inet t ways { 10.0.0.2 . 192.0.2.1 . 443 }\n\
             add element inet t outward { 10.0.0.4 }\n\
             add element inet t ways { 10.0.0.3 . 192.0.2.9 . 25, 10.0.0.4 . 192.0.2.1 . 443 }\n"
        );
        assert_eq!(changes("t", &after, &after), "");
    }

    #[test]
    fn what_nft_lists_is_read_back() {
        let listed = r#"{"nftables": [{"metainfo": {"version": "1.1.3"}}, {"set": {"family": "inet",
            "name": "ways", "table": "t", "type": ["ipv4_addr", "ipv4_addr", "inet_service"], "handle": 4,
            "elem": [{"concat": ["10.0.0.2", "192.0.2.1", 443]}, {"concat": ["10.0.0.2", "192.0.2.9", 25]}]}}]}"#;
        let expected = ways(&[("10.0.0.2", &["192.0.2.1:443", "192.0.2.9:25"])]);
        assert_eq!(read_ways(listed).unwrap(), expected);
        let empty = r#"{"nftables": [{"set": {"family": "inet", "name": "ways", "table": "t"}}]}"#;
        assert_eq!(read_ways(empty).unwrap(), Ways::new());
        assert!(read_ways(r#"{"nftables": [{"set": {"elem": ["10.0.0.2"]}}]}"#).is_err());
        let outward = r#"{"nftables": [{"metainfo": {}}, {"set": {"elem": ["10.0.0.2", "10.0.0.9"]}}]}"#;
        assert_eq!(
            read_outward(outward).unwrap(),
            ["10.0.0.2", "10.0.0.9"].map(|it| it.parse::<Ipv4Addr>().unwrap())
        );
        assert!(read_outward(r#"{"nftables": [{"set": {"elem": [7]}}]}"#).is_err());
    }

    #[test]
    fn every_usable_address_of_a_block_has_its_sender_and_no_other() {
        let subnet: Subnet = "10.9.0.0/23".parse().unwrap();
        let first = pairs("t", subnet, 0);
        assert!(first.contains("{ 02:64:0a:09:00:00 . 10.9.0.0, "), "{first}");
        assert!(first.contains("02:64:0a:09:00:ff . 10.9.0.255, }"), "{first}");
        let last = pairs("t", subnet, 1);
        assert!(last.contains(". 10.9.1.254, }"), "without the broadcast address: {last}");
        assert_eq!(last.matches(" . ").count(), 255);
    }
}
