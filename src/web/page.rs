//! How a page becomes an answer: the layout's values, the policy, the headers.

use askama::Template;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use http::header::{
    CACHE_CONTROL, CONTENT_LANGUAGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, VARY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::assets;
use super::cookie::{Cookie, Key};
use crate::config::Origins;
use crate::error::Chain;
use crate::lang::{Lang, texts};

texts! {
    /// What every page says.
    Common {
        brand: "Demo shops", "Boutiques de démonstration";
        skip: "Skip to the content", "Aller au contenu";
    }
}

/// What all pages of this service share.
#[derive(Debug)]
pub struct Site {
    /// What signs cookies.
    pub key: Key,
    /// Whether visitors come by https.
    pub secure: bool,
    origin: String,
    policy: HeaderValue,
    /// Of the one page that other sites may frame.
    framed: HeaderValue,
    embeds: bool,
}

impl Site {
    /// A site whose shops are at `SCHEME://<label>.BASE_DOMAIN[:PORT]`.
    #[must_use]
    pub fn new(key: Key, scheme: &str, base_domain: &str, port: Option<u16>, embeds: &Origins) -> Self {
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        let shops = format!("{scheme}://*.{base_domain}{port}");
        let embedders: Vec<&str> = match embeds {
            Origins::Any => vec!["*"],
            Origins::Listed(listed) => listed.iter().filter_map(|origin| origin.to_str().ok()).collect(),
        };
        let policy = |ancestors: &str| {
            // A form's redirect may lead into a shop.
            let policy = format!(
                "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self' {shops}; \
                 frame-ancestors {ancestors}"
            );
            HeaderValue::from_str(&policy).expect("a checked domain is plain text")
        };
        Self {
            key,
            secure: scheme == "https",
            origin: format!("{scheme}://{base_domain}{port}"),
            policy: policy("'none'"),
            framed: policy(&format!("'self' {}", embedders.join(" "))),
            embeds: !embedders.is_empty(),
        }
    }

    /// Its own address, without a slash at the end.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// A cookie of ours that also comes with a click on another site's link.
    pub(crate) const fn cookie(&self, name: &'static str) -> Cookie {
        Cookie { name, same_site: "Lax", secure: self.secure }
    }

    /// Whether any other site may frame what is made for it.
    pub(crate) const fn may_be_framed(&self) -> bool {
        self.embeds
    }

    /// The policy of a page that other sites may frame.
    pub(crate) const fn framed_policy(&self) -> &HeaderValue {
        &self.framed
    }

    /// Answers with a page.
    pub(crate) fn page(&self, lang: Lang, status: StatusCode, page: &impl Template) -> Response {
        let html = match page.render() {
            Ok(html) => html,
            Err(error) => {
                tracing::error!(error = %Chain(&error), "page not written");
                return StatusCode::INTERNAL_SERVER_ERROR.into_response();
            }
        };
        let mut response = Response::new(Body::from(html));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        for (name, value) in [
            (CONTENT_TYPE, "text/html; charset=utf-8"),
            (CONTENT_LANGUAGE, lang.code()),
            (VARY, "Accept-Language, Cookie"),
            // A page is of the moment, and may hold a password.
            (CACHE_CONTROL, "no-store"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (X_FRAME_OPTIONS, "DENY"),
            // Our own forms keep their Origin; nobody else learns an instance's name.
            (REFERRER_POLICY, "same-origin"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers.insert(CONTENT_SECURITY_POLICY, self.policy.clone());
        response
    }
}

/// What the layout needs, as `shell` in every page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shell {
    /// The page's language.
    pub(crate) lang: Lang,
    /// What every page says.
    pub(crate) t: &'static Common,
}

impl Shell {
    /// In the language that the request asks for.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let lang = Lang::of(headers);
        Self { lang, t: Common::of(lang) }
    }

    pub(crate) fn css(self) -> String {
        assets::APP_CSS.href()
    }

    pub(crate) fn js(self) -> String {
        assets::APP_JS.href()
    }

    pub(crate) fn icon(self) -> String {
        assets::ICON.href()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_in_every_language() {
        crate::lang::assert_translated(Common::ALL, &[]);
    }

    #[test]
    fn a_policy_names_the_shops_and_lets_nothing_else_in() {
        let policy = |scheme, port| {
            let site = Site::new(Key::random(), scheme, "demo.example", port, &Origins::Any);
            (site.policy.to_str().unwrap().to_owned(), site.secure)
        };
        let (plain, secure) = policy("http", Some(8080));
        assert!(plain.contains("form-action 'self' http://*.demo.example:8080;") && !secure, "{plain}");
        assert!(plain.starts_with("default-src 'self'; ") && !plain.contains("unsafe"), "{plain}");
        let site = |embeds| Site::new(Key::random(), "http", "localhost", None, embeds);
        let (open, closed) = (site(&Origins::Any), site(&Origins::Listed(Vec::new())));
        assert!(open.may_be_framed() && open.framed.to_str().unwrap().ends_with("frame-ancestors 'self' *"));
        assert!(!closed.may_be_framed() && closed.framed.to_str().unwrap().ends_with("ancestors 'self' "));
        let (https, secure) = policy("https", None);
        assert!(https.contains("form-action 'self' https://*.demo.example;") && secure, "{https}");
    }
}
