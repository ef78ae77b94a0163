//! Having clones map memory from files instead of copying it.
//!
//! CRIU gives each clone a copy of every page. Here, once for a prepared
//! snapshot, pages move from CRIU's images into files that the images then name
//! as what is mapped there, in `/.memory/<snapshot id>` of the clone's root:
//!
//! ```text
//! private memory   <pid>         mapped privately: all clones use the same pages of the page cache,
//!                                and copy one when they write to it
//! shared memory    shared-<id>   the same, where the recipe says that each process may have its own
//! ```
//!
//! A restore copies next to nothing, and a clone takes the memory that it uses.
//!
//! Some things differ for the program. Memory given back by `MADV_DONTNEED` is
//! not zero afterwards but as it was in the golden; so only programs are done
//! that the recipe names in `run.mapped_memory`, and of them not the arenas
//! that glibc makes for further threads, which it gives back that way. An
//! area that grows by `mremap` grows into its file: hence [`ROOM`]. And memory
//! that was shared (`run.unshare_memory`) is no longer: what a process writes
//! there, those see that it forks later, and no others.
//!
//! Mapping shared memory from a file that each clone has a reference copy of was
//! tried: each clone then read it from the disk, the first page came 0.1 s later.
//!
//! An image that is not understood is left as it is. Called by prepare on a
//! directory that nobody uses yet; after an error it is thrown away.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek as _, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use prost::Message as _;

use crate::engine::criu::images::{
    ANON_PRIVATE, FILE_PRIVATE, FILE_SHARED, FILES_MAGIC, FileEntry, HEAP, MEMFD, MEMFD_MAGIC, MM_MAGIC,
    MemfdInode, Mm, PAGE, PAGEMAP_MAGIC, REGULAR, RegularFile, Run, Vma, append, area, empty, messages,
    page_map, whole,
};
use crate::host::tree;
use crate::id::SnapshotId;

/// Where the files are, in the clone's root; root's alone. Each snapshot has a
/// directory there, so that none hides what memory of another is mapped from.
pub(super) const DIR: &str = ".memory";

/// Bytes of a file for each area, however long it is: what is not written is a
/// hole, so an area that grows finds zeros. As much as a clone may have in all.
const ROOM: u64 = 1 << 30;

/// For moving pages.
const BUFFER: usize = 1 << 20;

/// Areas with fewer pages are copied: the first touch of a mapped page maps
/// those around it, 16 at a time.
const PAGES_MIN: u64 = 16;

/// Less shared memory than this is copied: a file of its own does not pay.
const SHARED_MIN: u64 = 256;

const MAP_SHARED: u32 = 1;
const MAP_PRIVATE: u32 = 2;
const MAP_ANONYMOUS: u32 = 0x20;
const MAP_GROWSDOWN: u32 = 0x100;
/// Glibc's arenas have it, and other memory that is given back piecemeal.
const MAP_NORESERVE: u32 = 0x4000;
const MAP_HUGETLB: u32 = 0x40000;

/// Advice that means the same for a file: `MADV_DONTFORK`, `_HUGEPAGE`,
/// `_NOHUGEPAGE` and `_DONTDUMP`, a bit each.
const ADVICE: u64 = 1 << 10 | 1 << 14 | 1 << 15 | 1 << 16;

/// `O_RDONLY` with `O_LARGEFILE`, as CRIU notes it.
const READ: u32 = 0x8000;

/// How many pages clones need not copy any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Mapped {
    /// Of private memory.
    pub(super) private: u64,
    /// Of shared memory.
    pub(super) shared: u64,
}

/// Whose memory is to be mapped, by the recipe.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whose<'a> {
    /// `run.mapped_memory`.
    pub(super) programs: &'a [String],
    /// `run.unshare_memory`.
    pub(super) unshare: bool,
}

/// Makes the directory for a snapshot's files, in place of whatever the golden has there:
/// a link of that name would lead to the host's own.
fn make_dir(root: &Path, id: &SnapshotId) -> io::Result<PathBuf> {
    let all = root.join(DIR);
    tree::remove(&all)?;
    let dir = all.join(id.as_str());
    for made in [&all, &dir] {
        fs::DirBuilder::new().mode(0o700).create(made)?;
    }
    Ok(dir)
}

/// Moves pages from the images into files of `root`, the clones' topmost lower
/// layer.
///
/// # Errors
/// When the images or files cannot be read or written; both are then unfit.
pub(super) fn map_memory(
    images: &Path,
    root: &Path,
    id: &SnapshotId,
    whose: Whose<'_>,
) -> io::Result<Mapped> {
    let mut mapped = Mapped::default();
    let bytes = fs::read(images.join("files.img"))?;
    let Some(raw) = messages(&bytes, FILES_MAGIC)? else { return Ok(mapped) };
    let mut files = Files::of(&raw)?;
    let Some(mut processes) = processes(images)? else { return Ok(mapped) };
    // A program's mount is the root's.
    let Some(mnt_id) = processes.iter().find_map(|process| files.program(process)?.mnt_id) else {
        return Ok(mapped);
    };
    if rustix::param::page_size() != PAGE {
        return Ok(mapped);
    }
    let dir = make_dir(root, id)?;
    let entry = |file, name: &str| FileEntry::of_path(file, format!("/{DIR}/{id}/{name}"), READ, mnt_id);
    let before: Vec<Mm> = processes.iter().map(|process| process.mm.clone()).collect();
    for inode in if whose.unshare { anonymous_shared(images)? } else { Vec::new() } {
        let Some(vma) = only_area(&mut processes, &files.of_inode(inode.inode_id)) else { continue };
        let name = format!("shared-{}", inode.shmid);
        let Some(pages) = move_shared(images, &inode, &dir.join(&name))? else { continue };
        let file = files.unused_id();
        files.put(entry(file, &name));
        vma.status = REGULAR | FILE_PRIVATE;
        vma.flags = vma.flags & !(MAP_SHARED | MAP_ANONYMOUS) | MAP_PRIVATE;
        (vma.shmid, vma.fdflags) = (file.into(), None);
        mapped.shared += pages;
    }
    for (mut process, before) in processes.into_iter().zip(before) {
        let name = files.program(&process).and_then(|file| file.name.rsplit('/').next()).unwrap_or_default();
        if whose.programs.iter().any(|program| program == name) {
            let (file, name) = (files.unused_id(), process.pid.to_string());
            let pages = move_private(images, &mut process, file, &dir.join(&name))?;
            if pages > 0 {
                files.put(entry(file, &name));
                mapped.private += pages;
            }
        }
        if process.mm != before {
            let mut image = empty(MM_MAGIC);
            append(&mut image, &process.mm.encode_to_vec());
            fs::write(images.join(format!("mm-{}.img", process.pid)), image)?;
        }
    }
    fs::write(images.join("files.img"), files.image())?;
    Ok(mapped)
}

/// The one area of all processes that is mapped from one of those files of
/// memory; none when several are: what they say to each other would be lost.
fn only_area<'a>(processes: &'a mut [Process], files: &[u32]) -> Option<&'a mut Vma> {
    let of_files =
        |vma: &&mut Vma| vma.status & MEMFD != 0 && files.iter().any(|file| u64::from(*file) == vma.shmid);
    let mut areas = processes.iter_mut().flat_map(|process| &mut process.mm.vmas).filter(of_files);
    let first = areas.next()?;
    let plain = first.status == REGULAR | FILE_SHARED | MEMFD && first.length() <= ROOM / 2;
    (areas.next().is_none() && plain).then_some(first)
}

/// A process whose memory is understood.
struct Process {
    pid: u32,
    mm: Mm,
}

/// All processes, or none when one is not understood: it might share memory
/// with the others.
fn processes(images: &Path) -> io::Result<Option<Vec<Process>>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(images)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let pid = name.and_then(|name| name.strip_prefix("mm-")?.strip_suffix(".img")?.parse().ok());
        let Some(pid) = pid else { continue };
        let bytes = fs::read(&path)?;
        let mm = messages(&bytes, MM_MAGIC)?.and_then(|messages| messages.first().copied());
        match mm.map(whole::<Mm>).transpose()?.flatten() {
            Some(mm) => found.push(Process { pid, mm }),
            None => return Ok(None),
        }
    }
    Ok(Some(found))
}

/// `files.img`: every message as it came, and what is read of it.
struct Files(Vec<(FileEntry, Vec<u8>)>);

impl Files {
    fn of(raw: &[&[u8]]) -> io::Result<Self> {
        let entries = raw.iter().map(|bytes| Ok((FileEntry::decode(*bytes)?, bytes.to_vec())));
        Ok(Self(entries.collect::<io::Result<_>>()?))
    }

    fn program(&self, process: &Process) -> Option<&RegularFile> {
        let entry = self.0.iter().find(|(entry, _)| entry.id == process.mm.exe_file_id);
        entry.and_then(|(entry, _)| entry.regular.as_ref())
    }

    fn of_inode(&self, inode: u64) -> Vec<u32> {
        let opens =
            |entry: &FileEntry| entry.memfd.as_ref().is_some_and(|it| u64::from(it.inode_id) == inode);
        self.0.iter().filter(|(entry, _)| opens(entry)).map(|(entry, _)| entry.id).collect()
    }

    fn unused_id(&self) -> u32 {
        self.0.iter().map(|(entry, _)| entry.id).max().unwrap_or(0) + 1
    }

    /// In place of the entry of that id, if there is one.
    fn put(&mut self, entry: FileEntry) {
        self.0.retain(|(other, _)| other.id != entry.id);
        let bytes = entry.encode_to_vec();
        self.0.push((entry, bytes));
    }

    fn image(&self) -> Vec<u8> {
        let mut image = empty(FILES_MAGIC);
        self.0.iter().for_each(|(_, bytes)| append(&mut image, bytes));
        image
    }
}

/// Memory that processes share without a name or a descriptor: PHP's opcode
/// cache.
fn anonymous_shared(images: &Path) -> io::Result<Vec<MemfdInode>> {
    let bytes = match fs::read(images.join("memfd.img")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let inodes = messages(&bytes, MEMFD_MAGIC)?.unwrap_or_default();
    let inodes = inodes.into_iter().map(|inode| Ok(MemfdInode::decode(inode)?));
    let mut inodes = inodes.collect::<io::Result<Vec<_>>>()?;
    inodes.retain(|inode| inode.name == "/dev/zero");
    Ok(inodes)
}

fn move_shared(images: &Path, inode: &MemfdInode, to: &Path) -> io::Result<Option<u64>> {
    let map_path = images.join(format!("pagemap-shmem-{}.img", inode.shmid));
    let Some((head, runs)) = page_map(&fs::read(&map_path)?)? else { return Ok(None) };
    let pages = runs.iter().map(Run::pages).sum();
    if pages < SHARED_MIN {
        return Ok(None);
    }
    let pages_path = images.join(format!("pages-{}.img", head.pages_id));
    let mut from = BufReader::with_capacity(BUFFER, File::open(&pages_path)?);
    let mut to = create(to)?;
    for run in runs {
        to.seek(SeekFrom::Start(run.vaddr))?;
        move_pages(&mut from, &mut to, run.pages())?;
    }
    to.set_len(inode.size)?;
    fs::remove_file(pages_path)?;
    fs::remove_file(map_path)?;
    Ok(Some(pages))
}

/// Pages that follow each other in one area.
struct Piece {
    /// Which of the process's areas; none in a stack's guard page.
    area: Option<usize>,
    run: Run,
}

fn pieces(vmas: &[Vma], runs: &[Run]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for run in runs {
        let mut from = 0;
        while from < run.pages() {
            let address = run.vaddr + from * PAGE as u64;
            let area = area(vmas, address);
            let room = area.and_then(|at| vmas.get(at)).map_or(1, |vma| (vma.end - address) / PAGE as u64);
            let pages = room.clamp(1, run.pages() - from);
            pieces.push(Piece { area, run: run.part(from, pages) });
            from += pages;
        }
    }
    pieces
}

fn move_private(images: &Path, process: &mut Process, id: u32, to: &Path) -> io::Result<u64> {
    let map_path = images.join(format!("pagemap-{}.img", process.pid));
    let Some((head, runs)) = page_map(&fs::read(&map_path)?)? else { return Ok(0) };
    let pieces = pieces(&process.mm.vmas, &runs);
    let mut present = BTreeMap::<usize, u64>::new();
    for piece in &pieces {
        if let Some(area) = piece.area {
            *present.entry(area).or_default() += piece.run.pages();
        }
    }
    let mut places = BTreeMap::<usize, u64>::new();
    for (at, vma) in process.mm.vmas.iter_mut().enumerate() {
        if may_be_mapped(vma, present.get(&at).copied().unwrap_or(0)) {
            let place = places.len() as u64 * ROOM;
            places.insert(at, place.wrapping_sub(vma.start));
            vma.status = vma.status & !ANON_PRIVATE | FILE_PRIVATE;
            vma.flags &= !MAP_ANONYMOUS;
            (vma.shmid, vma.pgoff, vma.fdflags) = (id.into(), place, None);
        }
    }
    if places.is_empty() {
        return Ok(0);
    }
    let pages_path = images.join(format!("pages-{}.img", head.pages_id));
    let new_path = pages_path.with_extension("new");
    let mut from = BufReader::with_capacity(BUFFER, File::open(&pages_path)?);
    let mut kept = File::create(&new_path)?;
    let mut memory = create(to)?;
    let mut map = empty(PAGEMAP_MAGIC);
    append(&mut map, &head.encode_to_vec());
    let mut moved = 0;
    for Piece { area, run } in pieces {
        if let Some(place) = area.and_then(|area| places.get(&area)) {
            memory.seek(SeekFrom::Start(run.vaddr.wrapping_add(*place)))?;
            move_pages(&mut from, &mut memory, run.pages())?;
            moved += run.pages();
        } else {
            move_pages(&mut from, &mut kept, run.pages())?;
            append(&mut map, &run.encode_to_vec());
        }
    }
    memory.set_len(places.len() as u64 * ROOM)?;
    fs::rename(&new_path, &pages_path)?;
    fs::write(&map_path, map)?;
    Ok(moved)
}

/// Whether an area with so many pages in the image can be a file's, and pays.
/// One of a file only when all its pages are here: then that file is not needed.
fn may_be_mapped(vma: &Vma, present: u64) -> bool {
    let kind = match vma.status & !(REGULAR | HEAP) {
        ANON_PRIVATE => vma.flags & MAP_ANONYMOUS != 0,
        FILE_PRIVATE => present * PAGE as u64 == vma.length(),
        _ => false,
    };
    kind && vma.status & REGULAR != 0
        && vma.flags & (MAP_GROWSDOWN | MAP_NORESERVE | MAP_HUGETLB) == 0
        && vma.madv.unwrap_or(0) & !ADVICE == 0
        && vma.length() <= ROOM / 2
        && present >= PAGES_MIN
}

/// For root's eyes alone, as the memory was.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn move_pages(from: &mut impl Read, to: &mut impl Write, pages: u64) -> io::Result<()> {
    let bytes = pages * PAGE as u64;
    match io::copy(&mut from.take(bytes), to)? {
        copied if copied == bytes => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests;
