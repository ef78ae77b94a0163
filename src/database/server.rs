//! The server: connections of the administrator, who has which database, and
//! whether the server answers.
//!
//! One task asks once a second; what it finds is what acquire and `/health`
//! look at, so that an outage is known before anybody runs into it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, OptsBuilder};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{DatabaseError, quoted, refused};
use crate::config::DatabaseServer;
use crate::engine::OwnDatabase;
use crate::error::Chain;
use crate::id::InstanceId;
use crate::identity;
use crate::instance::trace::{Kind, Trace};

/// Any statement but the making of a template; the slowest seen is the drop of
/// a PrestaShop's 276 tables, 0.4 s.
const DEADLINE: Duration = Duration::from_secs(20);

/// How often the server is asked whether it is there: an outage is known that
/// much later, and so is its end.
const LOOK: Duration = Duration::from_secs(1);

/// An idle server answers in a millisecond.
const LOOK_DEADLINE: Duration = Duration::from_secs(3);

/// Connections of one shop at once: six PHP workers with one each, and some
/// for a command line.
const CONNECTIONS_MAX: u32 = 16;

/// Letters and digits of a clone's password: 142 bits.
const PASSWORD_LEN: usize = 24;

/// MariaDB's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl Version {
    /// Reads `11.8.9-MariaDB-2 from Debian`; none when it is not MariaDB's.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // Old clients were told of a version 5.5.5 first.
        let text = text.strip_prefix("5.5.5-").unwrap_or(text);
        let mut numbers = text.split(|c: char| !c.is_ascii_digit());
        let version = Self(numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        text.contains("MariaDB").then_some(version)
    }
}

/// The shared server.
pub struct Server {
    settings: DatabaseServer,
    password: Option<SecretString>,
    /// Why it does not answer; none while it does.
    down: watch::Sender<Option<String>>,
    looks: std::sync::OnceLock<AbortOnDropHandle<()>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("socket", &self.settings.socket).finish_non_exhaustive()
    }
}

impl Server {
    /// Reads the password and begins to watch; asks nothing itself.
    ///
    /// # Errors
    /// [`DatabaseError::PasswordFile`].
    pub fn open(settings: DatabaseServer) -> Result<Arc<Self>, DatabaseError> {
        let password = match &settings.password_file {
            None => settings.password.clone(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| DatabaseError::PasswordFile { path: path.clone(), source })?;
                Some(text.trim_end_matches(['\r', '\n']).to_owned().into())
            }
        };
        let server =
            Arc::new(Self { settings, password, down: watch::channel(None).0, looks: Default::default() });
        let watched = Arc::downgrade(&server);
        let looks = tokio::spawn(async move {
            let mut tick = tokio::time::interval(LOOK);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tick.tick().await;
                let Some(server) = watched.upgrade() else { return };
                server.look().await;
            }
        });
        let _ = server.looks.set(AbortOnDropHandle::new(looks));
        Ok(server)
    }

    /// Asks whether it is there.
    async fn look(&self) {
        let asked = async {
            let mut connection = self.connect().await?;
            connection.query_drop("SELECT 1").await.map_err(refused("answer"))?;
            connection.disconnect().await.map_err(refused("answer"))
        };
        let seen = match tokio::time::timeout(LOOK_DEADLINE, asked).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Chain(&error).to_string()),
            Err(_) => Some(format!("no answer within {} s", LOOK_DEADLINE.as_secs())),
        };
        self.note(seen);
    }

    /// Writes down whether it is there; a change is logged here and nowhere else.
    fn note(&self, seen: Option<String>) {
        self.down.send_if_modified(|down| {
            let changed = down.is_some() != seen.is_some();
            match &seen {
                Some(error) if changed => tracing::warn!(%error, "shared database server is down"),
                None if changed => tracing::info!("shared database server is back"),
                _ => {}
            }
            *down = seen;
            changed
        });
    }

    /// Why it does not answer; none while it does.
    #[must_use]
    pub fn outage(&self) -> Option<String> {
        self.down.borrow().clone()
    }

    /// Returns when it answers, at once if it does.
    pub(super) async fn is_up(&self) {
        // The sender lives as long as this borrow.
        let _ = self.down.subscribe().wait_for(Option::is_none).await;
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.settings.socket
    }

    /// The directory that every shop sees.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.settings.directory()
    }

    /// A connection as the administrator.
    pub(super) async fn connect(&self) -> Result<Conn, DatabaseError> {
        let password = self.password.as_ref().map(|word| word.expose_secret().to_owned());
        self.login(&self.settings.user, password, None).await
    }

    /// A connection as a clone's user, in its database.
    pub(super) async fn connect_as(&self, own: &OwnDatabase) -> Result<Conn, DatabaseError> {
        let password = Some(own.password.expose_secret().to_owned());
        self.login(&own.user, password, Some(own.name.clone())).await
    }

    async fn login(
        &self,
        user: &str,
        password: Option<String>,
        database: Option<String>,
    ) -> Result<Conn, DatabaseError> {
        let options = OptsBuilder::default()
            .socket(Some(self.settings.socket.display().to_string()))
            .user(Some(user))
            .pass(password)
            .db_name(database)
            // Known values, so that the driver need not ask for them.
            .max_allowed_packet(Some(16 << 20))
            .wait_timeout(Some(60))
            .stmt_cache_size(0);
        let connecting = tokio::time::timeout(DEADLINE, Conn::new(options)).await;
        let doing = "let the daemon in";
        connecting.map_err(|_| DatabaseError::Deadline { doing, deadline: DEADLINE })?.map_err(refused(doing))
    }

    /// Does one thing as the administrator, within the deadline; an outage that
    /// it meets is known at once.
    pub(super) async fn ask<T>(
        &self,
        doing: &'static str,
        work: impl AsyncFnOnce(&mut Conn) -> Result<T, DatabaseError>,
    ) -> Result<T, DatabaseError> {
        self.ask_within(DEADLINE, doing, work).await
    }

    /// As [`Server::ask`], for what takes longer.
    pub(super) async fn ask_within<T>(
        &self,
        deadline: Duration,
        doing: &'static str,
        work: impl AsyncFnOnce(&mut Conn) -> Result<T, DatabaseError>,
    ) -> Result<T, DatabaseError> {
        let asked = async {
            let mut connection = self.connect().await?;
            let done = work(&mut connection).await?;
            // What was asked is done; a server that ends now has done it.
            drop(connection.disconnect().await);
            Ok(done)
        };
        let done = match tokio::time::timeout(deadline, asked).await {
            Ok(done) => done,
            Err(_) => Err(DatabaseError::Deadline { doing, deadline }),
        };
        if let Err(error) = &done
            && error.is_outage()
        {
            self.note(Some(Chain(error).to_string()));
        }
        done
    }

    /// What it says its version is.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn version(&self) -> Result<String, DatabaseError> {
        let doing = "tell its version";
        let version = self
            .ask(doing, async |connection| {
                connection.query_first::<String, _>("SELECT VERSION()").await.map_err(refused(doing))
            })
            .await?;
        Ok(version.unwrap_or_default())
    }

    /// Tries all that a daemon asks of its administrator, and leaves nothing.
    ///
    /// # Errors
    /// [`DatabaseError`]: the first thing that was refused.
    pub async fn trial(&self) -> Result<(), DatabaseError> {
        let name = self.name("doctor");
        let tried = async {
            let own = self.create(&name).await?;
            self.ask("make a table", async |connection| {
                let doing = "make a table";
                let table = format!("{}.t", quoted(&name));
                connection
                    .query_drop(format!("CREATE TABLE {table} (n INT)"))
                    .await
                    .map_err(refused(doing))?;
                let fill = format!("INSERT INTO {table} SELECT 1 FROM information_schema.schemata LIMIT 1");
                connection.query_drop(fill).await.map_err(refused(doing))
            })
            .await?;
            self.let_in(&own).await?;
            let mut connection = self.connect_as(&own).await?;
            connection.query_drop("SELECT n FROM t").await.map_err(refused("show a shop its table"))?;
            connection.disconnect().await.map_err(refused("let a shop go"))
        };
        let tried = tried.await;
        let dropped = self.remove(&name).await;
        tried.and(dropped)
    }

    /// A name of this daemon's on the server.
    pub(super) fn name(&self, rest: &str) -> String {
        format!("{}{rest}", self.settings.prefix)
    }

    /// Makes an empty database; its user is named, not made.
    pub(super) async fn create(&self, name: &str) -> Result<OwnDatabase, DatabaseError> {
        let doing = "make a database";
        self.ask(doing, async |connection| {
            connection.query_drop(format!("CREATE DATABASE {}", quoted(name))).await.map_err(refused(doing))
        })
        .await?;
        Ok(self.own(name))
    }

    /// Who a database's user is going to be, with a new password.
    pub(super) fn own(&self, name: &str) -> OwnDatabase {
        OwnDatabase {
            name: name.to_owned(),
            user: name.to_owned(),
            password: identity::alnum(PASSWORD_LEN).into(),
            socket: self.settings.socket.clone(),
        }
    }

    /// Makes the user of a database, who may do everything in it and nothing
    /// elsewhere.
    pub(super) async fn let_in(&self, own: &OwnDatabase) -> Result<(), DatabaseError> {
        let doing = "make a user";
        // In a grant _ and % are wildcards.
        let pattern = quoted(&own.name.replace('_', "\\_"));
        let user = format!("{}@localhost", quoted(&own.user));
        // Letters and digits: nothing to escape.
        let password = own.password.expose_secret();
        self.ask(doing, async |connection| {
            for statement in [
                format!(
                    "CREATE OR REPLACE USER {user} IDENTIFIED BY '{password}' WITH MAX_USER_CONNECTIONS {CONNECTIONS_MAX}"
                ),
                format!("GRANT ALL ON {pattern}.* TO {user}"),
            ] {
                connection.query_drop(statement).await.map_err(refused(doing))?;
            }
            Ok(())
        })
        .await
    }

    /// Drops a database and its user, whatever of them is there: the user
    /// first, so that none is ever without the database by which it is found.
    pub(super) async fn remove(&self, name: &str) -> Result<(), DatabaseError> {
        let doing = "drop a database and its user";
        self.ask(doing, async |connection| {
            let statements = [
                format!("DROP USER IF EXISTS {}@localhost", quoted(name)),
                format!("DROP DATABASE IF EXISTS {}", quoted(name)),
            ];
            for statement in statements {
                connection.query_drop(statement).await.map_err(refused(doing))?;
            }
            Ok(())
        })
        .await
    }

    /// The databases of this daemon, without the prefix, and their comments.
    pub(super) async fn databases(&self) -> Result<Vec<(String, String)>, DatabaseError> {
        let doing = "list its databases";
        let prefix = &self.settings.prefix;
        let all: Vec<(String, String)> = self
            .ask(doing, async |connection| {
                // Not by LIKE: _ is a wildcard.
                let own = "SELECT schema_name, schema_comment FROM information_schema.schemata \
                           WHERE LEFT(schema_name, ?) = ?";
                connection.exec(own, (prefix.len(), prefix)).await.map_err(refused(doing))
            })
            .await?;
        let own = |(name, comment): (String, String)| Some((name.strip_prefix(prefix)?.to_owned(), comment));
        Ok(all.into_iter().filter_map(own).collect())
    }

    /// The databases of instances.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn traces(&self) -> Result<Vec<Trace>, DatabaseError> {
        let all = self.databases().await?;
        let trace = |rest: String| Some(Trace::of(rest.parse().ok()?, Kind::Database, self.name(&rest)));
        Ok(all.into_iter().filter_map(|(rest, _)| trace(rest)).collect())
    }

    /// Drops an instance's database and user, whatever of them is there.
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub async fn drop_of(&self, id: &InstanceId) -> Result<(), DatabaseError> {
        self.remove(&self.name(id.as_str())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_told_apart() {
        assert_eq!(Version::parse("11.8.9-MariaDB-2 from Debian"), Some(Version(11, 8)));
        assert_eq!(Version::parse("5.5.5-10.11.18-MariaDB-0+deb12u1"), Some(Version(10, 11)));
        assert_eq!(Version::parse("8.0.36"), None, "another program's");
        assert!(Version(11, 8) > Version(10, 11));
    }
}
