//! A directory as a compressed archive and back, digested on the way.
//!
//! tar with pax headers, so that what overlayfs keeps in the upper directory
//! survives: whiteouts (character devices 0:0), opaque marks (`trusted.`
//! xattrs), hard links, owners and modes. Sockets are left out: CRIU makes
//! them anew. Called by the checkpoint procedure and by [`super::prepare`].

use std::collections::HashMap;
use std::ffi::{CString, OsString};
use std::fs::{File, Metadata};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use tar::{EntryType, Header};

use super::manifest::Archive;
use crate::error::{DiskError, ErrorKind};

/// zstd's level: 3 is its default; on memory images higher ones gain little and
/// cost seconds.
const LEVEL: i32 = 3;

/// Of overlayfs's whiteouts, which are character devices.
const WHITEOUT: (u32, u32) = (0, 0);

/// Why an archive has no other device: it would be as good as the host's own.
const DEVICE_NODE: &str = "a snapshot has no device nodes";

/// The pax key prefix for xattrs that tar programs agree on.
const XATTR_PREFIX: &str = "SCHILY.xattr.";

/// An archive could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The disk said no.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The content is not what was once written.
    #[error("{} is damaged: its BLAKE3 is {found}, the manifest says {expected}", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// The manifest's digest.
        expected: String,
        /// The file's.
        found: String,
    },
}

impl ArchiveError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Disk(error) => error.kind(),
            Self::Damaged { .. } => ErrorKind::Invalid,
        }
    }
}

fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ArchiveError + 'a {
    move |source| DiskError::at(doing, path)(source).into()
}

/// Passes bytes on, digests and counts them.
struct Digest<T> {
    inner: T,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<T> Digest<T> {
    fn new(inner: T) -> Self {
        Self { inner, hasher: blake3::Hasher::new(), bytes: 0 }
    }

    fn saw(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

impl<T: Write> Write for Digest<T> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(buffer)?;
        self.saw(&buffer[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Digest<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.saw(&buffer[..length]);
        Ok(length)
    }
}

/// Packs the content of `roots` (each under its name in the archive, `""` for
/// the top) into the new file `path`, mode 0600, synced to disk.
///
/// # Errors
/// [`ArchiveError::Disk`]; a file half written is left to the caller, who throws
/// its directory away.
pub fn pack(roots: &[(&str, &Path)], path: &Path) -> Result<Archive, ArchiveError> {
    let file =
        File::options().write(true).create_new(true).mode(0o600).open(path).map_err(at("create", path))?;
    let digest = Digest::new(BufWriter::with_capacity(1 << 20, file));
    let mut encoder = zstd::Encoder::new(digest, LEVEL).map_err(at("compress into", path))?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    encoder.multithread(u32::try_from(threads).unwrap_or(1)).map_err(at("compress into", path))?;
    let mut builder = tar::Builder::new(Digest::new(encoder));
    let mut links = HashMap::new();
    for (name, root) in roots {
        pack_tree(&mut builder, root, Path::new(name), &mut links).map_err(at("pack", root))?;
    }
    let write = |error| at("write", path)(error);
    let raw = builder.into_inner().map_err(write)?;
    let raw_bytes = raw.bytes;
    let digest = raw.inner.finish().map_err(write)?;
    let archive =
        Archive { blake3: digest.hasher.finalize().to_hex().to_string(), bytes: digest.bytes, raw_bytes };
    let file = digest.inner.into_inner().map_err(|error| write(error.into_error()))?;
    file.sync_all().map_err(at("sync", path))?;
    Ok(archive)
}

type Links = HashMap<(u64, u64), PathBuf>;

/// A directory whose content is being packed.
struct Open {
    from: PathBuf,
    name: PathBuf,
    left: std::vec::IntoIter<OsString>,
}

/// Not by calling itself: a shop can nest directories deeper than any stack.
fn pack_tree<W: Write>(
    builder: &mut tar::Builder<W>,
    from: &Path,
    name: &Path,
    links: &mut Links,
) -> io::Result<()> {
    let mut open = Vec::from_iter(pack_one(builder, from.to_owned(), name.to_owned(), links)?);
    while let Some(dir) = open.last_mut() {
        let Some(entry) = dir.left.next() else {
            open.pop();
            continue;
        };
        let (from, name) = (dir.from.join(&entry), dir.name.join(&entry));
        open.extend(pack_one(builder, from, name, links)?);
    }
    Ok(())
}

/// Packs what is there; a directory's content is still to come.
fn pack_one<W: Write>(
    builder: &mut tar::Builder<W>,
    from: PathBuf,
    name: PathBuf,
    links: &mut Links,
) -> io::Result<Option<Open>> {
    let metadata = from.symlink_metadata()?;
    if metadata.file_type().is_socket() {
        return Ok(None);
    }
    pack_entry(builder, &from, &name, &metadata, links)?;
    if !metadata.is_dir() {
        return Ok(None);
    }
    let mut entries: Vec<OsString> =
        std::fs::read_dir(&from)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
    entries.sort();
    Ok(Some(Open { from, name, left: entries.into_iter() }))
}

fn pack_entry<W: Write>(
    builder: &mut tar::Builder<W>,
    from: &Path,
    name: &Path,
    metadata: &Metadata,
    links: &mut Links,
) -> io::Result<()> {
    let shown = if name.as_os_str().is_empty() { Path::new(".") } else { name };
    let xattrs = read_xattrs(from)?;
    if !xattrs.is_empty() {
        builder.append_pax_extensions(xattrs.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
    }
    let mut header = Header::new_gnu();
    header.set_metadata(metadata);
    let kind = metadata.file_type();
    if kind.is_symlink() {
        header.set_size(0);
        return builder.append_link(&mut header, shown, std::fs::read_link(from)?);
    }
    let device = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
    if kind.is_block_device() || (kind.is_char_device() && device != WHITEOUT) {
        return Err(io::Error::other(format!("{}: {DEVICE_NODE}", from.display())));
    }
    if kind.is_char_device() || kind.is_fifo() {
        header.set_size(0);
        header.set_entry_type(if kind.is_fifo() { EntryType::Fifo } else { EntryType::Char });
        header.set_device_major(device.0)?;
        header.set_device_minor(device.1)?;
        return builder.append_data(&mut header, shown, io::empty());
    }
    if kind.is_dir() {
        header.set_size(0);
        return builder.append_data(&mut header, shown, io::empty());
    }
    if metadata.nlink() > 1 {
        match links.entry((metadata.dev(), metadata.ino())) {
            std::collections::hash_map::Entry::Occupied(first) => {
                header.set_entry_type(EntryType::Link);
                header.set_size(0);
                return builder.append_link(&mut header, shown, first.get());
            }
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(shown.to_owned());
            }
        }
    }
    // The file may grow while it is read (a log): take what its header says.
    let content = File::open(from)?.take(metadata.len());
    builder.append_data(&mut header, shown, content)
}

/// Reads all xattrs of a file itself, as pax records.
fn read_xattrs(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = Vec::with_capacity(4096);
    match rustix::fs::llistxattr(path, rustix::buffer::spare_capacity(&mut names)) {
        Ok(_) => {}
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    }
    let mut records = Vec::new();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let text = std::str::from_utf8(name).map_err(io::Error::other)?;
        // Where a file once lay is of no use elsewhere, and overlayfs refuses
        // an upper directory that was bound to other layers.
        if matches!(text, "trusted.overlay.origin" | "trusted.overlay.impure" | "trusted.overlay.uuid") {
            continue;
        }
        if text == "trusted.overlay.metacopy" {
            return Err(io::Error::other(format!(
                "{} holds no data, only a reference to the image: set metacopy=off in storage.conf",
                path.display()
            )));
        }
        let mut value = Vec::with_capacity(64 * 1024);
        let key = CString::new(name).map_err(io::Error::other)?;
        rustix::fs::lgetxattr(path, key, rustix::buffer::spare_capacity(&mut value))?;
        records.push((format!("{XATTR_PREFIX}{text}"), value));
    }
    Ok(records)
}

/// Digests an archive without unpacking it.
///
/// # Errors
/// [`ArchiveError::Damaged`] when it is not what the manifest says.
pub fn verify(path: &Path, expected: &Archive) -> Result<(), ArchiveError> {
    let file = File::open(path).map_err(at("open", path))?;
    let mut digest = Digest::new(BufReader::with_capacity(1 << 20, file));
    io::copy(&mut digest, &mut io::sink()).map_err(at("read", path))?;
    compare(path, expected, &digest.hasher)
}

fn compare(path: &Path, expected: &Archive, hasher: &blake3::Hasher) -> Result<(), ArchiveError> {
    let found = hasher.finalize().to_hex().to_string();
    if found == expected.blake3 {
        return Ok(());
    }
    Err(ArchiveError::Damaged { path: path.to_owned(), expected: expected.blake3.clone(), found })
}

/// Verifies an archive and unpacks it into the empty directory `into`.
///
/// # Errors
/// [`ArchiveError`]. Nothing is unpacked from an archive that is damaged.
pub fn unpack(path: &Path, expected: &Archive, into: &Path) -> Result<(), ArchiveError> {
    // First the digest, then the content: zstd and tar parse only what this
    // program once wrote.
    verify(path, expected)?;
    let file = File::open(path).map_err(at("open", path))?;
    unpack_from(file, expected.raw_bytes, into).map_err(at("unpack", path))
}

/// Unpacks a compressed archive of exactly `raw_bytes` into the empty directory
/// `into`, which nobody else writes to.
///
/// Who signed it may be mistaken or worse: whatever it holds, nothing outside of
/// `into` is touched, and no more than `raw_bytes` are written.
pub(crate) fn unpack_from(compressed: impl Read, raw_bytes: u64, into: &Path) -> io::Result<()> {
    let decoder = zstd::Decoder::new(compressed)?;
    let mut bounded = Bounded { inner: BufReader::with_capacity(1 << 20, decoder), left: raw_bytes };
    let mut archive = tar::Archive::new(&mut bounded);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_preserve_mtime(true);
    archive.set_overwrite(true);
    for entry in archive.entries()? {
        unpack_entry(entry?, into)?;
    }
    // What follows the last entry counts as well.
    io::copy(&mut bounded, &mut io::sink())?;
    match bounded.left {
        0 => Ok(()),
        left => Err(io::Error::other(format!("it ends {left} bytes before the size in the manifest"))),
    }
}

/// Fails where more comes than was announced.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        let left = self.left.checked_sub(length as u64);
        self.left = left.ok_or_else(|| io::Error::other("it holds more than the manifest says"))?;
        Ok(length)
    }
}

/// Whether an entry is of a kind that [`pack`] writes. Sparse files are not: a
/// few bytes of them claim any size.
const fn is_ours(kind: EntryType) -> bool {
    matches!(
        kind,
        EntryType::Regular
            | EntryType::Directory
            | EntryType::Symlink
            | EntryType::Link
            | EntryType::Char
            | EntryType::Fifo
    )
}

/// Refuses a name that leads through anything but directories of the archive.
fn check_parents(into: &Path, name: &Path) -> io::Result<()> {
    let mut parent = into.to_owned();
    let parents = name.parent().into_iter().flat_map(Path::components);
    for part in parents {
        parent.push(part);
        if !parent.symlink_metadata()?.is_dir() {
            return Err(io::Error::other(format!("{} is not in a directory", name.display())));
        }
    }
    Ok(())
}

fn unpack_entry<R: Read>(mut entry: tar::Entry<'_, R>, into: &Path) -> io::Result<()> {
    let name: PathBuf = entry.path()?.components().filter(|part| *part != Component::CurDir).collect();
    let refuse = |why: &str| Err(io::Error::other(format!("{}: {why}", name.display())));
    if !name.components().all(|part| matches!(part, Component::Normal(_))) {
        return refuse("it leaves the archive");
    }
    check_parents(into, &name)?;
    let target = into.join(&name);
    let mut xattrs = Vec::new();
    for record in entry.pax_extensions()?.into_iter().flatten() {
        let record = record?;
        if let Some(key) = record.key().map_err(io::Error::other)?.strip_prefix(XATTR_PREFIX) {
            xattrs.push((key.to_owned(), record.value_bytes().to_owned()));
        }
    }
    let header = entry.header();
    let kind = header.entry_type();
    let number = |value: u64| u32::try_from(value).map_err(io::Error::other);
    let (uid, gid, mode) = (number(header.uid()?)?, number(header.gid()?)?, header.mode()?);
    if !is_ours(kind) {
        return refuse("no snapshot has what it is");
    }
    if name.as_os_str().is_empty() {
        // The top directory is there already; only what it looks like counts.
        if kind != EntryType::Directory {
            return refuse("the top of the archive is not a directory");
        }
    } else if kind.is_character_special() || kind.is_fifo() {
        let device = (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
        let file_type = if kind.is_fifo() {
            rustix::fs::FileType::Fifo
        } else if device == WHITEOUT {
            rustix::fs::FileType::CharacterDevice
        } else {
            return refuse(DEVICE_NODE);
        };
        rustix::fs::mknodat(rustix::fs::CWD, &target, file_type, (mode & 0o7777).into(), 0)?;
    } else if !entry.unpack_in(into)? {
        return refuse("it leaves the archive");
    }
    if !kind.is_hard_link() {
        std::os::unix::fs::lchown(&target, Some(uid), Some(gid))?;
        // chown clears set-id bits, so the mode comes last.
        if !kind.is_symlink() {
            std::fs::set_permissions(&target, std::os::unix::fs::PermissionsExt::from_mode(mode & 0o7777))?;
        }
    }
    for (key, value) in xattrs {
        let key = CString::new(key).map_err(io::Error::other)?;
        rustix::fs::lsetxattr(&target, key, &value, rustix::fs::XattrFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
