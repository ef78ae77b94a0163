//! The seal on what nodes leave for each other where others may write, too. Pure.
//!
//! ```text
//! <HMAC-SHA256 in hexadecimal> over "seal v1", a line's end, and the text
//! ```
//!
//! Whoever does not know the nodes' secret cannot make one. It says who wrote a text, not
//! when: a text bears its time itself. No pass ([`super::pass`]) is one, since those begin
//! with another line.

use hmac::{Hmac, Mac as _};
use secrecy::ExposeSecret as _;
use sha2::Sha256;

use super::pass::{NodeSecret, from_hex};

impl NodeSecret {
    /// The seal on a text.
    #[must_use]
    pub fn seal(&self, text: &str) -> String {
        let code = self.seal_of(text).finalize().into_bytes();
        code.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether a node has sealed that text.
    #[must_use]
    pub fn has_sealed(&self, text: &str, seal: &str) -> bool {
        from_hex(seal).is_some_and(|code| self.seal_of(text).verify_slice(&code).is_ok())
    }

    fn seal_of(&self, text: &str) -> Hmac<Sha256> {
        let key = self.0.expose_secret().as_bytes();
        let mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
        mac.chain_update("seal v1\n").chain_update(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_is_of_one_text_and_of_who_knows_the_secret() {
        let secret = |text: &str| NodeSecret::new(text.to_owned().into());
        let seal = secret("one").seal("spring is withdrawn");
        assert!(secret("one").has_sealed("spring is withdrawn", &seal));
        assert!(!secret("one").has_sealed("summer is withdrawn", &seal));
        assert!(!secret("two").has_sealed("spring is withdrawn", &seal));
        for no_seal in ["", "00", &seal[1..], &format!("+{}", &seal[1..])] {
            assert!(!secret("one").has_sealed("spring is withdrawn", no_seal), "{no_seal}");
        }
    }
}
