//! The operator's console, without a browser: who gets in, and what its forms do.
//! What it looks like and does in a browser: `browser/console.*`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Answer, Daemon, Host, send_to};
use demo_multiplexer::testing::eventually;
use demo_multiplexer::testing::workshop::ScriptedWorkshop;
use demo_multiplexer::token::{Scopes, create};
use http::Method;
use secrecy::ExposeSecret as _;

const VISITOR: (&str, &str) = ("x-forwarded-for", "203.0.113.5");
const OWN: (&str, &str) = ("origin", "http://localhost:8080");

fn token(name: &str, scopes: &str) -> (String, String) {
    let (token, entry) = create(name, scopes.parse::<Scopes>().unwrap()).unwrap();
    (token.expose_secret().to_owned(), entry.to_string())
}

async fn post(daemon: &Daemon, path: &str, headers: &[(&str, &str)], form: &str) -> Answer {
    let all = [&[("content-type", "application/x-www-form-urlencoded")][..], headers].concat();
    daemon.send(Method::POST, path, &all, form).await
}

/// The cookie that an answer sets, as a browser sends it back.
fn cookie(answer: &Answer) -> String {
    let set = answer.headers["set-cookie"].to_str().unwrap();
    set.split(';').next().unwrap().to_owned()
}

fn leads_to(answer: &Answer) -> &str {
    assert_eq!(answer.status, 303, "{}", answer.text());
    answer.headers["location"].to_str().unwrap()
}

#[tokio::test]
async fn a_token_opens_a_session_and_signing_out_ends_it() {
    let host = Host::new();
    let ((operate, ops), (acquire, site)) = (token("ops", "operate"), token("site", "acquire"));
    let daemon = host.start(&[("API_TOKENS", &format!("{ops},{site}"))]).await;
    assert_eq!(leads_to(&daemon.get("/admin").await), "/admin/sign-in");
    assert_eq!(daemon.get("/admin/live").await.status, 401);
    let entrance = daemon.get("/admin/sign-in").await;
    assert!(entrance.text().contains("name=\"token\""), "{}", entrance.text());

    let wrong = post(&daemon, "/admin/sign-in", &[OWN], "token=dmx_00").await;
    assert_eq!(wrong.status, 403);
    assert!(wrong.text().contains("role=\"alert\"") && !wrong.headers.contains_key("set-cookie"));
    assert!(!wrong.text().contains("dmx_00"), "what was typed is not told again");
    let other = post(&daemon, "/admin/sign-in", &[OWN], &format!("token={acquire}")).await;
    assert_eq!(other.status, 403, "a token that is not for this");

    let signed_in = post(&daemon, "/admin/sign-in", &[OWN, VISITOR], &format!("token={operate}")).await;
    assert_eq!(leads_to(&signed_in), "/admin");
    let set = signed_in.headers["set-cookie"].to_str().unwrap();
    assert!(
        set.contains("HttpOnly") && set.contains("SameSite=Strict") && set.contains("Max-Age=28800"),
        "{set}"
    );
    assert!(!set.contains(&operate), "the token itself is in no cookie");
    let session = cookie(&signed_in);
    let page = daemon.send(Method::GET, "/admin", &[("cookie", &session), VISITOR], "").await;
    assert!(page.status == 200 && page.text().contains("Signed in as ops"), "{}", page.text());
    assert_eq!(page.headers["cache-control"], "no-store");
    let at = session.len() - 5;
    let other = if session[at..].starts_with('a') { "b" } else { "a" };
    let forged = format!("{}{other}{}", &session[..at], &session[at + 1..]);
    let forged = daemon.send(Method::GET, "/admin", &[("cookie", &forged)], "").await;
    assert_eq!(leads_to(&forged), "/admin/sign-in");
    let out = post(&daemon, "/admin/sign-out", &[OWN, ("cookie", &session)], "").await;
    assert!(out.headers["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    daemon.stop().await;

    // Its token is taken away: so is the session.
    let daemon = host.start(&[("API_TOKENS", &site)]).await;
    let page = daemon.send(Method::GET, "/admin", &[("cookie", &session)], "").await;
    assert_eq!(leads_to(&page), "/admin/sign-in");
    daemon.stop().await;
}

#[tokio::test]
async fn who_guesses_tokens_waits_and_nobody_else_does() {
    let host = Host::new();
    let (operate, ops) = token("ops", "operate");
    let daemon = host.start(&[("API_TOKENS", &ops)]).await;
    for _ in 0..5 {
        assert_eq!(post(&daemon, "/admin/sign-in", &[OWN, VISITOR], "token=dmx_1").await.status, 403);
    }
    let right = format!("token={operate}");
    let late = post(&daemon, "/admin/sign-in", &[OWN, VISITOR], &right).await;
    assert!(late.status == 429 && late.headers.contains_key("retry-after"), "{}", late.status);
    let other = ("x-forwarded-for", "203.0.113.6");
    assert_eq!(post(&daemon, "/admin/sign-in", &[OWN, other], &right).await.status, 303);
    daemon.stop().await;
}

#[tokio::test]
async fn a_page_of_another_site_or_of_a_shop_sends_no_form() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    for theirs in [
        [("origin", "http://abc.localhost:8080"), ("sec-fetch-site", "same-site")],
        [("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")],
    ] {
        let answer = post(&daemon, "/admin/pool/drain", &theirs, "").await;
        assert_eq!(answer.status, 403, "{theirs:?}");
    }
    assert_eq!(daemon.get("/readyz").await.text(), "ready\n");
    assert_eq!(leads_to(&post(&daemon, "/admin/pool/drain", &[OWN], "").await), "/admin?did=drained");
    assert_eq!(daemon.get("/readyz").await.text(), "drained\n");
    daemon.stop().await;
}

#[tokio::test]
async fn without_tokens_the_console_is_this_hosts_own() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    assert_eq!(daemon.get("/admin").await.status, 200);
    for other in [VISITOR, ("via", "1.1 proxy"), ("host", "rebound.example:8080")] {
        let answer = daemon.send(Method::GET, "/admin", &[other], "").await;
        assert_ne!(answer.status, 200, "{other:?}");
    }
    let told = daemon.send(Method::GET, "/admin/sign-in", &[VISITOR], "").await;
    assert!(told.text().contains("No API_TOKENS are set"), "{}", told.text());
    daemon.stop().await;
}

#[tokio::test]
async fn an_admin_listener_has_the_console_alone() {
    let host = Host::new();
    let daemon = host.start(&[("ADMIN_LISTEN", "127.0.0.1:0")]).await;
    for path in ["/admin", "/admin/sign-in", "/admin/live"] {
        assert_eq!(daemon.get(path).await.status, 404, "{path}");
        let there = send_to(daemon.admin.unwrap(), Method::HEAD, path, &[], "").await;
        assert_ne!(there.status, 404, "{path}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_proxys_word_counts_only_from_a_trusted_one() {
    let host = Host::new();
    let (_, ops) = token("ops", "operate");
    let named = [("x-operator", "alice"), VISITOR];
    for (trusted, expected) in [("127.0.0.0/8", 200), ("10.0.0.0/8", 303)] {
        let changes =
            [("API_TOKENS", &*ops), ("ADMIN_AUTH_HEADER", "X-Operator"), ("TRUSTED_PROXIES", trusted)];
        let daemon = host.start(&changes).await;
        let page = daemon.send(Method::GET, "/admin", &named, "").await;
        assert_eq!(page.status.as_u16(), expected, "{trusted}");
        assert_eq!(page.text().contains("Signed in as alice"), expected == 200);
        let twice = [("x-operator", "alice"), ("x-operator", "mallory"), VISITOR];
        assert_eq!(daemon.send(Method::GET, "/admin", &twice, "").await.status, 303, "two are nobody");
        daemon.stop().await;
    }
    let daemon = host.start(&[("API_TOKENS", &ops)]).await;
    assert_eq!(daemon.send(Method::GET, "/admin", &named, "").await.status, 303, "without the setting");
    daemon.stop().await;
}

#[tokio::test]
async fn its_forms_do_what_the_api_does() {
    let host = Host::new();
    let daemon = host.start(&[("MAX_INSTANCES", "8")]).await;
    let id = daemon.acquire().await.id();
    let list = daemon.get("/admin/instances?q=&state=assigned&sort=-created").await;
    assert!(list.text().contains(&format!("row-{id}")) && list.text().contains("1 of 1 shown"));
    let none = daemon.get("/admin/instances?q=nothing").await;
    assert!(none.text().contains("No instance is like that"));

    let before = daemon.get(&format!("/api/v1/demo/{id}")).await.json()["expires_at"].clone();
    let back = "back=/admin/instances%3Fstate%3Dassigned";
    let extended = post(&daemon, &format!("/admin/instances/{id}/extend"), &[OWN], back).await;
    assert_eq!(leads_to(&extended), "/admin/instances?state=assigned&did=extended");
    assert_ne!(daemon.get(&format!("/api/v1/demo/{id}")).await.json()["expires_at"], before);
    let login = post(&daemon, &format!("/admin/instances/{id}/login"), &[OWN], "").await;
    assert!(leads_to(&login).starts_with(&format!("http://{id}.localhost/login?token=")));

    for (verb, did, state, button) in [
        ("hibernate", "asleep", "hibernated", "wake"),
        ("extend", "extended", "hibernated", "wake"),
        ("wake", "woken", "assigned", "sleep"),
        ("reset", "reset", "assigned", "sleep"),
    ] {
        let back = format!("back=/admin/instances/{id}");
        let done = post(&daemon, &format!("/admin/instances/{id}/{verb}"), &[OWN], &back).await;
        assert_eq!(leads_to(&done), format!("/admin/instances/{id}?did={did}"));
        let shown = daemon.get(leads_to(&done)).await;
        assert!(shown.text().contains(&format!(">{state}</span>")), "{verb}: {}", shown.text());
        assert!(shown.text().contains(&format!("id=\"{button}-{id}\"")), "{verb}: {}", shown.text());
        let list = daemon.get(&format!("/admin/instances?q={id}&state={state}")).await;
        assert!(list.text().contains("1 of 1 shown"), "{verb}: {}", list.text());
    }

    let shown = daemon.get(&format!("/admin/instances/{id}?did=extended")).await;
    for part in [&format!("demo-multiplexer exec {id} -- sh"), "does not run", "has more time"] {
        assert!(shown.text().contains(part), "{part}: {}", shown.text());
    }
    assert!(!shown.text().contains(&format!("password-of-{id}")), "no password is on the page");
    let released = post(&daemon, &format!("/admin/instances/{id}/release"), &[OWN], "").await;
    assert_eq!(leads_to(&released), "/admin/instances?did=released");
    eventually("it is gone", async || host.restore.running().is_empty().then_some(())).await;
    let again = post(&daemon, &format!("/admin/instances/{id}/release"), &[OWN], "").await;
    assert!(matches!(again.status.as_u16(), 404 | 410) && again.text().contains("role=\"alert\""));

    let target = post(&daemon, "/admin/pool/target", &[OWN], "golden=shop&target=2&back=/admin").await;
    assert_eq!(leads_to(&target), "/admin?did=target");
    eventually("two are ready", async || (daemon.states().await["ready"] == 2).then_some(())).await;
    let high = post(&daemon, "/admin/pool/target", &[OWN], "golden=shop&target=9").await;
    assert!(high.status == 400 && high.text().contains("more than MAX_INSTANCES"), "{}", high.text());
    assert_eq!(post(&daemon, "/admin/pool/burn", &[OWN], "").await.status, 404);
    daemon.stop().await;
}

#[tokio::test]
async fn every_page_is_whole_in_both_languages_and_runs_no_script_of_others() {
    let (host, workshop) = (Host::new(), ScriptedWorkshop::new());
    workshop.add("shop-1-aaaa", "shop", &host.restore);
    workshop.add("shop-2-bbbb", "shop", &host.restore);
    let daemon = host.start_serving("shop-1-aaaa", &workshop, &[]).await;
    let id = daemon.acquire().await.id();
    host.keep("aaaabbbbcccc");
    eventually("there is a sample", async || {
        let history = daemon.get("/api/v1/history").await.json();
        (!history["samples"].as_array().unwrap().is_empty()).then_some(())
    })
    .await;
    let one = format!("/admin/instances/{id}");
    for (path, en, fr) in [
        ("/admin", "The last hour", "La dernière heure"),
        ("/admin/instances", "1 of 1 shown", "1 sur 1 affichées"),
        (one.as_str(), "Time left", "Temps restant"),
        ("/admin/snapshots", "Take a snapshot", "Prendre un instantané"),
        ("/admin/saved", "Publish as a golden", "Publier comme modèle"),
        ("/admin/limits", "for one client", "pour un client"),
        ("/admin/events", "assigned", "assigned"),
    ] {
        for (language, text) in [("en", en), ("fr", fr)] {
            let page = daemon.send(Method::GET, path, &[("accept-language", language)], "").await;
            assert_eq!(
                (page.status.as_u16(), page.headers["content-language"].to_str().unwrap()),
                (200, language)
            );
            assert!(page.text().contains(text), "{path} {language}: {}", page.text());
            assert!(!page.text().contains("style=\"") && !page.text().contains("<script>"), "{path}");
            let policy = page.headers["content-security-policy"].to_str().unwrap();
            assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"), "{policy}");
        }
    }
    let promoted = post(&daemon, "/admin/snapshots/promote", &[OWN], "id=shop-2-bbbb").await;
    assert_eq!(leads_to(&promoted), "/admin/snapshots?did=begun");
    eventually("it is served", async || {
        daemon.get("/admin/snapshots").await.text().contains("restored from shop-2-bbbb").then_some(())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_kept_shop_is_published_and_removed_by_forms() {
    let (host, workshop) = (Host::new(), ScriptedWorkshop::new());
    workshop.add("shop-1-aaaa", "shop", &host.restore);
    let daemon = host.start_serving("shop-1-aaaa", &workshop, &[("POOL_TARGET_SIZE", "1")]).await;
    host.keep("aaaabbbbcccc");
    std::fs::create_dir(host.state_dir().join("saved/ddddeeeeffff")).unwrap();
    let page = daemon.get("/admin/saved").await;
    assert!(
        page.text().contains("2 of 20 at most") && page.text().contains("ddddeeeeffff"),
        "{}",
        page.text()
    );
    for (form, status) in [
        ("id=aaaabbbbcccc&golden=shop", 409),
        ("id=aaaabbbbcccc&golden=Not+a+name", 400),
        ("id=aaaabbbbccc2&golden=spring", 404),
        ("id=ddddeeeeffff&golden=spring", 404),
        ("id=aaaabbbbcccc&golden=spring&pool=many", 400),
        ("id=aaaabbbbcccc&golden=spring&pool=999999", 400),
    ] {
        let refused = post(&daemon, "/admin/saved/publish", &[OWN], form).await;
        assert_eq!(refused.status, status, "{form}: {}", refused.text());
    }
    let published =
        post(&daemon, "/admin/saved/publish", &[OWN], "id=aaaabbbbcccc&golden=spring&title=&pool=2").await;
    assert_eq!(leads_to(&published), "/admin/snapshots?did=begun");
    eventually("it is served, from a pool of its own", async || {
        let stats = daemon.get("/api/v1/pool/stats").await.json();
        let spring = stats["goldens"].as_array().unwrap().iter().find(|it| it["golden"] == "spring")?.clone();
        (spring["states"]["ready"] == 2).then_some(())
    })
    .await;
    let acquired = daemon.post("/api/v1/demo/acquire", r#"{"golden": "spring"}"#).await;
    assert_eq!((acquired.status.as_u16(), &acquired.json()["golden"]), (201, &"spring".into()));
    assert!(daemon.get("/?golden=spring").await.text().contains("The spring shop"));
    let withdrawn = post(&daemon, "/admin/snapshots/withdraw", &[OWN], "golden=spring").await;
    assert_eq!(leads_to(&withdrawn), "/admin/snapshots?did=begun");
    eventually("it is served no more, and its pool is gone", async || {
        let all = daemon.get("/api/v1/demo?golden=spring").await.json();
        let left = all["instances"].as_array().unwrap().iter().filter(|it| it["state"] == "ready").count();
        let refused = daemon.post("/api/v1/demo/acquire", r#"{"golden": "spring"}"#).await.status == 400;
        (left == 0 && refused).then_some(())
    })
    .await;
    assert_eq!(post(&daemon, "/admin/snapshots/withdraw", &[OWN], "golden=shop").await.status, 404);
    for id in ["aaaabbbbcccc", "ddddeeeeffff"] {
        let removed = post(&daemon, "/admin/saved/remove", &[OWN], &format!("id={id}")).await;
        assert_eq!(leads_to(&removed), "/admin/saved?did=removed");
    }
    assert!(daemon.get("/admin/saved").await.text().contains("No visitor has kept a shop"));
    daemon.stop().await;
}
