//! Where raw values come from: defaults, `.env`, the environment, a TOML file,
//! flags, in rising order.

use std::path::Path;

use super::{ConfigError, SETTINGS, Values};

/// Collects the raw values: defaults, `.env` in `dir`, the environment, the
/// TOML file named by `CONFIG_FILE`, then `flags`.
///
/// # Errors
/// When a file cannot be read or names a setting that does not exist.
pub fn collect(dir: &Path, flags: Values) -> Result<Values, ConfigError> {
    let mut problems = Vec::new();
    let mut values: Values =
        SETTINGS.iter().map(|setting| (setting.name.to_owned(), setting.default.to_owned())).collect();
    match dotenvy::from_path_iter(dir.join(".env")) {
        Ok(lines) => {
            for line in lines {
                match line {
                    Ok((name, value)) => {
                        if known(&name) {
                            values.insert(name, value);
                        }
                    }
                    Err(error) => problems.push(format!(".env: {error}")),
                }
            }
        }
        Err(error) if error.not_found() => {}
        Err(error) => problems.push(format!(".env: {error}")),
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
