//! When a shop was last asked for anything, and whether it is being asked now.
//!
//! One for each route, shared with the connections that are opened by it; two
//! atomics, touched on every request.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// What times are counted from.
static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);

fn now() -> u64 {
    u64::try_from(BEGUN.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// What is going on at a shop.
#[derive(Debug)]
pub struct Activity {
    /// Milliseconds.
    last: AtomicU64,
    open: AtomicUsize,
}

impl Default for Activity {
    fn default() -> Self {
        Self { last: AtomicU64::new(now()), open: AtomicUsize::new(0) }
    }
}

impl Activity {
    /// Notes that somebody asks.
    pub fn touch(&self) {
        self.last.fetch_max(now(), Ordering::Relaxed);
    }

    /// Notes that a connection was opened.
    pub fn opened(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.touch();
    }

    /// Notes that one was closed.
    pub fn closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.touch();
    }

    /// For how long nobody has asked; none while a connection is open.
    #[must_use]
    pub fn idle_for(&self) -> Option<Duration> {
        let idle = now().saturating_sub(self.last.load(Ordering::Relaxed));
        (self.open.load(Ordering::Relaxed) == 0).then(|| Duration::from_millis(idle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_shop_is_idle_from_its_last_request_or_connection_on() {
        let activity = Activity::default();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(activity.idle_for() >= Some(Duration::from_secs(60)));
        activity.opened();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(activity.idle_for(), None, "a connection is open");
        activity.closed();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(activity.idle_for(), Some(Duration::from_secs(5)));
        activity.touch();
        assert_eq!(activity.idle_for(), Some(Duration::ZERO));
    }
}
