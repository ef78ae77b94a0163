//! A store behind a connection that breaks, for tests: what is written arrives, its
//! answer does not, and nothing more is heard until the connection is back.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jiff::Timestamp;

use crate::id::{GoldenName, InstanceId, NodeName};
use crate::instance::{Instance, State};
use crate::store::{Admission, Claim, Claimed, Store, StoreError, Ticket, Window};

/// What the connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connection {
    Up,
    /// It loses the answer to the next update, and is up again or not.
    Breaks(Then),
    Down,
}

/// What comes after the answer that is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// The store answers.
    Up,
    /// It does not, until [`LossyStore::is_back`].
    Down,
}

/// What happens between a write and whatever its caller does next.
type Meanwhile = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

/// The store; another node's calls go to the one inside.
pub struct LossyStore {
    inside: Arc<dyn Store>,
    connection: Mutex<Connection>,
    meanwhile: Mutex<Option<Meanwhile>>,
}

impl fmt::Debug for LossyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LossyStore").field("inside", &self.inside).finish_non_exhaustive()
    }
}

impl LossyStore {
    /// Puts such a connection before a store; it is up.
    #[must_use]
    pub fn new(inside: Arc<dyn Store>) -> Self {
        Self { inside, connection: Mutex::new(Connection::Up), meanwhile: Mutex::default() }
    }

    /// Loses the answer to the next update; `meanwhile` happens before that is noticed.
    pub fn lose_an_answer<F>(&self, then: Then, meanwhile: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        *self.meanwhile.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Box::new(|| Box::pin(meanwhile())));
        self.set(Connection::Breaks(then));
    }

    /// The store answers again.
    pub fn is_back(&self) {
        self.set(Connection::Up);
    }

    fn set(&self, connection: Connection) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }

    fn connection(&self) -> Connection {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn up(&self) -> Result<&dyn Store, StoreError> {
        if self.connection() == Connection::Down { Err(lost()) } else { Ok(&*self.inside) }
    }
}

fn lost() -> StoreError {
    let source = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
    StoreError::Unavailable { doing: "hear an answer", source: Box::new(source) }
}

#[async_trait]
impl Store for LossyStore {
    fn node(&self) -> &NodeName {
        self.inside.node()
    }

    async fn insert(&self, instance: Instance) -> Result<Instance, StoreError> {
        self.up()?.insert(instance).await
    }

    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, StoreError> {
        self.up()?.get(id).await
    }

    async fn update(&self, instance: Instance) -> Result<Instance, StoreError> {
        let Connection::Breaks(then) = self.connection() else { return self.up()?.update(instance).await };
        self.set(if then == Then::Up { Connection::Up } else { Connection::Down });
        self.inside.update(instance).await?;
        let meanwhile = self.meanwhile.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(meanwhile) = meanwhile {
            meanwhile().await;
        }
        Err(lost())
    }

    async fn claim(&self, claim: Claim) -> Result<Claimed, StoreError> {
        self.up()?.claim(claim).await
    }

    async fn remove(&self, id: &InstanceId) -> Result<(), StoreError> {
        self.up()?.remove(id).await
    }

    async fn write_again(&self, instance: Instance) -> Result<(), StoreError> {
        self.up()?.write_again(instance).await
    }

    async fn list(&self) -> Result<Vec<Arc<Instance>>, StoreError> {
        self.up()?.list().await
    }

    async fn own(&self) -> Result<Vec<Arc<Instance>>, StoreError> {
        self.up()?.own().await
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Instance>, StoreError> {
        self.up()?.due(now, limit).await
    }

    async fn counts(&self, golden: &GoldenName) -> Result<BTreeMap<State, usize>, StoreError> {
        self.up()?.counts(golden).await
    }

    async fn admit(&self, client: &str, windows: &[Window], now: Timestamp) -> Result<Admission, StoreError> {
        self.up()?.admit(client, windows, now).await
    }

    async fn forgive(&self, client: &str, ticket: &Ticket) -> Result<(), StoreError> {
        self.up()?.forgive(client, ticket).await
    }

    async fn absolve(&self, client: &str) -> Result<(), StoreError> {
        self.up()?.absolve(client).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.up()?.ping().await
    }
}
