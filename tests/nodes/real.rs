//! Two daemons with shops restored by CRIU: one visitor, and one snapshot for both.

use std::path::{Path, PathBuf};

use demo_multiplexer::snapshot::depot::{BUCKET_BYTES, Depot};

use crate::host::place::run;
use crate::host::{Place, eventually, golden, web};
use crate::nats;
use crate::server::{self, Server};

#[tokio::test]
async fn a_restored_shop_is_served_through_another_daemon_until_its_own_one_dies() {
    if !server::is_there("a_restored_shop_is_served_through_another_daemon_until_its_own_one_dies") {
        return;
    }
    let Some(one) = Place::beside_others("nodes-one").await else { return };
    let Some(two) = Place::beside_others("nodes-two").await else { return };
    let valkey = Server::start().await;
    let (url, dir) = (valkey.url(), tempfile::tempdir().unwrap());
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    crate::machine::private(&secret);
    let (at_one, at_two) = (one.address().to_string(), two.address().to_string());
    let first = one.daemon(&settings("one", &at_one, &url, &secret)).await;
    let of_two = [&settings("two", &at_two, &url, &secret)[..], &[("POOL_TARGET_SIZE", "1")]].concat();
    let second = two.daemon(&of_two).await;
    second.pool_has(1).await;

    let shop = first.acquire("pool").await;
    assert!(one.traces().cgroups.is_empty(), "it is the other one's");
    shop.answers().await;
    assert!(shop.browser().log_in(shop.text("admin_password")).await, "forms and cookies pass both ways");

    second.kill().await;
    eventually("its visitor is told", 60, async || {
        let page = shop.get("/").await;
        match page.status == 410 && page.text().contains("This shop is lost") {
            true => Ok(()),
            false => Err(format!("{}: {}", page.status, page.text())),
        }
    })
    .await;
    // What the dead daemon left behind: the next one takes down what was given up.
    let second = two.daemon(&of_two).await;
    eventually("the lost shop is gone", 60, async || {
        match two.traces().cgroups.iter().any(|name| name == shop.id()) {
            true => Err("it is there".to_owned()),
            false => Ok(()),
        }
    })
    .await;
    second.pool_has(1).await;
    let another = first.acquire("pool").await;
    assert!(another.get("/").await.text().contains(golden::TITLE));
    for daemon in [first, second] {
        daemon.stop().await;
    }
}

fn settings<'a>(
    node: &'a str,
    address: &'a str,
    store: &'a str,
    secret: &'a Path,
) -> Vec<(&'a str, &'a str)> {
    vec![
        ("NODE_NAME", node),
        ("NODE_ADDRESS", address),
        ("NODE_SECRET_FILE", secret.to_str().unwrap()),
        ("STORE_URL", store),
    ]
}

#[tokio::test]
async fn a_node_without_a_snapshot_serves_what_the_others_do() {
    let name = "a_node_without_a_snapshot_serves_what_the_others_do";
    if !server::is_there(name) || !nats::is_there(name) {
        return;
    }
    let Some(one) = Place::beside_others("nodes-sender").await else { return };
    let Some(two) = Place::beside_others("nodes-receiver").await else { return };
    let (valkey, nats) = (Server::start().await, nats::Server::start());
    let (url, dir) = (valkey.url(), tempfile::tempdir().unwrap());
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    crate::machine::private(&secret);
    let (snapshot, from) = golden::snapshot();
    let dirs = [one.has_its_own_snapshots(&golden::snapshots()).await, two.dir.join("snapshots")];
    std::fs::create_dir_all(&dirs[1]).unwrap();
    // What the golden was before its recipe changed would be pruned, too.
    for entry in std::fs::read_dir(&dirs[0]).unwrap().flatten() {
        if entry.path().is_dir() && entry.file_name() != *snapshot {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    let podman = Podman::of(&two).await;
    let (at_one, at_two) = (one.address().to_string(), two.address().to_string());
    let nats_url = nats.url();
    let more =
        dirs.each_ref().map(|dir| [("NATS_URL", nats_url.as_str()), ("SNAPSHOT_DIR", dir.to_str().unwrap())]);
    let of_one = [&settings("one", &at_one, &url, &secret)[..], &more[0]].concat();
    let images = [("CONTAINERS_STORAGE_CONF", podman.settings.to_str().unwrap())];
    let of_two = [&settings("two", &at_two, &url, &secret)[..], &more[1], &images].concat();
    let first = one.daemon(&of_one).await;
    let path = format!("/api/v1/snapshots/{snapshot}/promote");
    let begun = web::send(first.address(), "POST", "localhost", &path, &[], "").await.unwrap();
    assert_eq!(begun.status, 202, "{}", begun.text());
    let task = format!("/api/v1/tasks/{}", begun.json()["number"]);
    eventually("it is promoted, and sent with its image", 180, async || {
        let task = first.get(&task).await.json();
        let result = task["result"].as_str().unwrap_or_default();
        if result.ends_with("the other nodes are told") { Ok(()) } else { Err(task.to_string()) }
    })
    .await;

    let second = two.daemon(&of_two).await;
    let goldens = second.get("/api/v1/goldens").await.json();
    assert_eq!(goldens["goldens"][0]["snapshot"], snapshot.as_str(), "{goldens}");
    assert!(two.log().contains("snapshot fetched from another node"));
    assert_eq!(podman.images().await, [image_of(&from)], "its image came along, and is the same one");
    first.stop().await;
    let shop = second.acquire("restore").await;
    assert!(shop.get("/").await.text().contains(golden::TITLE));
    second.stop().await;

    // What is old is removed for all.
    let old = older(&dirs[0], &snapshot);
    one.cli_with(&["snapshot", "sign", &old], &of_one).await.ok();
    let sent = one.cli_with(&["snapshot", "push", &old, "--json"], &of_one).await.json();
    assert_eq!(sent["moved_bytes"], 0, "all of it was there: {sent}");
    let jetstream = async_nats::jetstream::new(async_nats::connect(nats.url()).await.unwrap());
    let depot = Depot::open(&jetstream, "demo-multiplexer", BUCKET_BYTES).await.unwrap();
    assert_eq!(depot.list().await.unwrap().len(), 2);
    let pruned = one.cli_with(&["snapshot", "prune", "--keep", "1", "--json"], &of_one).await.json();
    assert_eq!(pruned, serde_json::json!([old]));
    assert_eq!(depot.list().await.unwrap(), [snapshot.parse().unwrap()]);
    // Removed at one node, it stays where the others find it: it is what they serve.
    one.cli_with(&["snapshot", "rm", &snapshot], &of_one).await.ok();
    assert!(!dirs[0].join(&snapshot).try_exists().unwrap());
    assert_eq!(depot.list().await.unwrap(), [snapshot.parse().unwrap()]);
    one.cli_with(&["snapshot", "pull", &snapshot], &of_one).await.ok();
    assert!(dirs[0].join(&snapshot).join("manifest.json").is_file(), "and can be had again");
}

fn manifest(snapshot: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(snapshot.join("manifest.json")).unwrap()).unwrap()
}

/// The image that a snapshot stands on.
fn image_of(snapshot: &Path) -> String {
    manifest(snapshot)["image_id"].as_str().unwrap().to_owned()
}

/// Another snapshot beside that one, of the same content and taken before; not signed.
fn older(dir: &Path, snapshot: &str) -> String {
    let old = format!("{}-20200101t000000z-0001", golden::NAME);
    let (from, to) = (dir.join(snapshot), dir.join(&old));
    std::fs::create_dir(&to).unwrap();
    let mut manifest = manifest(&from);
    (manifest["id"], manifest["created_at"]) = (old.as_str().into(), "2020-01-01T00:00:00Z".into());
    std::fs::write(to.join("manifest.json"), manifest.to_string()).unwrap();
    for archive in manifest["archives"].as_object().unwrap().keys() {
        std::fs::hard_link(from.join(archive), to.join(archive)).unwrap();
    }
    old
}

/// Another host's Podman: both daemons are on one host, whose images one of them is not to see.
struct Podman {
    /// Of its storage: `CONTAINERS_STORAGE_CONF`.
    settings: PathBuf,
    dir: PathBuf,
}

impl Podman {
    /// Without an image; nor has the place anything prepared.
    async fn of(place: &Place) -> Self {
        for kind in ["prepared", "images"] {
            std::fs::remove_file(place.state_dir().join(kind)).unwrap();
        }
        let dir = place.dir.join("containers");
        std::fs::create_dir_all(&dir).unwrap();
        let podman = Self { settings: dir.join("storage.conf"), dir };
        let text = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{0}/root\"\nrunroot = \"{0}/run\"\n",
            podman.dir.display()
        );
        std::fs::write(&podman.settings, text).unwrap();
        assert!(podman.images().await.is_empty());
        podman
    }

    async fn run(&self, args: &[&str]) -> String {
        let [root, run_root] = ["root", "run"].map(|name| self.dir.join(name).display().to_string());
        run("podman", &[&["--root", &root, "--runroot", &run_root], args].concat()).await.ok()
    }

    async fn images(&self) -> Vec<String> {
        let listed = self.run(&["images", "--quiet", "--no-trunc"]).await;
        listed.lines().map(|line| line.trim_start_matches("sha256:").to_owned()).collect()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Podman makes it a mount of its own, which would keep the directory.
        let mount = self.dir.join("root/overlay");
        drop(std::process::Command::new("umount").args(["--quiet", "--lazy"]).arg(mount).output());
    }
}
