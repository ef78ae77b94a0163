//! Which addresses of a listed host are open to shops. Pure.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr};

use crate::config::Subnet;
use crate::golden::network::{DestinationHost, closed, is_private};

/// Addresses of one name at most: each is an element of the firewall's set for
/// each shop, and whoever answers for the name chooses how many there are.
const ADDRESSES_MAX: usize = 16;

/// Addresses of one host, judged.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Judged {
    /// Open to shops.
    pub(super) open: BTreeSet<Ipv4Addr>,
    /// Open to none.
    pub(super) refused: Vec<Refused>,
}

/// An address that no shop is let to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Refused {
    /// As the recipe has it.
    pub(super) host: DestinationHost,
    /// The address.
    pub(super) address: IpAddr,
    /// Why not.
    pub(super) why: &'static str,
}

/// Judges what a host was found to be; `own` are all addresses of this host.
pub(super) fn judge(
    host: &DestinationHost,
    found: &[IpAddr],
    subnet: Subnet,
    own: &HashSet<Ipv4Addr>,
) -> Judged {
    let by_name = matches!(host, DestinationHost::Name(_));
    let mut judged = Judged::default();
    let has_ipv4 = found.iter().any(IpAddr::is_ipv4);
    for found in found {
        let why = match found {
            // Most names have addresses of both kinds; those are no news.
            IpAddr::V6(_) if has_ipv4 => continue,
            IpAddr::V6(_) => Some("it has no IPv4 address, and IPv6 is closed"),
            IpAddr::V4(address) if subnet.index(*address).is_some() => {
                Some("it is in the shops' own network")
            }
            IpAddr::V4(address) if own.contains(address) => Some("it is this host itself"),
            IpAddr::V4(address) if by_name && is_private(*address) => {
                Some("it is in a private network, which a recipe lists by address only")
            }
            IpAddr::V4(address) => match closed(*address) {
                None if judged.open.len() >= ADDRESSES_MAX && !judged.open.contains(address) => {
                    Some("the name has more than 16 addresses")
                }
                None => {
                    judged.open.insert(*address);
                    None
                }
                closed => closed,
            },
        };
        judged.refused.extend(why.map(|why| Refused { host: host.clone(), address: *found, why }));
    }
    judged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(host: &str, found: &[&str]) -> (Vec<String>, Vec<&'static str>) {
        let host = match host.parse() {
            Ok(address) => DestinationHost::Address(address),
            Err(_) => DestinationHost::Name(host.to_owned()),
        };
        let found: Vec<IpAddr> = found.iter().map(|text| text.parse().unwrap()).collect();
        let own =
            HashSet::from(["127.0.0.1", "198.51.100.20", "10.77.0.1"].map(|text| text.parse().unwrap()));
        let judged = judge(&host, &found, "10.77.0.0/16".parse().unwrap(), &own);
        let open = judged.open.iter().map(Ipv4Addr::to_string).collect();
        (open, judged.refused.iter().map(|refused| refused.why).collect())
    }

    #[test]
    fn a_name_is_open_at_its_public_ipv4_addresses() {
        let (open, refused) = of("api.example.org", &["192.0.2.9", "2001:db8::1", "192.0.2.7", "192.0.2.9"]);
        assert_eq!((open, refused), (vec!["192.0.2.7".into(), "192.0.2.9".into()], vec![]));
    }

    #[test]
    fn whoever_answers_for_a_name_cannot_lead_shops_to_the_host_or_into_its_networks() {
        for address in [
            "127.0.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "10.77.0.1",
            "10.77.3.4",
            "198.51.100.20",
            "10.0.0.1",
            "192.168.1.1",
            "172.16.0.1",
            "100.100.100.200",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            let (open, refused) = of("api.example.org", &[address, "192.0.2.7"]);
            assert_eq!((open.as_slice(), refused.len()), (&["192.0.2.7".to_owned()][..], 1), "{address}");
        }
    }

    #[test]
    fn a_listed_address_may_be_of_a_private_network_but_not_the_hosts_own() {
        assert_eq!(of("10.0.0.1", &["10.0.0.1"]), (vec!["10.0.0.1".into()], vec![]));
        assert!(of("198.51.100.20", &["198.51.100.20"]).0.is_empty());
        assert!(of("10.77.0.1", &["10.77.0.1"]).0.is_empty());
        assert!(of("10.77.0.9", &["10.77.0.9"]).0.is_empty());
    }

    #[test]
    fn a_name_without_ipv4_and_one_with_too_many_addresses_are_told_of() {
        let (open, refused) = of("api.example.org", &["2001:db8::1"]);
        assert!(open.is_empty() && refused[0].contains("no IPv4"), "{refused:?}");
        let many: Vec<String> = (1..=20).map(|n| format!("192.0.2.{n}")).collect();
        let (open, refused) = of("api.example.org", &many.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((open.len(), refused.len()), (ADDRESSES_MAX, 4));
    }
}
