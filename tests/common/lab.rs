//! What more than one integration test needs.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::Write as _;

use demo_multiplexer::config::{Config, SETTINGS, Values};

/// Whether this host has root, Podman and CRIU, as `tests/run` says with
/// `DEMO_LAB=1`. Where it has not, the test is to return at once.
///
/// # Panics
/// In CI, and when `REQUIRE` names podman: there a skipped test is a failed one.
pub(crate) fn host_is_fit(test: &str) -> bool {
    let is = |name: &str, wanted: &str| std::env::var(name).is_ok_and(|value| value == wanted);
    if is("DEMO_LAB", "1") {
        return true;
    }
    let required = std::env::var("REQUIRE").is_ok_and(|names| names.split(',').any(|name| name == "podman"));
    assert!(!required && !is("CI", "true"), "{test} needs podman and CRIU here: run make test");
    // Not eprintln: the test runner would keep it to itself.
    let _ = writeln!(std::io::stderr(), "skipped: {test} needs podman and CRIU (run make test)");
    false
}

/// Settings: the defaults, then what the runner of the tests set, then `changes`.
pub(crate) fn config(changes: &[(&str, &str)]) -> Config {
    let mut values: Values =
        SETTINGS.iter().map(|setting| (setting.name.to_owned(), setting.default.to_owned())).collect();
    for setting in SETTINGS {
        if let Ok(value) = std::env::var(setting.name) {
            values.insert(setting.name.to_owned(), value);
        }
    }
    for (name, value) in changes {
        values.insert((*name).to_owned(), (*value).to_owned());
    }
    Config::check(&values).unwrap()
}
