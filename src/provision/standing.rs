//! Who is near a limit, as far as this daemon has seen.
//!
//! Written by the counting of acquires, read by the API. In memory and bounded:
//! of many clients those are kept that were seen last. The counting itself is the
//! store's, where other daemons count as well; a client that they saw is not here
//! before this one sees it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::limits::Standing;
use crate::client::ClientKey;

/// Clients that are remembered: some hundred bytes each.
const KEPT: usize = 4096;

/// How a client stood when it asked last.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Who.
    pub client: ClientKey,
    /// When it asked.
    pub at: Timestamp,
    /// In each window that has a limit.
    pub standings: Vec<Standing>,
    /// Acquires that were refused since it was seen first.
    pub refused: u64,
}

impl Seen {
    /// The smallest part of a limit that is left, between 0 and 1; a window that
    /// has passed since leaves all of it.
    #[must_use]
    pub fn left_at(&self, now: Timestamp) -> f64 {
        let left = |standing: &Standing| {
            let allowance = standing.allowance;
            match now.duration_since(self.at) < allowance.resets_in {
                true => f64::from(allowance.remaining) / f64::from(allowance.limit.max(1)),
                false => 1.0,
            }
        };
        self.standings.iter().map(left).fold(1.0, f64::min)
    }
}

/// The clients.
#[derive(Debug, Default)]
pub struct Clients(Mutex<HashMap<ClientKey, Seen>>);

impl Clients {
    /// A std lock: held for one map operation, never across an await.
    fn lock(&self) -> MutexGuard<'_, HashMap<ClientKey, Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how a client stands.
    pub(super) fn note(&self, client: &ClientKey, standings: &[Standing], refused: bool, at: Timestamp) {
        let mut clients = self.lock();
        if clients.len() >= KEPT && !clients.contains_key(client) {
            // The older half at once, so that not each new one costs a search.
            let mut times: Vec<Timestamp> = clients.values().map(|seen| seen.at).collect();
            let middle = *times.select_nth_unstable(KEPT / 2).1;
            clients.retain(|_, seen| seen.at > middle);
        }
        let before = clients.get(client).map_or(0, |seen| seen.refused);
        let seen = Seen {
            client: client.clone(),
            at,
            standings: standings.to_vec(),
            refused: before + u64::from(refused),
        };
        clients.insert(client.clone(), seen);
    }

    /// Forgets a client; whether it was known.
    pub(super) fn forget(&self, client: &str) -> bool {
        let mut clients = self.lock();
        let before = clients.len();
        clients.retain(|key, _| key.as_str() != client);
        clients.len() < before
    }

    /// Those that were seen, the nearest to a limit first.
    #[must_use]
    pub fn all(&self, now: Timestamp) -> Vec<Seen> {
        let mut all: Vec<Seen> = self.lock().values().cloned().collect();
        all.sort_by(|one, other| {
            one.left_at(now).total_cmp(&other.left_at(now)).then_with(|| other.at.cmp(&one.at))
        });
        all
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use jiff::SignedDuration;

    use super::*;
    use crate::provision::limits::Span;
    use crate::store::Allowance;

    fn client(n: u32) -> ClientKey {
        ClientKey::of_address(IpAddr::V4(Ipv4Addr::from_bits(n)))
    }

    fn standing(remaining: u32) -> Vec<Standing> {
        let allowance = Allowance { limit: 10, remaining, resets_in: SignedDuration::from_secs(60) };
        vec![Standing { span: Span::Hour, allowance }]
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_nearest_to_its_limit_stands_first_until_its_window_has_passed() {
        let clients = Clients::default();
        clients.note(&client(1), &standing(9), false, at(100));
        clients.note(&client(2), &standing(0), false, at(10));
        clients.note(&client(2), &standing(0), true, at(20));
        let first = |now| clients.all(at(now))[0].clone();
        assert_eq!((first(30).client, first(30).refused), (client(2), 1));
        assert_eq!(first(110).client, client(1), "the other one's window is over");
        assert!(clients.forget("ip:0.0.0.2") && !clients.forget("ip:0.0.0.2"));
        assert_eq!(clients.all(at(30)).len(), 1);
    }

    #[test]
    fn those_seen_last_are_kept() {
        let clients = Clients::default();
        for n in 0..2 * KEPT as u32 {
            clients.note(&client(n), &standing(1), false, at(i64::from(n)));
        }
        let kept = clients.all(at(0));
        assert!(kept.len() <= KEPT);
        assert!(kept.iter().any(|seen| seen.client == client(2 * KEPT as u32 - 1)));
    }
}
