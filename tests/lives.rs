//! Random lives of instances, asked for over the API of a daemon on the real store,
//! against the plainest model there is: a map of who has what.
//!
//! Whatever is asked in whatever order, and however often the daemon is started anew:
//! nobody gets another one's shop, a shop that somebody has answers, one that is over
//! never does again, there are never more than the host has places for, and when all
//! have left nothing is.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::BTreeMap;

use axum::Router;
use common::{Answer, Daemon, Host, edge};
use demo_multiplexer::testing::eventually;
use http::{Method, StatusCode};
use proptest::prelude::*;

/// Places of the host: few, so that they run out.
const PLACES: usize = 3;

/// What somebody does.
#[derive(Debug, Clone)]
enum Step {
    Acquire { key: Option<u8> },
    Release(usize),
    Extend(usize),
    Reset(usize),
    Hibernate(usize),
    Wake(usize),
    LookAt(usize),
    Dies(usize),
    DaemonStartsAnew,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => proptest::option::of(0_u8..3).prop_map(|key| Step::Acquire { key }),
        2 => any::<usize>().prop_map(Step::Release),
        1 => any::<usize>().prop_map(Step::Extend),
        1 => any::<usize>().prop_map(Step::Reset),
        3 => any::<usize>().prop_map(Step::Hibernate),
        1 => any::<usize>().prop_map(Step::Wake),
        3 => any::<usize>().prop_map(Step::LookAt),
        1 => any::<usize>().prop_map(Step::Dies),
        1 => Just(Step::DaemonStartsAnew),
    ]
}

/// What an instance is to whoever got it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Awake,
    Asleep,
    Over,
}

struct Known {
    is: Is,
    key: Option<u8>,
    password: String,
}

struct World {
    host: Host,
    /// None for the moment between two.
    daemon: Option<Daemon>,
    /// Every instance that was ever handed out.
    all: BTreeMap<String, Known>,
}

impl World {
    async fn begin() -> Self {
        let (shops, _) = edge::upstream(Router::new().fallback(axum::routing::any(async || "a shop"))).await;
        let host = Host::with_shops_at(shops);
        let daemon = Some(Self::start(&host).await);
        Self { host, daemon, all: BTreeMap::new() }
    }

    async fn start(host: &Host) -> Daemon {
        host.start(&[("MAX_INSTANCES", &PLACES.to_string())]).await
    }

    fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().unwrap()
    }

    fn count(&self, is: Is) -> usize {
        self.all.values().filter(|known| known.is == is).count()
    }

    /// One that somebody has, if anybody has any.
    fn held(&self, which: usize) -> Option<String> {
        let held: Vec<&String> =
            self.all.iter().filter(|(_, known)| known.is != Is::Over).map(|(id, _)| id).collect();
        (!held.is_empty()).then(|| held[which % held.len()].clone())
    }

    fn is(&mut self, id: &str) -> &mut Is {
        &mut self.all.get_mut(id).unwrap().is
    }

    async fn ask(&self, id: &str, what: &str, body: &str) -> Answer {
        self.daemon().post(&format!("/api/v1/demo/{id}/{what}"), body).await
    }

    async fn page(&self, id: &str) -> Answer {
        self.daemon().send(Method::GET, "/", &[("host", &format!("{id}.localhost:8080"))], "").await
    }

    async fn acquire(&mut self, key: Option<u8>) {
        let body =
            key.map_or_else(|| "{}".to_owned(), |key| format!(r#"{{"idempotency_key": "key {key}"}}"#));
        let own = |known: &Known| known.is != Is::Over && key.is_some() && known.key == key;
        let again = self.all.iter().find(|(_, known)| own(known)).map(|(id, _)| id.clone());
        if again.is_none() && self.count(Is::Awake) == PLACES {
            let answer = self.daemon().post("/api/v1/demo/acquire", &body).await;
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text());
            return;
        }
        // A place that was just given up is free in a moment.
        let answer = eventually("it is handed out", async || {
            let answer = self.daemon().post("/api/v1/demo/acquire", &body).await;
            (answer.status != StatusCode::SERVICE_UNAVAILABLE).then_some(answer)
        })
        .await;
        let (id, given) = (answer.id(), answer.json());
        let password = given["admin_password"].as_str().unwrap().to_owned();
        match again {
            Some(own) => {
                assert_eq!((answer.status, &id), (StatusCode::OK, &own), "its key's own: {}", answer.text());
                assert_eq!(password, self.all[&own].password);
            }
            None => {
                assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
                assert!(
                    self.all.values().all(|other| other.password != password),
                    "somebody else's password"
                );
                let before = self.all.insert(id, Known { is: Is::Awake, key, password });
                assert!(before.is_none(), "handed out twice");
            }
        }
    }

    async fn wake(&mut self, id: &str, answer: impl AsyncFn(&Self) -> Answer) {
        let before = self.all[id].is;
        if before == Is::Asleep && self.count(Is::Awake) == PLACES {
            assert_eq!(answer(self).await.status, StatusCode::SERVICE_UNAVAILABLE, "there is no place");
            return;
        }
        eventually("it wakes", async || (answer(self).await.status == StatusCode::OK).then_some(())).await;
        *self.is(id) = Is::Awake;
    }

    async fn take(&mut self, step: &Step) {
        let id = match step {
            Step::Acquire { key } => return self.acquire(*key).await,
            Step::DaemonStartsAnew => return self.start_anew().await,
            Step::Release(which)
            | Step::Extend(which)
            | Step::Reset(which)
            | Step::Hibernate(which)
            | Step::Wake(which)
            | Step::LookAt(which)
            | Step::Dies(which) => self.held(*which),
        };
        let Some(id) = id else { return };
        let is = self.all[&id].is;
        match step {
            Step::Release(_) => {
                let answer = self.daemon().delete(&format!("/api/v1/demo/{id}")).await;
                assert_eq!(answer.status, StatusCode::NO_CONTENT, "{}", answer.text());
                *self.is(&id) = Is::Over;
            }
            Step::Extend(_) => {
                let answer = self.ask(&id, "extend", r#"{"ttl": "2h"}"#).await;
                assert!(answer.status.is_success(), "{is:?}: {}", answer.text());
            }
            // One that sleeps is awake afterwards.
            Step::Reset(_) => self.wake(&id, async |world: &Self| world.ask(&id, "reset", "").await).await,
            Step::Hibernate(_) => {
                let answer = self.ask(&id, "hibernate", "").await;
                assert_eq!(answer.status, StatusCode::OK, "{is:?}: {}", answer.text());
                *self.is(&id) = Is::Asleep;
            }
            Step::Wake(_) => self.wake(&id, async |world: &Self| world.ask(&id, "wake", "").await).await,
            Step::LookAt(_) => self.wake(&id, async |world: &Self| world.page(&id).await).await,
            Step::Dies(_) if is == Is::Awake => {
                self.host.restore.kill(&self.slot(&id).await);
                eventually("its death is noticed", async || {
                    (self.page(&id).await.status == StatusCode::GONE).then_some(())
                })
                .await;
                *self.is(&id) = Is::Over;
            }
            Step::Dies(_) | Step::Acquire { .. } | Step::DaemonStartsAnew => {}
        }
    }

    /// The slot in which an instance runs: the one of its own name, or one that it moved to.
    async fn slot(&self, id: &str) -> demo_multiplexer::id::InstanceId {
        let shown = self.daemon().get(&format!("/api/v1/demo/{id}")).await.json();
        shown["slot"].as_str().unwrap_or(id).parse().unwrap()
    }

    async fn start_anew(&mut self) {
        self.daemon.take().unwrap().stop().await;
        self.daemon = Some(Self::start(&self.host).await);
    }

    /// What the daemon lists is what the model has.
    async fn agrees(&self, step: &Step) {
        let listed = self.daemon().get("/api/v1/demo").await.json();
        let listed: BTreeMap<&str, &str> = listed["instances"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (one["id"].as_str().unwrap(), one["state"].as_str().unwrap()))
            .filter(|(_, state)| ["assigned", "hibernated"].contains(state))
            .collect();
        let known: BTreeMap<&str, &str> = self
            .all
            .iter()
            .filter_map(|(id, known)| match known.is {
                Is::Awake => Some((id.as_str(), "assigned")),
                Is::Asleep => Some((id.as_str(), "hibernated")),
                Is::Over => None,
            })
            .collect();
        assert_eq!(listed, known, "after {step:?}");
    }

    /// Everybody looks once more, and leaves.
    async fn end(mut self) {
        let ids: Vec<String> = self.all.keys().cloned().collect();
        for id in ids.iter().filter(|id| self.all[*id].is != Is::Asleep) {
            let status = self.page(id).await.status;
            match self.all[id].is {
                Is::Awake => assert_eq!(status, StatusCode::OK),
                // The next daemon does not know that it ever was.
                _ => assert!([StatusCode::GONE, StatusCode::NOT_FOUND].contains(&status), "{status}"),
            }
        }
        for id in ids {
            self.daemon().delete(&format!("/api/v1/demo/{id}")).await;
        }
        let host = &self.host.restore;
        eventually("nothing is left", async || {
            (host.running().is_empty() && host.traces().is_empty() && host.frozen().is_empty()).then_some(())
        })
        .await;
        self.daemon.take().unwrap().stop().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_asked_everybody_has_their_own_and_nothing_is_left(
        steps in proptest::collection::vec(step(), 1..30),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::begin().await;
            for step in &steps {
                world.take(step).await;
                world.agrees(step).await;
            }
            world.end().await;
        });
    }
}
