//! The running golden: boot, warm, quiesce.
//!
//! It runs in a network namespace that has nothing but a loopback interface and
//! is reached by sockets made inside that namespace: no address is needed, no
//! running daemon is disturbed.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::time::Instant;

use super::{Origin, shop};
use crate::engine::OwnDatabase;
use crate::engine::podman::cli::{self, PodmanError, RunSpec};
use crate::engine::podman::profile;
use crate::golden::recipe::{Recipe, Warm};
use crate::host::devices;
use crate::host::net::{self, NetError};
use crate::identity::SupplyError;
use crate::restore::personalize::{self, PersonalizeError};
use crate::restore::probe::{self, Page, ProbeError};
use crate::restore::values::{RenderError, Values};

/// The golden's own host name: reserved, resolves nowhere (RFC 6761).
pub const HOST: &str = "golden.invalid";

/// CRIU's options for a dump that clones can be made from.
const CRIU_CONFIG: &str = "# Written by demo-multiplexer.
# A clone lives in a cgroup of its own, not in the golden's.
manage-cgroups=ignore
# No connection is alive: there is nothing to lock out.
network-lock=skip
file-locks
";

/// A page of a booting or warming shop.
const PAGE_DEADLINE: Duration = Duration::from_secs(60);

/// Idle workers leave after their timeout, a second in our recipes' warm-up.
const QUIET_DEADLINE: Duration = Duration::from_secs(60);

/// How often is looked.
const POLL: Duration = Duration::from_millis(20);

/// The golden is not fit to be frozen.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// Podman.
    #[error("Podman refused")]
    Podman(#[from] PodmanError),
    /// Its namespace.
    #[error("no network namespace for it")]
    Net(#[from] NetError),
    /// It did not come up.
    #[error("its page {path} did not show {wanted:?} within {seconds} s; the last answer was {last}")]
    NotReady {
        /// The page.
        path: String,
        /// The text it should show.
        wanted: String,
        /// How long it had.
        seconds: u64,
        /// What it answered instead.
        last: String,
    },
    /// A page to warm is no page.
    #[error("its page {path} answers {status}")]
    Page {
        /// The page.
        path: String,
        /// Its status.
        status: http::StatusCode,
    },
    /// A page did not come.
    #[error("a page did not come")]
    Probe(#[from] ProbeError),
    /// Its recipe asks for something unknown.
    #[error("its recipe's values cannot be drawn")]
    Values(#[from] RenderError),
    /// It could not be told where its database is, or whose it is now.
    #[error("it cannot be told what it is")]
    Identity(#[from] PersonalizeError),
    /// No password for it.
    #[error("no password can be drawn for it")]
    Password(#[from] SupplyError),
    /// It does not come to rest.
    #[error("it does not come to rest within {} s: {what}", QUIET_DEADLINE.as_secs())]
    Restless {
        /// What still moves.
        what: String,
    },
    /// The disk or /proc.
    #[error("cannot {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A running golden.
#[derive(Debug)]
pub struct Golden {
    name: String,
    netns: OwnedFd,
    pid: i32,
    port: u16,
}

/// What a golden is booted from.
#[derive(Debug)]
pub struct Boot<'a> {
    /// Its recipe.
    pub recipe: &'a Recipe,
    /// Its image.
    pub image: &'a str,
    /// The daemon's own files.
    pub state_dir: &'a Path,
    /// Its database on a shared server; none when it has a server inside.
    pub database: Option<&'a OwnDatabase>,
    /// Whose its content is.
    pub origin: Origin<'a>,
}

impl Golden {
    /// Runs a golden's image and waits until it is up.
    ///
    /// # Errors
    /// [`GoldenError`]; the container is removed.
    pub async fn boot(boot: &Boot<'_>, say: &(dyn Fn(&str) + Sync)) -> Result<Self, GoldenError> {
        let Boot { recipe, image, state_dir, database, origin } = *boot;
        let name = format!("dm-golden-{}", recipe.name);
        cli::remove(&name).await?;
        let config = state_dir.join("criu-checkpoint.conf");
        std::fs::write(&config, CRIU_CONFIG)
            .map_err(|source| GoldenError::Io { doing: "write CRIU's configuration", source })?;
        let devices = devices::ensure(state_dir)
            .map_err(|source| GoldenError::Io { doing: "make device nodes in STATE_DIR", source })?;
        let profile = profile::write(state_dir)
            .map_err(|source| GoldenError::Io { doing: "make its seccomp profile", source })?;
        let netns = net::lone_namespace().await?;
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()));
        let spec = RunSpec {
            name: &name,
            image,
            netns: &path,
            recipe,
            controllers: match origin {
                Origin::Recipe => &[],
                Origin::Shop { controllers, .. } => controllers,
            },
            io_max: None,
            devices: &devices,
            profile: &profile,
            criu_config: Some(&config),
            database: database.and_then(|own| own.socket.parent()),
        };
        say(&format!("booting {image}"));
        let booted = async {
            cli::podman(&cli::run_args(&spec)).await?;
            let golden =
                Self { pid: cli::pid(&name).await?, name: name.clone(), netns, port: recipe.run.port };
            if let Some(own) = database {
                // Before the first page: PHP reads it anew at each.
                golden.tell(recipe, own)?;
            }
            if let Origin::Shop { .. } = origin {
                if !recipe.template.exec.is_empty() {
                    golden.exec(&recipe.template.exec, say).await?;
                }
                say("giving it a golden's identity");
                shop::become_golden(golden.pid, recipe).await?;
            }
            golden.wait_until_up(recipe).await?;
            Ok(golden)
        };
        match booted.await {
            Ok(golden) => Ok(golden),
            Err(error) => {
                // The first cause is what the caller needs; the next boot removes it otherwise.
                drop(cli::remove(&name).await);
                Err(error)
            }
        }
    }

    /// The container's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its first process.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// Removes the container.
    ///
    /// # Errors
    /// [`GoldenError::Podman`].
    pub async fn remove(&self) -> Result<(), GoldenError> {
        Ok(cli::remove(&self.name).await?)
    }

    /// GETs a page over a connection of its own.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub async fn page(&self, path: &str) -> Result<Page, ProbeError> {
        let stream = net::connect_in(self.netns.as_fd(), self.port);
        probe::get_over(stream, ([127, 0, 0, 1], self.port).into(), HOST, path, PAGE_DEADLINE).await
    }

    /// Tells the golden where its database is, in the files that tell a clone.
    fn tell(&self, recipe: &Recipe, own: &OwnDatabase) -> Result<(), GoldenError> {
        let mut values = own_values();
        // Nobody logs in by it: the database has the one of the build.
        values.set("admin_password_bcrypt", "");
        values.set_database(&recipe.run, Some(own));
        values.draw(&recipe.personalize.values)?;
        Ok(personalize::write_files(self.pid, &recipe.personalize, &values)?)
    }

    /// Writes the golden's database to a new file, by its own program.
    ///
    /// # Errors
    /// [`GoldenError`].
    pub async fn export_database(&self, program: &str, to: &Path) -> Result<(), GoldenError> {
        let file = std::fs::File::create_new(to)
            .map_err(|source| GoldenError::Io { doing: "create the database's dump", source })?;
        let args = ["exec", self.name.as_str(), program, "export"];
        Ok(cli::podman_piped(&args, &[], (Stdio::null(), file.into())).await?)
    }

    async fn wait_until_up(&self, recipe: &Recipe) -> Result<(), GoldenError> {
        let ready = &recipe.ready;
        let deadline = Instant::now() + Duration::from_secs(ready.timeout_seconds);
        loop {
            let last = match self.page(&ready.path).await {
                Ok(page) if page.shows(&ready.contains) => return Ok(()),
                Ok(page) => format!("{} {}", page.status, page.location.unwrap_or_default()),
                Err(error) => crate::error::Chain(&error).to_string(),
            };
            if Instant::now() > deadline {
                let (path, wanted) = (ready.path.clone(), ready.contains.clone());
                return Err(GoldenError::NotReady { path, wanted, seconds: ready.timeout_seconds, last });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Visits the recipe's pages and runs its commands, so that clones find
    /// compiled code and filled caches.
    ///
    /// # Errors
    /// [`GoldenError`]. Of a visitor's shop a step may fail: it need not have any more
    /// what the recipe looks for.
    pub async fn warm(
        &self,
        recipe: &Recipe,
        origin: Origin<'_>,
        say: &(dyn Fn(&str) + Sync),
    ) -> Result<(), GoldenError> {
        for step in &recipe.warm {
            match (self.warm_once(step, say).await, origin) {
                (Ok(()), _) => {}
                (Err(error), Origin::Recipe) => return Err(error),
                (Err(error), Origin::Shop { .. }) => {
                    say(&format!("left out: {}", crate::error::Chain(&error)));
                }
            }
        }
        Ok(())
    }

    async fn warm_once(&self, step: &Warm, say: &(dyn Fn(&str) + Sync)) -> Result<(), GoldenError> {
        if let Some(path) = &step.path {
            say(&format!("warming {path}"));
            for _ in 0..step.times {
                let page = self.page(path).await?;
                if page.status.is_client_error() || page.status.is_server_error() {
                    return Err(GoldenError::Page { path: path.clone(), status: page.status });
                }
            }
        }
        if let Some(command) = &step.exec {
            self.exec(command, say).await?;
        }
        Ok(())
    }

    async fn exec(&self, command: &[String], say: &(dyn Fn(&str) + Sync)) -> Result<(), GoldenError> {
        say(&format!("running {}", command.join(" ")));
        let mut args = vec!["exec".to_owned(), self.name.clone()];
        args.extend(command.iter().cloned());
        cli::podman(&args).await?;
        Ok(())
    }

    /// Brings the golden to rest: idle workers have ended (they would carry
    /// random state into every clone), the recipe's commands have run, no
    /// connection is open.
    ///
    /// # Errors
    /// [`GoldenError::Restless`] names what still moves.
    pub async fn quiesce(&self, recipe: &Recipe, say: &(dyn Fn(&str) + Sync)) -> Result<(), GoldenError> {
        say("waiting for idle workers to leave");
        self.wait_until_quiet(&recipe.run.processes).await?;
        for step in &recipe.quiesce {
            self.exec(&step.exec, say).await?;
        }
        self.wait_until_quiet(&recipe.run.processes).await
    }

    /// The command line of a process that holds a pipe of the container's
    /// monitor, which no clone will have.
    ///
    /// # Errors
    /// [`GoldenError`].
    pub async fn holds_foreign_pipe(&self) -> Result<Option<String>, GoldenError> {
        let monitor = cli::inspect(&self.name, "{{.State.ConmonPid}}").await?;
        let foreign = pipes(&Path::new("/proc").join(monitor));
        let processes = processes(self.pid)
            .map_err(|source| GoldenError::Io { doing: "list the golden's processes", source })?;
        let holder = processes.iter().find(|process| !pipes(process).is_disjoint(&foreign));
        Ok(holder.map(|process| command_line(process)))
    }

    async fn wait_until_quiet(&self, fragments: &[String]) -> Result<(), GoldenError> {
        let io = |doing| move |source| GoldenError::Io { doing, source };
        let deadline = Instant::now() + QUIET_DEADLINE;
        loop {
            let busy = busy_process(self.pid, fragments).map_err(io("list the golden's processes"))?;
            let connections = connections(self.pid).map_err(io("list the golden's connections"))?;
            let what = match (busy, connections) {
                (None, 0) => return Ok(()),
                (Some(command), _) => format!("{command:?} runs"),
                (None, open) => format!("{open} connections are open"),
            };
            if Instant::now() > deadline {
                return Err(GoldenError::Restless { what });
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// What a golden is told of itself.
pub(super) fn own_values() -> Values {
    let mut values = Values::default();
    values.set("host", HOST);
    values.set("domain", HOST);
    values.set("url", format!("http://{HOST}"));
    values.set("admin_email", format!("admin@{HOST}"));
    // Nobody is signed in by a link, and nothing is signed, before a clone has keys of its own.
    for name in ["login_key", "rsa_private_key", "rsa_public_key"] {
        values.set(name, "");
    }
    values
}

/// Directories below /proc of the processes in the golden's pid namespace.
fn processes(pid: i32) -> io::Result<Vec<PathBuf>> {
    let ours = std::fs::read_link(format!("/proc/{pid}/ns/pid"))?;
    let all = std::fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
    Ok(all
        .filter(|path| std::fs::read_link(path.join("ns/pid")).is_ok_and(|theirs| theirs == ours))
        .collect())
}

/// What a process was started as; empty when it is gone.
fn command_line(process: &Path) -> String {
    let bytes = std::fs::read(process.join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
}

/// The command line of a process that contains one of `fragments`.
fn busy_process(pid: i32, fragments: &[String]) -> io::Result<Option<String>> {
    let commands = processes(pid)?.into_iter().map(|process| command_line(&process));
    Ok(commands.into_iter().find(|command| fragments.iter().any(|fragment| command.contains(fragment))))
}

/// Pipes and sockets a process has open, as /proc names them.
fn pipes(process: &Path) -> HashSet<PathBuf> {
    let open = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let targets = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    targets.filter(|target| target.as_os_str().as_encoded_bytes().starts_with(b"pipe:")).collect()
}

/// TCP connections open in a process's network namespace.
fn connections(pid: i32) -> io::Result<usize> {
    let mut open = 0;
    for table in ["tcp", "tcp6"] {
        match std::fs::read_to_string(format!("/proc/{pid}/net/{table}")) {
            Ok(text) => open += count_open(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(open)
}

/// Lines of /proc/net/tcp whose state is neither LISTEN (0A) nor one that no
/// process holds any more (TIME_WAIT 06).
fn count_open(table: &str) -> usize {
    let states = table.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().nth(3));
    states.filter(|state| !matches!(*state, "0A" | "06")).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_and_finished_sockets_do_not_count_as_open() {
        let table = "  sl  local_address rem_address   st\n   0: 00000000:0050 00000000:0000 0A 0\n   1: 0100007F:0050 0100007F:C350 01 0\n   2: 0100007F:0050 0100007F:C351 06 0\n";
        assert_eq!(count_open(table), 1);
    }
}
