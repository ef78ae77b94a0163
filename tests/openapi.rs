//! The OpenAPI document is complete, and the same wherever it is shown.
//!
//! That it lists every route and no other needs no test: both are made from one
//! list (`src/api/mod.rs`). That the daemon keeps it: `contract.rs`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::collections::BTreeSet;

use common::Host;
use demo_multiplexer::api::document;
use demo_multiplexer::api::problem::Problem;
use demo_multiplexer::error::ErrorKind;
use serde_json::{Value, json};

fn api() -> Value {
    serde_json::to_value(document()).unwrap()
}

/// Every operation: method and path, and what is said about it.
fn operations(api: &Value) -> Vec<(String, Value)> {
    let paths = api["paths"].as_object().unwrap();
    let of_path = |(path, item): (&String, &Value)| {
        let item = item.as_object().unwrap();
        item.iter().map(|(method, it)| (format!("{method} {path}"), it.clone())).collect::<Vec<_>>()
    };
    paths.iter().flat_map(of_path).collect()
}

fn responses(operation: &Value) -> impl Iterator<Item = (&String, &Value)> {
    operation["responses"].as_object().unwrap().iter()
}

#[test]
fn it_is_openapi_3_1_and_lists_what_the_readme_promises() {
    let api = api();
    assert_eq!(api["openapi"], "3.1.0");
    let listed: BTreeSet<String> = operations(&api).into_iter().map(|(name, _)| name).collect();
    let promised = [
        "delete /api/v1/demo/{id}",
        "delete /api/v1/limits/{client}",
        "delete /api/v1/pool/drain",
        "delete /api/v1/snapshots/{id}",
        "get /api/docs",
        "get /api/openapi.json",
        "get /api/v1/audit",
        "get /api/v1/demo",
        "get /api/v1/demo/{id}",
        "get /api/v1/demo/{id}/logs",
        "get /api/v1/demo/{id}/status",
        "get /api/v1/events",
        "get /api/v1/events/stream",
        "get /api/v1/goldens",
        "get /api/v1/history",
        "get /api/v1/limits",
        "get /api/v1/nodes",
        "get /api/v1/pool/stats",
        "get /api/v1/pool/target",
        "get /api/v1/snapshots",
        "get /api/v1/tasks",
        "get /api/v1/tasks/{number}",
        "get /api/v1/tls/ask",
        "get /health",
        "get /livez",
        "get /metrics",
        "get /readyz",
        "post /api/v1/audit",
        "post /api/v1/demo/acquire",
        "post /api/v1/demo/{id}/extend",
        "post /api/v1/demo/{id}/hibernate",
        "post /api/v1/demo/{id}/reset",
        "post /api/v1/demo/{id}/wake",
        "post /api/v1/pool/drain",
        "post /api/v1/snapshots",
        "post /api/v1/snapshots/prune",
        "post /api/v1/snapshots/{id}/promote",
        "post /api/v1/snapshots/{id}/verify",
        "put /api/v1/pool/target",
    ];
    assert_eq!(listed, promised.map(str::to_owned).into());
}

#[test]
fn every_operation_says_what_it_is_and_what_it_answers() {
    let api = api();
    let mut ids = BTreeSet::new();
    for (name, it) in operations(&api) {
        assert!(it["summary"].as_str().is_some_and(|text| text.ends_with('.')), "{name}: {it}");
        assert!(ids.insert(it["operationId"].as_str().unwrap().to_owned()), "{name}: two of one id");
        for (status, response) in responses(&it) {
            assert!(!response["description"].as_str().unwrap().is_empty(), "{name} {status}");
            assert!(response["headers"]["X-Request-Id"].is_object(), "{name} {status}");
            let body = &response["content"]["application/problem+json"];
            if status.as_str() < "400" || body.is_null() {
                continue;
            }
            assert_eq!(body["schema"]["$ref"], "#/components/schemas/Problem", "{name} {status}");
            assert!(
                ["429", "503"].contains(&status.as_str()) == response["headers"]["Retry-After"].is_object()
            );
            assert_eq!(body["example"]["status"].to_string(), *status, "{name}");
        }
    }
}

#[test]
fn links_lead_to_operations() {
    let api = api();
    let operations = operations(&api);
    let mut links = 0;
    for (name, it) in &operations {
        for link in
            responses(it).filter_map(|(_, response)| response["links"].as_object()).flat_map(|it| it.values())
        {
            links += 1;
            let found = operations.iter().any(|(_, other)| other["operationId"] == link["operationId"]);
            assert!(found, "{name}: {link}");
        }
    }
    assert_eq!(links, 8, "from both answers of an acquire to the four things done with an instance");
}

#[test]
fn every_kind_of_error_is_in_it() {
    let declared: BTreeSet<String> = operations(&api())
        .iter()
        .flat_map(|(_, it)| responses(it).map(|(status, _)| status.clone()).collect::<Vec<_>>())
        .collect();
    for kind in ErrorKind::ALL {
        let status = Problem::of(kind, &std::fmt::Error).status().as_str().to_owned();
        assert!(declared.contains(&status), "{kind:?}: {status} is not in {declared:?}");
    }
}

#[test]
fn it_has_no_password_in_it_but_the_fields_name() {
    let text = api().to_string();
    assert_eq!(text.matches("admin_password").count(), 2, "required, and described");
}

#[tokio::test]
async fn the_daemon_the_command_and_the_page_show_the_same() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let served = daemon.get("/api/openapi.json").await;
    assert_eq!(served.headers["content-type"], "application/json");
    assert_eq!(served.json(), api());
    let program = env!("CARGO_BIN_EXE_demo-multiplexer");
    for args in [&["openapi"][..], &["openapi", "--json"]] {
        let dir = tempfile::tempdir().unwrap();
        let output = tokio::process::Command::new(program)
            .args(args)
            .current_dir(dir.path())
            .env_clear()
            .output()
            .await;
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), api());
    }
    let page = daemon.get("/api/docs").await;
    assert_eq!(
        (page.status.as_u16(), &page.headers["content-type"]),
        (200, &"text/html; charset=utf-8".parse().unwrap())
    );
    assert!(
        page.text().contains("fetch(\"openapi.json\")") && !page.text().contains("://"),
        "nothing from elsewhere"
    );
    assert!(page.headers["content-security-policy"].to_str().unwrap().contains("default-src 'none'"));
    assert_eq!(daemon.get("/api/docs/nothing").await.json()["status"], json!(404));
}
