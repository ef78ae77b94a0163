//! What the daemon tells of itself while it runs: the log on stderr, as text for
//! people or as JSON for collectors, and traces for an OTLP collector
//! ([`mod@otlp`]), if one is named.
//!
//! Called once, by `main`, before the runtime starts; stopped after it has
//! ended. Standard output is for what a command answers.
//!
//! A JSON line has `timestamp`, `level`, `target`, `message`, the line's own
//! fields, and under `spans` the work it belongs to, the outermost first. A thing
//! has the same name wherever it occurs: [`FIELDS`].

mod otlp;

use std::io::IsTerminal as _;

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

pub use self::otlp::TraceError;

/// The names of fields in log lines and spans, and what they hold.
pub const FIELDS: &[(&str, &str)] = &[
    ("instance_id", "the instance"),
    ("snapshot_id", "the snapshot"),
    ("container_id", "the container, as Podman names it"),
    ("job_id", "the job"),
    ("golden", "the golden"),
    ("request_id", "the request, as its answer's X-Request-Id"),
    ("method", "the request's method"),
    ("route", "the request's path, as a pattern"),
    ("status", "the answer's status"),
    ("phase", "a step of making an instance, or of the daemon's life"),
    ("happened", "what became of an instance"),
    ("generation", "how often an instance's record was written"),
    ("source", "how an instance was made or got: pool, restore, cold"),
    ("attempt", "how often something was tried"),
    ("pause_s", "seconds until it is tried again"),
    ("outcome", "how it ended"),
    ("elapsed_ms", "how long it took"),
    ("step", "a step of taking something down"),
    ("reason", "why something is not done"),
    ("error", "what went wrong, with all its causes"),
    ("address", "where it listens"),
    ("base_domain", "below which domain instances are"),
    ("adopted", "instances taken over from the former daemon"),
    ("dropped", "those of them that had ended"),
];

/// A setting that means nothing.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Not of the filter's form.
    #[error("LOG_LEVEL={level:?} is not a filter such as info or demo_multiplexer=debug")]
    Level {
        /// The value.
        level: String,
        /// Where and why.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// None of the formats.
    #[error("LOG_FORMAT={format:?}: one of auto, text, json")]
    Format {
        /// The value.
        format: String,
    },
    /// No traces can be sent there.
    #[error("OTLP_URL={url:?} cannot be used")]
    Traces {
        /// The value.
        url: String,
        /// Why.
        #[source]
        source: TraceError,
    },
}

/// What is told.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// LOG_LEVEL.
    pub level: &'a str,
    /// LOG_FORMAT.
    pub format: &'a str,
    /// OTLP_URL; none sends no traces.
    pub otlp_url: Option<&'a str>,
}

/// The log and the traces, under way.
#[derive(Debug)]
#[must_use = "what is not stopped may lose its last traces"]
pub struct Telemetry(Option<otlp::Traces>);

/// Starts both, the log to stderr.
///
/// # Errors
/// [`TelemetryError`]; nothing is told then.
pub fn start(options: Options<'_>) -> Result<Telemetry, TelemetryError> {
    start_to(options, std::io::stderr, std::io::stderr().is_terminal())
}

/// Starts both, the log to `writer`.
///
/// # Errors
/// [`TelemetryError`]; nothing is told then.
pub fn start_to<W>(options: Options<'_>, writer: W, terminal: bool) -> Result<Telemetry, TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let level = options.level;
    // It tells of every attempt to connect; what comes of them is logged by us.
    let silent = if level.contains("async_nats") { "" } else { ",async_nats=off" };
    let filter = EnvFilter::try_new(format!("{level}{silent}"))
        .map_err(|source| TelemetryError::Level { level: level.to_owned(), source })?;
    let json = match options.format {
        "auto" => !terminal,
        "text" => false,
        "json" => true,
        other => return Err(TelemetryError::Format { format: other.to_owned() }),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = if json {
        lines.json().flatten_event(true).with_current_span(false).boxed()
    } else {
        lines.with_ansi(terminal).boxed()
    };
    let traces = options.otlp_url.map(|url| {
        otlp::Traces::start(url).map_err(|source| TelemetryError::Traces { url: url.to_owned(), source })
    });
    let traces = traces.transpose()?;
    let spans = traces.as_ref().map(otlp::Traces::layer);
    // A subscriber that is there already (in tests) stays.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).try_init();
    Ok(Telemetry(traces))
}

impl Telemetry {
    /// Sends the last traces, for [`otlp::FLUSH_DEADLINE`] at most. Blocks: not
    /// to be called on the runtime.
    pub fn stop(self) {
        if let Some(traces) = self.0 {
            traces.stop();
        }
    }
}
