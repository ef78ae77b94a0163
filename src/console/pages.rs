//! The entrance, the smaller pages, and how all pages of the console write numbers.

use askama::Template;
use axum::Form;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde::Deserialize;

use super::session::Refused;
use super::texts::Texts;
use super::top::{Frame, Top};
use super::{Console, peer_of};
use crate::api::problem::Problem;
use crate::client::Client;
use crate::lang::{Lang, fill};
use crate::provision::limits::Span;
use crate::web::page::Shell;

/// A time of day, as logs have it.
pub(super) fn clock(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Bytes in words.
pub(super) fn bytes(lang: Lang, count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let mib = count as f64 / f64::from(1 << 20);
    let (value, unit) = if mib >= 1024.0 { (mib / 1024.0, "GiB") } else { (mib, "MiB") };
    let text = format!("{value:.1}\u{a0}{unit}");
    match lang {
        Lang::En => text,
        Lang::Fr => text.replace('.', ",").replace("iB", "io"),
    }
}

/// A part of a whole in words.
pub(super) fn percent(lang: Lang, part: f64) -> String {
    match lang {
        Lang::En => format!("{:.0}%", part * 100.0),
        Lang::Fr => format!("{:.0}\u{a0}%", part * 100.0),
    }
}

#[derive(Template)]
#[template(path = "console/sign_in.html", config = ".askama.toml")]
struct Entrance {
    shell: Shell,
    t: &'static Texts,
    frame: Frame,
    error: Option<String>,
    has_tokens: bool,
}

impl Entrance {
    fn answer(console: &Console, headers: &HeaderMap, status: StatusCode, error: Option<String>) -> Response {
        let Top { shell, t, frame } = Top::of_nobody(Shell::of(headers));
        let page = Self { shell, t, frame, error, has_tokens: !console.api.access.tokens.is_empty() };
        console.site.page(shell.lang, status, &page)
    }
}

fn to_overview() -> Response {
    (StatusCode::SEE_OTHER, [(header::LOCATION, "/admin")]).into_response()
}

/// `GET /admin/sign-in`
pub(super) async fn entrance(State(console): State<Console>, request: Request) -> Response {
    let (peer, headers) = (peer_of(&request), request.headers());
    if console.auth.operator(&console.api, headers, peer, Timestamp::now()).is_some() {
        return to_overview();
    }
    Entrance::answer(&console, headers, StatusCode::OK, None)
}

/// The entrance's form.
#[derive(Deserialize)]
pub(super) struct Credentials {
    #[serde(default)]
    token: String,
}

/// `POST /admin/sign-in`
pub(super) async fn sign_in(State(console): State<Console>, request: Request) -> Response {
    use axum::extract::FromRequest as _;
    let (peer, headers) = (peer_of(&request), request.headers().clone());
    let Ok(Form(Credentials { token })) = Form::from_request(request, &()).await else {
        return Entrance::answer(&console, &headers, StatusCode::BAD_REQUEST, None);
    };
    let t = Texts::of(Lang::of(&headers));
    let client = Client::of(peer, &headers, &console.api.trusted_proxies);
    match console.auth.sign_in(&console.api, &token, &client, Timestamp::now()) {
        Ok(cookie) => {
            let mut response = to_overview();
            response.headers_mut().insert(header::SET_COOKIE, cookie);
            response
        }
        Err(Refused::Token) => {
            Entrance::answer(&console, &headers, StatusCode::FORBIDDEN, Some(t.token_wrong.to_owned()))
        }
        Err(Refused::TooMany(wait)) => {
            let error = fill(t.too_many, &[&Lang::of(&headers).duration(wait)]);
            let mut response =
                Entrance::answer(&console, &headers, StatusCode::TOO_MANY_REQUESTS, Some(error));
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
            response
        }
    }
}

/// `POST /admin/sign-out`
pub(super) async fn sign_out(State(console): State<Console>) -> Response {
    let location = [(header::LOCATION, HeaderValue::from_static("/admin/sign-in"))];
    let mut response = (StatusCode::SEE_OTHER, location).into_response();
    response.headers_mut().insert(header::SET_COOKIE, console.auth.sign_out());
    response
}

#[derive(Template)]
#[template(path = "console/refused.html", config = ".askama.toml")]
struct RefusedPage {
    shell: Shell,
    t: &'static Texts,
    frame: Frame,
    detail: String,
    back: String,
}

/// A page that says why something was not done.
pub(super) fn refused(console: &Console, top: Top, problem: &Problem, back: String) -> Response {
    let Top { shell, t, frame } = top;
    let page = RefusedPage { shell, t, frame, detail: problem.detail().to_owned(), back };
    console.site.page(shell.lang, problem.status(), &page)
}

struct ClientRow {
    client: String,
    seen: String,
    hour_left: String,
    day_left: String,
    refused: u64,
    is_limited: bool,
}

#[derive(Template)]
#[template(path = "console/limits.html", config = ".askama.toml")]
struct LimitsPage {
    shell: Shell,
    t: &'static Texts,
    frame: Frame,
    lead: String,
    clients: Vec<ClientRow>,
}

/// Rows of a table at most; the API has the rest.
const ROWS: usize = 200;

/// `GET /admin/limits`
pub(super) async fn limits(State(console): State<Console>, top: Top) -> Response {
    let (Top { shell, t, frame }, now) = (top, Timestamp::now());
    let limits = console.api.provisioner.terms().limits;
    let seen = console.api.provisioner.clients().all(now);
    let row = |seen: &crate::provision::standing::Seen| {
        let left = |span| {
            let found = seen.standings.iter().find(|standing| standing.span == span);
            found.map_or_else(|| "–".to_owned(), |it| it.allowance.remaining.to_string())
        };
        ClientRow {
            client: seen.client.as_str().to_owned(),
            seen: clock(seen.at),
            hour_left: left(Span::Hour),
            day_left: left(Span::Day),
            refused: seen.refused,
            is_limited: seen.left_at(now) <= 0.0,
        }
    };
    let page = LimitsPage {
        shell,
        t,
        frame,
        lead: fill(t.limits_are, &[&limits.hourly.to_string(), &limits.daily.to_string()]),
        clients: seen.iter().take(ROWS).map(row).collect(),
    };
    console.site.page(shell.lang, StatusCode::OK, &page)
}

/// One line of the events.
pub(super) struct EventRow {
    pub(super) when: String,
    pub(super) instance: String,
    pub(super) golden: String,
    pub(super) happened: &'static str,
    pub(super) source: &'static str,
}

/// The last events.
pub(super) fn event_rows(console: &Console, limit: usize) -> Vec<EventRow> {
    let rows = console.api.chronicle.changes(limit).into_iter().map(|change| EventRow {
        when: clock(change.at),
        instance: change.instance_id,
        golden: change.golden,
        happened: change.happened,
        source: change.source,
    });
    rows.collect()
}

#[derive(Template)]
#[template(path = "console/events.html", config = ".askama.toml")]
struct EventsPage {
    shell: Shell,
    t: &'static Texts,
    frame: Frame,
    events: Vec<EventRow>,
}

/// `GET /admin/events`
pub(super) async fn events(State(console): State<Console>, top: Top) -> Response {
    let Top { shell, t, frame } = top;
    let page = EventsPage { shell, t, frame, events: event_rows(&console, ROWS) };
    console.site.page(shell.lang, StatusCode::OK, &page)
}
