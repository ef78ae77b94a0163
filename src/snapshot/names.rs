//! The list of what a clone's first page looks up, which a golden may carry
//! (`run.names`).
//!
//! Read by preparing, from the layers of a clone's root. What it says is only
//! looked up in clones, so a bad list costs time and is no more than that: what
//! cannot be used is left out.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

/// The longest list; a name is some 80 bytes.
const MOST_BYTES: u64 = 1 << 20;

/// How many names are looked up; 10 us each, and 1.5 KB of the kernel's memory.
const MOST_NAMES: usize = 10_000;

/// Reads the list at `path` from the topmost of `lowers` that has it.
pub(super) fn read(lowers: &[PathBuf], path: Option<&str>) -> Vec<String> {
    let found = path.and_then(|path| lowers.iter().find_map(|lower| text(lower, path).ok()));
    let lines = found.iter().flat_map(|text| text.lines());
    lines.filter(|line| line.starts_with('/')).take(MOST_NAMES).map(str::to_owned).collect()
}

/// Links are not followed: what is above a lower directory is the host's.
fn text(lower: &PathBuf, path: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let directory = File::open(lower)?;
    let file = File::from(openat2(&directory, path.trim_start_matches('/'), flags, Mode::empty(), resolve)?);
    let mut bytes = Vec::new();
    if file.metadata()?.is_file() {
        file.take(MOST_BYTES).read_to_end(&mut bytes)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_list_counts_and_only_what_is_a_path_in_it() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let lowers = dirs.each_ref().map(|dir| dir.path().to_owned());
        let list = |below: usize, text: &str| std::fs::write(lowers[below].join("names"), text).unwrap();
        assert!(read(&lowers, Some("/names")).is_empty(), "there is none");
        list(1, "/lower\n");
        assert_eq!(read(&lowers, Some("/names")), ["/lower"]);
        list(0, "/a/b.php\nno path\n\n/c\u{fffd}.php");
        assert_eq!(read(&lowers, Some("/names")), ["/a/b.php", "/c\u{fffd}.php"]);
        assert!(read(&lowers, None).is_empty());
        list(0, &"/x\n".repeat(MOST_NAMES + 1));
        assert_eq!(read(&lowers, Some("/names")).len(), MOST_NAMES);
    }

    #[test]
    fn a_link_leads_nowhere_and_a_pipe_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let lowers = [dir.path().join("lower")];
        std::fs::create_dir(&lowers[0]).unwrap();
        std::fs::write(dir.path().join("outside"), "/secret\n").unwrap();
        std::os::unix::fs::symlink("../outside", lowers[0].join("link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            lowers[0].join("pipe"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        for path in ["/link", "/../outside", "/pipe"] {
            assert!(read(&lowers, Some(path)).is_empty(), "{path}");
        }
    }
}
