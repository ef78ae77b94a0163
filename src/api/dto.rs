//! What goes over the wire. No type of the domain is serialized directly, so
//! that neither can change the other by accident.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::openapi::{Id, Source, State, Status, Ttl};
use crate::identity::login;
use crate::instance::Instance;
use crate::provision::{Acquired, Handed, Quantiles};

/// The body of an acquire; every field may be left out.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AcquireBody {
    /// Of which golden; without it the first one served.
    #[schema(examples("wordpress"))]
    pub(super) golden: Option<String>,
    /// For how long; without it DEFAULT_TTL, and MAX_TTL at most.
    #[schema(value_type = Option<Ttl>)]
    pub(super) ttl: Option<Value>,
    /// The same key gets the same instance for as long as it lives.
    #[schema(pattern = "^[ -~]{1,255}$", examples("order-4711"))]
    pub(super) idempotency_key: Option<String>,
}

/// The body of an extend.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExtendBody {
    /// How much longer; without it DEFAULT_TTL.
    #[schema(value_type = Option<Ttl>)]
    pub(super) ttl: Option<Value>,
}

/// The one answer that lets somebody in: password and login link.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AcquireAnswer {
    #[schema(value_type = Id)]
    id: String,
    golden: String,
    url: String,
    admin_url: String,
    admin_email: String,
    admin_password: String,
    /// Signs in with one click, once, within ten minutes; only where the golden
    /// takes such links.
    #[serde(skip_serializing_if = "Option::is_none")]
    admin_login_url: Option<String>,
    #[schema(value_type = State)]
    state: &'static str,
    /// Where it came from: ready in the pool, or made while the client waited.
    #[schema(value_type = Source)]
    source: &'static str,
    #[schema(required, value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// How long it took, in milliseconds.
    acquire_ms: f64,
}

impl AcquireAnswer {
    /// None when the record has no access data, which no assigned one lacks.
    pub(super) fn of(acquired: &Acquired, now: Timestamp) -> Option<Self> {
        let instance = &acquired.instance;
        let access = instance.access.as_ref()?;
        let source = match acquired.handed {
            Handed::Now(source) => source,
            Handed::Before => instance.source.unwrap_or(instance.made_by),
        };
        Some(Self {
            id: instance.id.to_string(),
            golden: instance.golden.to_string(),
            url: access.url.clone(),
            admin_url: access.admin_url.clone(),
            admin_email: access.admin_email.clone(),
            admin_password: access.admin_password.expose_secret().to_owned(),
            admin_login_url: access
                .one_click
                .as_ref()
                .map(|one_click| login::link(one_click, now).expose_secret().to_owned()),
            state: instance.state.as_str(),
            source: source.as_str(),
            expires_at: instance.expires_at.map(whole_ms),
            acquire_ms: ms(acquired.took),
        })
    }
}

/// An instance without its password.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct InstanceAnswer {
    #[schema(value_type = Id)]
    id: String,
    golden: String,
    /// The daemon that runs it.
    node: String,
    /// What its cgroup and directory on that host are named.
    #[schema(value_type = Id)]
    slot: String,
    #[schema(value_type = State)]
    state: &'static str,
    #[schema(required)]
    url: Option<String>,
    #[schema(required)]
    admin_url: Option<String>,
    #[schema(required)]
    admin_email: Option<String>,
    /// How its visitor got it; null before that.
    #[schema(required, value_type = Option<Source>)]
    source: Option<&'static str>,
    /// Restored or booted.
    #[schema(value_type = Source)]
    made_by: &'static str,
    #[schema(required)]
    snapshot: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    #[schema(required, value_type = Option<String>, format = DateTime)]
    assigned_at: Option<Timestamp>,
    #[schema(required, value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// Whole seconds until then.
    #[schema(required)]
    ttl_seconds: Option<i64>,
}

impl InstanceAnswer {
    pub(super) fn of(instance: &Instance, now: Timestamp) -> Self {
        let access = instance.access.as_ref();
        Self {
            id: instance.id.to_string(),
            golden: instance.golden.to_string(),
            node: instance.node.to_string(),
            slot: instance.slot().to_string(),
            state: instance.state.as_str(),
            url: access.map(|access| access.url.clone()),
            admin_url: access.map(|access| access.admin_url.clone()),
            admin_email: access.map(|access| access.admin_email.clone()),
            source: instance.source.map(|source| source.as_str()),
            made_by: instance.made_by.as_str(),
            snapshot: instance.snapshot.as_ref().map(ToString::to_string),
            created_at: whole_ms(instance.created_at),
            assigned_at: instance.assigned_at.map(whole_ms),
            expires_at: instance.expires_at.map(whole_ms),
            ttl_seconds: instance.expires_at.map(|end| end.duration_since(now).as_secs().max(0)),
        }
    }
}

/// The pool and what was handed out.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StatsAnswer {
    pub(super) instances: usize,
    pub(super) max_instances: usize,
    pub(super) clients_waiting: usize,
    /// Whether an operator has drained the pool.
    pub(super) drained: bool,
    pub(super) goldens: Vec<GoldenStats>,
}

/// One golden's part of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GoldenStats {
    pub(super) golden: String,
    pub(super) title: String,
    pub(super) target: usize,
    #[schema(value_type = BTreeMap<String, usize>)]
    pub(super) states: BTreeMap<&'static str, usize>,
    /// How many are being made for the pool.
    pub(super) in_flight: usize,
    /// The part of hand-overs that came from the pool.
    #[schema(required)]
    pub(super) hit_ratio: Option<f64>,
    /// Hand-overs by source.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub(super) handed_over: BTreeMap<&'static str, u64>,
    /// Of the last hand-overs, by source.
    #[schema(value_type = BTreeMap<String, Latency>)]
    pub(super) acquire_ms: BTreeMap<&'static str, Latency>,
    pub(super) failures: FailureStats,
    /// Why it cannot be restored, if it cannot.
    #[schema(required)]
    pub(super) no_restore: Option<String>,
    pub(super) cold_start: bool,
}

/// Failures to make an instance.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FailureStats {
    pub(super) total: u64,
    /// Of the pool's own attempts.
    pub(super) in_a_row: u32,
    #[schema(required)]
    pub(super) last_error: Option<String>,
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub(super) last_at: Option<Timestamp>,
    /// When the pool tries again, if it holds back.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub(super) retry_at: Option<Timestamp>,
}

/// One event of a status stream; comments between them keep the connection.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the form of a text, for the document")]
pub(super) struct ServerSentEvent {
    /// The record's generation; only with `state`.
    #[schema(required = false, nullable = false)]
    id: Option<String>,
    event: StatusEventName,
    /// A StatusEvent or a CountdownEvent, as JSON.
    #[schema(content_media_type = "application/json")]
    data: String,
    /// When to come back after the stream has ended, in milliseconds.
    #[schema(required = false, nullable = false)]
    retry: Option<u32>,
}

/// What an event is about.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "lowercase")]
#[expect(dead_code, reason = "the form of a text, for the document")]
pub(super) enum StatusEventName {
    /// The state, at first and with every change.
    State,
    /// The seconds left, each second.
    Countdown,
}

/// A status stream's `state` event.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StatusEvent<'a> {
    #[schema(value_type = Id)]
    pub(super) instance_id: &'a str,
    #[schema(value_type = Status)]
    pub(super) state: &'static str,
    /// The event's id: grows with every change.
    pub(super) generation: u64,
    #[serde(serialize_with = "serialize_whole_ms")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub(super) expires_at: Option<Timestamp>,
    /// Whole seconds until then.
    #[schema(required)]
    pub(super) seconds_left: Option<i64>,
}

/// A status stream's `countdown` event.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CountdownEvent<'a> {
    #[schema(value_type = Id)]
    pub(super) instance_id: &'a str,
    #[serde(serialize_with = "serialize_whole_ms")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub(super) expires_at: Option<Timestamp>,
    /// Whole seconds until then.
    #[schema(required)]
    pub(super) seconds_left: Option<i64>,
}

/// How the daemon is, in as many words as its caller may have.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum HealthAnswer {
    /// For whoever watches it.
    Whole(Box<Health>),
    /// For everybody else.
    Word(HealthWord),
}

/// Whether the daemon works, and no more.
#[derive(Debug, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HealthWord {
    /// As in `Health`.
    #[schema(examples("ok"))]
    pub(super) status: &'static str,
}

/// What the daemon stands on, and whether it works.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`, `degraded`, `down`, or the phase when that is not `serving`.
    #[schema(examples("ok"))]
    pub(super) status: &'static str,
    /// `starting`, `serving`, `draining` or `stopped`.
    #[schema(examples("serving"))]
    pub(super) phase: &'static str,
    pub(super) version: &'static str,
    pub(super) store: DependencyHealth,
    /// What instances stand on beside the host: a container engine, a shared
    /// database; by name.
    pub(super) dependencies: BTreeMap<String, DependencyHealth>,
    pub(super) router: RouterHealth,
    pub(super) jobs: JobsHealth,
    /// By golden.
    pub(super) pool: BTreeMap<String, GoldenHealth>,
}

/// Something outside that the daemon asks.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DependencyHealth {
    /// `ok` or `down`.
    #[schema(examples("ok"))]
    pub(super) status: &'static str,
    /// How long its answer took, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) error: Option<String>,
}

impl DependencyHealth {
    /// One that answers, or why it does not.
    pub(super) fn of(outage: Option<String>) -> Self {
        Self { status: if outage.is_some() { "down" } else { "ok" }, ms: None, error: outage }
    }
}

/// What leads visitors to instances.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RouterHealth {
    /// `ok` or `degraded`.
    #[schema(examples("ok"))]
    pub(super) status: &'static str,
    /// `embedded` or `caddy`.
    #[schema(examples("embedded"))]
    pub(super) kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) error: Option<String>,
}

/// Where jobs go.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct JobsHealth {
    /// `ok` or `degraded`.
    #[schema(examples("ok"))]
    pub(super) status: &'static str,
    /// `process` or `nats`.
    #[schema(examples("process"))]
    pub(super) queue: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) error: Option<String>,
}

/// How making a golden's instances goes.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct GoldenHealth {
    /// `ok` or `degraded`.
    #[schema(examples("ok"))]
    pub(super) status: &'static str,
    /// Why it cannot be restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) no_restore: Option<String>,
    /// Of the pool's own attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) failures_in_a_row: Option<u32>,
    /// When the pool tries again.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<String>, format = DateTime)]
    pub(super) retry_at: Option<Timestamp>,
}

/// Every error's body (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemAnswer<'a> {
    /// Names the kind of error, for programs.
    #[serde(rename = "type")]
    #[schema(format = "uri")]
    pub(super) kind: String,
    /// The same for people.
    pub(super) title: &'static str,
    pub(super) status: u16,
    /// What is wrong with this request.
    pub(super) detail: &'a str,
    /// Finds this request in the log; the same as the header.
    pub(super) request_id: &'a str,
}

/// Quantiles in milliseconds.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Latency {
    count: usize,
    p50: f64,
    p95: f64,
    p99: f64,
}

impl From<Quantiles> for Latency {
    fn from(of: Quantiles) -> Self {
        Self { count: of.count, p50: ms(of.p50), p95: ms(of.p95), p99: ms(of.p99) }
    }
}

/// Milliseconds with two decimals: claims take less than one.
pub(super) fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 100_000.0).round() / 100.0
}

fn serialize_whole_ms<S: serde::Serializer>(time: &Option<Timestamp>, to: S) -> Result<S::Ok, S::Error> {
    time.map(whole_ms).serialize(to)
}

/// A time without the digits that nobody reads.
pub(super) fn whole_ms(time: Timestamp) -> Timestamp {
    time.round(jiff::Unit::Millisecond).unwrap_or(time)
}
