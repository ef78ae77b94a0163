//! Steps of long work: a spinner with the elapsed time on a terminal, plain
//! lines elsewhere. On stderr, so that stdout holds the answer alone.

use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Redrawn ten times a second: a spinner that moves and costs nothing.
const TICK: Duration = Duration::from_millis(100);

/// The steps of one piece of work; the spinner is cleared when dropped.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    /// The present step, if each is to stay on the screen with what it took.
    kept: Option<Mutex<Option<(String, Instant)>>>,
}

impl Progress {
    /// Steps that are kept when they are over.
    pub(super) fn of_steps() -> Self {
        let mut steps = Self::start();
        steps.kept = Some(Mutex::default());
        steps
    }

    /// Steps of which only the present one matters.
    pub(super) fn start() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(TICK);
            bar
        });
        Self { bar, kept: None }
    }

    /// Tells the present step.
    pub(super) fn say(&self, step: &str) {
        match &self.bar {
            Some(bar) => {
                self.next(bar, Some(step));
                bar.set_message(step.to_owned());
            }
            None => eprintln!("{step}"),
        }
    }

    /// Leaves the step before on the screen.
    fn next(&self, bar: &ProgressBar, step: Option<&str>) {
        let Some(kept) = &self.kept else { return };
        let next = step.map(|step| (step.to_owned(), Instant::now()));
        let over = std::mem::replace(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner), next);
        if let Some((step, since)) = over {
            bar.println(format!("{:>7.1} s  {step}", since.elapsed().as_secs_f64()));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            self.next(bar, None);
            bar.finish_and_clear();
        }
    }
}
