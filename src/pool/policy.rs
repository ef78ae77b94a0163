//! What the reconciler does next, given what there is. Pure.
//!
//! Goldens share the host's room fairly: the one with the smallest part of its
//! target goes first, so that one golden's pool never fills up while another's
//! is empty.

/// What is known about one golden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// How many are to be ready.
    pub target: usize,
    /// How many are.
    pub ready: usize,
    /// How many are being made for the pool.
    pub in_flight: usize,
    /// What its last attempts allow.
    pub attempts: Attempts,
}

/// What the failures of a golden allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempts {
    /// Nothing failed: as many as needed.
    Free,
    /// The pause after failures is over: one, to see whether it works again.
    One,
    /// Within the pause, or there is no way to make one: none.
    None,
}

/// What the host allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many more instances it may hold.
    pub room: usize,
    /// How many more may be in the making.
    pub starts: usize,
}

/// One step, for the golden with that index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Make one.
    Warm(usize),
    /// Take one that is ready down: there are more than wanted.
    Retire(usize),
}

/// The steps to take now.
#[must_use]
pub fn plan(views: &[View], limits: Limits) -> Vec<Action> {
    let mut actions = Vec::new();
    for (golden, view) in views.iter().enumerate() {
        let surplus = view.ready.saturating_sub(view.target);
        actions.extend(std::iter::repeat_n(Action::Retire(golden), surplus));
    }
    let mut coming: Vec<usize> = views.iter().map(|view| view.in_flight).collect();
    for _ in 0..limits.room.min(limits.starts) {
        let next = (0..views.len()).filter(|&golden| wants_one(&views[golden], coming[golden])).min_by(
            |&one, &other| {
                // one.have / one.target < other.have / other.target, without the division.
                let part = |of: usize, by: usize| (views[of].ready + coming[of]) * views[by].target;
                part(one, other).cmp(&part(other, one))
            },
        );
        let Some(golden) = next else { break };
        coming[golden] += 1;
        actions.push(Action::Warm(golden));
    }
    actions
}

/// Whether one more is wanted beside `coming` on their way.
#[must_use]
pub const fn wants_one(view: &View, coming: usize) -> bool {
    let allowed = match view.attempts {
        Attempts::Free => true,
        Attempts::One => coming == 0,
        Attempts::None => false,
    };
    allowed && view.ready + coming < view.target
}

/// Whether a pool with `have` of `target` lets a visitor's first page go first: with
/// less than half it fills up at once. One that keeps a single one always waits.
#[must_use]
pub const fn can_wait(target: usize, have: usize) -> bool {
    2 * have + 1 >= target
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLENTY: Limits = Limits { room: 100, starts: 100 };

    fn view(target: usize, ready: usize, in_flight: usize) -> View {
        View { target, ready, in_flight, attempts: Attempts::Free }
    }

    #[test]
    fn a_full_pool_needs_nothing() {
        assert_eq!(plan(&[view(4, 3, 1)], PLENTY), []);
    }

    #[test]
    fn the_emptier_golden_goes_first() {
        let limits = Limits { room: 3, starts: 3 };
        let actions = plan(&[view(4, 2, 0), view(4, 0, 0)], limits);
        assert_eq!(actions, [Action::Warm(1), Action::Warm(1), Action::Warm(0)]);
    }

    #[test]
    fn a_failing_golden_is_tried_once_at_a_time() {
        let failing = |in_flight| View { attempts: Attempts::One, ..view(4, 0, in_flight) };
        assert_eq!(plan(&[failing(0)], PLENTY), [Action::Warm(0)]);
        assert_eq!(plan(&[failing(1)], PLENTY), []);
        assert_eq!(plan(&[View { attempts: Attempts::None, ..view(4, 0, 0) }], PLENTY), []);
    }

    #[test]
    fn a_lowered_target_retires_the_surplus() {
        assert_eq!(plan(&[view(1, 3, 0)], PLENTY), [Action::Retire(0), Action::Retire(0)]);
    }

    #[test]
    fn a_pool_that_is_half_full_can_wait() {
        let least = |target| (0..).find(|have| can_wait(target, *have)).unwrap();
        assert_eq!([1, 2, 3, 4, 8, 9].map(least), [0, 1, 1, 2, 4, 4]);
    }

    fn any_view() -> impl Strategy<Value = View> {
        let attempts = proptest::sample::select(vec![Attempts::Free, Attempts::One, Attempts::None]);
        (0_usize..20, 0_usize..20, 0_usize..20, attempts)
            .prop_map(|(target, ready, in_flight, attempts)| View { target, ready, in_flight, attempts })
    }

    proptest! {
        #[test]
        fn a_plan_keeps_every_limit_and_ends(
            views in proptest::collection::vec(any_view(), 0..6),
            room in 0_usize..30,
            starts in 0_usize..30,
        ) {
            let actions = plan(&views, Limits { room, starts });
            let warm = |golden| actions.iter().filter(|a| **a == Action::Warm(golden)).count();
            let all: usize = (0..views.len()).map(warm).sum();
            prop_assert!(all <= room.min(starts));
            for (golden, view) in views.iter().enumerate() {
                let retired = actions.iter().filter(|a| **a == Action::Retire(golden)).count();
                prop_assert!(retired == 0 || warm(golden) == 0, "never both at once");
                prop_assert!(view.ready - retired >= view.target.min(view.ready));
                if warm(golden) > 0 {
                    prop_assert!(view.ready + view.in_flight + warm(golden) <= view.target);
                    prop_assert!(view.attempts != Attempts::None);
                    prop_assert!(view.attempts == Attempts::Free || warm(golden) + view.in_flight <= 1);
                }
            }
            // With nothing in the way every healthy pool is filled.
            let open = plan(&views, Limits { room: 1000, starts: 1000 });
            for (golden, view) in views.iter().enumerate().filter(|(_, v)| v.attempts == Attempts::Free) {
                let started = open.iter().filter(|a| **a == Action::Warm(golden)).count();
                prop_assert!(view.ready + view.in_flight + started >= view.target);
            }
        }
    }
}
