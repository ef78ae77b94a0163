//! Who may ask the API and the proxy for what, and how much at a time.

use std::net::SocketAddr;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri, header};

use super::{Reader, units};
use crate::token::TokenSource;

/// Who may acquire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquire {
    /// Anybody, within the rate limits.
    Open,
    /// Who shows a token with the scope for it.
    Token,
}

/// Whether shops' pages show the time that is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Banner {
    /// They are passed on as they are.
    Off,
    /// Documents of a shop's front get it.
    On,
}

/// Whether visitors get instances on a page of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landing {
    /// There is no such page.
    Off,
    /// It is at `/` on BASE_DOMAIN.
    On,
}

/// Whose pages may ask the API from a browser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// These; none, most often.
    Listed(Vec<HeaderValue>),
    /// Anybody's, without tokens.
    Any,
}

/// The settings of both edges.
#[derive(Debug, Clone)]
pub struct EdgeSettings {
    /// Where what is the operator's is answered, if not at LISTEN.
    pub admin_listen: Option<SocketAddr>,
    /// Where a trusted proxy names the operator, if it does.
    pub admin_auth_header: Option<HeaderName>,
    /// Where the list of tokens is.
    pub tokens: TokenSource,
    /// Who may acquire.
    pub acquire: Acquire,
    /// Whose pages may ask the API.
    pub cors_origins: Origins,
    /// Whose pages may frame what is made for it.
    pub embed_origins: Origins,
    /// Connections at once on each listener.
    pub max_connections: usize,
    /// Status streams at once; none leaves it to how many connections there may be.
    pub max_streams: Option<usize>,
    /// The largest request body for a shop.
    pub shop_body_max: u64,
    /// How long a shop may take until its answer begins.
    pub shop_timeout: Duration,
    /// Whether shops' pages show the time that is left.
    pub banner: Banner,
    /// Whether visitors get instances on a page of ours.
    pub landing: Landing,
}

impl EdgeSettings {
    pub(super) fn read(read: &mut Reader<'_>, listen: SocketAddr) -> Self {
        let admin_listen = match read.text("ADMIN_LISTEN").as_str() {
            "" => None,
            _ => Some(read.parse(
                "ADMIN_LISTEN",
                listen,
                "an address and port such as 127.0.0.1:8081, or empty",
            )),
        };
        if admin_listen == Some(listen) && listen.port() != 0 {
            read.problems.push(format!("ADMIN_LISTEN={listen} is LISTEN: another port, or empty"));
        }
        let tokens = TokenSource::of_setting(&read.text("API_TOKENS")).unwrap_or_else(|problem| {
            read.problems.push(format!("API_TOKENS: {problem}"));
            TokenSource::Inline(Default::default())
        });
        let acquire = read.choice("ACQUIRE", &[("open", Acquire::Open), ("token", Acquire::Token)]);
        if acquire == Acquire::Token && tokens.is_empty() {
            read.problems.push(
                "ACQUIRE=token without API_TOKENS: nobody could acquire; make one with \
                 `demo-multiplexer token create NAME --scope acquire`"
                    .into(),
            );
        }
        // Who hands out tokens does not want everybody served beside it, unless they say so.
        let unsaid = if acquire == Acquire::Open { Landing::On } else { Landing::Off };
        let landing = read.choice("LANDING", &[("auto", unsaid), ("on", Landing::On), ("off", Landing::Off)]);
        let cors_origins = origins(read, "CORS_ORIGINS");
        let embed_origins = origins(read, "EMBED_ORIGINS");
        if (acquire, &cors_origins) == (Acquire::Token, &Origins::Any) {
            read.problems.push(
                "CORS_ORIGINS=* with ACQUIRE=token: any site's pages would hold the token; list the origins"
                    .into(),
            );
        }
        let max_connections = read.number("MAX_CONNECTIONS", 16..=1_000_000);
        let max_streams = max_streams(read, max_connections);
        Self {
            admin_listen,
            admin_auth_header: auth_header(read),
            tokens,
            acquire,
            cors_origins,
            embed_origins,
            max_connections,
            max_streams,
            shop_body_max: size(read, "SHOP_BODY_MAX"),
            shop_timeout: read.duration("SHOP_TIMEOUT").unsigned_abs(),
            banner: read.choice("BANNER", &[("off", Banner::Off), ("on", Banner::On)]),
            landing,
        }
    }
}

/// Each stream is a connection: more of them than connections were a promise that cannot
/// be kept.
fn max_streams(read: &mut Reader<'_>, max_connections: usize) -> Option<usize> {
    if read.text("SSE_MAX_CLIENTS") == "auto" {
        return None;
    }
    let streams = read.number("SSE_MAX_CLIENTS", 1..=1_000_000);
    if streams > max_connections {
        read.problems.push(format!(
            "SSE_MAX_CLIENTS={streams} with MAX_CONNECTIONS={max_connections}: each stream is a connection; \
             raise MAX_CONNECTIONS, or take auto"
        ));
    }
    Some(streams)
}

/// A header of its own: one that means something else would name whoever sends it.
fn auth_header(read: &mut Reader<'_>) -> Option<HeaderName> {
    let text = read.text("ADMIN_AUTH_HEADER");
    if text.is_empty() {
        return None;
    }
    let taken = [header::AUTHORIZATION, header::COOKIE, header::HOST, header::ORIGIN, header::USER_AGENT];
    match text.parse::<HeaderName>() {
        Ok(name) if !taken.contains(&name) => Some(name),
        Ok(_) | Err(_) => {
            let problem = "the name of a header that only the proxy in front sets, such as X-Forwarded-User";
            read.problems.push(format!("ADMIN_AUTH_HEADER={text:?}: {problem}"));
            None
        }
    }
}

fn size(read: &mut Reader<'_>, name: &str) -> u64 {
    units::bytes(&read.text(name)).unwrap_or_else(|problem| {
        read.problems.push(format!("{name}: {problem}"));
        u64::MAX
    })
}

fn origins(read: &mut Reader<'_>, name: &str) -> Origins {
    let text = read.text(name);
    if text == "*" {
        return Origins::Any;
    }
    let mut listed = Vec::new();
    for origin in text.split(',').map(str::trim).filter(|origin| !origin.is_empty()) {
        match self::origin(origin) {
            Some(value) => listed.push(value),
            None => read.problems.push(format!(
                "{name}: {origin:?} is not an origin as a browser sends it, such as \
                 https://www.example.com (no path, no slash at the end, lower case); or * alone"
            )),
        }
    }
    Origins::Listed(listed)
}

/// An origin in the one form that browsers send.
fn origin(text: &str) -> Option<HeaderValue> {
    let uri: Uri = text.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let own_port = if scheme == "https" { 443 } else { 80 };
    let whole = format!("{scheme}://{authority}") == text
        && matches!(scheme, "http" | "https")
        && !authority.as_str().contains('@')
        && authority.port_u16() != Some(own_port)
        && !text.bytes().any(|byte| byte.is_ascii_uppercase());
    if whole { HeaderValue::from_str(text).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, SETTINGS, Values};
    use crate::connections;

    fn check(changes: &[(&str, &str)]) -> Result<EdgeSettings, String> {
        let mut values: Values =
            SETTINGS.iter().map(|setting| (setting.name.to_owned(), setting.default.to_owned())).collect();
        values.extend(changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Config::check(&values).map(|config| config.edges).map_err(|error| error.to_string())
    }

    #[test]
    fn there_are_no_more_status_streams_than_connections() {
        let most = |changes: &[(&str, &str)]| check(changes).map(|it| (it.max_streams, it.max_connections));
        assert_eq!(most(&[]), Ok((None, connections::USUAL)));
        let both = [("SSE_MAX_CLIENTS", "4096"), ("MAX_CONNECTIONS", "4096")];
        assert_eq!(most(&both), Ok((Some(4096), 4096)));
        let refused = most(&[("SSE_MAX_CLIENTS", "4097"), both[1]]).unwrap_err();
        assert!(refused.contains("SSE_MAX_CLIENTS=4097 with MAX_CONNECTIONS=4096"), "{refused}");
        for wrong in ["0", "many", ""] {
            let refused = most(&[("SSE_MAX_CLIENTS", wrong)]).unwrap_err();
            assert!(refused.contains("SSE_MAX_CLIENTS"), "{refused}");
        }
    }

    #[test]
    fn ten_thousand_streams_fit_in_the_connections_and_those_in_the_files_of_the_service() {
        let unit = include_str!("../../systemd/demo-multiplexer.service");
        let files = unit.lines().find_map(|line| line.strip_prefix("LimitNOFILE=")).unwrap();
        let files: u64 = files.split(':').next().unwrap().parse().unwrap();
        let connections = check(&[]).unwrap().max_connections;
        assert!(
            connections::that_fit(Some(files)) >= connections,
            "{files} files, {connections} connections"
        );
        assert!(connections::for_streams(connections) >= 10_000);
    }

    #[test]
    fn origins_are_what_browsers_send() {
        let listed = check(&[("CORS_ORIGINS", "https://www.example.com, http://localhost:3000")]).unwrap();
        let expected = ["https://www.example.com", "http://localhost:3000"].map(HeaderValue::from_static);
        assert_eq!(listed.cors_origins, Origins::Listed(expected.to_vec()));
        assert_eq!(check(&[]).unwrap().cors_origins, Origins::Listed(vec![]));
        assert_eq!(check(&[("CORS_ORIGINS", "*")]).unwrap().cors_origins, Origins::Any);
        for wrong in [
            "https://www.example.com/",
            "www.example.com",
            "https://Www.example.com",
            "https://www.example.com:443",
            "https://a@b",
            "null",
            "*,https://www.example.com",
            "ftp://example.com",
        ] {
            let told = check(&[("CORS_ORIGINS", wrong)]).unwrap_err();
            assert!(told.contains("is not an origin as a browser sends it"), "{wrong}: {told}");
        }
    }

    #[test]
    fn what_locks_everybody_out_or_lets_everybody_in_is_refused() {
        let told = check(&[("ACQUIRE", "token")]).unwrap_err();
        assert!(told.contains("token create NAME --scope acquire"), "{told}");
        let token = format!("a:acquire:{}", "0".repeat(64));
        let told = check(&[("ACQUIRE", "token"), ("API_TOKENS", &token), ("CORS_ORIGINS", "*")]).unwrap_err();
        assert!(told.contains("list the origins"), "{told}");
        let told = check(&[("ADMIN_LISTEN", "127.0.0.1:8080")]).unwrap_err();
        assert!(told.contains("ADMIN_LISTEN=127.0.0.1:8080 is LISTEN"), "{told}");
        // A file is not opened here: client commands need not be able to.
        check(&[("ACQUIRE", "token"), ("API_TOKENS", "/nowhere/tokens")]).unwrap();
    }

    #[test]
    fn sizes_and_times_are_read() {
        let edges = check(&[("SHOP_BODY_MAX", "8M"), ("SHOP_TIMEOUT", "90s"), ("BANNER", "on")]).unwrap();
        assert_eq!((edges.shop_body_max, edges.shop_timeout), (8 << 20, Duration::from_secs(90)));
        assert_eq!(edges.banner, Banner::On);
        for (name, value) in [("SHOP_BODY_MAX", "0"), ("SHOP_TIMEOUT", "0s"), ("MAX_CONNECTIONS", "1")] {
            assert!(check(&[(name, value)]).unwrap_err().contains(name));
        }
    }
}
