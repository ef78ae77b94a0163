//! From settings to goldens that can be served.
//!
//! Called by `serve`, `bench` and the benches: opens the host's network and
//! cgroups, prepares each golden's snapshot and builds its makers; by the workshop
//! for a snapshot that is to be served from now on ([`load`]). The
//! only file beside [`crate::app`] that names concrete engines.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::golden::HOST;
use crate::config::{ColdStart, Config, ContainerMode};
use crate::courier;
use crate::database::{Mover, Root, Server, SharedEngine, Template};
use crate::egress::Egress;
use crate::engine::cold::Ready;
use crate::engine::criu::CriuEngine;
use crate::engine::docker::DockerEngine;
use crate::engine::podman::PodmanEngine;
use crate::engine::{CleanupError, ContainerEngine};
use crate::error::{Chain, ErrorKind};
use crate::golden::images::{Image, Images};
use crate::golden::recipe::Recipe;
use crate::host::net::Network;
use crate::host::quota::Quota;
use crate::host::slots::{Parts, Slots, make_private};
use crate::host::{cgroup, claim};
use crate::id::GoldenName;
use crate::identity::Supply;
use crate::metrics;
use crate::provision::{GoldenAbout, GoldenRuntime};
use crate::restore::{Make, Maker, Served, Switch, probe};
use crate::snapshot::catalog::{Catalog, CatalogError};
use crate::snapshot::manifest::{Archive, HostFacts, Manifest};
use crate::snapshot::prepare::{self, PrepareError, Prepared};

/// One page of a booting shop; it is asked again at once.
const BOOT_PAGE_DEADLINE: Duration = Duration::from_secs(10);

/// How many databases wait at least, copied, on a shared server: a visitor's and
/// the next one's. A pool of more has as many, to be full again at once.
const DATABASES_AHEAD: usize = 2;

/// The host's side of all goldens.
#[derive(Debug)]
pub struct Host {
    /// Slots of all instances.
    pub slots: Arc<Slots>,
    /// Key pairs made ahead.
    pub supply: Arc<Supply>,
    /// The database server that shops share, if they do.
    pub database: Option<Arc<Server>>,
    /// What shops may reach outside.
    pub egress: Arc<Egress>,
}

impl Host {
    /// Opens network, cgroups and state directory.
    ///
    /// # Errors
    /// When the host cannot carry instances; `doctor` says why.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let network = Network::open(&config.bridge_name, config.bridge_subnet)
            .await
            .with_context(|| format!("cannot set up the bridge {}", config.bridge_name))?;
        make_private(&config.state_dir)
            .with_context(|| format!("cannot use STATE_DIR {}", config.state_dir.display()))?;
        let cgroups = cgroup::Parent::open(&config.cgroup_parent)
            .context("cannot set up the instances' cgroup: is cgroup v2 mounted at /sys/fs/cgroup?")?
            .on_disk_of(&config.state_dir);
        claim::take(&network, &cgroups, &config.state_dir).await?;
        let quota = Quota::open(&config.state_dir, config.disk_max).await;
        let quota = quota.context("cannot limit what instances write (DISK_MAX)")?;
        tracing::info!(disk_max = config.disk_max, held_by = quota.held_by(), "disk limit");
        let slots = Slots::new(Parts { network, cgroups, quota }, &config.state_dir, config.slots_ahead)
            .with_context(|| format!("cannot use STATE_DIR {}", config.state_dir.display()))?;
        let database = config.database.clone().map(Server::open).transpose()?;
        let slots = Arc::new(slots);
        let egress = Arc::new(Egress::new(Arc::clone(&slots), config.egress_refresh));
        Ok(Self { slots, supply: Arc::default(), database, egress })
    }
}

/// How long after a failure the next slot is tried: what is missing (addresses,
/// disk) comes back when instances end, in seconds at best.
const REFILL_PAUSE: Duration = Duration::from_secs(2);

/// How long nobody may have taken a slot before new ones are made: a visitor's
/// restore and first page (150 ms) come first, since making a slot wants a
/// processor as they do. Longer, and a second burst finds none ahead.
const QUIET: Duration = Duration::from_millis(200);

/// When slots are made all the same.
const QUIET_AT_MOST: Duration = Duration::from_secs(1);

/// Keeps slots, and what drivers make in them, made ahead until `stop`; spawned
/// once by the daemon, which waits for its end before it drains: what is half
/// made is finished first.
pub async fn keep_filled(slots: Arc<Slots>, engines: Vec<Arc<dyn ContainerEngine>>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let pause = match fill(&slots, &engines).await {
            Ok(()) => None,
            Err(error) => {
                tracing::warn!(error = %format!("{error:#}"), "nothing more can be made ahead");
                Some(REFILL_PAUSE)
            }
        };
        let wait = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => {
                    slots.taken().await;
                    let quiet = async { while tokio::time::timeout(QUIET, slots.taken()).await.is_ok() {} };
                    drop(tokio::time::timeout(QUIET_AT_MOST, quiet).await);
                }
            }
        };
        tokio::select! {
            () = wait => {}
            () = stop.cancelled() => {}
        }
    }
}

/// How often it is looked whether the firewall still stands (whoever reloads
/// the host's own rules takes ours along), and whether an instance has more than
/// it may: at 200 MB/s it gets 400 MB beyond its limit meanwhile.
const GUARD_PERIOD: Duration = Duration::from_secs(2);

/// Keeps instances within their limits until `stop`; spawned once by the daemon.
pub async fn keep_guarded(slots: Arc<Slots>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(GUARD_PERIOD);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stop.cancelled() => return,
        }
        match slots.network().firewall().renew_if_lost().await {
            Ok(false) => {}
            Ok(true) => tracing::warn!("somebody had removed the instances' firewall; it is up again"),
            Err(error) => tracing::error!(error = %Chain(&error), "the instances' firewall is down"),
        }
        let watched = Arc::clone(&slots);
        match tokio::task::spawn_blocking(move || watched.end_what_is_over()).await {
            Ok(Ok(ended)) => {
                for (id, what) in ended {
                    tracing::warn!(instance_id = %id, what, "instance had more than it may and was ended");
                }
            }
            Ok(Err(error)) => tracing::warn!(error = %Chain(&error), "instances not measured"),
            Err(error) => tracing::warn!(error = %Chain(&error), "instances not measured"),
        }
    }
}

/// Fills up once what is made ahead.
///
/// # Errors
/// When something cannot be made now.
pub async fn fill(slots: &Slots, engines: &[Arc<dyn ContainerEngine>]) -> anyhow::Result<()> {
    for engine in engines {
        engine.fill().await?;
    }
    slots.fill().await?;
    Ok(())
}

/// Removes all that was made ahead; answers what could not be removed.
pub async fn drain(slots: &Slots, engines: &[Arc<dyn ContainerEngine>]) -> Vec<CleanupError> {
    let mut failed = Vec::new();
    for engine in engines {
        failed.extend(engine.drain().await);
    }
    failed.extend(slots.drain().await.into_iter().map(|(step, source)| CleanupError { step, source }));
    failed
}

/// One golden with all that can be made of it.
#[derive(Debug)]
pub struct Assembled {
    /// For provisioning.
    pub runtime: GoldenRuntime,
    /// The prepared snapshot, if one can be restored.
    pub prepared: Option<Prepared>,
    /// The image, if it is built.
    pub image: Option<Image>,
    /// The recipe in force.
    pub recipe: Arc<Recipe>,
}

/// A golden's name and recipe: from the snapshot it is restored from, else from its folder.
/// What shops may reach is nothing that was frozen, so there the folder counts.
async fn recipe_of(
    golden: &str,
    config: &Config,
    catalog: &Catalog,
) -> anyhow::Result<(Recipe, Option<Manifest>)> {
    let loaded = Recipe::load(golden, &config.recipe_dir);
    let name = match &loaded {
        Ok((_, recipe)) => recipe.name.clone(),
        Err(_) => Path::new(golden)
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.parse::<GoldenName>().ok())
            .with_context(|| format!("GOLDEN={golden:?} is no golden"))?,
    };
    if catalog.chosen(&name, config.database_mode())?.is_none() {
        courier::fetch_missing(config, catalog, &name).await;
    }
    let served = catalog.chosen(&name, config.database_mode())?;
    match (loaded, served) {
        (loaded, Some(manifest)) => {
            let mut recipe = manifest.recipe.clone();
            if let Ok((_, Recipe { network, .. })) = loaded {
                recipe.network = network;
            }
            Ok((recipe, Some(manifest)))
        }
        (Ok((_, recipe)), None) => Ok((recipe, None)),
        (Err(error), None) => Err(error.into()),
    }
}

/// Makes a golden servable.
///
/// # Errors
/// When the golden is unknown, or nothing that a shop could be made of is there.
pub async fn golden(golden: &str, config: &Arc<Config>, host: &Host) -> anyhow::Result<Assembled> {
    match config.container_mode {
        ContainerMode::Podman => restored(golden, config, host).await,
        ContainerMode::Docker => booted(golden, config, host).await,
    }
}

/// By a Docker engine: finds the golden's image there. Booting is not a fallback
/// here but the one way, so nothing is said of it.
async fn booted(golden: &str, config: &Arc<Config>, host: &Host) -> anyhow::Result<Assembled> {
    let recipe = Arc::new(Recipe::load(golden, &config.recipe_dir)?.1);
    let images = Images::of(config)?;
    let Images::Docker(docker) = &images else { anyhow::bail!("CONTAINER_MODE is not docker") };
    let image = images.newest(&recipe.name).await.context("cannot look for the golden's image in Docker")?;
    let Some(image) = image else {
        anyhow::bail!(
            "{golden} cannot be served: Docker has no image of it; run `demo-multiplexer golden build {golden}`"
        );
    };
    let engine = DockerEngine::new(
        Arc::clone(docker),
        Arc::clone(&recipe),
        image.id.clone(),
        Arc::clone(&host.slots),
        readiness(&recipe),
    );
    let (shared, supply) = (Arc::clone(config), Arc::clone(&host.supply));
    let engine = host.egress.around(Arc::new(engine), &recipe);
    let maker = Maker::new(engine, Arc::clone(&recipe), shared, supply);
    let runtime = GoldenRuntime {
        name: recipe.name.clone(),
        title: recipe.title.clone(),
        about: GoldenAbout::of(&recipe),
        restore: Ok(Arc::new(maker)),
        cold: None,
    };
    Ok(Assembled { runtime, prepared: None, image: Some(image), recipe })
}

/// By CRIU: prepares the golden's newest snapshot, and finds its image for the
/// fallback.
async fn restored(golden: &str, config: &Arc<Config>, host: &Host) -> anyhow::Result<Assembled> {
    let catalog = Catalog::of(config)?;
    let (recipe, newest) = recipe_of(golden, config, &catalog).await?;
    let recipe = Arc::new(recipe);
    let prepared = match &newest {
        None => Err(match catalog.why_unusable(&recipe.name)? {
            Some(error) => Chain(&error).to_string(),
            None => format!(
                "no snapshot in {} with DATABASE_MODE={}",
                config.snapshot_dir.display(),
                config.database_mode().as_str()
            ),
        }),
        Some(manifest) => match prepare::host_facts().await {
            Ok(facts) => prepare_newest(&catalog, manifest, &facts, config).await,
            Err(error) => Err(Chain(&error).to_string()),
        },
    };
    if let (Ok(_), Some(manifest)) = (&prepared, &newest) {
        tell_size(manifest);
    }
    if let Err(reason) = &prepared {
        tracing::warn!(golden = %recipe.name, error = reason, "golden cannot be restored, only booted");
    }
    let maker = |engine| maker(engine, &recipe, config, host);
    let restore: Result<Arc<dyn Make>, String> = match &prepared {
        Ok(prepared) => {
            let served = Served {
                snapshot: prepared.manifest.id.clone(),
                maker: maker(restorer(prepared, config, host)?),
            };
            Ok(Arc::new(Switch::new(served)))
        }
        Err(reason) => Err(reason.clone()),
    };
    let image = Images::Podman.newest(&recipe.name).await.unwrap_or_default();
    let cold = match (&image, config.cold_start) {
        (Some(image), ColdStart::Allowed) => {
            let engine = PodmanEngine::new(
                Arc::clone(&recipe),
                image.id.clone(),
                Arc::clone(&host.slots),
                readiness(&recipe),
            );
            Some(maker(Arc::new(engine)))
        }
        _ => None,
    };
    if let (Err(reason), None) = (&restore, &cold) {
        anyhow::bail!(
            "golden {golden} can neither be restored ({reason}) nor booted: \
             run `demo-multiplexer golden build {golden}` and `demo-multiplexer snapshot create {golden}`"
        );
    }
    let runtime = GoldenRuntime {
        name: recipe.name.clone(),
        title: recipe.title.clone(),
        about: GoldenAbout::of(&recipe),
        restore,
        cold,
    };
    Ok(Assembled { runtime, prepared: prepared.ok(), image, recipe })
}

/// Has the metrics show the sizes of a snapshot that is served from now on.
pub fn tell_size(manifest: &Manifest) {
    let sum = |size: fn(&Archive) -> u64| manifest.archives.values().map(size).sum();
    let (compressed, raw) = (sum(|archive| archive.bytes), sum(|archive| archive.raw_bytes));
    metrics::snapshot_in_use(&manifest.recipe.name, compressed, raw);
}

/// Makes shops of a golden with an engine.
fn maker(
    engine: Arc<dyn ContainerEngine>,
    recipe: &Arc<Recipe>,
    config: &Arc<Config>,
    host: &Host,
) -> Arc<dyn Make> {
    let engine = host.egress.around(engine, recipe);
    Arc::new(Maker::new(engine, Arc::clone(recipe), Arc::clone(config), Arc::clone(&host.supply)))
}

/// Prepares a snapshot beside what is served; answers who makes shops of it.
///
/// # Errors
/// [`LoadError`]; nothing else has changed.
pub async fn load(
    manifest: &Manifest,
    config: &Arc<Config>,
    host: &Host,
) -> Result<Arc<dyn Make>, LoadError> {
    let catalog = Catalog::of(config)?;
    let facts = prepare::host_facts().await.map_err(PrepareError::Facts)?;
    let (state_dir, deadline) = (&config.state_dir, config.restore_deadline());
    let prepared = prepare::prepare(&catalog, &manifest.id, &facts, state_dir, deadline).await?;
    let mut recipe = manifest.recipe.clone();
    let named = config.goldens.iter().filter_map(|name| Recipe::load(name, &config.recipe_dir).ok());
    // As at the start: what shops may reach is nothing that was frozen.
    if let Some((_, own)) = named.into_iter().find(|(_, own)| own.name == recipe.name) {
        recipe.network = own.network;
    }
    let engine = restorer(&prepared, config, host).map_err(|error| LoadError::Engine(error.into()))?;
    Ok(maker(engine, &Arc::new(recipe), config, host))
}

/// A snapshot cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The catalogue.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// It cannot be prepared.
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    /// No driver can be made for it.
    #[error("no driver can be made for the snapshot")]
    Engine(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl LoadError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Catalog(error) => error.kind(),
            Self::Prepare(error) => error.kind(),
            Self::Engine(_) => ErrorKind::Unavailable,
        }
    }
}

/// The driver that restores a prepared snapshot.
fn restorer(prepared: &Prepared, config: &Config, host: &Host) -> anyhow::Result<Arc<dyn ContainerEngine>> {
    let recipe = &prepared.manifest.recipe;
    let mut source = prepared.source.clone();
    if let (Some(server), Some(inside)) = (&host.database, recipe.run.socket_directory()) {
        source.show(inside, server.directory());
    }
    let engine = CriuEngine::new(source, Arc::clone(&host.slots));
    let engine: Arc<dyn ContainerEngine> = Arc::new(engine.context("cannot open the prepared snapshot")?);
    let Some(server) = &host.database else { return Ok(engine) };
    let mover = Mover::of(recipe, Root::Directory(prepared.image.clone()), server)?;
    let id = prepared.manifest.id.clone();
    let template = Template::new(Arc::clone(server), id, mover, prepared.dump.clone());
    let ahead = config.pool_target_size.max(DATABASES_AHEAD);
    Ok(Arc::new(SharedEngine::start(engine, template, ahead)))
}

async fn prepare_newest(
    catalog: &Catalog,
    manifest: &Manifest,
    facts: &HostFacts,
    config: &Config,
) -> Result<Prepared, String> {
    let prepared =
        prepare::prepare(catalog, &manifest.id, facts, &config.state_dir, config.restore_deadline()).await;
    prepared.map_err(|error| Chain(&error).to_string())
}

/// Asks a booting shop for its front page under the golden's own host name.
fn readiness(recipe: &Arc<Recipe>) -> Ready {
    let ready = recipe.ready.clone();
    Arc::new(move |address| {
        let ready = ready.clone();
        Box::pin(async move {
            let page = probe::get(address, HOST, &ready.path, BOOT_PAGE_DEADLINE).await;
            page.is_ok_and(|page| page.shows(&ready.contains))
        })
    })
}
