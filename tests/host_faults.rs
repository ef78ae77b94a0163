//! What a host can lack - places, addresses, disk, itself - and what clients
//! are told: each time one clear answer, nothing left behind, and all is well
//! again when there is room again.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::path::Path;

use host::daemon::Shop;
use host::place::run;
use host::trial::{OWN, is_as_it_was};
use host::{Daemon, Place, eventually, same};
use serde_json::json;

#[tokio::test]
async fn all_places_taken_is_503_until_one_is_released() {
    let Some(place) = Place::beside_others("places").await else { return };
    let daemon = place.daemon(&[("MAX_INSTANCES", "1")]).await;
    let shop = daemon.acquire("restore").await;
    refused_for_now(&daemon, "all 1 places of this host are taken").await;
    works_again_without(&daemon, &shop).await;
    daemon.stop().await;
}

#[tokio::test]
async fn all_addresses_taken_is_503_until_one_is_released() {
    let Some(place) = Place::beside_others("addresses").await else { return };
    let network = place.network(29);
    // Cold starts need an address as well, so none is tried.
    let daemon = place.daemon(&[("BRIDGE_SUBNET", &network), ("COLD_START", "allowed")]).await;
    let shops = futures_util::future::join_all((0..5).map(|_| daemon.acquire("restore"))).await;
    refused_for_now(&daemon, &format!("no free address in {network}: enlarge BRIDGE_SUBNET")).await;
    let ids = {
        let mut ids: Vec<String> = shops.iter().map(|shop| shop.id().to_owned()).collect();
        ids.sort();
        ids
    };
    assert_eq!(daemon.ids().await, ids, "the refused one left no record");
    same(&place.traces(), &host::place::Traces::all(&ids)).unwrap();
    works_again_without(&daemon, &shops[3]).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_sleeping_shop_waits_for_an_address_however_often_it_is_asked_for() {
    let Some(place) = Place::beside_others("asleep-addresses").await else { return };
    let daemon = place.daemon(&[("BRIDGE_SUBNET", &place.network(29))]).await;
    let shop = asleep(&place, &daemon).await;
    let others = futures_util::future::join_all((0..5).map(|_| daemon.acquire("restore"))).await;
    for _ in 0..4 {
        let reply = shop.get("/").await;
        assert_eq!((reply.status, reply.header("retry-after").is_some()), (503, true), "{}", reply.text());
    }
    daemon.release(others[0].id()).await;
    wakes(&daemon, &shop).await;
    daemon.stop().await;
}

#[tokio::test]
async fn on_a_full_disk_a_shop_stays_awake_and_one_that_sleeps_is_kept_until_there_is_room() {
    let Some(place) = Place::beside_others("asleep-disk").await else { return };
    let disk = SmallDisk::mount(&place).await;
    let daemon = place.daemon(&[]).await;
    let awake = daemon.acquire("restore").await;
    place.sql(awake.id(), OWN).await;
    let shop = asleep(&place, &daemon).await;
    disk.fill();
    let detail = hibernate(&daemon, &awake).await.problem(507);
    assert!(detail.contains("it cannot be put to sleep and goes on"), "{detail}");
    for _ in 0..4 {
        let reply = shop.get("/").await;
        assert!(matches!(reply.status, 503 | 507), "{} {}", reply.status, reply.text());
    }
    disk.empty();
    wakes(&daemon, &awake).await;
    wakes(&daemon, &shop).await;
    daemon.stop().await;
}

async fn hibernate(daemon: &Daemon<'_>, shop: &Shop) -> host::web::Reply {
    let path = format!("/api/v1/demo/{}/hibernate", shop.id());
    host::web::send(daemon.address(), "POST", "localhost", &path, &[], "").await.unwrap()
}

/// A shop that sleeps, and of which nothing runs any more.
async fn asleep(place: &Place, daemon: &Daemon<'_>) -> Shop {
    let shop = daemon.acquire("restore").await;
    place.sql(shop.id(), OWN).await;
    let reply = hibernate(daemon, &shop).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    eventually("its slot is given up", 10, async || {
        same(&place.traces().dirs.contains(&shop.id().to_owned()), &false)
    })
    .await;
    shop
}

async fn wakes(daemon: &Daemon<'_>, shop: &Shop) {
    eventually("it is there again", 20, async || same(&shop.get("/").await.status, &200)).await;
    is_as_it_was(daemon, shop, "there was room again").await;
}

async fn refused_for_now(daemon: &Daemon<'_>, why: &str) {
    let reply = daemon.try_acquire(&json!({})).await;
    let detail = reply.problem(503);
    assert!(detail.contains(why), "{detail}");
    assert!(reply.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
}

async fn works_again_without(daemon: &Daemon<'_>, shop: &Shop) {
    daemon.release(shop.id()).await;
    let next = eventually("there is room again", 10, async || {
        let reply = daemon.try_acquire(&json!({})).await;
        if reply.status == 201 { Ok(reply.json()) } else { Err(reply.text().into_owned()) }
    })
    .await;
    assert_ne!(next["id"], shop.id());
}

#[tokio::test]
async fn a_full_disk_is_507_and_leaves_nothing_until_space_is_freed() {
    let Some(place) = Place::beside_others("disk").await else { return };
    let disk = SmallDisk::mount(&place).await;
    for ahead in ["0", "3"] {
        let daemon = place.daemon(&[("SLOTS_AHEAD", ahead), ("COLD_START", "allowed")]).await;
        let shop = daemon.acquire("restore").await;
        for _ in 0..4 {
            // Each time: a refused one has given back the little that it had got.
            disk.fill();
            let detail = daemon.try_acquire(&json!({})).await.problem(507);
            assert!(!detail.is_empty());
        }
        assert_eq!(daemon.ids().await, [shop.id()], "a refused one left a record");
        eventually("only the living one and waiting slots are there", 10, async || {
            let traces = place.traces();
            let waiting = ahead.parse::<usize>().unwrap();
            same(&traces.cgroups, &traces.dirs)?;
            same(&traces.cgroups, &traces.interfaces)?;
            match traces.dirs.contains(&shop.id().to_owned()) && traces.dirs.len() <= 1 + waiting {
                true => Ok(()),
                false => Err(format!("{traces:?}")),
            }
        })
        .await;
        disk.empty();
        daemon.acquire("restore").await.answers().await;
        shop.answers().await;
        daemon.stop().await;
    }
}

/// A file system of its own for what instances write.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    /// Below STATE_DIR, of which only what is prepared is elsewhere.
    async fn mount(place: &Place) -> Self {
        std::fs::remove_dir_all(place.state_dir()).unwrap();
        let disk = Self::at(&place.state_dir(), place).await;
        host::golden::lend_prepared(&place.state_dir());
        disk
    }

    async fn at(dir: &Path, place: &Place) -> Self {
        let image = place.dir.join("disk");
        std::fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
        std::fs::create_dir_all(dir).unwrap();
        let (mounted, image) = (dir.to_str().unwrap(), image.to_str().unwrap());
        run("mkfs.xfs", &["-q", image]).await.ok();
        run("mount", &["-o", "loop", image, mounted]).await.ok();
        Self(dir.to_owned())
    }

    fn fill(&self) {
        use std::io::Write as _;
        let mut file = std::fs::File::options().create(true).append(true).open(self.0.join("full")).unwrap();
        for size in [1 << 20, 4096] {
            let zeros = vec![0; size];
            while file.write_all(&zeros).is_ok() {}
        }
        assert_eq!(file.sync_all().map_err(|error| error.kind()), Ok(()));
    }

    fn empty(&self) {
        std::fs::remove_file(self.0.join("full")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg("--lazy").arg(&self.0).output());
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_snapshot_is_prepared_whole_or_not_at_all_on_a_full_disk() {
    let Some(place) = Place::beside_others("disk-prepare").await else { return };
    let disk = SmallDisk::mount(&place).await;
    let prepared = place.state_dir().join("prepared");
    std::fs::remove_file(&prepared).unwrap();
    disk.fill();
    let said = place.cli(&["serve"]).await.refused();
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(names(&prepared), Vec::<String>::new());
    disk.empty();
    let daemon = place.daemon(&[]).await;
    daemon.acquire("restore").await.answers().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_snapshot_that_the_disk_has_no_room_for_is_none() {
    let Some(place) = Place::beside_others("disk-snapshot").await else { return };
    let snapshots = place.dir.join("snapshots");
    let disk = SmallDisk::at(&snapshots, &place).await;
    disk.fill();
    let (small, container) = host::golden::small(&place).await;
    let settings = [("SNAPSHOT_DIR", snapshots.to_str().unwrap())];
    let said = place.cli_with(&["snapshot", "create", &small], &settings).await.refused();
    assert!(said.contains("No space left on device"), "{said}");
    disk.empty();
    let left: Vec<String> = names(&snapshots).into_iter().filter(|name| name != ".lock").collect();
    assert_eq!(left, Vec::<String>::new());
    let containers = run("podman", &["ps", "--all", "--format", "{{.Names}}"]).await.ok();
    assert!(!containers.contains(&container), "{containers}");
}

#[tokio::test]
async fn a_second_daemon_on_one_state_directory_is_refused() {
    let Some(place) = Place::beside_others("second").await else { return };
    let daemon = place.daemon(&[("POOL_TARGET_SIZE", "1")]).await;
    daemon.pool_has(1).await;
    let said = place.cli(&["serve", "--ephemeral", "--listen", "127.0.0.1:0"]).await.refused();
    let told = format!("another daemon runs on {}: stop it, or set STATE_DIR", place.state_dir().display());
    assert!(said.contains(&told), "{said}");
    daemon.acquire("pool").await.answers().await;

    let elsewhere = place.dir.join("elsewhere");
    let changes =
        [("STATE_DIR", elsewhere.to_str().unwrap()), ("BRIDGE_NAME", "dmt-x"), ("CGROUP_PARENT", "dmt-x")];
    let said = place.cli_with(&["serve"], &changes).await.refused();
    assert!(said.contains(&format!("cannot listen on {}", place.address())), "{said}");
    run("ip", &["link", "delete", "dmt-x"]).await.ok();
    run("nft", &["delete", "table", "inet", "demo-multiplexer-dmt-x"]).await.ok();
    std::fs::remove_dir("/sys/fs/cgroup/dmt-x").unwrap();
    daemon.stop().await;
}

#[tokio::test]
async fn two_daemons_on_one_host_leave_each_other_s_shops_alone() {
    let Some(one) = Place::beside_others("host-one").await else { return };
    let Some(two) = Place::beside_others("host-two").await else { return };
    let (first, second) = (one.daemon(&[]).await, two.daemon(&[]).await);
    let (shop, other) = (first.acquire("restore").await, second.acquire("restore").await);
    // A daemon that starts takes everything of its own down that it does not know.
    second.kill().await;
    std::fs::remove_file(two.state_dir().join("store.redb")).unwrap();
    let second = two.daemon(&[]).await;
    second.holds_nothing().await;
    assert_eq!(other.get("/").await.status, 410, "it was taken down");
    shop.answers().await;
    same(&one.traces(), &host::place::Traces::all(&[shop.id().to_owned()])).unwrap();
    second.stop().await;
    first.stop().await;
}

/// Pages hung for half a minute when the bridge took over its lowest port's
/// hardware address and lost it again.
#[tokio::test]
async fn the_bridge_keeps_its_hardware_address_while_ports_come_and_go() {
    let Some(place) = Place::beside_others("bridge").await else { return };
    let daemon = place.daemon(&[("SLOTS_AHEAD", "2")]).await;
    let address = || std::fs::read_to_string(format!("/sys/class/net/{}/address", place.bridge())).unwrap();
    let before = address();
    assert!(before.starts_with("02:64:0a:"), "its own, not a port's: {before}");
    let stays = daemon.acquire("restore").await;
    for _ in 0..5 {
        let goes = daemon.acquire("restore").await;
        assert_eq!(address(), before);
        goes.answers().await;
        stays.answers().await;
        daemon.release(goes.id()).await;
        assert_eq!(address(), before);
        let begun = std::time::Instant::now();
        stays.answers().await;
        assert!(begun.elapsed().as_secs() < 5, "a page took {:?}", begun.elapsed());
    }
    daemon.stop().await;
}

#[tokio::test]
async fn slots_being_made_are_not_taken_for_orphans() {
    let Some(place) = Place::beside_others("slots").await else { return };
    // What the first search of all shall find and take down.
    let orphan = "orphanorphan";
    std::fs::create_dir_all(place.cgroup().join(orphan)).unwrap();
    std::fs::create_dir_all(place.state_dir().join("instances").join(orphan)).unwrap();
    let daemon = place.daemon(&[("SLOTS_AHEAD", "40"), ("MAX_INSTANCES", "100")]).await;
    let full = |count: usize| {
        let place = &place;
        eventually("all slots are there", 30, async move || {
            let traces = place.traces();
            same(&traces.cgroups, &traces.dirs)?;
            same(&traces.cgroups, &traces.interfaces)?;
            same(&traces.cgroups.len(), &count)
        })
    };
    full(40).await;
    let shops = futures_util::future::join_all((0..4).map(|_| daemon.acquire("restore"))).await;
    futures_util::future::join_all(shops.iter().map(Shop::answers)).await;
    full(44).await;
    let taken: Vec<String> = place
        .log()
        .lines()
        .filter(|line| line.contains("orphan taken down"))
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["instance_id"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert!(taken.iter().all(|id| id == orphan) && !taken.is_empty(), "{taken:?}");
    daemon.stop().await;
}
