//! Snapshots' archives, as somebody would write them who means harm.
//!
//! Each input is unpacked in a root directory of its own, by a thread that sees
//! nothing else of this machine: what leads out of the target is then found
//! beside it, and harms nobody. That needs root.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use tar::{EntryType, Header};

use crate::snapshot::archive::{pack, unpack, unpack_from};

/// The largest content that is looked at.
const RAW_MAX: u64 = 1 << 20;

const BLOCK: usize = 512;

/// zstd's magic number.
const COMPRESSED: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// An archive: compressed, as a tar file, or as a script after `#tar`, with a
/// line an entry. Nothing is written but below the target, no more than was
/// announced, and no device; what is accepted survives being packed again.
pub fn archive(data: &[u8]) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let raw = match data.strip_prefix(b"#tar\n") {
        Some(script) => of_script(script),
        None => with_checksums(data.to_vec()),
    };
    let compressed = match data.starts_with(COMPRESSED) {
        true => data.to_vec(),
        false => zstd::encode_all(&raw[..], 1).expect("memory takes any bytes"),
    };
    let jail = super::scratch();
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(CloneFlags::CLONE_FS).expect("root may have a root directory of its own");
            nix::unistd::chroot(jail.path()).expect("root may change it");
            std::env::set_current_dir("/").expect("there is a root directory");
            check(&compressed);
        });
        if let Err(panic) = inside.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// In the jail: `/work` is the target, `/outside` is not.
fn check(compressed: &[u8]) {
    let work = Path::new("/work");
    fs::create_dir(work).expect("the jail is empty");
    fs::create_dir(OUTSIDE).expect("the jail is empty");
    fs::write(FILE_OUTSIDE, "untouched").expect("the jail is empty");
    for path in [FILE_OUTSIDE, OUTSIDE] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).expect("it is ours");
    }
    let before = tree(Path::new(OUTSIDE));
    let mut content = 0;
    if let Ok(decoder) = zstd::Decoder::new(compressed) {
        content = io::copy(&mut decoder.take(RAW_MAX + 1), &mut io::sink()).unwrap_or(RAW_MAX);
    }
    let raw = content.min(RAW_MAX);
    let unpacked = unpack_from(compressed, raw, work);
    assert!(unpacked.is_err() || content == raw, "more is taken than was announced");
    assert_eq!(tree(Path::new(OUTSIDE)), before, "what is outside was touched");
    let mut top: Vec<PathBuf> =
        fs::read_dir("/").expect("it is there").flatten().map(|it| it.path()).collect();
    top.sort();
    assert_eq!(top, [Path::new(OUTSIDE), work], "something was written outside");
    let written = tree(work);
    let mut inodes: Vec<(u64, u64)> =
        written.values().filter(|it| it.kind == Kind::File).map(|it| (it.inode, it.size)).collect();
    inodes.sort_unstable();
    inodes.dedup();
    let bytes: u64 = inodes.iter().map(|(_, size)| size).sum();
    assert!(bytes <= raw, "{bytes} bytes of {raw}");
    assert!(written.len() as u64 <= raw / BLOCK as u64 * 64 + 1, "{} entries of {raw} bytes", written.len());
    assert!(written.values().all(|it| it.kind != Kind::Other), "{written:?}");
    if unpacked.is_ok() {
        check_again(work, &written);
    }
}

const OUTSIDE: &str = "/outside";
const FILE_OUTSIDE: &str = "/outside/file";

fn check_again(work: &Path, written: &BTreeMap<PathBuf, Node>) {
    let (path, again) = (Path::new("/again.tar.zst"), Path::new("/again"));
    // A name of an attribute may be one that pack takes for a broken overlay.
    let Ok(archive) = pack(&[("", work)], path) else { return };
    fs::create_dir(again).expect("the jail has none");
    unpack(path, &archive, again).expect("what this program packs it unpacks");
    let same = |tree: &BTreeMap<PathBuf, Node>| -> Vec<(PathBuf, Node)> {
        tree.iter().map(|(path, node)| (path.clone(), Node { inode: 0, ..node.clone() })).collect()
    };
    assert_eq!(same(&tree(again)), same(written), "packed again it is the same");
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    Symlink(PathBuf),
    Whiteout,
    Fifo,
    Other,
}

/// What is there, but for times.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    kind: Kind,
    mode: u32,
    owner: (u32, u32),
    links: u64,
    size: u64,
    inode: u64,
    content: Vec<u8>,
}

fn tree(root: &Path) -> BTreeMap<PathBuf, Node> {
    fn walk(path: &Path, root: &Path, out: &mut BTreeMap<PathBuf, Node>) {
        let metadata = path.symlink_metadata().expect("it is there");
        let node = Node::of(path, &metadata);
        if node.kind == Kind::Directory {
            for entry in fs::read_dir(path).expect("root reads all") {
                walk(&entry.expect("it is there").path(), root, out);
            }
        }
        out.insert(path.strip_prefix(root).expect("it is below").to_owned(), node);
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut out);
    out
}

impl Node {
    fn of(path: &Path, metadata: &Metadata) -> Self {
        let of = metadata.file_type();
        let kind = match () {
            () if of.is_dir() => Kind::Directory,
            () if of.is_file() => Kind::File,
            () if of.is_symlink() => Kind::Symlink(fs::read_link(path).expect("it is a link")),
            () if of.is_fifo() => Kind::Fifo,
            () if of.is_char_device() && metadata.rdev() == 0 => Kind::Whiteout,
            () => Kind::Other,
        };
        let file = kind == Kind::File;
        Self {
            mode: metadata.permissions().mode(),
            owner: (metadata.uid(), metadata.gid()),
            links: if kind == Kind::Directory { 0 } else { metadata.nlink() },
            size: if file { metadata.len() } else { 0 },
            inode: metadata.ino(),
            content: if file { fs::read(path).expect("root reads all") } else { Vec::new() },
            kind,
        }
    }
}

/// Each header of a tar file with the right sum: wrong ones are refused by tar,
/// which is tested there.
fn with_checksums(mut raw: Vec<u8>) -> Vec<u8> {
    for block in raw.chunks_exact_mut(BLOCK).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    raw
}

/// Lines of `kind name argument`: `dir`, `file` with its content, `symlink` and
/// `link` with their target, `char`, `block`, `fifo`, `sparse` with a size, or
/// tar's own letter for the kind. `mode` holds for what follows, `claim` says how
/// long the next one is, `xattr` gives it an attribute.
fn of_script(script: &[u8]) -> Vec<u8> {
    let (mut out, mut mode, mut claim) = (Vec::new(), 0o755, None);
    for (word, rest) in super::lines(script).take(256) {
        let at = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
        let (name, argument) = (&rest[..at], rest.get(at + 1..).unwrap_or_default());
        let text = String::from_utf8_lossy(rest);
        let kind = match word {
            b"mode" => {
                mode = u32::from_str_radix(text.trim(), 8).unwrap_or(mode);
                continue;
            }
            b"claim" => {
                claim = text.trim().parse().ok();
                continue;
            }
            b"xattr" => {
                let record = [b" SCHILY.xattr.", name, b"=", argument, b"\n"].concat();
                // The length counts itself.
                let length = (1..6)
                    .map(|digits| record.len() + digits)
                    .find(|it| it.to_string().len() + record.len() == *it);
                let record = [length.unwrap_or_default().to_string().as_bytes(), &record].concat();
                entry(&mut out, EntryType::XHeader, b"pax", b"", &record, (mode, None));
                continue;
            }
            b"dir" => EntryType::Directory,
            b"file" => EntryType::Regular,
            b"symlink" => EntryType::Symlink,
            b"link" => EntryType::Link,
            b"char" => EntryType::Char,
            b"block" => EntryType::Block,
            b"fifo" => EntryType::Fifo,
            b"sparse" => EntryType::GNUSparse,
            [letter] => EntryType::new(*letter),
            _ => continue,
        };
        let (link, content): (&[u8], &[u8]) = match kind {
            EntryType::Symlink | EntryType::Link => (argument, b""),
            EntryType::Regular => (b"", argument),
            _ => (argument, argument),
        };
        entry(&mut out, kind, name, link, content, (mode, claim.take()));
    }
    out.extend([0; 2 * BLOCK]);
    out
}

fn entry(
    out: &mut Vec<u8>,
    kind: EntryType,
    name: &[u8],
    link: &[u8],
    content: &[u8],
    (mode, claim): (u32, Option<u64>),
) {
    let mut header = Header::new_gnu();
    let data = match kind {
        EntryType::Regular | EntryType::XHeader | EntryType::GNULongName | EntryType::GNULongLink => content,
        _ => b"",
    };
    // Past tar's own checks of names.
    let old = header.as_old_mut();
    for (field, text) in [(&mut old.name, name), (&mut old.linkname, link)] {
        let length = text.len().min(field.len());
        field[..length].copy_from_slice(&text[..length]);
    }
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(claim.unwrap_or(data.len() as u64));
    header.set_entry_type(kind);
    let numbers: Vec<u32> =
        String::from_utf8_lossy(content).split(' ').filter_map(|text| text.parse().ok()).collect();
    if let (EntryType::Char | EntryType::Block, [major, minor]) = (kind, &numbers[..]) {
        header.set_device_major(*major).expect("it is a GNU header");
        header.set_device_minor(*minor).expect("it is a GNU header");
    }
    if let (EntryType::GNUSparse, [size, ..], Some(gnu)) = (kind, &numbers[..], header.as_gnu_mut()) {
        let field = format!("{size:011o}\0");
        // A hole of that size, and nothing after it.
        gnu.realsize.copy_from_slice(&field.as_bytes()[..12]);
        gnu.sparse[0].offset.copy_from_slice(&field.as_bytes()[..12]);
        gnu.sparse[0].numbytes.copy_from_slice(b"00000000000\0");
    }
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(data);
    out.extend(vec![0; data.len().next_multiple_of(BLOCK) - data.len()]);
}
