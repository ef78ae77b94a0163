//! The ends of a running shop's log files, read from outside.
//!
//! Called by the API and by `logs`. The files are a stranger's: they are opened
//! below the shop's own root, only so much of each is read, and what is answered
//! tells a terminal nothing but letters.

use std::io;
use std::path::Path;

use super::personalize;
use crate::host::process;

/// How much of a file is read: a stranger may have filled it.
const MOST: u64 = 1 << 20;

/// One file's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEnd {
    /// Its path within the shop.
    pub path: String,
    /// Its last lines, or why they cannot be read.
    pub text: Result<String, String>,
}

/// The last `tail` lines of each of `files` that is there, in the shop whose
/// first process has that pid.
#[must_use]
pub fn ends(pid: i32, files: &[String], tail: usize) -> Vec<LogEnd> {
    let mut found = Vec::new();
    for path in files {
        let text = match personalize::read_end(pid, Path::new(path), MOST) {
            Ok(content) => Ok(last_lines(&String::from_utf8_lossy(&content), tail)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            // One spoilt file hides no other.
            Err(error) => Err(error.to_string()),
        };
        found.push(LogEnd { path: path.clone(), text });
    }
    found
}

/// The same, if the process that has the pid is still the shop's.
///
/// # Errors
/// `NotFound` when it is not.
pub fn ends_of((pid, start_ticks): (i32, u64), files: &[String], tail: usize) -> io::Result<Vec<LogEnd>> {
    let found = ends(pid, files, tail);
    // Looked at afterwards: nothing of another process that has its pid now is told.
    match process::start_ticks(pid)? == start_ticks {
        true => Ok(found),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

fn last_lines(content: &str, tail: usize) -> String {
    let lines: Vec<&str> = content.lines().collect();
    harmless(&lines[lines.len().saturating_sub(tail)..].join("\n"))
}

/// A text that tells a terminal nothing but letters: it was written by strangers.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && !matches!(c, '\n' | '\t') { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> (i32, u64) {
        let pid = i32::try_from(std::process::id()).unwrap();
        (pid, process::start_ticks(pid).unwrap())
    }

    #[test]
    fn a_log_sends_no_orders_to_the_terminal() {
        assert_eq!(harmless("one\n\ttwo \u{1b}]0;owned\u{7}"), "one\n\ttwo \u{fffd}]0;owned\u{fffd}");
    }

    #[test]
    fn the_last_lines_are_told_and_one_spoilt_file_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("log"), "one\ntwo\nthree\n").unwrap();
        std::fs::create_dir(path("spoilt")).unwrap();
        let files = [path("spoilt"), path("absent"), path("log")];
        let found = ends_of(own(), &files, 2).unwrap();
        assert_eq!(found.len(), 2, "the absent one is not told: {found:?}");
        assert!(found[0].text.is_err(), "{found:?}");
        assert_eq!(found[1], LogEnd { path: path("log"), text: Ok("two\nthree".into()) });
    }

    #[test]
    fn another_process_that_has_the_pid_now_is_not_read() {
        let (pid, ticks) = own();
        let error = ends_of((pid, ticks + 1), &[], 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
