//! `/admin/saved`: shops that their visitors have kept.

use askama::Template;
use axum::Form;
use axum::extract::{Path, State};
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;

use super::Console;
use super::act::done;
use super::pages::{bytes, clock, refused};
use super::texts::Texts;
use super::top::{Frame, Top};
use crate::api::problem::Problem;
use crate::api::saved::{SavedList, begin};
use crate::id::InstanceId;
use crate::lang::fill;
use crate::snapshot::shelf::Shelf;
use crate::web::page::Shell;

const PAGE: &str = "/admin/saved";

struct Row {
    id: String,
    golden: String,
    snapshot: String,
    saved: String,
    until: String,
    size: String,
}

/// One whose record cannot be read.
struct Broken {
    id: String,
    why: String,
}

#[derive(Template)]
#[template(path = "console/saved.html", config = ".askama.toml")]
struct Page {
    shell: Shell,
    t: &'static Texts,
    frame: Frame,
    lead: String,
    saved: Vec<Row>,
    broken: Vec<Broken>,
    /// Why they cannot be listed.
    trouble: Option<String>,
    max_instances: usize,
}

/// `GET /admin/saved`
pub(super) async fn show(State(console): State<Console>, top: Top) -> Response {
    let Top { shell, t, frame } = top;
    let (list, trouble) = match list(&console).await {
        Ok(list) => (list, None),
        Err(problem) => {
            (SavedList { saved: Vec::new(), unreadable: Vec::new() }, Some(problem.detail().to_owned()))
        }
    };
    let taken = list.saved.iter().map(|saved| saved.bytes).sum();
    let limits = console.api.provisioner.keeping().map(|keeping| keeping.shelf.limits());
    let lead = limits.map_or_else(
        |_| String::new(),
        |limits| {
            let count = list.saved.len() + list.unreadable.len();
            let (count, max) = (count.to_string(), limits.max.to_string());
            let (taken, most) = (bytes(shell.lang, taken), bytes(shell.lang, limits.max_bytes));
            fill(t.kept_of, &[&count, &max, &taken, &most])
        },
    );
    let row = |saved: crate::api::saved::SavedAnswer| Row {
        id: saved.id,
        golden: saved.golden,
        snapshot: saved.snapshot,
        saved: clock(saved.saved_at),
        until: clock(saved.until),
        size: bytes(shell.lang, saved.bytes),
    };
    let page = Page {
        shell,
        t,
        frame,
        lead,
        saved: list.saved.into_iter().map(row).collect(),
        broken: list.unreadable.into_iter().map(|it| Broken { id: it.id, why: it.why }).collect(),
        trouble,
        max_instances: console.api.provisioner.lifecycle().max_instances(),
    };
    console.site.page(shell.lang, StatusCode::OK, &page)
}

async fn list(console: &Console) -> Result<SavedList, Problem> {
    let entries = console.api.provisioner.keeping()?.on_shelf(Shelf::list).await?;
    Ok(SavedList::of(&entries))
}

/// What the page's forms ask with.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Fields {
    id: String,
    golden: String,
    title: String,
    pool: String,
}

/// `POST /admin/saved/{verb}`
pub(super) async fn act(
    State(console): State<Console>,
    Path(verb): Path<String>,
    top: Top,
    Form(fields): Form<Fields>,
) -> Response {
    match do_it(&console, &verb, fields).await {
        Ok(did) => done(if did == "begun" { "/admin/snapshots" } else { PAGE }, did),
        Err(problem) => refused(&console, top, &problem, PAGE.to_owned()),
    }
}

async fn do_it(console: &Console, verb: &str, fields: Fields) -> Result<&'static str, Problem> {
    let id = fields.id.parse::<InstanceId>();
    let id = id.map_err(|_| Problem::not_found("no instance is named so"))?;
    match verb {
        "remove" => {
            console.api.provisioner.keeping()?.on_shelf(move |shelf| shelf.remove(&id)).await?;
            Ok("removed")
        }
        "publish" => {
            let pool = match fields.pool.trim() {
                "" => None,
                given => Some(given.parse().map_err(|_| Problem::invalid("the pool is no number"))?),
            };
            begin(&console.api, id, fields.golden.trim(), (Some(fields.title), pool)).await?;
            Ok("begun")
        }
        _ => Err(Problem::not_found("there is nothing like that to do")),
    }
}
