//! The embedded store's file after power cuts at any instant, and after damage.
//!
//! A disk that keeps a log of what it is told stands below a store that works.
//! Then the power is cut at each entry of the log: what was synced is there, of
//! the rest nothing, all, some, or sectors of some. Whatever it is, the next
//! daemon finds each answered change, and the change under way whole or not at
//! all.

use std::io;
use std::sync::Mutex;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use redb::StorageBackend;

use super::*;
use crate::store::conformance::{at, claim, golden, instance, node};

/// What a disk writes at once, or not.
const SECTOR: usize = 512;

/// Something the disk was told.
#[derive(Debug, Clone)]
enum Told {
    Write(u64, Vec<u8>),
    Length(u64),
    Sync,
}

impl Told {
    fn reach(&self, image: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => {
                let from = usize::try_from(*offset).unwrap();
                if image.len() < from + data.len() {
                    image.resize(from + data.len(), 0);
                }
                image[from..from + data.len()].copy_from_slice(data);
            }
            Self::Length(length) => image.resize(usize::try_from(*length).unwrap(), 0),
            Self::Sync => {}
        }
    }

    /// As the disk does it: by sectors.
    fn sectors(&self) -> Vec<Self> {
        let Self::Write(offset, data) = self else { return vec![self.clone()] };
        let mut rest = (*offset, &data[..]);
        let mut sectors = Vec::new();
        while !rest.1.is_empty() {
            let to_edge = SECTOR - usize::try_from(rest.0).unwrap() % SECTOR;
            let (sector, after) = rest.1.split_at(to_edge.min(rest.1.len()));
            sectors.push(Self::Write(rest.0, sector.to_vec()));
            rest = (rest.0 + sector.len() as u64, after);
        }
        sectors
    }
}

/// A disk in memory.
#[derive(Debug, Clone, Default)]
struct Disk {
    image: Arc<Mutex<Vec<u8>>>,
    log: Arc<Mutex<Vec<Told>>>,
}

impl Disk {
    fn of(image: Vec<u8>) -> Self {
        Self { image: Arc::new(Mutex::new(image)), log: Arc::default() }
    }

    fn tell(&self, told: Told) {
        told.reach(&mut self.image.lock().unwrap());
        self.log.lock().unwrap().push(told);
    }

    fn told(&self) -> usize {
        self.log.lock().unwrap().len()
    }

    fn opener(&self) -> Opener {
        let disk = self.clone();
        Box::new(move || file::builder().create_with_backend(disk.clone()))
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.image.lock().unwrap().len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (image, from) = (self.image.lock().unwrap(), usize::try_from(offset).unwrap());
        let bytes = image.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.tell(Told::Length(len));
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        self.tell(Told::Sync);
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.tell(Told::Write(offset, data.to_vec()));
        Ok(())
    }
}

/// All that a store's file holds, in an order of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Content {
    records: Vec<String>,
    admissions: usize,
}

impl Content {
    fn of(mut records: Vec<Arc<Instance>>, admissions: usize) -> Self {
        records.sort_by(|a, b| a.id.cmp(&b.id));
        Self { records: records.iter().map(|record| record.to_record().unwrap()).collect(), admissions }
    }

    /// What the next daemon finds.
    fn found(image: Vec<u8>) -> Result<Self, OpenStoreError> {
        let path = Path::new("/disk/store.redb");
        let (_, found) = StoreFile::open(&Disk::of(image).opener(), path, &node("here"))?;
        Ok(Self::of(found.records.into_iter().map(Arc::new).collect(), found.admissions.len()))
    }
}

/// A store's life: what the disk was told, and after how much of it which content
/// was answered for.
struct Life {
    log: Vec<Told>,
    answered: Vec<(usize, Content)>,
}

async fn life(seed: u64, steps: usize) -> Life {
    let (disk, mut random) = (Disk::default(), StdRng::seed_from_u64(seed));
    let store = EmbeddedStore::start(disk.opener(), Path::new("/disk/store.redb"), &node("here")).unwrap();
    let (shop, windows) =
        (golden("shop"), [Window { length: jiff::SignedDuration::from_hours(1), limit: 99 }]);
    let mut admissions = 0;
    let mut answered = vec![(disk.told(), Content::of(Vec::new(), 0))];
    for second in 0..steps {
        let all = store.list().await.unwrap();
        let one = (!all.is_empty()).then(|| all[random.random_range(0..all.len())].clone());
        match (random.random_range(0..5), one) {
            (0, Some(one)) => store.remove(&one.id).await.unwrap(),
            (1, Some(one)) => {
                let next = Instance { state: State::Failed, ..Instance::clone(&one) };
                // Denied where it is over already.
                let _ = store.update(next).await;
            }
            (2, _) => {
                store.claim(claim(&shop, None)).await.unwrap();
            }
            (3, _) => {
                // Big ones make the file grow.
                let mut large = instance(&shop, State::Ready, second as i64);
                large.idempotency_key = Some("k".repeat(random.random_range(1..60_000)));
                store.insert(large).await.unwrap();
            }
            _ => {
                store.admit("one", &windows, at(second as i64)).await.unwrap();
                admissions += 1;
                store.insert(instance(&shop, State::Ready, second as i64)).await.unwrap();
            }
        }
        // Reads are answered after what was decided before them is on the disk.
        let now = Content::of(store.list().await.unwrap(), admissions);
        if answered.last().is_none_or(|(_, last)| *last != now) {
            answered.push((disk.told(), now));
        }
    }
    drop(store);
    let log = disk.log.lock().unwrap().clone();
    Life { log, answered }
}

/// How much of what was not yet synced has reached the disk.
#[derive(Debug, Clone, Copy)]
enum Reached {
    Nothing,
    Everything,
    Some,
    SomeSectors,
}

/// The disk's content when the power goes before entry `cut`.
fn image_after(log: &[Told], cut: usize, reached: Reached, random: &mut StdRng) -> Vec<u8> {
    let synced = log[..cut].iter().rposition(|told| matches!(told, Told::Sync)).map_or(0, |at| at + 1);
    let mut image = Vec::new();
    log[..synced].iter().for_each(|told| told.reach(&mut image));
    let rest = &log[synced..cut];
    let mut some: Vec<Told> = match reached {
        Reached::Nothing => Vec::new(),
        Reached::Everything => {
            return log[..cut].iter().fold(image, |mut image, told| {
                told.reach(&mut image);
                image
            });
        }
        Reached::Some => rest.to_vec(),
        Reached::SomeSectors => rest.iter().flat_map(Told::sectors).collect(),
    };
    some.retain(|_| random.random_bool(0.5));
    // Whatever the disk took first, a later write to the same place is later.
    let mut order: Vec<usize> = (0..some.len()).collect();
    order.shuffle(random);
    let mut written: Vec<(usize, u64)> = Vec::new();
    for n in order {
        let place = match &some[n] {
            Told::Write(offset, _) => *offset,
            Told::Length(_) | Told::Sync => u64::MAX,
        };
        if !written.iter().any(|(later, at)| *at == place && *later > n) {
            some[n].reach(&mut image);
            written.push((n, place));
        }
    }
    image
}

fn check_cut(life: &Life, cut: usize, reached: Reached, random: &mut StdRng) {
    // The file is there when the store has opened it; before, nothing was promised.
    let Some(last) = life.answered.iter().rposition(|(told, _)| *told <= cut) else { return };
    let found = Content::found(image_after(&life.log, cut, reached, random));
    let found = found
        .unwrap_or_else(|error| panic!("cut at {cut} of {}, {reached:?}: {}", life.log.len(), Chain(&error)));
    let allowed = &life.answered[last..life.answered.len().min(last + 2)];
    assert!(
        allowed.iter().any(|(_, content)| *content == found),
        "cut at {cut} of {}, {reached:?}: {} records and {} admissions, expected {:?}",
        life.log.len(),
        found.records.len(),
        found.admissions,
        allowed.iter().map(|(_, content)| (content.records.len(), content.admissions)).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn no_answered_change_is_lost_and_none_is_half_whenever_the_power_goes() {
    const ALL: [Reached; 4] = [Reached::Nothing, Reached::Everything, Reached::Some, Reached::SomeSectors];
    for seed in 0..2 {
        let (life, mut random) = (life(seed, 14).await, StdRng::seed_from_u64(seed));
        assert!(life.answered.len() > 8, "{} changes", life.answered.len());
        for cut in 0..=life.log.len() {
            check_cut(&life, cut, Reached::SomeSectors, &mut random);
            check_cut(&life, cut, ALL[cut % ALL.len()], &mut random);
        }
    }
}

#[tokio::test]
async fn a_disk_that_lies_about_syncing_is_found_out_by_this_harness() {
    let mut life = life(0, 8).await;
    // Nothing is ever synced.
    life.log.retain(|told| !matches!(told, Told::Sync));
    let end = life.log.len();
    life.answered.iter_mut().for_each(|(told, _)| *told = (*told).min(end));
    let mut random = StdRng::seed_from_u64(0);
    let lost = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        check_cut(&life, end, Reached::Nothing, &mut random);
    }));
    assert!(lost.is_err(), "a check that cannot fail is none");
}

#[tokio::test]
async fn a_damaged_or_cut_file_is_refused_or_whole() {
    let life = life(1, 12).await;
    let mut whole = Vec::new();
    life.log.iter().for_each(|told| told.reach(&mut whole));
    let content = Content::found(whole.clone()).unwrap();
    let mut random = StdRng::seed_from_u64(7);
    let used: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    let mut refused = 0;
    for round in 0..200 {
        let mut image = whole.clone();
        let what = if round % 8 == 0 {
            let length = random.random_range(0..image.len());
            image.truncate(length);
            format!("cut to {length}")
        } else {
            let at = used[random.random_range(0..used.len())];
            image[at] ^= 1 << random.random_range(0..8);
            format!("bit flipped at {at}")
        };
        match std::panic::catch_unwind(|| Content::found(image)) {
            Ok(Ok(found)) => assert_eq!(found, content, "{what}: what is served is what was stored"),
            Ok(Err(error)) => {
                refused += 1;
                assert!(error.to_string().contains("/disk/store.redb"), "{what}: {error}");
                assert_eq!(error.kind(), ErrorKind::Incompatible, "{what}: {error}");
            }
            Err(_) => panic!("{what}: it panics"),
        }
    }
    assert!(refused > 5, "{refused} of 200 were refused");
}
