//! What is on this host and nobody's, and what has a record and is not there.
//!
//! Called by the pool's reaper in its sweeps, by the API for `doctor --audit`
//! beside a running daemon, and by [`crate::caretaker`] without one: all compare
//! in the same way. What counts as somebody's:
//!
//! ```text
//! processes, mounts, netns, veth, cgroup, directory,   a record in the store names it as its
//! container, database                                  slot, or somebody is making or ending it
//! route, job                                           a record in the store, or as above
//! address in the firewall                              an instance has it
//! image of a published golden                          a snapshot is made of it ([`Beside`])
//! record                                               see [`over`]
//! ```
//!
//! Traces are read before the store, so a record removed in between only means
//! one needless, harmless destroy. Another daemon's things are not found at all:
//! bridge, cgroup, directories, container labels and database prefix are each
//! one daemon's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt as _;

use super::{Doing, Lifecycle};
use crate::engine::ContainerEngine;
use crate::error::Chain;
use crate::instance::trace::{self, ByOwner, Depth, Kind, Owner, Trace};
use crate::instance::{Instance, State};
use crate::jobs::dispatch::Dispatch;
use crate::jobs::{Job, JobQueue, Task, Why};
use crate::metrics;
use crate::route::RouteTable as _;

/// The pause between two looks: longer than the steps between a thing that is
/// made and its record, or between a record and its last thing.
const BETWEEN: Duration = Duration::from_millis(300);

/// What is looked for beside instances.
#[async_trait]
pub trait Beside: Send + Sync + fmt::Debug {
    /// What is there and nobody's.
    async fn traces(&self) -> io::Result<Vec<Trace>>;

    /// Removes one thing of that.
    async fn remove(&self, trace: &Trace) -> io::Result<()>;
}

/// Searches the host, and takes down what is nobody's.
#[derive(Debug)]
pub struct Auditor {
    lifecycle: Arc<Lifecycle>,
    jobs: Arc<Dispatch>,
    beside: Option<Arc<dyn Beside>>,
    /// One audit at a time: each reads the whole host.
    alone: tokio::sync::Mutex<()>,
}

/// What one look has found.
#[derive(Debug, Default)]
pub struct Look {
    /// Nobody's.
    pub unowned: ByOwner,
    /// What could not be searched, and why.
    pub not_searched: Vec<String>,
    /// The drivers that found something of each.
    finders: BTreeMap<Owner, Vec<Arc<dyn ContainerEngine>>>,
}

/// Whose name a thing has.
#[derive(Debug, Clone, Copy)]
enum By {
    /// An instance's slot's.
    Slot,
    /// An instance's own.
    Name,
}

/// What an audit has found.
#[derive(Debug, Default)]
pub struct Audit {
    /// What was nobody's.
    pub found: Vec<Trace>,
    /// What of it is still there; none when nothing was to be taken down.
    pub left: Option<Vec<Trace>>,
    /// What could not be searched, and why.
    pub not_searched: Vec<String>,
}

impl Audit {
    /// Whether there is nothing, or nothing any more, that should not be there.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.not_searched.is_empty() && self.left.as_ref().unwrap_or(&self.found).is_empty()
    }
}

/// Why a record is over although nobody has ended it; `died` says whether the
/// first process has.
pub fn over(state: State, doing: Option<Doing>, died: impl FnOnce() -> bool) -> Option<Why> {
    match state {
        State::Ready | State::Assigned if doing == Some(Doing::Unwanted) => Some(Why::Unwanted),
        // What ends then is what it no longer needs.
        State::Ready | State::Assigned if doing == Some(Doing::Changing) => None,
        State::Ready | State::Assigned => died().then_some(Why::Died),
        State::Warming => (doing != Some(Doing::Making)).then_some(Why::Abandoned),
        State::Expired | State::Failed => (doing != Some(Doing::Ending)).then_some(Why::LeftOver),
        State::Hibernated => None,
    }
}

impl Auditor {
    /// Puts it together; nothing is searched yet.
    #[must_use]
    pub fn new(lifecycle: Arc<Lifecycle>, jobs: Arc<Dispatch>) -> Self {
        Self { lifecycle, jobs, beside: None, alone: tokio::sync::Mutex::default() }
    }

    /// The same, which in an audit also looks for what is beside instances.
    #[must_use]
    pub fn and(self, beside: Option<Arc<dyn Beside>>) -> Self {
        Self { beside, ..self }
    }

    /// Searches the host once.
    pub async fn look(&self, depth: Depth) -> Look {
        let mut look = Look::default();
        let mut found = Vec::new();
        for engine in self.lifecycle.engines() {
            match engine.traces(depth).await {
                Ok(traces) => {
                    for owner in traces.iter().map(|trace| &trace.owner).collect::<BTreeSet<_>>() {
                        look.finders.entry(owner.clone()).or_default().push(Arc::clone(&engine));
                    }
                    found.extend(traces);
                }
                Err(error) => look.not_searched.push(format!("the host: {}", Chain(&error))),
            }
        }
        if let (Depth::All, Some(beside)) = (depth, &self.beside) {
            match beside.traces().await {
                Ok(traces) => found.extend(traces),
                Err(error) => look.not_searched.push(format!("images: {}", Chain(&error))),
            }
        }
        if depth == Depth::All {
            found.extend(self.routes(&mut look.not_searched).await);
            found.extend(self.queued(&mut look.not_searched).await.into_iter().map(|(_, _, trace)| trace));
        }
        // An instance's route and jobs have its name; its things here have its slot's.
        let (names, things): (Vec<Trace>, Vec<Trace>) =
            found.into_iter().partition(|trace| matches!(trace.kind, Kind::Route | Kind::Job));
        let (names, things) = (trace::by_owner(names), trace::by_owner(things));
        let slots = self.known(things.keys(), By::Slot, &mut look.not_searched).await;
        let known = self.known(names.keys(), By::Name, &mut look.not_searched).await;
        look.unowned = trace::unowned(things, &slots);
        for (owner, traces) in trace::unowned(names, &known) {
            look.unowned.entry(owner).or_default().extend(traces);
        }
        look.not_searched.sort();
        look.not_searched.dedup();
        look
    }

    /// Those that are somebody's; who cannot be asked about counts as known.
    async fn known(
        &self,
        owners: impl Iterator<Item = &Owner>,
        by: By,
        not_searched: &mut Vec<String>,
    ) -> BTreeSet<Owner> {
        let mut known = BTreeSet::new();
        for owner in owners {
            let Owner::Instance(id) = owner else { continue };
            let asked = match by {
                By::Slot => self.lifecycle.is_somebodys(id).await,
                By::Name => self.lifecycle.is_held(id).await,
            };
            let is_known = asked.unwrap_or_else(|error| {
                not_searched.push(format!("the store: {}", Chain(&error)));
                true
            });
            if is_known {
                known.insert(owner.clone());
            }
        }
        known
    }

    async fn routes(&self, not_searched: &mut Vec<String>) -> Vec<Trace> {
        let routes = self.lifecycle.routes();
        let mut targets = routes.memory().list().await.unwrap_or_default();
        if let Some(router) = routes.router() {
            match router.list().await {
                Ok(in_force) => targets.extend(in_force),
                Err(error) => not_searched.push(format!("the router: {}", Chain(&error))),
            }
        }
        targets.into_iter().map(|(id, to)| Trace::of(id, Kind::Route, to.to_string())).collect()
    }

    /// Jobs about instances, with the queues they wait in.
    async fn queued(&self, not_searched: &mut Vec<String>) -> Vec<(Arc<dyn JobQueue>, Job, Trace)> {
        let local = Arc::clone(self.jobs.local()) as Arc<dyn JobQueue>;
        let mut queued = Vec::new();
        for queue in [Some(local), self.jobs.bus().cloned()].into_iter().flatten() {
            match queue.pending().await {
                Ok(jobs) => queued.extend(jobs.into_iter().filter_map(|job| {
                    let Task::Reap { instance_id, .. } = &job.task else { return None };
                    let trace = Trace::of(instance_id.clone(), Kind::Job, job.id.clone());
                    Some((Arc::clone(&queue), job, trace))
                })),
                Err(error) => not_searched.push(format!("the job queue: {}", Chain(&error))),
            }
        }
        queued
    }

    /// Records of this node's whose instances are not there, or not any more.
    async fn records(&self, not_searched: &mut Vec<String>) -> Vec<(Arc<Instance>, Why)> {
        let all = match self.lifecycle.store().own().await {
            Ok(all) => all,
            Err(error) => {
                not_searched.push(format!("the store: {}", Chain(&error)));
                return Vec::new();
            }
        };
        let why = |instance: &Instance| {
            over(instance.state, self.lifecycle.doing(&instance.id), || {
                let container = instance.container.as_ref();
                let engine = self.lifecycle.engine_of(instance);
                // Ready at once when there is no such process.
                container.zip(engine).is_none_or(|(it, engine)| engine.ended(it).now_or_never().is_some())
            })
        };
        all.into_iter().filter_map(|instance| why(&instance).map(|why| (instance, why))).collect()
    }

    /// All that is nobody's in two looks, and records of what is not there.
    async fn find(&self) -> (Look, Vec<(Arc<Instance>, Why)>) {
        let before = self.look(Depth::All).await;
        let mut errors = Vec::new();
        let records_before: BTreeSet<_> = self
            .records(&mut errors)
            .await
            .into_iter()
            .map(|(it, _)| (it.id.clone(), it.generation))
            .collect();
        tokio::time::sleep(BETWEEN).await;
        let mut now = self.look(Depth::All).await;
        now.unowned = trace::lasting(&before.unowned, std::mem::take(&mut now.unowned));
        let mut records = self.records(&mut now.not_searched).await;
        records.retain(|(it, _)| records_before.contains(&(it.id.clone(), it.generation)));
        (now, records)
    }

    /// Searches the host thoroughly; with `mend` it also takes down what it finds.
    ///
    /// # Cancel safety
    /// A dropped call leaves the rest as it is.
    pub async fn audit(&self, mend: bool) -> Audit {
        let _alone = self.alone.lock().await;
        let (look, records) = self.find().await;
        let found = listed(&look, &records);
        if !mend || found.is_empty() {
            return Audit { found, left: mend.then(Vec::new), not_searched: look.not_searched };
        }
        for owner in look.unowned.keys() {
            self.remove(owner, &look).await;
        }
        let mut ignored = Vec::new();
        for (queue, job, trace) in self.queued(&mut ignored).await {
            let is_held = trace.instance().is_some_and(|id| self.lifecycle.doing(id).is_some());
            if look.unowned.contains_key(&trace.owner)
                && !is_held
                && let Err(error) = queue.discard(&job).await
            {
                tracing::warn!(job_id = job.id, error = %Chain(&error), "job not taken out of the queue");
            }
        }
        for (instance, why) in &records {
            self.jobs.ask(&Job::reap(instance, *why)).await;
        }
        if !records.is_empty() {
            self.jobs.board().reaped().await;
        }
        let (look, records) = self.find().await;
        let left = listed(&look, &records);
        Audit { found, left: Some(left), not_searched: look.not_searched }
    }

    /// Takes down what was found of one owner that nobody knows.
    pub async fn remove(&self, owner: &Owner, look: &Look) {
        let finders = look.finders.get(owner).into_iter().flatten();
        let mut failed = false;
        match owner {
            Owner::Instance(id) => {
                // It may be a slot that an instance of that name has left.
                if self.lifecycle.doing(id).is_none()
                    && let Err(error) = self.lifecycle.routes().withdraw(id).await
                {
                    failed = true;
                    tracing::warn!(instance_id = %id, error = %Chain(&error), "orphan's route not removed");
                }
                for engine in finders {
                    if let Err(error) = engine.destroy(id, None).await {
                        failed = true;
                        tracing::warn!(instance_id = %id, error = %Chain(&error), "orphan not taken down");
                    }
                }
            }
            Owner::Address(address) => {
                for engine in finders {
                    if let Err(error) = engine.shut(*address).await {
                        failed = true;
                        tracing::warn!(%address, error = %Chain(&error), "a way out was not closed");
                    }
                }
            }
            Owner::Golden(_) => {
                for trace in look.unowned.get(owner).into_iter().flatten() {
                    let Some(beside) = &self.beside else { continue };
                    if let Err(error) = beside.remove(trace).await {
                        failed = true;
                        tracing::warn!(what = trace.what, error = %Chain(&error), "orphan not removed");
                    }
                }
            }
        }
        if failed {
            metrics::cleanup_failed();
        } else {
            metrics::reaped("orphan");
            tracing::info!(instance_id = %owner, "orphan taken down");
        }
    }
}

fn listed(look: &Look, records: &[(Arc<Instance>, Why)]) -> Vec<Trace> {
    let of_record = |(instance, _): &(Arc<Instance>, Why)| {
        Trace::of(instance.id.clone(), Kind::Record, format!("{} and not there", instance.state.as_str()))
    };
    let mut all: Vec<Trace> = look.unowned.values().flatten().cloned().collect();
    all.extend(records.iter().map(of_record));
    all.sort_by(|one, other| (one.kind, one).cmp(&(other.kind, other)));
    all
}
