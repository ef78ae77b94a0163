//! Pages that say one thing: that a demo has ended, is not there, cannot be had.
//!
//! Each says what to do next, most often with a link to the landing page.

use std::time::Duration;

use askama::Template;
use axum::response::Response;
use http::header::RETRY_AFTER;
use http::{HeaderValue, StatusCode};
use jiff::SignedDuration;

use super::page::{Shell, Site};
use super::wish::Wrong;
use crate::api::problem::Problem;
use crate::lang::{fill, texts};

texts! {
    /// The texts of these pages.
    Texts {
        new_one: "Start a new demo", "Démarrer une nouvelle démo";
        back: "Back to the start", "Retour à l’accueil";
        back_to_it: "Back to the demo", "Retour à la démo";
        try_again: "Try again", "Réessayer";
        ended: "This demo has ended", "Cette démo est terminée";
        ended_text: "Its time is over and everything in it is deleted. You can start a new one at any time.", "Le temps imparti est écoulé et tout son contenu est supprimé. Vous pouvez en démarrer une nouvelle à tout moment.";
        not_here: "There is no such demo", "Cette démo n’existe pas";
        not_here_text: "It ended some time ago, or the address is not right.", "Elle s’est terminée il y a quelque temps, ou l’adresse est incorrecte.";
        not_yours: "This demo belongs to another browser", "Cette démo appartient à un autre navigateur";
        not_yours_text: "Only the browser that started it can manage it. Open this page there, or start a demo of your own.", "Seul le navigateur qui l’a démarrée peut la gérer. Ouvrez cette page depuis celui-ci ou démarrez votre propre démo.";
        limited: "You have had your demos for now", "Vous avez utilisé toutes vos démos pour l’instant";
        limited_text: "So that there is one for everybody, the number of demos is limited. You can start the next one in {}.", "Pour qu’il y en ait pour tout le monde, le nombre de démos est limité. Vous pourrez démarrer la prochaine dans {}.";
        wrong_golden: "There is no demo of that name", "Aucune démo ne porte ce nom";
        wrong_golden_text: "The link that you followed names a demo that is not offered here.", "Le lien que vous avez suivi désigne une démo qui n’est pas proposée ici.";
        wrong_link: "This link is not right", "Ce lien est incorrect";
        wrong_link_text: "It names a module or a page that this demo cannot open.", "Il désigne un module ou une page que cette démo ne peut pas ouvrir.";
        foreign: "This did not come from our page", "Cette demande ne vient pas de notre page";
        foreign_text: "Another site has sent this form for you, so nothing was done. Open our page and try again there.", "Un autre site a envoyé ce formulaire à votre place\u{a0}; rien n’a été fait. Ouvrez notre page et réessayez depuis celle-ci.";
        full: "Too many people are waiting", "Trop de personnes attendent";
        full_text: "All demos are taken, and the line is too long to stand in it. Please come back later.", "Toutes les démos sont prises et la file d’attente est trop longue. Merci de revenir plus tard.";
        shelf_full: "No more demos can be kept now", "Aucune autre démo ne peut être conservée pour l’instant";
        shelf_full_text: "There is room for a limited number of them, and it is taken. Yours goes on; try again later.", "La place est limitée et elle est entièrement prise. La vôtre continue\u{a0}; réessayez plus tard.";
        not_kept: "Your demo is not kept yet", "Votre démo n’est pas encore conservée";
        not_kept_text: "This service has too much to do just now. Your demo goes on, and what you kept of it before still is; try again in a minute.", "Ce service est très sollicité pour l’instant. Votre démo continue, et ce que vous en aviez déjà conservé l’est toujours\u{a0}; réessayez dans une minute.";
        no_room: "There is no room just now", "Il n’y a plus de place pour l’instant";
        no_room_text: "All places of this service are taken. Your demo is safe and stays as it is; try again in a moment.", "Toutes les places de ce service sont prises. Votre démo est en sécurité et reste telle qu’elle est\u{a0}; réessayez dans un instant.";
        conflict: "This is not possible now", "Ce n’est pas possible pour l’instant";
        conflict_text: "The demo is being changed, or it cannot live any longer. Look at it again.", "La démo est en cours de modification, ou sa durée ne peut plus être prolongée. Revenez à sa page.";
        failed: "This did not work", "Cela n’a pas fonctionné";
        failed_text: "Something is wrong on our side. It is written down for whoever looks after this service; try again in a minute.", "Un problème est survenu de notre côté. Il est consigné pour les responsables du service\u{a0}; réessayez dans une minute.";
    }
}

#[derive(Template)]
#[template(path = "message.html", config = ".askama.toml")]
struct Page<'a> {
    shell: Shell,
    kind: &'static str,
    title: &'static str,
    text: String,
    action: &'static str,
    to: &'a str,
}

/// What is to be said.
#[derive(Debug, Clone, Copy)]
pub(super) enum Say<'a> {
    /// The time of a demo is over.
    Ended,
    /// There is none of that name.
    NotHere,
    /// It is somebody else's.
    NotYours,
    /// The visitor has had as many as it may; until the next one.
    Limited(Duration),
    /// The link or form asks for something that is not there.
    Wrong(Wrong),
    /// Another site's page has sent the form.
    Foreign,
    /// The line is as long as it may get.
    LineFull,
    /// As many demos are kept as may be; the way back.
    ShelfFull(&'a str),
    /// Keeping a demo takes longer than anybody waits; the way back.
    NotKept(&'a str),
    /// A demo that is kept or sleeps finds no place to run; the way back.
    NoRoom(&'a str),
    /// It cannot be done in the present state; the way back.
    Conflict(&'a str),
    /// This service fails.
    Failed(StatusCode),
}

/// Says it on a page.
pub(super) fn say(site: &Site, shell: Shell, what: Say<'_>) -> Response {
    let t = Texts::of(shell.lang);
    let (status, title, text, action, to) = match what {
        Say::Ended => (StatusCode::GONE, t.ended, t.ended_text, t.new_one, "/"),
        Say::NotHere => (StatusCode::NOT_FOUND, t.not_here, t.not_here_text, t.new_one, "/"),
        Say::NotYours => (StatusCode::FORBIDDEN, t.not_yours, t.not_yours_text, t.new_one, "/"),
        Say::Limited(_) => (StatusCode::TOO_MANY_REQUESTS, t.limited, t.limited_text, t.back, "/"),
        Say::Wrong(Wrong::Golden) => {
            (StatusCode::NOT_FOUND, t.wrong_golden, t.wrong_golden_text, t.back, "/")
        }
        Say::Wrong(Wrong::Module | Wrong::Go) => {
            (StatusCode::BAD_REQUEST, t.wrong_link, t.wrong_link_text, t.back, "/")
        }
        Say::Foreign => (StatusCode::FORBIDDEN, t.foreign, t.foreign_text, t.back, "/"),
        Say::LineFull => (StatusCode::SERVICE_UNAVAILABLE, t.full, t.full_text, t.back, "/"),
        Say::ShelfFull(back) => {
            (StatusCode::SERVICE_UNAVAILABLE, t.shelf_full, t.shelf_full_text, t.back_to_it, back)
        }
        Say::NotKept(back) => {
            (StatusCode::SERVICE_UNAVAILABLE, t.not_kept, t.not_kept_text, t.back_to_it, back)
        }
        Say::NoRoom(back) => (StatusCode::SERVICE_UNAVAILABLE, t.no_room, t.no_room_text, t.try_again, back),
        Say::Conflict(back) => (StatusCode::CONFLICT, t.conflict, t.conflict_text, t.try_again, back),
        Say::Failed(status) => (status, t.failed, t.failed_text, t.back, "/"),
    };
    let wait = match what {
        Say::Limited(wait) => Some(wait),
        Say::LineFull | Say::ShelfFull(_) => Some(Duration::from_secs(300)),
        Say::NotKept(_) => Some(Duration::from_secs(60)),
        Say::NoRoom(_) => Some(Duration::from_secs(10)),
        _ => None,
    };
    let text = match what {
        Say::Limited(wait) => {
            let wait = SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX);
            fill(text, &[&shell.lang.duration(wait)])
        }
        _ => text.to_owned(),
    };
    let kind = if matches!(what, Say::Failed(_)) { "bad" } else { "warn" };
    let mut response = site.page(shell.lang, status, &Page { shell, kind, title, text, action, to });
    if let Some(wait) = wait {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.as_secs()));
    }
    response
}

/// Says what a problem is about and has it logged; `back` is where the visitor
/// came from.
pub(super) fn problem(site: &Site, shell: Shell, problem: &Problem, back: &str) -> Response {
    problem.log();
    let what = match (problem.status(), problem.retry_after()) {
        (StatusCode::GONE, _) => Say::Ended,
        (StatusCode::NOT_FOUND, _) => Say::NotHere,
        (StatusCode::CONFLICT, _) => Say::Conflict(back),
        // Whoever has no demo yet stands in line instead.
        _ if problem.is_for_lack_of_room() => Say::NoRoom(back),
        (StatusCode::TOO_MANY_REQUESTS, Some(seconds)) => Say::Limited(Duration::from_secs(seconds.into())),
        (status, _) => Say::Failed(status),
    };
    say(site, shell, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_in_every_language() {
        crate::lang::assert_translated(Texts::ALL, &[]);
    }
}
