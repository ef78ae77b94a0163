//! Files of a daemon that a disk has damaged: a bit turned, an end lost. Whichever it
//! is, the next daemon serves what was stored, or does not start and says which file it
//! is and what to do; never does it serve anything else, and never does it panic.
//!
//! Snapshots, their signatures and the store at a power cut are tried beside the code,
//! and so are files that only a daemon on Valkey or on CRIU writes.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{Daemon, Host};
use demo_multiplexer::app::OnExit;
use demo_multiplexer::error::Chain;
use serde_json::Value;

/// What becomes of a daemon whose file of that kind is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It serves as if nothing were: the file says nothing that matters, or is made anew.
    Serves,
    /// It serves what was there, or says what to do about the file.
    ServesOrRefuses,
}

/// Every kind of file that a daemon on the embedded store writes, by how its path begins.
const KINDS: &[(&str, Then)] = &[
    ("lock", Then::Serves),
    // Who follows an old link reads less.
    ("ended", Then::Serves),
    ("store.redb", Then::ServesOrRefuses),
    // Another key: visitors are forgotten, nobody is taken for another one.
    ("web.key", Then::ServesOrRefuses),
    // Whoever waited is told, or not told: leases are as they were.
    ("webhooks/", Then::Serves),
];

/// Nobody listens there, so events wait.
const SETTINGS: &[(&str, &str)] =
    &[("WEBHOOK_URLS", "http://127.0.0.1:9/"), ("WEBHOOK_SECRET", "0123456789abcdef")];

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let bytes = std::fs::read(&path).unwrap();
                found.insert(path.strip_prefix(dir).unwrap().to_owned(), bytes);
            }
        }
    }
    found
}

/// Has a directory hold these files and no others, with the modes that they had.
fn put_back(dir: &Path, whole: &BTreeMap<PathBuf, Vec<u8>>) {
    for path in files(dir).keys().filter(|path| !whole.contains_key(*path)) {
        std::fs::remove_file(dir.join(path)).unwrap();
    }
    for (path, bytes) in whole {
        let path = dir.join(path);
        if !path.try_exists().unwrap() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        std::fs::write(path, bytes).unwrap();
    }
}

fn then(path: &Path) -> Then {
    let kind = KINDS.iter().find(|(begin, _)| path.to_str().unwrap().starts_with(begin));
    kind.unwrap_or_else(|| panic!("{} is of no kind that is tried", path.display())).1
}

/// Some damages of a file: bits turned where something is, and ends lost.
fn damages(whole: &[u8], turns: usize) -> Vec<(String, Vec<u8>)> {
    let used: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    let mut damages = Vec::new();
    for n in 0..turns {
        if let Some(at) = used.get(n * used.len() / turns) {
            let mut turned = whole.to_vec();
            turned[*at] ^= 1 << (n % 8);
            damages.push((format!("bit {n} of byte {at} is turned"), turned));
        }
    }
    for part in [0, 1] {
        let end = whole.len() * part / 2;
        damages.push((format!("it ends at {end} of {}", whole.len()), whole[..end].to_vec()));
    }
    damages.push(("something else is there".into(), b"something else, and longer than a key".repeat(3)));
    damages
}

/// What visitors have, in the daemon's own words.
async fn leases(daemon: &Daemon) -> BTreeMap<String, Value> {
    let listed = daemon.get("/api/v1/demo").await.json();
    let of = |one: &Value| {
        let mut kept = one.clone();
        // What goes on by itself.
        kept.as_object_mut().unwrap().remove("ttl_seconds");
        (one["id"].as_str().unwrap().to_owned(), kept)
    };
    listed["instances"].as_array().unwrap().iter().map(of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_named_or_changes_nothing() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let host = Host::new();
    let daemon = host.start(SETTINGS).await;
    for key in ["one", "two"] {
        let body = format!(r#"{{"idempotency_key": "{key}", "ttl": "1h"}}"#);
        assert_eq!(daemon.post("/api/v1/demo/acquire", &body).await.status, 201);
    }
    let before = leases(&daemon).await;
    assert_eq!(before.len(), 2);
    daemon.stop().await;
    let dir = host.state_dir();
    let whole = files(&dir);
    for (kind, _) in KINDS {
        assert!(
            whole.keys().any(|path| path.to_str().unwrap().starts_with(kind)),
            "no {kind}: {:?}",
            whole.keys()
        );
    }
    let mut refused = 0;
    for (path, bytes) in &whole {
        let wanted = then(path);
        // A receiver that is not there holds up a daemon's end, and each byte of these files is
        // tried beside the code.
        let waits = path.starts_with("webhooks");
        let (settings, turns) = if waits { (SETTINGS, 1) } else { (&[][..], 8) };
        for (what, damaged) in damages(bytes, turns) {
            let case = format!("{}: {what}", path.display());
            std::fs::write(dir.join(path), damaged).unwrap();
            match host.build(settings, OnExit::KeepInstances).await {
                Ok(app) => {
                    let daemon = Host::run(app).await;
                    assert_eq!(leases(&daemon).await, before, "{case}");
                    // It can be written, too.
                    let more = daemon.acquire().await.id();
                    assert_eq!(daemon.delete(&format!("/api/v1/demo/{more}")).await.status, 204, "{case}");
                    daemon.stop().await;
                }
                Err(error) => {
                    let told = Chain(&error).to_string();
                    assert_eq!(wanted, Then::ServesOrRefuses, "{case}: {told}");
                    assert!(told.contains(dir.join(path).to_str().unwrap()), "{case}: {told}");
                    let what_to_do = ["move it away", "remove it"];
                    assert!(what_to_do.iter().any(|words| told.contains(words)), "{case}: {told}");
                    refused += 1;
                }
            }
            put_back(&dir, &whole);
        }
    }
    assert!(refused > 5, "{refused} were refused");
}
