//! What the built-in proxy costs: a request to a shop through it, against the
//! same request to the shop itself.
//!
//! A listener and a proxy as the daemon has them, in front of a web server that
//! answers from memory; no root, no container. Prints a Markdown table, see
//! benches/README.md. Direct and proxied requests take turns, so that both meet
//! the same machine; what a core can carry is counted in the processor time of
//! the proxy's own threads, so that it does not matter who else runs.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use axum::Router;
use demo_multiplexer::api::Door;
use demo_multiplexer::client::TrustedProxies;
use demo_multiplexer::connections::Connections;
use demo_multiplexer::id::InstanceId;
use demo_multiplexer::listener::{self, Bounds, Edges};
use demo_multiplexer::metrics;
use demo_multiplexer::proxy::{Parts, Proxy, PublicFace};
use demo_multiplexer::route::RouteTable as _;
use demo_multiplexer::route::memory::MemoryRoutes;
use tokio_util::sync::CancellationToken;

/// The name of the proxy's threads, by which their processor time is found.
const THREADS: &str = "proxy";

/// Sizes of an answer: an API's, and a picture's.
const SIZES: [usize; 2] = [1 << 10, 64 << 10];

/// Pairs of requests one after the other; enough for a 99th percentile.
const PAIRS: usize = 4_000;

/// Requests before the first that counts.
const WARM_UP: usize = 400;

/// Visitors at once, each with a connection of its own.
const VISITORS: usize = 16;

/// Requests of each of them.
const EACH: usize = 1_500;

fn main() -> anyhow::Result<()> {
    // `cargo test --benches` only wants to know that it runs.
    let short = std::env::args().any(|argument| argument == "--test");
    let (pairs, each) = if short { (50, 20) } else { (PAIRS, EACH) };
    println!(
        "| answer | direct p50 ms | proxied p50 ms | overhead p50 ms | overhead p99 ms | requests/s | requests/s per core |"
    );
    println!(
        "| ------ | ------------- | -------------- | --------------- | --------------- | ---------- | ------------------- |"
    );
    for size in SIZES {
        let world = World::new(size)?;
        let (direct, proxied) = world.take_turns(pairs)?;
        let (direct, proxied) = (quantiles(direct)?, quantiles(proxied)?);
        let (wall, processor) = world.all_at_once(each)?;
        let requests = (VISITORS * each) as f64;
        println!(
            "| {} KiB | {:.3} | {:.3} | {:.3} | {:.3} | {:.0} | {:.0} |",
            size >> 10,
            direct.0,
            proxied.0,
            proxied.0 - direct.0,
            proxied.1 - direct.1,
            requests / wall.as_secs_f64(),
            requests / processor.as_secs_f64(),
        );
    }
    Ok(())
}

/// Median and 99th percentile, in milliseconds.
fn quantiles(mut times: Vec<Duration>) -> anyhow::Result<(f64, f64)> {
    times.sort();
    let at = |percent: usize| times.get(times.len() * percent / 100).map(|it| it.as_secs_f64() * 1e3);
    at(50).zip(at(99)).context("nothing was measured")
}

/// A shop, and the proxy in front of it.
struct World {
    shop: SocketAddr,
    proxy: SocketAddr,
    host: String,
    size: usize,
    stop: CancellationToken,
    /// Dropped last: the proxy's threads.
    _runtime: tokio::runtime::Runtime,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    fn new(size: usize) -> anyhow::Result<Self> {
        // As the daemon does: it counts what is proxied.
        let _counted = metrics::install();
        let shop = shop(size)?;
        // As many workers as the daemon has.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().thread_name(THREADS).enable_all().build()?;
        let (routes, id, stop) =
            (Arc::new(MemoryRoutes::default()), InstanceId::random(), CancellationToken::new());
        routes.ensure(&id, shop);
        let edges = Edges {
            api: Router::new(),
            proxy: Proxy::new(Parts {
                routes,
                face: PublicFace { scheme: "https", port: 443 },
                trusted: "127.0.0.0/8".parse().map_err(anyhow::Error::msg)?,
                body_max: 64 << 20,
                patience: Duration::from_secs(60),
                banner: None,
                waker: None,
                landing: None,
                elsewhere: None,
            }),
            base_domain: "demo.example".into(),
            door: Door::Only,
            nodes: None,
        };
        let bounds = Bounds {
            headers: listener::HEADERS_DEADLINE,
            connections: Connections::new(10_000, TrustedProxies::default()),
            drain: Duration::ZERO,
        };
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let proxy = listener.local_addr()?;
        runtime.spawn(listener::serve(listener, edges, bounds, stop.clone()));
        let host = format!("{id}.demo.example");
        Ok(Self { shop, proxy, host, size, stop, _runtime: runtime })
    }

    /// A visitor at either door.
    fn visitor(&self, door: SocketAddr) -> anyhow::Result<Visitor> {
        Visitor::new(door, &self.host, self.size)
    }

    /// One request direct, one through the proxy, and so on.
    fn take_turns(&self, pairs: usize) -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
        let (mut direct, mut proxied) = (self.visitor(self.shop)?, self.visitor(self.proxy)?);
        let mut took = (Vec::with_capacity(pairs), Vec::with_capacity(pairs));
        for n in 0..pairs + WARM_UP {
            let (one, other) = (direct.ask()?, proxied.ask()?);
            if n >= WARM_UP {
                took.0.push(one);
                took.1.push(other);
            }
        }
        Ok(took)
    }

    /// Many visitors at once; answers how long they took, and how long the
    /// proxy's threads were on a processor.
    fn all_at_once(&self, each: usize) -> anyhow::Result<(Duration, Duration)> {
        let mut visitors = Vec::new();
        for _ in 0..VISITORS {
            let mut visitor = self.visitor(self.proxy)?;
            visitor.ask()?;
            visitors.push(visitor);
        }
        let (begun, before) = (Instant::now(), processor_time()?);
        let threads: Vec<_> = visitors
            .into_iter()
            .map(|mut visitor| {
                std::thread::spawn(move || (0..each).try_for_each(|_| visitor.ask().map(drop)))
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| anyhow::anyhow!("a visitor panicked"))??;
        }
        Ok((begun.elapsed(), processor_time()?.saturating_sub(before)))
    }
}

/// How long all threads of the proxy were on a processor.
fn processor_time() -> anyhow::Result<Duration> {
    let mut all = Duration::ZERO;
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if std::fs::read_to_string(task.join("comm"))?.trim_end() == THREADS {
            let spent = std::fs::read_to_string(task.join("schedstat"))?;
            let spent = spent.split(' ').next().context("an empty schedstat")?;
            all += Duration::from_nanos(spent.parse()?);
        }
    }
    ensure!(all > Duration::ZERO, "the proxy has no threads");
    Ok(all)
}

/// A browser's connection.
struct Visitor {
    stream: BufReader<TcpStream>,
    request: Vec<u8>,
    body: Vec<u8>,
}

impl Visitor {
    fn new(door: SocketAddr, host: &str, size: usize) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(door)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        // What a browser sends.
        let request = format!(
            "GET /themes/classic/assets/css/theme.css?v=1 HTTP/1.1\r\nHost: {host}\r\n\
             User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
             Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
             Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\n\
             Cookie: PrestaShop-a30a9934ef476d11b6cc3c983616e364=def50200c81c7cdb9d0e1e4a37ab8f2a\r\n\
             Referer: http://{host}/\r\nSec-Fetch-Dest: style\r\nSec-Fetch-Mode: no-cors\r\n\
             Sec-Fetch-Site: same-origin\r\nConnection: keep-alive\r\n\r\n"
        );
        Ok(Self {
            stream: BufReader::with_capacity(16 << 10, stream),
            request: request.into_bytes(),
            body: vec![0; size],
        })
    }

    /// Asks and reads the whole answer.
    fn ask(&mut self) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        self.stream.get_mut().write_all(&self.request)?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        ensure!(line.starts_with("HTTP/1.1 200"), "the answer is {line:?}");
        while line != "\r\n" {
            line.clear();
            ensure!(self.stream.read_line(&mut line)? > 0, "the answer ends in its headers");
        }
        self.stream.read_exact(&mut self.body)?;
        Ok(begun.elapsed())
    }
}

/// A web server that answers from memory: a thread for each connection, which
/// costs the proxy's threads nothing. Ends with the process.
fn shop(size: usize) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: text/css\r\n\
         Content-Length: {size}\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nConnection: keep-alive\r\n\
         ETag: \"5f3c-1\"\r\nExpires: Thu, 08 Jan 2026 00:00:00 GMT\r\nCache-Control: max-age=604800\r\n\
         Accept-Ranges: bytes\r\n\r\n"
    )
    .into_bytes();
    answer.resize(answer.len() + size, b'x');
    let answer: Arc<[u8]> = answer.into();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || serve(stream, &answer));
        }
    });
    Ok(address)
}

fn serve(stream: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        if stream.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if line == b"\r\n" {
            stream.get_mut().write_all(answer)?;
        }
    }
}
