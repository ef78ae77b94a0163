//! What a CRIU that dies in mid-dump takes along of the tree that it was dumping.
//!
//! A process that had CRIU's code in it goes on in that code when nobody holds it any more,
//! and ends by a signal. The first process (tini) waits for the one with the database alone,
//! so a shop may lose its PHP, live on, and answer 502 until its time is over. Workers do not
//! count: their masters, the first process's children, start others.

use std::io;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::host::process;

/// How long after CRIU's death a process that it had in its hands may take to end: it does
/// as soon as it runs.
const SETTLE: Duration = Duration::from_millis(500);

/// The first process's children, by pid and start time.
#[derive(Debug)]
pub(super) struct Children(Vec<(i32, u64)>);

impl Children {
    /// Those that a process has now.
    ///
    /// # Errors
    /// When it is gone.
    pub(super) fn of(pid: i32) -> io::Result<Self> {
        let pids = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let pids = pids.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
        // One that ends just now is none.
        let named = pids.filter_map(|pid: i32| Some((pid, process::start_ticks(pid).ok()?)));
        Ok(Self(named.collect()))
    }

    /// Whether one of them has ended, or does so right after CRIU.
    pub(super) async fn is_one_gone(&self) -> bool {
        let mut ends: JoinSet<()> = JoinSet::new();
        for &(pid, ticks) in &self.0 {
            ends.spawn(process::ended_by_name(pid, ticks));
        }
        let first = tokio::time::timeout(SETTLE, ends.join_next()).await;
        first.is_ok_and(|ended| ended.is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// A shell and two more processes that it waits for.
    async fn family() -> (Child, i32) {
        let shell = Command::new("sh").args(["-c", "sleep 60 & sleep 60 & wait"]).spawn().unwrap();
        let pid = i32::try_from(shell.id()).unwrap();
        while Children::of(pid).unwrap().0.len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (shell, pid)
    }

    fn end(mut shell: Child, children: &[(i32, u64)]) {
        for (pid, ticks) in children {
            if let Some(alive) = process::open(*pid, *ticks).unwrap() {
                process::kill(&alive).unwrap();
            }
        }
        shell.wait().unwrap();
    }

    #[tokio::test]
    async fn a_family_without_one_of_its_children_is_not_whole() {
        let (shell, pid) = family().await;
        let of = || Children::of(pid).unwrap();
        let all = of().0;
        assert!(!of().is_one_gone().await, "all are there");
        let known = of();
        let late = process::open(all[0].0, all[0].1).unwrap().unwrap();
        let (gone, ()) = tokio::join!(known.is_one_gone(), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            process::kill(&late).unwrap();
        });
        assert!(gone, "it ended while it was waited for");
        assert!(Children(all.clone()).is_one_gone().await, "it ended before");
        end(shell, &all);
        assert!(Children::of(pid).is_err(), "the first process is gone");
    }

    #[tokio::test]
    async fn who_has_no_children_loses_none() {
        assert!(!Children(Vec::new()).is_one_gone().await);
    }
}
