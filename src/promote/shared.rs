//! What several nodes serve of a golden, and what one of them makes of it. Pure.
//!
//! Promoting at one node is promoting at all: the last one counts. Each node tries the
//! snapshot itself, and one whose trial shop was no good goes on with what it served.

use jiff::Timestamp;

use crate::id::SnapshotId;

/// What was promoted last, at any node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// Which.
    pub snapshot: SnapshotId,
    /// When, by that node's clock.
    pub promoted_at: Timestamp,
}

/// What is to be done at this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Nothing,
    /// What is only booted is to be restored from there.
    Begin(SnapshotId),
    /// What was promoted at another one is to be served.
    Follow(Shared),
    /// What was promoted here is to be told.
    Tell(Shared),
}

/// What follows for a node that serves `served`, since an operator promoted it here, or
/// it was followed, at `promoted_at`.
pub(super) fn next(served: &SnapshotId, promoted_at: Option<Timestamp>, shared: Option<Shared>) -> Step {
    let told = shared.as_ref().map(|shared| shared.promoted_at);
    match (promoted_at, shared) {
        (Some(promoted_at), _) if told.is_none_or(|told| told < promoted_at) => {
            Step::Tell(Shared { snapshot: served.clone(), promoted_at })
        }
        (_, Some(shared)) if shared.snapshot != *served => Step::Follow(shared),
        _ => Step::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SnapshotId {
        text.parse().unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn shared(snapshot: &str, second: i64) -> Shared {
        Shared { snapshot: id(snapshot), promoted_at: at(second) }
    }

    #[test]
    fn the_last_one_that_was_promoted_anywhere_counts() {
        let here = id("shop-1-a");
        assert_eq!(next(&here, None, None), Step::Nothing, "nobody has said anything");
        assert_eq!(next(&here, None, Some(shared("shop-1-a", 5))), Step::Nothing);
        let other = shared("shop-2-b", 5);
        assert_eq!(next(&here, None, Some(other.clone())), Step::Follow(other.clone()));
        assert_eq!(next(&here, Some(at(4)), Some(other.clone())), Step::Follow(other.clone()));
        assert_eq!(next(&here, Some(at(6)), Some(other)), Step::Tell(shared("shop-1-a", 6)));
        assert_eq!(next(&here, Some(at(6)), None), Step::Tell(shared("shop-1-a", 6)));
        assert_eq!(next(&here, Some(at(6)), Some(shared("shop-1-a", 6))), Step::Nothing);
        assert_eq!(
            next(&here, Some(at(6)), Some(shared("shop-0-z", 7))),
            Step::Follow(shared("shop-0-z", 7))
        );
    }
}
