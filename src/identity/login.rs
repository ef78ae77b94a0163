//! Links that sign an administrator in with one click: made here, redeemed once
//! inside the instance (`podman/common/one-click.php`).
//!
//! Called by the API while it writes an acquire's answer, so all it costs is one
//! HMAC. Nothing is stored: who may ask for the answer again gets another link.
//!
//! ```text
//! token = EXPIRES.NONCE.MAC   seconds since 1970, 32 hexadecimal digits, and
//!                             HMAC-SHA256 of "EXPIRES.NONCE" in hexadecimal
//! ```
//!
//! Invariant: the key is drawn for one instance alone and known to it and to
//! this daemon.

use hmac::{Hmac, Mac as _};
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;

use crate::instance::OneClick;

/// How long a link is good: enough to read a mail, too short to be found later.
pub const VALIDITY: SignedDuration = SignedDuration::from_mins(10);

/// Makes a link that works once, until [`VALIDITY`] after `now`.
#[must_use]
pub fn link(one_click: &OneClick, now: Timestamp) -> SecretString {
    let token = token(&one_click.key, now + VALIDITY, &super::hex(32));
    one_click.url.replace("{token}", &token).into()
}

fn token(key: &SecretString, expires: Timestamp, nonce: &str) -> String {
    let signed = format!("{}.{nonce}", expires.as_second());
    let mac = Hmac::<Sha256>::new_from_slice(key.expose_secret().as_bytes());
    let mac = mac.expect("HMAC takes a key of any length").chain_update(&signed);
    format!("{signed}.{}", super::hexadecimal(&mac.finalize().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_the_instance_computes() {
        // php -r 'echo hash_hmac("sha256", "1700000000.00ff", "key");'
        let token = token(&"key".into(), Timestamp::from_second(1_700_000_000).unwrap(), "00ff");
        let mac = "2de1e34086bf0d0583396e00283f2cc4166e1f6bec9a1efe10ab50bb00bb6708";
        assert_eq!(token, format!("1700000000.00ff.{mac}"));
    }

    #[test]
    fn every_link_is_another_one_and_says_when_it_ends() {
        let one_click = OneClick { url: "http://a.localhost/x?token={token}".into(), key: "key".into() };
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let (one, two) = (link(&one_click, now), link(&one_click, now));
        assert_ne!(one.expose_secret(), two.expose_secret());
        assert!(one.expose_secret().starts_with("http://a.localhost/x?token=1700000600."));
    }
}
