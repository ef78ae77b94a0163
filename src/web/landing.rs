//! `/`: what there is to try.

use askama::Template;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode};

use super::WebState;
use super::page::Shell;
use crate::lang::texts;

texts! {
    /// The landing page's texts.
    Texts {
        title: "Try a shop of your own", "Essayez votre propre boutique";
        lead: "A complete shop with its back office, yours alone, ready in a blink. No sign-up; it is deleted when its time is over.", "Une boutique complète avec son administration, rien que pour vous, prête en un clin d’œil. Sans inscription ; elle est supprimée à la fin du temps imparti.";
        offers: "What you can try", "Ce que vous pouvez essayer";
    }
}

#[derive(Template)]
#[template(path = "landing.html", config = ".askama.toml")]
struct Page {
    shell: Shell,
    t: &'static Texts,
    offers: Vec<Offer>,
}

struct Offer {
    title: String,
}

/// Shows the page.
pub(super) async fn show(State(web): State<WebState>, headers: HeaderMap) -> Response {
    let shell = Shell::of(&headers);
    let goldens = web.provisioner.lifecycle().goldens().iter();
    let offers = goldens.map(|golden| Offer { title: golden.title.clone() }).collect();
    let page = Page { shell, t: Texts::of(shell.lang), offers };
    web.site.page(shell.lang, StatusCode::OK, &page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_in_every_language() {
        crate::lang::assert_translated(Texts::ALL, &[]);
    }
}
