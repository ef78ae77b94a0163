//! Leaving pages that hold nothing out of CRIU's images.
//!
//! A database clears its buffers when it starts: a quarter of MariaDB's pages
//! are zero at the checkpoint. CRIU stores and restores them like any other;
//! left out, a restored process finds them zero all the same, because that is
//! what the kernel gives for a page of private anonymous memory that was never
//! written. Only such memory is looked at: elsewhere a missing page would be
//! read from a file.
//!
//! Image formats: CRIU's `images/{mm,vma,pagemap}.proto` and `magic.h`. What is
//! not understood is left as it is. Called by the checkpoint procedure before
//! the images are archived; a death in between leaves the golden's container,
//! which the next checkpoint removes.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::path::Path;

use prost::Message;

/// Before every image's own magic (CRIU's magic.h).
pub(crate) const COMMON_MAGIC: u32 = 0x5456_4319;
pub(crate) const MM_MAGIC: u32 = 0x5749_2820;
pub(crate) const PAGEMAP_MAGIC: u32 = 0x5608_4025;

/// `VMA_ANON_PRIVATE` of CRIU's image.h.
const ANON_PRIVATE: u32 = 1 << 9;
/// `VMA_AREA_AIORING`: anonymous to look at, but the kernel's own.
const AIO_RING: u32 = 1 << 13;
/// `MAP_HUGETLB`: its pages are not of the usual size.
const HUGETLB: u32 = 0x40000;

/// `PE_PARENT` of CRIU's pagemap.h: the page is in another checkpoint's image.
const PARENT: u32 = 1;
/// `PE_PRESENT`: the page is in this image's pages file. (The third flag,
/// `PE_LAZY`, only says that a page may come late.)
const PRESENT: u32 = 1 << 2;

/// x86-64's and the usual arm64 page; other hosts keep their zero pages.
pub(crate) const PAGE: usize = 4096;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Mm {
    #[prost(message, repeated, tag = "14")]
    pub(crate) vmas: Vec<Vma>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Vma {
    #[prost(uint64, required, tag = "1")]
    pub(crate) start: u64,
    #[prost(uint64, required, tag = "2")]
    pub(crate) end: u64,
    #[prost(uint32, required, tag = "6")]
    pub(crate) flags: u32,
    #[prost(uint32, required, tag = "7")]
    pub(crate) status: u32,
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

    /// The address after its last page.
    fn end(&self) -> Option<u64> {
        self.pages().checked_mul(PAGE as u64).and_then(|bytes| self.vaddr.checked_add(bytes))
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

pub(crate) fn write_message(out: &mut Vec<u8>, message: &impl Message) {
    let bytes = message.encode_to_vec();
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend(bytes);
}

/// Leaves zero pages out of all processes' images in `dir`; answers how many.
///
/// # Errors
/// When an image cannot be read or written; the images are then unfit.
pub(crate) fn leave_out(dir: &Path) -> io::Result<u64> {
    if rustix::param::page_size() != PAGE {
        return Ok(0);
    }
    let mut left_out = 0;
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix("mm-")?.strip_suffix(".img")?.parse::<u32>().ok());
        if let Some(pid) = pid {
            left_out += of_process(dir, pid)?;
        }
    }
    Ok(left_out)
}

fn of_process(dir: &Path, pid: u32) -> io::Result<u64> {
    let mm = std::fs::read(dir.join(format!("mm-{pid}.img")))?;
    let map_path = dir.join(format!("pagemap-{pid}.img"));
    let map = std::fs::read(&map_path)?;
    let (Some(mm), Some(map)) = (messages(&mm, MM_MAGIC)?, messages(&map, PAGEMAP_MAGIC)?) else {
        return Ok(0);
    };
    let (Some(mm), Some((head, runs))) = (mm.first(), map.split_first()) else { return Ok(0) };
    let vmas = Mm::decode(*mm)?.vmas;
    let head = Head::decode(*head)?;
    let runs = runs.iter().map(|run| Run::decode(*run)).collect::<Result<Vec<_>, _>>()?;
    let is_here = |run: &Run| run.flags.is_some_and(|flags| flags & PRESENT != 0 && flags & PARENT == 0);
    if !runs.iter().all(is_here) {
        return Ok(0);
    }
    if runs.iter().any(|run| run.end().is_none()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a run of pages leaves the address space"));
    }
    let pages_path = dir.join(format!("pages-{}.img", head.pages_id));
    let new_path = dir.join(format!("pages-{}.new", head.pages_id));
    let mut pages = BufReader::with_capacity(1 << 20, File::open(&pages_path)?);
    let mut kept = BufWriter::with_capacity(1 << 20, File::create(&new_path)?);
    let mut new_map = [COMMON_MAGIC.to_le_bytes(), PAGEMAP_MAGIC.to_le_bytes()].concat();
    write_message(&mut new_map, &head);
    let mut left_out = 0;
    let mut page = [0; PAGE];
    for run in &runs {
        let mut begun: Option<u64> = None;
        for n in 0..run.pages() {
            pages.read_exact(&mut page)?;
            if page.iter().all(|&byte| byte == 0) && reads_as_zero(&vmas, run.vaddr + n * PAGE as u64) {
                left_out += 1;
                if let Some(from) = begun.take() {
                    write_message(&mut new_map, &run.part(from, n - from));
                }
            } else {
                kept.write_all(&page)?;
                begun.get_or_insert(n);
            }
        }
        if let Some(from) = begun {
            write_message(&mut new_map, &run.part(from, run.pages() - from));
        }
    }
    kept.into_inner()?.sync_all()?;
    std::fs::rename(&new_path, &pages_path)?;
    std::fs::write(&map_path, new_map)?;
    Ok(left_out)
}

/// Whether memory there is zero when it was never written.
fn reads_as_zero(vmas: &[Vma], address: u64) -> bool {
    // CRIU writes them sorted.
    let after = vmas.partition_point(|vma| vma.start <= address);
    after.checked_sub(1).and_then(|at| vmas.get(at)).is_some_and(|vma| {
        address < vma.end
            && vma.status & ANON_PRIVATE != 0
            && vma.status & AIO_RING == 0
            && vma.flags & HUGETLB == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(magic: u32) -> Vec<u8> {
        [COMMON_MAGIC.to_le_bytes(), magic.to_le_bytes()].concat()
    }

    fn run(vaddr: u64, pages: u32) -> Run {
        Run {
            vaddr,
            compat_nr_pages: pages,
            in_parent: None,
            // With the lazy flag, as CRIU writes it.
            flags: Some(PRESENT | 2),
            nr_pages: Some(pages.into()),
        }
    }

    /// Pages 0..6: private anonymous at 0x10000; 6..8: of a file at 0x20000.
    fn sample(dir: &Path, content: &[u8]) {
        let vma = |start, end, status| Vma { start, end, flags: 0x22, status };
        let mm = Mm { vmas: vec![vma(0x10000, 0x16000, ANON_PRIVATE | 1), vma(0x20000, 0x22000, 1 << 6)] };
        let mut memory = image(MM_MAGIC);
        write_message(&mut memory, &mm);
        std::fs::write(dir.join("mm-3.img"), memory).unwrap();
        let mut map = image(PAGEMAP_MAGIC);
        write_message(&mut map, &Head { pages_id: 7 });
        write_message(&mut map, &run(0x10000, 6));
        write_message(&mut map, &run(0x20000, 2));
        std::fs::write(dir.join("pagemap-3.img"), map).unwrap();
        let pages: Vec<u8> = content.iter().flat_map(|&byte| [byte; PAGE]).collect();
        std::fs::write(dir.join("pages-7.img"), pages).unwrap();
    }

    fn runs(dir: &Path) -> Vec<(u64, u64)> {
        let map = std::fs::read(dir.join("pagemap-3.img")).unwrap();
        let messages = messages(&map, PAGEMAP_MAGIC).unwrap().unwrap();
        messages[1..].iter().map(|m| Run::decode(*m).unwrap()).map(|run| (run.vaddr, run.pages())).collect()
    }

    #[test]
    fn zero_pages_of_anonymous_memory_go_and_those_over_a_file_stay() {
        let dir = tempfile::tempdir().unwrap();
        sample(dir.path(), &[0, 1, 2, 0, 0, 3, 0, 4]);
        assert_eq!(leave_out(dir.path()).unwrap(), 3);
        assert_eq!(runs(dir.path()), [(0x11000, 2), (0x15000, 1), (0x20000, 2)]);
        let pages = std::fs::read(dir.path().join("pages-7.img")).unwrap();
        let kept: Vec<u8> = pages.chunks(PAGE).map(|page| page[0]).collect();
        assert_eq!(kept, [1, 2, 3, 0, 4]);
        assert_eq!(leave_out(dir.path()).unwrap(), 0, "again changes nothing");
    }

    #[test]
    fn pages_beyond_the_end_of_memory_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        sample(dir.path(), &[0, 1]);
        for (vaddr, pages) in [(0xffff_ffff_ffff_f000, 2), (0x10000, u64::MAX)] {
            let mut map = image(PAGEMAP_MAGIC);
            write_message(&mut map, &Head { pages_id: 7 });
            write_message(&mut map, &Run { nr_pages: Some(pages), ..run(vaddr, 2) });
            std::fs::write(dir.path().join("pagemap-3.img"), map).unwrap();
            assert_eq!(leave_out(dir.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn an_image_of_another_kind_is_left_alone_and_a_truncated_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        sample(dir.path(), &[0, 1, 2, 0, 0, 3, 0, 4]);
        let map = std::fs::read(dir.path().join("pagemap-3.img")).unwrap();
        std::fs::write(dir.path().join("pagemap-3.img"), &map[..map.len() - 1]).unwrap();
        assert!(leave_out(dir.path()).is_err());
        std::fs::write(dir.path().join("pagemap-3.img"), b"????????").unwrap();
        assert_eq!(leave_out(dir.path()).unwrap(), 0);
    }
}
