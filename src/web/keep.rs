//! Keeping a demo, and coming back to it when it is gone: `/demo/{id}/save` and
//! `/saved/{id}`.
//!
//! The key is told once, on the page that answers the form, in the fragment of the
//! link that opens the demo: what stands there no browser sends to anybody, so it is in
//! no log. Without a script the key is typed, or pasted, into the form.

use askama::Template;
use axum::Form;
use axum::extract::{FromRequest as _, Path, Request, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use http::header::SET_COOKIE;
use http::{HeaderMap, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::WebState;
use super::assets::SAVED_JS;
use super::holder::Own;
use super::message::{self, Say};
use super::page::Shell;
use super::visitor::{self, Took, Visitor};
use crate::api::problem::Problem;
use crate::id::InstanceId;
use crate::lang::texts;
use crate::provision::errors::AcquireError;
use crate::provision::{Kept, OpenRequest, SavedError};
use crate::snapshot::shelf::ShelfError;

texts! {
    /// The texts of both pages.
    Texts {
        kept: "Your demo is kept", "Votre démo est conservée";
        kept_text: "It goes on as before. When it has ended, this link brings it back as it is now, at the same address and with the same password.", "Elle continue comme avant. Quand elle sera terminée, ce lien la fera revenir telle qu’elle est maintenant, à la même adresse et avec le même mot de passe.";
        once: "The link and the key are shown only now. Put them somewhere safe: whoever has them has your demo.", "Le lien et la clé ne sont affichés que maintenant. Conservez-les en lieu sûr\u{a0}: qui les possède a accès à votre démo.";
        until: "Kept until", "Conservée jusqu’au";
        again: "Keep it again to keep what you do next; the former link then no longer works.", "Conservez-la à nouveau pour garder vos prochaines modifications\u{a0}; l’ancien lien ne fonctionnera alors plus.";
        link: "Link", "Lien";
        key: "Key", "Clé";
        copy: "Copy", "Copier";
        copied: "Copied", "Copié";
        back: "Back to the demo", "Retour à la démo";
        open: "Open a kept demo", "Ouvrir une démo conservée";
        open_text: "It comes back as it was when it was kept, at its own address.", "Elle revient telle qu’elle était lorsqu’elle a été conservée, à sa propre adresse.";
        open_do: "Open it", "Ouvrir";
        busy: "One moment…", "Un instant…";
        key_hint: "It was shown when the demo was kept; in the link it is what follows the #.", "Elle a été affichée lors de la conservation\u{a0}; dans le lien, c’est ce qui suit le #.";
        wrong: "Nothing is kept here that this key opens.", "Rien n’est conservé ici que cette clé puisse ouvrir.";
        there: "It is still running: end it first if you want it as it was when it was kept.", "Elle est encore active\u{a0}: terminez-la d’abord si vous la voulez telle qu’elle était lors de la conservation.";
        other: "You have another demo of this kind: end that one first.", "Vous avez une autre démo de ce type\u{a0}: terminez-la d’abord.";
    }
}

#[derive(Template)]
#[template(path = "kept.html", config = ".askama.toml")]
struct KeptPage<'a> {
    shell: Shell,
    t: &'static Texts,
    id: &'a InstanceId,
    link: &'a str,
    key: &'a str,
    until: String,
}

#[derive(Template)]
#[template(path = "saved.html", config = ".askama.toml")]
struct OpenPage<'a> {
    shell: Shell,
    t: &'static Texts,
    id: &'a InstanceId,
    saved_js: String,
    /// Why it was not opened, and the demo that is in the way.
    trouble: &'static str,
    there: Option<InstanceId>,
}

/// `POST /demo/{id}/save`
pub(super) async fn save(State(web): State<WebState>, Own { shell, instance, .. }: Own) -> Response {
    let Kept { saved, key } = match web.provisioner.save(&instance.id).await {
        Ok(kept) => kept,
        Err(SavedError::Shelf(error @ (ShelfError::Full { .. } | ShelfError::NoRoom))) => {
            Problem::from(SavedError::from(error)).log();
            return message::say(&web.site, shell, Say::ShelfFull(&format!("/demo/{}", instance.id)));
        }
        Err(error @ SavedError::NotKept { .. }) => {
            Problem::from(error).log();
            return message::say(&web.site, shell, Say::NotKept(&format!("/demo/{}", instance.id)));
        }
        Err(error) => {
            return message::problem(&web.site, shell, &error.into(), &format!("/demo/{}", instance.id));
        }
    };
    let key = key.expose_secret();
    let link = format!("{}/saved/{}#{key}", web.site.origin(), saved.id);
    let until = saved.until.strftime("%Y-%m-%d %H:%M UTC").to_string();
    let page = KeptPage { shell, t: Texts::of(shell.lang), id: &saved.id, link: &link, key, until };
    web.site.page(shell.lang, StatusCode::CREATED, &page)
}

/// `GET /saved/{id}`: tells nobody whether anything is kept there.
pub(super) async fn show(
    State(web): State<WebState>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    let shell = Shell::of(&headers);
    match id.parse() {
        Ok(id) => form(&web, shell, &id, (StatusCode::OK, "", None)),
        Err(_) => message::say(&web.site, shell, Say::NotHere),
    }
}

/// The form; with why it was not done, and the demo that is in the way.
fn form(
    web: &WebState,
    shell: Shell,
    id: &InstanceId,
    (status, trouble, there): (StatusCode, &'static str, Option<InstanceId>),
) -> Response {
    let (t, saved_js) = (Texts::of(shell.lang), SAVED_JS.href());
    web.site.page(shell.lang, status, &OpenPage { shell, t, id, saved_js, trouble, there })
}

/// What the form asks with.
#[derive(Deserialize)]
struct Fields {
    key: SecretString,
}

/// `POST /saved/{id}`
pub(super) async fn open(State(web): State<WebState>, Path(id): Path<String>, request: Request) -> Response {
    let client = visitor::client(&request, &web.trusted_proxies);
    let headers = request.headers().clone();
    let shell = Shell::of(&headers);
    let t = Texts::of(shell.lang);
    let Ok(id) = id.parse::<InstanceId>() else { return message::say(&web.site, shell, Say::NotHere) };
    let Ok(Form(Fields { key })) = Form::<Fields>::from_request(request, &()).await else {
        return form(&web, shell, &id, (StatusCode::BAD_REQUEST, t.wrong, None));
    };
    // Pasted keys come with what stood around them.
    let key = SecretString::from(key.expose_secret().trim().to_owned());
    let known = Visitor::of(&headers, &web.site);
    let visitor = known.clone().unwrap_or_else(Visitor::new);
    let holder = Some(visitor.holder());
    let request = OpenRequest { id: id.clone(), key, ttl: None, client, holder };
    let opened = match web.provisioner.open(request).await {
        Ok(opened) => opened,
        Err(SavedError::Shelf(ShelfError::Unknown { .. })) => {
            return form(&web, shell, &id, (StatusCode::NOT_FOUND, t.wrong, None));
        }
        Err(SavedError::StillThere { .. }) => {
            let there = Some(id.clone());
            return form(&web, shell, &id, (StatusCode::CONFLICT, t.there, there));
        }
        Err(SavedError::Holds { other }) => {
            return form(&web, shell, &id, (StatusCode::CONFLICT, t.other, Some(other)));
        }
        Err(error @ SavedError::Acquire(AcquireError::Drained)) => {
            Problem::from(error).log();
            return message::say(&web.site, shell, Say::NoRoom(&format!("/saved/{id}")));
        }
        Err(error) => return message::problem(&web.site, shell, &error.into(), &format!("/saved/{id}")),
    };
    let mut response = Redirect::to(&format!("/demo/{id}")).into_response();
    let cookies = response.headers_mut();
    cookies.append(SET_COOKIE, Took::cookie(&web.site, &id, opened.took));
    if known.is_none() {
        cookies.append(SET_COOKIE, visitor.cookie(&web.site));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_in_every_language() {
        crate::lang::assert_translated(Texts::ALL, &[]);
    }
}
