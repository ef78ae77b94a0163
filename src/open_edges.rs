//! From settings to what visitors and other nodes meet; called by the daemon at its
//! start.

use std::sync::Arc;
use std::time::Duration;

use crate::config::{Config, NodeSecretError};
use crate::connections::{self, Connections};
use crate::listener::{self, Bounds};
use crate::node::pass::NodeSecret;
use crate::peers::Peers;
use crate::proxy::PublicFace;
use crate::web::Site;
use crate::web::cookie::Key;

/// How many status streams there may be at once.
pub(crate) fn streams(config: &Config) -> usize {
    config.edges.max_streams.unwrap_or_else(|| connections::for_streams(most_connections(config)))
}

/// The bounds of one listener; each has its own places, so that visitors do not
/// shut the operator out. Requests under way have `drain` at the end.
pub(crate) fn bounds(config: &Config, drain: Duration) -> Bounds {
    Bounds {
        headers: listener::HEADERS_DEADLINE,
        connections: Connections::new(most_connections(config), config.trusted_proxies.clone()),
        drain,
    }
}

/// Says so when open files do not suffice for what the settings want. Nobody has asked for
/// the usual number, and fewer are plenty for most: that is no warning.
pub(crate) fn tell_too_few_files(config: &Config) {
    let (fitting, wanted) = (connections_that_fit(), config.edges.max_connections);
    if fitting >= wanted {
        return;
    }
    if wanted == connections::USUAL {
        tracing::info!("open files suffice for {fitting} connections, fewer than is usual");
    } else {
        tracing::warn!(
            "open files suffice for {fitting} connections, not for MAX_CONNECTIONS: raise LimitNOFILE"
        );
    }
}

/// How many connections a listener may have at once.
fn most_connections(config: &Config) -> usize {
    config.edges.max_connections.min(connections_that_fit())
}

/// How many connections this process's open files suffice for.
fn connections_that_fit() -> usize {
    connections::that_fit(rustix::process::getrlimit(rustix::process::Resource::Nofile).current)
}

pub(crate) fn site(config: &Config, key: Key) -> Site {
    let embeds = &config.edges.embed_origins;
    Site::new(key, &config.public_scheme, &config.base_domain, config.public_port, embeds)
}

pub(crate) fn public_face(config: &Config) -> PublicFace {
    let (scheme, own_port) = if config.public_scheme == "https" { ("https", 443) } else { ("http", 80) };
    PublicFace { scheme, port: config.public_port.unwrap_or(own_port) }
}

/// The other nodes, if this daemon is one of several.
///
/// # Errors
/// The secret cannot be used.
pub(crate) fn open_peers(config: &Config) -> Result<Option<Arc<Peers>>, NodeSecretError> {
    let Some(settings) = &config.nodes else { return Ok(None) };
    let secret = NodeSecret::new(settings.load_secret()?);
    Ok(Some(Peers::new(config.node.clone(), settings.address.clone(), secret)))
}
