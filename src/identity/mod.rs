//! What each clone gets for its own: credentials made ahead, random values.
//!
//! [`Supply`] owns a thread that keeps a few credentials ready, because a
//! bcrypt hash costs tens of milliseconds that no visitor should wait for, and
//! a task that does the same for key pairs ([`keys`]), if a golden wants any.
//! Each is consumed once and lives in memory only until then.

pub mod keys;
pub mod login;

use std::sync::PoisonError;
use std::time::Duration;

use bcrypt::Version;
use rand::RngExt as _;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::{Mutex, mpsc};

use self::keys::{KeyPair, KeyPairError, Urgency};

/// bcrypt's work factor, the one PHP's `password_hash` starts at.
const BCRYPT_COST: u32 = 10;

/// 16 of 57 letters and digits: 93 bits.
const PASSWORD_LEN: usize = 16;

/// Without letters that are taken for others when read aloud or copied.
const PASSWORD_ALPHABET: &[u8] = b"ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789";

/// Credentials kept ready: more than most bursts of restores take at once.
const AHEAD: usize = 16;

/// How long after one was taken the next is made: that takes half as long as a
/// restore, and whoever took one is still making a shop, whose visitor then looks
/// at the first page.
const PAUSE: Duration = Duration::from_secs(5);

/// One administrator's password and its hash.
#[derive(Debug)]
pub struct Credentials {
    /// What the visitor types.
    pub password: SecretString,
    /// What the shop stores: bcrypt in PHP's `$2y$` form.
    pub bcrypt: SecretString,
}

/// Credentials could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SupplyError {
    /// The thread has ended.
    #[error("no credentials can be made")]
    Credentials,
    /// The golden wants a key pair.
    #[error("no key pair can be made")]
    KeyPair(#[from] KeyPairError),
}

/// Credentials, made ahead.
#[derive(Debug)]
pub struct Supply {
    ready: Mutex<mpsc::Receiver<Credentials>>,
    /// None before the first golden that wants pairs.
    pairs: std::sync::Mutex<Option<mpsc::Receiver<KeyPair>>>,
}

impl Supply {
    /// Starts the thread that keeps credentials ready; it ends with the supply.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start() -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel(AHEAD);
        std::thread::Builder::new().name("identity".into()).spawn(move || {
            while let Some(credentials) = make() {
                let full = sender.capacity() == 0;
                if sender.blocking_send(credentials).is_err() {
                    break;
                }
                if full {
                    #[allow(clippy::disallowed_methods, reason = "a thread of its own")]
                    std::thread::sleep(PAUSE);
                }
            }
        })?;
        Ok(Self { ready: Mutex::new(receiver), pairs: std::sync::Mutex::new(None) })
    }

    /// Begins to make key pairs ahead, unless that is being done. Wants a
    /// runtime.
    pub fn prepare_pairs(&self) {
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        if pairs.as_ref().is_none_or(mpsc::Receiver::is_closed) {
            *pairs = Some(keys::make_ahead());
        }
    }

    /// Takes credentials; makes them when a burst has used up those made ahead.
    ///
    /// # Errors
    /// When none can be made.
    pub async fn take(&self) -> Result<Credentials, SupplyError> {
        if let Ok(credentials) = self.ready.lock().await.try_recv() {
            return Ok(credentials);
        }
        let made = tokio::task::spawn_blocking(make).await;
        made.ok().flatten().ok_or(SupplyError::Credentials)
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

fn make() -> Option<Credentials> {
    hashed(text(PASSWORD_ALPHABET, PASSWORD_LEN).into())
}

fn hashed(password: SecretString) -> Option<Credentials> {
    let bcrypt = bcrypt::hash_with_result(password.expose_secret(), BCRYPT_COST).ok()?;
    Some(Credentials { password, bcrypt: bcrypt.format_for_version(Version::TwoY).into() })
}

impl Credentials {
    /// Those of a password that is known already.
    ///
    /// # Errors
    /// When it cannot be hashed.
    pub async fn of(password: SecretString) -> Result<Self, SupplyError> {
        let made = tokio::task::spawn_blocking(move || hashed(password)).await;
        made.ok().flatten().ok_or(SupplyError::Credentials)
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

    #[tokio::test]
    async fn credentials_fit_their_hash_and_are_given_once() {
        let supply = Supply::start().unwrap();
        let one = supply.take().await.unwrap();
        let two = supply.take().await.unwrap();
        assert_ne!(one.password.expose_secret(), two.password.expose_secret());
        assert!(one.bcrypt.expose_secret().starts_with("$2y$10$"));
        assert!(bcrypt::verify(one.password.expose_secret(), one.bcrypt.expose_secret()).unwrap());
        assert!(!format!("{one:?}").contains(one.password.expose_secret()), "not in debug output");
    }

    #[tokio::test]
    async fn a_known_password_gets_a_hash_of_its_own() {
        let known = Credentials::of("as before".to_owned().into()).await.unwrap();
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
