//! Addresses, network namespaces and the bridge they hang on.
//!
//! Owns which addresses are in use. One network namespace an instance, held by
//! a file descriptor and by the instance's processes, by no file: when both are
//! gone the kernel removes it with its interfaces, so a daemon that dies
//! between two steps leaves nothing. The host side of each veth pair is named
//! `dm-<id>`, a port of the bridge: isolated there, so that two instances never
//! see each other's frames, and locked to the hardware address that goes with
//! its address, so that none passes for another. What is left is the way to the
//! host, which the [`firewall`] closes; there is no default route inside, but for
//! shops that were allowed something outside.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::firewall::{self, Firewall, hardware_address};
use super::netns::{
    self, configure_namespace, enter, in_namespace, in_thread, inside, make_namespace, without_ipv6,
};
pub use super::netns::{connect_in, lone_namespace};
use crate::config::Subnet;
use crate::error::ErrorKind;
use crate::id::InstanceId;

/// How many addresses the search for a free one goes round in, as long as one
/// of them is free: the kernel and the firewall keep a line for each one used.
const ROUND: u32 = 4096;

/// How the bridge's alias begins.
const OWNED_BY: &str = "demo-multiplexer on ";

/// The longest alias that the kernel takes (IFALIASZ). With a longer path the
/// cgroup alone says whose they are.
const ALIAS_MAX: usize = 255;

/// The network could not be set up or taken down.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Every address of the subnet is taken.
    #[error("no free address in {}/{}: enlarge BRIDGE_SUBNET or lower MAX_INSTANCES", .subnet.network, .subnet.prefix)]
    NoAddress {
        /// The subnet.
        subnet: Subnet,
    },
    /// The kernel refused a step.
    #[error("cannot {step}")]
    Step {
        /// What was being done.
        step: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl NetError {
    /// What the caller can do.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::NoAddress { .. } => ErrorKind::Exhausted,
            Self::Step { .. } => ErrorKind::Unavailable,
        }
    }
}

pub(super) fn step(step: &'static str) -> impl FnOnce(io::Error) -> NetError {
    move |source| NetError::Step { step, source }
}

pub(super) fn netlink(step: &'static str) -> impl FnOnce(rtnetlink::Error) -> NetError {
    move |error| NetError::Step { step, source: to_io(error) }
}

pub(super) fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

/// An address with the namespace it was put into.
#[derive(Debug)]
pub struct Attached {
    /// The namespace.
    pub netns: OwnedFd,
    /// Its address; given back when this is dropped, unless [`Lease::keep`] was called.
    pub lease: Lease,
}

/// An address in use.
#[derive(Debug)]
pub struct Lease {
    address: Ipv4Addr,
    taken: Arc<Mutex<Taken>>,
    kept: bool,
}

impl Lease {
    /// The address.
    #[must_use]
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Leaves the address taken; [`Network::release`] gives it back.
    #[must_use]
    pub fn keep(mut self) -> Ipv4Addr {
        self.kept = true;
        self.address
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.kept {
            lock(&self.taken).addresses.remove(&self.address);
        }
    }
}

#[derive(Debug, Default)]
struct Taken {
    addresses: BTreeSet<Ipv4Addr>,
    /// Where the search for the next free address begins. Going round makes it
    /// unlikely that a late packet meets a new owner.
    next: u32,
}

fn lock(taken: &Mutex<Taken>) -> std::sync::MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The instances' network on this host.
#[derive(Debug)]
pub struct Network {
    subnet: Subnet,
    bridge: u32,
    bridge_name: String,
    firewall: Firewall,
    handle: Handle,
    taken: Arc<Mutex<Taken>>,
    /// One list at a time: the kernel answers EBUSY to a second one on a socket.
    listing: tokio::sync::Mutex<()>,
}

impl Network {
    /// Makes the bridge with its address, or finds it, and puts its firewall up.
    ///
    /// # Errors
    /// [`NetError::Step`] when the kernel refuses.
    pub async fn open(bridge_name: &str, subnet: Subnet) -> Result<Self, NetError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(step("open a netlink socket"))?;
        tokio::spawn(connection);
        // First: there is no moment without it.
        let firewall = Firewall::open(bridge_name, subnet).await.map_err(step("set the firewall up"))?;
        let bridge = match index_of(&handle, bridge_name).await? {
            Some(index) => index,
            None => {
                // Forwarding starts at once: there is no second bridge to make a loop with.
                let link = LinkBridge::new(bridge_name).forward_delay(0).up().build();
                handle.link().add(link).execute().await.map_err(netlink("make the bridge"))?;
                let made = index_of(&handle, bridge_name).await?;
                made.ok_or_else(|| step("find the bridge just made")(io::ErrorKind::NotFound.into()))?
            }
        };
        let gateway = subnet.address(1).ok_or(NetError::NoAddress { subnet })?;
        // Without an address of its own a bridge takes its ports' lowest one: it
        // would change as instances come and go, and what the living ones had
        // sent to the old one would be lost for as long as they remember it.
        let up = LinkUnspec::new_with_index(bridge).address(hardware_address(gateway).to_vec()).up().build();
        handle.link().set(up).execute().await.map_err(netlink("set the bridge up"))?;
        let address = handle.address().add(bridge, IpAddr::V4(gateway), subnet.prefix).replace();
        address.execute().await.map_err(netlink("give the bridge its address"))?;
        let bridge_name = bridge_name.to_owned();
        let (taken, listing) = Default::default();
        Ok(Self { subnet, bridge, bridge_name, firewall, handle, taken, listing })
    }

    /// Takes a free address and makes a namespace that has it.
    ///
    /// # Errors
    /// [`NetError`]; nothing is left.
    pub async fn attach(&self, id: &InstanceId) -> Result<Attached, NetError> {
        let lease = self.take()?;
        let let_through = step("let an address through the firewall");
        let admitted = async {
            self.firewall.allow(lease.address(), BTreeSet::new()).await?;
            self.firewall.admit(lease.address()).await
        };
        admitted.await.map_err(let_through)?;
        let prefix = self.subnet.prefix;
        let netns = in_thread(make_namespace).await?;
        let interface = id.interface();
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name("eth0".to_owned())
            .address(hardware_address(lease.address()).to_vec())
            .setns_by_fd(netns.as_raw_fd())
            .build();
        let pair = LinkVeth::new(&interface, "eth0")
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .controller(self.bridge)
            .up()
            .build();
        self.handle.link().add(pair).execute().await.map_err(netlink("make a veth pair"))?;
        let address = lease.address();
        let inner = netns.try_clone().map_err(step("hold a network namespace"))?;
        let configured = async {
            let port = index_of(&self.handle, &interface)
                .await?
                .ok_or_else(|| step("find the veth just made")(io::ErrorKind::NotFound.into()))?;
            self.fasten(port, address).await?;
            in_thread(move || configure_namespace(inner, address, prefix)).await
        };
        if let Err(error) = configured.await {
            // The namespace and with it the pair vanish with `netns`; this only hastens it.
            drop(self.remove_interface(id).await);
            return Err(error);
        }
        Ok(Attached { netns, lease })
    }

    /// Ties a bridge port to the one address that may be behind it.
    async fn fasten(&self, port: u32, address: Ipv4Addr) -> Result<(), NetError> {
        let mac = hardware_address(address);
        let rules = LinkBridgePort::new(port).isolated(true).learning(false).locked(true).build();
        // `set` would be answered with success and change nothing.
        let set = self.handle.link().set_port(rules);
        set.execute().await.map_err(netlink("isolate the bridge port"))?;
        let (neighbours, owner) = (self.handle.neighbours(), NeighbourFlags::Controller);
        // A static entry in the bridge's table: what comes from another hardware
        // address is dropped, what goes to this one is not flooded.
        let behind = neighbours.add_bridge(port, &mac).flags(owner).state(NeighbourState::Noarp).replace();
        behind.execute().await.map_err(netlink("lock the bridge port"))?;
        // The host asks nobody who has the address, and believes nobody.
        let known = neighbours.add(self.bridge, IpAddr::V4(address)).link_layer_address(&mac).replace();
        known.execute().await.map_err(netlink("say who has an address"))
    }

    /// Moves a slot's interface into the namespace that a container came with,
    /// and sets it up there: not every engine lets a container join a namespace.
    ///
    /// # Errors
    /// [`NetError::Step`]; the interface ends with the namespace it is in.
    pub async fn move_into(
        &self,
        slot: BorrowedFd<'_>,
        container: OwnedFd,
        address: Ipv4Addr,
    ) -> Result<(), NetError> {
        let slot = slot.try_clone_to_owned().map_err(step("hold a network namespace"))?;
        let prefix = self.subnet.prefix;
        in_thread(move || {
            enter(&container)?;
            without_ipv6()?;
            in_namespace(slot, async |handle| {
                let eth0 = inside(&handle, "eth0").await?;
                let target = container.as_raw_fd();
                let moved = LinkMessageBuilder::<LinkUnspec>::new().index(eth0).setns_by_fd(target).build();
                handle.link().set(moved).execute().await.map_err(netlink("move an interface"))
            })?;
            configure_namespace(container, address, prefix)
        })
        .await
    }

    fn take(&self) -> Result<Lease, NetError> {
        let mut taken = lock(&self.taken);
        let last = (1_u32 << (32 - u32::from(self.subnet.prefix))) - 2;
        // 0 is the network, 1 the bridge.
        let span = last.saturating_sub(1);
        let round = span.min(ROUND);
        let next = taken.next;
        let numbers = (0..round).map(|offset| (next + offset) % round).chain(round..span);
        for n in numbers.map(|n| n + 2) {
            if let Some(address) = self.subnet.address(n)
                && taken.addresses.insert(address)
            {
                taken.next = n - 1;
                return Ok(Lease { address, taken: Arc::clone(&self.taken), kept: false });
            }
        }
        Err(NetError::NoAddress { subnet: self.subnet })
    }

    /// Lets what shops send pass through this host, and gives it the host's
    /// address, or neither; what is let through is the firewall's matter.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn forward(&self, on: bool) -> io::Result<()> {
        let path = format!("/proc/sys/net/ipv4/conf/{}/forwarding", self.bridge_name);
        let wanted = if on { "1" } else { "0" };
        if std::fs::read_to_string(&path)?.trim() != wanted {
            // It ends with the bridge.
            std::fs::write(&path, wanted)?;
        }
        if on { self.firewall.disguise().await } else { Ok(()) }
    }

    /// Leads what the shop of that process sends outside to this host.
    ///
    /// # Errors
    /// [`NetError::Step`], also when the process is gone.
    pub async fn add_way_out(&self, pid: i32, ticks: u64) -> Result<(), NetError> {
        let gateway = self.subnet.address(1).ok_or(NetError::NoAddress { subnet: self.subnet })?;
        netns::add_way_out(pid, ticks, gateway).await
    }

    /// The shops' network.
    #[must_use]
    pub const fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// Marks an address that a former daemon handed out; false when it is
    /// taken already, not of this network, or cannot be let through.
    pub async fn occupy(&self, address: Ipv4Addr) -> bool {
        self.subnet.index(address).is_some_and(|n| n > 1)
            && lock(&self.taken).addresses.insert(address)
            && self.firewall.admit(address).await.is_ok()
    }

    /// The rules that shops are under.
    #[must_use]
    pub const fn firewall(&self) -> &Firewall {
        &self.firewall
    }

    /// The number of an address in this network: nobody else's while it is taken.
    #[must_use]
    pub fn number(&self, address: Ipv4Addr) -> u32 {
        self.subnet.index(address).unwrap_or_default()
    }

    /// Gives an address back, and takes what its owner was allowed.
    pub async fn release(&self, address: Ipv4Addr) {
        if let Err(error) = self.firewall.allow(address, BTreeSet::new()).await {
            // Its next owner is not let in before it is taken.
            tracing::warn!(error = %error, address = %address, "a way out was not closed");
        }
        lock(&self.taken).addresses.remove(&address);
    }

    /// Deletes an instance's interface; absent is fine.
    ///
    /// # Errors
    /// When the kernel refuses for another reason.
    pub async fn remove_interface(&self, id: &InstanceId) -> io::Result<()> {
        let index = match index_of(&self.handle, &id.interface()).await {
            Ok(Some(index)) => index,
            Ok(None) => return Ok(()),
            Err(NetError::Step { source, .. }) => return Err(source),
            Err(NetError::NoAddress { .. }) => return Ok(()),
        };
        match self.handle.link().del(index).execute().await.map_err(to_io) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Deletes the bridge and its firewall, when no instance is left; absent is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove_bridge(&self) -> io::Result<()> {
        match self.handle.link().del(self.bridge).execute().await.map_err(to_io) {
            Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(error),
            _ => self.firewall.remove().await,
        }
    }

    /// The bridge's name.
    #[must_use]
    pub fn bridge_name(&self) -> &str {
        &self.bridge_name
    }

    /// Whose the bridge is, if it says so: a STATE_DIR.
    ///
    /// # Errors
    /// When the bridge cannot be looked at.
    pub async fn owner(&self) -> io::Result<Option<PathBuf>> {
        let mut links = self.handle.link().get().match_index(self.bridge).execute();
        let link = links.try_next().await.map_err(to_io)?;
        let attributes = link.map(|link| link.attributes).unwrap_or_default();
        Ok(attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::IfAlias(alias) => alias.strip_prefix(OWNED_BY).map(PathBuf::from),
            _ => None,
        }))
    }

    /// Says whose the bridge is.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_owner(&self, state_dir: &Path) -> io::Result<()> {
        let alias = format!("{OWNED_BY}{}", state_dir.display());
        if alias.len() > ALIAS_MAX {
            return Ok(());
        }
        let attribute = LinkAttribute::IfAlias(alias);
        let named = LinkUnspec::new_with_index(self.bridge).append_extra_attribute(attribute).build();
        self.handle.link().set(named).execute().await.map_err(to_io)
    }

    /// All instances' ports of this bridge, each with the number of the network namespace
    /// that its other end is in, as this one counts them ([`netns::number`]).
    ///
    /// # Errors
    /// When the interfaces cannot be listed.
    pub async fn ports(&self) -> io::Result<Vec<(InstanceId, Option<i32>)>> {
        let _alone = self.listing.lock().await;
        let mut links = self.handle.link().get().execute();
        let mut ports = Vec::new();
        while let Some(link) = links.try_next().await.map_err(to_io)? {
            let is_ours = link.attributes.contains(&LinkAttribute::Controller(self.bridge));
            let (mut id, mut other_end) = (None, None);
            for attribute in link.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => {
                        id = name.strip_prefix("dm-").and_then(|id| id.parse().ok())
                    }
                    LinkAttribute::LinkNetNsId(number) => other_end = Some(number),
                    _ => {}
                }
            }
            ports.extend(id.filter(|_| is_ours).map(|id| (id, other_end)));
        }
        Ok(ports)
    }

    pub(super) const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Addresses that are in the firewall's sets and that no instance has.
    ///
    /// # Errors
    /// When the sets cannot be listed.
    pub async fn unused_but_allowed(&self) -> io::Result<Vec<Ipv4Addr>> {
        let allowed = self.firewall.allowed().await?;
        let taken = lock(&self.taken);
        Ok(allowed.into_iter().filter(|address| !taken.addresses.contains(address)).collect())
    }

    /// Takes from an address that no instance has what the firewall allows it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn shut(&self, address: Ipv4Addr) -> io::Result<()> {
        let is_taken = lock(&self.taken).addresses.contains(&address);
        if is_taken { Ok(()) } else { self.firewall.shut(address).await }
    }
}

/// Tries what an instance's network is made of, in a namespace of its own that
/// vanishes afterwards: a bridge, a veth pair with an isolated end on it, and
/// the firewall.
///
/// # Errors
/// [`NetError::Step`] names what this kernel does not do.
pub async fn trial() -> Result<(), NetError> {
    in_thread(|| in_namespace(make_namespace()?, try_interfaces)).await
}

async fn try_interfaces(handle: Handle) -> Result<(), NetError> {
    let missing = || step("find an interface just made")(io::ErrorKind::NotFound.into());
    let bridge = LinkBridge::new("bridge").forward_delay(0).up().build();
    handle.link().add(bridge).execute().await.map_err(netlink("make a bridge"))?;
    let bridge = index_of(&handle, "bridge").await?.ok_or_else(missing)?;
    let pair = LinkVeth::new("veth", "peer").controller(bridge).up().build();
    handle.link().add(pair).execute().await.map_err(netlink("make a veth pair"))?;
    let veth = index_of(&handle, "veth").await?.ok_or_else(missing)?;
    let rules = LinkBridgePort::new(veth).isolated(true).learning(false).locked(true).build();
    handle.link().set_port(rules).execute().await.map_err(netlink("isolate and lock a bridge port"))?;
    let subnet = Subnet { network: Ipv4Addr::new(10, 77, 0, 0), prefix: 16 };
    firewall::trial("bridge", subnet).await.map_err(step("set a firewall up"))
}

pub(super) async fn index_of(handle: &Handle, name: &str) -> Result<Option<u32>, NetError> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(error) => match to_io(error) {
            error if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            error => Err(step("look an interface up")(error)),
        },
    }
}
