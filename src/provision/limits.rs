//! How often one client may acquire, in the last hour and the last day.
//!
//! Used by acquire only: [`Provisioner::count`] before anything is done for the
//! client, [`Provisioner::forgive`] when it came to nothing. The counting itself
//! is the store's, so that several daemons count together.
//!
//! Not counted: clients on this host itself, which are the operator's own; an
//! answer that is an earlier one's (the same idempotency key); an acquire that
//! failed. Counted: one whose client hung up, since the work was done.

use std::fmt;

use jiff::{SignedDuration, Timestamp};

use super::Provisioner;
use super::errors::AcquireError;
use super::standing::Clients;
use crate::client::{Client, ClientKey};
use crate::error::Chain;
use crate::metrics;
use crate::store::{Admission, Allowance, StoreError, Ticket, Window};

/// Acquires of one client at most; 0 is no limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// In an hour.
    pub hourly: u32,
    /// In a day.
    pub daily: u32,
}

/// One of the windows that limits are set for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// 60 minutes.
    Hour,
    /// 24 hours.
    Day,
}

/// How a client stands in one window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Which window.
    pub span: Span,
    /// What it leaves.
    pub allowance: Allowance,
}

/// An acquire that was counted.
#[derive(Debug)]
pub(super) struct Counted {
    client: ClientKey,
    ticket: Ticket,
    pub(super) standings: Vec<Standing>,
}

impl Span {
    /// The word used in headers, metrics and errors.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
        }
    }

    /// Its length.
    #[must_use]
    pub const fn length(self) -> SignedDuration {
        match self {
            Self::Hour => SignedDuration::from_hours(1),
            Self::Day => SignedDuration::from_hours(24),
        }
    }
}

impl Limits {
    /// The windows that have a limit.
    fn set(self) -> Vec<(Span, Window)> {
        let both = [(Span::Hour, self.hourly), (Span::Day, self.daily)];
        let set = both.into_iter().filter(|(_, limit)| *limit > 0);
        set.map(|(span, limit)| (span, Window { length: span.length(), limit })).collect()
    }
}

impl Provisioner {
    /// Counts an acquire; none for a client that has no limits.
    ///
    /// # Errors
    /// [`AcquireError::Limited`], and then it is not counted; or the store.
    pub(super) async fn count(
        &self,
        client: &Client,
        now: Timestamp,
    ) -> Result<Option<Counted>, AcquireError> {
        let (spans, windows): (Vec<Span>, Vec<Window>) = self.terms.limits.set().into_iter().unzip();
        let client = match client {
            Client::Remote(client) if !windows.is_empty() => client,
            Client::Remote(_) | Client::Local => return Ok(None),
        };
        let stand = |allowances: Vec<Allowance>| -> Vec<Standing> {
            spans.iter().zip(allowances).map(|(&span, allowance)| Standing { span, allowance }).collect()
        };
        let admission = self.lifecycle.store.admit(client.as_str(), &windows, now).await;
        match admission.map_err(AcquireError::Store)? {
            Admission::Admitted { ticket, allowances } => {
                let standings = stand(allowances);
                self.clients.note(client, &standings, false, now);
                Ok(Some(Counted { client: client.clone(), ticket, standings }))
            }
            Admission::Refused { retry_after, allowances } => {
                let standings = stand(allowances);
                self.clients.note(client, &standings, true, now);
                for standing in full(&standings) {
                    metrics::rate_limited(standing.span.as_str());
                }
                Err(AcquireError::Limited { retry_after, standings })
            }
        }
    }

    /// The clients that were seen.
    #[must_use]
    pub const fn clients(&self) -> &Clients {
        &self.clients
    }

    /// Has a client begin anew; one that is not known is fine.
    ///
    /// # Errors
    /// The store.
    pub async fn absolve(&self, client: &str) -> Result<(), StoreError> {
        self.lifecycle.store.absolve(client).await?;
        self.clients.forget(client);
        Ok(())
    }

    /// Takes back what was counted for nothing.
    pub(super) async fn forgive(&self, counted: Option<Counted>) {
        let Some(Counted { client, ticket, .. }) = counted else { return };
        if let Err(error) = self.lifecycle.store.forgive(client.as_str(), &ticket).await {
            // Its client has one acquire less for a while.
            tracing::warn!(error = %Chain(&error), "failed acquire stays counted");
        }
    }
}

/// The windows that are full.
fn full(standings: &[Standing]) -> impl Iterator<Item = &Standing> {
    standings.iter().filter(|standing| standing.allowance.remaining == 0)
}

/// Whole seconds that are not shorter: after them it is certainly over.
#[must_use]
pub fn seconds(duration: SignedDuration) -> u32 {
    let up = duration.as_secs() + i64::from(duration.subsec_nanos() > 0);
    u32::try_from(up.max(0)).unwrap_or(u32::MAX)
}

/// "10 in an hour and 30 in a day", of the windows that are full.
pub(super) struct Reached<'a>(pub(super) &'a [Standing]);

impl fmt::Display for Reached<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, Standing { span, allowance }) in full(self.0).enumerate() {
            let article = match span {
                Span::Hour => "an hour",
                Span::Day => "a day",
            };
            write!(f, "{}{} in {article}", if n > 0 { " and " } else { "" }, allowance.limit)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_which_limits_are_reached_and_how_long() {
        let allowance =
            |limit, remaining| Allowance { limit, remaining, resets_in: SignedDuration::from_secs(1) };
        let standings = vec![
            Standing { span: Span::Hour, allowance: allowance(10, 0) },
            Standing { span: Span::Day, allowance: allowance(30, 0) },
        ];
        let one = vec![standings[0], Standing { span: Span::Day, allowance: allowance(30, 20) }];
        let wait = SignedDuration::new(725, 1);
        let told = |standings| AcquireError::Limited { retry_after: wait, standings }.to_string();
        assert_eq!(
            told(one),
            "this client has had as many instances as it may, 10 in an hour: the next one in 12m 6s"
        );
        assert!(told(standings).contains("10 in an hour and 30 in a day"));
    }

    #[test]
    fn a_limit_of_zero_is_none() {
        assert!(Limits::default().set().is_empty());
        let set = Limits { hourly: 0, daily: 3 }.set();
        assert_eq!(set, [(Span::Day, Window { length: SignedDuration::from_hours(24), limit: 3 })]);
    }
}
