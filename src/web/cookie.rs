//! Signed cookies: a key of this daemon, and values that nobody else can make.
//!
//! Used by the visitors' pages and the operator's. The key is drawn once, in a
//! file of STATE_DIR that only the daemon's user reads; daemons that share their
//! visitors share a copy of it. Each purpose signs with a key of its own made
//! from it, so a value that is good for one is good for no other.
//!
//! ```text
//! value = PAYLOAD.MAC    HMAC-SHA256 in hexadecimal; a payload is of a-z, A-Z,
//!                        0-9, `-`, `_` and `.`
//! ```
//!
//! Cookies are for one host alone. On https their name begins with `__Host-`:
//! what a shop sets for the whole domain is then never taken for one of ours.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hmac::{Hmac, Mac as _};
use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use sha2::Sha256;

/// The key's file below STATE_DIR.
pub const FILE: &str = "web.key";

/// Bytes of a key: as many as the hash has.
const BYTES: usize = 32;

/// The key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The disk.
    #[error("cannot read or make the key of cookies, {}", .path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others may read it.
    #[error("the key of cookies, {}, has mode {mode:04o}, so others than its owner get at it: remove it (visitors are then forgotten, operators sign in again) or chmod 600 it", .path.display())]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is something else.
    #[error("the key of cookies, {}, is not {} hexadecimal digits: remove it (visitors are then forgotten, operators sign in again)", .path.display(), 2 * BYTES)]
    Form {
        /// Which file.
        path: PathBuf,
    },
}

/// The daemon's key.
#[derive(Clone)]
pub struct Key([u8; BYTES]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// Reads the key of a state directory, which is the caller's alone
    /// meanwhile; draws one if there is none.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn open(state_dir: &Path) -> Result<Self, KeyError> {
        let path = state_dir.join(FILE);
        let failed = |source| KeyError::File { path: path.clone(), source };
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Self::create(state_dir).map_err(failed);
            }
            file => file.map_err(failed)?,
        };
        // Of the open file, so that it is the one that is read.
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Mode { path, mode });
        }
        let mut text = String::new();
        let read = file.take(2 * BYTES as u64 + 2).read_to_string(&mut text);
        let form = || KeyError::Form { path: path.clone() };
        read.map_err(
            |error| if error.kind() == io::ErrorKind::InvalidData { form() } else { failed(error) },
        )?;
        from_hex(text.trim_end()).map(Self).ok_or_else(form)
    }

    /// Draws a key that no file has.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// By a rename, so that there is never half a key.
    fn create(state_dir: &Path) -> io::Result<Self> {
        let key = Self::random();
        let new = state_dir.join(format!(".{FILE}.new"));
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(format!("{}\n", hex(&key.0)).as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&new, state_dir.join(FILE))?;
        File::open(state_dir)?.sync_all()?;
        Ok(key)
    }

    /// The signer for one purpose.
    #[must_use]
    pub fn signer(&self, purpose: &'static str) -> Signer {
        let mut key = [0; BYTES];
        key.copy_from_slice(&mac(&self.0, purpose.as_bytes()).finalize().into_bytes());
        Signer(Self(key))
    }
}

/// Signs and checks values of one purpose.
#[derive(Debug, Clone)]
pub struct Signer(Key);

impl Signer {
    /// The value that stands for a payload.
    #[must_use]
    pub fn sign(&self, payload: &str) -> String {
        debug_assert!(is_payload(payload), "{payload:?} is no payload");
        format!("{payload}.{}", hex(&mac(&self.0.0, payload.as_bytes()).finalize().into_bytes()))
    }

    /// The payload of a value that was signed here, in a time that says nothing
    /// about the right one.
    #[must_use]
    pub fn verify<'a>(&self, value: &'a str) -> Option<&'a str> {
        let (payload, code) = value.rsplit_once('.')?;
        let code = from_hex(code)?;
        mac(&self.0.0, payload.as_bytes()).verify_slice(&code).ok()?;
        is_payload(payload).then_some(payload)
    }
}

fn is_payload(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn mac(key: &[u8], text: &[u8]) -> Hmac<Sha256> {
    let mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.chain_update(text)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; BYTES]> {
    if text.len() != 2 * BYTES || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; BYTES];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// A kind of cookie: what it is called, and when browsers send it.
#[derive(Debug, Clone, Copy)]
pub struct Cookie {
    /// Without a prefix.
    pub name: &'static str,
    /// `Lax` or `Strict`.
    pub same_site: &'static str,
    /// Whether it goes over https alone.
    pub secure: bool,
}

impl Cookie {
    fn full_name(self) -> String {
        format!("{}{}", if self.secure { "__Host-" } else { "" }, self.name)
    }

    /// What Set-Cookie says for a value; with no value, that it is to be forgotten.
    #[must_use]
    pub fn set(self, value: Option<&str>, max_age: Duration) -> HeaderValue {
        let seconds = value.map_or(0, |_| max_age.as_secs());
        let text = format!(
            "{}={}; Path=/; Max-Age={seconds}; HttpOnly; SameSite={}{}",
            self.full_name(),
            value.unwrap_or_default(),
            self.same_site,
            if self.secure { "; Secure" } else { "" }
        );
        HeaderValue::from_str(&text).expect("a signed value is plain text")
    }

    /// The values that a browser sends: one, unless somebody else has set
    /// another under the same name.
    pub fn values(self, headers: &HeaderMap) -> impl Iterator<Item = &str> {
        let name = self.full_name();
        let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(';')).filter_map(move |pair| {
            let (key, value) = pair.trim().split_once('=')?;
            (key == name).then_some(value)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_good_for_its_purpose_and_as_it_was_signed() {
        let key = Key::random();
        let (visitor, session) = (key.signer("visitor"), key.signer("session"));
        let value = visitor.sign("abc.1-2_3");
        assert_eq!(visitor.verify(&value), Some("abc.1-2_3"));
        assert_eq!(session.verify(&value), None, "another purpose");
        assert_eq!(Key::random().signer("visitor").verify(&value), None, "another daemon");
        let mut forged = value.clone();
        forged.replace_range(0..1, "b");
        let upper = value.to_uppercase();
        for wrong in ["", ".", "abc", &forged, &value[..value.len() - 2], &format!("{value}00"), &upper] {
            assert_eq!(visitor.verify(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_key_is_drawn_once_and_is_nobody_elses_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let first = Key::open(dir.path()).unwrap();
        let file = dir.path().join(FILE);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(Key::open(dir.path()).unwrap().0, first.0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing beside it");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let told = Key::open(dir.path()).unwrap_err().to_string();
        assert!(told.contains("has mode 0640") && told.contains("chmod 600"), "{told}");
        for text in ["", "abc\n", &"g".repeat(64), "\u{0}\u{1}"] {
            std::fs::remove_file(&file).unwrap();
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            let told = Key::open(dir.path()).unwrap_err().to_string();
            assert!(told.contains("is not 64 hexadecimal digits: remove it"), "{told}");
        }
    }

    #[test]
    fn a_making_that_was_cut_off_does_not_stand_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(format!(".{FILE}.new")), "half").unwrap();
        assert!(Key::open(dir.path()).is_ok());
    }

    #[test]
    fn a_cookie_is_its_hosts_alone() {
        let plain = Cookie { name: "demo", same_site: "Lax", secure: false };
        let secure = Cookie { secure: true, ..plain };
        let hour = Duration::from_secs(3600);
        assert_eq!(plain.set(Some("a.b"), hour), "demo=a.b; Path=/; Max-Age=3600; HttpOnly; SameSite=Lax");
        assert_eq!(secure.set(None, hour), "__Host-demo=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax; Secure");
        let headers = HeaderMap::from_iter([
            (COOKIE, HeaderValue::from_static("x=1; demo=planted; __Host-demo=own")),
            (COOKIE, HeaderValue::from_static("demo=second")),
        ]);
        assert_eq!(plain.values(&headers).collect::<Vec<_>>(), ["planted", "second"]);
        assert_eq!(secure.values(&headers).collect::<Vec<_>>(), ["own"]);
    }
}
