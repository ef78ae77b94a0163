//! The restore driver's way: one clone, many at once, the n-th.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::report::{Concurrent, Nth, Spread};
use super::{BenchError, Timing, until_200};
use crate::checkpoint::golden::HOST;
use crate::engine::{ContainerEngine, Phase};
use crate::golden::recipe::Ready;
use crate::host::slots::Slots;
use crate::id::InstanceId;
use crate::instance::Container;
use crate::restore::{FirstPage, Make, Shop, probe};

/// One page of a clone.
const PAGE_DEADLINE: Duration = Duration::from_secs(30);

/// What is needed to restore raw clones: no identity, no route.
#[derive(Debug, Clone)]
pub struct Direct {
    /// The driver.
    pub engine: Arc<dyn ContainerEngine>,
    /// Its slots, filled before the clock starts.
    pub slots: Arc<Slots>,
    /// What the front page must show.
    pub ready: Ready,
    /// How many restores run at once.
    pub concurrency: usize,
}

/// A clone and how long it took.
type Clone = (InstanceId, Container, Timing);

impl Direct {
    pub(super) async fn fill(&self) -> Result<(), BenchError> {
        self.engine.fill().await.map_err(|source| BenchError::Io { doing: "start CRIU ahead", source })?;
        Ok(self.slots.fill().await?)
    }

    async fn one(&self, id: InstanceId, begun: Instant) -> Result<Clone, BenchError> {
        let launched = self.engine.launch(&id).await?;
        let running = begun.elapsed();
        let container = launched.container;
        let first_200 = self.page(&container, begun).await?;
        Ok((id, container, Timing { running, first_200 }))
    }

    /// Asks for the front page until it is there; answers the time since `begun`.
    pub(super) async fn page(&self, container: &Container, begun: Instant) -> Result<Duration, BenchError> {
        let address = SocketAddr::from((container.address, container.port));
        let page = || probe::get(address, HOST, &self.ready.path, PAGE_DEADLINE);
        until_200(begun, &self.ready.contains, page).await
    }

    async fn end(&self, clones: &[Clone]) -> Result<(), BenchError> {
        for (id, container, _) in clones {
            self.engine.destroy(id, Some(container)).await?;
        }
        Ok(())
    }

    /// Restores one clone and takes it down again.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn once(&self) -> Result<Timing, BenchError> {
        self.fill().await?;
        let clone = self.one(self.engine.next_id(), Instant::now()).await?;
        let timing = clone.2;
        self.end(&[clone]).await?;
        Ok(timing)
    }

    /// Makes one whole shop, as the pool does, and takes it down; answers how long
    /// each phase took.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn make(&self, maker: &dyn Make) -> Result<Vec<(Phase, Duration)>, BenchError> {
        self.fill().await?;
        let id = self.engine.next_id();
        let made = maker.make(Shop::new(&id), FirstPage::Fetched).await?;
        self.engine.destroy(&id, Some(&made.container)).await?;
        Ok(made.phases)
    }

    /// Restores `n` clones at once; all wait from the same moment.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn at_once(&self, n: usize) -> Result<Concurrent, BenchError> {
        let ids = self.slots.reserve(n).await?;
        let gate = Arc::new(Semaphore::new(self.concurrency));
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for id in ids {
            let (gate, direct) = (Arc::clone(&gate), self.clone());
            tasks.spawn(async move {
                let permit = gate.acquire_owned().await;
                let clone = direct.one(id, begun).await;
                drop(permit);
                clone
            });
        }
        let clones: Vec<Clone> = tasks.join_all().await.into_iter().collect::<Result<_, _>>()?;
        let firsts: Vec<Duration> = clones.iter().map(|clone| clone.2.first_200).collect();
        self.end(&clones).await?;
        let all = firsts.iter().max().copied().unwrap_or_default();
        Ok(Concurrent {
            clones: n,
            all_200_ms: (all.as_secs_f64() * 1e4).round() / 10.0,
            first_200_ms: Spread::of(&firsts).unwrap_or(Spread { median: 0.0, p95: 0.0, p99: 0.0 }),
        })
    }

    /// Restores clones one after the other, lets all live, and answers those
    /// whose number is in `numbers`.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn nth(&self, numbers: &[usize]) -> Result<Vec<Nth>, BenchError> {
        let last = numbers.iter().max().copied().unwrap_or(0);
        let mut clones = Vec::with_capacity(last);
        for _ in 0..last {
            self.fill().await?;
            clones.push(self.one(self.engine.next_id(), Instant::now()).await?);
        }
        let found = numbers.iter().filter_map(|&n| Some(Nth::of(n, clones.get(n.checked_sub(1)?)?.2)));
        let found = found.collect();
        self.end(&clones).await?;
        Ok(found)
    }
}
