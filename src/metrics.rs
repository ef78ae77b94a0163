//! The Prometheus series of the control plane: names, labels, when they count.
//!
//! Called by whoever sees the event happen; the recorder behind the `metrics`
//! facade is process-wide, so this needs no handle. Labels are closed sets and
//! goldens, never ids. Gauges that mirror state are set at scrape by the API,
//! from one look at the store.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::engine::Phase;
use crate::id::GoldenName;
use crate::instance::{Source, State};

/// Seconds. The lower half resolves claims from the pool (a durable commit is
/// about 1 ms), the middle restores (0.1 to 0.5 s), the end cold starts.
const SECONDS: &[f64] = &[
    0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1.5, 3.0, 6.0, 15.0, 60.0,
];

/// How a request for an instance ended.
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

/// Installs the recorder once a process and answers what renders it.
pub fn install() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let builder = PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)
                .expect("the bucket list is not empty");
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
    describe_gauge!("demo_multiplexer_build_info", "1, labelled with the version");
    describe_counter!("demo_multiplexer_acquires_total", "Requests for an instance, by source and outcome");
    describe_histogram!("demo_multiplexer_acquire_duration_seconds", "From request to answer, by source");
    describe_counter!(
        "demo_multiplexer_restores_total",
        "Instances made or failed to be made, by source and outcome"
    );
    describe_histogram!("demo_multiplexer_restore_phase_duration_seconds", "One phase of making an instance");
    describe_counter!(
        "demo_multiplexer_restore_failures_total",
        "Instances that could not be made, by the phase that failed"
    );
    describe_gauge!("demo_multiplexer_pool_instances", "Instances by golden and state");
    describe_gauge!("demo_multiplexer_pool_target", "Instances that are to be ready, by golden");
    describe_gauge!("demo_multiplexer_instances_max", "Instances this host holds at most");
    describe_counter!("demo_multiplexer_reaped_total", "Instances taken down, by why");
    describe_counter!("demo_multiplexer_cleanup_failures_total", "Instances not taken down at an attempt");
    describe_counter!("demo_multiplexer_job_attempts_total", "Attempts at jobs, by kind and outcome");
    describe_counter!("demo_multiplexer_events_total", "Life-cycle events, published to NATS or dropped");
    describe_counter!("demo_multiplexer_proxied_requests_total", "Requests to instances, by class of answer");
    gauge!("demo_multiplexer_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
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

/// Sets the gauges of one golden, from one look at the store.
pub fn pool_state(golden: &GoldenName, target: usize, count: impl Fn(State) -> usize) {
    #[expect(clippy::cast_precision_loss, reason = "counts of instances are far below 2^52")]
    for state in State::ALL {
        gauge!("demo_multiplexer_pool_instances",
            "golden" => golden.to_string(), "state" => state.as_str())
        .set(count(state) as f64);
        gauge!("demo_multiplexer_pool_target", "golden" => golden.to_string()).set(target as f64);
    }
}

/// Sets the host's limit.
pub fn instances_max(max: usize) {
    #[expect(clippy::cast_precision_loss, reason = "counts of instances are far below 2^52")]
    gauge!("demo_multiplexer_instances_max").set(max as f64);
}
