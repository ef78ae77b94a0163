//! The client commands of the real program against a daemon on a scripted engine.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::process::Output;

use common::{Daemon, Host};
use serde_json::Value;

/// Runs the program away from any `.env`, without this process' settings.
async fn run(daemon: Option<&Daemon>, args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_demo-multiplexer"));
    command.args(args).current_dir(dir.path()).env_clear();
    if let Some(daemon) = daemon {
        command.env("API_URL", format!("http://{}", daemon.address));
    }
    command.output().await.unwrap()
}

#[track_caller]
fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn refusal(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test]
async fn an_instance_is_acquired_listed_extended_and_released() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let daemon = Some(&daemon);
    let acquired = stdout(&run(daemon, &["acquire", "--ttl", "10m", "--golden", "other", "--json"]).await);
    let answer: Value = serde_json::from_str(&acquired).unwrap();
    let id = answer["id"].as_str().unwrap();
    assert_eq!(answer["golden"], "other");
    let listed = stdout(&run(daemon, &["ls"]).await);
    assert!(listed.contains("LEFT") && listed.contains(id) && listed.contains("assigned"), "{listed}");
    let listed: Value = serde_json::from_str(&stdout(&run(daemon, &["ls", "--json"]).await)).unwrap();
    assert_eq!(listed["instances"][0]["id"], id);
    let extended: Value =
        serde_json::from_str(&stdout(&run(daemon, &["extend", id, "20m", "--json"]).await)).unwrap();
    assert!(extended["ttl_seconds"].as_i64() > Some(1700), "{extended}");
    assert_eq!(stdout(&run(daemon, &["release", id]).await), format!("{id} released\n"));
    let told = refusal(&run(daemon, &["extend", id, "20m"]).await, 1);
    assert!(told.contains("is over (410 Gone)"), "{told}");
}

#[tokio::test]
async fn a_refusal_is_told_in_the_daemons_words() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let told = refusal(&run(Some(&daemon), &["acquire", "--ttl", "-5m"]).await, 1);
    assert!(told.contains("ttl \"-5m\" is not positive"), "{told}");
    let told = refusal(&run(Some(&daemon), &["acquire", "--golden", "magento"]).await, 1);
    assert!(told.contains("there are: shop, other"), "{told}");
}

#[tokio::test]
async fn visitors_come_at_a_fixed_rate_and_all_are_counted() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let load = ["bench", "--load", "40", "--for", "500ms", "--stay", "0s", "--json"];
    let report: Value = serde_json::from_str(&stdout(&run(Some(&daemon), &load).await)).unwrap();
    assert_eq!((&report["acquire"]["ok"], &report["release"]["ok"]), (&20.into(), &20.into()), "{report}");
    assert_eq!(report["sources"]["restore"], 20);
    assert_eq!(report["page"]["failed"], 20, "these shops answer nowhere");
    assert!(host.restore.running().is_empty(), "all have left");
    let told = refusal(&run(None, &["bench", "--load", "0"]).await, 64);
    assert!(told.contains("visitors a second"), "{told}");
}

#[tokio::test]
async fn without_a_daemon_the_settings_to_look_at_are_named() {
    let told = refusal(&run(None, &["ls", "--listen", "127.0.0.1:9"]).await, 1);
    assert!(told.contains("no answer from http://127.0.0.1:9") && told.contains("API_URL"), "{told}");
}

#[tokio::test]
async fn wrong_usage_and_wrong_settings_exit_with_64() {
    refusal(&run(None, &["acquier"]).await, 64);
    refusal(&run(None, &["release", "../../etc"]).await, 64);
    let told = refusal(&run(None, &["ls", "--listen", "nowhere", "--max-instances", "0"]).await, 64);
    assert!(told.contains("2 things are wrong") && told.contains("LISTEN=\"nowhere\""), "{told}");
    let told = refusal(&run(None, &["ls", "--log-format", "xml"]).await, 64);
    assert!(told.contains("one of auto, text, json"), "{told}");
}

#[tokio::test]
async fn every_command_has_a_manual_page_and_the_first_one_the_settings() {
    let directory = tempfile::tempdir().unwrap();
    stdout(&run(None, &["man", directory.path().to_str().unwrap()]).await);
    let page = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    let first = page("demo-multiplexer.1");
    assert!(first.contains("multiplexer\\-acquire(1)") && first.contains("Instances kept ready"), "{first}");
    assert!(page("demo-multiplexer-snapshot-create.1").contains("if\\-missing"));
    assert!(!page("demo-multiplexer-ls.1").contains("Instances kept ready"), "once is enough");
    let told = refusal(&run(None, &["man", "/nowhere/at/all"]).await, 1);
    assert!(told.contains("cannot write manual pages to /nowhere/at/all"), "{told}");
}

#[tokio::test]
async fn only_a_terminal_gets_colors() {
    let told = run(None, &["release", "abcdefghijkl", "--listen", "127.0.0.1:1"]).await;
    assert!(told.stderr.starts_with(b"error: no answer from"), "{told:?}");
}

#[tokio::test]
async fn completions_name_the_commands() {
    let script = stdout(&run(None, &["completions", "bash"]).await);
    assert!(script.contains("acquire") && script.contains("--pool-target-size"), "{script:.300}");
}

/// The example's output; none where Python is not.
async fn example(daemon: &Daemon, args: &[&str]) -> Option<String> {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/try_it.py");
    let mut command = tokio::process::Command::new("python3");
    command.arg(program).args(args).arg(format!("http://{}", daemon.address)).env_remove("API_TOKEN");
    match command.output().await {
        Ok(output) => Some(stdout(&output)),
        Err(_) if std::env::var("CI").is_err() => {
            println!("skipped: python3 is not installed");
            None
        }
        Err(error) => panic!("python3: {error}"),
    }
}

#[tokio::test]
async fn the_example_client_gets_a_shop_follows_it_and_lets_it_go() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let Some(told) = example(&daemon, &["--golden", "other", "--ttl", "10m"]).await else { return };
    assert!(told.contains("is yours until") && told.ends_with("released\n"), "{told}");
    // Its end is told, and a second release is fine.
    let told = example(&daemon, &["--ttl", "2s", "--watch"]).await.unwrap();
    assert!(told.contains("state assigned") && told.contains("expired"), "{told}");
    let listed: Value = serde_json::from_str(&stdout(&run(Some(&daemon), &["ls", "--json"]).await)).unwrap();
    let left =
        listed["instances"].as_array().unwrap().iter().filter(|one| one["state"] == "assigned").count();
    assert_eq!(left, 0, "{listed}");
}
