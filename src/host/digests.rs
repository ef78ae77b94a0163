//! Digests of files that are written once and used for long, to tell whether a disk
//! has changed them since.
//!
//! Called by [`crate::snapshot::prepare`] for what shops stand on, and by the restore
//! driver for shops that sleep. Of names, sizes and owners a file system keeps checks of
//! its own; of content XFS and ext4 keep none, so a bit that turns on the disk is read as
//! if it had been written. (fs-verity would tell at each read, but XFS, which copies by
//! reference, has none.)
//!
//! ```text
//! <BLAKE3> <size> <kind> <name>\0    for each regular file and link, by name
//! <BLAKE3 of all before>
//! ```
//!
//! Invariants: holes and zeros are the same, so a copy that leaves holes has the same
//! digests; no link is followed; what is neither a file nor a link is left out.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Zeros are told apart by the page: CRIU's unit, and most file systems'.
const PAGE: usize = 4096;

static ZEROS: [u8; PAGE] = [0; PAGE];

/// For reading; whole pages.
const BUFFER: usize = 1 << 20;

/// More threads read no faster from one disk.
const THREADS_MAX: usize = 4;

/// In hexadecimal.
const DIGEST_LEN: usize = 64;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    digest: String,
    size: u64,
    is_link: bool,
}

/// The digests of a tree's files, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Digests(BTreeMap<PathBuf, Entry>);

impl Digests {
    /// Reads all files of a tree that `wanted` says yes to, by their names in it. Blocks.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn of(tree: &Path, wanted: impl Fn(&Path) -> bool) -> io::Result<Self> {
        let mut names = names(tree)?;
        names.retain(|name| wanted(name));
        let entries = each(&names, |name, buffer| entry(&tree.join(name), buffer));
        let entries = names.iter().cloned().zip(entries).map(|(name, entry)| Ok((name, entry?)));
        entries.collect::<io::Result<_>>().map(Self)
    }

    /// Names of files of that tree that are not as they were; also those that are not
    /// there, or that the disk does not give. Blocks.
    ///
    /// # Errors
    /// When one cannot be read for another reason.
    pub fn differing(&self, tree: &Path) -> io::Result<Vec<PathBuf>> {
        let names: Vec<PathBuf> = self.0.keys().cloned().collect();
        let found = each(&names, |name, buffer| entry(&tree.join(name), buffer));
        let mut differing = Vec::new();
        for (name, found) in names.into_iter().zip(found) {
            let same = match found {
                Ok(found) => self.0.get(&name) == Some(&found),
                Err(error) if is_damage(&error) => false,
                Err(error) => return Err(named(&name, &error)),
            };
            if !same {
                differing.push(name);
            }
        }
        Ok(differing)
    }

    /// Whether both say the same of a file.
    #[must_use]
    pub fn agree(&self, other: &Self, name: &Path) -> bool {
        self.0.get(name).is_some_and(|entry| other.0.get(name) == Some(entry))
    }

    /// What a tree's files are by the file system's account: where each is, its size, and
    /// when it was changed. Another one after files were written or exchanged, though not
    /// after the disk has turned a bit. Reads no content.
    ///
    /// # Errors
    /// When one is not there.
    pub fn stamp(&self, tree: &Path) -> io::Result<String> {
        let mut hasher = blake3::Hasher::new();
        for (name, entry) in &self.0 {
            let found = tree.join(name).symlink_metadata()?;
            hasher.update(entry.digest.as_bytes());
            for number in [found.ino(), found.size()] {
                hasher.update(&number.to_le_bytes());
            }
            for number in [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()] {
                hasher.update(&number.to_le_bytes());
            }
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Writes them into a new file, or in place of what is there; not synced.
    ///
    /// # Errors
    /// When the disk says no.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (name, Entry { digest, size, is_link }) in &self.0 {
            let kind = if *is_link { 'l' } else { 'f' };
            write!(bytes, "{digest} {size} {kind} ")?;
            bytes.extend(name.as_os_str().as_bytes());
            bytes.push(0);
        }
        let check = blake3::hash(&bytes).to_hex();
        bytes.extend(check.as_bytes());
        File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(&bytes)
    }

    /// Reads what was written.
    ///
    /// # Errors
    /// `InvalidData` when it is damaged, or as `read` answers.
    pub fn read(path: &Path) -> io::Result<Self> {
        let bytes = std::fs::read(path)?;
        Self::parse(&bytes).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged", path.display()))
        })
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (records, check) = bytes.split_at_checked(bytes.len().checked_sub(DIGEST_LEN)?)?;
        if blake3::hash(records).to_hex().as_bytes() != check {
            return None;
        }
        let entry = |record: &[u8]| {
            let mut fields = record.splitn(4, |byte| *byte == b' ');
            let mut text = || std::str::from_utf8(fields.next()?).ok();
            let (digest, size) = (text()?.to_owned(), text()?.parse().ok()?);
            let is_link = match text()? {
                "f" => false,
                "l" => true,
                _ => return None,
            };
            Some((OsStr::from_bytes(fields.next()?).into(), Entry { digest, size, is_link }))
        };
        let records = records.split(|byte| *byte == 0).filter(|record| !record.is_empty());
        records.map(entry).collect::<Option<_>>().map(Self)
    }
}

fn named(name: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", name.display()))
}

/// Whether a file that cannot be read is one that the disk has lost.
fn is_damage(error: &io::Error) -> bool {
    let lost = [Errno::IO, Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::NODATA];
    // Another kind of file than was written.
    error.kind() == io::ErrorKind::InvalidData
        || error.raw_os_error().is_some_and(|code| lost.contains(&Errno::from_raw_os_error(code)))
}

/// Names of all regular files and links of a tree, sorted.
fn names(tree: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut found, mut directories) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(tree.join(&directory))? {
            let entry = entry?;
            let (name, kind) = (directory.join(entry.file_name()), entry.file_type()?);
            if kind.is_dir() {
                directories.push(name);
            } else if kind.is_file() || kind.is_symlink() {
                found.push(name);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Does the same with each, by several threads; answers in their order.
fn each<T: Send>(names: &[PathBuf], work: impl Fn(&Path, &mut [u8]) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).clamp(1, THREADS_MAX);
    let next = AtomicUsize::new(0);
    let worker = || {
        let (mut buffer, mut done) = (vec![0; BUFFER], Vec::new());
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some(name) = names.get(n) else { return done };
            done.push((n, work(name, &mut buffer)));
        }
    };
    let mut done = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(names.len())).map(|_| scope.spawn(worker)).collect();
        let mut done = worker();
        for other in others {
            // A panic goes on where the others' answers are waited for.
            done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(n, _)| *n);
    done.into_iter().map(|(_, answer)| answer).collect()
}

fn entry(path: &Path, buffer: &mut [u8]) -> io::Result<Entry> {
    let found = path.symlink_metadata()?;
    if found.is_symlink() {
        let target = std::fs::read_link(path)?;
        let digest = blake3::hash(target.as_os_str().as_bytes());
        return Ok(Entry { digest: digest.to_hex().to_string(), size: found.len(), is_link: true });
    }
    if !found.is_file() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).map_err(io::Error::other)?;
    let file = File::options().read(true).custom_flags(no_follow).open(path)?;
    let found = file.metadata()?;
    let digest = content(&file, &found, buffer)?;
    Ok(Entry { digest: digest.to_hex().to_string(), size: found.len(), is_link: false })
}

/// Digests what is not zero, and where it is.
fn content(file: &File, found: &Metadata, buffer: &mut [u8]) -> io::Result<blake3::Hash> {
    let mut nonzero = Nonzero { hasher: blake3::Hasher::new(), end: 0 };
    let is_sparse = found.blocks() * 512 < found.len();
    let mut at = 0;
    while at < found.len() {
        let end = if is_sparse {
            match rustix::fs::seek(file, SeekFrom::Data(at)) {
                // Nothing but a hole is left.
                Err(Errno::NXIO) => break,
                begin => at = begin? / PAGE as u64 * PAGE as u64,
            }
            let hole = rustix::fs::seek(file, SeekFrom::Hole(at))?;
            (hole.max(at + 1).div_ceil(PAGE as u64) * PAGE as u64).min(found.len())
        } else {
            found.len()
        };
        while at < end {
            let wanted = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
            let read = file.read_at(&mut buffer[..wanted], at)?;
            if read == 0 {
                // It is shorter than it was a moment ago.
                return Err(io::ErrorKind::InvalidData.into());
            }
            // Whole pages, but for the last one.
            let whole = if read < wanted && read >= PAGE { read / PAGE * PAGE } else { read };
            nonzero.saw(at, &buffer[..whole]);
            at += whole as u64;
        }
    }
    Ok(nonzero.hasher.finalize())
}

/// Digests runs of pages that are not zero, each with its place.
struct Nonzero {
    hasher: blake3::Hasher,
    /// Where the last run ends.
    end: u64,
}

impl Nonzero {
    fn saw(&mut self, at: u64, bytes: &[u8]) {
        let mut run = None;
        for (n, page) in bytes.chunks(PAGE).enumerate() {
            let is_zero = page == &ZEROS[..page.len()];
            match (is_zero, run) {
                (false, None) => run = Some(n * PAGE),
                (true, Some(begin)) => {
                    self.add(at, &bytes[..n * PAGE], begin);
                    run = None;
                }
                _ => {}
            }
        }
        if let Some(begin) = run {
            self.add(at, bytes, begin);
        }
    }

    fn add(&mut self, at: u64, bytes: &[u8], begin: usize) {
        let place = at + begin as u64;
        if place != self.end || place == 0 {
            self.hasher.update(&place.to_le_bytes());
        }
        self.hasher.update(&bytes[begin..]);
        self.end = at + bytes.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(_: &Path) -> bool {
        true
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/page"), vec![7; 3 * PAGE + 5]).unwrap();
        std::fs::write(dir.path().join("empty"), "").unwrap();
        std::fs::write(dir.path().join(OsStr::from_bytes(b"a/odd \xff\nname")), "odd").unwrap();
        std::os::unix::fs::symlink("a/b/page", dir.path().join("link")).unwrap();
        dir
    }

    #[test]
    fn every_damage_of_a_file_is_told_and_nothing_else() {
        let dir = tree();
        let digests = Digests::of(dir.path(), all).unwrap();
        assert_eq!(digests.differing(dir.path()).unwrap(), Vec::<PathBuf>::new());
        let page = dir.path().join("a/b/page");
        let whole = std::fs::read(&page).unwrap();
        let mut turned = whole.clone();
        for at in [0, PAGE - 1, PAGE, 2 * PAGE + 17, whole.len() - 1] {
            turned[at] ^= 1 << (at % 8);
            std::fs::write(&page, &turned).unwrap();
            assert_eq!(digests.differing(dir.path()).unwrap(), [Path::new("a/b/page")], "{at}");
            turned[at] = whole[at];
        }
        for damaged in [&whole[..whole.len() - 1], &[&whole[..], &[0]].concat(), &vec![0; whole.len()], b""] {
            std::fs::write(&page, damaged).unwrap();
            assert_eq!(digests.differing(dir.path()).unwrap(), [Path::new("a/b/page")]);
        }
        std::fs::write(&page, &whole).unwrap();
        std::fs::remove_file(dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("a/b/pagf", dir.path().join("link")).unwrap();
        std::fs::remove_file(dir.path().join("empty")).unwrap();
        std::fs::create_dir(dir.path().join("empty")).unwrap();
        assert_eq!(digests.differing(dir.path()).unwrap(), [Path::new("empty"), Path::new("link")]);
        std::fs::remove_dir_all(dir.path().join("a")).unwrap();
        assert_eq!(digests.differing(dir.path()).unwrap().len(), 4);
    }

    #[test]
    fn pages_that_have_moved_are_not_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (file, page) = (dir.path().join("file"), vec![1; PAGE]);
        let zeros = vec![0; PAGE];
        std::fs::write(&file, [&page[..], &zeros, &zeros].concat()).unwrap();
        let digests = Digests::of(dir.path(), all).unwrap();
        for moved in [[&zeros[..], &page, &zeros].concat(), [&zeros[..], &zeros, &page].concat()] {
            std::fs::write(&file, moved).unwrap();
            assert_eq!(digests.differing(dir.path()).unwrap().len(), 1);
        }
    }

    #[test]
    fn a_hole_is_as_good_as_zeros_and_costs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (size, places) = (8 * BUFFER, [0, 3 * PAGE + 7, BUFFER - 1, 5 * BUFFER + 1]);
        let mut full = vec![0; size];
        let sparse = File::create(dir.path().join("file")).unwrap();
        sparse.set_len(size as u64).unwrap();
        for at in places {
            full[at] = 9;
            sparse.write_all_at(&[9], at as u64).unwrap();
        }
        let digests = Digests::of(dir.path(), all).unwrap();
        std::fs::write(dir.path().join("file"), full).unwrap();
        assert_eq!(digests.differing(dir.path()).unwrap(), Vec::<PathBuf>::new());
        // A terabyte.
        File::create(dir.path().join("hole")).unwrap().set_len(1 << 40).unwrap();
        Digests::of(dir.path(), all).unwrap();
    }

    #[test]
    fn what_is_written_is_read_again_and_a_damaged_record_is_none() {
        let dir = tree();
        let digests = Digests::of(dir.path(), |name| name != Path::new("empty")).unwrap();
        assert_eq!(digests.0.len(), 3);
        let path = dir.path().join("digests");
        digests.write(&path).unwrap();
        let read = || match Digests::read(&path) {
            Ok(digests) => Some(digests),
            Err(error) => {
                assert!(error.kind() == io::ErrorKind::InvalidData && error.to_string().contains("digests"));
                None
            }
        };
        assert_eq!(read(), Some(digests));
        crate::sealed::damaged_is_refused_or_the_same(&path, read);
    }

    #[test]
    fn a_stamp_changes_with_what_is_written_and_with_nothing_else() {
        let dir = tree();
        let digests = Digests::of(dir.path(), all).unwrap();
        let stamp = || digests.stamp(dir.path());
        let before = stamp().unwrap();
        std::fs::read(dir.path().join("a/b/page")).unwrap();
        std::fs::write(dir.path().join("another"), "").unwrap();
        assert_eq!(stamp().unwrap(), before);
        std::fs::write(dir.path().join("a/b/page"), "else").unwrap();
        assert_ne!(stamp().unwrap(), before);
        std::fs::remove_file(dir.path().join("empty")).unwrap();
        assert_eq!(stamp().unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
