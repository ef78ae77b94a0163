//! RSA key pairs, made by `openssl`: ahead, while nothing else wants the
//! processors, and at once when none is ready.
//!
//! Owned by [`super::Supply`], which starts it for goldens that want a pair. A
//! pair costs 0.1 to 0.3 s of a processor, as much as a restore, so visitors
//! wait for one only in a burst of more than [`AHEAD`]. Each is given once and
//! lives in memory only until then.

use std::process::Stdio;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::sync::mpsc;

/// Pairs kept ready, for a burst of restores; they take some seconds to make.
const AHEAD: usize = 32;

/// How long after one was taken the next is made: whoever took it is still
/// making a shop, and its visitor looks at the first page.
const PAUSE: Duration = Duration::from_secs(5);

/// What PrestaShop's own installer makes.
const BITS: &str = "rsa_keygen_bits:2048";

/// How long `openssl` may take: searching primes, on a busy host.
const DEADLINE: Duration = Duration::from_secs(30);

/// A key pair in PEM form.
#[derive(Debug)]
pub struct KeyPair {
    /// PKCS#8.
    pub private: SecretString,
    /// SubjectPublicKeyInfo.
    pub public: String,
}

/// No key pair could be made.
#[derive(Debug, thiserror::Error)]
pub enum KeyPairError {
    /// The program is not there.
    #[error("cannot run openssl, which makes key pairs; is it installed?")]
    Run(#[source] std::io::Error),
    /// It failed.
    #[error("openssl {command} failed: {said}")]
    Failed {
        /// Its subcommand.
        command: &'static str,
        /// Its last words.
        said: String,
    },
    /// It does not end.
    #[error("openssl takes longer than {} s to make a key pair", DEADLINE.as_secs())]
    TooSlow,
}

/// How much of the processors a pair may claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Somebody waits for it.
    Wanted,
    /// Restores and shops go first.
    Ahead,
}

/// Makes pairs until [`AHEAD`] wait, and again as they are taken; ends when the
/// receiver is dropped, or when one cannot be made: whoever wants one then makes
/// it, and is told why not.
pub(super) fn make_ahead() -> mpsc::Receiver<KeyPair> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::spawn(async move {
        loop {
            let was_full = sender.capacity() == 0;
            // Only when there is a place for it: what is made is also wanted.
            let Ok(place) = sender.reserve().await else { return };
            if was_full {
                tokio::time::sleep(PAUSE).await;
            }
            match make(Urgency::Ahead).await {
                Ok(pair) => place.send(pair),
                Err(_) => return,
            }
        }
    });
    receiver
}

/// Makes one pair.
///
/// # Errors
/// [`KeyPairError`].
pub(super) async fn make(urgency: Urgency) -> Result<KeyPair, KeyPairError> {
    let making = async {
        let generate = ["genpkey", "-algorithm", "RSA", "-pkeyopt", BITS];
        let private = openssl(urgency, &generate, &String::new().into()).await?;
        let public = openssl(urgency, &["pkey", "-pubout"], &private).await?;
        Ok(KeyPair { private, public: public.expose_secret().to_owned() })
    };
    tokio::time::timeout(DEADLINE, making).await.unwrap_or(Err(KeyPairError::TooSlow))
}

/// Runs a command of openssl; keys go through pipes only.
async fn openssl(
    urgency: Urgency,
    args: &[&'static str],
    input: &SecretString,
) -> Result<SecretString, KeyPairError> {
    let mut command = match urgency {
        Urgency::Wanted => Command::new("openssl"),
        Urgency::Ahead => {
            let mut nice = Command::new("nice");
            nice.args(["-n", "10", "openssl"]);
            nice
        }
    };
    command.args(args).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(KeyPairError::Run)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read says why on its standard error.
        drop(stdin.write_all(input.expose_secret().as_bytes()).await);
    }
    let output = child.wait_with_output().await.map_err(KeyPairError::Run)?;
    match String::from_utf8(output.stdout) {
        Ok(key) if output.status.success() && key.starts_with("-----BEGIN ") => Ok(key.into()),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().last().unwrap_or("nothing said").to_owned();
            Err(KeyPairError::Failed { command: args[0], said })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether there is an openssl; in CI there has to be one.
    fn can_be_tried() -> bool {
        let there = std::process::Command::new("openssl").arg("version").output().is_ok();
        assert!(there || std::env::var("CI").is_err(), "openssl is missing");
        if !there {
            println!("skipped: openssl is not installed");
        }
        there
    }

    #[tokio::test]
    async fn pairs_belong_together_and_are_given_once() {
        if !can_be_tried() {
            return;
        }
        let one = make_ahead().recv().await.unwrap();
        let two = make(Urgency::Wanted).await.unwrap();
        assert_ne!(one.private.expose_secret(), two.private.expose_secret());
        assert!(one.private.expose_secret().starts_with("-----BEGIN PRIVATE KEY-----\n"));
        assert!(one.public.starts_with("-----BEGIN PUBLIC KEY-----\n"));
        let public = openssl(Urgency::Wanted, &["pkey", "-pubout"], &two.private).await.unwrap();
        assert_eq!(public.expose_secret(), two.public);
        assert!(!format!("{one:?}").contains("PRIVATE"), "not in debug output");
    }

    #[tokio::test]
    async fn what_openssl_refuses_is_told_in_its_words() {
        if !can_be_tried() {
            return;
        }
        let error =
            openssl(Urgency::Wanted, &["pkey", "-pubout"], &"no key".to_owned().into()).await.unwrap_err();
        assert!(
            matches!(&error, KeyPairError::Failed { command: "pkey", said } if !said.is_empty()),
            "{error}"
        );
    }
}
