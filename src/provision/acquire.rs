//! One acquire, from the request to the hand-over; see [`super`] for the order
//! of what is tried.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::errors::{AcquireError, MakeError};
use super::gate::{Permit, Rank};
use super::lifecycle::Order;
use super::limits::Counted;
use super::{AcquireRequest, Acquired, GoldenRuntime, Handed, Provisioner};
use crate::client::Client;
use crate::config::ColdStart;
use crate::error::{Chain, ErrorKind};
use crate::failpoint;
use crate::id::GoldenName;
use crate::instance::{Instance, Source, State};
use crate::metrics;
use crate::restore::{FirstPage, Make};
use crate::store::{Claim, Claimed};

/// How many instances are passed over at most that a store gone back in time
/// offers a second time.
const STALE_CLAIMS: usize = 64;

/// The longest idempotency key: a UUID, or a hash of whatever the client has.
const KEY_MAX: usize = 255;

/// A checked request.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) golden: GoldenRuntime,
    ttl: jiff::SignedDuration,
    /// The client's key, within what is this client's alone.
    key: Option<String>,
    client: Client,
}

/// What became of it.
struct Given {
    instance: Instance,
    handed: Handed,
    counted: Option<Counted>,
}

/// Cancelled when the client does not wait any more.
pub(super) type Gone<'a> = &'a CancellationToken;

impl Provisioner {
    /// Gets an instance for a client.
    ///
    /// # Errors
    /// [`AcquireError`]; nothing is left behind.
    ///
    /// # Cancel safety
    /// Safe: the work goes on without its client, see [`super`].
    pub async fn acquire(self: &Arc<Self>, request: AcquireRequest) -> Result<Acquired, AcquireError> {
        let began = Instant::now();
        if self.is_stopping() {
            return Err(AcquireError::Stopping);
        }
        let wish = self.check(request)?;
        let (sender, receiver) = oneshot::channel();
        let gone = CancellationToken::new();
        // However this call ends.
        let _hung_up = gone.clone().drop_guard();
        let span = tracing::info_span!("acquire", golden = %wish.golden.name);
        let this = Arc::clone(self);
        self.lifecycle
            .tasks
            .spawn(async move { this.work(wish, began, sender, gone).await }.instrument(span));
        match tokio::time::timeout(self.terms.patience, receiver).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(AcquireError::Lost),
            Err(_) => Err(AcquireError::TooSlow { after: self.terms.patience }),
        }
    }

    fn check(&self, request: AcquireRequest) -> Result<Wish, AcquireError> {
        let goldens = self.lifecycle.goldens();
        let golden = match &request.golden {
            Some(name) => goldens.iter().find(|golden| golden.name.as_str() == name),
            None => goldens.first(),
        };
        let golden = golden.cloned().ok_or_else(|| AcquireError::UnknownGolden {
            golden: request.golden.unwrap_or_default().chars().take(80).collect(),
            known: goldens.iter().map(|golden| golden.name.to_string()).collect(),
        })?;
        if let Some(key) = &request.idempotency_key
            && (key.is_empty()
                || key.len() > KEY_MAX
                || !key.bytes().all(|b| b.is_ascii_graphic() || b == b' '))
        {
            return Err(AcquireError::Key);
        }
        let ttl = request.ttl.unwrap_or(self.terms.default_ttl);
        let client = request.client;
        let scope = request.holder.as_deref().unwrap_or_else(|| client.scope());
        let key = request.idempotency_key.map(|key| key_of(scope, &key));
        Ok(Wish { golden, ttl, key, client })
    }

    /// The work of one acquire, which ends whether its client waits or not.
    async fn work(
        self: Arc<Self>,
        wish: Wish,
        began: Instant,
        client: oneshot::Sender<Result<Acquired, AcquireError>>,
        gone: CancellationToken,
    ) {
        let turn = match &wish.key {
            Some(key) => Some(self.flights.turn(key).await),
            None => None,
        };
        if gone.is_cancelled() {
            return;
        }
        let answer = self.serve(&wish, &gone).await;
        drop(turn);
        let took = began.elapsed();
        let (answer, counted) = match answer {
            // Nobody waited for it any more, and it went to the pool.
            Ok(given) if given.instance.state == State::Ready => {
                // The pool may have more than it wants now.
                self.lifecycle.refill.now();
                return self.untaken(took, given.counted).await;
            }
            Ok(Given { instance, handed, counted }) => {
                let standings = counted.as_ref().map(|it| it.standings.clone()).unwrap_or_default();
                (Ok(Acquired { instance, handed, took, standings }), counted)
            }
            Err(error) => (Err(error), None),
        };
        match &answer {
            Ok(Acquired { handed: Handed::Now(source), .. }) => {
                self.lifecycle.tally.handed_over(&wish.golden.name, *source, took);
                metrics::acquired(&wish.golden.name, *source, took);
            }
            Ok(_) => {}
            Err(_) => {
                metrics::acquire_failed(&wish.golden.name);
                self.lifecycle.tally.turned_away();
            }
        }
        let told = match failpoint::hit("acquire:before-answer") {
            Ok(()) => client.send(answer),
            Err(_) => Err(answer),
        };
        if let Err(Ok(unwanted)) = told
            && unwanted.instance.idempotency_key.is_none()
        {
            // Nobody knows its name, so nobody can come for it.
            self.put_back(unwanted.instance).await;
            self.untaken(took, counted).await;
        }
    }

    /// A client that hung up has had the work done; one that was told that it
    /// takes too long has had nothing.
    async fn untaken(&self, took: Duration, counted: Option<Counted>) {
        if took >= self.terms.patience {
            self.forgive(counted).await;
        }
    }

    /// Answers what the key has already, else counts and gets one.
    async fn serve(&self, wish: &Wish, gone: Gone<'_>) -> Result<Given, AcquireError> {
        let now = Timestamp::now();
        if let Some(key) = &wish.key
            && let Some(held) = self.lifecycle.store.held(key, now).await.map_err(AcquireError::Store)?
        {
            let (instance, handed) = again(held, wish)?;
            return Ok(Given { instance, handed, counted: None });
        }
        if self.lifecycle.aim().is_drained() && self.peers.is_none() {
            return Err(AcquireError::Drained);
        }
        let counted = self.count(&wish.client, now).await?;
        match self.obtain(wish, gone).await {
            Ok((instance, handed @ Handed::Now(_))) => Ok(Given { instance, handed, counted }),
            // Another daemon was quicker with the same key.
            Ok((instance, handed @ Handed::Before)) => {
                self.forgive(counted).await;
                Ok(Given { instance, handed, counted: None })
            }
            Err(error) => {
                self.forgive(counted).await;
                Err(error)
            }
        }
    }

    /// Takes the first way that works, here or on another node.
    async fn obtain(&self, wish: &Wish, gone: Gone<'_>) -> Result<(Instance, Handed), AcquireError> {
        match self.obtain_here(wish, gone).await {
            Ok(got) => Ok(got),
            Err(refused) => self.obtain_elsewhere(wish, refused, gone).await,
        }
    }

    /// Takes the first way that works here.
    async fn obtain_here(&self, wish: &Wish, gone: Gone<'_>) -> Result<(Instance, Handed), AcquireError> {
        if self.lifecycle.aim().is_drained() {
            return Err(AcquireError::Drained);
        }
        if let Some((dependency, reason)) = wish.golden.outage() {
            // One from the pool would answer every page with an error.
            let golden = wish.golden.name.clone();
            return Err(AcquireError::Outage { golden, dependency, reason });
        }
        if let Some(got) = self.claim(wish).await? {
            return Ok(got);
        }
        let golden = wish.golden.name.clone();
        let restore = match &wish.golden.restore {
            Ok(_) if self.lifecycle.tally.is_broken(&golden) && self.cold(wish).is_some() => {
                Err("its restores keep failing".to_owned())
            }
            Ok(maker) => Ok(maker),
            Err(reason) => Err(reason.clone()),
        };
        match (restore, self.cold(wish)) {
            (Ok(maker), cold) => match (self.make(wish, maker, gone).await, cold) {
                (Ok(got), _) => Ok(got),
                (Err(Refusal::Make(error)), Some(cold)) if may_be_cured_by_cold(&error) => {
                    tracing::warn!(error = %Chain(&error), "restore failed, falling back to a cold start");
                    match self.make(wish, cold, gone).await {
                        Ok(got) => Ok(got),
                        Err(Refusal::Other(error)) => Err(error),
                        Err(Refusal::Make(cold)) => Err(AcquireError::Neither {
                            golden,
                            restore: Box::new(error),
                            cold: Box::new(cold),
                        }),
                    }
                }
                (Err(refusal), _) => Err(refusal.into_error(golden)),
            },
            (Err(reason), Some(cold)) => {
                tracing::warn!(reason, "no restore, falling back to a cold start");
                self.make(wish, cold, gone).await.map_err(|refusal| refusal.into_error(golden))
            }
            (Err(reason), None) => Err(AcquireError::NoWay { golden, reason }),
        }
    }

    fn cold<'a>(&self, wish: &'a Wish) -> Option<&'a Arc<dyn Make>> {
        match self.terms.cold_start {
            ColdStart::Allowed => wish.golden.cold.as_ref(),
            ColdStart::Refused => None,
        }
    }

    /// Takes one from the pool, or the one that the key has already.
    pub(super) async fn claim(&self, wish: &Wish) -> Result<Option<(Instance, Handed)>, AcquireError> {
        match self.claim_once(wish).await? {
            Claimed::New(instance) => {
                self.lifecycle.tally.claimed();
                self.lifecycle.refill.now();
                self.lifecycle.events.changed(&instance);
                Ok(Some((instance, Handed::Now(Source::Pool))))
            }
            Claimed::Again(instance) => again(instance, wish).map(Some),
            Claimed::Empty => {
                self.lifecycle.refill.now();
                Ok(None)
            }
        }
    }

    /// Claims one that nobody had before.
    async fn claim_once(&self, wish: &Wish) -> Result<Claimed, AcquireError> {
        for _ in 0..STALE_CLAIMS {
            let now = Timestamp::now();
            let claim = Claim {
                golden: wish.golden.name.clone(),
                now,
                expires_at: now + wish.ttl,
                idempotency_key: wish.key.clone(),
            };
            match self.lifecycle.store.claim(claim).await.map_err(AcquireError::Store)? {
                Claimed::New(instance) if self.lifecycle.was_handed_out(&instance).await => {}
                claimed => return Ok(claimed),
            }
        }
        Ok(Claimed::Empty)
    }

    /// Makes one for the waiting client, unless the pool gets one first.
    async fn make(
        &self,
        wish: &Wish,
        maker: &Arc<dyn Make>,
        gone: Gone<'_>,
    ) -> Result<(Instance, Handed), Refusal> {
        if self.lifecycle.room() == 0 {
            // At once: a place at the gate would not help.
            return Err(Refusal::Make(MakeError::Full { max: self.lifecycle.max_instances() }));
        }
        let permit = self.enter(&wish.golden.name, gone).await?;
        if permit.waited
            && let Some(got) = self.claim(wish).await.map_err(Refusal::Other)?
        {
            return Ok(got);
        }
        let order = Order {
            golden: &wish.golden.name,
            maker,
            first_page: FirstPage::LeftToVisitor,
            idempotency_key: wish.key.clone(),
            permit,
        };
        let made = self.lifecycle.make(order, |record| self.hand_over(record, wish, gone)).await;
        let instance = made.map_err(Refusal::Make)?;
        let source = instance.made_by;
        Ok((instance, Handed::Now(source)))
    }

    /// Takes a place at the gate, unless that takes too long.
    pub(super) async fn enter(&self, golden: &GoldenName, gone: Gone<'_>) -> Result<Permit, Refusal> {
        let (gate, most) = (&self.lifecycle.gate, self.terms.wait);
        let crowded = |wait| Refusal::Other(AcquireError::Crowded { golden: golden.clone(), wait, most });
        let wait = gate.wait();
        if wait > most {
            return Err(crowded(wait));
        }
        tokio::select! {
            biased;
            // Its place is the next one's.
            () = gone.cancelled() => Err(Refusal::Other(AcquireError::HungUp)),
            // Who was let to wait is not sent away for an estimate that was somewhat off.
            entered = tokio::time::timeout(most * 2, gate.enter(Rank::Client)) => {
                // Makings have become far slower meanwhile.
                entered.map_err(|_| crowded(gate.wait().max(most)))
            }
        }
    }

    fn hand_over(&self, record: &mut Instance, wish: &Wish, gone: Gone<'_>) {
        if !gone.is_cancelled() || wish.key.is_some() {
            let now = Timestamp::now();
            record.state = State::Assigned;
            record.source = Some(record.made_by);
            record.assigned_at = Some(now);
            record.expires_at = Some(now + wish.ttl);
        } else {
            record.state = State::Ready;
        }
    }

    async fn put_back(&self, instance: Instance) {
        let id = instance.id.clone();
        tracing::info!(instance_id = %id, "client gone, instance released");
        if let Err(error) = self.lifecycle.end(instance.clone(), State::Expired, |_| true).await {
            tracing::warn!(instance_id = %id, error = %Chain(&error), "instance not taken down yet");
            if self.lifecycle.is_own(&instance) {
                self.lifecycle.unwanted(&instance);
            }
        }
    }
}

/// A client's key, within what is this client's alone.
pub(super) fn key_of(scope: &str, key: &str) -> String {
    format!("{scope} {key}")
}

/// What the key has already; a key is for one wish.
fn again(held: Instance, wish: &Wish) -> Result<(Instance, Handed), AcquireError> {
    if held.golden == wish.golden.name {
        Ok((held, Handed::Before))
    } else {
        Err(AcquireError::KeyReused { golden: held.golden })
    }
}

/// Why one way did not work.
pub(super) enum Refusal {
    /// It could not be made.
    Make(MakeError),
    /// It came to nothing before that.
    Other(AcquireError),
}

impl Refusal {
    pub(super) fn into_error(self, golden: GoldenName) -> AcquireError {
        match self {
            Self::Make(source) => AcquireError::Make { golden, source },
            Self::Other(error) => error,
        }
    }
}

/// A cold start needs the same room, disk and store.
fn may_be_cured_by_cold(error: &MakeError) -> bool {
    match error {
        MakeError::Full { .. } | MakeError::Store(_) => false,
        MakeError::Launch(error) => !matches!(error.kind, ErrorKind::Exhausted | ErrorKind::NoSpace),
    }
}
