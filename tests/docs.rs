//! The documents and `.env.example` say what the program says.
//!
//! `UPDATE_DOCS=1 cargo test --test docs` writes what is generated.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use demo_multiplexer::config::{Config, SETTINGS, Values};
use demo_multiplexer::golden::recipe::Recipe;
use demo_multiplexer::metrics::families::FAMILIES;

/// Marks around a part of a document that is written here.
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
    // Not when it is right: another test may be reading it.
    if std::env::var("UPDATE_DOCS").is_ok_and(|value| value == "1") && read(name) != expected {
        std::fs::write(checkout(name), expected).unwrap();
    }
    assert!(
        read(name) == expected,
        "{name} is behind what the program says: UPDATE_DOCS=1 cargo test --test docs"
    );
}

/// The document's part between the marks is this.
fn has(document: &str, marks: (&str, &str), part: &str) {
    let text = read(document);
    let (before, rest) = text.split_once(marks.0).unwrap_or_else(|| panic!("{document} has {}", marks.0));
    let (_, after) = rest.split_once(marks.1).unwrap_or_else(|| panic!("{document} has {}", marks.1));
    agree(document, &format!("{before}{}{part}{}{after}", marks.0, marks.1));
}

#[test]
fn every_metric_is_documented() {
    let mut table = String::from("| metric | kind | labels | what |\n|---|---|---|---|\n");
    for family in FAMILIES {
        let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
        let (kind, labels) = (family.kind.as_str(), labels.join(" "));
        writeln!(table, "| `{}` | {kind} | {labels} | {} |", family.name, family.help).unwrap();
    }
    has("docs/metrics.md", METRICS_MARKS, &table);
}

#[test]
fn every_setting_is_documented() {
    let mut table = String::from("| setting | default | what |\n|---|---|---|\n");
    for setting in SETTINGS {
        let default =
            if setting.default.is_empty() { String::new() } else { format!("`{}`", setting.default) };
        let help = setting.help.replace('|', "\\|").replace('<', "&lt;");
        writeln!(table, "| `{}` | {default} | {help} |", setting.name).unwrap();
    }
    has("docs/settings.md", SETTINGS_MARKS, &table);
}

#[test]
fn the_schema_of_an_event_is_documented() {
    let schema = read("src/instance/event.schema.json");
    has("docs/events.md", EVENT_MARKS, &format!("```json\n{schema}```\n"));
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

/// All documents of the repository.
fn documents() -> Vec<String> {
    fn walk(dir: &Path, out: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            // What is built, and what other tools keep.
            if path.is_dir() && !name.starts_with('.') && !["target", "build", "node_modules"].contains(&name)
            {
                walk(&path, out);
            } else if name.ends_with(".md") {
                out.push(path.strip_prefix(checkout("")).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(&checkout(""), &mut found);
    found.sort();
    assert!(found.len() > 15, "{found:?}");
    found
}

/// A heading's name in addresses.
fn anchor(heading: &str) -> String {
    let plain = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = plain.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn links_between_the_documents_lead_somewhere() {
    for document in documents() {
        let text = read(&document);
        let folder = checkout(&document).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (target, place) = link.split_once('#').unwrap_or((link, ""));
            let path = if target.is_empty() { checkout(&document) } else { folder.join(target) };
            assert!(path.try_exists().unwrap(), "{document}: {link}");
            if !place.is_empty() {
                let there = std::fs::read_to_string(&path).unwrap();
                let headings = there.lines().filter(|line| line.starts_with('#')).map(anchor);
                assert!(headings.into_iter().any(|it| it == place), "{document}: {link}: no such heading");
            }
        }
    }
}

#[test]
fn the_make_targets_that_documents_name_exist() {
    let makefile = read("Makefile");
    for document in documents() {
        let text = read(&document);
        // In code only: `make demo`, or a line of a block that begins with it.
        for rest in ["`make ", "\n    make "].iter().flat_map(|mark| text.split(mark).skip(1)) {
            let target: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
            assert!(makefile.contains(&format!("\n{target}:")), "{document}: make {target}");
        }
    }
}

/// All Rust at or below a path, in one text.
fn rust(path: &Path, out: &mut String) {
    if path.is_dir() {
        std::fs::read_dir(path).unwrap().for_each(|entry| rust(&entry.unwrap().path(), out));
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        out.push_str(&std::fs::read_to_string(path).unwrap());
    }
}

/// The program's sources, in one.
fn sources() -> String {
    let mut all = String::new();
    rust(&checkout("src"), &mut all);
    // A text that goes on in the next line of the source is one text.
    let lines: Vec<&str> = all.split("\\\n").collect();
    let joined: Vec<&str> =
        lines.iter().enumerate().map(|(n, line)| if n == 0 { line } else { line.trim_start() }).collect();
    joined.concat()
}

/// Texts in code marks of the first column of a document's tables of symptoms.
fn symptoms(document: &str) -> Vec<String> {
    let text = read(document);
    let rows = text.lines().skip_while(|line| !line.starts_with("| what you see")).skip(2);
    let cells = rows.take_while(|line| line.starts_with('|')).filter_map(|line| line.split(" | ").next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn every_error_that_documents_quote_is_one_of_the_program() {
    let sources = sources();
    let mut count = 0;
    for document in ["docs/operating.md", "docs/goldens.md"] {
        for quoted in symptoms(document) {
            // What stands for a value is left out; its neighbours are there as they are.
            for part in quoted.split("...").map(str::trim).filter(|part| part.len() > 3) {
                count += 1;
                assert!(sources.contains(part), "{document} quotes {part:?}, which no source has");
            }
        }
    }
    assert!(count > 15, "{count} texts were looked for");
}

/// The commands, settings and flags in blocks of a document's examples.
#[test]
fn every_setting_that_documents_name_exists() {
    let known = |name: &str| SETTINGS.iter().any(|setting| setting.name == name);
    // Others' variables, and values that look like names.
    let foreign = ["API_TOKEN", "HTTPS_PORT", "PORT", "CADDY_TLS", "GET_LOCK"];
    for document in ["README.md", "docs/api.md", "docs/events.md", "docs/operating.md", "docs/deployment.md"]
    {
        for word in read(document).split('`').skip(1).step_by(2) {
            let name = word.split('=').next().unwrap_or_default();
            let shouted = name.contains('_') && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
            let partial = name.starts_with('_') || name.ends_with('_');
            let other = foreign.contains(&name) || name.starts_with("CAP_");
            assert!(!shouted || partial || other || known(name), "{document}: {name} is no setting");
        }
    }
}

#[test]
fn every_call_in_the_guide_exists() {
    let openapi = serde_json::to_value(demo_multiplexer::api::document()).unwrap();
    let guide = read("docs/api.md");
    let curls: Vec<String> = guide
        .lines()
        .filter(|line| line.trim_start().starts_with("curl "))
        .filter_map(|line| line.split("$API").nth(1))
        .map(|rest| {
            rest.split([' ', '"', '?']).next().unwrap().replace("$ID", "{id}").replace("$GOLDEN", "{golden}")
        })
        .collect();
    let paths: Vec<&String> = openapi["paths"].as_object().unwrap().keys().collect();
    for called in &curls {
        let own = ["/api/openapi.json", "/api/docs"].contains(&called.as_str());
        assert!(own || paths.contains(&called), "docs/api.md calls {called}");
    }
    assert!(curls.len() > 12, "{curls:?}");
}

#[test]
fn the_example_of_a_golden_is_a_recipe() {
    let folder = checkout("examples/hello");
    let (_, recipe) = Recipe::load(folder.to_str().unwrap(), Path::new("/nowhere")).unwrap();
    assert_eq!(recipe.name.as_str(), "hello");
    let marks = (
        "<!-- examples/hello/golden.toml: written by tests/docs.rs -->\n",
        "<!-- end of examples/hello/golden.toml -->\n",
    );
    has("docs/goldens.md", marks, &format!("```toml\n{}```\n", read("examples/hello/golden.toml")));
}

#[test]
fn every_test_that_the_table_of_faults_names_exists() {
    let text = read("docs/faults.md");
    let cells =
        text.lines().filter(|line| line.starts_with("| ")).filter_map(|line| line.rsplit(" | ").next());
    let names: Vec<&str> = cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    let mut tests = String::new();
    for part in ["tests", "src"] {
        rust(&checkout(part), &mut tests);
    }
    for name in &names {
        assert!(tests.contains(&format!("fn {name}()")), "docs/faults.md names {name}, which is no test");
    }
    let count = names.len();
    assert!(count > 20, "{count} tests are named");
}
