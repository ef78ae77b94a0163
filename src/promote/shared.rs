//! What several nodes serve of a golden, and what one of them makes of it. Pure.
//!
//! Promoting at one node is promoting at all: the last word counts. Each node tries the
//! snapshot itself, and one whose trial shop was no good goes on with what it served.
//! The same with goldens that no setting names: what was published at one node is served
//! by all, until it is withdrawn at one.
//!
//! ```text
//!                 told: nothing   promoted          published              withdrawn
//! settings name   tell?           tell?, follow?    clash                  tell?
//! published here  tell            clash             tell?, follow?         tell?, else withdraw
//! not here        -               -                 introduce, unless it   -
//!                                                   was withdrawn since:
//!                                                   then tell
//! ```
//!
//! with `?`: only when what was said here is later, or there of another snapshot. What
//! settings of one node name is never replaced by a visitor's shop that another one has
//! published: both go on with what they have, and an operator is told of the clash.

use jiff::{SignedDuration, Timestamp};

use crate::id::SnapshotId;
pub use crate::snapshot::depot::{Shared, Standing, Told};

/// How a golden stands at this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Here {
    /// Settings name it.
    Configured {
        /// What it is restored from; none: it is only booted.
        served: Option<SnapshotId>,
        /// Since when, if an operator promoted that one here, or it was followed.
        said_at: Option<Timestamp>,
    },
    /// It was a visitor's shop.
    Published {
        /// As above; none: it could not be loaded.
        served: Option<SnapshotId>,
        /// As above.
        said_at: Option<Timestamp>,
    },
    /// It is not served.
    Absent {
        /// When it was withdrawn, if it was lately.
        withdrawn_at: Option<Timestamp>,
    },
}

/// What is to be done at this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Nothing,
    /// What is only booted is to be restored from there.
    Begin(SnapshotId),
    /// What was said at another one is to be served.
    Follow(Shared),
    /// A golden that is new here is to be served.
    Introduce(Shared),
    /// A published golden is to be served no more.
    Withdraw(Shared),
    /// What was said here is to be told.
    Tell(Shared),
    /// Settings of one node name what another one has published.
    Clash(Shared),
}

/// What follows from how a golden stands here, and what was told of it last.
pub(super) fn next(here: Here, told: Option<&Shared>) -> Step {
    let is_news = |at: Timestamp| told.is_none_or(|told| told.at < at);
    let tell = |(snapshot, at, standing)| Step::Tell(Shared { snapshot, at, standing });
    match (here, told) {
        (Here::Configured { .. }, Some(told)) if told.standing == Standing::Published => {
            Step::Clash(told.clone())
        }
        (Here::Published { .. }, Some(told)) if told.standing == Standing::Promoted => {
            Step::Clash(told.clone())
        }
        (Here::Configured { served: Some(served), said_at: Some(at) }, _) if is_news(at) => {
            tell((served, at, Standing::Promoted))
        }
        (Here::Published { served: Some(served), said_at: Some(at) }, _) if is_news(at) => {
            tell((served, at, Standing::Published))
        }
        // What was published here last cannot be loaded: that is no reason to go back.
        (Here::Published { served: None, said_at: Some(at) }, _) if is_news(at) => Step::Nothing,
        (_, None) => Step::Nothing,
        (Here::Configured { served: Some(served), .. }, Some(told)) => {
            match told.standing == Standing::Promoted && told.snapshot != served {
                true => Step::Follow(told.clone()),
                false => Step::Nothing,
            }
        }
        (Here::Configured { served: None, .. }, Some(_)) => Step::Nothing,
        (Here::Published { served, .. }, Some(told)) => match (told.standing, served) {
            (Standing::Withdrawn, _) => Step::Withdraw(told.clone()),
            (_, None) => Step::Introduce(told.clone()),
            (_, Some(served)) if served != told.snapshot => Step::Follow(told.clone()),
            (_, Some(_)) => Step::Nothing,
        },
        (Here::Absent { withdrawn_at }, Some(told)) => match (told.standing, withdrawn_at) {
            (Standing::Published, Some(at)) if is_news(at) => {
                tell((told.snapshot.clone(), at, Standing::Withdrawn))
            }
            (Standing::Published, _) => Step::Introduce(told.clone()),
            (Standing::Promoted | Standing::Withdrawn, _) => Step::Nothing,
        },
    }
}

/// Where the snapshot of a golden comes from of which this node has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// What the other nodes serve, else the newest one that they have sent.
    Served,
    /// The newest one that they have sent.
    Newest,
    /// There is none for it.
    Nowhere,
}

/// That of a golden that was published here, or that settings name, of which the nodes have
/// told that. What a visitor has made never becomes a golden of the settings, nor the other
/// way round.
#[must_use]
pub fn source_of(is_published: bool, told: Option<Standing>) -> Source {
    match (is_published, told) {
        (false, Some(Standing::Promoted)) | (true, Some(Standing::Published)) => Source::Served,
        // A withdrawn one may have had the name.
        (false, None | Some(Standing::Withdrawn)) => Source::Newest,
        (false, Some(Standing::Published)) | (true, _) => Source::Nowhere,
    }
}

/// A time at which something is said of a golden now, so that it is the last word though
/// the clock of who had the last one is ahead of this one's.
pub(super) fn time_after(said: impl IntoIterator<Item = Timestamp>, now: Timestamp) -> Timestamp {
    let next = |at: Timestamp| at.checked_add(SignedDuration::from_millis(1)).unwrap_or(at);
    said.into_iter().map(next).fold(now, Timestamp::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = "shop-1-a";
    const OTHER: &str = "shop-2-b";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn told(snapshot: &str, second: i64, standing: Standing) -> Shared {
        Shared { snapshot: snapshot.parse().unwrap(), at: at(second), standing }
    }

    fn configured(said: Option<i64>) -> Here {
        Here::Configured { served: Some(SHOP.parse().unwrap()), said_at: said.map(at) }
    }

    fn published(said: Option<i64>) -> Here {
        Here::Published { served: Some(SHOP.parse().unwrap()), said_at: said.map(at) }
    }

    fn absent(withdrawn: Option<i64>) -> Here {
        Here::Absent { withdrawn_at: withdrawn.map(at) }
    }

    #[test]
    fn the_last_one_that_was_promoted_anywhere_counts() {
        use Standing::Promoted;
        assert_eq!(next(configured(None), None), Step::Nothing, "nobody has said anything");
        assert_eq!(next(configured(None), Some(&told(SHOP, 5, Promoted))), Step::Nothing);
        let other = told(OTHER, 5, Promoted);
        for said in [None, Some(4), Some(5)] {
            assert_eq!(next(configured(said), Some(&other)), Step::Follow(other.clone()), "{said:?}");
        }
        let own = Step::Tell(told(SHOP, 6, Promoted));
        assert_eq!(next(configured(Some(6)), Some(&other)), own);
        assert_eq!(next(configured(Some(6)), None), own);
        assert_eq!(next(configured(Some(6)), Some(&told(SHOP, 6, Promoted))), Step::Nothing);
    }

    #[test]
    fn a_published_golden_is_introduced_where_there_is_none_and_followed_where_there_is() {
        use Standing::Published;
        let said = told(SHOP, 5, Published);
        assert_eq!(next(absent(None), Some(&said)), Step::Introduce(said.clone()));
        assert_eq!(next(absent(Some(5)), Some(&said)), Step::Introduce(said.clone()));
        assert_eq!(
            next(absent(Some(4)), Some(&said)),
            Step::Introduce(said.clone()),
            "published again since"
        );
        assert_eq!(next(published(Some(5)), Some(&said)), Step::Nothing);
        assert_eq!(next(published(None), Some(&said)), Step::Nothing);
        let anew = told(OTHER, 7, Published);
        assert_eq!(next(published(Some(5)), Some(&anew)), Step::Follow(anew.clone()));
        assert_eq!(next(published(Some(8)), Some(&anew)), Step::Tell(told(SHOP, 8, Published)));
        assert_eq!(next(published(Some(8)), None), Step::Tell(told(SHOP, 8, Published)));
        assert_eq!(next(published(None), None), Step::Nothing, "nobody knows since when");
        let broken = |said: i64| Here::Published { served: None, said_at: Some(at(said)) };
        assert_eq!(next(broken(5), Some(&anew)), Step::Introduce(anew.clone()));
        assert_eq!(next(broken(8), Some(&anew)), Step::Nothing, "nobody goes back by himself");
        assert_eq!(next(broken(8), None), Step::Nothing);
    }

    #[test]
    fn a_withdrawn_golden_goes_everywhere_and_does_not_come_back() {
        use Standing::{Published, Withdrawn};
        let gone = told(SHOP, 6, Withdrawn);
        for said in [None, Some(5), Some(6)] {
            assert_eq!(next(published(said), Some(&gone)), Step::Withdraw(gone.clone()), "{said:?}");
        }
        let broken = Here::Published { served: None, said_at: Some(at(5)) };
        assert_eq!(next(broken, Some(&gone)), Step::Withdraw(gone.clone()));
        let again = Step::Tell(told(SHOP, 7, Published));
        assert_eq!(next(published(Some(7)), Some(&gone)), again, "it was published again here");
        assert_eq!(next(absent(None), Some(&gone)), Step::Nothing);
        assert_eq!(next(absent(Some(7)), Some(&gone)), Step::Nothing, "it is gone already");
        assert_eq!(next(absent(Some(7)), None), Step::Nothing, "nobody has heard of it");
        let late = told(OTHER, 6, Published);
        assert_eq!(next(absent(Some(7)), Some(&late)), Step::Tell(told(OTHER, 7, Withdrawn)));
    }

    #[test]
    fn what_settings_name_is_nobodys_to_replace_or_withdraw() {
        use Standing::{Promoted, Published, Withdrawn};
        let visitors = told(OTHER, 9, Published);
        let booted = Here::Configured { served: None, said_at: None };
        for here in [configured(None), configured(Some(5)), configured(Some(10)), booted.clone()] {
            assert_eq!(next(here, Some(&visitors)), Step::Clash(visitors.clone()));
        }
        let settings = told(OTHER, 9, Promoted);
        for said in [None, Some(5), Some(10)] {
            assert_eq!(next(published(said), Some(&settings)), Step::Clash(settings.clone()));
        }
        let gone = told(OTHER, 9, Withdrawn);
        assert_eq!(next(configured(Some(5)), Some(&gone)), Step::Nothing);
        assert_eq!(next(configured(None), Some(&gone)), Step::Nothing);
        assert_eq!(next(configured(Some(10)), Some(&gone)), Step::Tell(told(SHOP, 10, Promoted)));
        assert_eq!(next(booted.clone(), Some(&gone)), Step::Nothing);
        assert_eq!(next(booted, Some(&settings)), Step::Nothing, "it is begun with, not followed");
        assert_eq!(next(absent(None), Some(&settings)), Step::Nothing, "another node's alone");
        assert_eq!(next(absent(Some(10)), Some(&settings)), Step::Nothing);
    }

    #[test]
    fn what_a_visitor_has_made_is_never_fetched_for_a_golden_of_the_settings() {
        use Standing::{Promoted, Published, Withdrawn};
        for (told, configured, published) in [
            (None, Source::Newest, Source::Nowhere),
            (Some(Promoted), Source::Served, Source::Nowhere),
            (Some(Published), Source::Nowhere, Source::Served),
            (Some(Withdrawn), Source::Newest, Source::Nowhere),
        ] {
            assert_eq!(source_of(false, told), configured, "{told:?}");
            assert_eq!(source_of(true, told), published, "{told:?}");
        }
    }

    #[test]
    fn the_last_word_is_the_last_one_whatever_the_clocks_say() {
        assert_eq!(time_after([], at(5)), at(5));
        assert_eq!(time_after([at(4)], at(5)), at(5));
        assert!(time_after([at(9), at(7)], at(5)) > at(9));
        assert_eq!(time_after([Timestamp::MAX], at(5)), Timestamp::MAX);
    }
}
