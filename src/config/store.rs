//! Where the state is kept, read from STORE_URL and what belongs to it. Pure.
//!
//! ```text
//! embedded:[PATH]
//! redis[s]://[user[:password]@]host[:port][/database]
//! redis[s]+sentinel://[user[:password]@]host[:port],host[:port]/primary[/database]
//! ```
//!
//! Invariant: no text that comes from here has the password, errors included.

use std::fmt;
use std::path::PathBuf;

use secrecy::SecretString;

/// Redis' and Valkey's own port.
const SERVER_PORT: u16 = 6379;

/// A sentinel's own port.
const SENTINEL_PORT: u16 = 26379;

/// Where the state is kept.
#[derive(Debug, Clone)]
pub enum StoreAt {
    /// In a file of this host.
    Embedded(PathBuf),
    /// In a Valkey that other daemons may use, too.
    Valkey(ValkeyAt),
}

/// A Valkey and how to get in.
#[derive(Debug, Clone)]
pub struct ValkeyAt {
    /// Which.
    pub servers: Servers,
    /// Whether to speak TLS, to the sentinels as well.
    pub tls: bool,
    /// The user; none is Valkey's `default`.
    pub username: Option<String>,
    /// Its password, if STORE_URL has one.
    pub password: Option<SecretString>,
    /// The file that has it, if it is not in STORE_URL.
    pub password_file: Option<PathBuf>,
    /// The authorities that sign the servers' certificates; none takes the system's.
    pub ca_file: Option<PathBuf>,
    /// The number of the database.
    pub database: i64,
    /// What all keys begin with.
    pub prefix: String,
}

/// One server, or sentinels that know which one it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Servers {
    /// One server.
    One(Endpoint),
    /// The primary of that name, as the sentinels tell it.
    Sentinels {
        /// All of them; one that answers is enough.
        sentinels: Vec<Endpoint>,
        /// The name under which they watch it.
        primary: String,
    },
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for ValkeyAt {
    /// The URL without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "rediss" } else { "redis" })?;
        match &self.servers {
            Servers::One(endpoint) => write!(f, "://{endpoint}/{}", self.database),
            Servers::Sentinels { sentinels, primary } => {
                let sentinels: Vec<String> = sentinels.iter().map(ToString::to_string).collect();
                write!(f, "+sentinel://{}/{primary}/{}", sentinels.join(","), self.database)
            }
        }
    }
}

/// The forms, for a complaint.
const FORMS: &str = "embedded:PATH, redis://[user:password@]host[:port][/database], rediss://.. for TLS, or \
                     redis+sentinel://[user:password@]host:port,host:port/primary[/database]";

impl StoreAt {
    /// The word used in reports.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "embedded",
            Self::Valkey(_) => "valkey",
        }
    }

    /// Reads a STORE_URL; a file without a path is `file`.
    pub(super) fn parse(url: &str, file: PathBuf) -> Result<Self, String> {
        let wrong = |what: &str| format!("STORE_URL={:?}: {what}: {FORMS}", without_credentials(url));
        if let Some(path) = url.strip_prefix("embedded:") {
            return Ok(Self::Embedded(if path.is_empty() { file } else { path.into() }));
        }
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("not of the form"))?;
        let (tls, sentinel) = match scheme {
            "redis" => (false, false),
            "rediss" => (true, false),
            "redis+sentinel" => (false, true),
            "rediss+sentinel" => (true, true),
            _ => return Err(wrong("an unknown kind")),
        };
        // A password may have an @ of its own only as %40; a lenient reader takes the last one.
        let (credentials, rest) = rest.rsplit_once('@').map_or((None, rest), |(c, rest)| (Some(c), rest));
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let port = if sentinel { SENTINEL_PORT } else { SERVER_PORT };
        let endpoints: Option<Vec<Endpoint>> = hosts.split(',').map(|one| endpoint(one, port)).collect();
        let endpoints = endpoints.ok_or_else(|| wrong("no host, or no port after it"))?;
        let (servers, database) = if sentinel {
            let (primary, database) = path.split_once('/').unwrap_or((path, ""));
            if primary.is_empty() {
                return Err(wrong("the primary's name is missing"));
            }
            (Servers::Sentinels { sentinels: endpoints, primary: primary.to_owned() }, database)
        } else {
            let [one] = endpoints.as_slice() else {
                return Err(wrong("several hosts, but no sentinels"));
            };
            (Servers::One(one.clone()), path)
        };
        let database = if database.is_empty() { "0" } else { database };
        let database = database.parse::<u16>().map_err(|_| wrong("the database is not a number"))?;
        let (username, password) = match credentials {
            None => (None, None),
            Some(given) => {
                let (user, password) = given.split_once(':').map_or((given, None), |(u, p)| (u, Some(p)));
                let user = decoded(user).ok_or_else(|| wrong("a % without two hexadecimal digits"))?;
                let password = password.map(decoded);
                if password == Some(None) {
                    return Err(wrong("a % without two hexadecimal digits"));
                }
                let password = password.flatten().filter(|text| !text.is_empty());
                (Some(user).filter(|user| !user.is_empty()), password.map(SecretString::from))
            }
        };
        Ok(Self::Valkey(ValkeyAt {
            servers,
            tls,
            username,
            password,
            password_file: None,
            ca_file: None,
            database: database.into(),
            prefix: String::new(),
        }))
    }
}

fn endpoint(text: &str, default_port: u16) -> Option<Endpoint> {
    let (host, port) = match text.strip_prefix('[') {
        // An IPv6 address.
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, rest.strip_prefix(':').or_else(|| rest.is_empty().then_some("")))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, Some("")),
        },
    };
    let port = match port? {
        "" => default_port,
        digits => digits.parse().ok()?,
    };
    let whole = !host.is_empty() && !host.contains([' ', '/', '?', '#']);
    whole.then(|| Endpoint { host: host.to_owned(), port })
}

/// A text with its `%40` and the like replaced.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

/// A URL for a message: nothing of what stands before the last @.
fn without_credentials(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://..@{rest}"),
        (None, Some((_, rest))) => format!("..@{rest}"),
        (_, None) => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn valkey(url: &str) -> ValkeyAt {
        match StoreAt::parse(url, PathBuf::new()) {
            Ok(StoreAt::Valkey(at)) => at,
            other => panic!("{url}: {other:?}"),
        }
    }

    fn at(host: &str, port: u16) -> Endpoint {
        Endpoint { host: host.into(), port }
    }

    #[test]
    fn every_form_is_read() {
        let one = valkey("redis://localhost");
        assert_eq!((one.servers, one.tls, one.database), (Servers::One(at("localhost", 6379)), false, 0));
        assert!(one.username.is_none() && one.password.is_none());
        let one = valkey("rediss://demo:p%40ss%3aword@[2001:db8::1]:6380/3");
        assert_eq!((&one.servers, one.tls, one.database), (&Servers::One(at("2001:db8::1", 6380)), true, 3));
        assert_eq!(one.username.as_deref(), Some("demo"));
        assert_eq!(one.password.as_ref().map(|p| p.expose_secret()), Some("p@ss:word"));
        assert_eq!(one.to_string(), "rediss://[2001:db8::1]:6380/3");
        let watched = valkey("redis+sentinel://:secret@s1,s2:26380/shops/1");
        let sentinels = vec![at("s1", 26379), at("s2", 26380)];
        assert_eq!(watched.servers, Servers::Sentinels { sentinels, primary: "shops".into() });
        assert_eq!((watched.database, watched.username.is_none()), (1, true));
        assert_eq!(watched.to_string(), "redis+sentinel://s1:26379,s2:26380/shops/1");
    }

    #[test]
    fn no_text_has_the_password() {
        for url in [
            "redis://u:secret@h:x",
            "redis://u:secret@h/x",
            "redis://u:secret@",
            "postgres://u:secret@h",
            "redis://u:sec%ret@h",
            "redis://u:secret@h1,h2",
            "redis+sentinel://u:secret@h",
            "u:secret@h",
            "redis://u:secret@x@h:99999",
        ] {
            let problem = StoreAt::parse(url, PathBuf::new()).expect_err(url);
            assert!(!problem.contains("secret") && !problem.contains("sec%ret"), "{problem}");
            assert!(problem.starts_with("STORE_URL="), "{problem}");
        }
        let good = valkey("redis://u:secret@h");
        assert!(!format!("{good:?} {good}").contains("secret"));
    }
}
