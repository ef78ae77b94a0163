//! Whose request is it, by its Host? Pure.
//!
//! `<label>.<BASE_DOMAIN>` is a shop's, with or without a port; everything else
//! (BASE_DOMAIN itself, an address, any other name, none) is the API's. What is
//! not one plain host is nobody's: it is read here once, and passed on only in
//! the form it was read in, so that no shop reads another host from it.

use http::header::HOST;
use http::{Request, Version};

/// The longest host name, which is DNS's limit.
const NAME_MAX: usize = 253;

/// Whose request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// The API's.
    Api,
    /// A shop's, with this label; it may be no instance's, and have dots.
    Shop(&'a str),
}

/// The host that a request was sent to: in lower case, without a dot at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    text: String,
    /// Where the name ends.
    name: usize,
}

/// A request that names no host, more than one, or something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request does not name exactly one host")]
pub struct HostError;

impl Host {
    /// The host of a request: of an absolute target, and of Host, which have to
    /// agree. A request of HTTP/1.0 may do without either.
    ///
    /// # Errors
    /// [`HostError`]
    pub fn of<B>(request: &Request<B>) -> Result<Self, HostError> {
        let mut headers = request.headers().get_all(HOST).iter();
        let header = match (headers.next(), headers.next()) {
            (None, _) => None,
            (Some(host), None) => Some(host.to_str().map_err(|_| HostError)?),
            (Some(_), Some(_)) => return Err(HostError),
        };
        match (request.uri().authority(), header) {
            (Some(target), Some(header)) if !target.as_str().eq_ignore_ascii_case(header) => Err(HostError),
            (Some(target), _) => Self::parse(target.as_str()),
            (None, Some(header)) => Self::parse(header),
            (None, None) if request.version() < Version::HTTP_11 => Self::parse(""),
            (None, None) => Err(HostError),
        }
    }

    fn parse(text: &str) -> Result<Self, HostError> {
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, port),
            _ => (text, ""),
        };
        let port: Option<u16> = match port {
            "" => None,
            port if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(port.parse().map_err(|_| HostError)?)
            }
            _ => return Err(HostError),
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        if !is_address(name) && !is_name(name) {
            return Err(HostError);
        }
        let mut text = name.to_ascii_lowercase();
        let name = text.len();
        if let Some(port) = port {
            text = format!("{text}:{port}");
        }
        Ok(Self { text, name })
    }

    /// The name with its port, as it may be passed on.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The name alone.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.text[..self.name]
    }
}

/// `[::1]`
fn is_address(name: &str) -> bool {
    let inner = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
}

/// Empty, or labels of what DNS and container networks have in names.
fn is_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let label = |label: &str| !label.is_empty() && label.bytes().all(letter);
    name.is_empty() || (name.len() <= NAME_MAX && name.split('.').all(label))
}

/// Decides by the host; `base_domain` is in lower case.
#[must_use]
pub fn target<'a>(host: &'a Host, base_domain: &str) -> Target<'a> {
    let label = host.name().strip_suffix(base_domain).and_then(|front| front.strip_suffix('.'));
    label.map_or(Target::Api, Target::Shop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(version: Version, target: &str, hosts: &[&str]) -> Request<()> {
        let mut request = Request::get(target).version(version);
        for host in hosts {
            request = request.header("host", http::HeaderValue::from_bytes(host.as_bytes()).unwrap());
        }
        request.body(()).unwrap()
    }

    fn of(target: &str, hosts: &[&str]) -> Result<Host, HostError> {
        Host::of(&request(Version::HTTP_11, target, hosts))
    }

    #[test]
    fn a_label_below_the_base_domain_is_a_shops() {
        for (written, passed_on) in [
            ("abc.demo.example", "abc.demo.example"),
            ("abc.demo.example:8080", "abc.demo.example:8080"),
            ("ABC.Demo.Example.", "abc.demo.example"),
            ("abc.demo.example.:80", "abc.demo.example:80"),
            ("abc.demo.example:", "abc.demo.example"),
            ("abc.demo.example:0080", "abc.demo.example:80"),
        ] {
            let host = of("/", &[written]).unwrap();
            assert_eq!(target(&host, "demo.example"), Target::Shop("abc"), "{written}");
            assert_eq!(host.as_str(), passed_on, "{written}");
        }
        assert_eq!(target(&of("/", &["a.b.localhost"]).unwrap(), "localhost"), Target::Shop("a.b"));
    }

    #[test]
    fn everything_else_is_the_apis() {
        for host in [
            "demo.example",
            "DEMO.example:80",
            "xdemo.example",
            "127.0.0.1:8080",
            "[::1]:80",
            "[::ffff:127.0.0.1]",
            "localhost",
            "",
            "other.org",
            "abc.demo.example.evil.org",
        ] {
            assert_eq!(target(&of("/", &[host]).unwrap(), "demo.example"), Target::Api, "{host}");
        }
    }

    #[test]
    fn what_is_not_one_plain_host_is_nobodys() {
        let long = format!("{}.demo.example", "a.".repeat(130));
        for host in [
            "user@abc.demo.example",
            "abc.demo.example@evil.org",
            "abc.demo.example:80:80",
            "abc.demo.example:x",
            "abc.demo.example:65536",
            "abc.demo.example:-1",
            ".demo.example",
            "abc..demo.example",
            "abc.demo.example..",
            "abc.demo.example/x",
            "abc.demo.example#",
            "abc.demo.example\\evil",
            "<script>.demo.example",
            "abc%2edemo.example",
            "abc.demo.example, evil.org",
            "a b.demo.example",
            "[::1",
            "::1",
            "[abc].demo.example",
            "[fe80::1%25eth0]",
            "é.demo.example",
            &long,
        ] {
            assert_eq!(of("/", &[host]), Err(HostError), "{host}");
        }
        assert_eq!(of("/", &["abc.demo.example", "abc.demo.example"]), Err(HostError));
        assert_eq!(of("/", &[]), Err(HostError));
        let old = Host::of(&request(Version::HTTP_10, "/", &[])).unwrap();
        assert_eq!((target(&old, "demo.example"), old.as_str()), (Target::Api, ""));
    }

    #[test]
    fn an_absolute_target_and_the_host_have_to_agree() {
        let whole = "http://abc.demo.example:8080/x";
        assert_eq!(of(whole, &["ABC.demo.example:8080"]).unwrap().as_str(), "abc.demo.example:8080");
        assert_eq!(of(whole, &[]).unwrap().name(), "abc.demo.example");
        assert_eq!(of(whole, &["evil.org"]), Err(HostError));
        assert_eq!(of(whole, &["abc.demo.example"]), Err(HostError));
        assert_eq!(of("http://user@abc.demo.example/", &[]), Err(HostError));
    }
}
