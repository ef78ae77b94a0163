//! A store that counts and times what it is asked; any store may be inside.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use jiff::Timestamp;

use super::{Admission, Claim, Claimed, Store, StoreError, Ticket, Window};
use crate::failpoint;
use crate::id::{GoldenName, InstanceId, NodeName};
use crate::instance::{Instance, State};
use crate::metrics;
use crate::node::{Heard, Report};

/// The store and its meter.
#[derive(Debug)]
pub struct MeteredStore(Arc<dyn Store>);

impl MeteredStore {
    /// Puts a meter around a store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self(store)
    }
}

/// Waits for one call and counts it.
async fn metered<T>(
    op: &'static str,
    call: impl Future<Output = Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    let begun = Instant::now();
    let answer = call.await;
    metrics::port_asked("store", op, answer.as_ref().err().map(StoreError::kind), begun.elapsed());
    answer
}

/// As [`metered`], for what changes something, between two fail points: the first
/// stands for a store that did not get the word, the second for an answer that
/// was lost.
async fn changing<T>(
    op: &'static str,
    (before, after): (&'static str, &'static str),
    call: impl Future<Output = Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    let stopped = |source| StoreError::Unavailable { doing: "pass a fail point", source: Box::new(source) };
    failpoint::hit(before).map_err(stopped)?;
    let answer = metered(op, call).await?;
    failpoint::hit(after).map_err(stopped)?;
    Ok(answer)
}

#[async_trait]
impl Store for MeteredStore {
    fn node(&self) -> &NodeName {
        self.0.node()
    }

    async fn insert(&self, instance: Instance) -> Result<Instance, StoreError> {
        changing("insert", ("store:before-insert", "store:after-insert"), self.0.insert(instance)).await
    }

    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, StoreError> {
        metered("get", self.0.get(id)).await
    }

    async fn update(&self, instance: Instance) -> Result<Instance, StoreError> {
        changing("update", ("store:before-update", "store:after-update"), self.0.update(instance)).await
    }

    async fn claim(&self, claim: Claim) -> Result<Claimed, StoreError> {
        changing("claim", ("store:before-claim", "store:after-claim"), self.0.claim(claim)).await
    }

    async fn held(&self, key: &str, now: Timestamp) -> Result<Option<Instance>, StoreError> {
        metered("held", self.0.held(key, now)).await
    }

    async fn remove(&self, id: &InstanceId) -> Result<(), StoreError> {
        changing("remove", ("store:before-remove", "store:after-remove"), self.0.remove(id)).await
    }

    async fn write_again(&self, instance: Instance) -> Result<(), StoreError> {
        metered("write_again", self.0.write_again(instance)).await
    }

    async fn own(&self) -> Result<Vec<Arc<Instance>>, StoreError> {
        metered("own", self.0.own()).await
    }

    async fn list(&self) -> Result<Vec<Arc<Instance>>, StoreError> {
        metered("list", self.0.list()).await
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Instance>, StoreError> {
        metered("due", self.0.due(now, limit)).await
    }

    async fn counts(&self, golden: &GoldenName) -> Result<BTreeMap<State, usize>, StoreError> {
        metered("counts", self.0.counts(golden)).await
    }

    async fn admit(&self, client: &str, windows: &[Window], now: Timestamp) -> Result<Admission, StoreError> {
        metered("admit", self.0.admit(client, windows, now)).await
    }

    async fn forgive(&self, client: &str, ticket: &Ticket) -> Result<(), StoreError> {
        metered("forgive", self.0.forgive(client, ticket)).await
    }

    async fn absolve(&self, client: &str) -> Result<(), StoreError> {
        metered("absolve", self.0.absolve(client)).await
    }

    async fn has_ended(&self, id: &InstanceId) -> Result<bool, StoreError> {
        metered("has_ended", self.0.has_ended(id)).await
    }

    async fn announce(&self, report: Option<&Report>, beat: &str) -> Result<(), StoreError> {
        metered("announce", self.0.announce(report, beat)).await
    }

    async fn beat(&self, beat: &str) -> Result<bool, StoreError> {
        metered("beat", self.0.beat(beat)).await
    }

    async fn nodes(&self) -> Result<Vec<Heard>, StoreError> {
        metered("nodes", self.0.nodes()).await
    }

    async fn lose(
        &self,
        node: &NodeName,
        beat: &str,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Instance>, StoreError> {
        metered("lose", self.0.lose(node, beat, now, limit)).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        metered("ping", self.0.ping()).await
    }
}
