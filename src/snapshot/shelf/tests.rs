//! Shops kept in a directory: found, replaced, bounded, pruned.

use super::*;
use crate::instance::State;
use crate::store::conformance::{golden, instance};

struct World {
    dir: tempfile::TempDir,
    shelf: Shelf,
}

fn world(limits: Limits) -> World {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("frozen")).unwrap();
    std::fs::create_dir_all(dir.path().join("upper/etc")).unwrap();
    std::fs::write(dir.path().join("frozen/core-1.img"), "memory").unwrap();
    std::fs::write(dir.path().join("upper/etc/own"), "mine").unwrap();
    World { shelf: Shelf::of(dir.path(), limits), dir }
}

const LIMITS: Limits =
    Limits { max: 2, max_bytes: 1 << 20, keep: SignedDuration::from_hours(1), files_max: 1 << 20 };

const THEN: Timestamp = Timestamp::UNIX_EPOCH;

fn key(text: &str) -> SecretString {
    text.to_owned().into()
}

fn shop() -> Instance {
    let mut instance = instance(&golden("shop"), State::Assigned, 0);
    instance.snapshot = Some("shop-20260101t000000z-0a1b".parse().unwrap());
    instance.access = Some(Access {
        url: "http://x/".into(),
        admin_url: "http://x/admin".into(),
        admin_email: "x@example.com".into(),
        admin_password: "secret".to_owned().into(),
        one_click: None,
    });
    instance
}

impl World {
    fn put(&self, instance: &Instance, with: &str) -> Result<Saved, ShelfError> {
        self.put_for(instance, with, &Wish::default())
    }

    fn put_for(&self, instance: &Instance, with: &str, wish: &Wish) -> Result<Saved, ShelfError> {
        let (images, upper) = (self.dir.path().join("frozen"), self.dir.path().join("upper"));
        self.shelf.put((&key(with), wish), instance, (&images, &upper), THEN)
    }

    fn names(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("saved")).unwrap().count()
    }

    fn content(&self, saved: &Saved, into: &str) -> Vec<u8> {
        let into = self.dir.path().join(into);
        std::fs::create_dir(&into).unwrap();
        self.shelf.unpack(saved, &into).unwrap();
        assert_eq!(std::fs::read(into.join("images/core-1.img")).unwrap(), b"memory");
        std::fs::read(into.join("upper/etc/own")).unwrap()
    }
}

#[test]
fn what_is_kept_is_found_by_its_key_and_comes_back_as_it_was() {
    let world = world(LIMITS);
    let saved = world.put(&shop(), "the key").unwrap();
    let record = world.dir.path().join("saved").join(saved.id.as_str()).join(RECORD);
    assert!(!std::fs::read_to_string(record).unwrap().contains("the key"), "only its hash is kept");
    for (id, with) in [(&saved.id, "another"), (&shop().id, "the key")] {
        let error = world.shelf.find(id, &key(with), THEN).unwrap_err();
        assert!(matches!(error, ShelfError::Unknown { .. }), "{error}");
    }
    let found = world.shelf.find(&saved.id, &key("the key"), THEN).unwrap();
    assert_eq!(world.content(&found, "into"), b"mine");
    let over = THEN + LIMITS.keep;
    assert!(world.shelf.find(&saved.id, &key("the key"), over).is_err(), "its time is over");
    assert_eq!(world.shelf.prune(THEN).unwrap(), 0);
    assert_eq!(world.shelf.prune(over).unwrap(), 1);
    assert!(world.shelf.list().unwrap().is_empty());
    world.shelf.remove(&saved.id).unwrap();
}

#[test]
fn an_instance_is_kept_once_and_the_later_one_takes_the_place_of_the_former() {
    let world = world(Limits { max: 1, ..LIMITS });
    let shop = shop();
    world.put(&shop, "first").unwrap();
    std::fs::write(world.dir.path().join("upper/etc/own"), "later").unwrap();
    world.put(&shop, "second").unwrap();
    assert_eq!(world.names(), 1);
    assert!(world.shelf.find(&shop.id, &key("first"), THEN).is_err(), "its key is of the past");
    let found = world.shelf.find(&shop.id, &key("second"), THEN).unwrap();
    assert_eq!(world.content(&found, "into"), b"later");
}

#[test]
fn what_nobody_waits_for_is_not_kept_and_the_former_one_stays_with_its_key() {
    let (world, shop, gone) = (world(LIMITS), shop(), Wish::default());
    assert!(gone.give_up());
    let error = world.put_for(&shop, "nobody's", &gone).unwrap_err();
    assert!(matches!(error, ShelfError::Unwanted), "{error}");
    assert_eq!(world.names(), 0, "nothing is left of it");
    let wish = Wish::default();
    world.put_for(&shop, "first", &wish).unwrap();
    assert!(!wish.give_up(), "it is kept by now");
    let error = world.put_for(&shop, "nobody's", &gone).unwrap_err();
    assert!(matches!(error, ShelfError::Unwanted) && world.names() == 1, "{error}");
    let found = world.shelf.find(&shop.id, &key("first"), THEN).unwrap();
    assert_eq!(world.content(&found, "into"), b"mine");
}

#[test]
fn one_changed_byte_is_found_before_anything_is_used() {
    let world = world(LIMITS);
    let saved = world.put(&shop(), "the key").unwrap();
    for archive in [MEMORY_ARCHIVE, FILES_ARCHIVE] {
        let path = world.shelf.path(&saved.id).join(archive);
        let whole = std::fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let into = world.dir.path().join(archive);
        std::fs::create_dir(&into).unwrap();
        let error = world.shelf.unpack(&saved, &into).unwrap_err();
        assert!(matches!(error, ShelfError::Archive(ArchiveError::Damaged { .. })), "{error}");
        std::fs::write(&path, whole).unwrap();
    }
}

#[test]
fn the_limits_hold_and_what_is_refused_leaves_nothing() {
    let world = world(LIMITS);
    world.put(&shop(), "one").unwrap();
    // A terabyte by its own account, and nothing on the disk.
    let sparse = world.dir.path().join("upper/sparse");
    File::create(&sparse).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(world.put(&shop(), "two"), Err(ShelfError::Files(_))));
    std::fs::remove_file(sparse).unwrap();
    let deep = world.dir.path().join("upper").join("d/".repeat(DEPTH_MAX + 1));
    std::fs::create_dir_all(deep).unwrap();
    assert!(matches!(world.put(&shop(), "two"), Err(ShelfError::Files(_))));
    std::fs::remove_dir_all(world.dir.path().join("upper/d")).unwrap();
    world.put(&shop(), "two").unwrap();
    assert!(matches!(world.put(&shop(), "three"), Err(ShelfError::Full { max: 2 })));
    assert_eq!(world.names(), 2);
    let small = Shelf { limits: Limits { max_bytes: 10, max: 9, ..LIMITS }, ..world.shelf.clone() };
    let world = World { shelf: small, ..world };
    assert!(matches!(world.put(&shop(), "three"), Err(ShelfError::NoRoom)));
    let mut booted = shop();
    booted.snapshot = None;
    let world =
        World { shelf: Shelf { limits: Limits { max: 9, ..LIMITS }, ..world.shelf.clone() }, ..world };
    assert!(matches!(world.put(&booted, "four"), Err(ShelfError::NotRestored)));
    assert_eq!(world.names(), 2);
}

#[test]
fn what_cannot_be_read_is_shown_and_takes_a_place_and_what_is_half_is_swept() {
    let world = world(Limits { max: 1, ..LIMITS });
    let saved = world.put(&shop(), "the key").unwrap();
    let record = world.shelf.path(&saved.id).join(RECORD);
    let text = std::fs::read_to_string(&record).unwrap();
    let other = shop().id;
    for (wrong, why) in [
        (text.replacen("\"version\": 1", "\"version\": 2", 1), "a later program"),
        (text.replacen(saved.id.as_str(), other.as_str(), 1), "another instance"),
        (text.replacen("shop-2026", "../shop-2026", 1), "snapshot"),
        (String::new(), "EOF"),
    ] {
        std::fs::write(&record, wrong).unwrap();
        let listed = world.shelf.list().unwrap();
        let told = listed[0].saved.as_ref().unwrap_err().to_string();
        assert!(listed[0].id == saved.id && told.contains(why), "{told}");
        assert!(matches!(world.shelf.has_room(&other), Err(ShelfError::Full { max: 1 })));
        assert_eq!(
            world.shelf.find(&saved.id, &key("the key"), THEN).unwrap_err().kind(),
            ErrorKind::Unavailable
        );
    }
    std::fs::create_dir(world.dir.path().join("saved/.new-half")).unwrap();
    world.shelf.sweep().unwrap();
    world.shelf.remove(&saved.id).unwrap();
    assert_eq!(world.names(), 0);
}

#[test]
fn what_a_kept_shop_stands_on_is_held_until_it_is_removed() {
    let world = world(LIMITS);
    let manifest = crate::snapshot::manifest::tests::sample();
    let prepared = world.dir.path().join("prepared").join(manifest.id.as_str());
    std::fs::create_dir_all(prepared.join("upper")).unwrap();
    std::fs::write(prepared.join("manifest.json"), manifest.to_bytes()).unwrap();
    let mut shop = shop();
    shop.snapshot = Some(manifest.id.clone());
    let lowers = || {
        std::collections::BTreeSet::from_iter(
            Shelf::lowers(world.dir.path()).unwrap().into_iter().flat_map(|(_, dirs)| dirs),
        )
    };
    assert!(lowers().is_empty());
    world.put(&shop, "the key").unwrap();
    assert_eq!(prepare::in_use(world.dir.path(), &lowers()), [manifest.id]);
    prepare::forget(world.dir.path(), &[], &lowers()).unwrap();
    assert!(prepared.try_exists().unwrap());
    world.shelf.remove(&shop.id).unwrap();
    prepare::forget(world.dir.path(), &[], &lowers()).unwrap();
    assert!(!prepared.try_exists().unwrap());
}
