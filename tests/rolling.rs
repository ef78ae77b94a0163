//! A daemon that is replaced again and again while visitors acquire, look and leave:
//! the socket is held by somebody else, as systemd does, and nobody is refused.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::cell::{Cell, RefCell};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use host::place::Place;
use host::web::{self, Reply};
use host::{PROGRAM, eventually, golden};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often the daemon is replaced.
const TIMES: usize = 3;

/// A daemon on a socket that was there before it; killed when it is dropped.
struct Lent(Child);

impl Lent {
    /// Starts it and waits until it serves.
    async fn start(place: &Place, socket: &TcpListener) -> Self {
        let _preparing = golden::only_one_prepares().await;
        let log = std::fs::File::options().create(true).append(true).open(place.dir.join("log")).unwrap();
        // The program's own pid is what the shell's was.
        let mut command = Command::new("sh");
        command.args(["-c", "exec env LISTEN_PID=$$ \"$0\" serve", PROGRAM]).env_clear();
        command
            .env("HOME", "/root")
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
            .envs(place.settings(&[("POOL_TARGET_SIZE", "2"), ("SLOTS_AHEAD", "2")]))
            .env("LISTEN_FDS", "1");
        command.current_dir(&place.dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let socket = socket.as_raw_fd();
        // SAFETY: one system call, on a descriptor that outlives the fork.
        unsafe {
            command.pre_exec(move || match libc::dup2(socket, 3) {
                3 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let mut daemon = Self(command.spawn().unwrap());
        eventually("the daemon serves", 60, async || {
            assert_eq!(daemon.0.try_wait().unwrap(), None, "it ended: {}", place.log());
            let ready = web::get(place.address(), "localhost", "/readyz").await?;
            host::same(&ready.status, &200)
        })
        .await;
        daemon
    }

    async fn stop(mut self, place: &Place) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM).unwrap();
        let status = eventually("the daemon ends", 60, async || {
            self.0.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())
        })
        .await;
        assert!(status.success(), "{status}: {}", place.log());
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// What visitors were answered otherwise than they should.
#[derive(Default)]
struct Seen {
    asked: Cell<usize>,
    wrong: RefCell<Vec<String>>,
}

impl Seen {
    /// The answer, if it is the right one.
    fn note(&self, what: &str, wanted: u16, answer: Result<Reply, String>) -> Option<Reply> {
        self.asked.set(self.asked.get() + 1);
        match answer {
            Ok(reply) if reply.status == wanted => return Some(reply),
            Ok(reply) => self.wrong.borrow_mut().push(format!("{what}: {} {}", reply.status, reply.text())),
            Err(error) => self.wrong.borrow_mut().push(format!("{what}: {error}")),
        }
        None
    }
}

async fn acquire(address: SocketAddr) -> Result<Reply, String> {
    let headers = [("content-type", "application/json")];
    web::send(address, "POST", "localhost", "/api/v1/demo/acquire", &headers, r#"{"ttl": "5m"}"#).await
}

/// Acquires, looks and leaves.
async fn visit(address: SocketAddr, seen: &Seen) {
    let Some(shop) = seen.note("acquire", 201, acquire(address).await) else { return };
    let shop = shop.json();
    let host = shop["url"].as_str().unwrap().trim_start_matches("http://").trim_end_matches('/');
    if let Some(page) = seen.note("page", 200, web::get(address, host, "/").await) {
        assert!(page.text().contains(golden::TITLE), "{}", page.text());
    }
    let path = format!("/api/v1/demo/{}", shop["id"].as_str().unwrap());
    seen.note("details", 200, web::get(address, "localhost", &path).await);
    seen.note("release", 204, web::send(address, "DELETE", "localhost", &path, &[], "").await);
}

#[tokio::test]
async fn a_daemon_that_is_replaced_under_load_refuses_nobody() {
    let Some(place) = Place::beside_others("rolling").await else { return };
    let socket = TcpListener::bind(place.address()).unwrap();
    let (address, seen, over) = (place.address(), Seen::default(), Cell::new(false));
    let first = Lent::start(&place, &socket).await;
    let visitors = async {
        let one_after_the_other = async || {
            while !over.get() {
                visit(address, &seen).await;
            }
        };
        tokio::join!(one_after_the_other(), one_after_the_other(), one_after_the_other());
    };
    let replaced = async {
        let mut daemon = Some(first);
        for _ in 0..TIMES {
            let before = seen.asked.get();
            eventually("visitors are served", 60, async || {
                let asked = seen.asked.get() - before;
                if asked > 12 { Ok(()) } else { Err(format!("{asked} answers")) }
            })
            .await;
            daemon.take().unwrap().stop(&place).await;
            daemon = Some(Lent::start(&place, &socket).await);
        }
        over.set(true);
        daemon.unwrap()
    };
    let ((), daemon) = tokio::join!(visitors, replaced);
    println!("{} answers", seen.asked.get());
    assert_eq!(*seen.wrong.borrow(), Vec::<String>::new());
    daemon.stop(&place).await;
    drop(socket);
    place.cli(&["reap", "--all"]).await.ok();
    place.nothing_is_left().unwrap();
}
