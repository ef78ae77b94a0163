//! `snapshot promote ID` and `snapshot refresh [GOLDEN]`: the running daemon tries
//! a snapshot, serves it and replaces its pool, while this waits and tells.

use std::time::Duration;

use anyhow::{Context as _, bail};
use http::Method;
use serde_json::{Value, json};

use super::client::{Api, print_json, text};
use super::progress::Progress;
use super::{Context, Output};
use crate::id::SnapshotId;

/// How often the daemon is asked how far it is.
const EVERY: Duration = Duration::from_millis(300);

/// Has the daemon serve a snapshot.
pub(super) async fn promote(context: &Context, id: &SnapshotId) -> anyhow::Result<()> {
    let api = Api::of(context)?;
    let path = format!("/api/v1/snapshots/{id}/promote");
    let begun = api.call(Method::POST, &path, Some(json!({}))).await?;
    follow(context, &api, &begun).await
}

/// Waits for a task's end, tells its steps and what came of it.
pub(super) async fn follow(context: &Context, api: &Api, begun: &Value) -> anyhow::Result<()> {
    let ended = wait(api, begun).await?;
    if ended["state"] != "done" {
        bail!("{}", text(&ended, "error"));
    }
    match context.output {
        Output::Json => print_json(&ended),
        Output::Text => {
            println!("{}", text(&ended, "result"));
            Ok(())
        }
    }
}

/// Has the daemon serve a golden's newest snapshot, if it does not yet.
pub(super) async fn refresh(context: &Context, named: Option<&str>) -> anyhow::Result<()> {
    let golden = context.golden(named);
    let answer = Api::of(context)?.call(Method::GET, "/api/v1/snapshots", None).await?;
    let newest = newest(&answer, golden).with_context(|| {
        format!(
            "the daemon has no usable snapshot of {golden} that was not refused: \
             take one with `demo-multiplexer snapshot create {golden}`"
        )
    })?;
    let id = text(newest, "id");
    if newest["served"] == true {
        match context.output {
            Output::Json => print_json(newest)?,
            Output::Text => println!("{id} is served already"),
        }
        return Ok(());
    }
    promote(context, &id.parse()?).await
}

/// The newest snapshot of a golden that may be served.
fn newest<'a>(answer: &'a Value, golden: &str) -> Option<&'a Value> {
    let all = answer["snapshots"].as_array()?.iter();
    let fit = all.filter(|it| it["golden"] == golden && it["unusable"].is_null() && it["refused"].is_null());
    // RFC 3339 in one time zone sorts as text.
    fit.max_by_key(|it| text(it, "created_at"))
}

/// Waits for a task's end and tells its steps.
pub(super) async fn wait(api: &Api, begun: &Value) -> anyhow::Result<Value> {
    let progress = Progress::of_steps();
    let path = format!("/api/v1/tasks/{}", begun["number"]);
    let mut told = 0;
    loop {
        let task = api.call(Method::GET, &path, None).await?;
        let steps = task["steps"].as_array().cloned().unwrap_or_default();
        for step in steps.iter().skip(told) {
            progress.say(step.as_str().unwrap_or_default());
        }
        told = steps.len();
        if task["state"] != "running" {
            return Ok(task);
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_that_may_be_served_is_taken() {
        let snapshot = |id: &str, golden: &str, at: &str, refused: Option<&str>| json!({ "id": id, "golden": golden, "created_at": at, "unusable": null, "refused": refused });
        let answer = json!({ "snapshots": [
            snapshot("a", "shop", "2026-01-01T00:00:00Z", None),
            snapshot("b", "shop", "2026-03-01T00:00:00Z", Some("its front page does not come")),
            snapshot("c", "shop", "2026-02-01T00:00:00Z", None),
            snapshot("d", "other", "2026-04-01T00:00:00Z", None),
        ]});
        assert_eq!(newest(&answer, "shop").unwrap()["id"], "c");
        assert!(newest(&answer, "nothing").is_none());
    }
}
