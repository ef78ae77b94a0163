//! The embedded store against the suite, a model, failing disks and kill -9.

use std::io;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use redb::backends::FileBackend;
use redb::{Builder, StorageBackend};

use super::*;
use crate::store::conformance::{self, Fixture, at, claim, golden, instance, node};
use crate::store::metered::MeteredStore;

struct Files(tempfile::TempDir);

impl Files {
    fn path(&self) -> PathBuf {
        self.0.path().join("store.redb")
    }
}

#[async_trait]
impl Fixture for Files {
    async fn fresh(&self) -> Arc<dyn Store> {
        let _ = std::fs::remove_file(self.path());
        Arc::new(EmbeddedStore::open(&self.path(), &node("here")).unwrap())
    }

    async fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        drop(store);
        Arc::new(EmbeddedStore::open(&self.path(), &node("here")).unwrap())
    }
}

/// As [`Files`], but the new daemon finds the file as it was at the instant the
/// old one was killed: still open, never closed.
struct Killed(tempfile::TempDir);

#[async_trait]
impl Fixture for Killed {
    async fn fresh(&self) -> Arc<dyn Store> {
        let path = self.0.path().join(InstanceId::random().as_str());
        Arc::new(EmbeddedStore::open(&path, &node("here")).unwrap())
    }

    async fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        let newest = std::fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .max_by_key(|entry| entry.metadata().unwrap().modified().unwrap())
            .unwrap()
            .path();
        let copy = self.0.path().join(InstanceId::random().as_str());
        std::fs::copy(&newest, &copy).unwrap();
        drop(store);
        Arc::new(EmbeddedStore::open(&copy, &node("here")).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_store_conforms() {
    conformance::suite(&Files(tempfile::tempdir().unwrap())).await;
}

/// As [`Files`], with a meter around.
struct Metered(Files);

#[async_trait]
impl Fixture for Metered {
    async fn fresh(&self) -> Arc<dyn Store> {
        Arc::new(MeteredStore::new(self.0.fresh().await))
    }

    async fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        Arc::new(MeteredStore::new(self.0.reopen(store).await))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_metered_store_conforms_as_well() {
    conformance::suite(&Metered(Files(tempfile::tempdir().unwrap()))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_there_after_a_kill() {
    conformance::suite(&Killed(tempfile::tempdir().unwrap())).await;
}

const fn window(seconds: i64, limit: u32) -> Window {
    Window { length: jiff::SignedDuration::from_secs(seconds), limit }
}

#[tokio::test]
async fn a_closing_store_writes_the_last_admissions() {
    let files = Files(tempfile::tempdir().unwrap());
    let store = EmbeddedStore::open(&files.path(), &node("here")).unwrap();
    store.admit("one", &[window(60, 1)], at(0)).await.unwrap();
    drop(store);
    let store = EmbeddedStore::open(&files.path(), &node("here")).unwrap();
    let again = store.admit("one", &[window(60, 1)], at(30)).await.unwrap();
    assert!(matches!(again, Admission::Refused { .. }), "{again:?}");
}

#[test]
fn clients_with_empty_windows_are_forgotten() {
    let mut log = Admissions::default();
    for client in 0..1000 {
        log.admit(&client.to_string(), &[window(10, 5), window(60, 5)], at(0), 0);
    }
    for number in 0..100 {
        log.admit("greedy", &[window(60, 5)], at(1), number);
    }
    assert_eq!(log.size(), (1001, 1005), "a client has as many entries as its limit");
    for round in 1..=5 {
        log.admit("late", &[window(60, 5)], at(60 + round), 0);
    }
    assert_eq!(log.size(), (1, 5), "all others' windows are empty");
    // Written never, so there is nothing to remove either.
    assert_eq!(log.unwritten().len(), 5);
}

#[test]
fn what_the_file_has_is_removed_from_it() {
    let mut log = Admissions::default();
    let Admission::Admitted { ticket, .. } = log.admit("one", &[window(60, 5)], at(0), 7) else {
        panic!("nothing is counted yet")
    };
    log.written();
    log.forgive("one", &ticket);
    assert_eq!(log.unwritten().values().collect::<Vec<_>>(), [&None]);
    assert_eq!(log.size(), (0, 0));
}

#[tokio::test]
async fn the_file_is_its_owners_alone() {
    let files = Files(tempfile::tempdir().unwrap());
    let _store = EmbeddedStore::open(&files.path(), &node("here")).unwrap();
    assert_eq!(std::fs::metadata(files.path()).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_second_opening_is_refused() {
    let files = Files(tempfile::tempdir().unwrap());
    let _store = EmbeddedStore::open(&files.path(), &node("here")).unwrap();
    let error = EmbeddedStore::open(&files.path(), &node("here")).unwrap_err();
    assert!(matches!(error, OpenStoreError::InUse { .. }), "{error}");
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_left_alone() {
    let files = Files(tempfile::tempdir().unwrap());
    std::fs::write(files.path(), b"something else entirely, and not a database at all").unwrap();
    let error = EmbeddedStore::open(&files.path(), &node("here")).unwrap_err();
    assert!(matches!(error, OpenStoreError::Damaged { .. }), "{error:?}");
    assert!(error.to_string().contains("is damaged"), "{error}");
    assert!(std::fs::read(files.path()).unwrap().starts_with(b"something else"), "it is not overwritten");
}

#[tokio::test]
async fn a_file_of_which_nothing_is_left_is_not_taken_for_a_new_one() {
    let files = Files(tempfile::tempdir().unwrap());
    std::fs::write(files.path(), b"").unwrap();
    let error = EmbeddedStore::open(&files.path(), &node("here")).unwrap_err();
    assert!(matches!(error, OpenStoreError::Damaged { .. }), "{error:?}");
    // A daemon that died as it began.
    std::fs::remove_file(files.path()).unwrap();
    std::fs::write(files.path().with_extension("new"), b"half").unwrap();
    EmbeddedStore::open(&files.path(), &node("here")).unwrap();
    assert!(!files.path().with_extension("new").try_exists().unwrap());
}

#[tokio::test]
async fn a_later_programs_record_is_refused() {
    let files = Files(tempfile::tempdir().unwrap());
    let store = EmbeddedStore::open(&files.path(), &node("here")).unwrap();
    let mut record = instance(&golden("shop"), State::Ready, 0);
    record.version = crate::instance::RECORD_VERSION + 1;
    store.insert(record).await.unwrap();
    drop(store);
    let error = EmbeddedStore::open(&files.path(), &node("here")).unwrap_err();
    assert!(matches!(error, OpenStoreError::TooNew { .. }), "{error}");
    assert!(error.to_string().contains("written by a later one"), "{error}");
}

/// A store's file with a record of each version, as redb wrote it then;
/// UPDATE_SAMPLES=1 writes one anew, for a new form of the file.
#[tokio::test]
async fn a_former_programs_file_is_read_and_used() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples/store-v1.redb.zst");
    let files = Files(tempfile::tempdir().unwrap());
    if std::env::var_os("UPDATE_SAMPLES").is_some() {
        file::ensure(&files.path()).unwrap();
        let store = StoreFile::open(&opener(files.path()), &files.path(), &node("here")).unwrap().0;
        for (id, record) in [
            ("4irtg5lio2z5", "tests/samples/records/v1.json"),
            ("4irtg5lio2z6", "tests/samples/records/v2.json"),
        ] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(record);
            let text = std::fs::read_to_string(path).unwrap().replace("4irtg5lio2z5", id);
            store.write_raw(id, text.as_bytes());
        }
        drop(store);
        let bytes = std::fs::read(files.path()).unwrap();
        std::fs::write(&sample, zstd::encode_all(&bytes[..], 19).unwrap()).unwrap();
    }
    let bytes = zstd::decode_all(std::fs::File::open(&sample).unwrap()).unwrap();
    std::fs::write(files.path(), bytes).unwrap();
    for generation in [3, 4] {
        let store = EmbeddedStore::open(&files.path(), &node("here")).unwrap();
        let all = store.list().await.unwrap();
        assert_eq!(all.len(), 2);
        for record in all {
            assert_eq!((record.version, record.generation), (crate::instance::RECORD_VERSION, generation));
            assert_eq!((record.node.as_str(), record.state), ("here", State::Assigned));
            store.update(Arc::unwrap_or_clone(record)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_an_io_error() {
    let error = EmbeddedStore::open(Path::new("/nonexistent/store.redb"), &node("here")).unwrap_err();
    assert!(matches!(error, OpenStoreError::Io { .. }), "{error:?}");
}

/// A disk that is full while `full` says so.
#[derive(Debug)]
struct Disk {
    file: FileBackend,
    full: Arc<AtomicBool>,
}

impl Disk {
    fn room(&self) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room()?;
        self.file.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.room()?;
        self.file.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room()?;
        self.file.write(offset, data)
    }
    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}

fn on_disk(path: &Path, full: &Arc<AtomicBool>) -> EmbeddedStore {
    let (file, full) = (path.to_owned(), Arc::clone(full));
    let opener: Opener = Box::new(move || {
        let file =
            std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&file);
        let file = FileBackend::new(file.map_err(|e| redb::DatabaseError::Storage(e.into()))?)?;
        Builder::new().create_with_backend(Disk { file, full: Arc::clone(&full) })
    });
    EmbeddedStore::start(opener, path, &node("here")).unwrap()
}

#[tokio::test]
async fn a_full_disk_is_told_and_changes_nothing() {
    let files = Files(tempfile::tempdir().unwrap());
    let full = Arc::new(AtomicBool::new(false));
    let store = on_disk(&files.path(), &full);
    let shop = golden("shop");
    let ready = store.insert(instance(&shop, State::Ready, 0)).await.unwrap();

    full.store(true, Ordering::SeqCst);
    let error = store.claim(claim(&shop, Some("a"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
    let error = store.insert(instance(&shop, State::Ready, 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
    assert!(store.ping().await.is_err(), "health sees it");
    let stored = store.get(&ready.id).await.expect("reads still work").unwrap();
    assert_eq!((stored.state, stored.generation), (State::Ready, 1), "nothing was claimed");

    let windows = [window(60, 1)];
    let admission = store.admit("one", &windows, at(0)).await.expect("an admission needs no disk");
    let Admission::Admitted { ticket, .. } = admission else { panic!("nothing is counted yet") };
    store.forgive("one", &ticket).await.expect("nor does forgiving");
    store.admit("one", &windows, at(0)).await.unwrap();

    full.store(false, Ordering::SeqCst);
    store.ping().await.expect("it recovers by itself");
    let again = store.admit("one", &windows, at(1)).await.unwrap();
    assert!(matches!(again, Admission::Refused { .. }), "opening anew loses no admission: {again:?}");
    assert_eq!(store.list().await.unwrap().len(), 1);
    let claimed = store.claim(claim(&shop, Some("a"))).await.unwrap();
    assert!(matches!(claimed, Claimed::New(ref it) if it.id == ready.id), "{claimed:?}");
}

#[tokio::test]
async fn a_file_cut_short_is_refused() {
    let files = Files(tempfile::tempdir().unwrap());
    let store = EmbeddedStore::open(&files.path(), &node("here")).unwrap();
    store.insert(instance(&golden("shop"), State::Ready, 0)).await.unwrap();
    drop(store);
    let file = std::fs::OpenOptions::new().write(true).open(files.path()).unwrap();
    // The header page stays, its first bytes do not.
    file.write_all_at(&[0_u8; 64], 0).unwrap();
    assert!(matches!(EmbeddedStore::open(&files.path(), &node("here")), Err(OpenStoreError::Damaged { .. })));
}

/// One step of a random history on a few instances.
#[derive(Debug, Clone)]
enum Step {
    Insert {
        second: i64,
    },
    Move {
        which: usize,
        to: State,
    },
    Claim {
        key: Option<u8>,
        now: i64,
    },
    Remove {
        which: usize,
    },
    /// The batch's commit fails.
    TakeBack(Vec<Step>),
}

fn flat_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0_i64..50).prop_map(|second| Step::Insert { second }),
        (any::<usize>(), proptest::sample::select(State::ALL.to_vec()))
            .prop_map(|(which, to)| Step::Move { which, to }),
        (proptest::option::of(0_u8..3), 0_i64..200).prop_map(|(key, now)| Step::Claim { key, now }),
        any::<usize>().prop_map(|which| Step::Remove { which }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => flat_step(),
        1 => proptest::collection::vec(flat_step(), 1..5).prop_map(Step::TakeBack),
    ]
}

fn run(table: &mut Table, step: &Step) {
    let ids: Vec<InstanceId> = {
        let mut all = table.page(None, usize::MAX);
        all.sort_by_key(|i| (i.created_at, i.id.clone()));
        all.into_iter().map(|i| i.id.clone()).collect()
    };
    match step {
        Step::Insert { second } => {
            table.insert(instance(&golden("shop"), State::Warming, *second)).unwrap();
        }
        Step::Move { which, to } if !ids.is_empty() => {
            let mut record = table.get(&ids[which % ids.len()]).unwrap();
            record.state = *to;
            let _ = table.update(record);
        }
        Step::Claim { key, now } => {
            let key = key.map(|key| key.to_string());
            let wanted = Claim {
                now: at(*now),
                expires_at: at(now + 60),
                idempotency_key: key.clone(),
                golden: golden("shop"),
            };
            // The model: a plain search through all records.
            let all = table.page(None, usize::MAX);
            let held = |i: &&Arc<Instance>| {
                key.is_some()
                    && i.idempotency_key == key
                    && matches!(i.state, State::Assigned | State::Hibernated)
                    && !i.is_due_at(at(*now))
            };
            let ready: Option<&Arc<Instance>> =
                all.iter().filter(|i| i.state == State::Ready).min_by_key(|i| (i.created_at, i.id.clone()));
            match table.claim(wanted) {
                Claimed::Again(got) => assert!(all.iter().filter(held).any(|i| i.id == got.id)),
                Claimed::New(got) => {
                    assert_eq!(Some(&got.id), ready.map(|i| &i.id));
                    assert_eq!(all.iter().filter(held).count(), 0, "a held key gets no second instance");
                }
                Claimed::Empty => assert!(ready.is_none()),
            }
        }
        Step::Remove { which } if !ids.is_empty() => table.remove(&ids[which % ids.len()]),
        Step::Move { .. } | Step::Remove { .. } => {}
        Step::TakeBack(steps) => {
            table.keep();
            let before = sorted(table);
            steps.iter().for_each(|step| run(table, step));
            table.take_back();
            assert_eq!(sorted(table), before, "a batch taken back leaves no trace");
        }
    }
}

fn sorted(table: &Table) -> Vec<String> {
    let mut all: Vec<String> =
        table.page(None, usize::MAX).iter().map(|i| serde_json::to_string(&**i).unwrap()).collect();
    all.sort();
    all
}

proptest! {
    #[test]
    fn the_indices_agree_with_the_records(steps in proptest::collection::vec(step(), 0..80)) {
        let mut table = Table::default();
        for step in &steps {
            run(&mut table, step);
            let all = table.page(None, usize::MAX);
            for state in State::ALL {
                let counted = table.counts(&golden("shop")).get(&state).copied().unwrap_or(0);
                prop_assert_eq!(counted, all.iter().filter(|i| i.state == state).count());
            }
            let mut due: Vec<_> = all
                .iter()
                .filter(|i| i.is_due_at(at(100)) && !i.state.is_final())
                .map(|i| (i.expires_at, i.id.clone()))
                .collect();
            due.sort();
            let told: Vec<_> = table.due(at(100), usize::MAX).into_iter().map(|i| (i.expires_at, i.id)).collect();
            prop_assert_eq!(told, due);
        }
    }
}
