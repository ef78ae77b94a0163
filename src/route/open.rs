//! Opens the routes that the settings ask for; the only file that names the
//! tables. Touches nothing but the list of what has ended.

use std::sync::Arc;

use super::caddy::CaddyRoutes;
use super::{RouteError, Routes};
use crate::config::{Config, Router};

/// The routes, with a router in front if ROUTER names one.
///
/// # Errors
/// When no client for the router can be made; it need not be there yet.
pub fn open(config: &Config) -> Result<Routes, RouteError> {
    let routes = match &config.router {
        Router::Embedded => Routes::new(None),
        Router::Caddy(admin) => {
            let caddy = CaddyRoutes::new(admin.clone(), &config.node, &config.base_domain)?;
            Routes::new(Some(Arc::new(caddy)))
        }
    };
    Ok(routes.remembering(&config.state_dir))
}
