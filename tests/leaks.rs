//! What a hundred visitors leave behind: nothing. Counts the whole host, so
//! this runs while no other end-to-end test does.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use host::census::{self, Census};
use host::{Daemon, Place, eventually, same};

/// Acquire and release, that often.
const CYCLES: usize = 100;

/// How much more memory the daemon may hold after the second half of the
/// cycles than after the first: 0.2 MiB were seen, and 0.2 MiB kept for each
/// instance would be 10 MiB.
const GROWTH_MAX_KIB: u64 = 8 * 1024;

#[tokio::test]
async fn a_hundred_acquire_and_release_cycles_leave_every_count_as_it_was() {
    let Some(place) = Place::alone("cycles").await else { return };
    let daemon = place.daemon(&[("POOL_TARGET_SIZE", "2"), ("SLOTS_AHEAD", "2")]).await;
    // Whatever is opened once and kept shall be open before the first count.
    cycle(&daemon, true).await;
    settle(&place, &daemon).await;
    let before = census::take(&place, daemon.pid());

    let mut resident = Vec::new();
    for n in 1..=CYCLES {
        cycle(&daemon, n % 10 == 0).await;
        if n % (CYCLES / 2) == 0 {
            resident.push(census::resident_kib(daemon.pid()));
        }
    }
    settle(&place, &daemon).await;
    eventually("no count is above that of the start", 30, async || {
        same(&grown(&before, &census::take(&place, daemon.pid())), &Vec::new())
    })
    .await;
    println!("counts: {before:?}; the daemon's resident KiB at half and at the end: {resident:?}");
    assert!(resident[1] < resident[0] + GROWTH_MAX_KIB, "{resident:?} KiB");
    assert_eq!(daemon.stats().await["instances"], 2);
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

/// One visitor, who looks at the shop or not.
async fn cycle(daemon: &Daemon<'_>, visit: bool) {
    // From the pool, or restored when this was faster than the pool.
    let shop = daemon.acquire_any().await;
    if visit {
        shop.answers().await;
    }
    daemon.release(shop.id()).await;
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

/// What there is more of, with both numbers. Less is no leak: something of the
/// host's own has ended meanwhile.
fn grown(before: &Census, after: &Census) -> Vec<String> {
    let mut grown: Vec<String> = before
        .iter()
        .filter(|(what, count)| after[*what] > **count)
        .map(|(what, count)| format!("{what}: {count}, then {}", after[what]))
        .collect();
    if !grown.is_empty() {
        grown.push(census::commands().join(", "));
    }
    grown
}
