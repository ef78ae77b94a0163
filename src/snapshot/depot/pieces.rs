//! An archive in pieces: what each one is, and how far a file has got with them.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Bytes of a piece: an interrupted transfer loses so much at most, and an archive
/// of a gigabyte has a few hundred.
pub const PIECE: u64 = 4 << 20;

/// The version this program writes.
const VERSION: u16 = 1;

/// What an archive is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pieces {
    version: u16,
    /// BLAKE3 of each piece, hexadecimal, in order; all but the last have [`PIECE`] bytes.
    pub(super) pieces: Vec<String>,
    /// Bytes of all.
    pub(super) bytes: u64,
}

impl Pieces {
    /// Reads a file and digests its pieces.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let (mut file, mut pieces, mut bytes) = (File::open(path)?, Vec::new(), 0);
        loop {
            let piece = read_piece(&mut file)?;
            if piece.is_empty() {
                return Ok(Self { version: VERSION, pieces, bytes });
            }
            bytes += piece.len() as u64;
            pieces.push(digest(&piece));
        }
    }

    /// Whether it can be what it says: so many pieces have so many bytes.
    #[must_use]
    pub(super) fn makes_sense(&self) -> bool {
        let is_digest = |text: &String| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        self.version == VERSION
            && self.pieces.iter().all(is_digest)
            && self.bytes.div_ceil(PIECE) == self.pieces.len() as u64
    }

    /// How many of the first pieces a file has; it is cut off behind them.
    ///
    /// # Errors
    /// The disk.
    pub(super) fn already_in(&self, file: &mut File) -> io::Result<usize> {
        file.seek(SeekFrom::Start(0))?;
        let (mut whole, mut bytes) = (0, 0);
        for expected in &self.pieces {
            let piece = read_piece(file)?;
            if piece.is_empty() || digest(&piece) != *expected {
                break;
            }
            whole += 1;
            bytes += piece.len() as u64;
        }
        file.set_len(bytes)?;
        file.seek(SeekFrom::Start(bytes))?;
        Ok(whole)
    }
}

/// The next piece of a file; empty at its end.
pub(super) fn read_piece(file: &mut File) -> io::Result<Vec<u8>> {
    let mut piece = Vec::new();
    file.take(PIECE).read_to_end(&mut piece)?;
    Ok(piece)
}

pub(super) fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_file_that_was_cut_off_goes_on_behind_its_last_whole_piece() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive");
        let content: Vec<u8> = (0..2 * PIECE + 7).map(|n| u8::try_from(n % 251).unwrap()).collect();
        std::fs::write(&path, &content).unwrap();
        let pieces = Pieces::of(&path).unwrap();
        assert!(pieces.makes_sense());
        assert_eq!((pieces.pieces.len(), pieces.bytes), (3, 2 * PIECE + 7));
        let part = dir.path().join("part");
        for (present, whole) in [(0, 0), (PIECE - 1, 0), (PIECE, 1), (2 * PIECE + 3, 2), (2 * PIECE + 7, 3)] {
            std::fs::write(&part, &content[..usize::try_from(present).unwrap()]).unwrap();
            let mut file = File::options().read(true).write(true).open(&part).unwrap();
            assert_eq!(pieces.already_in(&mut file).unwrap(), whole, "{present}");
            let mut rest = File::open(&path).unwrap();
            rest.seek(SeekFrom::Start(whole as u64 * PIECE)).unwrap();
            io::copy(&mut rest, &mut file).unwrap();
            assert_eq!(std::fs::read(&part).unwrap(), content, "{present}");
        }
        let mut damaged = content.clone();
        damaged[3] ^= 1;
        std::fs::write(&part, &damaged).unwrap();
        let mut file = File::options().read(true).write(true).open(&part).unwrap();
        assert_eq!(pieces.already_in(&mut file).unwrap(), 0);
        file.write_all(&content).unwrap();
        assert_eq!(std::fs::read(&part).unwrap(), content);
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        let of = |version, pieces: &[&str], bytes| Pieces {
            version,
            pieces: pieces.iter().map(|piece| (*piece).to_owned()).collect(),
            bytes,
        };
        let piece: &str = &"0".repeat(64);
        assert!(of(1, &[piece], 1).makes_sense() && of(1, &[], 0).makes_sense());
        for wrong in [
            of(2, &[piece], 1),
            of(1, &[piece], PIECE + 1),
            of(1, &[piece, piece], PIECE),
            of(1, &["../x"], 1),
        ] {
            assert!(!wrong.makes_sense(), "{wrong:?}");
        }
    }
}
