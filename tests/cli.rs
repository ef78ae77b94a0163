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
async fn completions_name_the_commands() {
    let script = stdout(&run(None, &["completions", "bash"]).await);
    assert!(script.contains("acquire") && script.contains("--pool-target-size"), "{script:.300}");
}
