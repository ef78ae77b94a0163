//! What clones take of the host while they live: memory and disk.
//!
//! Raw clones, all alive at once, looked at three times: as they were restored,
//! after two pages each, and when the workers of those pages are gone, which is
//! how an instance waits in the pool. Disk is what the file system of STATE_DIR
//! lost, divided by the clones, so nothing else may write there.

use std::time::{Duration, Instant};

use super::BenchError;
use super::report::Footprint;
use super::restore::Direct;
use crate::host::memory::{self, Memory};
use crate::id::InstanceId;
use crate::instance::Container;

/// By then CRIU has left the clone's cgroup.
const SETTLED: Duration = Duration::from_secs(1);

/// By then the workers of the last page are gone: the recipes' stay for 30 s.
const WAITING: Duration = Duration::from_secs(35);

impl Direct {
    /// Restores `n` clones and measures them.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn footprints(&self, n: usize) -> Result<Vec<Footprint>, BenchError> {
        self.fill().await?;
        let before = self.disk()?;
        let mut clones = Vec::with_capacity(n);
        for _ in 0..n {
            self.fill().await?;
            let id = self.engine.next_id();
            let container = self.engine.launch(&id).await?.container;
            clones.push((id, container));
        }
        tokio::time::sleep(SETTLED).await;
        let mut found = vec![self.look("restored", &clones, before)?];
        for (_, container) in &clones {
            for _ in 0..2 {
                self.page(container, Instant::now()).await?;
            }
        }
        found.push(self.look("after two pages", &clones, before)?);
        tokio::time::sleep(WAITING).await;
        found.push(self.look("waiting", &clones, before)?);
        for (id, container) in &clones {
            self.engine.destroy(id, Some(container)).await?;
        }
        Ok(found)
    }

    fn disk(&self) -> Result<u64, BenchError> {
        let io = |source: rustix::io::Errno| BenchError::Io {
            doing: "ask how full STATE_DIR is",
            source: source.into(),
        };
        let dir = std::fs::File::open(self.slots.instances())
            .map_err(|source| BenchError::Io { doing: "open STATE_DIR", source })?;
        // What is not written yet has no place yet.
        rustix::fs::syncfs(&dir).map_err(io)?;
        let space = rustix::fs::fstatvfs(&dir).map_err(io)?;
        Ok((space.f_blocks - space.f_bfree) * space.f_frsize)
    }

    fn pids(&self, id: &InstanceId) -> Result<Vec<i32>, BenchError> {
        let pids = self.slots.cgroups().processes(id);
        pids.map_err(|source| BenchError::Io { doing: "list a clone's processes", source })
    }

    fn look(
        &self,
        when: &'static str,
        clones: &[(InstanceId, Container)],
        before: u64,
    ) -> Result<Footprint, BenchError> {
        let mut all = Vec::with_capacity(clones.len());
        for (id, _) in clones {
            let memory = memory::of(&self.pids(id)?);
            all.push(memory.map_err(|source| BenchError::Io { doing: "measure a clone's memory", source })?);
        }
        let mean = |of: fn(&Memory) -> u64| all.iter().map(of).sum::<u64>() as f64 / all.len().max(1) as f64;
        let disk = self.disk()?.saturating_sub(before) as f64 / clones.len().max(1) as f64;
        Ok(Footprint::of(when, clones.len(), mean, disk))
    }
}
