//! The settings of webhooks: who is told what happens to leases, and with which secret.

use std::fmt;
use std::io::Read as _;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use http::Uri;
use secrecy::{ExposeSecret as _, SecretString};

use super::Reader;

/// Receivers at most: each has a queue and a task of its own.
const URLS_MAX: usize = 16;

/// The shortest secret: 128 random bits in hexadecimal have twice as many characters.
const SECRET_MIN: usize = 16;

/// The largest file that is read for a secret.
const FILE_MAX: u64 = 4096;

/// Whom to tell, and how they know who tells.
#[derive(Debug, Clone)]
pub struct WebhookConfig {
    /// The receivers; at least one.
    pub urls: Vec<WebhookUrl>,
    /// What signs.
    pub secret: WebhookSecret,
}

/// A receiver's address. Its path may be what lets one in there, so it is shown
/// without.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookUrl {
    whole: String,
    shown: String,
}

impl WebhookUrl {
    /// All of it, for the request alone.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.whole
    }
}

impl fmt::Display for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for WebhookUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where the secret is.
#[derive(Debug, Clone)]
pub enum WebhookSecret {
    /// In the setting.
    Inline(SecretString),
    /// In this file.
    File(PathBuf),
}

/// The secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WebhookSecretError {
    /// The disk.
    #[error("cannot read WEBHOOK_SECRET_FILE {}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Others may read or change it.
    #[error("WEBHOOK_SECRET_FILE {} has mode {mode:04o}, so others than its owner get at it: chmod 600 it", .path.display())]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Anybody could find it.
    #[error("WEBHOOK_SECRET_FILE {}: {SHORT}", .path.display())]
    Short {
        /// Which file.
        path: PathBuf,
    },
}

const SHORT: &str = "16 characters at least, such as `openssl rand -hex 32` makes";

impl WebhookSecret {
    /// The secret; reads the file, if it is one.
    ///
    /// # Errors
    /// [`WebhookSecretError`]
    pub fn load(&self) -> Result<SecretString, WebhookSecretError> {
        let path = match self {
            Self::Inline(secret) => return Ok(secret.clone()),
            Self::File(path) => path,
        };
        let unreadable = |source| WebhookSecretError::Read { path: path.clone(), source };
        let file = std::fs::File::open(path).map_err(unreadable)?;
        // Of the open file, so that it is the one that is read.
        let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(WebhookSecretError::Mode { path: path.clone(), mode });
        }
        let mut text = String::new();
        file.take(FILE_MAX).read_to_string(&mut text).map_err(unreadable)?;
        let secret = SecretString::from(text.trim());
        if secret.expose_secret().len() < SECRET_MIN {
            return Err(WebhookSecretError::Short { path: path.clone() });
        }
        Ok(secret)
    }
}

/// Whether a receiver elsewhere may be told in plain text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PlainHttp {
    Refused,
    Allowed,
}

/// Reads all of them; none when nobody is to be told.
pub(super) fn read(read: &mut Reader<'_>) -> Option<WebhookConfig> {
    let words = [("refused", PlainHttp::Refused), ("allowed", PlainHttp::Allowed)];
    let plain = read.choice("WEBHOOK_PLAIN_HTTP", &words);
    let (secret, file) = (read.text("WEBHOOK_SECRET"), read.text("WEBHOOK_SECRET_FILE"));
    let text = read.text("WEBHOOK_URLS");
    let mut urls: Vec<WebhookUrl> = Vec::new();
    for (n, part) in text.split(',').map(str::trim).filter(|part| !part.is_empty()).enumerate() {
        match url(part, plain) {
            Ok(url) if urls.contains(&url) => {
                read.problems.push(format!("WEBHOOK_URLS, URL {}: it is there twice", n + 1));
            }
            Ok(url) => urls.push(url),
            // Without what may be a secret.
            Err(why) => read.problems.push(format!("WEBHOOK_URLS, URL {}: {why}", n + 1)),
        }
    }
    if urls.len() > URLS_MAX {
        read.problems.push(format!("WEBHOOK_URLS: {URLS_MAX} at most"));
    }
    if text.is_empty() {
        return None;
    }
    let secret = match (secret.as_str(), file.as_str()) {
        ("", "") => {
            read.problems.push(
                "WEBHOOK_URLS without WEBHOOK_SECRET or WEBHOOK_SECRET_FILE: receivers could not tell who \
                 tells them; make one with `openssl rand -hex 32`"
                    .into(),
            );
            return None;
        }
        ("", path) => WebhookSecret::File(PathBuf::from(path)),
        (_, "") if secret.len() < SECRET_MIN => {
            read.problems.push(format!("WEBHOOK_SECRET: {SHORT}"));
            return None;
        }
        (_, "") => WebhookSecret::Inline(secret.into()),
        _ => {
            read.problems.push("WEBHOOK_SECRET and WEBHOOK_SECRET_FILE are set: leave one out".into());
            return None;
        }
    };
    Some(WebhookConfig { urls, secret })
}

/// One receiver's address.
fn url(text: &str, plain: PlainHttp) -> Result<WebhookUrl, String> {
    let form = || "a URL such as https://www.example.com/hooks/shops".to_owned();
    let uri: Uri = text.parse().map_err(|_| form())?;
    let (Some(scheme @ ("http" | "https")), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(form());
    };
    if authority.as_str().contains('@') {
        return Err("no user and password; the signature says who tells".into());
    }
    if scheme == "http" && plain == PlainHttp::Refused && !is_this_host(authority.host()) {
        return Err(format!(
            "http://{} is read by everybody on the way: https, or WEBHOOK_PLAIN_HTTP=allowed",
            authority.host()
        ));
    }
    Ok(WebhookUrl { whole: text.to_owned(), shown: format!("{scheme}://{authority}") })
}

fn is_this_host(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::super::tests::with;
    use super::super::{Config, ConfigError};
    use super::*;

    const SECRET: (&str, &str) = ("WEBHOOK_SECRET", "0123456789abcdef");

    fn webhooks(changes: &[(&str, &str)]) -> Result<Option<WebhookConfig>, ConfigError> {
        Config::check(&with(changes)).map(|config| config.webhooks)
    }

    #[test]
    fn receivers_are_shown_without_what_lets_one_in() {
        let urls = "https://hooks.example.com/T0/s3cret?k=v, http://[::1]:8000/x,http://localhost/";
        let read = webhooks(&[("WEBHOOK_URLS", urls), SECRET]).unwrap().unwrap();
        let shown: Vec<String> = read.urls.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["https://hooks.example.com", "http://[::1]:8000", "http://localhost"]);
        assert_eq!(read.urls[0].expose(), "https://hooks.example.com/T0/s3cret?k=v");
        let debug = format!("{read:?}");
        assert!(!debug.contains("s3cret") && !debug.contains(SECRET.1), "{debug}");
        assert!(webhooks(&[]).unwrap().is_none());
        assert!(webhooks(&[SECRET]).unwrap().is_none(), "a secret alone tells nobody");
    }

    #[test]
    fn what_would_tell_strangers_is_refused() {
        for (url, told) in [
            ("http://www.example.com/s3cret", "or WEBHOOK_PLAIN_HTTP=allowed"),
            ("http://10.0.0.1/s3cret", "is read by everybody on the way"),
            ("ftp://localhost/s3cret", "a URL such as"),
            ("localhost:80", "a URL such as"),
            ("https://me:s3cret@www.example.com/", "no user and password"),
            ("https://a/s3cret,https://a/s3cret", "URL 2: it is there twice"),
        ] {
            let error = webhooks(&[("WEBHOOK_URLS", url), SECRET]).unwrap_err().to_string();
            assert!(error.contains(told) && !error.contains("s3cret"), "{url}: {error}");
        }
        let plain = [("WEBHOOK_URLS", "http://10.0.0.1/"), SECRET, ("WEBHOOK_PLAIN_HTTP", "allowed")];
        webhooks(&plain).unwrap();
    }

    #[test]
    fn a_secret_that_all_could_know_is_refused() {
        let urls = ("WEBHOOK_URLS", "https://a/");
        for (secret, told) in [
            ([("WEBHOOK_SECRET", ""), ("WEBHOOK_SECRET_FILE", "")], "openssl rand -hex 32"),
            ([("WEBHOOK_SECRET", "short"), ("WEBHOOK_SECRET_FILE", "")], "16 characters at least"),
            ([SECRET, ("WEBHOOK_SECRET_FILE", "/x")], "leave one out"),
        ] {
            let error = webhooks(&[urls, secret[0], secret[1]]).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let file = WebhookSecret::File(path.clone());
        assert!(matches!(file.load(), Err(WebhookSecretError::Read { .. })));
        std::fs::write(&path, "0123456789abcdef\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(file.load().unwrap_err().to_string().contains("chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(file.load().unwrap().expose_secret(), "0123456789abcdef");
        std::fs::write(&path, "short\n").unwrap();
        assert!(matches!(file.load(), Err(WebhookSecretError::Short { .. })));
    }
}
