//! `/admin/instances`: the list, and one of them with its logs.

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use http::{StatusCode, Uri};
use jiff::Timestamp;
use serde::Deserialize;

use super::Console;
use super::pages::{clock, refused};
use super::texts::Texts;
use super::top::{Frame, Top};
use crate::api::instances::{Search, find, shell_command};
use crate::api::logs;
use crate::api::problem::Problem;
use crate::id::InstanceId;
use crate::instance::{Instance, State as InstanceState};
use crate::lang::{Lang, fill};
use crate::restore::logs::LogEnd;
use crate::web::page::Shell;

/// The list's own page.
const LIST: &str = "/admin/instances";

/// Rows of the table at most; a search finds the rest.
const ROWS: usize = 100;

/// Lines of each log file.
const LINES: usize = 100;

/// The search's form.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Form {
    q: String,
    state: String,
    golden: String,
    sort: String,
}

/// One instance's row.
struct Row {
    id: String,
    golden: String,
    state: InstanceState,
    tone: &'static str,
    left: String,
    source: &'static str,
    url: Option<String>,
    may_release: bool,
    may_log_in: bool,
}

impl Row {
    fn of(instance: &Instance, lang: Lang, now: Timestamp) -> Self {
        let is_somebodys = matches!(instance.state, InstanceState::Assigned | InstanceState::Hibernated);
        let lives = !instance.state.is_final() && instance.state != InstanceState::Warming;
        let access = instance.access.as_ref().filter(|_| lives);
        Self {
            id: instance.id.to_string(),
            golden: instance.golden.to_string(),
            state: instance.state,
            tone: match instance.state {
                InstanceState::Ready => "good",
                InstanceState::Assigned => "accent",
                InstanceState::Failed => "bad",
                InstanceState::Warming | InstanceState::Hibernated | InstanceState::Expired => "warn",
            },
            left: instance
                .expires_at
                .map_or_else(|| "–".to_owned(), |end| lang.duration(end.duration_since(now))),
            source: instance.source.unwrap_or(instance.made_by).as_str(),
            url: access.map(|access| access.url.clone()),
            may_release: lives,
            // One that sleeps is woken by it.
            may_log_in: is_somebodys && access.is_some_and(|access| access.one_click.is_some()),
        }
    }

    fn is_awake(&self) -> bool {
        self.state == InstanceState::Assigned
    }

    fn is_asleep(&self) -> bool {
        self.state == InstanceState::Hibernated
    }
}

/// One choice of a list.
struct Choice {
    value: String,
    label: String,
    is_chosen: bool,
}

#[derive(Template)]
#[template(path = "console/instances.html", config = ".askama.toml")]
struct ListPage {
    shell: Shell,
    t: &'static Texts,
    frame: Frame,
    q: String,
    states: Vec<Choice>,
    goldens: Vec<Choice>,
    sorts: Vec<Choice>,
    rows: Vec<Row>,
    shown: String,
    /// Where actions lead back to.
    back: String,
}

/// `GET /admin/instances`
pub(super) async fn list(
    State(console): State<Console>,
    Query(form): Query<Form>,
    uri: Uri,
    top: Top,
) -> Response {
    let given = |text: &String| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let search = Search {
        q: given(&form.q),
        state: given(&form.state),
        golden: given(&form.golden),
        sort: given(&form.sort),
        limit: Some(ROWS),
    };
    let (found, total) = match find(&console.api, search).await {
        Ok(found) => found,
        Err(problem) => return refused(&console, top, &problem, LIST.into()),
    };
    let (Top { shell, t, frame }, now) = (top, Timestamp::now());
    let any = || Choice { value: String::new(), label: t.any.to_owned(), is_chosen: false };
    let choice = |value: &str, label: &str, chosen: &str| Choice {
        value: value.to_owned(),
        label: label.to_owned(),
        is_chosen: value == chosen,
    };
    let states = InstanceState::ALL.map(|state| choice(state.as_str(), state.as_str(), &form.state));
    let goldens = console.api.provisioner.lifecycle().goldens();
    let goldens = goldens.iter().map(|it| choice(it.name.as_str(), it.name.as_str(), &form.golden));
    let sorts = [
        ("created", t.sort_created),
        ("-created", t.sort_created_back),
        ("expires", t.sort_expires),
        ("golden", t.sort_golden),
        ("state", t.sort_state),
        ("id", t.sort_id),
    ];
    let page = ListPage {
        shell,
        t,
        frame,
        states: std::iter::once(any()).chain(states).collect(),
        goldens: std::iter::once(any()).chain(goldens).collect(),
        sorts: sorts.map(|(value, label)| choice(value, label, &form.sort)).into(),
        shown: fill(t.shown_of, &[&found.len().to_string(), &total.to_string()]),
        rows: found.iter().map(|instance| Row::of(instance, shell.lang, now)).collect(),
        back: back(&uri),
        q: form.q,
    };
    console.site.page(shell.lang, StatusCode::OK, &page)
}

/// The list's own address, with its search.
fn back(uri: &Uri) -> String {
    let pairs = uri.query().unwrap_or_default().split('&');
    // What was done is told once.
    let kept: Vec<&str> = pairs.filter(|pair| !pair.is_empty() && !pair.starts_with("did=")).collect();
    match kept.is_empty() {
        true => LIST.to_owned(),
        false => format!("{LIST}?{}", kept.join("&")),
    }
}

#[derive(Template)]
#[template(path = "console/instance.html", config = ".askama.toml")]
struct InstancePage {
    shell: Shell,
    t: &'static Texts,
    frame: Frame,
    row: Row,
    shell_command: String,
    snapshot: String,
    node: String,
    created: String,
    logs: Vec<Log>,
    /// Why there are no logs.
    no_logs: Option<String>,
    back: String,
}

/// One log file.
struct Log {
    path: String,
    text: String,
}

/// `GET /admin/instances/{id}`
pub(super) async fn show(State(console): State<Console>, Path(id): Path<String>, top: Top) -> Response {
    let now = Timestamp::now();
    let instance = match of_name(&console, &id, now).await {
        Ok(instance) => instance,
        Err(problem) => return refused(&console, top, &problem, LIST.into()),
    };
    let Top { shell, t, frame } = top;
    let (logs, no_logs) = match logs::read(&console.api, &instance, LINES).await {
        Ok(ends) if ends.is_empty() => (Vec::new(), Some(t.no_logs.to_owned())),
        Ok(ends) => (ends.into_iter().map(|end| log(end, t)).collect(), None),
        Err(problem) => (Vec::new(), Some(problem.detail().to_owned())),
    };
    let page = InstancePage {
        shell,
        t,
        frame,
        row: Row::of(&instance, shell.lang, now),
        shell_command: shell_command(&instance),
        snapshot: instance.snapshot.as_ref().map_or_else(|| "–".to_owned(), ToString::to_string),
        node: instance.node.to_string(),
        created: clock(instance.created_at),
        logs,
        no_logs,
        back: format!("{LIST}/{}", instance.id),
    };
    console.site.page(shell.lang, StatusCode::OK, &page)
}

fn log(end: LogEnd, t: &Texts) -> Log {
    let text = match end.text {
        Ok(text) if text.is_empty() => t.empty.to_owned(),
        Ok(text) => text,
        Err(error) => fill(t.cannot_read, &[&error]),
    };
    Log { path: end.path, text }
}

/// The instance that a path names.
pub(super) async fn of_name(console: &Console, id: &str, now: Timestamp) -> Result<Instance, Problem> {
    let id: InstanceId =
        id.parse().map_err(|error: crate::id::IdError| Problem::not_found(error.to_string()))?;
    Ok(console.api.provisioner.show(&id, now).await?)
}
