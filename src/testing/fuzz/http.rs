//! What visitors' requests and shops' answers may say about hosts, addresses,
//! cookies and pages.

use std::convert::Infallible;
use std::net::IpAddr;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{FutureExt as _, stream};
use http::header::{HOST, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, Version};
use http_body_util::BodyExt as _;
use jiff::Timestamp;

use crate::client::{Client, TrustedProxies, hops};
use crate::lang::Lang;
use crate::proxy::PublicFace;
use crate::proxy::banner::{page as banner, splice};
use crate::proxy::headers::{to_upstream, to_visitor};
use crate::proxy::host::{Host, Target, target};
use crate::proxy::own::keep_to;

fn parsed<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A header as a line has it: `name: value`.
fn header(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let value = line[colon + 1..].trim_ascii();
    Some((HeaderName::from_bytes(&line[..colon]).ok()?, HeaderValue::from_bytes(value).ok()?))
}

/// A visitor's request: lines of `base`, `peer`, `trust`, `target`, `old` and
/// `h name: value`. Whoever is let in belongs to BASE_DOMAIN, and nobody says
/// who he is.
pub fn host(data: &[u8]) {
    let (mut base, mut peer) = ("demo.example".to_owned(), IpAddr::from([192, 0, 2, 7]));
    let (mut trusted, mut request) = (TrustedProxies::default(), Request::new(()));
    *request.version_mut() = Version::HTTP_11;
    for (word, rest) in super::lines(data) {
        match word {
            b"base" => base = String::from_utf8_lossy(rest).to_ascii_lowercase(),
            b"peer" => peer = parsed(rest).unwrap_or(peer),
            b"trust" => trusted = parsed(rest).unwrap_or(trusted),
            b"target" => *request.uri_mut() = parsed::<Uri>(rest).unwrap_or_default(),
            b"old" => *request.version_mut() = Version::HTTP_10,
            b"h" => {
                if let Some((name, value)) = header(rest) {
                    request.headers_mut().append(name, value);
                }
            }
            _ => {}
        }
    }
    if base.is_empty() || !base.split('.').all(|label| label.bytes().any(|byte| byte.is_ascii_alphanumeric()))
    {
        return;
    }
    let found = check_hops(peer, request.headers(), &trusted);
    let Ok(host) = Host::of(&request) else { return };
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.:[]".contains(&byte);
    assert!(host.as_str().bytes().all(plain), "{}", host.as_str());
    let again = Request::get("/").header(HOST, host.as_str()).body(()).expect("it is a header's value");
    assert_eq!(Host::of(&again).as_ref(), Ok(&host), "passed on it is the same host");
    if let Target::Shop(label) = target(&host, &base) {
        assert!(!label.is_empty());
        assert_eq!(host.name(), format!("{label}.{base}"), "a shop's host is below BASE_DOMAIN");
    }

    let (mut sent, face) = (request.headers().clone(), PublicFace { scheme: "https", port: 443 });
    let value = HeaderValue::from_str(host.as_str()).expect("it is a header's value");
    to_upstream(&mut sent, &value, &found, &face);
    let one = |name: &str| {
        let mut values = sent.get_all(name).iter();
        let value = values.next().and_then(|value| value.to_str().ok()).unwrap_or_default();
        assert!(values.next().is_none(), "one {name} only");
        value
    };
    assert_eq!((one("host"), one("x-forwarded-host")), (host.as_str(), host.as_str()));
    let told: Vec<IpAddr> = one("x-forwarded-for").split(", ").filter_map(|text| text.parse().ok()).collect();
    assert_eq!(told.split_first(), Some((&found.client, &found.proxies[..])));
    assert_eq!(one("x-real-ip"), found.client.to_string());
    assert!(matches!(one("x-forwarded-proto"), "http" | "https"));
    assert!(one("x-forwarded-port").parse::<u16>().is_ok());
    assert!(!sent.contains_key("forwarded") && !sent.contains_key("te"));
    let forwarded = sent.keys().filter(|name| name.as_str().starts_with("x-forwarded-")).count();
    assert_eq!(forwarded, 4, "nothing else about forwarding reaches a shop");
}

fn check_hops(peer: IpAddr, headers: &HeaderMap, trusted: &TrustedProxies) -> crate::client::Hops {
    let found = hops(peer, headers, trusted);
    let peer = peer.to_canonical();
    assert_eq!(found.client, found.client.to_canonical());
    assert!(found.proxies.iter().all(|proxy| trusted.contains(*proxy)), "only trusted proxies are believed");
    if !trusted.contains(peer) {
        assert_eq!((found.client, found.proxies.len()), (peer, 0), "whoever is not trusted is itself");
    }
    assert_eq!(found.proxies.last().copied().unwrap_or(found.client), peer);
    let client = Client::of(peer, headers, trusted);
    assert!(!client.scope().contains(char::is_whitespace));
    if client == Client::Local {
        assert!(
            peer.is_loopback() && !headers.contains_key("x-forwarded-for"),
            "nobody else is this host's own"
        );
    }
    found
}

/// A shop's answer: header lines, an empty line, the page. The first byte says how
/// the page is cut. It reaches no further than the shop's own host, and the
/// banner changes nothing else.
pub fn page(data: &[u8]) {
    const NAME: &str = "abc.demo.example";
    let Some((cut, data)) = data.split_first() else { return };
    let end = data.windows(2).position(|two| two == b"\n\n").map_or(data.len(), |at| at + 1);
    let body = data.get(end + 1..).unwrap_or_default();
    let mut headers: HeaderMap = data[..end].split(|byte| *byte == b'\n').filter_map(header).collect();

    to_visitor(&mut headers, false);
    let cookies = headers.get_all(SET_COOKIE).iter().count();
    keep_to(&mut headers, NAME);
    let once = headers.clone();
    keep_to(&mut headers, NAME);
    assert_eq!(headers, once, "again changes nothing");
    assert_eq!(headers.get_all(SET_COOKIE).iter().count(), cookies, "no cookie is lost");
    for cookie in headers.get_all(SET_COOKIE) {
        assert!(
            domains(cookie.as_bytes()).all(|domain| domain.eq_ignore_ascii_case(NAME.as_bytes())),
            "{cookie:?}"
        );
    }
    for name in ["alt-svc", "connection", "keep-alive", "transfer-encoding", "upgrade"] {
        assert!(!headers.contains_key(name), "{name}");
    }

    let mut response = Response::new(Body::empty());
    *response.headers_mut() = headers;
    let _ = banner::is_plain_page(&response);
    let manage = Some("https://demo.example/demo/abcdefghijkl".to_owned());
    let insert = banner::Insert { until: Timestamp::UNIX_EPOCH, lang: Lang::Fr, manage };
    let with_banner = banner::put(response, &insert);
    assert!(!with_banner.headers().contains_key("content-length"));

    const MARK: &str = "<banner-of-the-test>";
    let pieces: Vec<Bytes> = pieces(body, *cut).map(Bytes::copy_from_slice).collect();
    let got = through(pieces, MARK);
    assert_eq!(through(vec![Bytes::copy_from_slice(body)], MARK), got, "however it is cut");
    let at = got.windows(MARK.len()).position(|text| text == MARK.as_bytes());
    match at.filter(|_| got.len() == body.len() + MARK.len()) {
        Some(at) => {
            let rest = &got[at + MARK.len()..];
            assert_eq!([&got[..at], rest].concat(), body, "nothing else is changed");
            assert!(rest[..6].eq_ignore_ascii_case(b"</body"), "it stands before an end");
        }
        None => assert_eq!(got, body, "nothing is changed"),
    }
}

/// The Domain attributes of a cookie, as a browser reads them (RFC 6265, 5.2).
fn domains(cookie: &[u8]) -> impl Iterator<Item = &[u8]> {
    cookie.split(|byte| *byte == b';').skip(1).filter_map(|attribute| {
        let mut parts = attribute.splitn(2, |byte| *byte == b'=');
        let is_domain = parts.next()?.trim_ascii().eq_ignore_ascii_case(b"domain");
        let value = parts.next().unwrap_or_default().trim_ascii();
        is_domain.then(|| value.strip_prefix(b".").unwrap_or(value))
    })
}

fn pieces(body: &[u8], cut: u8) -> impl Iterator<Item = &[u8]> {
    body.chunks(usize::from(cut % 31) + 1)
}

fn through(pieces: Vec<Bytes>, mark: &str) -> Vec<u8> {
    let pieces = stream::iter(pieces.into_iter().map(Ok::<_, Infallible>));
    let read = splice::spliced(Body::from_stream(pieces), mark.to_owned()).collect();
    let read = read.now_or_never().expect("all of it is there").expect("no piece is an error");
    read.to_bytes().to_vec()
}
