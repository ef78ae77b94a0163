//! The attacker inside: `attacker.pl`, as root with what the container allows it,
//! and as a hostile page of the shop.
//!
//! The former runs as an operator's command does, which has the same
//! namespaces, capabilities and filter as the shop's own processes (`inside`
//! shows it); the latter is a child of a restored process.

use std::time::{Duration, Instant};

use super::host::Place;
use super::host::daemon::Shop;
use super::two_shops;

const SCRIPT: &str = include_str!("attacker.pl");

/// Runs the script, whose arguments are in the address.
const PAGE: &str = r#"<?php passthru("perl /tmp/attacker.pl " . $_GET["of"] . " 2>&1");"#;

/// Where the web server takes scripts from and its user may put them.
const PAGES: &str = "/usr/share/wordpress/wp-content";

/// Fewer were not all tried.
const ATTEMPTS: usize = 180;

/// Judges what the script printed.
#[track_caller]
fn all_were_refused(who: &str, said: &str) {
    let refused = said.lines().filter(|line| line.starts_with("refused ")).count();
    println!("{who}: {refused} attempts refused");
    let rest: Vec<&str> = said.lines().filter(|line| !line.starts_with("refused ")).collect();
    println!("{}", rest.join("\n"));
    assert!(
        rest.iter().all(|line| line.starts_with("also ") || *line == "done") && rest.last() == Some(&"done"),
        "as {who}: {}",
        rest.join("\n")
    );
    assert!(refused >= ATTEMPTS, "as {who}: {refused} attempts");
}

/// How long the front page takes, in the middle of some.
async fn page_time(shop: &Shop) -> Duration {
    let mut times = Vec::new();
    for _ in 0..9 {
        let begun = Instant::now();
        shop.answers().await;
        times.push(begun.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

/// What of the host nobody inside may change.
fn host_state() -> Vec<String> {
    let files = ["kernel/core_pattern", "kernel/hostname", "vm/overcommit_memory", "net/ipv4/ip_forward"];
    files.map(|file| std::fs::read_to_string(format!("/proc/sys/{file}")).unwrap()).into()
}

#[tokio::test]
async fn an_attacker_inside_is_refused_whatever_it_tries_and_nobody_notices() {
    let Some(place) = Place::beside_others("attacker").await else { return };
    let (daemon, shops) = two_shops(&place, place.address().port()).await;
    let (attacker, victim) = (&shops[0], &shops[1]);
    let (before, calm) = (host_state(), page_time(victim).await);

    // Processes and files that are there, and nobody's business.
    let procs = std::fs::read_to_string(place.cgroup().join(victim.id()).join("cgroup.procs")).unwrap();
    let mut of = vec![daemon.pid().to_string()];
    of.extend(procs.lines().take(2).map(str::to_owned));
    of.push("--".into());
    let state = place.state_dir();
    for path in [state.join("instances").join(victim.id()), state, "/usr/sbin/criu".into(), "/src".into()] {
        of.push(path.display().to_string());
    }

    let words: Vec<&str> = of.iter().map(String::as_str).collect();
    let command = [&["exec", attacker.id(), "--", "perl", "-e", SCRIPT][..], &words].concat();
    let (said, under_attack) = tokio::join!(place.cli(&command), page_time(victim));
    all_were_refused("root", &format!("{}{}", said.out, said.err));

    let put = format!(r#"printf %s "$1" >/tmp/attacker.pl; printf %s "$2" >{PAGES}/attack.php"#);
    place.inside(attacker.id(), &["sh", "-euc", &put, "sh", SCRIPT, PAGE]).await;
    let said = attacker.get(&format!("/wp-content/attack.php?of={}", of.join("+"))).await;
    all_were_refused("the web user", &said.text());

    println!(
        "the neighbour's page: {calm:?}, {under_attack:?} meanwhile, {:?} after",
        page_time(victim).await
    );
    assert_eq!(host_state(), before);
    daemon.get("/livez").await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_a_shop_writes_over_its_golden_s_files_is_its_own() {
    let Some(place) = Place::beside_others("lower").await else { return };
    let (daemon, shops) = two_shops(&place, place.address().port()).await;
    let files =
        ["/usr/share/wordpress/index.php", "/golden/login.php", "/usr/bin/perl", "/etc/golden/nginx.conf"];
    let digests = async |shop: &Shop| place.inside(shop.id(), &[&["sha256sum"], &files[..]].concat()).await;
    let before = digests(&shops[1]).await;
    assert_eq!(digests(&shops[0]).await, before);
    // As root, who may: changed, replaced, removed.
    let harm = "echo '<?php // mine' >/usr/share/wordpress/index.php; rm /golden/login.php /etc/golden/nginx.conf; \
                cp /bin/sh /usr/bin/perl; chmod -R 0 /usr/share/wordpress/wp-admin; rm -rf /usr/share/wordpress/wp-includes";
    place.inside(shops[0].id(), &["sh", "-euc", harm]).await;
    assert_eq!(digests(&shops[1]).await, before);
    shops[1].answers().await;
    let fresh = daemon.acquire("restore").await;
    assert_eq!(digests(&fresh).await, before, "the golden's own");
    fresh.answers().await;
    daemon.stop().await;
}
