//! CRIU's images, from which zero pages are left out.

use std::path::Path;

use prost::Message as _;

use crate::checkpoint::zero::leave_out;
use crate::engine::criu::images::{
    Head, MM_MAGIC, Mm, PAGE, PAGEMAP_MAGIC, Run, Vma, append, empty, messages,
};

/// How many pages an input may have.
const PAGES_MAX: usize = 64;

/// Images of one process: lines of `vma start end flags status`, `run address
/// pages flags` and `page content..` in hexadecimal; raw, two lengths and two
/// images, after a zero byte. Only zero pages of anonymous memory go.
pub fn images(data: &[u8]) {
    let dir = super::scratch();
    match data.split_first() {
        Some((0, raw)) => {
            write_raw(dir.path(), raw);
            if leave_out(dir.path()).is_ok() {
                assert_eq!(leave_out(dir.path()).expect("it is as readable as before"), 0);
            }
        }
        _ => check_script(dir.path(), data),
    }
}

fn write_raw(dir: &Path, raw: &[u8]) {
    let part = |raw: &[u8]| {
        let (length, rest) =
            raw.split_first_chunk().map_or((0, raw), |(two, rest)| (u16::from_le_bytes(*two), rest));
        let (part, rest) = rest.split_at(rest.len().min(length.into()));
        (part.to_vec(), rest.to_vec())
    };
    let (mm, rest) = part(raw);
    let (map, pages) = part(&rest);
    write(dir, &mm, &map, &pages);
}

/// Each byte is a page's content.
fn write(dir: &Path, mm: &[u8], map: &[u8], pages: &[u8]) {
    let pages: Vec<u8> = pages.iter().take(PAGES_MAX).flat_map(|byte| [*byte; PAGE]).collect();
    for (name, bytes) in [("mm-3.img", mm), ("pagemap-3.img", map), ("pages-7.img", &pages)] {
        std::fs::write(dir.join(name), bytes).expect("there is room");
    }
}

/// What memory holds: addresses and contents, in the order of the images.
type Memory = Vec<(u64, u8)>;

fn check_script(dir: &Path, script: &[u8]) {
    let (mut vmas, mut runs, mut contents) = (Vec::new(), Vec::new(), Vec::new());
    for (word, rest) in super::lines(script) {
        let Ok(rest) = std::str::from_utf8(rest) else { continue };
        let numbers: Vec<u64> =
            rest.split(' ').map_while(|number| u64::from_str_radix(number, 16).ok()).collect();
        match (word, &numbers[..]) {
            (b"vma", [start, end, flags, status]) => {
                let (flags, status) = (*flags as u32, *status as u32);
                vmas.push(Vma { start: *start, end: *end, flags, status, ..Vma::default() });
            }
            (b"run", [vaddr, pages, flags]) => runs.push(Run {
                vaddr: *vaddr,
                compat_nr_pages: *pages as u32,
                in_parent: None,
                flags: Some(*flags as u32),
                nr_pages: Some(*pages),
            }),
            (b"page", bytes) => contents.extend(bytes.iter().map(|byte| *byte as u8)),
            _ => {}
        }
    }
    // CRIU writes them sorted.
    vmas.sort_by_key(|vma| vma.start);
    let mut mm = empty(MM_MAGIC);
    append(&mut mm, &Mm { vmas: vmas.clone(), ..Mm::default() }.encode_to_vec());
    let mut map = empty(PAGEMAP_MAGIC);
    append(&mut map, &Head { pages_id: 7 }.encode_to_vec());
    runs.iter().for_each(|run| append(&mut map, &run.encode_to_vec()));
    write(dir, &mm, &map, &contents);
    let Some(before) = memory(dir) else {
        return assert!(matches!(leave_out(dir), Err(_) | Ok(0)), "pages are missing");
    };
    let Ok(left_out) = leave_out(dir) else { return };
    let after = memory(dir).expect("it is as readable as before");
    assert_eq!(before.len() - after.len(), left_out as usize);
    let mut kept = after.iter().peekable();
    for page in &before {
        if kept.next_if_eq(&page).is_none() {
            assert_eq!(page.1, 0, "a page with content is gone");
            assert!(vmas.iter().any(|vma| is_anonymous(vma) && (vma.start..vma.end).contains(&page.0)));
        }
    }
    assert_eq!(kept.next(), None, "nothing is added");
    assert_eq!(leave_out(dir).expect("it is as readable as before"), 0, "again changes nothing");
}

fn is_anonymous(vma: &Vma) -> bool {
    // VMA_ANON_PRIVATE, and neither an AIO ring nor huge pages.
    vma.status & (1 << 9) != 0 && vma.status & (1 << 13) == 0 && vma.flags & 0x40000 == 0
}

/// None when the images do not fit each other.
fn memory(dir: &Path) -> Option<Memory> {
    let read = |name: &str| std::fs::read(dir.join(name)).expect("it is there");
    let (map, pages) = (read("pagemap-3.img"), read("pages-7.img"));
    let messages = messages(&map, PAGEMAP_MAGIC).ok()??;
    let mut pages = pages.chunks_exact(PAGE);
    let mut memory = Memory::new();
    for message in messages.get(1..)? {
        let run = Run::decode(*message).ok()?;
        for n in 0..run.pages() {
            let address = n.checked_mul(PAGE as u64).and_then(|by| run.vaddr.checked_add(by))?;
            memory.push((address, pages.next()?[0]));
        }
    }
    Some(memory)
}
