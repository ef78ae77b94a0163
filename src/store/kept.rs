//! A copy of the own records in files of this host, beside a store that is not on
//! it: `STATE_DIR/records/<instance id>.json`.
//!
//! A daemon that starts on an emptied store knows from them what lives here. The
//! copies follow the store's answers; one thread writes them, so no claim waits
//! for a disk. They need not outlive the host: its instances do not either.
//!
//! Invariants: a copy goes when its record is removed by this daemon, and never
//! because the store has none; a copy that is not whole is left out.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use async_trait::async_trait;
use jiff::Timestamp;

use super::{Admission, Claim, Claimed, Store, StoreError, Ticket, Window};
use crate::error::Chain;
use crate::id::{GoldenName, InstanceId, NodeName};
use crate::instance::{Instance, RecordError, State};
use crate::node::{Heard, Report};
use crate::sealed;

/// What became of records.
enum Change {
    /// In one message however many: a look at all own records shall not stay for each.
    Present(Vec<Arc<Instance>>),
    Removed(InstanceId),
}

/// A store and the copies of its own records.
#[derive(Debug)]
pub struct KeptStore {
    inner: Arc<dyn Store>,
    /// Taken at drop, which is what ends the writer.
    changes: Option<mpsc::Sender<Change>>,
    writer: Option<JoinHandle<()>>,
}

impl KeptStore {
    /// Puts copies beside a store; answers also those that are there.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub fn beside(inner: Arc<dyn Store>, dir: PathBuf) -> io::Result<(Self, Vec<Instance>)> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let found = read_all(&dir, inner.node())?;
        let (sender, receiver) = mpsc::channel();
        let writer =
            std::thread::Builder::new().name("records".into()).spawn(move || keep(&dir, &receiver))?;
        Ok((Self { inner, changes: Some(sender), writer: Some(writer) }, found))
    }

    fn tell(&self, change: Change) {
        if let Some(changes) = &self.changes {
            // The writer ends only with the sender.
            let _ = changes.send(change);
        }
    }

    fn present(&self, record: Arc<Instance>) {
        if record.node == *self.inner.node() {
            self.tell(Change::Present(vec![record]));
        }
    }
}

impl Drop for KeptStore {
    fn drop(&mut self) {
        drop(self.changes.take());
        if let Some(writer) = self.writer.take() {
            // Whatever was told is written.
            let _ = writer.join();
        }
    }
}

fn read_all(dir: &Path, node: &NodeName) -> io::Result<Vec<Instance>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        match fs::read(&path).map(|bytes| read(&bytes, node)) {
            Ok(Ok(record)) if record.node == *node => found.push(record),
            // Another node's: the daemon had another name. Its records are not ours to judge.
            Ok(Ok(_)) => {}
            // Damaged, or of a later program: its instance is what the store says.
            Ok(Err(error)) => {
                tracing::warn!(path = %path.display(), error = %Chain(&error), "the copy of a record is no use");
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), error = %error, "the copy of a record cannot be read");
            }
        }
    }
    Ok(found)
}

fn read(bytes: &[u8], node: &NodeName) -> Result<Instance, RecordError> {
    let record: serde_json::Value = sealed::open(bytes).map_err(RecordError::Form)?;
    Instance::from_record(record.to_string().as_bytes(), node)
}

/// The writer: the latest copy of each record, until nobody tells any more.
fn keep(dir: &Path, changes: &mpsc::Receiver<Change>) {
    let mut written: HashMap<InstanceId, u64> = HashMap::new();
    let mut failing = false;
    while let Ok(change) = changes.recv() {
        let done = match change {
            Change::Present(records) => {
                let kept = records.iter().map(|record| keep_later(dir, record, &mut written));
                // All of them, whatever becomes of one.
                kept.fold(Ok(()), io::Result::and)
            }
            Change::Removed(id) => {
                written.remove(&id);
                match fs::remove_file(path_of(dir, &id)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                }
            }
        };
        match done {
            Err(error) if !failing => {
                tracing::warn!(dir = %dir.display(), error = %error, "copies of records are not kept for now");
                failing = true;
            }
            Err(_) => {}
            Ok(()) => failing = false,
        }
    }
}

/// Writes a record, but for one that is written already, or was later.
fn keep_later(dir: &Path, record: &Instance, written: &mut HashMap<InstanceId, u64>) -> io::Result<()> {
    if written.get(&record.id).is_some_and(|generation| *generation >= record.generation) {
        return Ok(());
    }
    write(dir, record)?;
    written.insert(record.id.clone(), record.generation);
    Ok(())
}

fn path_of(dir: &Path, id: &InstanceId) -> PathBuf {
    dir.join(format!("{id}.json"))
}

/// By rename: whoever dies meanwhile leaves the former copy.
fn write(dir: &Path, record: &Instance) -> io::Result<()> {
    let new = dir.join("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(sealed::seal(record)?.to_string().as_bytes())?;
    fs::rename(&new, path_of(dir, &record.id))
}

#[async_trait]
impl Store for KeptStore {
    fn node(&self) -> &NodeName {
        self.inner.node()
    }

    async fn insert(&self, instance: Instance) -> Result<Instance, StoreError> {
        let record = self.inner.insert(instance).await?;
        self.present(Arc::new(record.clone()));
        Ok(record)
    }

    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, StoreError> {
        self.inner.get(id).await
    }

    async fn update(&self, instance: Instance) -> Result<Instance, StoreError> {
        let record = self.inner.update(instance).await?;
        self.present(Arc::new(record.clone()));
        Ok(record)
    }

    async fn claim(&self, claim: Claim) -> Result<Claimed, StoreError> {
        let claimed = self.inner.claim(claim).await?;
        if let Claimed::New(record) = &claimed {
            self.present(Arc::new(record.clone()));
        }
        Ok(claimed)
    }

    async fn held(&self, key: &str, now: Timestamp) -> Result<Option<Instance>, StoreError> {
        self.inner.held(key, now).await
    }

    async fn remove(&self, id: &InstanceId) -> Result<(), StoreError> {
        self.inner.remove(id).await?;
        self.tell(Change::Removed(id.clone()));
        Ok(())
    }

    async fn write_again(&self, instance: Instance) -> Result<(), StoreError> {
        self.inner.write_again(instance.clone()).await?;
        self.present(Arc::new(instance));
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Arc<Instance>>, StoreError> {
        self.inner.list().await
    }

    /// What other daemons changed is copied here.
    async fn own(&self) -> Result<Vec<Arc<Instance>>, StoreError> {
        let own = self.inner.own().await?;
        self.tell(Change::Present(own.clone()));
        Ok(own)
    }

    async fn due(&self, now: Timestamp, limit: usize) -> Result<Vec<Instance>, StoreError> {
        self.inner.due(now, limit).await
    }

    async fn counts(&self, golden: &GoldenName) -> Result<BTreeMap<State, usize>, StoreError> {
        self.inner.counts(golden).await
    }

    async fn admit(&self, client: &str, windows: &[Window], now: Timestamp) -> Result<Admission, StoreError> {
        self.inner.admit(client, windows, now).await
    }

    async fn forgive(&self, client: &str, ticket: &Ticket) -> Result<(), StoreError> {
        self.inner.forgive(client, ticket).await
    }

    async fn absolve(&self, client: &str) -> Result<(), StoreError> {
        self.inner.absolve(client).await
    }

    async fn has_ended(&self, id: &InstanceId) -> Result<bool, StoreError> {
        self.inner.has_ended(id).await
    }

    async fn announce(&self, report: Option<&Report>, beat: &str) -> Result<(), StoreError> {
        self.inner.announce(report, beat).await
    }

    async fn beat(&self, beat: &str) -> Result<bool, StoreError> {
        self.inner.beat(beat).await
    }

    async fn nodes(&self) -> Result<Vec<Heard>, StoreError> {
        self.inner.nodes().await
    }

    async fn lose(
        &self,
        node: &NodeName,
        beat: &str,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Instance>, StoreError> {
        self.inner.lose(node, beat, now, limit).await
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.inner.ping().await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::store::conformance::{claim, golden, instance, node};
    use crate::store::embedded::EmbeddedStore;

    fn beside(dir: &Path) -> (KeptStore, Vec<Instance>) {
        let inner = EmbeddedStore::open(&dir.join("store"), &node("here")).unwrap();
        KeptStore::beside(Arc::new(inner), dir.join("records")).unwrap()
    }

    #[tokio::test]
    async fn the_copies_are_what_the_store_last_said() {
        let dir = tempfile::tempdir().unwrap();
        let (store, found) = beside(dir.path());
        assert!(found.is_empty());
        let held = store.insert(instance(&golden("shop"), State::Ready, 0)).await.unwrap();
        let gone = store.insert(instance(&golden("shop"), State::Ready, 1)).await.unwrap();
        store.claim(claim(&golden("shop"), None)).await.unwrap();
        store.remove(&gone.id).await.unwrap();
        store.own().await.unwrap();
        drop(store);
        let copy = dir.path().join("records").join(format!("{}.json", held.id));
        assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600, "it has a password");
        fs::write(dir.path().join("records/half.json"), "{\"version\":").unwrap();
        fs::remove_file(dir.path().join("store")).unwrap();
        let (_store, found) = beside(dir.path());
        assert_eq!(
            found.iter().map(|one| (&one.id, one.state)).collect::<Vec<_>>(),
            [(&held.id, State::Assigned)]
        );
    }

    #[tokio::test]
    async fn a_damaged_copy_is_left_out_and_never_another_record() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = beside(dir.path());
        let held = store.insert(instance(&golden("shop"), State::Ready, 0)).await.unwrap();
        store.claim(claim(&golden("shop"), Some("a key"))).await.unwrap();
        drop(store);
        let records = dir.path().join("records");
        let read = || {
            let found = read_all(&records, &node("here")).unwrap();
            found.first().map(|record| record.to_record().unwrap())
        };
        sealed::damaged_is_refused_or_the_same(&path_of(&records, &held.id), read);
    }

    #[tokio::test]
    async fn a_later_programs_copy_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("records")).unwrap();
        let path = path_of(&dir.path().join("records"), &InstanceId::random());
        fs::write(&path, "{\"version\": 99}").unwrap();
        let (_store, found) = beside(dir.path());
        assert!(found.is_empty());
        assert_eq!(fs::read_to_string(path).unwrap(), "{\"version\": 99}");
    }
}
