//! What fuzzing gives its inputs to, and what has to hold for every one of them.
//!
//! Each target takes any bytes and panics when a promise does not hold. `make
//! fuzz` drives them by coverage (`fuzz/`); `tests/fuzz.rs` gives them the
//! committed inputs, `fuzz/corpus/<target>/`, and some variations. An input that
//! ever broke a promise is committed there.
//!
//! Inputs are texts, where that is possible, so that they can be read and
//! reviewed. A target is bounded in time and memory and leaves nothing.

mod api;
mod archive;
mod http;
mod images;
mod texts;

pub use self::api::api;
pub use self::archive::archive;
pub use self::http::{host, page};
pub use self::images::images;
pub use self::texts::{manifest, recipe, record, settings};

/// A target: panics when a promise does not hold.
pub type Target = fn(&[u8]);

/// All targets by name, which is also that of their folder of inputs.
pub const TARGETS: [(&str, Target); 9] = [
    ("api", api),
    ("archive", archive),
    ("host", host),
    ("images", images),
    ("manifest", manifest),
    ("page", page),
    ("recipe", recipe),
    ("record", record),
    ("settings", settings),
];

/// A place for files that need not outlive the machine.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("there is room for a few bytes")
}

/// The lines of an input: a word, and what follows it.
fn lines(data: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    data.split(|byte| *byte == b'\n').map(|line| match line.iter().position(|byte| *byte == b' ') {
        Some(at) => (&line[..at], &line[at + 1..]),
        None => (line, &[][..]),
    })
}
