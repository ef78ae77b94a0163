//! How a client says for how long, and what is accepted. Pure.

use jiff::SignedDuration;
use serde_json::Value;

use crate::error::ErrorKind;

/// A time to live that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TtlError {
    /// Not a time at all.
    #[error("ttl {given} is not a time: whole seconds such as 1800, or a text such as \"30m\" or \"1h 30m\"")]
    Form {
        /// What was given, as JSON.
        given: String,
    },
    /// Zero or less.
    #[error("ttl {given} is not positive: an instance lives for one second at least")]
    NotPositive {
        /// What was given, as JSON.
        given: String,
    },
    /// More than MAX_TTL.
    #[error("ttl {given} is longer than the longest allowed, {max:#}")]
    TooLong {
        /// What was given, as JSON.
        given: String,
        /// MAX_TTL.
        max: SignedDuration,
    },
}

impl TtlError {
    /// What the caller can do.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Form { .. } | Self::NotPositive { .. } | Self::TooLong { .. } => ErrorKind::Invalid,
        }
    }
}

/// Reads a request's `ttl`: seconds as a number, or a text.
///
/// # Errors
/// [`TtlError`], a sentence for the client.
pub fn parse(given: &Value, max: SignedDuration) -> Result<SignedDuration, TtlError> {
    let form = || TtlError::Form { given: shown(given) };
    let too_long = || TtlError::TooLong { given: shown(given), max };
    let ttl = match given {
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(seconds), _) => SignedDuration::from_secs(seconds),
            // Above i64::MAX: huge, not malformed.
            (None, Some(_)) => return Err(too_long()),
            (None, None) => return Err(form()),
        },
        Value::String(text) => read_text(text.trim()).ok_or_else(form)?,
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return Err(form()),
    };
    if ttl < SignedDuration::from_secs(1) {
        return Err(TtlError::NotPositive { given: shown(given) });
    }
    if ttl > max { Err(too_long()) } else { Ok(ttl) }
}

fn read_text(text: &str) -> Option<SignedDuration> {
    if let Ok(seconds) = text.parse::<i64>() {
        return Some(SignedDuration::from_secs(seconds));
    }
    text.parse().ok()
}

/// The value as the client wrote it, cut to what fits a sentence.
fn shown(given: &Value) -> String {
    let text = given.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const DAY: SignedDuration = SignedDuration::from_hours(24);

    #[test]
    fn seconds_and_texts_are_read() {
        for (given, seconds) in [
            (json!(1), 1),
            (json!(1800), 1800),
            (json!("30m"), 1800),
            (json!(" 1h 30m "), 5400),
            (json!("PT2H"), 7200),
            (json!("600"), 600),
            (json!("24h"), 86_400),
        ] {
            assert_eq!(parse(&given, DAY), Ok(SignedDuration::from_secs(seconds)), "{given}");
        }
    }

    #[test]
    fn what_is_not_positive_or_too_long_is_told_apart_from_garbage() {
        for given in [json!(0), json!(-5), json!("0s"), json!("-5m"), json!("500ms"), json!(i64::MIN)] {
            assert!(matches!(parse(&given, DAY), Err(TtlError::NotPositive { .. })), "{given}");
        }
        for given in [json!(86_401), json!("25h"), json!(i64::MAX), json!(u64::MAX)] {
            assert!(matches!(parse(&given, DAY), Err(TtlError::TooLong { .. })), "{given}");
        }
        for given in [json!("soon"), json!(""), json!(1.5), json!(1e300), json!(true), json!(null), json!([])]
        {
            assert!(matches!(parse(&given, DAY), Err(TtlError::Form { .. })), "{given}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in ".*") {
            if let Ok(ttl) = parse(&Value::String(text), DAY) {
                prop_assert!(ttl >= SignedDuration::from_secs(1) && ttl <= DAY);
            }
        }
    }
}
