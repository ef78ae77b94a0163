//! Traces, sent to an OpenTelemetry collector: OTLP, protobuf over HTTP.
//!
//! Owned by [`super`]. Spans that end go into a bounded queue and from there, on
//! a thread of the exporter's own, to the collector; its HTTP client blocks, and
//! never on the runtime's threads. A collector that is slow or away costs
//! nothing but its spans: what the queue has no room for is dropped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, SpanData, SpanExporter,
};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

/// How long the last spans may take at the end. Well below what systemd grants
/// after the drain (TimeoutStopSec).
pub(super) const FLUSH_DEADLINE: Duration = Duration::from_secs(3);

/// One request to the collector, which is a neighbour or a few milliseconds away.
const SEND_DEADLINE: Duration = Duration::from_secs(5);

/// How long a span waits for company. Whoever looks for a trace has just clicked.
const SEND_EVERY: Duration = Duration::from_secs(2);

/// Spans that wait at most, about a kilobyte each: some 200 acquires.
const QUEUE: usize = 2048;

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error("no exporter can be made for it")]
pub struct TraceError(#[source] opentelemetry_otlp::ExporterBuildError);

/// The sending of traces.
#[derive(Debug)]
pub(super) struct Traces(SdkTracerProvider);

impl Traces {
    /// Starts the exporter's thread. Nothing is sent yet: a collector may also
    /// come later.
    pub(super) fn start(url: &str) -> Result<Self, TraceError> {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", url.trim_end_matches('/')))
            .with_timeout(SEND_DEADLINE)
            .build()
            .map_err(TraceError)?;
        let batches =
            BatchConfigBuilder::default().with_max_queue_size(QUEUE).with_scheduled_delay(SEND_EVERY).build();
        let told = Told { exporter, failing: AtomicBool::new(false) };
        let processor = BatchSpanProcessor::builder(told).with_batch_config(batches).build();
        let service = Resource::builder().with_service_name("demo-multiplexer");
        let version = opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_resource(service.with_attribute(version).build());
        Ok(Self(provider.build()))
    }

    /// What turns this program's spans into traces, whatever LOG_LEVEL says.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("demo-multiplexer"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            // Parents are followed through spans; nobody asks for a context.
            .with_context_activation(false)
            .with_filter(Targets::new().with_target("demo_multiplexer", LevelFilter::INFO))
    }

    /// Sends what waits, within the deadline, and ends the thread.
    pub(super) fn stop(self) {
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH_DEADLINE) {
            tracing::warn!(error = %error, "the last traces are not sent");
        }
    }
}

/// An exporter that says when it begins to fail and when it works again: once
/// each, however often it is tried.
#[derive(Debug)]
struct Told {
    exporter: opentelemetry_otlp::SpanExporter,
    failing: AtomicBool,
}

impl SpanExporter for Told {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let sent = self.exporter.export(batch).await;
        let was_failing = self.failing.swap(sent.is_err(), Ordering::Relaxed);
        match &sent {
            Err(error) if !was_failing => tracing::warn!(error = %error, "traces are not sent and are lost"),
            Ok(()) if was_failing => tracing::info!("traces are sent again"),
            _ => {}
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// Far above the deadline: only a hang is longer.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn trace_and_stop(url: String) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (done, waiting) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let traces = Traces::start(&url).unwrap();
            let subscriber = tracing_subscriber::registry().with(traces.layer());
            tracing::subscriber::with_default(subscriber, || {
                for _ in 0..QUEUE * 3 {
                    tracing::info_span!(target: "demo_multiplexer", "acquire").in_scope(|| ());
                }
            });
            traces.stop();
            let _ = done.send(());
        });
        waiting.recv_timeout(PATIENCE).expect("neither a span nor the end waits for the collector");
    }

    #[test]
    fn a_collector_that_is_away_holds_up_nothing() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        trace_and_stop(format!("http://127.0.0.1:{port}"));
    }

    #[test]
    fn a_collector_that_never_answers_holds_up_nothing() {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        trace_and_stop(format!("http://{}/", silent.local_addr().unwrap()));
    }
}
