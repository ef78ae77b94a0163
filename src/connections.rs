//! How many connections are open on a listener, and whose.
//!
//! Used by the listener, which asks for a place for each connection, and by the
//! proxy, whose websockets keep the place of the connection they were. Without a
//! bound, connections that say nothing would use up the daemon's file
//! descriptors, and with them restores and the store.
//!
//! Invariants: a place is given back once, when the last holder drops it; a
//! client that connects directly has a share at most, so that no single one
//! shuts the others out. Trusted proxies carry many clients and have no share.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::client::{ClientKey, TrustedProxies};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One client's share is this part of all: eight loud clients fill a listener,
/// and an office behind one address (6 connections a browser) still fits in.
const SHARE: usize = 8;

/// MAX_CONNECTIONS when nobody sets it: ten thousand status streams, and what else there is.
pub const USUAL: usize = 16_384;

/// How many connections of one listener leave a quarter of a process's open files to
/// restores and the store: each takes two, the visitor's and the one to the shop.
#[must_use]
pub fn that_fit(files: Option<u64>) -> usize {
    files.map_or(usize::MAX, |files| usize::try_from(files / 8 * 3).unwrap_or(usize::MAX))
}

/// How many of so many connections may be status streams, which stay: five eighths, so
/// that whoever watches does not shut out whoever wants a page.
#[must_use]
pub const fn for_streams(connections: usize) -> usize {
    let streams = connections / 8 * 5;
    if streams == 0 { 1 } else { streams }
}

/// The open connections of one listener.
#[derive(Debug)]
pub struct Connections {
    most: usize,
    proxies: TrustedProxies,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_client: HashMap<ClientKey, usize>,
}

/// The right to one connection.
#[derive(Debug)]
pub struct Place {
    connections: Arc<Connections>,
    client: Option<ClientKey>,
}

impl Connections {
    /// Room for `most`.
    #[must_use]
    pub fn new(most: usize, proxies: TrustedProxies) -> Arc<Self> {
        Arc::new(Self { most, proxies, open: Mutex::default() })
    }

    /// A place for a connection from `peer`; none when all, or its share, are
    /// taken.
    #[must_use]
    pub fn place(self: &Arc<Self>, peer: IpAddr) -> Option<Arc<Place>> {
        let client = (!self.proxies.contains(peer)).then(|| ClientKey::of_address(peer));
        let mut open = self.lock();
        if open.all >= self.most {
            return None;
        }
        if let Some(client) = &client {
            let own = open.by_client.entry(client.clone()).or_default();
            if *own >= (self.most / SHARE).max(1) {
                return None;
            }
            *own += 1;
        }
        open.all += 1;
        drop(open);
        Some(Arc::new(Place { connections: Arc::clone(self), client }))
    }

    /// How many are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.lock().all
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.lock();
        open.all -= 1;
        if let Some(client) = &self.client
            && let Some(own) = open.by_client.get_mut(client)
        {
            *own -= 1;
            if *own == 0 {
                open.by_client.remove(client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn streams_leave_connections_for_pages() {
        for connections in [16, 384, 16_384] {
            assert!((1..connections).contains(&for_streams(connections)), "{connections}");
        }
        assert_eq!(for_streams(1), 1);
    }

    #[test]
    fn a_client_has_its_share_and_everybody_together_all() {
        let connections = Connections::new(16, "10.0.0.0/24".parse().unwrap());
        let mut held: Vec<_> = (0..2).map(|_| connections.place(address("192.0.2.7")).unwrap()).collect();
        assert!(connections.place(address("192.0.2.7")).is_none(), "an eighth of 16");
        held.extend((0..14).map(|_| connections.place(address("10.0.0.1")).unwrap()));
        assert!(connections.place(address("10.0.0.1")).is_none(), "16 of 16");
        assert!(connections.place(address("192.0.2.8")).is_none());
        held.remove(0);
        assert!(connections.place(address("192.0.2.7")).is_some());
        held.clear();
        assert_eq!(connections.open(), 0);
        assert!(connections.lock().by_client.is_empty(), "nothing is kept of those that left");
    }

    #[test]
    fn a_quarter_of_the_files_is_left() {
        assert_eq!((that_fit(Some(1024)), that_fit(Some(65536)), that_fit(None)), (384, 24_576, usize::MAX));
    }

    #[test]
    fn an_ipv6_network_is_one_client_and_a_place_may_have_two_holders() {
        let connections = Connections::new(8, TrustedProxies::default());
        let place = connections.place(address("2001:db8:1:2::1")).unwrap();
        let websocket = Arc::clone(&place);
        drop(place);
        assert!(connections.place(address("2001:db8:1:2:ffff::9")).is_none());
        drop(websocket);
        assert!(connections.place(address("2001:db8:1:2:ffff::9")).is_some());
    }
}
