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

/// zstd's level: 3 is its default; on memory images higher ones gain little and
/// cost seconds.
const LEVEL: i32 = 3;

/// The pax key prefix for xattrs that tar programs agree on.
const XATTR_PREFIX: &str = "SCHILY.xattr.";

/// An archive could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The disk said no.
    #[error("cannot {doing} {}", .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
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

fn at<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ArchiveError + 'a {
    move |source| ArchiveError::Io { doing, path: path.to_owned(), source }
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
/// [`ArchiveError::Io`]; a file half written is left to the caller, who throws
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

fn pack_tree<W: Write>(
    builder: &mut tar::Builder<W>,
    from: &Path,
    name: &Path,
    links: &mut Links,
) -> io::Result<()> {
    let metadata = from.symlink_metadata()?;
    if metadata.file_type().is_socket() {
        return Ok(());
    }
    pack_entry(builder, from, name, &metadata, links)?;
    if metadata.is_dir() {
        let mut entries: Vec<OsString> =
            std::fs::read_dir(from)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
        entries.sort();
        for entry in entries {
            pack_tree(builder, &from.join(&entry), &name.join(&entry), links)?;
        }
    }
    Ok(())
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
    if kind.is_char_device() || kind.is_block_device() || kind.is_fifo() {
        header.set_size(0);
        header.set_entry_type(if kind.is_fifo() {
            EntryType::Fifo
        } else if kind.is_block_device() {
            EntryType::Block
        } else {
            EntryType::Char
        });
        header.set_device_major(rustix::fs::major(metadata.rdev()))?;
        header.set_device_minor(rustix::fs::minor(metadata.rdev()))?;
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
    if metadata.blocks() * 512 < metadata.len() {
        // With holes, which stay holes.
        return builder.append_file(shown, &mut File::open(from)?);
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
    let decoder =
        zstd::Decoder::new(BufReader::with_capacity(1 << 20, file)).map_err(at("decompress", path))?;
    let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 20, decoder));
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_preserve_mtime(true);
    archive.set_overwrite(true);
    for entry in archive.entries().map_err(at("read", path))? {
        entry.and_then(|entry| unpack_entry(entry, into)).map_err(at("unpack", path))?;
    }
    Ok(())
}

fn unpack_entry<R: Read>(mut entry: tar::Entry<'_, R>, into: &Path) -> io::Result<()> {
    let name = entry.path()?.into_owned();
    if !name.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::other(format!("{} leaves the archive", name.display())));
    }
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
    if kind.is_character_special() || kind.is_block_special() || kind.is_fifo() {
        let device =
            rustix::fs::makedev(header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
        let file_type = if kind.is_fifo() {
            rustix::fs::FileType::Fifo
        } else if kind.is_block_special() {
            rustix::fs::FileType::BlockDevice
        } else {
            rustix::fs::FileType::CharacterDevice
        };
        rustix::fs::mknodat(rustix::fs::CWD, &target, file_type, mode.into(), device)?;
    } else if name.as_os_str().is_empty() || name == Path::new(".") {
        // The top directory is there already; only what it looks like counts.
    } else {
        entry.unpack_in(into)?;
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
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn sample() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir(root.join("sub")).unwrap();
        std::fs::write(root.join("sub/file"), b"content").unwrap();
        std::fs::hard_link(root.join("sub/file"), root.join("sub/link")).unwrap();
        std::os::unix::fs::symlink("/nowhere", root.join("symlink")).unwrap();
        std::fs::set_permissions(root.join("sub/file"), PermissionsExt::from_mode(0o640)).unwrap();
        dir
    }

    fn pack_sample(dir: &Path) -> (PathBuf, Archive) {
        let path = dir.join("a.tar.zst");
        let archive = pack(&[("", sample().path())], &path).unwrap();
        (path, archive)
    }

    #[test]
    fn a_tree_survives_the_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let (path, archive) = pack_sample(dir.path());
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let out = dir.path().join("out");
        std::fs::create_dir(&out).unwrap();
        unpack(&path, &archive, &out).unwrap();
        assert_eq!(std::fs::read(out.join("sub/file")).unwrap(), b"content");
        let file = out.join("sub/file").metadata().unwrap();
        assert_eq!(file.permissions().mode() & 0o7777, 0o640);
        assert_eq!(file.ino(), out.join("sub/link").metadata().unwrap().ino(), "a hard link stays one");
        assert_eq!(std::fs::read_link(out.join("symlink")).unwrap(), Path::new("/nowhere"));
    }

    #[test]
    fn what_overlayfs_keeps_in_an_upper_survives() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: trusted xattrs and device nodes need root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        std::fs::create_dir_all(from.join("opaque")).unwrap();
        std::fs::set_permissions(&from, PermissionsExt::from_mode(0o555)).unwrap();
        rustix::fs::lsetxattr(
            from.join("opaque"),
            c"trusted.overlay.opaque",
            b"y",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
        let whiteout = from.join("gone");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &whiteout,
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::empty(),
            0,
        )
        .unwrap();
        std::os::unix::fs::lchown(from.join("opaque"), Some(33), Some(33)).unwrap();
        let path = dir.path().join("a.tar.zst");
        let archive = pack(&[("", &from)], &path).unwrap();
        let out = dir.path().join("out");
        std::fs::create_dir(&out).unwrap();
        unpack(&path, &archive, &out).unwrap();
        assert_eq!(out.metadata().unwrap().permissions().mode() & 0o777, 0o555);
        let gone = out.join("gone").symlink_metadata().unwrap();
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
        assert_eq!(out.join("opaque").metadata().unwrap().uid(), 33);
        let records = read_xattrs(&out.join("opaque")).unwrap();
        assert_eq!(records, [("SCHILY.xattr.trusted.overlay.opaque".to_owned(), b"y".to_vec())]);
    }

    #[test]
    fn one_flipped_byte_is_found_and_nothing_is_unpacked() {
        let dir = tempfile::tempdir().unwrap();
        let (path, archive) = pack_sample(dir.path());
        let whole = std::fs::read(&path).unwrap();
        let out = dir.path().join("out");
        std::fs::create_dir(&out).unwrap();
        for position in [0, whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[position] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let error = unpack(&path, &archive, &out).unwrap_err();
            assert!(matches!(error, ArchiveError::Damaged { .. }), "{error}");
            assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(matches!(verify(&path, &archive), Err(ArchiveError::Damaged { .. })), "truncated");
    }
}
