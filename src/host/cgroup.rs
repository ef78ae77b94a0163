//! An instance's cgroup: limits where the controllers exist, and the one sure
//! way to end all its processes.
//!
//! Layout: `<cgroup2 mount>/<CGROUP_PARENT>/<instance id>`. A controller that
//! the host does not have is left out, `doctor` says which, and
//! [`Parent::excess`] has to be asked regularly instead.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{disk, process};
use crate::config::units;
use crate::golden::recipe::Run;
use crate::id::InstanceId;

/// Where cgroup v2 is mounted on every host this runs on.
pub(super) const MOUNT: &str = "/sys/fs/cgroup";

/// The period cpu.max is counted over, the kernel's default (cgroup-v2.rst).
const CPU_PERIOD_MICROS: u64 = 100_000;

/// How long killed processes may take to leave: they only have to be reaped.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// What an instance may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory_max: u64,
    /// Processes and threads.
    pub pids_max: u32,
    /// Cores.
    pub cpu_max: f64,
    /// The disk.
    pub io: IoLimits,
}

/// Bytes a second of the disk that holds STATE_DIR; none: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoLimits {
    /// That may be read.
    pub read: Option<u64>,
    /// That may be written.
    pub write: Option<u64>,
}

impl IoLimits {
    /// A recipe's, which was checked when it was read.
    #[must_use]
    pub fn of(run: &Run) -> Self {
        let bytes = |text: &Option<String>| units::bytes(text.as_deref()?).ok();
        Self { read: bytes(&run.io_read_max), write: bytes(&run.io_write_max) }
    }
}

/// The cgroup below which all instances live.
#[derive(Debug, Clone)]
pub struct Parent {
    path: PathBuf,
    controllers: Vec<String>,
    /// The disk that `io` limits are about, as `major:minor`.
    disk: Option<String>,
    /// Limits that no controller holds.
    watched: Arc<Mutex<HashMap<InstanceId, Limits>>>,
}

impl Parent {
    /// Makes the parent and hands it the controllers that the host offers.
    ///
    /// # Errors
    /// When cgroup v2 is not there or not writable.
    pub fn open(name: &str) -> io::Result<Self> {
        let mut path = PathBuf::from(MOUNT);
        let mut controllers = Vec::new();
        for part in Path::new(name).components() {
            controllers = delegate(&path)?;
            path.push(part);
            make_dir(&path)?;
        }
        if !controllers.is_empty() {
            controllers = delegate(&path)?;
        }
        Ok(Self { path, controllers, disk: None, watched: Arc::default() })
    }

    /// Has instances' io limits be about the disk below a directory.
    #[must_use]
    pub fn on_disk_of(mut self, dir: &Path) -> Self {
        self.disk = disk::below(dir);
        self
    }

    /// Controllers whose limits are in force for instances.
    #[must_use]
    pub fn controllers(&self) -> &[String] {
        &self.controllers
    }

    /// Its own directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name, as CGROUP_PARENT has it.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.strip_prefix(MOUNT).unwrap_or(&self.path).display().to_string()
    }

    /// An instance's directory.
    #[must_use]
    pub fn of(&self, id: &InstanceId) -> PathBuf {
        self.path.join(id.as_str())
    }

    /// Makes an instance's cgroup.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn create(&self, id: &InstanceId) -> io::Result<PathBuf> {
        let path = self.of(id);
        make_dir(&path)?;
        Ok(path)
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|have| have == controller)
    }

    /// What an instance has more of than it may, where no controller refuses it.
    ///
    /// # Errors
    /// When its processes cannot be counted.
    pub fn excess(&self, id: &InstanceId) -> io::Result<Option<&'static str>> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied();
        let Some(limits) = watched else { return Ok(None) };
        let processes = self.processes(id)?;
        if !self.has("pids") && processes.len() > limits.pids_max as usize {
            return Ok(Some("processes"));
        }
        let used = || processes.iter().map(|pid| process::memory(*pid)).sum::<u64>();
        if !self.has("memory") && used() > limits.memory_max {
            return Ok(Some("memory"));
        }
        Ok(None)
    }

    /// Sets the limits that the host can hold; the others are for
    /// [`Parent::excess`]. Again is fine.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn limit(&self, id: &InstanceId, limits: Limits) -> io::Result<()> {
        let path = self.of(id);
        if !self.has("pids") || !self.has("memory") {
            self.watched.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), limits);
        }
        let set = |controller: &str, file: &str, value: String| {
            if self.has(controller) { std::fs::write(path.join(file), value) } else { Ok(()) }
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few cores")]
        let quota = (limits.cpu_max * CPU_PERIOD_MICROS as f64) as u64;
        set("memory", "memory.max", limits.memory_max.to_string())?;
        // Absent where the kernel has no swap.
        set("memory", "memory.swap.max", "0".into()).or_else(ignore_missing)?;
        set("pids", "pids.max", limits.pids_max.to_string())?;
        set("cpu", "cpu.max", format!("{quota} {CPU_PERIOD_MICROS}"))?;
        match self.io_max(limits.io) {
            // Absent where the kernel was built without it (CONFIG_BLK_DEV_THROTTLING).
            Some(line) => set("io", "io.max", line).or_else(ignore_missing),
            None => Ok(()),
        }
    }

    /// The disk that io limits are about, as `major:minor`; none when there is
    /// no such limit.
    #[must_use]
    pub fn disk(&self) -> Option<&str> {
        self.disk.as_deref().filter(|_| self.has("io"))
    }

    /// An instance's io.max; none where nothing is to be limited, or cannot be.
    #[must_use]
    pub fn io_max(&self, limits: IoLimits) -> Option<String> {
        let disk = self.disk()?;
        let part = |name: &str, limit: Option<u64>| limit.map(|bytes| format!(" {name}={bytes}"));
        let parts = [part("rbps", limits.read), part("wbps", limits.write)];
        let parts: String = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then(|| format!("{disk}{parts}"))
    }

    /// Kills everything in the instance's cgroup; absent is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&self, id: &InstanceId) -> io::Result<()> {
        std::fs::write(self.of(id).join("cgroup.kill"), "1").or_else(ignore_missing)
    }

    /// Kills everything in the instance's cgroup, waits until it is empty and
    /// removes it; absent is fine.
    ///
    /// # Errors
    /// `TimedOut` when processes do not leave.
    pub async fn destroy(&self, id: &InstanceId) -> io::Result<()> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        let path = self.of(id);
        match std::fs::write(path.join("cgroup.kill"), "1") {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return remove_tree(&path);
            }
            Err(error) => return Err(error),
        }
        let deadline = tokio::time::Instant::now() + KILL_DEADLINE;
        let mut pause = Duration::from_micros(500);
        loop {
            match remove_tree(&path) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                other => return other,
            }
            if tokio::time::Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "processes outlive cgroup.kill"));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Pids of an instance's processes; none when it has no cgroup.
    ///
    /// # Errors
    /// When the cgroup cannot be read.
    pub fn processes(&self, id: &InstanceId) -> io::Result<Vec<i32>> {
        match std::fs::read_to_string(self.of(id).join("cgroup.procs")) {
            Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
            Err(error) => ignore_missing(error).map(|()| Vec::new()),
        }
    }

    /// Removes the parent itself, when no instance is left and no daemon comes
    /// back; absent is fine.
    ///
    /// # Errors
    /// When something is still below it.
    pub fn remove(&self) -> io::Result<()> {
        for path in self.path.ancestors().take_while(|path| *path != Path::new(MOUNT)) {
            std::fs::remove_dir(path).or_else(ignore_missing)?;
        }
        Ok(())
    }

    /// Ids of all instances that have a cgroup.
    ///
    /// # Errors
    /// When the parent cannot be read.
    pub fn instances(&self) -> io::Result<Vec<InstanceId>> {
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            if let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

fn make_dir(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Hands the controllers we use to the children of `path`; answers those it has.
fn delegate(path: &Path) -> io::Result<Vec<String>> {
    let offered = std::fs::read_to_string(path.join("cgroup.controllers"))?;
    let mut handed = Vec::new();
    for controller in offered.split_ascii_whitespace() {
        if !matches!(controller, "memory" | "pids" | "cpu" | "io") {
            continue;
        }
        // One by one: a controller that is busy elsewhere must not cost the others.
        if std::fs::write(path.join("cgroup.subtree_control"), format!("+{controller}")).is_ok() {
            handed.push(controller.to_owned());
        }
    }
    Ok(handed)
}

/// Removes a cgroup with its children, which the instance may have made.
fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::read_dir(path) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    remove_tree(&entry.path())?;
                }
            }
        }
        Err(error) => return ignore_missing(error),
    }
    std::fs::remove_dir(path).or_else(ignore_missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_limits_are_about_a_disk_and_need_their_controller() {
        let parent = |controllers: &[&str], disk: Option<&str>| Parent {
            path: PathBuf::new(),
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
            disk: disk.map(str::to_owned),
            watched: Arc::default(),
        };
        let limits = IoLimits { read: None, write: Some(1 << 20) };
        let both = IoLimits { read: Some(5), ..limits };
        let whole = parent(&["cpu", "io"], Some("254:0"));
        assert_eq!(whole.io_max(limits).as_deref(), Some("254:0 wbps=1048576"));
        assert_eq!(whole.io_max(both).as_deref(), Some("254:0 rbps=5 wbps=1048576"));
        assert_eq!(whole.io_max(IoLimits::default()), None);
        assert_eq!(parent(&["cpu"], Some("254:0")).io_max(both), None);
        assert_eq!(parent(&["io"], None).io_max(both), None);
    }
}
