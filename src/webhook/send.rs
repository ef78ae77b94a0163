//! One event to one receiver: signed, sent once, and what its answer means.
//!
//! ```text
//! POST URL                             no redirect is followed, no proxy is asked
//! X-Demo-Multiplexer-Event             acquired, expired, released, failed, test
//! X-Demo-Multiplexer-Delivery          the event's id
//! X-Demo-Multiplexer-Signature         t=SECONDS,v1=HMAC-SHA256 of "SECONDS." and the body, hexadecimal
//! ```
//!
//! Invariant: an answer's body is not read, and neither it nor the URL's path is
//! told to anybody.

use std::error::Error;
use std::time::Duration;

use hmac::{Hmac, Mac as _};
use http::{HeaderValue, header};
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;

use super::notice::Notice;
use crate::config::WebhookUrl;

/// How long a receiver may take to answer. It should put the event away and
/// answer at once.
const DEADLINE: Duration = Duration::from_secs(10);

/// How long the connection may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// The first pause after a failure; each further one is twice as long.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest pause: a receiver that is back has its events within it.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// How old an event may become: a receiver that is away for longer was given up.
const AGE_MAX: SignedDuration = SignedDuration::from_hours(24);

/// How often an event is tried that the receiver says it will never take. More
/// than once, since a half deployed receiver says so too.
const REFUSALS_MAX: u32 = 5;

/// Why an event did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No answer.
    #[error("no answer")]
    Unreachable(#[source] Box<dyn Error + Send + Sync>),
    /// Another one than 2xx.
    #[error("it answered {status}")]
    Refused {
        /// Its status.
        status: u16,
    },
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Another attempt after this pause.
    Again(Duration),
    /// The event is left.
    GiveUp,
}

/// What follows from the `attempts`th failure in a row for an event of that age.
pub(super) fn verdict(error: &SendError, attempts: u32, age: SignedDuration) -> Verdict {
    let never = match error {
        // It does not understand the event, and will not the next time.
        SendError::Refused { status: 400 | 405 | 413 | 415 | 422 } => attempts >= REFUSALS_MAX,
        SendError::Refused { .. } | SendError::Unreachable(_) => false,
    };
    if never || age >= AGE_MAX {
        return Verdict::GiveUp;
    }
    let doubled = PAUSE.saturating_mul(1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX));
    Verdict::Again(doubled.min(PAUSE_MAX))
}

/// The way to one receiver.
#[derive(Debug, Clone)]
pub struct Sender {
    client: reqwest::Client,
    url: WebhookUrl,
    secret: SecretString,
}

impl Sender {
    /// A way to each receiver.
    ///
    /// # Errors
    /// When there can be no HTTP client: the system's certificates are unusable.
    pub fn all(urls: &[WebhookUrl], secret: &SecretString) -> Result<Vec<Self>, reqwest::Error> {
        let client = reqwest::Client::builder()
            .timeout(DEADLINE)
            .connect_timeout(CONNECT_DEADLINE)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("demo-multiplexer/", env!("CARGO_PKG_VERSION")))
            .build()?;
        let sender =
            |url: &WebhookUrl| Self { client: client.clone(), url: url.clone(), secret: secret.clone() };
        Ok(urls.iter().map(sender).collect())
    }

    /// The receiver.
    #[must_use]
    pub const fn url(&self) -> &WebhookUrl {
        &self.url
    }

    /// Sends the event once; fine when the receiver answered 2xx.
    ///
    /// # Errors
    /// [`SendError`]; the receiver may have taken it nevertheless.
    pub async fn send(&self, notice: &Notice) -> Result<(), SendError> {
        let body = serde_json::to_vec(notice).expect("a notice has only texts and numbers");
        let request = self
            .client
            .post(self.url.expose())
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .header("x-demo-multiplexer-event", notice.event.as_str())
            .header("x-demo-multiplexer-delivery", &notice.id)
            .header("x-demo-multiplexer-signature", signature(&self.secret, Timestamp::now(), &body))
            .body(body);
        // Without the URL, whose path may be a secret.
        let answer = request.send().await;
        let answer = answer.map_err(|error| SendError::Unreachable(error.without_url().into()))?;
        let status = answer.status();
        if status.is_success() { Ok(()) } else { Err(SendError::Refused { status: status.as_u16() }) }
    }
}

/// `t=SECONDS,v1=MAC`
fn signature(secret: &SecretString, now: Timestamp, body: &[u8]) -> String {
    let seconds = now.as_second();
    let mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes());
    let mac = mac.expect("HMAC takes a key of any length");
    let mac = mac.chain_update(format!("{seconds}.")).chain_update(body).finalize().into_bytes();
    let hexadecimal: String = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={seconds},v1={hexadecimal}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_what_everybodys_hmac_says() {
        // printf '1700000000.{"version":1}' | openssl dgst -sha256 -hmac 0123456789abcdef
        let mac = "d4d5218e4060ea8d4e3266cccc3a4dad71e647b6992c00beec425264a92b2c5f";
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let told = signature(&"0123456789abcdef".into(), now, br#"{"version":1}"#);
        assert_eq!(told, format!("t=1700000000,v1={mac}"));
    }

    #[test]
    fn what_fails_is_tried_again_ever_more_rarely_for_a_day() {
        let away = SendError::Refused { status: 503 };
        let pause = |attempts| verdict(&away, attempts, SignedDuration::ZERO);
        let seconds = |n| Verdict::Again(Duration::from_secs(n));
        assert_eq!(
            [pause(1), pause(2), pause(4), pause(9)],
            [seconds(1), seconds(2), seconds(8), seconds(256)]
        );
        assert_eq!([pause(10), pause(40), pause(u32::MAX)], [seconds(300); 3]);
        assert_eq!(verdict(&away, 1, AGE_MAX), Verdict::GiveUp);
    }

    #[test]
    fn what_a_receiver_will_never_take_is_left_soon_and_a_missing_page_is_not() {
        let after =
            |status, attempts| verdict(&SendError::Refused { status }, attempts, SignedDuration::ZERO);
        for status in [400, 413, 415, 422] {
            assert_ne!(after(status, REFUSALS_MAX - 1), Verdict::GiveUp);
            assert_eq!(after(status, REFUSALS_MAX), Verdict::GiveUp);
        }
        for status in [301, 401, 403, 404, 408, 410, 429, 500, 502] {
            assert_ne!(after(status, 100), Verdict::GiveUp, "{status}");
        }
    }
}
