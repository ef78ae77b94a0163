//! Visitors who come, look and leave, hundreds of them one after the other: what
//! the host is full of does not grow, and nothing is left in the end. Counts the whole
//! host, so this runs while no other end-to-end test does. `make soak` has ten times as
//! many come.
//!
//! What instances are made of is counted from the first visitors on, and may not be more
//! after the last. What grows until everything was used once (buffers, the store's file)
//! has grown after a third of them; from then on each may be as much higher as its slack
//! below, whose reason stands beside it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::collections::BTreeMap;
use std::path::Path;

use host::census::{self, Census};
use host::{Daemon, Place, eventually, same};

/// How many come, unless SOAK_CYCLES says otherwise.
const CYCLES: usize = 200;

/// How many are there at once: as many as a small host has cores.
const AT_ONCE: usize = 2;

/// After so many the counts are printed: a soak that is ended early, or fails, says how they went.
const PORTION: usize = 200;

/// What may be added to a count after the warm-up, in its own unit.
const SLACK: &[(&str, usize)] = &[
    // The allocator keeps what a burst needed; 0.2 MiB were seen after 100 visitors. A record that were kept for each of
    // two thirds of 200 visitors would be noticed at 60 KiB each.
    ("resident KiB of the daemon", 8 * 1024),
    // redb keeps freed pages for the next transaction and grows its file by whole regions.
    ("disk KiB of the store", 2 * 1024),
    // An instance's own files are those of two in the pool, whose databases write their logs meanwhile.
    ("disk KiB of the instances", 16 * 1024),
];

#[tokio::test]
async fn nothing_grows_while_visitors_come_look_and_leave() {
    let Some(place) = Place::alone("soak").await else { return };
    let cycles =
        std::env::var("SOAK_CYCLES").map_or(CYCLES, |text| text.parse().expect("SOAK_CYCLES is a number"));
    let daemon = place.daemon(&[("POOL_TARGET_SIZE", "2"), ("SLOTS_AHEAD", "2")]).await;
    // Whatever is opened once and kept shall be open before the first count.
    visit(&daemon, 2 * AT_ONCE).await;
    settle(&place, &daemon).await;
    let first = census::take(&place, daemon.pid());
    let warm_up = cycles.div_ceil(3);
    visit(&daemon, warm_up).await;
    settle(&place, &daemon).await;
    println!("{warm_up} visitors: {:?}", count(&place, &daemon));
    // What instances are made of, as it was at first; the rest as it is now.
    let before = Census::from_iter(count(&place, &daemon).into_iter().chain(first));
    let mut come = warm_up;
    while come < cycles {
        let portion = PORTION.min(cycles - come);
        visit(&daemon, portion).await;
        settle(&place, &daemon).await;
        come += portion;
        println!("{come} visitors: {:?}", count(&place, &daemon));
    }
    let seen = eventually("no count is above that of before", 30, async || {
        let now = count(&place, &daemon);
        same(&grown(&before, &now), &Vec::new()).map(|()| now)
    })
    .await;
    println!("before: {before:?}\nafter {cycles}: {seen:?}");
    let stats = daemon.stats().await;
    assert_eq!(
        (&stats["instances"], &stats["goldens"][0]["failures"]["total"]),
        (&2.into(), &0.into()),
        "{stats}"
    );
    let said = place.cli(&["doctor", "--audit"]).await;
    assert_eq!(said.code, Some(0), "{}", said.out);
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_that_is_stopped_leaves_the_host_as_it_found_it() {
    let Some(place) = Place::alone("stopped").await else { return };
    // The bridge and the parent cgroup stay for the next daemon.
    place.daemon(&[]).await.stop().await;
    let nobody = i32::try_from(std::process::id()).unwrap();
    let before = census::take(&place, nobody);
    let daemon = place.daemon(&[("POOL_TARGET_SIZE", "2"), ("SLOTS_AHEAD", "3")]).await;
    daemon.pool_has(2).await;
    daemon.acquire("pool").await.answers().await;
    daemon.stop().await;
    eventually("no count is above that of the start", 30, async || {
        same(&grown(&before, &census::take(&place, nobody)), &Vec::new())
    })
    .await;
}

/// So many visitors, some at once.
async fn visit(daemon: &Daemon<'_>, visitors: usize) {
    let coming = std::cell::Cell::new(visitors);
    let one_after_the_other = async || {
        while coming.get() > 0 {
            coming.set(coming.get() - 1);
            // From the pool, or restored when this was faster than the pool.
            let shop = daemon.acquire_any().await;
            shop.answers().await;
            daemon.release(shop.id()).await;
        }
    };
    futures_util::future::join_all((0..AT_ONCE).map(|_| one_after_the_other())).await;
}

/// Waits until the pool is full and at rest.
async fn settle(place: &Place, daemon: &Daemon<'_>) {
    daemon.pool_has(2).await;
    eventually("two instances and two slots are there", 20, async || {
        same(&place.traces().cgroups.len(), &4)?;
        same(&daemon.ids().await.len(), &2)
    })
    .await;
    census::rest(place, daemon.pid()).await;
}

fn count(place: &Place, daemon: &Daemon<'_>) -> Census {
    let mut census = census::take(place, daemon.pid());
    let resident = usize::try_from(census::resident_kib(daemon.pid())).unwrap();
    census.insert("resident KiB of the daemon", resident);
    census.insert("disk KiB of the store", disk_kib(&place.state_dir().join("store.redb")));
    census.insert("disk KiB of the instances", disk_kib(&place.state_dir().join("instances")));
    census
}

/// What a file, or all below a directory, takes of the disk.
fn disk_kib(path: &Path) -> usize {
    use std::os::unix::fs::MetadataExt as _;
    // One that is gone meanwhile takes nothing.
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return 0 };
    let own = usize::try_from(metadata.blocks() / 2).unwrap();
    let entries = if metadata.is_dir() { std::fs::read_dir(path).ok() } else { None };
    own + entries.into_iter().flatten().flatten().map(|entry| disk_kib(&entry.path())).sum::<usize>()
}

/// What there is more of than allowed, with both numbers. Less is no leak: something of
/// the host's own has ended meanwhile.
fn grown(before: &Census, after: &Census) -> Vec<String> {
    let slack: BTreeMap<&str, usize> = SLACK.iter().copied().collect();
    let too_many =
        |(what, count): &(&&'static str, &usize)| after[*what] > **count + slack.get(*what).unwrap_or(&0);
    let mut grown: Vec<String> = before
        .iter()
        .filter(too_many)
        .map(|(what, count)| format!("{what}: {count}, then {}", after[what]))
        .collect();
    if !grown.is_empty() {
        grown.push(census::commands().join(", "));
    }
    grown
}
