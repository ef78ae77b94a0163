//! Who a visitor is: a name drawn at the first click, in a signed cookie.
//!
//! Used by all of the visitors' pages. The name is the holder of what the visitor
//! gets ([`AcquireRequest::holder`]), so whoever brings the cookie finds their
//! instances again, whatever address they come from, and may end and extend
//! those and no others. Nothing is kept here of a visitor.
//!
//! [`AcquireRequest::holder`]: crate::provision::AcquireRequest::holder

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use axum::extract::Request;
use http::{HeaderMap, HeaderValue};

use super::page::Site;
use crate::api::Peer;
use crate::client::{Client, TrustedProxies};
use crate::id::InstanceId;
use crate::identity;
use crate::instance::Instance;
use crate::provision::Provisioner;

/// What the cookie's signature is for.
const PURPOSE: &str = "visitor";

/// How long a browser keeps it: longer than any instance lives.
const KEPT: Duration = Duration::from_secs(30 * 86_400);

/// Hexadecimal digits of a name: 128 random bits.
const NAME: usize = 32;

/// A visitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Visitor(String);

impl Visitor {
    /// The one that a browser's cookie names, if we have signed it.
    pub(super) fn of(headers: &HeaderMap, site: &Site) -> Option<Self> {
        let signer = site.key.signer(PURPOSE);
        let name = site.cookie("demo-visitor").values(headers).find_map(|value| signer.verify(value))?;
        (name.len() == NAME).then(|| Self(name.to_owned()))
    }

    /// One that nobody has seen yet.
    pub(super) fn new() -> Self {
        Self(identity::hex(NAME))
    }

    /// What the browser is to bring along from now on.
    pub(super) fn cookie(&self, site: &Site) -> HeaderValue {
        site.cookie("demo-visitor").set(Some(&site.key.signer(PURPOSE).sign(&self.0)), KEPT)
    }

    /// As whom instances are handed to it. No client's scope begins like this.
    pub(super) fn holder(&self) -> String {
        format!("visitor:{}", self.0)
    }

    /// Whether an instance is this visitor's. A visitor's key is the golden's name,
    /// so there is one of each.
    pub(super) fn holds(&self, instance: &Instance) -> bool {
        Provisioner::is_held_by(instance, &self.holder(), instance.golden.as_str())
    }
}

/// How long the hand-over took that this browser has seen last, and whose.
pub(super) struct Took;

impl Took {
    const PURPOSE: &'static str = "took";

    /// Has the browser remember it.
    pub(super) fn cookie(site: &Site, id: &InstanceId, took: Duration) -> HeaderValue {
        let value = site.key.signer(Self::PURPOSE).sign(&format!("{id}.{}", took.as_micros()));
        site.cookie("demo-took").set(Some(&value), KEPT)
    }

    /// Of that instance; none when the browser has seen another one since.
    pub(super) fn of(headers: &HeaderMap, site: &Site, id: &InstanceId) -> Option<Duration> {
        let signer = site.key.signer(Self::PURPOSE);
        let cookie = site.cookie("demo-took");
        let payload = cookie.values(headers).find_map(|value| signer.verify(value))?;
        let (of, micros) = payload.split_once('.')?;
        (of == id.as_str()).then(|| micros.parse().ok().map(Duration::from_micros))?
    }
}

/// Under which name a request is counted.
pub(super) fn client(request: &Request, trusted: &TrustedProxies) -> Client {
    let peer = request.extensions().get::<Peer>();
    let peer = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.0.ip());
    Client::of(peer, request.headers(), trusted)
}

#[cfg(test)]
mod tests {
    use http::header::COOKIE;

    use super::super::cookie::Key;
    use super::*;
    use crate::config::Origins;

    fn site() -> Site {
        Site::new(Key::random(), "http", "localhost", None, &Origins::Any)
    }

    fn sent(set: &HeaderValue) -> HeaderMap {
        let pair = set.to_str().unwrap().split(';').next().unwrap();
        HeaderMap::from_iter([(COOKIE, HeaderValue::from_str(pair).unwrap())])
    }

    #[test]
    fn a_visitor_is_known_again_here_and_nowhere_else() {
        let (site, visitor) = (site(), Visitor::new());
        let headers = sent(&visitor.cookie(&site));
        assert_eq!(Visitor::of(&headers, &site), Some(visitor.clone()));
        assert_eq!(
            Visitor::of(&headers, &Site::new(Key::random(), "http", "localhost", None, &Origins::Any)),
            None
        );
        assert_eq!(Visitor::of(&HeaderMap::new(), &site), None);
        assert_ne!(Visitor::new(), visitor);
        let other = site.key.signer("session").sign(&visitor.0);
        let headers = HeaderMap::from_iter([(
            COOKIE,
            HeaderValue::from_str(&format!("demo-visitor={other}")).unwrap(),
        )]);
        assert_eq!(Visitor::of(&headers, &site), None, "signed for something else");
    }

    #[test]
    fn the_time_a_hand_over_took_is_that_instances() {
        let (site, id) = (site(), InstanceId::random());
        let headers = sent(&Took::cookie(&site, &id, Duration::from_micros(4711)));
        assert_eq!(Took::of(&headers, &site, &id), Some(Duration::from_micros(4711)));
        assert_eq!(Took::of(&headers, &site, &InstanceId::random()), None);
    }
}
