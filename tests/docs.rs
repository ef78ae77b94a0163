//! README and `.env.example` say what the program says.
//!
//! `UPDATE_DOCS=1 cargo test --test docs` writes what is generated.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use demo_multiplexer::config::{Config, SETTINGS, Values};
use demo_multiplexer::metrics::families::FAMILIES;

/// Marks around a part of the README that is written here.
const SETTINGS_MARKS: (&str, &str) =
    ("<!-- settings: written by tests/docs.rs -->\n", "<!-- end of settings -->\n");
const METRICS_MARKS: (&str, &str) =
    ("<!-- metrics: written by tests/docs.rs -->\n", "<!-- end of metrics -->\n");

const EVENT_MARKS: (&str, &str) =
    ("<!-- event schema: written by tests/docs.rs -->\n", "<!-- end of event schema -->\n");

/// Columns of a comment in `.env.example`.
const WIDTH: usize = 100;

fn checkout(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(checkout(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Compares, or writes when asked to.
fn agree(name: &str, expected: &str) {
    if std::env::var("UPDATE_DOCS").is_ok_and(|value| value == "1") {
        std::fs::write(checkout(name), expected).unwrap();
    }
    assert!(
        read(name) == expected,
        "{name} is behind what the program says: UPDATE_DOCS=1 cargo test --test docs"
    );
}

/// One test at a time reads the README and writes it anew.
static README: Mutex<()> = Mutex::new(());

/// The README's part between the marks is this table.
fn readme_has(marks: (&str, &str), table: &str) {
    let _alone = README.lock().unwrap_or_else(PoisonError::into_inner);
    let readme = read("README.md");
    let (before, rest) = readme.split_once(marks.0).expect("README.md has the marker");
    let (_, after) = rest.split_once(marks.1).expect("README.md has the end marker");
    agree("README.md", &format!("{before}{}{table}{}{after}", marks.0, marks.1));
}

#[test]
fn the_readme_has_every_metric() {
    let mut table = String::from("| metric | kind | labels | what |\n|---|---|---|---|\n");
    for family in FAMILIES {
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let (kind, labels) = (family.kind.as_str(), labels.join(" "));
        writeln!(table, "| `{}` | {kind} | {labels} | {} |", family.name, family.help).unwrap();
    }
    readme_has(METRICS_MARKS, &table);
}

#[test]
fn the_readme_has_every_setting() {
    let mut table = String::from("| setting | default | what |\n|---|---|---|\n");
    for setting in SETTINGS {
        let default =
            if setting.default.is_empty() { String::new() } else { format!("`{}`", setting.default) };
        let help = setting.help.replace('|', "\\|").replace('<', "&lt;");
        writeln!(table, "| `{}` | {default} | {help} |", setting.name).unwrap();
    }
    readme_has(SETTINGS_MARKS, &table);
}

#[test]
fn the_readme_has_the_schema_of_an_event() {
    let schema = read("src/instance/event.schema.json");
    readme_has(EVENT_MARKS, &format!("```json\n{schema}```\n"));
}

#[test]
fn the_example_of_an_environment_has_every_setting_with_its_default() {
    let mut example = String::from(
        "# Every setting with its default. Copy this file to .env and change what you need; the environment, a TOML file\n\
         # (CONFIG_FILE) and flags (--pool-target-size 8) stand over it, in this order.\n",
    );
    for setting in SETTINGS {
        example.push('\n');
        let mut line = String::from("#");
        for word in setting.help.split(' ') {
            if line.len() + 1 + word.len() > WIDTH {
                writeln!(example, "{line}").unwrap();
                line = String::from("#");
            }
            write!(line, " {word}").unwrap();
        }
        write!(example, "{line}.\n{}={}\n", setting.name, setting.default).unwrap();
    }
    agree(".env.example", &example);
}

#[test]
fn the_example_of_an_environment_is_what_runs_without_one() {
    let values: Values =
        dotenvy::from_path_iter(checkout(".env.example")).unwrap().collect::<Result<_, _>>().unwrap();
    let defaults: BTreeMap<String, String> =
        SETTINGS.iter().map(|setting| (setting.name.to_owned(), setting.default.to_owned())).collect();
    assert_eq!(values, defaults);
    Config::check(&values).unwrap();
}

#[test]
fn links_between_the_documents_lead_somewhere() {
    let documents = [
        "README.md",
        "CHANGELOG.md",
        "benches/README.md",
        "podman/README.md",
        "snapshots/README.md",
        "tests/README.md",
        "tests/lab/README.md",
    ];
    for document in documents {
        let text = read(document);
        let folder = checkout(document).parent().unwrap().to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            let local = !target.is_empty() && !target.contains("://");
            assert!(!local || folder.join(target).try_exists().unwrap(), "{document}: {target}");
        }
    }
}

#[test]
fn the_make_targets_that_documents_name_exist() {
    let makefile = read("Makefile");
    for document in ["README.md", "podman/README.md", "snapshots/README.md", "tests/README.md"] {
        let text = read(document);
        // In code only: `make demo`, or a line of a block that begins with it.
        for rest in ["`make ", "\n    make "].iter().flat_map(|mark| text.split(mark).skip(1)) {
            let target: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
            assert!(makefile.contains(&format!("\n{target}:")), "{document}: make {target}");
        }
    }
}
