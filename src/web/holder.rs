//! `/demo/{id}`: everything about an instance, for the visitor who has it.
//!
//! The one page that shows the password, so only the cookie of the visitor it
//! was handed to opens it: an instance's name alone, which is part of its
//! address, does not. Its forms end in a redirect to the page, so that going
//! back or loading it again does nothing twice.

use std::time::Duration;

use askama::Template;
use axum::extract::{FromRequestParts, Path, Query, RawPathParams, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use http::header::LOCATION;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret as _;
use serde::Deserialize;

use super::assets::DEMO_JS;
use super::message::{self, Say};
use super::page::Shell;
use super::visitor::{Took, Visitor};
use super::wish::Module;
use super::{WebState, login_link};
use crate::api::problem::Problem;
use crate::api::status;
use crate::id::InstanceId;
use crate::instance::{Instance, Source};
use crate::lang::{fill, texts};

texts! {
    /// The page's texts.
    Texts {
        title: "Your {} is ready", "Votre démo est prête\u{a0}: {}";
        from_pool: "Taken ready from the pool", "Prise prête dans la réserve";
        restored: "Restored for you from a snapshot", "Restaurée pour vous depuis un instantané";
        booted: "Booted for you", "Démarrée pour vous";
        in_time: "in {}", "en {}";
        open_shop: "Open the shop", "Ouvrir la boutique";
        open_admin: "Open the back office", "Ouvrir l’administration";
        open_module: "Open {}", "Ouvrir {}";
        signs_in: "The back office signs you in with one click. Both open in a new tab.", "L’administration vous connecte en un clic. Les deux s’ouvrent dans un nouvel onglet.";
        both_open: "Both open in a new tab.", "Les deux s’ouvrent dans un nouvel onglet.";
        time_left: "Time left", "Temps restant";
        until: "It is deleted at", "Elle est supprimée à";
        loaded: "As of {} UTC; load the page again for the present time.", "État à {} UTC\u{a0}; rechargez la page pour l’heure actuelle.";
        extend: "{} more", "{} de plus";
        longest: "It lives as long as it may.", "Sa durée est maximale.";
        access: "Addresses and login", "Adresses et connexion";
        address: "Shop", "Boutique";
        admin_address: "Back office", "Administration";
        email: "E-mail", "E-mail";
        password: "Password", "Mot de passe";
        copy: "Copy", "Copier";
        copied: "Copied", "Copié";
        manage: "Keep it, start over, or end it", "Conserver, recommencer ou terminer";
        reset: "Reset to the original", "Revenir à l’état d’origine";
        reset_text: "Everything you changed in it is undone. Address, password and time left stay.", "Toutes vos modifications sont annulées. L’adresse, le mot de passe et le temps restant sont conservés.";
        reset_do: "Yes, reset it", "Oui, réinitialiser";
        busy: "One moment…", "Un instant…";
        was_reset: "It is as it was at the start.", "Elle est revenue à son état d’origine.";
        save: "Keep it for later", "La conserver pour plus tard";
        save_text: "Everything in it is kept as it is now, for {}. You get a link that brings it back when it has ended; the demo goes on meanwhile.", "Tout son contenu est conservé tel qu’il est maintenant, pendant {}. Vous recevez un lien qui la fera revenir lorsqu’elle sera terminée\u{a0}; la démo continue en attendant.";
        save_do: "Yes, keep it", "Oui, la conserver";
        release: "End it now", "Terminer maintenant";
        release_text: "The shop and everything in it is deleted at once. Only what you have kept can be brought back.", "La boutique et tout son contenu sont supprimés immédiatement. Seul ce que vous avez conservé pourra revenir.";
        release_do: "Yes, delete it", "Oui, supprimer";
        was_extended: "It has more time now.", "Elle dispose de plus de temps.";
        keep: "Keep this page: it is how you come back to your demo. It is only shown in this browser.", "Gardez cette page\u{a0}: c’est par elle que vous revenez à votre démo. Elle ne s’affiche que dans ce navigateur.";
    }
}

#[derive(Template)]
#[template(path = "demo.html", config = ".askama.toml")]
struct Page<'a> {
    shell: Shell,
    t: &'static Texts,
    id: &'a InstanceId,
    demo_js: String,
    title: String,
    how: String,
    notice: &'static str,
    access: Access<'a>,
    time: Time,
    extend: Option<String>,
    /// What is said beside the button that keeps it; none where nothing can be kept.
    save: Option<String>,
    module: String,
    module_label: String,
    signs_in: bool,
}

struct Access<'a> {
    url: &'a str,
    admin_url: &'a str,
    email: &'a str,
    password: &'a str,
}

struct Time {
    left: String,
    seconds: i64,
    ends: String,
    ends_iso: String,
    loaded: String,
}

/// What the page's address says beside its instance.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Extra {
    #[serde(default)]
    module: String,
    #[serde(default)]
    done: String,
}

/// Shows the page.
pub(super) async fn show(
    State(web): State<WebState>,
    Own { shell, instance, now }: Own,
    Query(extra): Query<Extra>,
    headers: HeaderMap,
) -> Response {
    let Some(access) = &instance.access else {
        return message::say(&web.site, shell, Say::NotHere);
    };
    let t = Texts::of(shell.lang);
    let golden = web.provisioner.lifecycle().golden(&instance.golden);
    let opens_modules = golden.as_ref().is_some_and(|golden| golden.about.opens_modules);
    let module = Module::parse(&extra.module).filter(|_| opens_modules);
    let extend = more_time(&web, &instance).map(|by| fill(t.extend, &[&shell.lang.duration(by)]));
    let keeping = web.provisioner.keeping().ok().filter(|_| web.provisioner.keeps_shops());
    let can_be_kept = keeping.filter(|_| instance.made_by == Source::Restore);
    let save =
        can_be_kept.map(|keeping| fill(t.save_text, &[&shell.lang.duration(keeping.shelf.limits().keep)]));
    let name = golden.as_ref().map_or(instance.golden.as_str(), |golden| golden.title.as_str());
    let page = Page {
        shell,
        t,
        id: &instance.id,
        demo_js: DEMO_JS.href(),
        title: fill(t.title, &[name]),
        how: how(shell, t, &instance, Took::of(&headers, &web.site, &instance.id)),
        notice: match extra.done.as_str() {
            "extend" => t.was_extended,
            "reset" => t.was_reset,
            _ => "",
        },
        access: Access {
            url: &access.url,
            admin_url: &access.admin_url,
            email: &access.admin_email,
            password: access.admin_password.expose_secret(),
        },
        time: time(shell, t, &instance, now),
        extend,
        save,
        module_label: module.as_ref().map_or_else(String::new, |it| fill(t.open_module, &[it.as_str()])),
        module: module.map_or_else(String::new, |module| module.as_str().to_owned()),
        signs_in: access.one_click.is_some(),
    };
    web.site.page(shell.lang, StatusCode::OK, &page)
}

/// How it came to be, in a sentence with its time.
fn how(shell: Shell, t: &Texts, instance: &Instance, took: Option<Duration>) -> String {
    let source = instance.source.unwrap_or(instance.made_by);
    let said = match source {
        Source::Pool => t.from_pool,
        Source::Restore => t.restored,
        Source::Cold => t.booted,
    };
    match took {
        Some(took) => {
            let took = shell.lang.ms(took.as_secs_f64() * 1000.0);
            format!("{said} {}", fill(t.in_time, &[&took]))
        }
        None => said.to_owned(),
    }
}

fn time(shell: Shell, t: &Texts, instance: &Instance, now: Timestamp) -> Time {
    let ends = instance.expires_at.unwrap_or(now);
    let left = ends.duration_since(now);
    Time {
        left: shell.lang.duration(left),
        seconds: left.as_secs().max(0),
        ends: ends.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        ends_iso: ends.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        loaded: fill(t.loaded, &[&now.strftime("%H:%M:%S").to_string()]),
    }
}

/// By how much it may be extended: by the usual time, or by what MAX_TTL leaves.
fn more_time(web: &WebState, instance: &Instance) -> Option<SignedDuration> {
    let terms = web.provisioner.terms();
    let latest = instance.assigned_at? + terms.max_ttl;
    let left = latest.duration_since(instance.expires_at?);
    let by = SignedDuration::from_secs(left.min(terms.default_ttl).as_secs());
    (by >= SignedDuration::from_secs(1)).then_some(by)
}

/// The instance that the address names, which lives and is this visitor's; everybody else
/// reads why not.
pub(super) struct Own {
    pub(super) shell: Shell,
    pub(super) instance: Instance,
    pub(super) now: Timestamp,
}

impl FromRequestParts<WebState> for Own {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, web: &WebState) -> Result<Self, Response> {
        let (shell, now) = (Shell::of(&parts.headers), Timestamp::now());
        let said = |what| message::say(&web.site, shell, what);
        let named = RawPathParams::from_request_parts(parts, web).await;
        let named = named.map_err(|_| said(Say::NotHere))?;
        let id = named.iter().find_map(|(name, value)| (name == "id").then(|| value.parse::<InstanceId>()));
        let id = id.and_then(Result::ok).ok_or_else(|| said(Say::NotHere))?;
        let instance = web.provisioner.show(&id, now).await;
        let instance = instance.map_err(|error| message::problem(&web.site, shell, &error.into(), "/"))?;
        match Visitor::of(&parts.headers, &web.site) {
            Some(visitor) if visitor.holds(&instance) => Ok(Self { shell, instance, now }),
            _ => Err(said(Say::NotYours)),
        }
    }
}

/// What a form of the page asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Act {
    /// More time.
    Extend,
    /// The golden's content again.
    Reset,
    /// The end of it.
    Release,
    /// A link that signs in.
    Login,
}

/// `POST /demo/{id}/{act}`
pub(super) async fn act(
    State(web): State<WebState>,
    Path((_, act)): Path<(String, Act)>,
    Own { shell, instance, now }: Own,
    Query(extra): Query<Extra>,
) -> Response {
    let page = format!("/demo/{}", instance.id);
    let done = match act {
        Act::Login => return log_in(&instance, &extra, now),
        Act::Extend => {
            let by = more_time(&web, &instance).unwrap_or(SignedDuration::MAX);
            let extended = web.provisioner.extend(&instance.id, Some(by), now).await;
            extended.map(|_| format!("{page}?done=extend")).map_err(Problem::from)
        }
        Act::Reset => {
            let reset = web.provisioner.reset(&instance.id, now).await;
            reset.map(|_| format!("{page}?done=reset")).map_err(Problem::from)
        }
        Act::Release => {
            let released = web.provisioner.release(&instance.id).await;
            released.map(|()| "/?done=release".to_owned()).map_err(Problem::from)
        }
    };
    match done {
        Ok(to) => Redirect::to(&to).into_response(),
        Err(problem) => message::problem(&web.site, shell, &problem, &page),
    }
}

/// A link that signs in, made at the last moment.
fn log_in(instance: &Instance, extra: &Extra, now: Timestamp) -> Response {
    let Some(access) = &instance.access else { return StatusCode::NOT_FOUND.into_response() };
    let link = login_link(access, Module::parse(&extra.module).as_ref(), now);
    let mut response = StatusCode::SEE_OTHER.into_response();
    if let Ok(mut to) = HeaderValue::from_str(link.expose_secret()) {
        to.set_sensitive(true);
        response.headers_mut().insert(LOCATION, to);
    }
    response
}

/// `GET /demo/{id}/status`: the API's stream, opened by the cookie.
pub(super) async fn watch(
    State(web): State<WebState>,
    Own { instance, .. }: Own,
    headers: HeaderMap,
) -> Response {
    match status::open(&web.status, &web.provisioner, &instance.id, &headers).await {
        Ok(stream) => stream,
        Err(problem) => problem.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_in_every_language() {
        crate::lang::assert_translated(Texts::ALL, &["email"]);
    }
}
