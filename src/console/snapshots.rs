//! `/admin/snapshots`: snapshots, goldens, and the tasks on them.

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;

use super::Console;
use super::pages::{bytes, clock};
use super::texts::Texts;
use super::top::{Frame, Top};
use crate::error::Chain;
use crate::lang::{Lang, fill};
use crate::promote::{Kind, Outcome, Snapshot, Task};
use crate::web::page::Shell;

/// One snapshot's row.
struct Row {
    id: String,
    golden: String,
    taken: String,
    size: String,
    unpacked: String,
    instances: String,
    is_served: bool,
    trouble: Option<String>,
    may_serve: bool,
    may_remove: bool,
}

impl Row {
    fn of(snapshot: Snapshot, lang: Lang, t: &Texts) -> Self {
        let Snapshot { listed, served, instances } = snapshot;
        let unusable = listed.unusable.as_ref().map(|why| fill(t.unusable, &[why]));
        let refused = listed.refused.as_ref().map(|why| fill(t.refused, &[why]));
        Self {
            id: listed.id.to_string(),
            golden: listed.golden.map(|golden| golden.to_string()).unwrap_or_default(),
            taken: listed.created_at.map(clock).unwrap_or_default(),
            size: bytes(lang, listed.bytes),
            unpacked: fill(t.unpacked, &[&bytes(lang, listed.raw_bytes)]),
            instances: fill(t.runs_on, &[&instances.len().to_string()]),
            is_served: served,
            may_serve: !served && unusable.is_none(),
            may_remove: !served && instances.is_empty(),
            trouble: unusable.or(refused),
        }
    }
}

struct GoldenRow {
    /// Whether it was a visitor's shop, and may be withdrawn.
    is_published: bool,
    name: String,
    title: String,
    from: String,
}

struct TaskRow {
    what: String,
    state: &'static str,
    tone: &'static str,
    is_running: bool,
    when: String,
    last: String,
    steps: Vec<String>,
}

impl TaskRow {
    fn of(task: Task, t: &'static Texts) -> Self {
        let what = match task.kind {
            Kind::Create => t.task_create,
            Kind::Verify => t.task_verify,
            Kind::Promote => t.task_promote,
            Kind::Follow => t.task_follow,
            Kind::Begin => t.task_begin,
            Kind::Publish => t.task_publish,
            Kind::Withdraw => t.task_withdraw,
            Kind::Prune => t.task_prune,
            Kind::Remove => t.task_remove,
        };
        let (state, tone, last) = match &task.outcome {
            Outcome::Running => (t.running, "warn", task.steps.last().cloned().unwrap_or_default()),
            Outcome::Done(result) => (t.done, "good", result.clone()),
            Outcome::Failed(error) => (t.failed, "bad", error.clone()),
        };
        Self {
            what: fill(what, &[&task.subject]),
            state,
            tone,
            is_running: task.outcome == Outcome::Running,
            when: clock(task.began_at),
            last,
            steps: task.steps,
        }
    }
}

#[derive(Template)]
#[template(path = "console/snapshots.html", config = ".askama.toml")]
struct Page {
    shell: Shell,
    t: &'static Texts,
    frame: Frame,
    snapshots: Vec<Row>,
    /// Why there are none.
    trouble: Option<String>,
    goldens: Vec<GoldenRow>,
    tasks: Vec<TaskRow>,
    is_busy: bool,
}

/// `GET /admin/snapshots`
pub(super) async fn show(State(console): State<Console>, top: Top) -> Response {
    let Top { shell, t, frame } = top;
    let desk = &console.api.desk;
    let (snapshots, trouble) = match desk.snapshots().await {
        Ok(all) => (all, None),
        Err(error) => (Vec::new(), Some(Chain(&error).to_string())),
    };
    let served = desk.served();
    let goldens = console.api.provisioner.lifecycle().goldens();
    let published = desk.published().await;
    let goldens = goldens.iter().map(|golden| GoldenRow {
        is_published: published.contains(&golden.name),
        name: golden.name.to_string(),
        title: golden.title.clone(),
        from: match (served.get(&golden.name), &golden.restore) {
            (Some(id), _) => fill(t.restored_from, &[id.as_str()]),
            (None, Err(why)) => fill(t.only_booted, &[why]),
            (None, Ok(_)) => String::new(),
        },
    });
    let tasks: Vec<TaskRow> = desk.tasks().into_iter().map(|task| TaskRow::of(task, t)).collect();
    let page = Page {
        shell,
        t,
        frame,
        // The newest first: names end with their time.
        snapshots: snapshots.into_iter().rev().map(|it| Row::of(it, shell.lang, t)).collect(),
        trouble,
        goldens: goldens.collect(),
        is_busy: tasks.iter().any(|task| task.is_running),
        tasks,
    };
    console.site.page(shell.lang, StatusCode::OK, &page)
}
