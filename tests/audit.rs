//! `doctor --audit` on a real host: it names what is nobody's, each thing by its
//! kind, takes down exactly that, and lives beside daemons.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod host;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use host::daemon::Shop;
use host::place::{Traces, run};
use host::{Daemon, Place, eventually, same};
use serde_json::Value;

/// Names that instances could have, of this place alone.
struct Names {
    bare: String,
    with_root: String,
    container: String,
    image: String,
}

impl Names {
    fn of(place: &Place) -> Self {
        let letter = |n: u32| char::from(b'a' + u8::try_from(n).unwrap());
        let [high, low] = [place.lane() / 8, place.lane() % 8].map(letter);
        let name = |kind: &str| format!("orphan{kind}{high}{low}");
        Self { bare: name("bare"), with_root: name("root"), container: name("cont"), image: name("image") }
    }
}

impl Names {
    /// Of an image that is too old to be in the making.
    fn image_name(&self) -> String {
        format!("localhost/demo-multiplexer-template-{}:20200101t000000z", self.image)
    }
}

/// What was planted; ended when it is dropped, should nobody have found it.
struct Planted {
    names: Names,
    children: Vec<Child>,
    address: String,
    mount: std::path::PathBuf,
}

impl Drop for Planted {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
        drop(Command::new("umount").args(["--quiet", "--lazy"]).arg(&self.mount).output());
        drop(
            Command::new("podman").args(["rm", "--force", &format!("dm-{}", self.names.container)]).output(),
        );
        drop(Command::new("podman").args(["image", "rm", &self.names.image_name()]).output());
    }
}

fn shell(script: &str) -> Child {
    Command::new("sh").args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

/// A process that has an overlay in an instance's directory for its root.
fn with_root(dir: &Path) -> Child {
    use std::os::unix::process::CommandExt as _;

    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    // What is below /usr has all that a program needs.
    let options = format!("lowerdir=/usr,upperdir={0}/upper,workdir={0}/work", dir.display());
    let (root, none) = (dir.join("root"), None::<&str>);
    let enter = move || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
        nix::unistd::chdir(&root)?;
        std::fs::create_dir("old")?;
        nix::unistd::pivot_root(".", "old")?;
        Ok(nix::unistd::chdir("/")?)
    };
    let mut sleep = Command::new("/bin/sleep");
    sleep.arg("1000").stdin(Stdio::null()).stdout(Stdio::null());
    // SAFETY: the child of a program that does nothing else with these files; what it allocates it never frees.
    unsafe { sleep.pre_exec(enter) };
    sleep.spawn().unwrap()
}

/// One of each kind that a host has.
async fn plant(place: &Place) -> Planted {
    let names = Names::of(place);
    let instances = place.state_dir().join("instances");
    let cgroup = place.cgroup().join(&names.bare);
    std::fs::create_dir(&cgroup).unwrap();
    let address = place.network(24).replace(".0/24", ".200");
    let mount = instances.join(&names.bare).join("root");
    let children = vec![shell("exec sleep 1000")];
    // From here on whatever is planted goes with it.
    let mut planted = Planted { names, children, address, mount };
    let Planted { names, children, address, mount } = &mut planted;
    std::fs::write(cgroup.join("cgroup.procs"), children[0].id().to_string()).unwrap();

    std::fs::create_dir_all(&*mount).unwrap();
    run("mount", &["-t", "tmpfs", "orphan", mount.to_str().unwrap()]).await.ok();

    children.push(shell("exec unshare --net sleep 1000"));
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let namespace = format!("/proc/{}/ns/net", children[1].id());
    eventually("it has a namespace of its own", 10, async || match std::fs::read_link(&namespace) {
        Ok(of) if of != own => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let (veth, peer, pid) = (format!("dm-{}", names.bare), format!("dmp-{}", place.lane()), children[1].id());
    for line in [
        format!("link add {veth} master {} type veth peer name {peer}", place.bridge()),
        format!("link set {peer} netns {pid} name eth0"),
    ] {
        run("ip", &line.split(' ').collect::<Vec<_>>()).await.ok();
    }

    // Outside any cgroup, but with an instance's files for its root.
    let dir = instances.join(&names.with_root);
    for name in ["upper", "work", "root"] {
        std::fs::create_dir_all(dir.join(name)).unwrap();
    }
    children.push(with_root(&dir));
    let table = format!("/proc/{}/mountinfo", children[2].id());
    eventually("it has a root of its own", 10, async || {
        let table = std::fs::read_to_string(&table).unwrap_or_default();
        let is_root = |line: &str| line.split(' ').nth(4) == Some("/") && line.contains(&names.with_root);
        if table.lines().any(is_root) { Ok(()) } else { Err(table) }
    })
    .await;

    let table = format!("demo-multiplexer-{}", place.bridge());
    run("nft", &["add", "element", "inet", &table, "outward", &format!("{{ {address} }}")]).await.ok();
    let way = format!("{{ {address} . 192.0.2.1 . 443 }}");
    run("nft", &["add", "element", "inet", &table, "ways", &way]).await.ok();

    let image = run("podman", &["images", "--quiet"]).await.ok();
    let label = format!("--label=demo-multiplexer.instances={}", instances.display());
    let name = format!("--name=dm-{}", names.container);
    // The oldest one: another test's may be about to go.
    run("podman", &["create", &label, &name, image.lines().last().unwrap(), "true"]).await.ok();

    let (empty, archive) = (place.dir.join("empty"), place.dir.join("empty.tar"));
    std::fs::create_dir_all(&empty).unwrap();
    let (empty, archive) = (empty.to_str().unwrap(), archive.to_str().unwrap());
    run("tar", &["--create", "--file", archive, "--directory", empty, "."]).await.ok();
    let label = format!("--change=LABEL demo-multiplexer.templates={}", place.state_dir().display());
    for name in [names.image_name(), names.image_name().replace(":2020", ":2999")] {
        run("podman", &["import", &label, archive, &name]).await.ok();
    }
    planted
}

/// Kind and owner of everything in a list of the answer.
fn things(answer: &Value, field: &str) -> BTreeSet<(String, String)> {
    let text = |one: &Value, field: &str| one[field].as_str().unwrap().to_owned();
    answer[field].as_array().unwrap().iter().map(|one| (text(one, "kind"), text(one, "owner"))).collect()
}

fn expected(planted: &Planted) -> BTreeSet<(String, String)> {
    let Names { bare, with_root, container, image } = &planted.names;
    [
        ("process", bare),
        ("mount", bare),
        ("netns", bare),
        ("veth", bare),
        ("cgroup", bare),
        ("directory", bare),
        ("process", with_root),
        ("directory", with_root),
        ("container", container),
        ("nft", &planted.address),
        ("image", image),
    ]
    .map(|(kind, owner)| (kind.to_owned(), owner.to_owned()))
    .into()
}

async fn audit(place: &Place, args: &[&str]) -> (Option<i32>, Value) {
    let said = place.cli(&[&["doctor", "--audit", "--json"], args].concat()).await;
    let answer =
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {}{}", said.out, said.err));
    (said.code, answer)
}

/// Lists, mends, and finds nothing more.
async fn finds_and_takes_down(place: &Place, planted: &mut Planted, expected: BTreeSet<(String, String)>) {
    let (code, answer) = audit(place, &[]).await;
    assert_eq!(things(&answer, "found"), expected, "{answer:#}");
    assert_eq!(
        (code, &answer["left"], answer["not_searched"].as_array().unwrap().len()),
        (Some(1), &Value::Null, 0)
    );
    let (code, answer) = audit(place, &["--fix"]).await;
    assert_eq!(things(&answer, "found"), expected, "it only looked before: {answer:#}");
    assert_eq!((things(&answer, "left"), code), (BTreeSet::new(), Some(0)), "{answer:#}");
    let (code, answer) = audit(place, &[]).await;
    assert_eq!((things(&answer, "found"), code), (BTreeSet::new(), Some(0)), "{answer:#}");
    for child in &mut planted.children {
        assert!(child.try_wait().unwrap().is_some(), "{} runs", child.id());
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(planted.mount.to_str().unwrap()));
    let table = format!("demo-multiplexer-{}", place.bridge());
    let sets = run("nft", &["list", "table", "inet", &table]).await.ok();
    assert!(!sets.contains(&format!("{} .", planted.address)) && !sets.contains("192.0.2.1"), "{sets}");
    let containers = run("podman", &["ps", "--all", "--format", "{{.Names}}"]).await.ok();
    assert!(!containers.contains(&planted.names.container), "{containers}");
    let images = run("podman", &["images", "--format", "{{.Repository}}:{{.Tag}}"]).await.ok();
    assert!(!images.contains(&planted.names.image_name()), "{images}");
    let young = planted.names.image_name().replace(":2020", ":2999");
    assert!(images.contains(&young), "a snapshot of it may be being taken");
    run("podman", &["image", "rm", &young]).await.ok();
}

/// A shop that a visitor has, with something of the visitor's in it.
async fn visited(place: &Place, daemon: &Daemon<'_>) -> Shop {
    let shop = daemon.acquire_any().await;
    place
        .sql(shop.id(), "UPDATE wp_options SET option_value = 'Mine' WHERE option_name = 'blogdescription'")
        .await;
    shop
}

async fn is_untouched(shop: &Shop) {
    let page = shop.get("/").await;
    assert_eq!((page.status, page.text().contains("Mine")), (200, true), "{}", page.text());
}

#[tokio::test]
async fn beside_a_daemon_an_audit_names_each_orphan_and_takes_down_exactly_those() {
    let Some(place) = Place::beside_others("audit").await else { return };
    let settings = [("POOL_TARGET_SIZE", "1"), ("SLOTS_AHEAD", "3"), ("COLD_START", "allowed")];
    let daemon = place.daemon(&settings).await;
    let shop = visited(&place, &daemon).await;
    daemon.pool_has(1).await;
    let (before, (code, answer)) = (daemon.ids().await, audit(&place, &[]).await);
    assert_eq!((things(&answer, "found"), code), (BTreeSet::new(), Some(0)), "{answer:#}");
    let mut planted = plant(&place).await;
    let expected = expected(&planted);
    finds_and_takes_down(&place, &mut planted, expected).await;
    assert_eq!(daemon.ids().await, before);
    is_untouched(&shop).await;
    daemon.acquire("pool").await.answers().await;
    daemon.stop().await;
}

#[tokio::test]
async fn without_a_daemon_it_finds_records_of_the_dead_too_and_leaves_the_living_alone() {
    let Some(place) = Place::beside_others("audit-alone").await else { return };
    let daemon = place.lasting_daemon(&[]).await;
    let (shop, dead) = (visited(&place, &daemon).await, daemon.acquire_any().await);
    daemon.kill().await;
    let cgroup = place.cgroup().join(dead.id());
    std::fs::write(cgroup.join("cgroup.kill"), "1").unwrap();
    eventually("its processes are gone", 10, async || {
        same(&std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap(), &String::new())
    })
    .await;
    let mut planted = plant(&place).await;
    let mut expected = expected(&planted);
    expected.insert(("record".into(), dead.id().into()));
    finds_and_takes_down(&place, &mut planted, expected).await;
    same(&place.traces(), &Traces::all(&[shop.id().to_owned()])).unwrap();

    let daemon = place.daemon(&[]).await;
    assert_eq!(daemon.ids().await, [shop.id()]);
    is_untouched(&shop).await;
    daemon.stop().await;
}

#[tokio::test]
async fn two_daemons_of_a_host_leave_each_other_alone_and_share_no_bridge_and_no_cgroup() {
    let Some(one) = Place::beside_others("audit-one").await else { return };
    let Some(other) = Place::beside_others("audit-other").await else { return };
    let (first, second) = (one.daemon(&[]).await, other.daemon(&[]).await);
    let (shop, others) = (visited(&one, &first).await, visited(&other, &second).await);
    for place in [&one, &other] {
        let (code, answer) = audit(place, &["--fix"]).await;
        assert_eq!((things(&answer, "found"), code), (BTreeSet::new(), Some(0)), "{answer:#}");
    }
    is_untouched(&shop).await;
    is_untouched(&others).await;

    // A third one that was set up carelessly.
    let state = one.dir.join("another-state");
    let refused = refused_on(&one, &state, &[]).await;
    let parent = one.cgroup().file_name().unwrap().to_str().unwrap().to_owned();
    assert!(
        refused.contains(&format!("CGROUP_PARENT={parent} belongs to the daemon on STATE_DIR")),
        "{refused}"
    );
    let refused = refused_on(&one, &state, &[("CGROUP_PARENT", "demo-multiplexer-test-another")]).await;
    assert!(refused.contains(&format!("BRIDGE_NAME={} belongs to", one.bridge())), "{refused}");
    std::fs::remove_dir("/sys/fs/cgroup/demo-multiplexer-test-another").unwrap();
    is_untouched(&shop).await;
    first.stop().await;
    second.stop().await;
}

async fn refused_on(place: &Place, state: &Path, changes: &[(&str, &str)]) -> String {
    let mut settings = vec![("STATE_DIR", state.to_str().unwrap()), ("LISTEN", "127.0.0.1:0")];
    settings.extend_from_slice(changes);
    place.cli_with(&["serve"], &settings).await.refused()
}
