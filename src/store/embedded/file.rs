//! The embedded store's file: a redb database with two tables.
//!
//! ```text
//! instances:     <instance id> -> the record as JSON, with its "version"
//! admissions.v1: <client>, <ns since 1970>, <number> -> the ns at which it is outdated
//! ```
//!
//! Owned by the writer thread of [`super`]. A commit is durable when it
//! answers. After a failed one redb refuses further work until the file is
//! opened again, so the file is then dropped and opened anew.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError,
    TableDefinition,
};

use super::admissions::Entry;
use crate::error::ErrorKind;
use crate::id::{InstanceId, NodeName};
use crate::instance::{Instance, RECORD_VERSION, RecordError};

const INSTANCES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("instances");
const ADMISSIONS: TableDefinition<'_, (&str, i128, u64), i128> = TableDefinition::new("admissions.v1");

/// redb's page cache. Records are read once, at opening; what stays is the
/// upper part of a small tree. redb's own default is a gigabyte.
const CACHE_BYTES: usize = 8 << 20;

/// Why the store's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    /// Another process has it open.
    #[error("the store {} is in use by another process", .path.display())]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// It is no store, or not whole.
    #[error("the store {} is damaged; move it away to begin with an empty one", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What redb found.
        #[source]
        source: Box<redb::Error>,
    },
    /// The file system refuses.
    #[error("cannot open the store {}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A later program wrote it.
    #[error(
        "the store {} has a record of version {found}, this program knows up to {RECORD_VERSION}: it was written by a later one",
        .path.display()
    )]
    TooNew {
        /// Which file.
        path: PathBuf,
        /// The record's version.
        found: u16,
    },
    /// A record is not of the form of its version.
    #[error("the store {} has an unreadable record {key:?}", .path.display())]
    Record {
        /// Which file.
        path: PathBuf,
        /// The record's key.
        key: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
}

impl OpenStoreError {
    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InUse { .. } => ErrorKind::Conflict,
            Self::Damaged { .. } | Self::TooNew { .. } | Self::Record { .. } => ErrorKind::Incompatible,
            Self::Io { source, .. } => crate::error::kind_of_io(source),
        }
    }
}

/// Where the database is kept; tests put one there that fails on demand.
pub(super) type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send>;

/// The open database.
#[derive(Debug)]
pub(super) struct StoreFile {
    database: Database,
}

/// What a file holds.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) records: Vec<Instance>,
    /// Counted acquires, each with the time at which it is outdated.
    pub(super) admissions: Vec<(Entry, Timestamp)>,
}

/// The opener of a file of the host that is there.
pub(super) fn opener(path: PathBuf) -> Opener {
    Box::new(move || {
        let failed = |error: std::io::Error| DatabaseError::Storage(error.into());
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() == 0 {
            // redb would begin anew, on a host whose instances live.
            return Err(DatabaseError::Storage(StorageError::Corrupted("it is empty".into())));
        }
        builder().create_with_backend(FileBackend::new(file)?)
    })
}

/// Makes the file if there is none, with mode 0600: whole by a rename, so that one that
/// is empty has been damaged.
pub(super) fn ensure(path: &Path) -> Result<(), OpenStoreError> {
    let failed = |source| OpenStoreError::Io { path: path.to_owned(), source };
    if path.try_exists().map_err(failed)? {
        return Ok(());
    }
    let new = path.with_extension("new");
    let create = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&new);
    let database = FileBackend::new(create.map_err(failed)?).and_then(|it| builder().create_with_backend(it));
    let begun =
        database.map_err(redb::Error::from).and_then(|database| StoreFile { database }.create_tables());
    begun.map_err(|error| open_error(error, &new))?;
    std::fs::rename(&new, path).map_err(failed)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or_else(|| Path::new("."))).and_then(|dir| dir.sync_all()).map_err(failed)
}

/// How any of the store's databases is opened. A file that something else has
/// changed is read through first: redb trusts its own, and would panic on it.
pub(super) fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

impl StoreFile {
    /// Opens the database and reads all of it.
    pub(super) fn open(
        opener: &Opener,
        path: &Path,
        node: &NodeName,
    ) -> Result<(Self, Found), OpenStoreError> {
        let database = opener().map_err(|error| open_error(error.into(), path))?;
        let file = Self { database };
        file.create_tables().map_err(|error| open_error(error, path))?;
        let raw = file.read_instances().map_err(|error| open_error(error, path))?;
        let records = raw.iter().map(|(key, bytes)| decode(key, bytes, path, node));
        let records = records.collect::<Result<_, _>>()?;
        let admissions = file.read_admissions().map_err(|error| open_error(error, path))?;
        Ok((file, Found { records, admissions }))
    }

    /// In a new file, or one of a former program; else it changes nothing. On the disk
    /// when it answers.
    fn create_tables(&self) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        drop(transaction.open_table(INSTANCES)?);
        drop(transaction.open_table(ADMISSIONS)?);
        transaction.commit()?;
        Ok(())
    }

    fn read_instances(&self) -> Result<Vec<(String, Vec<u8>)>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(INSTANCES)?;
        let mut rows = Vec::new();
        for row in table.iter()? {
            let (key, value) = row?;
            rows.push((key.value().to_owned(), value.value().to_vec()));
        }
        Ok(rows)
    }

    fn read_admissions(&self) -> Result<Vec<(Entry, Timestamp)>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(ADMISSIONS)?;
        let mut rows = Vec::new();
        for row in table.iter()? {
            let (key, end) = row?;
            let (client, at, number) = key.value();
            // No time is out of range but by another program's hand; the worst
            // that its loss does is one acquire too many.
            if let (Ok(at), Ok(end)) =
                (Timestamp::from_nanosecond(at), Timestamp::from_nanosecond(end.value()))
            {
                rows.push((Entry { client: client.into(), at, number }, end));
            }
        }
        Ok(rows)
    }

    /// Writes a record as another program would have.
    #[cfg(test)]
    pub(super) fn write_raw(&self, id: &str, bytes: &[u8]) {
        let transaction = self.database.begin_write().unwrap();
        transaction.open_table(INSTANCES).unwrap().insert(id, bytes).unwrap();
        transaction.commit().unwrap();
    }

    /// Writes all changes in one durable transaction; none as a value removes.
    pub(super) fn commit(
        &self,
        changes: &BTreeMap<&InstanceId, Option<&Instance>>,
        admissions: &BTreeMap<Entry, Option<Timestamp>>,
    ) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(INSTANCES)?;
            for (id, record) in changes {
                match record {
                    Some(record) => {
                        let bytes = record
                            .to_record()
                            .map_err(|error| redb::Error::Io(std::io::Error::other(error)))?;
                        table.insert(id.as_str(), bytes.as_bytes())?;
                    }
                    None => {
                        table.remove(id.as_str())?;
                    }
                }
            }
            let mut table = transaction.open_table(ADMISSIONS)?;
            for (entry, end) in admissions {
                let key = (&*entry.client, entry.at.as_nanosecond(), entry.number);
                match end {
                    Some(end) => table.insert(key, end.as_nanosecond())?,
                    None => table.remove(key)?,
                };
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

fn decode(key: &str, bytes: &[u8], path: &Path, node: &NodeName) -> Result<Instance, OpenStoreError> {
    let mut record = Instance::from_record(bytes, node).map_err(|error| match error {
        RecordError::TooNew { found } => OpenStoreError::TooNew { path: path.to_owned(), found },
        RecordError::Form(source) => {
            OpenStoreError::Record { path: path.to_owned(), key: key.to_owned(), source }
        }
    })?;
    // The file is one daemon's alone, whatever its name was when it wrote it.
    record.node = node.clone();
    Ok(record)
}

fn open_error(error: redb::Error, path: &Path) -> OpenStoreError {
    let path = path.to_owned();
    match error {
        redb::Error::DatabaseAlreadyOpen => OpenStoreError::InUse { path },
        redb::Error::Io(source) if !is_damage(&source) => OpenStoreError::Io { path, source },
        other => OpenStoreError::Damaged { path, source: Box::new(other) },
    }
}

/// redb reports a file that is none of its own, or is cut short, as these.
fn is_damage(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof)
}
