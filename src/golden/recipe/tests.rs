//! Recipes that are read, and those that are refused.

use super::*;

const SMALL: &str = r#"
name = "small"
title = "A small shop"
version = "1"
[run]
port = 80
memory_max = "64M"
pids_max = 32
cpu_max = 1.0
capabilities = []
[ready]
path = "/"
contains = "shop"
timeout_seconds = 10
[admin]
path = "/admin"
login_path = "/admin"
"#;

fn load(text: &str) -> Result<Recipe, RecipeError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("small")).unwrap();
    std::fs::write(dir.path().join("small/golden.toml"), text).unwrap();
    Recipe::load("small", dir.path()).map(|(_, recipe)| recipe)
}

#[test]
fn the_smallest_recipe_loads() {
    assert_eq!(load(SMALL).unwrap().run.port, 80);
}

#[test]
fn a_limit_that_is_no_size_is_named() {
    let text = SMALL.replace("cpu_max = 1.0", "cpu_max = 1.0\nio_write_max = \"fast\"");
    let error = load(&text).unwrap_err().to_string();
    assert!(error.contains("io_write_max"), "{error}");
    assert!(load(&text.replace("fast", "100M")).is_ok());
}

#[test]
fn an_unknown_key_is_an_error() {
    let error = load(&SMALL.replace("pids_max", "pid_max")).unwrap_err();
    assert!(matches!(error, RecipeError::Form { .. }), "{error}");
}

#[test]
fn numbers_that_no_shop_can_run_with_are_refused() {
    for (good, bad) in [
        ("port = 80", "port = 0"),
        ("pids_max = 32", "pids_max = 0"),
        ("cpu_max = 1.0", "cpu_max = nan"),
        ("cpu_max = 1.0", "cpu_max = inf"),
        ("cpu_max = 1.0", "cpu_max = -1.0"),
        ("timeout_seconds = 10", "timeout_seconds = 0"),
        ("timeout_seconds = 10", "timeout_seconds = 9223372036854775807"),
    ] {
        let error = load(&SMALL.replace(good, bad)).unwrap_err();
        let name = bad.split(' ').next().unwrap();
        assert!(matches!(&error, RecipeError::Sense { problem, .. } if problem.contains(name)), "{error}");
    }
}

#[test]
fn a_path_that_leaves_the_container_is_refused() {
    let text = format!("{SMALL}\n[personalize.remove]\npaths = [\"/var/../../etc/passwd\"]\n");
    assert!(matches!(load(&text), Err(RecipeError::Sense { .. })));
}

#[test]
fn a_login_link_wants_its_token_and_its_key() {
    let admin = |line: &str, personalize: &str| {
        load(&format!("{SMALL}{line}\n[[personalize.files]]\npath = \"/key\"\ncontent = \"{personalize}\"\n"))
    };
    let link = "one_click = \"/login?token={token}\"";
    assert!(admin(link, "{login_key}").is_ok());
    assert!(matches!(admin(link, "{hex:64}"), Err(RecipeError::Sense { .. })));
    assert!(matches!(admin("one_click = \"/login\"", "{login_key}"), Err(RecipeError::Sense { .. })));
}

#[test]
fn what_shops_may_reach_is_checked_and_left_out_of_a_snapshot_when_it_is_nothing() {
    let open = |list: &str| load(&format!("{SMALL}[network]\nallow = [{list}]\n"));
    let recipe = open("\"api.example.org:443\", \"192.0.2.7:25\"").unwrap();
    assert_eq!(recipe.network.allow.len(), 2);
    assert!(serde_json::to_string(&recipe).unwrap().contains("api.example.org:443"));
    assert!(!serde_json::to_string(&load(SMALL).unwrap()).unwrap().contains("network"));
    let error = open("\"*:443\"").unwrap_err();
    assert!(crate::error::Chain(&error).to_string().contains("there are no wildcards"), "{error}");
    let many: Vec<String> = (0..33).map(|n| format!("\"h{n}.example:1\"")).collect();
    assert!(matches!(open(&many.join(", ")), Err(RecipeError::Sense { .. })));
}

#[test]
fn an_unknown_golden_is_answered_with_those_that_exist() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("wordpress")).unwrap();
    std::fs::write(dir.path().join("wordpress/golden.toml"), SMALL).unwrap();
    let error = Recipe::load("magento", dir.path()).unwrap_err();
    assert!(error.to_string().ends_with("there are: wordpress"), "{error}");
}
