//! An overlay's upper layer laid over a copy of what is below it, by hand: what a
//! clone saw as one tree becomes one.
//!
//! The layer is a stranger's. Nobody else changes either tree meanwhile, but names and
//! links in both may be whatever somebody has made of them: so everything is opened by
//! single names below directories that are open, links are never followed, and nothing
//! here calls itself. The layer was found to be within bounds ([`super::tree::check`]).
//!
//! ```text
//! whiteout, opaque directory     what is below goes
//! file, link, directory          takes the place of what is below; a directory of one joins it
//! device, fifo, socket           not taken over; what is below goes
//! set-id bits, xattrs            not taken over: no file of a stranger's gives rights
//! hard links                     become files of their own, by reference
//! ```

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, chownat, fchmod, fchown,
    ftruncate, futimens, ioctl_ficlone, mkdirat, openat, readlinkat, seek, statat, symlinkat,
};
use rustix::io::Errno;

use super::tree::{self, DIRECTORY};

/// Permission bits that are taken over: of a directory the sticky bit, too.
const FILE_MODE: u32 = 0o777;
const DIRECTORY_MODE: u32 = 0o1777;

/// What overlayfs writes down of a directory whose lower one it hides.
const OPAQUE: &std::ffi::CStr = c"trusted.overlay.opaque";

/// What it writes down of something that is elsewhere in part: nothing here knows where.
const ELSEWHERE: [&std::ffi::CStr; 2] = [c"trusted.overlay.redirect", c"trusted.overlay.metacopy"];

/// A directory of the layer, the one of the tree that it is laid over, and the
/// directories in it that are still to come.
struct Open {
    layer: OwnedFd,
    tree: OwnedFd,
    left: Vec<CString>,
}

/// Lays a layer over a tree, but for the entries at its top that are named `without`.
///
/// # Errors
/// As the kernel answers, or when the layer is only whole together with others; the
/// tree is then unfit.
pub fn lay_over(layer: &Path, tree: &Path, without: &str) -> io::Result<()> {
    let (layer, tree) = (open_top(layer)?, open_top(tree)?);
    let left = lay_entries(&layer, &tree, Some(without))?;
    let mut open = vec![Open { layer, tree, left }];
    while let Some(here) = open.last_mut() {
        let Some(name) = here.left.pop() else {
            open.pop();
            continue;
        };
        let layer = openat(&here.layer, &name, DIRECTORY, Mode::empty())?;
        let tree = openat(&here.tree, &name, DIRECTORY, Mode::empty())?;
        let left = lay_entries(&layer, &tree, None)?;
        open.push(Open { layer, tree, left });
    }
    Ok(())
}

fn open_top(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, DIRECTORY, Mode::empty())?)
}

/// Lays what is in one directory over another; answers the directories whose content
/// is still to come.
fn lay_entries(layer: &OwnedFd, tree: &OwnedFd, without: Option<&str>) -> io::Result<Vec<CString>> {
    let mut directories = Vec::new();
    for (name, kind) in tree::entries(layer.as_fd())? {
        if without.is_some_and(|without| name.to_bytes() == without.as_bytes()) {
            continue;
        }
        let stat = statat(layer, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        match kind {
            FileType::Directory => {
                lay_directory(layer.as_fd(), tree.as_fd(), &name, &stat)?;
                directories.push(name);
            }
            FileType::RegularFile => {
                tree::remove_in(tree.as_fd(), &name)?;
                lay_file(layer.as_fd(), tree.as_fd(), &name, &stat)?;
            }
            FileType::Symlink => {
                tree::remove_in(tree.as_fd(), &name)?;
                let target = readlinkat(layer, &name, Vec::new())?;
                symlinkat(&target, tree, &name)?;
                let (uid, gid) = owner(&stat);
                chownat(tree, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            // Whiteouts are devices, too.
            _ => tree::remove_in(tree.as_fd(), &name)?,
        }
    }
    Ok(directories)
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}

fn lay_directory(layer: BorrowedFd<'_>, tree: BorrowedFd<'_>, name: &CString, stat: &Stat) -> io::Result<()> {
    let from = openat(layer, name, DIRECTORY, Mode::empty())?;
    check_whole(&from)?;
    let below = statat(tree, name, AtFlags::SYMLINK_NOFOLLOW);
    let is_directory = below.is_ok_and(|below| FileType::from_raw_mode(below.st_mode) == FileType::Directory);
    if !is_directory || has(&from, OPAQUE)? {
        tree::remove_in(tree, name)?;
        mkdirat(tree, name, Mode::RWXU)?;
    }
    let to = openat(tree, name, DIRECTORY, Mode::empty())?;
    let (uid, gid) = owner(stat);
    fchown(&to, Some(uid), Some(gid))?;
    Ok(fchmod(&to, Mode::from_raw_mode(stat.st_mode & DIRECTORY_MODE))?)
}

fn lay_file(layer: BorrowedFd<'_>, tree: BorrowedFd<'_>, name: &CString, stat: &Stat) -> io::Result<()> {
    let from = openat(layer, name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    check_whole(&from)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = openat(tree, name, flags, Mode::RUSR | Mode::WUSR)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    match ioctl_ficlone(&to, &from) {
        Ok(()) => {}
        // Another file system, or one that cannot.
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY) => copy(&from, &to, size)?,
        Err(error) => return Err(error.into()),
    }
    let (uid, gid) = owner(stat);
    fchown(&to, Some(uid), Some(gid))?;
    fchmod(&to, Mode::from_raw_mode(stat.st_mode & FILE_MODE))?;
    // What was compiled from it knows it by its time.
    let changed = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec.cast_signed() };
    Ok(futimens(&to, &Timestamps { last_access: changed, last_modification: changed })?)
}

/// Copies what is not a hole.
fn copy(from: &OwnedFd, to: &OwnedFd, size: u64) -> io::Result<()> {
    ftruncate(to, size)?;
    let (mut input, mut output) = (File::from(from.try_clone()?), File::from(to.try_clone()?));
    let mut at = 0;
    loop {
        let begin = match seek(from, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return Ok(()),
            begin => begin?,
        };
        at = seek(from, SeekFrom::Hole(begin))?;
        seek(from, SeekFrom::Start(begin))?;
        seek(to, SeekFrom::Start(begin))?;
        io::copy(&mut io::Read::take(&mut input, at - begin), &mut output)?;
    }
}

/// Refuses what overlayfs has moved or copied in part.
fn check_whole(file: &OwnedFd) -> io::Result<()> {
    for name in ELSEWHERE {
        if has(file, name)? {
            return Err(io::Error::other("overlayfs keeps a part of it elsewhere (redirect_dir, metacopy)"));
        }
    }
    Ok(())
}

fn has(file: &OwnedFd, xattr: &std::ffi::CStr) -> io::Result<bool> {
    match rustix::fs::fgetxattr(file, xattr, &mut [0_u8; 0][..]) {
        Ok(_) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt, symlink};

    use super::*;

    struct World {
        dir: tempfile::TempDir,
    }

    impl World {
        fn new() -> Option<Self> {
            if !rustix::process::geteuid().is_root() {
                eprintln!("skipped: owners, device nodes and trusted xattrs need root");
                return None;
            }
            let dir = tempfile::tempdir().unwrap();
            for name in ["layer", "tree"] {
                std::fs::create_dir(dir.path().join(name)).unwrap();
            }
            Some(Self { dir })
        }

        fn layer(&self, name: &str) -> std::path::PathBuf {
            self.dir.path().join("layer").join(name)
        }

        fn tree(&self, name: &str) -> std::path::PathBuf {
            self.dir.path().join("tree").join(name)
        }

        fn lay(&self) -> io::Result<()> {
            lay_over(&self.dir.path().join("layer"), &self.dir.path().join("tree"), ".memory")
        }
    }

    fn whiteout(path: &Path) {
        let device = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, path, device, Mode::empty(), 0).unwrap();
    }

    fn is_there(path: &Path) -> bool {
        path.symlink_metadata().is_ok()
    }

    #[test]
    fn what_was_changed_made_and_removed_is_so_in_the_tree() {
        let Some(world) = World::new() else { return };
        for dir in ["kept/deep", "opaque/old", "gone/full", "was-file"] {
            std::fs::create_dir_all(world.tree(dir)).unwrap();
        }
        std::fs::remove_dir(world.tree("was-file")).unwrap();
        for file in ["kept/deep/file", "opaque/old/file", "gone/full/file", "was-file", "changed"] {
            std::fs::write(world.tree(file), "below").unwrap();
        }
        std::fs::create_dir_all(world.layer("kept/deep")).unwrap();
        std::fs::create_dir_all(world.layer("was-file/now")).unwrap();
        std::fs::create_dir(world.layer("opaque")).unwrap();
        rustix::fs::lsetxattr(world.layer("opaque"), OPAQUE, b"y", rustix::fs::XattrFlags::empty()).unwrap();
        std::fs::write(world.layer("opaque/new"), "new").unwrap();
        std::fs::write(world.layer("changed"), "above").unwrap();
        std::fs::set_permissions(world.layer("changed"), PermissionsExt::from_mode(0o640)).unwrap();
        std::os::unix::fs::lchown(world.layer("changed"), Some(33), Some(34)).unwrap();
        std::fs::hard_link(world.layer("changed"), world.layer("kept/deep/link")).unwrap();
        whiteout(&world.layer("gone"));
        world.lay().unwrap();
        assert_eq!(std::fs::read(world.tree("kept/deep/file")).unwrap(), b"below");
        assert_eq!(std::fs::read(world.tree("kept/deep/link")).unwrap(), b"above");
        assert!(world.tree("was-file/now").is_dir());
        assert!(!is_there(&world.tree("opaque/old")) && is_there(&world.tree("opaque/new")));
        assert!(!is_there(&world.tree("gone")));
        let (changed, was) =
            (world.tree("changed").metadata().unwrap(), world.layer("changed").metadata().unwrap());
        assert_eq!((changed.mode() & 0o7777, changed.uid(), changed.gid()), (0o640, 33, 34));
        assert_eq!(changed.modified().unwrap(), was.modified().unwrap());
    }

    #[test]
    fn a_strangers_devices_set_id_bits_and_rights_are_left_behind() {
        let Some(world) = World::new() else { return };
        for name in ["suid", "capable"] {
            std::fs::write(world.layer(name), "x").unwrap();
        }
        std::fs::set_permissions(world.layer("suid"), PermissionsExt::from_mode(0o6755)).unwrap();
        std::fs::create_dir(world.layer("shared")).unwrap();
        std::fs::set_permissions(world.layer("shared"), PermissionsExt::from_mode(0o3777)).unwrap();
        // cap_setuid, of version 2.
        let capability = [1, 0, 0, 2, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let none = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(world.layer("capable"), c"security.capability", &capability, none).unwrap();
        let device = rustix::fs::makedev(1, 1);
        for (name, kind, number) in [
            ("mem", rustix::fs::FileType::CharacterDevice, device),
            ("disk", rustix::fs::FileType::BlockDevice, device),
            ("fifo", rustix::fs::FileType::Fifo, 0),
        ] {
            let path = world.layer(name);
            rustix::fs::mknodat(rustix::fs::CWD, path, kind, Mode::RUSR, number).unwrap();
        }
        drop(std::os::unix::net::UnixListener::bind(world.layer("socket")).unwrap());
        std::fs::write(world.tree("fifo"), "what was below").unwrap();
        world.lay().unwrap();
        let mode = |name: &str| world.tree(name).metadata().unwrap().mode() & 0o7777;
        assert_eq!((mode("suid"), mode("shared")), (0o755, 0o1777));
        assert!(!has(&File::open(world.tree("capable")).unwrap().into(), c"security.capability").unwrap());
        for name in ["mem", "disk", "fifo", "socket"] {
            assert!(!is_there(&world.tree(name)), "{name}");
        }
        let entries = std::fs::read_dir(world.dir.path().join("tree")).unwrap();
        assert!(entries.flatten().all(|entry| !entry.file_type().unwrap().is_char_device()));
    }

    #[test]
    fn links_lead_neither_out_of_the_tree_nor_of_the_layer() {
        let Some(world) = World::new() else { return };
        let outside = world.dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("file"), "the host's").unwrap();
        // The tree's own is a link where the layer has a directory, and the other way round.
        symlink(&outside, world.tree("dir")).unwrap();
        std::fs::create_dir(world.layer("dir")).unwrap();
        std::fs::write(world.layer("dir/file"), "a stranger's").unwrap();
        symlink(&outside, world.layer("out")).unwrap();
        symlink("file", world.tree("link")).unwrap();
        std::fs::write(world.layer("link"), "a stranger's").unwrap();
        symlink(&outside, world.layer(".memory")).unwrap();
        std::fs::create_dir(world.layer("dir/.memory")).unwrap();
        world.lay().unwrap();
        assert_eq!(std::fs::read(outside.join("file")).unwrap(), b"the host's");
        assert!(!world.tree("dir").symlink_metadata().unwrap().is_symlink());
        assert_eq!(std::fs::read_link(world.tree("out")).unwrap(), outside);
        assert!(world.tree("link").symlink_metadata().unwrap().is_file());
        assert!(!is_there(&world.tree(".memory")) && is_there(&world.tree("dir/.memory")));
        let link = world.dir.path().join("a-link");
        symlink(world.layer(""), &link).unwrap();
        assert!(lay_over(&link, &world.tree(""), "").is_err(), "a layer is no link");
    }

    #[test]
    fn holes_stay_holes_and_what_is_whole_only_with_others_is_refused() {
        let Some(world) = World::new() else { return };
        let sparse = File::create(world.layer("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 1 << 29).unwrap();
        world.lay().unwrap();
        let (copied, mut text) = (File::open(world.tree("sparse")).unwrap(), [0; 13]);
        assert!(copied.metadata().unwrap().len() == 1 << 30 && copied.metadata().unwrap().blocks() < 1000);
        std::os::unix::fs::FileExt::read_exact_at(&copied, &mut text, 1 << 29).unwrap();
        assert_eq!(&text, b"in the middle");
        let redirect = c"trusted.overlay.redirect";
        std::fs::create_dir(world.layer("moved")).unwrap();
        rustix::fs::lsetxattr(world.layer("moved"), redirect, b"/etc", rustix::fs::XattrFlags::empty())
            .unwrap();
        assert!(world.lay().unwrap_err().to_string().contains("elsewhere"));
    }
}
