//! What the death of a daemon, of a shop and of a lease's time leave behind:
//! the shops of visitors live on, everything else is gone.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use host::place::Traces;
use host::{Place, eventually, same, web};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

#[tokio::test]
async fn a_killed_daemon_s_shops_live_on_and_the_next_one_adopts_them() {
    let Some(place) = Place::beside_others("adopt").await else { return };
    let settings = [("POOL_TARGET_SIZE", "1"), ("SLOTS_AHEAD", "2")];
    let daemon = place.lasting_daemon(&settings).await;
    daemon.pool_has(1).await;
    let shop = daemon.acquire("pool").await;
    place
        .sql(shop.id(), "UPDATE wp_options SET option_value = 'Mine' WHERE option_name = 'blogdescription'")
        .await;
    daemon.pool_has(1).await;
    let all = daemon.ids().await;
    assert_eq!(all.len(), 2);
    daemon.kill().await;

    // Nobody is there but the shop itself.
    assert_eq!(place.inside(shop.id(), &["hostname"]).await, shop.id());
    let script = format!(
        "echo file_get_contents('http://127.0.0.1/', false, \
         stream_context_create(['http' => ['header' => 'Host: {}']]));",
        shop.host()
    );
    let page = place.inside(shop.id(), &["php", "-r", &script]).await;
    assert!(page.contains("Mine"), "{page}");

    let settings = [("POOL_TARGET_SIZE", "1"), ("SLOTS_AHEAD", "0")];
    let daemon = place.daemon(&settings).await;
    assert_eq!(daemon.ids().await, all, "the same two, and no third is made");
    daemon.pool_has(1).await;
    same(&place.traces(), &Traces::all(&all)).unwrap();
    let page = shop.get("/").await;
    assert_eq!((page.status, page.text().contains("Mine")), (200, true));
    assert!(shop.browser().log_in(shop.text("admin_password")).await);
    assert_eq!(daemon.acquire("pool").await.id(), all.iter().find(|id| *id != shop.id()).unwrap());
    // Its process is watched and its address is taken, as if this daemon had made it.
    daemon.release(shop.id()).await;
    assert_eq!(shop.get("/").await.status, 410);
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_killed_in_a_burst_of_restores_leaves_nothing_the_next_one_does_not_know() {
    let Some(place) = Place::beside_others("burst").await else { return };
    for half_made in [1, 4, 7] {
        let daemon = place.lasting_daemon(&[("RESTORE_CONCURRENCY", "4"), ("SLOTS_AHEAD", "3")]).await;
        let (address, body) = (place.address(), json!({}).to_string());
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let body = body.clone();
            clients.spawn(async move {
                let headers = [("content-type", "application/json")];
                web::send(address, "POST", "localhost", "/api/v1/demo/acquire", &headers, &body).await
            });
        }
        eventually("restores are under way", 20, async || {
            let made = place.traces().cgroups.len();
            if made >= half_made + 3 { Ok(()) } else { Err(format!("{made} cgroups")) }
        })
        .await;
        daemon.kill().await;
        // Whoever was answered has a shop that must still be there.
        let mut answered = Vec::new();
        while let Some(client) = clients.join_next().await {
            answered.extend(client.unwrap().ok().filter(|reply| reply.status == 201));
        }
        let daemon = place.daemon(&[]).await;
        let known = daemon.ids().await;
        for reply in &answered {
            let id = reply.json()["id"].as_str().unwrap().to_owned();
            assert!(known.contains(&id), "{id} was handed over and is gone: {known:?}");
        }
        eventually("what is found is what is known", 10, async || {
            same(&place.traces(), &Traces::all(&known))
        })
        .await;
        let stats = daemon.stats().await;
        assert_eq!(stats["goldens"][0]["states"]["assigned"], known.len(), "{stats}");
        assert_eq!(stats["instances"], known.len(), "{stats}");
        daemon.acquire("restore").await.answers().await;
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_shop_that_dies_is_taken_down_and_the_pool_is_refilled() {
    let Some(place) = Place::beside_others("dies").await else { return };
    let daemon = place.daemon(&[("POOL_TARGET_SIZE", "1")]).await;
    daemon.pool_has(1).await;
    let [ready] = daemon.ids().await.try_into().unwrap();
    kill_init(&place, &ready);
    eventually("another one is made", 20, async || {
        let ids = daemon.ids().await;
        if ids.len() == 1 && ids[0] != ready { Ok(()) } else { Err(format!("{ids:?}, {ready} was killed")) }
    })
    .await;
    // Asked only now: before, the dead one may still have counted.
    daemon.pool_has(1).await;
    let shop = daemon.acquire("pool").await;
    shop.answers().await;
    daemon.pool_has(1).await;
    kill_init(&place, shop.id());
    eventually("the dead shop is gone", 10, async || {
        same(&shop.get("/").await.status, &410)?;
        same(&daemon.get(&format!("/api/v1/demo/{}", shop.id())).await.status, &410)
    })
    .await;
    let ids = daemon.ids().await;
    eventually("only the pool is left", 10, async || same(&place.traces(), &Traces::all(&ids))).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_shop_nobody_visits_ends_when_its_time_is_over() {
    let Some(place) = Place::beside_others("expiry").await else { return };
    let daemon = place.daemon(&[]).await;
    let (short, long) =
        (daemon.acquire_for("restore", "2s").await, daemon.acquire_for("restore", "1h").await);
    eventually("the short one is gone", 10, async || {
        same(&place.traces(), &Traces::all(&[long.id().to_owned()]))
    })
    .await;
    let page = short.get("/").await;
    assert_eq!(page.status, 410, "{}", page.text());
    assert!(page.text().contains("This demo has ended"), "{}", page.text());
    assert_eq!(daemon.ids().await, [long.id()]);
    long.answers().await;
    daemon.stop().await;
}

/// Kills the first process of an instance from outside.
fn kill_init(place: &Place, id: &str) {
    let procs = std::fs::read_to_string(place.cgroup().join(id).join("cgroup.procs")).unwrap();
    let is_init = |pid: &&str| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
    };
    let init = procs.lines().find(is_init).expect("its first process");
    kill(Pid::from_raw(init.parse().unwrap()), Signal::SIGKILL).unwrap();
}
