//! The store as one file of this host: redb below, everything in memory above.
//!
//! One thread, the writer, owns the [`table`] and the [`mod@file`]. Callers send it
//! work over a channel. It takes what is queued, decides it in order in memory,
//! commits all changes in one durable transaction, and only then answers
//! (group commit): a durable commit takes about a millisecond, whether it holds
//! one claim or fifty.
//!
//! ```text
//! open: decide, decide, .. -> commit ok     -> answer all
//!                          -> commit failed -> take all back, answer all "unavailable",
//!                                              open the file anew before the next batch
//! ```
//!
//! Invariants: nobody is told of a change that is not on the disk; the records
//! never differ from the file between two batches. The [`admissions`] may be
//! ahead of it until the next commit, or the closing.

mod admissions;
mod file;
#[cfg(test)]
mod power;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::oneshot;

use self::admissions::Admissions;
pub use self::file::OpenStoreError;
use self::file::{Opener, StoreFile, opener};
use self::table::Table;
use super::{Admission, Claim, Claimed, Store, StoreError, Ticket, Window};
use crate::error::{Chain, ErrorKind};
use crate::id::{GoldenName, InstanceId, NodeName};
use crate::instance::{Instance, State};

/// How much is decided before a commit. It bounds what one failed commit takes
/// back and how long the first of a batch waits for the last.
const BATCH_MAX: usize = 256;

/// How many records a list takes in one piece of work: claims wait for no more of it.
const PAGE: usize = 256;

/// Why a batch was not committed, shared by all its callers.
type CommitFailure = Arc<dyn std::error::Error + Send + Sync>;

/// Decides in memory and answers a closure that tells the caller.
type Work = Box<dyn FnOnce(&mut Table) -> Reply + Send>;

/// Tells the caller what became of it, once the batch's fate is known.
type Reply = Box<dyn FnOnce(Result<(), &CommitFailure>) + Send>;

/// The embedded store; dropping it ends its thread and closes the file.
#[derive(Debug)]
pub struct EmbeddedStore {
    node: NodeName,
    /// Taken at drop, which is what ends the writer.
    work: Option<mpsc::Sender<Work>>,
    writer: Option<JoinHandle<()>>,
}

impl EmbeddedStore {
    /// Opens the file, or creates it with mode 0600, and reads all of it; every
    /// record in it becomes `node`'s own.
    ///
    /// Blocks on the disk; called once, at the start.
    ///
    /// # Errors
    /// [`OpenStoreError`]; a damaged file is never overwritten.
    pub fn open(path: &Path, node: &NodeName) -> Result<Self, OpenStoreError> {
        file::ensure(path)?;
        Self::start(opener(path.to_owned()), path, node)
    }

    fn start(opener: Opener, path: &Path, node: &NodeName) -> Result<Self, OpenStoreError> {
        let (file, found) = StoreFile::open(&opener, path, node)?;
        let table = Table::of(found.records, Admissions::of(found.admissions));
        let writer = Writer { opener, path: path.to_owned(), node: node.clone(), file: Some(file), table };
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(&receiver))
            .map_err(|source| OpenStoreError::Io { path: path.to_owned(), source })?;
        Ok(Self { node: node.clone(), work: Some(sender), writer: Some(thread) })
    }

    /// Has the writer run `decide` and waits until its batch is committed.
    async fn run<T, F>(&self, doing: &'static str, decide: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Table) -> Result<T, StoreError> + Send + 'static,
    {
        let gone = || StoreError::Unavailable { doing, source: "the store's writer has ended".into() };
        let (sender, receiver) = oneshot::channel();
        let work: Work = Box::new(move |table| {
            let decided = decide(table);
            Box::new(move |committed| {
                let answer = match committed {
                    Ok(()) => decided,
                    Err(failure) => Err(refused(doing, failure)),
                };
                // A caller that no longer waits is no error.
                let _ = sender.send(answer);
            })
        });
        self.work.as_ref().ok_or_else(gone)?.send(work).map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())?
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        drop(self.work.take());
        if let Some(writer) = self.writer.take() {
            // At most one commit long; after it the file may be opened again.
            let _ = writer.join();
        }
    }
}

fn refused(doing: &'static str, failure: &CommitFailure) -> StoreError {
    let source = Box::new(Arc::clone(failure));
    if is_full(failure) {
        StoreError::Full { doing, source }
    } else {
        StoreError::Unavailable { doing, source }
    }
}

/// Whether a full disk is behind it, at the commit or at opening anew.
fn is_full(failure: &CommitFailure) -> bool {
    let io = match failure.downcast_ref::<redb::Error>() {
        Some(redb::Error::Io(error)) => Some(error),
        _ => match failure.downcast_ref::<OpenStoreError>() {
            Some(OpenStoreError::Io { source, .. }) => Some(source),
            _ => None,
        },
    };
    io.is_some_and(|error| crate::error::kind_of_io(error) == ErrorKind::NoSpace)
}

/// What the thread owns.
struct Writer {
    opener: Opener,
    path: PathBuf,
    node: NodeName,
    /// None after a failed commit, until the file could be opened again.
    file: Option<StoreFile>,
    table: Table,
}

impl Writer {
    fn run(mut self, queue: &mpsc::Receiver<Work>) {
        while let Ok(first) = queue.recv() {
            let reopened = self.ensure_open();
            let mut replies = vec![first(&mut self.table)];
            while replies.len() < BATCH_MAX
                && let Ok(next) = queue.try_recv()
            {
                replies.push(next(&mut self.table));
            }
            let committed = reopened.and_then(|()| self.commit_batch());
            match &committed {
                Ok(()) => self.table.keep(),
                Err(_) if self.table.is_dirty() => self.table.take_back(),
                // Nothing but reads, of a state that is on the disk.
                Err(_) => {
                    replies.into_iter().for_each(|reply| reply(Ok(())));
                    continue;
                }
            }
            for reply in replies {
                reply(committed.as_ref().map(|&()| ()));
            }
        }
        if let Err(failure) = self.commit_rest() {
            tracing::warn!(error = %Chain(&*failure), "the last admissions are not written down");
        }
    }

    fn commit_batch(&mut self) -> Result<(), CommitFailure> {
        if self.table.is_dirty() { self.commit() } else { Ok(()) }
    }

    /// At the end: what no commit has taken along.
    fn commit_rest(&mut self) -> Result<(), CommitFailure> {
        if self.table.admissions.unwritten().is_empty() { Ok(()) } else { self.commit() }
    }

    fn commit(&mut self) -> Result<(), CommitFailure> {
        let Some(file) = &self.file else {
            return Err(Arc::new(std::io::Error::other("the store's file is not open")));
        };
        file.commit(&self.table.changes(), self.table.admissions.unwritten()).map_err(|error| {
            self.file = None;
            let failure: CommitFailure = Arc::new(error);
            failure
        })?;
        self.table.admissions.written();
        Ok(())
    }

    /// After a failure the file is the truth: whether the commit that failed
    /// reached it or not, the records are read from it again. The admissions
    /// are not: here they are ahead of it.
    fn ensure_open(&mut self) -> Result<(), CommitFailure> {
        if self.file.is_some() {
            return Ok(());
        }
        match StoreFile::open(&self.opener, &self.path, &self.node) {
            Ok((file, found)) => {
                self.file = Some(file);
                let admissions = std::mem::take(&mut self.table.admissions);
                self.table = Table::of(found.records, admissions);
                Ok(())
            }
            Err(error) => {
                let failure: CommitFailure = Arc::new(error);
                Err(failure)
            }
        }
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    fn node(&self) -> &NodeName {
        &self.node
    }

    async fn insert(&self, instance: Instance) -> Result<Instance, StoreError> {
        self.run("adding an instance", move |table| table.insert(instance)).await
    }

    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, StoreError> {
        let id = id.clone();
        self.run("reading an instance", move |table| Ok(table.get(&id))).await
    }

    async fn update(&self, instance: Instance) -> Result<Instance, StoreError> {
        self.run("changing an instance", move |table| table.update(instance)).await
    }

    async fn claim(&self, claim: Claim) -> Result<Claimed, StoreError> {
        self.run("claiming an instance", move |table| Ok(table.claim(claim))).await
    }

    async fn held(&self, key: &str, now: Timestamp) -> Result<Option<Instance>, StoreError> {
        let key = key.to_owned();
        self.run("looking for a key's instance", move |table| Ok(table.held(&key, now))).await
    }

    async fn remove(&self, id: &InstanceId) -> Result<(), StoreError> {
        let id = id.clone();
        self.run("forgetting an instance", move |table| {
            table.remove(&id);
            Ok(())
        })
        .await
    }

    async fn write_again(&self, instance: Instance) -> Result<(), StoreError> {
        self.run("writing an instance again", move |table| table.write_again(instance)).await
    }

    async fn list(&self) -> Result<Vec<Arc<Instance>>, StoreError> {
        let mut all: Vec<Arc<Instance>> = Vec::new();
        loop {
            let after = all.last().map(|last| last.id.clone());
            let read = move |table: &mut Table| Ok(table.page(after.as_ref(), PAGE));
            let page = self.run("listing instances", read).await?;
            let is_last = page.len() < PAGE;
            all.extend(page);
            if is_last {
                return Ok(all);
            }
        }
    }

    async fn own(&self) -> Result<Vec<Arc<Instance>>, StoreError> {
        self.list().await
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Instance>, StoreError> {
        self.run("looking for due instances", move |table| Ok(table.due(now, limit))).await
    }

    async fn counts(&self, golden: &GoldenName) -> Result<BTreeMap<State, usize>, StoreError> {
        let golden = golden.clone();
        self.run("counting instances", move |table| Ok(table.counts(&golden))).await
    }

    async fn admit(&self, client: &str, windows: &[Window], now: Timestamp) -> Result<Admission, StoreError> {
        let (client, windows, number) = (client.to_owned(), windows.to_vec(), rand::random());
        self.run("admitting a client", move |table| {
            Ok(table.admissions.admit(&client, &windows, now, number))
        })
        .await
    }

    async fn forgive(&self, client: &str, ticket: &Ticket) -> Result<(), StoreError> {
        let (client, ticket) = (client.to_owned(), ticket.clone());
        self.run("forgiving a client", move |table| {
            table.admissions.forgive(&client, &ticket);
            Ok(())
        })
        .await
    }

    async fn absolve(&self, client: &str) -> Result<(), StoreError> {
        let client = client.to_owned();
        self.run("clearing a client's count", move |table| {
            table.admissions.absolve(&client);
            Ok(())
        })
        .await
    }

    /// Answers after an empty durable commit: the disk takes writes.
    async fn ping(&self) -> Result<(), StoreError> {
        self.run("writing to the disk", |table| {
            table.want_proof();
            Ok(())
        })
        .await
    }
}
