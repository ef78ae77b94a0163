//! `/`: what there is to try, and what this visitor has already.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde::Deserialize;

use super::WebState;
use super::page::Shell;
use super::visitor::Visitor;
use super::wish::{Asked, Wrong};
use crate::id::GoldenName;
use crate::instance::State as InstanceState;
use crate::lang::{fill, texts};
use crate::provision::GoldenRuntime;

texts! {
    /// The landing page's texts.
    Texts {
        title: "A shop of your own, in a blink", "Votre propre boutique, en un clin d’œil";
        title_module: "Try {} in a shop of your own", "Essayez {} dans votre propre boutique";
        lead: "A complete shop with its back office, at its own address. Change whatever you like: it is yours alone, and deleted after {}.", "Une boutique complète avec son administration, à sa propre adresse. Modifiez ce que vous voulez\u{a0}: elle n’est qu’à vous et sera supprimée après {}.";
        choose: "What would you like to try?", "Que souhaitez-vous essayer\u{a0}?";
        go: "Start my demo", "Démarrer ma démo";
        busy: "One moment…", "Un instant…";
        no_sign_up: "No sign-up, no e-mail.", "Sans inscription, sans e-mail.";
        ready: "Ready now", "Prête";
        seconds: "Ready in seconds", "Prête en quelques secondes";
        taken: "All taken: you get in line", "Toutes prises\u{a0}: file d’attente";
        yours: "Your demos", "Vos démos";
        yours_text: "You have these already, and can go on where you left.", "Elles sont déjà à vous\u{a0}: reprenez là où vous en étiez.";
        open: "Go on with it", "Continuer";
        left: "{} left", "encore {}";
        median: "The last ones were handed over in {} (median).", "Les dernières ont été remises en {} (médiane).";
        released: "Your demo has ended, and everything in it is deleted.", "Votre démo est terminée et tout son contenu est supprimé.";
        unknown: "The link that you followed names a demo that is not offered here. These are.", "Le lien que vous avez suivi désigne une démo qui n’est pas proposée ici. Voici celles qui le sont.";
        no_module: "The link that you followed names a module that cannot be opened in this demo.", "Le lien que vous avez suivi désigne un module qui ne peut pas être ouvert dans cette démo.";
        yours_alone: "Yours alone", "Rien que pour vous";
        yours_alone_text: "Its own database, its own files, its own password. What others do in theirs does not touch yours.", "Sa propre base de données, ses propres fichiers, son propre mot de passe. Ce que font les autres ne touche pas la vôtre.";
        real: "The real thing", "Une vraie boutique";
        real_text: "Not a tour and not a sandbox for everybody: the whole software, with you as its administrator.", "Ni visite guidée ni bac à sable partagé\u{a0}: le logiciel complet, dont vous êtes l’administrateur.";
        nothing_stays: "Nothing stays", "Rien ne reste";
        nothing_stays_text: "It sends no mail, reaches nobody outside, and is deleted with all that is in it.", "Elle n’envoie aucun courriel, ne joint personne à l’extérieur et est supprimée avec tout son contenu.";
        embed: "Put this on your site", "Intégrer à votre site";
    }
}

#[derive(Template)]
#[template(path = "landing.html", config = ".askama.toml")]
struct Page {
    shell: Shell,
    t: &'static Texts,
    title: String,
    lead: String,
    notice: &'static str,
    held: Vec<Held>,
    offers: Vec<Offer>,
    module: String,
    go: &'static str,
    median: String,
}

/// A golden as it is offered.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) name: String,
    pub(super) title: String,
    /// Software and version, where the recipe says them.
    pub(super) software: String,
    /// The shop's language, in the page's.
    pub(super) language: String,
    pub(super) chosen: bool,
    pub(super) at: Stock,
}

/// How soon it can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stock {
    Ready,
    Seconds,
    Taken,
}

/// An instance that the visitor has.
struct Held {
    id: String,
    title: String,
    left: String,
}

/// What the page's address may say beside the wish.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Extra {
    #[serde(default)]
    done: String,
}

impl Offer {
    /// All of them; that one is chosen, or the first.
    pub(super) async fn all(web: &WebState, chosen: Option<&GoldenName>) -> Vec<Self> {
        let lifecycle = web.provisioner.lifecycle();
        let mut offers = Vec::new();
        for golden in lifecycle.goldens().iter() {
            let counts = lifecycle.store().counts(&golden.name).await.unwrap_or_default();
            let ready = counts.get(&InstanceState::Ready).copied().unwrap_or(0);
            let at = match (ready, lifecycle.room()) {
                (1.., _) => Stock::Ready,
                (0, 1..) => Stock::Seconds,
                (0, 0) => Stock::Taken,
            };
            let is_chosen = chosen.map_or(offers.is_empty(), |chosen| *chosen == golden.name);
            offers.push(Self::of(golden, at, is_chosen));
        }
        offers
    }

    fn of(golden: &GoldenRuntime, at: Stock, chosen: bool) -> Self {
        let about = &golden.about;
        let software = match &about.said.software {
            Some(software) => format!("{software} {}", about.version),
            None => about.version.clone(),
        };
        Self {
            name: golden.name.to_string(),
            title: golden.title.clone(),
            software: software.trim().to_owned(),
            language: about.said.language.as_deref().map(language).unwrap_or_default(),
            chosen,
            at,
        }
    }

    /// The letter on its tile.
    pub(super) fn letter(&self) -> String {
        self.title.chars().next().map(|c| c.to_uppercase().to_string()).unwrap_or_default()
    }
}

/// A language by its own name, so that those who speak it find it; one that is
/// not known here by its code.
fn language(code: &str) -> String {
    let name = match code.split('-').next().unwrap_or_default() {
        "de" => "Deutsch",
        "en" => "English",
        "es" => "Español",
        "fr" => "Français",
        "it" => "Italiano",
        "nl" => "Nederlands",
        "pl" => "Polski",
        "pt" => "Português",
        _ => return code.to_owned(),
    };
    name.to_owned()
}

/// Shows the page.
pub(super) async fn show(
    State(web): State<WebState>,
    Query(asked): Query<Asked>,
    Query(extra): Query<Extra>,
    headers: HeaderMap,
) -> Response {
    let shell = Shell::of(&headers);
    let t = Texts::of(shell.lang);
    let goldens = web.provisioner.lifecycle().goldens();
    let wish = asked.check(&goldens);
    let notice = match (&wish, extra.done.as_str()) {
        (Err(Wrong::Golden), _) => t.unknown,
        (Err(Wrong::Module | Wrong::Go), _) => t.no_module,
        (Ok(_), "release") => t.released,
        (Ok(_), _) => "",
    };
    let chosen = wish.as_ref().ok().map(|wish| wish.name().clone());
    let module = wish.as_ref().ok().and_then(|wish| wish.module.clone());
    let module = module.map_or_else(String::new, |module| module.as_str().to_owned());
    let ttl = shell.lang.duration(web.provisioner.terms().default_ttl);
    let page = Page {
        shell,
        t,
        title: if module.is_empty() { t.title.to_owned() } else { fill(t.title_module, &[&module]) },
        lead: fill(t.lead, &[&ttl]),
        notice,
        held: held(&web, shell, t, &headers).await,
        offers: Offer::all(&web, chosen.as_ref()).await,
        module,
        go: wish.map_or("page", |wish| wish.go.as_str()),
        median: median(&web, shell, t),
    };
    web.site.page(shell.lang, StatusCode::OK, &page)
}

/// What the visitor has; what the store does not tell now is told the next time.
async fn held(web: &WebState, shell: Shell, t: &Texts, headers: &HeaderMap) -> Vec<Held> {
    let Some(visitor) = Visitor::of(headers, &web.site) else { return Vec::new() };
    let (holder, now) = (visitor.holder(), Timestamp::now());
    let mut held = Vec::new();
    for golden in web.provisioner.lifecycle().goldens().iter() {
        let found = web.provisioner.held(&holder, golden.name.as_str(), now).await;
        if let Ok(Some(instance)) = found {
            let left = instance.expires_at.unwrap_or(now).duration_since(now);
            let left = fill(t.left, &[&shell.lang.duration(left)]);
            held.push(Held { id: instance.id.to_string(), title: golden.title.clone(), left });
        }
    }
    held
}

/// How long the last hand-overs from the pool took; nothing is said before some.
fn median(web: &WebState, shell: Shell, t: &Texts) -> String {
    let lifecycle = web.provisioner.lifecycle();
    let of = |golden: &Arc<GoldenRuntime>| lifecycle.tally().of(&golden.name).quantiles().remove("pool");
    let quantiles = lifecycle.goldens().iter().filter_map(of).find(|of| of.count >= 3);
    quantiles.map_or_else(String::new, |of| fill(t.median, &[&shell.lang.ms(of.p50.as_secs_f64() * 1000.0)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_in_every_language() {
        crate::lang::assert_translated(Texts::ALL, &[]);
    }

    #[test]
    fn a_language_is_said_by_its_own_name() {
        assert_eq!(language("fr"), "Français");
        assert_eq!(language("pt-BR"), "Português");
        assert_eq!(language("ja"), "ja");
    }
}
