//! What a shop may send, and to whom: nobody, but for answers to the proxy.
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
//!                  everything else                             input and forward, dropped
//! to the bridge:   from elsewhere than the host                forward, dropped
//! ```
//!
//! Who the sender is follows from its hardware address: bridge ports are
//! locked, so a frame has its own port's or is dropped, and each hardware
//! address has one address of layer 3. Those pairs are added to the table by the
//! block, when the first address of a block is used: one call of `nft` for 256
//! slots.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io;
use std::net::Ipv4Addr;
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
    /// Blocks whose pairs are in the table.
    known: Mutex<HashSet<u32>>,
}

impl Firewall {
    /// Puts the bridge's table in place of a former one.
    ///
    /// # Errors
    /// When `nft` is missing or the kernel refuses the rules.
    pub async fn open(bridge: &str, subnet: Subnet) -> io::Result<Self> {
        let table = table_of(bridge);
        nft(&ruleset(&table, bridge)).await?;
        Ok(Self { table, bridge: bridge.to_owned(), subnet, known: Mutex::default() })
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
        let mut known = self.known.lock().await;
        if known.contains(&block) {
            return Ok(());
        }
        nft(&pairs(&self.table, self.subnet, block)).await?;
        known.insert(block);
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
        let known = self.known.lock().await;
        if nft(&format!("list chain inet {} to_host\n", self.table)).await.is_ok() {
            return Ok(false);
        }
        let mut rules = ruleset(&self.table, &self.bridge);
        for block in known.iter() {
            rules.push_str(&pairs(&self.table, self.subnet, *block));
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

/// The table with its rules in place of former ones; who may send is kept, so
/// that living shops go on answering.
fn ruleset(table: &str, bridge: &str) -> String {
    format!(
        r#"table inet {table} {{
    set senders {{
        typeof ether saddr . ip saddr
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
flush table inet {table}
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
        iifname "{bridge}" counter drop
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
