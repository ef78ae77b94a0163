//! How a client is told where it stands in the rate limits. Pure.
//!
//! Two generations of one IETF draft (httpapi-ratelimit-headers): the three
//! fields that most clients read (drafts 03 to 06), of the window that is
//! tightest; and the two structured ones of draft 10, which name every window.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::provision::limits::{Standing, seconds};

const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");
const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");

/// Writes the headers; none for a client without limits.
pub(super) fn tell(headers: &mut HeaderMap, standings: &[Standing]) {
    // Of two with as little left, the one that takes longer.
    let tightest = standings
        .iter()
        .map(|standing| standing.allowance)
        .min_by_key(|of| (of.remaining, std::cmp::Reverse(of.resets_in)));
    let Some(tightest) = tightest else { return };
    headers.insert(LIMIT, HeaderValue::from(tightest.limit));
    headers.insert(REMAINING, HeaderValue::from(tightest.remaining));
    headers.insert(RESET, HeaderValue::from(seconds(tightest.resets_in)));
    let policy = |it: &Standing| {
        format!("\"{}\";q={};w={}", it.span.as_str(), it.allowance.limit, it.span.length().as_secs())
    };
    let state = |it: &Standing| {
        let reset = seconds(it.allowance.resets_in);
        format!("\"{}\";r={};t={reset}", it.span.as_str(), it.allowance.remaining)
    };
    for (name, value) in [(POLICY, list(standings, policy)), (STATE, list(standings, state))] {
        // Words and numbers only.
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
}

fn list(standings: &[Standing], item: impl Fn(&Standing) -> String) -> String {
    standings.iter().map(item).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::provision::limits::Span;
    use crate::store::Allowance;

    fn standing(span: Span, limit: u32, remaining: u32, resets_in: SignedDuration) -> Standing {
        Standing { span, allowance: Allowance { limit, remaining, resets_in } }
    }

    #[test]
    fn the_tightest_window_is_told_in_numbers_and_all_of_them_by_name() {
        let mut headers = HeaderMap::new();
        let hour = standing(Span::Hour, 10, 3, SignedDuration::new(59, 1));
        let day = standing(Span::Day, 30, 2, SignedDuration::from_hours(2));
        tell(&mut headers, &[hour, day]);
        let found: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        let expected = [
            ("ratelimit-limit", "30"),
            ("ratelimit-remaining", "2"),
            ("ratelimit-reset", "7200"),
            ("ratelimit-policy", "\"hour\";q=10;w=3600, \"day\";q=30;w=86400"),
            ("ratelimit", "\"hour\";r=3;t=60, \"day\";r=2;t=7200"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_client_without_limits_is_told_none() {
        let mut headers = HeaderMap::new();
        tell(&mut headers, &[]);
        assert!(headers.is_empty());
    }
}
