//! Events that wait for their receivers, in files of this host.
//!
//! ```text
//! STATE_DIR/webhooks/<hash of the URL>/<number>.json   one event that waits, in order
//! STATE_DIR/webhooks/open/<instance id>.json           the event that opened a lease whose end is not told yet
//! ```
//!
//! One task puts in, one a receiver takes out. A file is whole or not there (it
//! is renamed into place), so the daemon may die at any moment; nothing is
//! forced onto the disk, so a power cut may cost the last seconds.
//!
//! Invariants: an event is in its file before its receiver's task sees it, and
//! the file goes after the receiver took it; a queue has [`WAITING_MAX`] events at
//! most, the oldest go. What puts, takes out and
//! notes touches the disk.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

use super::notice::{NOTICE_VERSION, Notice};
use crate::config::WebhookUrl;
use crate::id::InstanceId;
use crate::sealed;

/// Events that wait for one receiver at most: at two a lease this is a day of 200
/// visitors an hour. Each is a file of some 300 bytes.
const WAITING_MAX: usize = 10_000;

/// Where opened leases are noted, beside the queues.
const OPEN: &str = "open";

/// All that waits.
#[derive(Debug)]
pub(super) struct Spool {
    open_dir: PathBuf,
    queues: Vec<Arc<Queue>>,
    taken: Notify,
}

/// What waits for one receiver.
#[derive(Debug)]
pub(super) struct Queue {
    dir: PathBuf,
    /// A std lock: held for one operation, never across an await.
    state: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<(u64, Arc<Notice>)>,
    /// The next event's number.
    next: u64,
}

impl Spool {
    /// Opens what a former daemon left for these receivers; what waited for
    /// others is removed. Answers how many events that were.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub(super) fn open(dir: &Path, urls: &[WebhookUrl]) -> io::Result<(Self, usize)> {
        let make = |dir: &Path| DirBuilder::new().recursive(true).mode(0o700).create(dir);
        let open_dir = dir.join(OPEN);
        make(&open_dir)?;
        let names: Vec<String> = urls.iter().map(name_of).collect();
        let mut forgotten = 0;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let is_used = entry
                .file_name()
                .to_str()
                .is_some_and(|name| name == OPEN || names.iter().any(|it| it == name));
            if !is_used && entry.file_type()?.is_dir() {
                forgotten += numbered(&entry.path())?.len();
                fs::remove_dir_all(entry.path())?;
            }
        }
        let mut queues = Vec::new();
        for name in names {
            let dir = dir.join(name);
            make(&dir)?;
            queues.push(Arc::new(Queue::load(dir)?));
        }
        Ok((Self { open_dir, queues, taken: Notify::new() }, forgotten))
    }

    /// The queues, in the order of the receivers.
    pub(super) fn queues(&self) -> &[Arc<Queue>] {
        &self.queues
    }

    /// How many events wait, for all.
    pub(super) fn waiting(&self) -> usize {
        self.queues.iter().map(|queue| queue.lock().events.len()).sum()
    }

    /// Tells that one waits less.
    pub(super) fn taken(&self) {
        self.taken.notify_one();
    }

    /// Waits until nothing waits.
    pub(super) async fn empty(&self) {
        while self.waiting() > 0 {
            self.taken.notified().await;
        }
    }

    /// Puts an event into each queue; answers how many had to go for it, and
    /// why it may be lost with this daemon.
    pub(super) fn put(&self, notice: &Arc<Notice>) -> (usize, io::Result<()>) {
        let (mut dropped, mut kept) = (0, Ok(()));
        for queue in &self.queues {
            let written = queue.keep(notice);
            kept = kept.and(written);
            dropped += queue.trim(WAITING_MAX);
        }
        (dropped, kept)
    }

    /// Notes that receivers know of the lease that `notice` opens.
    pub(super) fn note_open(&self, id: &InstanceId, notice: &Notice) -> io::Result<()> {
        write(&self.open_dir, &format!("{id}.json"), notice)
    }

    /// Whether receivers know of it.
    pub(super) fn is_open(&self, id: &InstanceId) -> bool {
        self.open_dir.join(format!("{id}.json")).try_exists().unwrap_or(false)
    }

    /// They know of its end.
    pub(super) fn note_closed(&self, id: &InstanceId) -> io::Result<()> {
        removed(fs::remove_file(self.open_dir.join(format!("{id}.json"))))
    }

    /// All leases whose end is not told.
    pub(super) fn all_open(&self) -> io::Result<BTreeMap<InstanceId, Notice>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.open_dir)? {
            let path = entry?.path();
            let id = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            if let (Some(id), Found::Notice(notice)) = (id, read(&path)) {
                found.insert(id, notice);
            }
        }
        Ok(found)
    }
}

impl Queue {
    fn load(dir: PathBuf) -> io::Result<Self> {
        let mut state = Waiting::default();
        for number in numbered(&dir)? {
            let path = dir.join(file_name(number));
            match read(&path) {
                Found::Notice(notice) => state.events.push_back((number, Arc::new(notice))),
                Found::Later { version } => {
                    tracing::warn!(path = %path.display(), version, "an event for a webhook is of a later program and left to it");
                }
                // Of a power cut or a broken disk: nobody can be told what it said.
                Found::Damaged => {
                    tracing::warn!(path = %path.display(), "an event for a webhook cannot be read and is removed");
                    removed(fs::remove_file(&path))?;
                }
            }
            state.next = number + 1;
        }
        Ok(Self { dir, state: Mutex::new(state), changed: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts one in: into its file first, so that whoever has taken it finds one
    /// to remove. One that has no file is told by this daemon all the same.
    fn keep(&self, notice: &Arc<Notice>) -> io::Result<()> {
        let number = {
            let mut state = self.lock();
            state.next += 1;
            state.next - 1
        };
        let written = write(&self.dir, &file_name(number), notice);
        self.lock().events.push_back((number, Arc::clone(notice)));
        self.changed.notify_one();
        written
    }

    /// Lets the oldest go until it has `most`; answers how many went.
    fn trim(&self, most: usize) -> usize {
        let over: Vec<u64> = {
            let mut state = self.lock();
            let over = state.events.len().saturating_sub(most);
            state.events.drain(..over).map(|(number, _)| number).collect()
        };
        for number in &over {
            // What stays comes once more after a restart.
            let _ = fs::remove_file(self.dir.join(file_name(*number)));
        }
        over.len()
    }

    /// Waits for the oldest and leaves it there.
    pub(super) async fn first(&self) -> (u64, Arc<Notice>) {
        loop {
            if let Some((number, notice)) = self.lock().events.front() {
                return (*number, Arc::clone(notice));
            }
            self.changed.notified().await;
        }
    }

    /// Whether that one is still the oldest: it may have had to go.
    pub(super) fn is_first(&self, number: u64) -> bool {
        self.lock().events.front().is_some_and(|(first, _)| *first == number)
    }

    /// Takes that one out.
    pub(super) fn done(&self, number: u64) -> io::Result<()> {
        {
            let mut state = self.lock();
            if state.events.front().is_some_and(|(first, _)| *first == number) {
                state.events.pop_front();
            }
        }
        removed(fs::remove_file(self.dir.join(file_name(number))))
    }
}

/// A receiver's directory: its address may hold a secret, and is longer than a name.
fn name_of(url: &WebhookUrl) -> String {
    let hash = Sha256::digest(url.expose().as_bytes());
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Sorts as the numbers do.
fn file_name(number: u64) -> String {
    format!("{number:020}.json")
}

/// The numbers of a queue's files, in order.
fn numbered(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".json")).and_then(|it| it.parse().ok());
        numbers.extend::<Option<u64>>(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// What a file holds.
enum Found {
    Notice(Notice),
    /// Written by a later program, for it to read.
    Later {
        version: u16,
    },
    Damaged,
}

fn read(path: &Path) -> Found {
    #[derive(serde::Deserialize)]
    struct Head {
        version: u16,
    }
    let Ok(bytes) = fs::read(path) else { return Found::Damaged };
    match serde_json::from_slice::<Head>(&bytes) {
        Ok(Head { version }) if version > NOTICE_VERSION => Found::Later { version },
        _ => sealed::open(&bytes).map_or(Found::Damaged, Found::Notice),
    }
}

/// By rename: whoever dies meanwhile leaves nothing half.
fn write(dir: &Path, name: &str, notice: &Notice) -> io::Result<()> {
    let new = dir.join("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(sealed::seal(notice)?.to_string().as_bytes())?;
    fs::rename(&new, dir.join(name))
}

fn removed(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::config::Config;
    use crate::config::SETTINGS;

    fn urls(text: &str) -> Vec<WebhookUrl> {
        let mut values: crate::config::Values =
            SETTINGS.iter().map(|setting| (setting.name.to_owned(), setting.default.to_owned())).collect();
        values.insert("WEBHOOK_URLS".into(), text.into());
        values.insert("WEBHOOK_SECRET".into(), "0123456789abcdef".into());
        Config::check(&values).unwrap().webhooks.unwrap().urls
    }

    fn notice(n: i64) -> Arc<Notice> {
        let at = Timestamp::from_second(n).unwrap();
        Arc::new(Notice::test(at, "here".parse().unwrap()))
    }

    async fn taken(queue: &Queue) -> i64 {
        let (number, notice) = queue.first().await;
        queue.done(number).unwrap();
        notice.at.as_second()
    }

    #[tokio::test]
    async fn each_receiver_takes_all_in_order_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let urls = urls("https://a/x,https://b/x");
        let (spool, forgotten) = Spool::open(dir.path(), &urls).unwrap();
        assert_eq!(forgotten, 0);
        for n in 1..=3 {
            let (dropped, kept) = spool.put(&notice(n));
            kept.unwrap();
            assert_eq!(dropped, 0);
        }
        assert_eq!(taken(&spool.queues()[0]).await, 1);
        drop(spool);
        let (spool, _) = Spool::open(dir.path(), &urls).unwrap();
        spool.put(&notice(4)).1.unwrap();
        assert_eq!(spool.waiting(), 7);
        for n in 2..=4 {
            assert_eq!(taken(&spool.queues()[0]).await, n);
        }
        for n in 1..=4 {
            assert_eq!(taken(&spool.queues()[1]).await, n);
        }
        assert_eq!(spool.waiting(), 0);
        drop(spool);
        assert_eq!(Spool::open(dir.path(), &urls).unwrap().0.waiting(), 0, "what was taken is gone");
    }

    #[tokio::test]
    async fn what_waited_for_nobodys_receiver_is_forgotten_and_what_is_torn_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, _) = Spool::open(dir.path(), &urls("https://a/,https://b/")).unwrap();
        spool.put(&notice(1)).1.unwrap();
        spool.put(&notice(2)).1.unwrap();
        let torn = spool.queues()[0].dir.join(file_name(0));
        fs::write(torn, "{\"version\":").unwrap();
        let (spool, forgotten) = Spool::open(dir.path(), &urls("https://a/")).unwrap();
        assert_eq!((forgotten, spool.waiting()), (2, 1));
        assert_eq!(taken(&spool.queues()[0]).await, 2);
    }

    #[test]
    fn a_damaged_event_is_never_another_one() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "one.json", &notice(7)).unwrap();
        let path = dir.path().join("one.json");
        let read = || match read(&path) {
            Found::Notice(notice) => Some(notice),
            Found::Later { .. } | Found::Damaged => None,
        };
        sealed::damaged_is_refused_or_the_same(&path, read);
    }

    #[tokio::test]
    async fn a_later_programs_event_is_left_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let urls = urls("https://a/");
        let (spool, _) = Spool::open(dir.path(), &urls).unwrap();
        spool.put(&notice(1)).1.unwrap();
        let later = spool.queues()[0].dir.join(file_name(1));
        fs::write(&later, "{\"version\": 2, \"what\": \"else\"}").unwrap();
        let (spool, _) = Spool::open(dir.path(), &urls).unwrap();
        spool.put(&notice(2)).1.unwrap();
        assert_eq!(spool.waiting(), 2);
        for n in 1..=2 {
            assert_eq!(taken(&spool.queues()[0]).await, n);
        }
        assert!(fs::read_to_string(later).unwrap().contains("else"), "it is neither sent nor removed");
    }

    #[tokio::test]
    async fn the_oldest_go_when_it_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, _) = Spool::open(dir.path(), &urls("https://a/")).unwrap();
        let queue = &spool.queues()[0];
        for n in 1..=3 {
            queue.keep(&notice(n)).unwrap();
        }
        let (number, _) = queue.first().await;
        assert_eq!(queue.trim(2), 1);
        assert!(!queue.is_first(number), "it had to go");
        queue.done(number).unwrap();
        assert_eq!((taken(queue).await, taken(queue).await), (2, 3));
        assert!(numbered(&queue.dir).unwrap().is_empty());
    }

    #[test]
    fn an_open_lease_is_known_until_its_end_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, _) = Spool::open(dir.path(), &urls("https://a/")).unwrap();
        let id = InstanceId::random();
        assert!(!spool.is_open(&id));
        spool.note_open(&id, &notice(1)).unwrap();
        let (spool, _) = Spool::open(dir.path(), &urls("https://b/")).unwrap();
        assert!(spool.is_open(&id), "whoever is told");
        assert_eq!(spool.all_open().unwrap().into_keys().collect::<Vec<_>>(), std::slice::from_ref(&id));
        spool.note_closed(&id).unwrap();
        spool.note_closed(&id).unwrap();
        assert!(!spool.is_open(&id));
    }
}
