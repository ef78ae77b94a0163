//! What comes with the program, by cargo's own word: where each dependency is from, and
//! that its licence asks no more than `.deny.toml` allows. `make audit` asks cargo-deny
//! the same and for known holes, and needs the network for it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// `.deny.toml`.
fn rules() -> toml::Table {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".deny.toml");
    std::fs::read_to_string(path).unwrap().parse().unwrap()
}

/// All packages that the program is built of here, tests included; none where there is
/// no cargo, as in the lab.
fn packages() -> Option<Vec<Value>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["metadata", "--format-version=1", "--locked", "--offline", "--all-features"]);
    cargo.args(["--filter-platform", "x86_64-unknown-linux-gnu"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let Ok(said) = cargo.output() else {
        println!("skipped: there is no cargo here");
        return None;
    };
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let mut metadata: Value = serde_json::from_slice(&said.stdout).unwrap();
    let Value::Array(packages) = metadata["packages"].take() else { panic!("no packages") };
    Some(packages)
}

/// Whether an expression such as `(MIT OR Apache-2.0) AND Unicode-3.0` can be met with
/// what is allowed: each part of an AND, one of an OR.
fn is_allowed(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let met = any(&mut words, allowed);
    assert_eq!(words.next(), None, "{expression} is read to its end");
    met
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>, allowed: &BTreeSet<&str>) -> bool {
    let mut met = all(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        met |= all(words, allowed);
    }
    met
}

fn all(words: &mut Words<'_>, allowed: &BTreeSet<&str>) -> bool {
    let mut met = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut Words<'_>, allowed: &BTreeSet<&str>) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let met = any(words, allowed);
        assert_eq!(words.next(), Some(")"));
        return met;
    }
    let licence = words.next().expect("a licence");
    // An exception only takes from what is asked.
    if words.next_if_eq(&"WITH").is_some() {
        words.next().expect("an exception");
    }
    allowed.contains(licence)
}

#[test]
fn an_expression_is_met_by_each_and_and_by_one_or() {
    let allowed = BTreeSet::from(["MIT", "ISC"]);
    for (expression, met) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT OR GPL-3.0", true),
        ("GPL-3.0/MIT", true),
        ("MIT AND GPL-3.0", false),
        ("(GPL-3.0 OR MIT) AND ISC", true),
        ("GPL-3.0 OR MIT AND GPL-2.0", false),
        ("MIT WITH LLVM-exception", true),
    ] {
        assert_eq!(is_allowed(expression, &allowed), met, "{expression}");
    }
}

#[test]
fn every_dependency_is_from_the_registry_under_a_licence_that_is_allowed() {
    let Some(packages) = packages() else { return };
    let rules = rules();
    let allowed: BTreeSet<&str> =
        rules["licenses"]["allow"].as_array().unwrap().iter().filter_map(toml::Value::as_str).collect();
    let banned: Vec<&str> =
        rules["bans"]["deny"].as_array().unwrap().iter().filter_map(|ban| ban["crate"].as_str()).collect();
    let mut wrong = Vec::new();
    for package in &packages {
        let name = package["name"].as_str().unwrap();
        match package["source"].as_str() {
            // This one.
            None => continue,
            Some(CRATES_IO) => {}
            Some(source) => wrong.push(format!("{name} is from {source}")),
        }
        match package["license"].as_str() {
            Some(licence) if is_allowed(licence, &allowed) => {}
            licence => wrong.push(format!("{name} is under {licence:?}")),
        }
        if banned.contains(&name) {
            wrong.push(format!("{name} is banned"));
        }
    }
    assert!(packages.len() > 100, "{} packages", packages.len());
    assert_eq!(wrong, Vec::<String>::new());
}
