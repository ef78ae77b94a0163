//! The layer map of `src/lib.rs`, held by reading the sources.
//!
//! An edge is a `crate::module` in the code of another module; tests beside the
//! code are exempt, as is what stands under `#[cfg(test)]`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Where each module stands. A longer path wins over a shorter one.
const LAYERS: &[(&str, u8)] = &[
    // Pure, or used by every layer.
    ("id", 0),
    ("client", 0),
    ("lang", 0),
    ("token", 0),
    ("connections", 0),
    ("node", 0),
    ("error", 0),
    ("failpoint", 0),
    ("sealed", 0),
    ("sync", 0),
    ("config", 0),
    ("instance", 0),
    ("golden", 0),
    ("golden::recipe", 0),
    ("snapshot::manifest", 0),
    ("snapshot::compat", 0),
    ("pool", 0),
    ("pool::policy", 0),
    ("pool::backoff", 0),
    ("metrics", 0),
    ("shutdown", 0),
    ("notify", 0),
    ("telemetry", 0),
    // Ports with their adapters; the kernel.
    ("engine", 1),
    ("store", 1),
    ("route", 1),
    ("route::keeper", 3),
    ("jobs", 1),
    ("nats", 1),
    ("peers", 1),
    ("peers::keeper", 3),
    ("host", 1),
    // Procedures.
    ("provision", 2),
    ("promote", 2),
    ("promote::follower", 3),
    ("restore", 2),
    ("egress", 2),
    ("identity", 2),
    ("checkpoint", 2),
    ("template", 2),
    ("database", 2),
    ("snapshot", 2),
    ("golden::build", 2),
    ("golden::images", 2),
    // Edges and workers.
    ("api", 3),
    ("proxy", 3),
    ("web", 3),
    ("console", 3),
    ("pool::reconciler", 3),
    ("pool::reaper", 3),
    ("pool::pruner", 3),
    ("pool::sleeper", 3),
    ("pool::adopt", 3),
    ("jobs::worker", 3),
    ("events", 3),
    ("webhook", 3),
    ("listener", 4),
    ("app", 4),
    ("assemble", 4),
    ("workshop", 4),
    ("courier", 4),
    ("uses", 4),
    ("open_store", 4),
    ("open_edges", 4),
    ("open_jobs", 4),
    ("bench", 4),
    ("forget", 4),
    ("caretaker", 4),
    ("commands", 4),
    ("doctor", 4),
    ("testing", 4),
];

/// Edges that the map does not allow, each with its reason.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("metrics", "engine", "labels are the phases' own words"),
    ("engine", "host", "drivers are written on the kernel's interface"),
    ("engine", "snapshot", "the restore driver reads prepared snapshots"),
    ("engine", "identity", "the words of personalizing are shared"),
    ("jobs", "nats", "jobs and events share one connection"),
    ("provision", "restore", "acquire makes an instance while its client waits"),
    ("promote", "provision", "a trial shop is made as every shop is"),
    ("promote", "snapshot", "what is served is written down beside the snapshots, and where they travel"),
    ("promote", "restore", "the pool's maker is turned to another snapshot"),
    ("restore", "identity", "personalizing is a phase of making"),
    ("provision", "snapshot", "a visitor's shop is kept as snapshots are"),
    ("provision", "identity", "a kept shop's key is random"),
    ("restore", "snapshot", "a shop comes from a prepared snapshot"),
    ("checkpoint", "snapshot", "taking one is what a checkpoint is for"),
    ("egress", "restore", "a file of a shop's is opened as personalizing does it"),
    ("checkpoint", "restore", "a golden is probed as its clones are"),
    ("checkpoint", "database", "a golden is frozen with the database it is to have"),
    ("database", "identity", "a user's password is random"),
    ("console", "api", "the console draws what the API says, and its forms are the API's calls"),
    ("console", "web", "its pages stand on the same ground as the visitors'"),
    ("web", "api", "pages stand beside the API: its doors, errors and status streams are theirs"),
    ("checkpoint", "golden::build", "a golden is built before it is frozen"),
    ("checkpoint", "identity", "a shop that becomes a golden has its password changed"),
    ("template", "snapshot", "a kept shop is made an image of"),
    ("template", "golden::images", "and is one then"),
    ("template", "provision", "an audit names the images that nobody needs"),
];

/// No file is longer: what does not fit is two things.
const LINES_MAX: usize = 500;

fn walk(dir: &Path, out: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            out.push((path, text));
        }
    }
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut out = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut out);
    out.sort();
    out
}

/// `pool::reconciler` for `src/pool/reconciler/mod.rs`; none for the roots.
fn module_of(path: &Path) -> Option<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let relative = path.strip_prefix(src).unwrap().with_extension("");
    let parts: Vec<&str> =
        relative.iter().map(|part| part.to_str().unwrap()).filter(|part| *part != "mod").collect();
    match parts.as_slice() {
        ["lib" | "main"] => None,
        parts => Some(parts.join("::")),
    }
}

/// The longest entry of the map that the module lies in.
fn placed(module: &str) -> Option<(&'static str, u8)> {
    let inside =
        |name: &str| module == name || module.strip_prefix(name).is_some_and(|rest| rest.starts_with("::"));
    LAYERS.iter().filter(|(name, _)| inside(name)).max_by_key(|(name, _)| name.len()).copied()
}

/// The code without its tests: everything before the first `#[cfg(test)]`
/// followed by a module with a body.
fn code(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod tests {").map_or(text, |end| &text[..end])
}

/// Modules named by `crate::..` paths, with those in braces spelled out one level.
fn edges(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in code(text).lines().map(str::trim_start).filter(|line| !line.starts_with("//")) {
        for (at, _) in line.match_indices("crate::") {
            // Not the end of another word.
            if line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
                continue;
            }
            let path: Vec<&str> = line[at + "crate::".len()..]
                .split("::")
                .map_while(|part| {
                    let name = part.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
                    name.starts_with(|c: char| c.is_ascii_lowercase())
                        .then_some((name, name.len() == part.len()))
                })
                .scan(true, |go_on, (name, whole)| {
                    let now = *go_on;
                    *go_on = whole;
                    now.then_some(name)
                })
                .collect();
            if path.is_empty() {
                let inner = line[at + "crate::".len()..].trim_start_matches('{');
                let names =
                    inner.split([',', '}']).map(|part| part.trim().split("::").next().unwrap_or_default());
                found.extend(names.filter(|name| placed(name).is_some()).map(str::to_owned));
            } else {
                found.insert(path.join("::"));
            }
        }
    }
    found
}

#[test]
fn arrows_point_down_only() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let Some(module) = module_of(&path) else { continue };
        if module.ends_with("::tests") || module.ends_with("conformance") {
            continue;
        }
        let Some((from, layer)) = placed(&module) else {
            wrong.push(format!("{module} has no place in the layer map"));
            continue;
        };
        for edge in edges(&text) {
            let Some((to, below)) = placed(&edge) else {
                wrong.push(format!("{module} uses {edge}, which has no place in the layer map"));
                continue;
            };
            // Within one module, and from anything down, all is well; the
            // words at the bottom and the wiring at the top have no inner order.
            let own = from.split("::").next() == to.split("::").next();
            let down = below < layer || (below == layer && [0, 4].contains(&layer));
            let excepted = EXCEPTIONS.iter().any(|(a, b, _)| from == *a && to == *b);
            if !own && !down && !excepted {
                wrong.push(format!("{module} (layer {layer}) uses {edge} (layer {below})"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_file_is_short_and_says_what_it_is() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let lines = text.lines().count();
        if lines > LINES_MAX {
            wrong.push(format!("{} has {lines} lines, {LINES_MAX} at most", path.display()));
        }
        if !text.starts_with("//!") {
            wrong.push(format!("{} does not begin with what it is (//!)", path.display()));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Names in `use` and in paths, of a package's dependencies that no source names.
fn unused(manifest: &str, table: &str, sources: &[(PathBuf, String)]) -> Vec<String> {
    let manifest: toml::Table = manifest.parse().unwrap();
    let names = manifest[table].as_table().unwrap().keys();
    let is_used = |name: &str| {
        let name = name.replace('-', "_");
        sources.iter().any(|(_, text)| {
            let words = text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
            words.into_iter().any(|word| word.split("::").any(|part| part == name) && word.contains("::"))
                || text.contains(&format!("use {name};"))
        })
    };
    names.filter(|name| !is_used(name)).cloned().collect()
}

#[test]
fn every_dependency_is_used() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let mut sources = sources();
    assert_eq!(unused(&manifest, "dependencies", &sources), Vec::<String>::new());
    walk(&root.join("tests"), &mut sources);
    walk(&root.join("benches"), &mut sources);
    assert_eq!(unused(&manifest, "dev-dependencies", &sources), Vec::<String>::new());
    let one = "[dependencies]\nnot-there = \"1\"\nserde = \"1\"";
    assert_eq!(unused(one, "dependencies", &sources), ["not-there"], "it would be told");
}

#[test]
fn a_downward_edge_is_read_in_each_form() {
    let text = "use crate::store::{Store, embedded};\nuse crate::{metrics, notify};\nlet x = crate::api::router(y);\n\
                // crate::app\n#[cfg(test)]\nmod tests {\nuse crate::testing::Script;\n}";
    let found: Vec<String> = edges(text).into_iter().collect();
    assert_eq!(found, ["api::router", "metrics", "notify", "store"]);
}
