//! A driver around a driver: each of its shops reaches what its golden lists.
//!
//! A way is opened when the shop runs and before it is personalized, and closed
//! before the inner driver takes the shop down.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use async_trait::async_trait;

use super::Egress;
use crate::engine::{
    CleanupError, ContainerEngine, Dependency, DestroyError, Freeze, FreezeError, LaunchError, Launched,
    Phase,
};
use crate::error::{Chain, ErrorKind};
use crate::golden::network::Destination;
use crate::id::InstanceId;
use crate::instance::trace::{Depth, Trace};
use crate::instance::{Container, EngineKind, Source};

/// A driver whose shops have a way out.
#[derive(Debug)]
pub(super) struct WayOutEngine {
    inner: Arc<dyn ContainerEngine>,
    egress: Arc<Egress>,
    allowed: Arc<[Destination]>,
}

impl WayOutEngine {
    pub(super) fn new(
        inner: Arc<dyn ContainerEngine>,
        egress: Arc<Egress>,
        allowed: Arc<[Destination]>,
    ) -> Self {
        Self { inner, egress, allowed }
    }

    /// Opens the way of a shop that runs, or takes it down.
    async fn let_out(&self, id: &InstanceId, launched: Launched) -> Result<Launched, LaunchError> {
        let Err(error) = self.egress.open(&launched.container, &self.allowed).await else {
            return Ok(launched);
        };
        let cleanup = match self.destroy(id, Some(&launched.container)).await {
            Ok(()) => Vec::new(),
            Err(error) => error.cleanup,
        };
        Err(LaunchError {
            id: id.clone(),
            phase: Phase::Slot,
            kind: ErrorKind::Unavailable,
            source: Box::new(error),
            cleanup,
        })
    }
}

#[async_trait]
impl ContainerEngine for WayOutEngine {
    fn kind(&self) -> EngineKind {
        self.inner.kind()
    }

    fn source(&self) -> Source {
        self.inner.source()
    }

    fn dependency(&self) -> Option<Dependency> {
        self.inner.dependency()
    }

    fn next_id(&self) -> InstanceId {
        self.inner.next_id()
    }

    fn unused(&self, id: &InstanceId) {
        self.inner.unused(id);
    }

    async fn fill(&self) -> io::Result<()> {
        self.inner.fill().await
    }

    async fn drain(&self) -> Vec<CleanupError> {
        self.inner.drain().await
    }

    async fn health(&self) -> Option<io::Result<()>> {
        self.inner.health().await
    }

    async fn launch(&self, id: &InstanceId) -> Result<Launched, LaunchError> {
        let launched = self.inner.launch(id).await?;
        self.let_out(id, launched).await
    }

    async fn freeze(&self, freeze: Freeze<'_>) -> Result<(), FreezeError> {
        self.inner.freeze(freeze).await
    }

    fn next_bare_id(&self) -> InstanceId {
        self.inner.next_bare_id()
    }

    async fn thaw(&self, slot: &InstanceId, from: &InstanceId) -> Result<Launched, LaunchError> {
        let launched = self.inner.thaw(slot, from).await?;
        self.let_out(slot, launched).await
    }

    async fn forget(&self, id: &InstanceId) -> io::Result<()> {
        self.inner.forget(id).await
    }

    async fn frozen(&self) -> io::Result<Vec<InstanceId>> {
        self.inner.frozen().await
    }

    async fn fell_asleep(&self, id: &InstanceId, container: &Container) -> bool {
        self.inner.fell_asleep(id, container).await
    }

    async fn destroy(&self, id: &InstanceId, container: Option<&Container>) -> Result<(), DestroyError> {
        if let Some(container) = container {
            self.egress.close(container.address).await;
        }
        self.inner.destroy(id, container).await
    }

    async fn adopt(&self, id: &InstanceId, container: &Container) -> bool {
        let lives = self.inner.adopt(id, container).await;
        if lives && let Err(error) = self.egress.open(container, &self.allowed).await {
            // It is somebody's shop, who has come to like it.
            tracing::warn!(instance_id = %id, error = %Chain(&error), "a shop's way out is not what it shall be");
        }
        lives
    }

    async fn ended(&self, container: &Container) {
        self.inner.ended(container).await;
    }

    async fn traces(&self, depth: Depth) -> io::Result<Vec<Trace>> {
        self.inner.traces(depth).await
    }

    async fn shut(&self, address: Ipv4Addr) -> io::Result<()> {
        self.inner.shut(address).await
    }
}
