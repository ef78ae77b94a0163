//! The procedure that makes one shop: launch, personalize, probe.
//!
//! Called by provisioning (while a client waits) and by the pool's reconciler
//! (ahead of time). Phases and their undo:
//!
//! ```text
//! launch (slot, restore, adopt)   undone by the driver itself, or by destroy
//! personalize                     undone by destroy: the clone is thrown away
//! probe                           undone by destroy
//! ```
//!
//! Invariant: what [`Maker::make`] answers has its own identity already; until
//! then no route leads to it.

pub mod logs;
pub mod personalize;
mod port;
pub mod probe;
mod switch;
pub mod values;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::ExposeSecret as _;
use tracing::Instrument as _;

pub use self::port::{Make, Shop};
pub use self::switch::{Served, Switch};
use self::values::Values;
use crate::config::Config;
use crate::engine::{CleanupError, ContainerEngine, LaunchError, Launched, Phase};
use crate::error::ErrorKind;
use crate::failpoint;
use crate::golden::recipe::Recipe;
use crate::id::{InstanceId, SnapshotId};
use crate::identity::{self, Credentials, Supply};
use crate::instance::{Access, Container, OneClick, Source};

/// How long the first page may take: a cold cache on a busy host, no more.
const PAGE_DEADLINE: Duration = Duration::from_secs(20);

/// How long a clone's own identity may take; it takes milliseconds.
const PERSONALIZE_DEADLINE: Duration = Duration::from_secs(20);

/// Placeholders of a key pair in PEM form, made ahead.
const PRIVATE_KEY: &str = "rsa_private_key";
const PUBLIC_KEY: &str = "rsa_public_key";

/// A shop that may be handed out.
#[derive(Debug)]
pub struct Made {
    /// Its processes.
    pub container: Container,
    /// Its address and credentials.
    pub access: Access,
    /// The snapshot it came from, if any.
    pub snapshot: Option<SnapshotId>,
    /// Restored or booted.
    pub made_by: Source,
    /// How long each phase took, in order.
    pub phases: Vec<(Phase, Duration)>,
}

/// Whether the first page is fetched before the shop is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstPage {
    /// Fetched: made ahead of time, so the visitor finds a warm worker.
    Fetched,
    /// Left to the visitor, who is waiting already.
    LeftToVisitor,
}

/// Makes shops of one golden with one engine.
#[derive(Debug)]
pub struct Maker {
    engine: Arc<dyn ContainerEngine>,
    recipe: Arc<Recipe>,
    config: Arc<Config>,
    supply: Arc<Supply>,
}

/// Why a shop is not fit to be handed out.
#[derive(Debug, thiserror::Error)]
enum UnfitError {
    #[error("it has no credentials")]
    Credentials(#[from] crate::identity::SupplyError),
    #[error("the recipe's values cannot be drawn")]
    Values(#[from] values::RenderError),
    #[error("it could not be given its own identity")]
    Personalize(#[from] personalize::PersonalizeError),
    #[error("it could not be given its own identity within {} s", PERSONALIZE_DEADLINE.as_secs())]
    Deadline,
    #[error("a test has it fail")]
    Stopped(#[source] std::io::Error),
    #[error("its front page does not come")]
    Probe(#[from] probe::ProbeError),
    #[error("its front page is {status}, without {wanted:?}")]
    Page { status: http::StatusCode, wanted: String },
}

impl Maker {
    /// A maker of shops by `recipe` with `engine`; wants a runtime.
    #[must_use]
    pub fn new(
        engine: Arc<dyn ContainerEngine>,
        recipe: Arc<Recipe>,
        config: Arc<Config>,
        supply: Arc<Supply>,
    ) -> Self {
        if recipe.personalize.mentions(PRIVATE_KEY) {
            supply.prepare_pairs();
        }
        Self { engine, recipe, config, supply }
    }

    /// Makes one shop.
    ///
    /// # Errors
    /// [`LaunchError`] with the phase; nothing is left but what it names.
    ///
    /// # Cancel safety
    /// Not cancel-safe: spawn it.
    pub async fn make(&self, shop: Shop<'_>, first_page: FirstPage) -> Result<Made, LaunchError> {
        let mut launched = self.engine.launch(shop.slot).await?;
        let finished = self.finish(shop, &mut launched, first_page).await;
        let Launched { container, snapshot, phases, .. } = launched;
        match finished {
            Ok(access) => Ok(Made { container, access, snapshot, made_by: self.engine.source(), phases }),
            Err((phase, error)) => {
                let cleanup: Vec<CleanupError> = match self.engine.destroy(shop.slot, Some(&container)).await
                {
                    Ok(()) => Vec::new(),
                    Err(error) => error.cleanup,
                };
                Err(LaunchError {
                    id: shop.id.clone(),
                    phase,
                    kind: kind_of(&error),
                    source: Box::new(error),
                    cleanup,
                })
            }
        }
    }

    async fn finish(
        &self,
        shop: Shop<'_>,
        launched: &mut Launched,
        first_page: FirstPage,
    ) -> Result<Access, (Phase, UnfitError)> {
        let begun = Instant::now();
        let personalized = self.personalize(shop, launched).instrument(Phase::Personalize.span()).await;
        let access = personalized.map_err(|error| (Phase::Personalize, error))?;
        launched.phases.push((Phase::Personalize, begun.elapsed()));
        failpoint::hit("personalize:after")
            .map_err(|error| (Phase::Personalize, UnfitError::Stopped(error)))?;
        if first_page == FirstPage::Fetched {
            let begun = Instant::now();
            let probed = self.probe(shop.id, &launched.container).instrument(Phase::Probe.span()).await;
            probed.map_err(|error| (Phase::Probe, error))?;
            launched.phases.push((Phase::Probe, begun.elapsed()));
        }
        Ok(access)
    }

    async fn personalize(&self, shop: Shop<'_>, launched: &Launched) -> Result<Access, UnfitError> {
        let id = shop.id;
        let credentials = match shop.access {
            Some(kept) => Credentials::of(kept.admin_password.clone())?,
            None => Credentials::new()?,
        };
        let host = self.config.host_of(id.as_str());
        let url = format!("{}://{host}", self.config.public_scheme);
        let admin_email = format!("demo-{id}@example.com");
        let mut values = Values::default();
        values.set("host", host.as_str());
        values.set("domain", format!("{id}.{}", self.config.base_domain));
        values.set("url", url.as_str());
        values.set("admin_email", admin_email.as_str());
        values.set("admin_password_bcrypt", credentials.bcrypt.expose_secret());
        values.set_database(&self.recipe.run, launched.database.as_ref());
        let kept = shop.access.and_then(|access| access.one_click.as_ref());
        let login_key = kept.map_or_else(|| identity::hex(64), |kept| kept.key.expose_secret().to_owned());
        values.set("login_key", login_key.as_str());
        let recipe = &self.recipe.personalize;
        if recipe.mentions(PRIVATE_KEY) {
            let pair = self.supply.take_pair().await?;
            values.set(PRIVATE_KEY, pair.private.expose_secret());
            values.set(PUBLIC_KEY, pair.public);
        }
        values.draw(&recipe.values)?;
        let subject = personalize::Subject {
            pid: launched.container.pid,
            host_name: id.as_str(),
            run: &self.recipe.run,
            database: launched.database.as_ref(),
        };
        match tokio::time::timeout(PERSONALIZE_DEADLINE, personalize::apply(&subject, recipe, &values)).await
        {
            Ok(done) => done?,
            Err(_) => return Err(UnfitError::Deadline),
        }
        let admin = &self.recipe.admin;
        Ok(Access {
            admin_url: format!("{url}{}", admin.path),
            one_click: admin
                .one_click
                .as_ref()
                .map(|path| OneClick { url: format!("{url}{path}"), key: login_key.into() }),
            url: format!("{url}/"),
            admin_email,
            admin_password: credentials.password,
        })
    }

    async fn probe(&self, id: &InstanceId, container: &Container) -> Result<(), UnfitError> {
        failpoint::hit("probe:before").map_err(UnfitError::Stopped)?;
        let address = SocketAddr::from((container.address, container.port));
        let host = self.config.host_of(id.as_str());
        let ready = &self.recipe.ready;
        let page = probe::get(address, &host, &ready.path, PAGE_DEADLINE).await?;
        if page.shows(&ready.contains) {
            return Ok(());
        }
        Err(UnfitError::Page { status: page.status, wanted: ready.contains.clone() })
    }

    /// The engine, to end, adopt and watch what this makes.
    #[must_use]
    pub fn engine(&self) -> &Arc<dyn ContainerEngine> {
        &self.engine
    }

    /// The golden's recipe.
    #[must_use]
    pub fn recipe(&self) -> &Arc<Recipe> {
        &self.recipe
    }
}

/// What a caller can do: a full disk is the host's, the rest is the golden's.
fn kind_of(error: &UnfitError) -> ErrorKind {
    match error {
        UnfitError::Personalize(personalize::PersonalizeError::File { source, .. }) => {
            crate::error::kind_of_io(source)
        }
        UnfitError::Values(_) | UnfitError::Page { .. } => ErrorKind::Bug,
        UnfitError::Personalize(_)
        | UnfitError::Credentials(_)
        | UnfitError::Deadline
        | UnfitError::Stopped(_)
        | UnfitError::Probe(_) => ErrorKind::Unavailable,
    }
}
