//! Copies of files by reference: they share blocks until one is written to.
//!
//! Used by prepare, whose files every clone copies so, and by the doctor.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// `FS_IOC_FSGETXATTR`, `FS_IOC_FSSETXATTR` and `FS_XFLAG_COWEXTSIZE` of linux/fs.h.
const GET: u64 = 0x801c_581f;
const SET: u64 = 0x401c_5820;
const HAS_COPY_SIZE: u32 = 1 << 16;

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_size: u32,
    padding: [u8; 8],
}

/// Tries whether files in `dir` can be copied by reference; leaves two small
/// ones there.
///
/// # Errors
/// When they cannot.
pub fn probe(dir: &Path) -> io::Result<()> {
    // A block and more: some file systems keep smaller files where they cannot be shared.
    std::fs::write(dir.join("from"), [7; 64 * 1024])?;
    let (from, to) = (File::open(dir.join("from"))?, File::create(dir.join("to"))?);
    Ok(rustix::fs::ioctl_ficlone(&to, &from)?)
}

/// Has a write to a copy of this file take a page of disk, not the 128 KiB that
/// XFS takes at a time: for files that are written to here and there.
///
/// # Errors
/// On file systems that know no such hint.
pub fn copy_page_by_page(file: &File) -> io::Result<()> {
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes no more than the struct, whose form is fixed.
    check(unsafe { libc::ioctl(file.as_raw_fd(), GET as libc::Ioctl, &mut attributes) })?;
    attributes.flags |= HAS_COPY_SIZE;
    attributes.copy_size = 4096;
    // SAFETY: the kernel reads no more than the struct.
    check(unsafe { libc::ioctl(file.as_raw_fd(), SET as libc::Ioctl, &attributes) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
