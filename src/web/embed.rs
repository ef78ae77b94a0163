//! `/embed`: what the owner of another site puts on a page, and what it shows.
//!
//! ```text
//! /embed          makes a link, a button and a frame for a golden and a module
//! /embed/button   what the frame shows: the only page that other sites may frame
//! ```
//!
//! The frame has one form, which opens a tab of its own; it knows nothing of the
//! visitor and shows nothing that is theirs.

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use http::header::{CONTENT_SECURITY_POLICY, X_FRAME_OPTIONS};
use http::{HeaderMap, StatusCode};

use super::WebState;
use super::landing::Offer;
use super::message::{self, Say};
use super::page::Shell;
use super::wish::Asked;
use crate::lang::{fill, texts};

texts! {
    /// The texts of both pages.
    Texts {
        title: "Put a demo on your site", "Intégrez une démo à votre site";
        lead: "Choose what it opens, copy one of the three, done.", "Choisissez ce qu’elle ouvre, copiez l’un des trois extraits, c’est tout.";
        demo: "Demo", "Démo";
        module: "Module (its name, as in its directory)", "Module (son nom, comme celui de son dossier)";
        module_hint: "The back office opens at its page. Leave it empty to open the demo itself.", "L’administration s’ouvre à sa page. Laissez vide pour ouvrir la démo elle-même.";
        make: "Make the snippets", "Créer les extraits";
        link: "A plain link", "Un simple lien";
        button: "A button", "Un bouton";
        frame: "A frame", "Un cadre";
        frame_closed: "This service does not let other sites frame it (EMBED_ORIGINS).", "Ce service ne permet pas à d’autres sites de l’afficher dans un cadre (EMBED_ORIGINS).";
        preview: "How the frame looks", "Aperçu du cadre";
        copy: "Copy", "Copier";
        copied: "Copied", "Copié";
        try_it: "Try {}", "Essayer {}";
        yours: "Yours alone, deleted after {}.", "Rien que pour vous, supprimée après {}.";
        go: "Open a demo", "Ouvrir une démo";
    }
}

#[derive(Template)]
#[template(path = "embed.html", config = ".askama.toml")]
struct Page {
    shell: Shell,
    t: &'static Texts,
    offers: Vec<Offer>,
    module: String,
    link: String,
    button: String,
    frame: String,
    frame_path: String,
    framed: bool,
}

#[derive(Template)]
#[template(path = "embed_button.html", config = ".askama.toml")]
struct Button {
    shell: Shell,
    t: &'static Texts,
    label: String,
    yours: String,
    golden: String,
    module: String,
    go: &'static str,
}

/// Makes the snippets.
pub(super) async fn snippets(
    State(web): State<WebState>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    let shell = Shell::of(&headers);
    let goldens = web.provisioner.lifecycle().goldens();
    let wish = match asked.check(&goldens) {
        Ok(wish) => wish,
        Err(wrong) => return message::say(&web.site, shell, Say::Wrong(wrong)),
    };
    let t = Texts::of(shell.lang);
    let origin = web.site.origin();
    let module = wish.module.as_ref().map_or("", |module| module.as_str());
    let mut query = format!("golden={}", wish.name());
    if !module.is_empty() {
        query = format!("{query}&amp;module={module}");
    }
    let label = label(t, &wish.golden.title, module);
    let text = escape(&label);
    let style = "display:inline-block;padding:.8em 1.4em;border-radius:.7em;background:#4338ca;color:#fff;\
                 font:600 1rem/1.2 system-ui,sans-serif;text-decoration:none";
    let frame_path = format!("/embed/button?{}", query.replace("&amp;", "&"));
    let page = Page {
        shell,
        t,
        offers: Offer::all(&web, Some(wish.name())).await,
        module: module.to_owned(),
        link: format!("<a href=\"{origin}/?{query}\">{text}</a>"),
        button: format!("<a href=\"{origin}/?{query}\" style=\"{style}\">{text}</a>"),
        frame: format!(
            "<iframe src=\"{origin}/embed/button?{query}\" title=\"{text}\" width=\"320\" height=\"150\" \
             style=\"border:0\" loading=\"lazy\"></iframe>"
        ),
        frame_path,
        framed: web.site.may_be_framed(),
    };
    web.site.page(shell.lang, StatusCode::OK, &page)
}

/// What the frame shows.
pub(super) async fn button(
    State(web): State<WebState>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Response {
    let shell = Shell::of(&headers);
    let wish = match asked.check(&web.provisioner.lifecycle().goldens()) {
        Ok(wish) => wish,
        Err(wrong) => return message::say(&web.site, shell, Say::Wrong(wrong)),
    };
    let t = Texts::of(shell.lang);
    let module = wish.module.as_ref().map_or("", |module| module.as_str());
    let page = Button {
        shell,
        t,
        label: label(t, &wish.golden.title, module),
        yours: fill(t.yours, &[&shell.lang.duration(web.provisioner.terms().default_ttl)]),
        golden: wish.name().to_string(),
        module: module.to_owned(),
        go: wish.go.as_str(),
    };
    let mut response = web.site.page(shell.lang, StatusCode::OK, &page);
    response.headers_mut().remove(X_FRAME_OPTIONS);
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, web.site.framed_policy().clone());
    response
}

fn label(t: &Texts, title: &str, module: &str) -> String {
    fill(t.try_it, &[if module.is_empty() { title } else { module }])
}

/// For the text of a snippet, which is HTML that somebody else will serve.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_in_every_language() {
        crate::lang::assert_translated(Texts::ALL, &[]);
    }

    #[test]
    fn a_title_stays_a_text_in_a_snippet() {
        assert_eq!(escape("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }
}
