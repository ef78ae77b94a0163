//! Where raw values come from: defaults, the installed service's file, `.env`,
//! the environment, a TOML file, flags, in rising order.

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
    let wrong = |error: &dotenvy::Error| format!("{}: {error}", path.display());
    let lines = match dotenvy::from_path_iter(path) {
        Ok(lines) => lines,
        Err(error) if error.not_found() => return Vec::new(),
        // The service's file holds secrets; who may not read it can still ask its API.
        Err(dotenvy::Error::Io(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Vec::new();
        }
        Err(error) => return vec![wrong(&error)],
    };
    let mut problems = Vec::new();
    for line in lines {
        match line {
            Ok((name, value)) if known(&name) => drop(values.insert(name, value)),
            Ok(_) => {}
            Err(error) => problems.push(wrong(&error)),
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
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| one(error.to_string()))?;
    let mut values = Values::new();
    for (key, value) in table {
        let name = key.to_ascii_uppercase();
        if !known(&name) {
            return Err(one(format!("{key} is not a setting")));
        }
        let value = match value {
            toml::Value::String(text) => text,
            other => other.to_string(),
        };
        values.insert(name, value);
    }
    Ok(values)
}
