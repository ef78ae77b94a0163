//! The one golden of all end-to-end tests: WordPress, frozen once. What is true
//! of PrestaShop alone is tried on one of its own, where its source is given.
//!
//! Its recipe is the project's own with one more command before the checkpoint:
//! it writes rows that every clone must have, and keeps the golden's own
//! password and secret, so that a test can show that no clone takes them.

use std::path::{Path, PathBuf};

use tokio::sync::OnceCell;

use super::PROGRAM;
use super::mariadb::{Kind, MariaDb};
use super::place::{Place, lock_file, tests_dir};

/// The golden's name.
pub(crate) const NAME: &str = "wordpress";

/// What its front page shows.
pub(crate) const TITLE: &str = "Demo shop";

/// How many rows are written just before the checkpoint.
pub(crate) const ROWS: usize = 1000;

/// What a module may have made in a database, for copies to show that they are
/// whole: a key to another table, a generated column, a counter, a row with
/// number zero, another character set, a view on a view, a trigger, a function.
const OBJECTS: &[&str] = &[
    "SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO'",
    "CREATE TABLE object_parent (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(20) CHARACTER SET latin1, \
     len INT AS (LENGTH(name)) STORED) AUTO_INCREMENT = 500",
    "INSERT INTO object_parent (id, name) VALUES (0, _latin1 0x5A6FEB), (7, 'seven')",
    "CREATE TABLE object_child (parent INT, FOREIGN KEY (parent) REFERENCES object_parent (id))",
    "INSERT INTO object_child VALUES (7)",
    "CREATE FUNCTION object_seven() RETURNS INT DETERMINISTIC RETURN 7",
    "CREATE VIEW object_z AS SELECT id, name FROM object_parent WHERE id = object_seven()",
    "CREATE VIEW object_a AS SELECT * FROM object_z",
    "CREATE TRIGGER object_trigger BEFORE INSERT ON object_parent FOR EACH ROW SET NEW.name = UPPER(NEW.name)",
];

/// Where a clone has the password that the golden was installed with.
pub(crate) const PASSWORD_FILE: &str = "/golden/password-of-the-golden";

/// Where a clone has the identity that the golden was installed with.
pub(crate) const IDENTITY_FILE: &str = "/golden/identity-of-the-golden";

/// Where a clone has what the golden's monotonic clock showed, in nanoseconds.
pub(crate) const CLOCK_FILE: &str = "/golden/clock-of-the-golden";

fn shared(name: &str) -> PathBuf {
    tests_dir().join("golden").join(name)
}

/// The recipes' folder.
pub(crate) fn recipes() -> PathBuf {
    shared("podman")
}

/// Where the snapshot lies.
pub(crate) fn snapshots() -> PathBuf {
    shared("snapshots")
}

/// The key that says that the snapshot is ours.
pub(crate) fn public_key() -> PathBuf {
    shared("state/keys/snapshot.pub")
}

/// Where the snapshot lies whose clones share a database server.
pub(crate) fn shared_snapshots() -> PathBuf {
    shared("snapshots-shared")
}

/// The one snapshot.
pub(crate) fn snapshot() -> (String, PathBuf) {
    let mut found: Vec<PathBuf> = std::fs::read_dir(snapshots())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("manifest.json").is_file())
        .collect();
    found.sort();
    let newest = found.pop().expect("ensure() made one");
    (newest.file_name().unwrap().to_string_lossy().into_owned(), newest)
}

/// Held by whoever runs the golden itself: its container has one name.
pub(crate) async fn only_one_boots() -> std::fs::File {
    let locked = tokio::task::spawn_blocking(|| {
        let file = lock_file(&shared("lock"));
        file.lock().unwrap();
        file
    });
    locked.await.unwrap()
}

/// Builds, freezes and prepares the golden, once for all test binaries.
pub(crate) async fn ensure() {
    static DONE: OnceCell<()> = OnceCell::const_new();
    DONE.get_or_init(make).await;
}

async fn make() {
    let _lock = only_one_boots().await;
    let script = format!(
        "{}; /golden/database sql \\\"\
         CREATE TABLE before_the_checkpoint (id INT PRIMARY KEY, note VARCHAR(200)); \
         INSERT INTO before_the_checkpoint SELECT seq, REPEAT('x', 200) FROM seq_1_to_{ROWS}; {}\\\"",
        keep(),
        OBJECTS.join("; ")
    );
    write_recipe(&recipes(), NAME, &script);
    create(NAME, &[("SNAPSHOT_DIR", snapshots().display().to_string())]).await;
}

/// Settings of a daemon that serves PrestaShop, frozen once for all test
/// binaries; none without its source.
pub(crate) async fn prestashop() -> Option<[(&'static str, String); 3]> {
    static DONE: OnceCell<()> = OnceCell::const_new();
    let name = "prestashop";
    // Apart, so that the recipes of other tests do not depend on it.
    let folder = shared("podman-prestashop");
    let settings = [
        ("GOLDEN", name.to_owned()),
        ("SNAPSHOT_DIR", shared("snapshots-prestashop").display().to_string()),
        ("RECIPE_DIR", folder.display().to_string()),
    ];
    let Some(source) = std::env::var("PRESTASHOP_SRC").ok().filter(|source| !source.is_empty()) else {
        println!("skipped: PRESTASHOP_SRC is not set");
        return None;
    };
    DONE.get_or_init(async || {
        let _lock = only_one_boots().await;
        write_recipe(&folder, name, &keep());
        create(name, &[&settings[..], &[("PRESTASHOP_SRC", source)]].concat()).await;
    })
    .await;
    Some(settings)
}

/// Keeps what no clone may take.
fn keep() -> String {
    format!(
        "cp /golden/admin-password {PASSWORD_FILE}; cp /etc/golden/instance.ini {IDENTITY_FILE}; \
         php -r 'echo hrtime(true);' >{CLOCK_FILE}"
    )
}

/// Freezes the golden for a shared database server as well, once for all test
/// binaries; the image is there already.
pub(crate) async fn ensure_shared() {
    static DONE: OnceCell<()> = OnceCell::const_new();
    DONE.get_or_init(async || {
        let _lock = only_one_boots().await;
        let server = MariaDb::start("golden", Kind::Host).await;
        create(NAME, &server.settings()).await;
        let (databases, users) = server.census().await;
        assert_eq!((databases, users), (Vec::new(), Vec::new()), "left on the server by snapshot create");
    })
    .await;
}

async fn create(name: &str, settings: &[(&str, String)]) {
    std::fs::create_dir_all(shared("state")).unwrap();
    let output = tokio::process::Command::new(PROGRAM)
        .args(["snapshot", "create", name, "--if-missing"])
        .current_dir(shared("state"))
        .env("RECIPE_DIR", recipes())
        .env("STATE_DIR", shared("state"))
        .envs(settings.iter().cloned())
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "no golden to test with: {said}");
}

/// Lets a state directory use what the first daemon of all has prepared.
pub(crate) fn lend_prepared(state_dir: &Path) {
    for kind in ["prepared", "images"] {
        std::fs::create_dir_all(shared("state").join(kind)).unwrap();
        std::os::unix::fs::symlink(shared("state").join(kind), state_dir.join(kind)).unwrap();
    }
}

/// The folder of a golden that is up in a moment, for what is true of each one's making:
/// nginx alone, on the image of the other one, started by that entry point.
pub(crate) async fn nginx_alone(place: &Place, name: &str, entry_point: &[&str]) -> PathBuf {
    let image = place.cli(&["golden", "build", "--json"]).await.json();
    let folder = place.dir.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let image = image["name"].as_str().unwrap();
    std::fs::write(folder.join("Containerfile"), format!("FROM {image}\nENTRYPOINT {entry_point:?}\n"))
        .unwrap();
    let recipe = r#"
        title = "nginx alone"
        version = "1"
        [run]
        port = 80
        memory_max = "64M"
        pids_max = 16
        cpu_max = 1.0
        capabilities = ["CHOWN", "DAC_OVERRIDE", "NET_BIND_SERVICE", "SETGID", "SETUID"]
        [ready]
        path = "/"
        contains = "nginx"
        timeout_seconds = 20
        [admin]
        path = "/"
        login_path = "/"
    "#;
    std::fs::write(folder.join("golden.toml"), format!("name = \"{name}\"\n{recipe}")).unwrap();
    folder
}

/// One that can be frozen: its folder, and the name of its container, which is no other
/// place's.
pub(crate) async fn small(place: &Place) -> (String, String) {
    let name = format!("small-{}", place.lane());
    let start = "exec tini -- nginx -g 'daemon off; error_log stderr;' </dev/null >/dev/null 2>&1";
    let folder = nginx_alone(place, &name, &["sh", "-c", start]).await;
    (folder.display().to_string(), format!("dm-golden-{name}"))
}

/// Held while a daemon starts on what is lent: the first one prepares it.
pub(crate) async fn only_one_prepares() -> std::fs::File {
    let locked = tokio::task::spawn_blocking(|| {
        let file = lock_file(&shared("prepare-lock"));
        file.lock().unwrap();
        file
    });
    locked.await.unwrap()
}

/// Copies one of the project's recipes to a folder and adds a command to it.
fn write_recipe(to: &Path, name: &str, script: &str) {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("podman");
    for folder in ["common", name] {
        copy_dir(&project.join(folder), &to.join(folder));
    }
    let path = to.join(name).join("golden.toml");
    let recipe = std::fs::read_to_string(&path).unwrap();
    let step = format!("[[quiesce]]\nexec = [\"sh\", \"-euc\", \"{script}\"]\n\n[[quiesce]]");
    let changed = recipe.replacen("[[quiesce]]", &step, 1);
    assert_ne!(recipe, changed, "the recipe has a quiesce step");
    std::fs::write(&path, changed).unwrap();
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
