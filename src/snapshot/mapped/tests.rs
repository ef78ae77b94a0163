//! On images that are made here, as CRIU writes them.

use super::*;
use crate::engine::criu::images::{FILE_SHARED, Head, MemfdFile};

const START: u64 = 0x10000;

fn id() -> SnapshotId {
    "shop-20260101t000000z-0001".parse().unwrap()
}

fn whose(programs: &[String]) -> Whose<'_> {
    Whose { programs, unshare: false }
}

/// One process, `program`: areas of private memory (20 pages in the image of
/// 32, each filled with `7`), of a glibc arena and of a library's data, and 300
/// pages of shared memory, filled with `9`.
fn sample(dir: &Path, program: &str) {
    let page = PAGE as u64;
    let vma = |start: u64, pages: u64, flags, status| Vma {
        start,
        end: start + pages * page,
        flags,
        status: status | REGULAR,
        shmid: if status & MEMFD == 0 { 0 } else { 8 },
        ..Vma::default()
    };
    let vmas = vec![
        vma(START, 32, 0x22, ANON_PRIVATE),
        vma(0x400_0000, 32, 0x22 | MAP_NORESERVE, ANON_PRIVATE),
        vma(0x500_0000, 20, 2, FILE_PRIVATE),
        vma(0x600_0000, 40, 2, FILE_PRIVATE),
        vma(0x700_0000, 300, 1, FILE_SHARED | MEMFD),
    ];
    image(dir, "mm-3.img", MM_MAGIC, &[Mm { exe_file_id: 5, vmas, ..Mm::default() }.encode_to_vec()]);
    let starts = [START, 0x400_0000, 0x500_0000, 0x600_0000];
    pages(dir, "pagemap-3.img", 1, &starts.map(|start| Run::sample(start, 20)), 7);
    pages(dir, "pagemap-shmem-44.img", 2, &[Run::sample(0, 200), Run::sample(0x10_0000, 100)], 9);
    let inode = MemfdInode { name: "/dev/zero".into(), size: 0x20_0000, shmid: 44, inode_id: 2 };
    image(dir, "memfd.img", MEMFD_MAGIC, &[inode.encode_to_vec()]);
    let memfd = FileEntry { kind: 18, id: 8, regular: None, memfd: Some(MemfdFile { inode_id: 2 }) };
    let program = FileEntry::of_path(5, format!("/usr/sbin/{program}"), READ, 77);
    image(dir, "files.img", FILES_MAGIC, &[program.encode_to_vec(), memfd.encode_to_vec()]);
}

fn image(dir: &Path, name: &str, magic: u32, messages: &[Vec<u8>]) {
    let mut image = empty(magic);
    messages.iter().for_each(|message| append(&mut image, message));
    fs::write(dir.join(name), image).unwrap();
}

fn pages(dir: &Path, name: &str, pages_id: u32, runs: &[Run], byte: u8) {
    let head = Head { pages_id }.encode_to_vec();
    let messages: Vec<_> = [head].into_iter().chain(runs.iter().map(|run| run.encode_to_vec())).collect();
    image(dir, name, PAGEMAP_MAGIC, &messages);
    let pages = runs.iter().map(Run::pages).sum::<u64>();
    fs::write(dir.join(format!("pages-{pages_id}.img")), vec![byte; pages as usize * PAGE]).unwrap();
}

fn areas(dir: &Path) -> Vec<Vma> {
    let bytes = fs::read(dir.join("mm-3.img")).unwrap();
    let mm = messages(&bytes, MM_MAGIC).unwrap().unwrap()[0];
    whole::<Mm>(mm).unwrap().unwrap().vmas
}

fn file_name(dir: &Path, id: u64) -> Option<String> {
    let bytes = fs::read(dir.join("files.img")).unwrap();
    let files = Files::of(&messages(&bytes, FILES_MAGIC).unwrap().unwrap()).unwrap();
    let entry = files.0.into_iter().find(|(entry, _)| u64::from(entry.id) == id).unwrap().0;
    entry.regular.map(|file| file.name)
}

fn bytes_at(path: &Path, at: u64, length: usize) -> Vec<u8> {
    let mut file = File::open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn what_moves_is_mapped_where_it_was_and_the_rest_is_still_copied() {
    let (images, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let page = PAGE as u64;
    sample(images.path(), "mariadbd");
    let mapped = map_memory(images.path(), root.path(), &id(), whose(&["mariadbd".into()])).unwrap();
    assert_eq!(mapped.private, 40, "the memory, and the data that is here as a whole");
    let [memory, arena, data, part, _] = areas(images.path()).try_into().unwrap();
    for moved in [&memory, &data] {
        assert_eq!((moved.status, moved.flags), (REGULAR | FILE_PRIVATE, 2));
        assert_eq!(
            file_name(images.path(), moved.shmid).as_deref(),
            Some("/.memory/shop-20260101t000000z-0001/3")
        );
    }
    assert_eq!((memory.pgoff, data.pgoff), (0, ROOM), "each has room to grow");
    assert_eq!((arena.status, part.status), (REGULAR | ANON_PRIVATE, REGULAR | FILE_PRIVATE));
    assert_eq!(part.shmid, 0);
    let file = root.path().join(".memory/shop-20260101t000000z-0001/3");
    assert_eq!(bytes_at(&file, 19 * page, 2 * PAGE), [vec![7; PAGE], vec![0; PAGE]].concat());
    assert_eq!(bytes_at(&file, ROOM, PAGE), vec![7; PAGE]);
    assert_eq!(fs::metadata(&file).unwrap().len(), 2 * ROOM, "no growth leads past the end");
    let (_, runs) = page_map(&fs::read(images.path().join("pagemap-3.img")).unwrap()).unwrap().unwrap();
    let runs: Vec<_> = runs.iter().map(|run| (run.vaddr, run.pages())).collect();
    assert_eq!(runs, [(0x400_0000, 20), (0x600_0000, 20)]);
    assert_eq!(fs::metadata(images.path().join("pages-1.img")).unwrap().len(), 40 * page);
}

#[test]
fn shared_memory_becomes_each_ones_own_when_the_recipe_says_so_and_one_alone_maps_it() {
    let (images, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sample(images.path(), "php-fpm8.2");
    assert_eq!(map_memory(images.path(), root.path(), &id(), whose(&[])).unwrap(), Mapped::default());
    assert_eq!(areas(images.path()).pop().unwrap().status, REGULAR | FILE_SHARED | MEMFD);

    let unshare = Whose { unshare: true, ..whose(&[]) };
    let root = tempfile::tempdir().unwrap();
    let mapped = map_memory(images.path(), root.path(), &id(), unshare).unwrap();
    assert_eq!(mapped, Mapped { private: 0, shared: 300 });
    let area = areas(images.path()).pop().unwrap();
    assert_eq!((area.status, area.flags, area.fdflags), (REGULAR | FILE_PRIVATE, MAP_PRIVATE, None));
    assert_eq!(
        file_name(images.path(), area.shmid).as_deref(),
        Some("/.memory/shop-20260101t000000z-0001/shared-44")
    );
    let file = root.path().join(".memory/shop-20260101t000000z-0001/shared-44");
    assert_eq!(fs::metadata(&file).unwrap().len(), 0x20_0000);
    assert_eq!(bytes_at(&file, 0x10_0000 - 1, 2), [0, 9]);

    let (images, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sample(images.path(), "php-fpm8.2");
    for name in ["mm", "pagemap"] {
        let from = images.path().join(format!("{name}-3.img"));
        fs::copy(from, images.path().join(format!("{name}-4.img"))).unwrap();
    }
    assert_eq!(map_memory(images.path(), root.path(), &id(), unshare).unwrap(), Mapped::default());
}

#[test]
fn memory_with_something_unknown_in_it_is_left_as_it_is() {
    let (images, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sample(images.path(), "mariadbd");
    let path = images.path().join("mm-3.img");
    let bytes = fs::read(&path).unwrap();
    // Field 200, which a later CRIU may have.
    let message = [messages(&bytes, MM_MAGIC).unwrap().unwrap()[0], &[0xc0, 0x0c, 1]].concat();
    image(images.path(), "mm-3.img", MM_MAGIC, &[message]);
    let before = fs::read(&path).unwrap();
    let mapped = map_memory(images.path(), root.path(), &id(), whose(&["mariadbd".into()])).unwrap();
    assert_eq!((mapped, fs::read(&path).unwrap()), (Mapped::default(), before));
}

#[test]
fn images_that_are_cut_short_are_an_error() {
    let (images, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sample(images.path(), "mariadbd");
    File::options().write(true).open(images.path().join("pages-1.img")).unwrap().set_len(9).unwrap();
    assert!(map_memory(images.path(), root.path(), &id(), whose(&["mariadbd".into()])).is_err());
}

#[test]
fn a_link_in_the_memorys_place_leads_nothing_out_of_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    for made in [&root, &outside] {
        fs::create_dir(made).unwrap();
    }
    std::os::unix::fs::symlink(&outside, root.join(DIR)).unwrap();
    assert_eq!(make_dir(&root, &id()).unwrap(), root.join(DIR).join(id().as_str()));
    assert!(root.join(DIR).symlink_metadata().unwrap().is_dir());
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
}
