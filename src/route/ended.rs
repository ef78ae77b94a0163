//! Instances that have ended, remembered beyond the daemon's own end: who follows an old
//! link reads that the demo is over, and not that there never was one.
//!
//! ```text
//! STATE_DIR/ended    `<instance> <seconds since 1970>`, a line for each
//! ```
//!
//! Written by the table in memory ([`super::memory`]), read at the start. A line is not
//! waited for: it outlives the daemon, and when the host dies with it the worst is a
//! poorer page. Lines that cannot be read count as none.
//!
//! Invariants: what is kept is at most a day old and at most as much as the table
//! remembers; the file has four times as many lines at most.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

use super::memory::REMEMBERED;
use crate::id::InstanceId;

/// The file's name.
const FILE: &str = "ended";

/// The file half written.
const UNFINISHED: &str = ".ended.new";

/// As long as a lost node's instances are remembered: after a day nobody is surprised.
const KEPT: SignedDuration = SignedDuration::from_hours(24);

/// When the file is written anew.
const LINES_MAX: usize = 4 * REMEMBERED;

/// Longer than any line.
const LINE_MAX: usize = 64;

/// The file.
#[derive(Debug)]
pub(super) struct Ended {
    path: PathBuf,
    file: File,
    lines: usize,
}

impl Ended {
    /// Opens the file, or makes it; answers the labels that it remembers, the oldest first.
    pub(super) fn open(state_dir: &Path, now: Timestamp) -> io::Result<(Self, Vec<String>)> {
        let path = state_dir.join(FILE);
        let lines = latest(&read(&path)?, now);
        let file = write_anew(state_dir, &path, &lines)?;
        let labels = lines.iter().map(|(id, _)| id.as_str().to_owned()).collect();
        Ok((Self { path, file, lines: lines.len() }, labels))
    }

    /// Remembers one more.
    pub(super) fn add(&mut self, id: &InstanceId, now: Timestamp) -> io::Result<()> {
        if self.lines >= LINES_MAX
            && let Some(dir) = self.path.parent()
        {
            *self = Self::open(dir, now)?.0;
        }
        self.file.write_all(line(id, now.as_second()).as_bytes())?;
        self.lines += 1;
        Ok(())
    }
}

fn line(id: &InstanceId, at: i64) -> String {
    format!("{id} {at}\n")
}

fn read(path: &Path) -> io::Result<String> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        other => other?,
    };
    let mut bytes = Vec::new();
    file.take((LINE_MAX * LINES_MAX) as u64).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What is remembered of these lines, the oldest first. Pure.
fn latest(text: &str, now: Timestamp) -> Vec<(InstanceId, i64)> {
    let parsed = |line: &str| {
        let (id, at) = line.split_once(' ')?;
        Some((id.parse::<InstanceId>().ok()?, at.parse::<i64>().ok()?))
    };
    // A clock that was set back makes nothing last for ever.
    let is_fresh =
        |at: i64| now.as_second().saturating_sub(at).unsigned_abs() < KEPT.as_secs().unsigned_abs();
    let mut seen = HashSet::new();
    let newest = text.lines().rev().filter_map(parsed).filter(|(_, at)| is_fresh(*at));
    let newest = newest.filter(|(id, _)| seen.insert(id.clone()));
    let mut kept: Vec<_> = newest.take(REMEMBERED).collect();
    kept.reverse();
    kept
}

fn write_anew(dir: &Path, path: &Path, lines: &[(InstanceId, i64)]) -> io::Result<File> {
    let new = dir.join(UNFINISHED);
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    let text: String = lines.iter().map(|(id, at)| line(id, *at)).collect();
    file.write_all(text.as_bytes())?;
    std::fs::rename(&new, path)?;
    // Whoever else writes to it (there should be nobody) does not write over it.
    File::options().append(true).open(path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    const DAY: i64 = 24 * 3600;

    #[test]
    fn what_has_ended_is_remembered_for_a_day_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let ids = [(); 3].map(|()| InstanceId::random());
        let (mut ended, labels) = Ended::open(dir.path(), at(1000)).unwrap();
        assert!(labels.is_empty());
        for (id, second) in [(&ids[0], 1000), (&ids[1], 2000), (&ids[0], 3000), (&ids[2], 4000)] {
            ended.add(id, at(second)).unwrap();
        }
        let mode = std::fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let remembered = |now| Ended::open(dir.path(), at(now)).unwrap().1;
        assert_eq!(remembered(5000), [ids[1].as_str(), ids[0].as_str(), ids[2].as_str()]);
        assert_eq!(remembered(2500 + DAY), [ids[0].as_str(), ids[2].as_str()]);
        assert!(remembered(5000 + DAY).is_empty());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn lines_that_nobody_can_read_count_as_none() {
        let id = InstanceId::random();
        let text = format!("\u{fffd}\n{id}\n{id} x\n../../etc 1000\n{id} 1000\n{id} 9");
        assert_eq!(latest(&text, at(1500)), [(id.clone(), 9)]);
        assert!(latest(&format!("{id} {}", i64::MAX), at(1500)).is_empty());
    }

    #[test]
    fn the_file_is_written_anew_when_it_is_long() {
        let dir = tempfile::tempdir().unwrap();
        let (mut ended, _) = Ended::open(dir.path(), at(1000)).unwrap();
        ended.lines = LINES_MAX;
        let id = InstanceId::random();
        ended.add(&id, at(1000)).unwrap();
        assert_eq!(ended.lines, 1);
        assert_eq!(Ended::open(dir.path(), at(1000)).unwrap().1, [id.as_str()]);
    }
}
