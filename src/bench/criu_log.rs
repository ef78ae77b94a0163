//! CRIU's log of one restore, read as what each process did when. Pure.
//!
//! A line is `(seconds) pid: words`, of the master without a pid, of code inside
//! the restored process with `pie:` before it. Lines are marks, not durations:
//! what a line begins lasts until the same process's next line. Which words mean
//! what was read in logs of CRIU 4.2; a word that is not known goes on with what
//! was going on.

use std::collections::BTreeMap;

/// What a process is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Reading CRIU's images.
    Images,
    /// Mounts, namespaces, cgroups.
    Mounts,
    /// Making processes and threads.
    Forks,
    /// Memory: its layout and its pages.
    Memory,
    /// Files, sockets, pipes.
    Files,
    /// Inside the process: threads, credentials, timers, seccomp.
    Inside,
    /// Letting go: back into the process's own code.
    Release,
    /// Waiting for the others.
    Waits,
}

impl Activity {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Images,
        Self::Mounts,
        Self::Forks,
        Self::Memory,
        Self::Files,
        Self::Inside,
        Self::Release,
        Self::Waits,
    ];

    /// For the legend.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::Mounts => "mounts, cgroups",
            Self::Forks => "forks",
            Self::Memory => "memory",
            Self::Files => "files",
            Self::Inside => "threads, credentials",
            Self::Release => "sigreturn",
            Self::Waits => "waits",
        }
    }
}

/// Words of a line and what begins with it; the first that fits counts.
const WORDS: &[(&str, Activity)] = &[
    ("was trapped", Activity::Release),
    ("was stopped", Activity::Release),
    ("going to execute the syscall", Activity::Release),
    ("Running pre-resume", Activity::Release),
    ("Restore finished", Activity::Release),
    ("seccomp: mode", Activity::Release),
    // Ahead of the stages at which processes wait for each other.
    ("Restored", Activity::Waits),
    ("Restore via sigreturn", Activity::Waits),
    ("Running post-", Activity::Waits),
    ("RPC", Activity::Waits),
    ("cgroupd: move process", Activity::Waits),
    ("PID: real", Activity::Waits),
    ("pgid", Activity::Waits),
    ("Reading image tree", Activity::Images),
    ("Collecting ", Activity::Images),
    ("mnt", Activity::Mounts),
    ("cg: ", Activity::Mounts),
    ("namespaces", Activity::Mounts),
    ("Forking task", Activity::Forks),
    ("clone3", Activity::Forks),
    ("Restoring children", Activity::Forks),
    ("vma", Activity::Memory),
    ("premap", Activity::Memory),
    ("pagemap", Activity::Memory),
    ("page", Activity::Memory),
    ("iovs", Activity::Memory),
    ("mmap", Activity::Memory),
    ("Remap", Activity::Memory),
    ("mremap", Activity::Memory),
    ("COW VMA", Activity::Memory),
    ("Shrunk", Activity::Memory),
    ("returned", Activity::Memory),
    ("Restoring resources", Activity::Files),
    ("fd", Activity::Files),
    ("fle", Activity::Files),
    ("FD ", Activity::Files),
    ("sockets", Activity::Files),
    ("unix:", Activity::Files),
    ("inet", Activity::Files),
    ("pipe", Activity::Files),
    ("epoll", Activity::Files),
];

/// A piece of one process's time.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// When it began, in seconds since CRIU was asked.
    pub begin: f64,
    /// When it ended.
    pub end: f64,
    /// What was done.
    pub activity: Activity,
    /// The line that began it.
    pub words: String,
}

/// One process's time, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Lane {
    /// Its pid in the clone; none is CRIU's own.
    pub pid: Option<u32>,
    /// Its steps, without gaps.
    pub steps: Vec<Step>,
}

impl Lane {
    /// How long it did something, in seconds.
    #[must_use]
    pub fn busy(&self) -> f64 {
        let busy = self.steps.iter().filter(|step| step.activity != Activity::Waits);
        busy.map(|step| step.end - step.begin).sum()
    }
}

/// Reads a log of level 4; CRIU's own lane comes first, the others by pid.
#[must_use]
pub fn lanes(log: &str) -> Vec<Lane> {
    let mut lanes: BTreeMap<Option<u32>, Vec<Step>> = BTreeMap::new();
    let mut last = 0.0_f64;
    for (at, pid, inside, words) in log.lines().filter_map(line) {
        last = last.max(at);
        let steps = lanes.entry(pid).or_default();
        let going_on = steps.last().map_or(Activity::Images, |step| step.activity);
        let known = WORDS.iter().find(|(mark, _)| words.contains(mark)).map(|(_, activity)| *activity);
        let activity = known.unwrap_or(if inside { Activity::Inside } else { going_on });
        match steps.last_mut() {
            // One step, however many lines it has.
            Some(step) if step.activity == activity => step.end = at,
            Some(step) => {
                step.end = at;
                steps.push(Step { begin: at, end: at, activity, words: words.to_owned() });
            }
            None => steps.push(Step { begin: at, end: at, activity, words: words.to_owned() }),
        }
    }
    let end = |steps: &mut Vec<Step>| {
        if let Some(step) = steps.last_mut() {
            step.end = last;
        }
    };
    lanes.values_mut().for_each(end);
    lanes.into_iter().map(|(pid, steps)| Lane { pid, steps }).collect()
}

/// Time, pid, whether inside the process, words.
fn line(line: &str) -> Option<(f64, Option<u32>, bool, &str)> {
    let (time, rest) = line.strip_prefix('(')?.split_once(')')?;
    let (at, rest) = (time.parse().ok()?, rest.trim_start());
    let (inside, rest) = rest.strip_prefix("pie: ").map_or((false, rest), |rest| (true, rest.trim_start()));
    let numbered = rest.split_once(": ").and_then(|(pid, words)| Some((pid.parse().ok()?, words)));
    Some(match numbered {
        Some((pid, words)) => (at, Some(pid), inside, words.trim_start()),
        None => (at, None, inside, rest),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "(00.003336) Reading image tree\n\
        (00.004638) mnt: Building mountpoints tree\n\
        (00.005508) Wait until namespaces are created\n\
        (00.016714)      1: mnt-v2: Create plain mountpoint /tmp/.criu.mntns.x/mnt-0000000223 for 223\n\
        (00.030416)      1: mnt: Move the root to /tmp/.criu.mntns.x/13-0000000000\n\
        (00.038230)      1: Forking task with 6 pid (flags 0x0)\n\
        (00.038865)      6: nr_restored_pages: 8105\n\
        (00.053200) pie: 6: Preadv 0x55f0607a2000:4096... (109 iovs)\n\
        (00.093700) pie: 6: `- returned 33198080\n\
        (00.094500) pie: 6: 6: Restored\n\
        half a line\n\
        (00.211348) 463 was trapped\n\
        (00.219582) Restore finished successfully. Tasks resumed.\n";

    #[test]
    fn each_process_has_its_time_without_gaps() {
        let lanes = lanes(LOG);
        assert_eq!(lanes.iter().map(|lane| lane.pid).collect::<Vec<_>>(), [None, Some(1), Some(6)]);
        for lane in &lanes {
            assert!(lane.steps.windows(2).all(|pair| pair[0].end == pair[1].begin), "{lane:?}");
        }
        let what = |lane: usize| lanes[lane].steps.iter().map(|step| step.activity).collect::<Vec<_>>();
        assert_eq!(what(0), [Activity::Images, Activity::Mounts, Activity::Release]);
        assert_eq!(what(1), [Activity::Mounts, Activity::Forks]);
        assert_eq!(what(2), [Activity::Memory, Activity::Waits]);
        let memory = &lanes[2].steps[0];
        assert!((memory.begin, memory.end) == (0.038865, 0.0945), "{memory:?}");
        assert!((lanes[2].busy() - 0.055635).abs() < 1e-9, "waiting is not busy");
    }

    #[test]
    fn what_is_no_log_has_no_lanes() {
        assert_eq!(lanes("nothing\n(x) y\n"), []);
    }
}
