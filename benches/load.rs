//! Acquires at a fixed rate from a full pool: the whole daemon on a scripted
//! engine, so that the time is the service's own, with the embedded store and with
//! a real Valkey.
//!
//! The client is in this process and shares its cores; what is late because of it
//! is counted, too. See benches/README.md.

#[path = "../tests/common/mod.rs"]
#[allow(clippy::unwrap_used, reason = "a tool of the tests")]
mod common;
#[path = "../tests/valkey/server.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "a tool of the tests")]
mod server;

use std::time::Duration;

use anyhow::ensure;
use demo_multiplexer::bench::load::{self, Offer};
use tokio::runtime::Runtime;

/// Visitors a second.
const RATE: f64 = 1_000.0;

/// For how long.
const LENGTH: Duration = Duration::from_secs(5);

/// All that come find a ready instance, and nothing is made meanwhile, as the pool stays
/// half full: a scripted engine makes shops faster than any real one could.
const POOL: &str = "10000";

fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = Runtime::new()?;
    run(&runtime, "embedded", &[])?;
    if server::is_there("the bench of load with Valkey") {
        let valkey = runtime.block_on(server::Server::start());
        run(&runtime, "Valkey", &[("STORE_URL", &valkey.url())])?;
    }
    Ok(())
}

fn run(runtime: &Runtime, name: &str, changes: &[(&str, &str)]) -> anyhow::Result<()> {
    let short = std::env::args().any(|argument| argument == "--test");
    let (rate, length, pool) =
        if short { (50.0, Duration::from_secs(1), "60") } else { (RATE, LENGTH, POOL) };
    let host = common::Host::new();
    let settings =
        [changes, &[("POOL_TARGET_SIZE", pool), ("MAX_INSTANCES", "20000"), ("MAX_CONNECTIONS", "4096")]];
    let settings = settings.concat();
    let report = runtime.block_on(async {
        let daemon = host.start(&settings).await;
        let wanted: u64 = pool.parse()?;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
        while daemon.states().await["ready"].as_u64().unwrap_or(0) < wanted {
            ensure!(tokio::time::Instant::now() < deadline, "the pool does not fill");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let address = daemon.address;
        // Longer than all of it: taking down is another matter.
        let stay = length + Duration::from_secs(1);
        let offer = Offer { address, authorization: None, rate, length, stay, pages: 0 };
        let report = load::run(offer).await?;
        daemon.stop().await;
        anyhow::Ok(report)
    })?;
    println!("\n{name}: {}", report.to_text());
    ensure!(report.acquire.failed == 0, "{} acquires failed", report.acquire.failed);
    Ok(())
}
