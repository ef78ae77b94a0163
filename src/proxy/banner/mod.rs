//! The banner on a shop's pages: that it is a demo, and the time that is left.
//!
//! Used by the proxy when BANNER is on. A page gets one element and one script
//! from the shop's own host; without the script (a policy forbids it, an old
//! browser) the element's text says the same, without a countdown.
//!
//! The page it is on is the shop's, and its scripts are a stranger's. So the
//! banner does nothing itself: more time, a reset and the end are links to the
//! owner's page on the base domain, where the visitor's cookie
//! counts and the shop's scripts reach nothing.
//!
//! ```text
//! /.demo-multiplexer/banner.js   the script
//! /.demo-multiplexer/status      {"seconds_left": 3541}
//! ```
//!
//! Only documents that a browser shows get it: no parts of pages, no frames, no
//! downloads, nothing compressed (the shop is asked for none), no back office.
//! Everything else of the answer stays the shop's own.

pub(crate) mod page;
pub(crate) mod splice;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::response::Response;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use jiff::Timestamp;

use crate::error::Chain;
use crate::id::InstanceId;
use crate::instance::Instance;
use crate::lang::Lang;
use crate::store::Store;

/// What no shop answers itself while the banner is on.
const PATHS: &str = "/.demo-multiplexer/";

/// Whether a path is one of the banner's own.
pub(super) fn is_own(path: &str) -> bool {
    path.starts_with(PATHS)
}

/// How long what the store says counts: each open page asks once a minute, and
/// each document that is opened once.
const FRESH: Duration = Duration::from_secs(2);

/// How many instances' answers are kept: more than a host holds.
const KEPT: usize = 4096;

/// What the banner knows of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lease {
    expires_at: Timestamp,
    /// Below this is the back office; none when that is the whole shop.
    back_office: Option<String>,
}

/// The banner; one for all shops.
#[derive(Debug)]
pub(super) struct Banner {
    store: Arc<dyn Store>,
    landing: Option<String>,
    known: Mutex<HashMap<InstanceId, (Instant, Option<Lease>)>>,
}

impl Banner {
    pub(super) fn new(store: Arc<dyn Store>, landing: Option<String>) -> Self {
        Self { store, landing, known: Mutex::default() }
    }

    /// The answer to a request that is the banner's own; none when it is the
    /// shop's.
    pub(super) async fn answer(&self, method: &Method, path: &str, id: &InstanceId) -> Option<Response> {
        let own = path.strip_prefix(PATHS)?;
        let get = matches!(*method, Method::GET | Method::HEAD);
        Some(match own {
            "banner.js" if get => script(),
            "status" if get => match self.lease(id).await {
                Some(lease) => {
                    let left = lease.expires_at.duration_since(Timestamp::now()).as_secs().max(0);
                    let body = serde_json::json!({ "seconds_left": left }).to_string();
                    plain(StatusCode::OK, "application/json", "no-store", Body::from(body))
                }
                None => plain(StatusCode::NOT_FOUND, "application/json", "no-store", Body::from("{}")),
            },
            _ => plain(StatusCode::NOT_FOUND, "text/plain", "no-store", Body::empty()),
        })
    }

    /// Whether the answer to this request may be a page for the banner; then the
    /// shop is asked for one that can be read.
    pub(super) fn prepare(&self, method: &Method, headers: &mut HeaderMap) -> bool {
        let document = page::is_for_document(method, headers);
        if document {
            page::ask_for_plain(headers);
        }
        document
    }

    /// Puts the banner on the answer, if it is a page of the shop's front.
    pub(super) async fn put_on(
        &self,
        response: Response,
        path: &str,
        id: &InstanceId,
        lang: Lang,
    ) -> Response {
        if !page::is_plain_page(&response) {
            return response;
        }
        match self.lease(id).await {
            Some(lease) if !is_below(path, lease.back_office.as_deref()) => {
                // Its name and no more: whose it is, the browser's cookie there says.
                let manage = self.landing.as_ref().map(|landing| format!("{landing}demo/{id}"));
                page::put(response, &page::Insert { until: lease.expires_at, lang, manage })
            }
            _ => response,
        }
    }

    /// What is known of an instance's lease; none when it is nobody's.
    async fn lease(&self, id: &InstanceId) -> Option<Lease> {
        let now = Instant::now();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        if let Some((at, lease)) = known
            && now.duration_since(at) < FRESH
        {
            return lease;
        }
        let lease = match self.store.get(id).await {
            Ok(instance) => instance.as_ref().and_then(Lease::of),
            Err(error) => {
                tracing::debug!(instance_id = %id, error = %Chain(&error), "no banner");
                return None;
            }
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEPT {
            known.retain(|_, (at, _)| now.duration_since(*at) < FRESH);
        }
        known.insert(id.clone(), (now, lease.clone()));
        lease
    }
}

impl Lease {
    fn of(instance: &Instance) -> Option<Self> {
        let admin_url = instance.access.as_ref().map(|access| access.admin_url.as_str());
        let back_office = admin_url.and_then(|url| url.parse::<http::Uri>().ok()).and_then(|url| {
            let path = url.path().trim_end_matches('/');
            (!path.is_empty()).then(|| path.to_owned())
        });
        Some(Self { expires_at: instance.expires_at?, back_office })
    }
}

/// Whether a path is that directory or in it.
fn is_below(path: &str, directory: Option<&str>) -> bool {
    let rest = directory.and_then(|directory| path.strip_prefix(directory));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn script() -> Response {
    // Its address says the version.
    let kept = "public, max-age=86400";
    plain(StatusCode::OK, "text/javascript; charset=utf-8", kept, Body::from(include_str!("banner.js")))
}

fn plain(status: StatusCode, kind: &'static str, kept: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in [(CONTENT_TYPE, kind), (CACHE_CONTROL, kept), (X_CONTENT_TYPE_OPTIONS, "nosniff")] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_back_office_is_a_directory_with_all_in_it() {
        for (path, below) in [
            ("/wp-admin", true),
            ("/wp-admin/", true),
            ("/wp-admin/users.php", true),
            ("/wp-administrators", false),
            ("/", false),
            ("/blog/wp-admin/", false),
        ] {
            assert_eq!(is_below(path, Some("/wp-admin")), below, "{path}");
        }
        assert!(!is_below("/", None));
    }
}
