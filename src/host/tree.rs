//! Trees that a stranger made: removed, measured and copied without trusting their
//! shape.
//!
//! A shop can nest directories without end, longer than any path may be and deeper
//! than any stack. So a tree is walked down and up by single names, nothing here calls
//! itself, and nothing is moved or made: a full disk has room for removing alone.
//! Links are never followed.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2, unlinkat};
use rustix::io::Errno;
use tokio::process::Command;

/// A copy by reference takes milliseconds, one of DISK_MAX's bytes seconds.
const COPY_DEADLINE: Duration = Duration::from_secs(60);

/// Removes a tree, whatever is in it; absent is fine.
///
/// # Errors
/// As `open` and `unlink` answer; call again later.
pub fn remove(top: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (top.parent(), top.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = match rustix::fs::open(parent, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    remove_in(parent.as_fd(), &CString::new(name.as_bytes())?)
}

/// Removes a tree by its name in a directory, whatever is in it; absent is fine.
///
/// # Errors
/// As above.
pub(super) fn remove_in(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says EISDIR, POSIX EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let top = open_in(parent, name)?;
    empty(&top)?;
    drop(top);
    match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes a tree by its path below a root that a stranger made, or with a slash at
/// the path's end what is in it: no link on the way leads out of the root, absent is
/// fine.
///
/// # Errors
/// As above; also when a link on the way leads out.
pub fn remove_below(root: &Path, path: &str) -> io::Result<()> {
    let stays = path.ends_with('/');
    let path = path.trim_matches('/');
    let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
    if matches!(name, "" | "." | "..") {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let root = rustix::fs::open(root, DIRECTORY, Mode::empty())?;
    let open = if stays { path } else { parent };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat2(&root, open, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Ok(opened) if stays => empty(&opened),
        opened => remove_in(opened?.as_fd(), &CString::new(name)?),
    }
}

pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn open_in(dir: BorrowedFd<'_>, name: &CStr) -> io::Result<OwnedFd> {
    Ok(openat(dir, name, DIRECTORY, Mode::empty())?)
}

/// Removes all that is in a directory, with one directory open at a time.
fn empty(top: &OwnedFd) -> io::Result<()> {
    let mut at = top.try_clone()?;
    // What is left to do in each directory from the top to `at`, and their names.
    let (mut left, mut names) = (vec![clear(&at)?], Vec::new());
    while let Some(here) = left.last_mut() {
        if let Some(name) = here.pop() {
            at = open_in(at.as_fd(), &name)?;
            left.push(clear(&at)?);
            names.push(name);
            continue;
        }
        left.pop();
        if let Some(name) = names.pop() {
            let above = open_in(at.as_fd(), c"..")?;
            // Somebody who still moves directories about must not lead out of the tree.
            let (is, was) =
                (rustix::fs::statat(&above, &name, AtFlags::SYMLINK_NOFOLLOW)?, rustix::fs::fstat(&at)?);
            if (is.st_dev, is.st_ino) != (was.st_dev, was.st_ino) {
                return Err(io::Error::other("a directory was moved while it was removed"));
            }
            gone(unlinkat(&above, &name, AtFlags::REMOVEDIR))?;
            at = above;
        }
    }
    Ok(())
}

/// Removes what is no directory, and directories with nothing in them; answers the
/// others.
fn clear(dir: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut full = Vec::new();
    for (name, kind) in entries(dir.as_fd())? {
        if kind != FileType::Directory {
            gone(unlinkat(dir, &name, AtFlags::empty()))?;
            continue;
        }
        match unlinkat(dir, &name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => full.push(name),
            other => gone(other)?,
        }
    }
    Ok(full)
}

fn gone(removed: rustix::io::Result<()>) -> io::Result<()> {
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Names and kinds of what is in a directory; read whole, since it is changed
/// meanwhile.
pub(super) fn entries(dir: BorrowedFd<'_>) -> io::Result<Vec<(CString, FileType)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            known => known,
        };
        found.push((name.to_owned(), kind));
    }
    Ok(found)
}

/// What a tree may be at most.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// By the files' own account: a hole counts, since whoever reads it gets it all.
    pub bytes: u64,
    /// Files and directories.
    pub entries: usize,
    /// Directories in each other; each is open meanwhile.
    pub depth: usize,
}

/// Whether a tree that nobody changes is within bounds.
///
/// # Errors
/// `InvalidData` with what it has too much of, or as `open` and `stat` answer.
pub fn check(top: &Path, bounds: Bounds) -> io::Result<()> {
    let top = rustix::fs::open(top, DIRECTORY, Mode::empty())?;
    let mut seen = Seen { bounds, bytes: 0, entries: 0 };
    // The directories from the top down to where it is, with what is left to do in each.
    let mut open = vec![(seen.look(&top)?, top)];
    while let Some((left, here)) = open.last_mut() {
        let Some(name) = left.pop() else {
            open.pop();
            continue;
        };
        let below = open_in(here.as_fd(), &name)?;
        if open.len() >= bounds.depth {
            return Err(too_much(format!("they are nested more than {} deep", bounds.depth)));
        }
        open.push((seen.look(&below)?, below));
    }
    Ok(())
}

fn too_much(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// What was seen of a tree.
struct Seen {
    bounds: Bounds,
    bytes: u64,
    entries: usize,
}

impl Seen {
    /// Counts what is in a directory; answers the directories in it.
    fn look(&mut self, dir: &OwnedFd) -> io::Result<Vec<CString>> {
        let mut directories = Vec::new();
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.entries += 1;
            if self.entries > self.bounds.entries {
                return Err(too_much(format!("there are more than {}", self.bounds.entries)));
            }
            let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                directories.push(name.to_owned());
                continue;
            }
            self.bytes = self.bytes.saturating_add(u64::try_from(stat.st_size).unwrap_or(u64::MAX));
            if self.bytes > self.bounds.bytes {
                let most = self.bounds.bytes;
                return Err(too_much(format!("they say that they are larger than {most} bytes together")));
            }
        }
        Ok(directories)
    }
}

/// Copies what is in a directory into another that is there, by reference where the
/// file system can: with owners, modes, xattrs, links and holes as they are.
///
/// # Errors
/// When `cp` says no, or takes too long; what it copied is the caller's to remove.
pub async fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut command = Command::new("cp");
    command.args(["--archive", "--reflink=auto", "--sparse=auto", "--one-file-system", "--"]);
    // What is in it, with the directory's own looks.
    command.arg(from.join(OsStr::new("."))).arg(to).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(COPY_DEADLINE, command.output()).await {
        Ok(output) => output?,
        Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the copy takes too long")),
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let kind = match said.contains("No space left") || said.contains("quota exceeded") {
        true => io::ErrorKind::StorageFull,
        false => io::ErrorKind::Other,
    };
    // A stranger's names may be in it, as many as there are.
    Err(io::Error::new(kind, said.trim().chars().take(500).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_any_path_or_stack_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        std::fs::create_dir(&top).unwrap();
        std::os::unix::fs::symlink(dir.path(), top.join("link")).unwrap();
        std::fs::write(dir.path().join("kept"), "").unwrap();
        std::fs::write(top.join(".1"), "in the way").unwrap();
        let name = CString::new("d".repeat(200)).unwrap();
        let mut at = rustix::fs::open(&top, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..5_000 {
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&at, c"beside", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&at, c"beside/inner", Mode::RWXU).unwrap();
            at = open_in(at.as_fd(), &name).unwrap();
        }
        drop(at);
        remove(&top).unwrap();
        remove(&top).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "what a link leads to is kept");
    }

    #[test]
    fn a_link_in_the_trees_place_is_removed_and_not_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("kept")).unwrap();
        std::fs::write(dir.path().join("kept/file"), "").unwrap();
        std::os::unix::fs::symlink("kept", dir.path().join("link")).unwrap();
        remove(&dir.path().join("link")).unwrap();
        assert!(dir.path().join("kept/file").try_exists().unwrap());
        assert!(!dir.path().join("link").try_exists().unwrap());
    }

    #[test]
    fn what_is_removed_below_a_root_is_below_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("a/cache/deep")).unwrap();
        std::fs::create_dir(dir.path().join("kept")).unwrap();
        std::os::unix::fs::symlink(dir.path(), root.join("out")).unwrap();
        std::os::unix::fs::symlink("a", root.join("in")).unwrap();
        assert!(remove_below(&root, "/out/kept").is_err());
        assert!(remove_below(&root, "/../kept").is_err());
        assert!(remove_below(&root, "/").is_err() && remove_below(&root, "/a/..").is_err());
        remove_below(&root, "/in/cache/").unwrap();
        assert_eq!(std::fs::read_dir(root.join("a/cache")).unwrap().count(), 0, "it is emptied and stays");
        remove_below(&root, "/in/cache").unwrap();
        remove_below(&root, "/nothing/at/all").unwrap();
        remove_below(&root, "/out").unwrap();
        let there = |path: &str| dir.path().join(path).symlink_metadata().is_ok();
        assert!(there("kept") && there("root/a") && !there("root/a/cache") && !there("root/out"));
    }

    #[test]
    fn a_tree_is_measured_by_what_it_says_of_itself_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        std::fs::create_dir_all(top.join("a/b")).unwrap();
        std::fs::write(top.join("a/b/file"), "12345").unwrap();
        std::fs::write(dir.path().join("large"), "much").unwrap();
        std::os::unix::fs::symlink("../large", top.join("ln")).unwrap();
        std::os::unix::fs::symlink("..", top.join("up")).unwrap();
        // The links are as large as their texts.
        let most = Bounds { bytes: 5 + 8 + 2, entries: 5, depth: 3 };
        check(&top, most).unwrap();
        for (bounds, why) in [
            (Bounds { bytes: 14, ..most }, "larger than 14 bytes"),
            (Bounds { entries: 4, ..most }, "more than 4"),
            (Bounds { depth: 2, ..most }, "more than 2 deep"),
        ] {
            let error = check(&top, bounds).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
        std::fs::File::create(top.join("hole")).unwrap().set_len(1 << 40).unwrap();
        assert!(check(&top, Bounds { entries: 9, ..most }).is_err(), "a hole counts");
        assert!(check(&top.join("up"), most).is_err(), "nor the one at the top");
    }

    #[tokio::test]
    async fn a_copy_keeps_holes_links_and_modes() {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir(&from).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::File::create(from.join("sparse")).unwrap().set_len(1 << 30).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", from.join("link")).unwrap();
        std::fs::write(from.join("own"), "x").unwrap();
        std::fs::set_permissions(from.join("own"), std::fs::Permissions::from_mode(0o640)).unwrap();
        copy(&from, &to).await.unwrap();
        let sparse = to.join("sparse").metadata().unwrap();
        assert!(sparse.len() == 1 << 30 && sparse.blocks() < 1000);
        assert!(to.join("link").symlink_metadata().unwrap().is_symlink());
        assert_eq!(to.join("own").metadata().unwrap().mode() & 0o777, 0o640);
        assert!(copy(&dir.path().join("absent"), &to).await.is_err());
    }
}
