//! The store in a Valkey, which several daemons share.
//!
//! One Lua script an operation (`scripts/`), so each is atomic and one round
//! trip; [`keys`] draws what lies where. [`link`] is the connection, its deadline
//! and its return; [`mirror`] keeps what is read every second, so that only changes
//! are fetched.
//!
//! ```text
//! open: connect -> layout and version fit -> the node's name is free -> store
//! call: script, until its deadline -> answer | "unavailable"
//! ```
//!
//! Invariants: a call that was answered "unavailable" has either taken effect
//! before that or never will (scripts refuse by the server's clock what comes
//! later). A claim of which only the answer was lost is taken back as soon as
//! the server answers again, unless its client gave a key to come back with.
//!
//! Durability is the server's: with `appendonly yes` what was answered survives
//! the death of its process, but for what it answered in the last two seconds while
//! its disk was busy (`appendfsync always`: that, too). What a daemon knows of its
//! own is written again then ([`crate::provision`]).

mod keys;
mod link;
mod mirror;
mod open;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use redis::Script;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout};

use self::link::{DEADLINE, Link};
use self::mirror::{Marks, Own, Unread};
pub use self::open::OpenValkeyError;
use super::{Admission, Allowance, Claim, Claimed, LOST_KEPT, Store, StoreError, Ticket, Window};
use crate::id::{GoldenName, InstanceId, NodeName};
use crate::instance::{Instance, State, Transition};
use crate::node::watch::LATE_AFTER;
use crate::node::{Heard, Report};

/// How long a claim's ticket is good, in seconds; also how long it is tried to
/// take one back. A server that is away for longer is a matter for people.
const TICKET_SECONDS: u64 = 900;

/// How long a silent daemon keeps its name, in milliseconds. It speaks every
/// second; this is a long pause of its host.
const NAME_MILLIS: &str = "10000";

/// Every operation.
#[derive(Debug)]
struct Scripts {
    insert: Script,
    get: Script,
    update: Script,
    claim: Script,
    held: Script,
    disown: Script,
    remove: Script,
    has_ended: Script,
    write_again: Script,
    list: Script,
    own: Script,
    due: Script,
    counts: Script,
    admit: Script,
    forgive: Script,
    absolve: Script,
    announce: Script,
    beat: Script,
    nodes: Script,
    lose: Script,
    layout: Script,
    ping: Script,
}

macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(include_str!("scripts/lib.lua"), "\n", include_str!(concat!("scripts/", $file))))
    };
}

impl Scripts {
    fn new() -> Self {
        Self {
            insert: script!("insert.lua"),
            get: script!("get.lua"),
            update: script!("update.lua"),
            claim: script!("claim.lua"),
            held: script!("held.lua"),
            disown: script!("disown.lua"),
            remove: script!("remove.lua"),
            has_ended: script!("has_ended.lua"),
            write_again: script!("write_again.lua"),
            list: script!("list.lua"),
            own: script!("own.lua"),
            due: script!("due.lua"),
            counts: script!("counts.lua"),
            admit: script!("admit.lua"),
            forgive: script!("forgive.lua"),
            absolve: script!("absolve.lua"),
            announce: script!("announce.lua"),
            beat: script!("beat.lua"),
            nodes: script!("nodes.lua"),
            lose: script!("lose.lua"),
            layout: script!("layout.lua"),
            ping: script!("ping.lua"),
        }
    }
}

/// The store in a Valkey.
#[derive(Debug)]
pub struct ValkeyStore {
    node: NodeName,
    /// Tells this daemon from another one with the same node name.
    daemon: String,
    link: Arc<Link>,
    scripts: Arc<Scripts>,
    /// Held while they are read: each reading goes on where the last one ended.
    own: Mutex<Own>,
    /// As above.
    nodes: Mutex<mirror::Nodes>,
}

/// What is being done when the own records are read.
const READING_OWN: &str = "reading the own instances";

/// The same of the nodes' reports.
const READING_NODES: &str = "reading what nodes announce";

impl ValkeyStore {
    /// Reads the own records, or what has changed of them, and says that this daemon
    /// lives.
    async fn ask_own(&self, marks: &Marks) -> Result<Vec<String>, StoreError> {
        let args = [self.node.as_str(), &self.daemon, NAME_MILLIS, &marks.before, &marks.this];
        self.link.call(READING_OWN, &self.scripts.own, &args).await
    }

    fn read(&self, json: &str) -> Result<Instance, StoreError> {
        Instance::from_record(json.as_bytes(), &self.node)
            .map_err(|error| StoreError::Record { key: self.key_of(json), source: Box::new(error) })
    }

    fn read_all(&self, all: Vec<String>) -> Result<Vec<Instance>, StoreError> {
        all.iter().map(|json| self.read(json)).collect()
    }

    /// The id in a record that cannot be read.
    fn key_of(&self, json: &str) -> String {
        let id = serde_json::from_str::<serde_json::Value>(json)
            .ok()
            .and_then(|v| v["id"].as_str().map(str::to_owned));
        id.unwrap_or_else(|| "an instance without an id".into())
    }

    /// Runs a script on a whole record; answers its first word and the second.
    async fn put(
        &self,
        doing: &'static str,
        script: &Script,
        instance: &Instance,
        more: &[&str],
    ) -> Result<(String, u64), StoreError> {
        let json = record(instance)?;
        let (created, expires) =
            (floor(instance.created_at), instance.expires_at.map(ceil).unwrap_or_default());
        let mut args = vec![json.as_str(), &created, &expires];
        args.extend(more);
        let mut answer = self.link.call(doing, script, &args).await?.into_iter();
        let word = answer.next().unwrap_or_default();
        let number = answer.next().and_then(|text| text.parse().ok()).unwrap_or_default();
        Ok((word, number))
    }

    /// Takes back a claim that may have been done, once the server answers.
    fn disown_later(&self, ticket: String) {
        let (link, scripts) = (Arc::clone(&self.link), Arc::clone(&self.scripts));
        tokio::spawn(async move {
            let give_up = tokio::time::Instant::now() + Duration::from_secs(TICKET_SECONDS);
            // From then on the claim itself is too late, should it still be on its way.
            tokio::time::sleep(DEADLINE).await;
            while tokio::time::Instant::now() < give_up {
                match link.call("taking back a claim", &scripts.disown, &[&ticket]).await {
                    Ok(taken) => {
                        if let Some(id) = taken.first() {
                            tracing::info!(instance_id = %id, "instance taken back, its client was told no");
                        }
                        return;
                    }
                    Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
                }
            }
        });
    }
}

#[async_trait]
impl Store for ValkeyStore {
    fn node(&self) -> &NodeName {
        &self.node
    }

    async fn insert(&self, mut instance: Instance) -> Result<Instance, StoreError> {
        instance.generation = 1;
        let (word, _) = self.put("adding an instance", &self.scripts.insert, &instance, &[]).await?;
        if word == "ok" { Ok(instance) } else { Err(StoreError::Exists { id: instance.id }) }
    }

    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, StoreError> {
        let found = self.link.call("reading an instance", &self.scripts.get, &[id.as_str()]).await?;
        found.first().map(|json| self.read(json)).transpose()
    }

    async fn update(&self, mut instance: Instance) -> Result<Instance, StoreError> {
        const DOING: &str = "changing an instance";
        let expected = instance.generation;
        instance.generation += 1;
        let from = states_before(instance.state);
        let json = record(&instance)?;
        let (created, expires) =
            (floor(instance.created_at), instance.expires_at.map(ceil).unwrap_or_default());
        let args = [json.as_str(), &created, &expires, &from];
        let answer = self.link.call(DOING, &self.scripts.update, &args).await?;
        let id = instance.id.clone();
        match answer.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["ok"] => Ok(instance),
            ["unknown"] => Err(StoreError::Unknown { id }),
            ["stale", found] => {
                Err(StoreError::Stale { id, expected, found: found.parse().unwrap_or_default() })
            }
            ["denied", from] => Err(StoreError::Denied { id, from: state(from), to: instance.state }),
            _ => Err(not_understood(DOING, &answer)),
        }
    }

    async fn claim(&self, claim: Claim) -> Result<Claimed, StoreError> {
        const DOING: &str = "claiming an instance";
        let ticket = InstanceId::random().to_string();
        let key = claim.idempotency_key.unwrap_or_default();
        let args = [
            claim.golden.as_str(),
            self.node.as_str(),
            &ticket,
            &key,
            &floor(claim.now),
            &claim.now.to_string(),
            &claim.expires_at.to_string(),
            &ceil(claim.expires_at),
            &TICKET_SECONDS.to_string(),
        ];
        let answer = self.link.call(DOING, &self.scripts.claim, &args).await;
        if matches!(answer, Err(StoreError::Unavailable { .. })) && key.is_empty() {
            self.disown_later(ticket);
        }
        let answer = answer?;
        match answer.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["new", json] => Ok(Claimed::New(self.read(json)?)),
            ["again", json] => Ok(Claimed::Again(self.read(json)?)),
            ["empty"] => Ok(Claimed::Empty),
            _ => Err(not_understood(DOING, &answer)),
        }
    }

    async fn held(&self, key: &str, now: Timestamp) -> Result<Option<Instance>, StoreError> {
        let found = self.link.call("looking for a key's instance", &self.scripts.held, &[key]).await?;
        let found = found.first().map(|json| self.read(json)).transpose()?;
        Ok(found.filter(|instance| instance.is_held_under(key, now)))
    }

    async fn remove(&self, id: &InstanceId) -> Result<(), StoreError> {
        self.link.call("forgetting an instance", &self.scripts.remove, &[id.as_str()]).await.map(drop)
    }

    async fn has_ended(&self, id: &InstanceId) -> Result<bool, StoreError> {
        let doing = "looking for an instance that has ended";
        Ok(!self.link.call(doing, &self.scripts.has_ended, &[id.as_str()]).await?.is_empty())
    }

    async fn write_again(&self, instance: Instance) -> Result<(), StoreError> {
        let (word, found) =
            self.put("writing an instance again", &self.scripts.write_again, &instance, &[]).await?;
        match word.as_str() {
            "ok" => Ok(()),
            _ => Err(StoreError::Stale { id: instance.id, expected: instance.generation, found }),
        }
    }

    async fn list(&self) -> Result<Vec<Arc<Instance>>, StoreError> {
        let all = self.link.call("listing instances", &self.scripts.list, &[]).await?;
        Ok(self.read_all(all)?.into_iter().map(Arc::new).collect())
    }

    async fn own(&self) -> Result<Vec<Arc<Instance>>, StoreError> {
        let mut own = turn(READING_OWN, &self.own).await?;
        let marks = own.begin(Instant::now());
        let answer = self.ask_own(&marks).await?;
        match own.end(&answer, Instant::now(), |json| self.read(json)) {
            Ok(()) => Ok(own.records()),
            Err(Unread::Record(error)) => Err(error),
            Err(Unread::Form) => Err(not_understood(READING_OWN, &answer)),
        }
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Instance>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX).to_string();
        let args = [self.node.as_str(), &floor(now), &limit];
        self.read_all(self.link.call("looking for due instances", &self.scripts.due, &args).await?)
    }

    async fn counts(&self, golden: &GoldenName) -> Result<BTreeMap<State, usize>, StoreError> {
        let args = [golden.as_str(), self.node.as_str()];
        let answer = self.link.call("counting instances", &self.scripts.counts, &args).await?;
        let pair = |pair: &[String]| Some((state(pair.first()?), pair.get(1)?.parse().ok()?));
        Ok(answer.chunks(2).filter_map(pair).collect())
    }

    async fn admit(&self, client: &str, windows: &[Window], now: Timestamp) -> Result<Admission, StoreError> {
        const DOING: &str = "counting an acquire";
        let ticket = InstanceId::random().to_string();
        if windows.is_empty() {
            return Ok(Admission::Admitted { ticket: Ticket(ticket), allowances: Vec::new() });
        }
        let lengths = windows.iter().map(|window| window.length.as_micros().to_string());
        let limits = windows.iter().map(|window| window.limit.to_string());
        let pairs: Vec<String> = lengths.zip(limits).flat_map(|(length, limit)| [length, limit]).collect();
        let now = floor(now);
        let mut args = vec![client, &ticket, &now];
        args.extend(pairs.iter().map(String::as_str));
        let answer = self.link.call(DOING, &self.scripts.admit, &args).await?;
        let numbers: Vec<i64> = answer.iter().skip(1).filter_map(|text| text.parse().ok()).collect();
        let [retry_after, left @ ..] = numbers.as_slice() else { return Err(not_understood(DOING, &answer)) };
        let allowance = |(window, left): (&Window, &[i64])| Allowance {
            limit: window.limit,
            remaining: u32::try_from(left[0]).unwrap_or_default(),
            resets_in: SignedDuration::from_micros(left[1]),
        };
        let allowances = windows.iter().zip(left.chunks_exact(2)).map(allowance).collect();
        match answer[0].as_str() {
            "admitted" => Ok(Admission::Admitted { ticket: Ticket(ticket), allowances }),
            _ => {
                Ok(Admission::Refused { retry_after: SignedDuration::from_micros(*retry_after), allowances })
            }
        }
    }

    async fn absolve(&self, client: &str) -> Result<(), StoreError> {
        self.link.call("clearing a client's count", &self.scripts.absolve, &[client]).await.map(drop)
    }

    async fn forgive(&self, client: &str, ticket: &Ticket) -> Result<(), StoreError> {
        self.link.call("taking back an acquire", &self.scripts.forgive, &[client, &ticket.0]).await.map(drop)
    }

    async fn announce(&self, report: Option<&Report>, beat: &str) -> Result<(), StoreError> {
        let json = report.map(serde_json::to_string).transpose();
        let json =
            json.map_err(|error| StoreError::Record { key: self.node.to_string(), source: Box::new(error) })?;
        let closed = if report.is_some_and(Report::is_closed) { "closed" } else { "open" };
        let args = [self.node.as_str(), json.as_deref().unwrap_or_default(), closed, beat];
        self.link.call("announcing this node", &self.scripts.announce, &args).await.map(drop)
    }

    async fn beat(&self, beat: &str) -> Result<bool, StoreError> {
        let args = [self.node.as_str(), beat];
        let answer = self.link.call("saying that this node is there", &self.scripts.beat, &args).await?;
        Ok(answer.first().is_some_and(|word| word == "ok"))
    }

    async fn nodes(&self) -> Result<Vec<Heard>, StoreError> {
        let mut known = turn(READING_NODES, &self.nodes).await?;
        let late = LATE_AFTER.as_micros().to_string();
        loop {
            let since = known.since(Instant::now()).to_owned();
            let answer = self.link.call(READING_NODES, &self.scripts.nodes, &[&since, &late]).await?;
            match known.take(&answer, Instant::now()) {
                Ok(Some(heard)) => return Ok(heard),
                Ok(None) => {}
                Err(_) => return Err(not_understood(READING_NODES, &answer)),
            }
        }
    }

    async fn lose(
        &self,
        node: &NodeName,
        beat: &str,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Instance>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX).to_string();
        let kept = LOST_KEPT.as_micros().to_string();
        let args = [node.as_str(), beat, &now.to_string(), &floor(now), &limit, &kept];
        self.read_all(self.link.call("marking a lost node's instances", &self.scripts.lose, &args).await?)
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.link.call("writing to the store", &self.scripts.ping, &[]).await.map(drop)
    }
}

/// Waits until nobody else reads the same; no longer than for the server.
async fn turn<'a, T>(doing: &'static str, of: &'a Mutex<T>) -> Result<MutexGuard<'a, T>, StoreError> {
    let turn = timeout(DEADLINE, of.lock()).await;
    turn.map_err(|error| StoreError::Unavailable { doing, source: Box::new(error) })
}

fn record(instance: &Instance) -> Result<String, StoreError> {
    instance
        .to_record()
        .map_err(|error| StoreError::Record { key: instance.id.to_string(), source: Box::new(error) })
}

/// The states from which a record may come to `next`, as update.lua wants them.
fn states_before(next: State) -> String {
    let may = |from: &State| from.try_transition(next) != Transition::Denied;
    State::ALL.into_iter().filter(may).fold(String::from(","), |all, from| all + from.as_str() + ",")
}

/// A state from its word; the scripts write no other.
fn state(word: &str) -> State {
    State::ALL.into_iter().find(|state| state.as_str() == word).unwrap_or(State::Failed)
}

fn not_understood(doing: &'static str, answer: &[String]) -> StoreError {
    let word: String = answer.first().map(|word| word.chars().take(40).collect()).unwrap_or_default();
    StoreError::Unavailable { doing, source: format!("the answer {word:?} is not understood").into() }
}

/// Microseconds since 1970.
fn floor(time: Timestamp) -> String {
    time.as_nanosecond().div_euclid(1000).to_string()
}

/// The same, never before the time itself: a deadline is not due too early.
fn ceil(time: Timestamp) -> String {
    (-(-time.as_nanosecond()).div_euclid(1000)).to_string()
}
