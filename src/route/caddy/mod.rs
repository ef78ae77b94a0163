//! Routes in Caddy: a request goes from Caddy to the instance, past the daemon.
//!
//! All routes of one daemon lie in one container, a route of Caddy's with the
//! `@id` `dmux-<node>` that stands in front of the site for `*.BASE_DOMAIN`;
//! each instance has an entry in it with an `@id` of its own, `dmux-<node>_<id>`
//! ([`shape`]).
//! The rest (TLS, headers, what happens when a shop is dead) is the Caddyfile's.
//!
//! ```text
//! wanted --settle--> one PATCH of the container --> in force
//!                    404: PUT it in front of the site's route, if nobody
//!                    changed the servers meanwhile (Etag, If-Match)
//! ```
//!
//! Every change makes Caddy load its whole configuration anew, whether one route
//! changes or all: so the container is always written whole, and changes that
//! come while one is being written go together in the next. With each change it
//! also closes the connections that have no request under way, a visitor's new
//! one too: so it is left alone for a while between two. One writer at a time;
//! nobody else writes to the container, whose name is this daemon's.
//!
//! Not responsible for: trying again ([`super::keeper`]).

mod admin;
mod shape;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::{Method, StatusCode};
use serde_json::Value;

use self::admin::Admin;
use self::shape::Shape;
use super::{RouteError, RouteTable, Targets};
use crate::config::AdminAddress;
use crate::id::{InstanceId, NodeName};
use crate::metrics;

/// How long a change may take with the one before it; far above a healthy
/// Caddy's 30 ms for 1,000 routes.
const DEADLINE: Duration = Duration::from_secs(5);

/// The least time between two changes: in it some visitors' connections get
/// through that fail at 50 changes a second. Only felt in a burst, since the
/// pool's routes are made ahead.
const GAP: Duration = Duration::from_millis(100);

/// How often the container is put in place when others change the servers at
/// the same moment. They succeed each time, and they are people.
const ROUNDS: usize = 5;

/// Where the admin API listens when the configuration does not say.
const ADMIN_DEFAULT: &str = "localhost:2019";

/// This daemon's routes in Caddy.
#[derive(Debug)]
pub struct CaddyRoutes {
    admin: Admin,
    shape: Shape,
    /// A std lock: held for one map operation, never across an await.
    wanted: std::sync::Mutex<Wanted>,
    /// Held by the one who writes.
    written: tokio::sync::Mutex<Written>,
    /// The last change failed in a way that may take time: nobody but `repair`
    /// waits for it again.
    failing: AtomicBool,
}

/// What a Caddy is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// Whether it has a site for `*.BASE_DOMAIN`.
    pub has_site: bool,
    /// Where its admin API listens, in Caddy's own form.
    pub admin: String,
}

#[derive(Debug, Default)]
struct Wanted {
    routes: Targets,
    /// Counts the changes.
    version: u64,
}

/// The last change that Caddy took.
#[derive(Debug, Default)]
struct Written {
    version: u64,
    at: Option<tokio::time::Instant>,
}

impl CaddyRoutes {
    /// A client of the Caddy at `address`; touches nothing yet.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(address: AdminAddress, node: &NodeName, base_domain: &str) -> Result<Self, RouteError> {
        Ok(Self {
            admin: Admin::new(address)?,
            shape: Shape::new(node, base_domain),
            wanted: std::sync::Mutex::default(),
            written: tokio::sync::Mutex::default(),
            failing: AtomicBool::new(false),
        })
    }

    /// Looks at the Caddy itself, for `doctor`; changes nothing.
    ///
    /// # Errors
    /// [`RouteError`]; that the site is missing is none.
    pub async fn look_around(&self) -> Result<Surroundings, RouteError> {
        let doing = "reading the servers";
        let servers = self.admin.call(doing, Method::GET, shape::SERVERS, None, None).await?;
        let has_site = servers.json(doing).is_ok_and(|servers| self.shape.place(&servers).is_some());
        let doing = "reading where the admin API listens";
        let listen = self.admin.call(doing, Method::GET, shape::ADMIN_LISTEN, None, None).await?;
        let listen = listen.json(doing).ok().and_then(|listen| listen.as_str().map(str::to_owned));
        Ok(Surroundings { has_site, admin: listen.unwrap_or_else(|| ADMIN_DEFAULT.to_owned()) })
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one piece of work in time, and notes how it went.
    async fn noted<T>(&self, work: impl Future<Output = Result<T, RouteError>>) -> Result<T, RouteError> {
        let worked = tokio::time::timeout(DEADLINE, work).await;
        let worked = worked.unwrap_or(Err(RouteError::TooSlow { after: DEADLINE }));
        let failing = worked.as_ref().is_err_and(|error| !error.leads_nowhere());
        self.failing.store(failing, Ordering::Relaxed);
        worked
    }

    /// Writes what is wanted now; `written` is the proof of being alone.
    async fn write(&self, written: &mut Written) -> Result<(), RouteError> {
        if let Some(at) = written.at {
            tokio::time::sleep_until(at + GAP).await;
        }
        let began = Instant::now();
        let (version, container) = {
            let wanted = self.wanted();
            (wanted.version, self.shape.container(&wanted.routes))
        };
        let replaced = self.replace(&container).await;
        metrics::routes_written(replaced.is_ok(), began.elapsed());
        replaced?;
        *written = Written { version, at: Some(tokio::time::Instant::now()) };
        Ok(())
    }

    async fn replace(&self, container: &Value) -> Result<(), RouteError> {
        let path = self.shape.container_path();
        let doing = "replacing the routes";
        for _ in 0..ROUNDS {
            let answer = self.admin.call(doing, Method::PATCH, &path, Some(container), None).await?;
            if answer.status != StatusCode::NOT_FOUND {
                return answer.accepted(doing);
            }
            if self.put_in_place(container).await? {
                return Ok(());
            }
        }
        Err(RouteError::Busy)
    }

    /// Puts the container in front of the site's route; false when somebody
    /// changed the servers between the look and the change.
    async fn put_in_place(&self, container: &Value) -> Result<bool, RouteError> {
        let doing = "reading the servers";
        let servers = self.admin.call(doing, Method::GET, shape::SERVERS, None, None).await?;
        // Without any configuration the path itself is a bad one.
        let found = if servers.status.is_client_error() { Value::Null } else { servers.json(doing)? };
        let Some(place) = self.shape.place(&found) else {
            return Err(RouteError::NoSite { base_domain: self.shape.base_domain().to_owned() });
        };
        let doing = "adding the routes";
        let put = self.admin.call(doing, Method::PUT, &place, Some(container), servers.etag.as_ref()).await?;
        match put.status {
            StatusCode::PRECONDITION_FAILED => Ok(false),
            _ => put.accepted(doing).map(|()| true),
        }
    }

    /// The container as it is in Caddy; null when it is not there.
    async fn read(&self) -> Result<Value, RouteError> {
        let doing = "reading the routes";
        let answer = self.admin.call(doing, Method::GET, &self.shape.container_path(), None, None).await?;
        if answer.status == StatusCode::NOT_FOUND { Ok(Value::Null) } else { answer.json(doing) }
    }
}

#[async_trait]
impl RouteTable for CaddyRoutes {
    fn ensure(&self, id: &InstanceId, upstream: SocketAddr) {
        let mut wanted = self.wanted();
        if !wanted.routes.contains_key(id) {
            wanted.routes.insert(id.clone(), upstream);
            wanted.version += 1;
        }
    }

    fn replace(&self, id: &InstanceId, upstream: SocketAddr) {
        let mut wanted = self.wanted();
        wanted.routes.insert(id.clone(), upstream);
        wanted.version += 1;
    }

    fn remove(&self, id: &InstanceId) {
        let mut wanted = self.wanted();
        wanted.routes.remove(id);
        // Also when it was not wanted: a former daemon's may be there.
        wanted.version += 1;
    }

    async fn settle(&self) -> Result<(), RouteError> {
        if self.failing.load(Ordering::Relaxed) {
            return Err(RouteError::Pending);
        }
        let version = self.wanted().version;
        self.noted(async {
            let mut written = self.written.lock().await;
            // Whoever wrote before may have taken these changes along.
            if written.version >= version {
                return Ok(());
            }
            self.write(&mut written).await
        })
        .await
    }

    async fn list(&self) -> Result<Targets, RouteError> {
        self.noted(async { Ok(self.shape.targets(&self.read().await?)) }).await
    }

    async fn repair(&self) -> Result<usize, RouteError> {
        self.noted(async {
            let mut written = self.written.lock().await;
            let found = self.read().await?;
            let (wrong, whole) = {
                let wanted = self.wanted();
                let wrong = if written.version == wanted.version {
                    self.shape.differences(&found, &wanted.routes)
                } else {
                    // Changes are on their way; they are no damage.
                    0
                };
                (wrong, found == self.shape.container(&wanted.routes))
            };
            if !whole {
                self.write(&mut written).await?;
            }
            Ok(wrong)
        })
        .await
    }
}
