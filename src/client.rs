//! Who a request comes from: the address it is counted and answered under.
//!
//! Pure; used by the API (rate limits, idempotency keys, what only this host's
//! clients may ask) and by the proxy (what shops are told).
//!
//! ```text
//! visitor -> proxy -> proxy -> this daemon
//!            each adds to X-Forwarded-For whom it was called by; the right-most
//!            address that is no trusted proxy's is the client
//! ```
//!
//! Invariants: what is left of that address was written by the client itself and
//! is not looked at, so nobody chooses an identity; an entry that cannot be read
//! ends the search at the proxy that passed it on. Only X-Forwarded-For is read:
//! a proxy writes it or RFC 7239's Forwarded, and the other one is then the
//! client's to write.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use http::HeaderMap;

/// Bits of an IPv6 address that are a client's own network: within its /64 a
/// host takes whatever address it likes.
const IPV6_PREFIX: u8 = 64;

/// What proxies add to a request; a request without any is its sender's own.
const TRACES_OF_PROXIES: [&str; 4] = ["x-forwarded-for", "forwarded", "x-real-ip", "via"];

/// Who is asking.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Client {
    /// A program on this host itself, not a proxy for somebody else: the
    /// operator's commands, scripts and tests.
    #[default]
    Local,
    /// Anybody else.
    Remote(ClientKey),
}

/// The name a client is counted under.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientKey(String);

impl ClientKey {
    /// The key of an address; of an IPv6 one that of its /64.
    #[must_use]
    pub fn of_address(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => format!("ip:{address}"),
            IpAddr::V6(address) => {
                let network = Ipv6Addr::from_bits(address.to_bits() & mask(IPV6_PREFIX, 128));
                format!("ip:{network}/{IPV6_PREFIX}")
            }
        })
    }

    /// The key of a token's holder, wherever it asks from.
    #[must_use]
    pub fn of_token(name: &str) -> Self {
        Self(format!("token:{name}"))
    }

    /// As text, without spaces.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Client {
    /// The sender of a request that came from `peer`.
    #[must_use]
    pub fn of(peer: IpAddr, headers: &HeaderMap, trusted: &TrustedProxies) -> Self {
        let forwarded = TRACES_OF_PROXIES.iter().any(|name| headers.contains_key(*name));
        if peer.to_canonical().is_loopback() && !forwarded {
            return Self::Local;
        }
        Self::Remote(ClientKey::of_address(hops(peer, headers, trusted).client))
    }

    /// A name for what belongs to this client alone.
    #[must_use]
    pub fn scope(&self) -> &str {
        match self {
            Self::Local => "local",
            Self::Remote(key) => key.as_str(),
        }
    }
}

/// The way a request came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hops {
    /// The client.
    pub client: IpAddr,
    /// The trusted proxies after it, in the order the request passed them.
    pub proxies: Vec<IpAddr>,
}

/// Follows a request back, as far as trusted proxies tell.
#[must_use]
pub fn hops(peer: IpAddr, headers: &HeaderMap, trusted: &TrustedProxies) -> Hops {
    let mut hops = Hops { client: peer.to_canonical(), proxies: Vec::new() };
    let lines = headers.get_all("x-forwarded-for").iter().rev();
    let mut entries = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    while trusted.contains(hops.client)
        && let Some(before) = entries.next().and_then(address)
    {
        hops.proxies.insert(0, hops.client);
        hops.client = before;
    }
    hops
}

/// One entry: an address, with a port as some proxies write it.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address: Option<IpAddr> = bare.parse().ok();
    let address = address.or_else(|| text.parse().ok().map(|socket: SocketAddr| socket.ip()));
    address.map(|address| address.to_canonical())
}

/// The proxies whose word about their callers is taken.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies(Arc<[Network]>);

impl TrustedProxies {
    /// Whether the address is one of theirs.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// Their networks, by first address and prefix length.
    pub fn networks(&self) -> impl Iterator<Item = (IpAddr, u8)> {
        self.0.iter().map(|network| (network.address, network.prefix))
    }
}

impl FromStr for TrustedProxies {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let networks = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        networks.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// A network, in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    fn contains(self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => (bits(own) ^ bits(other)) & mask(self.prefix, 32) == 0,
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()) & mask(self.prefix, 128) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

fn bits(address: Ipv4Addr) -> u128 {
    u128::from(address.to_bits())
}

/// The first `prefix` of `width` bits.
fn mask(prefix: u8, width: u8) -> u128 {
    let hosts = u32::from(width - prefix);
    (u128::MAX >> (128 - u32::from(width))) & u128::MAX.checked_shl(hosts).unwrap_or(0)
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is not of the form 192.0.2.0/24, 192.0.2.7 or 2001:db8::/32");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| form())?;
        if address != address.to_canonical() {
            return Err(format!(
                "{text:?} is an IPv4 address in IPv6's clothes: write {}",
                address.to_canonical()
            ));
        }
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix: u8 = prefix.map_or(Ok(width), str::parse).map_err(|_| form())?;
        if prefix > width {
            return Err(form());
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const PROXY: &str = "10.0.0.1";

    fn trusted() -> TrustedProxies {
        "127.0.0.0/8, 10.0.0.0/24, ::1, 2001:db8:ffff::/48".parse().unwrap()
    }

    fn headers(lines: &[&[u8]]) -> HeaderMap {
        let value =
            |line: &&[u8]| ("x-forwarded-for".parse().unwrap(), HeaderValue::from_bytes(line).unwrap());
        lines.iter().map(value).collect()
    }

    fn client(peer: &str, lines: &[&str]) -> String {
        let lines: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
        hops(peer.parse().unwrap(), &headers(&lines), &trusted()).client.to_string()
    }

    #[test]
    fn the_right_most_untrusted_address_is_the_client() {
        for (peer, lines, expected) in [
            ("192.0.2.7", &["198.51.100.1"][..], "192.0.2.7"),
            (PROXY, &[], PROXY),
            (PROXY, &["198.51.100.1"], "198.51.100.1"),
            (PROXY, &["6.6.6.6, 198.51.100.1"], "198.51.100.1"),
            (PROXY, &["6.6.6.6", "198.51.100.1,10.0.0.9"], "198.51.100.1"),
            (PROXY, &["6.6.6.6, 10.0.0.8 ,10.0.0.9"], "6.6.6.6"),
            (PROXY, &["10.0.0.7, 10.0.0.8"], "10.0.0.7"),
            ("::ffff:10.0.0.1", &["::ffff:198.51.100.1"], "198.51.100.1"),
            ("2001:db8:ffff::2", &["[2001:db8::5]:4711"], "2001:db8::5"),
            (PROXY, &["198.51.100.1:80"], "198.51.100.1"),
            (PROXY, &["[2001:db8::5]"], "2001:db8::5"),
        ] {
            assert_eq!(client(peer, lines), expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_ends_at_the_proxy_that_passed_it_on() {
        for line in
            ["", ",", "198.51.100.1,", "unknown", "6.6.6.6 7.7.7.7", "300.1.1.1", "::1%eth0", "_hidden"]
        {
            assert_eq!(client(PROXY, &[line]), PROXY, "{line:?}");
        }
        assert_eq!(client(PROXY, &["6.6.6.6, garbage, 10.0.0.9"]), "10.0.0.9");
        let odd = headers(&[b"\xff\xfe", b"198.51.100.1"]);
        let found = hops(PROXY.parse().unwrap(), &odd, &trusted());
        assert_eq!(found.client.to_string(), "198.51.100.1", "an odd line spoils its own entries only");
    }

    #[test]
    fn the_way_is_told_in_order() {
        let of = hops(PROXY.parse().unwrap(), &headers(&[b"6.6.6.6, 198.51.100.1, 10.0.0.9"]), &trusted());
        let proxies: Vec<String> = of.proxies.iter().map(ToString::to_string).collect();
        assert_eq!(
            (of.client.to_string().as_str(), proxies),
            ("198.51.100.1", vec!["10.0.0.9".into(), PROXY.into()])
        );
    }

    #[test]
    fn a_client_is_local_only_without_any_trace_of_a_proxy() {
        let local = |peer: &str, headers: &HeaderMap| {
            Client::of(peer.parse().unwrap(), headers, &trusted()) == Client::Local
        };
        for peer in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "127.9.9.9"] {
            assert!(local(peer, &HeaderMap::new()), "{peer}");
            for name in TRACES_OF_PROXIES {
                let mut headers = HeaderMap::new();
                headers.insert(name, HeaderValue::from_static("127.0.0.1"));
                assert!(!local(peer, &headers), "{peer} {name}");
            }
        }
        assert!(!local("10.0.0.1", &HeaderMap::new()));
    }

    #[test]
    fn a_key_is_an_ipv4_address_or_an_ipv6_network() {
        let key = |address: &str| ClientKey::of_address(address.parse().unwrap()).to_string();
        assert_eq!(key("192.0.2.7"), "ip:192.0.2.7");
        assert_eq!(key("::ffff:192.0.2.7"), "ip:192.0.2.7");
        assert_eq!(key("2001:db8:1:2:3:4:5:6"), "ip:2001:db8:1:2::/64");
        assert_eq!(key("2001:db8:1:2::9"), key("2001:db8:1:2:ffff::"));
        assert_ne!(key("2001:db8:1:2::9"), key("2001:db8:1:3::9"));
    }

    #[test]
    fn networks_are_read_strictly() {
        let has = |networks: &str, address: &str| {
            networks.parse::<TrustedProxies>().unwrap().contains(address.parse().unwrap())
        };
        assert!(!has("", "127.0.0.1"), "empty trusts nobody");
        assert!(has("0.0.0.0/0", "192.0.2.7") && !has("0.0.0.0/0", "::1"));
        assert!(has("::/0", "2001:db8::1") && !has("::/0", "192.0.2.7"));
        assert!(has("10.1.2.3/8", "10.9.9.9") && !has("10.1.2.3/8", "11.0.0.0"));
        assert!(has("10.1.2.3", "::ffff:10.1.2.3") && !has("10.1.2.3", "10.1.2.4"));
        for wrong in
            ["10.0.0.0/33", "::/129", "10.0.0/8", "proxy", "10.0.0.0/", "10.0.0.0/-1", "::ffff:10.0.0.0/96"]
        {
            assert!(wrong.parse::<TrustedProxies>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn nothing_left_of_the_client_changes_who_it_is(forged in proptest::collection::vec(any::<u8>(), 0..60)) {
            // What a header may hold at all.
            let mut line: Vec<u8> = forged.into_iter().filter(|b| *b >= 32 && *b != 127).collect();
            line.extend_from_slice(b",198.51.100.1");
            let found = hops(PROXY.parse().unwrap(), &headers(&[&line]), &trusted());
            prop_assert_eq!(found.client.to_string(), "198.51.100.1");
        }

        #[test]
        fn an_untrusted_peer_is_itself_whatever_it_says(said in proptest::collection::vec(any::<u8>(), 0..60)) {
            let said: Vec<u8> = said.into_iter().filter(|b| *b >= 32 && *b != 127).collect();
            let found = hops("192.0.2.7".parse().unwrap(), &headers(&[&said]), &trusted());
            prop_assert_eq!(found.client.to_string(), "192.0.2.7");
        }
    }
}
