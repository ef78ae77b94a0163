//! `/admin`: gauges, what may be changed, and the last hour in charts.

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use jiff::Timestamp;

use super::Console;
use super::chart::{self, Chart, Line};
use super::pages::{EventRow, bytes, event_rows, percent};
use super::texts::Texts;
use super::top::{Frame, Top};
use crate::api::chronicle::Sample;
use crate::api::nodes::{self, NodeAnswer};
use crate::engine::Phase;
use crate::instance::State as InstanceState;
use crate::lang::{Lang, fill};
use crate::provision::GoldenRuntime;
use crate::web::page::Shell;

/// Events shown beside the charts.
const EVENTS: usize = 8;

/// Phases in the order in which they pass, with their lines' looks.
const PHASES: [(Phase, &str); 6] = [
    (Phase::Slot, "a"),
    (Phase::Database, "b"),
    (Phase::Restore, "c"),
    (Phase::Adopt, "d"),
    (Phase::Personalize, "e"),
    (Phase::Probe, "f"),
];

/// One golden's row.
struct GoldenRow {
    name: String,
    title: String,
    ready: usize,
    assigned: usize,
    coming: usize,
    target: usize,
    usual: String,
    target_label: String,
    hit_ratio: String,
    failures: u64,
    last_error: Option<String>,
}

/// One node's row.
struct NodeRow {
    name: String,
    address: String,
    condition: &'static str,
    is_bad: bool,
    ready: usize,
    room: String,
    version: String,
}

/// One number with its words.
struct Gauge {
    id: &'static str,
    name: &'static str,
    value: String,
    note: String,
    is_bad: bool,
}

#[derive(Template)]
#[template(path = "console/overview.html", config = ".askama.toml")]
struct Page {
    shell: Shell,
    t: &'static Texts,
    frame: Frame,
    drained: bool,
    max: usize,
    gauges: Vec<Gauge>,
    goldens: Vec<GoldenRow>,
    /// None when there is one.
    nodes: Vec<NodeRow>,
    charts: Vec<Chart>,
    events: Vec<EventRow>,
}

/// `GET /admin`
pub(super) async fn show(State(console): State<Console>, top: Top) -> Response {
    let Top { shell, t, frame } = top;
    let lifecycle = console.api.provisioner.lifecycle();
    let mut goldens = Vec::new();
    for golden in lifecycle.goldens() {
        goldens.push(row(&console, golden, shell.lang, t).await);
    }
    let page = Page {
        shell,
        t,
        frame,
        drained: lifecycle.aim().is_drained(),
        max: lifecycle.max_instances(),
        gauges: gauges(&console, &goldens, shell.lang, t),
        charts: charts(&console.api.chronicle.samples(60), shell.lang, t),
        events: event_rows(&console, EVENTS),
        goldens,
        nodes: node_rows(&console, t).await,
    };
    console.site.page(shell.lang, StatusCode::OK, &page)
}

/// Those of all nodes, where there are several.
async fn node_rows(console: &Console, t: &'static Texts) -> Vec<NodeRow> {
    if console.api.provisioner.peers().is_none() {
        return Vec::new();
    }
    let row = |node: NodeAnswer| {
        let (condition, is_bad) = match (node.condition, node.drained) {
            ("here", true) => (t.node_drained, false),
            ("here", false) => (t.node_here, false),
            ("away", _) => (t.node_away, true),
            ("lost", _) => (t.node_lost, true),
            _ => (t.node_silent, true),
        };
        NodeRow {
            address: node.address.unwrap_or_default(),
            condition,
            is_bad,
            ready: node.goldens.iter().map(|golden| golden.ready).sum(),
            room: format!("{} / {}", node.room, node.max_instances),
            version: node.version,
            name: node.node,
        }
    };
    nodes::all(&console.api).await.unwrap_or_default().into_iter().map(row).collect()
}

async fn row(console: &Console, golden: &GoldenRuntime, lang: Lang, t: &Texts) -> GoldenRow {
    let lifecycle = console.api.provisioner.lifecycle();
    // Without the store there is nothing to count; /health says why.
    let counts = lifecycle.store().counts(&golden.name).await.unwrap_or_default();
    let count = |state| counts.get(&state).copied().unwrap_or(0);
    let pool = console.api.pool.borrow().get(&golden.name).cloned().unwrap_or_default();
    let tally = lifecycle.tally().of(&golden.name);
    GoldenRow {
        name: golden.name.to_string(),
        title: golden.title.clone(),
        ready: count(InstanceState::Ready),
        assigned: count(InstanceState::Assigned) + count(InstanceState::Hibernated),
        coming: count(InstanceState::Warming),
        target: lifecycle.aim().target(&golden.name, pool.usual),
        usual: fill(t.usual, &[&pool.usual.to_string()]),
        target_label: fill(t.target_of, &[golden.name.as_str()]),
        hit_ratio: tally.hit_ratio().map_or_else(|| "–".to_owned(), |part| percent(lang, part)),
        failures: tally.failures,
        last_error: tally.last_failure.map(|it| fill(t.last_error, &[&it.error])),
    }
}

fn gauges(console: &Console, goldens: &[GoldenRow], lang: Lang, t: &'static Texts) -> Vec<Gauge> {
    let lifecycle = console.api.provisioner.lifecycle();
    let sum = |of: fn(&GoldenRow) -> usize| goldens.iter().map(of).sum::<usize>();
    let (ready, target) = (sum(|it| it.ready), sum(|it| it.target));
    let (max, taken) = (
        lifecycle.max_instances(),
        lifecycle.max_instances() - lifecycle.room().min(lifecycle.max_instances()),
    );
    let waiting = lifecycle.gate().clients_waiting();
    let (mut hits, mut all) = (0, 0);
    for golden in lifecycle.goldens() {
        let handed = lifecycle.tally().of(&golden.name).handed_over;
        hits += handed.get("pool").copied().unwrap_or(0);
        all += handed.values().sum::<u64>();
    }
    #[expect(clippy::cast_precision_loss, reason = "a ratio shown with two digits")]
    let ratio = (all > 0).then(|| hits as f64 / all as f64);
    let gauge = |id, name, value: String, note: String, is_bad| Gauge { id, name, value, note, is_bad };
    vec![
        gauge("ready", t.ready, ready.to_string(), fill(t.of_target, &[&target.to_string()]), ready < target),
        gauge("assigned", t.assigned, sum(|it| it.assigned).to_string(), String::new(), false),
        gauge("coming", t.coming, sum(|it| it.coming).to_string(), String::new(), false),
        gauge("taken", t.in_use, taken.to_string(), fill(t.of_max, &[&max.to_string()]), taken >= max),
        gauge("waiting", t.waiting, waiting.to_string(), String::new(), waiting > 0),
        gauge(
            "hits",
            t.hit_ratio,
            ratio.map_or_else(|| "–".to_owned(), |part| percent(lang, part)),
            t.since_start.to_owned(),
            false,
        ),
    ]
}

fn charts(samples: &[Sample], lang: Lang, t: &'static Texts) -> Vec<Chart> {
    let times: Vec<Timestamp> = samples.iter().map(|sample| sample.at).collect();
    let line = |name: &str, class, of: &dyn Fn(&Sample) -> Option<f64>| Line {
        name: name.to_owned(),
        class,
        values: samples.iter().map(of).collect(),
    };
    let state = |name: &'static str| move |sample: &Sample| Some(number(sample.states.get(name).copied()));
    let whole = |value: f64| format!("{value:.0}");
    let ms = |value: f64| lang.ms(value);
    let pool = vec![
        line(t.ready, "a", &state("ready")),
        line(t.assigned, "b", &state("assigned")),
        line(t.target, "z", &|sample| Some(number(Some(sample.target)))),
    ];
    let sources = [
        ("pool", t.from_pool, "a", "a2"),
        ("restore", t.from_restore, "b", "b2"),
        ("cold", t.from_cold, "c", "c2"),
    ];
    let latency = sources.into_iter().flat_map(|(source, name, median, high)| {
        let p50 = line(&fill(name, &["p50"]), median, &|sample| Some(sample.acquires.get(source)?.p50));
        let p95 = line(&fill(name, &["p95"]), high, &|sample| Some(sample.acquires.get(source)?.p95));
        [p50, p95]
    });
    // A source that nothing came from is not worth its words.
    let latency = latency.filter(|line| line.values.iter().any(Option::is_some)).collect();
    let phases = PHASES.into_iter().map(|(phase, class)| {
        line(phase.as_str(), class, &|sample| sample.phases_ms.get(phase.as_str()).copied())
    });
    let phases = phases.filter(|line| line.values.iter().any(Option::is_some)).collect();
    let part = |used: u64, all: u64| {
        #[expect(clippy::cast_precision_loss, reason = "a ratio shown with two digits")]
        (all > 0).then(|| used as f64 / all as f64)
    };
    let (memory, disk) = samples.last().map_or((0, 0), |it| (it.memory_bytes, it.disk_bytes));
    let of_whole = |whole: u64| {
        move |value: f64| {
            #[expect(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "shown with one decimal"
            )]
            let shown = (value * whole as f64) as u64;
            bytes(lang, shown)
        }
    };
    vec![
        chart::draw(("chart-pool", t.chart_pool), &times, pool, None, whole),
        chart::draw(("chart-latency", t.chart_latency), &times, latency, None, ms),
        chart::draw(
            ("chart-hits", t.chart_hits),
            &times,
            vec![line(t.hit_ratio, "a", &|sample| sample.hit_ratio)],
            Some(1.0),
            |value| percent(lang, value),
        ),
        chart::draw(("chart-phases", t.chart_phases), &times, phases, None, ms),
        chart::draw(
            ("chart-memory", t.chart_memory),
            &times,
            vec![line(t.used, "b", &|it| part(it.memory_used_bytes, it.memory_bytes))],
            Some(1.0),
            of_whole(memory),
        ),
        chart::draw(
            ("chart-disk", t.chart_disk),
            &times,
            vec![line(t.used, "b", &|it| part(it.disk_used_bytes, it.disk_bytes))],
            Some(1.0),
            of_whole(disk),
        ),
        chart::draw(
            ("chart-errors", t.chart_errors),
            &times,
            vec![
                line(t.not_made, "c", &|sample| Some(f64::from(sample.failures))),
                line(t.turned_away, "d", &|sample| Some(f64::from(sample.turned_away))),
            ],
            None,
            whole,
        ),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "counts of instances are far below 2^52")]
fn number(count: Option<usize>) -> f64 {
    count.unwrap_or(0) as f64
}
