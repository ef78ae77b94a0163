//! What every page of the console begins with: language, texts, layout.
//!
//! [`Top`] is an extractor, so that a page's handler is about what the page shows.
//! Who asks was looked at before it (`operators_only` in [`super`]); nobody in
//! particular gets [`Top::of_nobody`], whose page has no way into the console.

use axum::extract::FromRequestParts;
use http::request::Parts;

use super::session::Operator;
use super::texts::Texts;
use crate::api::problem::Problem;
use crate::lang::fill;
use crate::web::assets::{CONSOLE_CSS, CONSOLE_JS};
use crate::web::page::Shell;

/// The beginning of a page; its template has each part under the same name.
pub(super) struct Top {
    pub(super) shell: Shell,
    pub(super) t: &'static Texts,
    pub(super) frame: Frame,
}

/// What the console's layout needs.
pub(super) struct Frame {
    operator: Option<Operator>,
    /// Which section it is: `instances` in `/admin/instances/ID`, nothing in `/admin`.
    section: String,
    /// What has just been done.
    pub(super) notice: Option<&'static str>,
}

impl<S: Send + Sync> FromRequestParts<S> for Top {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Some(operator) = parts.extensions.get::<Operator>().cloned() else {
            return Err(Problem::token_missing());
        };
        let shell = Shell::of(&parts.headers);
        let t = Texts::of(shell.lang);
        let section = parts.uri.path().split('/').nth(2).unwrap_or_default().to_owned();
        let notice = did(parts.uri.query()).and_then(|did| notice(did, t));
        Ok(Self { shell, t, frame: Frame { operator: Some(operator), section, notice } })
    }
}

impl Top {
    /// That of a page for nobody in particular.
    pub(super) fn of_nobody(shell: Shell) -> Self {
        let frame = Frame { operator: None, section: String::new(), notice: None };
        Self { shell, t: Texts::of(shell.lang), frame }
    }
}

impl Frame {
    pub(super) fn css(&self) -> String {
        CONSOLE_CSS.href()
    }

    pub(super) fn js(&self) -> String {
        CONSOLE_JS.href()
    }

    pub(super) fn is(&self, section: &str) -> bool {
        self.section == section
    }

    pub(super) fn who(&self, t: &Texts) -> String {
        self.operator.as_ref().map(|it| fill(t.signed_in_as, &[&it.name])).unwrap_or_default()
    }

    pub(super) const fn has_operator(&self) -> bool {
        self.operator.is_some()
    }

    pub(super) fn has_session(&self) -> bool {
        self.operator.as_ref().is_some_and(|operator| operator.by_cookie)
    }
}

/// What was done, as the page's address says; see `done` in [`super::act`].
fn did(query: Option<&str>) -> Option<&str> {
    query?.split('&').find_map(|pair| pair.strip_prefix("did="))
}

fn notice(did: &str, t: &'static Texts) -> Option<&'static str> {
    Some(match did {
        "released" => t.did_released,
        "extended" => t.did_extended,
        "reset" => t.did_reset,
        "asleep" => t.did_asleep,
        "woken" => t.did_woken,
        "target" => t.did_target,
        "drained" => t.did_drained,
        "undrained" => t.did_undrained,
        "begun" => t.did_begun,
        "removed" => t.did_removed,
        "cleared" => t.did_cleared,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_read_from_the_address() {
        assert_eq!(did(Some("q=a&did=reset&sort=id")), Some("reset"));
        assert_eq!(did(Some("undid=reset")), None);
        assert_eq!(did(None), None);
        let t = Texts::of(crate::lang::Lang::En);
        assert_eq!(notice("reset", t), Some(t.did_reset));
        assert_eq!(notice("<b>", t), None, "only our own words are shown");
    }
}
