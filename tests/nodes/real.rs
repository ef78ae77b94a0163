//! Two daemons with shops restored by CRIU, and one visitor.

use std::path::Path;

use crate::host::{Place, eventually, golden};
use crate::server::{self, Server};

#[tokio::test]
async fn a_restored_shop_is_served_through_another_daemon_until_its_own_one_dies() {
    if !server::is_there("a_restored_shop_is_served_through_another_daemon_until_its_own_one_dies") {
        return;
    }
    let Some(one) = Place::beside_others("nodes-one").await else { return };
    let Some(two) = Place::beside_others("nodes-two").await else { return };
    let valkey = Server::start().await;
    let (url, dir) = (valkey.url(), tempfile::tempdir().unwrap());
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    crate::machine::private(&secret);
    let (at_one, at_two) = (one.address().to_string(), two.address().to_string());
    let first = one.daemon(&settings("one", &at_one, &url, &secret)).await;
    let of_two = [&settings("two", &at_two, &url, &secret)[..], &[("POOL_TARGET_SIZE", "1")]].concat();
    let second = two.daemon(&of_two).await;
    second.pool_has(1).await;

    let shop = first.acquire("pool").await;
    assert!(one.traces().cgroups.is_empty(), "it is the other one's");
    shop.answers().await;
    assert!(shop.browser().log_in(shop.text("admin_password")).await, "forms and cookies pass both ways");

    second.kill().await;
    eventually("its visitor is told", 60, async || {
        let page = shop.get("/").await;
        match page.status == 410 && page.text().contains("This shop is lost") {
            true => Ok(()),
            false => Err(format!("{}: {}", page.status, page.text())),
        }
    })
    .await;
    // What the dead daemon left behind: the next one takes down what was given up.
    let second = two.daemon(&of_two).await;
    eventually("the lost shop is gone", 60, async || {
        match two.traces().cgroups.iter().any(|name| name == shop.id()) {
            true => Err("it is there".to_owned()),
            false => Ok(()),
        }
    })
    .await;
    second.pool_has(1).await;
    let another = first.acquire("pool").await;
    assert!(another.get("/").await.text().contains(golden::TITLE));
    for daemon in [first, second] {
        daemon.stop().await;
    }
}

fn settings<'a>(
    node: &'a str,
    address: &'a str,
    store: &'a str,
    secret: &'a Path,
) -> Vec<(&'a str, &'a str)> {
    vec![
        ("NODE_NAME", node),
        ("NODE_ADDRESS", address),
        ("NODE_SECRET_FILE", secret.to_str().unwrap()),
        ("STORE_URL", store),
    ]
}
