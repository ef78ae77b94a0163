//! The OpenAPI document against the daemon it describes.
//!
//! `tests/run contract` installs schemathesis and runs what is ignored here.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::path::Path;
use std::process::Stdio;

use common::Host;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs schemathesis: tests/run contract"]
async fn the_daemon_keeps_what_its_document_promises() {
    let program = std::env::var("SCHEMATHESIS").expect("SCHEMATHESIS names the program");
    let host = Host::new();
    let settings = [("MAX_INSTANCES", "100000"), ("POOL_TARGET_SIZE", "1")];
    let daemon = host.start(&settings).await;
    let scratch = tempfile::tempdir().unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contract/schemathesis.toml");
    let output = tokio::process::Command::new(program)
        .arg("--config-file")
        .arg(config)
        .args(["run", &format!("http://{}/api/openapi.json", daemon.address)])
        .args(["--checks", "all", "--no-color"])
        .current_dir(scratch.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", output.status);
    assert_eq!(daemon.get("/livez").await.status, 200, "it lives");
    daemon.stop().await;
}
