//! The settings of NATS.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::ServerAddr;
use secrecy::SecretString;

use super::Reader;

/// How NATS is reached and what it keeps.
#[derive(Debug, Clone)]
pub struct NatsConfig {
    /// `nats://host:port` or `tls://host:port` of each server, without who logs in.
    pub servers: Vec<String>,
    /// User and password, from the address.
    pub login: Option<NatsLogin>,
    /// A credentials file, in place of them.
    pub creds_file: Option<PathBuf>,
    /// Who signed the servers' certificates; none takes the system's authorities.
    pub ca_file: Option<PathBuf>,
    /// What all names in NATS begin with.
    pub prefix: String,
    /// How long events are kept.
    pub events_max_age: Duration,
    /// How many bytes of events are kept.
    pub events_max_bytes: u64,
}

/// Who logs in.
#[derive(Debug, Clone)]
pub struct NatsLogin {
    /// The user.
    pub user: String,
    /// Their password.
    pub password: SecretString,
}

/// A year: more is a slip of the keyboard, and NATS counts nanoseconds.
const AGE_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// The longest prefix: names of streams are names of files.
const PREFIX_MAX: usize = 64;

const FORM: &str = "nats://[USER:PASSWORD@]HOST[:PORT] or tls://..., further servers after a comma";

/// Reads all of them; none when NATS_URL is empty.
pub(super) fn read(read: &mut Reader<'_>) -> Option<NatsConfig> {
    let path = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
    let (creds_file, ca_file) = (path(read.text("NATS_CREDS_FILE")), path(read.text("NATS_CA_FILE")));
    let prefix = read.text("NATS_PREFIX");
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if prefix.is_empty() || prefix.len() > PREFIX_MAX || !prefix.bytes().all(allowed) {
        read.problems.push(format!("NATS_PREFIX={prefix:?}: up to {PREFIX_MAX} letters, digits, - and _"));
    }
    let events_max_age = Duration::try_from(read.duration("EVENTS_MAX_AGE")).unwrap_or(AGE_MAX);
    if events_max_age >= AGE_MAX {
        read.problems.push("EVENTS_MAX_AGE: a year at most".into());
    }
    let events_max_bytes = read.number("EVENTS_MAX_MIB", 1..=1 << 20) as u64 * (1 << 20);
    let url = read.text("NATS_URL");
    if url.is_empty() {
        return None;
    }
    let (mut servers, mut login) = (Vec::new(), None);
    for part in url.split(',') {
        match server(part.trim()) {
            Ok((server, found)) => {
                servers.push(server);
                login = login.or(found);
            }
            // Without what may be a password.
            Err(why) => read.problems.push(format!("NATS_URL, server {}: {why}", servers.len() + 1)),
        }
    }
    if login.is_some() && creds_file.is_some() {
        read.problems.push("NATS_CREDS_FILE and a user in NATS_URL: one of them".into());
    }
    for (name, file) in [("NATS_CREDS_FILE", &creds_file), ("NATS_CA_FILE", &ca_file)] {
        if let Some(file) = file
            && let Err(error) = std::fs::File::open(file)
        {
            read.problems.push(format!("{name}={}: cannot be read: {error}", file.display()));
        }
    }
    Some(NatsConfig { servers, login, creds_file, ca_file, prefix, events_max_age, events_max_bytes })
}

/// One server's address, and who logs in there.
fn server(text: &str) -> Result<(String, Option<NatsLogin>), String> {
    let form = || FORM.to_owned();
    let scheme = text.split_once("://").map(|(scheme, _)| scheme);
    let scheme = scheme.filter(|scheme| matches!(*scheme, "nats" | "tls")).ok_or_else(form)?;
    let address: ServerAddr = text.parse().map_err(|_| form())?;
    let host = match address.host() {
        "" => return Err(form()),
        ipv6 if ipv6.contains(':') => format!("[{ipv6}]"),
        host => host.to_owned(),
    };
    let login = match (address.username(), address.password()) {
        (None, None) => None,
        (Some(user), Some(password)) => {
            Some(NatsLogin { user: decoded(user)?, password: decoded(password)?.into() })
        }
        _ => return Err("a user and a password, or neither".into()),
    };
    Ok((format!("{scheme}://{host}:{}", address.port()), login))
}

/// Undoes what an address writes as `%40`.
fn decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = (*first == b'%').then(|| tail.get(..2)).flatten();
        let byte = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8(bytes).map_err(|_| "user and password are UTF-8".into())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::super::tests::with;
    use super::super::{Config, ConfigError};
    use super::*;

    fn nats(changes: &[(&str, &str)]) -> Result<Option<NatsConfig>, ConfigError> {
        Config::check(&with(changes)).map(|config| config.nats)
    }

    #[test]
    fn several_servers_and_who_logs_in_are_read_apart() {
        let read = nats(&[("NATS_URL", "nats://me:p%40ss%2Cword@one, tls://[::1]:4333")]).unwrap().unwrap();
        assert_eq!(read.servers, ["nats://one:4222", "tls://[::1]:4333"]);
        let login = read.login.as_ref().unwrap();
        assert_eq!((login.user.as_str(), login.password.expose_secret()), ("me", "p@ss,word"));
        assert!(!format!("{read:?}").contains("p@ss"), "{read:?}");
        assert_eq!((read.events_max_age.as_secs(), read.events_max_bytes), (7 * 24 * 3600, 256 << 20));
        assert!(nats(&[]).unwrap().is_none());
    }

    #[test]
    fn what_is_no_address_is_refused_without_its_password() {
        for url in ["localhost:4222", "http://localhost", "nats://", "nats://me:secret@", "nats://me@host"] {
            let error = nats(&[("NATS_URL", url)]).unwrap_err().to_string();
            assert!(error.contains("NATS_URL, server 1: ") && !error.contains("secret"), "{url}: {error}");
        }
    }

    #[test]
    fn what_nats_could_not_use_is_refused() {
        let wrong = [
            ("NATS_PREFIX", "a.b"),
            ("NATS_PREFIX", ""),
            ("EVENTS_MAX_AGE", "0s"),
            ("EVENTS_MAX_AGE", "90000h"),
            ("EVENTS_MAX_MIB", "0"),
            ("NATS_CREDS_FILE", "/nowhere/creds"),
            ("NATS_CA_FILE", "/nowhere/ca.pem"),
        ];
        for (name, value) in wrong {
            let error = nats(&[("NATS_URL", "nats://host"), (name, value)]).unwrap_err();
            assert_eq!(error.problems.len(), 1, "{error}");
            assert!(error.problems[0].starts_with(name), "{error}");
        }
    }
}
