//! How much a shop may take: disk, processes, memory.

use std::time::Duration;

use super::host::place::run;
use super::host::{self, Place, eventually};

/// A state directory on a file system of its own.
struct Disk(String);

impl Disk {
    async fn mount(place: &Place, mkfs: &[&str], options: &str) -> Option<Self> {
        let (state, image) = (place.state_dir(), place.dir.join("disk"));
        std::fs::File::create(&image).unwrap().set_len(2 << 30).unwrap();
        let (state, image) = (state.to_str().unwrap(), image.to_str().unwrap());
        run(mkfs[0], &[&mkfs[1..], &[image]].concat()).await.ok();
        std::fs::remove_dir_all(state).unwrap();
        std::fs::create_dir_all(state).unwrap();
        let mounted = run("mount", &["-o", options, image, state]).await;
        if mounted.code != Some(0) {
            println!("skipped: this kernel does not mount {}: {}", mkfs[0], mounted.err);
            return None;
        }
        host::golden::lend_prepared(std::path::Path::new(state));
        Some(Self(state.into()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg("--lazy").arg(&self.0).output());
    }
}

const FILL: &str = "dd if=/dev/zero of=/var/tmp/full bs=1M count=600 2>&1; sync";

#[tokio::test]
async fn a_shop_fills_no_more_of_a_btrfs_disk_than_it_may() {
    let Some(place) = Place::beside_others("btrfs").await else { return };
    let Some(_disk) = Disk::mount(&place, &["mkfs.btrfs", "-q"], "loop").await else { return };
    the_file_system_refuses(&place, "btrfs simple quotas").await;
    let qgroups = run("btrfs", &["qgroup", "show", "-r", place.state_dir().to_str().unwrap()]).await.ok();
    assert!(!qgroups.contains("/instances/"), "a quota is left: {qgroups}");
}

#[tokio::test]
async fn a_shop_fills_no_more_of_an_xfs_disk_than_it_may() {
    let Some(place) = Place::beside_others("prjquota").await else { return };
    let options = "loop,prjquota";
    let Some(_disk) = Disk::mount(&place, &["mkfs.xfs", "-q"], options).await else { return };
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    if !mounts
        .lines()
        .any(|line| line.contains(place.state_dir().to_str().unwrap()) && line.contains("prjquota"))
    {
        println!("skipped: this kernel has no XFS quota; make test-vm has");
        return;
    }
    the_file_system_refuses(&place, "XFS project quotas").await;
}

async fn the_file_system_refuses(place: &Place, who: &str) {
    let daemon = place.daemon(&[("DISK_MAX", "400M")]).await;
    assert!(place.log().contains(who), "{}", place.log());
    let shops = [daemon.acquire("restore").await, daemon.acquire("restore").await];
    let said = place.inside(shops[0].id(), &["sh", "-c", FILL]).await;
    assert!(said.contains("quota exceeded") || said.contains("No space left"), "{said}");
    // The neighbour writes as before, and the filler's own shop still reads.
    place
        .inside(shops[1].id(), &["sh", "-ec", "dd if=/dev/zero of=/var/tmp/some bs=1M count=50; sync"])
        .await;
    shops[1].answers().await;
    for shop in &shops {
        daemon.release(shop.id()).await;
    }
    daemon.holds_nothing().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_shop_that_fills_a_disk_without_quotas_is_ended() {
    let Some(place) = Place::beside_others("filler").await else { return };
    let daemon = place.daemon(&[("DISK_MAX", "400M")]).await;
    assert!(place.log().contains("a watcher"), "the lab's disk has no quotas: {}", place.log());
    let shops = [daemon.acquire("restore").await, daemon.acquire("restore").await];
    drop(place.cli(&["exec", shops[0].id(), "--", "sh", "-c", FILL]).await);
    eventually("the filler is gone", 30, async || {
        let left = daemon.ids().await;
        if left.iter().any(|id| id == shops[0].id()) { Err(format!("{left:?}")) } else { Ok(()) }
    })
    .await;
    assert!(place.log().contains("instance had more than it may and was ended"));
    shops[1].answers().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_shop_that_forks_or_hoards_without_end_harms_itself_alone() {
    let Some(place) = Place::beside_others("bomb").await else { return };
    let daemon = place.daemon(&[]).await;
    let controllers = std::fs::read_to_string(place.cgroup().join("cgroup.controllers")).unwrap();
    println!("controllers in force: {:?}; what they do not hold, the daemon watches", controllers.trim());
    let neighbour = daemon.acquire("restore").await;
    // The recipe allows 128 processes and 512 MB.
    let fork = "for n in $(seq 400); do sleep 60 & done 2>/dev/null; wait";
    let hoard =
        "exec php -d memory_limit=-1 -r 'for (;;) { $a[] = str_repeat(\"x\", 1 << 20); usleep(500); }'";
    for (what, attack) in [("processes", fork), ("memory", hoard)] {
        let shop = daemon.acquire("restore").await;
        let exec = ["exec", shop.id(), "--", "sh", "-c", attack];
        let (place, id) = (&place, shop.id());
        let attacked = async { tokio::time::timeout(Duration::from_secs(40), place.cli(&exec)).await };
        let watched = eventually("it is ended or held", 40, async || {
            let processes = std::fs::read_to_string(place.cgroup().join(id).join("cgroup.procs"));
            let count = processes.as_deref().map_or(0, |all| all.lines().count());
            let held = controllers.contains("pids") && controllers.contains("memory");
            match (held, daemon.ids().await.iter().any(|other| other == id)) {
                (true, _) if count <= 128 => Ok(()),
                (_, false) => Ok(()),
                (_, true) => Err(format!("{count} processes")),
            }
        });
        let (_, ()) = tokio::join!(attacked, watched);
        if !controllers.contains(if what == "memory" { "memory" } else { "pids" }) {
            assert!(place.log().contains(&format!("\"what\":\"{what}\"")), "{what}: {}", place.log());
        }
        neighbour.answers().await;
    }
    daemon.stop().await;
}
