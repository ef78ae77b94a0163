//! A real Caddy with the repository's Caddyfile, in front of a daemon on a
//! scripted engine: the routes that the daemon keeps in it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "common/caddy.rs"]
mod caddy;
mod common;
#[path = "common/front.rs"]
mod front;
#[path = "common/slow.rs"]
mod slow;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use demo_multiplexer::config::AdminAddress;
use demo_multiplexer::id::InstanceId;
use demo_multiplexer::route::caddy::CaddyRoutes;
use demo_multiplexer::route::{RouteTable as _, conformance};
use demo_multiplexer::testing::eventually;
use serde_json::{Value, json};

use self::caddy::Caddy;
use self::front::{Front, plain_shops, shops};
use self::slow::{Slow, SlowSocket};

#[tokio::test]
async fn caddy_is_a_route_table() {
    if !caddy::is_there("caddy") {
        return;
    }
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
    for mut caddy in [Caddy::new(nowhere, &[]), Caddy::new(nowhere, &[]).on_a_socket()] {
        caddy.start().await;
        let address: AdminAddress = caddy.admin_url().parse().unwrap();
        let table = CaddyRoutes::new(address, &"one".parse().unwrap(), "localhost").unwrap();
        conformance::suite(&table).await;
    }
}

#[tokio::test]
async fn a_caddy_without_the_site_or_without_a_process_leads_nowhere() {
    if !caddy::is_there("caddy") {
        return;
    }
    let mut caddy = Caddy::new(SocketAddr::from(([127, 0, 0, 1], 9)), &[]);
    let table = |domain: &str| {
        let address: AdminAddress = caddy.admin_url().parse().unwrap();
        CaddyRoutes::new(address, &"one".parse().unwrap(), domain).unwrap()
    };
    let (other, own) = (table("other.example"), table("localhost"));
    let absent = own.repair().await.unwrap_err();
    assert!(absent.leads_nowhere() && absent.to_string().contains("nobody listens"), "{absent}");
    caddy.start().await;
    let foreign = other.repair().await.unwrap_err();
    assert!(foreign.leads_nowhere() && foreign.to_string().contains("*.other.example"), "{foreign}");
    own.repair().await.unwrap();
    let seen = own.look_around().await.unwrap();
    assert!(seen.has_site && caddy.admin_url().ends_with(&seen.admin), "{seen:?}");
    assert!(!other.look_around().await.unwrap().has_site);
    // Without any configuration at all.
    assert_eq!(caddy.admin("DELETE", "/config/apps", None).await.0, 200);
    assert!(own.repair().await.unwrap_err().leads_nowhere());
}

#[tokio::test]
async fn a_shop_is_acquired_visited_and_released_through_caddy_over_https() {
    if !caddy::is_there("caddy") {
        return;
    }
    let front = Front::start(shops(plain_shops()).await, &[]).await;
    let base = format!("https://localhost:{}", front.caddy.https.port());
    let browser = front.caddy.browser(&["localhost"]);
    let acquired = browser.post(format!("{base}/api/v1/demo/acquire")).send().await.unwrap();
    assert_eq!(acquired.status(), 201);
    let acquired: Value = acquired.json().await.unwrap();
    let id = acquired["id"].as_str().unwrap();
    let route = front.route(id).await.expect("in force when the answer is there");
    assert_eq!(route["input"], format!("{id}.localhost"));
    let page = front.visit(id, "/").await;
    assert_eq!(page.headers()["x-robots-tag"], "noindex, nofollow");
    assert_eq!(page.headers()["x-content-type-options"], "nosniff");
    assert!(!page.headers().contains_key("strict-transport-security"), "not with a CA of one's own");
    assert_eq!((page.status().as_u16(), page.text().await.unwrap().as_str()), (200, "the shop"));
    let released = browser.delete(format!("{base}/api/v1/demo/{id}")).send().await.unwrap();
    assert_eq!(released.status(), 204);
    assert_eq!(front.route(id).await, None, "gone when the answer is there");
    let page = front.visit(id, "/").await;
    assert_eq!(page.status(), 410);
    assert!(page.text().await.unwrap().contains("This demo shop has ended"));
    for inside in ["/metrics", "/api/v1/tls/ask?domain=localhost"] {
        let answer = browser.get(format!("{base}{inside}")).send().await.unwrap();
        assert_eq!(answer.status(), 404, "{inside} is not for visitors");
    }
    assert_eq!(browser.get(format!("{base}/api/v1/demo")).send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn routes_are_made_ahead_and_shops_outlive_the_daemon() {
    if !caddy::is_there("caddy") {
        return;
    }
    let front = Front::start(shops(plain_shops()).await, &[("POOL_TARGET_SIZE", "2")]).await;
    // Two goldens are served.
    eventually("the pools' routes are there", async || (front.routed().await.len() == 4).then_some(())).await;
    let id = front.acquire().await;
    // A certificate is had while the daemon can still be asked.
    assert_eq!(front.visit(&id, "/").await.status(), 200);
    let Front { host, daemon, caddy, listen } = front;
    daemon.stop().await;
    let away = format!("https://{id}.localhost:{}/", caddy.https.port());
    let browser = caddy.browser(&[&format!("{id}.localhost")]);
    assert_eq!(browser.get(&away).send().await.unwrap().text().await.unwrap(), "the shop");
    // Its time ends with nobody there, so only the next daemon can take the route away.
    host.restore.kill(&id.parse().unwrap());
    let daemon = host.start(&Front::settings(&caddy, &listen, &[("POOL_TARGET_SIZE", "2")])).await;
    let front = Front { host, daemon, caddy, listen };
    assert_eq!(front.route(&id).await, None, "gone before the next daemon serves");
    assert_eq!(front.visit(&id, "/").await.status(), 410);
}

#[tokio::test]
async fn many_acquires_and_releases_at_once_are_all_in_force() {
    if !caddy::is_there("caddy") {
        return;
    }
    let settings = [("RESTORE_CONCURRENCY", "50"), ("MAX_INSTANCES", "60")];
    let front = Front::start(shops(plain_shops()).await, &settings).await;
    let acquire = async || {
        let id = front.acquire().await;
        assert!(front.route(&id).await.is_some(), "in force when the answer is there");
        id
    };
    let ids = futures_util::future::join_all((0..50).map(|_| acquire())).await;
    assert_eq!(front.routed().await.len(), 50);
    let release = async |id: &String| {
        assert_eq!(front.daemon.delete(&format!("/api/v1/demo/{id}")).await.status, 204);
        assert_eq!(front.route(id).await, None, "gone when the answer is there");
    };
    futures_util::future::join_all(ids.iter().map(release)).await;
    assert_eq!(front.routed().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_caddy_killed_under_load_has_its_routes_again_within_five_seconds() {
    if !caddy::is_there("caddy") {
        return;
    }
    let mut front = Front::start(shops(plain_shops()).await, &[("MAX_INSTANCES", "500")]).await;
    let mut lasting = Vec::new();
    for _ in 0..5 {
        lasting.push(front.acquire().await);
    }
    let address = front.daemon.address;
    let (stop, load) =
        (tokio_util::sync::CancellationToken::new(), Arc::new(tokio::sync::Mutex::new((0, Vec::new()))));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (stop, load) = (stop.clone(), Arc::clone(&load));
        clients.spawn(async move {
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            let api = format!("http://{address}/api/v1/demo");
            while !stop.is_cancelled() {
                let acquired = client.post(format!("{api}/acquire")).send().await.unwrap();
                assert_eq!(acquired.status(), 201, "an acquire is answered whatever Caddy does");
                let acquired: Value = acquired.json().await.unwrap();
                let released = client.delete(format!("{api}/{}", acquired["id"].as_str().unwrap())).send();
                let released = released.await.unwrap();
                let refused = (released.status() != 204).then_some(released);
                let mut load = load.lock().await;
                load.0 += 1;
                if let Some(refused) = refused {
                    load.1.push(refused.text().await.unwrap());
                }
            }
        });
    }
    let done = async || load.lock().await.0;
    let some = async |more: u32| {
        let so_far = done().await;
        eventually("the load goes on", async || (done().await >= so_far + more).then_some(())).await;
    };
    some(10).await;
    front.caddy.kill();
    some(10).await;
    // Some that begin and some that end while it is away.
    let (born, ended) = (front.acquire().await, lasting.pop().unwrap());
    assert_eq!(front.daemon.delete(&format!("/api/v1/demo/{ended}")).await.status, 204);
    lasting.push(born);
    front.caddy.start().await;
    let restarted = Instant::now();
    for id in &lasting {
        assert_eq!(front.visit(id, "/").await.status(), 200, "served from the first moment on");
    }
    eventually("the routes are back", async || {
        let routed = front.routed().await;
        lasting.iter().all(|id| routed.contains(id)).then_some(())
    })
    .await;
    assert!(restarted.elapsed() < Duration::from_secs(5), "promised within 5 s: {:?}", restarted.elapsed());
    assert!(!front.routed().await.contains(&ended));
    some(10).await;
    stop.cancel();
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    for id in &lasting {
        assert_eq!(front.visit(id, "/").await.status(), 200, "no instance was lost");
    }
    eventually("nothing but what lives is routed", async || {
        let mut routed = front.routed().await;
        routed.sort();
        lasting.sort();
        (routed == lasting).then_some(())
    })
    .await;
    assert_eq!(load.lock().await.1, Vec::<String>::new(), "every release was answered");
}

#[tokio::test]
async fn changes_by_hand_are_repaired_and_foreign_routes_stay() {
    if !caddy::is_there("caddy") {
        return;
    }
    let front = Front::start(shops(plain_shops()).await, &[]).await;
    let (one, other) = (front.acquire().await, front.acquire().await);
    let (_, servers) = front.caddy.admin("GET", "/config/apps/http/servers", None).await;
    let (name, _) =
        servers.as_object().unwrap().iter().find(|(_, it)| it.to_string().contains("dmux-one")).unwrap();
    let first = format!("/config/apps/http/servers/{name}/routes/0");
    let foreign = json!({
        "@id": "by-hand",
        "match": [{ "host": ["hand.localhost"] }],
        "handle": [{ "handler": "static_response", "body": "by hand" }],
        "terminal": true,
    });
    assert_eq!(front.caddy.admin("PUT", &first, Some(&foreign)).await.0, 200);
    // Another daemon on the same Caddy.
    let second =
        CaddyRoutes::new(front.caddy.admin_url().parse().unwrap(), &"one.two".parse().unwrap(), "localhost");
    let (second, theirs) = (second.unwrap(), InstanceId::random());
    second.ensure(&theirs, SocketAddr::from(([10, 77, 9, 9], 80)));
    second.settle().await.unwrap();
    for (method, path) in [("DELETE", format!("/id/dmux-one_{one}")), ("DELETE", "/id/dmux-one".to_owned())] {
        assert_eq!(front.caddy.admin(method, &path, None).await.0, 200);
        eventually("both routes are back", async || {
            (front.route(&one).await.is_some() && front.route(&other).await.is_some()).then_some(())
        })
        .await;
    }
    let bent = json!(["192.0.2.1:80"]);
    let outputs = format!("/id/dmux-one_{one}/outputs");
    assert_eq!(front.caddy.admin("PATCH", &outputs, Some(&bent)).await.0, 200);
    eventually("the bent route is right again", async || {
        (front.route(&one).await?["outputs"] != bent).then_some(())
    })
    .await;
    assert_eq!(front.visit(&one, "/").await.status(), 200);
    assert_eq!(front.caddy.admin("GET", "/id/by-hand", None).await.1, foreign, "not ours");
    assert_eq!(second.list().await.unwrap().len(), 1, "another daemon's");
    assert_eq!(second.repair().await.unwrap(), 0);
    // Loading the Caddyfile anew takes everybody's routes away.
    let (_, mut whole) = front.caddy.admin("GET", "/config/", None).await;
    for server in whole["apps"]["http"]["servers"].as_object_mut().unwrap().values_mut() {
        server["routes"].as_array_mut().unwrap().retain(|route| route.get("@id").is_none());
    }
    assert_eq!(front.caddy.admin("POST", "/load", Some(&whole)).await.0, 200);
    eventually("they are back", async || front.route(&other).await).await;
    assert_eq!(second.repair().await.unwrap(), 1);
}

#[tokio::test]
async fn a_caddy_that_hangs_holds_nobody_up_and_keeps_the_address() {
    if !caddy::is_there("caddy") {
        return;
    }
    let front = Front::start(shops(plain_shops()).await, &[]).await;
    let id = front.acquire().await;
    front.caddy.hang();
    // The first change finds out; what comes after does not wait.
    let born = front.acquire().await;
    front.router_is("degraded").await;
    let released = front.daemon.delete(&format!("/api/v1/demo/{id}")).await;
    assert!(released.problem(503).contains("not out of reach yet"));
    assert_eq!(front.daemon.get(&format!("/api/v1/demo/{id}")).await.status, 410, "it is over all the same");
    let traces = front.host.restore.traces();
    assert!(
        traces.contains(&id.parse().unwrap()),
        "its address is nobody else's: Caddy may still lead there"
    );
    front.caddy.go_on();
    front.router_is("ok").await;
    eventually("the reaper comes again", async || {
        (!front.host.restore.traces().contains(&id.parse().unwrap())).then_some(())
    })
    .await;
    assert_eq!(front.routed().await, [born]);
}

#[tokio::test]
async fn two_daemons_share_one_caddy() {
    if !caddy::is_there("caddy") {
        return;
    }
    // It approves every certificate, and is who answers for what has no route.
    let daemon = shops(Router::new().fallback(get(async || "the daemon"))).await;
    let mut caddy = Caddy::new(daemon.into(), &[]);
    caddy.start().await;
    let mut tables = Vec::new();
    for (node, says) in [("one", "a shop of one"), ("two", "a shop of two")] {
        let shop = shops(Router::new().fallback(get(async move || says))).await;
        let address: AdminAddress = caddy.admin_url().parse().unwrap();
        let table = CaddyRoutes::new(address, &node.parse().unwrap(), "localhost").unwrap();
        let id = InstanceId::random();
        table.ensure(&id, shop.into());
        table.settle().await.unwrap();
        tables.push((table, id, says));
    }
    let visit = async |id: &InstanceId| {
        let host = format!("{id}.localhost");
        let url = format!("https://{host}:{}/", caddy.https.port());
        let browser = caddy.browser(&[&host]);
        // Caddy may close a connection whose request is on its way when it takes a new route.
        let once = async || browser.get(&url).send().await.ok();
        let answer = match once().await {
            Some(answer) => answer,
            None => once().await.unwrap(),
        };
        answer.text().await.unwrap()
    };
    for (_, id, says) in &tables {
        assert_eq!(visit(id).await, *says);
    }
    assert_eq!(visit(&InstanceId::random()).await, "the daemon");
    let (first, id, _) = &tables[0];
    first.remove(id);
    first.settle().await.unwrap();
    assert_eq!(visit(id).await, "the daemon");
    assert_eq!(visit(&tables[1].1).await, tables[1].2, "the other daemon's stays");
}

/// A daemon that is led to Caddy's admin API by another way.
async fn led_by(caddy: Caddy, listen: String, admin_url: &str) -> Front {
    let host = common::Host::with_shops_at(shops(plain_shops()).await);
    let settings = Front::settings(&caddy, &listen, &[("CADDY_ADMIN_URL", admin_url)]);
    let daemon = host.start(&settings).await;
    Front { host, daemon, caddy, listen }
}

#[tokio::test]
async fn a_slow_caddy_makes_acquires_late_and_then_holds_up_nobody() {
    if !caddy::is_there("caddy") {
        return;
    }
    let address = SocketAddr::from(([127, 0, 0, 1], caddy::free_port()));
    let mut caddy = Caddy::new(address, &[]).on_a_socket();
    caddy.start().await;
    let dir = tempfile::tempdir().unwrap();
    let (begin, end) = (dir.path().join("slow.sock"), caddy.admin_url().replacen("unix/", "", 1));
    let slow = SlowSocket::between(&begin, end.into());
    let front = led_by(caddy, address.to_string(), &format!("unix/{}", begin.display())).await;
    front.router_is("ok").await;
    slow.by(Duration::from_millis(400));
    let began = Instant::now();
    let id = front.acquire().await;
    assert!(began.elapsed() >= Duration::from_millis(800), "its route is in force: {:?}", began.elapsed());
    assert_eq!(front.visit(&id, "/").await.status(), 200);
    // Slower than an answer may be: the first change finds out, the next ones do not wait.
    slow.by(Duration::from_secs(5));
    front.acquire().await;
    front.router_is("degraded").await;
    let began = Instant::now();
    let born = front.acquire().await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(front.visit(&born, "/").await.status(), 200, "through the built-in proxy");
    slow.by(Duration::ZERO);
    front.router_is("ok").await;
}

#[tokio::test]
async fn a_caddy_that_lets_nobody_change_it_leaves_the_shops_to_the_built_in_proxy() {
    if !caddy::is_there("caddy") {
        return;
    }
    let address = SocketAddr::from(([127, 0, 0, 1], caddy::free_port()));
    let mut caddy = Caddy::new(address, &[]);
    caddy.start().await;
    // Caddy refuses whoever calls its admin API by another name than its own.
    let port = caddy.admin_url().rsplit_once(':').unwrap().1.parse().unwrap();
    let by_another_name = Slow::to(port).await;
    let url = format!("http://{}", by_another_name.address);
    let front = led_by(caddy, address.to_string(), &url).await;
    front.router_is("degraded").await;
    let health = front.daemon.get("/health").await.json();
    assert!(health["router"]["error"].as_str().is_some_and(|why| why.contains("403")), "{health}");
    let id = front.acquire().await;
    assert_eq!(front.visit(&id, "/").await.status(), 200);
    assert!(front.routed().await.is_empty());
}
