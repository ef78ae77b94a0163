//! Who the operator is: signed in with a token, vouched for by a proxy in front,
//! or, without any token, on this host itself.
//!
//! ```text
//! sign in    a token with the scope operate -> a signed cookie: until when, and
//!            which token. No longer good when the token is no longer in API_TOKENS
//! proxy      ADMIN_AUTH_HEADER names the person; it counts only in requests that a
//!            trusted proxy itself has sent, which must take it from everybody else
//! host       no API_TOKENS: this host's own clients, under a name of this host
//! ```
//!
//! Failed sign-ins of one client are limited. A token's text goes no further than
//! [`Auth::sign_in`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::{SignedDuration, Timestamp};

use crate::api::ApiState;
use crate::api::access::names_this_host;
use crate::client::Client;
use crate::token::Scope;
use crate::web::Site;
use crate::web::cookie::{Cookie, Signer};

/// How long a session lasts: a day's work.
const SESSION: Duration = Duration::from_secs(8 * 3600);

/// Failed sign-ins of one client, in [`WINDOW`]. A token cannot be guessed; this
/// keeps the log readable.
const FAILURES_MAX: u32 = 5;

/// For how long failures count.
const WINDOW: SignedDuration = SignedDuration::from_mins(5);

/// Clients whose failures are remembered; beyond it nobody new may try, until
/// some are forgotten.
const CLIENTS_MAX: usize = 4096;

/// The longest name that a proxy vouches for.
const NAME_MAX: usize = 100;

/// Somebody who may use the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Operator {
    /// Shown on the page.
    pub(super) name: String,
    /// Whether there is a session to end.
    pub(super) by_cookie: bool,
}

/// Why a sign-in failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The token is not known, or not for this.
    Token,
    /// Too many failed before; how long to wait.
    TooMany(SignedDuration),
}

/// Knows operators.
#[derive(Debug)]
pub(super) struct Auth {
    signer: Signer,
    cookie: Cookie,
    header: Option<HeaderName>,
    /// A std lock: held for one map operation, never across an await.
    failures: Mutex<HashMap<String, (Timestamp, u32)>>,
}

impl Auth {
    pub(super) fn new(site: &Site, header: Option<HeaderName>) -> Self {
        Self {
            signer: site.key.signer("console"),
            cookie: Cookie { name: "console", same_site: "Strict", secure: site.secure },
            header,
            failures: Mutex::default(),
        }
    }

    fn failures(&self) -> MutexGuard<'_, HashMap<String, (Timestamp, u32)>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who asks; none when it is nobody who may.
    pub(super) fn operator(
        &self,
        api: &ApiState,
        headers: &HeaderMap,
        peer: IpAddr,
        now: Timestamp,
    ) -> Option<Operator> {
        let by_cookie = self.cookie.values(headers).find_map(|value| self.session(api, value, now));
        by_cookie.or_else(|| self.vouched(api, headers, peer)).or_else(|| own_host(api, headers, peer))
    }

    fn session(&self, api: &ApiState, value: &str, now: Timestamp) -> Option<Operator> {
        let (until, token) = self.signer.verify(value)?.split_once('.')?;
        if until.parse::<i64>().ok()? <= now.as_second() {
            return None;
        }
        let entry = api.access.tokens.by_fingerprint(token)?;
        let allowed = entry.scopes().allow(Scope::Operate);
        allowed.then(|| Operator { name: entry.name().to_owned(), by_cookie: true })
    }

    fn vouched(&self, api: &ApiState, headers: &HeaderMap, peer: IpAddr) -> Option<Operator> {
        let header = self.header.as_ref()?;
        if !api.trusted_proxies.contains(peer.to_canonical()) {
            return None;
        }
        let mut values = headers.get_all(header).iter();
        let name = values.next()?.to_str().ok()?.trim();
        // Two of them are nobody in particular.
        let one = values.next().is_none() && !name.is_empty() && name.len() <= NAME_MAX;
        one.then(|| Operator { name: name.to_owned(), by_cookie: false })
    }

    /// Checks a token; answers the cookie of its session.
    pub(super) fn sign_in(
        &self,
        api: &ApiState,
        token: &str,
        client: &Client,
        now: Timestamp,
    ) -> Result<HeaderValue, Refused> {
        if let Some(wait) = self.wait(client.scope(), now) {
            return Err(Refused::TooMany(wait));
        }
        let entry = api.access.tokens.find(token.trim().as_bytes());
        match entry.filter(|entry| entry.scopes().allow(Scope::Operate)) {
            Some(entry) => {
                self.failures().remove(client.scope());
                tracing::info!(operator = entry.name(), "operator signed in to the console");
                let until = now.as_second() + i64::try_from(SESSION.as_secs()).unwrap_or(0);
                let value = self.signer.sign(&format!("{until}.{}", entry.fingerprint()));
                Ok(self.cookie.set(Some(&value), SESSION))
            }
            None => {
                self.failed(client.scope(), now);
                tracing::warn!(client = client.scope(), "sign-in to the console refused");
                Err(Refused::Token)
            }
        }
    }

    /// What ends a session.
    pub(super) fn sign_out(&self) -> HeaderValue {
        self.cookie.set(None, SESSION)
    }

    fn failed(&self, client: &str, now: Timestamp) {
        let mut failures = self.failures();
        let entry = failures.entry(client.to_owned()).or_insert((now, 0));
        if is_past(entry.0, now) {
            *entry = (now, 0);
        }
        entry.1 += 1;
    }

    /// How long a client has to wait, if it has.
    fn wait(&self, client: &str, now: Timestamp) -> Option<SignedDuration> {
        let mut failures = self.failures();
        if failures.len() >= CLIENTS_MAX {
            failures.retain(|_, (since, _)| !is_past(*since, now));
        }
        match failures.get(client) {
            Some((since, count)) if *count >= FAILURES_MAX && !is_past(*since, now) => {
                Some(WINDOW - now.duration_since(*since))
            }
            None if failures.len() >= CLIENTS_MAX => Some(WINDOW),
            Some(_) | None => None,
        }
    }
}

/// Whether a failure counts no more. One that is still to come is of a clock that was set
/// back, and would keep its client out for as long.
fn is_past(since: Timestamp, now: Timestamp) -> bool {
    let passed = now.duration_since(since);
    passed.is_negative() || passed >= WINDOW
}

/// Without any token this host's own clients are the operator, as for the API;
/// whose page it was that sent a form is looked at before.
fn own_host(api: &ApiState, headers: &HeaderMap, peer: IpAddr) -> Option<Operator> {
    let host = headers.get(http::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let is_own = api.access.tokens.is_empty()
        && Client::of(peer, headers, &api.trusted_proxies) == Client::Local
        && names_this_host(host);
    is_own.then(|| Operator { name: "localhost".to_owned(), by_cookie: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::cookie::Key;

    fn auth() -> Auth {
        Auth::new(&Site::new(Key::random(), "http", "demo.example", None, &crate::config::Origins::Any), None)
    }

    #[test]
    fn who_fails_often_waits_and_others_do_not() {
        let (auth, now) = (auth(), Timestamp::UNIX_EPOCH);
        for _ in 0..FAILURES_MAX {
            assert_eq!(auth.wait("one", now), None);
            auth.failed("one", now);
        }
        assert_eq!(auth.wait("one", now + SignedDuration::from_mins(1)), Some(SignedDuration::from_mins(4)));
        assert_eq!(auth.wait("other", now), None);
        assert_eq!(auth.wait("one", now + WINDOW), None, "it is forgotten");
        let day = SignedDuration::from_hours(24);
        assert_eq!(auth.wait("one", now - day), None, "a clock that was set back keeps nobody out");
    }

    #[test]
    fn many_clients_that_fail_take_no_memory_without_end() {
        let (auth, now) = (auth(), Timestamp::UNIX_EPOCH);
        for n in 0..CLIENTS_MAX {
            auth.failed(&n.to_string(), now);
        }
        assert_eq!(auth.wait("new", now), Some(WINDOW));
        assert_eq!(auth.wait("new", now + WINDOW), None);
    }
}
