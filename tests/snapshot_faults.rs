//! Bad material: snapshots that are damaged, foreign, half-written or of a
//! golden that cannot be frozen. Each time it is said what is wrong with which,
//! and a daemon says in every answer that it fell back.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use demo_multiplexer::failpoint::VARIABLE;
use host::identity::login_path;
use host::place::run;
use host::{Daemon, Place, eventually, golden, same};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// A place with a copy of the snapshot, and nothing prepared of it.
struct Material {
    place: Place,
    id: String,
    dir: PathBuf,
}

impl Material {
    async fn copy(name: &'static str) -> Option<Self> {
        let place = Place::beside_others(name).await?;
        let (id, from) = golden::snapshot();
        let dir = place.dir.join("snapshots").join(&id);
        std::fs::create_dir_all(&dir).unwrap();
        for name in ["manifest.json", "manifest.sig", "memory.tar.zst", "files.tar.zst"] {
            std::fs::copy(from.join(name), dir.join(name)).unwrap();
        }
        std::fs::remove_file(place.state_dir().join("prepared")).unwrap();
        place.has_its_own("images");
        Some(Self { place, id, dir })
    }

    fn snapshots(&self) -> String {
        self.dir.parent().unwrap().display().to_string()
    }

    async fn cli(&self, args: &[&str]) -> host::place::Said {
        self.place.cli_with(args, &[("SNAPSHOT_DIR", &self.snapshots())]).await
    }

    /// A daemon on it that may boot what it cannot restore.
    async fn daemon(&self) -> Daemon<'_> {
        self.place.daemon(&[("SNAPSHOT_DIR", &self.snapshots()), ("COLD_START", "allowed")]).await
    }

    /// Without cold starts there is nothing to serve, and it says why.
    async fn cannot_be_served(&self, why: &str) {
        let said = self.cli(&["serve", "--cold-start", "refused"]).await.refused();
        for part in [why, "can neither be restored", "snapshot create wordpress"] {
            assert!(said.contains(part), "{part:?} is not said: {said}");
        }
    }

    /// With them it serves, and does not hide why it is slow.
    async fn is_booted_instead(&self, why: &str) {
        let daemon = self.daemon().await;
        let stats = daemon.stats().await;
        let told = stats["goldens"][0]["no_restore"].as_str().unwrap_or_default();
        assert!(told.contains(why) && told.contains(&self.id), "{told}");
        let shop = daemon.acquire("cold").await;
        shop.answers().await;
        assert!(shop.browser().log_in(shop.text("admin_password")).await);
        let mut browser = shop.browser();
        browser.get(&login_path(&shop)).await;
        assert!(browser.is_in().await, "by its login link");
        let shown = daemon.get(&format!("/api/v1/demo/{}", shop.id())).await.json();
        assert_eq!((&shown["made_by"], &shown["snapshot"]), (&json!("cold"), &Value::Null));
        assert_eq!(daemon.stats().await["goldens"][0]["handed_over"], json!({ "cold": 1 }));
        assert!(self.place.log().contains("falling back to a cold start"));
        assert_eq!(self.place.inside(shop.id(), &["hostname"]).await, shop.id());
        daemon.release(shop.id()).await;
        daemon.holds_nothing().await;
        daemon.stop().await;
        let containers = run("podman", &["ps", "--all", "--format", "{{.Names}}"]).await.ok();
        assert!(!containers.contains(shop.id()), "{containers}");
    }

    fn change_manifest(&self, change: impl FnOnce(&mut Value)) {
        let path = self.dir.join("manifest.json");
        let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut manifest);
        std::fs::write(&path, manifest.to_string()).unwrap();
    }

    fn damage(&self, name: &str) {
        turn_a_bit(&self.dir.join(name));
    }

    /// What is prepared of it.
    fn prepared(&self) -> PathBuf {
        self.place.state_dir().join("prepared").join(&self.id)
    }
}

/// One in the middle of a file.
fn turn_a_bit(path: &Path) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let (middle, mut byte) = (file.metadata().unwrap().len() / 2, [0]);
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();
}

#[tokio::test]
async fn one_flipped_bit_in_the_memory_is_named_and_the_golden_is_booted_instead() {
    let Some(material) = Material::copy("memory-bit").await else { return };
    assert!(material.cli(&["snapshot", "verify"]).await.ok().contains("whole"));
    material.damage("memory.tar.zst");
    is_named(&material, "memory.tar.zst").await;
    material.cannot_be_served("memory.tar.zst").await;
    material.is_booted_instead("memory.tar.zst").await;
    assert_eq!(prepared(&material.place), Vec::<String>::new(), "nothing half unpacked");
}

#[tokio::test]
async fn one_flipped_bit_in_the_files_is_named_and_nothing_of_them_is_used() {
    let Some(material) = Material::copy("files-bit").await else { return };
    material.damage("files.tar.zst");
    is_named(&material, "files.tar.zst").await;
    material.cannot_be_served("files.tar.zst").await;
    assert_eq!(prepared(&material.place), Vec::<String>::new(), "nothing half unpacked");
}

async fn is_named(material: &Material, archive: &str) {
    for args in [vec!["snapshot", "verify"], vec!["snapshot", "verify", &material.id]] {
        let said = material.cli(&args).await;
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.out.contains(&material.id) && said.out.contains(archive), "{said:?}");
        assert!(said.err.contains(&format!("damaged: {}", material.id)), "{said:?}");
        assert!(said.err.contains("snapshot create"), "{said:?}");
    }
    let said = material.cli(&["snapshot", "verify", "--json"]).await;
    let listed: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&listed[0]["id"], &listed[0]["whole"]), (&json!(material.id), &json!(false)));
}

/// What is prepared in a state directory.
fn prepared(place: &Place) -> Vec<String> {
    let entries = std::fs::read_dir(place.state_dir().join("prepared")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn a_foreign_format_version_is_named_with_what_to_do() {
    let Some(material) = Material::copy("version").await else { return };
    material.change_manifest(|manifest| manifest["format_version"] = json!(77));
    let why = "the manifest has format version 77; this program reads 1 to 2: take the snapshot anew";
    for verb in ["inspect", "verify"] {
        let said = material.cli(&["snapshot", verb, &material.id]).await;
        assert_eq!(said.code, Some(1));
        assert!((said.out + &said.err).contains(why));
    }
    assert!(material.cli(&["snapshot", "list"]).await.ok().contains("format version 77"));
    material.cannot_be_served(why).await;
}

#[tokio::test]
async fn a_snapshot_of_another_processor_is_refused_and_the_golden_is_booted_instead() {
    let Some(material) = Material::copy("processor").await else { return };
    material.change_manifest(|manifest| {
        manifest["host"]["cpu_features"].as_array_mut().unwrap().push(json!("avx9000"));
    });
    material.cli(&["snapshot", "sign", &material.id]).await.ok();
    material.cannot_be_served("this host's processor lacks avx9000").await;
    material.is_booted_instead("this host's processor lacks avx9000").await;
}

#[tokio::test]
async fn a_snapshot_that_no_trusted_key_signed_is_never_prepared() {
    let Some(material) = Material::copy("untrusted").await else { return };
    material.change_manifest(|manifest| manifest["root_mode"] = json!(0o777));
    let why = "its signature is of no key that this host trusts, or it was changed";
    let said = material.cli(&["snapshot", "verify"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.out.contains(why), "{said:?}");
    material.cannot_be_served(why).await;
    std::fs::remove_file(material.dir.join("manifest.sig")).unwrap();
    material.cannot_be_served("it is not signed").await;
    assert!(!material.place.state_dir().join("prepared").try_exists().unwrap(), "nothing was unpacked");
    // It may be looked at, and trusted by hand.
    assert_eq!(material.cli(&["snapshot", "inspect", &material.id]).await.json()["root_mode"], json!(0o777));
    material.cli(&["snapshot", "sign", &material.id]).await.ok();
    material.cli(&["snapshot", "verify"]).await.ok();
    let key = material.cli(&["snapshot", "key"]).await.ok();
    let (manifest, signature) = (material.dir.join("manifest.json"), material.dir.join("manifest.sig"));
    let openssl = ["pkeyutl", "-verify", "-pubin", "-inkey", key.trim(), "-rawin", "-in"];
    let files = [manifest.to_str().unwrap(), "-sigfile", signature.to_str().unwrap()];
    run("openssl", &[&openssl[..], &files[..]].concat()).await.ok();
}

#[tokio::test]
async fn a_restore_that_fails_at_run_time_is_503_or_visibly_a_cold_start() {
    let Some(material) = Material::copy("run-time").await else { return };
    // Whole when it was prepared, spoilt since.
    let settings = [("SNAPSHOT_DIR", &*material.snapshots()), ("COLD_START", "refused")];
    let daemon = material.place.daemon(&settings).await;
    let inventory = material.prepared().join("images/inventory.img");
    let spoil = || std::fs::write(&inventory, b"no longer an inventory").unwrap();
    spoil();
    for _ in 0..2 {
        let reply = daemon.try_acquire(&json!({})).await;
        let detail = reply.problem(503);
        assert!(detail.contains("no instance of wordpress was ready and making one failed"), "{detail}");
        assert_eq!(reply.header("retry-after"), None, "no use in coming back");
    }
    daemon.holds_nothing().await;
    let stats = daemon.stats().await;
    let failure = stats["goldens"][0]["failures"]["last_error"].as_str().unwrap();
    assert!(failure.contains("failed in phase restore: CRIU did not restore"), "{failure}");
    daemon.stop().await;

    let daemon = material.daemon().await;
    // It was put right at the start.
    spoil();
    daemon.acquire("cold").await.answers().await;
    daemon.stop().await;
}

#[tokio::test]
async fn bits_that_turn_in_what_is_prepared_are_found_and_put_right_before_anybody_gets_them() {
    let Some(material) = Material::copy("prepared-bits").await else { return };
    // The image's files as well are its own.
    let images = material.place.state_dir().join("images");
    std::fs::remove_dir_all(&images).unwrap();
    let daemon = material.daemon().await;
    daemon.acquire("restore").await.answers().await;
    daemon.stop().await;
    assert!(material.cli(&["snapshot", "verify"]).await.ok().contains("whole"));
    let image = images.join(&names(&images)[0]);
    let memory = material.prepared().join("upper/.memory").join(&material.id);
    let files = [
        material.prepared().join("images/inventory.img"),
        memory.join(&names(&memory)[0]),
        image.join("rootfs/usr/bin/env"),
    ];
    for file in &files {
        turn_a_bit(file);
    }
    let said = material.cli(&["snapshot", "verify"]).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.out.contains("images/inventory.img is damaged: restart the daemon"), "{said:?}");
    let daemon = material.daemon().await;
    for file in &files {
        let log = material.place.log();
        let told = |line: &str| line.contains(file.to_str().unwrap()) && line.contains("not as it was made");
        assert!(log.lines().any(told), "{}: {log}", file.display());
    }
    daemon.acquire("restore").await.answers().await;
    daemon.stop().await;
    assert!(material.cli(&["snapshot", "verify"]).await.ok().contains("whole"));
    assert_eq!(prepared(&material.place), [material.id.as_str()], "nothing else is left");
    // Where it cannot be put right, nobody gets it.
    turn_a_bit(&files[0]);
    material.damage("memory.tar.zst");
    material.cannot_be_served("memory.tar.zst").await;
}

#[tokio::test]
async fn an_unknown_golden_is_refused_by_every_command() {
    let Some(place) = Place::beside_others("unknown").await else { return };
    for args in [
        &["golden", "build", "nowhere"][..],
        &["snapshot", "create", "nowhere"],
        &["serve", "--golden", "nowhere"],
        &["serve", "--golden", "wordpress,nowhere"],
    ] {
        let said = place.cli(args).await.refused();
        assert!(said.contains("golden \"nowhere\" is unknown"), "{args:?}: {said}");
        assert!(said.contains("there are: wordpress"), "{args:?}: {said}");
    }
    let daemon = place.daemon(&[]).await;
    let detail = daemon.try_acquire(&json!({ "golden": "nowhere" })).await.problem(400);
    assert_eq!(detail, "golden \"nowhere\" is unknown; there are: wordpress");
    daemon.holds_nothing().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_snapshot_whose_making_is_killed_is_never_seen_and_the_next_one_removes_it() {
    let Some(place) = Place::beside_others("killed").await else { return };
    let (snapshots, file) = (place.dir.join("snapshots"), place.dir.join("fail"));
    let (folder, container) = golden::small(&place).await;
    let args = ["snapshot", "create", &folder, "--json"];
    let changes = [("SNAPSHOT_DIR", snapshots.to_str().unwrap()), (VARIABLE, file.to_str().unwrap())];
    // The golden is frozen, its archives are written, and nothing names them yet.
    std::fs::write(&file, "checkpoint:before-publish=wait\n").unwrap();
    let mut creating = place.program(&args, &changes);
    let mut creating = creating.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let said = BufReader::new(creating.stderr.take().unwrap());
    let waits = tokio::task::spawn_blocking(|| {
        said.lines().map_while(Result::ok).any(|line| line.contains("checkpoint:before-publish: Wait"))
    });
    assert!(waits.await.unwrap(), "it ended by itself");
    let half = snapshots.join(names(&snapshots).into_iter().find(|name| name.starts_with(".new-")).unwrap());
    kill(Pid::from_raw(i32::try_from(creating.id()).unwrap()), Signal::SIGKILL).unwrap();
    creating.wait().unwrap();
    assert!(half.join("memory.tar.zst").is_file() && half.join("files.tar.zst").is_file());
    std::fs::remove_file(&file).unwrap();
    assert_eq!(place.cli_with(&["snapshot", "list", "--json"], &changes).await.json(), json!([]));

    let manifest = place.cli_with(&args, &changes).await.json();
    let id = manifest["id"].as_str().unwrap();
    assert_eq!(names(&snapshots), [".lock", id], "and nothing of the first one");
    place.cli_with(&["snapshot", "verify"], &changes).await.ok();
    let containers = run("podman", &["ps", "--all", "--format", "{{.Names}}"]).await.ok();
    assert!(!containers.contains(&container), "{containers}");
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_golden_that_keeps_the_pipes_it_was_started_with_is_not_frozen() {
    let Some(place) = Place::beside_others("pipes").await else { return };
    let entry_point = ["tini", "--", "nginx", "-g", "daemon off; error_log stderr;"];
    let folder = golden::nginx_alone(&place, "pipes", &entry_point).await;
    let snapshots = place.dir.join("snapshots");
    let changes = [("SNAPSHOT_DIR", snapshots.to_str().unwrap())];
    let said = place.cli_with(&["snapshot", "create", folder.to_str().unwrap()], &changes).await.refused();
    assert!(said.contains("in the golden still has the pipes it was started with"), "{said}");
    assert!(said.contains("redirect stdin, stdout and stderr to files"), "{said}");
    assert!(said.contains("tini"), "the process is named: {said}");
    assert_eq!(names(&snapshots), [".lock"]);
    eventually("its container is gone", 10, async || {
        let containers = run("podman", &["ps", "--all", "--format", "{{.Names}}"]).await.ok();
        same(&containers.contains("dm-golden-pipes"), &false)
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_that_is_there_later_is_restored_at_once_and_removed_when_nobody_needs_it() {
    let Some(material) = Material::copy("later").await else { return };
    let (place, aside) = (&material.place, material.place.dir.join("aside"));
    std::fs::rename(&material.dir, &aside).unwrap();
    let settings = [("SNAPSHOT_DIR", material.snapshots()), ("COLD_START", "allowed".to_owned())];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let daemon = place.lasting_daemon(&settings).await;
    let booted = daemon.acquire("cold").await;
    // As it appears when it has been taken, or has come from another host.
    std::fs::rename(&aside, &material.dir).unwrap();
    eventually("shops are restored", 90, async || {
        let goldens = daemon.get("/api/v1/goldens").await.json();
        let golden = &goldens["goldens"][0];
        if golden["snapshot"] == material.id.as_str() { Ok(()) } else { Err(golden.to_string()) }
    })
    .await;
    let restored = daemon.acquire_any().await;
    restored.answers().await;
    booted.answers().await;
    let shown = daemon.get(&format!("/api/v1/demo/{}", restored.id())).await.json();
    assert_eq!(shown["snapshot"], material.id.as_str(), "{shown}");
    let remove =
        async |more: &[&str]| material.cli(&[&["snapshot", "rm", &material.id], more].concat()).await;
    let said = remove(&[]).await.refused();
    assert!(said.contains("is in use: shops are restored from it; promote another one first"), "{said}");
    daemon.release(booted.id()).await;
    daemon.kill().await;

    // It lives on without the daemon, on files of the snapshot's.
    let said = remove(&[]).await.refused();
    assert!(said.contains(&format!("is in use: {} runs on its files", restored.id())), "{said}");
    place.cli(&["reap", "--all"]).await.ok();
    assert_eq!(remove(&["--json"]).await.json(), json!({ "id": material.id, "removed": true }));
    assert!(
        !material.dir.try_exists().unwrap() && prepared(place).is_empty(),
        "nor is anything prepared of it"
    );
    assert!(remove(&[]).await.refused().contains("is unknown: `snapshot list` shows"));
}
