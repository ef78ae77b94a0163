//! Bearer tokens of the API: made, kept as hashes, told apart.
//!
//! Used by the settings (which read the list), the API (which compares) and the
//! command that makes one. A token is 256 random bits, so nobody finds it by
//! trying and one plain SHA-256 keeps it as safe as a slow hash would: those are
//! for passwords, which people choose. `sha256sum` makes the same hash by hand.
//!
//! Invariants: a token's text is never kept, printed again or put into an error;
//! the comparison looks at every hash of the list and at every byte, whatever it
//! is given.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use secrecy::SecretString;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable as _, ConstantTimeEq as _};

/// What every token begins with, so that scanners of repositories and logs know
/// one when they see it.
const PREFIX: &str = "dmx_";

/// Bytes of a token's random part, and of its hash.
const BYTES: usize = 32;

/// The longest name: it is part of keys in the store and of log lines.
const NAME_MAX: usize = 64;

/// The largest file that is read: some thousand tokens.
const FILE_MAX: u64 = 1 << 20;

/// The form of an entry, for messages.
const FORM: &str = "NAME:SCOPE[+SCOPE]:HASH, as `demo-multiplexer token create` prints it";

/// What a token lets its holder do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Get instances, and see to those whose id one knows.
    Acquire,
    /// See all instances and the pool, and see to any of them.
    Operate,
    /// Everything.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Acquire, Self::Operate, Self::Admin];

    /// The word used in lists, commands and answers.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Acquire => "acquire",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words = || Self::ALL.map(Self::as_str).join(", ");
        Self::ALL
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or_else(|| format!("scope {text:?} is not one of {}", words()))
    }
}

/// The scopes of one token; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scopes(BTreeSet<Scope>);

impl Scopes {
    /// Whether they allow what `scope` does.
    #[must_use]
    pub fn allow(&self, scope: Scope) -> bool {
        self.has(scope) || self.has(Scope::Admin)
    }

    /// Whether `scope` is one of them by name.
    #[must_use]
    pub fn has(&self, scope: Scope) -> bool {
        self.0.contains(&scope)
    }
}

impl FromStr for Scopes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split('+').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<&str> = self.0.iter().map(|scope| scope.as_str()).collect();
        f.write_str(&words.join("+"))
    }
}

/// A token's hash: SHA-256 of its whole text.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Hash([u8; BYTES]);

impl Hash {
    fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }
}

impl FromStr for Hash {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text.len() != 2 * BYTES || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(());
        }
        let mut bytes = [0; BYTES];
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| ())?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| ())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hash")
    }
}

fn hex(bytes: &[u8], f: &mut impl fmt::Write) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// A token as the list has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    name: Arc<str>,
    scopes: Scopes,
    hash: Hash,
}

impl Entry {
    /// Whose it is.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it allows.
    #[must_use]
    pub const fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// Tells this token from any other, without its hash: it stands in cookies.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut text = String::new();
        // A hash of the hash; 64 bits of it, which nobody has to find by trying.
        let _ = hex(&Sha256::digest(self.hash.0)[..8], &mut text);
        text
    }
}

impl FromStr for Entry {
    type Err = String;

    /// What is in the place of a hash is never repeated: it may be a token.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.trim().splitn(3, ':').map(str::trim);
        let (Some(name), Some(scopes), Some(hash)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(format!("an entry is not of the form {FORM}"));
        };
        if !is_name(name) {
            let name: String = name.chars().take(NAME_MAX).collect();
            return Err(format!("name {name:?} is not 1 to {NAME_MAX} letters, digits, dots or dashes"));
        }
        let scopes = scopes.parse().map_err(|problem| format!("token {name}: {problem}"))?;
        let hash = hash.parse().map_err(|()| {
            format!("token {name}: what stands third is not a SHA-256 in hexadecimal ({FORM})")
        })?;
        Ok(Self { name: name.into(), scopes, hash })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.name, self.scopes, self.hash)
    }
}

fn is_name(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Makes a token: its text, for its holder alone, and its entry for the list.
///
/// # Errors
/// When the name is not one.
pub fn create(name: &str, scopes: Scopes) -> Result<(SecretString, Entry), String> {
    let mut text = PREFIX.to_owned();
    // Writing to a string does not fail.
    let _ = hex(&rand::random::<[u8; BYTES]>(), &mut text);
    let entry = format!("{name}:{scopes}:{}", Hash::of(text.as_bytes())).parse()?;
    Ok((text.into(), entry))
}

/// The tokens that are known; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Tokens(Arc<[Entry]>);

impl Tokens {
    /// Reads entries; an empty one and one that begins with `#` is none.
    ///
    /// # Errors
    /// What is wrong with which entry, counted from 1.
    pub fn parse<'a>(entries: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut known: Vec<Entry> = Vec::new();
        for (n, text) in (1..).zip(entries) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let entry: Entry = text.parse().map_err(|problem| format!("entry {n}: {problem}"))?;
            if let Some(other) = known.iter().find(|it| it.name == entry.name || it.hash == entry.hash) {
                return Err(format!(
                    "entry {n}: token {} is there twice, or is {}'s",
                    entry.name, other.name
                ));
            }
            known.push(entry);
        }
        Ok(Self(known.into()))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entry that a fingerprint is of.
    #[must_use]
    pub fn by_fingerprint(&self, fingerprint: &str) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.fingerprint() == fingerprint)
    }

    /// The entry of a token that somebody shows, in a time that says nothing
    /// about the list.
    #[must_use]
    pub fn find(&self, token: &[u8]) -> Option<&Entry> {
        let given = Hash::of(token);
        let mut found = u32::MAX;
        for (n, entry) in (0_u32..).zip(self.0.iter()) {
            let equal: Choice = entry.hash.0.ct_eq(&given.0);
            found.conditional_assign(&n, equal);
        }
        self.0.get(usize::try_from(found).ok()?)
    }
}

/// Where the list of tokens is; what API_TOKENS says.
#[derive(Debug, Clone)]
pub enum TokenSource {
    /// In the setting itself.
    Inline(Tokens),
    /// In this file, one entry a line.
    File(PathBuf),
}

/// The file of tokens cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// The disk.
    #[error("cannot read API_TOKENS {}", .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Others may read or change it.
    #[error("API_TOKENS {} has mode {mode:04o}, so others than its owner get at it: chmod 600 it", .path.display())]
    Mode {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// An entry is wrong.
    #[error("API_TOKENS {}: {problem}", .path.display())]
    Entry {
        /// Which file.
        path: PathBuf,
        /// What is wrong, without what may be a token.
        problem: String,
    },
}

impl TokenSource {
    /// Reads what the setting says: a file's absolute path, or entries.
    ///
    /// # Errors
    /// What is wrong, in one sentence.
    pub fn of_setting(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self::File(PathBuf::from(text)));
        }
        let tokens = Tokens::parse(text.split(','));
        tokens.map(Self::Inline).map_err(|problem| format!("{problem}; or a file's path that begins with /"))
    }

    /// The tokens; reads the file, if it is one.
    ///
    /// # Errors
    /// [`TokenFileError`]
    pub fn load(&self) -> Result<Tokens, TokenFileError> {
        match self {
            Self::Inline(tokens) => Ok(tokens.clone()),
            Self::File(path) => read(path),
        }
    }

    /// Whether it certainly holds no token.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Inline(tokens) if tokens.is_empty())
    }
}

fn read(path: &Path) -> Result<Tokens, TokenFileError> {
    let unreadable = |source| TokenFileError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    // Of the open file, so that it is the one that is read.
    let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(TokenFileError::Mode { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    file.take(FILE_MAX).read_to_string(&mut text).map_err(unreadable)?;
    Tokens::parse(text.lines()).map_err(|problem| TokenFileError::Entry { path: path.to_owned(), problem })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn made(name: &str, scopes: &str) -> (String, Entry) {
        let (token, entry) = create(name, scopes.parse().unwrap()).unwrap();
        (token.expose_secret().to_owned(), entry)
    }

    #[test]
    fn a_token_is_known_by_its_entry_and_no_other_is() {
        let (one, first) = made("shop-site", "acquire");
        let (other, second) = made("ops", "operate+acquire");
        let list = format!("# tokens\n\n{first}\n {second} \n");
        let tokens = Tokens::parse(list.lines()).unwrap();
        assert_eq!(tokens.find(one.as_bytes()).map(Entry::name), Some("shop-site"));
        assert_eq!(tokens.find(other.as_bytes()), Some(&second));
        for wrong in ["", "dmx_", &one[..one.len() - 1], &one.to_uppercase(), &first.hash.to_string()] {
            assert_eq!(tokens.find(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(Tokens::default().find(one.as_bytes()), None);
        assert_eq!((one.len(), &one[..4]), (4 + 64, "dmx_"));
    }

    #[test]
    fn the_hash_is_what_sha256sum_says() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Hash::of(b"abc").to_string(), expected);
    }

    #[test]
    fn admin_is_everything_and_the_others_are_themselves() {
        let allow = |scopes: &str, scope| scopes.parse::<Scopes>().unwrap().allow(scope);
        for scope in Scope::ALL {
            assert!(allow("admin", scope) && allow("acquire+operate+admin", scope));
        }
        assert!(allow("acquire", Scope::Acquire) && !allow("acquire", Scope::Operate));
        assert!(!allow("operate", Scope::Acquire) && !allow("acquire+operate", Scope::Admin));
        assert_eq!("operate+acquire".parse::<Scopes>().unwrap().to_string(), "acquire+operate");
    }

    #[test]
    fn a_wrong_entry_is_told_without_what_may_be_a_token() {
        let (token, entry) = made("a", "acquire");
        for (list, told) in [
            ("a:acquire".to_owned(), "entry 1: an entry is not of the form"),
            (format!("a:acquire:{token}"), "entry 1: token a: what stands third is not a SHA-256"),
            (format!("#\na b:acquire:{}", entry.hash), "entry 2: name \"a b\" is not"),
            (format!("a:acquier:{}", entry.hash), "scope \"acquier\" is not one of acquire, operate, admin"),
            (format!("a::{}", entry.hash), "scope \"\" is not one of"),
            (format!("{entry}\n{entry}"), "entry 2: token a is there twice"),
            (format!("{entry}\nb:admin:{}", entry.hash), "token b is there twice, or is a's"),
        ] {
            let problem = Tokens::parse(list.lines()).unwrap_err();
            assert!(problem.contains(told) && !problem.contains(&token), "{problem}");
        }
        assert!(create("a:b", "admin".parse().unwrap()).is_err());
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        std::fs::write(&path, format!("{}\n", made("a", "admin").1)).unwrap();
        let source = TokenSource::of_setting(path.to_str().unwrap()).unwrap();
        for mode in [0o644, 0o640, 0o604, 0o602, 0o620] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let told = source.load().unwrap_err().to_string();
            assert!(told.contains(&format!("has mode {mode:04o}")) && told.contains("chmod 600"), "{told}");
        }
        for mode in [0o600, 0o400] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert!(!source.load().unwrap().is_empty());
        }
        assert!(matches!(TokenSource::File("/nowhere/x".into()).load(), Err(TokenFileError::Read { .. })));
    }

    #[test]
    fn a_setting_is_a_path_or_a_list() {
        assert!(TokenSource::of_setting("").unwrap().is_empty());
        let list = format!("{}, {}", made("a", "admin").1, made("b", "operate").1);
        assert!(!TokenSource::of_setting(&list).unwrap().is_empty());
        let told = TokenSource::of_setting("tokens.txt").unwrap_err();
        assert!(told.contains("or a file's path that begins with /"), "{told}");
    }
}
