//! The Prometheus series of the control plane: when they count. Their names and
//! meanings are in [`families`].
//!
//! Called by whoever sees the event happen; the recorder behind the `metrics`
//! facade is process-wide, so this needs no handle. Labels are closed sets and
//! goldens, never ids. Gauges that mirror state are set at scrape by the API,
//! from one look at the store.

pub mod families;

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use self::families::{FAMILIES, Kind};
use crate::engine::Phase;
use crate::error::ErrorKind;
use crate::id::GoldenName;
use crate::instance::{Source, State};
use crate::node::watch::Condition;
use crate::shutdown::Phase as DaemonPhase;

/// Seconds. The lower half resolves claims from the pool (a durable commit is
/// about 1 ms), the middle restores (0.1 to 0.5 s), the end cold starts.
const SECONDS: &[f64] = &[
    0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1.5, 3.0, 6.0, 15.0, 60.0,
];

/// Seconds. In the embedded store a look was seen at 0.1 ms and a durable commit
/// at 1.3 ms, on a busy disk at 10 to 50 ms; a networked one lies between. Calls
/// give up after seconds.
const PORT_SECONDS: &[f64] =
    &[0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.25, 1.0, 5.0];

/// The families that count in [`PORT_SECONDS`]; a pass of the reconciler is some
/// calls to the store.
const PORT_PREFIX: &str = "demo_multiplexer_port_";
const PASS_PREFIX: &str = "demo_multiplexer_reconcile_";

/// How a request for an instance, or a job, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// With an instance.
    Ok,
    /// With an error.
    Failed,
}

impl Outcome {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
        }
    }
}

/// How an attempt at a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobOutcome {
    /// As asked.
    Done,
    /// There was nothing to do.
    Unneeded,
    /// It failed and comes again.
    Retried,
    /// It was given up.
    Dead,
    /// The bus did not take it, so it stayed in the process.
    Fallback,
}

impl JobOutcome {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Unneeded => "unneeded",
            Self::Retried => "retried",
            Self::Dead => "dead",
            Self::Fallback => "fallback",
        }
    }
}

/// What became of an event for a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The receiver took it.
    Delivered,
    /// An attempt came to nothing.
    Failed,
    /// It was given up.
    Dropped,
}

impl Delivery {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

/// Installs the recorder once a process and answers what renders it.
pub fn install() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let builder = PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)
                .and_then(|it| it.set_buckets_for_metric(Matcher::Prefix(PORT_PREFIX.into()), PORT_SECONDS))
                .and_then(|it| it.set_buckets_for_metric(Matcher::Prefix(PASS_PREFIX.into()), PORT_SECONDS))
                .expect("the bucket lists are not empty");
            let recorder = builder.build_recorder();
            let handle = recorder.handle();
            // Somebody else's recorder stays: the series then go there.
            let _ = metrics::set_global_recorder(recorder);
            describe();
            handle
        })
        .clone()
}

fn describe() {
    for family in FAMILIES {
        match family.kind {
            Kind::Counter => describe_counter!(family.name, family.help),
            Kind::Gauge => describe_gauge!(family.name, family.help),
            Kind::Histogram => describe_histogram!(family.name, family.help),
        }
    }
    gauge!("demo_multiplexer_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    gauge!("demo_multiplexer_sse_clients").set(0.0);
    webhooks_waiting(0);
}

/// The router was told of changes, many at once or one.
pub fn routes_written(ok: bool, took: Duration) {
    let outcome = if ok { Outcome::Ok } else { Outcome::Failed };
    histogram!("demo_multiplexer_route_write_duration_seconds", "outcome" => outcome.as_str()).record(took);
}

/// A client got an instance.
pub fn acquired(golden: &GoldenName, source: Source, took: Duration) {
    counter!("demo_multiplexer_acquires_total",
        "golden" => golden.to_string(), "source" => source.as_str(), "outcome" => Outcome::Ok.as_str())
    .increment(1);
    histogram!("demo_multiplexer_acquire_duration_seconds",
        "golden" => golden.to_string(), "source" => source.as_str())
    .record(took);
}

/// A client got none.
pub fn acquire_failed(golden: &GoldenName) {
    counter!("demo_multiplexer_acquires_total",
        "golden" => golden.to_string(), "source" => "none", "outcome" => Outcome::Failed.as_str())
    .increment(1);
}

/// A client was refused because this window is full for it.
pub fn rate_limited(window: &'static str) {
    counter!("demo_multiplexer_rate_limited_total", "window" => window).increment(1);
}

/// An instance was made, in these phases.
pub fn made(golden: &GoldenName, source: Source, phases: &[(Phase, Duration)]) {
    counter!("demo_multiplexer_restores_total",
        "golden" => golden.to_string(), "source" => source.as_str(), "outcome" => Outcome::Ok.as_str())
    .increment(1);
    for (phase, took) in phases {
        histogram!("demo_multiplexer_restore_phase_duration_seconds",
            "source" => source.as_str(), "phase" => phase.as_str())
        .record(*took);
    }
}

/// An instance could not be made.
pub fn make_failed(golden: &GoldenName, source: Source, phase: Phase) {
    counter!("demo_multiplexer_restores_total",
        "golden" => golden.to_string(), "source" => source.as_str(), "outcome" => Outcome::Failed.as_str())
    .increment(1);
    counter!("demo_multiplexer_restore_failures_total", "phase" => phase.as_str()).increment(1);
}

/// An instance was taken down.
pub fn reaped(why: &'static str) {
    counter!("demo_multiplexer_reaped_total", "why" => why).increment(1);
}

/// An instance could not be taken down at this attempt.
pub fn cleanup_failed() {
    counter!("demo_multiplexer_cleanup_failures_total").increment(1);
}

/// A connection found no place.
pub fn connection_refused() {
    counter!("demo_multiplexer_connections_refused_total").increment(1);
}

/// An attempt at a job ended so.
pub fn job_attempt(kind: &'static str, outcome: JobOutcome) {
    counter!("demo_multiplexer_job_attempts_total", "kind" => kind, "outcome" => outcome.as_str())
        .increment(1);
}

/// An event reached NATS.
pub fn event_published() {
    counter!("demo_multiplexer_events_total", "outcome" => "published").increment(1);
}

/// So many events were given up: NATS was away for too long.
pub fn events_dropped(count: u64) {
    counter!("demo_multiplexer_events_total", "outcome" => "dropped").increment(count);
}

/// So many events for webhooks, or attempts at one, ended so.
pub fn webhook(delivery: Delivery, count: u64) {
    counter!("demo_multiplexer_webhook_deliveries_total", "outcome" => delivery.as_str()).increment(count);
}

/// So many events wait for a webhook to take them.
pub fn webhooks_waiting(count: usize) {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    gauge!("demo_multiplexer_webhook_events_waiting").set(count as f64);
}

/// A request to an instance was answered with this status.
pub fn proxied(status: u16) {
    let class = match status {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    };
    counter!("demo_multiplexer_proxied_requests_total", "class" => class).increment(1);
}

/// A lease ended because its time was over.
pub fn lease_expired(golden: &GoldenName) {
    counter!("demo_multiplexer_lease_expirations_total", "golden" => golden.to_string()).increment(1);
}

/// The reconciler has looked at the pool.
pub fn reconciled(took: Duration) {
    histogram!("demo_multiplexer_reconcile_duration_seconds").record(took);
}

/// A port was asked to do something; the kind is that of its error.
pub fn port_asked(port: &'static str, op: &'static str, error: Option<ErrorKind>, took: Duration) {
    let outcome = match error {
        None => "ok",
        Some(ErrorKind::NotFound | ErrorKind::Conflict) => "refused",
        Some(_) => "failed",
    };
    counter!("demo_multiplexer_port_requests_total", "port" => port, "op" => op, "outcome" => outcome)
        .increment(1);
    histogram!("demo_multiplexer_port_request_duration_seconds", "port" => port, "op" => op).record(took);
}

/// A snapshot is in use, of these sizes in bytes.
pub fn snapshot_in_use(golden: &GoldenName, compressed: u64, raw: u64) {
    for (form, bytes) in [("compressed", compressed), ("raw", raw)] {
        #[expect(clippy::cast_precision_loss, reason = "snapshots are far below 2^52 bytes")]
        gauge!("demo_multiplexer_snapshot_size_bytes", "golden" => golden.to_string(), "form" => form)
            .set(bytes as f64);
    }
}

/// Sets where the daemon stands.
pub fn daemon_phase(present: DaemonPhase) {
    for phase in DaemonPhase::ALL {
        let value = if phase == present { 1.0 } else { 0.0 };
        gauge!("demo_multiplexer_daemon_phase", "phase" => phase.as_str()).set(value);
    }
}

/// Another node's daemon was asked for something.
pub fn node_called(call: &'static str, ok: bool) {
    let outcome = if ok { Outcome::Ok } else { Outcome::Failed };
    counter!("demo_multiplexer_node_calls_total", "call" => call, "outcome" => outcome.as_str()).increment(1);
}

/// A visitor's request was passed on to the node of its shop.
pub fn node_forwarded(ok: bool) {
    let outcome = if ok { Outcome::Ok } else { Outcome::Failed };
    counter!("demo_multiplexer_node_forwarded_requests_total", "outcome" => outcome.as_str()).increment(1);
}

/// A node was given up.
pub fn node_lost() {
    counter!("demo_multiplexer_nodes_lost_total").increment(1);
}

/// Sets how it stands with all nodes.
pub fn nodes(conditions: impl IntoIterator<Item = Condition>) {
    let all: Vec<Condition> = conditions.into_iter().collect();
    for condition in Condition::ALL {
        let count = all.iter().filter(|it| **it == condition).count();
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        gauge!("demo_multiplexer_nodes", "condition" => condition.as_str()).set(count as f64);
    }
}

/// A status stream was opened.
pub fn sse_client_came() {
    gauge!("demo_multiplexer_sse_clients").increment(1.0);
}

/// A status stream has ended.
pub fn sse_client_left() {
    gauge!("demo_multiplexer_sse_clients").decrement(1.0);
}

/// Sets the gauges of one golden, from one look at the store.
pub fn pool_state(golden: &GoldenName, target: usize, count: impl Fn(State) -> usize) {
    #[expect(clippy::cast_precision_loss, reason = "counts of instances are far below 2^52")]
    for state in State::ALL {
        gauge!("demo_multiplexer_pool_instances",
            "golden" => golden.to_string(), "state" => state.as_str())
        .set(count(state) as f64);
    }
    let leased = count(State::Assigned) + count(State::Hibernated);
    #[expect(clippy::cast_precision_loss, reason = "counts of instances are far below 2^52")]
    for (family, value) in
        [("demo_multiplexer_pool_target", target), ("demo_multiplexer_leases_active", leased)]
    {
        gauge!(family, "golden" => golden.to_string()).set(value as f64);
    }
}

/// Sets the host's limit.
pub fn instances_max(max: usize) {
    #[expect(clippy::cast_precision_loss, reason = "counts of instances are far below 2^52")]
    gauge!("demo_multiplexer_instances_max").set(max as f64);
}
