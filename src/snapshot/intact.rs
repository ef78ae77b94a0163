//! Whether what was prepared is still as it was made, and putting right what is not.
//!
//! Called by [`super::prepare`] before anything is restored. A tree keeps digests of its
//! files ([`crate::host::digests`]) beside them, made when it was made:
//!
//! ```text
//! <tree>/digests    of all files but these two
//! <tree>/checked    <boot id> <Unix time> <stamp>: when all of them were read and were right
//! ```
//!
//! Reading all of it takes about a second a gigabyte, so it is done once a boot, and again
//! after [`GOOD_FOR`]; in between at most the file system's own account of the files is
//! asked for ([`Ask`]). A damaged file is replaced by the same one of a fresh copy, by a rename: shops that
//! run keep what they have open, later ones find the new one.
//!
//! Invariant: nothing takes a file's place that is not what was once recorded of it.

use std::io;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

use super::prepare::{PrepareError, at, blocking, sync};
use crate::host::digests::Digests;

/// The digests' name in the tree.
const DIGESTS: &str = "digests";

/// The name of what was found last.
const CHECKED: &str = "checked";

/// For how long a check is good: a disk that begins to fail is seen within a week, and
/// daemons started one after the other do not each read everything.
const GOOD_FOR: SignedDuration = SignedDuration::from_hours(7 * 24);

/// So many damaged files are named in the log: more tell nothing more about the disk.
const TOLD_MAX: usize = 20;

/// What is asked of a tree whose files were all read not long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// Whether somebody has written to its files since: 2 us a file.
    Files,
    /// Nothing: an image has tens of thousands of files, and a shop is woken in a blink.
    Nothing,
}

/// Records what the files of a tree are; for whoever has just made it. Blocks.
///
/// # Errors
/// When the disk says no.
pub(super) fn record(tree: &Path) -> io::Result<()> {
    let digests = Digests::of(tree, |name| name != Path::new(DIGESTS) && name != Path::new(CHECKED))?;
    digests.write(&tree.join(DIGESTS))?;
    Checked::now(digests.stamp(tree)?)?.write(tree)
}

/// Names of damaged files of a tree, by their paths in it; none where it was found whole
/// not long ago and nobody has written to it since. Blocks.
///
/// # Errors
/// When it cannot be looked at.
pub(super) fn damaged(tree: &Path, ask: Ask) -> io::Result<Vec<PathBuf>> {
    let checked = Checked::read(tree).filter(|checked| checked.is_good(Timestamp::now()));
    let checked = match checked {
        Some(checked) if checked.boot != boot_id()? => None,
        Some(_) if ask == Ask::Nothing => return Ok(Vec::new()),
        checked => checked,
    };
    let digests = match Digests::read(&tree.join(DIGESTS)) {
        Ok(digests) => digests,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(vec![DIGESTS.into()]),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A former program's: from now on it is known what they are.
            record(tree)?;
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    if let (Some(checked), Ok(stamp)) = (checked, digests.stamp(tree))
        && checked.stamp == stamp
    {
        return Ok(Vec::new());
    }
    in_full(tree, &digests)
}

/// The same, whatever was found before; none of what is not there, or has no digests.
///
/// # Errors
/// As above.
pub(super) fn damaged_in_full(tree: &Path) -> io::Result<Vec<PathBuf>> {
    match Digests::read(&tree.join(DIGESTS)) {
        Ok(digests) => in_full(tree, &digests),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            forget(tree)?;
            Ok(vec![DIGESTS.into()])
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn in_full(tree: &Path, digests: &Digests) -> io::Result<Vec<PathBuf>> {
    // Before they are read: what is written meanwhile is looked at next time.
    let stamp = digests.stamp(tree);
    let differing = digests.differing(tree)?;
    match stamp {
        Ok(stamp) if differing.is_empty() => {
            Checked::now(stamp)?.write(tree)?;
        }
        // The next one is to look, too.
        _ => forget(tree)?,
    }
    Ok(differing)
}

fn forget(tree: &Path) -> io::Result<()> {
    match std::fs::remove_file(tree.join(CHECKED)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Puts files of a fresh copy, which has digests of its own, in the place of damaged ones;
/// answers the first that is none of the copy's. Blocks; not synced.
///
/// # Errors
/// When the disk says no.
pub(super) fn mend(tree: &Path, fresh: &Path, damaged: &[PathBuf]) -> io::Result<Result<(), PathBuf>> {
    let copied = Digests::read(&fresh.join(DIGESTS))?;
    let same = match Digests::read(&tree.join(DIGESTS)) {
        Ok(recorded) => damaged.iter().find(|name| !recorded.agree(&copied, name)).cloned(),
        // Only the copy tells what they were.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            copied.differing(tree)?.into_iter().next()
        }
        Err(error) => return Err(error),
    };
    if let Some(name) = same {
        return Ok(Err(name));
    }
    for name in damaged {
        std::fs::rename(fresh.join(name), tree.join(name))?;
    }
    Ok(Ok(()))
}

/// Has a tree be as it was made: what a disk has damaged of it is taken from a fresh copy,
/// which `make` puts into the directory that it is given.
///
/// # Errors
/// [`PrepareError::Damaged`] when the copy is another one, or as `make`.
pub(super) async fn keep_whole(
    tree: &Path,
    ask: Ask,
    make: impl AsyncFnOnce(&Path) -> Result<(), PrepareError>,
) -> Result<(), PrepareError> {
    let owned = tree.to_owned();
    let damaged = blocking(move || damaged(&owned, ask)).await.map_err(at("look at", tree))?;
    let Some(first) = damaged.first().cloned() else { return Ok(()) };
    for name in damaged.iter().take(TOLD_MAX) {
        tracing::warn!(file = %tree.join(name).display(), "a prepared file is not as it was made: look at the disk");
    }
    let new = tree.with_file_name(".new-mend");
    drop(std::fs::remove_dir_all(&new));
    let mended = match make(&new).await {
        Ok(()) => {
            let (owned, fresh) = (tree.to_owned(), new.clone());
            let mended = blocking(move || {
                let mended = mend(&owned, &fresh, &damaged)?;
                sync(&owned)?;
                // Whether it is, by all of its files.
                Ok(match mended {
                    Ok(()) => Ok(damaged_in_full(&owned)?),
                    Err(other) => Err(other),
                })
            });
            mended.await.map_err(at("mend", tree))
        }
        Err(error) => Err(error),
    };
    drop(std::fs::remove_dir_all(&new));
    let left = match mended? {
        Ok(left) => left.into_iter().next(),
        Err(other) => Some(other),
    };
    match left {
        None => {
            tracing::info!(tree = %tree.display(), first = %first.display(), "what was damaged is as it was");
            Ok(())
        }
        Some(name) => Err(PrepareError::Damaged { path: tree.join(name), tree: tree.to_owned() }),
    }
}

/// What was found when all files were read.
#[derive(Debug, PartialEq, Eq)]
struct Checked {
    boot: String,
    at: Timestamp,
    stamp: String,
}

impl Checked {
    fn now(stamp: String) -> io::Result<Self> {
        Ok(Self { boot: boot_id()?, at: Timestamp::now(), stamp })
    }

    /// What was found last; nothing is as good as something that cannot be read.
    fn read(tree: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(tree.join(CHECKED)).ok()?;
        let mut words = text.split_ascii_whitespace().map(str::to_owned);
        let (boot, at, stamp) = (words.next()?, words.next()?.parse().ok()?, words.next()?);
        Some(Self { boot, at: Timestamp::from_second(at).ok()?, stamp })
    }

    fn write(&self, tree: &Path) -> io::Result<()> {
        let (path, new) = (tree.join(CHECKED), tree.join(format!(".{CHECKED}.new")));
        std::fs::write(&new, format!("{} {} {}\n", self.boot, self.at.as_second(), self.stamp))?;
        std::fs::rename(new, path)
    }

    /// Not for ever, and not when the clock was set back.
    fn is_good(&self, now: Timestamp) -> bool {
        let age = now.duration_since(self.at);
        !age.is_negative() && age < GOOD_FOR
    }
}

fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    /// A tree with its record, and a fresh copy of it.
    fn trees() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let [tree, fresh] = ["tree", "fresh"].map(|name| dir.path().join(name));
        for made in [&tree, &fresh] {
            std::fs::create_dir_all(made.join("images")).unwrap();
            std::fs::write(made.join("images/pages-1.img"), vec![5; 10_000]).unwrap();
            std::fs::write(made.join("config.json"), "{}").unwrap();
            record(made).unwrap();
        }
        (dir, tree, fresh)
    }

    /// As a disk does it: no time of the file changes.
    fn turn_a_bit(path: &Path) {
        let times = std::fs::metadata(path).unwrap();
        let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 7).unwrap();
        file.write_all_at(&[byte[0] ^ 16], 7).unwrap();
        file.set_modified(times.modified().unwrap()).unwrap();
    }

    #[test]
    fn a_bit_that_turned_is_found_and_put_right() {
        let (_dir, tree, fresh) = trees();
        assert_eq!(damaged(&tree, Ask::Files).unwrap(), Vec::<PathBuf>::new());
        assert!(tree.join(CHECKED).is_file());
        turn_a_bit(&tree.join("images/pages-1.img"));
        let found = damaged(&tree, Ask::Files).unwrap();
        assert_eq!(found, [Path::new("images/pages-1.img")]);
        assert!(!tree.join(CHECKED).try_exists().unwrap(), "the next one looks, too");
        mend(&tree, &fresh, &found).unwrap().unwrap();
        assert_eq!(damaged_in_full(&tree).unwrap(), Vec::<PathBuf>::new());
        assert_eq!(std::fs::read(tree.join("images/pages-1.img")).unwrap(), vec![5; 10_000]);
    }

    #[test]
    fn nothing_takes_a_place_that_is_not_what_was_there() {
        let (_dir, tree, fresh) = trees();
        let name = Path::new("images/pages-1.img");
        std::fs::write(fresh.join(name), "of another program").unwrap();
        record(&fresh).unwrap();
        turn_a_bit(&tree.join(name));
        let found = damaged(&tree, Ask::Files).unwrap();
        assert_eq!(mend(&tree, &fresh, &found).unwrap().unwrap_err(), name);
        // Nor where what was there is not known any more.
        turn_a_bit(&tree.join(DIGESTS));
        assert_eq!(damaged(&tree, Ask::Files).unwrap(), [Path::new(DIGESTS)]);
        assert_eq!(mend(&tree, &fresh, &[DIGESTS.into()]).unwrap().unwrap_err(), name);
    }

    #[test]
    fn a_damaged_record_is_written_anew_when_the_files_are_as_they_were() {
        let (_dir, tree, fresh) = trees();
        turn_a_bit(&tree.join(DIGESTS));
        let found = damaged(&tree, Ask::Files).unwrap();
        mend(&tree, &fresh, &found).unwrap().unwrap();
        assert_eq!(damaged_in_full(&tree).unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn what_a_former_program_made_is_recorded() {
        let (_dir, tree, _) = trees();
        std::fs::remove_file(tree.join(DIGESTS)).unwrap();
        assert_eq!(damaged_in_full(&tree).unwrap(), Vec::<PathBuf>::new());
        assert!(!tree.join(DIGESTS).try_exists().unwrap(), "whoever only looks changes nothing");
        assert_eq!(damaged(&tree, Ask::Files).unwrap(), Vec::<PathBuf>::new());
        turn_a_bit(&tree.join("images/pages-1.img"));
        assert_eq!(damaged(&tree, Ask::Files).unwrap().len(), 1);
    }

    #[test]
    fn a_check_is_good_for_this_boot_and_a_week_and_then_all_is_read_again() {
        let (_dir, tree, _) = trees();
        let good = Checked::read(&tree).unwrap();
        turn_a_bit(&tree.join("images/pages-1.img"));
        let found = |checked: &Checked| {
            checked.write(&tree).unwrap();
            damaged(&tree, Ask::Nothing).unwrap().len()
        };
        assert_eq!(found(&good), 0, "nothing is read");
        assert_eq!(found(&Checked { boot: "another".into(), ..good }), 1);
        let good = Checked { boot: boot_id().unwrap(), at: Timestamp::now(), stamp: "another".into() };
        assert_eq!(found(&good), 0);
        assert_eq!(damaged(&tree, Ask::Files).unwrap().len(), 1, "somebody wrote to it");
        assert_eq!(found(&Checked { at: Timestamp::now() - GOOD_FOR, ..good }), 1);
        let good = Checked::now(String::new()).unwrap();
        assert_eq!(found(&Checked { at: Timestamp::now() + GOOD_FOR, ..good }), 1, "the clock was set back");
        std::fs::write(tree.join(CHECKED), "nonsense").unwrap();
        assert_eq!(damaged(&tree, Ask::Nothing).unwrap().len(), 1);
    }
}
