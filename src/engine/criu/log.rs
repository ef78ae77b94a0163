//! CRIU's log: its tail and what it means.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;

/// Lines shown with an error; CRIU's own errors stand in the last few.
const TAIL_LINES: usize = 20;

/// The last lines of a log, errors first in importance: when the log has lines
/// marked `Error`, only those and the last line; empty when there is no log.
#[must_use]
pub fn tail(path: &Path) -> String {
    let Ok(bytes) = std::fs::read(path) else { return String::new() };
    tail_of(&String::from_utf8_lossy(&bytes))
}

fn tail_of(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let errors: Vec<&str> = lines.iter().copied().filter(|line| line.contains("Error")).collect();
    let chosen = if errors.is_empty() { &lines } else { &errors };
    chosen[chosen.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Whether there is a log, or could be: a CRIU that cannot write its own, on a full
/// disk for example, ends without saying why. Writing a line tells.
///
/// # Errors
/// What CRIU met.
pub fn can_be_written(path: &Path) -> io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|log| log.len() > 0) {
        return Ok(());
    }
    File::options().create(true).append(true).open(path)?.write_all(b"CRIU wrote nothing\n")
}

/// A known cause, in words that say what to do; none when it is not known.
#[must_use]
pub fn reason(tail: &str) -> Option<&'static str> {
    const KNOWN: &[(&str, &str)] = &[
        ("has bad mode", "the root of the clone's file system has another mode than the golden's"),
        ("has bad size", "a file of the clone differs from the golden's: verify the snapshot"),
        ("has bad build-ID", "a program file differs from the golden's: verify the snapshot"),
        ("No space left on device", "the state directory's file system is full"),
        ("Can't lookup mount", "a process held a file of the host open when the golden was checkpointed"),
        ("cpu", "the snapshot needs features this host's processor does not have"),
        ("Unexpected rt vDSO area bounds", "this CRIU is older than 4.1 and does not know this kernel"),
    ];
    KNOWN.iter().find(|(mark, _)| tail.contains(mark)).map(|(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_prefers_errors() {
        let text = "(00.1) fine\n(00.2) Error (criu/files-reg.c:2200): File x has bad size 1 (expect 2)\n(00.3) bye\n";
        let tail = tail_of(text);
        assert!(tail.contains("has bad size") && !tail.contains("fine"));
        assert!(reason(&tail).is_some());
    }

    #[test]
    fn a_log_without_errors_shows_its_end() {
        let text: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let tail = tail_of(&text);
        assert!(tail.starts_with("line 80") && tail.ends_with("line 99"));
    }

    #[test]
    fn a_missing_log_says_why_it_could_not_be_made() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        can_be_written(&log).unwrap();
        assert_eq!(tail(&log), "CRIU wrote nothing");
        std::fs::write(&log, "CRIU's own").unwrap();
        can_be_written(&log).unwrap();
        assert_eq!(tail(&log), "CRIU's own");
        assert_eq!(can_be_written(&log.join("below")).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }
}
