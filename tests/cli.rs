//! The client commands of the real program against a daemon on a scripted engine.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::process::Output;

use common::{Daemon, Host};
use demo_multiplexer::testing::eventually;
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
    let told = refusal(&run(Some(&daemon), &["acquire", "--golden", "othre"]).await, 1);
    assert!(told.contains("did you mean other?"), "{told}");
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
    assert!(told.contains("systemctl start demo-multiplexer"), "{told}");
}

#[tokio::test]
async fn who_shows_no_token_or_a_wrong_one_is_told_where_it_goes() {
    let host = Host::new();
    let entry = format!("ops:operate:{}", "0".repeat(64));
    let daemon = host.start(&[("API_TOKENS", &entry)]).await;
    let told = refusal(&run(Some(&daemon), &["ls"]).await, 1);
    assert!(told.contains("401") && told.contains("put it into API_TOKEN"), "{told}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "dmx_wrong\n").unwrap();
    let told = refusal(&run(Some(&daemon), &["ls", "--api-token-file", file.to_str().unwrap()]).await, 1);
    assert!(told.contains("look at API_TOKEN") && !told.contains("dmx_wrong"), "{told}");
}

#[tokio::test]
async fn a_name_that_is_nearly_right_is_put_right() {
    let recipes = concat!(env!("CARGO_MANIFEST_DIR"), "/podman");
    let told = refusal(&run(None, &["golden", "build", "wordpres", "--recipe-dir", recipes]).await, 1);
    assert!(told.contains("there are: prestashop, wordpress; did you mean wordpress?"), "{told}");
    let told = refusal(&run(None, &["snapshot", "verify", "shop-1", "--snapshot-dir", "/nowhere"]).await, 1);
    assert!(told.contains("shop-1 is unknown: `snapshot list` shows"), "{told}");
    let told = refusal(&run(None, &["snaphsot", "list"]).await, 64);
    assert!(told.contains("a similar subcommand exists: 'snapshot'"), "{told}");
}

/// Every command that answers a program: what it prints is JSON, and nothing else.
#[tokio::test]
async fn every_command_that_asks_the_daemon_answers_json() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let answer = async |args: &[&str]| -> Value {
        let said = stdout(&run(Some(&daemon), &[args, &["--json"]].concat()).await);
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{args:?}: {error}: {said}"))
    };
    let id = answer(&["acquire"]).await["id"].as_str().unwrap().to_owned();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&answer(&["release", &id]).await), ["id", "released"]);
    assert!(answer(&["ls"]).await["instances"].is_array());
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let state = ["--state-dir", state.to_str().unwrap()];
    let at = |args: &[&'static str]| -> Vec<&str> { args.iter().chain(&state).copied().collect() };
    assert_eq!(keys(&answer(&at(&["reap"])).await), ["alive", "ended"]);
    assert_eq!(
        keys(&answer(&["token", "create", "me", "--scope", "acquire"]).await),
        ["entry", "name", "scopes", "token"]
    );
    let empty = dir.path().join("snapshots");
    let empty = ["--snapshot-dir", empty.to_str().unwrap()];
    for verb in ["list", "verify"] {
        assert_eq!(answer(&["snapshot", verb, empty[0], empty[1]]).await, Value::Array(vec![]), "{verb}");
    }
}

#[tokio::test]
async fn a_pipe_gets_colours_only_by_force_and_nobody_does_against_his_will() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    stdout(&run(Some(&daemon), &["acquire"]).await);
    let has_colours = async |settings: &[(&str, &str)]| {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_demo-multiplexer"));
        command.arg("ls").current_dir("/").env_clear().env("API_URL", format!("http://{}", daemon.address));
        let output = command.envs(settings.iter().copied()).output().await.unwrap();
        stdout(&output).contains('\u{1b}')
    };
    assert!(!has_colours(&[]).await);
    assert!(has_colours(&[("CLICOLOR_FORCE", "1")]).await);
    assert!(!has_colours(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]).await);
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
    // Its end is told, and a second release is fine. It stays what it is until the stream has
    // told so: one that is late goes on with what comes then.
    host.restore.fail_destroy(true);
    let told = example(&daemon, &["--ttl", "2s", "--watch"]).await.unwrap();
    host.restore.fail_destroy(false);
    assert!(told.contains("state assigned") && told.contains("expired"), "{told}");
    let listed: Value = serde_json::from_str(&stdout(&run(Some(&daemon), &["ls", "--json"]).await)).unwrap();
    let left =
        listed["instances"].as_array().unwrap().iter().filter(|one| one["state"] == "assigned").count();
    assert_eq!(left, 0, "{listed}");
}

#[tokio::test]
async fn the_example_in_shell_gets_a_shop_and_lets_it_go() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/try_it.sh");
    let there = ["curl", "jq"].map(|tool| std::process::Command::new(tool).arg("--version").output().is_ok());
    if there != [true, true] {
        assert!(std::env::var("CI").is_err(), "this test needs curl and jq: install them");
        return println!("skipped: needs curl and jq");
    }
    let mut command = tokio::process::Command::new(program);
    command.arg(format!("http://{}", daemon.address)).env_remove("API_TOKEN");
    let told = stdout(&command.output().await.unwrap());
    assert!(told.contains("is yours until") && told.contains("it is assigned"), "{told}");
    assert!(told.ends_with("released\n"), "{told}");
    eventually("it has left", async || host.restore.running().is_empty().then_some(())).await;
}
