//! `doctor` on a real host.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "common/lab.rs"]
mod lab;

use std::path::Path;

use tokio::sync::Mutex;

use demo_multiplexer::doctor::{self, Finding, Form, Status};

fn seen_on(host: &Path) -> Vec<String> {
    let names = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().display().to_string()).collect::<Vec<_>>()
    };
    let mut seen: Vec<String> = [Path::new("/sys/fs/cgroup"), Path::new("/sys/class/net"), host]
        .into_iter()
        .flat_map(names)
        .chain(std::fs::read_to_string("/proc/self/mounts").unwrap().lines().map(str::to_owned))
        .collect();
    seen.sort();
    seen
}

/// Both tests look at the whole host, and each changes it for a moment.
static HOST: Mutex<()> = Mutex::const_new(());

#[tokio::test]
async fn a_host_that_runs_the_tests_is_fit_and_is_left_as_it_was() {
    if !lab::host_is_fit("doctor") {
        return;
    }
    let _alone = HOST.lock().await;
    let state = tempfile::tempdir_in("/var/tmp").unwrap();
    let config = lab::config(&[
        ("STATE_DIR", &state.path().display().to_string()),
        ("LISTEN", "127.0.0.1:0"),
        ("GOLDEN", "wordpress"),
    ]);
    let before = seen_on(state.path());
    let findings = doctor::examine(&config).await;
    assert_eq!(seen_on(state.path()), before);
    let report = doctor::report(&findings, Form::Text);
    assert!(report.possible, "{}", report.text);
    let of = |name: &str| findings.iter().find(|finding| finding.name == name).map(|finding| finding.status);
    for name in
        ["root", "capabilities", "cgroup", "criu-check", "checkpoint", "runtime", "overlayfs", "network"]
    {
        assert_eq!(of(name), Some(Status::Ok), "{name}\n{}", report.text);
    }
}

#[tokio::test]
async fn a_setting_that_cannot_work_here_fails_with_what_to_change() {
    if !lab::host_is_fit("doctor") {
        return;
    }
    let _alone = HOST.lock().await;
    // 192.0.2.0/24 is for documentation: no host has an address of it.
    let config = lab::config(&[
        ("STATE_DIR", "/proc/nowhere"),
        ("LISTEN", "192.0.2.1:80"),
        ("BRIDGE_NAME", "lo"),
        ("GOLDEN", "/nowhere"),
    ]);
    let findings = doctor::examine(&config).await;
    let not_ok = |finding: &&Finding| finding.status != Status::Ok;
    let of = |name: &str| findings.iter().filter(not_ok).find(|finding| finding.name == name).unwrap();
    for (name, setting) in [("state-dir", "STATE_DIR"), ("listen", "LISTEN"), ("bridge", "BRIDGE_NAME")] {
        assert_eq!(of(name).status, Status::Fail);
        assert!(of(name).advice.as_ref().unwrap().contains(setting), "{:?}", of(name));
    }
    assert_eq!(of("recipes").status, Status::Warn);
    assert!(!doctor::report(&findings, Form::Json).possible);
}
