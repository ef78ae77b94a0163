//! Counted acquires of each client, in memory.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};

use crate::id::InstanceId;
use crate::store::{Admission, Allowance, Ticket, Window};

/// Counted acquires, the oldest first.
type Counted = Vec<(Timestamp, Ticket)>;

/// All clients.
#[derive(Debug, Default)]
pub(super) struct Admissions(Mutex<HashMap<String, Counted>>);

impl Admissions {
    pub(super) fn admit(&self, client: &str, windows: &[Window], now: Timestamp) -> Admission {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = clients.entry(client.to_owned()).or_default();
        let longest = windows.iter().map(|window| window.length).max().unwrap_or_default();
        counted.retain(|(at, _)| now.duration_since(*at) < longest);
        let waits: Vec<SignedDuration> =
            windows.iter().filter_map(|window| wait(counted, window, now)).collect();
        if let Some(retry_after) = waits.into_iter().max() {
            return Admission::Refused { retry_after, allowances: allowances(counted, windows, now) };
        }
        let ticket = Ticket(InstanceId::random().to_string());
        counted.push((now, ticket.clone()));
        counted.sort_by_key(|(at, _)| *at);
        Admission::Admitted { ticket, allowances: allowances(counted, windows, now) }
    }

    pub(super) fn forgive(&self, client: &str, ticket: &Ticket) {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counted) = clients.get_mut(client) {
            counted.retain(|(_, of)| of != ticket);
        }
    }
}

fn within(counted: &Counted, window: &Window, now: Timestamp) -> Vec<Timestamp> {
    counted.iter().map(|(at, _)| *at).filter(|at| now.duration_since(*at) < window.length).collect()
}

/// How long until the window has room; none when it has.
fn wait(counted: &Counted, window: &Window, now: Timestamp) -> Option<SignedDuration> {
    let within = within(counted, window, now);
    let limit = window.limit as usize;
    if within.len() < limit {
        return None;
    }
    match within.get(within.len() - limit) {
        Some(at) => Some(window.length - now.duration_since(*at)),
        None => Some(window.length),
    }
}

fn allowances(counted: &Counted, windows: &[Window], now: Timestamp) -> Vec<Allowance> {
    let of = |window: &Window| {
        let within = within(counted, window, now);
        let used = u32::try_from(within.len()).unwrap_or(u32::MAX);
        Allowance {
            limit: window.limit,
            remaining: window.limit.saturating_sub(used),
            resets_in: within
                .first()
                .map_or(SignedDuration::ZERO, |at| window.length - now.duration_since(*at)),
        }
    };
    windows.iter().map(of).collect()
}
