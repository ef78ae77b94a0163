//! Tells the other nodes of this one, and sees who of them is lost. One task.
//!
//! Wakes every second and when there is news; takes no input and is idempotent.
//! A node is lost when [`watch`](crate::node::watch) says so; every other node
//! then marks its instances, in the store, where only the first one changes
//! anything. A node that is back finds its instances marked and takes them down
//! itself, as any that a client released through another daemon; those that were
//! not marked, since it was back in time, live on.
//!
//! ```text
//! each second   say that it is there, or what is new of it -> read what is new of all
//!               -> mark what is lost
//! stop          announce that it parts: its shops live on, it is expected back
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::Peers;
use crate::error::Chain;
use crate::id::{InstanceId, NodeName};
use crate::instance::State;
use crate::metrics;
use crate::node::{self, GoldenReport, REPORT_VERSION, Report, Stage};
use crate::provision::Provisioner;
use crate::store::StoreError;

/// How often this node speaks: see SILENT_AFTER and LOST_AFTER.
const TICK: Duration = Duration::from_secs(1);

/// Instances that one call marks: the store serves nobody else meanwhile.
const MARKED_AT_ONCE: usize = 200;

/// After so many rounds it is looked at those again that are lost for long, of
/// which at last everything is forgotten.
const FORGET_EVERY: u64 = 10;

/// What is said of this node, beside what changes.
#[derive(Debug)]
struct Speaker {
    peers: Arc<Peers>,
    provisioner: Arc<Provisioner>,
    /// Tells this run of the daemon from others in beats.
    run: InstanceId,
    beats: u64,
    /// The last report that was said, and when.
    said: Option<(Report, Instant)>,
    /// How many nodes hear it.
    nodes: usize,
    /// Whether the last round could not reach the store: told once.
    mute: bool,
    /// Lost nodes whose instances are not all marked yet.
    unmarked: BTreeSet<NodeName>,
}

/// Runs until `stop`, then says that this node parts.
pub async fn keep(peers: Arc<Peers>, provisioner: Arc<Provisioner>, stop: CancellationToken) {
    let run = InstanceId::random();
    let mut speaker = Speaker {
        peers,
        provisioner,
        run,
        beats: 0,
        said: None,
        nodes: 0,
        mute: false,
        unmarked: BTreeSet::new(),
    };
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let peers = Arc::clone(&speaker.peers);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = peers.news.notified() => {}
            _ = tick.tick() => {}
        }
        speaker.round().await;
    }
    if let Err(error) = speaker.speak(Stage::Parting).await {
        tracing::warn!(error = %Chain(&error), "the other nodes do not know that this one is to come back");
    }
}

impl Speaker {
    async fn round(&mut self) {
        let spoken = async {
            self.speak(Stage::Serving).await?;
            self.provisioner.lifecycle().store().nodes().await
        };
        let heard = spoken.await;
        match &heard {
            Err(error) if !self.mute => {
                tracing::warn!(error = %Chain(error), "the other nodes cannot hear this one");
            }
            Ok(_) if self.mute => tracing::info!("the other nodes can hear this one again"),
            Ok(_) | Err(_) => {}
        }
        self.mute = heard.is_err();
        let Ok(heard) = heard else { return };
        self.nodes = heard.len();
        for (node, beat, is_news) in self.peers.look(heard, Instant::now()) {
            if is_news {
                metrics::node_lost();
                tracing::error!(node = %node, "node is lost: its instances are over");
                self.unmarked.insert(node.clone());
            }
            if !self.unmarked.contains(&node) && !self.beats.is_multiple_of(FORGET_EVERY) {
                continue;
            }
            match self.mark_lost(&node, &beat).await {
                Ok(()) => drop(self.unmarked.remove(&node)),
                Err(error) => {
                    self.unmarked.insert(node.clone());
                    tracing::warn!(node = %node, error = %Chain(&error), "a lost node's instances are not marked yet");
                }
            }
        }
        metrics::nodes(self.peers.all().iter().map(|known| known.condition));
    }

    async fn speak(&mut self, stage: Stage) -> Result<(), StoreError> {
        self.beats += 1;
        let report = self.report(stage).await?;
        let beat = format!("{}-{}", self.run, self.beats);
        let said = self.said.as_ref().map(|(said, at)| (said, at.elapsed()));
        let store = Arc::clone(self.provisioner.lifecycle().store());
        if !node::is_news(said, &report, self.nodes) && store.beat(&beat).await? {
            return Ok(());
        }
        store.announce(Some(&report), &beat).await?;
        self.said = Some((report, Instant::now()));
        Ok(())
    }

    async fn report(&self, stage: Stage) -> Result<Report, StoreError> {
        let lifecycle = self.provisioner.lifecycle();
        let mut goldens = BTreeMap::new();
        for golden in lifecycle.goldens().iter() {
            let counts = lifecycle.store().counts(&golden.name).await?;
            let ready = counts.get(&State::Ready).copied().unwrap_or(0);
            let makes = self.provisioner.can_make(golden);
            goldens.insert(golden.name.clone(), GoldenReport { ready, makes });
        }
        Ok(Report {
            version: REPORT_VERSION,
            node: self.peers.own().clone(),
            address: self.peers.address().to_owned(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            stage,
            drained: lifecycle.aim().is_drained(),
            room: lifecycle.room(),
            max_instances: lifecycle.max_instances(),
            goldens,
        })
    }

    async fn mark_lost(&self, node: &NodeName, beat: &str) -> Result<(), StoreError> {
        let lifecycle = self.provisioner.lifecycle();
        loop {
            let marked = lifecycle.store().lose(node, beat, Timestamp::now(), MARKED_AT_ONCE).await?;
            if marked.is_empty() {
                return Ok(());
            }
            tracing::warn!(node = %node, instances = marked.len(), "instances lost with their node");
            marked.iter().for_each(|instance| lifecycle.lost_elsewhere(instance));
        }
    }
}
