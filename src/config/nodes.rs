//! The settings of several hosts: where the others reach this daemon, and how they
//! know each other.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use secrecy::{ExposeSecret as _, SecretString};

use super::{Reader, StoreAt};

/// The shortest secret: 128 random bits in hexadecimal have as many characters.
const SECRET_MIN: usize = 32;

/// The largest file that is read for a secret.
const FILE_MAX: u64 = 4096;

/// How this daemon is one of several.
#[derive(Debug, Clone)]
pub struct NodeSettings {
    /// `host:port`.
    pub address: String,
    /// The file with the secret that all nodes know.
    pub secret_file: PathBuf,
}

/// The secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NodeSecretError {
    /// The disk.
    #[error("cannot read NODE_SECRET_FILE {}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Others may read or change it.
    #[error("NODE_SECRET_FILE {} has mode {mode:04o}, so others than its owner get at it: chmod 600 it", .path.display())]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Anybody could find it.
    #[error("NODE_SECRET_FILE {}: {SECRET_MIN} characters at least, such as `openssl rand -hex 32` makes, the same on all nodes", .path.display())]
    Short {
        /// Which file.
        path: PathBuf,
    },
}

impl NodeSettings {
    /// The secret.
    ///
    /// # Errors
    /// [`NodeSecretError`]
    pub fn load_secret(&self) -> Result<SecretString, NodeSecretError> {
        let path = &self.secret_file;
        let unreadable = |source| NodeSecretError::Read { path: path.clone(), source };
        let file = std::fs::File::open(path).map_err(unreadable)?;
        // Of the open file, so that it is the one that is read.
        let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(NodeSecretError::Mode { path: path.clone(), mode });
        }
        let mut text = String::new();
        file.take(FILE_MAX).read_to_string(&mut text).map_err(unreadable)?;
        let secret = SecretString::from(text.trim());
        if secret.expose_secret().len() < SECRET_MIN {
            return Err(NodeSecretError::Short { path: path.clone() });
        }
        Ok(secret)
    }
}

/// Reads them; none when this daemon is the only one.
pub(super) fn read(read: &mut Reader<'_>, store: &StoreAt) -> Option<NodeSettings> {
    let (address, secret_file) = (read.text("NODE_ADDRESS"), read.text("NODE_SECRET_FILE"));
    if address.is_empty() {
        return None;
    }
    let authority: Option<http::uri::Authority> = address.parse().ok();
    let whole =
        |it: &http::uri::Authority| it.port_u16().is_some_and(|port| port > 0) && !it.as_str().contains('@');
    if !authority.as_ref().is_some_and(whole) {
        read.problems.push(format!(
            "NODE_ADDRESS={address:?}: the host and port at which the other nodes reach LISTEN, such as 10.0.0.7:8080"
        ));
    }
    if matches!(store, StoreAt::Embedded(_)) {
        read.problems
            .push("NODE_ADDRESS is set, but STORE_URL names no Valkey, which is what nodes share".into());
    }
    if secret_file.is_empty() {
        read.problems.push(
            "NODE_ADDRESS is set without NODE_SECRET_FILE: a file (mode 0600) with a text that only the nodes \
             know, such as `openssl rand -hex 32` makes"
                .into(),
        );
    }
    Some(NodeSettings { address, secret_file: secret_file.into() })
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::super::tests::with;
    use super::*;

    const VALKEY: (&str, &str) = ("STORE_URL", "redis://valkey");
    const SECRET: (&str, &str) = ("NODE_SECRET_FILE", "/etc/secret");

    #[test]
    fn without_an_address_there_is_one_host() {
        assert!(Config::check(&with(&[VALKEY, SECRET])).unwrap().nodes.is_none());
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for right in ["10.0.0.7:8080", "[2001:db8::7]:8080", "node-7.example:80"] {
            let config = Config::check(&with(&[VALKEY, SECRET, ("NODE_ADDRESS", right)])).unwrap();
            assert_eq!(config.nodes.unwrap().address, right);
        }
        for wrong in ["10.0.0.7", "10.0.0.7:0", "http://10.0.0.7:8080", "a@10.0.0.7:80", "10.0.0.7:80/x"] {
            let error = Config::check(&with(&[VALKEY, SECRET, ("NODE_ADDRESS", wrong)])).unwrap_err();
            assert!(error.problems[0].starts_with("NODE_ADDRESS="), "{wrong}: {error}");
        }
    }

    #[test]
    fn nodes_share_a_valkey_and_a_secret() {
        let error = Config::check(&with(&[("NODE_ADDRESS", "10.0.0.7:80")])).unwrap_err();
        assert!(error.problems[0].contains("STORE_URL") && error.problems[1].contains("openssl"), "{error}");
    }

    #[test]
    fn a_secret_that_others_know_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let settings = NodeSettings { address: "a:1".into(), secret_file: path.clone() };
        assert!(matches!(settings.load_secret(), Err(NodeSecretError::Read { .. })));
        std::fs::write(&path, "0".repeat(32)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(settings.load_secret(), Err(NodeSecretError::Mode { mode: 0o640, .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(settings.load_secret().unwrap().expose_secret(), "0".repeat(32));
        std::fs::write(&path, "short\n").unwrap();
        assert!(matches!(settings.load_secret(), Err(NodeSecretError::Short { .. })));
    }
}
