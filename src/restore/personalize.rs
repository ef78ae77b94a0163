//! Giving a clone its own identity, before any route leads to it.
//!
//! Works from outside, through `/proc/PID/root` and the database's socket (the
//! clone's own server's, or the shared server's as the clone's user): no
//! process is started inside. Files are opened below the clone's root with
//! `RESOLVE_IN_ROOT`, so that a link in the golden cannot point at the host.
//! Undo: none; a clone that could not be personalized is thrown away.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::Path;

use mysql_async::OptsBuilder;
use mysql_async::prelude::Queryable as _;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, openat2, renameat, unlinkat};
use secrecy::ExposeSecret as _;

use super::values::{RenderError, Values};
use crate::engine::OwnDatabase;
use crate::failpoint;
use crate::golden::recipe::{PersonalFile, Personalize, Run};
use crate::host::process;

/// Name of a file half written, in the directory of the file it becomes.
const UNFINISHED: &str = ".personalize";

/// The identity could not be given.
#[derive(Debug, thiserror::Error)]
pub enum PersonalizeError {
    /// The recipe asks for something unknown.
    #[error("the recipe's personalize section cannot be used")]
    Render(#[source] RenderError),
    /// A file of the clone.
    #[error("cannot rewrite {path} in the clone")]
    File {
        /// Its path inside.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A sentinel is not where the recipe says.
    #[error("{path} in the clone does not contain the text to replace: {find:?}")]
    NotFound {
        /// The file's path inside.
        path: String,
        /// The sentinel.
        find: String,
    },
    /// The database.
    #[error("the clone's database refused: {doing}")]
    Sql {
        /// The statement, without its arguments.
        doing: String,
        /// Why.
        #[source]
        source: mysql_async::Error,
    },
    /// The host name.
    #[error("cannot set the clone's host name")]
    HostName(#[source] io::Error),
}

/// Who is to be personalized.
#[derive(Debug)]
pub struct Subject<'a> {
    /// The clone's first process.
    pub pid: i32,
    /// Its host name, if the recipe wants one.
    pub host_name: &'a str,
    /// Where its own server is.
    pub run: &'a Run,
    /// Its database on a shared server, when it has no server of its own.
    pub database: Option<&'a OwnDatabase>,
}

/// Gives the clone its own identity: host name, files, then the database.
///
/// # Errors
/// [`PersonalizeError`]; the clone is then unfit for use.
pub async fn apply(
    subject: &Subject<'_>,
    recipe: &Personalize,
    values: &Values,
) -> Result<(), PersonalizeError> {
    let failed = |source| PersonalizeError::File { path: "at a fail point".into(), source };
    failpoint::hit("personalize:before").map_err(failed)?;
    if recipe.hostname {
        set_host_name(subject.pid, subject.host_name).await.map_err(PersonalizeError::HostName)?;
    }
    write_files(subject.pid, recipe, values)?;
    let root = Root::of(subject.pid).map_err(|source| PersonalizeError::File { path: "/".into(), source })?;
    for path in &recipe.remove.paths {
        root.remove(path).map_err(|source| PersonalizeError::File { path: path.clone(), source })?;
    }
    failpoint::hit("personalize:after-files").map_err(failed)?;
    if recipe.sql.is_empty() {
        return Ok(());
    }
    match subject.database {
        Some(own) => run_sql(shared(own), recipe, values).await,
        None => {
            let socket = own_socket(&root, subject.run)?;
            run_sql(bundled(&socket, subject.run), recipe, values).await
        }
    }
}

/// Rewrites the recipe's files in a container.
///
/// # Errors
/// [`PersonalizeError`]; some may be rewritten.
pub fn write_files(pid: i32, recipe: &Personalize, values: &Values) -> Result<(), PersonalizeError> {
    let root = Root::of(pid).map_err(|source| PersonalizeError::File { path: "/".into(), source })?;
    recipe.files.iter().try_for_each(|file| rewrite(&root, file, values))
}

/// Reads the last `most` bytes of a file of a running clone, found below its
/// own root. What is there is the stranger's: a pipe is not waited for, and
/// nothing but a file is read.
///
/// # Errors
/// As `open` and `read` answer; `InvalidInput` for what is no regular file.
pub fn read_end(pid: i32, path: &Path, most: u64) -> io::Result<Vec<u8>> {
    use io::{Read as _, Seek as _};
    let path = path.to_str().ok_or(io::ErrorKind::InvalidInput)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut file = File::from(Root::of(pid)?.open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    file.seek(io::SeekFrom::Start(metadata.len().saturating_sub(most)))?;
    let mut content = Vec::new();
    file.take(most).read_to_end(&mut content)?;
    Ok(content)
}

/// Changes a text file of the running clone that has that pid and start time,
/// in place, or makes it for all to read. Too large a file, and what is no regular one, stays.
///
/// # Errors
/// `NotFound` when the process is another one; `InvalidData`; as `open` and
/// `write` answer.
pub fn edit(
    (pid, start_ticks): (i32, u64),
    path: &str,
    most: u64,
    change: impl FnOnce(&str) -> String,
) -> io::Result<()> {
    use io::Seek as _;
    let root = Root::of(pid)?;
    // Looked at afterwards: the root is not of another process that has its pid now.
    if process::start_ticks(pid)? != start_ticks {
        return Err(io::ErrorKind::NotFound.into());
    }
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut file = match root.open(path, flags, Mode::empty()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = root.open(path, flags | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR)?;
            let file = File::from(made);
            // Whatever umask the daemon runs with.
            file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
            file
        }
        opened => File::from(opened?),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > most {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut content = Vec::new();
    (&file).take(most).read_to_end(&mut content)?;
    let before = String::from_utf8_lossy(&content);
    let after = change(&before);
    if after != before {
        file.rewind()?;
        file.write_all(after.as_bytes())?;
        file.set_len(after.len() as u64)?;
    }
    Ok(())
}

/// The clone's root directory.
struct Root(OwnedFd);

impl Root {
    fn of(pid: i32) -> io::Result<Self> {
        File::open(format!("/proc/{pid}/root")).map(|file| Self(file.into()))
    }

    fn open(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(openat2(&self.0, path, flags | OFlags::CLOEXEC, mode, resolve)?)
    }

    /// The directory a path lies in, and its last component.
    fn parent<'p>(&self, path: &'p str) -> io::Result<(OwnedFd, &'p OsStr)> {
        let path = Path::new(path);
        let (Some(parent), Some(name)) = (path.parent().and_then(Path::to_str), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        Ok((self.open(parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?, name))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let (dir, name) = match self.parent(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        match unlinkat(&dir, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn read(&self, path: &str) -> io::Result<(Vec<u8>, std::fs::Metadata)> {
        let mut file = File::from(self.open(path, OFlags::RDONLY, Mode::empty())?);
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        Ok((content, file.metadata()?))
    }

    /// Replaces a file by a new one: who opened the old one keeps it, who opens
    /// the path gets all of the new one.
    fn write(&self, path: &str, content: &[u8], owner: (u32, u32), mode: u32) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Nobody but root may read it while it is not yet what it is to be.
        let unfinished = rustix::fs::openat(&dir, UNFINISHED, flags, Mode::RUSR | Mode::WUSR)?;
        let mut file = File::from(unfinished);
        file.write_all(content)?;
        fchown(&file, Some(owner.0), Some(owner.1))?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        Ok(renameat(dir.as_fd(), UNFINISHED, dir.as_fd(), name)?)
    }

    /// Looks `user:group`, `user` or `uid:gid` up in the clone's own files.
    fn owner(&self, text: &str) -> io::Result<(u32, u32)> {
        let (user, group) = text.split_once(':').unwrap_or((text, text));
        Ok((self.number("/etc/passwd", user)?, self.number("/etc/group", group)?))
    }

    fn number(&self, file: &str, name: &str) -> io::Result<u32> {
        if let Ok(number) = name.parse() {
            return Ok(number);
        }
        let (content, _) = self.read(file)?;
        String::from_utf8_lossy(&content)
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(entry, _)| *entry == name)
            .and_then(|(_, rest)| rest.split(':').nth(1)?.parse().ok())
            .ok_or_else(|| io::Error::other(format!("{name} is not in the clone's {file}")))
    }
}

fn rewrite(root: &Root, file: &PersonalFile, values: &Values) -> Result<(), PersonalizeError> {
    let failed = |source| PersonalizeError::File { path: file.path.clone(), source };
    if let Some(content) = &file.content {
        let content = values.render(content).map_err(PersonalizeError::Render)?;
        let owner = root.owner(file.owner.as_deref().unwrap_or("0:0")).map_err(failed)?;
        let mode = match &file.mode {
            Some(octal) => u32::from_str_radix(octal, 8).map_err(|error| failed(io::Error::other(error)))?,
            None => 0o644,
        };
        return root.write(&file.path, content.as_bytes(), owner, mode & 0o7777).map_err(failed);
    }
    let (mut content, metadata) = root.read(&file.path).map_err(failed)?;
    for replace in &file.replace {
        let with = values.render(&replace.with).map_err(PersonalizeError::Render)?;
        content = replace_all(&content, replace.find.as_bytes(), with.as_bytes()).ok_or_else(|| {
            PersonalizeError::NotFound { path: file.path.clone(), find: replace.find.clone() }
        })?;
    }
    root.write(&file.path, &content, (metadata.uid(), metadata.gid()), metadata.mode() & 0o7777)
        .map_err(failed)
}

/// Replaces every occurrence; none when there is none.
fn replace_all(content: &[u8], find: &[u8], with: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(content.len());
    let mut rest = content;
    let mut found = false;
    while let Some(at) = rest.windows(find.len()).position(|window| window == find) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(with);
        rest = &rest[at + find.len()..];
        found = true;
    }
    out.extend_from_slice(rest);
    found.then_some(out)
}

/// The socket's inode, found below the clone's root: a path would be looked up
/// on the host.
fn own_socket(root: &Root, run: &Run) -> Result<OwnedFd, PersonalizeError> {
    let path = run.database_socket.as_deref().unwrap_or_default();
    let opened = root.open(path, OFlags::PATH, Mode::empty());
    opened.map_err(|source| PersonalizeError::File { path: path.to_owned(), source })
}

fn bundled(socket: &OwnedFd, run: &Run) -> OptsBuilder {
    OptsBuilder::default()
        .socket(Some(format!("/proc/self/fd/{}", socket.as_raw_fd())))
        .user(Some("root"))
        .db_name(run.database.clone())
}

fn shared(own: &OwnDatabase) -> OptsBuilder {
    OptsBuilder::default()
        .socket(Some(own.socket.display().to_string()))
        .user(Some(&own.user))
        .pass(Some(own.password.expose_secret()))
        .db_name(Some(&own.name))
}

async fn run_sql(
    options: OptsBuilder,
    recipe: &Personalize,
    values: &Values,
) -> Result<(), PersonalizeError> {
    let failed = |doing: &str| {
        let doing = doing.to_owned();
        move |source| PersonalizeError::Sql { doing, source }
    };
    // Known values, so that the driver need not ask for them.
    let options = options.max_allowed_packet(Some(1 << 20)).wait_timeout(Some(60)).stmt_cache_size(0);
    let mut connection = mysql_async::Conn::new(options).await.map_err(failed("connect"))?;
    for step in &recipe.sql {
        let args = step.args.iter().map(|arg| values.render(arg)).collect::<Result<Vec<String>, _>>();
        let args = args.map_err(PersonalizeError::Render)?;
        let done = if args.is_empty() {
            connection.query_drop(&step.statement).await
        } else {
            connection.exec_drop(&step.statement, args).await
        };
        done.map_err(failed(&step.statement))?;
    }
    connection.disconnect().await.map_err(failed("disconnect"))
}

/// Sets the host name in the clone's UTS namespace, from a thread that ends
/// afterwards: no shared thread may come back in another namespace.
async fn set_host_name(pid: i32, name: &str) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/uts"))?;
    let name = name.to_owned();
    let (answer, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("uts".into()).spawn(move || {
        let kind = Some(rustix::thread::LinkNameSpaceType::HostNameAndNISDomainName);
        let set = rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)
            .and_then(|()| rustix::system::sethostname(name.as_bytes()));
        let _ = answer.send(set);
    })?;
    result.await.map_err(io::Error::other)?.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_occurrence_is_replaced_and_none_is_an_error() {
        assert_eq!(replace_all(b"aXbXc", b"X", b"YY").as_deref(), Some(&b"aYYbYYc"[..]));
        assert_eq!(replace_all(b"abc", b"X", b"Y"), None);
    }

    #[test]
    fn a_file_is_replaced_below_the_root_and_a_link_cannot_lead_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root(File::open(dir.path()).unwrap().into());
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        let me = dir.path().metadata().unwrap();
        root.write("/link/x.ini", b"one", (me.uid(), me.gid()), 0o640).unwrap();
        let written = dir.path().join("etc/x.ini");
        assert_eq!(std::fs::read(&written).unwrap(), b"one");
        assert_eq!(written.metadata().unwrap().mode() & 0o777, 0o640);
        root.remove("/link/x.ini").unwrap();
        root.remove("/link/x.ini").unwrap();
        assert!(!written.try_exists().unwrap());
    }

    #[test]
    fn a_file_is_edited_in_place_and_only_of_the_process_that_is_meant() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts").display().to_string();
        let me = i32::try_from(std::process::id()).unwrap();
        let ticks = process::start_ticks(me).unwrap();
        edit((me, ticks), &path, 100, |text| format!("{text}one and two\n")).unwrap();
        edit((me, ticks), &path, 100, |text| text.replace("one and ", "")).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
        let other = edit((me, ticks + 1), &path, 100, |_| "three".into()).unwrap_err();
        assert_eq!(other.kind(), io::ErrorKind::NotFound);
        assert!(edit((me, ticks), &path, 3, |_| "three".into()).is_err(), "too large");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(edit((me, ticks), &path, 1 << 20, |_| "three".into()).is_err(), "a link");
    }

    #[test]
    fn owners_are_looked_up_in_the_clones_own_files() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), "root:x:0:0::/:/bin/sh\nwww-data:x:33:33::/:/x\n")
            .unwrap();
        std::fs::write(dir.path().join("etc/group"), "root:x:0:\nwww-data:x:34:\n").unwrap();
        let root = Root(File::open(dir.path()).unwrap().into());
        assert_eq!(root.owner("root:www-data").unwrap(), (0, 34));
        assert_eq!(root.owner("5:6").unwrap(), (5, 6));
        assert!(root.owner("nobody").is_err());
    }
}
