//! Names that are checked once, when they enter, and trusted afterwards.
//!
//! An [`InstanceId`] is also a DNS label, a directory name, a cgroup name and,
//! with a prefix, a network interface name (15 bytes at most), so its form is
//! narrow: 12 characters of `a-z2-7`, 60 random bits.

use std::fmt;
use std::str::FromStr;

use rand::RngExt as _;
use serde::{Deserialize, Serialize};

/// A name that does not have the form its kind asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {kind}: {rule}")]
pub struct IdError {
    kind: &'static str,
    rule: &'static str,
    text: String,
}

/// Letters of an instance id: no digit that reads as a letter.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Characters of an instance id; `dm-` in front still fits an interface name.
const INSTANCE_ID_LEN: usize = 12;

/// The longest golden or snapshot label: a directory and image name component.
const LABEL_MAX: usize = 64;

/// How many names a message tells.
const FEW: usize = 3;

/// Some names for a message, and how many more there are.
pub fn few(names: &[impl fmt::Display]) -> String {
    let told: Vec<String> = names.iter().take(FEW).map(ToString::to_string).collect();
    match names.len().saturating_sub(FEW) {
        0 => told.join(", "),
        more => format!("{} and {more} more", told.join(", ")),
    }
}

macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(IdError { kind: $kind, rule: $rule, text: text.chars().take(80).collect() })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_newtype!(
    /// One shop's name: its host label, directory, cgroup and interface name.
    InstanceId,
    "instance id",
    "12 characters of a-z and 2-7",
    |text| text.len() == INSTANCE_ID_LEN && text.bytes().all(|byte| ALPHABET.contains(&byte))
);

text_newtype!(
    /// A golden's name.
    GoldenName,
    "golden name",
    "1 to 64 characters of a-z, 0-9 and -, a letter first",
    |text| {
        text.len() <= LABEL_MAX
            && text.starts_with(|first: char| first.is_ascii_lowercase())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    }
);

text_newtype!(
    /// A snapshot's name, `<golden>-<utc time>-<4 hex digits>`; also its directory.
    SnapshotId,
    "snapshot id",
    "up to 96 characters of a-z, 0-9 and -, a letter first",
    |text| {
        text.len() <= 96
            && text.starts_with(|first: char| first.is_ascii_lowercase())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    }
);

text_newtype!(
    /// A daemon's name among those that share a store; by default its host's.
    NodeName,
    "node name",
    "1 to 63 characters of a-z, 0-9, - and ., a letter or digit first and last",
    |text| {
        let edge = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        text.len() <= 63
            && edge(text.bytes().next())
            && edge(text.bytes().next_back())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
    }
);

impl NodeName {
    /// The name of a host without one.
    #[must_use]
    pub fn unknown() -> Self {
        Self("localhost".into())
    }
}

impl InstanceId {
    /// Draws a new id from the thread's cryptographic generator.
    #[must_use]
    pub fn random() -> Self {
        let mut rng = rand::rng();
        let text =
            (0..INSTANCE_ID_LEN).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect();
        Self(text)
    }

    /// The host side's network interface name.
    #[must_use]
    pub fn interface(&self) -> String {
        format!("dm-{}", self.0)
    }
}

impl SnapshotId {
    /// Names a snapshot of `golden` taken at `now`.
    ///
    /// Ids of one golden sort by time.
    #[must_use]
    pub fn new(golden: &GoldenName, now: jiff::Timestamp) -> Self {
        let time = now.strftime("%Y%m%dt%H%M%Sz");
        let tail: u16 = rand::rng().random();
        Self(format!("{golden}-{time}-{tail:04x}"))
    }

    /// The golden that its name says it is of; only its manifest knows.
    #[must_use]
    pub fn golden(&self) -> &str {
        self.0.rsplitn(3, '-').nth(2).unwrap_or(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_parse_and_differ() {
        let one = InstanceId::random();
        assert_eq!(one.as_str().parse::<InstanceId>().as_ref(), Ok(&one));
        assert_ne!(one, InstanceId::random());
        assert!(one.interface().len() <= 15, "an interface name has 15 bytes at most");
    }

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for text in ["", "..", "../../etc", "a/b", "A", "1abc", "a\0b", "é"] {
            assert!(text.parse::<GoldenName>().is_err(), "{text:?}");
            assert!(text.parse::<SnapshotId>().is_err(), "{text:?}");
            assert!(text.parse::<InstanceId>().is_err(), "{text:?}");
        }
        for text in ["", "..", "a/b", "A", "a:b", "a b", "-a", "a.", "{a}", &"a".repeat(64)] {
            assert!(text.parse::<NodeName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn snapshot_ids_of_one_golden_sort_by_time() {
        let golden: GoldenName = "wordpress".parse().unwrap();
        let early = SnapshotId::new(&golden, "2026-01-01T00:00:00Z".parse().unwrap());
        let late = SnapshotId::new(&golden, "2026-01-01T00:00:01Z".parse().unwrap());
        assert!(early < late);
        assert!(early.as_str().parse::<SnapshotId>().is_ok());
    }
}
