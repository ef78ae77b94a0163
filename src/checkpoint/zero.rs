//! Leaving pages that hold nothing out of CRIU's images.
//!
//! A database clears its buffers when it starts: a quarter of MariaDB's pages
//! are zero at the checkpoint. CRIU stores and restores them like any other;
//! left out, a restored process finds them zero all the same, because that is
//! what the kernel gives for a page of private anonymous memory that was never
//! written. Only such memory is looked at: elsewhere a missing page would be
//! read from a file.
//!
//! What is not understood is left as it is. Called by the checkpoint procedure
//! before the images are archived; a death in between leaves the golden's
//! container, which the next checkpoint removes.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::path::Path;

use prost::Message as _;

use crate::engine::criu::images::{
    AIO_RING, ANON_PRIVATE, MM_MAGIC, Mm, PAGE, PAGEMAP_MAGIC, Vma, append, area, empty, messages, page_map,
};

/// `MAP_HUGETLB`: its pages are not of the usual size.
const HUGETLB: u32 = 0x40000;

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
    let (Some(mm), Some((head, runs))) = (messages(&mm, MM_MAGIC)?, page_map(&map)?) else {
        return Ok(0);
    };
    let Some(mm) = mm.first() else { return Ok(0) };
    let vmas = Mm::decode(*mm)?.vmas;
    let pages_path = dir.join(format!("pages-{}.img", head.pages_id));
    let new_path = dir.join(format!("pages-{}.new", head.pages_id));
    let mut pages = BufReader::with_capacity(1 << 20, File::open(&pages_path)?);
    let mut kept = BufWriter::with_capacity(1 << 20, File::create(&new_path)?);
    let mut new_map = empty(PAGEMAP_MAGIC);
    append(&mut new_map, &head.encode_to_vec());
    let mut left_out = 0;
    let mut page = [0; PAGE];
    for run in &runs {
        let mut begun: Option<u64> = None;
        for n in 0..run.pages() {
            pages.read_exact(&mut page)?;
            if page.iter().all(|&byte| byte == 0) && reads_as_zero(&vmas, run.vaddr + n * PAGE as u64) {
                left_out += 1;
                if let Some(from) = begun.take() {
                    append(&mut new_map, &run.part(from, n - from).encode_to_vec());
                }
            } else {
                kept.write_all(&page)?;
                begun.get_or_insert(n);
            }
        }
        if let Some(from) = begun {
            append(&mut new_map, &run.part(from, run.pages() - from).encode_to_vec());
        }
    }
    kept.into_inner()?.sync_all()?;
    std::fs::rename(&new_path, &pages_path)?;
    std::fs::write(&map_path, new_map)?;
    Ok(left_out)
}

/// Whether memory there is zero when it was never written.
fn reads_as_zero(vmas: &[Vma], address: u64) -> bool {
    area(vmas, address).and_then(|at| vmas.get(at)).is_some_and(|vma| {
        vma.status & ANON_PRIVATE != 0 && vma.status & AIO_RING == 0 && vma.flags & HUGETLB == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::criu::images::{Head, Run};

    /// Pages 0..6: private anonymous at 0x10000; 6..8: of a file at 0x20000.
    fn sample(dir: &Path, content: &[u8]) {
        let vma = |start, end, status| Vma { start, end, flags: 0x22, status, ..Vma::default() };
        let vmas = vec![vma(0x10000, 0x16000, ANON_PRIVATE | 1), vma(0x20000, 0x22000, 1 << 6)];
        let mut memory = empty(MM_MAGIC);
        append(&mut memory, &Mm { vmas, ..Mm::default() }.encode_to_vec());
        std::fs::write(dir.join("mm-3.img"), memory).unwrap();
        let mut map = empty(PAGEMAP_MAGIC);
        append(&mut map, &Head { pages_id: 7 }.encode_to_vec());
        append(&mut map, &Run::sample(0x10000, 6).encode_to_vec());
        append(&mut map, &Run::sample(0x20000, 2).encode_to_vec());
        std::fs::write(dir.join("pagemap-3.img"), map).unwrap();
        let pages: Vec<u8> = content.iter().flat_map(|&byte| [byte; PAGE]).collect();
        std::fs::write(dir.join("pages-7.img"), pages).unwrap();
    }

    fn runs(dir: &Path) -> Vec<(u64, u64)> {
        let map = std::fs::read(dir.join("pagemap-3.img")).unwrap();
        let (_, runs) = page_map(&map).unwrap().unwrap();
        runs.iter().map(|run| (run.vaddr, run.pages())).collect()
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
            let mut map = empty(PAGEMAP_MAGIC);
            append(&mut map, &Head { pages_id: 7 }.encode_to_vec());
            append(&mut map, &Run { nr_pages: Some(pages), ..Run::sample(vaddr, 2) }.encode_to_vec());
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
