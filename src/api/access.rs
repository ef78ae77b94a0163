//! Who may ask for what. The one place that knows.
//!
//! A layer around all routes ([`check`]): it finds out who asks, looks the path up
//! in [`TABLE`], and lets the request pass or answers 401, 403 or 404.
//!
//! ```text
//!              at LISTEN                       at ADMIN_LISTEN
//! Anybody      everybody                       everybody
//! Acquirer     ACQUIRE=open: everybody         the same
//!              ACQUIRE=token: scope acquire
//! Holder       ACQUIRE=open: who has the id    the same
//!              ACQUIRE=token: a token and the id
//! Watcher      as Operator                     everybody: who reaches it is
//!                                              the network's to say
//! Operator     scope operate; without any      the same, also when LISTEN
//!              API_TOKENS this host's own      hides it
//!              clients; hidden (404) when
//!              there is an ADMIN_LISTEN
//! ```
//!
//! Invariants: a path that is not in the table is an operator's; a token that is
//! not known is refused wherever it is shown; with API_TOKENS set nobody is the
//! operator for where they come from, so a proxy on this host that forgets to say
//! for whom it asks opens nothing. A token's text goes no further than this file.

use std::net::{IpAddr, Ipv4Addr};

use axum::Extension;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::{HeaderMap, HeaderValue};

use super::problem::Problem;
use super::{ApiState, Peer, unknown_path};
use crate::client::{Client, ClientKey};
use crate::config::Acquire;
use crate::token::{Scope, Scopes, Tokens};

/// The address that a request came by; an extension of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// LISTEN, and there is no other.
    Only,
    /// LISTEN beside an ADMIN_LISTEN.
    Public,
    /// ADMIN_LISTEN.
    Admin,
}

/// Whom an endpoint is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// Everybody.
    Anybody,
    /// Who may get an instance.
    Acquirer,
    /// Who has an instance.
    Holder,
    /// Who measures the daemon.
    Watcher,
    /// Who runs it.
    Operator,
}

/// Whom each path is for.
const TABLE: &[(&str, Who)] = &[
    ("/livez", Who::Anybody),
    ("/readyz", Who::Anybody),
    // The details are a watcher's: see `Details`.
    ("/health", Who::Anybody),
    ("/api/openapi.json", Who::Anybody),
    ("/api/docs", Who::Anybody),
    ("/api/v1/demo/acquire", Who::Acquirer),
    ("/api/v1/demo/{id}", Who::Holder),
    ("/api/v1/demo/{id}/extend", Who::Holder),
    ("/api/v1/demo/{id}/reset", Who::Holder),
    ("/api/v1/demo/{id}/hibernate", Who::Holder),
    ("/api/v1/demo/{id}/wake", Who::Holder),
    ("/api/v1/demo/{id}/status", Who::Holder),
    ("/api/v1/demo", Who::Operator),
    ("/api/v1/demo/{id}/logs", Who::Operator),
    ("/api/v1/pool/stats", Who::Operator),
    ("/api/v1/audit", Who::Operator),
    ("/api/v1/pool/target", Who::Operator),
    ("/api/v1/pool/drain", Who::Operator),
    ("/api/v1/nodes", Who::Operator),
    ("/api/v1/goldens", Who::Operator),
    ("/api/v1/events", Who::Operator),
    ("/api/v1/events/stream", Who::Operator),
    ("/api/v1/history", Who::Operator),
    ("/api/v1/snapshots", Who::Operator),
    ("/api/v1/snapshots/prune", Who::Operator),
    ("/api/v1/snapshots/{id}", Who::Operator),
    ("/api/v1/snapshots/{id}/verify", Who::Operator),
    ("/api/v1/snapshots/{id}/promote", Who::Operator),
    ("/api/v1/tasks", Who::Operator),
    ("/api/v1/tasks/{number}", Who::Operator),
    ("/api/v1/limits", Who::Operator),
    ("/api/v1/limits/{client}", Who::Operator),
    ("/metrics", Who::Watcher),
    // Asks by itself whether it is this host's own client.
    ("/api/v1/tls/ask", Who::Anybody),
];

/// Whom a matched path is for; nobody minds who asks for one that is not there.
pub(super) fn who(path: Option<&MatchedPath>) -> Who {
    path.map_or(Who::Anybody, |path| row(path.as_str()).unwrap_or(Who::Operator))
}

fn row(path: &str) -> Option<Who> {
    TABLE.iter().find(|(known, _)| *known == path).map(|(_, who)| *who)
}

/// The statuses with which [`check`] may answer a request to a path, and when.
pub(super) fn refusals(path: &str) -> &'static [(&'static str, &'static str)] {
    const UNKNOWN: (&str, &str) = ("401", "The token is not known, or one is needed and missing");
    const NOT_FOR_YOU: (&str, &str) =
        ("403", "The token is not for this; without API_TOKENS: the client is on another host, or a page");
    const HIDDEN: (&str, &str) = ("404", "It is answered at ADMIN_LISTEN only");
    match row(path).unwrap_or(Who::Operator) {
        Who::Anybody => &[UNKNOWN],
        Who::Acquirer | Who::Holder => &[UNKNOWN, NOT_FOR_YOU],
        Who::Watcher | Who::Operator => &[UNKNOWN, NOT_FOR_YOU, HIDDEN],
    }
}

/// The settings this depends on.
#[derive(Debug, Clone)]
pub struct Access {
    /// The known tokens.
    pub tokens: Tokens,
    /// Who may acquire.
    pub acquire: Acquire,
}

/// Who asks; an extension of every request.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// Under which name it is counted and its keys are kept.
    pub(super) client: Client,
    rights: Rights,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rights {
    /// Nobody in particular.
    None,
    /// This host's own client, while there are no tokens.
    Host,
    /// The holder of a token.
    Token(Scopes),
}

/// Whether `/health` may say more than one word; an extension of every request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Details(pub(super) bool);

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Pass,
    /// Not at this address.
    Hidden,
    /// A token is missing.
    Unknown,
    /// The token lacks this scope.
    Lacks(Scope),
    /// Only this host's own clients may, since there are no tokens.
    Elsewhere,
}

fn judge(who: Who, door: Door, access: &Access, rights: &Rights) -> Verdict {
    let any_of = |scopes: &[Scope]| match rights {
        Rights::Token(held) if scopes.iter().any(|scope| held.allow(*scope)) => Verdict::Pass,
        Rights::Token(_) => Verdict::Lacks(scopes[0]),
        Rights::Host => Verdict::Pass,
        Rights::None if access.tokens.is_empty() => Verdict::Elsewhere,
        Rights::None => Verdict::Unknown,
    };
    match (who, door, access.acquire) {
        (Who::Anybody, ..) | (Who::Acquirer | Who::Holder, _, Acquire::Open) => Verdict::Pass,
        (Who::Acquirer, _, Acquire::Token) => any_of(&[Scope::Acquire]),
        (Who::Holder, _, Acquire::Token) => any_of(&[Scope::Acquire, Scope::Operate]),
        (Who::Watcher, Door::Admin, _) => Verdict::Pass,
        (Who::Watcher | Who::Operator, Door::Public, _) => Verdict::Hidden,
        (Who::Watcher | Who::Operator, ..) => any_of(&[Scope::Operate]),
    }
}

impl Caller {
    /// # Errors
    /// When it shows a token that is not known.
    fn of(headers: &HeaderMap, peer: IpAddr, api: &ApiState) -> Result<Self, Problem> {
        let client = Client::of(peer, headers, &api.trusted_proxies);
        let Some(token) = bearer(headers) else {
            let host = client == Client::Local && api.access.tokens.is_empty() && !is_of_a_page(headers);
            return Ok(Self { client, rights: if host { Rights::Host } else { Rights::None } });
        };
        let entry = api.access.tokens.find(token).ok_or_else(Problem::token_unknown)?;
        let client = Client::Remote(ClientKey::of_token(entry.name()));
        Ok(Self { client, rights: Rights::Token(entry.scopes().clone()) })
    }
}

/// Checks one request.
pub(super) async fn check(State(api): State<ApiState>, mut request: Request, next: Next) -> Response {
    let extensions = request.extensions();
    // Without a socket, as in some tests, it is nobody in particular.
    let peer = extensions.get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip());
    let door = extensions.get::<Door>().copied().unwrap_or(Door::Only);
    let who = who(extensions.get::<MatchedPath>());
    let caller = match Caller::of(request.headers(), peer, &api) {
        Ok(caller) => caller,
        Err(problem) => return problem.into_response(),
    };
    match judge(who, door, &api.access, &caller.rights) {
        Verdict::Pass => {}
        Verdict::Hidden => return unknown_path(request.uri().clone()).await.into_response(),
        Verdict::Unknown => return Problem::token_missing().into_response(),
        Verdict::Lacks(scope) => return Problem::scope_missing(scope).into_response(),
        Verdict::Elsewhere => {
            return Problem::forbidden(
                "this is for this host's own clients, since there are no API_TOKENS; a browser's page and a \
                 request that a proxy passed on are none",
            )
            .into_response();
        }
    }
    let details = judge(Who::Watcher, door, &api.access, &caller.rights) == Verdict::Pass;
    request.extensions_mut().insert(Details(details));
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// What `Authorization: Bearer` shows. Other schemes are for whoever stands in
/// front; two headers are no token of anybody's.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter().map(HeaderValue::as_bytes);
    let (scheme, token) = values.next()?.split_at_checked(7)?;
    if !scheme.eq_ignore_ascii_case(b"bearer ") {
        return None;
    }
    // Refused as unknown, since it is empty.
    Some(if values.next().is_none() { token.trim_ascii() } else { b"" })
}

/// Whether a browser on this host asks on behalf of some site's page, which the
/// person before it need not know of: a shop's own script, or a name that was
/// made to lead to this host (DNS rebinding), which the browser sends as Host.
fn is_of_a_page(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    site.is_some_and(|site| !matches!(site, b"none" | b"same-origin"))
        || headers.contains_key(ORIGIN)
        || !names_this_host(host)
}

/// An address, or a name without a dot: nobody else can make those lead here.
pub(crate) fn names_this_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    !name.contains('.') || address.parse::<IpAddr>().is_ok()
}

/// The door's details for `/health`; nothing more without the layer.
pub(super) fn details(extension: Option<Extension<Details>>) -> bool {
    extension.is_some_and(|Extension(Details(details))| details)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn access(acquire: Acquire, tokens: bool) -> Access {
        let entry = format!("a:admin:{}", "0".repeat(64));
        let tokens = Tokens::parse(tokens.then_some(entry.as_str()).into_iter()).unwrap();
        Access { tokens, acquire }
    }

    fn token(scopes: &str) -> Rights {
        Rights::Token(scopes.parse().unwrap())
    }

    #[test]
    fn without_tokens_the_operator_is_this_hosts_own_client() {
        let access = access(Acquire::Open, false);
        for (who, rights, expected) in [
            (Who::Anybody, Rights::None, Verdict::Pass),
            (Who::Acquirer, Rights::None, Verdict::Pass),
            (Who::Holder, Rights::None, Verdict::Pass),
            (Who::Watcher, Rights::None, Verdict::Elsewhere),
            (Who::Operator, Rights::None, Verdict::Elsewhere),
            (Who::Watcher, Rights::Host, Verdict::Pass),
            (Who::Operator, Rights::Host, Verdict::Pass),
        ] {
            assert_eq!(judge(who, Door::Only, &access, &rights), expected, "{who:?} {rights:?}");
        }
    }

    #[test]
    fn a_scope_opens_what_it_is_for() {
        use Verdict::{Lacks, Pass, Unknown};
        let access = access(Acquire::Token, true);
        for (who, none, acquire, operate) in [
            (Who::Anybody, Pass, Pass, Pass),
            (Who::Acquirer, Unknown, Pass, Lacks(Scope::Acquire)),
            (Who::Holder, Unknown, Pass, Pass),
            (Who::Watcher, Unknown, Lacks(Scope::Operate), Pass),
            (Who::Operator, Unknown, Lacks(Scope::Operate), Pass),
        ] {
            let judged = |rights: &Rights| judge(who, Door::Only, &access, rights);
            assert_eq!(judged(&Rights::None), none, "{who:?}");
            assert_eq!(judged(&token("acquire")), acquire, "{who:?}");
            assert_eq!(judged(&token("operate")), operate, "{who:?}");
            assert_eq!((judged(&token("admin")), judged(&token("acquire+operate"))), (Pass, Pass), "{who:?}");
        }
    }

    #[test]
    fn an_admin_listener_hides_the_operators_part_from_the_other_one() {
        let access = access(Acquire::Open, true);
        for who in [Who::Watcher, Who::Operator] {
            assert_eq!(judge(who, Door::Public, &access, &token("admin")), Verdict::Hidden);
        }
        assert_eq!(judge(Who::Acquirer, Door::Public, &access, &Rights::None), Verdict::Pass);
        assert_eq!(judge(Who::Watcher, Door::Admin, &access, &Rights::None), Verdict::Pass);
        assert_eq!(judge(Who::Operator, Door::Admin, &access, &Rights::None), Verdict::Unknown);
    }

    #[test]
    fn every_path_has_its_row_and_every_row_its_path() {
        let document = super::super::document();
        let paths: BTreeSet<&str> = document.paths.paths.keys().map(String::as_str).collect();
        let rows: BTreeSet<&str> = TABLE.iter().map(|(path, _)| *path).collect();
        assert_eq!(rows, paths);
        assert_eq!(rows.len(), TABLE.len(), "one row for a path");
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn a_bearer_is_read_in_its_one_form() {
        let read = |pairs: &[(&'static str, &'static str)]| bearer(&headers(pairs)).map(<[u8]>::to_vec);
        assert_eq!(read(&[("authorization", "Bearer abc")]).as_deref(), Some(&b"abc"[..]));
        assert_eq!(read(&[("authorization", "bearer  abc ")]).as_deref(), Some(&b"abc"[..]));
        assert_eq!(read(&[("authorization", "Basic YTpi")]), None);
        assert_eq!(read(&[("authorization", "Bearer")]), None);
        assert_eq!(read(&[]), None);
        let twice = [("authorization", "Bearer abc"), ("authorization", "Bearer def")];
        assert_eq!(read(&twice).as_deref(), Some(&b""[..]));
    }

    #[test]
    fn a_page_in_a_browser_of_this_host_is_not_its_operator() {
        for of_a_page in [
            &[("host", "localhost:8080"), ("origin", "http://abc.localhost:8080")][..],
            &[("host", "localhost:8080"), ("sec-fetch-site", "cross-site")],
            &[("host", "localhost:8080"), ("sec-fetch-site", "same-site")],
            &[("host", "rebound.example:8080")],
            &[("host", "127.0.0.1.evil.example")],
        ] {
            assert!(is_of_a_page(&headers(of_a_page)), "{of_a_page:?}");
        }
        for own in [
            &[][..],
            &[("host", "localhost:8080")],
            &[("host", "build-7")],
            &[("host", "127.0.0.1:8080"), ("sec-fetch-site", "none")],
            &[("host", "[::1]:8080"), ("sec-fetch-site", "same-origin")],
        ] {
            assert!(!is_of_a_page(&headers(own)), "{own:?}");
        }
    }
}
