//! The one list of metric families: what `/metrics` may show, and what it means.
//!
//! docs/metrics.md has a table written from it; dashboards and alerts are checked
//! against it.

/// What a family's values are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// The present value.
    Gauge,
    /// Counts in buckets, a sum and a count.
    Histogram,
}

impl Kind {
    /// Prometheus' word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One family.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// Its whole name.
    pub name: &'static str,
    /// What its values are.
    pub kind: Kind,
    /// Its labels, which are closed sets and goldens.
    pub labels: &'static [&'static str],
    /// One sentence, for `# HELP` and docs/metrics.md.
    pub help: &'static str,
}

const fn family(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    Family { name, kind, labels, help }
}

use Kind::{Counter, Gauge, Histogram};

/// Every family there is.
pub const FAMILIES: &[Family] = &[
    family("demo_multiplexer_build_info", Gauge, &["version"], "1, labelled with the version"),
    family(
        "demo_multiplexer_daemon_phase",
        Gauge,
        &["phase"],
        "1 for where the daemon stands: starting, serving, draining or stopped",
    ),
    family(
        "demo_multiplexer_acquires_total",
        Counter,
        &["golden", "source", "outcome"],
        "Requests for an instance that were let in; source: pool, restore, cold, none when failed",
    ),
    family(
        "demo_multiplexer_acquire_duration_seconds",
        Histogram,
        &["golden", "source"],
        "From a request for an instance to its answer",
    ),
    family(
        "demo_multiplexer_rate_limited_total",
        Counter,
        &["window"],
        "Requests refused because their client had had as many instances as it may in an hour or a day",
    ),
    family(
        "demo_multiplexer_restores_total",
        Counter,
        &["golden", "source", "outcome"],
        "Instances made, or failed to be made; source: restore or cold",
    ),
    family(
        "demo_multiplexer_restore_phase_duration_seconds",
        Histogram,
        &["source", "phase"],
        "One phase of making an instance: slot, database, restore, adopt, personalize, probe",
    ),
    family(
        "demo_multiplexer_restore_failures_total",
        Counter,
        &["phase"],
        "Instances that could not be made, by the phase that failed",
    ),
    family(
        "demo_multiplexer_pool_instances",
        Gauge,
        &["golden", "state"],
        "Instances by their state: warming, ready, assigned, hibernated, expired, failed",
    ),
    family("demo_multiplexer_pool_target", Gauge, &["golden"], "Instances that are to be ready"),
    family("demo_multiplexer_instances_max", Gauge, &[], "Instances this host holds at most"),
    family("demo_multiplexer_leases_active", Gauge, &["golden"], "Instances that are somebody's now"),
    family(
        "demo_multiplexer_lease_expirations_total",
        Counter,
        &["golden"],
        "Leases that ended because their time was over, not by a release",
    ),
    family(
        "demo_multiplexer_reaped_total",
        Counter,
        &["why"],
        "Instances taken down: expired (over or released), failed, or orphan (traces without a record)",
    ),
    family(
        "demo_multiplexer_cleanup_failures_total",
        Counter,
        &[],
        "Attempts to take an instance down that left something; it is tried again",
    ),
    family(
        "demo_multiplexer_reconcile_duration_seconds",
        Histogram,
        &[],
        "One look at the pool and what followed from it; the restores it starts go on after it",
    ),
    family(
        "demo_multiplexer_port_requests_total",
        Counter,
        &["port", "op", "outcome"],
        "Calls to what the daemon stands on (port: store); outcome: ok, refused (a conflict) or failed",
    ),
    family(
        "demo_multiplexer_port_request_duration_seconds",
        Histogram,
        &["port", "op"],
        "How long such a call takes",
    ),
    family(
        "demo_multiplexer_snapshot_size_bytes",
        Gauge,
        &["golden", "form"],
        "The snapshot in use; form: compressed (at rest) or raw (unpacked)",
    ),
    family(
        "demo_multiplexer_proxied_requests_total",
        Counter,
        &["class"],
        "Requests to instances, by the class of their answer: 2xx, 3xx, ...",
    ),
    family(
        "demo_multiplexer_connections_refused_total",
        Counter,
        &[],
        "Connections closed because as many were open as may be, or as one client may have",
    ),
    family(
        "demo_multiplexer_route_write_duration_seconds",
        Histogram,
        &["outcome"],
        "One change of the routes in Caddy (ROUTER=caddy)",
    ),
    family("demo_multiplexer_sse_clients", Gauge, &[], "Clients that follow an instance's status"),
    family(
        "demo_multiplexer_job_attempts_total",
        Counter,
        &["kind", "outcome"],
        "Attempts at a job; outcome: done, unneeded, retried, dead, or fallback (kept in the process)",
    ),
    family(
        "demo_multiplexer_events_total",
        Counter,
        &["outcome"],
        "Life-cycle events, published to NATS or dropped",
    ),
    family(
        "demo_multiplexer_nodes",
        Gauge,
        &["condition"],
        "Nodes that share the store, as this one sees them: here, silent, away or lost",
    ),
    family(
        "demo_multiplexer_nodes_lost_total",
        Counter,
        &[],
        "Nodes that this one has seen fall silent for good",
    ),
    family(
        "demo_multiplexer_node_calls_total",
        Counter,
        &["call", "outcome"],
        "What this node asked others for: make, reset, hibernate, wake, logs, drain, undrain",
    ),
    family(
        "demo_multiplexer_node_forwarded_requests_total",
        Counter,
        &["outcome"],
        "Visitors' requests passed on to the node of their shop; failed: it did not answer",
    ),
    family(
        "demo_multiplexer_webhook_deliveries_total",
        Counter,
        &["outcome"],
        "Events for webhooks; outcome: delivered, failed (an attempt; it is tried again) or dropped",
    ),
    family(
        "demo_multiplexer_webhook_events_waiting",
        Gauge,
        &[],
        "Events that wait for a webhook to take them",
    ),
];
