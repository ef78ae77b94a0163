//! The pass that one node's request bears when it comes to another. Pure.
//!
//! ```text
//! X-Demo-Multiplexer-Node: v1 <kind> <from> <to> <unix seconds> <HMAC-SHA256 in hexadecimal>
//! signed, a line each: the above, method, host, path with query, X-Forwarded-For,
//! X-Forwarded-Proto, X-Forwarded-Port
//! ```
//!
//! The secret itself is never sent. A pass is for one request to one node, for
//! [`GOOD_FOR`] and no longer; what a client writes there is worth nothing.
//! A visitor's request that is passed on and a call to the daemon itself are of two
//! kinds, so that no visitor chooses a path that is a call.

use std::time::Duration;

use hmac::{Hmac, Mac as _};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;

use crate::id::NodeName;

/// Where a pass is written.
pub const HEADER: HeaderName = HeaderName::from_static("x-demo-multiplexer-node");

/// How far two nodes' clocks may be apart, a request's way included.
pub const GOOD_FOR: Duration = Duration::from_secs(60);

/// Headers that a pass vouches for: whose request it was.
const VOUCHED: [&str; 3] = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-port"];

/// What a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A visitor's, for a shop.
    Visit,
    /// The other daemon's own.
    Call,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Visit => "visit",
            Self::Call => "call",
        }
    }
}

/// The secret that all nodes know.
#[derive(Debug, Clone)]
pub struct NodeSecret(pub(super) SecretString);

/// A request without a good pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PassError {
    /// Another text, another secret, another request.
    #[error("it is not signed with this node's NODE_SECRET_FILE, or for another request")]
    Forged,
    /// For somebody else.
    #[error("it is for another node: look whether two nodes have the same NODE_ADDRESS")]
    ForAnother,
    /// Too old, or not yet.
    #[error("it is of another time: look at the clocks of both hosts")]
    Late,
}

/// The part of a request that is signed.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its Host.
    pub host: &'a str,
    /// Its path with the query.
    pub path: &'a str,
    /// All its headers; of which some count.
    pub headers: &'a HeaderMap,
}

impl NodeSecret {
    /// The secret of that text.
    #[must_use]
    pub fn new(text: SecretString) -> Self {
        Self(text)
    }

    /// A pass for a request to `to`.
    ///
    /// # Panics
    /// Never: names and numbers are header text.
    #[must_use]
    pub fn sign(
        &self,
        kind: Kind,
        (from, to): (&NodeName, &NodeName),
        at: i64,
        request: Signed<'_>,
    ) -> HeaderValue {
        let head = format!("v1 {} {from} {to} {at}", kind.as_str());
        let mac = self.mac(&head, request).finalize().into_bytes();
        let code: String = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut value =
            HeaderValue::from_str(&format!("{head} {code}")).expect("names and numbers are header text");
        value.set_sensitive(true);
        value
    }

    /// Who sent a request that bears a pass, and of which kind it is.
    ///
    /// # Errors
    /// [`PassError`]
    pub fn verify(
        &self,
        pass: &HeaderValue,
        own: &NodeName,
        now: i64,
        request: Signed<'_>,
    ) -> Result<(Kind, NodeName), PassError> {
        let text = pass.to_str().map_err(|_| PassError::Forged)?;
        let (head, code) = text.rsplit_once(' ').ok_or(PassError::Forged)?;
        let code = from_hex(code).ok_or(PassError::Forged)?;
        self.mac(head, request).verify_slice(&code).map_err(|_| PassError::Forged)?;
        let mut words = head.split(' ');
        let mut word = || words.next().ok_or(PassError::Forged);
        let ("v1", kind, from, to, at) = (word()?, word()?, word()?, word()?, word()?) else {
            return Err(PassError::Forged);
        };
        let kind = [Kind::Visit, Kind::Call].into_iter().find(|known| known.as_str() == kind);
        let from = from.parse().map_err(|_| PassError::Forged)?;
        let at: i64 = at.parse().map_err(|_| PassError::Forged)?;
        if to != own.as_str() {
            return Err(PassError::ForAnother);
        }
        if now.abs_diff(at) > GOOD_FOR.as_secs() {
            return Err(PassError::Late);
        }
        Ok((kind.ok_or(PassError::Forged)?, from))
    }

    fn mac(&self, head: &str, request: Signed<'_>) -> Hmac<Sha256> {
        let key = self.0.expose_secret().as_bytes();
        let mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
        // No line has a line's end in it: header values and request targets cannot.
        let lines = [head, request.method.as_str(), request.host, request.path];
        let mac = lines.iter().fold(mac, |mac, line| mac.chain_update(line).chain_update(b"\n"));
        VOUCHED.iter().fold(mac, |mac, name| {
            let mut values = request.headers.get_all(*name).iter();
            let first = values.next().map_or(&b""[..], HeaderValue::as_bytes);
            // Several are no word of a node's.
            let several: &[u8] = if values.next().is_some() { b"\nseveral" } else { b"" };
            mac.chain_update(first).chain_update(several).chain_update(b"\n")
        })
    }
}

pub(super) fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> NodeSecret {
        NodeSecret::new(text.to_owned().into())
    }

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn headers(way: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", HeaderValue::from_static(way));
        headers
    }

    #[test]
    fn a_pass_is_good_for_its_request_its_node_and_its_time() {
        let (from, to, vouched) = (node("a"), node("b"), headers("198.51.100.1"));
        let request =
            Signed { method: &Method::GET, host: "abc.demo.example", path: "/x?y", headers: &vouched };
        let pass = secret("one").sign(Kind::Visit, (&from, &to), 1000, request);
        let verify =
            |secret: &NodeSecret, own: &NodeName, now, request| secret.verify(&pass, own, now, request);
        assert_eq!(verify(&secret("one"), &to, 1060, request), Ok((Kind::Visit, from.clone())));
        assert_eq!(verify(&secret("one"), &to, 940, request), Ok((Kind::Visit, from)));
        assert_eq!(verify(&secret("one"), &to, 1061, request), Err(PassError::Late));
        assert_eq!(verify(&secret("one"), &node("c"), 1000, request), Err(PassError::ForAnother));
        assert_eq!(verify(&secret("two"), &to, 1000, request), Err(PassError::Forged));
        let other = headers("198.51.100.2");
        let mut several = vouched.clone();
        several.append("x-forwarded-for", HeaderValue::from_static("198.51.100.2"));
        for changed in [
            Signed { method: &Method::POST, ..request },
            Signed { host: "abd.demo.example", ..request },
            Signed { path: "/x", ..request },
            Signed { headers: &other, ..request },
            Signed { headers: &several, ..request },
        ] {
            assert_eq!(verify(&secret("one"), &to, 1000, changed), Err(PassError::Forged), "{changed:?}");
        }
    }

    #[test]
    fn a_visitors_request_is_no_call() {
        let (from, to, none) = (node("a"), node("b"), HeaderMap::new());
        let request =
            Signed { method: &Method::POST, host: "b:8080", path: "/node/v1/drain", headers: &none };
        let visit = secret("one").sign(Kind::Visit, (&from, &to), 7, request);
        assert_eq!(secret("one").verify(&visit, &to, 7, request), Ok((Kind::Visit, from)));
        let forged = visit.to_str().unwrap().replace("visit", "call");
        let forged = HeaderValue::from_str(&forged).unwrap();
        assert_eq!(secret("one").verify(&forged, &to, 7, request), Err(PassError::Forged));
    }

    #[test]
    fn what_anybody_writes_is_no_pass() {
        let none = HeaderMap::new();
        let request = Signed { method: &Method::GET, host: "b", path: "/", headers: &none };
        for text in
            ["", "v1", "v1 call a b 7 00", "v1 call a b 7", &format!("v1 call a b 7 {}", "0".repeat(64))]
        {
            let pass = HeaderValue::from_str(text).unwrap();
            let verified = secret("one").verify(&pass, &node("b"), 7, request);
            assert_eq!(verified, Err(PassError::Forged), "{text}");
        }
    }

    #[test]
    fn the_secret_is_not_shown() {
        let (a, b, none) = (node("a"), node("b"), HeaderMap::new());
        let request = Signed { method: &Method::GET, host: "b", path: "/", headers: &none };
        let secret = secret("a-secret-text");
        let pass = secret.sign(Kind::Call, (&a, &b), 7, request);
        assert!(!format!("{secret:?} {pass:?}").contains("a-secret-text"));
        assert!(pass.is_sensitive());
    }
}
