//! A real host for end-to-end tests: daemons as processes, shops restored by
//! CRIU, and what is found on the host afterwards. Nothing is scripted.
//!
//! A test takes a [`Place`]: a directory, a bridge with a network, a parent
//! cgroup and a port that no other test has, so tests run side by side, also
//! those of other binaries. What counts the whole host takes a place *alone*.
//! A place that is dropped kills what it finds of its own and nothing else.

// Each test binary uses its own part of this module.
#![allow(dead_code)]

pub(crate) mod census;
pub(crate) mod daemon;
pub(crate) mod dockerd;
pub(crate) mod golden;
pub(crate) mod identity;
pub(crate) mod mariadb;
pub(crate) mod place;
pub(crate) mod trial;
pub(crate) mod web;

use std::time::Duration;

#[allow(unused_imports, reason = "as above")]
pub(crate) use daemon::Daemon;
pub(crate) use place::Place;

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_demo-multiplexer");

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// Waits until `check` says yes; says what was seen last when it never does.
#[track_caller]
pub(crate) fn eventually<T>(
    what: &str,
    seconds: u64,
    mut check: impl AsyncFnMut() -> Result<T, String>,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(seconds);
        loop {
            match check().await {
                Ok(found) => return found,
                Err(seen) if tokio::time::Instant::now() > deadline => {
                    panic!("{caller}: not within {seconds} s: {what}; seen last: {seen}")
                }
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }
}

/// `Ok` when the two are equal, else both in words.
pub(crate) fn same<T: PartialEq + std::fmt::Debug>(left: &T, right: &T) -> Result<(), String> {
    if left == right { Ok(()) } else { Err(format!("{left:?} is not {right:?}")) }
}
