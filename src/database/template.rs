//! The databases that are no clone's: a golden's while it is being frozen, and
//! a snapshot's, from which clones are copied.
//!
//! ```text
//! create -> user -> import -> described -> user locked out -> comment says whose it is: whole
//! ```
//!
//! A death before the last step leaves a template without its comment: the next
//! look at it drops it and begins again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use tokio::sync::Mutex;

use super::copy::Plan;
use super::mover::{Mover, io_at};
use super::{DatabaseError, Server, quoted, refused};
use crate::engine::OwnDatabase;
use crate::id::{InstanceId, SnapshotId};

/// What the names of templates begin with.
const TEMPLATE: &str = "t_";

/// What the names of databases of goldens being frozen begin with.
const SCRATCH: &str = "new_";

/// How long a copy may take: a PrestaShop's 276 tables take 1 s on a quiet host.
const COPY_DEADLINE: Duration = Duration::from_secs(120);

/// A snapshot's part of a database's name, whose length is limited.
fn hashed(snapshot: &SnapshotId) -> String {
    blake3::hash(snapshot.as_str().as_bytes()).to_hex()[..16].to_owned()
}

/// The database that a snapshot's clones are copied from.
#[derive(Debug)]
pub struct Template {
    server: Arc<Server>,
    snapshot: SnapshotId,
    mover: Mover,
    /// The database as SQL, from the snapshot.
    dump: PathBuf,
    /// How it is copied; none until it was looked at. Held while it is made.
    plan: Mutex<Option<Arc<Plan>>>,
}

impl Template {
    /// The template of a prepared snapshot; nothing is asked of the server.
    #[must_use]
    pub fn new(server: Arc<Server>, snapshot: SnapshotId, mover: Mover, dump: PathBuf) -> Self {
        Self { server, snapshot, mover, dump, plan: Mutex::default() }
    }

    /// The server it is on.
    #[must_use]
    pub const fn server(&self) -> &Arc<Server> {
        &self.server
    }

    fn name(&self) -> String {
        self.server.name(&format!("{TEMPLATE}{}", hashed(&self.snapshot)))
    }

    /// Makes a clone's database and user; the template first, if it is lost.
    ///
    /// # Errors
    /// [`DatabaseError`]; what was half made is dropped, or is found by its name
    /// later.
    pub(super) async fn copy_for(&self, id: &InstanceId) -> Result<OwnDatabase, DatabaseError> {
        let name = self.server.name(id.as_str());
        let copied = async {
            let plan = self.ensure().await?;
            let own = self.server.create(&name).await?;
            let doing = "copy the template";
            let copied = self.server.ask_within(COPY_DEADLINE, doing, async |connection| {
                plan.copy(connection, &self.name(), &own.name).await
            });
            copied.await?;
            self.server.let_in(&own).await?;
            if plan.has_programs() {
                let mut connection = self.server.connect_as(&own).await?;
                plan.create_programs(&mut connection).await?;
                drop(connection.disconnect().await);
            }
            Ok(own)
        };
        let copied: Result<_, DatabaseError> = copied.await;
        if let Err(error) = &copied {
            if error.is_absence() {
                // Somebody took a table, or all: the next one begins with a new template.
                self.distrust().await;
            }
            // Found by its name otherwise.
            drop(self.server.remove(&name).await);
        }
        copied
    }

    /// Has the next copy make the template anew.
    async fn distrust(&self) {
        *self.plan.lock().await = None;
        let statement = format!("ALTER DATABASE {} COMMENT = ''", quoted(&self.name()));
        let doing = "mark the template";
        let marked = self
            .server
            .ask(doing, async |connection| connection.query_drop(statement).await.map_err(refused(doing)));
        // It is not there at all, then.
        drop(marked.await);
    }

    /// Finds the template whole or makes it; answers how it is copied.
    async fn ensure(&self) -> Result<Arc<Plan>, DatabaseError> {
        let mut plan = self.plan.lock().await;
        let whole = self.is_whole().await?;
        if let (true, Some(plan)) = (whole, plan.as_ref()) {
            return Ok(Arc::clone(plan));
        }
        *plan = None;
        let name = self.name();
        if !whole {
            tracing::info!(snapshot_id = %self.snapshot, "template database is being made");
            self.server.remove(&name).await?;
            let own = self.server.create(&name).await?;
            self.server.let_in(&own).await?;
            self.mover.import(&self.server, &own, &self.dump).await?;
        }
        let read = self.describe(&name).await?;
        // Nobody but the administrator comes in; and now it is whole.
        let doing = "mark the template";
        let statements = [
            format!("ALTER USER {}@localhost ACCOUNT LOCK", quoted(&name)),
            format!("ALTER DATABASE {} COMMENT = '{}'", quoted(&name), self.snapshot),
        ];
        self.server
            .ask(doing, async |connection| {
                for statement in statements {
                    connection.query_drop(statement).await.map_err(refused(doing))?;
                }
                Ok(())
            })
            .await?;
        Ok(Arc::clone(plan.insert(Arc::new(read))))
    }

    /// Reads how it is copied as the user who made all that is in it: a routine
    /// is shown to nobody else.
    async fn describe(&self, name: &str) -> Result<Plan, DatabaseError> {
        let own = self.server.own(name);
        self.server.let_in(&own).await?;
        let mut connection = self.server.connect_as(&own).await?;
        let doing = "describe the template";
        let read = tokio::time::timeout(COPY_DEADLINE, Plan::read(&mut connection)).await;
        let read = read.map_err(|_| DatabaseError::Deadline { doing, deadline: COPY_DEADLINE })?;
        drop(connection.disconnect().await);
        read
    }

    async fn is_whole(&self) -> Result<bool, DatabaseError> {
        let name = format!("{TEMPLATE}{}", hashed(&self.snapshot));
        let all = self.server.databases().await?;
        Ok(all.iter().any(|(found, comment)| *found == name && *comment == self.snapshot.as_str()))
    }

    /// Drops the templates of snapshots that are not in `keep`.
    ///
    /// # Errors
    /// [`DatabaseError`]; call again later.
    pub async fn forget(server: &Server, keep: &[&SnapshotId]) -> Result<(), DatabaseError> {
        let kept: Vec<String> = keep.iter().map(|snapshot| hashed(snapshot)).collect();
        drop_all(server, TEMPLATE, |rest| !kept.iter().any(|kept| kept == rest)).await
    }
}

async fn drop_all(server: &Server, kind: &str, unwanted: impl Fn(&str) -> bool) -> Result<(), DatabaseError> {
    for (name, _) in server.databases().await? {
        if name.strip_prefix(kind).is_some_and(&unwanted) {
            server.remove(&server.name(&name)).await?;
        }
    }
    Ok(())
}

/// A golden's database while it is warmed and frozen.
#[derive(Debug)]
pub struct Scratch {
    server: Arc<Server>,
    own: OwnDatabase,
}

impl Scratch {
    /// Makes a database with what the golden was built with; what a former
    /// checkpoint left is dropped. `work` is a directory for the dump.
    ///
    /// # Errors
    /// [`DatabaseError`]; nothing is left, or the next one drops it.
    pub async fn make(
        server: &Arc<Server>,
        snapshot: &SnapshotId,
        mover: &Mover,
        work: &Path,
    ) -> Result<Self, DatabaseError> {
        drop_all(server, SCRATCH, |_| true).await?;
        let dump = work.join("built.sql");
        let name = server.name(&format!("{SCRATCH}{}", hashed(snapshot)));
        let made = async {
            mover.export_built(&dump).await?;
            let own = server.create(&name).await?;
            server.let_in(&own).await?;
            mover.import(server, &own, &dump).await?;
            Ok(own)
        };
        let made: Result<_, DatabaseError> = made.await;
        let removed = match std::fs::remove_file(&dump) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(io_at("remove", &dump)),
        };
        match made.and_then(|own| removed.map(|()| own)) {
            Ok(own) => Ok(Self { server: Arc::clone(server), own }),
            Err(error) => {
                drop(server.remove(&name).await);
                Err(error)
            }
        }
    }

    /// The golden's database.
    #[must_use]
    pub const fn own(&self) -> &OwnDatabase {
        &self.own
    }

    /// Drops it.
    ///
    /// # Errors
    /// [`DatabaseError`]; the next checkpoint drops it then.
    pub async fn drop(self) -> Result<(), DatabaseError> {
        self.server.remove(&self.own.name).await
    }
}
