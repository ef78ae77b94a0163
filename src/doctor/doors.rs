//! Who may ask for what: are the doors as wide as the operator thinks?
//!
//! [`probe`] reads files' modes and the list of tokens; [`judge`] is pure.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::facts::Tried;
use super::judge::{fail, ok, warn};
use super::{Finding, docker};
use crate::config::{Acquire, Config, Router};
use crate::error::Chain;
use crate::snapshot::signature;
use crate::token::TokenSource;

/// Wider networks hold strangers: the widest that anybody owns alone is 10.0.0.0/8.
const WIDEST_IPV4: u8 = 8;

/// No registry gives anybody more.
const WIDEST_IPV6: u8 = 16;

/// What was seen of them.
#[derive(Debug, Clone)]
pub(super) struct Doors {
    /// API_TOKENS: whether it has any.
    pub(super) tokens: Tried<bool>,
    /// The key that this host signs snapshots with, and those it trusts; none
    /// when they were not looked at.
    pub(super) keys: Option<Vec<KeyFile>>,
    /// What signs webhooks: how many receivers take it; none when there are none.
    pub(super) webhooks: Tried<usize>,
}

/// A file with a key.
#[derive(Debug, Clone)]
pub(super) struct KeyFile {
    pub(super) path: PathBuf,
    /// Its permissions, or why they cannot be read.
    pub(super) mode: Result<u32, String>,
    pub(super) secrecy: Secrecy,
}

/// Who may read a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrecy {
    /// Its owner alone.
    Private,
    /// Everybody.
    Public,
}

/// Looks at the files; what only root may read is left out for anybody else.
pub(super) fn probe(config: &Config, root: bool) -> Doors {
    let tokens = || config.edges.tokens.load().map(|tokens| !tokens.is_empty());
    Doors {
        tokens: root.then(|| tokens().map_err(|error| Chain(&error).to_string())),
        keys: root.then(|| keys(config)),
        webhooks: config.webhooks.as_ref().filter(|_| root).map(|webhooks| {
            let secret = webhooks.secret.load().map_err(|error| Chain(&error).to_string());
            secret.map(|_| webhooks.urls.len())
        }),
    }
}

fn keys(config: &Config) -> Vec<KeyFile> {
    let of = |path: &Path, secrecy| {
        let mode = std::fs::metadata(path).map(|file| file.permissions().mode() & 0o7777);
        KeyFile { path: path.to_owned(), mode: mode.map_err(|error| error.to_string()), secrecy }
    };
    let own = signature::private_path(&config.state_dir);
    // It is made with the first snapshot.
    let own = own.is_file().then(|| of(&own, Secrecy::Private));
    own.into_iter().chain(config.trusted_snapshot_keys.iter().map(|path| of(path, Secrecy::Public))).collect()
}

/// What it means.
pub(super) fn judge(doors: &Doors, config: &Config) -> impl Iterator<Item = Finding> + use<> {
    [
        tokens(doors, config),
        admin_listen(doors, config),
        Some(acquire(config)),
        Some(trusted_proxies(config)),
        // Docker restores no snapshot, so no key matters.
        snapshot_keys(doors).filter(|_| !docker::is_mode(config)),
        webhooks(doors),
    ]
    .into_iter()
    .flatten()
}

fn tokens(doors: &Doors, config: &Config) -> Option<Finding> {
    const CREATE: &str = "demo-multiplexer token create NAME --scope SCOPE makes one; put its line there";
    let name = "tokens";
    Some(match (doors.tokens.as_ref()?, &config.edges.tokens) {
        (Err(why), _) => fail(name, why, "mend the file; the daemon does not start with it"),
        (Ok(true), _) => ok(name, "API_TOKENS has some"),
        (Ok(false), TokenSource::Inline(_)) => {
            ok(name, "API_TOKENS is empty: this host's own clients are the operator")
        }
        (Ok(false), TokenSource::File(path)) if config.edges.acquire == Acquire::Token => warn(
            name,
            format!("{} has no token, and ACQUIRE=token: nobody can acquire", path.display()),
            CREATE,
        ),
        (Ok(false), TokenSource::File(path)) => warn(
            name,
            format!("{} has no token: this host's own clients are the operator", path.display()),
            CREATE,
        ),
    })
}

fn admin_listen(doors: &Doors, config: &Config) -> Option<Finding> {
    let name = "admin-listen";
    let address = config.edges.admin_listen?;
    let has_tokens = matches!(doors.tokens, Some(Ok(true)));
    let advice = "set ADMIN_LISTEN to 127.0.0.1, or to an address that only a management network reaches";
    Some(if address.ip().is_loopback() {
        ok(name, format!("{address}, which this host alone reaches"))
    } else if address.ip().is_unspecified() {
        let seen = format!("{address} is every address: whoever reaches one reads metrics and health");
        warn(name, seen, advice)
    } else if !has_tokens {
        warn(
            name,
            format!(
                "{address} is not this host's alone, and without API_TOKENS no caller from outside can operate"
            ),
            format!("{advice}, and set API_TOKENS"),
        )
    } else {
        ok(name, format!("{address}: whoever reaches it reads metrics and health, the rest takes a token"))
    })
}

fn webhooks(doors: &Doors) -> Option<Finding> {
    let name = "webhooks";
    Some(match doors.webhooks.as_ref()? {
        Ok(count) => ok(name, format!("{count} in WEBHOOK_URLS; `demo-multiplexer webhook test` asks them")),
        Err(why) => fail(name, why, "mend the file; the daemon does not start with it"),
    })
}

fn acquire(config: &Config) -> Finding {
    let name = "acquire";
    // Caddy brings strangers to a daemon that listens for this host alone.
    let is_open = !config.listen.ip().is_loopback() || matches!(config.router, Router::Caddy(_));
    match (config.edges.acquire, config.rate_limit_hourly, config.rate_limit_daily) {
        (Acquire::Token, ..) => ok(name, "only holders of a token acquire"),
        (Acquire::Open, 0, 0) if is_open => warn(
            name,
            "anybody may acquire, as often as they like: one client can take every instance",
            "set RATE_LIMIT_HOURLY and RATE_LIMIT_DAILY, or ACQUIRE=token",
        ),
        (Acquire::Open, 0, 0) => {
            ok(name, format!("whoever reaches {} acquires without a limit", config.listen))
        }
        (Acquire::Open, hourly, daily) => {
            let limit = |n: u32, time| (n > 0).then(|| format!("{n} {time}"));
            let limits: Vec<String> =
                [limit(hourly, "an hour"), limit(daily, "a day")].into_iter().flatten().collect();
            ok(name, format!("anybody may, {} for each client", limits.join(" and ")))
        }
    }
}

fn trusted_proxies(config: &Config) -> Finding {
    let name = "trusted-proxies";
    let too_wide = |(address, prefix): &(IpAddr, u8)| match address {
        IpAddr::V4(_) => *prefix < WIDEST_IPV4,
        IpAddr::V6(_) => *prefix < WIDEST_IPV6,
    };
    match config.trusted_proxies.networks().find(too_wide) {
        Some((address, prefix)) => warn(
            name,
            format!(
                "{address}/{prefix} holds strangers, who then choose the address that they are counted under"
            ),
            "list the addresses of your proxies in TRUSTED_PROXIES, and nobody else's",
        ),
        None => ok(name, "no network of TRUSTED_PROXIES is too wide"),
    }
}

fn snapshot_keys(doors: &Doors) -> Option<Finding> {
    let name = "snapshot-keys";
    for KeyFile { path, mode, secrecy } in doors.keys.as_ref()? {
        let path = path.display();
        match (mode, secrecy) {
            (Err(why), _) => {
                let advice = "name files that are there in TRUSTED_SNAPSHOT_KEYS";
                return Some(fail(name, format!("{path}: {why}"), advice));
            }
            (Ok(mode), Secrecy::Private) if mode & 0o077 != 0 => {
                let seen = format!(
                    "{path} has mode {mode:04o}: who reads it signs snapshots that are restored here"
                );
                return Some(warn(name, seen, format!("chmod 600 {path}")));
            }
            (Ok(mode), Secrecy::Public) if mode & 0o022 != 0 => {
                let seen = format!(
                    "{path} has mode {mode:04o}: who changes it chooses whose snapshots are restored"
                );
                return Some(warn(name, seen, format!("chmod go-w {path}")));
            }
            (Ok(_), _) => {}
        }
    }
    Some(ok(name, "nobody else reads this host's key or changes a trusted one"))
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn config(changes: &[(&str, &str)]) -> Config {
        let defaults = crate::config::SETTINGS.iter();
        let mut values: crate::config::Values =
            defaults.map(|setting| (setting.name.to_owned(), setting.default.to_owned())).collect();
        values.extend(changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Config::check(&values).unwrap()
    }

    fn doors(tokens: Result<bool, &str>, keys: &[(u32, Secrecy)]) -> Doors {
        let key = |(mode, secrecy): &(u32, Secrecy)| KeyFile {
            path: "/k".into(),
            mode: Ok(*mode),
            secrecy: *secrecy,
        };
        Doors {
            tokens: Some(tokens.map_err(str::to_owned)),
            keys: Some(keys.iter().map(key).collect()),
            webhooks: None,
        }
    }

    /// Names and what is said of the findings that are not ok.
    fn found(doors: &Doors, changes: &[(&str, &str)]) -> Vec<(&'static str, Status)> {
        let findings = judge(doors, &config(changes));
        let findings = findings.filter(|finding| finding.status != Status::Ok);
        findings.inspect(|finding| assert!(finding.advice.is_some())).map(|it| (it.name, it.status)).collect()
    }

    const NOTHING: [(&str, Status); 0] = [];

    #[test]
    fn nothing_is_said_against_the_defaults() {
        assert_eq!(found(&doors(Ok(false), &[]), &[]), NOTHING);
        assert_eq!(
            judge(&Doors { tokens: None, keys: None, webhooks: None }, &config(&[])).count(),
            2,
            "not as root"
        );
    }

    #[test]
    fn a_list_of_tokens_that_is_unusable_or_empty_is_told_of() {
        let file = [("API_TOKENS", "/etc/tokens")];
        assert_eq!(found(&doors(Err("it has mode 0644"), &[]), &file), [("tokens", Status::Fail)]);
        assert_eq!(found(&doors(Ok(false), &[]), &file), [("tokens", Status::Warn)]);
        let only = [file[0], ("ACQUIRE", "token")];
        let finding = judge(&doors(Ok(false), &[]), &config(&only)).next().unwrap();
        assert!(finding.seen.contains("nobody can acquire"), "{finding:?}");
        assert_eq!(found(&doors(Ok(true), &[]), &only), NOTHING);
    }

    #[test]
    fn a_secret_for_webhooks_that_others_read_is_told_of_and_a_good_one_too() {
        let of = |webhooks| Doors { webhooks: Some(webhooks), ..doors(Ok(false), &[]) };
        assert_eq!(found(&of(Err("it has mode 0644".into())), &[]), [("webhooks", Status::Fail)]);
        assert_eq!(found(&of(Ok(2)), &[]), NOTHING);
        // What is looked at is the file that the daemon reads.
        let urls = [("WEBHOOK_URLS", "https://a/"), ("WEBHOOK_SECRET_FILE", "/nowhere/secret")];
        let seen = probe(&config(&urls), true).webhooks.unwrap().unwrap_err();
        assert!(seen.contains("WEBHOOK_SECRET_FILE /nowhere/secret"), "{seen}");
        assert!(probe(&config(&[]), true).webhooks.is_none());
    }

    #[test]
    fn an_admin_listener_that_strangers_reach_is_warned_of() {
        let at = |address, tokens| found(&doors(Ok(tokens), &[]), &[("ADMIN_LISTEN", address)]);
        assert_eq!(at("127.0.0.1:8081", false), NOTHING);
        assert_eq!(at("192.0.2.1:8081", true), NOTHING);
        for (address, tokens) in [("192.0.2.1:8081", false), ("0.0.0.0:8081", true), ("[::]:8081", true)] {
            assert_eq!(at(address, tokens), [("admin-listen", Status::Warn)], "{address}");
        }
    }

    #[test]
    fn an_open_acquire_without_limits_is_warned_of_where_strangers_reach_it() {
        let free = [("RATE_LIMIT_HOURLY", "0"), ("RATE_LIMIT_DAILY", "0")];
        let with =
            |more: &[(&'static str, &'static str)]| found(&doors(Ok(true), &[]), &[&free[..], more].concat());
        assert_eq!(with(&[]), NOTHING);
        assert_eq!(with(&[("LISTEN", "0.0.0.0:8080")]), [("acquire", Status::Warn)]);
        assert_eq!(with(&[("ROUTER", "caddy")]), [("acquire", Status::Warn)]);
        assert_eq!(with(&[("LISTEN", "0.0.0.0:8080"), ("RATE_LIMIT_DAILY", "9")]), NOTHING);
        let token = [("LISTEN", "0.0.0.0:8080"), ("ACQUIRE", "token"), ("API_TOKENS", "/etc/tokens")];
        assert_eq!(with(&token), NOTHING);
    }

    #[test]
    fn a_network_of_proxies_that_holds_strangers_is_warned_of() {
        let of = |networks| found(&doors(Ok(false), &[]), &[("TRUSTED_PROXIES", networks)]);
        for fine in ["", "10.0.0.0/8,fd00::/16", "127.0.0.0/8,::1/128", "173.245.48.0/20"] {
            assert_eq!(of(fine), NOTHING, "{fine}");
        }
        for wide in ["0.0.0.0/0", "127.0.0.1/32,0.0.0.0/1", "::/0"] {
            assert_eq!(of(wide), [("trusted-proxies", Status::Warn)], "{wide}");
        }
    }

    #[test]
    fn keys_that_others_get_at_are_warned_of_and_absent_ones_fail() {
        let of = |mode, secrecy| found(&doors(Ok(false), &[(mode, secrecy)]), &[]);
        assert_eq!(of(0o600, Secrecy::Private), NOTHING);
        assert_eq!(of(0o644, Secrecy::Public), NOTHING);
        for (mode, secrecy) in
            [(0o640, Secrecy::Private), (0o604, Secrecy::Private), (0o664, Secrecy::Public)]
        {
            assert_eq!(of(mode, secrecy), [("snapshot-keys", Status::Warn)], "{mode:o}");
        }
        let absent =
            KeyFile { path: "/k".into(), mode: Err("it is not there".into()), secrecy: Secrecy::Public };
        let doors = Doors { tokens: None, keys: Some(vec![absent]), webhooks: None };
        assert_eq!(found(&doors, &[]), [("snapshot-keys", Status::Fail)]);
        assert_eq!(found(&doors, &[("CONTAINER_MODE", "docker")]), NOTHING);
    }
}
