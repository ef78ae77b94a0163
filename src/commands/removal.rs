//! `snapshot rm` and `snapshot prune`.
//!
//! A running daemon is asked to remove one, since it knows what it serves; without one
//! the kernel and the disk say who stands on it, since instances outlive the daemon.

use anyhow::{Context as _, bail};
use http::Method;
use serde_json::json;

use super::client::{Api, print_json, text};
use super::{Context, Output, promote};
use crate::app::{AppError, StateLock};
use crate::courier;
use crate::database::Server;
use crate::forget;
use crate::host::cgroup::Parent;
use crate::id::{GoldenName, SnapshotId};
use crate::snapshot::catalog::Catalog;
use crate::snapshot::served::Choice;
use crate::uses::Uses;

/// Removes one snapshot.
pub(super) async fn remove(context: &Context, catalog: &Catalog, id: &SnapshotId) -> anyhow::Result<()> {
    match StateLock::take(&context.config) {
        Ok(lock) => remove_here(context, catalog, id, lock).await?,
        Err(AppError::AlreadyRunning { .. }) => ask(context, id).await?,
        Err(error) => return Err(error.into()),
    }
    match context.output {
        Output::Json => print_json(&json!({ "id": id, "removed": true })),
        Output::Text => {
            println!("{id} removed");
            Ok(())
        }
    }
}

async fn ask(context: &Context, id: &SnapshotId) -> anyhow::Result<()> {
    let api = Api::of(context)?;
    let begun = api.call(Method::DELETE, &format!("/api/v1/snapshots/{id}"), None).await?;
    let ended = promote::wait(&api, &begun).await?;
    if ended["state"] != "done" {
        bail!("{}", text(&ended, "error"));
    }
    Ok(())
}

async fn remove_here(
    context: &Context,
    catalog: &Catalog,
    id: &SnapshotId,
    lock: StateLock,
) -> anyhow::Result<()> {
    let uses = uses(context)?;
    let choice = Choice::read(&context.config.snapshot_dir)?;
    if let Some(golden) = published_from(&choice, id) {
        bail!("{id} is in use: the published golden {golden} is served from it; withdraw that one first");
    }
    if let Some(by) = uses.by(id) {
        bail!("{id} is in use: {by}");
    }
    catalog.remove(id)?;
    forget(context, catalog, std::slice::from_ref(id), &uses).await?;
    drop(lock);
    courier::removed(&context.config, std::slice::from_ref(id)).await;
    Ok(())
}

/// The golden that no setting names and that a start would serve from a snapshot.
fn published_from<'a>(choice: &'a Choice, id: &SnapshotId) -> Option<&'a GoldenName> {
    choice.published().find(|golden| choice.promoted(golden) == Some(id))
}

/// Removes old ones.
pub(super) async fn prune(context: &Context, catalog: &Catalog, keep: usize) -> anyhow::Result<()> {
    // A running daemon restores from what is prepared.
    let lock = StateLock::take(&context.config).context("nothing is pruned while the daemon runs")?;
    let uses = uses(context)?;
    let in_use: Vec<SnapshotId> = uses.snapshots().cloned().collect();
    let removed = catalog.prune(keep, &in_use)?;
    forget(context, catalog, &removed, &uses).await?;
    drop(lock);
    courier::removed(&context.config, &removed).await;
    if context.output == Output::Json {
        return print_json(&serde_json::to_value(&removed)?);
    }
    for id in removed {
        println!("{id}");
    }
    Ok(())
}

fn uses(context: &Context) -> anyhow::Result<Uses> {
    let cgroups = Parent::open(&context.config.cgroup_parent)?;
    Ok(Uses::find(&cgroups, &context.config.state_dir)?)
}

/// Forgets what was said and made of snapshots that are gone; what instances run on stays.
async fn forget(
    context: &Context,
    catalog: &Catalog,
    gone: &[SnapshotId],
    uses: &Uses,
) -> anyhow::Result<()> {
    let server = context.config.database.clone().map(Server::open).transpose()?;
    Ok(forget::forget(&context.config, (catalog, gone), server.as_deref(), uses).await?)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn what_a_published_golden_is_served_from_stays() {
        let (mut choice, at) = (Choice::default(), Timestamp::UNIX_EPOCH);
        let id = |text: &str| text.parse::<SnapshotId>().unwrap();
        choice.promote("shop".parse().unwrap(), id("shop-1-a"), at);
        choice.publish("spring".parse().unwrap(), (id("spring-1-a"), at), 1);
        assert_eq!(published_from(&choice, &id("spring-1-a")).unwrap().as_str(), "spring");
        // A setting's golden has a recipe to take another one of.
        assert!(published_from(&choice, &id("shop-1-a")).is_none());
    }
}
