//! Load at a fixed rate: visitors come when they come, answered or not.
//!
//! Called by `bench --load` and by `benches/load.rs`. A visitor acquires, looks
//! at the front page, stays, and leaves. Each time is counted from the moment the
//! visitor was due, not from when the generator got round to it: a service that
//! stalls makes all wait who come meanwhile, and a generator that waits with it
//! (a closed loop) would count one slow answer where visitors saw hundreds.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Serialize;
use serde_json::Value;
use tokio::task::JoinSet;

/// One answer; a visitor who has waited for this long has left.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is offered.
#[derive(Debug, Clone)]
pub struct Offer {
    /// The daemon, where it listens.
    pub address: SocketAddr,
    /// A token, if acquiring needs one.
    pub authorization: Option<http::HeaderValue>,
    /// Visitors in a second.
    pub rate: f64,
    /// For how long they come.
    pub length: Duration,
    /// How long each stays.
    pub stay: Duration,
    /// How many pages each looks at.
    pub pages: u32,
}

/// How one kind of request went.
#[derive(Debug, Clone, Serialize)]
pub struct Answers {
    /// Answered well.
    pub ok: usize,
    /// Told at once to come back later: 503 with Retry-After.
    pub refused: usize,
    /// Refused in another way, broken off, or too late.
    pub failed: usize,
    /// Percentiles in milliseconds, of those told to come back.
    pub refused_ms: Percentiles,
    /// Percentiles in milliseconds, of those answered well.
    pub ms: Percentiles,
}

/// The usual points of a latency distribution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half of them were faster.
    pub p50: f64,
    /// 90 of 100.
    pub p90: f64,
    /// 99 of 100.
    pub p99: f64,
    /// 999 of 1,000.
    pub p99_9: f64,
    /// The slowest.
    pub max: f64,
}

impl Percentiles {
    /// Of latencies, by nearest rank; all 0 without any.
    #[must_use]
    pub fn of(latencies: &[Duration]) -> Self {
        let mut sorted = latencies.to_vec();
        sorted.sort_unstable();
        let at = |per_mille: usize| {
            let rank = (sorted.len() * per_mille).div_ceil(1000).saturating_sub(1);
            sorted.get(rank).map_or(0.0, |it| (it.as_secs_f64() * 1e5).round() / 1e2)
        };
        Self { p50: at(500), p90: at(900), p99: at(990), p99_9: at(999), max: at(1000) }
    }
}

/// All of a run.
#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    /// Visitors offered in a second.
    pub offered: f64,
    /// Visitors who came in a second: less when the generator could not keep up,
    /// and then the numbers are the generator's.
    pub came: f64,
    /// From being due to the answer.
    pub acquire: Answers,
    /// The front page, after the answer.
    pub page: Answers,
    /// The release.
    pub release: Answers,
    /// Instances by where they came from: pool, restore, cold.
    pub sources: std::collections::BTreeMap<String, usize>,
}

impl LoadReport {
    /// The report as a Markdown table.
    #[must_use]
    pub fn to_text(&self) -> String {
        let sources: Vec<String> =
            self.sources.iter().map(|(name, count)| format!("{count} {name}")).collect();
        let mut out = format!(
            "{:.0} visitors a second offered, {:.0} came; instances: {}\n\n\
             | request | ok | refused | failed | p50 ms | p90 | p99 | p99.9 | max |\n\
             | ------- | -- | ------- | ------ | ------ | --- | --- | ----- | --- |\n",
            self.offered,
            self.came,
            sources.join(", ")
        );
        for (name, answers) in [("acquire", &self.acquire), ("page", &self.page), ("release", &self.release)]
        {
            if answers.ok + answers.refused + answers.failed > 0 {
                let Answers { ok, refused, failed, ms, .. } = answers;
                out += &format!(
                    "| {name} | {ok} | {refused} | {failed} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} |\n",
                    ms.p50, ms.p90, ms.p99, ms.p99_9, ms.max
                );
            }
        }
        out
    }
}

/// Why there was no good answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missed {
    Refused,
    Failed,
}

/// How one request went, and how long it took.
type Went = (Result<(), Missed>, Duration);

/// What one visitor saw; nothing of what it did not come to.
#[derive(Debug, Default)]
struct Visit {
    acquire: Vec<Went>,
    pages: Vec<Went>,
    release: Vec<Went>,
    source: Option<String>,
}

impl Answers {
    fn of<'a>(went: impl Iterator<Item = &'a Went>) -> Self {
        let (mut ok, mut refused, mut failed) = (Vec::new(), Vec::new(), 0);
        for (how, took) in went {
            match how {
                Ok(()) => ok.push(*took),
                Err(Missed::Refused) => refused.push(*took),
                Err(Missed::Failed) => failed += 1,
            }
        }
        let (ms, refused_ms) = (Percentiles::of(&ok), Percentiles::of(&refused));
        Self { ok: ok.len(), refused: refused.len(), failed, ms, refused_ms }
    }
}

type HttpClient = Client<HttpConnector, Full<Bytes>>;

/// Has visitors come, and waits until all have left.
///
/// # Errors
/// When the clock's thread cannot be started.
pub async fn run(offer: Offer) -> std::io::Result<LoadReport> {
    let offer = Arc::new(offer);
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: HttpClient = Client::builder(TokioExecutor::new()).build(connector);
    let visitors = (offer.rate * offer.length.as_secs_f64()).round().max(1.0) as u32;
    let (due, mut coming) = tokio::sync::mpsc::unbounded_channel();
    let (rate, begun) = (offer.rate, Instant::now());
    let clock =
        std::thread::Builder::new().name("clock".into()).spawn(move || clock(begun, rate, visitors, &due));
    clock?;
    let mut visits = JoinSet::new();
    while let Some(moment) = coming.recv().await {
        visits.spawn(visit(client.clone(), Arc::clone(&offer), moment));
    }
    let took = begun.elapsed();
    let visits = visits.join_all().await;
    let mut sources = std::collections::BTreeMap::new();
    for source in visits.iter().filter_map(|visit| visit.source.clone()) {
        *sources.entry(source).or_default() += 1;
    }
    Ok(LoadReport {
        offered: offer.rate,
        came: f64::from(visitors) / took.as_secs_f64(),
        acquire: Answers::of(visits.iter().flat_map(|visit| &visit.acquire)),
        page: Answers::of(visits.iter().flat_map(|visit| &visit.pages)),
        release: Answers::of(visits.iter().flat_map(|visit| &visit.release)),
        sources,
    })
}

/// Says when each visitor is due. A thread, since the runtime's timers count in
/// whole milliseconds: as much as an acquire takes.
fn clock(begun: Instant, rate: f64, visitors: u32, due: &tokio::sync::mpsc::UnboundedSender<Instant>) {
    for n in 0..visitors {
        let moment = begun + Duration::from_secs_f64(f64::from(n) / rate);
        #[allow(clippy::disallowed_methods, reason = "a thread of its own")]
        std::thread::sleep(moment.saturating_duration_since(Instant::now()));
        if due.send(moment).is_err() {
            return;
        }
    }
}

async fn visit(client: HttpClient, offer: Arc<Offer>, due: Instant) -> Visit {
    let mut visit = Visit::default();
    let api = offer.address.to_string();
    let answer = send(&client, &offer, Method::POST, &api, "/api/v1/demo/acquire").await;
    visit.acquire.push((answer.as_ref().map(drop).map_err(|missed| *missed), due.elapsed()));
    let Ok(answer) = answer else { return visit };
    let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
    let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
    visit.source = Some(text("source"));
    let url = text("url");
    // The host is the shop's, the address the daemon's.
    let host = url.split('/').nth(2).unwrap_or_default();
    for _ in 0..offer.pages {
        let begun = Instant::now();
        let page = send(&client, &offer, Method::GET, host, "/").await;
        visit.pages.push((page.map(drop), begun.elapsed()));
    }
    tokio::time::sleep(offer.stay).await;
    let (path, begun) = (format!("/api/v1/demo/{}", text("id")), Instant::now());
    let released = send(&client, &offer, Method::DELETE, &api, &path).await;
    visit.release.push((released.map(drop), begun.elapsed()));
    visit
}

/// Sends a request; the whole body of a good answer.
async fn send(
    client: &HttpClient,
    offer: &Offer,
    method: Method,
    host: &str,
    path: &str,
) -> Result<Bytes, Missed> {
    let failed = |_| Missed::Failed;
    let asked = async {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", offer.address))
            .header(header::HOST, host)
            .body(Full::new(Bytes::new()))
            .map_err(|_| Missed::Failed)?;
        if let Some(authorization) = offer.authorization.as_ref().filter(|_| path.starts_with("/api/")) {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        let response = client.request(request).await.map_err(|_| Missed::Failed)?;
        let (status, later) = (response.status(), response.headers().contains_key(header::RETRY_AFTER));
        let body = response.into_body().collect().await.map_err(|_| Missed::Failed)?.to_bytes();
        match status {
            StatusCode::SERVICE_UNAVAILABLE if later => Err(Missed::Refused),
            status if status.is_success() || status == StatusCode::FOUND => Ok(body),
            _ => Err(Missed::Failed),
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.map_err(failed)?
}

#[cfg(test)]
mod tests {
    use axum::routing::{any, post};
    use axum::{Json, Router};

    use super::*;

    #[test]
    fn percentiles_are_those_of_the_book() {
        let thousand: Vec<Duration> = (1..=1000).map(Duration::from_millis).collect();
        let expected = Percentiles { p50: 500.0, p90: 900.0, p99: 990.0, p99_9: 999.0, max: 1000.0 };
        assert_eq!(Percentiles::of(&thousand), expected);
        assert_eq!(Percentiles::of(&[]), Percentiles::default());
    }

    /// A service that does one acquire at a time, each of this length.
    async fn slow(each: Duration) -> SocketAddr {
        let one = Arc::new(tokio::sync::Mutex::new(()));
        let acquire = async move || {
            let _one = one.lock().await;
            tokio::time::sleep(each).await;
            Json(serde_json::json!({"id": "a", "url": "http://a.localhost/", "source": "pool"}))
        };
        let router = Router::new().route("/api/v1/demo/acquire", post(acquire)).fallback(any(async || "ok"));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    #[tokio::test]
    async fn who_has_to_queue_is_counted_from_when_it_was_due() {
        let offer = Offer {
            address: slow(Duration::from_millis(20)).await,
            authorization: None,
            rate: 100.0,
            length: Duration::from_millis(200),
            stay: Duration::ZERO,
            pages: 2,
        };
        let report = run(offer).await.unwrap();
        assert_eq!((report.acquire.ok, report.page.ok, report.release.ok), (20, 40, 20));
        assert_eq!(report.sources["pool"], 20);
        // The last one is due after 190 ms and served after 400 ms at the earliest:
        // a closed loop would say 20 ms.
        assert!(report.acquire.ms.max >= 200.0, "{report:?}");
    }
}
