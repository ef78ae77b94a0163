//! The states of an instance and which change may follow which.

use serde::{Deserialize, Serialize};

/// Where an instance stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Being restored or booted; nobody may reach it.
    Warming,
    /// Whole, personalized, waiting for a visitor.
    Ready,
    /// Somebody's, until `expires_at`.
    Assigned,
    /// Its time is over; being taken down.
    Expired,
    /// Checkpointed again and not running; its visitor may wake it.
    Hibernated,
    /// It died or could not be made; being taken down.
    Failed,
}

/// Whether a change of state may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// It may.
    Allowed,
    /// It already is so; asking again is no error.
    Ignored,
    /// It may not.
    Denied,
}

impl State {
    /// All states, in the order of a life.
    pub const ALL: [Self; 6] =
        [Self::Warming, Self::Ready, Self::Assigned, Self::Expired, Self::Hibernated, Self::Failed];

    /// The word used in answers, metrics and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Warming => "warming",
            Self::Ready => "ready",
            Self::Assigned => "assigned",
            Self::Expired => "expired",
            Self::Hibernated => "hibernated",
            Self::Failed => "failed",
        }
    }

    /// Whether the instance may move from this state to `next`.
    #[must_use]
    pub const fn try_transition(self, next: Self) -> Transition {
        use State::{Assigned, Expired, Failed, Hibernated, Ready, Warming};
        match (self, next) {
            (Warming, Ready | Assigned | Failed)
            | (Ready, Assigned | Expired | Failed)
            | (Assigned, Expired | Hibernated | Failed)
            | (Hibernated, Assigned | Expired | Failed) => Transition::Allowed,
            (Warming, Warming)
            | (Ready, Ready)
            | (Assigned, Assigned)
            | (Expired, Expired)
            | (Hibernated, Hibernated)
            | (Failed, Failed) => Transition::Ignored,
            _ => Transition::Denied,
        }
    }

    /// Whether nothing but taking it down can follow.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Expired | Self::Failed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_state() -> impl Strategy<Value = State> {
        proptest::sample::select(State::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn an_instance_is_handed_out_at_most_once_from_the_pool(path in proptest::collection::vec(any_state(), 0..40)) {
            let mut state = State::Warming;
            let mut hand_overs = 0;
            for next in path {
                if state.try_transition(next) == Transition::Allowed {
                    if next == State::Assigned && state != State::Hibernated {
                        hand_overs += 1;
                    }
                    prop_assert!(!state.is_final(), "nothing follows {state:?}");
                    state = next;
                }
            }
            prop_assert!(hand_overs <= 1);
        }

        #[test]
        fn asking_for_the_present_state_is_ignored(state in any_state()) {
            prop_assert_eq!(state.try_transition(state), Transition::Ignored);
        }
    }
}
