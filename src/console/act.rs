//! What the console's forms do: the API's own calls, and back to the page.

use axum::Form;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret as _;
use serde::Deserialize;

use super::Console;
use super::instances::of_name;
use super::pages::refused;
use super::top::Top;
use crate::api::problem::Problem;
use crate::api::steer;
use crate::id::SnapshotId;
use crate::identity::login;

/// How much longer one press of the button is.
const EXTENSION: SignedDuration = SignedDuration::from_mins(30);

/// Snapshots of each golden that stay when nobody says how many.
const KEEP: usize = 2;

/// Any of the forms.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Fields {
    /// The page to go back to.
    back: String,
    golden: Option<String>,
    target: Option<String>,
    id: Option<String>,
    keep: Option<String>,
    client: Option<String>,
}

impl Fields {
    /// A page of the console; whatever else was sent is none.
    fn back(&self, otherwise: &str) -> String {
        let is_own = (self.back == "/admin" || self.back.starts_with("/admin/"))
            && self.back.len() < 1000
            && self.back.bytes().all(|byte| byte.is_ascii_graphic());
        if is_own { self.back.clone() } else { otherwise.to_owned() }
    }
}

/// Leads back and says what was done.
pub(super) fn done(back: &str, did: &str) -> Response {
    let separator = if back.contains('?') { '&' } else { '?' };
    see_other(&format!("{back}{separator}did={did}"))
}

fn see_other(to: &str) -> Response {
    match HeaderValue::from_str(to) {
        Ok(location) => (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response(),
        Err(_) => Problem::invalid("the page to go back to is none").into_response(),
    }
}

/// `POST /admin/instances/{id}/{verb}`
pub(super) async fn instance(
    State(console): State<Console>,
    Path((id, verb)): Path<(String, String)>,
    top: Top,
    Form(fields): Form<Fields>,
) -> Response {
    let back = fields.back("/admin/instances");
    match act_on(&console, &id, &verb).await {
        Ok(Done::Said(did)) if did == "released" && back == format!("/admin/instances/{id}") => {
            done("/admin/instances", did)
        }
        Ok(Done::Said(did)) => done(&back, did),
        Ok(Done::Led(to)) => see_other(&to),
        Err(problem) => refused(&console, top, &problem, back),
    }
}

/// What became of an action.
enum Done {
    Said(&'static str),
    /// Somewhere else.
    Led(String),
}

async fn act_on(console: &Console, id: &str, verb: &str) -> Result<Done, Problem> {
    let now = Timestamp::now();
    let instance = of_name(console, id, now).await?;
    match verb {
        "release" => {
            console.api.provisioner.release(&instance.id).await?;
            Ok(Done::Said("released"))
        }
        "extend" => {
            console.api.provisioner.extend(&instance.id, Some(EXTENSION), now).await?;
            Ok(Done::Said("extended"))
        }
        "reset" => {
            console.api.provisioner.reset(&instance.id, now).await?;
            Ok(Done::Said("reset"))
        }
        "hibernate" => {
            console.api.provisioner.hibernate(&instance.id).await?;
            Ok(Done::Said("asleep"))
        }
        "wake" => {
            console.api.provisioner.wake(&instance.id).await?;
            Ok(Done::Said("woken"))
        }
        "login" => {
            let link = instance.access.as_ref().and_then(|access| access.one_click.as_ref());
            let link = link.map(|one_click| login::link(one_click, now).expose_secret().to_owned());
            link.map(Done::Led).ok_or_else(|| Problem::not_found("this golden takes no login links"))
        }
        _ => Err(Problem::not_found("there is nothing like that to do")),
    }
}

/// `POST /admin/pool/{verb}`
pub(super) async fn pool(
    State(console): State<Console>,
    Path(verb): Path<String>,
    top: Top,
    Form(fields): Form<Fields>,
) -> Response {
    let back = fields.back("/admin");
    let did = match verb.as_str() {
        "target" => set_target(&console, &fields).map(|()| "target"),
        "drain" => {
            steer::set_drained(&console.api, true);
            Ok("drained")
        }
        "undrain" => {
            steer::set_drained(&console.api, false);
            Ok("undrained")
        }
        _ => Err(Problem::not_found("there is nothing like that to do")),
    };
    match did {
        Ok(did) => done(&back, did),
        Err(problem) => refused(&console, top, &problem, back),
    }
}

/// An empty target takes the settings' again.
fn set_target(console: &Console, fields: &Fields) -> Result<(), Problem> {
    let target = match fields.target.as_deref().map(str::trim) {
        None | Some("") => None,
        Some(text) => Some(text.parse().map_err(|_| Problem::invalid("a target is a whole number"))?),
    };
    steer::aim(&console.api, fields.golden.as_deref(), target)
}

/// `POST /admin/snapshots/{verb}`
pub(super) async fn snapshots(
    State(console): State<Console>,
    Path(verb): Path<String>,
    top: Top,
    Form(fields): Form<Fields>,
) -> Response {
    let back = "/admin/snapshots";
    match begin(&console, &verb, &fields).await {
        Ok(()) => done(back, "begun"),
        Err(problem) => refused(&console, top, &problem, back.to_owned()),
    }
}

async fn begin(console: &Console, verb: &str, fields: &Fields) -> Result<(), Problem> {
    let desk = &console.api.desk;
    let id = || -> Result<SnapshotId, Problem> {
        let named = fields.id.as_deref().unwrap_or_default();
        named.parse().map_err(|_| Problem::not_found("no snapshot is named so"))
    };
    match verb {
        "create" => drop(desk.create(fields.golden.as_deref())?),
        "verify" => drop(desk.verify(&id()?).await?),
        "promote" => drop(desk.promote(&id()?).await?),
        "remove" => drop(desk.remove(&id()?).await?),
        "withdraw" => {
            let golden = fields.golden.as_deref().unwrap_or_default().parse();
            let golden = golden.map_err(|_| Problem::not_found("no golden is named so"))?;
            drop(desk.withdraw(&golden).await?);
        }
        "prune" => {
            let keep = fields.keep.as_deref().unwrap_or_default().trim();
            let keep = if keep.is_empty() { Some(KEEP) } else { keep.parse().ok() };
            let keep = keep.filter(|keep| *keep > 0);
            drop(desk.prune(keep.ok_or_else(|| Problem::invalid("keep is 1 at least"))?)?);
        }
        _ => return Err(Problem::not_found("there is nothing like that to do")),
    }
    Ok(())
}

/// `POST /admin/limits/clear`
pub(super) async fn clear(State(console): State<Console>, top: Top, Form(fields): Form<Fields>) -> Response {
    let client = fields.client.as_deref().unwrap_or_default();
    match console.api.provisioner.absolve(client).await {
        Ok(()) => done("/admin/limits", "cleared"),
        Err(error) => refused(&console, top, &error.into(), "/admin/limits".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_leads_back_to_the_console_and_nowhere_else() {
        let back = |text: &str| Fields { back: text.into(), ..Fields::default() }.back("/admin/events");
        assert_eq!(back("/admin"), "/admin");
        assert_eq!(back("/admin/instances?q=a&state=ready"), "/admin/instances?q=a&state=ready");
        for other in
            ["", "//evil.example", "https://evil.example/admin", "/admin.evil", "/admin/\r\nx: y", "/"]
        {
            assert_eq!(back(other), "/admin/events", "{other:?}");
        }
    }
}
