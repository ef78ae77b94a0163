//! What becomes of a daemon under load when its NATS dies, hangs, forgets.

use std::time::Duration;

use demo_multiplexer::config::NatsConfig;
use demo_multiplexer::nats;
use demo_multiplexer::testing::eventually;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::common::{Daemon, Host};
use super::server::{self, Server};
use super::{kept, link_is, node, pool_has, settings};

const TARGET: usize = 4;

/// An outage may be felt for so long after its end.
const RECOVERY: Duration = Duration::from_secs(5);

/// What clients saw.
#[derive(Default)]
struct Load {
    acquired: Vec<String>,
    most_ready: u64,
    slowest: Duration,
}

/// Acquires, about twenty a second, and looks at the pool, until `stop`.
async fn load(daemon: &Daemon, stop: &CancellationToken) -> Load {
    let mut seen = Load::default();
    while !stop.is_cancelled() {
        let began = Instant::now();
        let answer = daemon.acquire().await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        seen.slowest = seen.slowest.max(began.elapsed());
        seen.acquired.push(answer.id());
        if seen.acquired.len() > 60 {
            // Room for the next ones; half of them stay.
            let id = seen.acquired.swap_remove(30);
            assert_eq!(daemon.delete(&format!("/api/v1/demo/{id}")).await.status, 204);
        }
        seen.most_ready = seen.most_ready.max(daemon.states().await["ready"].as_u64().unwrap());
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    seen
}

/// Has clients acquire while something happens to the server, and holds what
/// must be true of every outage.
async fn under_load(server: &mut Server, outage: impl AsyncFnOnce(&mut Server, &Daemon)) {
    let host = Host::new();
    let target = TARGET.to_string();
    let daemon = host
        .start(&[
            ("NATS_URL", &server.url()),
            ("POOL_TARGET_SIZE", &target),
            ("MAX_INSTANCES", "200"),
            ("NODE_NAME", "here"),
        ])
        .await;
    link_is(&daemon, "nats").await;
    pool_has(&daemon, TARGET).await;
    let stop = CancellationToken::new();
    let happens = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        outage(server, &daemon).await;
        let ended = Instant::now();
        link_is(&daemon, "nats").await;
        let took = ended.elapsed();
        assert!(took < RECOVERY, "in use again after {took:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.cancel();
    };
    let (seen, ()) = tokio::join!(load(&daemon, &stop), happens);
    let ended = Instant::now();
    pool_has(&daemon, TARGET).await;
    assert!(ended.elapsed() < RECOVERY, "the pool is full after {:?}", ended.elapsed());
    assert!(seen.most_ready <= TARGET as u64, "{} were ready", seen.most_ready);
    // No client waited for the bus: a restore by the script takes no time.
    assert!(seen.slowest < Duration::from_secs(3), "an acquire took {:?}", seen.slowest);
    for id in &seen.acquired {
        let shown = daemon.get(&format!("/api/v1/demo/{id}")).await;
        assert_eq!(shown.status, 200, "{id} is lost: {}", shown.text());
    }
    let running = host.restore.running().len() + host.cold.running().len();
    eventually("nothing is left over", async || {
        let listed = daemon.get("/api/v1/demo").await.json()["instances"].as_array().unwrap().len();
        (listed == seen.acquired.len() + 2 * TARGET).then_some(())
    })
    .await;
    assert!(running >= seen.acquired.len() + TARGET);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_no_instance() {
    if !server::is_there("a_killed_server_loses_no_instance") {
        return;
    }
    under_load(&mut Server::start(), async |server, daemon| {
        server.kill();
        link_is(daemon, "process").await;
        // Without NATS the pool is kept as well.
        let before = daemon.get("/api/v1/pool/stats").await.json();
        eventually("the pool hands out meanwhile", async || {
            let now = daemon.get("/api/v1/pool/stats").await.json();
            let pool = |stats: &Value| stats["goldens"][0]["handed_over"]["pool"].as_u64().unwrap();
            (pool(&now) > pool(&before) + 2 * TARGET as u64).then_some(())
        })
        .await;
        let health = daemon.get("/health").await;
        assert_eq!((health.status.as_u16(), &health.json()["status"]), (200, &"degraded".into()));
        server.start_again();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_empty_is_set_up_again() {
    if !server::is_there("a_server_that_comes_back_empty_is_set_up_again") {
        return;
    }
    let mut server = Server::start();
    under_load(&mut server, async |server, _| {
        server.kill();
        server.wipe();
        server.start_again();
    })
    .await;
    // Jobs and events go over it again, not only the connection.
    let events = kept(&server, "demo-multiplexer-events").await;
    assert!(events.iter().any(|(subject, _)| subject == "demo-multiplexer.events.shop.ready"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_holds_up_nobody() {
    if !server::is_there("a_server_that_hangs_holds_up_nobody") {
        return;
    }
    under_load(&mut Server::start(), async |server, daemon| {
        server.pause();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(daemon.get("/health").await.json()["jobs"]["status"], "degraded");
        server.resume();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_and_consumers_that_are_deleted_are_made_again() {
    if !server::is_there("streams_and_consumers_that_are_deleted_are_made_again") {
        return;
    }
    under_load(&mut Server::start(), async |server, _| {
        let context = super::client(server).await;
        let consumer = "here-provision";
        context.delete_consumer_from_stream(consumer, "demo-multiplexer-jobs").await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        for stream in ["jobs", "dead", "events"] {
            context.delete_stream(format!("demo-multiplexer-{stream}")).await.unwrap();
        }
        eventually("they are there again", async || {
            context.get_stream("demo-multiplexer-events").await.is_ok().then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_starts_without_nats_and_takes_it_up_when_it_comes() {
    if !server::is_there("a_daemon_starts_without_nats_and_takes_it_up_when_it_comes") {
        return;
    }
    let (mut server, host) = (Server::not_yet(&["-js"]), Host::new());
    let daemon = host.start(&[("NATS_URL", &server.url()), ("POOL_TARGET_SIZE", "2")]).await;
    pool_has(&daemon, 2).await;
    let jobs = eventually("it says why", async || {
        let jobs = daemon.get("/health").await.json()["jobs"].clone();
        jobs["error"].as_str().is_some_and(|why| why.contains("cannot connect")).then_some(jobs)
    })
    .await;
    assert_eq!((&jobs["status"], &jobs["queue"]), (&"degraded".into(), &"process".into()));
    server.start_again();
    link_is(&daemon, "nats").await;
    // What happened meanwhile is told now.
    eventually("the events are there", async || {
        let events = kept(&server, "demo-multiplexer-events").await;
        (events.iter().filter(|(subject, _)| subject.ends_with(".shop.ready")).count() == 2).then_some(())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_jetstream_is_told_apart() {
    if !server::is_there("a_server_without_jetstream_is_told_apart") {
        return;
    }
    let (server, host) = (Server::with(&[]), Host::new());
    let daemon = host.start(&[("NATS_URL", &server.url()), ("POOL_TARGET_SIZE", "2")]).await;
    pool_has(&daemon, 2).await;
    eventually("health says what to do", async || {
        let jobs = daemon.get("/health").await.json()["jobs"].clone();
        jobs["error"].as_str().is_some_and(|why| why.contains("start nats-server with -js")).then_some(())
    })
    .await;
    let tried = nats::trial(&settings(&[("NATS_URL", &server.url())]), &node("here")).await;
    assert!(tried.unwrap_err().to_string().contains("JetStream is off"));
    daemon.stop().await;
}

async fn works(settings: &NatsConfig) -> bool {
    nats::trial(settings, &node("here")).await.is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn user_and_password_are_taken_from_the_address() {
    if !server::is_there("user_and_password_are_taken_from_the_address") {
        return;
    }
    let server = Server::with(&["-js", "--user", "me", "--pass", "p@ss,word"]);
    let url = |login: &str| format!("nats://{login}{}", server.address());
    assert!(works(&settings(&[("NATS_URL", &url("me:p%40ss%2Cword@"))])).await, "{}", server.log());
    assert!(!works(&settings(&[("NATS_URL", &url(""))])).await);
    let wrong = settings(&[("NATS_URL", &url("me:secret@"))]);
    let error = nats::trial(&wrong, &node("here")).await.unwrap_err();
    let shown = format!("{error:?} {}", demo_multiplexer::error::Chain(&error));
    assert!(shown.contains("authorization") && !shown.contains("secret"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_believed_by_the_authority_of_the_settings() {
    if !server::is_there("a_server_is_believed_by_the_authority_of_the_settings") {
        return;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    // An authority and a certificate for 127.0.0.1 signed by it.
    let script = r#"
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out csr.pem -subj /CN=nats
        printf 'subjectAltName=IP:127.0.0.1' > ext
        openssl x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out cert.pem"#;
    let made =
        std::process::Command::new("sh").args(["-ec", script]).current_dir(dir.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let server =
        Server::with(&["-js", "--tls", "--tlscert", &path("cert.pem"), "--tlskey", &path("key.pem")]);
    let url = format!("tls://{}", server.address());
    let with_ca = settings(&[("NATS_URL", &url), ("NATS_CA_FILE", &path("ca.pem"))]);
    assert!(works(&with_ca).await, "{}", server.log());
    assert!(!works(&settings(&[("NATS_URL", &url)])).await, "the system's authorities know nothing of it");
}
