//! An IPv4 network and the addresses in it.

use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    /// Its first address.
    pub network: Ipv4Addr,
    /// Its prefix length, 8 to 30.
    pub prefix: u8,
}

impl Subnet {
    /// The `n`-th address; none beyond the last usable one.
    ///
    /// 0 is the network itself, 1 the bridge.
    #[must_use]
    pub fn address(self, n: u32) -> Option<Ipv4Addr> {
        let size = 1_u32 << (32 - u32::from(self.prefix));
        (n < size - 1).then(|| Ipv4Addr::from(u32::from(self.network) + n))
    }

    /// The number of an address in this network.
    #[must_use]
    pub fn index(self, address: Ipv4Addr) -> Option<u32> {
        let n = u32::from(address).checked_sub(u32::from(self.network))?;
        self.address(n).map(|_| n)
    }
}

impl FromStr for Subnet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || format!("{text:?} is not of the form 10.77.0.0/16");
        let (network, prefix) = text.split_once('/').ok_or_else(form)?;
        let network: Ipv4Addr = network.parse().map_err(|_| form())?;
        let prefix: u8 = prefix.parse().map_err(|_| form())?;
        if !(8..=30).contains(&prefix) {
            return Err(format!("prefix length {prefix} is not between 8 and 30"));
        }
        let mask = u32::MAX << (32 - u32::from(prefix));
        if u32::from(network) & !mask != 0 {
            return Err(format!("{network} is not the first address of its /{prefix}"));
        }
        Ok(Self { network, prefix })
    }
}
