//! What provisioning needs of whoever makes shops.
//!
//! [`Maker`] launches, personalizes and probes; [`Switch`] stands around one and
//! can be turned to another; tests drive a scripted one.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::{FirstPage, Made, Maker, Switch};
use crate::engine::{ContainerEngine, LaunchError};
use crate::id::InstanceId;
use crate::instance::Access;

/// Which shop is to be made.
#[derive(Debug, Clone, Copy)]
pub struct Shop<'a> {
    /// Its name, which is that of its host.
    pub id: &'a InstanceId,
    /// What its things on this host are named; another name when it replaces one
    /// that still runs.
    pub slot: &'a InstanceId,
    /// Whose password and login key it gets; none: its own.
    pub access: Option<&'a Access>,
}

impl<'a> Shop<'a> {
    /// One that was not there before.
    #[must_use]
    pub const fn new(id: &'a InstanceId) -> Self {
        Self { id, slot: id, access: None }
    }
}

/// Makes shops of one golden in one way.
#[async_trait]
pub trait Make: Send + Sync + fmt::Debug {
    /// Makes one shop.
    ///
    /// # Errors
    /// [`LaunchError`] with the phase; nothing is left but what it names.
    ///
    /// # Cancel safety
    /// Not cancel-safe: spawn it.
    async fn make(&self, shop: Shop<'_>, first_page: FirstPage) -> Result<Made, LaunchError>;

    /// The engine, to end, adopt and watch what this makes.
    fn engine(&self) -> &Arc<dyn ContainerEngine>;

    /// The log files within a shop that its golden names.
    fn log_files(&self) -> Vec<String> {
        Vec::new()
    }

    /// Itself, when its snapshot can be changed.
    fn switch(&self) -> Option<&Switch> {
        None
    }
}

#[async_trait]
impl Make for Maker {
    async fn make(&self, shop: Shop<'_>, first_page: FirstPage) -> Result<Made, LaunchError> {
        Maker::make(self, shop, first_page).await
    }

    fn engine(&self) -> &Arc<dyn ContainerEngine> {
        Maker::engine(self)
    }

    fn log_files(&self) -> Vec<String> {
        self.recipe().run.logs.clone()
    }
}
