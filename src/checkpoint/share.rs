//! Memory that all clones of a golden share until one of them writes to it.
//!
//! CRIU copies every page of a process when it restores it: 27,000 page faults
//! for a PrestaShop, more than half of a restore, and that much memory for each
//! clone. Here large regions are moved out of CRIU's images into one file among
//! the golden's files, and mapped from there, privately: a clone maps the file,
//! takes a page from the page cache when it first reads it, and copies it when
//! it first writes to it. For private memory a process cannot tell the
//! difference.
//!
//! For shared memory (php-fpm's opcode cache) it can: what one process writes
//! the others no longer see, each has the golden's and its own. A recipe says
//! whether its programs can do with that (`run.unshare_memory`).
//!
//! Called by the checkpoint procedure after [`super::zero`]; a death in between
//! leaves the golden's container, which the next checkpoint removes.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use prost::Message as _;

use crate::engine::criu::image::{
    self, ANON_PRIVATE, Entry, KIND_MEMFD, KIND_REGULAR, MEMFD_INODE_MAGIC, MEMORY, MM_MAGIC, MemfdInode, Mm,
    Owner, PAGE, Pages, Regular, Vma, begin, messages, push,
};

/// A region with less in it is not worth a mapping and its faults.
const WORTH: u64 = 1 << 20;

/// `VMA_AREA_REGULAR`, `VMA_FILE_PRIVATE`, `VMA_FILE_SHARED`, `VMA_AREA_MEMFD`
/// of CRIU's image.h.
const REGULAR: u32 = 1;
const FILE_PRIVATE: u32 = 1 << 6;
const FILE_SHARED: u32 = 1 << 7;
const MEMFD: u32 = 1 << 14;

/// What a file may be advised too: (no) huge pages, not in core dumps.
const ADVICE: u64 =
    1 << libc::MADV_HUGEPAGE | 1 << libc::MADV_NOHUGEPAGE | 1 << libc::MADV_DONTDUMP | 1 << libc::MADV_DODUMP;

/// What the kernel calls anonymous shared memory.
const ANONYMOUS: &[u8] = b"/dev/zero";

/// Moves the large regions of all processes' images in `dir` into a file of
/// `upper`, the golden's changed files; answers how many regions.
///
/// # Errors
/// When an image cannot be read or written; the images are then unfit.
pub(super) fn take_out(dir: &Path, upper: &Path, unshare: bool) -> io::Result<usize> {
    if rustix::param::page_size() != PAGE {
        return Ok(0);
    }
    let mut processes = Vec::new();
    for pid in image::processes(dir)? {
        let bytes = fs::read(dir.join(format!("mm-{pid}.img")))?;
        match messages(&bytes, MM_MAGIC)?.as_deref() {
            Some([mm]) => processes.push(Process { pid, mm: Mm::decode(*mm)?, raw: mm.to_vec() }),
            _ => return Ok(0),
        }
    }
    let files_path = dir.join("files.img");
    let mut files = fs::read(&files_path)?;
    let Some(entries) = image::files(&files)? else { return Ok(0) };
    let id = entries.iter().map(|entry| entry.id).max().unwrap_or(0) + 1;
    let segments = if unshare { segments(dir, &entries, &processes)? } else { HashMap::new() };

    let file = File::create(upper.join(MEMORY.trim_start_matches('/')))?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    let mut memory = Memory { file, id, size: 0 };
    let mut regions = 0;
    for process in &processes {
        regions += process.take_out(dir, &mut memory, &segments, &processes)?;
    }
    memory.file.set_len(memory.size)?;
    memory.file.sync_all()?;
    // Programs lie on the root's mount, and so does the file.
    let mount = processes.iter().find_map(|process| {
        let program = entries.iter().find(|entry| entry.id == process.mm.program)?;
        program.regular.as_ref()?.mount
    });
    let regular = Regular {
        id,
        flags: libc::O_RDONLY.cast_unsigned(),
        position: 0,
        owner: Owner::default(),
        name: MEMORY.to_owned(),
        mount,
        size: Some(memory.size),
    };
    let entry = Entry { kind: KIND_REGULAR, id, regular: Some(regular), memfd: None };
    push(&mut files, &entry.encode_to_vec());
    fs::write(&files_path, files)?;
    Ok(regions)
}

/// The pages of each anonymous shared segment that one mapping alone leads to,
/// by the file id that the mapping names.
fn segments(dir: &Path, entries: &[Entry], processes: &[Process]) -> io::Result<HashMap<u64, PathBuf>> {
    let bytes = match fs::read(dir.join("memfd.img")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
        other => other?,
    };
    let Some(inodes) = messages(&bytes, MEMFD_INODE_MAGIC)? else { return Ok(HashMap::new()) };
    let inodes = inodes.into_iter().map(MemfdInode::decode).collect::<Result<Vec<_>, _>>()?;
    let mut found = HashMap::new();
    for entry in entries.iter().filter(|entry| entry.kind == KIND_MEMFD) {
        let Some(memfd) = &entry.memfd else { continue };
        let inode = inodes.iter().find(|inode| inode.inode == memfd.inode && inode.name == ANONYMOUS);
        let users = processes.iter().flat_map(|process| &process.mm.vmas);
        let users = users.filter(|vma| vma.status & MEMFD != 0 && vma.backing == u64::from(entry.id));
        if let (Some(inode), 1) = (inode, users.count()) {
            let map = dir.join(format!("pagemap-shmem-{}.img", inode.segment));
            found.insert(entry.id.into(), map);
        }
    }
    Ok(found)
}

/// The file that is made.
struct Memory {
    file: File,
    id: u32,
    size: u64,
}

impl Memory {
    /// Makes room for a region, and the mapping that leads to it.
    fn region(&mut self, vma: &Vma) -> Vma {
        let region = Vma {
            offset: self.size,
            backing: self.id.into(),
            flags: vma.flags & !(libc::MAP_ANONYMOUS | libc::MAP_TYPE).cast_unsigned()
                | libc::MAP_PRIVATE.cast_unsigned(),
            status: REGULAR | FILE_PRIVATE,
            // Opened for writing it would be copied for each clone.
            open_flags: None,
            ..vma.clone()
        };
        self.size += vma.end - vma.start;
        region
    }
}

struct Process {
    pid: u32,
    mm: Mm,
    raw: Vec<u8>,
}

impl Process {
    fn take_out(
        &self,
        dir: &Path,
        memory: &mut Memory,
        segments: &HashMap<u64, PathBuf>,
        all: &[Self],
    ) -> io::Result<usize> {
        let map = dir.join(format!("pagemap-{}.img", self.pid));
        let Some(own) = Pages::read(&map)? else { return Ok(0) };
        let mut private = Vec::new();
        let mut taken = HashMap::new();
        for vma in &self.mm.vmas {
            let shared = (vma.status == REGULAR | FILE_SHARED | MEMFD).then(|| segments.get(&vma.backing));
            if let Some(segment) = shared.flatten() {
                let Some(pages) = Pages::read(segment)? else { continue };
                if pages.bytes_in(0, vma.end - vma.start) < WORTH || vma.offset != 0 {
                    continue;
                }
                let region = memory.region(vma);
                pages.sift(segment, |address, page| {
                    memory.file.write_all_at(page, region.offset + address).map(|()| false)
                })?;
                taken.insert(vma.start, region);
            } else if is_plain(vma)
                && own.bytes_in(vma.start, vma.end) >= WORTH
                && !is_inherited(vma, self, all)
            {
                let region = memory.region(vma);
                private.push(region.clone());
                taken.insert(vma.start, region);
            }
        }
        if taken.is_empty() {
            return Ok(0);
        }
        own.sift(&map, |address, page| {
            match private.iter().find(|region| (region.start..region.end).contains(&address)) {
                None => Ok(true),
                Some(region) => {
                    let at = region.offset + (address - region.start);
                    memory.file.write_all_at(page, at).map(|()| false)
                }
            }
        })?;
        let mut image = begin(MM_MAGIC);
        push(&mut image, &with_vmas(&self.raw, &taken)?);
        fs::write(dir.join(format!("mm-{}.img", self.pid)), image)?;
        Ok(taken.len())
    }
}

/// Private memory of no particular use: no stack, no heap that `brk` moves.
fn is_plain(vma: &Vma) -> bool {
    let harmless = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    vma.status == REGULAR | ANON_PRIVATE
        && vma.flags & !harmless.cast_unsigned() == 0
        && vma.advice.unwrap_or(0) & !ADVICE == 0
}

/// Whether another process may have it by a fork: CRIU then restores it once
/// for both, and knows it by where it begins.
fn is_inherited(vma: &Vma, of: &Process, all: &[Process]) -> bool {
    let others = all.iter().filter(|process| process.pid != of.pid);
    others.flat_map(|process| &process.mm.vmas).any(|other| other.start == vma.start)
}

/// The message of a process's memory with other mappings in the place of those
/// that begin where they do; all else in it stays as it is.
fn with_vmas(raw: &[u8], taken: &HashMap<u64, Vma>) -> io::Result<Vec<u8>> {
    use prost::encoding::{DecodeContext, WireType, decode_key, encode_key, encode_varint, skip_field};
    const VMAS: u32 = 14;
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while !rest.is_empty() {
        let field = rest;
        let (tag, wire) = decode_key(&mut rest)?;
        let content = rest;
        skip_field(wire, tag, &mut rest, DecodeContext::default())?;
        if tag == VMAS && wire == WireType::LengthDelimited {
            let vma = Vma::decode_length_delimited(content)?;
            if let Some(region) = taken.get(&vma.start) {
                let region = region.encode_to_vec();
                encode_key(VMAS, WireType::LengthDelimited, &mut out);
                encode_varint(region.len() as u64, &mut out);
                out.extend(region);
                continue;
            }
        }
        out.extend(&field[..field.len() - rest.len()]);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::criu::image::{Head, Memfd, PAGEMAP_MAGIC, PRESENT, Run};

    const PAGES: usize = 300;

    fn image(magic: u32, messages: &[Vec<u8>]) -> Vec<u8> {
        let mut image = begin(magic);
        messages.iter().for_each(|message| push(&mut image, message));
        image
    }

    fn run(vaddr: u64, pages: usize) -> Run {
        let pages = u32::try_from(pages).unwrap();
        let (flags, nr_pages) = (Some(PRESENT), Some(pages.into()));
        Run { vaddr, compat_nr_pages: pages, in_parent: None, flags, nr_pages }
    }

    fn map(dir: &Path, name: &str, pages_id: u32, runs: &[Run], filled: u8) {
        let head = Head { pages_id }.encode_to_vec();
        let messages: Vec<_> = [head].into_iter().chain(runs.iter().map(Run::encode_to_vec)).collect();
        std::fs::write(dir.join(format!("{name}.img")), image(PAGEMAP_MAGIC, &messages)).unwrap();
        let pages: u64 = runs.iter().map(Run::pages).sum();
        let bytes = vec![filled; usize::try_from(pages).unwrap() * PAGE];
        std::fs::write(dir.join(format!("pages-{pages_id}.img")), bytes).unwrap();
    }

    fn vma(start: u64, status: u32, flags: i32) -> Vma {
        let flags = flags.cast_unsigned();
        Vma { start, end: start + (2 << 20), status, flags, descriptor: -1, ..Vma::default() }
    }

    /// A process with a large private region, a stack, and a shared segment.
    fn sample() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path().join("upper");
        std::fs::create_dir(&upper).unwrap();
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let mut shared = vma(0x8000_0000, REGULAR | FILE_SHARED | MEMFD, libc::MAP_SHARED);
        shared.backing = 9;
        shared.open_flags = Some(libc::O_RDWR.cast_unsigned());
        let vmas = vec![
            vma(0x1000_0000, REGULAR | ANON_PRIVATE, private),
            vma(0x2000_0000, REGULAR | ANON_PRIVATE, private | libc::MAP_STACK),
            shared,
        ];
        let mut mm = Mm { program: 4, vmas }.encode_to_vec();
        // A field that is not known here: number 100, the varint 7.
        mm.extend([0xa0, 0x06, 7]);
        std::fs::write(dir.path().join("mm-1.img"), image(MM_MAGIC, &[mm])).unwrap();
        map(dir.path(), "pagemap-1", 1, &[run(0x1000_1000, PAGES), run(0x2000_0000, PAGES)], 1);
        map(dir.path(), "pagemap-shmem-77", 2, &[run(0x2000, PAGES)], 2);
        let program = Regular { id: 4, name: "/bin/x".into(), mount: Some(33), ..Regular::default() };
        let entries = [
            Entry { kind: KIND_REGULAR, id: 4, regular: Some(program), memfd: None },
            Entry { kind: KIND_MEMFD, id: 9, regular: None, memfd: Some(Memfd { inode: 5 }) },
        ];
        let entries: Vec<_> = entries.iter().map(Entry::encode_to_vec).collect();
        std::fs::write(dir.path().join("files.img"), image(0x5630_3138, &entries)).unwrap();
        let inode = MemfdInode { name: ANONYMOUS.into(), segment: 77, inode: 5 }.encode_to_vec();
        std::fs::write(dir.path().join("memfd.img"), image(MEMFD_INODE_MAGIC, &[inode])).unwrap();
        (dir, upper)
    }

    fn mappings(dir: &Path) -> Vec<Vma> {
        let bytes = std::fs::read(dir.join("mm-1.img")).unwrap();
        let mm = messages(&bytes, MM_MAGIC).unwrap().unwrap()[0];
        assert!(mm.ends_with(&[0xa0, 0x06, 7]), "what is not understood is kept");
        Mm::decode(mm).unwrap().vmas
    }

    #[test]
    fn large_regions_lie_in_one_file_that_is_mapped_privately() {
        let (dir, upper) = sample();
        assert_eq!(take_out(dir.path(), &upper, true).unwrap(), 2);
        let vmas = mappings(dir.path());
        let entries = image::files(&std::fs::read(dir.path().join("files.img")).unwrap()).unwrap().unwrap();
        let file = entries.last().unwrap().regular.clone().unwrap();
        assert_eq!((file.name.as_str(), file.mount, file.size), (MEMORY, Some(33), Some(4 << 20)));
        let memory = std::fs::read(upper.join(MEMORY.trim_start_matches('/'))).unwrap();
        for (at, (offset, first, filled)) in [(0, (0, 1, 1)), (2, (2 << 20, 2, 2))] {
            let vma = &vmas[at];
            assert_eq!((vma.backing, vma.offset), (file.id.into(), offset));
            assert_eq!(vma.status, REGULAR | FILE_PRIVATE);
            assert_eq!((vma.flags, vma.open_flags), (libc::MAP_PRIVATE.cast_unsigned(), None));
            let begin = usize::try_from(offset).unwrap() + first * PAGE;
            assert!(memory[begin..begin + PAGES * PAGE].iter().all(|&byte| byte == filled));
            assert_eq!((memory[begin - 1], memory[begin + PAGES * PAGE]), (0, 0));
        }
        assert_eq!(vmas[1].status, REGULAR | ANON_PRIVATE, "a stack stays");
        let left = Pages::read(&dir.path().join("pagemap-1.img")).unwrap().unwrap();
        assert_eq!(left.bytes_in(0, u64::MAX), (PAGES * PAGE) as u64);
    }

    #[test]
    fn shared_memory_stays_shared_unless_the_recipe_says_so_or_when_two_map_it() {
        let (dir, upper) = sample();
        assert_eq!(take_out(dir.path(), &upper, false).unwrap(), 1);
        assert_eq!(mappings(dir.path())[2].status, REGULAR | FILE_SHARED | MEMFD);

        let (dir, upper) = sample();
        for suffix in ["mm", "pagemap"] {
            let from = dir.path().join(format!("{suffix}-1.img"));
            std::fs::copy(from, dir.path().join(format!("{suffix}-2.img"))).unwrap();
        }
        assert_eq!(take_out(dir.path(), &upper, true).unwrap(), 0, "nor what a fork has of its parent");
        assert_eq!(mappings(dir.path())[2].status, REGULAR | FILE_SHARED | MEMFD);
    }
}
