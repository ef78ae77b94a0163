//! ROUTER and what belongs to it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::Reader;

/// What leads visitors to instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Router {
    /// The built-in proxy alone.
    Embedded,
    /// Caddy, with this admin API; the built-in proxy stands behind it.
    Caddy(AdminAddress),
}

impl Router {
    /// The word used in reports.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Caddy(_) => "caddy",
        }
    }
}

/// Where Caddy's admin API is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// `http://HOST:PORT`, without a slash at the end.
    Tcp(String),
    /// A unix socket.
    Unix(PathBuf),
}

impl FromStr for AdminAddress {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if let Some(path) = text.strip_prefix("unix/") {
            return if path.starts_with('/') && path.len() > 1 {
                Ok(Self::Unix(path.into()))
            } else {
                Err(())
            };
        }
        let uri: http::Uri = text.parse().map_err(|_| ())?;
        let bare = uri.path() == "/" && uri.query().is_none();
        match (uri.scheme_str(), uri.authority()) {
            (Some("http"), Some(authority)) if bare && !authority.as_str().contains('@') => {
                Ok(Self::Tcp(format!("http://{authority}")))
            }
            _ => Err(()),
        }
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(url) => f.write_str(url),
            Self::Unix(path) => write!(f, "unix/{}", path.display()),
        }
    }
}

pub(super) fn read(read: &mut Reader<'_>) -> Router {
    let caddy = read.choice("ROUTER", &[("embedded", false), ("caddy", true)]);
    let text = read.text("CADDY_ADMIN_URL");
    match (caddy, text.parse()) {
        (false, _) => Router::Embedded,
        (true, Ok(address)) => Router::Caddy(address),
        (true, Err(())) => {
            let rule = "http://127.0.0.1:2019 or unix//run/caddy/admin.sock";
            read.problems.push(format!("CADDY_ADMIN_URL={text:?}: {rule}"));
            Router::Embedded
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_an_admin_address_are_read_and_written() {
        for text in ["http://127.0.0.1:2019", "http://[::1]:2019", "unix//run/caddy/admin.sock"] {
            assert_eq!(text.parse::<AdminAddress>().unwrap().to_string(), text);
        }
        assert_eq!("http://caddy:2019/".parse(), Ok(AdminAddress::Tcp("http://caddy:2019".into())));
    }

    #[test]
    fn what_is_no_admin_address_is_refused() {
        for text in
            ["", "unix/", "unix//", "127.0.0.1:2019", "https://x:1", "http://u:p@x:1", "http://x:1/config"]
        {
            assert_eq!(text.parse::<AdminAddress>(), Err(()), "{text:?}");
        }
    }
}
