//! What a golden's shops may reach outside: `[network]` of `golden.toml`.
//!
//! Nothing, unless it is listed: TCP ports of hosts, each by its name or its
//! IPv4 address. Pure. What a name leads to is found out while a daemon runs,
//! and judged by [`closed`] and [`is_private`] as a listed address is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Entries at most: each is resolved every minute, and opened for each shop.
pub const DESTINATIONS_MAX: usize = 32;

/// `[network]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkAccess {
    /// Where shops may connect to, such as `api.example.org:443`.
    #[serde(default)]
    pub allow: Vec<Destination>,
}

impl NetworkAccess {
    /// Whether shops reach nothing at all.
    #[must_use]
    pub const fn is_closed(&self) -> bool {
        self.allow.is_empty()
    }

    pub(super) fn check(&self) -> Result<(), String> {
        match self.allow.len() {
            0..=DESTINATIONS_MAX => Ok(()),
            n => Err(format!("network.allow has {n} entries; {DESTINATIONS_MAX} are the most")),
        }
    }
}

/// A TCP port of a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Destination {
    /// The host.
    pub host: DestinationHost,
    /// The port.
    pub port: u16,
}

/// A host as a recipe names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DestinationHost {
    /// By name, in lower case.
    Name(String),
    /// By address, which may be of a private network.
    Address(Ipv4Addr),
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("network.allow = {text:?}: {why}");
        let form = || wrong("a host and a TCP port, such as api.example.org:443 or 192.0.2.7:25");
        if text.contains('*') {
            return Err(wrong("there are no wildcards, list each host"));
        }
        if text.contains(['[', '/', '@']) {
            return Err(match text.starts_with('[') {
                true => wrong("IPv6 is closed to shops, name an IPv4 address"),
                false => form(),
            });
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(form)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(form)?;
        let host = match host.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => match closed(address) {
                None => DestinationHost::Address(address),
                Some(what) => return Err(wrong(&format!("no shop reaches {what}"))),
            },
            Ok(IpAddr::V6(_)) => return Err(wrong("IPv6 is closed to shops, name an IPv4 address")),
            Err(_) => DestinationHost::Name(name(host).ok_or_else(form)?),
        };
        if matches!(&host, DestinationHost::Name(name) if name.rsplit('.').next() == Some("localhost")) {
            return Err(wrong("no shop reaches this host itself"));
        }
        Ok(Self { host, port })
    }
}

/// A host's name in lower case; none when it is none. The last label has a
/// letter: programs read `127.1` and `0x7f.1` as addresses.
fn name(text: &str) -> Option<String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next()?;
    let is_name = text.len() <= 253
        && text.split('.').all(label)
        && last.starts_with(|c: char| c.is_ascii_alphabetic());
    is_name.then(|| text.to_ascii_lowercase())
}

impl TryFrom<String> for Destination {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Destination> for String {
    fn from(destination: Destination) -> Self {
        destination.to_string()
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Display for DestinationHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// Why an address is open to no shop, whoever asks for it; none when it may be
/// (RFC 6890).
#[must_use]
pub const fn closed(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [0, ..] | [127, ..] => Some("this host itself"),
        [169, 254, ..] => Some("link-local addresses, where clouds have their metadata"),
        [224..=255, ..] => Some("multicast, reserved and broadcast addresses"),
        _ => None,
    }
}

/// Whether an address is of somebody's own network (RFC 1918, RFC 6598): only
/// the recipe itself may name such a one, not whoever answers for a name.
#[must_use]
pub const fn is_private(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [100, 64..=127, ..]) || address.is_private()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Destination, String> {
        text.parse()
    }

    #[test]
    fn names_and_addresses_with_a_port_are_read_and_written_alike() {
        for text in
            ["api.example.org:443", "192.0.2.7:25", "mail:587", "10.0.0.9:5432", "xn--nxasmq6b.example:1"]
        {
            assert_eq!(of(text).unwrap().to_string(), text);
        }
        assert_eq!(of("API.Example.ORG:443").unwrap().to_string(), "api.example.org:443");
    }

    #[test]
    fn what_is_no_host_and_port_is_refused_with_the_form() {
        for text in [
            "",
            "api.example.org",
            ":443",
            "api.example.org:",
            "api.example.org:0",
            "api.example.org:65536",
            "https://api.example.org:443",
            "a b:1",
            "user@api.example.org:443",
            "-a.example:1",
            "a..b:1",
            "127.1:80",
            "0x7f.1:80",
            "api_1.example:1",
            "api.example.org.:443",
        ] {
            assert!(of(text).unwrap_err().contains("such as api.example.org:443"), "{text}");
        }
    }

    #[test]
    fn what_no_shop_may_reach_is_refused_with_the_reason() {
        for (text, why) in [
            ("*.example.org:443", "wildcards"),
            ("*:443", "wildcards"),
            ("[2001:db8::1]:443", "IPv6"),
            ("::1:443", "IPv6"),
            ("127.0.0.1:2019", "this host"),
            ("0.0.0.0:80", "this host"),
            ("localhost:80", "this host"),
            ("x.LocalHost:80", "this host"),
            ("169.254.169.254:80", "metadata"),
            ("224.0.0.1:80", "multicast"),
            ("255.255.255.255:80", "broadcast"),
        ] {
            assert!(of(text).unwrap_err().contains(why), "{text}: {:?}", of(text));
        }
    }

    #[test]
    fn private_networks_are_told_from_public_ones() {
        for address in ["10.0.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1", "100.100.100.200"] {
            assert!(is_private(address.parse().unwrap()), "{address}");
        }
        for address in ["9.255.255.255", "172.32.0.1", "192.0.2.7", "100.63.255.255", "100.128.0.0"] {
            assert!(!is_private(address.parse().unwrap()), "{address}");
        }
    }
}
