//! Long work that an operator has begun, and how far it is. Pure.

use std::collections::VecDeque;

use jiff::Timestamp;

/// How many are remembered.
const KEPT: usize = 20;

/// Steps of one that are remembered: a build that installs packages tells some
/// hundred.
const STEPS: usize = 200;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A snapshot is taken.
    Create,
    /// Its archives are digested.
    Verify,
    /// It is tried, and the pool restored from it.
    Promote,
    /// What was promoted at another node is; or the others are told of what was here.
    Follow,
    /// A golden that was only booted is restored from the snapshot that there is now.
    Begin,
    /// A visitor's shop becomes a golden.
    Publish,
    /// It is one no more.
    Withdraw,
    /// Old ones are removed.
    Prune,
    /// One is removed.
    Remove,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 9] = [
        Self::Create,
        Self::Verify,
        Self::Promote,
        Self::Follow,
        Self::Begin,
        Self::Publish,
        Self::Withdraw,
        Self::Prune,
        Self::Remove,
    ];

    /// The word used in answers and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Verify => "verify",
            Self::Promote => "promote",
            Self::Follow => "follow",
            Self::Begin => "begin",
            Self::Publish => "publish",
            Self::Withdraw => "withdraw",
            Self::Prune => "prune",
            Self::Remove => "remove",
        }
    }
}

/// How it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is under way.
    Running,
    /// It is done; with what came of it.
    Done(String),
    /// It failed, and why.
    Failed(String),
}

impl Outcome {
    /// All words.
    pub const WORDS: [&'static str; 3] = ["running", "done", "failed"];

    /// The word used in answers.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done(_) => "done",
            Self::Failed(_) => "failed",
        }
    }
}

/// One piece of work.
#[derive(Debug, Clone)]
pub struct Task {
    /// Counts them, from the daemon's start.
    pub number: u64,
    /// What is done.
    pub kind: Kind,
    /// To which snapshot or golden.
    pub subject: String,
    /// How it stands.
    pub outcome: Outcome,
    /// What was said on the way.
    pub steps: Vec<String>,
    /// When it began.
    pub began_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

/// The last ones, the newest last; one at most is running.
#[derive(Debug, Default)]
pub(super) struct Board {
    tasks: VecDeque<Task>,
    begun: u64,
}

impl Board {
    /// Begins one; the running one, when there is one.
    pub(super) fn begin(&mut self, kind: Kind, subject: &str, now: Timestamp) -> Result<Task, Box<Task>> {
        if let Some(running) = self.tasks.back().filter(|task| task.outcome == Outcome::Running) {
            return Err(Box::new(running.clone()));
        }
        self.begun += 1;
        if self.tasks.len() == KEPT {
            self.tasks.pop_front();
        }
        let task = Task {
            number: self.begun,
            kind,
            subject: subject.to_owned(),
            outcome: Outcome::Running,
            steps: Vec::new(),
            began_at: now,
            ended_at: None,
        };
        self.tasks.push_back(task.clone());
        Ok(task)
    }

    /// Notes a step of the running one.
    pub(super) fn step(&mut self, text: &str) {
        if let Some(task) = self.tasks.back_mut().filter(|task| task.steps.len() < STEPS) {
            task.steps.push(text.to_owned());
        }
    }

    /// Ends the running one.
    pub(super) fn end(&mut self, outcome: Outcome, now: Timestamp) {
        if let Some(task) = self.tasks.back_mut() {
            task.outcome = outcome;
            task.ended_at = Some(now);
        }
    }

    /// All that are remembered, the newest first.
    pub(super) fn all(&self) -> Vec<Task> {
        self.tasks.iter().rev().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_the_last_ones_are_remembered() {
        let (mut board, now) = (Board::default(), Timestamp::UNIX_EPOCH);
        for n in 1..=KEPT as u64 + 3 {
            let begun = board.begin(Kind::Verify, "shop-1-a", now).unwrap();
            assert_eq!(begun.number, n);
            board.step("reading");
            let running = board.begin(Kind::Create, "shop", now).unwrap_err();
            assert_eq!((running.number, running.steps.len()), (n, 1));
            board.end(Outcome::Done("whole".into()), now);
        }
        let all = board.all();
        assert_eq!((all.len(), all[0].number), (KEPT, KEPT as u64 + 3));
    }
}
