//! Looking at what makes a clone its own, from inside and from outside.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

use serde_json::Value;

use super::Place;
use super::daemon::Shop;

/// What a shop would generate next, and what it derives from its keys.
#[derive(Debug)]
pub(crate) struct Next {
    pub(crate) next: BTreeMap<String, String>,
    pub(crate) keys: BTreeMap<String, String>,
}

impl Next {
    #[track_caller]
    pub(crate) fn of(said: &Value) -> Self {
        let part = |name: &str| {
            let values = said[name].as_object().unwrap_or_else(|| panic!("{said}"));
            values.iter().map(|(name, value)| (name.clone(), value.to_string())).collect()
        };
        Self { next: part("next"), keys: part("keys") }
    }
}

/// Puts the scripts into a shop and asks php-fpm to run them.
pub(crate) async fn look_ahead(place: &Place, shop: &Shop, root: &str, script: &str, database: &str) -> Next {
    let common = include_str!("next-common.php");
    let common = common.replace("getenv('DATABASE') ?: null", &format!("'{database}'"));
    put(place, shop, &format!("{root}/next-common.php"), &common).await;
    put(place, shop, &format!("{root}/next.php"), script).await;
    let page = shop.get("/next.php").await;
    assert_eq!(page.status, 200, "{}", place.cli(&["logs", shop.id()]).await.out);
    Next::of(&page.json())
}

/// No two have anything in common.
#[track_caller]
pub(crate) fn all_differ(seen: &[Next]) {
    let values = |of: fn(&Next) -> &BTreeMap<String, String>| {
        for name in of(&seen[0]).keys() {
            let all: Vec<&str> = seen.iter().map(|next| of(next)[name].as_str()).collect();
            let distinct: std::collections::BTreeSet<&str> = all.iter().copied().collect();
            assert!(distinct.len() == all.len() && !distinct.contains("\"\""), "{name}: {all:?}");
        }
        assert!(of(&seen[0]).len() > 5);
    };
    values(|next| &next.next);
    values(|next| &next.keys);
}

/// What makes a clone its own.
pub(crate) const INI: &str = "/etc/golden/instance.ini";

/// One value of such a file.
pub(crate) async fn ini(place: &Place, shop: &Shop, file: &str, name: &str) -> String {
    let script = format!("s/^{name} = \"\\(.*\\)\"$/\\1/p");
    let said = place.inside(shop.id(), &["sed", "-n", &script, file]).await;
    assert!(said.len() >= 16, "{name} of {file}: {said}");
    said
}

/// Writes a file in a shop, for its web server to read.
pub(crate) async fn put(place: &Place, shop: &Shop, path: &str, content: &str) {
    place.inside(shop.id(), &["sh", "-euc", "printf %s \"$1\" >\"$2\"", "sh", content, path]).await;
}

/// Path and query of the link that the acquire answered.
pub(crate) fn login_path(shop: &Shop) -> String {
    let link = shop.text("admin_login_url");
    link.strip_prefix(&format!("http://{}", shop.host())).unwrap_or_else(|| panic!("{link}")).to_owned()
}

/// Its token.
pub(crate) fn token_of(shop: &Shop) -> String {
    shop.text("admin_login_url").split_once("token=").unwrap().1.to_owned()
}

/// Processes of a shop: pid on the host, command line.
pub(crate) fn processes(place: &Place, shop: &Shop) -> Vec<(String, String)> {
    let pids = std::fs::read_to_string(place.cgroup().join(shop.id()).join("cgroup.procs")).unwrap();
    let command = |pid: &str| {
        let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
    };
    pids.lines().map(|pid| (pid.to_owned(), command(pid))).collect()
}

/// Processes of a shop that have a text in their memory.
pub(crate) fn holders(place: &Place, shop: &Shop, text: &str) -> Vec<String> {
    let all = processes(place, shop);
    assert!(all.len() >= 5, "{all:?}");
    all.into_iter()
        .filter(|(pid, _)| has_in_memory(pid, text.as_bytes()))
        .map(|(_, command)| command)
        .collect()
}

fn has_in_memory(pid: &str, needle: &[u8]) -> bool {
    // A worker may end meanwhile.
    let Ok(maps) = std::fs::read_to_string(format!("/proc/{pid}/maps")) else { return false };
    let Ok(memory) = File::open(format!("/proc/{pid}/mem")) else { return false };
    let mut read = 0;
    let found = maps.lines().any(|line| {
        let (range, rest) = line.split_once(' ').unwrap();
        if !rest.starts_with('r') || rest.ends_with("[vvar]") || rest.ends_with("[vsyscall]") {
            return false;
        }
        let (from, to) = range.split_once('-').unwrap();
        let [from, to] = [from, to].map(|end| u64::from_str_radix(end, 16).unwrap());
        let mut part = vec![0; usize::try_from(to - from).unwrap()];
        // What is not there (a device, a hole) cannot be read.
        if memory.read_exact_at(&mut part, from).is_err() {
            return false;
        }
        read += part.len();
        // SAFETY: both point to initialized memory of the length given.
        let at =
            unsafe { libc::memmem(part.as_ptr().cast(), part.len(), needle.as_ptr().cast(), needle.len()) };
        !at.is_null()
    });
    let ended = std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|command| command.is_empty());
    assert!(found || read > 1 << 20 || ended, "process {pid}: only {read} bytes could be read");
    found
}
