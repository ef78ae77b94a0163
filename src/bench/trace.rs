//! Where one restore's time goes: this program's own spans above, CRIU's
//! processes below, on one axis.
//!
//! Called by `bench --trace`. CRIU is asked to log what it does, which makes it
//! slower: the picture shows what follows what, not how long a restore takes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing::instrument::WithSubscriber as _;
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

use super::BenchError;
use super::criu_log::{self, Activity, Lane};
use super::svg::{Anchor, Area, Bar, Labels, Scale, Svg};
use crate::engine::criu::LOG_FILE;
use crate::host::slots::Slots;
use crate::id::InstanceId;
use crate::restore::{FirstPage, Make, Shop};

/// Wider than a plot: a restore has hundreds of steps.
const WIDTH: f64 = 1200.0;

/// One row.
const ROW: f64 = 20.0;

/// A process that did less is not shown: threads, mostly, a row of dust each.
const BUSY_MIN: f64 = 0.000_5;

/// A span of ours, since the trace began.
#[derive(Debug, Clone)]
pub struct Span {
    /// Its name, or the phase it is.
    pub name: String,
    /// When it was entered first.
    pub begin: Duration,
    /// When it ended.
    pub end: Duration,
}

/// One restore.
#[derive(Debug)]
pub struct Trace {
    /// Our spans, in the order in which they ended.
    pub spans: Vec<Span>,
    /// CRIU's processes; seconds since CRIU was asked.
    pub lanes: Vec<Lane>,
}

/// Makes one shop and takes it down; `maker`'s engine logs at level 4.
///
/// # Errors
/// [`BenchError`].
pub async fn take(maker: &dyn Make, slots: &Slots, id: &InstanceId) -> Result<Trace, BenchError> {
    let recorder = Recorder::default();
    let subscriber = tracing_subscriber::registry().with(recorder.clone());
    let made = maker.make(Shop::new(id), FirstPage::Fetched).with_subscriber(subscriber).await?;
    let log = std::fs::read(slots.dirs(id).criu.join(LOG_FILE));
    maker.engine().destroy(id, Some(&made.container)).await?;
    let log = log.map_err(|source| BenchError::Io { doing: "read CRIU's log", source })?;
    let spans = recorder.spans.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(Trace { spans, lanes: criu_log::lanes(&String::from_utf8_lossy(&log)) })
}

/// Notes every span of the future it is given to.
#[derive(Debug, Clone)]
struct Recorder {
    begun: Instant,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self { begun: Instant::now(), spans: Arc::default() }
    }
}

/// A span that has not ended.
struct Open {
    name: String,
    begin: Duration,
}

impl<S: tracing::Subscriber + for<'span> LookupSpan<'span>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut name = attributes.metadata().name().to_owned();
        attributes.record(&mut PhaseOf(&mut name));
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(Open { name, begin: self.begun.elapsed() });
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        if let Some(Open { name, begin }) = span.extensions_mut().remove::<Open>() {
            let span = Span { name, begin, end: self.begun.elapsed() };
            self.spans.lock().unwrap_or_else(PoisonError::into_inner).push(span);
        }
    }
}

/// The value of the field `phase`, which is a better name than the span's.
struct PhaseOf<'a>(&'a mut String);

impl Visit for PhaseOf<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "phase" {
            value.clone_into(self.0);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

impl Trace {
    /// The drawing.
    #[must_use]
    pub fn to_svg(&self, golden: &str) -> String {
        let lanes: Vec<&Lane> = self.lanes.iter().filter(|lane| lane.busy() >= BUSY_MIN).collect();
        let restore = self.spans.iter().find(|span| span.name == "restore");
        let asked = restore.map_or(0.0, |span| ms(span.begin));
        let end = self.spans.iter().map(|span| ms(span.end)).fold(0.0, f64::max);
        let rows = self.spans.len() + lanes.len() + 1;
        let height = 150.0 + rows as f64 * ROW;
        let mut svg =
            Svg::new(WIDTH, height, &format!("One restore of {golden}, with CRIU's log at level 4"));
        let legend: Vec<(usize, &str)> = Activity::ALL.iter().map(|it| (*it as usize, it.as_str())).collect();
        svg.legend((12.0, 44.0), &legend);
        let labels = Labels { x: "ms since the restore was asked for", y: "" };
        let area = Area::draw(&mut svg, (Scale::linear(end), Scale::Rows), labels);
        let mut y = 66.0;
        for span in &self.spans {
            let (begin, end) = (ms(span.begin), ms(span.end));
            let ((x, _), (right, _)) = (area.at(begin, 0.0), area.at(end, 0.0));
            let words = format!("{} {:.1} ms", span.name, end - begin);
            svg.text((78.0, y + 13.0), Anchor::End, &span.name);
            svg.bar(Bar {
                x,
                y,
                width: right - x,
                height: ROW - 4.0,
                colour: Activity::Waits as usize,
                tip: &words,
            });
            y += ROW;
        }
        y += ROW / 2.0;
        for lane in lanes {
            let name = lane.pid.map_or_else(|| "criu".to_owned(), |pid| format!("pid {pid}"));
            svg.text((78.0, y + 13.0), Anchor::End, &name);
            for step in lane.steps.iter().filter(|step| step.activity != Activity::Waits) {
                let at = |seconds: f64| area.at(asked + seconds * 1e3, 0.0).0;
                let (x, right) = (at(step.begin), at(step.end));
                let tip = format!(
                    "{} {:.2} ms: {}",
                    step.activity.as_str(),
                    (step.end - step.begin) * 1e3,
                    step.words
                );
                let colour = step.activity as usize;
                svg.bar(Bar { x, y, width: right - x, height: ROW - 4.0, colour, tip: &tip });
            }
            y += ROW;
        }
        svg.finish()
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use tracing::Instrument as _;

    use super::*;
    use crate::engine::Phase;

    #[tokio::test]
    async fn spans_are_noted_under_their_phase() {
        let recorder = Recorder::default();
        let work = async {
            async {}.instrument(Phase::Restore.span()).await;
            async {}.instrument(Phase::Probe.span()).await;
        };
        work.with_subscriber(tracing_subscriber::registry().with(recorder.clone())).await;
        let spans = recorder.spans.lock().unwrap().clone();
        let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, ["restore", "probe"]);
        assert!(spans.iter().all(|span| span.begin <= span.end));
    }

    #[test]
    fn criu_begins_where_its_span_does() {
        let span = |name: &str, begin, end| Span {
            name: name.into(),
            begin: Duration::from_millis(begin),
            end: Duration::from_millis(end),
        };
        let trace = Trace {
            spans: vec![span("slot", 0, 10), span("restore", 10, 100)],
            lanes: criu_log::lanes("(00.000) Reading image tree\n(00.090) Restore finished\n"),
        };
        let svg = trace.to_svg("wordpress");
        // 100 ms from 84 to 1176: 10 ms are 109.2.
        assert_eq!(svg.matches("x=\"193.20\"").count(), 2, "{svg}");
        assert!(svg.contains("restore 90.0 ms") && svg.contains("images 90.00 ms: Reading image tree"));
    }
}
