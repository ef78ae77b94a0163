//! Random lives of a few instances, by several daemons on one store, against the
//! plainest model there is: a map, and a search through all of it.
//!
//! The histories are the same in every run; a failing one is printed whole.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::{
    Arc, Claim, Claimed, Fixture, Instance, InstanceId, Source, State, Store, StoreError, Timestamp, at,
    golden, instance, node,
};
use crate::instance::Transition;

/// How many histories are tried, and how long one is: short ones can be read.
const HISTORIES: u64 = 12;
const STEPS: usize = 40;

/// The other daemons, where the store is not one daemon's own.
const OTHERS: [&str; 2] = ["there", "yonder"];

pub(super) async fn run(fixture: &dyn Fixture) {
    for seed in 0..HISTORIES {
        history(fixture, seed).await;
    }
}

/// Says what was done, when a step does not end as the model has it.
struct Told {
    seed: u64,
    steps: String,
    done: bool,
}

impl Drop for Told {
    fn drop(&mut self) {
        if !self.done {
            eprintln!("history {}:\n{}", self.seed, self.steps);
        }
    }
}

async fn history(fixture: &dyn Fixture, seed: u64) {
    let first = fixture.fresh().await;
    let mut daemons = vec![first];
    for name in OTHERS {
        daemons.extend(fixture.beside(&daemons[0], &node(name)).await);
    }
    let mut world = World { daemons, model: BTreeMap::new(), seen: Vec::new(), second: 0 };
    let (mut random, mut told) =
        (StdRng::seed_from_u64(seed), Told { seed, steps: String::new(), done: false });
    for _ in 0..STEPS {
        // Each at a time of its own, so that the oldest is one and not several.
        world.second += random.random_range(1..20);
        world.step(fixture, &mut random, &mut told.steps).await;
        world.compare(&mut random).await;
    }
    told.done = true;
}

struct World {
    daemons: Vec<Arc<dyn Store>>,
    /// What is stored.
    model: BTreeMap<InstanceId, Instance>,
    /// What somebody has read at some time and may still go by.
    seen: Vec<Instance>,
    second: i64,
}

impl World {
    fn now(&self) -> Timestamp {
        at(self.second)
    }

    async fn step(&mut self, fixture: &dyn Fixture, random: &mut StdRng, told: &mut String) {
        let who = random.random_range(0..self.daemons.len());
        let which = self.seen.get(random.random_range(0..self.seen.len().max(1))).cloned();
        let what = random.random_range(0..14);
        let _ = write!(told, "{} {}: ", self.second, self.daemons[who].node());
        match (what, which) {
            (0..=3, _) | (_, None) => self.insert(who, told).await,
            (4..=6, _) => self.claim(who, random, told).await,
            (7..=9, Some(read)) => self.change(who, read, random, told).await,
            (10, Some(read)) => self.extend(who, read, told).await,
            (11, Some(read)) => {
                let _ = writeln!(told, "remove {}", read.id);
                self.daemons[who].remove(&read.id).await.expect("absent is fine");
                self.model.remove(&read.id);
            }
            (12, Some(read)) => self.write_again(who, read, told).await,
            (_, Some(_)) => {
                let _ = writeln!(told, "starts anew");
                let name = self.daemons[who].node().clone();
                let old = self.daemons.remove(who);
                let new = match who {
                    0 => fixture.reopen(old).await,
                    _ => {
                        drop(old);
                        fixture.beside(&self.daemons[0], &name).await.expect("it was beside before")
                    }
                };
                self.daemons.insert(who, new);
            }
        }
    }

    async fn insert(&mut self, who: usize, told: &mut String) {
        let store = &self.daemons[who];
        let mut new = instance(&golden("shop"), State::Warming, self.second);
        new.node = store.node().clone();
        let _ = writeln!(told, "insert {}", new.id);
        let stored = store.insert(new.clone()).await.expect("a new id is inserted");
        new.generation = 1;
        assert_eq!(text(&stored), text(&new));
        self.keep(stored);
    }

    /// A change of state, based on what was once read.
    async fn change(&mut self, who: usize, mut next: Instance, random: &mut StdRng, told: &mut String) {
        next.state = State::ALL[random.random_range(0..State::ALL.len())];
        if next.state == State::Assigned && next.expires_at.is_none() {
            next.assigned_at = Some(self.now());
            next.expires_at = Some(at(self.second + 60));
        }
        self.update(who, next, told).await;
    }

    async fn extend(&mut self, who: usize, mut next: Instance, told: &mut String) {
        // One that is over is not extended: its key may be another's by now.
        let Some(until) = next.expires_at.filter(|_| !next.is_due_at(self.now())) else { return };
        next.expires_at = Some(until + jiff::SignedDuration::from_secs(30));
        self.update(who, next, told).await;
    }

    async fn update(&mut self, who: usize, next: Instance, told: &mut String) {
        let _ = writeln!(told, "{} becomes {:?}, as of {}", next.id, next.state, next.generation);
        let answer = self.daemons[who].update(next.clone()).await;
        match self.model.get(&next.id) {
            None => assert!(matches!(answer, Err(StoreError::Unknown { .. })), "{answer:?}"),
            Some(stored) if stored.generation != next.generation => {
                assert!(matches!(answer, Err(StoreError::Stale { .. })), "{answer:?}");
            }
            Some(stored) if stored.state.try_transition(next.state) == Transition::Denied => {
                assert!(matches!(answer, Err(StoreError::Denied { .. })), "{answer:?}");
            }
            Some(_) => {
                let expected = Instance { generation: next.generation + 1, ..next };
                let stored = answer.expect("the model takes it");
                assert_eq!(text(&stored), text(&expected));
                self.keep(stored);
            }
        }
    }

    async fn claim(&mut self, who: usize, random: &mut StdRng, told: &mut String) {
        let key = ["a", "b", ""][random.random_range(0..3)];
        let key = Some(key).filter(|key| !key.is_empty()).map(str::to_owned);
        let _ = writeln!(told, "claim, key {key:?}");
        let store = &self.daemons[who];
        let claim = Claim {
            golden: golden("shop"),
            now: self.now(),
            expires_at: at(self.second + 60),
            idempotency_key: key.clone(),
        };
        let answer = store.claim(claim).await.expect("a claim is answered");
        let held = key.as_deref().and_then(|key| self.held(key));
        let ready = self.model.values().filter(|one| one.state == State::Ready);
        // The own node's first, of those the oldest.
        let first = ready.min_by_key(|one| (one.node != *store.node(), one.created_at)).cloned();
        match (held, first, answer) {
            (Some(held), _, Claimed::Again(got)) => assert_eq!(text(&got), text(held)),
            (None, Some(first), Claimed::New(got)) => {
                let expected = Instance {
                    generation: first.generation + 1,
                    state: State::Assigned,
                    source: Some(Source::Pool),
                    assigned_at: Some(self.now()),
                    expires_at: Some(at(self.second + 60)),
                    idempotency_key: key,
                    ..first
                };
                assert_eq!(
                    text(&got),
                    text(&expected),
                    "the oldest ready one, and nothing else of it changed"
                );
                self.keep(got);
            }
            (None, None, Claimed::Empty) => {}
            (held, first, answer) => panic!("{answer:?}, but held is {held:?} and ready {first:?}"),
        }
    }

    async fn write_again(&mut self, who: usize, read: Instance, told: &mut String) {
        let _ = writeln!(told, "write {} again, as of {}", read.id, read.generation);
        // A key that somebody else has by now is not taken back by a daemon either.
        let other = read.idempotency_key.as_deref().and_then(|key| self.held(key));
        if other.is_some_and(|other| other.id != read.id) {
            return;
        }
        let answer = self.daemons[who].write_again(read.clone()).await;
        if self.model.get(&read.id).is_none_or(|stored| stored.generation < read.generation) {
            answer.expect("it was lost");
            self.keep(read);
        } else {
            assert!(matches!(answer, Err(StoreError::Stale { .. })), "{answer:?}");
        }
    }

    fn held(&self, key: &str) -> Option<&Instance> {
        self.model.values().find(|one| one.is_held_under(key, self.now()))
    }

    fn keep(&mut self, stored: Instance) {
        self.seen.push(stored.clone());
        self.model.insert(stored.id.clone(), stored);
    }

    /// Whatever any daemon reads is what the model has.
    async fn compare(&self, random: &mut StdRng) {
        let store = &self.daemons[random.random_range(0..self.daemons.len())];
        let sorted = |mut all: Vec<Arc<Instance>>| {
            all.sort_by(|a, b| a.id.cmp(&b.id));
            all.iter().map(|one| text(one)).collect::<Vec<_>>()
        };
        let all = store.list().await.expect("a read is answered");
        assert_eq!(sorted(all), self.model.values().map(text).collect::<Vec<_>>());
        let own = self.model.values().filter(|one| one.node == *store.node());
        let own: Vec<Arc<Instance>> = own.cloned().map(Arc::new).collect();
        assert_eq!(sorted(store.own().await.expect("a read is answered")), sorted(own.clone()));
        let counts = store.counts(&golden("shop")).await.expect("a read is answered");
        for state in State::ALL {
            let expected = own.iter().filter(|one| one.state == state).count();
            assert_eq!(counts.get(&state).copied().unwrap_or(0), expected, "{state:?}");
        }
        let mut due: Vec<&Instance> = own
            .iter()
            .map(Arc::as_ref)
            .filter(|one| one.is_due_at(self.now()) && !one.state.is_final())
            .collect();
        due.sort_by_key(|one| one.expires_at);
        let found = store.due(self.now(), usize::MAX >> 1).await.expect("a read is answered");
        let ends = |all: &[&Instance]| all.iter().map(|one| one.expires_at).collect::<Vec<_>>();
        assert_eq!(ends(&found.iter().collect::<Vec<_>>()), ends(&due), "the earliest first");
        for key in ["a", "b"] {
            let held = store.held(key, self.now()).await.expect("a read is answered");
            assert_eq!(held.as_ref().map(|one| &one.id), self.held(key).map(|one| &one.id), "key {key}");
        }
        if let Some(one) = self.seen.last() {
            let stored = store.get(&one.id).await.expect("a read is answered");
            assert_eq!(stored.as_ref().map(text), self.model.get(&one.id).map(text));
        }
    }
}

fn text(instance: &Instance) -> String {
    instance.to_record().expect("a record has a JSON form")
}
