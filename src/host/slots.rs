//! Slots: what can be made of an instance before it is known which one it is.
//!
//! A slot is an instance id with its directories, its cgroup, its network
//! namespace and address. [`Slots`] owns those that wait; an instance that is
//! launched takes its slot over. Making one costs 20 to 30 ms, most of it in
//! the kernel's network namespace code, which is why they are made ahead.
//!
//! A daemon that dies leaves directories and cgroups of waiting slots behind;
//! [`Slots::traces`] finds them and the next start removes them.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::net::{Lease, NetError, Network};
use super::process;
use super::quota::{self, Quota};
use super::{cgroup, devices, strays, tree};
use crate::error::ErrorKind;
use crate::failpoint;
use crate::id::InstanceId;
use crate::instance::Container;
use crate::instance::trace::{Depth, Kind, Owner, Trace};

/// A slot could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// Address or namespace.
    #[error("no network for a slot")]
    Net(#[source] NetError),
    /// Directories or cgroup.
    #[error("cannot {step}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl SlotError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Net(error) => error.kind(),
            Self::Io { source, .. } => crate::error::kind_of_io(source),
        }
    }
}

/// Directories of an instance, below `STATE_DIR/instances/<id>`.
#[derive(Debug, Clone)]
pub struct Dirs {
    /// All of it.
    pub top: PathBuf,
    /// Overlay: what the clone changes.
    pub upper: PathBuf,
    /// Overlay's own.
    pub work: PathBuf,
    /// Where the clone's root is mounted, in CRIU's namespace only.
    pub root: PathBuf,
    /// CRIU's log.
    pub criu: PathBuf,
    /// Stand-ins for external mounts.
    pub external: PathBuf,
}

impl Dirs {
    fn of(instances: &Path, id: &InstanceId) -> Self {
        let top = instances.join(id.as_str());
        let below = |name: &str| top.join(name);
        Self {
            upper: below("upper"),
            work: below("work"),
            root: below("root"),
            criu: below("criu"),
            external: below("external"),
            top,
        }
    }
}

/// What an instance is launched into.
#[derive(Debug)]
pub struct Slot {
    /// The instance's id.
    pub id: InstanceId,
    /// Its directories.
    pub dirs: Dirs,
    /// Its network namespace.
    pub netns: OwnedFd,
    /// Its address.
    pub lease: Lease,
    /// Its cgroup's directory.
    pub cgroup: PathBuf,
}

/// Slots made ahead.
#[derive(Debug, Default)]
struct Ready {
    /// Nobody's yet.
    waiting: HashMap<InstanceId, Slot>,
    /// Named to somebody who is about to take it or to give it back.
    named: HashMap<InstanceId, Slot>,
    /// Being made: parts of it are on the host already.
    making: HashSet<InstanceId>,
    /// Taken by a driver that gets it ready ahead: nobody's trace yet.
    held: HashSet<InstanceId>,
}

impl Ready {
    fn knows(&self, id: &InstanceId) -> bool {
        self.waiting.contains_key(id)
            || self.named.contains_key(id)
            || self.making.contains(id)
            || self.held.contains(id)
    }

    /// Slots made ahead that nobody has taken for good.
    fn count(&self) -> usize {
        self.waiting.len() + self.held.len()
    }

    fn remove(&mut self, id: &InstanceId) -> Option<Slot> {
        self.named.remove(id).or_else(|| self.waiting.remove(id))
    }
}

/// What slots are made of.
#[derive(Debug)]
pub struct Parts {
    /// The addresses.
    pub network: Network,
    /// The cgroups.
    pub cgroups: cgroup::Parent,
    /// How much an instance may write.
    pub quota: Quota,
}

/// All slots of this host.
#[derive(Debug)]
pub struct Slots {
    network: Network,
    cgroups: cgroup::Parent,
    state_dir: PathBuf,
    instances: PathBuf,
    devices: PathBuf,
    quota: Quota,
    ahead: usize,
    ready: Mutex<Ready>,
    /// One refill at a time.
    refill: tokio::sync::Mutex<()>,
    taken: tokio::sync::Notify,
}

impl Slots {
    /// Takes over network and cgroups; instances live below `state_dir`.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(parts: Parts, state_dir: &Path, ahead: usize) -> io::Result<Self> {
        let instances = instances(state_dir);
        make_private(&instances)?;
        let devices = devices::ensure(state_dir)?;
        Ok(Self {
            network: parts.network,
            cgroups: parts.cgroups,
            state_dir: state_dir.to_owned(),
            instances,
            devices,
            quota: parts.quota,
            ahead,
            ready: Mutex::default(),
            refill: tokio::sync::Mutex::default(),
            taken: tokio::sync::Notify::new(),
        })
    }

    /// How much an instance may write.
    #[must_use]
    pub const fn quota(&self) -> &Quota {
        &self.quota
    }

    /// Ends what has more than it may of something that the host itself does not
    /// limit; answers which, and of what. To be called regularly.
    ///
    /// # Errors
    /// When the instances cannot be listed or measured.
    pub fn end_what_is_over(&self) -> io::Result<Vec<(InstanceId, &'static str)>> {
        let mut ended = Vec::new();
        for id in self.cgroups.instances()? {
            let excess = match self.cgroups.excess(&id)? {
                None if self.quota.wants_watching() => {
                    quota::over(&self.dirs(&id).upper, self.quota.max())?.then_some("disk")
                }
                other => other,
            };
            if let Some(what) = excess {
                self.cgroups.kill(&id)?;
                ended.push((id, what));
            }
        }
        Ok(ended)
    }

    /// The directory that is every shop's /dev.
    #[must_use]
    pub fn devices(&self) -> &Path {
        &self.devices
    }

    /// How many slots shall be made ahead.
    #[must_use]
    pub const fn ahead(&self) -> usize {
        self.ahead
    }

    /// The addresses.
    #[must_use]
    pub const fn network(&self) -> &Network {
        &self.network
    }

    /// The cgroups.
    #[must_use]
    pub const fn cgroups(&self) -> &cgroup::Parent {
        &self.cgroups
    }

    /// The daemon's own directory, which holds all that.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Where the instances' directories are: this daemon's alone.
    #[must_use]
    pub fn instances(&self) -> &Path {
        &self.instances
    }

    /// An instance's directories.
    #[must_use]
    pub fn dirs(&self, id: &InstanceId) -> Dirs {
        Dirs::of(&self.instances, id)
    }

    fn ready(&self) -> std::sync::MutexGuard<'_, Ready> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the next instance, nobody else's: one whose slot waits, if there
    /// is any. Its slot is the caller's to [`Slots::take`] or to give back.
    #[must_use]
    pub fn next_id(&self) -> InstanceId {
        let mut ready = self.ready();
        let Some(id) = ready.waiting.keys().next().cloned() else { return InstanceId::random() };
        if let Some(slot) = ready.waiting.remove(&id) {
            ready.named.insert(id.clone(), slot);
        }
        id
    }

    /// Takes back a name that was not used.
    pub fn unused(&self, id: &InstanceId) {
        let mut ready = self.ready();
        if let Some(slot) = ready.named.remove(id) {
            ready.waiting.insert(id.clone(), slot);
        }
    }

    /// Takes the slot of that id, or makes one now.
    ///
    /// # Errors
    /// [`SlotError`]; nothing is left.
    pub async fn take(&self, id: &InstanceId) -> Result<Slot, SlotError> {
        let made = self.ready().remove(id);
        self.taken.notify_one();
        match made {
            Some(slot) => Ok(slot),
            None => self.make(id).await,
        }
    }

    /// Takes a slot for a driver that gets it ready before it is launched; it is
    /// no trace of an instance until [`Slots::release_hold`].
    ///
    /// # Errors
    /// [`SlotError`]; nothing is left.
    pub async fn take_held(&self) -> Result<Slot, SlotError> {
        let id = self.next_id();
        self.ready().held.insert(id.clone());
        let taken = self.take(&id).await;
        if taken.is_err() {
            self.release_hold(&id);
        }
        taken
    }

    /// Ends the hold of [`Slots::take_held`]: the slot is an instance's now.
    pub fn release_hold(&self, id: &InstanceId) {
        self.ready().held.remove(id);
        self.taken.notify_one();
    }

    /// Makes slots until `ahead` wait; called in the background.
    ///
    /// # Errors
    /// The first that could not be made; the next call tries again.
    pub async fn fill(&self) -> Result<(), SlotError> {
        let _one = self.refill.lock().await;
        while self.ready().count() < self.ahead {
            self.make_ahead(|ready, slot| ready.waiting.insert(slot.id.clone(), slot)).await?;
        }
        Ok(())
    }

    /// Makes a slot that no trace is to be seen of until it is `put` away.
    async fn make_ahead(
        &self,
        put: impl FnOnce(&mut Ready, Slot) -> Option<Slot>,
    ) -> Result<InstanceId, SlotError> {
        let id = InstanceId::random();
        self.ready().making.insert(id.clone());
        let made = self.make(&id).await;
        let mut ready = self.ready();
        ready.making.remove(&id);
        put(&mut ready, made?);
        Ok(id)
    }

    /// Returns when a slot was taken since the last call.
    pub async fn taken(&self) {
        self.taken.notified().await;
    }

    /// Makes `n` slots at once and names them, for a burst that is foreseen.
    ///
    /// # Errors
    /// The first that could not be made.
    pub async fn reserve(&self, n: usize) -> Result<Vec<InstanceId>, SlotError> {
        let mut ids = Vec::with_capacity(n);
        for _ in 0..n {
            ids.push(self.make_ahead(|ready, slot| ready.named.insert(slot.id.clone(), slot)).await?);
        }
        Ok(ids)
    }

    async fn make(&self, id: &InstanceId) -> Result<Slot, SlotError> {
        let io = |step| move |source| SlotError::Io { step, source };
        let attached = self.network.attach(id).await.map_err(SlotError::Net)?;
        let dirs = self.dirs(id);
        let number = self.network.number(attached.lease.address());
        let made = async {
            failpoint::hit("slot:after-network").map_err(io("pass a fail point"))?;
            self.quota.make(&dirs.top, number).await.map_err(io("make the instance's directory"))?;
            for dir in [&dirs.upper, &dirs.work, &dirs.root, &dirs.criu, &dirs.external] {
                make_private(dir).map_err(io("make the instance's directories"))?;
            }
            failpoint::hit("slot:after-directory").map_err(io("pass a fail point"))?;
            let cgroup = self.cgroups.create(id).map_err(io("make the instance's cgroup"))?;
            failpoint::hit("slot:after-cgroup").map_err(io("pass a fail point"))?;
            Ok(cgroup)
        };
        let made = made.await;
        match made {
            Ok(cgroup) => {
                Ok(Slot { id: id.clone(), dirs, netns: attached.netns, lease: attached.lease, cgroup })
            }
            Err(error) => {
                drop(attached);
                for cleanup in self.remove(id).await {
                    tracing::warn!(instance_id = %id, step = cleanup.0, error = %cleanup.1, "cleanup failed");
                }
                Err(error)
            }
        }
    }

    /// Removes all that a slot is made of, whatever of it is there; goes
    /// through all steps and answers those that failed. The address is given
    /// back by its [`Lease`], or by [`Network::release`].
    pub async fn remove(&self, id: &InstanceId) -> Vec<(&'static str, io::Error)> {
        drop(self.ready().remove(id));
        let mut failed = Vec::new();
        let mut step = |step: &'static str, done: io::Result<()>| {
            if let Err(error) = done {
                failed.push((step, error));
            }
        };
        step("begin to remove it", failpoint::hit("destroy:before"));
        step("kill and remove the cgroup", self.cgroups.destroy(id).await);
        step("remove the network interface", failpoint::hit("destroy:after-cgroup"));
        step("remove the network interface", self.network.remove_interface(id).await);
        step("remove the instance's directory", failpoint::hit("destroy:after-network"));
        let top = self.dirs(id).top;
        let removed = tokio::task::spawn_blocking(move || tree::remove(&top));
        step(
            "remove the instance's directory",
            removed.await.unwrap_or_else(|error| Err(io::Error::other(error))),
        );
        step("end the removal", failpoint::hit("destroy:after-directory"));
        failed
    }

    /// Takes over what a former daemon made: its address counts as used until
    /// it is released. False when its process is gone.
    pub async fn adopt(&self, container: &Container) -> bool {
        self.network.occupy(container.address).await;
        matches!(process::open(container.pid, container.start_ticks), Ok(Some(_)))
    }

    /// Removes all waiting slots; for the end of the daemon.
    pub async fn drain(&self) -> Vec<(&'static str, io::Error)> {
        let ids: Vec<InstanceId> = self.ready().waiting.keys().cloned().collect();
        let mut failed = Vec::new();
        for id in ids {
            failed.extend(self.remove(&id).await);
        }
        failed
    }

    /// What instances left on this host, waiting slots aside.
    ///
    /// # Errors
    /// When the host cannot be searched.
    pub async fn traces(&self, depth: Depth) -> io::Result<Vec<Trace>> {
        let mut traces = Vec::new();
        for id in self.cgroups.instances()? {
            let path = self.cgroups.of(&id);
            traces.push(Trace::of(id, Kind::Cgroup, path.display().to_string()));
        }
        for (id, _) in self.network.ports().await? {
            let name = id.interface();
            traces.push(Trace::of(id, Kind::Veth, name));
        }
        for entry in std::fs::read_dir(&self.instances)? {
            let entry = entry?;
            if let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                traces.push(Trace::of(id, Kind::Directory, entry.path().display().to_string()));
            }
        }
        if depth == Depth::All {
            traces.extend(self.strays().await?.into_iter().map(strays::Stray::into_trace));
            for address in self.network.unused_but_allowed().await? {
                let what = format!("{address} in table {}", self.network.firewall().table());
                traces.push(Trace { owner: Owner::Address(address), kind: Kind::Nft, what });
            }
        }
        let ready = self.ready();
        traces.retain(|trace| !trace.instance().is_some_and(|id| ready.knows(id)));
        Ok(traces)
    }

    async fn strays(&self) -> io::Result<Vec<strays::Stray>> {
        let mut members = Vec::new();
        for id in self.cgroups.instances()? {
            let pids = self.cgroups.processes(&id)?;
            members.push((id, pids));
        }
        let ports = self.network.ports().await?.into_iter();
        let ports = ports.filter_map(|(id, other_end)| Some((other_end?, id))).collect();
        let (instances, real) = (self.instances.clone(), std::fs::canonicalize(&self.instances)?);
        strays::find(strays::Search { instances, real, ports, members }, self.network.handle()).await
    }

    /// Ends what of an instance no name leads to: processes outside its cgroup,
    /// mounts on the host. Answers the steps that failed.
    pub async fn end_strays(&self, id: &InstanceId) -> Vec<(&'static str, io::Error)> {
        let found = match self.strays().await {
            Ok(found) => found,
            Err(error) => return vec![("search the host for processes and mounts", error)],
        };
        let mut failed = Vec::new();
        for stray in found.into_iter().filter(|stray| stray.id() == id) {
            if let Err(error) = strays::end(stray).await {
                failed.push(("end a process or a mount", error));
            }
        }
        failed
    }
}

/// Where instances live below STATE_DIR; the first daemon makes it.
#[must_use]
pub fn instances(state_dir: &Path) -> PathBuf {
    state_dir.join("instances")
}

/// Makes a directory that only its owner may enter; there already is fine.
pub fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
