//! What each clone gets for its own: credentials, random values, key pairs.
//!
//! A key pair costs as much as a restore, so [`Supply`] has a task that keeps some
//! ready ([`keys`]), if a golden wants any. Each is consumed once and lives in
//! memory only until then.

pub mod keys;
pub mod login;

use std::sync::PoisonError;

use bcrypt::Version;
use rand::RngExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::mpsc;

use self::keys::{KeyPair, KeyPairError, Urgency};

/// bcrypt's work factor, the lowest there is: a millisecond. A higher one slows down
/// who guesses passwords that people choose; nobody guesses 93 random bits. The one
/// that PHP starts at (10) would cost a restore's time, here and at each login.
const BCRYPT_COST: u32 = 4;

/// 16 of 57 letters and digits: 93 bits.
const PASSWORD_LEN: usize = 16;

/// Without letters that are taken for others when read aloud or copied.
const PASSWORD_ALPHABET: &[u8] = b"ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789";

/// One administrator's password and its hash.
#[derive(Debug)]
pub struct Credentials {
    /// What the visitor types.
    pub password: SecretString,
    /// What the shop stores: bcrypt in PHP's `$2y$` form.
    pub bcrypt: SecretString,
}

/// Credentials or keys could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SupplyError {
    /// bcrypt said no.
    #[error("no credentials can be made")]
    Credentials(#[source] bcrypt::BcryptError),
    /// The golden wants a key pair.
    #[error("no key pair can be made")]
    KeyPair(#[from] KeyPairError),
}

/// Key pairs, made ahead.
#[derive(Debug, Default)]
pub struct Supply {
    /// None before the first golden that wants pairs.
    pairs: std::sync::Mutex<Option<mpsc::Receiver<KeyPair>>>,
}

impl Supply {
    /// Begins to make key pairs ahead, unless that is being done. Wants a
    /// runtime.
    pub fn prepare_pairs(&self) {
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        if pairs.as_ref().is_none_or(mpsc::Receiver::is_closed) {
            *pairs = Some(keys::make_ahead());
        }
    }

    /// Takes a key pair, or makes one when none is ready.
    ///
    /// # Errors
    /// When none can be made.
    pub async fn take_pair(&self) -> Result<KeyPair, SupplyError> {
        if let Some(pair) = self.ready_pair() {
            return Ok(pair);
        }
        let pair = keys::make(Urgency::Wanted).await?;
        // In case it could not be done before.
        self.prepare_pairs();
        Ok(pair)
    }

    fn ready_pair(&self) -> Option<KeyPair> {
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        pairs.as_mut()?.try_recv().ok()
    }
}

impl Credentials {
    /// New ones.
    ///
    /// # Errors
    /// When the password cannot be hashed.
    pub fn new() -> Result<Self, SupplyError> {
        Self::of(text(PASSWORD_ALPHABET, PASSWORD_LEN).into())
    }

    /// Those of a password that is known already.
    ///
    /// # Errors
    /// When it cannot be hashed.
    pub fn of(password: SecretString) -> Result<Self, SupplyError> {
        let hashed = bcrypt::hash_with_result(password.expose_secret(), BCRYPT_COST);
        let bcrypt = hashed.map_err(SupplyError::Credentials)?.format_for_version(Version::TwoY);
        Ok(Self { password, bcrypt: bcrypt.into() })
    }
}

/// Draws a random text.
#[must_use]
pub fn text(alphabet: &[u8], length: usize) -> String {
    let mut rng = rand::rng();
    (0..length).map(|_| char::from(alphabet[rng.random_range(0..alphabet.len())])).collect()
}

/// Draws `length` lower-case hexadecimal digits.
#[must_use]
pub fn hex(length: usize) -> String {
    text(b"0123456789abcdef", length)
}

/// Draws `length` letters and digits.
#[must_use]
pub fn alnum(length: usize) -> String {
    text(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789", length)
}

/// Draws a random UUID (version 4).
#[must_use]
pub fn uuid() -> String {
    let mut bytes: [u8; 16] = rand::rng().random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = hexadecimal(&bytes);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

/// Draws a key in the form of defuse/php-encryption's saved keys: the version
/// mark DE F0 00 00, 32 random bytes, and SHA-256 over both, in hexadecimal.
#[must_use]
pub fn defuse_key() -> String {
    use sha2::Digest as _;
    let mut bytes = vec![0xde, 0xf0, 0, 0];
    let key: [u8; 32] = rand::rng().random();
    bytes.extend(key);
    let checksum = sha2::Sha256::digest(&bytes);
    bytes.extend(checksum);
    hexadecimal(&bytes)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_fit_their_hash_and_are_given_once() {
        let (one, two) = (Credentials::new().unwrap(), Credentials::new().unwrap());
        assert_ne!(one.password.expose_secret(), two.password.expose_secret());
        assert!(one.bcrypt.expose_secret().starts_with("$2y$04$"));
        assert!(bcrypt::verify(one.password.expose_secret(), one.bcrypt.expose_secret()).unwrap());
        assert!(!format!("{one:?}").contains(one.password.expose_secret()), "not in debug output");
    }

    #[test]
    fn a_known_password_gets_a_hash_of_its_own() {
        let known = Credentials::of("as before".to_owned().into()).unwrap();
        assert_eq!(known.password.expose_secret(), "as before");
        assert!(bcrypt::verify("as before", known.bcrypt.expose_secret()).unwrap());
    }

    #[test]
    fn a_defuse_key_carries_its_checksum() {
        let key = defuse_key();
        assert_eq!(key.len(), 136);
        assert!(key.starts_with("def00000"));
        assert_ne!(key, defuse_key());
    }

    #[test]
    fn a_uuid_is_of_version_4() {
        let id = uuid();
        assert_eq!((id.len(), &id[14..15]), (36, "4"));
    }
}
