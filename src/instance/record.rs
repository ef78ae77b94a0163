//! The record as bytes: written in one version, read in every one there was.
//!
//! ```text
//! 1   no "node": one daemon, one store
//! 2   "node": the daemon that made it
//! ```
//!
//! Pure. Called by the stores.

use serde::Deserialize;
use serde_json::Value;

use super::Instance;
use crate::id::NodeName;

/// The version this program writes into instance records.
pub const RECORD_VERSION: u16 = 2;

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

    /// As the program wrote it when version 1 was the present one.
    const VERSION_1: &str = r#"{"version":1,"generation":3,"id":"4irtg5lio2z5","golden":"prestashop",
        "snapshot":"prestashop-20260101t000000z-0a1b","state":"assigned","made_by":"restore","source":"pool",
        "created_at":"2026-01-01T00:00:00.123456789Z","assigned_at":"2026-01-01T00:01:00Z",
        "expires_at":"2026-01-01T01:01:00Z","container":{"engine":"criu","pid":4711,"start_ticks":123456,
        "address":"10.77.0.2","port":80},"access":{"url":"http://4irtg5lio2z5.localhost:8080/",
        "admin_url":"http://4irtg5lio2z5.localhost:8080/admin","admin_email":"demo@example.com",
        "admin_password":"secret"},"idempotency_key":"order-4711"}"#;

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
    fn a_later_programs_record_is_told_from_a_broken_one() {
        let later = Instance::from_record(br#"{"version":3,"other":"fields"}"#, &own());
        assert!(matches!(later, Err(RecordError::TooNew { found: 3 })), "{later:?}");
        for broken in ["", "{}", "[]", r#"{"version":1}"#, r#"{"version":"1"}"#] {
            let error = Instance::from_record(broken.as_bytes(), &own());
            assert!(matches!(error, Err(RecordError::Form(_))), "{broken}: {error:?}");
        }
    }
}
