//! Where the shops' databases are: in the snapshot, or on a server they share.
//!
//! `DATABASE_URL` is read here and nowhere else, so that its password is not
//! repeated in a message.

use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

/// Where the shops' databases are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DatabaseMode {
    /// Each shop has its own server, frozen and restored with it.
    #[default]
    Bundled,
    /// Each shop has its own database on a server of the host.
    Shared,
}

impl DatabaseMode {
    /// The word of the settings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bundled => "bundled",
            Self::Shared => "shared",
        }
    }

    /// Whether it is the default: said by leaving it out.
    #[must_use]
    pub fn is_bundled(&self) -> bool {
        *self == Self::Bundled
    }
}

/// The server that shops share, and who this daemon is there.
#[derive(Debug, Clone)]
pub struct DatabaseServer {
    /// Its unix socket. The directory it lies in is shown to every shop.
    pub socket: PathBuf,
    /// The administrator's name.
    pub user: String,
    /// Its password; none when the server knows the system's user.
    pub password: Option<SecretString>,
    /// A file with the password, which stands over the one in the address.
    pub password_file: Option<PathBuf>,
    /// What the names of all databases and users of this daemon begin with.
    pub prefix: String,
}

/// The longest prefix: a database's name has 64 characters, what follows has 18.
const PREFIX_MAX: usize = 32;

const FORM: &str = "mysql://USER:PASSWORD@localhost/?socket=/run/mysqld/mysqld.sock";

impl DatabaseServer {
    /// Reads the settings; `state_dir` names this daemon where no prefix does.
    ///
    /// # Errors
    /// One sentence a problem, without the password.
    pub(super) fn check(
        url: &str,
        password_file: &str,
        prefix: &str,
        state_dir: &Path,
    ) -> Result<Self, Vec<String>> {
        let mut problems = Vec::new();
        let address = address(url).unwrap_or_else(|problem| {
            problems.push(format!("DATABASE_URL: {problem}"));
            Address::default()
        });
        let prefix = match prefix {
            "" => own_prefix(state_dir),
            named => named.to_owned(),
        };
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if prefix.len() > PREFIX_MAX || !prefix.ends_with('_') || !prefix.bytes().all(plain) {
            problems.push(format!(
                "DATABASE_PREFIX={prefix:?}: up to {PREFIX_MAX} characters of a-z, 0-9 and _, _ at the end"
            ));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self {
            socket: address.socket,
            user: address.user,
            password: address.password,
            password_file: (!password_file.is_empty()).then(|| PathBuf::from(password_file)),
            prefix,
        })
    }

    /// The directory that every shop sees: the socket's, so that a server that
    /// was started again is found again.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.socket.parent().unwrap_or_else(|| Path::new("/"))
    }
}

/// Two daemons on one host have two state directories, hence two prefixes.
fn own_prefix(state_dir: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let hash = blake3::hash(state_dir.as_os_str().as_bytes()).to_hex();
    format!("dmux_{}_", &hash[..6])
}

#[derive(Default)]
struct Address {
    user: String,
    password: Option<SecretString>,
    socket: PathBuf,
}

fn address(url: &str) -> Result<Address, String> {
    let rest = url.strip_prefix("mysql://").ok_or_else(|| format!("it is not of the form {FORM}"))?;
    let (login, place) = rest.rsplit_once('@').unwrap_or(("", rest));
    let (host, query) = place.split_once("/?").unwrap_or_else(|| (place.trim_end_matches('/'), ""));
    let socket = match query.split('&').find_map(|pair| pair.strip_prefix("socket=")) {
        Some(socket) => decoded(socket)?,
        None if !matches!(host, "" | "localhost") => {
            return Err(format!(
                "a server on another host ({host}) cannot be shared yet, only one on this host by its unix \
                 socket: {FORM}"
            ));
        }
        None => return Err(format!("it names no socket: {FORM}")),
    };
    if !matches!(host, "" | "localhost") {
        return Err(format!("the socket is on this host, {host:?} is not localhost: {FORM}"));
    }
    let path = PathBuf::from(&socket);
    // A comma ends the path in CRIU's words for a mount.
    let plain = !socket.contains([',', ':', '\\']) && !socket.split('/').any(|part| part == "..");
    if !path.is_absolute() || path.parent().is_none_or(|parent| parent == Path::new("/")) || !plain {
        return Err(format!(
            "socket={socket}: the absolute path of a socket in a directory of its own, such as \
             /run/mysqld/mysqld.sock"
        ));
    }
    let (user, password) = login.split_once(':').map_or((login, None), |(user, word)| (user, Some(word)));
    Ok(Address {
        user: if user.is_empty() { "root".into() } else { decoded(user)? },
        password: password.filter(|word| !word.is_empty()).map(decoded).transpose()?.map(SecretString::from),
        socket: path,
    })
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> Result<String, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let digits = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
            let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
            out.push(byte.ok_or("a % in it is not followed by two hexadecimal digits (% itself is %25)")?);
            rest = &tail[2..];
        } else {
            out.push(*first);
        }
    }
    String::from_utf8(out).map_err(|_| "it is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn check(url: &str) -> Result<DatabaseServer, String> {
        DatabaseServer::check(url, "", "", Path::new("/var/lib/x")).map_err(|all| all.join("; "))
    }

    #[test]
    fn an_address_names_user_password_and_socket() {
        let server = check("mysql://demo:p%40ss%3A%25@localhost/?socket=/run/mysqld/mysqld.sock").unwrap();
        assert_eq!((server.user.as_str(), server.directory()), ("demo", Path::new("/run/mysqld")));
        assert_eq!(server.password.as_ref().unwrap().expose_secret(), "p@ss:%");
        assert!(!format!("{server:?}").contains("p@ss"), "not in debug output");
        let server = check("mysql:///?socket=/run/mysqld/mysqld.sock").unwrap();
        assert_eq!((server.user.as_str(), server.password.is_none()), ("root", true));
    }

    #[test]
    fn what_cannot_be_used_is_refused_without_its_password() {
        for (url, word) in [
            ("mysql://a:secret@db.example.com:3306/", "another host"),
            ("mysql://a:secret@db.example.com/?socket=/run/mysqld/mysqld.sock", "localhost"),
            ("mysql://a:secret@localhost/", "names no socket"),
            ("mysql://a:secret@localhost/?socket=mysqld.sock", "absolute"),
            ("mysql://a:secret@localhost/?socket=/mysqld.sock", "directory of its own"),
            ("mysql://a:secret@localhost/?socket=/run/../x/mysqld.sock", "absolute"),
            ("mysql://a:secret%zz@localhost/?socket=/run/mysqld/mysqld.sock", "hexadecimal"),
            ("postgres://a:secret@localhost/", "of the form"),
        ] {
            let problem = check(url).unwrap_err();
            assert!(problem.contains(word) && !problem.contains("secret"), "{url}: {problem}");
        }
    }

    #[test]
    fn two_state_directories_have_two_prefixes() {
        let url = "mysql:///?socket=/run/mysqld/mysqld.sock";
        let prefix = |dir: &str| DatabaseServer::check(url, "", "", Path::new(dir)).unwrap().prefix;
        assert_ne!(prefix("/var/lib/a"), prefix("/var/lib/b"));
        assert_eq!(prefix("/var/lib/a"), prefix("/var/lib/a"));
        for wrong in ["node", "Node_", "a-b_", &format!("{}_", "x".repeat(32))] {
            assert!(DatabaseServer::check(url, "", wrong, Path::new("/x")).is_err(), "{wrong}");
        }
    }
}
