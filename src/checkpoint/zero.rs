//! Leaving pages that hold nothing out of CRIU's images.
//!
//! A database clears its buffers when it starts: a quarter of MariaDB's pages
//! are zero at the checkpoint. CRIU stores and restores them like any other;
//! left out, a restored process finds them zero all the same, because that is
//! what the kernel gives for a page of private anonymous memory that was never
//! written. Only such memory is looked at: elsewhere a missing page would be
//! read from a file.
//!
//! Called by the checkpoint procedure before the images are archived; a death in
//! between leaves the golden's container, which the next checkpoint removes.

use std::io;
use std::path::Path;

use prost::Message as _;

use crate::engine::criu::image::{self, AIO_RING, ANON_PRIVATE, HUGETLB, MM_MAGIC, Mm, PAGE, Pages, Vma};

/// Leaves zero pages out of all processes' images in `dir`; answers how many.
///
/// # Errors
/// When an image cannot be read or written; the images are then unfit.
pub(super) fn leave_out(dir: &Path) -> io::Result<u64> {
    if rustix::param::page_size() != PAGE {
        return Ok(0);
    }
    image::processes(dir)?.into_iter().try_fold(0, |sum, pid| Ok(sum + of_process(dir, pid)?))
}

fn of_process(dir: &Path, pid: u32) -> io::Result<u64> {
    let mm = std::fs::read(dir.join(format!("mm-{pid}.img")))?;
    let map = dir.join(format!("pagemap-{pid}.img"));
    let (Some(mm), Some(pages)) = (image::messages(&mm, MM_MAGIC)?, Pages::read(&map)?) else {
        return Ok(0);
    };
    let Some(mm) = mm.first() else { return Ok(0) };
    let vmas = Mm::decode(*mm)?.vmas;
    pages.sift(&map, |address, page| Ok(page.iter().any(|&byte| byte != 0) || !reads_as_zero(&vmas, address)))
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
    use crate::engine::criu::image::{Head, PAGEMAP_MAGIC, PRESENT, Run, begin, messages, push};

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
        let vma = |start, end, status| Vma { start, end, flags: 0x22, status, ..Vma::default() };
        let mm = Mm {
            program: 1,
            vmas: vec![vma(0x10000, 0x16000, ANON_PRIVATE | 1), vma(0x20000, 0x22000, 1 << 6)],
        };
        let mut memory = begin(MM_MAGIC);
        push(&mut memory, &mm.encode_to_vec());
        std::fs::write(dir.join("mm-3.img"), memory).unwrap();
        let mut map = begin(PAGEMAP_MAGIC);
        push(&mut map, &Head { pages_id: 7 }.encode_to_vec());
        push(&mut map, &run(0x10000, 6).encode_to_vec());
        push(&mut map, &run(0x20000, 2).encode_to_vec());
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
