//! The way out of shops whose golden lists what they may reach: does this host
//! pass on what they send?
//!
//! The daemon opens its own firewall and turns forwarding on for its bridge. The
//! outer interface and other programs' firewalls are the operator's.

use std::collections::BTreeSet;

use super::Finding;
use super::facts::{Answer, Route};
use super::judge::{ok, warn};
use super::probe::ask;
use crate::config::Config;
use crate::golden::recipe::Recipe;

/// What was seen of it; none when no golden lists anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WayOut {
    /// Goldens that list something.
    pub(super) goldens: Vec<String>,
    /// The interface of the default route, and whether it passes things on.
    pub(super) uplink: Option<(String, bool)>,
    /// Chains of others that drop what they do not know, and do not know the
    /// bridge: family, table and chain.
    pub(super) dropping: BTreeSet<[String; 3]>,
}

/// Looks at the recipes, and at the host if any of them wants a way out.
pub(super) async fn probe(config: &Config, routes: &[Route]) -> Option<WayOut> {
    let lists = |golden: &&String| {
        Recipe::load(golden, &config.recipe_dir).is_ok_and(|(_, recipe)| !recipe.network.is_closed())
    };
    let goldens: Vec<String> = config.goldens.iter().filter(lists).cloned().collect();
    if goldens.is_empty() {
        return None;
    }
    let forwards = |interface: &str| {
        let path = format!("/proc/sys/net/ipv4/conf/{interface}/forwarding");
        std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "1")
    };
    let uplink = routes.iter().find(|route| route.prefix == 0).map(|route| route.interface.clone());
    let uplink = uplink.map(|interface| (interface.clone(), forwards(&interface)));
    let mut dropping = BTreeSet::new();
    if let Answer::Said(chains) = ask("nft", &["--json", "list", "chains"]).await {
        for chain in dropping_chains(&chains) {
            let [family, table, _] = &chain;
            let rules = ask("nft", &["list", "table", family, table]).await;
            // Somebody has thought of it.
            if !matches!(rules, Answer::Said(rules) if rules.contains(&format!("\"{}\"", config.bridge_name)))
            {
                dropping.insert(chain);
            }
        }
    }
    Some(WayOut { goldens, uplink, dropping })
}

/// Chains of `nft --json list chains` through which forwarded packets go and
/// which drop what no rule names; not those of daemons like this one.
fn dropping_chains(json: &str) -> Vec<[String; 3]> {
    let listed: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let objects = listed["nftables"].as_array().into_iter().flatten();
    let chains = objects.map(|object| &object["chain"]);
    let chains = chains.filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop");
    let named = chains.filter_map(|chain| {
        let text = |key: &str| chain[key].as_str().map(str::to_owned);
        Some([text("family")?, text("table")?, text("name")?])
    });
    named.filter(|[family, ..]| matches!(family.as_str(), "ip" | "inet")).collect()
}

/// What it means. Never a failure: shops are made all the same.
pub(super) fn judge(seen: Option<&WayOut>, config: &Config) -> Option<Finding> {
    let WayOut { goldens, uplink, dropping } = seen?;
    let (name, goldens, bridge) = ("way-out", goldens.join(", "), &config.bridge_name);
    Some(match (uplink, dropping.first()) {
        (None, _) => warn(
            name,
            format!("{goldens} lists what shops may reach, and this host has no default route"),
            "give the host a way out, or remove network.allow from the recipe",
        ),
        (Some((interface, false)), _) => warn(
            name,
            format!("{goldens} lists what shops may reach, and {interface} passes nothing on to them"),
            "sysctl -w net.ipv4.ip_forward=1, and a line net.ipv4.ip_forward=1 in a file in /etc/sysctl.d",
        ),
        (Some(_), Some([family, table, chain])) => warn(
            name,
            format!(
                "the chain {chain} of table {family} {table} drops what {bridge} sends; Docker makes such a one"
            ),
            format!(
                "let it pass there, what shops may reach is decided in the daemon's own table: with Docker, iptables \
                 -I DOCKER-USER -i {bridge} -j ACCEPT and iptables -I DOCKER-USER -o {bridge} -j ACCEPT"
            ),
        ),
        (Some((interface, true)), None) => {
            ok(name, format!("{goldens}: what is listed is reached by {interface}"))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn judged(uplink: Option<(&str, bool)>, dropping: &[[&str; 3]]) -> Finding {
        let defaults = crate::config::SETTINGS.iter();
        let defaults = defaults.map(|setting| (setting.name.to_owned(), setting.default.to_owned()));
        let seen = WayOut {
            goldens: vec!["wordpress".into()],
            uplink: uplink.map(|(interface, forwards)| (interface.to_owned(), forwards)),
            dropping: dropping.iter().map(|chain| chain.map(str::to_owned)).collect(),
        };
        judge(Some(&seen), &Config::check(&defaults.collect()).unwrap()).unwrap()
    }

    #[test]
    fn what_keeps_shops_in_is_told_with_what_lets_them_out() {
        assert_eq!(judged(Some(("eth0", true)), &[]).status, Status::Ok);
        assert_eq!(judged(None, &[]).status, Status::Warn);
        let closed = judged(Some(("eth0", false)), &[]);
        assert!(closed.seen.contains("eth0") && closed.advice.unwrap().contains("ip_forward=1"));
        let docker = judged(Some(("eth0", true)), &[["ip", "filter", "FORWARD"]]);
        assert!(docker.seen.contains("FORWARD of table ip filter"), "{docker:?}");
        assert!(docker.advice.unwrap().contains("DOCKER-USER -i dmux0 -j ACCEPT"));
    }

    #[test]
    fn chains_that_drop_forwarded_packets_are_found() {
        let listed = r#"{"nftables": [{"metainfo": {}},
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "type": "filter", "hook": "forward",
                       "prio": 0, "policy": "drop"}},
            {"chain": {"family": "ip", "table": "filter", "name": "INPUT", "hook": "input", "policy": "drop"}},
            {"chain": {"family": "ip6", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "inet", "table": "own", "name": "elsewhere", "hook": "forward", "policy": "accept"}},
            {"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}}]}"#;
        assert_eq!(dropping_chains(listed), [["ip", "filter", "FORWARD"]]);
        assert!(dropping_chains("").is_empty());
    }
}
