//! CRIU's image files, as far as this program rewrites them before a restore.
//!
//! Used by the checkpoint, which leaves zero pages out, and by prepare, which
//! has clones map what they would copy, and asks what they open for writing. Forms: CRIU's `images/{mm,vma,pagemap,
//! fdinfo,regfile,fown,memfd}.proto`, `image.h` and `magic.h`; numbers in them
//! are kept stable. An image is two magic words and messages, each behind its
//! length. Whoever writes a message anew first makes sure with [`whole`] that
//! nothing in it is unknown here, and else leaves the image as it is.

use std::io;
use std::path::Path;

use prost::Message;

/// Before every image's own magic.
pub const COMMON_MAGIC: u32 = 0x5456_4319;
/// Of `mm-<pid>.img`.
pub const MM_MAGIC: u32 = 0x5749_2820;
/// Of `pagemap-<pid>.img` and `pagemap-shmem-<id>.img`.
pub const PAGEMAP_MAGIC: u32 = 0x5608_4025;
/// Of `files.img`.
pub const FILES_MAGIC: u32 = 0x5630_3138;
/// Of `memfd.img`.
pub const MEMFD_MAGIC: u32 = 0x4845_3499;

/// `VMA_AREA_REGULAR`: ordinary memory, nothing the kernel puts there itself.
pub const REGULAR: u32 = 1;
/// `VMA_AREA_HEAP`, informational.
pub const HEAP: u32 = 1 << 5;
/// `VMA_FILE_PRIVATE`.
pub const FILE_PRIVATE: u32 = 1 << 6;
/// `VMA_FILE_SHARED`.
pub const FILE_SHARED: u32 = 1 << 7;
/// `VMA_ANON_PRIVATE`.
pub const ANON_PRIVATE: u32 = 1 << 9;
/// `VMA_AREA_AIORING`: anonymous to look at, but the kernel's own.
pub const AIO_RING: u32 = 1 << 13;
/// `VMA_AREA_MEMFD`: a file of memory, also what `mmap` makes for anonymous
/// shared memory.
pub const MEMFD: u32 = 1 << 14;

/// `PE_PARENT` of CRIU's pagemap.h: the page is in another checkpoint's image.
const PARENT: u32 = 1;
/// `PE_PRESENT`: the page is in this image's pages file. (The third flag,
/// `PE_LAZY`, only says that a page may come late.)
pub const PRESENT: u32 = 1 << 2;

/// x86-64's and the usual arm64 page; other hosts' images are left alone.
pub const PAGE: usize = 4096;

/// `mm_entry`: a process's memory.
#[derive(Clone, PartialEq, Message)]
pub struct Mm {
    /// Bounds of code, data, stack, heap, arguments and environment.
    #[prost(uint64, required, tag = "1")]
    pub(crate) start_code: u64,
    #[prost(uint64, required, tag = "2")]
    pub(crate) end_code: u64,
    #[prost(uint64, required, tag = "3")]
    pub(crate) start_data: u64,
    #[prost(uint64, required, tag = "4")]
    pub(crate) end_data: u64,
    #[prost(uint64, required, tag = "5")]
    pub(crate) start_stack: u64,
    #[prost(uint64, required, tag = "6")]
    pub(crate) start_brk: u64,
    #[prost(uint64, required, tag = "7")]
    pub(crate) brk: u64,
    #[prost(uint64, required, tag = "8")]
    pub(crate) arg_start: u64,
    #[prost(uint64, required, tag = "9")]
    pub(crate) arg_end: u64,
    #[prost(uint64, required, tag = "10")]
    pub(crate) env_start: u64,
    #[prost(uint64, required, tag = "11")]
    pub(crate) env_end: u64,
    /// The program, by its id in `files.img`.
    #[prost(uint32, required, tag = "12")]
    pub exe_file_id: u32,
    #[prost(uint64, repeated, packed = "false", tag = "13")]
    pub(crate) saved_auxv: Vec<u64>,
    /// Its areas, sorted.
    #[prost(message, repeated, tag = "14")]
    pub vmas: Vec<Vma>,
    #[prost(int32, optional, tag = "15")]
    pub(crate) dumpable: Option<i32>,
    #[prost(bool, optional, tag = "17")]
    pub(crate) thp_disabled: Option<bool>,
}

/// `vma_entry`: one area of a process's memory.
#[derive(Clone, PartialEq, Message)]
pub struct Vma {
    /// Its first address.
    #[prost(uint64, required, tag = "1")]
    pub start: u64,
    /// The one behind its last.
    #[prost(uint64, required, tag = "2")]
    pub end: u64,
    /// Where in the file it begins.
    #[prost(uint64, required, tag = "3")]
    pub pgoff: u64,
    /// The file, by its id in `files.img`.
    #[prost(uint64, required, tag = "4")]
    pub shmid: u64,
    #[prost(uint32, required, tag = "5")]
    pub(crate) prot: u32,
    /// `MAP_*`.
    #[prost(uint32, required, tag = "6")]
    pub flags: u32,
    /// What it is: [`REGULAR`] and so on.
    #[prost(uint32, required, tag = "7")]
    pub status: u32,
    #[prost(sint64, required, tag = "8")]
    pub(crate) fd: i64,
    /// One bit for each `MADV_*` in force.
    #[prost(uint64, optional, tag = "9")]
    pub madv: Option<u64>,
    /// How the file was opened.
    #[prost(uint32, optional, tag = "10")]
    pub fdflags: Option<u32>,
}

impl Vma {
    /// How many bytes it spans.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// The first message of a page map.
#[derive(Clone, PartialEq, Message)]
pub struct Head {
    /// The pages are in `pages-<id>.img`.
    #[prost(uint32, required, tag = "1")]
    pub pages_id: u32,
}

/// `pagemap_entry`: pages that follow each other.
#[derive(Clone, PartialEq, Message)]
pub struct Run {
    /// The first one's address, or place in shared memory.
    #[prost(uint64, required, tag = "1")]
    pub vaddr: u64,
    #[prost(uint32, required, tag = "2")]
    pub(crate) compat_nr_pages: u32,
    #[prost(bool, optional, tag = "3")]
    pub(crate) in_parent: Option<bool>,
    #[prost(uint32, optional, tag = "4")]
    pub(crate) flags: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    pub(crate) nr_pages: Option<u64>,
}

impl Run {
    /// How many pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.nr_pages.unwrap_or_else(|| self.compat_nr_pages.into())
    }

    /// The address after its last page; none outside the address space.
    fn end(&self) -> Option<u64> {
        self.pages().checked_mul(PAGE as u64).and_then(|bytes| self.vaddr.checked_add(bytes))
    }

    /// The same kind of run for `pages` pages from its page `from` on.
    #[must_use]
    pub fn part(&self, from: u64, pages: u64) -> Self {
        let compat = match self.nr_pages {
            Some(all) if all != u64::from(self.compat_nr_pages) => self.compat_nr_pages,
            _ => u32::try_from(pages).unwrap_or(u32::MAX),
        };
        Self {
            vaddr: self.vaddr + from * PAGE as u64,
            compat_nr_pages: compat,
            nr_pages: self.nr_pages.map(|_| pages),
            ..self.clone()
        }
    }

    /// Whether its pages are in this image's pages file.
    #[must_use]
    pub fn is_here(&self) -> bool {
        self.flags.is_some_and(|flags| flags & PRESENT != 0 && flags & PARENT == 0)
    }

    /// A run as CRIU writes it.
    #[cfg(test)]
    pub(crate) fn sample(vaddr: u64, pages: u32) -> Self {
        Self {
            vaddr,
            compat_nr_pages: pages,
            in_parent: None,
            // With the lazy flag.
            flags: Some(PRESENT | 2),
            nr_pages: Some(pages.into()),
        }
    }
}

/// `fd_types.REG`.
const KIND_REGULAR: i32 = 1;

/// `file_entry`, without the kinds that nobody here asks about.
#[derive(Clone, PartialEq, Message)]
pub struct FileEntry {
    /// `fd_types`.
    #[prost(int32, required, tag = "1")]
    pub kind: i32,
    /// What others call it by.
    #[prost(uint32, required, tag = "2")]
    pub id: u32,
    /// A file with a path.
    #[prost(message, optional, tag = "3")]
    pub regular: Option<RegularFile>,
    /// A file of memory.
    #[prost(message, optional, tag = "20")]
    pub memfd: Option<MemfdFile>,
}

impl FileEntry {
    /// A file of the root, opened by nobody but CRIU.
    #[must_use]
    pub fn of_path(id: u32, name: String, flags: u32, mnt_id: i32) -> Self {
        let (pos, owner) = (0, Owner::default());
        let regular = RegularFile { id, flags, pos, owner, name, mnt_id: Some(mnt_id) };
        Self { kind: KIND_REGULAR, id, regular: Some(regular), memfd: None }
    }
}

/// `reg_file_entry`. Without a size and a mode CRIU does not compare them.
#[derive(Clone, PartialEq, Message)]
pub struct RegularFile {
    /// The file entry's.
    #[prost(uint32, required, tag = "1")]
    pub id: u32,
    /// `O_*`.
    #[prost(uint32, required, tag = "2")]
    pub flags: u32,
    #[prost(uint64, required, tag = "3")]
    pos: u64,
    #[prost(message, required, tag = "5")]
    owner: Owner,
    /// Its path inside.
    #[prost(string, required, tag = "6")]
    pub name: String,
    /// The mount it is on.
    #[prost(sint32, optional, tag = "7")]
    pub mnt_id: Option<i32>,
}

/// `fown_entry`: who is told of a descriptor's events; nobody.
#[derive(Clone, PartialEq, Message)]
struct Owner {
    #[prost(uint32, required, tag = "1")]
    uid: u32,
    #[prost(uint32, required, tag = "2")]
    euid: u32,
    #[prost(uint32, required, tag = "3")]
    signum: u32,
    #[prost(uint32, required, tag = "4")]
    pid_type: u32,
    #[prost(uint32, required, tag = "5")]
    pid: u32,
}

/// `memfd_file_entry`, as far as it is read.
#[derive(Clone, PartialEq, Message)]
pub struct MemfdFile {
    /// The file of memory that it opens.
    #[prost(uint32, required, tag = "5")]
    pub inode_id: u32,
}

/// `memfd_inode_entry`, as far as it is read.
#[derive(Clone, PartialEq, Message)]
pub struct MemfdInode {
    /// `/dev/zero` when it is anonymous shared memory, which no descriptor names.
    #[prost(string, required, tag = "1")]
    pub name: String,
    /// In bytes.
    #[prost(uint64, required, tag = "4")]
    pub size: u64,
    /// Its pages are those of `pagemap-shmem-<id>.img`.
    #[prost(uint32, required, tag = "5")]
    pub shmid: u32,
    /// What file entries call it by.
    #[prost(uint64, required, tag = "7")]
    pub inode_id: u64,
}

/// Files that processes have open for writing, by their paths inside.
///
/// # Errors
/// When `files.img` in `dir` cannot be read.
pub fn written(dir: &Path) -> io::Result<Vec<String>> {
    let bytes = std::fs::read(dir.join("files.img"))?;
    let entries = messages(&bytes, FILES_MAGIC)?.unwrap_or_default();
    let write = (libc::O_WRONLY | libc::O_RDWR).cast_unsigned();
    let mut paths = Vec::new();
    for entry in entries {
        let regular = FileEntry::decode(entry)?.regular;
        paths.extend(regular.filter(|file| file.flags & write != 0).map(|file| file.name));
    }
    Ok(paths)
}

/// An image with that magic and nothing in it yet.
#[must_use]
pub fn empty(magic: u32) -> Vec<u8> {
    [COMMON_MAGIC.to_le_bytes(), magic.to_le_bytes()].concat()
}

/// Splits an image into its messages; none when its magic is another one.
///
/// # Errors
/// When it is cut short.
pub fn messages(bytes: &[u8], magic: u32) -> io::Result<Option<Vec<&[u8]>>> {
    let truncated = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let word = |at: usize| {
        let bytes: Option<[u8; 4]> = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
        bytes.map(u32::from_le_bytes)
    };
    if word(0) != Some(COMMON_MAGIC) || word(4) != Some(magic) {
        return Ok(None);
    }
    let mut found = Vec::new();
    let mut at = 8;
    while at < bytes.len() {
        let length = word(at).ok_or_else(truncated)? as usize;
        found.push(bytes.get(at + 4..at + 4 + length).ok_or_else(truncated)?);
        at += 4 + length;
    }
    Ok(Some(found))
}

/// Appends a message to an image.
pub fn append(image: &mut Vec<u8>, message: &[u8]) {
    image.extend(u32::try_from(message.len()).unwrap_or(u32::MAX).to_le_bytes());
    image.extend(message);
}

/// A page map: where its pages are, and which.
///
/// # Errors
/// When a message cannot be read, or makes no sense. None when it is no page map, or when not all
/// its pages are in its own pages file.
pub fn page_map(bytes: &[u8]) -> io::Result<Option<(Head, Vec<Run>)>> {
    let Some(messages) = messages(bytes, PAGEMAP_MAGIC)? else { return Ok(None) };
    let Some((head, runs)) = messages.split_first() else { return Ok(None) };
    let head = Head::decode(*head)?;
    let runs = runs.iter().map(|run| Run::decode(*run)).collect::<Result<Vec<_>, _>>()?;
    if runs.iter().any(|run| run.end().is_none()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a run of pages leaves the address space"));
    }
    Ok(runs.iter().all(Run::is_here).then_some((head, runs)))
}

/// A message, if this program knows all that is in it.
///
/// # Errors
/// When it cannot be read.
pub fn whole<M: Message + Default>(bytes: &[u8]) -> io::Result<Option<M>> {
    let message = M::decode(bytes)?;
    Ok((message.encode_to_vec() == bytes).then_some(message))
}

/// The area that an address lies in.
#[must_use]
pub fn area(vmas: &[Vma], address: u64) -> Option<usize> {
    // CRIU writes them sorted.
    let at = vmas.partition_point(|vma| vma.start <= address).checked_sub(1)?;
    vmas.get(at).is_some_and(|vma| address < vma.end).then_some(at)
}
