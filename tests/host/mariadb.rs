//! A real MariaDB server that tests start, kill and start again.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mysql_async::prelude::Queryable as _;

use super::place::{run, tests_dir};
use super::{eventually, golden};

/// Which server.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// The host's own, 11.8.
    Host,
    /// The one of the golden's image, 10.11, in a container.
    Golden,
}

/// The administrator that a daemon is given: no more rights than the README
/// asks for, and a password that needs escaping.
pub(crate) const ADMIN: &str = "demo";
const ADMIN_PASSWORD: &str = "p@ss:word/100%";

/// A server with a directory of its own; killed when it is dropped.
#[derive(Debug)]
pub(crate) struct MariaDb {
    kind: Kind,
    name: String,
    dir: PathBuf,
    child: Option<Child>,
}

impl MariaDb {
    /// Makes an empty server and starts it.
    pub(crate) async fn start(name: &str, kind: Kind) -> Self {
        let dir = tests_dir().join(format!("mariadb-{name}"));
        drop(std::fs::remove_dir_all(&dir));
        for sub in ["data", "run"] {
            std::fs::create_dir_all(dir.join(sub)).unwrap();
        }
        let name = format!("dmux-test-mariadb-{name}");
        let mut server = Self { kind, name, dir, child: None };
        server.quietly("podman", &["rm", "--force", "--time=0", "--ignore", &server.name]);
        let install = "--no-defaults --user=mysql --force --skip-test-db --auth-root-authentication-method=socket \
             --innodb-use-native-aio=0";
        match kind {
            Kind::Host => {
                for sub in ["data", "run"] {
                    run("chown", &["mysql", server.dir.join(sub).to_str().unwrap()]).await.ok();
                }
                let data = format!("--datadir={}", server.dir.join("data").display());
                // It starts a server, too: see `go_on`.
                let own = format!("--tmpdir={}", server.dir.join("run").display());
                let args: Vec<&str> = install.split(' ').chain([data.as_str(), own.as_str()]).collect();
                run("mariadb-install-db", &args).await.ok();
            }
            Kind::Golden => {
                let script = format!(
                    "chown mysql /data /run/mysqld; exec mariadb-install-db {install} --datadir=/data"
                );
                let mut args = server.container(&["--rm"]).await;
                args.extend(["sh".into(), "-euc".into(), script]);
                run("podman", &args.iter().map(String::as_str).collect::<Vec<_>>()).await.ok();
            }
        }
        server.go_on().await;
        let admin = [
            format!("CREATE USER {ADMIN}@localhost IDENTIFIED BY '{ADMIN_PASSWORD}'"),
            format!("GRANT CREATE USER ON *.* TO {ADMIN}@localhost"),
            format!("GRANT ALL ON `dmux%`.* TO {ADMIN}@localhost WITH GRANT OPTION"),
        ];
        for statement in admin {
            server.sql(&statement).await;
        }
        server
    }

    /// Starts it on the data it has, and waits until it answers.
    pub(crate) async fn go_on(&mut self) {
        assert!(self.child.is_none());
        let mut command = match self.kind {
            Kind::Host => {
                let mut command = Command::new("mariadbd");
                command.args(["--no-defaults", "--user=mysql", "--skip-networking"]);
                // A server that starts removes all temporary tables it finds: not those of another one.
                for (option, path) in [
                    ("datadir", "data"),
                    ("socket", "run/mysqld.sock"),
                    ("log-error", "log"),
                    ("tmpdir", "run"),
                ] {
                    command.arg(format!("--{option}={}", self.dir.join(path).display()));
                }
                command.arg(format!("--pid-file={}", self.dir.join("data/pid").display()));
                command
            }
            Kind::Golden => {
                let mut args = self.container(&["--rm"]).await;
                args.extend(
                    "mariadbd --no-defaults --user=mysql --skip-networking --datadir=/data \
                     --socket=/run/mysqld/mysqld.sock --innodb-use-native-aio=0"
                        .split_ascii_whitespace()
                        .map(str::to_owned),
                );
                let mut command = Command::new("podman");
                command.args(args);
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        eventually("the server answers", 60, async || match self.try_sql("SELECT 1").await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        })
        .await;
    }

    /// The beginning of a `podman run` of its container.
    async fn container(&self, more: &[&str]) -> Vec<String> {
        let reference = format!("reference=localhost/demo-multiplexer-golden-{}", golden::NAME);
        let images = run("podman", &["images", "--quiet", "--no-trunc", "--filter", &reference]).await.ok();
        let image = images.lines().next().expect("the golden's image").to_owned();
        let mut args: Vec<String> =
            ["run", "--network=none", "--log-driver=none", "--entrypoint=", "--name", &self.name]
                .map(str::to_owned)
                .into();
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        for (sub, inside) in [("data", "/data"), ("run", "/run/mysqld")] {
            args.push(format!("--volume={}:{inside}", self.dir.join(sub).display()));
        }
        args.push(image);
        args
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            if matches!(self.kind, Kind::Golden) {
                self.quietly("podman", &["rm", "--force", "--time=0", "--ignore", &self.name]);
            }
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Has it do nothing until [`MariaDb::resume`]; its sockets stay open.
    pub(crate) fn pause(&self) {
        self.signal(nix::sys::signal::Signal::SIGSTOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(nix::sys::signal::Signal::SIGCONT);
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = self.child.as_ref().expect("it runs").id();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal).unwrap();
    }

    fn quietly(&self, program: &str, args: &[&str]) {
        drop(Command::new(program).args(args).output());
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.join("run/mysqld.sock")
    }

    /// The settings of a daemon that shares this server.
    pub(crate) fn settings(&self) -> [(&'static str, String); 4] {
        let password_file = self.dir.join("password");
        std::fs::write(&password_file, format!("{ADMIN_PASSWORD}\n")).unwrap();
        [
            ("DATABASE_MODE", "shared".to_owned()),
            ("DATABASE_URL", self.url(ADMIN)),
            ("DATABASE_PASSWORD_FILE", password_file.display().to_string()),
            ("SNAPSHOT_DIR", golden::shared_snapshots().display().to_string()),
        ]
    }

    /// DATABASE_URL for a login, `user` or `user:password`.
    pub(crate) fn url(&self, login: &str) -> String {
        format!("mysql://{login}@localhost/?socket={}", self.socket().display())
    }

    /// One statement as root; its rows, tab-separated.
    pub(crate) async fn sql(&self, statement: &str) -> Vec<String> {
        self.try_sql(statement).await.unwrap()
    }

    async fn try_sql(&self, statement: &str) -> Result<Vec<String>, mysql_async::Error> {
        self.try_sql_as("root", None, statement).await
    }

    /// One statement as somebody else.
    pub(crate) async fn try_sql_as(
        &self,
        user: &str,
        password: Option<&str>,
        statement: &str,
    ) -> Result<Vec<String>, mysql_async::Error> {
        let options = mysql_async::OptsBuilder::default()
            .socket(Some(self.socket().display().to_string()))
            .user(Some(user))
            .pass(password);
        let mut connection = mysql_async::Conn::new(options).await?;
        let rows: Vec<mysql_async::Row> = connection.query(statement).await?;
        let text = |value: mysql_async::Value| match value {
            mysql_async::Value::Bytes(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            other => other.as_sql(true),
        };
        let rows =
            rows.into_iter().map(|row| row.unwrap().into_iter().map(text).collect::<Vec<_>>().join("\t"));
        let rows = rows.collect();
        connection.disconnect().await?;
        Ok(rows)
    }

    /// Names of databases that are not the server's own, and of users likewise.
    pub(crate) async fn census(&self) -> (Vec<String>, Vec<String>) {
        let databases = self
            .sql(
                "SELECT schema_name FROM information_schema.schemata WHERE schema_name NOT IN \
                 ('mysql', 'sys', 'information_schema', 'performance_schema') ORDER BY 1",
            )
            .await;
        let users = self
            .sql("SELECT user FROM mysql.global_priv WHERE user NOT IN ('root', 'mysql', 'mariadb.sys', 'demo', '') ORDER BY 1")
            .await;
        (databases, users)
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the server's log ends:\n{}", lines[lines.len().saturating_sub(15)..].join("\n"));
        }
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

/// A program that tests of a shared server need beside those of all end-to-end tests.
pub(crate) fn is_installed() -> bool {
    let found = Path::new("/usr/sbin/mariadbd").is_file();
    let required = std::env::var("REQUIRE").is_ok_and(|names| names.split(',').any(|name| name == "mariadb"));
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(found || !(required || ci), "these tests need mariadbd: install mariadb-server");
    if !found {
        println!("skipped: needs mariadbd (install mariadb-server)");
    }
    found
}
