//! CRIU's image files, as far as this program reads and rewrites them.
//!
//! An image is two magic words and messages with their lengths; the pages of a
//! process lie in a file of their own, in the order of its pagemap. Formats:
//! CRIU's `magic.h` and `images/*.proto`. What is not understood
//! is left as it is. Used by the checkpoint procedure, which rewrites images, and
//! by the restore driver, which looks at them.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::path::Path;

use prost::Message;

/// Before every image's own magic (CRIU's magic.h).
pub(crate) const COMMON_MAGIC: u32 = 0x5456_4319;
pub(crate) const MM_MAGIC: u32 = 0x5749_2820;
pub(crate) const PAGEMAP_MAGIC: u32 = 0x5608_4025;
const FILES_MAGIC: u32 = 0x5630_3138;
pub(crate) const MEMFD_INODE_MAGIC: u32 = 0x4845_3499;

/// Where the golden's large memory lies among its files; root's alone.
pub(crate) const MEMORY: &str = "/.golden-memory";

/// `VMA_ANON_PRIVATE` of CRIU's image.h.
pub(crate) const ANON_PRIVATE: u32 = 1 << 9;
/// `VMA_AREA_AIORING`: anonymous to look at, but the kernel's own.
pub(crate) const AIO_RING: u32 = 1 << 13;
/// `MAP_HUGETLB`: its pages are not of the usual size.
pub(crate) const HUGETLB: u32 = 0x40000;

/// `PE_PARENT` of CRIU's pagemap.h: the page is in another checkpoint's image.
const PARENT: u32 = 1;
/// `PE_PRESENT`: the page is in this image's pages file. (The third flag,
/// `PE_LAZY`, only says that a page may come late.)
pub(crate) const PRESENT: u32 = 1 << 2;

/// x86-64's and the usual arm64 page; other hosts' images stay as they are.
pub(crate) const PAGE: usize = 4096;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Mm {
    #[prost(uint32, required, tag = "12")]
    pub(crate) program: u32,
    #[prost(message, repeated, tag = "14")]
    pub(crate) vmas: Vec<Vma>,
}

/// All of `vma_entry`: it is also written.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Vma {
    #[prost(uint64, required, tag = "1")]
    pub(crate) start: u64,
    #[prost(uint64, required, tag = "2")]
    pub(crate) end: u64,
    #[prost(uint64, required, tag = "3")]
    pub(crate) offset: u64,
    /// Of what is mapped: a file's id, or a segment's.
    #[prost(uint64, required, tag = "4")]
    pub(crate) backing: u64,
    #[prost(uint32, required, tag = "5")]
    pub(crate) protection: u32,
    #[prost(uint32, required, tag = "6")]
    pub(crate) flags: u32,
    #[prost(uint32, required, tag = "7")]
    pub(crate) status: u32,
    #[prost(sint64, required, tag = "8")]
    pub(crate) descriptor: i64,
    /// One bit for each advice of madvise(2).
    #[prost(uint64, optional, tag = "9")]
    pub(crate) advice: Option<u64>,
    /// How the file is opened.
    #[prost(uint32, optional, tag = "10")]
    pub(crate) open_flags: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Head {
    #[prost(uint32, required, tag = "1")]
    pub(crate) pages_id: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Run {
    #[prost(uint64, required, tag = "1")]
    pub(crate) vaddr: u64,
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
    pub(crate) fn pages(&self) -> u64 {
        self.nr_pages.unwrap_or_else(|| self.compat_nr_pages.into())
    }

    /// The same kind of run for `pages` pages from its page `from` on.
    fn part(&self, from: u64, pages: u64) -> Self {
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
}

/// `fd_types` of CRIU's `fdinfo.proto`.
pub(crate) const KIND_REGULAR: u32 = 1;
pub(crate) const KIND_MEMFD: u32 = 18;

/// `file_entry`: one open or mapped file, of the kinds that matter here.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Entry {
    #[prost(uint32, required, tag = "1")]
    pub(crate) kind: u32,
    #[prost(uint32, required, tag = "2")]
    pub(crate) id: u32,
    #[prost(message, optional, tag = "3")]
    pub(crate) regular: Option<Regular>,
    #[prost(message, optional, tag = "20")]
    pub(crate) memfd: Option<Memfd>,
}

/// `reg_file_entry`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Regular {
    #[prost(uint32, required, tag = "1")]
    pub(crate) id: u32,
    #[prost(uint32, required, tag = "2")]
    pub(crate) flags: u32,
    #[prost(uint64, required, tag = "3")]
    pub(crate) position: u64,
    #[prost(message, required, tag = "5")]
    pub(crate) owner: Owner,
    #[prost(string, required, tag = "6")]
    pub(crate) name: String,
    #[prost(sint32, optional, tag = "7")]
    pub(crate) mount: Option<i32>,
    #[prost(uint64, optional, tag = "8")]
    pub(crate) size: Option<u64>,
}

/// `fown_entry`: who is told of a file; by default nobody.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Owner {
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

/// `memfd_file_entry`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Memfd {
    #[prost(uint32, required, tag = "5")]
    pub(crate) inode: u32,
}

/// `memfd_inode_entry`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct MemfdInode {
    #[prost(bytes = "vec", required, tag = "1")]
    pub(crate) name: Vec<u8>,
    #[prost(uint64, required, tag = "5")]
    pub(crate) segment: u64,
    #[prost(uint32, required, tag = "7")]
    pub(crate) inode: u32,
}

/// All files of a checkpoint; none when the image is of another kind.
pub(crate) fn files(image: &[u8]) -> io::Result<Option<Vec<Entry>>> {
    let Some(messages) = messages(image, FILES_MAGIC)? else { return Ok(None) };
    Ok(Some(messages.into_iter().map(Entry::decode).collect::<Result<_, _>>()?))
}

/// Which files a restore in `dir` opens for writing: on an overlay each is copied
/// up by that.
///
/// # Errors
/// When the image cannot be read.
pub(crate) fn written(dir: &Path) -> io::Result<Vec<String>> {
    let write = (libc::O_WRONLY | libc::O_RDWR).cast_unsigned();
    let entries = files(&std::fs::read(dir.join("files.img"))?)?.unwrap_or_default();
    let regular = entries.into_iter().filter_map(|entry| entry.regular);
    Ok(regular.filter(|file| file.flags & write != 0).map(|file| file.name).collect())
}

/// Splits an image into its messages; none when its magic is another one.
pub(crate) fn messages(bytes: &[u8], magic: u32) -> io::Result<Option<Vec<&[u8]>>> {
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

/// The beginning of an image.
pub(crate) fn begin(magic: u32) -> Vec<u8> {
    [COMMON_MAGIC.to_le_bytes(), magic.to_le_bytes()].concat()
}

/// Appends a message to an image.
pub(crate) fn push(image: &mut Vec<u8>, message: &[u8]) {
    image.extend(u32::try_from(message.len()).unwrap_or(u32::MAX).to_le_bytes());
    image.extend(message);
}

/// Which processes have memory images in `dir`.
pub(crate) fn processes(dir: &Path) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("mm-")?.strip_suffix(".img"));
        found.extend(pid.and_then(|pid| pid.parse::<u32>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

/// The pages of a process or of a segment, by its pagemap.
#[derive(Debug)]
pub(crate) struct Pages {
    head: Head,
    runs: Vec<Run>,
}

impl Pages {
    /// Reads a pagemap; none when it is of another kind, or when pages of it lie
    /// elsewhere.
    pub(crate) fn read(map: &Path) -> io::Result<Option<Self>> {
        let bytes = std::fs::read(map)?;
        let Some(messages) = messages(&bytes, PAGEMAP_MAGIC)? else { return Ok(None) };
        let Some((head, runs)) = messages.split_first() else { return Ok(None) };
        let runs = runs.iter().map(|run| Run::decode(*run)).collect::<Result<Vec<_>, _>>()?;
        let is_here = |run: &Run| run.flags.is_some_and(|flags| flags & PRESENT != 0 && flags & PARENT == 0);
        if !runs.iter().all(is_here) {
            return Ok(None);
        }
        Ok(Some(Self { head: Head::decode(*head)?, runs }))
    }

    /// The name of the file that they lie in.
    pub(crate) fn file(&self) -> String {
        format!("pages-{}.img", self.head.pages_id)
    }

    /// How many bytes of a region there are.
    pub(crate) fn bytes_in(&self, start: u64, end: u64) -> u64 {
        let inside = self.runs.iter().map(|run| {
            let run_end = run.vaddr + run.pages() * PAGE as u64;
            run_end.min(end).saturating_sub(run.vaddr.max(start))
        });
        inside.sum()
    }

    /// Calls `keep` for each page with its address, and leaves out of the images
    /// those that it answers false for; answers how many.
    pub(crate) fn sift(
        &self,
        map: &Path,
        mut keep: impl FnMut(u64, &[u8; PAGE]) -> io::Result<bool>,
    ) -> io::Result<u64> {
        let path = map.with_file_name(self.file());
        let new_path = path.with_extension("new");
        let mut pages = BufReader::with_capacity(1 << 20, File::open(&path)?);
        let mut kept = BufWriter::with_capacity(1 << 20, File::create(&new_path)?);
        let mut new_map = begin(PAGEMAP_MAGIC);
        push(&mut new_map, &self.head.encode_to_vec());
        let mut left_out = 0;
        let mut page = [0; PAGE];
        for run in &self.runs {
            let mut begun: Option<u64> = None;
            for n in 0..run.pages() {
                pages.read_exact(&mut page)?;
                if keep(run.vaddr + n * PAGE as u64, &page)? {
                    kept.write_all(&page)?;
                    begun.get_or_insert(n);
                } else {
                    left_out += 1;
                    if let Some(from) = begun.take() {
                        push(&mut new_map, &run.part(from, n - from).encode_to_vec());
                    }
                }
            }
            if let Some(from) = begun {
                push(&mut new_map, &run.part(from, run.pages() - from).encode_to_vec());
            }
        }
        kept.into_inner()?.sync_all()?;
        std::fs::rename(&new_path, &path)?;
        std::fs::write(map, new_map)?;
        Ok(left_out)
    }
}
