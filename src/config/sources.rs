//! Where raw values come from: defaults, the installed service's file, `.env`,
//! the environment, a TOML file, flags, in rising order.

use std::io::{ErrorKind, Read};
use std::path::Path;

use super::{ConfigError, SETTINGS, Values};

/// The settings of the installed service. Commands typed on its host go by them
/// too, so that they mean the same directories and the same daemon.
const SERVICE_FILE: &str = "/etc/demo-multiplexer/demo-multiplexer.env";

/// Collects the raw values: defaults, the installed service's file, `.env` in
/// `dir`, the environment, the TOML file named by `CONFIG_FILE`, then `flags`.
///
/// # Errors
/// When a file cannot be read or names a setting that does not exist.
pub fn collect(dir: &Path, flags: Values) -> Result<Values, ConfigError> {
    collect_from(&[Path::new(SERVICE_FILE), &dir.join(".env")], flags)
}

pub(super) fn collect_from(files: &[&Path], flags: Values) -> Result<Values, ConfigError> {
    let mut problems = Vec::new();
    let mut values: Values =
        SETTINGS.iter().map(|setting| (setting.name.to_owned(), setting.default.to_owned())).collect();
    for file in files {
        problems.extend(read_env(file, &mut values));
    }
    for setting in SETTINGS {
        if let Ok(value) = std::env::var(setting.name) {
            values.insert(setting.name.to_owned(), value);
        }
    }
    let file = flags.get("CONFIG_FILE").or_else(|| values.get("CONFIG_FILE")).cloned();
    if let Some(path) = file.filter(|path| !path.is_empty()) {
        match read_toml(Path::new(&path)) {
            Ok(from_file) => values.extend(from_file),
            Err(error) => problems.extend(error.problems),
        }
    }
    values.extend(flags);
    if problems.is_empty() { Ok(values) } else { Err(ConfigError { problems }) }
}

/// Reads a file of `NAME=value` lines; answers what is wrong with it.
fn read_env(path: &Path, values: &mut Values) -> Vec<String> {
    let shown = path.display().to_string();
    match std::fs::File::open(path) {
        Ok(file) => read_lines(file, &shown, values),
        // The service's file holds secrets; who may not read it can still ask its API.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => Vec::new(),
        Err(error) => vec![format!("{shown}: {error}")],
    }
}

/// The lines of the file that is `shown` as this in complaints, which have
/// nothing of a value: it may be a password.
pub(crate) fn read_lines(file: impl Read, shown: &str, values: &mut Values) -> Vec<String> {
    let mut problems = Vec::new();
    for line in dotenvy::from_read_iter(file) {
        match line {
            Ok((name, value)) if known(&name) => drop(values.insert(name, value)),
            Ok(_) => {}
            Err(dotenvy::Error::LineParse(line, _)) => {
                let name = line.split('=').next().unwrap_or_default().trim();
                let name = SETTINGS.iter().map(|setting| setting.name).find(|known| name.ends_with(known));
                let of = name.map_or_else(|| "a line".to_owned(), |name| format!("the line of {name}"));
                problems.push(format!(
                    "{shown}: {of} is not of the form NAME=value: put a value with spaces, quotes or $ in it \
                     into single quotes"
                ));
            }
            Err(dotenvy::Error::Io(error)) => {
                problems.push(format!("{shown}: {error}"));
                // It would say so for ever.
                break;
            }
            Err(_) => problems.push(format!("{shown}: a line cannot be read")),
        }
    }
    problems
}

fn known(name: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.name == name)
}

fn read_toml(path: &Path) -> Result<Values, ConfigError> {
    let one = |problem: String| ConfigError { problems: vec![format!("{}: {problem}", path.display())] };
    let text = std::fs::read_to_string(path).map_err(|error| one(error.to_string()))?;
    parse_toml(&text).map_err(one)
}

/// The settings of a TOML text; a complaint has nothing of a value in it.
pub(crate) fn parse_toml(text: &str) -> Result<Values, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        format!("line {}: {}", before.matches('\n').count() + 1, error.message())
    })?;
    let mut values = Values::new();
    for (key, value) in table {
        let name = key.to_ascii_uppercase();
        if !known(&name) {
            return Err(format!("{key} is not a setting"));
        }
        let value = match value {
            toml::Value::String(text) => text,
            other => other.to_string(),
        };
        values.insert(name, value);
    }
    Ok(values)
}
