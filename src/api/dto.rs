//! What goes over the wire. No type of the domain is serialized directly, so
//! that neither can change the other by accident.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::instance::Instance;
use crate::provision::{Acquired, Handed, Quantiles};

/// The body of an acquire; every field may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AcquireBody {
    pub(super) golden: Option<String>,
    /// Seconds, or a text such as `30m`.
    pub(super) ttl: Option<Value>,
    pub(super) idempotency_key: Option<String>,
}

/// The body of an extend.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExtendBody {
    /// How much longer: seconds, or a text such as `30m`.
    pub(super) ttl: Option<Value>,
}

/// The one answer that has the password.
#[derive(Debug, Serialize)]
pub(super) struct AcquireAnswer {
    id: String,
    golden: String,
    url: String,
    admin_url: String,
    admin_email: String,
    admin_password: String,
    state: &'static str,
    source: &'static str,
    expires_at: Option<Timestamp>,
    acquire_ms: f64,
}

impl AcquireAnswer {
    /// None when the record has no access data, which no assigned one lacks.
    pub(super) fn of(acquired: &Acquired) -> Option<Self> {
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
            state: instance.state.as_str(),
            source: source.as_str(),
            expires_at: instance.expires_at.map(whole_ms),
            acquire_ms: ms(acquired.took),
        })
    }
}

/// An instance without its password.
#[derive(Debug, Serialize)]
pub(super) struct InstanceAnswer {
    id: String,
    golden: String,
    state: &'static str,
    url: Option<String>,
    admin_url: Option<String>,
    admin_email: Option<String>,
    source: Option<&'static str>,
    made_by: &'static str,
    snapshot: Option<String>,
    created_at: Timestamp,
    assigned_at: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    /// Whole seconds until then.
    ttl_seconds: Option<i64>,
}

impl InstanceAnswer {
    pub(super) fn of(instance: &Instance, now: Timestamp) -> Self {
        let access = instance.access.as_ref();
        Self {
            id: instance.id.to_string(),
            golden: instance.golden.to_string(),
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

/// All instances.
#[derive(Debug, Serialize)]
pub(super) struct ListAnswer {
    pub(super) instances: Vec<InstanceAnswer>,
}

/// The pool and what was handed out.
#[derive(Debug, Serialize)]
pub(super) struct StatsAnswer {
    pub(super) instances: usize,
    pub(super) max_instances: usize,
    pub(super) clients_waiting: usize,
    pub(super) goldens: Vec<GoldenStats>,
}

/// One golden's part of it.
#[derive(Debug, Serialize)]
pub(super) struct GoldenStats {
    pub(super) golden: String,
    pub(super) title: String,
    pub(super) target: usize,
    pub(super) states: BTreeMap<&'static str, usize>,
    /// How many are being made for the pool.
    pub(super) in_flight: usize,
    /// The part of hand-overs that came from the pool.
    pub(super) hit_ratio: Option<f64>,
    /// Hand-overs by source.
    pub(super) handed_over: BTreeMap<&'static str, u64>,
    /// Of the last hand-overs, by source.
    pub(super) acquire_ms: BTreeMap<&'static str, Latency>,
    pub(super) failures: FailureStats,
    /// Why it cannot be restored, if it cannot.
    pub(super) no_restore: Option<String>,
    pub(super) cold_start: bool,
}

/// Failures to make an instance.
#[derive(Debug, Serialize)]
pub(super) struct FailureStats {
    pub(super) total: u64,
    /// Of the pool's own attempts.
    pub(super) in_a_row: u32,
    pub(super) last_error: Option<String>,
    pub(super) last_at: Option<Timestamp>,
    /// When the pool tries again, if it holds back.
    pub(super) retry_at: Option<Timestamp>,
}

/// A status stream's `state` event.
#[derive(Debug, Serialize)]
pub(super) struct StatusEvent<'a> {
    pub(super) instance_id: &'a str,
    pub(super) state: &'static str,
    pub(super) generation: u64,
    #[serde(serialize_with = "serialize_whole_ms")]
    pub(super) expires_at: Option<Timestamp>,
    /// Whole seconds until then.
    pub(super) seconds_left: Option<i64>,
}

/// A status stream's `countdown` event.
#[derive(Debug, Serialize)]
pub(super) struct CountdownEvent<'a> {
    pub(super) instance_id: &'a str,
    #[serde(serialize_with = "serialize_whole_ms")]
    pub(super) expires_at: Option<Timestamp>,
    /// Whole seconds until then.
    pub(super) seconds_left: Option<i64>,
}

/// Quantiles in milliseconds.
#[derive(Debug, Serialize)]
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
