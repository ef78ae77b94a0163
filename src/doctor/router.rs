//! The router in front: is it there, is it ours, can strangers command it?

use std::net::{IpAddr, SocketAddr};

use super::{Finding, Status};
use crate::config::{Banner, Config, Router};
use crate::error::Chain;
use crate::route::caddy::{CaddyRoutes, Surroundings};

/// Looks at Caddy; none when the router is the built-in one.
pub(super) async fn probe(config: &Config) -> Option<Result<Surroundings, String>> {
    let Router::Caddy(address) = &config.router else { return None };
    let looked =
        async { CaddyRoutes::new(address.clone(), &config.node, &config.base_domain)?.look_around().await };
    Some(looked.await.map_err(|error| Chain(&error).to_string()))
}

/// What it means. Never a failure: shops can be restored without it, and the
/// built-in proxy serves them.
pub(super) fn judge(seen: Option<&Result<Surroundings, String>>, config: &Config) -> Option<Finding> {
    let warn = |seen: String, advice: String| {
        Some(Finding { name: "router", status: Status::Warn, seen, advice: Some(advice) })
    };
    let domain = &config.base_domain;
    match seen? {
        Err(why) => warn(
            why.clone(),
            "start Caddy (caddy run --envfile .env --config Caddyfile), or set CADDY_ADMIN_URL".into(),
        ),
        Ok(seen) if !is_private(&seen.admin) => warn(
            format!("Caddy's admin API listens at {:?}: whoever reaches it commands Caddy", seen.admin),
            "set CADDY_ADMIN to 127.0.0.1:2019, or to a socket: unix//run/caddy/admin.sock".into(),
        ),
        Ok(seen) if !seen.has_site => warn(
            format!("Caddy has no site for *.{domain}"),
            "start it with this project's Caddyfile and the same BASE_DOMAIN".into(),
        ),
        Ok(_) if config.edges.banner == Banner::On => warn(
            "BANNER=on shows nothing with ROUTER=caddy: Caddy leads visitors past the built-in proxy".into(),
            "set ROUTER=embedded, which Caddy can stand in front of as well, or BANNER=off".into(),
        ),
        Ok(seen) => {
            let seen = format!("Caddy serves *.{domain}; its admin API is at {}", seen.admin);
            Some(Finding { name: "router", status: Status::Ok, seen, advice: None })
        }
    }
}

/// Whether only this host reaches an address of Caddy's form.
fn is_private(listen: &str) -> bool {
    if listen.starts_with("unix/") {
        return true;
    }
    let listen = listen.strip_prefix("tcp/").unwrap_or(listen);
    let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host);
    let address = listen.parse().map(|it: SocketAddr| it.ip()).or_else(|_| host.parse::<IpAddr>());
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(seen: Result<Surroundings, String>) -> Finding {
        judged_with(seen, Banner::Off)
    }

    fn judged_with(seen: Result<Surroundings, String>, banner: Banner) -> Finding {
        let defaults = crate::config::SETTINGS.iter();
        let defaults = defaults.map(|setting| (setting.name.to_owned(), setting.default.to_owned()));
        let mut config = Config::check(&defaults.collect()).unwrap();
        config.edges.banner = banner;
        judge(Some(&seen), &config).unwrap()
    }

    #[test]
    fn a_banner_that_nobody_sees_is_warned_of() {
        let finding = judged_with(caddy("127.0.0.1:2019", true), Banner::On);
        assert_eq!(finding.status, Status::Warn);
        assert!(finding.advice.unwrap().contains("ROUTER=embedded"));
    }

    fn caddy(admin: &str, has_site: bool) -> Result<Surroundings, String> {
        Ok(Surroundings { has_site, admin: admin.into() })
    }

    #[test]
    fn an_admin_api_that_others_reach_is_warned_of() {
        for private in
            ["127.0.0.1:2019", "localhost:2019", "[::1]:2019", "tcp/127.0.0.1:1", "unix//run/x.sock"]
        {
            assert_eq!(judged(caddy(private, true)).status, Status::Ok, "{private}");
        }
        for public in [":2019", "0.0.0.0:2019", "[::]:2019", "192.0.2.1:2019", "admin.example:2019"] {
            let finding = judged(caddy(public, true));
            assert!(finding.advice.is_some_and(|advice| advice.contains("CADDY_ADMIN")), "{public}");
        }
    }

    #[test]
    fn a_caddy_that_is_not_ours_or_not_there_is_warned_of() {
        assert!(judged(caddy("127.0.0.1:2019", false)).seen.contains("no site for *.localhost"));
        assert!(judged(Err("nobody listens".into())).advice.unwrap().contains("start Caddy"));
    }
}
