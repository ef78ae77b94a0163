//! Texts that are read strictly: manifests, recipes, records, settings.

use std::path::{Component, Path};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use http::Request;
use jiff::Timestamp;

use crate::config::sources::{parse_toml, read_lines};
use crate::config::{Config, SETTINGS, Values, units};
use crate::error::Chain;
use crate::golden::recipe::Recipe;
use crate::id::NodeName;
use crate::instance::{Instance, RECORD_VERSION};
use crate::proxy::host::{Host, Target, target};
use crate::snapshot::compat;
use crate::snapshot::manifest::Manifest;
use crate::snapshot::signature::Keys;

/// A `manifest.json`. What is accepted leads nowhere else, is written so that it
/// is read again, and only its own signature holds for it.
pub fn manifest(data: &[u8]) {
    let manifest = match Manifest::parse(data) {
        Ok(manifest) => manifest,
        Err(error) => return assert!(!Chain(&error).to_string().is_empty()),
    };
    let names = manifest.archives.keys().map(String::as_str);
    for name in names.chain([manifest.id.as_str(), &manifest.image_id]) {
        let parts: Vec<Component<'_>> = Path::new(name).components().collect();
        assert!(matches!(parts[..], [Component::Normal(_)]), "{name:?} is a path");
    }
    check_recipe(&manifest.recipe);
    let bytes = manifest.to_bytes();
    let again = Manifest::parse(&bytes).expect("what was read is written so that it can be read");
    assert_eq!(again, manifest);
    let _ = compat::check(&manifest.host, &again.host);
    check_signature(&bytes);
}

fn check_signature(bytes: &[u8]) {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    let keys = KEYS.get_or_init(|| {
        let dir = super::scratch();
        let mut keys = Keys::load(dir.path(), &[]).expect("there is no key yet");
        keys.ensure_own().expect("a key is made");
        keys
    });
    let signature = keys.sign(bytes).expect("there is a key");
    assert_eq!(keys.check(bytes, Some(&signature)), Ok(()));
    let (mut other, mut forged) = (bytes.to_vec(), signature);
    other[bytes.len() / 2] ^= 1;
    assert!(keys.check(&other, Some(&signature)).is_err(), "it is another manifest's");
    forged[bytes.len() % forged.len()] ^= 1;
    assert!(keys.check(bytes, Some(&forged)).is_err(), "it is no signature");
}

/// A `golden.toml`. What is accepted can be run, and survives the way through a
/// manifest.
pub fn recipe(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let recipe = match Recipe::parse(text, Path::new("golden.toml")) {
        Ok(recipe) => recipe,
        Err(error) => return assert!(error.to_string().starts_with("golden.toml")),
    };
    check_recipe(&recipe);
    let toml = toml::to_string(&recipe).expect("a recipe has a TOML form");
    assert_eq!(Recipe::parse(&toml, Path::new("again")).expect("it can be read again"), recipe);
    let json = serde_json::to_string(&recipe).expect("a recipe has a JSON form");
    assert_eq!(serde_json::from_str::<Recipe>(&json).expect("it can be read again"), recipe);
}

fn check_recipe(recipe: &Recipe) {
    let (run, personalize) = (&recipe.run, &recipe.personalize);
    let inside = personalize.files.iter().map(|file| &file.path).chain(&personalize.remove.paths);
    for path in inside.chain(&run.database_socket).chain(&run.database_program).chain(&run.logs) {
        let path = Path::new(path);
        assert!(path.is_absolute(), "{}", path.display());
        assert!(!path.components().any(|part| part == Component::ParentDir), "{}", path.display());
    }
    assert!(run.cpu_max.is_finite() && run.cpu_max > 0.0, "{} cores", run.cpu_max);
    assert!(units::bytes(&run.memory_max).is_ok(), "{}", run.memory_max);
    assert!(run.port != 0 && run.pids_max != 0);
    let timeout = Duration::from_secs(recipe.ready.timeout_seconds);
    assert!(Instant::now().checked_add(timeout).is_some(), "{timeout:?} has an end");
}

/// A stored instance. What is accepted is written so that it is read again, in
/// the present version.
pub fn record(data: &[u8]) {
    let node: NodeName = "here".parse().expect("a node name");
    let record = match Instance::from_record(data, &node) {
        Ok(record) => record,
        Err(error) => return assert!(!Chain(&error).to_string().is_empty()),
    };
    assert_eq!(record.version, RECORD_VERSION);
    let written = record.to_record().expect("a record has a JSON form");
    let other = "there".parse().expect("a node name");
    let again = Instance::from_record(written.as_bytes(), &other).expect("it can be read again");
    assert_eq!(again.node, record.node, "it stays its node's");
    assert_eq!(again.to_record().expect("a record has a JSON form"), written);
}

/// In a password of a URL, which nothing may repeat.
const PASSWORD: &str = "hunter2";

/// Settings: a `.env`, or a TOML file when it begins with `#toml`. Nothing says a
/// password, and what is accepted fits together.
pub fn settings(data: &[u8]) {
    let mut values: Values =
        SETTINGS.iter().map(|setting| (setting.name.to_owned(), setting.default.to_owned())).collect();
    let mut said = match data.strip_prefix(b"#toml") {
        None => read_lines(data, ".env", &mut values),
        Some(text) => match std::str::from_utf8(text).map(parse_toml) {
            Ok(Ok(read)) => {
                values.extend(read);
                Vec::new()
            }
            Ok(Err(problem)) => vec![problem],
            Err(_) => return,
        },
    };
    match Config::check(&values) {
        Ok(config) => {
            check_config(&config);
            said.push(format!("{config:?}"));
        }
        Err(error) => {
            assert!(!error.problems.is_empty());
            said.push(error.to_string());
        }
    }
    if is_of_a_url(data) && values.iter().all(|(name, value)| !value.contains(PASSWORD) || is_url(name)) {
        for text in &said {
            assert!(!text.contains(PASSWORD), "a password is said: {text}");
        }
    }
}

fn is_url(name: &str) -> bool {
    ["STORE_URL", "NATS_URL", "DATABASE_URL"].iter().any(|url| url.eq_ignore_ascii_case(name))
}

/// Whether the password is there once, and in its place in a URL.
fn is_of_a_url(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines().filter(|line| line.contains(PASSWORD));
    let (Some(line), None) = (lines.next(), lines.next()) else { return false };
    let Some((name, value)) = line.split_once('=') else { return false };
    let in_place = value.split_once("://").is_some_and(|(_, rest)| rest.contains(&format!(":{PASSWORD}@")));
    is_url(name.trim()) && in_place && line.matches(PASSWORD).count() == 1
}

fn check_config(config: &Config) {
    assert!(config.default_ttl <= config.max_ttl);
    assert!(Timestamp::now().checked_add(config.max_ttl).is_ok(), "{:?} has an end", config.max_ttl);
    // What the proxy will be asked for is what it will take for a shop's.
    let label = "abcdefghij27";
    let request = Request::get("/").header("host", config.host_of(label)).body(());
    let host = Host::of(&request.expect("a host is a header's value")).expect("it is a host");
    assert_eq!(target(&host, &config.base_domain), Target::Shop(label), "{}", host.as_str());
}
