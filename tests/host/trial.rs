//! A place whose daemons can be had to fail, and what is looked at afterwards.

use std::path::PathBuf;

use demo_multiplexer::failpoint::VARIABLE;

use super::daemon::Shop;
use super::{Daemon, Place, eventually};

/// Writes what the tests know a shop by into its database.
pub(crate) const OWN: &str =
    "UPDATE wp_options SET option_value = 'Mine' WHERE option_name = 'blogdescription'";

/// The place, and the file that says what fails in it.
pub(crate) struct Trial {
    pub(crate) place: Place,
    pub(crate) file: PathBuf,
}

impl Trial {
    pub(crate) async fn begin(name: &'static str) -> Option<Self> {
        let place = Place::beside_others(name).await?;
        let file = place.dir.join("fail");
        Some(Self { place, file })
    }

    pub(crate) async fn daemon(&self, pool: &str) -> Daemon<'_> {
        let file = self.file.to_str().unwrap();
        let settings = [("POOL_TARGET_SIZE", pool), (VARIABLE, file), ("MAX_INSTANCES", "40")];
        self.place.lasting_daemon(&settings).await
    }

    pub(crate) fn arm(&self, point: &str, action: &str) {
        std::fs::write(&self.file, format!("{point}={action}\n")).unwrap();
    }

    pub(crate) fn disarm(&self) {
        drop(std::fs::remove_file(&self.file));
    }

    pub(crate) fn times(&self, point: &str) -> usize {
        self.place.log().matches(&format!("fail point {point}: ")).count()
    }

    pub(crate) async fn was_passed(&self, point: &str, before: usize) {
        eventually(&format!("{point} is passed"), 20, async || {
            if self.times(point) > before { Ok(()) } else { Err("it is not".to_owned()) }
        })
        .await;
    }

    async fn audit(&self) -> Result<(), String> {
        let said = self.place.cli(&["doctor", "--audit", "--json"]).await;
        if said.code == Some(0) { Ok(()) } else { Err(said.out + &said.err) }
    }

    /// Nothing is here that nobody knows of, within five seconds.
    pub(crate) async fn is_clean(&self, after: &str) {
        eventually(&format!("nothing is nobody's after {after}"), 5, async || self.audit().await).await;
    }

    /// Names under which a frozen shop is kept.
    pub(crate) fn frozen(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.place.state_dir().join("asleep"));
        let entries = entries.into_iter().flatten().map(|entry| entry.unwrap().file_name());
        entries.map(|name| name.into_string().unwrap()).collect()
    }

    /// A shop with something of its visitor's in it.
    pub(crate) async fn visited(&self, daemon: &Daemon<'_>) -> Shop {
        let shop = daemon.acquire("restore").await;
        self.place.sql(shop.id(), OWN).await;
        shop
    }

    pub(crate) async fn finish(&self, daemon: Daemon<'_>) {
        daemon.kill().await;
        self.place.cli(&["reap", "--all"]).await.ok();
        self.place.nothing_is_left().unwrap();
    }
}

/// A visitor's shop is what it was, and ends when it was to.
pub(crate) async fn is_as_it_was(daemon: &Daemon<'_>, shop: &Shop, after: &str) {
    let page = shop.get("/").await;
    assert!(page.status == 200 && page.text().contains("Mine"), "{after}: {} {}", page.status, page.text());
    let shown = daemon.get(&format!("/api/v1/demo/{}", shop.id())).await.json();
    assert_eq!(shown["expires_at"], shop.answer["expires_at"], "{after}");
}
