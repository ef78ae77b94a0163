//! Snapshots in a real NATS: sent once, fetched whole, refused when they are
//! nobody's or damaged, served by all nodes when one promotes them.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;
#[path = "depot/nodes.rs"]
mod nodes;
#[path = "depot/published.rs"]
mod published;
#[allow(dead_code, reason = "the tests of NATS itself need more of it")]
#[path = "nats/server.rs"]
mod server;

use std::path::Path;

use async_nats::jetstream;
use demo_multiplexer::id::SnapshotId;
use demo_multiplexer::node::pass::NodeSecret;
use demo_multiplexer::snapshot::archive;
use demo_multiplexer::snapshot::catalog::{Catalog, CatalogError};
use demo_multiplexer::snapshot::depot::{Depot, DepotError, Moved, PIECE};
use demo_multiplexer::snapshot::manifest::Manifest;
use demo_multiplexer::snapshot::signature::Keys;
use server::Server;

const SAMPLE: &str = include_str!("../snapshots/samples/v1.json");

/// A host: a catalogue and a key.
struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn state(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }

    /// Its catalogue, which trusts those hosts as well.
    fn catalog(&self, trusted: &[&Self]) -> Catalog {
        let keys: Vec<_> = trusted.iter().map(|host| host.state().join("keys/snapshot.pub")).collect();
        let keys = Keys::load(&self.state(), &keys).unwrap();
        Catalog::open(&self.dir.path().join("snapshots"), keys).unwrap()
    }

    /// Takes a snapshot of that content.
    fn take(&self, id: &str, content: &[u8]) -> SnapshotId {
        self.take_of("shop", id, content)
    }

    /// The same, of that golden.
    fn take_of(&self, golden: &str, id: &str, content: &[u8]) -> SnapshotId {
        let id: SnapshotId = id.parse().unwrap();
        let source = self.dir.path().join("source");
        std::fs::create_dir_all(&source).unwrap();
        std::fs::write(source.join("pages"), content).unwrap();
        let writer = self.catalog(&[]).begin(id.clone()).unwrap();
        let mut manifest = Manifest::parse(SAMPLE.as_bytes()).unwrap();
        manifest.id = id.clone();
        manifest.recipe.name = golden.parse().unwrap();
        for (name, archive) in &mut manifest.archives {
            *archive = archive::pack(&[("", &source)], &writer.dir().join(name)).unwrap();
        }
        writer.finish(&manifest).unwrap();
        id
    }
}

/// What does not compress: three pieces of it.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u8::try_from(state >> 56).unwrap()
    };
    std::iter::repeat_with(next).take(usize::try_from(2 * PIECE + PIECE / 2).unwrap()).collect()
}

async fn depot(server: &Server) -> (Depot, jetstream::Context) {
    let (depot, jetstream) = depot_of_nobody(server).await;
    (depot.known_by(NodeSecret::new("the nodes' own".to_owned().into())), jetstream)
}

/// As above, without the secret that the nodes know.
async fn depot_of_nobody(server: &Server) -> (Depot, jetstream::Context) {
    let client = async_nats::connect(server.url()).await.unwrap();
    let jetstream = jetstream::new(client);
    (Depot::open(&jetstream, "test", 200 << 20).await.unwrap(), jetstream)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_sent_once_and_fetched_whole() {
    if !server::is_there("a_snapshot_is_sent_once_and_fetched_whole") {
        return;
    }
    let (server, here, there) = (Server::start(), Host::new(), Host::new());
    let (depot, _) = depot(&server).await;
    let id = here.take("prestashop-20260101t000000z-0a1b", &noise(1));
    let sent = depot.send(&here.catalog(&[]), &id).await.unwrap();
    assert!(sent.bytes > 2 * PIECE, "{sent:?}");
    let again = depot.send(&here.catalog(&[]), &id).await.unwrap();
    assert_eq!((again.bytes, again.spared > 4 * PIECE), (0, true), "what is there is not sent again");
    assert!(sent.spared > 2 * PIECE, "two archives of one content are one: {sent:?}");

    let catalog = there.catalog(&[&here]);
    assert_eq!(depot.list().await.unwrap(), std::slice::from_ref(&id));
    let fetched = depot.fetch(&catalog, &id).await.unwrap();
    assert!(fetched.bytes > 4 * PIECE, "{fetched:?}");
    assert_eq!(catalog.verify(&id).unwrap(), here.catalog(&[]).manifest(&id).unwrap());

    depot.remove(std::slice::from_ref(&id)).await.unwrap();
    assert!(depot.list().await.unwrap().is_empty());
    let gone = depot.fetch(&Host::new().catalog(&[&here]), &id).await.unwrap_err();
    assert!(matches!(gone, DepotError::Unknown { .. }), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_transfer_goes_on_where_it_stopped() {
    if !server::is_there("an_interrupted_transfer_goes_on_where_it_stopped") {
        return;
    }
    let (server, here, there) = (Server::start(), Host::new(), Host::new());
    let (depot, _) = depot(&server).await;
    let id = here.take("prestashop-20260101t000000z-0a1b", &noise(2));
    let catalog = there.catalog(&[&here]);
    let sent = depot.send(&here.catalog(&[]), &id).await.unwrap();
    let arriving = catalog.arriving(&id).unwrap();
    cut(&here.catalog(&[]).path(&id).join("memory.tar.zst"), &arriving.join("memory.tar.zst"), PIECE + 17);
    let fetched = depot.fetch(&catalog, &id).await.unwrap();
    let all = Moved { bytes: fetched.bytes + fetched.spared, spared: fetched.spared };
    assert_eq!(fetched.spared, PIECE, "the piece that was whole: {fetched:?} {all:?} {sent:?}");
    catalog.verify(&id).unwrap();
}

/// The first bytes of a file.
fn cut(from: &Path, to: &Path, bytes: u64) {
    let content = std::fs::read(from).unwrap();
    std::fs::write(to, &content[..usize::try_from(bytes).unwrap()]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_trusted_has_signed_and_what_is_damaged_does_not_appear() {
    if !server::is_there("what_nobody_trusted_has_signed_and_what_is_damaged_does_not_appear") {
        return;
    }
    let (server, here, there) = (Server::start(), Host::new(), Host::new());
    let (depot, jetstream) = depot(&server).await;
    let id = here.take("prestashop-20260101t000000z-0a1b", &noise(3));
    depot.send(&here.catalog(&[]), &id).await.unwrap();
    let stranger = depot.fetch(&there.catalog(&[]), &id).await.unwrap_err();
    assert!(matches!(stranger, DepotError::Catalog(CatalogError::Signature { .. })), "{stranger}");
    assert!(
        !there.dir.path().join("snapshots").join(format!(".arriving-{id}")).is_dir(),
        "nothing was fetched"
    );

    let first = std::fs::read(here.catalog(&[]).path(&id).join("memory.tar.zst")).unwrap();
    let piece = blake3::hash(&first[..usize::try_from(PIECE).unwrap()]).to_hex().to_string();
    let bucket = jetstream.get_object_store("test-snapshots").await.unwrap();
    bucket.put(format!("piece/{piece}").as_str(), &mut &b"something else"[..]).await.unwrap();
    let catalog = there.catalog(&[&here]);
    let damaged = depot.fetch(&catalog, &id).await.unwrap_err();
    assert!(matches!(damaged, DepotError::Damaged { .. }), "{damaged}");
    assert!(catalog.list().unwrap().is_empty());
}
