//! `CONTAINER_MODE=docker`: the same pool, API and routes on a real Docker
//! engine, which the tests start, stop and take away.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use host::dockerd::{self, Dockerd, LiveRestore};
use host::identity::login_path;
use host::place::Traces;
use host::{Daemon, Place, eventually, same};
use serde_json::{Value, json};

/// A place and an engine that is the test's alone.
async fn engine(name: &'static str, live_restore: LiveRestore) -> Option<(Place, Dockerd)> {
    let place = Place::without_golden(name).await?;
    let engine = Dockerd::start(&place, live_restore).await?;
    Some((place, engine))
}

fn names(ids: &[String]) -> Vec<String> {
    ids.iter().map(|id| format!("dm-{id}")).collect()
}

/// The daemon knows that many instances, and Docker and the host hold those and
/// no other.
async fn there_are(place: &Place, engine: &Dockerd, daemon: &Daemon<'_>, count: usize) {
    // The pause after the last failure may have grown to a minute.
    eventually("what is found is what is known", 90, async || {
        let ids = daemon.ids().await;
        same(&ids.len(), &count)?;
        same(&engine.containers(), &names(&ids))?;
        same(&place.traces(), &Traces::all(&ids))
    })
    .await;
}

#[tokio::test]
async fn two_booted_shops_are_whole_and_share_nothing_and_a_release_leaves_nothing() {
    let Some((place, engine)) = engine("docker-two", LiveRestore::Off).await else { return };
    let doctor = place.cli_with(&["doctor"], &dockerd::settings(&[])).await.ok();
    assert!(doctor.contains("shops can be booted here") || doctor.contains("Shops can be booted here"));
    assert!(doctor.contains("ok    docker") && !doctor.contains("criu"), "{doctor}");

    let daemon = place.daemon(&dockerd::settings(&[])).await;
    let shops = [daemon.acquire("cold").await, daemon.acquire("cold").await];
    let mut secrets = Vec::new();
    for (shop, other) in [(&shops[0], &shops[1]), (&shops[1], &shops[0])] {
        shop.answers().await;
        assert!(shop.browser().log_in(shop.text("admin_password")).await);
        assert!(!shop.browser().log_in(other.text("admin_password")).await);
        let mut browser = shop.browser();
        browser.get(&login_path(shop)).await;
        assert!(browser.is_in().await, "by its login link");
        assert_eq!(inside(&place, shop.id(), &["hostname"]).await, shop.id());
        secrets
            .push(inside(&place, shop.id(), &["sed", "-n", "/^secret/p", "/etc/golden/instance.ini"]).await);
        for left in ["/golden-common", "/golden-src", "/golden-recipe"] {
            let found = cli(&place, &["exec", shop.id(), "--", "ls", "-d", left]).await;
            assert_ne!(found.code, Some(0), "{left} of the build is in the shop");
        }
        // Each reaches the bridge, and not the other.
        let mine = reach(&place, shop.id(), &address(&place, shop.id()).await).await;
        let theirs = reach(&place, shop.id(), &address(&place, other.id()).await).await;
        assert_eq!((mine, theirs), (true, false));
    }
    assert!(secrets[0].len() > 64 && secrets[0] != secrets[1], "{secrets:?}");
    is_confined(&engine.inspect(shops[0].id()));
    assert!(!engine.images().contains("demo-multiplexer-building"), "the build's steps: {}", engine.images());

    let metrics = daemon.get("/metrics").await.text().into_owned();
    let made = "demo_multiplexer_restores_total{golden=\"wordpress\",source=\"cold\",outcome=\"ok\"} 2";
    assert!(metrics.contains(made), "{metrics}");
    assert_eq!(daemon.get("/health").await.json()["dependencies"]["docker"]["status"], "ok");
    assert!(place.log().contains("\"source\":\"cold\""), "{}", place.log());

    daemon.release(shops[0].id()).await;
    assert_eq!(shops[0].get("/").await.status, 410);
    there_are(&place, &engine, &daemon, 1).await;
    assert_eq!(daemon.ids().await, [shops[1].id()]);
    shops[1].answers().await;
    daemon.stop().await;
    assert_eq!((engine.containers(), engine.volumes()), (Vec::new(), 0));
}

fn is_confined(container: &Value) {
    let host = &container["HostConfig"];
    assert_eq!(host["NetworkMode"], "none");
    assert_eq!(host["CapDrop"], json!(["ALL"]));
    assert_eq!(host["SecurityOpt"], json!(["no-new-privileges"]));
    assert_eq!(host["RestartPolicy"]["Name"], "no");
    assert_eq!(host["LogConfig"]["Type"], "none");
    assert_eq!((&host["Privileged"], &host["PidMode"]), (&json!(false), &json!("")));
}

#[tokio::test]
async fn a_killed_daemon_s_shops_are_adopted_dead_ones_replaced_and_strays_swept() {
    let Some((place, engine)) = engine("docker-adopt", LiveRestore::Off).await else { return };
    let settings = dockerd::settings(&[("POOL_TARGET_SIZE", "1"), ("SLOTS_AHEAD", "0")]);
    let daemon = place.lasting_daemon(&settings).await;
    daemon.pool_has(1).await;
    let shop = daemon.acquire("pool").await;
    daemon.pool_has(1).await;
    let all = daemon.ids().await;
    daemon.kill().await;
    assert_eq!(inside(&place, shop.id(), &["hostname"]).await, shop.id(), "it lives on");

    // One that a daemon made and did not write down, and somebody else's.
    let ours =
        json!({"demo-multiplexer.instances": place.state_dir().join("instances").display().to_string()});
    let stray = "dm-aaaaaaaaaaaa";
    engine.run_stray(stray, &ours);
    engine.run_stray("dm-bbbbbbbbbbbb", &json!({"demo-multiplexer.instances": "/elsewhere"}));

    let daemon = place.daemon(&settings).await;
    assert_eq!(daemon.ids().await, all, "the same two, and no third is made");
    let mut found = engine.containers();
    found.retain(|name| name != "dm-bbbbbbbbbbbb");
    assert_eq!(found, names(&all), "the stray is gone");
    assert!(engine.containers().contains(&"dm-bbbbbbbbbbbb".to_owned()), "another daemon's is left alone");
    engine.remove("dm-bbbbbbbbbbbb");
    shop.answers().await;
    assert!(shop.browser().log_in(shop.text("admin_password")).await);

    let ready = all.iter().find(|id| *id != shop.id()).unwrap();
    engine.kill_init(ready);
    engine.kill_init(shop.id());
    eventually("the dead ones are gone and another is made", 30, async || {
        same(&shop.get("/").await.status, &410)?;
        let ids = daemon.ids().await;
        match ids.len() == 1 && !all.contains(&ids[0]) {
            true => Ok(()),
            false => Err(format!("{ids:?} after {all:?}")),
        }
    })
    .await;
    daemon.pool_has(1).await;
    there_are(&place, &engine, &daemon, 1).await;
    daemon.acquire("pool").await.answers().await;
    daemon.stop().await;
    assert_eq!(engine.containers(), Vec::<String>::new());
}

#[tokio::test]
async fn without_live_restore_a_stopped_engine_takes_the_shops_along_and_all_is_well_again_after() {
    let Some((place, mut engine)) = engine("docker-down", LiveRestore::Off).await else { return };
    let daemon = place.daemon(&dockerd::settings(&[("POOL_TARGET_SIZE", "1")])).await;
    daemon.pool_has(1).await;
    let shop = daemon.acquire("pool").await;
    daemon.pool_has(1).await;
    engine.down().await;
    eventually("the dead shop is not reached", 20, async || same(&shop.get("/").await.status, &410)).await;
    is_refused_for_now(&daemon).await;
    let health = daemon.get("/health").await.json();
    assert_eq!(
        (&health["status"], &health["dependencies"]["docker"]["status"]),
        (&json!("degraded"), &json!("down"))
    );
    let why = health["dependencies"]["docker"]["error"].as_str().unwrap();
    assert!(why.contains("no Docker engine answers at"), "{why}");
    // A refused acquire that never got to Docker leaves nothing to be cleaned up.
    let before = daemon.ids().await.len();
    for _ in 0..5 {
        is_refused_for_now(&daemon).await;
    }
    assert!(daemon.ids().await.len() <= before, "{:?}", daemon.ids().await);

    engine.up().await;
    // The pause after the last failure may have grown to a minute.
    eventually("another one is made", 90, async || {
        let reply = daemon.try_acquire(&json!({})).await;
        if reply.status == 201 { Ok(()) } else { Err(reply.text().into_owned()) }
    })
    .await;
    eventually("all is well", 90, async || same(&daemon.get("/health").await.json()["status"], &json!("ok")))
        .await;
    there_are(&place, &engine, &daemon, 2).await;
    daemon.stop().await;
    assert_eq!(engine.containers(), Vec::<String>::new());
}

async fn is_refused_for_now(daemon: &Daemon<'_>) {
    let reply = daemon.try_acquire(&json!({})).await;
    let detail = reply.problem(503);
    assert!(detail.contains("no instance of wordpress was ready and making one failed"), "{detail}");
    assert!(reply.header("retry-after").unwrap().parse::<u32>().unwrap() > 0);
}

#[tokio::test]
async fn with_live_restore_the_shops_outlive_a_restart_of_the_engine() {
    let Some((place, mut engine)) = engine("docker-live", LiveRestore::On).await else { return };
    let daemon = place.daemon(&dockerd::settings(&[("POOL_TARGET_SIZE", "1")])).await;
    daemon.pool_has(1).await;
    let shop = daemon.acquire("pool").await;
    daemon.pool_has(1).await;
    engine.down().await;
    shop.answers().await;
    // What is ready is handed out; more there cannot be.
    let pooled = daemon.acquire("pool").await;
    pooled.answers().await;
    is_refused_for_now(&daemon).await;
    // Released while nobody is there to remove it: it is not reached any more.
    daemon.release(pooled.id()).await;
    assert_eq!(pooled.get("/").await.status, 410);
    engine.up().await;
    shop.answers().await;
    daemon.pool_has(1).await;
    eventually("the released one is removed", 90, async || {
        let name = format!("dm-{}", pooled.id());
        if engine.containers().contains(&name) { Err(name) } else { Ok(()) }
    })
    .await;
    shop.answers().await;
    there_are(&place, &engine, &daemon, 2).await;
    daemon.stop().await;
    assert_eq!(engine.containers(), Vec::<String>::new());
}

#[tokio::test]
async fn snapshots_are_refused_with_the_way_out_and_cold_starts_cannot_be() {
    let Some(place) = Place::without_golden("docker-refused").await else { return };
    for args in [&["snapshot", "create"][..], &["snapshot", "list"], &["bench"]] {
        let said = place.cli_with(args, &dockerd::settings(&[])).await;
        assert_eq!(said.code, Some(64), "{said:?}");
        assert!(said.err.contains("Docker cannot restore snapshots; use CONTAINER_MODE=podman"), "{said:?}");
    }
    let said = place.cli_with(&["serve"], &dockerd::settings(&[("COLD_START", "refused")])).await;
    assert_eq!(said.code, Some(64), "{said:?}");
    assert!(said.err.contains("set COLD_START=allowed, or CONTAINER_MODE=podman"), "{said:?}");
    let nowhere = [("DOCKER_HOST", "unix:///nowhere/docker.sock")];
    let said = place.cli_with(&["serve"], &dockerd::settings(&nowhere)).await.refused();
    assert!(said.contains("no Docker engine answers at /nowhere/docker.sock"), "{said}");
    let said = place.cli_with(&["doctor"], &dockerd::settings(&nowhere)).await;
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.out.contains("FAIL  docker"), "{said:?}");
}

/// A command of the program in Docker mode.
async fn cli(place: &Place, args: &[&str]) -> host::place::Said {
    place.cli_with(args, &dockerd::settings(&[])).await
}

async fn inside(place: &Place, id: &str, command: &[&str]) -> String {
    cli(place, &[&["exec", id, "--"], command].concat()).await.ok().trim_end().to_owned()
}

/// A shop's address on the bridge.
async fn address(place: &Place, id: &str) -> String {
    let gateway = place.gateway();
    let php = format!(
        "echo strtok(stream_socket_get_name(stream_socket_client('udp://{gateway}:9'), false), ':');"
    );
    inside(place, id, &["php", "-r", &php]).await
}

/// Whether a shop gets through to an address's port 80.
async fn reach(place: &Place, id: &str, target: &str) -> bool {
    let php = format!("exit(@fsockopen('{target}', 80, $n, $s, 1) ? 0 : 9);");
    match cli(place, &["exec", id, "--", "php", "-r", &php]).await.code {
        Some(0) => true,
        Some(9) => false,
        other => panic!("{other:?}"),
    }
}
