//! What any job queue must hold, whatever is behind it: one suite for all.
//!
//! An implementation's test calls [`suite`] with a [`Fixture`]. Each check
//! begins with an empty queue and is named in the panic when it fails.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Delivery, Job, JobQueue, Kind, Submitted, Verdict, Why};
use crate::id::InstanceId;
use crate::instance::Instance;

/// Makes queues for the suite.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// An empty queue. What is in hand and not heard of for a second comes again.
    async fn fresh(&self) -> Arc<dyn JobQueue>;

    /// The reasons of the jobs that were given up in that queue, oldest first.
    async fn dead(&self, queue: &Arc<dyn JobQueue>) -> Vec<String>;
}

/// A job comes within this time, or never.
const SOON: Duration = Duration::from_secs(10);

/// What has not come within this time does not come.
const NEVER: Duration = Duration::from_millis(400);

/// Runs every check.
///
/// # Panics
/// With the check's claim when the queue does not hold it.
pub async fn suite(fixture: &dyn Fixture) {
    a_job_comes_as_it_was_submitted(fixture).await;
    each_kind_has_its_own_line(fixture).await;
    the_same_id_is_taken_once(fixture).await;
    a_settled_job_never_comes_again(fixture).await;
    a_job_given_back_comes_after_its_pause(fixture).await;
    a_job_whose_taker_died_comes_again(fixture).await;
    a_job_in_progress_comes_to_nobody_else(fixture).await;
    a_job_given_up_is_laid_aside_with_the_reason(fixture).await;
    many_takers_share_many_jobs(fixture).await;
    a_job_taken_out_never_comes(fixture).await;
}

fn provision() -> Job {
    Job::provision("shop".parse().expect("a golden name"))
}

fn reap() -> Job {
    let (golden, node) = ("shop".parse().expect("a golden name"), "here".parse().expect("a node name"));
    Job::reap(&Instance::warming(InstanceId::random(), golden, node, jiff::Timestamp::UNIX_EPOCH), Why::Due)
}

async fn submit(queue: &dyn JobQueue, job: &Job) -> Submitted {
    queue.submit(job).await.expect("a job is submitted")
}

async fn comes(queue: &dyn JobQueue, kind: Kind) -> Delivery {
    tokio::time::timeout(SOON, queue.next(kind)).await.expect("a job comes")
}

async fn nothing_comes(queue: &dyn JobQueue, kind: Kind, claim: &str) {
    let came = tokio::time::timeout(NEVER, queue.next(kind)).await;
    assert!(came.is_err(), "{claim}: {came:?}");
}

async fn settle(delivery: Delivery, verdict: Verdict) {
    delivery.receipt.settle(verdict).await.expect("a queue is told");
}

async fn a_job_comes_as_it_was_submitted(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    for job in [provision(), reap()] {
        assert_eq!(submit(&*queue, &job).await, Submitted::New);
        let got = comes(&*queue, job.kind()).await;
        assert_eq!((&got.job, got.attempt), (&job, 1), "a job comes as it was submitted");
        settle(got, Verdict::Over).await;
    }
}

async fn each_kind_has_its_own_line(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    submit(&*queue, &reap()).await;
    nothing_comes(&*queue, Kind::Provision, "each kind has its own line").await;
    settle(comes(&*queue, Kind::Reap).await, Verdict::Over).await;
}

async fn the_same_id_is_taken_once(fixture: &dyn Fixture) {
    let (queue, job) = (fixture.fresh().await, reap());
    assert_eq!(submit(&*queue, &job).await, Submitted::New);
    assert_eq!(submit(&*queue, &job).await, Submitted::Again, "the same id is known");
    settle(comes(&*queue, Kind::Reap).await, Verdict::Over).await;
    assert_eq!(submit(&*queue, &job).await, Submitted::Again, "also when it is over");
    nothing_comes(&*queue, Kind::Reap, "the same id is taken once").await;
}

async fn a_settled_job_never_comes_again(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    submit(&*queue, &provision()).await;
    settle(comes(&*queue, Kind::Provision).await, Verdict::Over).await;
    let came = tokio::time::timeout(Duration::from_secs(2), queue.next(Kind::Provision)).await;
    assert!(came.is_err(), "a settled job never comes again: {came:?}");
}

async fn a_job_given_back_comes_after_its_pause(fixture: &dyn Fixture) {
    let (queue, job) = (fixture.fresh().await, provision());
    submit(&*queue, &job).await;
    let pause = Duration::from_millis(700);
    let began = Instant::now();
    settle(comes(&*queue, Kind::Provision).await, Verdict::Again(pause)).await;
    let again = comes(&*queue, Kind::Provision).await;
    assert!(began.elapsed() >= pause, "not before its pause is over: {:?}", began.elapsed());
    assert_eq!((&again.job, again.attempt), (&job, 2), "the second attempt says so");
    settle(again, Verdict::Over).await;
}

async fn a_job_whose_taker_died_comes_again(fixture: &dyn Fixture) {
    let (queue, job) = (fixture.fresh().await, provision());
    submit(&*queue, &job).await;
    drop(comes(&*queue, Kind::Provision).await);
    let again = comes(&*queue, Kind::Provision).await;
    assert_eq!((&again.job, again.attempt), (&job, 2), "a job whose taker died comes again");
    settle(again, Verdict::Over).await;
}

async fn a_job_in_progress_comes_to_nobody_else(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    submit(&*queue, &provision()).await;
    let got = comes(&*queue, Kind::Provision).await;
    let (other, patience) = (Arc::clone(&queue), got.receipt.patience().min(Duration::from_millis(300)));
    let others = tokio::spawn(async move { other.next(Kind::Provision).await });
    for _ in 0..10 {
        tokio::time::sleep(patience).await;
        got.receipt.in_progress().await.expect("a queue is told");
    }
    assert!(!others.is_finished(), "a job in progress comes to nobody else");
    settle(got, Verdict::Over).await;
    others.abort();
}

async fn a_job_given_up_is_laid_aside_with_the_reason(fixture: &dyn Fixture) {
    let queue = fixture.fresh().await;
    submit(&*queue, &reap()).await;
    settle(comes(&*queue, Kind::Reap).await, Verdict::Dead("it is no use".into())).await;
    nothing_comes(&*queue, Kind::Reap, "a job given up never comes again").await;
    assert_eq!(fixture.dead(&queue).await, ["it is no use"], "it is laid aside with the reason");
}

async fn many_takers_share_many_jobs(fixture: &dyn Fixture) {
    const JOBS: usize = 200;
    const TAKERS: usize = 8;
    let queue = fixture.fresh().await;
    let mut submitted = BTreeSet::new();
    for _ in 0..JOBS {
        let job = provision();
        submit(&*queue, &job).await;
        submitted.insert(job.id);
    }
    let mut takers = tokio::task::JoinSet::new();
    for _ in 0..TAKERS {
        let queue = Arc::clone(&queue);
        takers.spawn(async move {
            let mut got = Vec::new();
            while let Ok(delivery) = tokio::time::timeout(SOON / 5, queue.next(Kind::Provision)).await {
                got.push(delivery.job.id.clone());
                settle(delivery, Verdict::Over).await;
            }
            got
        });
    }
    let got: Vec<String> = takers.join_all().await.into_iter().flatten().collect();
    assert_eq!(got.len(), JOBS, "each job comes once when all goes well");
    assert_eq!(got.into_iter().collect::<BTreeSet<_>>(), submitted);
}

async fn a_job_taken_out_never_comes(fixture: &dyn Fixture) {
    let (queue, out, stays) = (fixture.fresh().await, reap(), reap());
    for job in [&out, &stays] {
        submit(&*queue, job).await;
    }
    let pending = async || {
        let mut ids: Vec<String> =
            queue.pending().await.expect("jobs are listed").into_iter().map(|job| job.id).collect();
        ids.sort();
        ids
    };
    let mut both = vec![out.id.clone(), stays.id.clone()];
    both.sort();
    assert_eq!(pending().await, both, "what waits is listed");
    for _ in 0..2 {
        queue.discard(&out).await.expect("a job is taken out, or is out already");
    }
    assert_eq!(pending().await, std::slice::from_ref(&stays.id));
    let came = comes(&*queue, Kind::Reap).await;
    assert_eq!(came.job, stays, "the other one stays");
    settle(came, Verdict::Over).await;
    nothing_comes(&*queue, Kind::Reap, "a job taken out never comes").await;
}
