//! Places where a test has the program fail: with an error, by a panic, by its
//! death, or by waiting.
//!
//! A procedure names its step with [`hit`]; without the feature `testing` that is
//! nothing at all. A test names a file in [`VARIABLE`] for a daemon that it
//! starts, and writes into it, while the daemon runs, what is to happen where:
//! lines of `NAME=ACTION`, where the action is one of
//!
//! ```text
//! error      the step fails, as if the host had refused it
//! panic      the task that does it panics, which ends the released program
//! abort      the process dies at once, without a word: kill -9
//! wait       the step begins when the line is gone
//! ```
//!
//! [`NAMES`] lists every point; `tests/crash.rs` goes through all of them.

use std::io;

/// The environment variable that names the file.
pub const VARIABLE: &str = "DEMO_MULTIPLEXER_FAIL_FILE";

/// Passes a fail point.
///
/// # Errors
/// Never, in a program that is not for tests.
#[cfg(not(any(test, feature = "testing")))]
pub const fn hit(_name: &'static str) -> io::Result<()> {
    Ok(())
}

#[cfg(any(test, feature = "testing"))]
pub use self::set::{NAMES, hit};

#[cfg(any(test, feature = "testing"))]
mod set {
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::time::Duration;

    use super::{VARIABLE, io};

    /// Every fail point, in the order in which a golden and an instance pass them.
    pub const NAMES: &[&str] = &[
        "checkpoint:before-boot",
        "checkpoint:before-freeze",
        "checkpoint:after-freeze",
        "checkpoint:before-publish",
        "prepare:before-unpack",
        "prepare:before-rename",
        "store:before-claim",
        "store:after-claim",
        "store:before-insert",
        "store:after-insert",
        "slot:after-network",
        "slot:after-directory",
        "slot:after-cgroup",
        "restore:before-criu",
        "restore:after-criu",
        "personalize:before",
        "personalize:after-files",
        "personalize:after",
        "probe:before",
        "route:before-settle",
        "store:before-update",
        "store:after-update",
        "acquire:before-answer",
        "freeze:before-dump",
        "freeze:before-rename",
        "freeze:after-rename",
        "wake:before-forget",
        "route:after-removal",
        "destroy:before",
        "destroy:after-cgroup",
        "destroy:after-network",
        "destroy:after-directory",
        "store:before-remove",
        "store:after-remove",
    ];

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Action {
        Error,
        Panic,
        Abort,
        Wait,
    }

    /// What the file says about a point.
    fn action(text: &str, name: &str) -> Result<Option<Action>, String> {
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (point, action) =
                line.split_once('=').ok_or_else(|| format!("{line:?} is not NAME=ACTION"))?;
            if !NAMES.contains(&point) {
                return Err(format!("there is no fail point {point:?}"));
            }
            let action = match action {
                "error" => Action::Error,
                "panic" => Action::Panic,
                "abort" => Action::Abort,
                "wait" => Action::Wait,
                other => return Err(format!("{other:?} is not error, panic, abort or wait")),
            };
            if point == name {
                return Ok(Some(action));
            }
        }
        Ok(None)
    }

    fn armed(name: &str) -> Option<Action> {
        static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
        let file = FILE.get_or_init(|| std::env::var_os(VARIABLE).map(PathBuf::from)).as_ref()?;
        let text = std::fs::read_to_string(file).ok()?;
        action(&text, name).unwrap_or_else(|problem| panic!("{}: {problem}", file.display()))
    }

    /// Passes a fail point.
    ///
    /// # Errors
    /// When it is set to fail.
    ///
    /// # Panics
    /// When it is set to, or what is set makes no sense.
    pub fn hit(name: &'static str) -> io::Result<()> {
        let Some(action) = armed(name) else { return Ok(()) };
        // On stderr by itself: a log would be written too late.
        eprintln!("fail point {name}: {action:?}");
        match action {
            Action::Error => Err(io::Error::other(format!("fail point {name}"))),
            Action::Panic => {
                // The released program is built with panic = "abort".
                let before = std::panic::take_hook();
                std::panic::set_hook(Box::new(move |info| {
                    before(info);
                    std::process::abort();
                }));
                panic!("fail point {name}")
            }
            // No handler, no destructor, nothing flushed.
            Action::Abort => {
                let own = rustix::process::getpid();
                let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
                std::process::abort()
            }
            Action::Wait => {
                #[expect(clippy::disallowed_methods, reason = "it is to hold the thread up")]
                while armed(name) == Some(Action::Wait) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn what_makes_no_sense_is_refused() {
            for (text, problem) in [
                ("store:before-claim", "is not NAME=ACTION"),
                ("nowhere=error", "there is no fail point"),
                ("store:before-claim=explode", "is not error, panic, abort or wait"),
            ] {
                let told = action(text, "store:before-claim").unwrap_err();
                assert!(told.contains(problem), "{told}");
            }
            let two = "store:before-claim=error\nstore:after-claim=abort\n";
            assert_eq!(action(two, "store:before-claim"), Ok(Some(Action::Error)));
            assert_eq!(action(two, "store:after-claim"), Ok(Some(Action::Abort)));
            assert_eq!(action(two, "destroy:before"), Ok(None));
        }

        #[test]
        fn every_name_stands_in_the_program_once() {
            let src = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
            let mut sources = String::new();
            let mut folders = vec![src];
            while let Some(folder) = folders.pop() {
                for entry in std::fs::read_dir(folder).unwrap() {
                    let path = entry.unwrap().path();
                    match path.extension() {
                        None if path.is_dir() => folders.push(path),
                        Some(kind) if kind == "rs" && !path.ends_with("failpoint.rs") => {
                            sources += &std::fs::read_to_string(path).unwrap();
                        }
                        _ => {}
                    }
                }
            }
            for name in NAMES {
                assert_eq!(sources.matches(&format!("\"{name}\"")).count(), 1, "{name}");
            }
            let passed = sources.matches("failpoint::hit(\"").count();
            let by_word = ["checkpoint:", "store:"].map(|word| sources.matches(&format!("\"{word}")).count());
            assert_eq!(passed + by_word.iter().sum::<usize>(), NAMES.len(), "a point that is not in NAMES");
        }
    }
}
