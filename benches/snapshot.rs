//! A snapshot at rest: reading and checking its manifest, and how small and how
//! fast each way of compressing its memory is.
//!
//! The archives are those of the newest snapshot of GOLDEN; without one that part
//! is skipped. See benches/README.md.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use criterion::Criterion;
use demo_multiplexer::config::{self, Config, Values};
use demo_multiplexer::snapshot::catalog::Catalog;
use demo_multiplexer::snapshot::manifest::{MEMORY_ARCHIVE, Manifest};
use demo_multiplexer::snapshot::signature::Keys;

/// Each way is tried so often; the median counts.
const TRIES: usize = 3;

/// zstd's levels: 3 is what snapshots have.
const LEVELS: [i32; 5] = [1, 3, 6, 9, 15];

fn main() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    manifest(&mut criterion)?;
    criterion.final_summary();
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(());
    }
    match memory()? {
        Some(memory) => archives(&memory),
        None => {
            println!("skipped: archive levels need a snapshot (demo-multiplexer snapshot create)");
            Ok(())
        }
    }
}

fn manifest(criterion: &mut Criterion) -> anyhow::Result<()> {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshots/samples/v2.json");
    let bytes = std::fs::read(&sample)?;
    let dir = tempfile::tempdir()?;
    let mut keys = Keys::load(dir.path(), &[])?;
    keys.ensure_own()?;
    let signature = keys.sign(&bytes).context("there is a key")?;
    let mut group = criterion.benchmark_group("manifest");
    group.bench_function("parse", |bencher| bencher.iter(|| Manifest::parse(black_box(&bytes))));
    group.bench_function("verify", |bencher| {
        bencher.iter(|| keys.check(black_box(&bytes), Some(&signature)).expect("its own signature"));
    });
    group.finish();
    Ok(())
}

/// The memory of the newest snapshot, unpacked.
fn memory() -> anyhow::Result<Option<Vec<u8>>> {
    let values = config::collect(Path::new("."), Values::new())?;
    let config = Config::check(&values)?;
    let name = config.goldens.first().context("no golden is named")?.parse()?;
    let Ok(catalog) = Catalog::of(&config) else { return Ok(None) };
    let Some(newest) = catalog.newest(&name, config.database_mode())? else { return Ok(None) };
    let archive = std::fs::File::open(catalog.path(&newest.id).join(MEMORY_ARCHIVE))?;
    Ok(Some(zstd::decode_all(archive)?))
}

fn archives(memory: &[u8]) -> anyhow::Result<()> {
    let mib = memory.len() as f64 / f64::from(1 << 20);
    println!("\nThe memory of the newest snapshot, {mib:.1} MiB, on one core:\n");
    println!("| way | MiB | ratio | pack MiB/s | unpack MiB/s |");
    println!("| --- | --- | ----- | ---------- | ------------ |");
    for level in LEVELS {
        let pack = |raw: &[u8]| zstd::bulk::compress(raw, level).map_err(anyhow::Error::from);
        let unpack = |packed: &[u8]| Ok(zstd::bulk::decompress(packed, memory.len())?);
        row(&format!("zstd -{level}"), memory, pack, unpack)?;
    }
    let pack = |raw: &[u8]| Ok(lz4_flex::block::compress(raw));
    row("lz4", memory, pack, |packed: &[u8]| Ok(lz4_flex::block::decompress(packed, memory.len())?))
}

fn row(
    name: &str,
    memory: &[u8],
    pack: impl Fn(&[u8]) -> anyhow::Result<Vec<u8>>,
    unpack: impl Fn(&[u8]) -> anyhow::Result<Vec<u8>>,
) -> anyhow::Result<()> {
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let packed = pack(memory)?;
    ensure!(unpack(&packed)? == memory, "{name} does not give back what went in");
    let packing = median(|| pack(memory).map(drop))?;
    let unpacking = median(|| unpack(&packed).map(drop))?;
    println!(
        "| {name} | {:.1} | {:.1} | {:.0} | {:.0} |",
        mib(packed.len()),
        memory.len() as f64 / packed.len() as f64,
        mib(memory.len()) / packing.as_secs_f64(),
        mib(memory.len()) / unpacking.as_secs_f64(),
    );
    Ok(())
}

fn median(work: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let mut took = Vec::new();
    for _ in 0..TRIES {
        let begun = Instant::now();
        work()?;
        took.push(begun.elapsed());
    }
    took.sort();
    took.get(TRIES / 2).copied().context("it was tried")
}
