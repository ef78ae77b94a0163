//! Opening the store: once, at the daemon's start.
//!
//! A server that does not answer yet is waited for; what waiting cannot mend
//! (a wrong password, too old a server, a later program's data) is told at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::keys::LAYOUT;
use super::link::{Access, Link};
use super::{Scripts, ValkeyStore};
use crate::config::ValkeyAt;
use crate::error::Chain;
use crate::id::NodeName;
use crate::store::StoreError;

/// How long the server is waited for. It starts with the host like the daemon
/// does; reading its data takes seconds. The unit starts the daemon again.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long another daemon of the same name may take to fall silent: twice as
/// long as it keeps the name.
const NAME_PATIENCE: Duration = Duration::from_secs(20);

/// How often it is tried.
const PAUSE: Duration = Duration::from_millis(500);

/// How often it is said that it is tried.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// What the scripts need: ZRANGE .. BYSCORE, and TIME before a write. Redis 6.2
/// was the first with it; every Valkey has it and says 7.2 there.
const OLDEST: (u32, u32) = (6, 2);

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenValkeyError {
    /// A file of the settings cannot be read.
    #[error("cannot read {setting} {}", .path.display())]
    File {
        /// The setting.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The settings make no connection.
    #[error("cannot use STORE_URL {url}")]
    Settings {
        /// The URL without its password.
        url: String,
        /// Why.
        #[source]
        source: redis::RedisError,
    },
    /// It did not answer for long.
    #[error("the store {url} does not answer: look at STORE_URL and at the server")]
    Silent {
        /// The URL without its password.
        url: String,
        /// The last try's error.
        #[source]
        source: StoreError,
    },
    /// It answered, and will not do it.
    #[error(
        "the store {url} refuses: look at user, password and database in STORE_URL, and at STORE_PASSWORD_FILE"
    )]
    Refused {
        /// The URL without its password.
        url: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The server lacks what the scripts need.
    #[error(
        "the store {url} is too old: it is like Redis {found}, and ZRANGE .. BYSCORE came with 6.2; \
         Valkey 8 or later is what this program is tested with"
    )]
    TooOld {
        /// The URL without its password.
        url: String,
        /// The version it says.
        found: String,
    },
    /// A later program wrote there.
    #[error(
        "the store {url} has a layout of version {found}, this program knows up to {LAYOUT}: \
         a later one wrote it; set another STORE_PREFIX to begin with an empty one"
    )]
    TooNew {
        /// The URL without its password.
        url: String,
        /// The layout's version.
        found: u64,
    },
    /// Another daemon has the name.
    #[error(
        "another daemon with the node name {node} runs on the store {url}: \
         set NODE_NAME to another one for each daemon"
    )]
    NameTaken {
        /// The name.
        node: NodeName,
        /// The URL without its password.
        url: String,
    },
}

impl ValkeyStore {
    /// Opens the store for `node`. `daemon` tells this daemon from another one
    /// that was given the same name, and is the same at its next start.
    ///
    /// # Errors
    /// [`OpenValkeyError`], after a minute when the server does not answer.
    pub async fn open(at: &ValkeyAt, node: &NodeName, daemon: &str) -> Result<Self, OpenValkeyError> {
        Self::open_within(at, node, daemon, PATIENCE).await
    }

    /// As [`ValkeyStore::open`], with another patience.
    ///
    /// # Errors
    /// [`OpenValkeyError`].
    pub async fn open_within(
        at: &ValkeyAt,
        node: &NodeName,
        daemon: &str,
        patience: Duration,
    ) -> Result<Self, OpenValkeyError> {
        let access = read(at)?;
        let link = Link::new(at, &access)
            .map_err(|source| OpenValkeyError::Settings { url: at.to_string(), source })?;
        let store = Self {
            node: node.clone(),
            daemon: daemon.to_owned(),
            link: Arc::new(link),
            scripts: Arc::new(Scripts::new()),
            own: Mutex::default(),
            nodes: Mutex::default(),
        };
        store.wait_for_server(at, patience).await?;
        store.take_name(at, patience).await?;
        Ok(store)
    }

    async fn wait_for_server(&self, at: &ValkeyAt, patience: Duration) -> Result<(), OpenValkeyError> {
        let began = Instant::now();
        let mut say_at = began;
        loop {
            let error = match self.look_at_server(at).await {
                Ok(fit) => return fit,
                Err(error) => error,
            };
            let url = at.to_string();
            if is_refusal(&error) {
                return Err(OpenValkeyError::Refused { url, source: error });
            }
            if began.elapsed() >= patience {
                return Err(OpenValkeyError::Silent { url, source: error });
            }
            if Instant::now() >= say_at {
                tracing::warn!(store = %url, error = %Chain(&error), "waiting for the store");
                say_at += SAY_AGAIN;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Whether what answers is fit.
    async fn look_at_server(&self, at: &ValkeyAt) -> Result<Result<(), OpenValkeyError>, StoreError> {
        let info = self.link.info().await?;
        let url = at.to_string();
        if let Some(found) = field(&info, "redis_version")
            && is_too_old(found)
        {
            return Ok(Err(OpenValkeyError::TooOld { url, found: found.to_owned() }));
        }
        let layout =
            self.link.call("reading the layout", &self.scripts.layout, &[&LAYOUT.to_string()]).await?;
        let found = layout.first().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX);
        if found > LAYOUT {
            return Ok(Err(OpenValkeyError::TooNew { url, found }));
        }
        for warning in warnings(&info) {
            tracing::warn!(store = %url, "{warning}");
        }
        let version = field(&info, "valkey_version").or_else(|| field(&info, "redis_version"));
        tracing::info!(store = %url, version = version.unwrap_or("unknown"), node = %self.node, "store opened");
        Ok(Ok(()))
    }

    /// Takes the node's name, once the daemon that had it is gone.
    async fn take_name(&self, at: &ValkeyAt, patience: Duration) -> Result<(), OpenValkeyError> {
        let (began, url) = (Instant::now(), at.to_string());
        loop {
            let marks = self.own.lock().await.begin(Instant::now());
            match self.ask_own(&marks).await {
                Ok(_) => return Ok(()),
                Err(error) if is_taken(&error) && began.elapsed() >= NAME_PATIENCE.min(patience) => {
                    return Err(OpenValkeyError::NameTaken { node: self.node.clone(), url });
                }
                Err(error) if !is_taken(&error) && began.elapsed() >= patience => {
                    return Err(OpenValkeyError::Silent { url, source: error });
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }
}

fn read(at: &ValkeyAt) -> Result<Access, OpenValkeyError> {
    let bytes = |setting: &'static str, path: &Option<PathBuf>| {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|source| OpenValkeyError::File {
                setting,
                path: path.clone(),
                source,
            })
        };
        path.as_ref().map(read).transpose()
    };
    let password = match (bytes("STORE_PASSWORD_FILE", &at.password_file)?, &at.password_file) {
        (Some(text), Some(path)) => {
            let text = String::from_utf8(text).map_err(|_| OpenValkeyError::File {
                setting: "STORE_PASSWORD_FILE",
                path: path.clone(),
                source: std::io::ErrorKind::InvalidData.into(),
            })?;
            Some(SecretString::from(text.trim_end_matches(['\r', '\n'])))
        }
        _ => at.password.clone(),
    };
    Ok(Access { password, authorities: bytes("STORE_CA_FILE", &at.ca_file)? })
}

fn code_of(error: &StoreError) -> Option<&str> {
    let source = std::error::Error::source(error)?;
    source.downcast_ref::<redis::RedisError>()?.code()
}

fn is_taken(error: &StoreError) -> bool {
    code_of(error) == Some("TAKEN")
}

/// Whether the server answers, and will answer the same the next time.
fn is_refusal(error: &StoreError) -> bool {
    let source =
        std::error::Error::source(error).and_then(|source| source.downcast_ref::<redis::RedisError>());
    source.is_some_and(|error| {
        matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "NOPERM" | "ERR"))
            || error.kind() == redis::ErrorKind::AuthenticationFailed
            // SELECT was refused, which may also be for the lack of a password.
            || error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::ResponseError)
    })
}

/// A line of INFO.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// An unreadable version is not held against a server.
fn is_too_old(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) < OLDEST,
        _ => false,
    }
}

/// What works and may lose instances.
fn warnings(info: &str) -> Vec<&'static str> {
    let mut warnings = Vec::new();
    if field(info, "aof_enabled") == Some("0") {
        warnings.push("the store does not write down every change: set appendonly yes");
    }
    let evicts = field(info, "maxmemory_policy").is_some_and(|policy| policy != "noeviction");
    if evicts && field(info, "maxmemory") != Some("0") {
        warnings.push("the store forgets records when its memory is full: set maxmemory-policy noeviction");
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_the_commands_is_too_old() {
        for (version, too_old) in
            [("5.0.14", true), ("6.0.20", true), ("6.2.0", false), ("7.2.4", false), ("x", false)]
        {
            assert_eq!(is_too_old(version), too_old, "{version}");
        }
    }

    #[test]
    fn what_may_lose_instances_is_said() {
        let info = "# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\naof_enabled:1\r\n";
        assert!(warnings(info).is_empty(), "without a limit nothing is evicted");
        let info = "maxmemory:1000\r\nmaxmemory_policy:allkeys-lru\r\naof_enabled:0\r\n";
        assert_eq!(warnings(info).len(), 2);
    }
}
