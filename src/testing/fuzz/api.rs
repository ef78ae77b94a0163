//! Requests to the API: the real router on the real store, and scripted shops.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::response::Response;
use http::{Method, Request, header};
use jiff::SignedDuration;
use serde_json::Value;
use tower::ServiceExt as _;

use crate::api::chronicle::Chronicle;
use crate::api::status::StatusHub;
use crate::api::{Access, ApiState, Door, Peer, router};
use crate::config::{Acquire, ColdStart, Origins};
use crate::instance::{EngineKind, State};
use crate::jobs::dispatch::Dispatch;
use crate::metrics;
use crate::pool::{Nudge, PoolStatus};
use crate::promote::Desk;
use crate::provision::audit::Auditor;
use crate::provision::limits::Limits;
use crate::provision::{Lifecycle, Parts, Provisioner, Terms};
use crate::route::Routes;
use crate::shutdown::{Phase, PhaseSetter};
use crate::store::Store;
use crate::store::embedded::EmbeddedStore;
use crate::testing::{Script, runtime};
use crate::token::Tokens;

const MAX_TTL: SignedDuration = SignedDuration::from_hours(24);
const MAX_INSTANCES: usize = 3;

/// How many requests of an input are sent.
const REQUESTS_MAX: usize = 8;

/// Requests as HTTP writes them, parted by lines of `---`; `{0}` is the first
/// acquired instance's id. Every answer is whole, none is a defect, and nobody
/// gets more than there is.
pub fn api(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("there is a thread").block_on(World::new().send_all(data));
}

struct World {
    router: Router,
    store: Arc<dyn Store>,
    ids: Vec<String>,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = super::scratch();
        let node = "here".parse().expect("a node name");
        let store = EmbeddedStore::open(&dir.path().join("store"), &node).expect("there is room");
        let store: Arc<dyn Store> = Arc::new(store);
        let script = Script::quiet(EngineKind::Criu);
        let lifecycle = Lifecycle::new(Parts {
            store: Arc::clone(&store),
            routes: Arc::new(Routes::default()),
            goldens: vec![runtime("shop", &script, None), runtime("other", &script, None)],
            max_instances: MAX_INSTANCES,
            restore_concurrency: 2,
            refill: Nudge::default(),
            reap: Nudge::default(),
        });
        let terms = Terms {
            default_ttl: SignedDuration::from_mins(30),
            max_ttl: MAX_TTL,
            cold_start: ColdStart::Refused,
            wait: Duration::from_secs(5),
            patience: Duration::ZERO,
            limits: Limits { hourly: 0, daily: 0 },
        };
        let lifecycle = Arc::new(lifecycle);
        let auditor = Auditor::new(Arc::clone(&lifecycle), Arc::new(Dispatch::new(None)));
        let provisioner = Arc::new(Provisioner::new(Arc::clone(&lifecycle), terms));
        let pool = tokio::sync::watch::channel(PoolStatus::new()).1;
        let phase = PhaseSetter::default();
        phase.enter(Phase::Serving);
        let state = ApiState {
            status: StatusHub::new(Arc::clone(&provisioner), 4),
            chronicle: Chronicle::new(Arc::clone(&provisioner), pool.clone(), dir.path().to_owned()),
            desk: Desk::new(lifecycle, None),
            provisioner,
            auditor: Arc::new(auditor),
            pool,
            phase: phase.view(),
            trusted_proxies: "10.0.0.0/8".parse().expect("a network"),
            access: Access { tokens: Tokens::default(), acquire: Acquire::Open },
            cors_origins: Arc::new(Origins::Listed(Vec::new())),
            base_domain: "demo.example".into(),
            nats: None,
            metrics: metrics::install(),
        };
        let router = router(state, axum::Router::new());
        Self { router, store, ids: Vec::new(), _dir: dir }
    }

    async fn send_all(mut self, data: &[u8]) {
        let text = String::from_utf8_lossy(data);
        for one in text.split("\n---\n").take(REQUESTS_MAX) {
            let mut one = one.to_owned();
            for (n, id) in self.ids.iter().enumerate() {
                one = one.replace(&format!("{{{n}}}"), id);
            }
            if let Some(request) = request(&one) {
                self.send(request).await;
            }
        }
        let records = self.store.list().await.expect("the store answers");
        assert!(records.len() <= MAX_INSTANCES, "{} instances", records.len());
        for record in records.iter().filter(|record| record.state == State::Assigned) {
            let (Some(from), Some(until)) = (record.assigned_at, record.expires_at) else {
                panic!("an assigned instance has its time: {record:?}")
            };
            let time = until.duration_since(from);
            assert!(time >= SignedDuration::from_secs(1) && time <= MAX_TTL, "{time:?}");
        }
    }

    async fn send(&mut self, request: Request<Body>) {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = self.router.clone().oneshot(request).await.unwrap_or_else(|never| match never {});
        let (status, headers) = (response.status(), response.headers().clone());
        assert!(!status.is_server_error() || status == 503, "{method} {path}: {status}");
        let has = |name: &str| headers.contains_key(name);
        assert!(has("x-request-id") && has("cache-control") && has("x-content-type-options"), "{headers:?}");
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind == "text/event-stream" {
            return;
        }
        let kind = kind.to_owned();
        let text = body(response).await;
        if status.is_client_error() || status.is_server_error() {
            assert_eq!(kind, "application/problem+json", "{method} {path}: {text}");
            if method != Method::HEAD {
                let problem: Value = serde_json::from_str(&text).expect("a problem is JSON");
                assert_eq!(problem["status"], status.as_u16());
                assert!(problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{text}");
            }
        }
        let acquired = method == Method::POST && path == "/api/v1/demo/acquire" && status.is_success();
        if acquired {
            let answer: Value = serde_json::from_str(&text).expect("an answer is JSON");
            let id = answer["id"].as_str().expect("it has an id").to_owned();
            assert!(self.store.get(&id.parse().expect("it is an id")).await.is_ok_and(|it| it.is_some()));
            self.ids.push(id);
        } else {
            assert!(!text.contains("password-of-"), "only an acquire tells a password: {method} {path}");
        }
    }
}

async fn body(response: Response) -> String {
    let bytes = to_bytes(response.into_body(), 4 << 20).await.expect("an answer has an end");
    String::from_utf8(bytes.to_vec()).expect("an answer is UTF-8")
}

/// A request line, header lines, an empty line, the body.
fn request(text: &str) -> Option<Request<Body>> {
    let (head, body) = text.split_once("\n\n").unwrap_or((text, ""));
    let mut lines = head.lines();
    let (method, target) = lines.next()?.split_once(' ')?;
    let mut request = Request::builder().method(method).uri(target);
    let mut peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 4711));
    for line in lines {
        let (name, value) = line.split_once(':')?;
        match name {
            "peer" => peer = value.trim().parse().unwrap_or(peer),
            _ => request = request.header(name, value.trim()),
        }
    }
    let mut request = request.body(Body::from(body.to_owned())).ok()?;
    request.extensions_mut().insert(Peer(peer));
    request.extensions_mut().insert(Door::Only);
    Some(request)
}
