//! Reaper, reconciler and adoption on a scripted engine and the real store.

mod behind;
mod given_up;

use std::collections::BTreeMap;
use std::path::Path;

use jiff::SignedDuration;

use super::*;
use crate::config::ColdStart;
use crate::engine::Phase;
use crate::error::ErrorKind;
use crate::instance::{EngineKind, State};
use crate::jobs::JobQueue;
use crate::jobs::worker::Worker;
use crate::pool::Target;
use crate::pool::adopt::{Found, adopt_all};
use crate::pool::reconciler::Reconciler;
use crate::provision::limits::Limits;
use crate::provision::{AcquireRequest, Parts, Provisioner, Terms};
use crate::route::Routes;
use crate::store::Store;
use crate::store::embedded::EmbeddedStore;
use crate::testing::lossy::{LossyStore, Then};
use crate::testing::{Script, eventually, runtime};

struct World {
    lifecycle: Arc<Lifecycle>,
    provisioner: Arc<Provisioner>,
    store: Arc<dyn Store>,
    refill: Nudge,
    reap: Nudge,
    jobs: Arc<Dispatch>,
    /// Ends the worker.
    stop: std::sync::Mutex<CancellationToken>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.lock().unwrap().cancel();
    }
}

/// A daemon's parts on a host and a store file that may have a past.
fn daemon(dir: &Path, script: &Arc<Script>, max_instances: usize) -> World {
    daemon_on(store_in(dir), script, max_instances)
}

fn store_in(dir: &Path) -> Arc<dyn Store> {
    Arc::new(EmbeddedStore::open(&dir.join("store"), &"here".parse().unwrap()).unwrap())
}

fn daemon_on(store: Arc<dyn Store>, script: &Arc<Script>, max_instances: usize) -> World {
    let (refill, reap) = (Nudge::default(), Nudge::default());
    let lifecycle = Arc::new(Lifecycle::new(Parts {
        store: Arc::clone(&store),
        routes: Arc::new(Routes::default()),
        goldens: vec![runtime("shop", script, None)],
        max_instances,
        restore_concurrency: 2,
        refill: refill.clone(),
        reap: reap.clone(),
    }));
    let terms = Terms {
        default_ttl: SignedDuration::from_mins(1),
        max_ttl: SignedDuration::from_hours(1),
        cold_start: ColdStart::Refused,
        wait: Duration::from_secs(5),
        patience: Duration::from_secs(10),
        limits: Limits::default(),
    };
    let provisioner = Arc::new(Provisioner::new(Arc::clone(&lifecycle), terms));
    World {
        lifecycle,
        provisioner,
        store,
        refill,
        reap,
        jobs: Arc::default(),
        stop: std::sync::Mutex::default(),
    }
}

impl World {
    async fn acquire(&self) -> Instance {
        self.provisioner.acquire(AcquireRequest::default()).await.unwrap().instance
    }

    /// One that nobody has a record of.
    fn other_instance(&self) -> Instance {
        Instance::warming(
            InstanceId::random(),
            "shop".parse().unwrap(),
            "here".parse().unwrap(),
            Timestamp::now(),
        )
    }

    fn reaper(&self) -> Reaper {
        self.work(0);
        Reaper::new(Arc::clone(&self.lifecycle), self.reap.clone(), Arc::clone(&self.jobs))
    }

    fn reconciler(&self, ready: usize) -> Reconciler {
        let target = self.work(ready);
        let jobs = Arc::clone(&self.jobs);
        Reconciler::new(Arc::clone(&self.lifecycle), target, self.refill.clone(), jobs)
    }

    /// Has a worker with that target do the jobs, and no other.
    fn work(&self, ready: usize) -> Target {
        let target = Target { ready, starts: 2, cold_start: ColdStart::Refused };
        let (lifecycle, board) = (Arc::clone(&self.lifecycle), Arc::clone(self.jobs.board()));
        let worker = Arc::new(Worker::new(lifecycle, board, target, self.refill.clone()));
        let queue = Arc::clone(self.jobs.local()) as Arc<dyn JobQueue>;
        let stop = CancellationToken::new();
        tokio::spawn(worker.serve(queue, stop.clone()));
        std::mem::replace(&mut *self.stop.lock().unwrap(), stop).cancel();
        target
    }

    async fn counts(&self) -> BTreeMap<State, usize> {
        self.store.counts(&"shop".parse().unwrap()).await.unwrap()
    }
}

#[tokio::test]
async fn the_pool_waits_for_the_end_of_an_outage_and_counts_no_failure() {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 8);
    let mut reconciler = world.reconciler(1);
    script.outage(Some("connection refused"));
    reconciler.pass().await;
    assert_eq!(script.attempts(), 0);
    assert!(reconciler.status().borrow().values().all(|golden| golden.failures_in_a_row == 0));
    script.outage(None);
    reconciler.pass().await;
    eventually("one is made", async || (script.attempts() == 1).then_some(())).await;
}

#[tokio::test]
async fn an_instance_expires_without_a_visit() {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 8);
    let (got, mut reaper) = (world.acquire().await, world.reaper());
    let end = got.expires_at.unwrap();
    reaper.pass(end - SignedDuration::from_nanos(1)).await;
    reaper.settle().await;
    assert_eq!(script.running(), [got.id], "not a moment too early");
    reaper.pass(end).await;
    reaper.settle().await;
    assert!(script.traces().is_empty() && world.store.list().await.unwrap().is_empty());
    reaper.pass(end).await;
    reaper.settle().await;
}

#[tokio::test]
async fn a_clock_set_ahead_ends_what_is_over_by_it_and_leaves_the_pool() {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 8);
    let got = world.acquire().await;
    let mut reconciler = world.reconciler(1);
    reconciler.pass().await;
    let ready = async || (world.counts().await.get(&State::Ready) == Some(&1)).then_some(());
    eventually("one is ready", ready).await;
    let mut reaper = world.reaper();
    reaper.pass(got.expires_at.unwrap() + SignedDuration::from_hours(24)).await;
    reaper.settle().await;
    assert_eq!(world.counts().await, BTreeMap::from([(State::Ready, 1)]), "the pool has no end");
    assert_ne!(world.acquire().await.id, got.id);
}

#[tokio::test]
async fn a_clock_set_back_ends_nothing_and_nobody_lives_beyond_the_longest_time() {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 8);
    let (got, mut reaper) = (world.acquire().await, world.reaper());
    let back = got.assigned_at.unwrap() - SignedDuration::from_hours(24);
    reaper.pass(back).await;
    reaper.settle().await;
    assert_eq!(script.running(), std::slice::from_ref(&got.id));
    world.provisioner.show(&got.id, back).await.unwrap();
    let longest = SignedDuration::from_hours(1);
    let extended = world.provisioner.extend(&got.id, Some(longest), back).await;
    assert!(extended.is_err(), "counted from its hand-over, whatever the clock says: {extended:?}");
    reaper.pass(got.expires_at.unwrap()).await;
    reaper.settle().await;
    assert!(script.running().is_empty(), "when the clock is right again, it ends as was told");
}

#[tokio::test]
async fn an_instance_whose_process_ended_is_taken_down() {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 8);
    let (got, other) = (world.acquire().await, world.acquire().await);
    let stop = CancellationToken::new();
    let task = tokio::spawn(world.reaper().run(stop.clone()));
    script.kill(&got.id);
    eventually("it is gone", async || world.store.get(&got.id).await.unwrap().is_none().then_some(())).await;
    assert!(world.store.get(&other.id).await.unwrap().is_some());
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_failed_taking_down_is_tried_again_after_a_pause() {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 8);
    let (got, mut reaper) = (world.acquire().await, world.reaper());
    script.fail_destroy(true);
    reaper.pass(got.expires_at.unwrap()).await;
    reaper.settle().await;
    assert_eq!(world.counts().await, BTreeMap::from([(State::Expired, 1)]), "the record is kept");
    script.fail_destroy(false);
    reaper.pass(got.expires_at.unwrap()).await;
    reaper.settle().await;
    assert_eq!(world.counts().await.len(), 1, "not within the pause");
    eventually("it is gone after the pause", async || {
        reaper.pass(got.expires_at.unwrap()).await;
        reaper.settle().await;
        world.counts().await.is_empty().then_some(())
    })
    .await;
    assert!(script.traces().is_empty());
}

#[tokio::test]
async fn orphans_are_taken_down_and_nothing_else() {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 8);
    let (got, orphan) = (world.acquire().await, InstanceId::random());
    script.add_trace(&orphan);
    let mut reaper = world.reaper();
    reaper.sweep_orphans(Certainty::SeenTwice).await;
    assert_eq!(script.traces().len(), 2, "seen once, it may be about to be written down");
    reaper.sweep_orphans(Certainty::SeenTwice).await;
    assert_eq!(script.traces(), std::slice::from_ref(&got.id));
    script.add_trace(&orphan);
    reaper.sweep_orphans(Certainty::AtOnce).await;
    assert_eq!(script.traces(), [got.id]);
}

#[tokio::test]
async fn an_audit_finds_routes_jobs_and_records_of_what_is_not_there_and_mends_exactly_those() {
    use crate::instance::trace::Kind;
    use crate::provision::audit::Auditor;

    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 8);
    let (lives, dead) = (world.acquire().await, world.acquire().await);
    let (route, job, trace) = (InstanceId::random(), world.other_instance(), InstanceId::random());
    world.lifecycle.routes().ensure(&route, "127.0.0.1:9".parse().unwrap());
    world.jobs.local().put(&Job::reap(&job, Why::Due));
    script.add_trace(&trace);
    let auditor = Auditor::new(Arc::clone(&world.lifecycle), Arc::clone(&world.jobs));
    let kinds = |traces: &[crate::instance::trace::Trace]| {
        traces.iter().map(|trace| (trace.kind, trace.owner.to_string())).collect::<Vec<_>>()
    };
    let orphans = [
        (Kind::Directory, trace.to_string()),
        (Kind::Route, route.to_string()),
        (Kind::Job, job.id.to_string()),
    ];
    let found = auditor.audit(false).await;
    assert_eq!((kinds(&found.found), found.left, found.not_searched), (orphans.to_vec(), None, Vec::new()));
    let mended = auditor.audit(true).await;
    assert_eq!(
        (kinds(&mended.found), mended.left),
        (orphans.to_vec(), Some(Vec::new())),
        "it only looked before"
    );
    assert_eq!(script.running().len(), 2);

    script.kill(&dead.id);
    let record = [(Kind::Record, dead.id.to_string())];
    assert_eq!(kinds(&auditor.audit(false).await.found), record);
    world.work(0);
    let mended = auditor.audit(true).await;
    assert_eq!((kinds(&mended.found), mended.left), (record.to_vec(), Some(Vec::new())));
    assert_eq!((script.traces(), script.running()), (vec![lives.id.clone()], vec![lives.id]));
    assert!(auditor.audit(false).await.is_clean());
}

#[tokio::test]
async fn the_pool_is_filled_and_refilled() {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 8);
    let stop = CancellationToken::new();
    let task = tokio::spawn(world.reconciler(3).run(stop.clone()));
    let full = async || (world.counts().await.get(&State::Ready) == Some(&3)).then_some(());
    eventually("three are ready", full).await;
    let mut seen = HashSet::new();
    for _ in 0..4 {
        assert!(seen.insert(world.acquire().await.id), "never the same instance twice");
    }
    eventually("three are ready again", full).await;
    assert!(script.first_pages().contains(&crate::restore::FirstPage::Fetched));
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_pool_that_is_half_full_lets_the_visitor_go_first() {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 8);
    let mut reconciler = world.reconciler(3);
    let three = async || (world.counts().await.get(&State::Ready) == Some(&3)).then_some(());
    eventually("three are ready", async || {
        reconciler.pass().await;
        three().await
    })
    .await;
    let made = script.attempts();
    reconciler.quiet = Duration::from_hours(1);
    world.acquire().await;
    reconciler.pass().await;
    assert_eq!(world.jobs.board().coming(&"shop".parse().unwrap()), 0, "two of three are enough for now");
    world.acquire().await;
    world.acquire().await;
    reconciler.pass().await;
    assert_ne!(world.jobs.board().coming(&"shop".parse().unwrap()), 0, "none is not");
    reconciler.quiet = Duration::ZERO;
    let task = tokio::spawn(reconciler.run(CancellationToken::new()));
    eventually("three are ready again", three).await;
    assert_eq!(script.attempts(), made + 3);
    task.abort();
}

#[tokio::test]
async fn the_pool_leaves_the_hosts_limit_alone() {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 2);
    let mut reconciler = world.reconciler(5);
    let stop = CancellationToken::new();
    reconciler.pass().await;
    let task = tokio::spawn(reconciler.run(stop.clone()));
    eventually("two are ready", async || (world.counts().await.get(&State::Ready) == Some(&2)).then_some(()))
        .await;
    assert_eq!(script.attempts(), 2);
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_broken_golden_does_not_spin() {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 8);
    script.fail_make(Some((Phase::Restore, ErrorKind::Bug)));
    let reconciler = world.reconciler(4);
    let mut status = reconciler.status();
    let (stop, began) = (CancellationToken::new(), Instant::now());
    let task = tokio::spawn(reconciler.run(stop.clone()));
    let failed =
        |status: &crate::pool::PoolStatus| status.values().any(|golden| golden.failures_in_a_row >= 3);
    let seen = status.wait_for(failed).await.unwrap().clone();
    assert!(seen.values().all(|golden| golden.retry_at.is_some()), "the status says when it goes on");
    // The first pass starts two at once, a pause of two seconds follows.
    assert_eq!(script.attempts(), 3);
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    script.fail_make(None);
    let filled = status.wait_for(|status| status.values().all(|golden| golden.failures_in_a_row == 0));
    filled.await.unwrap();
    stop.cancel();
    task.await.unwrap();
    assert!(!script.running().is_empty());
}

#[tokio::test]
async fn a_lowered_target_retires_the_surplus() {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 8);
    for (target, ready) in [(4, 4), (1, 1)] {
        let stop = CancellationToken::new();
        let task = tokio::spawn(world.reconciler(target).run(stop.clone()));
        eventually("the pool has its target", async || {
            (world.counts().await.get(&State::Ready) == Some(&ready)).then_some(())
        })
        .await;
        stop.cancel();
        task.await.unwrap();
    }
    assert_eq!(script.running().len(), 1);
}

#[tokio::test]
async fn a_restart_adopts_what_lives_and_drops_the_rest() {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 8);
    let (lives, died) = (world.acquire().await, world.acquire().await);
    let half_made = Instance::warming(
        InstanceId::random(),
        "shop".parse().unwrap(),
        "here".parse().unwrap(),
        Timestamp::now(),
    );
    script.add_trace(&half_made.id);
    world.store.insert(half_made).await.unwrap();
    drop(world);
    script.kill(&died.id);

    let world = daemon(dir.path(), &script, 8);
    let found = adopt_all(&world.lifecycle, Timestamp::now()).await.unwrap();
    assert_eq!(found, Found { adopted: 1, dropped: 2 });
    assert_eq!(world.lifecycle.room(), 5, "what is not gone yet still has its place");
    let mut reaper = world.reaper();
    reaper.pass(Timestamp::now()).await;
    reaper.settle().await;
    assert_eq!(script.traces(), std::slice::from_ref(&lives.id));
    assert_eq!(world.lifecycle.room(), 7);
    let shown = world.provisioner.show(&lives.id, Timestamp::now()).await.unwrap();
    assert_eq!((shown.state, shown.expires_at), (State::Assigned, lives.expires_at));
    world.provisioner.release(&lives.id).await.unwrap();
    eventually("it is gone", async || script.traces().is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_shop_that_was_frozen_when_its_daemon_died_is_asleep_to_the_next_one() {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 8);
    let held = world.acquire().await;
    drop(world);
    // It was ended, and its record does not say yet that it sleeps.
    script.add_frozen(&held.id);
    script.kill(&held.id);

    let world = daemon(dir.path(), &script, 8);
    let found = adopt_all(&world.lifecycle, Timestamp::now()).await.unwrap();
    assert_eq!(found, Found { adopted: 1, dropped: 0 });
    assert_eq!(world.counts().await, BTreeMap::from([(State::Hibernated, 1)]));
    world.reaper().sweep_orphans(Certainty::AtOnce).await;
    assert!(script.traces().is_empty(), "what is left of its slot is nobody's");
    assert_eq!(script.frozen(), std::slice::from_ref(&held.id));
    let woken = world.provisioner.wake(&held.id).await.unwrap();
    assert_eq!((woken.state, script.running().len()), (State::Assigned, 1));
    assert!(script.frozen().is_empty());
}

#[tokio::test]
async fn what_lives_is_worth_more_than_a_store_that_lost_it() {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 8);
    let (held, mut reaper) = (world.acquire().await, world.reaper());
    let (task, stop) = {
        let stop = CancellationToken::new();
        (tokio::spawn(world.reconciler(1).run(stop.clone())), stop)
    };
    let ready = eventually("one is ready", async || {
        world.store.list().await.unwrap().into_iter().find(|i| i.state == State::Ready)
    })
    .await;
    stop.cancel();
    task.await.unwrap();
    for id in [&held.id, &ready.id] {
        world.store.remove(id).await.unwrap();
    }
    let now = Timestamp::now();
    reaper.pass(now).await;
    reaper.sweep_orphans(Certainty::AtOnce).await;
    assert!(world.store.list().await.unwrap().is_empty(), "one look may have met a change on its way");
    assert_eq!(script.running().len(), 2, "it is no orphan");
    reaper.pass(now).await;
    let back = world.store.get(&held.id).await.unwrap().unwrap();
    assert_eq!((back.generation, back.expires_at), (held.generation, held.expires_at));
    reaper.pass(now).await;
    reaper.settle().await;
    assert_eq!(script.running(), [held.id], "a ready one may be somebody's by now: it is given up");
    assert!(world.store.get(&ready.id).await.unwrap().is_none());
}

#[tokio::test]
async fn an_instance_due_while_no_daemon_ran_is_expired_at_the_start() {
    let (dir, script) = (tempfile::tempdir().unwrap(), Script::quiet(EngineKind::Criu));
    let world = daemon(dir.path(), &script, 8);
    let due = world.acquire().await;
    drop(world);
    let world = daemon(dir.path(), &script, 8);
    let found = adopt_all(&world.lifecycle, due.expires_at.unwrap()).await.unwrap();
    assert_eq!(found, Found { adopted: 0, dropped: 1 });
    assert_eq!(world.counts().await, BTreeMap::from([(State::Expired, 1)]));
}
