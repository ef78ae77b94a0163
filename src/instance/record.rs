//! The record as bytes: written in one version, read in every one there was.
//!
//! ```text
//! 1   no "node": one daemon, one store
//! 2   "node": the daemon that made it
//! 3   "slot": what its things on the host are named, if not as itself
//! ```
//!
//! Pure. Called by the stores.

use serde::Deserialize;
use serde_json::Value;

use super::Instance;
use crate::id::NodeName;

/// The version this program writes into instance records.
pub const RECORD_VERSION: u16 = 3;

/// Why a record cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A later program wrote it.
    #[error(
        "the record is of version {found}, this program knows up to {RECORD_VERSION}: a later one wrote it"
    )]
    TooNew {
        /// The record's version.
        found: u16,
    },
    /// It is not of the form of its version.
    #[error("the record is not of the form of its version")]
    Form(#[source] serde_json::Error),
}

impl Instance {
    /// Writes the record, in the present version.
    ///
    /// # Errors
    /// None for a record that came from this program.
    pub fn to_record(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self)
    }

    /// Reads a record of any version; one without a node becomes `own`'s.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn from_record(bytes: &[u8], own: &NodeName) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u16,
        }
        // The version first: a later program's record need not have our fields.
        let Versioned { version } = serde_json::from_slice(bytes).map_err(RecordError::Form)?;
        if version > RECORD_VERSION {
            return Err(RecordError::TooNew { found: version });
        }
        let mut value: Value = serde_json::from_slice(bytes).map_err(RecordError::Form)?;
        if version < 2
            && let Some(fields) = value.as_object_mut()
        {
            fields.insert("node".into(), Value::String(own.to_string()));
        }
        let mut instance: Self = serde_json::from_value(value).map_err(RecordError::Form)?;
        instance.version = RECORD_VERSION;
        Ok(instance)
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::instance::{EngineKind, Source, State};

    /// As programs wrote it when each version was the present one, the oldest first.
    const SAMPLES: [&str; RECORD_VERSION as usize] = [
        include_str!("../../tests/samples/records/v1.json"),
        include_str!("../../tests/samples/records/v2.json"),
        include_str!("../../tests/samples/records/v3.json"),
    ];
    const VERSION_1: &str = SAMPLES[0];

    fn own() -> NodeName {
        "here".parse().expect("a node name")
    }

    #[test]
    fn a_record_of_version_1_becomes_this_nodes_own() {
        let read = Instance::from_record(VERSION_1.as_bytes(), &own()).expect("it is understood");
        assert_eq!((read.version, read.generation, &read.node), (RECORD_VERSION, 3, &own()));
        assert_eq!((read.state, read.source), (State::Assigned, Some(Source::Pool)));
        let container = read.container.as_ref().expect("it runs");
        assert_eq!(
            (container.engine, container.pid, container.start_ticks),
            (EngineKind::Criu, 4711, 123_456)
        );
        assert_eq!(read.access.as_ref().map(|a| a.admin_password.expose_secret()), Some("secret"));
        let written = read.to_record().expect("it is written");
        let other = "there".parse().expect("a node name");
        let again = Instance::from_record(written.as_bytes(), &other).expect("it is understood");
        assert_eq!(again.node, own(), "once it has a node, it keeps it");
        assert_eq!(again.created_at, read.created_at, "to the last digit");
    }

    #[test]
    fn records_of_every_version_are_read_and_written_in_the_present_one() {
        for (sample, version) in SAMPLES.iter().zip(1..) {
            let given: Value = serde_json::from_str(sample).expect("a sample is JSON");
            assert_eq!(given["version"], version, "each version has its sample");
            let read = Instance::from_record(sample.as_bytes(), &own()).expect("it is understood");
            let written: Value =
                serde_json::from_str(&read.to_record().expect("it is written")).expect("JSON");
            assert_eq!(written["version"], RECORD_VERSION);
            for (name, value) in given.as_object().expect("a record is an object") {
                let kept = match (name.as_str(), value.as_object()) {
                    ("version", _) => continue,
                    (_, Some(fields)) => fields.iter().all(|(field, value)| written[name][field] == *value),
                    (_, None) => written[name] == *value,
                };
                assert!(kept, "version {version}: {name} is lost");
            }
        }
    }

    #[test]
    fn a_later_programs_record_is_told_from_a_broken_one() {
        let later = Instance::from_record(br#"{"version":4,"other":"fields"}"#, &own());
        assert!(matches!(later, Err(RecordError::TooNew { found: 4 })), "{later:?}");
        for broken in ["", "{}", "[]", r#"{"version":1}"#, r#"{"version":"1"}"#] {
            let error = Instance::from_record(broken.as_bytes(), &own());
            assert!(matches!(error, Err(RecordError::Form(_))), "{broken}: {error:?}");
        }
    }
}
