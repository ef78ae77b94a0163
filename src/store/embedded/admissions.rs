//! The embedded store's log of acquires, for its clients' sliding windows.
//!
//! Owned by the [`table`](super::table), and with it by the writer thread.
//! Exact: an acquire is an entry of its own, so a window is what lies in it at
//! that instant and not an estimate. Pure: no I/O, no clock.
//!
//! An entry is written to the file with the next commit and forces none: the
//! acquire's own claim is one, and an acquire whose claim was never written
//! need not be counted. A failed commit takes no entry back; who was admitted
//! and got nothing is forgiven by the caller.
//!
//! Bounds: a client has as many entries as its longest window allows; an entry
//! goes when that window has passed, and a client with its last one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::store::{Admission, Allowance, Ticket, Window};

/// How many outdated entries are cleared at an admission. More than the one it
/// adds, so the log shrinks; not all, so that nobody waits for the clearing of
/// a busy day.
const CLEARED_AT_ONCE: usize = 256;

/// One counted acquire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    /// Whose.
    pub(super) client: Arc<str>,
    /// When.
    pub(super) at: Timestamp,
    /// Tells it from others at the same time.
    pub(super) number: u64,
}

/// The log.
#[derive(Debug, Default)]
pub(super) struct Admissions {
    /// When each acquire is out of its longest window, by client, oldest first.
    clients: HashMap<Arc<str>, BTreeMap<(Timestamp, u64), Timestamp>>,
    /// The same by that end.
    ends: BTreeSet<(Timestamp, Entry)>,
    /// What the file does not have yet: an entry with its end, or none when it
    /// is to go.
    unwritten: BTreeMap<Entry, Option<Timestamp>>,
}

impl Admissions {
    /// The log of the entries found in the file.
    pub(super) fn of(entries: Vec<(Entry, Timestamp)>) -> Self {
        let mut log = Self::default();
        for (entry, end) in entries {
            log.add(entry, end);
        }
        log
    }

    /// See [`Store::admit`](crate::store::Store::admit); `number` names the
    /// entry and is new.
    pub(super) fn admit(
        &mut self,
        client: &str,
        windows: &[Window],
        now: Timestamp,
        number: u64,
    ) -> Admission {
        self.clear(now);
        let counted = self.clients.get(client).map(|log| log.keys().map(|(at, _)| *at).collect());
        let counted: Vec<Timestamp> = counted.unwrap_or_default();
        let waits = windows.iter().filter_map(|window| wait(&counted, *window, now));
        if let Some(retry_after) = waits.max() {
            let allowances = windows.iter().map(|window| allowance(&counted, *window, now)).collect();
            return Admission::Refused { retry_after, allowances };
        }
        let mut counted = counted;
        // The clock may have gone back behind some of them.
        counted.insert(counted.partition_point(|at| *at <= now), now);
        let allowances = windows.iter().map(|window| allowance(&counted, *window, now)).collect();
        if let Some(longest) = windows.iter().map(|window| window.length).max() {
            let entry = Entry { client: self.known(client), at: now, number };
            let end = now.checked_add(longest).unwrap_or(Timestamp::MAX);
            self.unwritten.insert(entry.clone(), Some(end));
            self.add(entry, end);
        }
        Admission::Admitted { ticket: ticket(now, number), allowances }
    }

    /// See [`Store::forgive`](crate::store::Store::forgive).
    pub(super) fn forgive(&mut self, client: &str, ticket: &Ticket) {
        let Some((at, number)) = read(ticket) else { return };
        self.remove(&Entry { client: self.known(client), at, number });
    }

    /// See [`Store::absolve`](crate::store::Store::absolve).
    pub(super) fn absolve(&mut self, client: &str) {
        let Some((client, log)) = self.clients.get_key_value(client) else { return };
        let client = Arc::clone(client);
        let entries: Vec<(Timestamp, u64)> = log.keys().copied().collect();
        for (at, number) in entries {
            self.remove(&Entry { client: Arc::clone(&client), at, number });
        }
    }

    /// What the file does not have yet.
    pub(super) const fn unwritten(&self) -> &BTreeMap<Entry, Option<Timestamp>> {
        &self.unwritten
    }

    /// The file has it all.
    pub(super) fn written(&mut self) {
        self.unwritten.clear();
    }

    /// The client's name, shared with its entries.
    fn known(&self, client: &str) -> Arc<str> {
        self.clients.get_key_value(client).map_or_else(|| client.into(), |(name, _)| Arc::clone(name))
    }

    fn add(&mut self, entry: Entry, end: Timestamp) {
        let log = self.clients.entry(Arc::clone(&entry.client)).or_default();
        log.insert((entry.at, entry.number), end);
        self.ends.insert((end, entry));
    }

    fn remove(&mut self, entry: &Entry) {
        let Some(log) = self.clients.get_mut(&entry.client) else { return };
        let Some(end) = log.remove(&(entry.at, entry.number)) else { return };
        if log.is_empty() {
            self.clients.remove(&entry.client);
        }
        self.ends.remove(&(end, entry.clone()));
        // What was never written need not be removed. It may be in the file all
        // the same, after a commit that failed late: one acquire too many, until
        // its end, for whoever starts the daemon anew.
        if !matches!(self.unwritten.remove(entry), Some(Some(_))) {
            self.unwritten.insert(entry.clone(), None);
        }
    }

    fn clear(&mut self, now: Timestamp) {
        let over = self.ends.iter().take_while(|(end, _)| *end <= now).take(CLEARED_AT_ONCE);
        let over: Vec<Entry> = over.map(|(_, entry)| entry.clone()).collect();
        over.iter().for_each(|entry| self.remove(entry));
    }

    /// How many clients and entries it holds.
    #[cfg(test)]
    pub(super) fn size(&self) -> (usize, usize) {
        (self.clients.len(), self.ends.len())
    }
}

/// Those of `counted` that lie in the window, the oldest first.
fn inside(counted: &[Timestamp], window: Window, now: Timestamp) -> &[Timestamp] {
    match now.checked_sub(window.length) {
        Ok(left) => &counted[counted.partition_point(|at| *at <= left)..],
        Err(_) => counted,
    }
}

/// How long the window stays full; none when it has room.
fn wait(counted: &[Timestamp], window: Window, now: Timestamp) -> Option<SignedDuration> {
    let inside = inside(counted, window, now);
    // More than one too many, when the limit was lowered meanwhile.
    let too_many = inside.len().checked_sub(window.limit as usize)?;
    Some(inside.get(too_many).map_or(window.length, |at| leaves(*at, window, now)))
}

fn allowance(counted: &[Timestamp], window: Window, now: Timestamp) -> Allowance {
    let inside = inside(counted, window, now);
    let used = u32::try_from(inside.len()).unwrap_or(u32::MAX);
    Allowance {
        limit: window.limit,
        remaining: window.limit.saturating_sub(used),
        resets_in: inside.first().map_or(SignedDuration::ZERO, |at| leaves(*at, window, now)),
    }
}

fn leaves(at: Timestamp, window: Window, now: Timestamp) -> SignedDuration {
    at.duration_since(now) + window.length
}

fn ticket(at: Timestamp, number: u64) -> Ticket {
    Ticket(format!("{}-{number}", at.as_nanosecond()))
}

fn read(ticket: &Ticket) -> Option<(Timestamp, u64)> {
    // From the right: a time before 1970 has a minus of its own.
    let (at, number) = ticket.0.rsplit_once('-')?;
    Some((Timestamp::from_nanosecond(at.parse().ok()?).ok()?, number.parse().ok()?))
}
