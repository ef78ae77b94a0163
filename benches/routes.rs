//! What a route costs, with 10, 100 and 1,000 of them there: in Caddy
//! (`ROUTER=caddy`) and in the built-in proxy behind one wildcard route of
//! Caddy's (`ROUTER=embedded`).
//!
//! A real Caddy with the repository's Caddyfile, the daemon's own tables and
//! proxy; no container. Prints two Markdown tables, see benches/README.md.

#[path = "../tests/common/caddy.rs"]
#[allow(clippy::unwrap_used, reason = "a tool of the tests")]
mod caddy;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::Router;
use axum::routing::get;
use demo_multiplexer::api::Door;
use demo_multiplexer::client::TrustedProxies;
use demo_multiplexer::connections::Connections;
use demo_multiplexer::id::InstanceId;
use demo_multiplexer::listener::{self, Bounds, Edges};
use demo_multiplexer::proxy::{Parts, Proxy, PublicFace};
use demo_multiplexer::route::RouteTable;
use demo_multiplexer::route::caddy::CaddyRoutes;
use demo_multiplexer::route::memory::MemoryRoutes;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::caddy::Caddy;

/// How many routes are there before.
const PRESENT: [usize; 3] = [10, 100, 1000];

/// Changes of each kind.
const CHANGES: usize = 50;

/// The pause before a change that is measured: the table leaves Caddy alone for
/// so long between two.
const BETWEEN: Duration = Duration::from_millis(120);

/// How long visitors come.
const VISITS: Duration = Duration::from_secs(5);

/// Visitors at once.
const VISITORS: usize = 4;

/// The pause between two changes while visitors come: a busy service's.
const PAUSE: Duration = Duration::from_millis(500);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    if !caddy::is_there("the bench of routes") {
        return Ok(());
    }
    let shop = serve(Router::new().fallback(get(async || "the shop"))).await?;
    println!("| routes | layout | add ms | p95 | remove ms | p95 | look ms |");
    println!("| ------ | ------ | ------ | --- | --------- | --- | ------- |");
    let mut visits = Vec::new();
    for present in PRESENT {
        for layout in ["caddy", "embedded"] {
            let world = World::new(layout, shop).await?;
            for _ in 0..present {
                world.table().ensure(&InstanceId::random(), shop);
            }
            world.table().settle().await?;
            let [add, remove, look] = changes(world.table(), shop).await?;
            let [(add, add_95), (remove, remove_95), (look, _)] = [add, remove, look].map(quantiles);
            println!(
                "| {present} | {layout} | {add:.3} | {add_95:.3} | {remove:.3} | {remove_95:.3} | {look:.3} |"
            );
            for changing in [false, true] {
                visits.push((present, layout, changing, world.visits(changing).await?));
            }
        }
    }
    println!(
        "\n| routes | layout | changes | pages/s | page ms | p95 | cut off | new connections | cut off |"
    );
    println!("| ------ | ------ | ------- | ------- | ------- | --- | ------- | --------------- | ------- |");
    for (present, layout, changing, seen) in visits {
        let changing = if changing { "4 a second" } else { "none" };
        let rate = seen.kept.len() as f64 / VISITS.as_secs_f64();
        let (page, page_95) = quantiles(seen.kept);
        println!(
            "| {present} | {layout} | {changing} | {rate:.0} | {page:.2} | {page_95:.2} | {} | {} | {} |",
            seen.failed_kept, seen.fresh, seen.failed_fresh
        );
    }
    Ok(())
}

/// Serves a router on a free port.
async fn serve(router: Router) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

/// A Caddy, the built-in proxy behind it, and the table that is changed.
struct World {
    caddy: Caddy,
    memory: Arc<MemoryRoutes>,
    routes: Option<CaddyRoutes>,
    visited: InstanceId,
    shop: SocketAddr,
    _stop: tokio_util::sync::DropGuard,
}

impl World {
    async fn new(layout: &str, shop: SocketAddr) -> anyhow::Result<Self> {
        let (memory, visited) = (Arc::new(MemoryRoutes::default()), InstanceId::random());
        let face = PublicFace { scheme: "https", port: 443 };
        let edges = Edges {
            // It approves every name.
            api: Router::new().fallback(get(async || "")),
            proxy: Proxy::new(Parts {
                routes: Arc::clone(&memory),
                face,
                trusted: TrustedProxies::default(),
                body_max: u64::MAX,
                patience: Duration::from_secs(60),
                banner: None,
                waker: None,
                landing: None,
                elsewhere: None,
            }),
            base_domain: "localhost".into(),
            door: Door::Only,
            nodes: None,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let bounds = Bounds {
            headers: listener::HEADERS_DEADLINE,
            connections: Connections::new(100_000, "127.0.0.1".parse().map_err(anyhow::Error::msg)?),
            drain: Duration::ZERO,
        };
        let (daemon, stop) = (listener.local_addr()?, CancellationToken::new());
        tokio::spawn(listener::serve(listener, edges, bounds, stop.clone()));
        let mut caddy = Caddy::new(daemon, &[]);
        caddy.start().await;
        let routes = match layout {
            "caddy" => Some(CaddyRoutes::new(
                caddy.admin_url().parse().map_err(|()| anyhow::anyhow!("not an admin address"))?,
                &"bench".parse()?,
                "localhost",
            )?),
            _ => None,
        };
        let world = Self { caddy, memory, routes, visited, shop, _stop: stop.drop_guard() };
        world.table().ensure(&world.visited, shop);
        Ok(world)
    }

    fn table(&self) -> &dyn RouteTable {
        match &self.routes {
            Some(caddy) => caddy,
            None => &*self.memory,
        }
    }

    /// Visitors who keep their connection, and one who makes a new one each time.
    async fn visits(&self, changing: bool) -> anyhow::Result<Visits> {
        let host = format!("{}.localhost", self.visited);
        let url = format!("https://{host}:{}/", self.caddy.https.port());
        // The certificate is made with the first request.
        let first = self.caddy.browser(&[&host]).get(&url).send().await.context("the shop is not there")?;
        anyhow::ensure!(first.text().await? == "the shop", "not the shop");
        let over = Arc::new(AtomicBool::new(false));
        let mut visitors = tokio::task::JoinSet::new();
        for n in 0..=VISITORS {
            let keeps = n < VISITORS;
            let browser = self.caddy.browser_builder(&[&host]);
            let browser = if keeps { browser } else { browser.pool_max_idle_per_host(0) }.build()?;
            let (over, url) = (Arc::clone(&over), url.clone());
            visitors.spawn(async move {
                let mut seen = Visits::default();
                while !over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    match browser.get(&url).send().await {
                        Ok(page) if page.status() == 200 && keeps => {
                            let _ = page.bytes().await;
                            seen.kept.push(began.elapsed());
                        }
                        Ok(page) if page.status() == 200 => seen.fresh += 1,
                        Ok(_) | Err(_) if keeps => seen.failed_kept += 1,
                        Ok(_) | Err(_) => seen.failed_fresh += 1,
                    }
                }
                seen
            });
        }
        let end = Instant::now() + VISITS;
        while Instant::now() < end {
            if changing {
                let id = InstanceId::random();
                self.table().ensure(&id, self.shop);
                self.table().settle().await?;
                tokio::time::sleep(PAUSE / 2).await;
                self.table().remove(&id);
                self.table().settle().await?;
            }
            tokio::time::sleep(PAUSE / 2).await;
        }
        over.store(true, Ordering::Relaxed);
        let mut all = Visits::default();
        while let Some(seen) = visitors.join_next().await {
            let seen = seen?;
            all.kept.extend(seen.kept);
            all.fresh += seen.fresh;
            all.failed_kept += seen.failed_kept;
            all.failed_fresh += seen.failed_fresh;
        }
        Ok(all)
    }
}

/// What visitors saw.
#[derive(Default)]
struct Visits {
    /// How long pages on kept connections took.
    kept: Vec<Duration>,
    /// Pages on connections of their own.
    fresh: usize,
    /// Requests without an answer on kept connections.
    failed_kept: usize,
    /// The same on connections of their own.
    failed_fresh: usize,
}

/// Adds and removes one route, and looks whether all are there.
async fn changes(table: &dyn RouteTable, shop: SocketAddr) -> anyhow::Result<[Vec<Duration>; 3]> {
    let mut took = [const { Vec::new() }; 3];
    for _ in 0..CHANGES {
        let id = InstanceId::random();
        tokio::time::sleep(BETWEEN).await;
        let began = Instant::now();
        table.ensure(&id, shop);
        table.settle().await?;
        took[0].push(began.elapsed());
        tokio::time::sleep(BETWEEN).await;
        let began = Instant::now();
        table.remove(&id);
        table.settle().await?;
        took[1].push(began.elapsed());
        let began = Instant::now();
        anyhow::ensure!(table.repair().await? == 0, "a route got lost");
        took[2].push(began.elapsed());
    }
    Ok(took)
}

/// Median and 95th percentile, in milliseconds.
fn quantiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort();
    let at =
        |part: usize| times.get(times.len() * part / 100).map_or(f64::NAN, |it| it.as_secs_f64() * 1000.0);
    (at(50), at(95))
}
