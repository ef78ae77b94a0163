//! `/api/v1/tls/ask`: may a certificate be had for this name?
//!
//! Called by Caddy (`on_demand_tls`) before it asks a CA for one, so that
//! nobody can have it ask for any number of names. Only for this host's own
//! clients: the answer tells whether an instance lives.

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;

use super::ApiState;
use super::extract::Asker;
use super::problem::Problem;
use crate::client::Client;
use crate::id::InstanceId;
use crate::provision::errors::LeaseError;
use crate::route::memory::Lookup;

/// What Caddy adds to the URL.
#[derive(Debug, Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    domain: String,
}

/// Tells Caddy whether a certificate may be had for a name.
///
/// For BASE_DOMAIN and the host of each instance that lives, on whichever node.
#[utoipa::path(get, path = "/api/v1/tls/ask", tag = "health", operation_id = "tls_ask",
    params(("domain" = Option<String>, Query, description = "The name")),
    responses(
        (status = 200, description = "It may"),
        (status = 403, description = "The client is on another host, or behind a proxy"),
        (status = 404, description = "No instance lives under this name"),
        (status = 500, description = "A record cannot be read"),
        (status = 503, description = "The store does not answer")
    )
)]
pub(super) async fn ask(
    State(api): State<ApiState>,
    Asker(client): Asker,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<StatusCode, Problem> {
    if client != Client::Local {
        return Err(Problem::forbidden("who may have a certificate is for this host's own clients"));
    }
    let refused = || Problem::not_found("no instance lives under this name");
    let Ok(Query(asked)) = asked else { return Err(refused()) };
    match name(&asked.domain, &api.base_domain).ok_or_else(refused)? {
        Name::Base => Ok(StatusCode::OK),
        Name::Instance(id) => {
            if matches!(api.provisioner.lifecycle().routes().lookup(id.as_str()), Lookup::Found(_)) {
                return Ok(StatusCode::OK);
            }
            match api.provisioner.show(&id, Timestamp::now()).await {
                Ok(_) => Ok(StatusCode::OK),
                Err(LeaseError::Store(error)) => Err(error.into()),
                Err(_) => Err(refused()),
            }
        }
    }
}

/// A name that this service has.
#[derive(Debug, PartialEq, Eq)]
enum Name {
    /// BASE_DOMAIN itself.
    Base,
    /// An instance's host, were there such an instance.
    Instance(InstanceId),
}

fn name(domain: &str, base_domain: &str) -> Option<Name> {
    let domain = domain.to_ascii_lowercase();
    let front = domain.strip_suffix(base_domain)?;
    if front.is_empty() {
        return Some(Name::Base);
    }
    front.strip_suffix('.')?.parse().ok().map(Name::Instance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_service_are_looked_up() {
        let base = "demo.example";
        assert_eq!(name("demo.example", base), Some(Name::Base));
        let instance = name("ABCDEFGHIJKL.Demo.Example", base);
        assert_eq!(instance, Some(Name::Instance("abcdefghijkl".parse().unwrap())));
        for foreign in [
            "",
            "example",
            "xdemo.example",
            "www.demo.example",
            "a.abcdefghijkl.demo.example",
            "abcdefghijkl.other.example",
            "abcdefghijkldemo.example",
            "demo.example.evil.org",
        ] {
            assert_eq!(name(foreign, base), None, "{foreign}");
        }
    }
}
