//! What is found of instances on a host, and whose it is: the one comparison
//! that the daemon's sweep for orphans and `doctor --audit` share.
//!
//! Drivers and the host's modules find [`Trace`]s; who holds the records says
//! which owners are known; [`unowned`] is the rest. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use serde::Serialize;

use crate::id::{GoldenName, InstanceId};

/// What kind of thing was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A process that runs in an instance's root, cgroup or network.
    Process,
    /// A mount on the host, below an instance's directory.
    Mount,
    /// A network namespace that hangs on the bridge.
    Netns,
    /// The host's end of a veth pair.
    Veth,
    /// A cgroup.
    Cgroup,
    /// A directory.
    Directory,
    /// A container of Podman's or Docker's.
    Container,
    /// An address in the firewall's sets.
    Nft,
    /// A database on the shared server.
    Database,
    /// An image that a visitor's shop became, of which there is no snapshot.
    Image,
    /// A route.
    Route,
    /// A job in the queue.
    Job,
    /// A record whose instance does not run.
    Record,
}

impl Kind {
    /// All of them, in the order they are shown.
    pub const ALL: [Self; 13] = [
        Self::Process,
        Self::Mount,
        Self::Netns,
        Self::Veth,
        Self::Cgroup,
        Self::Directory,
        Self::Container,
        Self::Nft,
        Self::Database,
        Self::Image,
        Self::Route,
        Self::Job,
        Self::Record,
    ];

    /// The word used in reports and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Mount => "mount",
            Self::Netns => "netns",
            Self::Veth => "veth",
            Self::Cgroup => "cgroup",
            Self::Directory => "directory",
            Self::Container => "container",
            Self::Nft => "nft",
            Self::Database => "database",
            Self::Image => "image",
            Self::Route => "route",
            Self::Job => "job",
            Self::Record => "record",
        }
    }
}

/// How thoroughly a host is searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// By the names of directories, cgroups, interfaces, containers, databases.
    Names,
    /// Every process, mount and rule, too.
    All,
}

/// Whose a trace is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// An instance's, by its name.
    Instance(InstanceId),
    /// Whoever has that address.
    Address(Ipv4Addr),
    /// A golden's that was published.
    Golden(GoldenName),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance(id) => id.fmt(f),
            Self::Address(address) => address.fmt(f),
            Self::Golden(golden) => golden.fmt(f),
        }
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trace {
    /// Whose it is.
    pub owner: Owner,
    /// What kind of thing.
    pub kind: Kind,
    /// Which one, for people: a path, a name, a pid with its command.
    pub what: String,
}

impl Trace {
    /// Something of an instance's.
    #[must_use]
    pub fn of(id: InstanceId, kind: Kind, what: impl Into<String>) -> Self {
        Self { owner: Owner::Instance(id), kind, what: what.into() }
    }

    /// The instance, if it is one's.
    #[must_use]
    pub const fn instance(&self) -> Option<&InstanceId> {
        match &self.owner {
            Owner::Instance(id) => Some(id),
            Owner::Address(_) | Owner::Golden(_) => None,
        }
    }
}

/// Traces by owner, each once.
pub type ByOwner = BTreeMap<Owner, BTreeSet<Trace>>;

/// Sorts traces by their owners.
#[must_use]
pub fn by_owner(traces: impl IntoIterator<Item = Trace>) -> ByOwner {
    let mut sorted = ByOwner::new();
    for trace in traces {
        sorted.entry(trace.owner.clone()).or_default().insert(trace);
    }
    sorted
}

/// What is nobody's: all whose owner is not known.
#[must_use]
pub fn unowned(mut found: ByOwner, known: &BTreeSet<Owner>) -> ByOwner {
    found.retain(|owner, _| !known.contains(owner));
    found
}

/// What was nobody's in two looks, one after the other: what was found only once
/// may have been about to be written down, or to go.
#[must_use]
pub fn lasting(before: &ByOwner, mut now: ByOwner) -> ByOwner {
    now.retain(|owner, traces| {
        let old = before.get(owner);
        traces.retain(|trace| old.is_some_and(|old| old.contains(trace)));
        !traces.is_empty()
    });
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_an_owner_is_left_alone_and_the_rest_is_told_once() {
        let (live, gone) = (InstanceId::random(), InstanceId::random());
        let address = Owner::Address(Ipv4Addr::new(10, 0, 0, 9));
        let traces = [
            Trace::of(live.clone(), Kind::Cgroup, "a"),
            Trace::of(gone.clone(), Kind::Cgroup, "b"),
            Trace::of(gone.clone(), Kind::Veth, "c"),
            // Found by two drivers.
            Trace::of(gone.clone(), Kind::Veth, "c"),
            Trace { owner: address.clone(), kind: Kind::Nft, what: "d".into() },
        ];
        let known = BTreeSet::from([Owner::Instance(live)]);
        let found = unowned(by_owner(traces), &known);
        assert_eq!(
            found.keys().collect::<BTreeSet<_>>(),
            BTreeSet::from([&Owner::Instance(gone.clone()), &address])
        );
        assert_eq!(found[&Owner::Instance(gone)].len(), 2);
    }

    #[test]
    fn what_was_seen_once_only_is_not_lasting() {
        let id = InstanceId::random();
        let (cgroup, veth) =
            (Trace::of(id.clone(), Kind::Cgroup, "a"), Trace::of(id.clone(), Kind::Veth, "b"));
        let before = by_owner([cgroup.clone()]);
        let now = by_owner([cgroup.clone(), veth.clone(), Trace::of(InstanceId::random(), Kind::Veth, "c")]);
        assert_eq!(lasting(&before, now), by_owner([cgroup]));
        assert_eq!(lasting(&ByOwner::new(), by_owner([veth])), ByOwner::new());
    }
}
