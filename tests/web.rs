//! The pages of a running daemon, on a scripted engine: what needs no browser.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use common::{Answer, Daemon, Host, send_to};
use demo_multiplexer::testing::eventually;
use http::Method;

/// What a browser sends with a page that it opens.
const FRENCH: [(&str, &str); 1] = [("accept-language", "fr-FR,fr;q=0.9,en;q=0.1")];

async fn page(daemon: &Daemon, path: &str, headers: &[(&str, &str)]) -> Answer {
    daemon.send(Method::GET, path, headers, "").await
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

#[tokio::test]
async fn a_page_comes_in_the_visitors_language_and_loads_nothing_from_elsewhere() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let (english, french) = (page(&daemon, "/", &[]).await, page(&daemon, "/", &FRENCH).await);
    assert!(english.text().contains("<html lang=\"en\">") && english.text().contains("A shop of your own"));
    assert!(french.text().contains("<html lang=\"fr\">") && french.text().contains("Votre propre boutique"));
    assert!(english.text().contains("The shop shop") && english.text().contains("The other shop"));
    for answer in [&english, &french] {
        assert_eq!(answer.status, 200);
        assert_eq!(header(answer, "content-type"), "text/html; charset=utf-8");
        assert_eq!(header(answer, "cache-control"), "no-store");
        assert!(header(answer, "vary").contains("Accept-Language"));
        let policy = header(answer, "content-security-policy");
        assert!(
            policy.contains("default-src 'self'") && policy.contains("frame-ancestors 'none'"),
            "{policy}"
        );
        assert!(!answer.headers["x-request-id"].is_empty());
        for attribute in ["src=\"", "href=\""] {
            for target in answer.text().split(attribute).skip(1) {
                assert!(target.starts_with(['/', '#']), "{attribute}{}", &target[..40.min(target.len())]);
            }
        }
        assert!(!answer.text().contains("style=") && !answer.text().contains(" onclick"));
    }
    assert_eq!(header(&french, "content-language"), "fr");
}

#[tokio::test]
async fn what_a_page_loads_is_kept_for_ever_under_its_contents_name() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let landing = page(&daemon, "/", &[]).await;
    let assets: Vec<&str> = landing
        .text()
        .split('"')
        .filter(|text| text.starts_with("/assets/") && !text.contains('#'))
        .collect();
    assert!(assets.len() >= 3, "{assets:?}");
    for asset in assets {
        let answer = page(&daemon, asset, &[]).await;
        assert_eq!(answer.status, 200, "{asset}");
        assert_eq!(header(&answer, "cache-control"), "public, max-age=31536000, immutable");
        let tag = header(&answer, "etag");
        let again = page(&daemon, asset, &[("if-none-match", tag)]).await;
        assert_eq!((again.status.as_u16(), again.body.len()), (304, 0));
        let (front, _) = asset.rsplit_once('.').unwrap();
        assert_eq!(page(&daemon, &format!("{front}0.css"), &[]).await.status, 404, "another content's name");
    }
    assert_eq!(page(&daemon, "/assets/..%2fweb.key", &[]).await.status, 404);
}

#[tokio::test]
async fn visitors_pages_are_where_visitors_are_and_only_if_they_may_acquire() {
    let host = Host::new();
    let daemon = host.start(&[("ADMIN_LISTEN", "127.0.0.1:0")]).await;
    assert_eq!(page(&daemon, "/", &[]).await.status, 200);
    let admin = send_to(daemon.admin.unwrap(), Method::GET, "/", &[], "").await;
    admin.problem(404);
    daemon.stop().await;

    let token = format!("a:acquire:{}", "0".repeat(64));
    let closed = [("ACQUIRE", "token"), ("API_TOKENS", token.as_str())];
    let daemon = host.start(&closed).await;
    page(&daemon, "/", &[]).await.problem(404);
    daemon.stop().await;

    let daemon = host.start(&[closed[0], closed[1], ("LANDING", "on")]).await;
    assert_eq!(page(&daemon, "/", &[]).await.status, 200, "the operator wants both");
    daemon.stop().await;
    let daemon = host.start(&[("LANDING", "off")]).await;
    page(&daemon, "/", &[]).await.problem(404);
}

/// A browser: it keeps cookies, follows no redirect and says where its forms come from.
struct Browser<'a> {
    daemon: &'a Daemon,
    cookies: Vec<(String, String)>,
    /// The address that it has behind a proxy; none on this host.
    address: Option<&'static str>,
}

impl<'a> Browser<'a> {
    fn new(daemon: &'a Daemon) -> Self {
        Self { daemon, cookies: Vec::new(), address: None }
    }

    fn behind_a_proxy(daemon: &'a Daemon, address: &'static str) -> Self {
        Self { address: Some(address), ..Self::new(daemon) }
    }

    async fn get(&mut self, path: &str) -> Answer {
        self.ask(Method::GET, path, "", "same-origin").await
    }

    async fn post(&mut self, path: &str, form: &str) -> Answer {
        self.ask(Method::POST, path, form, "same-origin").await
    }

    async fn ask(&mut self, method: Method, path: &str, form: &str, site: &str) -> Answer {
        let cookies: Vec<String> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let cookies = cookies.join("; ");
        let mut headers = vec![
            ("content-type", "application/x-www-form-urlencoded"),
            ("cookie", cookies.as_str()),
            ("sec-fetch-site", site),
        ];
        headers.extend(self.address.map(|address| ("x-forwarded-for", address)));
        let answer = self.daemon.send(method, path, &headers, form).await;
        for cookie in answer.headers.get_all("set-cookie") {
            let pair = cookie.to_str().unwrap().split(';').next().unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            self.cookies.retain(|(known, _)| known != name);
            self.cookies.push((name.to_owned(), value.to_owned()));
        }
        answer
    }

    /// A click on the landing page; answers where it leads.
    async fn click(&mut self, form: &str) -> String {
        let answer = self.post("/demo", form).await;
        assert_eq!(answer.status, 303, "{}", answer.text());
        header(&answer, "location").to_owned()
    }
}

fn id_of(page: &str) -> &str {
    let rest = page.strip_prefix("/demo/").unwrap_or_else(|| panic!("{page} is no demo's page"));
    rest.split('?').next().unwrap()
}

#[tokio::test]
async fn a_click_gets_an_instance_and_a_second_one_the_same() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let mut browser = Browser::new(&daemon);
    let page = browser.click("golden=shop").await;
    let id = id_of(&page).to_owned();
    let shown = browser.get(&page).await;
    assert_eq!(shown.status, 200);
    for text in [&format!("http://{id}.localhost/"), &format!("password-of-{id}"), "Restored for you"] {
        assert!(shown.text().contains(text), "{text}: {}", shown.text());
    }
    assert!(shown.text().contains("ms</span>"), "how long it took is told");
    assert_eq!(browser.click("golden=shop").await, page, "a second click makes no second shop");
    let other = browser.click("golden=other").await;
    assert_ne!(other, page, "of another golden there is another one");
    assert_ne!(Browser::new(&daemon).click("golden=shop").await, page, "and for somebody else");
    assert_eq!(host.restore.attempts(), 3);
    let landing = browser.get("/").await;
    assert!(landing.text().contains(&page) && landing.text().contains(&other), "{}", landing.text());
    // The address has changed, the browser has not.
    browser.address = Some("192.0.2.7");
    assert_eq!(browser.click("golden=shop").await, page);
}

#[tokio::test]
async fn a_cookie_is_its_browsers_and_says_nothing() {
    let host = Host::new();
    let daemon = host.start(&[("PUBLIC_SCHEME", "https"), ("PUBLIC_PORT", "443")]).await;
    let mut browser = Browser::new(&daemon);
    let looked = browser.get("/").await;
    assert!(!looked.headers.contains_key("set-cookie"), "who only looks is not remembered");
    let answer = browser.post("/demo", "").await;
    let page = header(&answer, "location").to_owned();
    for cookie in answer.headers.get_all("set-cookie") {
        let cookie = cookie.to_str().unwrap();
        assert!(
            cookie.starts_with("__Host-demo-") && cookie.ends_with("; HttpOnly; SameSite=Lax; Secure"),
            "{cookie}"
        );
        assert!(!cookie.contains("password"), "{cookie}");
    }
    let visitor = browser.cookies.iter().position(|(name, _)| name == "__Host-demo-visitor").unwrap();
    let value = browser.cookies[visitor].1.clone();
    browser.cookies[visitor].1 = value.replace(['a', 'b'], "c");
    assert_ne!(browser.cookies[visitor].1, value);
    assert_eq!(browser.get(&page).await.status, 403, "it was changed");
    browser.cookies[visitor].1 = value;
    assert_eq!(browser.get(&page).await.status, 200);
    let cookies = browser.cookies;
    daemon.stop().await;
    let daemon = host.start(&[("PUBLIC_SCHEME", "https"), ("PUBLIC_PORT", "443")]).await;
    let mut back = Browser { daemon: &daemon, cookies, address: None };
    assert_eq!(back.get(&page).await.status, 200, "the key outlives the daemon");
}

#[tokio::test]
async fn an_instance_is_seen_to_by_its_visitor_alone() {
    let host = Host::new();
    let daemon = host.start(&[("DEFAULT_TTL", "1h"), ("MAX_TTL", "150m")]).await;
    let (mut owner, mut stranger) = (Browser::new(&daemon), Browser::new(&daemon));
    let page = owner.click("").await;
    stranger.click("").await;
    for act in ["extend", "reset", "release", "login"] {
        let refused = stranger.post(&format!("{page}/{act}"), "").await;
        assert_eq!(refused.status, 403, "{act}");
        let anonymous = Browser::new(&daemon).post(&format!("{page}/{act}"), "").await;
        assert_eq!(anonymous.status, 403, "{act}");
    }
    assert_eq!(stranger.get(&page).await.status, 403);
    assert_eq!(stranger.get(&format!("{page}/status")).await.status, 403);
    assert!(!stranger.get(&page).await.text().contains("password-of-"));

    let left = async || {
        let shown = daemon.get(&format!("/api/v1/demo/{}", id_of(&page))).await;
        shown.json()["ttl_seconds"].as_i64().unwrap()
    };
    let extended = owner.post(&format!("{page}/extend"), "").await;
    assert_eq!(header(&extended, "location"), format!("{page}?done=extend"));
    assert!(left().await > 7100);
    assert!(owner.get(&page).await.text().contains("+ 30\u{a0}min more"), "as much as MAX_TTL leaves");
    owner.post(&format!("{page}/extend"), "").await;
    assert!(left().await > 8900);
    assert!(owner.get(&page).await.text().contains("It lives as long as it may."));
    assert_eq!(owner.post(&format!("{page}/extend"), "").await.status, 409);

    let login = owner.post(&format!("{page}/login?module=ps_banner"), "").await;
    let link = header(&login, "location");
    assert!(link.contains("/login?token=") && link.ends_with("&module=ps_banner"), "{link}");
    let odd = owner.post(&format!("{page}/login?module=a%26b"), "").await;
    assert!(!header(&odd, "location").contains("module"), "{}", header(&odd, "location"));

    let makings = host.restore.attempts();
    let reset = owner.post(&format!("{page}/reset"), "").await;
    assert_eq!(header(&reset, "location"), format!("{page}?done=reset"), "{}", reset.text());
    assert_eq!(host.restore.attempts(), makings + 1);
    assert!(owner.get(&format!("{page}?done=reset")).await.text().contains("It is as it was at the start."));
    let released = owner.post(&format!("{page}/release"), "").await;
    assert_eq!(header(&released, "location"), "/?done=release");
    assert_eq!(owner.get(&page).await.status, 410);
    assert_ne!(owner.click("").await, page, "and a new one may begin");
}

#[tokio::test]
async fn who_resets_a_sleeping_shop_on_a_full_host_is_told_that_it_is_safe() {
    let host = Host::new();
    let daemon = host.start(&[("MAX_INSTANCES", "1")]).await;
    let mut owner = Browser::new(&daemon);
    let page = owner.click("").await;
    let path = format!("/api/v1/demo/{}", id_of(&page));
    assert_eq!(daemon.post(&format!("{path}/hibernate"), "").await.status, 200);
    assert_eq!(daemon.acquire().await.status, 201, "its place is somebody else's");
    let told = owner.post(&format!("{page}/reset"), "").await;
    assert_eq!((told.status.as_u16(), header(&told, "retry-after")), (503, "10"), "{}", told.text());
    assert!(told.text().contains("There is no room just now") && told.text().contains("is safe"));
    assert!(told.text().contains(&format!("href=\"{page}\"")), "the way back: {}", told.text());
    assert_eq!(daemon.get(&path).await.json()["state"], "hibernated");
}

#[tokio::test]
async fn a_form_of_another_sites_page_does_nothing() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let mut browser = Browser::new(&daemon);
    for site in ["cross-site", "same-site"] {
        let refused = browser.ask(Method::POST, "/demo", "", site).await;
        assert_eq!(refused.status, 403, "{site}");
        assert!(
            refused.text().contains("This did not come from our page")
                && !refused.headers.contains_key("set-cookie")
        );
    }
    assert_eq!(host.restore.attempts(), 0);
    let page = browser.click("").await;
    // A shop's page is of the same site, and its cookies' SameSite says nothing.
    assert_eq!(browser.ask(Method::POST, &format!("{page}/release"), "", "same-site").await.status, 403);
    assert_eq!(browser.get(&page).await.status, 200, "it lives");
    let linked = browser.ask(Method::GET, "/wait?golden=other", "", "cross-site").await;
    assert_eq!((linked.status.as_u16(), header(&linked, "location")), (303, "/"), "a link acquires nothing");
    assert_eq!(host.restore.attempts(), 1);
}

#[tokio::test]
async fn a_click_ends_where_the_link_says_and_nowhere_else() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let mut browser = Browser::new(&daemon);
    let page = browser.click("").await;
    let id = id_of(&page).to_owned();
    assert_eq!(browser.click("go=shop").await, format!("http://{id}.localhost/"));
    let admin = browser.click("go=admin").await;
    assert!(admin.starts_with(&format!("http://{id}.localhost/login?token=")), "{admin}");
    let module = browser.click("module=ps_banner").await;
    assert!(module.ends_with("&module=ps_banner"), "{module}");
    assert_eq!(browser.click("module=ps_banner&go=page").await, format!("{page}?module=ps_banner"));
    for (form, status) in
        [("golden=magento", 404), ("module=..%2F..", 400), ("go=https%3A%2F%2Fevil.example", 400)]
    {
        assert_eq!(browser.post("/demo", form).await.status, status, "{form}");
        let shown = browser.get(&format!("/?{form}")).await;
        assert!(shown.status == 200 && shown.text().contains("The link that you followed"), "{form}");
    }
    let chosen = browser.get("/?golden=other&module=ps_banner").await;
    assert!(
        chosen.text().contains("value=\"other\" checked")
            && chosen.text().contains("Try ps_banner in a shop")
    );
    assert_eq!(host.restore.attempts(), 1);
}

#[tokio::test]
async fn a_visitor_has_the_limits_of_any_client() {
    let host = Host::new();
    let daemon = host.start(&[("RATE_LIMIT_HOURLY", "2")]).await;
    let mut one = Browser::behind_a_proxy(&daemon, "192.0.2.7");
    let page = one.click("golden=shop").await;
    assert_eq!(one.click("golden=shop").await, page, "not counted");
    one.click("golden=other").await;
    let mut other = Browser::behind_a_proxy(&daemon, "192.0.2.7");
    let refused = other.post("/demo", "").await;
    assert_eq!(refused.status, 429);
    let wait: u32 = header(&refused, "retry-after").parse().unwrap();
    assert!((3500..=3600).contains(&wait), "{wait}");
    assert!(
        refused.text().contains("You have had your demos for now") && refused.text().contains("next one in ")
    );
    assert!(!refused.headers.contains_key("set-cookie"), "another cookie is no way around it");
    Browser::behind_a_proxy(&daemon, "192.0.2.8").click("").await;
}

#[tokio::test]
async fn who_finds_no_room_stands_in_line_and_is_served_in_turn() {
    let host = Host::new();
    let daemon = host.start(&[("MAX_INSTANCES", "1")]).await;
    let taken = daemon.acquire().await.id();
    let (mut first, mut second) = (Browser::new(&daemon), Browser::new(&daemon));
    for browser in [&mut first, &mut second] {
        assert_eq!(browser.click("golden=shop").await, "/wait?golden=shop&go=page");
    }
    let waiting = first.get("/wait?golden=shop&go=page").await;
    assert_eq!(waiting.status, 200);
    assert_eq!(header(&waiting, "refresh"), "3", "it goes on by itself");
    assert!(
        waiting.text().contains("1 of 2") && waiting.text().contains("1\u{a0}h at most"),
        "{}",
        waiting.text()
    );
    let behind = second.get("/wait?golden=shop&go=page").await;
    assert!(behind.text().contains("2 of 2") && behind.text().contains("not known yet"), "{}", behind.text());
    let attempts = host.restore.attempts();
    daemon.delete(&format!("/api/v1/demo/{taken}")).await;
    eventually("there is room", async || host.restore.running().is_empty().then_some(())).await;
    assert!(second.get("/wait?golden=shop&go=page").await.text().contains("2 of 2"), "not before the first");
    // One who comes now is behind both.
    assert!(Browser::new(&daemon).click("golden=shop").await.starts_with("/wait"));
    let served = eventually("the first is served", async || {
        let answer = first.get("/wait?golden=shop&go=page").await;
        (answer.status == 303).then(|| header(&answer, "location").to_owned())
    })
    .await;
    assert_eq!(first.get(&served).await.status, 200);
    assert_eq!(host.restore.attempts(), attempts + 1);
    assert!(second.get("/wait?golden=shop&go=page").await.text().contains("1 of 2"));
}

#[tokio::test]
async fn what_is_made_for_longer_than_a_page_waits_is_found_by_the_next_one() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    host.restore.hold();
    let mut browser = Browser::new(&daemon);
    let wait = browser.click("golden=shop&go=shop").await;
    assert_eq!(wait, "/wait?golden=shop&go=shop");
    let making = browser.get(&wait).await;
    assert!(making.text().contains("Your demo is being made"), "{}", making.text());
    host.restore.let_go();
    let to = eventually("it goes on", async || {
        let answer = browser.get(&wait).await;
        (answer.status == 303).then(|| header(&answer, "location").to_owned())
    })
    .await;
    assert!(to.ends_with(".localhost/"), "{to}");
    assert_eq!(host.restore.attempts(), 1, "the try that went on made it");
}

#[tokio::test]
async fn a_defect_is_told_as_a_page() {
    let host = Host::new();
    let daemon = host.start(&[("COLD_START", "refused")]).await;
    use demo_multiplexer::engine::Phase;
    use demo_multiplexer::error::ErrorKind;
    host.restore.fail_make(Some((Phase::Restore, ErrorKind::Bug)));
    let failed = Browser::new(&daemon).post("/demo", "").await;
    assert_eq!(failed.status, 500);
    assert!(failed.text().contains("This did not work") && !failed.text().contains("the script says"));
    let gone = page(&daemon, "/demo/abcdefghijkl", &FRENCH).await;
    assert!(gone.status == 404 && gone.text().contains("Cette démo n’existe pas"), "{}", gone.text());
    assert_eq!(page(&daemon, "/demo/..%2f..", &[]).await.status, 404);
}

#[tokio::test]
async fn the_owners_page_is_told_what_happens() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let mut browser = Browser::new(&daemon);
    let page = browser.click("").await;
    let stream = async {
        // Ends with the instance.
        browser.get(&format!("{page}/status")).await
    };
    let end = async {
        eventually("somebody watches", async || {
            let metrics = daemon.get("/metrics").await;
            metrics
                .text()
                .lines()
                .any(|line| line.starts_with("demo_multiplexer_sse_clients") && line.ends_with(" 1"))
                .then_some(())
        })
        .await;
        daemon.delete(&format!("/api/v1/demo/{}", id_of(&page))).await
    };
    let (told, _) = tokio::join!(stream, end);
    assert_eq!(header(&told, "content-type"), "text/event-stream");
    assert!(told.text().contains("\"state\":\"assigned\"") && told.text().contains("\"state\":\"expired\""));
}

#[tokio::test]
async fn only_the_button_may_be_framed_and_only_by_whom_the_operator_lets() {
    let host = Host::new();
    let daemon = host.start(&[("EMBED_ORIGINS", "https://www.example.com")]).await;
    let framed = page(&daemon, "/embed/button?golden=other", &[]).await;
    assert!(
        header(&framed, "content-security-policy")
            .ends_with("frame-ancestors 'self' https://www.example.com")
    );
    assert!(!framed.headers.contains_key("x-frame-options") && framed.text().contains("value=\"other\""));
    for path in ["/", "/embed", "/demo/abcdefghijkl", "/embed/button?golden=magento"] {
        let answer = page(&daemon, path, &[]).await;
        assert!(header(&answer, "content-security-policy").ends_with("frame-ancestors 'none'"), "{path}");
        assert_eq!(header(&answer, "x-frame-options"), "DENY", "{path}");
    }
    let snippets = page(&daemon, "/embed?golden=other&module=ps_banner", &[]).await;
    let link = "&#60;a href=&#34;http://localhost:8080/?golden=other&#38;amp;module=ps_banner&#34;&#62;";
    assert!(snippets.text().contains(link), "{}", snippets.text());
}

#[tokio::test]
async fn a_shop_that_has_ended_offers_another_one_in_the_visitors_language() {
    let host = Host::new();
    let daemon = host.start(&[]).await;
    let id = daemon.acquire().await.id();
    daemon.delete(&format!("/api/v1/demo/{id}")).await;
    let shop = format!("{id}.localhost:8080");
    let ended = page(&daemon, "/", &[("host", &shop), FRENCH[0]]).await;
    assert_eq!(ended.status, 410);
    assert!(ended.text().contains("Cette démo est terminée"), "{}", ended.text());
    assert!(ended.text().contains("<a href=\"http://localhost:8080/\">Démarrer une nouvelle démo</a>"));
}
