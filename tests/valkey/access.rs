//! Who may in: TLS, passwords, sentinels; what a daemon says when it may not.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use demo_multiplexer::app::{AppError, OnExit};
use demo_multiplexer::error::Chain;
use demo_multiplexer::instance::State;
use demo_multiplexer::store::conformance::{claim, golden, instance, node};
use demo_multiplexer::store::valkey::{OpenValkeyError, ValkeyStore};
use demo_multiplexer::store::{Claimed, Store, StoreError};
use demo_multiplexer::testing::eventually;

use crate::common::Host;
use crate::server::{self, Server};
use crate::{at, open};

fn openssl(dir: &Path, line: &str) {
    let made = Command::new("openssl").args(line.split(' ')).current_dir(dir).output().unwrap();
    assert!(made.status.success(), "{line}: {}", String::from_utf8_lossy(&made.stderr));
}

/// An authority `ca.pem` and a certificate of its for the name localhost.
fn certificates(dir: &Path) {
    let key = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    openssl(dir, &format!("{key} -subj /CN=test-authority -keyout ca.key -out ca.pem"));
    openssl(
        dir,
        &format!(
            "{key} -subj /CN=localhost -addext subjectAltName=DNS:localhost -addext basicConstraints=CA:FALSE \
             -CA ca.pem -CAkey ca.key -keyout server.key -out server.pem"
        ),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_and_the_certificate_is_checked() {
    if !server::is_there("tls_is_spoken_and_the_certificate_is_checked") {
        return;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let tls =
        ["--port", "0", "--tls-port", "{port}", "--tls-auth-clients", "no", "--requirepass", "se/cr@et"];
    let files = ["--tls-cert-file", "{dir}/server.pem", "--tls-key-file", "{dir}/server.key"];
    let server = Server::with_files(&[&tls[..], &files].concat(), certificates).await;
    let (ca, password) = (server.dir().join("ca.pem"), server.dir().join("password"));
    std::fs::write(&password, "se/cr@et\n").unwrap();
    let by_name = format!("rediss://localhost:{}", server.port);
    let with_ca = |url: &str| {
        at(&[
            ("STORE_URL", url),
            ("STORE_CA_FILE", ca.to_str().unwrap()),
            ("STORE_PASSWORD_FILE", password.to_str().unwrap()),
        ])
    };
    let store = open(&with_ca(&by_name), &node("here")).await.unwrap();
    store.insert(instance(&golden("shop"), State::Ready, 0)).await.unwrap();
    let claimed = store.claim(claim(&golden("shop"), None)).await.unwrap();
    assert!(matches!(claimed, Claimed::New(_)));
    drop(store);

    // Nobody but the authority given vouches for it, and for that name only.
    let unknown = at(&[("STORE_URL", &by_name), ("STORE_PASSWORD_FILE", password.to_str().unwrap())]);
    let another_name = with_ca(&format!("rediss://127.0.0.1:{}", server.port));
    for at in [unknown, another_name] {
        // On a busy machine a try may end for the lack of time.
        eventually("the certificate is not believed", async || {
            let tried = ValkeyStore::open_within(&at, &node("here"), "a-daemon", Duration::ZERO).await;
            let error = tried.unwrap_err();
            assert!(matches!(error, OpenValkeyError::Silent { .. }), "{error:?}");
            Chain(&error).to_string().contains("certificate").then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_asked_for_and_never_told() {
    if !server::is_there("a_password_is_asked_for_and_never_told") {
        return;
    }
    let user = ["--user", "demo", "on", ">geheim", "~{demo-multiplexer}:*", "+@all"];
    let server = Server::with(&[&["--requirepass", "secret"][..], &user].concat()).await;
    let url = |credentials: &str| format!("redis://{credentials}127.0.0.1:{}/2", server.port);
    for good in [":secret@", "demo:geheim@"] {
        open(&at(&[("STORE_URL", &url(good))]), &node("here")).await.unwrap();
    }
    for wrong in ["", ":wr0ng@", "demo:wr0ng@", "nobody:secret@"] {
        let host = Host::new();
        let url = url(wrong);
        let error = host.build(&[("STORE_URL", &url)], OnExit::KeepInstances).await.unwrap_err();
        let AppError::OpenStore(_) = &error else { panic!("{error:?}") };
        let told = format!("{} {error:?}", Chain(&error));
        assert!(told.contains("STORE_PASSWORD_FILE") && told.contains("127.0.0.1"), "{told}");
        assert!(!told.contains("wr0ng") && !told.contains("secret"), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_late_is_waited_for() {
    if !server::is_there("a_server_that_is_late_is_waited_for") {
        return;
    }
    let mut server = Server::start().await;
    let at = at(&[("STORE_URL", &format!("redis://:secret@127.0.0.1:{}", server.port))]);
    server.kill();
    let error = ValkeyStore::open_within(&at, &node("here"), "a-daemon", Duration::ZERO).await.unwrap_err();
    let told = Chain(&error).to_string();
    assert!(told.contains("does not answer: look at STORE_URL") && told.contains("refused"), "{told}");
    assert!(!told.contains("secret"), "{told}");

    let at = crate::at(&[("STORE_URL", &server.url())]);
    let name = node("here");
    let opening = open(&at, &name);
    let starting = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.start_again().await;
    };
    let (opened, ()) = tokio::join!(opening, starting);
    opened.unwrap().ping().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_of_one_name_and_a_later_programs_data_are_refused() {
    if !server::is_there("two_daemons_of_one_name_and_a_later_programs_data_are_refused") {
        return;
    }
    let server = Server::start().await;
    let at = at(&[("STORE_URL", &server.url())]);
    let open = async |name, daemon| ValkeyStore::open_within(&at, &node(name), daemon, Duration::ZERO).await;
    let first = open("here", "one").await.unwrap();
    let error = open("here", "two").await.unwrap_err();
    assert!(error.to_string().contains("set NODE_NAME to another one"), "{error}");
    open("there", "two").await.unwrap();
    // The daemon that starts again is the same one, whatever became of the former.
    open("here", "one").await.unwrap();
    assert!(first.own().await.is_ok());

    server
        .run(&[
            "HSET",
            "{demo-multiplexer}:instances",
            "abcdefghijkl",
            r#"{"version":99,"id":"abcdefghijkl"}"#,
        ])
        .await;
    let error = first.list().await.unwrap_err();
    assert!(matches!(&error, StoreError::Record { key, .. } if key == "abcdefghijkl"), "{error:?}");
    server.run(&["SET", "{demo-multiplexer}:layout", "2"]).await;
    let error = open("there", "two").await.unwrap_err();
    assert!(matches!(error, OpenValkeyError::TooNew { found: 2, .. }), "{error}");
}

/// A sentinel that takes a primary for dead after half a second.
async fn sentinel(primary: u16) -> Server {
    let conf = format!(
        "sentinel monitor shops 127.0.0.1 {primary} 1\n\
         sentinel down-after-milliseconds shops 500\n\
         sentinel failover-timeout shops 2000\n"
    );
    Server::with_files(&["{dir}/sentinel.conf", "--sentinel"], |dir| {
        std::fs::write(dir.join("sentinel.conf"), &conf).unwrap();
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_replica_is_found_through_the_sentinels() {
    if !server::is_there("a_promoted_replica_is_found_through_the_sentinels") {
        return;
    }
    let mut primary = Server::start().await;
    let port = primary.port.to_string();
    let replica = Server::with(&["--appendonly", "yes", "--replicaof", &format!("127.0.0.1 {port}")]).await;
    let sentinel = sentinel(primary.port).await;
    // The first one named is not there.
    let url = format!("redis+sentinel://127.0.0.1:9,127.0.0.1:{}/shops", sentinel.port);
    let store = open(&at(&[("STORE_URL", &url)]), &node("here")).await.unwrap();
    let shop = golden("shop");
    for second in 0..3 {
        store.insert(instance(&shop, State::Ready, second)).await.unwrap();
    }
    assert!(matches!(store.claim(claim(&shop, Some("a"))).await, Ok(Claimed::New(_))));
    eventually("the sentinel and the replica know all", async || {
        let seen = format!("{:?}", sentinel.run(&["SENTINEL", "REPLICAS", "shops"]).await);
        let at_replica = format!("{:?}", replica.run(&["HLEN", "{demo-multiplexer}:instances"]).await);
        (seen.contains(&replica.port.to_string()) && at_replica == "int(3)").then_some(())
    })
    .await;

    primary.kill();
    let claimed = eventually("the store goes on with the replica", async || {
        store.claim(claim(&shop, Some("a"))).await.ok()
    })
    .await;
    assert!(matches!(claimed, Claimed::Again(_)), "{claimed:?}");
    assert!(matches!(store.claim(claim(&shop, None)).await, Ok(Claimed::New(_))), "it takes writes");
    let left = store.own().await.unwrap();
    assert_eq!(left.iter().filter(|one| one.state == State::Ready).count(), 1);
}
