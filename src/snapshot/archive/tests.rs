//! Trees that are packed and unpacked, and what is refused on the way.

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
fn a_tree_as_deep_as_a_path_may_be_is_packed_on_a_small_stack() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("t");
    let depth = (4000 - top.as_os_str().len()) / 2;
    std::fs::create_dir_all(top.join("d/".repeat(depth))).unwrap();
    let path = dir.path().join("a.tar.zst");
    let packing = move || pack(&[("", &top)], &path).unwrap().raw_bytes;
    let small = std::thread::Builder::new().stack_size(512 * 1024);
    let raw_bytes = small.spawn(packing).unwrap().join().unwrap();
    assert!(raw_bytes > depth as u64 * 512);
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
