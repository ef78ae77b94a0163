//! The click: a visitor gets an instance, or a place in the line.
//!
//! ```text
//! POST /demo  has one of that golden already       -> to it
//!             the line has others before            -> /wait
//!             tried: got one                        -> to it
//!                    still being made, or no room   -> /wait
//!                    refused (limits, a defect)     -> a page that says so
//! GET /wait   the same again, from the visitor's place in the line; its answer
//!             has the browser ask again, with or without scripts
//! ```
//!
//! A try that takes long goes on without its request (the visitor's name is its
//! idempotency key), so the next one finds what it has made.

use std::time::{Duration, Instant};

use askama::Template;
use axum::extract::{Form, Query, Request, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use http::header::{HeaderName, SET_COOKIE};
use http::{HeaderMap, HeaderValue, StatusCode};
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret as _;

use super::line::{ASK_AGAIN, Standing};
use super::message::{self, Say};
use super::origin;
use super::page::Shell;
use super::visitor::{self, Took, Visitor};
use super::wish::{Asked, Go, Wish};
use super::{WebState, login_link};
use crate::api::problem::Problem;
use crate::client::Client;
use crate::error::ErrorKind;
use crate::instance::{Instance, State as InstanceState};
use crate::lang::{fill, texts};
use crate::provision::errors::AcquireError;
use crate::provision::{AcquireRequest, Acquired, Handed};

/// How long a request waits for an instance that is being made: a restore takes
/// well below a second, a boot is better waited for on a page that says so.
const PATIENCE: Duration = Duration::from_millis(2500);

texts! {
    /// The waiting page's texts.
    Texts {
        making: "Your demo is being made", "Votre démo est en préparation";
        making_text: "It is started for you right now, which takes some seconds. This page goes on by itself.", "Elle démarre en ce moment même pour vous, ce qui prend quelques secondes. Cette page continue toute seule.";
        waiting: "You are in line", "Vous êtes dans la file d’attente";
        waiting_text: "All demos are taken at the moment. As soon as one ends it is your turn; this page goes on by itself, keep it open.", "Toutes les démos sont prises pour le moment. Dès que l’une se termine, c’est votre tour\u{a0}; cette page continue toute seule, gardez-la ouverte.";
        place: "Your place", "Votre place";
        of: "{} of {}", "{} sur {}";
        expected: "Expected wait", "Attente prévue";
        at_most: "{} at most", "{} au plus";
        unknown: "not known yet", "pas encore connue";
        again: "Ask now", "Demander maintenant";
        leave: "Leave the line", "Quitter la file";
    }
}

#[derive(Template)]
#[template(path = "waiting.html", config = ".askama.toml")]
struct Waiting {
    shell: Shell,
    t: &'static Texts,
    making: bool,
    title: String,
    place: String,
    expected: String,
    again: String,
}

/// What came of one try.
enum Tried {
    Got(Box<Acquired>),
    /// It is being made.
    Making,
    /// There is no room, or something does not answer: later.
    Later(AcquireError),
    Refused(AcquireError),
}

/// `POST /demo`
pub(super) async fn click(State(web): State<WebState>, request: Request) -> Response {
    let client = visitor::client(&request, &web.trusted_proxies);
    let headers = request.headers().clone();
    let shell = Shell::of(&headers);
    let asked = match <Form<Asked> as axum::extract::FromRequest<()>>::from_request(request, &()).await {
        Ok(Form(asked)) => asked,
        Err(_) => return message::say(&web.site, shell, Say::Wrong(super::wish::Wrong::Go)),
    };
    let known = Visitor::of(&headers, &web.site);
    let visitor = known.clone().unwrap_or_else(Visitor::new);
    let mut response = serve(&web, shell, &headers, &visitor, client, &asked, First::Yes).await;
    // Only those who get or wait for something are remembered.
    if known.is_none() && response.status().is_redirection() {
        response.headers_mut().append(SET_COOKIE, visitor.cookie(&web.site));
    }
    response
}

/// `GET /wait`
pub(super) async fn wait(
    State(web): State<WebState>,
    Query(asked): Query<Asked>,
    request: Request,
) -> Response {
    let (shell, headers) = (Shell::of(request.headers()), request.headers());
    // A link on another site's page acquires nothing.
    let (true, Some(visitor)) = (origin::is_own(headers), Visitor::of(headers, &web.site)) else {
        return Redirect::to("/").into_response();
    };
    let client = visitor::client(&request, &web.trusted_proxies);
    serve(&web, shell, headers, &visitor, client, &asked, First::No).await
}

/// Whether this is the click itself; what follows it shows the waiting page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Yes,
    No,
}

async fn serve(
    web: &WebState,
    shell: Shell,
    headers: &HeaderMap,
    visitor: &Visitor,
    client: Client,
    asked: &Asked,
    first: First,
) -> Response {
    let wish = match asked.check(&web.provisioner.lifecycle().goldens()) {
        Ok(wish) => wish,
        Err(wrong) => return message::say(&web.site, shell, Say::Wrong(wrong)),
    };
    let (holder, golden) = (visitor.holder(), wish.name());
    match web.provisioner.held(&holder, golden.as_str(), Timestamp::now()).await {
        Ok(Some(instance)) => {
            web.lines.leave(golden, &holder);
            // Waited for: the try that made it was another request's.
            let took = instance
                .assigned_at
                .filter(|_| first == First::No)
                .map(|at| Duration::try_from(at.duration_since(instance.created_at)).unwrap_or_default());
            let took = took.filter(|_| Took::of(headers, &web.site, &instance.id).is_none());
            return arrive(web, &wish, &instance, took);
        }
        Ok(None) => {}
        Err(error) => return message::problem(&web.site, shell, &error.into(), "/"),
    }
    let ahead = web.lines.ahead(golden, &holder, Instant::now());
    let tried = if ahead > 0 && ahead >= places(web, &wish).await {
        None
    } else {
        Some(attempt(web, &wish, &holder, client).await)
    };
    let making = matches!(tried, Some(Tried::Making));
    match tried {
        Some(Tried::Got(got)) => {
            web.lines.leave(golden, &holder);
            let took = matches!(got.handed, Handed::Now(_)).then_some(got.took);
            return arrive(web, &wish, &got.instance, took);
        }
        Some(Tried::Refused(error)) => {
            web.lines.leave(golden, &holder);
            return message::problem(&web.site, shell, &error.into(), "/");
        }
        // Told once and not by each page that asks again.
        Some(Tried::Later(error)) if first == First::Yes => Problem::from(error).log(),
        Some(Tried::Making | Tried::Later(_)) | None => {}
    }
    let Some(standing) = web.lines.stand(golden, &holder, Instant::now()) else {
        return message::say(&web.site, shell, Say::LineFull);
    };
    match first {
        First::Yes => Redirect::to(&format!("/wait?{}", wish.query())).into_response(),
        First::No => waiting(web, shell, &wish, standing, making).await,
    }
}

/// How many could be served at once.
async fn places(web: &WebState, wish: &Wish) -> usize {
    let lifecycle = web.provisioner.lifecycle();
    // Without the store nobody is served, and the one in front finds out.
    let counts = lifecycle.store().counts(wish.name()).await.unwrap_or_default();
    counts.get(&InstanceState::Ready).copied().unwrap_or(0) + lifecycle.room()
}

async fn attempt(web: &WebState, wish: &Wish, holder: &str, client: Client) -> Tried {
    let name = wish.name().to_string();
    let request = AcquireRequest {
        golden: Some(name.clone()),
        ttl: None,
        idempotency_key: Some(name),
        client,
        holder: Some(holder.to_owned()),
    };
    match tokio::time::timeout(PATIENCE, web.provisioner.acquire(request)).await {
        Err(_) => Tried::Making,
        Ok(Ok(got)) => Tried::Got(Box::new(got)),
        Ok(Err(error)) => match error.kind() {
            ErrorKind::Exhausted | ErrorKind::Unavailable | ErrorKind::NoSpace => Tried::Later(error),
            _ => Tried::Refused(error),
        },
    }
}

/// Leads the visitor to where the click was to end.
fn arrive(web: &WebState, wish: &Wish, instance: &Instance, took: Option<Duration>) -> Response {
    let page = match &wish.module {
        Some(module) => format!("/demo/{}?module={}", instance.id, module.as_str()),
        None => format!("/demo/{}", instance.id),
    };
    let to = match (wish.go, &instance.access) {
        (Go::Page, _) | (_, None) => page,
        (Go::Shop, Some(access)) => access.url.clone(),
        (Go::Admin, Some(access)) => {
            login_link(access, wish.module.as_ref(), Timestamp::now()).expose_secret().to_owned()
        }
    };
    let mut response = Redirect::to(&to).into_response();
    if let Some(took) = took {
        response.headers_mut().append(SET_COOKIE, Took::cookie(&web.site, &instance.id, took));
    }
    response
}

/// The page that asks again by itself.
async fn waiting(web: &WebState, shell: Shell, wish: &Wish, standing: Standing, making: bool) -> Response {
    let t = Texts::of(shell.lang);
    let expected = match expected(web, standing.ahead).await {
        Some(time) => fill(t.at_most, &[&shell.lang.duration(time)]),
        None => t.unknown.to_owned(),
    };
    let page = Waiting {
        shell,
        t,
        making,
        title: wish.golden.title.clone(),
        place: fill(t.of, &[&(standing.ahead + 1).to_string(), &standing.length.to_string()]),
        expected,
        again: format!("/wait?{}", wish.query()),
    };
    let mut response = web.site.page(shell.lang, StatusCode::OK, &page);
    // A header and no <meta>: those who read with a screen reader are not told of it each time.
    let seconds = if making { 1 } else { ASK_AGAIN.as_secs() };
    response.headers_mut().insert(HeaderName::from_static("refresh"), HeaderValue::from(seconds));
    response
}

/// Until as many instances have ended as are to be served before, and one more.
/// Visitors who release theirs make it shorter, those who extend theirs longer.
async fn expected(web: &WebState, ahead: usize) -> Option<SignedDuration> {
    let all = web.provisioner.lifecycle().store().list().await.ok()?;
    // Those that sleep take no place, so their end frees none.
    let awake = all.iter().filter(|instance| instance.state != InstanceState::Hibernated);
    let mut ends: Vec<Timestamp> = awake.filter_map(|instance| instance.expires_at).collect();
    ends.sort_unstable();
    let end = ends.get(ahead)?;
    let left = end.duration_since(Timestamp::now());
    // In whole minutes; more would look exact and is not.
    Some(SignedDuration::from_mins(left.as_secs().max(0) / 60 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_in_every_language() {
        crate::lang::assert_translated(Texts::ALL, &[]);
    }
}
