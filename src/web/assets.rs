//! What pages load: style, scripts and pictures, in the binary.
//!
//! Each has its content's hash in its address, so a browser keeps it for ever
//! and gets another one when it changes.

use std::sync::OnceLock;

use axum::Router;
use axum::extract::Path;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, StatusCode};

const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const PICTURE: &str = "image/svg+xml";

/// The style of all pages.
pub(crate) static APP_CSS: Asset = Asset::new("app", "css", STYLE, include_str!("assets/app.css"));
/// Copy buttons and times that run.
pub(crate) static APP_JS: Asset = Asset::new("app", "js", SCRIPT, include_str!("assets/app.js"));
/// The clock of a demo's page.
pub(crate) static DEMO_JS: Asset = Asset::new("demo", "js", SCRIPT, include_str!("assets/demo.js"));
/// Takes the key of a kept demo from the address.
pub(crate) static SAVED_JS: Asset = Asset::new("saved", "js", SCRIPT, include_str!("assets/saved.js"));
/// The operator's pages' own style.
pub(crate) static CONSOLE_CSS: Asset =
    Asset::new("console", "css", STYLE, include_str!("../console/assets/console.css"));
/// Has the operator's pages read again when something has happened.
pub(crate) static CONSOLE_JS: Asset =
    Asset::new("console", "js", SCRIPT, include_str!("../console/assets/console.js"));
/// The picture in a browser's tab.
pub(crate) static ICON: Asset = Asset::new("icon", "svg", PICTURE, include_str!("assets/icon.svg"));

/// Every one; what is not here is not served.
static ALL: [&Asset; 7] = [&APP_CSS, &APP_JS, &DEMO_JS, &SAVED_JS, &CONSOLE_CSS, &CONSOLE_JS, &ICON];

/// Characters of a hash in an address: a changed file has another one for certain.
const HASH: usize = 16;

/// A file that pages load.
#[derive(Debug)]
pub(crate) struct Asset {
    name: &'static str,
    extension: &'static str,
    kind: &'static str,
    text: &'static str,
    file: OnceLock<String>,
}

impl Asset {
    pub(crate) const fn new(
        name: &'static str,
        extension: &'static str,
        kind: &'static str,
        text: &'static str,
    ) -> Self {
        Self { name, extension, kind, text, file: OnceLock::new() }
    }

    /// Its address's last part.
    fn file(&self) -> &str {
        self.file.get_or_init(|| {
            let hash = blake3::hash(self.text.as_bytes()).to_hex();
            format!("{}.{}.{}", self.name, &hash[..HASH], self.extension)
        })
    }

    /// Its address.
    pub(crate) fn href(&self) -> String {
        format!("/assets/{}", self.file())
    }
}

/// Serves them.
pub(super) fn router() -> Router {
    Router::new().route("/assets/{file}", get(asset))
}

async fn asset(Path(file): Path<String>, headers: HeaderMap) -> Response {
    let Some(asset) = ALL.iter().find(|asset| asset.file() == file) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let tag = format!("\"{file}\"");
    let known = headers.get(IF_NONE_MATCH).is_some_and(|tags| tags.as_bytes() == tag.as_bytes());
    let mut response =
        if known { StatusCode::NOT_MODIFIED.into_response() } else { asset.text.into_response() };
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, asset.kind),
        (CACHE_CONTROL, "public, max-age=31536000, immutable"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(ETAG, tag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_differ_and_name_their_content() {
        let mut hrefs: Vec<String> = ALL.iter().map(|asset| asset.href()).collect();
        assert!(hrefs.iter().all(|href| href.split('.').nth(1).is_some_and(|hash| hash.len() == HASH)));
        hrefs.sort();
        hrefs.dedup();
        assert_eq!(hrefs.len(), ALL.len());
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        for asset in ALL {
            let text = asset.text.replace("http://www.w3.org/", "");
            assert!(!text.contains("://") && !text.contains("@import"), "{}", asset.name);
        }
    }
}
