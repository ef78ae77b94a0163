//! The log: to stderr, as text for people or as JSON for collectors.
//!
//! Called once, by `main`. Standard output is for what a command answers.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt as _;

/// A LOG_LEVEL or LOG_FORMAT that means nothing.
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
}

/// Starts logging.
///
/// # Errors
/// [`TelemetryError`]; nothing is logged then.
pub fn start(level: &str, format: &str) -> Result<(), TelemetryError> {
    // It tells of every attempt to connect; what comes of them is logged by us.
    let silent = if level.contains("async_nats") { "" } else { ",async_nats=off" };
    let filter = EnvFilter::try_new(format!("{level}{silent}"))
        .map_err(|source| TelemetryError::Level { level: level.to_owned(), source })?;
    let json = match format {
        "auto" => !std::io::stderr().is_terminal(),
        "text" => false,
        "json" => true,
        other => return Err(TelemetryError::Format { format: other.to_owned() }),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A subscriber that is there already (in tests) stays.
    let _ = if json {
        builder.json().flatten_event(true).finish().try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).finish().try_init()
    };
    Ok(())
}
