//! The snapshots of a running daemon on a host with Podman and CRIU.
//!
//! Called by the desk ([`crate::promote`]), one call at a time for whatever
//! changes something; made by `serve`. It does what the commands of the same
//! names do, beside a daemon that restores meanwhile: what is served, prepared
//! or run on is left alone.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;

use crate::assemble::{self, Host, LoadError};
use crate::checkpoint::{self, Checkpoint, Origin};
use crate::config::{Config, Values};
use crate::courier::{self, CourierError, Heard};
use crate::engine::ContainerEngine;
use crate::error::{Chain, ErrorKind, kind_of_io};
use crate::forget::{self, ForgetError};
use crate::golden::build::{self, Build};
use crate::golden::images::Images;
use crate::golden::recipe::Recipe;
use crate::id::{GoldenName, SnapshotId};
use crate::promote::{Listed, Loaded, Publication, Say, Shared, Told, Workshop, WorkshopError};
use crate::provision::{GoldenAbout, Keeping};
use crate::snapshot::catalog::{Catalog, CatalogError, Entry};
use crate::snapshot::manifest::Archive;
use crate::snapshot::served::{Choice, ChoiceError};
use crate::snapshot::shelf::ShelfError;
use crate::template::images::ImagesError;
use crate::template::{self, TemplateError};
use crate::uses::Uses;

/// How often it is looked what other nodes serve, a few small requests to NATS, and whether
/// a golden that is only booted has a snapshot by now. It is to be served while the operator
/// who promoted or took it still looks.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The workshop.
pub struct HostWorkshop {
    config: Arc<Config>,
    /// The settings' raw values: where a recipe's sources lie.
    values: Values,
    host: Arc<Host>,
    heard: Heard,
}

impl std::fmt::Debug for HostWorkshop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostWorkshop").field("dir", &self.config.snapshot_dir).finish_non_exhaustive()
    }
}

/// An error of the workshop, from another one.
fn at<E: std::error::Error + Send + Sync + 'static>(
    doing: impl Into<String>,
    kind: impl FnOnce(&E) -> ErrorKind,
) -> impl FnOnce(E) -> WorkshopError {
    let doing = doing.into();
    move |source| WorkshopError { doing, kind: kind(&source), source: Box::new(source) }
}

/// As `at`, for what has no kind of its own.
fn unavailable<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    doing: impl Into<String>,
) -> impl FnOnce(E) -> WorkshopError {
    let doing = doing.into();
    move |source| WorkshopError { doing, kind: ErrorKind::Unavailable, source: source.into() }
}

impl HostWorkshop {
    /// A workshop on this host; nothing is started.
    #[must_use]
    pub fn new(config: Arc<Config>, values: Values, host: Arc<Host>) -> Self {
        Self { config, values, host, heard: Heard::default() }
    }

    fn catalog(&self) -> Result<Catalog, WorkshopError> {
        Catalog::of(&self.config).map_err(at("open the catalogue", CatalogError::kind))
    }

    /// Reads what was said, changes it, writes it.
    async fn choose(&self, change: impl FnOnce(&mut Choice) + Send + 'static) -> Result<(), WorkshopError> {
        let dir = self.config.snapshot_dir.clone();
        let written = tokio::task::spawn_blocking(move || Choice::change(&dir, change));
        let written = written.await.map_err(unavailable("write down what is served"))?;
        written.map_err(at("write down what is served", ChoiceError::kind))
    }

    /// Forgets what was said and made of snapshots that are gone; what instances run on
    /// stays.
    async fn forget(&self, catalog: &Catalog, gone: &[SnapshotId], uses: &Uses) -> Result<(), WorkshopError> {
        let forgotten = forget::forget(&self.config, (catalog, gone), self.host.database.as_deref(), uses);
        let forgotten = forgotten.await.map_err(at("forget what is gone", ForgetError::kind));
        // Also when something is left here: the others have none of it to look after.
        courier::removed(&self.config, gone).await;
        forgotten
    }

    async fn forget_images(&self, catalog: &Catalog) -> Result<(), WorkshopError> {
        let forgotten = template::images::forget(&self.config.state_dir, catalog).await;
        forgotten.map_err(at("remove images that no snapshot needs", ImagesError::kind))
    }

    fn uses(&self) -> Result<Uses, WorkshopError> {
        let uses = Uses::find(self.host.slots.cgroups(), &self.config.state_dir);
        uses.map_err(unavailable("see what instances run on"))
    }
}

/// How many of a published golden are to be ready when nobody says how many: there may be
/// many of them, and each ready shop takes a place.
#[must_use]
pub fn usual_pool(config: &Config) -> usize {
    config.pool_target_size.min(1)
}

fn listed(catalog: &Catalog) -> Result<Vec<Entry>, WorkshopError> {
    catalog.list().map_err(at("read the catalogue", CatalogError::kind))
}

#[async_trait]
impl Workshop for HostWorkshop {
    async fn list(&self) -> Result<Vec<Listed>, WorkshopError> {
        let entries = listed(&self.catalog()?)?;
        // Said wrongly, it says nothing; the start has told.
        let choice = Choice::read(&self.config.snapshot_dir).unwrap_or_default();
        let promoted: Vec<SnapshotId> = choice.all_promoted().cloned().collect();
        let as_listed = |Entry { id, manifest }: Entry| {
            let sum = |size: fn(&Archive) -> u64| match &manifest {
                Ok(manifest) => manifest.archives.values().map(size).sum(),
                Err(_) => 0,
            };
            Listed {
                bytes: sum(|archive| archive.bytes),
                raw_bytes: sum(|archive| archive.raw_bytes),
                golden: manifest.as_ref().ok().map(|manifest| manifest.recipe.name.clone()),
                created_at: manifest.as_ref().ok().map(|manifest| manifest.created_at),
                unusable: manifest.as_ref().err().map(|error| Chain(error).to_string()),
                promoted: promoted.contains(&id),
                promoted_at: choice.promoted_at(&id),
                refused: choice.refused(&id).map(str::to_owned),
                id,
            }
        };
        Ok(entries.into_iter().map(as_listed).collect())
    }

    async fn create(&self, golden: &GoldenName, say: Say<'_>) -> Result<SnapshotId, WorkshopError> {
        let doing = || format!("take a snapshot of {golden}");
        let named = self.config.goldens.iter().find(|named| {
            Recipe::load(named, &self.config.recipe_dir).is_ok_and(|(_, recipe)| recipe.name == *golden)
        });
        let named = named.map_or(golden.as_str(), String::as_str);
        let (folder, recipe) = Recipe::load(named, &self.config.recipe_dir).map_err(unavailable(doing()))?;
        let setting = recipe.source.as_ref().and_then(|source| self.values.get(&source.env));
        let setting = setting.map_or("", |value| value.trim());
        let images = Images::of(&self.config).map_err(unavailable(doing()))?;
        let state_dir = &self.config.state_dir;
        let build =
            Build { folder: &folder, recipe: &recipe, source_setting: setting, state_dir, images: &images };
        let image = build::build(&build, say).await.map_err(unavailable(doing()))?;
        let catalog = self.catalog()?;
        let server = self.host.database.as_ref();
        let (catalog, origin) = (&catalog, Origin::Recipe);
        let from = Checkpoint { recipe: &recipe, image: &image, catalog, state_dir, server, origin };
        let manifest = checkpoint::create(&from, say).await.map_err(unavailable(doing()))?;
        courier::offer(&self.config, catalog, &manifest.id, say).await;
        Ok(manifest.id)
    }

    async fn verify(&self, id: &SnapshotId) -> Result<(), WorkshopError> {
        let (catalog, id) = (self.catalog()?, id.clone());
        let doing = format!("use snapshot {id}");
        let verified = tokio::task::spawn_blocking(move || catalog.verify(&id).map(drop)).await;
        let verified = verified.map_err(unavailable(doing.clone()))?;
        verified.map_err(at(doing, CatalogError::kind))
    }

    async fn load(&self, id: &SnapshotId) -> Result<Loaded, WorkshopError> {
        let doing = || format!("load snapshot {id}");
        let manifest = self.catalog()?.manifest(id);
        let manifest = manifest.map_err(at(doing(), CatalogError::kind))?;
        let golden = manifest.recipe.name.clone();
        let maker = assemble::load(&manifest, &self.config, &self.host).await;
        let maker = maker.map_err(at(doing(), LoadError::kind))?;
        maker.engine().fill().await.map_err(at(doing(), kind_of_io))?;
        let (title, about) = (manifest.recipe.title.clone(), GoldenAbout::of(&manifest.recipe));
        Ok(Loaded { golden, title, about, maker })
    }

    async fn promote(
        &self,
        golden: &GoldenName,
        id: &SnapshotId,
        at: Timestamp,
    ) -> Result<(), WorkshopError> {
        let (golden, id) = (golden.clone(), id.clone());
        let manifest = self.catalog()?.manifest(&id);
        self.choose(move |choice| choice.promote(golden, id, at)).await?;
        // Its sizes are shown, if it can still be read.
        manifest.iter().for_each(assemble::tell_size);
        Ok(())
    }

    fn looks_every(&self) -> Duration {
        LOOK_EVERY
    }

    fn is_shared(&self) -> bool {
        courier::is_shared(&self.config)
    }

    async fn first(&self, golden: &GoldenName) -> Result<Option<SnapshotId>, WorkshopError> {
        let catalog = self.catalog()?;
        // Said wrongly, it says nothing; the start has told.
        let choice = Choice::read(&self.config.snapshot_dir).unwrap_or_default();
        let here = catalog.chosen_by(&choice, golden, self.config.database_mode());
        match here.map_err(at("read the catalogue", CatalogError::kind))? {
            Some(manifest) => Ok(Some(manifest.id)),
            None if self.is_shared() => {
                let wanted = courier::wanted(&self.config, &catalog, golden).await;
                let wanted = wanted.map_err(at("find out what other nodes have", CourierError::kind))?;
                Ok(wanted.filter(|id| choice.refused(id).is_none()))
            }
            None => Ok(None),
        }
    }

    fn begin(&self, id: &SnapshotId, engine: &Arc<dyn ContainerEngine>) {
        self.host.engines.add([Arc::clone(engine)]);
        // Its sizes are shown, if it can still be read.
        let manifest = self.catalog().ok().and_then(|catalog| catalog.manifest(id).ok());
        manifest.iter().for_each(assemble::tell_size);
    }

    async fn told(&self) -> Result<Told, WorkshopError> {
        let told = courier::told(&self.config, &self.heard).await;
        told.map_err(at("find out what other nodes serve", CourierError::kind))
    }

    async fn share(&self, golden: &GoldenName, shared: &Shared, say: Say<'_>) -> Result<(), WorkshopError> {
        let catalog = self.catalog()?;
        let told = courier::share(&self.config, &catalog, golden, shared, say).await;
        told.map_err(at(format!("tell the other nodes of {golden}"), CourierError::kind))
    }

    async fn fetch(&self, golden: &GoldenName, id: &SnapshotId, say: Say<'_>) -> Result<(), WorkshopError> {
        let catalog = self.catalog()?;
        let fetched = courier::pull(&self.config, &catalog, (Some(golden), id), say).await;
        let moved = fetched.map_err(at(format!("fetch snapshot {id}"), CourierError::kind))?;
        tracing::info!(snapshot_id = %id, bytes = moved.bytes, "snapshot fetched from another node");
        Ok(())
    }

    async fn may_publish(&self, golden: &GoldenName) -> Result<(), WorkshopError> {
        let names = self.config.goldens.iter().map(String::as_str).chain([golden.as_str()]);
        let mut recipes = names.filter_map(|name| Recipe::load(name, &self.config.recipe_dir).ok());
        let refused = |why: &str| WorkshopError {
            doing: format!("publish {golden}"),
            kind: ErrorKind::Conflict,
            source: format!("{why} has that name: take another one").into(),
        };
        if recipes.any(|(_, recipe)| recipe.name == *golden) {
            return Err(refused("a recipe"));
        }
        if !self.is_shared() || self.choice().await?.is_published(golden) {
            return Ok(());
        }
        match courier::is_named_elsewhere(&self.config, golden).await {
            Ok(true) => Err(refused("a golden of another node")),
            Ok(false) => Ok(()),
            Err(error) => {
                // It is served here whatever becomes of NATS; a clash is told when it is back.
                tracing::warn!(golden = %golden, error = %Chain(&error), "other nodes' goldens are not known");
                Ok(())
            }
        }
    }

    async fn publish(&self, wanted: &Publication, say: Say<'_>) -> Result<SnapshotId, WorkshopError> {
        let Publication { kept, golden, title, .. } = wanted;
        let doing = || format!("publish what is kept of {kept} as {golden}");
        let shelf = Keeping::of(&self.config).shelf;
        let saved = shelf.get(kept).map_err(at(doing(), ShelfError::kind))?;
        let state_dir = &self.config.state_dir;
        let (shelf, title) = (&shelf, title.as_deref());
        let from = template::Wanted { saved: &saved, shelf, state_dir, golden, title };
        let (recipe, image) = template::make(&from, say).await.map_err(at(doing(), TemplateError::kind))?;
        let catalog = self.catalog()?;
        let controllers = self.host.slots.cgroups().controllers();
        let origin = Origin::Shop { controllers, bounds: shelf.bounds() };
        let (catalog, server) = (&catalog, None);
        let from = Checkpoint { recipe: &recipe, image: &image, catalog, state_dir, server, origin };
        let taken = checkpoint::create(&from, say).await.map_err(unavailable(doing()));
        if taken.is_err()
            && let Err(error) = self.forget_images(catalog).await
        {
            tracing::warn!(error = %Chain(&error), "image of no snapshot not removed yet");
        }
        Ok(taken?.id)
    }

    async fn introduce(
        &self,
        golden: &GoldenName,
        (id, at): (&SnapshotId, Timestamp),
        pool: Option<usize>,
        engine: &Arc<dyn ContainerEngine>,
    ) -> Result<usize, WorkshopError> {
        let before = Choice::read(&self.config.snapshot_dir).ok().and_then(|choice| choice.pool(golden));
        let pool = pool.or(before).unwrap_or_else(|| usual_pool(&self.config));
        let (golden, id) = (golden.clone(), id.clone());
        self.choose(move |choice| choice.publish(golden, (id, at), pool)).await?;
        self.host.engines.add([Arc::clone(engine)]);
        Ok(pool)
    }

    async fn set_pool(&self, golden: &GoldenName, pool: usize) -> Result<(), WorkshopError> {
        let golden = golden.clone();
        self.choose(move |choice| choice.set_pool(&golden, pool)).await
    }

    async fn choice(&self) -> Result<Choice, WorkshopError> {
        Choice::read(&self.config.snapshot_dir).map_err(at("read what is served", ChoiceError::kind))
    }

    async fn withdraw(
        &self,
        golden: &GoldenName,
        at: Timestamp,
        engines: &[Arc<dyn ContainerEngine>],
    ) -> Result<(), WorkshopError> {
        let golden = golden.clone();
        self.choose(move |choice| choice.withdraw(&golden, at)).await?;
        engines.iter().for_each(|engine| self.host.engines.remove(engine));
        Ok(())
    }

    async fn refuse(&self, id: &SnapshotId, why: &str) -> Result<(), WorkshopError> {
        let (id, why) = (id.clone(), why.to_owned());
        self.choose(move |choice| choice.refuse(id, &why)).await
    }

    async fn remove(&self, id: &SnapshotId, in_use: &[SnapshotId]) -> Result<(), WorkshopError> {
        let doing = || format!("remove snapshot {id}");
        let uses = self.uses()?;
        let by = in_use.contains(id).then(|| "shops are made of it, or come from it".to_owned());
        if let Some(by) = uses.by(id).or(by) {
            return Err(WorkshopError { doing: doing(), kind: ErrorKind::Conflict, source: by.into() });
        }
        let catalog = self.catalog()?;
        catalog.remove(id).map_err(at(doing(), CatalogError::kind))?;
        self.forget(&catalog, std::slice::from_ref(id), &uses).await
    }

    async fn clear(
        &self,
        golden: &GoldenName,
        in_use: &[SnapshotId],
    ) -> Result<Vec<SnapshotId>, WorkshopError> {
        let catalog = self.catalog()?;
        let uses = self.uses()?;
        let mut kept: Vec<SnapshotId> = in_use.to_vec();
        kept.extend(uses.snapshots().cloned());
        let mut removed = Vec::new();
        for Entry { id, manifest } in listed(&catalog)? {
            if manifest.is_ok_and(|manifest| manifest.recipe.name == *golden) && !kept.contains(&id) {
                catalog.remove(&id).map_err(at(format!("remove snapshot {id}"), CatalogError::kind))?;
                removed.push(id);
            }
        }
        self.forget(&catalog, &removed, &uses).await?;
        Ok(removed)
    }

    async fn prune(&self, keep: usize, in_use: &[SnapshotId]) -> Result<Vec<SnapshotId>, WorkshopError> {
        let catalog = self.catalog()?;
        let uses = self.uses()?;
        let mut kept: Vec<SnapshotId> = in_use.to_vec();
        kept.extend(uses.snapshots().cloned());
        let removed = catalog.prune(keep, &kept);
        let removed = removed.map_err(at("remove old snapshots", CatalogError::kind))?;
        self.forget(&catalog, &removed, &uses).await?;
        Ok(removed)
    }
}
