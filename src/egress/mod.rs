//! The way out: what shops of a golden may reach outside, kept true.
//!
//! Owns which addresses the listed hosts have, and which living shops may reach
//! what. Called by [`engine`], a driver around a driver that opens and closes a
//! shop's way, and by `serve`, which runs [`Egress::keep`].
//!
//! ```text
//! every EGRESS_REFRESH, or sooner while a host has no address:
//! resolve names -> leave out what no shop may reach -> the firewall's sets
//!                                                   -> /etc/hosts of the shops
//! ```
//!
//! No name is resolved inside a shop, where no DNS server can be reached: the
//! names stand in its `/etc/hosts`. A name that is not answered for keeps the
//! addresses it had. A connection lives on when its name's address changes.
//!
//! Invariants: a shop whose golden lists nothing gets no route, no name and no
//! element of the sets. What the sets hold for a shop is taken out before its
//! address is anyone else's ([`crate::host::net::Network::release`]).
//!
//! Undo: routes and names end with the shop, the bridge's forwarding with the
//! bridge, elements of the sets with the shop, or with the next daemon's first
//! pass.

mod addresses;
mod engine;
mod hosts;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use self::addresses::Refused;
use self::engine::WayOutEngine;
use crate::engine::ContainerEngine;
use crate::golden::network::{Destination, DestinationHost};
use crate::golden::recipe::Recipe;
use crate::host::firewall::Ways;
use crate::host::net::NetError;
use crate::host::slots::Slots;
use crate::host::{facts, process};
use crate::instance::Container;

/// How long the system's resolver may take for one name.
const RESOLVE_DEADLINE: Duration = Duration::from_secs(5);

/// How long until hosts without an address are asked for again, at most.
const UNKNOWN_PAUSE: Duration = Duration::from_secs(5);

/// A shop could not be let out.
#[derive(Debug, thiserror::Error)]
enum WayOutError {
    #[error("it has no route to the outside")]
    Route(#[source] NetError),
    #[error("the firewall does not let it out")]
    Firewall(#[source] io::Error),
    #[error("its /etc/hosts cannot be written")]
    Hosts(#[source] io::Error),
}

/// A shop that may reach something.
#[derive(Debug, Clone)]
struct Shop {
    pid: i32,
    start_ticks: u64,
    allowed: Arc<[Destination]>,
}

/// Addresses of listed hosts, as far as they are known and open to shops.
type Known = BTreeMap<DestinationHost, BTreeSet<Ipv4Addr>>;

/// What shops may reach, and which do.
#[derive(Debug)]
pub struct Egress {
    slots: Arc<Slots>,
    refresh: Duration,
    /// Hosts that any golden lists.
    listed: Mutex<BTreeSet<DestinationHost>>,
    known: Mutex<Known>,
    /// By address. Held while the sets are changed: what follows from it must
    /// still be so when it is in force.
    shops: tokio::sync::Mutex<HashMap<Ipv4Addr, Shop>>,
    /// What was said of refused addresses, so that it is said once.
    told: Mutex<BTreeSet<Refused>>,
}

impl Egress {
    /// Nobody is let out yet.
    #[must_use]
    pub fn new(slots: Arc<Slots>, refresh: Duration) -> Self {
        Self {
            slots,
            refresh,
            listed: Mutex::default(),
            known: Mutex::default(),
            shops: tokio::sync::Mutex::default(),
            told: Mutex::default(),
        }
    }

    /// Puts a driver around `inner` whose shops reach what the recipe lists;
    /// `inner` itself when that is nothing.
    #[must_use]
    pub fn around(
        self: &Arc<Self>,
        inner: Arc<dyn ContainerEngine>,
        recipe: &Recipe,
    ) -> Arc<dyn ContainerEngine> {
        if recipe.network.is_closed() {
            return inner;
        }
        let allowed: Arc<[Destination]> = recipe.network.allow.clone().into();
        lock(&self.listed).extend(allowed.iter().map(|destination| destination.host.clone()));
        Arc::new(WayOutEngine::new(inner, Arc::clone(self), allowed))
    }

    /// Keeps addresses and ways true until `stop`; spawned once by the daemon,
    /// after it has taken over the former one's shops: what those may reach and
    /// this daemon does not list is closed by the first pass.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let listed = lock(&self.listed).clone();
        loop {
            if let Err(error) = self.slots.network().forward(!listed.is_empty()).await {
                tracing::error!(error = %error, "what shops send outside is not passed on");
            }
            let Some(known) = stop.run_until_cancelled(self.look_up(&listed)).await else { return };
            let shops = self.open_ways(&known).await;
            if listed.is_empty() {
                return;
            }
            write_names(&shops, &known).await;
            let is_unknown = |host| known.get(host).is_none_or(BTreeSet::is_empty);
            let unknown = listed.iter().any(is_unknown);
            let pause = if unknown { UNKNOWN_PAUSE.min(self.refresh) } else { self.refresh };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Looks all listed hosts up and remembers what is open to shops.
    async fn look_up(&self, listed: &BTreeSet<DestinationHost>) -> Known {
        let mut known = lock(&self.known).clone();
        let own = match facts::own_addresses() {
            Ok(own) => own,
            Err(error) => {
                tracing::warn!(error = %error, "hosts that shops may reach are not looked up");
                return known;
            }
        };
        let subnet = self.slots.network().subnet();
        let mut refused = BTreeSet::new();
        let answers = futures_util::future::join_all(listed.iter().map(addresses_of)).await;
        for (host, answer) in listed.iter().zip(answers) {
            match answer {
                Ok(found) => {
                    let judged = addresses::judge(host, &found, subnet, &own);
                    refused.extend(judged.refused);
                    let before = known.insert(host.clone(), judged.open.clone());
                    if before.as_ref() != Some(&judged.open) {
                        tracing::info!(%host, addresses = ?judged.open, "what shops reach under a name");
                    }
                }
                // Nothing is known to have changed.
                Err(error) => {
                    tracing::warn!(%host, error = %error, "a host that shops may reach is not found")
                }
            }
        }
        let mut told = lock(&self.told);
        for refused in refused.difference(&told) {
            tracing::warn!(host = %refused.host, "no shop is let to {}: {}", refused.address, refused.why);
        }
        *told = refused;
        lock(&self.known).clone_from(&known);
        known
    }

    /// Makes the firewall's sets what they shall be; answers who may reach what.
    async fn open_ways(&self, known: &Known) -> Vec<Shop> {
        let mut shops = self.shops.lock().await;
        // One that ended by itself is the reaper's to take down; its way closes now.
        shops.retain(|_, shop| matches!(process::open(shop.pid, shop.start_ticks), Ok(Some(_))));
        let wanted: Ways =
            shops.iter().map(|(address, shop)| (*address, reached(&shop.allowed, known))).collect();
        if let Err(error) = self.slots.network().firewall().allow_only(wanted).await {
            tracing::error!(error = %error, "what shops may reach was not changed");
        }
        shops.values().cloned().collect()
    }

    /// Lets a shop reach what is allowed, from now on.
    ///
    /// # Errors
    /// [`WayOutError`]; [`Egress::close`] takes back what was done.
    async fn open(&self, container: &Container, allowed: &Arc<[Destination]>) -> Result<(), WayOutError> {
        let (pid, start_ticks) = (container.pid, container.start_ticks);
        let network = self.slots.network();
        network.add_way_out(pid, start_ticks).await.map_err(WayOutError::Route)?;
        let shop = Shop { pid, start_ticks, allowed: Arc::clone(allowed) };
        let mut shops = self.shops.lock().await;
        // What changes from here on, the next pass tells this shop too.
        let known = lock(&self.known).clone();
        shops.insert(container.address, shop.clone());
        let ways = reached(allowed, &known);
        network.firewall().allow(container.address, ways).await.map_err(WayOutError::Firewall)?;
        drop(shops);
        hosts::write(&shop, &known).await.map_err(WayOutError::Hosts)
    }

    /// Forgets a shop that is about to end; its way closes with its address.
    async fn close(&self, address: Ipv4Addr) {
        self.shops.lock().await.remove(&address);
    }
}

async fn write_names(shops: &[Shop], known: &Known) {
    for shop in shops {
        if let Err(error) = hosts::write(shop, known).await {
            // The stranger inside may have made anything of it.
            tracing::debug!(pid = shop.pid, error = %error, "a shop's /etc/hosts was not rewritten");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Each address with each port that is allowed there.
fn reached(allowed: &[Destination], known: &Known) -> BTreeSet<SocketAddrV4> {
    let at = |destination: &Destination| {
        let port = destination.port;
        known
            .get(&destination.host)
            .into_iter()
            .flatten()
            .map(move |address| SocketAddrV4::new(*address, port))
    };
    allowed.iter().flat_map(at).collect()
}

/// Asks the system's resolver, which reads this host's own hosts file too.
async fn addresses_of(host: &DestinationHost) -> io::Result<Vec<IpAddr>> {
    let name = match host {
        DestinationHost::Address(address) => return Ok(vec![IpAddr::V4(*address)]),
        DestinationHost::Name(name) => name.as_str(),
    };
    match tokio::time::timeout(RESOLVE_DEADLINE, tokio::net::lookup_host((name, 0))).await {
        Ok(found) => Ok(found?.map(|address| address.ip()).collect()),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the resolver does not answer")),
    }
}
