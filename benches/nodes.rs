//! Many nodes on one Valkey: how state, traffic and the wait for a claim grow, and
//! what breaks first.
//!
//! A simulation, the same in every run: visitors come to nodes by a seeded chance,
//! every call costs what it was measured to cost ([`cost`]), and one server, as
//! Valkey is, does them one after the other. `-- --measure` measures the costs on a
//! real `valkey-server` and prints them; it needs one in PATH or VALKEY_SERVER.
//! Needs no root.

#![allow(clippy::print_stdout, reason = "the result is printed")]
#![expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]

#[path = "nodes/cost.rs"]
mod cost;
#[path = "nodes/measure.rs"]
mod measure;

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Acquires of one node in an hour: a thousand nodes have a million.
const ACQUIRES_AN_HOUR: f64 = 1_000.0;

/// How long an instance lives: DEFAULT_TTL.
const LIFE_HOURS: f64 = 1.0;

/// Ready instances of each node: POOL_TARGET_SIZE.
const POOL: f64 = 4.0;

/// Nodes through which a shop's visitor comes in its life: each looks its node up once.
const NODES_A_VISITOR: f64 = 3.0;

/// To Valkey and back in one network, in seconds; not measured here, where it is on
/// the same host: what switched networks of one site have.
const NETWORK: f64 = 0.000_2;

/// Simulated seconds of each size; the first are not counted.
const SECONDS: f64 = 40.0;
const SETTLING: f64 = 10.0;

/// How many nodes.
const SIZES: [u32; 9] = [3, 10, 30, 100, 200, 500, 1_000, 1_500, 2_000];

/// Changes of a node's own records in one life: inserted, ready, claimed, marked as over,
/// removed, and one that somebody else made (a client's release, an extension).
const CHANGES: f64 = 6.0;

/// Seconds in a visitor's acquire in which the numbers of a node's report change: one goes,
/// another one is ready.
const REPORT_CHANGES: f64 = 2.0;

/// Reports that all nodes together say in a second, where they are many: TOLD_A_SECOND.
const TOLD: f64 = 50.0;

/// One call that comes to the server.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    at: f64,
    call: &'static str,
    /// Server time, in seconds.
    takes: f64,
    bytes: f64,
}

/// What a size came to.
#[derive(Debug)]
struct Outcome {
    nodes: u32,
    records: f64,
    memory: f64,
    busy: f64,
    traffic: f64,
    claims: Vec<f64>,
    by_call: BTreeMap<&'static str, f64>,
    traffic_by_call: BTreeMap<&'static str, f64>,
}

fn main() -> anyhow::Result<()> {
    if std::env::args().any(|arg| arg == "--measure") {
        return measure::run();
    }
    println!(
        "nodes: {ACQUIRES_AN_HOUR} acquires an hour for each, instances live {LIFE_HOURS} h, pool of {POOL}"
    );
    println!(
        "{:>6} {:>12} {:>10} {:>9} {:>10} {:>9} {:>9}  most of the time, most of the traffic",
        "nodes", "acquires/h", "records", "GB", "MB/s", "busy", "claim p99"
    );
    let outcomes: Vec<Outcome> = SIZES.iter().map(|nodes| simulate(*nodes)).collect();
    outcomes.iter().for_each(show);
    match outcomes.iter().find(|outcome| outcome.busy > 1.0) {
        Some(first) => println!(
            "breaks first: Valkey's one thread, with {} nodes asked for {:.0} % of its time, {} of it by {}",
            first.nodes,
            first.busy * 100.0,
            percent(largest(&first.by_call)),
            largest(&first.by_call).0
        ),
        None => println!("nothing breaks up to {} nodes", SIZES[SIZES.len() - 1]),
    }
    Ok(())
}

fn show(outcome: &Outcome) {
    let p99 = match outcome.busy > 1.0 {
        // It grows for as long as one looks.
        true => "never".to_owned(),
        false => format!("{:.1} ms", quantile(&outcome.claims, 0.99) * 1000.0),
    };
    let (time, traffic) = (largest(&outcome.by_call), largest(&outcome.traffic_by_call));
    println!(
        "{:>6} {:>12} {:>10} {:>9.2} {:>10.1} {:>8.1}% {:>9}  {} {}, {} {}",
        outcome.nodes,
        f64::from(outcome.nodes) * ACQUIRES_AN_HOUR,
        outcome.records,
        outcome.memory / 1e9,
        outcome.traffic / 1e6,
        outcome.busy * 100.0,
        p99,
        time.0,
        percent(time),
        traffic.0,
        percent(traffic)
    );
}

fn percent((_, part): (&'static str, f64)) -> String {
    format!("{:.0} %", part * 100.0)
}

/// The largest one, and its part of all.
fn largest(all: &BTreeMap<&'static str, f64>) -> (&'static str, f64) {
    let sum: f64 = all.values().sum();
    let largest = all.iter().max_by(|one, other| one.1.total_cmp(other.1));
    largest.map_or(("nothing", 0.0), |(name, value)| (*name, value / sum))
}

fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
    let index = ((sorted.len() as f64 * part) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or_default()
}

/// What one size comes to.
fn simulate(nodes: u32) -> Outcome {
    let count = f64::from(nodes);
    let records = count * (ACQUIRES_AN_HOUR * LIFE_HOURS + POOL);
    let mut arrivals = arrivals(nodes);
    arrivals.sort_by(|one, other| one.at.total_cmp(&other.at));
    let (mut free_at, mut busy, mut traffic) = (0.0_f64, 0.0, 0.0);
    let (mut claims, mut by_call, mut traffic_by_call) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    for arrival in &arrivals {
        let begins = free_at.max(arrival.at);
        free_at = begins + arrival.takes;
        if arrival.at < SETTLING {
            continue;
        }
        busy += arrival.takes;
        traffic += arrival.bytes;
        *by_call.entry(arrival.call).or_default() += arrival.takes;
        *traffic_by_call.entry(arrival.call).or_default() += arrival.bytes;
        if arrival.call == "claim" {
            claims.push(free_at - arrival.at + NETWORK);
        }
    }
    let counted = SECONDS - SETTLING;
    Outcome {
        nodes,
        records,
        memory: records * cost::BYTES_A_RECORD,
        busy: busy / counted,
        traffic: traffic / counted,
        claims,
        by_call,
        traffic_by_call,
    }
}

/// Reports that one node says in a second, as `node::is_news` has it.
fn told_a_second(nodes: f64) -> f64 {
    (REPORT_CHANGES * ACQUIRES_AN_HOUR / 3600.0).min(1.0).min(TOLD / nodes)
}

/// Every call of every node.
fn arrivals(nodes: u32) -> Vec<Arrival> {
    let count = f64::from(nodes);
    let told = told_a_second(count);
    let mut chance = StdRng::seed_from_u64(u64::from(nodes));
    let mut all = Vec::new();
    for _ in 0..nodes {
        // Each second, from a moment of the node's own.
        let mut at: f64 = chance.random_range(0.0..1.0);
        while at < SECONDS {
            match chance.random_bool(told) {
                true => push(&mut all, at, "announce", cost::ANNOUNCE),
                false => push(&mut all, at, "beat", cost::BEAT),
            }
            push(&mut all, at, "nodes", cost::NODES.for_items(told * count));
            push(&mut all, at, "own", cost::OWN.for_items(0.0));
            push(&mut all, at, "due", cost::DUE);
            push(&mut all, at, "counts", cost::COUNTS);
            at += 1.0;
        }
        // Each visitor, at whatever time; the life of its instance is spread over the hour.
        let rate = ACQUIRES_AN_HOUR / 3600.0;
        let mut at = wait(&mut chance, rate);
        while at < SECONDS {
            push(&mut all, at, "admit", cost::ADMIT);
            push(&mut all, at, "claim", cost::CLAIM);
            push(&mut all, at, "insert", cost::INSERT);
            push(&mut all, at, "update", cost::UPDATE.times(2.0));
            push(&mut all, at, "remove", cost::REMOVE);
            push(&mut all, at, "get", cost::GET.times(NODES_A_VISITOR));
            // A new instance, and one that ended, have the reaper look at once.
            push(&mut all, at, "own", cost::OWN.for_items(CHANGES / 2.0).times(2.0));
            push(&mut all, at, "counts", cost::COUNTS.times(2.0));
            at += wait(&mut chance, rate);
        }
    }
    all
}

/// The time until the next of those that come at that rate.
fn wait(chance: &mut StdRng, rate: f64) -> f64 {
    -chance.random_range(f64::MIN_POSITIVE..1.0).ln() / rate
}

fn push(all: &mut Vec<Arrival>, at: f64, call: &'static str, cost: cost::Cost) {
    all.push(Arrival { at, call, takes: cost.micros / 1e6, bytes: cost.bytes });
}
