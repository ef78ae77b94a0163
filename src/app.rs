//! The daemon, put together: the only file that names the concrete store, edges
//! and workers and knows the order in which they begin and end.
//!
//! ```text
//! lock -> open store -> bind                          build: whatever is wrong is fatal here
//! adopt, reap, sweep                                  starting
//! job bus, reconciler, reaper, status streams, listener; READY=1   serving
//! (systemd's socket: what was accepted is answered, the rest waits for the next daemon)
//! no intake, status streams end -> makings end or roll back -> work under way ends
//!     -> listener ends                                draining
//! instances stay (or go, if so asked); last events, also to webhooks    stopped
//! ```
//!
//! Instances outlive the daemon: the next one adopts them.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::chronicle::Chronicle;
use crate::api::status::StatusHub;
use crate::api::{self, Access, ApiState, Door};
use crate::config::{Banner, Config, Landing, NodeSecretError, Router};
use crate::error::Chain;
use crate::instance::{Instance, State};
use crate::listener::{self, Edges};
use crate::nats::NatsError;
use crate::open_edges::{self, bounds};
use crate::open_jobs::Jobs;
use crate::open_store::{Opened, StoreOpenError, open_store};
use crate::pool::adopt::adopt_all;
use crate::pool::reaper::{Certainty, Reaper};
use crate::pool::reconciler::Reconciler;
use crate::pool::{Nudge, PoolStatus, Target};
use crate::pool::{pruner, sleeper};
use crate::promote::Desk;
pub use crate::promote::Stock;
use crate::provision::audit::Auditor;
use crate::provision::{Keeping, Lifecycle, Parts, Provisioner, Terms};
use crate::proxy::{self, Proxy};
use crate::route::{self, RouteError};
use crate::shutdown::{Phase, PhaseSetter};
use crate::store::metered::MeteredStore;
use crate::store::{Store, StoreError};
use crate::token::TokenFileError;
use crate::web::cookie::{Key, KeyError};
use crate::web::{self, WebState};
use crate::webhook::{WebhookError, Webhooks};
use crate::{console, metrics, notify, peers, promote};

/// How long makings and other work under way may take on the way down. A
/// restore takes well below a second; the unit's TimeoutStopSec is above the
/// sum of the two deadlines.
const DRAIN_DEADLINE: Duration = Duration::from_secs(20);

/// How often the metrics' buffers are emptied: they grow until then.
const UPKEEP: Duration = Duration::from_secs(5);

/// How long a visitor's request under way may take after that.
const REQUESTS_DEADLINE: Duration = Duration::from_secs(5);

/// What becomes of the instances when the daemon is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExit {
    /// They live on, and the next daemon adopts them.
    KeepInstances,
    /// They are taken down, and nothing is left.
    DestroyInstances,
}

/// Why the daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// STATE_DIR is not usable.
    #[error("cannot use the state directory {}", .path.display())]
    StateDir {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another daemon has STATE_DIR.
    #[error("another daemon runs on {}: stop it, or set STATE_DIR to another directory", .path.display())]
    AlreadyRunning {
        /// Which.
        path: PathBuf,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    OpenStore(StoreOpenError),
    /// The tokens cannot be read.
    #[error(transparent)]
    Tokens(TokenFileError),
    /// The key of cookies cannot be had.
    #[error(transparent)]
    CookieKey(KeyError),
    /// The nodes' secret cannot be used.
    #[error(transparent)]
    NodeSecret(NodeSecretError),
    /// NATS cannot be used with these settings.
    #[error(transparent)]
    Nats(NatsError),
    /// Nobody can be told of leases with these settings.
    #[error(transparent)]
    Webhooks(WebhookError),
    /// LISTEN or ADMIN_LISTEN cannot be bound.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No client for the router can be made.
    #[error("cannot use the router")]
    Router(#[source] RouteError),
    /// systemd's socket cannot be used.
    #[error("cannot use the socket that systemd listens on")]
    Socket(#[source] io::Error),
    /// What the former daemon left cannot be looked at.
    #[error("cannot look at the former daemon's instances")]
    Adopt(#[source] StoreError),
}

/// The right to run on a state directory; nobody else has it meanwhile.
#[derive(Debug)]
pub struct StateLock(#[expect(dead_code, reason = "held, not used")] File);

impl StateLock {
    /// Takes the right. To be called before anything on the host is touched.
    ///
    /// # Errors
    /// [`AppError::AlreadyRunning`], or the directory cannot be used.
    pub fn take(config: &Config) -> Result<Self, AppError> {
        let dir = &config.state_dir;
        let unusable = |source| AppError::StateDir { path: dir.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(unusable)?;
        let file = File::options().create(true).truncate(false).write(true).open(dir.join("lock"));
        let file = file.map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(AppError::AlreadyRunning { path: dir.clone() }),
            Err(TryLockError::Error(source)) => Err(unusable(source)),
        }
    }
}

/// The daemon, built and not yet running.
#[derive(Debug)]
pub struct App {
    config: Config,
    on_exit: OnExit,
    lifecycle: Arc<Lifecycle>,
    provisioner: Arc<Provisioner>,
    jobs: Jobs,
    webhooks: Option<Webhooks>,
    reconciler: Reconciler,
    reaper: Reaper,
    desk: Desk,
    status: Arc<StatusHub>,
    chronicle: Arc<Chronicle>,
    listener: TcpListener,
    /// Whether systemd holds it too: who connects while no daemon accepts waits in it.
    socket_stays: bool,
    edges: Edges,
    /// Where the operator's part is answered alone.
    admin: Option<TcpListener>,
    phase: PhaseSetter,
    /// What a former daemon knew, until it is taken over.
    remembered: Vec<Instance>,
    /// Last, so that it is given up last.
    lock: StateLock,
}

impl App {
    /// Opens the store, binds the listeners and puts everything together.
    ///
    /// # Errors
    /// [`AppError`]; nothing was started.
    pub async fn build(
        config: Config,
        lock: StateLock,
        stock: impl Into<Stock>,
        on_exit: OnExit,
    ) -> Result<Self, AppError> {
        let Stock { goldens, workshop, pools, beside } = stock.into();
        let tokens = config.edges.tokens.load().map_err(AppError::Tokens)?;
        let key = Key::open(&config.state_dir).map_err(AppError::CookieKey)?;
        let Opened { store, remembered } = open_store(&config).await.map_err(AppError::OpenStore)?;
        let store: Arc<dyn Store> = Arc::new(MeteredStore::new(store));
        let peers = open_edges::open_peers(&config).map_err(AppError::NodeSecret)?;
        let inherited = notify::inherited_listeners().map_err(AppError::Socket)?;
        let socket_stays = inherited.listen.is_some();
        let listener = bind(inherited.listen, "LISTEN", config.listen).await?;
        let admin = match (inherited.admin, config.edges.admin_listen) {
            (None, None) => None,
            (Some(socket), None) => Some(TcpListener::from_std(socket).map_err(AppError::Socket)?),
            (socket, Some(address)) => Some(bind(socket, "ADMIN_LISTEN", address).await?),
        };
        let (refill, reap) = (Nudge::default(), Nudge::default());
        let routes = Arc::new(route::open::open(&config).map_err(AppError::Router)?);
        let lifecycle = Arc::new(Lifecycle::new(Parts {
            store: Arc::clone(&store),
            routes: Arc::clone(&routes),
            goldens,
            max_instances: config.max_instances,
            restore_concurrency: config.restore_concurrency,
            refill: refill.clone(),
            reap: reap.clone(),
        }));
        pools.iter().for_each(|(golden, pool)| lifecycle.aim().set_usual(golden, *pool));
        let provisioner = Provisioner::new(Arc::clone(&lifecycle), Terms::of(&config));
        let provisioner = provisioner.with_peers(peers.clone()).keeping_in(Keeping::of(&config));
        let provisioner = Arc::new(provisioner);
        let target = Target {
            ready: config.pool_target_size,
            starts: config.restore_concurrency,
            cold_start: config.cold_start,
        };
        let status = StatusHub::new(Arc::clone(&provisioner), open_edges::streams(&config));
        let jobs = Jobs::open(&config, &lifecycle, target, refill.clone()).await.map_err(AppError::Nats)?;
        let webhooks = config.webhooks.as_ref();
        let webhooks = webhooks.map(|it| Webhooks::open(it, &config.state_dir, &config.node)).transpose();
        let webhooks = webhooks.map_err(AppError::Webhooks)?;
        let dispatch = jobs.dispatch();
        let reconciler = Reconciler::new(Arc::clone(&lifecycle), target, refill, Arc::clone(dispatch));
        let state_dir = config.state_dir.clone();
        let chronicle = Chronicle::new(Arc::clone(&provisioner), reconciler.status(), state_dir);
        let reaper = Reaper::new(Arc::clone(&lifecycle), reap, Arc::clone(dispatch));
        let phase = PhaseSetter::default();
        let site = Arc::new(open_edges::site(&config, key));
        let landing = (config.edges.landing == Landing::On).then(|| format!("{}/", site.origin()));
        let pages = web::router(WebState::new(
            Arc::clone(&site),
            Arc::clone(&provisioner),
            Arc::clone(&status),
            (config.trusted_proxies.clone(), config.edges.landing),
        ));
        let desk = Desk::new(Arc::clone(&lifecycle), workshop);
        let state = ApiState {
            provisioner: Arc::clone(&provisioner),
            auditor: Arc::new(Auditor::new(Arc::clone(&lifecycle), Arc::clone(dispatch)).and(beside)),
            pool: reconciler.status(),
            phase: phase.view(),
            trusted_proxies: config.trusted_proxies.clone(),
            access: Access { tokens, acquire: config.edges.acquire },
            cors_origins: Arc::new(config.edges.cors_origins.clone()),
            base_domain: config.base_domain.as_str().into(),
            status: Arc::clone(&status),
            chronicle: Arc::clone(&chronicle),
            desk: desk.clone(),
            nats: jobs.link(),
            metrics: metrics::install(),
        };
        let pages = pages.merge(console::router(state.clone(), site, config.edges.admin_auth_header.clone()));
        let calls = peers.clone().map(|peers| (peers, api::calls(state.clone())));
        let edges = Edges {
            api: api::router(state, pages),
            proxy: Proxy::new(proxy::Parts {
                routes: Arc::clone(routes.memory()),
                face: open_edges::public_face(&config),
                trusted: config.trusted_proxies.clone(),
                body_max: config.edges.shop_body_max,
                patience: config.edges.shop_timeout,
                banner: (config.edges.banner == Banner::On).then(|| Arc::clone(&store)),
                waker: Some(Arc::clone(&provisioner)),
                landing,
                elsewhere: peers.map(|peers| (peers, store)),
            }),
            base_domain: config.base_domain.as_str().into(),
            door: if admin.is_some() { Door::Public } else { Door::Only },
            nodes: calls,
        };
        Ok(Self {
            config,
            on_exit,
            lifecycle,
            provisioner,
            jobs,
            webhooks,
            reconciler,
            reaper,
            listener,
            socket_stays,
            edges,
            admin,
            phase,
            remembered,
            desk,
            status,
            chronicle,
            lock,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the socket does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Where it listens for the operator, if that is somewhere else.
    ///
    /// # Errors
    /// When the socket does not say.
    pub fn admin_address(&self) -> io::Result<Option<SocketAddr>> {
        self.admin.as_ref().map(TcpListener::local_addr).transpose()
    }

    /// A view of the phase.
    #[must_use]
    pub fn phase(&self) -> tokio::sync::watch::Receiver<Phase> {
        self.phase.view()
    }

    /// Runs until `stop`, then drains.
    ///
    /// # Errors
    /// [`AppError::Adopt`]: the store cannot be read.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), AppError> {
        let (workers, edges, feeds) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
        let (stop_workers, stop_edges) = (CancellationToken::new(), CancellationToken::new());
        let (stop_streams, stop_feeds) = (CancellationToken::new(), CancellationToken::new());
        // Whatever makes this function return ends them.
        let _ends = [&stop_workers, &stop_streams, &stop_feeds].map(|it| it.clone().drop_guard());
        self.jobs.begin((&workers, &stop_workers), (&feeds, &stop_feeds));
        let mut heard = self.lifecycle.events().listen();
        self.take_over().await?;
        if let Some(webhooks) = self.webhooks.take() {
            let store = Arc::clone(self.lifecycle.store());
            webhooks.catch_up(&mut heard, &*store).await.map_err(AppError::Adopt)?;
            feeds.spawn(webhooks.run(heard, store, stop_feeds.clone()));
        }
        self.jobs.open_bus(&workers, &stop_workers);
        let pool = self.reconciler.status();
        workers.spawn(self.reconciler.run(stop_workers.clone()));
        workers.spawn(self.reaper.run(stop_workers.clone()));
        let routes = Arc::clone(self.lifecycle.routes());
        workers.spawn(route::keeper::keep(routes, stop_workers.clone()));
        workers.spawn(self.status.run(stop_streams.clone()));
        let (idle, provisioner) = (sleeper::after(&self.config), Arc::clone(&self.provisioner));
        workers.spawn(pruner::keep(Arc::clone(&self.provisioner), stop_workers.clone()));
        workers.spawn(sleeper::keep(provisioner, idle, stop_workers.clone()));
        workers.spawn(self.chronicle.run(stop_streams.clone()));
        workers.spawn(promote::follower::keep(self.desk, stop_workers.clone()));
        if let Some(peers) = self.provisioner.peers() {
            let provisioner = Arc::clone(&self.provisioner);
            workers.spawn(peers::keeper::keep(Arc::clone(peers), provisioner, stop_workers.clone()));
        }
        let address = self.listener.local_addr();
        let limits = || bounds(&self.config, REQUESTS_DEADLINE);
        if let Some(admin) = self.admin {
            let own = Edges { door: Door::Admin, ..self.edges.clone() };
            edges.spawn(listener::serve(admin, own, limits(), stop_edges.clone()));
        }
        edges.spawn(listener::serve(self.listener, self.edges, limits(), stop_edges.clone()));
        open_edges::tell_too_few_files(&self.config);
        edges.close();
        if let (Banner::On, Router::Caddy(_)) = (self.config.edges.banner, &self.config.router) {
            tracing::warn!("BANNER=on shows nothing with ROUTER=caddy: Caddy leads visitors past the proxy");
        }
        self.phase.enter(Phase::Serving);
        tracing::info!(
            address = address.map(|it| it.to_string()).unwrap_or_default(),
            base_domain = self.config.base_domain,
            "serving"
        );
        notify::ready("serving");
        tokio::select! {
            () = stop.cancelled() => {}
            () = notify::watchdog() => {}
            () = upkeep(pool) => {}
        }

        notify::stopping();
        self.phase.enter(Phase::Draining);
        stop_streams.cancel();
        if self.socket_stays {
            // Whoever comes from now on is the next daemon's; those who are here are served.
            stop_edges.cancel();
            edges.wait().await;
        }
        self.provisioner.stop_intake();
        stop_workers.cancel();
        workers.close();
        self.lifecycle.tasks().close();
        let work = async { tokio::join!(workers.wait(), self.lifecycle.tasks().wait()) };
        if tokio::time::timeout(DRAIN_DEADLINE, work).await.is_err() {
            tracing::warn!("some instances were still being made; the next daemon takes them down");
        }
        stop_edges.cancel();
        edges.wait().await;
        if self.on_exit == OnExit::DestroyInstances {
            destroy_all(&self.lifecycle).await;
        }
        stop_feeds.cancel();
        feeds.close();
        feeds.wait().await;
        self.phase.enter(Phase::Stopped);
        drop(self.lock);
        Ok(())
    }

    /// Adopts what the former daemon left and takes down the rest, before
    /// anything is served.
    async fn take_over(&mut self) -> Result<(), AppError> {
        let now = Timestamp::now();
        let remembered = std::mem::take(&mut self.remembered);
        self.lifecycle.recall(remembered).await.map_err(AppError::Adopt)?;
        let found = adopt_all(&self.lifecycle, now).await.map_err(AppError::Adopt)?;
        let (adopted, dropped) = (found.adopted, found.dropped);
        tracing::info!(adopted, dropped, "former daemon's instances looked at");
        // Before anything is taken down: its address may still be led to.
        route::keeper::look(self.lifecycle.routes()).await;
        self.reaper.pass(now).await;
        self.reaper.settle().await;
        self.reaper.sweep_orphans(Certainty::AtOnce).await;
        if self.config.nodes.is_none() {
            // It may have been one of several before.
            self.lifecycle.store().announce(None, "").await.map_err(AppError::Adopt)?;
        }
        Ok(())
    }
}

/// Takes systemd's socket, or listens at the setting's address.
async fn bind(
    inherited: Option<std::net::TcpListener>,
    setting: &'static str,
    address: SocketAddr,
) -> Result<TcpListener, AppError> {
    match inherited {
        Some(inherited) => {
            let actual = inherited.local_addr().map_err(AppError::Socket)?;
            if actual != address {
                tracing::warn!(
                    address = %actual,
                    setting = %address,
                    "systemd's socket is not what {setting} says: change ListenStream= or {setting}"
                );
            }
            TcpListener::from_std(inherited).map_err(AppError::Socket)
        }
        None => TcpListener::bind(address).await.map_err(|source| AppError::Listen { address, source }),
    }
}

/// Empties the metrics' buffers and keeps systemd's status line up to date.
async fn upkeep(pool: tokio::sync::watch::Receiver<PoolStatus>) {
    let metrics = metrics::install();
    let mut tick = tokio::time::interval(UPKEEP);
    loop {
        tick.tick().await;
        metrics.run_upkeep();
        let failing = pool.borrow().values().filter(|golden| golden.failures_in_a_row > 0).count();
        match failing {
            0 => notify::status("serving"),
            n => notify::status(&format!("serving; restores of {n} golden(s) fail, see the log")),
        }
    }
}

/// Takes every instance down, many at once.
pub(crate) async fn destroy_all(lifecycle: &Arc<Lifecycle>) {
    let all = match lifecycle.store().own().await {
        Ok(all) => all,
        Err(error) => return tracing::warn!(error = %Chain(&error), "instances not taken down"),
    };
    let mut ending = tokio::task::JoinSet::new();
    for instance in all {
        let lifecycle = Arc::clone(lifecycle);
        ending.spawn(async move {
            let id = instance.id.clone();
            if let Err(error) = lifecycle.end(Arc::unwrap_or_clone(instance), State::Expired, |_| true).await
            {
                tracing::warn!(instance_id = %id, error = %Chain(&error), "instance not taken down");
            }
        });
    }
    while ending.join_next().await.is_some() {}
    // And those that a client's release has begun to take down.
    if tokio::time::timeout(DRAIN_DEADLINE, lifecycle.tasks().wait()).await.is_err() {
        tracing::warn!("some instances were still being taken down");
    }
}
