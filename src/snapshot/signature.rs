//! Who took a snapshot: ed25519 signatures over manifests.
//!
//! A snapshot is memory that will run as root's child on this host, so only
//! what a trusted key has signed is listed as usable, prepared or restored. The
//! manifest holds the digests of all archives, so its signature covers them.
//!
//! The host's own key is made by the first `snapshot create` and never leaves
//! it; other hosts trust its public half (TRUSTED_SNAPSHOT_KEYS).
//!
//! ```text
//! STATE_DIR/keys/snapshot.key   PKCS#8 PEM, 0600
//! STATE_DIR/keys/snapshot.pub   SubjectPublicKeyInfo PEM
//! <snapshot>/manifest.sig       64 bytes over manifest.json as it lies there
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _};
use ed25519_dalek::pkcs8::{EncodePublicKey as _, spki};
use ed25519_dalek::{SECRET_KEY_LENGTH, SIGNATURE_LENGTH, Signature, Signer as _, SigningKey, VerifyingKey};

use crate::error::DiskError;
use crate::host::slots::make_private;

const DIR: &str = "keys";
const PRIVATE: &str = "snapshot.key";
const PUBLIC: &str = "snapshot.pub";

/// A key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Not a private key.
    #[error("{} is not an ed25519 private key in PEM form: put a saved one there, or remove it and sign this host's snapshots anew (`snapshot sign`)", .path.display())]
    Private {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ed25519_dalek::pkcs8::Error,
    },
    /// Not a public key.
    #[error("{} is not an ed25519 public key in PEM form", .path.display())]
    Public {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: spki::Error,
    },
}

/// A manifest that nobody we trust has signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// There is none.
    #[error("it is not signed: look at it (`snapshot inspect`), then `snapshot sign` it if it is yours")]
    Missing,
    /// It is no signature of this manifest by a trusted key.
    #[error(
        "its signature is of no key that this host trusts, or it was changed: \
         take it anew, or name its host's public key in TRUSTED_SNAPSHOT_KEYS"
    )]
    Untrusted,
}

/// The keys of this host: its own, and those it trusts beside it.
#[derive(Debug, Clone)]
pub struct Keys {
    dir: PathBuf,
    own: Option<SigningKey>,
    trusted: Vec<VerifyingKey>,
}

fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> KeyError + 'a {
    move |source| DiskError::at(doing, path)(source).into()
}

impl Keys {
    /// Reads this host's key below `state_dir`, if there is one yet, and the
    /// public keys in `trusted`.
    ///
    /// # Errors
    /// When a key is there and cannot be read, or a trusted one is missing.
    pub fn load(state_dir: &Path, trusted: &[PathBuf]) -> Result<Self, KeyError> {
        let dir = state_dir.join(DIR);
        let own = read_own(&private_path(state_dir))?;
        let mut keys: Vec<VerifyingKey> = own.iter().map(SigningKey::verifying_key).collect();
        for path in trusted {
            let pem = std::fs::read_to_string(path).map_err(at("read the trusted key", path))?;
            let key = VerifyingKey::from_public_key_pem(&pem);
            keys.push(key.map_err(|source| KeyError::Public { path: path.clone(), source })?);
        }
        Ok(Self { dir, own, trusted: keys })
    }

    /// Makes this host's key if it has none; again is fine.
    ///
    /// # Errors
    /// When the disk says no; nothing half is left under the key's name.
    pub fn ensure_own(&mut self) -> Result<(), KeyError> {
        if self.own.is_some() {
            return Ok(());
        }
        let (private, public) = (self.dir.join(PRIVATE), self.dir.join(PUBLIC));
        make_private(&self.dir).map_err(at("make", &self.dir))?;
        let key = SigningKey::from_bytes(&rand::random::<[u8; SECRET_KEY_LENGTH]>());
        let pem = key.to_pkcs8_pem(LineEnding::LF).expect("a 32-byte key has a PEM form");
        let public_pem = key.verifying_key().to_public_key_pem(LineEnding::LF);
        let public_pem = public_pem.expect("a 32-byte key has a PEM form");
        write_whole(&public, public_pem.as_bytes())?;
        // Last: whoever finds it finds both.
        match write_whole(&private, pem.as_bytes()) {
            // Another process was faster: its key is the host's.
            Err(KeyError::Disk(error)) if error.source.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        let own = read_own(&private)?;
        self.trusted.extend(own.iter().map(SigningKey::verifying_key));
        self.own = own;
        self.write_public()
    }

    /// The public half again, from the private one that won.
    fn write_public(&self) -> Result<(), KeyError> {
        let Some(own) = &self.own else { return Ok(()) };
        let pem = own.verifying_key().to_public_key_pem(LineEnding::LF);
        write_whole(&self.dir.join(PUBLIC), pem.expect("a 32-byte key has a PEM form").as_bytes())
    }

    /// Where this host's public key lies, for other hosts to trust.
    #[must_use]
    pub fn public_path(&self) -> PathBuf {
        self.dir.join(PUBLIC)
    }

    /// Signs a manifest with this host's key, which [`Keys::ensure_own`] made.
    #[must_use]
    pub fn sign(&self, manifest: &[u8]) -> Option<[u8; SIGNATURE_LENGTH]> {
        self.own.as_ref().map(|key| key.sign(manifest).to_bytes())
    }

    /// Checks that a trusted key has signed the manifest; `signature` is what
    /// lies beside it.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn check(&self, manifest: &[u8], signature: Option<&[u8]>) -> Result<(), SignatureError> {
        let signature = signature.ok_or(SignatureError::Missing)?;
        let signature = Signature::from_slice(signature).map_err(|_| SignatureError::Untrusted)?;
        match self.trusted.iter().any(|key| key.verify_strict(manifest, &signature).is_ok()) {
            true => Ok(()),
            false => Err(SignatureError::Untrusted),
        }
    }
}

/// Where a host's private key lies, once it has one.
#[must_use]
pub fn private_path(state_dir: &Path) -> PathBuf {
    state_dir.join(DIR).join(PRIVATE)
}

fn read_own(path: &Path) -> Result<Option<SigningKey>, KeyError> {
    let pem = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(at("read", path))?,
    };
    let key = SigningKey::from_pkcs8_pem(&pem);
    Ok(Some(key.map_err(|source| KeyError::Private { path: path.to_owned(), source })?))
}

/// A snapshot outlives a power cut, and so has the key that it is signed with.
fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Writes a file that appears whole or not at all; a private key that is there
/// already stays.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    use io::Write as _;
    let new = path.with_extension(format!("new-{}", std::process::id()));
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new);
    let written = file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    let linked = written.and_then(|()| match path.ends_with(PRIVATE) {
        true => std::fs::hard_link(&new, path),
        false => std::fs::rename(&new, path),
    });
    drop(std::fs::remove_file(&new));
    linked.and_then(|()| sync_parent(path)).map_err(at("write", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn keys(dir: &Path) -> Keys {
        let mut keys = Keys::load(dir, &[]).unwrap();
        keys.ensure_own().unwrap();
        keys
    }

    #[test]
    fn a_signature_holds_for_its_manifest_and_its_key_alone() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (our, their) = (keys(ours.path()), keys(theirs.path()));
        let signature = our.sign(b"manifest").unwrap();
        assert_eq!(our.check(b"manifest", Some(&signature)), Ok(()));
        assert_eq!(our.check(b"manifesT", Some(&signature)), Err(SignatureError::Untrusted));
        assert_eq!(our.check(b"manifest", Some(&signature[1..])), Err(SignatureError::Untrusted));
        assert_eq!(our.check(b"manifest", None), Err(SignatureError::Missing));
        assert_eq!(their.check(b"manifest", Some(&signature)), Err(SignatureError::Untrusted));
        let trusting = Keys::load(theirs.path(), &[our.public_path()]).unwrap();
        assert_eq!(trusting.check(b"manifest", Some(&signature)), Ok(()));
    }

    #[test]
    fn the_key_is_made_once_and_is_nobodys_else() {
        let dir = tempfile::tempdir().unwrap();
        let mut late = Keys::load(dir.path(), &[]).unwrap();
        assert!(late.sign(b"x").is_none(), "no key yet");
        let first = keys(dir.path());
        late.ensure_own().unwrap();
        assert_eq!(late.sign(b"x"), first.sign(b"x"), "whoever comes later takes the key that is there");
        let mode = std::fs::metadata(dir.path().join("keys").join(PRIVATE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let public = std::fs::read_to_string(first.public_path()).unwrap();
        assert_eq!(VerifyingKey::from_public_key_pem(&public).unwrap(), first.trusted[0]);
        assert_eq!(std::fs::read_dir(dir.path().join("keys")).unwrap().count(), 2, "nothing else is left");
    }

    #[test]
    fn a_damaged_key_is_refused_by_its_name_or_signs_the_same() {
        let dir = tempfile::tempdir().unwrap();
        keys(dir.path());
        let read = || match Keys::load(dir.path(), &[]) {
            Ok(keys) => keys.sign(b"x"),
            Err(error) => {
                assert!(error.to_string().contains(PRIVATE), "{error}");
                None
            }
        };
        crate::sealed::damaged_is_refused_or_the_same(&private_path(dir.path()), read);
    }

    #[test]
    fn what_is_no_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("other.pub");
        assert!(Keys::load(dir.path(), std::slice::from_ref(&path)).is_err(), "a trusted key must be there");
        std::fs::write(&path, "no key").unwrap();
        let error = Keys::load(dir.path(), &[path]).unwrap_err();
        assert!(error.to_string().contains("other.pub"), "{error}");
        make_private(&dir.path().join("keys")).unwrap();
        std::fs::write(dir.path().join("keys").join(PRIVATE), "no key").unwrap();
        assert!(matches!(Keys::load(dir.path(), &[]), Err(KeyError::Private { .. })));
    }
}
