//! Measures what [`super::cost`] states, on a Valkey of its own.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use demo_multiplexer::config::{Config, SETTINGS, StoreAt, Values};
use demo_multiplexer::id::{GoldenName, InstanceId, NodeName};
use demo_multiplexer::instance::{Access, Container, EngineKind, Instance, OneClick, State};
use demo_multiplexer::node::{GoldenReport, REPORT_VERSION, Report, Stage};
use demo_multiplexer::store::valkey::ValkeyStore;
use demo_multiplexer::store::{Claim, Store, Window};
use jiff::{SignedDuration, Timestamp};

/// Calls of each kind.
const CALLS: u32 = 300;

/// Records, and nodes, with which a growing call is measured.
const MANY: u32 = 1_000;

/// How often a growing call is measured.
const READINGS: u32 = 200;

/// Changes between two of its readings.
const CHANGED: u32 = 20;

/// The server, killed at the end.
struct Server {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start() -> anyhow::Result<Self> {
        let program = std::env::var("VALKEY_SERVER").unwrap_or_else(|_| "valkey-server".into());
        let dir = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(&program);
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
        command.args(["--appendonly", "yes", "--dir"]).arg(dir.path());
        let child = command.stdout(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot start {program}: set VALKEY_SERVER"))?;
        Ok(Self { child, port, _dir: dir })
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    async fn ask(&self, command: &[&str]) -> anyhow::Result<String> {
        let client = redis::Client::open(self.url())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let mut cmd = redis::cmd(command[0]);
        cmd.arg(&command[1..]);
        Ok(cmd.query_async(&mut connection).await?)
    }

    /// A number of INFO.
    async fn number(&self, section: &str, name: &str) -> anyhow::Result<f64> {
        let info = self.ask(&["INFO", section]).await?;
        let line = info
            .lines()
            .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':').map(str::to_owned));
        Ok(line.unwrap_or_default().parse().unwrap_or_default())
    }

    /// The scripts' time since the last reset, in microseconds.
    async fn micros(&self) -> anyhow::Result<f64> {
        let info = self.ask(&["INFO", "commandstats"]).await?;
        let line = info.lines().find(|line| line.starts_with("cmdstat_evalsha:")).unwrap_or_default();
        let usec = line.split(',').find_map(|part| part.strip_prefix("usec="));
        Ok(usec.unwrap_or_default().parse().unwrap_or_default())
    }
}

pub(crate) fn run() -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(measure())
}

async fn measure() -> anyhow::Result<()> {
    let server = Server::start()?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut values: Values =
        SETTINGS.iter().map(|setting| (setting.name.to_owned(), setting.default.to_owned())).collect();
    values.insert("STORE_URL".into(), server.url());
    let StoreAt::Valkey(at) = Config::check(&values)?.store else { anyhow::bail!("no Valkey") };
    let node: NodeName = "node-0".parse()?;
    let store: Arc<dyn Store> = Arc::new(ValkeyStore::open(&at, &node, "bench").await?);
    println!(
        "valkey {}",
        server
            .ask(&["INFO", "server"])
            .await?
            .lines()
            .find(|it| it.starts_with("valkey_version"))
            .unwrap_or("?")
    );
    let golden: GoldenName = "shop".parse()?;

    let memory = server.number("memory", "used_memory").await?;
    let mut records = Vec::new();
    let cost = timed(&server, CALLS, async || {
        records.push(store.insert(record(&golden, &node, State::Ready)?).await?);
        Ok(())
    });
    let insert = cost.await?;
    let record_bytes = (server.number("memory", "used_memory").await? - memory) / f64::from(CALLS);
    tell("BYTES_A_RECORD", (record_bytes, 0.0));
    tell("INSERT", insert);
    let announce = async || Ok(store.announce(Some(&report(0)?), &InstanceId::random().to_string()).await?);
    let announce = timed(&server, CALLS, announce).await?;
    tell("ANNOUNCE", announce);
    tell(
        "BEAT",
        timed(&server, CALLS, async || {
            store.beat(&InstanceId::random().to_string()).await?;
            Ok(())
        })
        .await?,
    );
    let windows = [
        Window { length: SignedDuration::from_hours(1), limit: 1_000 },
        Window { length: SignedDuration::from_hours(24), limit: 10_000 },
    ];
    tell(
        "ADMIT",
        timed(&server, CALLS, async || {
            store.admit(&format!("ip:{}", InstanceId::random()), &windows, Timestamp::now()).await?;
            Ok(())
        })
        .await?,
    );
    let mut claimed = Vec::new();
    tell(
        "CLAIM",
        timed(&server, CALLS, async || {
            let now = Timestamp::now();
            let claim = Claim {
                golden: golden.clone(),
                now,
                expires_at: now + SignedDuration::from_hours(1),
                idempotency_key: None,
            };
            claimed.push(store.claim(claim).await?);
            Ok(())
        })
        .await?,
    );
    let all = store.own().await?;
    tell(
        "GET",
        timed(&server, CALLS, async || {
            store.get(&all[7].id).await?;
            Ok(())
        })
        .await?,
    );
    let mut next = all.iter();
    let update = timed(&server, CALLS, async || {
        let record = next.next().context("one a call")?;
        store.update(Instance::clone(record)).await?;
        Ok(())
    });
    let update = update.await?;
    tell("UPDATE", update);
    tell(
        "DUE",
        timed(&server, CALLS, async || {
            store.due(Timestamp::now(), 256).await?;
            Ok(())
        })
        .await?,
    );
    tell(
        "COUNTS",
        timed(&server, CALLS, async || {
            store.counts(&golden).await?;
            Ok(())
        })
        .await?,
    );
    let mut gone = all.iter();
    tell(
        "REMOVE",
        timed(&server, CALLS, async || Ok(store.remove(&gone.next().context("one a call")?.id).await?))
            .await?,
    );

    let mut many = Vec::new();
    for _ in 0..MANY {
        many.push(store.insert(record(&golden, &node, State::Assigned)?).await?);
    }
    store.own().await?;
    let own = async || store.own().await.map(drop).map_err(anyhow::Error::from);
    let none = timed(&server, READINGS, &own).await?;
    let change = async || {
        for record in many.iter_mut().take(CHANGED as usize) {
            store.update(Instance::clone(record)).await?;
        }
        Ok(())
    };
    growing("OWN", none, after_each(&server, change, &own).await?);

    let mut others = Vec::new();
    for number in 1..=MANY {
        // Each node announces itself; one connection stands for all.
        let name: NodeName = format!("node-{number}").parse()?;
        let there = ValkeyStore::open(&at, &name, "bench").await?;
        there.announce(Some(&report(number)?), "0").await?;
        if number <= CHANGED {
            others.push((there, report(number)?));
        }
    }
    store.nodes().await?;
    // Those that do not speak are late, and would be told each time.
    server.ask(&["DEL", &format!("{{{}}}:spoke", at.prefix)]).await?;
    let nodes = async || store.nodes().await.map(drop).map_err(anyhow::Error::from);
    let none = timed(&server, READINGS, &nodes).await?;
    let change = async || {
        for (there, report) in &others {
            there.announce(Some(report), "1").await?;
        }
        Ok(())
    };
    growing("NODES", none, after_each(&server, change, &nodes).await?);
    Ok(())
}

fn tell(name: &str, (micros, bytes): (f64, f64)) {
    println!("{name}: {micros:.1}, {bytes:.0}");
}

/// What a reading costs with no change, and for each more.
fn growing(name: &str, none: (f64, f64), some: (f64, f64)) {
    let count = f64::from(CHANGED);
    println!(
        "{name}: fixed {:.1}, {:.0}; each {:.3}, {:.1}",
        none.0,
        none.1,
        (some.0 - none.0) / count,
        (some.1 - none.1) / count
    );
}

/// As [`timed`], with a change before each call that is not counted.
async fn after_each(
    server: &Server,
    mut change: impl AsyncFnMut() -> anyhow::Result<()>,
    mut call: impl AsyncFnMut() -> anyhow::Result<()>,
) -> anyhow::Result<(f64, f64)> {
    let (mut micros, mut bytes) = (0.0, 0.0);
    for _ in 0..READINGS {
        change().await?;
        let (took, moved) = timed(server, 1, &mut call).await?;
        micros += took;
        bytes += moved;
    }
    Ok((micros / f64::from(READINGS), bytes / f64::from(READINGS)))
}

/// Server time and bytes of one call, on average.
async fn timed(
    server: &Server,
    calls: u32,
    mut call: impl AsyncFnMut() -> anyhow::Result<()>,
) -> anyhow::Result<(f64, f64)> {
    // So that no script is sent whole in what is measured; it has its effect.
    server.ask(&["CONFIG", "RESETSTAT"]).await?;
    let own = traffic(server).await?;
    let own = traffic(server).await? - own;
    let (micros, bytes) = (server.micros().await?, traffic(server).await?);
    for _ in 0..calls {
        call().await?;
    }
    let (took, moved) = (server.micros().await? - micros, traffic(server).await? - bytes - 2.0 * own);
    Ok((took / f64::from(calls), moved / f64::from(calls)))
}

async fn traffic(server: &Server) -> anyhow::Result<f64> {
    let (input, output) = ("total_net_input_bytes", "total_net_output_bytes");
    Ok(server.number("stats", input).await? + server.number("stats", output).await?)
}

/// A record as a restored PrestaShop has it.
fn record(golden: &GoldenName, node: &NodeName, state: State) -> anyhow::Result<Instance> {
    let id = InstanceId::random();
    let host = format!("https://{id}.demo.example.com");
    let mut record = Instance::warming(id.clone(), golden.clone(), node.clone(), Timestamp::now());
    record.state = state;
    record.snapshot = Some("prestashop-20260101t000000z-0a1b".parse()?);
    record.container = Some(Container {
        engine: EngineKind::Criu,
        pid: 123_456,
        start_ticks: 1_234_567_890,
        address: std::net::Ipv4Addr::new(10, 77, 12, 34),
        port: 80,
    });
    record.access = Some(Access {
        url: format!("{host}/"),
        admin_url: format!("{host}/admin-dev/index.php"),
        admin_email: format!("{id}@example.com"),
        admin_password: "a-password-of-20-chars".to_owned().into(),
        one_click: Some(OneClick {
            url: format!("{host}/login.php?token={{token}}"),
            key: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef".to_owned().into(),
        }),
    });
    if state == State::Assigned {
        record.expires_at = Some(Timestamp::now() + SignedDuration::from_hours(1));
    }
    Ok(record)
}

fn report(number: u32) -> anyhow::Result<Report> {
    Ok(Report {
        version: REPORT_VERSION,
        node: format!("node-{number}").parse()?,
        address: "10.0.12.34:8080".into(),
        program: "0.1.0".into(),
        stage: Stage::Serving,
        drained: false,
        room: 900,
        max_instances: 2_000,
        goldens: [("shop".parse()?, GoldenReport { ready: 4, makes: true })].into(),
    })
}
