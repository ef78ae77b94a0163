//! The other nodes, as this daemon sees them, and the way to them.
//!
//! Owns the view of who is there: [`keeper`] alone moves it on, everybody reads
//! it. Asked by provisioning (who could make an instance), by the proxy (where an
//! instance's node is) and by the listener (whether a request is another node's).
//!
//! ```text
//! keeper      announces this node every second, reads the others, marks what is lost
//! call        asks another node's daemon for something
//! Peers       the view, and the passes that requests between nodes bear
//! ```
//!
//! Invariants: what came from another node goes no further, so no request goes in
//! circles; a connection to a node that is lost ends.

pub mod call;
pub mod keeper;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::Hops;
use crate::id::{GoldenName, NodeName};
use crate::node::pass::{Kind, NodeSecret, PassError, Signed};
use crate::node::watch::{Condition, Watch};
use crate::node::{self, Heard, Report};

/// How long a connection to another node may take: it is in the same network, and
/// one that takes this long will not come.
pub const CONNECT_DEADLINE: std::time::Duration = std::time::Duration::from_secs(2);

/// A request that another node has passed on, or made.
#[derive(Debug, Clone)]
pub struct FromNode {
    /// Which node.
    pub node: NodeName,
    /// A visitor's, or its own.
    pub kind: Kind,
    /// Whose request it was, and the trusted proxies it came by.
    pub way: Hops,
}

/// The way to a node.
#[derive(Debug, Clone)]
pub enum Way {
    /// It is, or may be, there.
    To {
        /// Where it is reached.
        address: String,
        /// How it stands with it.
        condition: Condition,
        /// Cancelled when it is lost.
        gone: CancellationToken,
    },
    /// It is given up.
    Lost,
    /// It never announced itself.
    Unknown,
}

/// One node, as `nodes` shows it.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its last report.
    pub report: Report,
    /// How it stands with it.
    pub condition: Condition,
    /// For how long it has been silent.
    pub silent: std::time::Duration,
}

/// The other nodes.
pub struct Peers {
    own: NodeName,
    address: String,
    secret: NodeSecret,
    view: RwLock<View>,
    /// Wakes the keeper before its time: this node has something new to say.
    news: Notify,
    client: Client<HttpConnector, Full<Bytes>>,
}

#[derive(Debug, Default)]
struct View {
    watch: Watch,
    /// For each node that is not lost: ends what leads there.
    gone: BTreeMap<NodeName, CancellationToken>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Peers {
    /// Knows nobody yet.
    #[must_use]
    pub fn new(own: NodeName, address: String, secret: NodeSecret) -> Arc<Self> {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_DEADLINE));
        connector.set_nodelay(true);
        // No connection is kept: one that a daemon closes as it is stopped would
        // fail the call that goes out on it just then.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Arc::new(Self { own, address, secret, view: RwLock::default(), news: Notify::new(), client })
    }

    /// This node.
    #[must_use]
    pub const fn own(&self) -> &NodeName {
        &self.own
    }

    /// NODE_ADDRESS.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Has the keeper tell the others now.
    pub fn tell(&self) {
        self.news.notify_one();
    }

    /// Takes in what the store answered; answers the lost ones among the others,
    /// with their last beat, and whether that is news.
    fn look(&self, heard: Vec<Heard>, at: Instant) -> Vec<(NodeName, String, bool)> {
        let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
        view.watch.look(heard, at);
        let View { watch, gone } = &mut *view;
        let mut lost = Vec::new();
        let mut ended = std::mem::take(gone);
        for (seen, condition) in watch.all() {
            let node = &seen.report.node;
            if condition == Condition::Lost {
                let is_news = ended.contains_key(node);
                // Who is lost is late.
                lost.extend(seen.beat.clone().map(|beat| (node.clone(), beat, is_news)));
            } else {
                gone.insert(node.clone(), ended.remove(node).unwrap_or_default());
            }
        }
        drop(view);
        // Outside the lock: it wakes the connections' tasks.
        ended.values().for_each(CancellationToken::cancel);
        lost.retain(|(node, ..)| *node != self.own);
        lost
    }

    /// All nodes that ever announced themselves, this one among them.
    #[must_use]
    pub fn all(&self) -> Vec<Known> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let known = |(seen, condition): (&node::watch::Sighting, Condition)| Known {
            report: seen.report.clone(),
            condition,
            silent: seen.since.elapsed(),
        };
        view.watch.all().map(known).collect()
    }

    /// The others that can make an instance of a golden, the one with the most
    /// room first.
    #[must_use]
    pub fn makers(&self, golden: &GoldenName) -> Vec<NodeName> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let all = view.watch.all().map(|(seen, condition)| (&seen.report, condition));
        node::makers(all.filter(|(report, _)| report.node != self.own), golden)
    }

    /// The way to a node.
    #[must_use]
    pub fn way_to(&self, node: &NodeName) -> Way {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        match (view.watch.of(node), view.gone.get(node)) {
            (Some((_, Condition::Lost)), _) => Way::Lost,
            (Some((seen, condition)), Some(gone)) => {
                Way::To { address: seen.report.address.clone(), condition, gone: gone.clone() }
            }
            _ => Way::Unknown,
        }
    }

    /// The pass for a request to a node, made of it as it is sent.
    #[must_use]
    pub fn pass(
        &self,
        kind: Kind,
        to: &NodeName,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> HeaderValue {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let request = Signed { method, host, path: path_of(uri), headers };
        self.secret.sign(kind, (&self.own, to), Timestamp::now().as_second(), request)
    }

    /// Whose a request is that bears a pass.
    ///
    /// # Errors
    /// [`PassError`]
    pub fn admit<B>(&self, request: &Request<B>, pass: &HeaderValue) -> Result<FromNode, PassError> {
        let headers = request.headers();
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let signed = Signed { method: request.method(), host, path: path_of(request.uri()), headers };
        let (kind, node) = self.secret.verify(pass, &self.own, Timestamp::now().as_second(), signed)?;
        let way = headers.get("x-forwarded-for").and_then(|way| way.to_str().ok()).unwrap_or_default();
        let mut way = way.split(',').filter_map(|address| address.trim().parse::<IpAddr>().ok());
        // A call is nobody's but the node's own.
        let client = way.next().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        Ok(FromNode { node, kind, way: Hops { client, proxies: way.collect() } })
    }
}

fn path_of(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::node::tests::{heard, late};

    fn peers(own: &str) -> Arc<Peers> {
        Peers::new(own.parse().unwrap(), format!("{own}:1"), NodeSecret::new("s".to_owned().into()))
    }

    #[test]
    fn what_leads_to_a_lost_node_ends_and_it_is_news_once() {
        let (peers, begun, there) = (peers("here"), Instant::now(), "there".parse().unwrap());
        assert!(matches!(peers.way_to(&there), Way::Unknown));
        let look = |second| {
            let silence = Duration::from_secs(second);
            let other = if second < 2 { heard("there", 3) } else { late("there", "1", silence) };
            peers.look(vec![other, heard("here", 3)], begun + silence)
        };
        assert!(look(0).is_empty());
        let Way::To { gone, address, .. } = peers.way_to(&there) else { panic!("it is there") };
        assert_eq!(address, "there:8080");
        let makers = peers.makers(&"shop".parse().unwrap());
        assert_eq!(makers, std::slice::from_ref(&there), "itself is no other");
        for second in 1..7 {
            assert!(look(second).is_empty() && !gone.is_cancelled(), "{second}");
        }
        assert_eq!(look(7), [(there.clone(), "1".to_owned(), true)]);
        assert!(gone.is_cancelled() && matches!(peers.way_to(&there), Way::Lost));
        assert_eq!(look(8), [(there.clone(), "1".to_owned(), false)]);
        peers.look(vec![heard("there", 3)], begun + Duration::from_secs(9));
        let Way::To { gone, .. } = peers.way_to(&there) else { panic!("it is back") };
        assert!(!gone.is_cancelled());
    }

    #[test]
    fn a_request_that_is_passed_on_says_whose_it_was() {
        let (here, there) = (peers("here"), peers("there"));
        let mut request = Request::post("/a?b").header("host", "abc.localhost").body(()).unwrap();
        request.headers_mut().insert("x-forwarded-for", HeaderValue::from_static("198.51.100.1, 10.0.0.1"));
        let pass = here.pass(Kind::Visit, there.own(), request.method(), request.uri(), request.headers());
        let from = there.admit(&request, &pass).unwrap();
        assert_eq!((from.node.as_str(), from.kind), ("here", Kind::Visit));
        assert_eq!(from.way.client, "198.51.100.1".parse::<IpAddr>().unwrap());
        assert_eq!(from.way.proxies, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert!(here.admit(&request, &pass).is_err(), "it is not for the one who sent it");
    }
}
