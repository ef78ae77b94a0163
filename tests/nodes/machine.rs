//! A host as a process: a daemon on a scripted engine, and the web server that all
//! its shops are. The process is this test binary again, told so by its environment;
//! it takes orders, a line each.

use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use demo_multiplexer::app::OnExit;
use demo_multiplexer::error::Chain;
use demo_multiplexer::testing::eventually;
use demo_multiplexer::token;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::common::{Answer, Host, send_to};
use crate::network::Network;
use crate::server::Server;

/// Where a process is told that it is a host, with its settings.
const ROLE: &str = "TEST_NODES_MACHINE";

/// Where it is told to hold the daemon's socket itself, at that address.
const SOCKET: &str = "TEST_NODES_SOCKET";

/// Who holds the socket that a daemon listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Socket {
    /// The daemon: while there is none, nobody can connect.
    Own,
    /// Somebody who stays, as systemd does.
    Lent,
}

/// What lines for the test begin with; the test runner writes others.
const WORD: &str = "@ ";

/// Where each daemon listens on its host.
const PORT: u16 = 8080;

/// One host, as the test sees it.
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    netns: String,
    socket: Socket,
    settings: Vec<(String, String)>,
    token: String,
    child: tokio::sync::Mutex<Option<Running>>,
}

struct Running {
    child: Child,
    orders: ChildStdin,
    words: tokio::io::Lines<BufReader<ChildStdout>>,
    log: PathBuf,
}

impl Running {
    /// The next word, a minute later at most.
    async fn word(&mut self) -> String {
        let next = async {
            while let Some(line) = self.words.next_line().await.unwrap() {
                // The runner's own line has no end when the first word comes.
                if let Some((_, word)) = line.split_once(WORD) {
                    return Some(word.to_owned());
                }
            }
            None
        };
        match tokio::time::timeout(Duration::from_secs(60), next).await {
            Ok(Some(word)) => word,
            Ok(None) => {
                let ended = tokio::time::timeout(Duration::from_secs(5), self.child.wait()).await;
                panic!("the host is gone ({ended:?}), and its log ends:\n{}", self.end_of_log())
            }
            Err(_) => panic!("the host says nothing, and its log ends:\n{}", self.end_of_log()),
        }
    }

    /// Its daemon's last lines, and a panic's, which go to the same file.
    fn end_of_log(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

/// Three hosts, or fewer, on a Valkey.
pub(crate) struct Trio {
    machines: Vec<Machine>,
    pub(crate) network: Network,
    pub(crate) valkey: Server,
    dir: tempfile::TempDir,
}

impl Trio {
    /// Starts hosts with those names and settings, and waits until all know all.
    pub(crate) async fn start(hosts: &[(&str, &[(&str, &str)])]) -> Self {
        Self::on_sockets(Socket::Own, hosts).await
    }

    /// As above, on such sockets.
    pub(crate) async fn on_sockets(socket: Socket, hosts: &[(&str, &[(&str, &str)])]) -> Self {
        let mut network = Network::new();
        let valkey =
            Server::with(&["--appendonly", "yes", "--bind", "0.0.0.0", "--protected-mode", "no"]).await;
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
        private(&secret);
        let (shown, entry) = token::create("test", "admin".parse().unwrap()).unwrap();
        let store = format!("redis://{}:{}", network.own(), valkey.port);
        let mut machines = Vec::new();
        for (name, more) in hosts {
            let (netns, address) = network.add(name);
            let address = SocketAddr::from((address, PORT));
            let own = [
                ("LISTEN", address.to_string()),
                ("STORE_URL", store.clone()),
                ("NODE_NAME", (*name).to_owned()),
                ("NODE_ADDRESS", address.to_string()),
                ("NODE_SECRET_FILE", secret.to_str().unwrap().to_owned()),
                ("API_TOKENS", entry.to_string()),
                ("COLD_START", "refused".to_owned()),
                ("RATE_LIMIT_HOURLY", "0".to_owned()),
                ("RATE_LIMIT_DAILY", "0".to_owned()),
            ];
            let own = own.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
            let more = more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            machines.push(Machine {
                name: (*name).to_owned(),
                address,
                netns,
                socket,
                settings: own.chain(more).collect(),
                token: shown.expose_secret().to_owned(),
                child: tokio::sync::Mutex::default(),
            });
        }
        let trio = Self { machines, network, valkey, dir };
        for machine in &trio.machines {
            trio.boot(machine).await;
        }
        for machine in &trio.machines {
            trio.node(&machine.name, |node| node["condition"] == "here").await;
        }
        trio.heard().await;
        trio
    }

    async fn boot(&self, machine: &Machine) {
        let mut running = self.spawn(machine);
        let word = running.word().await;
        assert_eq!(word, "serving", "{}", self.log(&machine.name));
        *machine.child.lock().await = Some(running);
    }

    fn spawn(&self, machine: &Machine) -> Running {
        let log = self.log_of(&machine.name);
        let stderr = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let test = std::env::current_exe().unwrap();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &machine.netns]).arg(test);
        command.args(["machine::host_process", "--exact", "--ignored", "--nocapture"]);
        command.env(ROLE, json!(machine.settings).to_string()).kill_on_drop(true);
        if machine.socket == Socket::Lent {
            command.env(SOCKET, machine.address.to_string());
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let (orders, words) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Running { child, orders, words: BufReader::new(words).lines(), log }
    }

    /// Starts one more daemon of that name on another STATE_DIR; answers why it did not.
    pub(crate) async fn try_another(&self, name: &str) -> String {
        let mut settings = self.at(name).settings.clone();
        settings.push(("LISTEN".into(), "127.0.0.1:0".into()));
        let machine = Machine {
            name: name.to_owned(),
            address: self.at(name).address,
            netns: self.at(name).netns.clone(),
            socket: Socket::Own,
            settings,
            token: String::new(),
            child: tokio::sync::Mutex::default(),
        };
        self.spawn(&machine).word().await
    }

    pub(crate) fn at(&self, name: &str) -> &Machine {
        self.machines.iter().find(|machine| machine.name == name).unwrap()
    }

    pub(crate) fn all(&self) -> [&Machine; 3] {
        [&self.machines[0], &self.machines[1], &self.machines[2]]
    }

    /// As the power going.
    pub(crate) fn kill(&mut self, name: &str) {
        let machine = self.machines.iter_mut().find(|machine| machine.name == name).unwrap();
        machine.child.get_mut().as_mut().unwrap().child.start_kill().unwrap();
    }

    pub(crate) async fn start_again(&self, name: &str) {
        self.boot(self.at(name)).await;
    }

    /// What a host's daemon has logged.
    pub(crate) fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.log_of(name)).unwrap_or_default()
    }

    fn log_of(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    /// Whom shops see as their visitor.
    pub(crate) fn client(&self) -> String {
        self.network.own().to_string()
    }

    /// A node as the first host sees it, once that is so.
    pub(crate) async fn node(&self, name: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let seen = std::cell::RefCell::new(Value::Null);
        eventually(&format!("a change of node {name}"), async || {
            let answer = self.machines[0].get("/api/v1/nodes").await.json();
            let found = answer["nodes"].as_array().unwrap().iter().find(|node| node["node"] == name).cloned();
            seen.replace(answer);
            found.filter(&is_so)
        })
        .await
    }

    /// Waits until every host has spoken once more and heard the others after it.
    pub(crate) async fn heard(&self) {
        for _ in 0..2 {
            for machine in &self.machines {
                let rooms = || async {
                    let answer = machine.get("/api/v1/nodes").await.json();
                    let nodes = answer["nodes"].as_array().unwrap().clone();
                    nodes.iter().map(|node| node["room"].as_u64().unwrap()).collect::<Vec<_>>()
                };
                let truth = async {
                    let mut truth = Vec::new();
                    for other in &self.machines {
                        let stats = other.get("/api/v1/pool/stats").await.json();
                        let room =
                            stats["max_instances"].as_u64().unwrap() - stats["instances"].as_u64().unwrap();
                        truth.push(room);
                    }
                    truth
                };
                let truth = truth.await;
                eventually("the nodes know each other's room", async || {
                    (rooms().await == truth).then_some(())
                })
                .await;
            }
        }
    }

    /// Waits until a node has so many ready.
    pub(crate) async fn ready(&self, name: &str, count: u64) {
        self.node(name, |node| node["goldens"][1]["ready"] == count || golden_ready(node) == count).await;
    }

    /// Waits until a node has that much room.
    pub(crate) async fn room(&self, name: &str, room: u64) {
        self.node(name, |node| node["room"] == room).await;
    }

    /// The node that runs an instance.
    pub(crate) async fn node_of(&self, id: &str) -> String {
        let answer = self.machines[0].get(&format!("/api/v1/demo/{id}")).await;
        answer.json()["node"].as_str().unwrap_or_else(|| panic!("{}", answer.text())).to_owned()
    }

    /// What its visitor is told through the first host, once a shop is lost.
    pub(crate) async fn lost(&self, id: &str) -> Answer {
        eventually("the shop is lost", async || {
            let page = self.machines[0].shop(Method::GET, id, "/", &[], "").await;
            (page.status == StatusCode::GONE).then_some(page)
        })
        .await
    }

    /// Nothing of it is left.
    pub(crate) fn end(self) {
        drop(self);
    }
}

fn golden_ready(node: &Value) -> u64 {
    let goldens = node["goldens"].as_array().into_iter().flatten();
    goldens.filter(|golden| golden["golden"] == "shop").map(|golden| golden["ready"].as_u64().unwrap()).sum()
}

impl Machine {
    fn operator(&self) -> (&'static str, String) {
        ("authorization", format!("Bearer {}", self.token))
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: &str) -> Answer {
        let (name, token) = self.operator();
        let headers = [(name, token.as_str()), ("content-type", "application/json")];
        send_to(self.address, method, path, &headers, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        self.call(Method::POST, path, body).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.call(Method::DELETE, path, "").await
    }

    pub(crate) async fn acquire(&self) -> Answer {
        self.post("/api/v1/demo/acquire", r#"{"golden": "shop"}"#).await
    }

    /// A visitor's request to a shop, by way of this host.
    pub(crate) async fn shop(
        &self,
        method: Method,
        id: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let host = format!("{id}.localhost:8080");
        let headers = [&[("host", host.as_str())], headers].concat();
        send_to(self.address, method, path, &headers, body).await
    }

    async fn order(&self, order: &str) -> String {
        let mut child = self.child.lock().await;
        let running = child.as_mut().unwrap();
        running.orders.write_all(format!("{order}\n").as_bytes()).await.unwrap();
        running.word().await
    }

    /// The shops that run there.
    pub(crate) async fn running(&self) -> Vec<String> {
        self.order("running").await.split_whitespace().map(str::to_owned).collect()
    }

    /// Stops the daemon as an upgrade does and starts another one; its shops live on.
    pub(crate) async fn restart(&self) {
        assert_eq!(self.order("restart").await, "serving");
    }
}

pub(crate) fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// What a shop shows: whose it is, and what it was asked.
async fn shop(node: String, mut request: Request) -> Response {
    if request.uri().path() == "/upgrade" {
        let visitor = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let Ok(upgraded) = visitor.await else { return };
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        return (StatusCode::SWITCHING_PROTOCOLS, [("connection", "upgrade"), ("upgrade", "echo")])
            .into_response();
    }
    let (parts, body) = request.into_parts();
    let bytes = body.collect().await.map(|body| body.to_bytes().len());
    let said =
        |headers: &HeaderMap, name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let answer = json!({
        "node": node,
        "path": parts.uri.path_and_query().unwrap().as_str(),
        "host": said(&parts.headers, "host"),
        "x-forwarded-for": said(&parts.headers, "x-forwarded-for"),
        "x-demo-multiplexer-node": said(&parts.headers, "x-demo-multiplexer-node"),
        "bytes": bytes.ok(),
    });
    answer.to_string().into_response()
}

#[expect(clippy::print_stdout, reason = "the test reads it")]
fn say(word: &str) {
    println!("{WORD}{word}");
}

/// Becomes the same process with that socket as its third descriptor, as systemd starts
/// a service: each daemon that it runs is given the socket again.
///
/// Only without a runtime: that descriptor is the first one that a runtime takes, for
/// what it waits on, and a worker that finds a socket in its place aborts the process.
fn hold_socket(address: &str) -> ! {
    let socket = std::net::TcpListener::bind(address).unwrap();
    let number = socket.as_raw_fd();
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(std::env::args_os().skip(1)).env_remove(SOCKET);
    command.env("LISTEN_FDS", "1").env("LISTEN_PID", std::process::id().to_string());
    // SAFETY: two system calls, just before everything is replaced.
    unsafe {
        // The second one for a socket that is the third descriptor already.
        command.pre_exec(move || match (libc::dup2(number, 3), libc::fcntl(3, libc::F_SETFD, 0)) {
            (3, 0) => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    panic!("{}", command.exec())
}

/// Not a test: a host's process, until its orders end.
#[test]
#[ignore = "started by the other tests"]
fn host_process() {
    let Ok(settings) = std::env::var(ROLE) else { return };
    if let Ok(address) = std::env::var(SOCKET) {
        hold_socket(&address);
    }
    let settings: Vec<(String, String)> = serde_json::from_str(&settings).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(host(settings));
}

async fn host(settings: Vec<(String, String)>) {
    let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).try_init();
    let node = settings.iter().find(|(name, _)| name == "NODE_NAME").unwrap().1.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("IPv4") };
    let router = Router::new().fallback(any(move |request| shop(node, request)));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    serve(&settings, address).await;
}

async fn serve(settings: &[(String, String)], shops: SocketAddrV4) {
    let host = Host::with_shops_at(shops);
    let settings: Vec<(&str, &str)> =
        settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    // Why it does not start is a word, too.
    let app = match host.build(&settings, OnExit::KeepInstances).await {
        Ok(app) => app,
        Err(error) => return say(&Chain(&error).to_string()),
    };
    let mut daemon = Host::run(app).await;
    say("serving");
    let (sender, mut orders) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for order in std::io::stdin().lines().map_while(Result::ok) {
            drop(sender.send(order));
        }
    });
    while let Some(order) = orders.recv().await {
        match order.as_str() {
            "running" => {
                let running: Vec<String> = host.restore.running().iter().map(ToString::to_string).collect();
                say(&running.join(" "));
            }
            "restart" => {
                daemon.stop().await;
                daemon = host.start(&settings).await;
                say("serving");
            }
            _ => panic!("{order}?"),
        }
    }
}
