//! Raw values, read one by one; every complaint is kept.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use jiff::SignedDuration;

use super::{StoreAt, ValkeyAt, Values};
use crate::id::NodeName;

/// The largest limit: each counted acquire is kept while it counts, and a
/// client that may have more needs none.
const RATE_LIMIT_MAX: usize = 10_000;

/// The longest time: added to any present one it is still a time.
const DURATION_MAX: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);

/// Reads values one by one and keeps every complaint.
pub(super) struct Reader<'a> {
    pub(super) values: &'a Values,
    pub(super) problems: Vec<String>,
}

impl Reader<'_> {
    pub(super) fn text(&self, name: &str) -> String {
        self.values.get(name).map(|value| value.trim().to_owned()).unwrap_or_default()
    }

    pub(super) fn parse<T: FromStr>(&mut self, name: &str, fallback: T, rule: &str) -> T {
        let text = self.text(name);
        text.parse().unwrap_or_else(|_| {
            self.problems.push(format!("{name}={text:?}: {rule}"));
            fallback
        })
    }

    pub(super) fn number(&mut self, name: &str, range: std::ops::RangeInclusive<usize>) -> usize {
        let rule = format!("a whole number from {} to {}", range.start(), range.end());
        let n = self.parse(name, *range.start(), &rule);
        if !range.contains(&n) {
            self.problems.push(format!("{name}={n}: {rule}"));
        }
        n
    }

    pub(super) fn limit(&mut self, name: &str) -> u32 {
        u32::try_from(self.number(name, 0..=RATE_LIMIT_MAX)).unwrap_or(0)
    }

    pub(super) fn duration(&mut self, name: &str) -> SignedDuration {
        let text = self.text(name);
        match text.parse::<SignedDuration>() {
            Ok(duration) if duration.is_positive() && duration <= DURATION_MAX => duration,
            _ => {
                self.problems
                    .push(format!("{name}={text:?}: a time such as 90s, 30m or 2h, ten years at most"));
                SignedDuration::from_hours(1)
            }
        }
    }

    /// As [`Self::duration`]; zero is a time, too.
    pub(super) fn duration_or_none(&mut self, name: &str) -> std::time::Duration {
        let text = self.text(name);
        match text.parse::<SignedDuration>() {
            Ok(duration) if !duration.is_negative() && duration <= DURATION_MAX => duration.unsigned_abs(),
            _ => {
                let rule = "a time such as 90s, 30m or 2h, ten years at most; 0s: never";
                self.problems.push(format!("{name}={text:?}: {rule}"));
                std::time::Duration::ZERO
            }
        }
    }

    pub(super) fn http_url(&mut self, name: &str) -> Option<String> {
        let text = Some(self.text(name)).filter(|text| !text.is_empty())?;
        let uri = text.parse::<http::Uri>().ok();
        let whole = uri
            .is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.query().is_none());
        if !whole {
            self.problems.push(format!("{name}={text:?}: a URL such as http://127.0.0.1:4318, or empty"));
        }
        Some(text)
    }

    pub(super) fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> T {
        let text = self.text(name);
        choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).unwrap_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            self.problems.push(format!("{name}={text:?}: one of {}", words.join(", ")));
            choices[0].1
        })
    }

    pub(super) fn store(&mut self, state_dir: &Path) -> StoreAt {
        let file = |text: String| Some(PathBuf::from(text)).filter(|path| !path.as_os_str().is_empty());
        let (password, ca) = (file(self.text("STORE_PASSWORD_FILE")), file(self.text("STORE_CA_FILE")));
        let prefix = self.text("STORE_PREFIX");
        let of_prefix = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
        if prefix.is_empty() || prefix.len() > 64 || !prefix.bytes().all(of_prefix) {
            self.problems
                .push(format!("STORE_PREFIX={prefix:?}: 1 to 64 characters of a-z, A-Z, 0-9, -, _, . and :"));
        }
        let at = StoreAt::parse(&self.text("STORE_URL"), state_dir.join("store.redb"));
        let at = at.unwrap_or_else(|problem| {
            self.problems.push(problem);
            StoreAt::Embedded(PathBuf::new())
        });
        let StoreAt::Valkey(at) = at else { return at };
        if password.is_some() && at.password.is_some() {
            self.problems
                .push("STORE_PASSWORD_FILE is set and STORE_URL has a password: leave one out".into());
        }
        if ca.is_some() && !at.tls {
            self.problems
                .push("STORE_CA_FILE is set, but STORE_URL does not ask for TLS: write rediss://".into());
        }
        StoreAt::Valkey(ValkeyAt { password_file: password, ca_file: ca, prefix, ..at })
    }

    pub(super) fn node(&mut self) -> NodeName {
        let given = self.text("NODE_NAME");
        let text = if given.is_empty() { host_name() } else { given };
        text.parse().unwrap_or_else(|problem| {
            self.problems.push(format!("NODE_NAME: {problem}"));
            NodeName::unknown()
        })
    }

    pub(super) fn directory(&mut self, name: &str) -> PathBuf {
        let text = self.text(name);
        if text.is_empty() {
            self.problems.push(format!("{name} is empty: a directory"));
        }
        std::path::absolute(&text).unwrap_or_else(|_| PathBuf::from(text))
    }
}

/// This host's name, in the form of a node's.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_ascii_lowercase().replace('_', "-")
}
