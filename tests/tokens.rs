//! Who may ask a running daemon for what: tokens, scopes, addresses, pages of
//! other sites. The tests come from this host; with X-Forwarded-For they are
//! somebody else.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};

use common::{Answer, Daemon, Host, send_to};
use demo_multiplexer::app::{AppError, OnExit};
use demo_multiplexer::token::{Scopes, create};
use http::Method;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use tracing_subscriber::fmt::MakeWriter;

const ACQUIRE: &str = "/api/v1/demo/acquire";
const VISITOR: (&str, &str) = ("x-forwarded-for", "203.0.113.5");

/// A new token and its entry.
fn token(name: &str, scopes: &str) -> (String, String) {
    let (token, entry) = create(name, scopes.parse::<Scopes>().unwrap()).unwrap();
    (token.expose_secret().to_owned(), entry.to_string())
}

/// A daemon with a token of each scope.
struct Guarded {
    daemon: Daemon,
    acquire: String,
    operate: String,
    admin: String,
}

impl Guarded {
    async fn start(host: &Host, changes: &[(&str, &str)]) -> Self {
        let made =
            [("site", "acquire"), ("ops", "operate"), ("root", "admin")].map(|(name, it)| token(name, it));
        let entries: Vec<&str> = made.iter().map(|(_, entry)| entry.as_str()).collect();
        let entries = entries.join(",");
        let changes = [&[("API_TOKENS", entries.as_str())][..], changes].concat();
        let daemon = host.start(&changes).await;
        let [acquire, operate, admin] = made.map(|(token, _)| token);
        Self { daemon, acquire, operate, admin }
    }
}

/// Asks as somebody; with an empty token as nobody.
async fn ask(address: SocketAddr, method: Method, path: &str, token: &str, more: &[(&str, &str)]) -> Answer {
    let bearer = format!("Bearer {token}");
    let shown = if token.is_empty() { None } else { Some(("authorization", bearer.as_str())) };
    let headers: Vec<(&str, &str)> = shown.into_iter().chain(more.iter().copied()).collect();
    send_to(address, method, path, &headers, "").await
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

const OPERATORS: [&str; 3] = ["/api/v1/demo", "/api/v1/pool/stats", "/metrics"];

#[tokio::test]
async fn without_tokens_the_operator_is_who_asks_from_this_host() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    for path in OPERATORS {
        assert_eq!(daemon.get(path).await.status, 200, "{path}");
        for other in [
            VISITOR,
            ("forwarded", "for=203.0.113.5"),
            ("via", "1.1 proxy"),
            ("origin", "http://abc.localhost:8080"),
            ("sec-fetch-site", "same-site"),
            ("host", "rebound.example:8080"),
        ] {
            let told = daemon.send(Method::GET, path, &[other], "").await.problem(403);
            assert!(told.contains("this host's own clients"), "{other:?}: {told}");
        }
    }
    let id = daemon.send(Method::POST, ACQUIRE, &[VISITOR], "").await.id();
    let path = format!("/api/v1/demo/{id}");
    assert_eq!(daemon.send(Method::GET, &path, &[VISITOR], "").await.status, 200, "who has the id");
    assert_eq!(daemon.get("/health").await.json()["version"], env!("CARGO_PKG_VERSION"));
    let health = daemon.send(Method::GET, "/health", &[VISITOR], "").await;
    assert_eq!(health.json(), serde_json::json!({ "status": "ok" }), "no names, no errors");
    let told = ask(daemon.address, Method::GET, "/livez", "dmx_0", &[]).await.problem(401);
    assert!(told.contains("not known to this daemon (API_TOKENS)"), "{told}");
}

#[tokio::test]
async fn each_scope_opens_its_own_doors() {
    let host = Host::new();
    let it = Guarded::start(&host, &[("ACQUIRE", "token")]).await;
    let id = ask(it.daemon.address, Method::POST, ACQUIRE, &it.acquire, &[]).await.id();
    let (shown, extended) = (format!("/api/v1/demo/{id}"), format!("/api/v1/demo/{id}/extend"));
    let unlisted = "/api/v1/demo/abcdefghijkl/nothing";
    for (method, path, nobody, acquire, operate, admin) in [
        (Method::GET, "/livez", 200, 200, 200, 200),
        (Method::GET, "/readyz", 200, 200, 200, 200),
        (Method::GET, "/health", 200, 200, 200, 200),
        (Method::POST, ACQUIRE, 401, 201, 403, 201),
        (Method::GET, &*shown, 401, 200, 200, 200),
        (Method::POST, &*extended, 401, 200, 200, 200),
        (Method::GET, "/api/v1/demo", 401, 403, 200, 200),
        (Method::GET, "/api/v1/pool/stats", 401, 403, 200, 200),
        (Method::GET, "/metrics", 401, 403, 200, 200),
        (Method::GET, unlisted, 404, 404, 404, 404),
    ] {
        for (token, expected) in
            [("", nobody), (&*it.acquire, acquire), (&*it.operate, operate), (&*it.admin, admin)]
        {
            // From this host as from anywhere: with tokens, tokens count.
            for from in [&[][..], &[VISITOR]] {
                let answer = ask(it.daemon.address, method.clone(), path, token, from).await;
                assert_eq!(answer.status, expected, "{method} {path} {from:?}: {}", answer.text());
                let challenged = header(&answer, "www-authenticate");
                assert_eq!(challenged.starts_with("Bearer realm="), matches!(expected, 401 | 403), "{path}");
                if matches!(expected, 401 | 403) {
                    answer.problem(expected);
                }
            }
        }
        if path == "/health" {
            let details = async |token| ask(it.daemon.address, Method::GET, path, token, &[]).await.json();
            assert!(
                details("").await["version"].is_null() && details(&it.acquire).await["version"].is_null()
            );
            assert!(details(&it.operate).await["version"].is_string());
        }
    }
    let lacking = ask(it.daemon.address, Method::GET, "/metrics", &it.acquire, &[]).await;
    assert!(header(&lacking, "www-authenticate").ends_with(r#"error="insufficient_scope", scope="operate""#));
    let released = ask(it.daemon.address, Method::DELETE, &shown, &it.operate, &[]).await;
    assert_eq!(released.status, 204, "any instance is the operator's");
}

#[tokio::test]
async fn a_token_that_is_not_known_opens_nothing_that_is_open() {
    let host = Host::new();
    let it = Guarded::start(&host, &[]).await;
    let upper = it.acquire.to_uppercase();
    let longer = format!("{}0", it.acquire);
    for wrong in ["dmx_", "x", &it.acquire[..it.acquire.len() - 1], &longer, &upper] {
        for path in ["/livez", "/metrics", "/api/v1/demo/abcdefghijkl"] {
            let answer = ask(it.daemon.address, Method::GET, path, wrong, &[]).await;
            answer.problem(401);
            assert!(header(&answer, "www-authenticate").ends_with(r#"error="invalid_token""#));
            assert!(!answer.text().contains(wrong) || wrong == "x", "{}", answer.text());
        }
    }
    let bearer = format!("Bearer {}", it.admin);
    let twice = [("authorization", bearer.as_str()); 2];
    send_to(it.daemon.address, Method::GET, "/metrics", &twice, "").await.problem(401);
    // A scheme of somebody in front is nothing to us.
    let basic = [("authorization", "Basic YTpi")];
    assert_eq!(send_to(it.daemon.address, Method::POST, ACQUIRE, &basic, "").await.status, 201);
}

#[tokio::test]
async fn a_token_is_one_client_wherever_it_asks_from() {
    let host = Host::new();
    let it = Guarded::start(&host, &[("RATE_LIMIT_HOURLY", "2")]).await;
    let acquire = async |token: &str, from: &str, key: &str| {
        let more = [("x-forwarded-for", from), ("idempotency-key", key)];
        ask(it.daemon.address, Method::POST, ACQUIRE, token, &more).await
    };
    let first = acquire(&it.acquire, "203.0.113.5", "a").await;
    assert_eq!((first.status.as_u16(), header(&first, "ratelimit-remaining")), (201, "1"));
    let again = acquire(&it.acquire, "203.0.113.6", "a").await;
    assert_eq!((again.status.as_u16(), again.id()), (200, first.id()), "its keys are its own everywhere");
    assert_eq!(acquire(&it.acquire, "203.0.113.7", "b").await.status, 201);
    assert_eq!(acquire(&it.acquire, "203.0.113.8", "c").await.status, 429);
    let other = acquire(&it.admin, "203.0.113.5", "a").await;
    assert_eq!(other.status, 201, "another token has its own limit and keys");
    assert_ne!(other.id(), first.id());
    assert_eq!(acquire("", "203.0.113.5", "a").await.status, 201, "and so has an address");
}

#[tokio::test]
async fn an_admin_listener_takes_the_operators_part_away_from_the_visitors() {
    let host = Host::new();
    let it = Guarded::start(&host, &[("ADMIN_LISTEN", "127.0.0.1:0")]).await;
    let (public, admin) = (it.daemon.address, it.daemon.admin.unwrap());
    let id = ask(public, Method::POST, ACQUIRE, "", &[VISITOR]).await.id();
    for path in OPERATORS {
        let told = ask(public, Method::GET, path, &it.admin, &[]).await.problem(404);
        assert!(told.contains("there is nothing at"), "as if it were not there: {told}");
    }
    assert_eq!(
        ask(public, Method::GET, "/health", &it.admin, &[]).await.json().as_object().unwrap().len(),
        1
    );
    let metrics = ask(admin, Method::GET, "/metrics", "", &[VISITOR]).await;
    assert!(metrics.text().contains("demo_multiplexer_acquires_total"), "who reaches it may measure");
    assert!(ask(admin, Method::GET, "/health", "", &[]).await.json()["store"].is_object());
    ask(admin, Method::GET, "/api/v1/demo", "", &[]).await.problem(401);
    let listed = ask(admin, Method::GET, "/api/v1/demo", &it.operate, &[]).await.json();
    assert_eq!(listed["instances"][0]["id"], id);
    // Shops are not there: a request for one is the API's.
    let shop = [("host", &*format!("{id}.localhost:8080"))];
    ask(admin, Method::GET, "/", "", &shop).await.problem(404);
    assert_eq!(ask(public, Method::GET, "/", "", &shop).await.status, 502, "the shop, which is none here");
    assert_eq!(ask(admin, Method::POST, ACQUIRE, &it.acquire, &[]).await.status, 201);
    it.daemon.stop().await;
    assert!(tokio::net::TcpStream::connect(admin).await.is_err(), "both end together");
}

const SITE: (&str, &str) = ("origin", "https://www.example.com");

#[tokio::test]
async fn pages_of_listed_sites_may_acquire_and_others_may_not() {
    let host = Host::new();
    let settings =
        [("CORS_ORIGINS", "https://www.example.com,http://localhost:3000"), ("RATE_LIMIT_HOURLY", "1")];
    let it = Guarded::start(&host, &settings).await;
    let asked = ("access-control-request-method", "POST");
    let preflight =
        async |path: &str, origin| ask(it.daemon.address, Method::OPTIONS, path, "", &[origin, asked]).await;
    let granted = preflight(ACQUIRE, SITE).await;
    assert_eq!(granted.status, 204);
    assert_eq!(header(&granted, "access-control-allow-origin"), SITE.1);
    assert_eq!(header(&granted, "access-control-allow-methods"), "GET, POST, DELETE");
    for sent in ["authorization", "content-type", "idempotency-key"] {
        assert!(header(&granted, "access-control-allow-headers").contains(sent), "{sent}");
    }
    assert!(!granted.headers.contains_key("access-control-allow-credentials"));
    for origin in
        ["https://evil.example", "https://www.example.com.evil.org", "null", "http://www.example.com"]
    {
        let refused = preflight(ACQUIRE, ("origin", origin)).await;
        assert_eq!(refused.status, 405, "{origin}");
        assert!(!refused.headers.contains_key("access-control-allow-origin"), "{origin}");
        assert_eq!(header(&refused, "vary"), "Origin");
    }
    for path in OPERATORS {
        assert!(!preflight(path, SITE).await.headers.contains_key("access-control-allow-origin"), "{path}");
    }
    // Also what refuses can be read by the page, and how long to wait.
    let page = [VISITOR, SITE];
    let acquired = ask(it.daemon.address, Method::POST, ACQUIRE, "", &page).await;
    assert_eq!((acquired.status.as_u16(), header(&acquired, "access-control-allow-origin")), (201, SITE.1));
    let limited = ask(it.daemon.address, Method::POST, ACQUIRE, "", &page).await;
    assert_eq!((limited.status.as_u16(), header(&limited, "access-control-allow-origin")), (429, SITE.1));
    assert!(header(&limited, "access-control-expose-headers").contains("retry-after"));
    let wrong = ask(it.daemon.address, Method::POST, ACQUIRE, "dmx_0", &page).await;
    assert_eq!((wrong.status.as_u16(), header(&wrong, "access-control-allow-origin")), (401, SITE.1));
}

#[tokio::test]
async fn any_site_is_let_in_without_tokens_and_no_site_by_default() {
    let host = Host::new();
    let asked = ("access-control-request-method", "POST");
    let daemon = host.start(&[("CORS_ORIGINS", "*")]).await;
    let granted = ask(daemon.address, Method::OPTIONS, ACQUIRE, "", &[SITE, asked]).await;
    assert_eq!(header(&granted, "access-control-allow-origin"), "*");
    assert!(!header(&granted, "access-control-allow-headers").contains("authorization"));
    assert!(!granted.headers.contains_key("vary"));
    daemon.stop().await;
    let daemon = host.start(&[]).await;
    let refused = ask(daemon.address, Method::OPTIONS, ACQUIRE, "", &[SITE, asked]).await;
    assert!(refused.status == 405 && !refused.headers.contains_key("access-control-allow-origin"));
    let acquired = ask(daemon.address, Method::POST, ACQUIRE, "", &[SITE, VISITOR]).await;
    assert!(acquired.status == 201 && !acquired.headers.contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn a_file_of_tokens_that_others_may_read_is_refused_at_the_start() {
    let host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens");
    let (token, entry) = token("ops", "operate");
    std::fs::write(&path, format!("# who, what, hash\n{entry}\n")).unwrap();
    let set_mode = |mode| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    let setting = [("API_TOKENS", path.to_str().unwrap())];
    set_mode(0o644);
    let error = host.build(&setting, OnExit::KeepInstances).await.unwrap_err();
    assert!(matches!(error, AppError::Tokens(_)) && error.to_string().contains("chmod 600"), "{error}");
    set_mode(0o600);
    let daemon = host.start(&setting).await;
    assert_eq!(ask(daemon.address, Method::GET, "/metrics", &token, &[]).await.status, 200);
}

/// Runs the program away from any `.env`, without this process' settings.
async fn run(settings: &[(&str, &str)], args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_demo-multiplexer"));
    command.args(args).current_dir(dir.path()).env_clear().envs(settings.iter().copied());
    command.output().await.unwrap()
}

fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn a_token_from_the_command_lets_the_commands_in() {
    let made = run(&[], &["token", "create", "ops", "--scope", "acquire+operate", "--json"]).await;
    let made: Value = serde_json::from_str(&text(&made).0).unwrap();
    assert_eq!(made["scopes"], serde_json::json!(["acquire", "operate"]));
    let (token, entry) = (made["token"].as_str().unwrap(), made["entry"].as_str().unwrap());
    assert!(!entry.contains(token));

    let host = Host::new();
    let daemon = host.start(&[("API_TOKENS", entry), ("ACQUIRE", "token")]).await;
    let url = format!("http://{}", daemon.address);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, format!("{token}\n")).unwrap();
    let file = file.to_str().unwrap();
    for by in [("API_TOKEN", token), ("API_TOKEN_FILE", file)] {
        let settings = [("API_URL", url.as_str()), by];
        let acquired = run(&settings, &["acquire", "--json"]).await;
        let acquired: Value = serde_json::from_str(&text(&acquired).0).unwrap();
        assert!(text(&run(&settings, &["ls"]).await).0.contains(acquired["id"].as_str().unwrap()));
    }
    for (more, told) in [
        (("API_TOKEN", ""), "this takes a token (401 Unauthorized)"),
        (("API_TOKEN", "dmx_0"), "the token is not known to this daemon (API_TOKENS) (401"),
        (("API_TOKEN", "a\nb"), "does not hold one token on one line"),
        (("API_TOKEN_FILE", "/nowhere/token"), "cannot read API_TOKEN_FILE /nowhere/token"),
    ] {
        let refused = run(&[("API_URL", url.as_str()), more], &["ls"]).await;
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused).1.contains(told), "{}", text(&refused).1);
    }
    // There is no flag for it: every user of a host can read a command line.
    assert_eq!(run(&[], &["ls", "--api-token", token]).await.status.code(), Some(64));
    let people = text(&run(&[], &["token", "create", "a", "--scope", "admin"]).await).0;
    assert!(people.contains("Token     dmx_") && people.contains("Line      a:admin:"), "{people}");
    for wrong in [["a:b", "admin"], ["a", "root"], ["a", ""]] {
        assert!(!run(&[], &["token", "create", wrong[0], "--scope", wrong[1]]).await.status.success());
    }
}

/// Keeps what is logged.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_token_is_in_no_log_and_no_metric() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(log.clone());
    // While there is one subscriber alone, a place that logs for the first time on another test's
    // thread, which has none, is taken by tracing for one of no interest to anybody.
    let _another = tracing::Dispatch::new(tracing_subscriber::registry());
    // This runtime is one thread, so the daemon's tasks log here too.
    let _here = tracing::subscriber::set_default(subscriber.finish());
    let host = Host::new();
    let it = Guarded::start(&host, &[]).await;
    let unknown = token("somebody", "admin").0;
    for token in [&it.acquire, &it.operate, &it.admin, &unknown] {
        for path in [ACQUIRE, "/api/v1/demo", "/nowhere"] {
            ask(it.daemon.address, Method::POST, path, token, &[VISITOR]).await;
        }
    }
    let metrics = ask(it.daemon.address, Method::GET, "/metrics", &it.admin, &[]).await;
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("request refused"), "the log is looked at: {log}");
    for token in [&it.acquire, &it.operate, &it.admin, &unknown] {
        // Also no part that would be of use.
        assert!(!log.contains(&token[4..20]) && !metrics.text().contains(&token[4..20]));
    }
    let names = |dir: &Path| common::names_in(dir);
    assert!(names(&host.state_dir()).contains(&"store.redb".to_owned()));
    let store = std::fs::read(host.state_dir().join("store.redb")).unwrap();
    let wanted = &it.acquire.as_bytes()[4..];
    assert!(!store.windows(wanted.len()).any(|window| window == wanted), "nor in the store");
}

#[tokio::test]
async fn keeping_a_shop_takes_more_than_its_name_which_is_its_address() {
    let host = Host::new();
    let guarded = Guarded::start(&host, &[]).await;
    let address = guarded.daemon.address;
    let save = format!("/api/v1/demo/{}/save", guarded.daemon.acquire().await.id());
    assert_eq!(ask(address, Method::POST, &save, "", &[]).await.status, 401);
    for token in [&guarded.acquire, &guarded.operate] {
        let asked = ask(address, Method::POST, &save, token, &[]).await;
        assert!(
            asked.problem(409).contains("restored from a snapshot"),
            "scripted shops are not: {}",
            asked.text()
        );
    }
    guarded.daemon.stop().await;
    let daemon = host.start(&[]).await;
    assert_eq!(ask(daemon.address, Method::POST, &save, "", &[VISITOR]).await.status, 403);
    assert_eq!(daemon.post(&save, "").await.status, 409);
    daemon.stop().await;
}
