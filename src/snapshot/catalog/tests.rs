//! The catalogue on a real directory.

use super::*;
use crate::snapshot::manifest::tests::sample;

fn catalog() -> (tempfile::TempDir, Catalog) {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keys::load(dir.path(), &[]).unwrap();
    let catalog = Catalog::open(&dir.path().join("snapshots"), keys).unwrap();
    (dir, catalog)
}

fn write(catalog: &Catalog, time: &str) -> Manifest {
    let mut manifest = sample();
    manifest.created_at = time.parse().unwrap();
    manifest.id = SnapshotId::new(&manifest.recipe.name, manifest.created_at);
    let writer = catalog.begin(manifest.id.clone()).unwrap();
    let archive =
        archive::pack(&[("", writer.dir().parent().unwrap())], &writer.dir().join("memory.tar.zst"));
    manifest.archives = [("memory.tar.zst".to_owned(), archive.unwrap())].into();
    writer.finish(&manifest).unwrap();
    manifest
}

/// What a later process of the same host sees.
fn again((dir, catalog): &(tempfile::TempDir, Catalog)) -> Catalog {
    Catalog::open(&catalog.dir, Keys::load(dir.path(), &[]).unwrap()).unwrap()
}

#[test]
fn a_finished_snapshot_is_listed_and_verifies() {
    let host = catalog();
    let manifest = write(&host.1, "2026-01-01T00:00:00Z");
    let catalog = again(&host);
    assert_eq!(catalog.list().unwrap().len(), 1);
    assert_eq!(catalog.verify(&manifest.id).unwrap(), manifest);
    assert_eq!(catalog.newest(&manifest.recipe.name, DatabaseMode::Bundled).unwrap(), Some(manifest));
}

#[test]
fn an_unfinished_snapshot_is_never_seen_and_leaves_nothing() {
    let (_dir, catalog) = catalog();
    let id = SnapshotId::new(&sample().recipe.name, jiff::Timestamp::now());
    let writer = catalog.begin(id.clone()).unwrap();
    std::fs::write(writer.dir().join("memory.tar.zst"), "half").unwrap();
    assert!(catalog.begin(id).is_err(), "one at a time");
    let dir = writer.dir().to_owned();
    std::mem::forget(writer);
    assert!(catalog.list().unwrap().is_empty());
    // As after kill -9: the lock is gone with its holder, the directory is not.
    assert!(dir.is_dir());
}

#[test]
fn a_damaged_archive_and_a_foreign_version_are_told_apart() {
    let host = catalog();
    let manifest = write(&host.1, "2026-01-01T00:00:00Z");
    let catalog = again(&host);
    let path = catalog.path(&manifest.id);
    let archive = path.join("memory.tar.zst");
    let mut bytes = std::fs::read(&archive).unwrap();
    bytes[7] ^= 1;
    std::fs::write(&archive, bytes).unwrap();
    let error = catalog.verify(&manifest.id).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let text = std::fs::read_to_string(path.join(MANIFEST)).unwrap();
    std::fs::write(path.join(MANIFEST), text.replace("\"format_version\": 1", "\"format_version\": 99"))
        .unwrap();
    let error = catalog.verify(&manifest.id).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
    assert_eq!(catalog.newest(&manifest.recipe.name, DatabaseMode::Bundled).unwrap(), None, "not chosen");
    assert_eq!(catalog.list().unwrap().len(), 1, "but listed");
    let why = catalog.why_unusable(&manifest.recipe.name).unwrap().unwrap();
    assert_eq!(why.kind(), ErrorKind::Incompatible, "{why}");
    assert!(catalog.why_unusable(&"other".parse().unwrap()).unwrap().is_none());
}

#[test]
fn a_snapshot_under_another_ones_name_is_not_used() {
    let host = catalog();
    let (old, new) = (write(&host.1, "2026-01-01T00:00:00Z"), write(&host.1, "2026-01-02T00:00:00Z"));
    let catalog = again(&host);
    std::fs::remove_dir_all(catalog.path(&new.id)).unwrap();
    std::fs::rename(catalog.path(&old.id), catalog.path(&new.id)).unwrap();
    let error = catalog.verify(&new.id).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    let told = crate::error::Chain(&error).to_string();
    assert!(told.contains(&format!("it is of snapshot {}", old.id)), "{told}");
}

#[test]
fn what_nobody_trusted_has_signed_is_listed_and_never_used() {
    let (mine, theirs) = (catalog(), catalog());
    let manifest = write(&mine.1, "2026-01-01T00:00:00Z");
    let (id, golden) = (manifest.id.clone(), manifest.recipe.name.clone());
    // Another host: same directory, other keys.
    let other = Catalog::open(&mine.1.dir, Keys::load(theirs.0.path(), &[]).unwrap()).unwrap();
    let error = other.verify(&id).unwrap_err();
    assert!(matches!(error, CatalogError::Signature { source: SignatureError::Untrusted, .. }), "{error:?}");
    assert_eq!(other.newest(&golden, DatabaseMode::Bundled).unwrap(), None);
    assert_eq!(other.inspect(&id).unwrap(), manifest, "it may be looked at");

    let mut catalog = again(&mine);
    let signature = catalog.path(&id).join(SIGNATURE);
    std::fs::remove_file(&signature).unwrap();
    let error = catalog.manifest(&id).unwrap_err();
    assert!(matches!(error, CatalogError::Signature { source: SignatureError::Missing, .. }), "{error:?}");
    catalog.sign(&id).unwrap();
    assert_eq!(catalog.verify(&id).unwrap(), manifest, "signed by hand");

    let path = catalog.path(&id).join(MANIFEST);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"root_mode\": ", "\"root_mode\":  ")).unwrap();
    assert_ne!(std::fs::read_to_string(&path).unwrap(), text);
    assert!(catalog.manifest(&id).is_err(), "every byte counts");
}

#[test]
fn a_damaged_snapshot_is_not_signed() {
    let host = catalog();
    let manifest = write(&host.1, "2026-01-01T00:00:00Z");
    let mut catalog = again(&host);
    let path = catalog.path(&manifest.id);
    std::fs::remove_file(path.join(SIGNATURE)).unwrap();
    std::fs::write(path.join("memory.tar.zst"), "other").unwrap();
    assert!(catalog.sign(&manifest.id).is_err());
    assert!(!path.join(SIGNATURE).try_exists().unwrap());
}

#[test]
fn pruning_keeps_the_newest_and_those_in_use() {
    let (_dir, catalog) = catalog();
    let made: Vec<Manifest> =
        (1..=4).map(|day| write(&catalog, &format!("2026-01-0{day}T00:00:00Z"))).collect();
    let removed = catalog.prune(2, std::slice::from_ref(&made[0].id)).unwrap();
    assert_eq!(removed, [made[1].id.clone()]);
    assert_eq!(catalog.list().unwrap().len(), 3);
}

#[test]
fn a_promoted_snapshot_is_chosen_and_never_pruned_and_a_refused_one_is_neither_newest() {
    let host = catalog();
    let made: Vec<Manifest> =
        (1..=4).map(|day| write(&host.1, &format!("2026-01-0{day}T00:00:00Z"))).collect();
    let catalog = again(&host);
    let golden = made[0].recipe.name.clone();
    let chosen = || catalog.chosen(&golden, DatabaseMode::Bundled).unwrap().map(|manifest| manifest.id);
    assert_eq!(chosen(), Some(made[3].id.clone()), "the newest, while nobody has said another one");
    let mut choice = Choice::default();
    choice.refuse(made[3].id.clone(), "its front page does not come");
    choice.write(&catalog.dir).unwrap();
    assert_eq!(chosen(), Some(made[2].id.clone()));
    choice.promote(golden.clone(), made[0].id.clone(), jiff::Timestamp::UNIX_EPOCH);
    choice.write(&catalog.dir).unwrap();
    assert_eq!(chosen(), Some(made[0].id.clone()));
    assert_eq!(catalog.prune(2, &[]).unwrap(), [made[1].id.clone()]);
    assert_eq!(chosen(), Some(made[0].id.clone()));
    catalog.remove(&made[0].id).unwrap();
    assert_eq!(chosen(), Some(made[2].id.clone()), "what is gone is served by nobody");
    std::fs::write(catalog.dir.join(crate::snapshot::served::FILE), "nonsense").unwrap();
    assert_eq!(chosen(), Some(made[3].id.clone()), "what cannot be read says nothing");
    let error = catalog.prune(1, &[]).unwrap_err();
    assert!(error.to_string().contains("served.json is not of this program's form: remove it"), "{error}");
    assert_eq!(catalog.list().unwrap().len(), 2, "nothing is removed that may have been promoted");
}

#[test]
fn a_choice_half_written_does_not_stand_in_the_way_of_the_next_snapshot() {
    let (_dir, catalog) = catalog();
    std::fs::create_dir(catalog.dir.join("served.json")).unwrap();
    let mut choice = Choice::default();
    choice.promote(sample().recipe.name, sample().id, jiff::Timestamp::UNIX_EPOCH);
    choice.write(&catalog.dir).unwrap_err();
    write(&catalog, "2026-01-01T00:00:00Z");
    assert_eq!(catalog.list().unwrap().len(), 1);
}

/// A snapshot with its two archives, and its files' names.
fn whole(host: &(tempfile::TempDir, Catalog)) -> (Manifest, [&'static str; 4]) {
    let mut manifest = sample();
    let writer = host.1.begin(manifest.id.clone()).unwrap();
    for (name, content) in [("memory.tar.zst", "pages"), ("files.tar.zst", "changes")] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("content"), content).unwrap();
        let archive = archive::pack(&[("", dir.path())], &writer.dir().join(name)).unwrap();
        manifest.archives.insert(name.to_owned(), archive);
    }
    writer.finish(&manifest).unwrap();
    (manifest, [MANIFEST, SIGNATURE, "memory.tar.zst", "files.tar.zst"])
}

#[test]
fn whatever_is_damaged_where_ever_it_is_never_used_and_it_is_said_what() {
    let host = catalog();
    let (manifest, names) = whole(&host);
    let catalog = again(&host);
    let refused = |what: &str| {
        let error = catalog.verify(&manifest.id).expect_err(what);
        let told = crate::error::Chain(&error).to_string();
        assert!(told.contains(manifest.id.as_str()), "{what}: {told}");
        told
    };
    for name in names {
        let path = catalog.path(&manifest.id).join(name);
        let bytes = std::fs::read(&path).unwrap();
        let archive = name.ends_with(".zst");
        // Each place of a small file, some of a large one.
        for at in (0..bytes.len()).step_by(bytes.len() / 60 + 1) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            std::fs::write(&path, &damaged).unwrap();
            let told = refused(&format!("{name}: a bit of byte {at} is flipped"));
            assert!(!archive || told.contains(name), "{told}");
            std::fs::write(&path, &bytes[..at]).unwrap();
            refused(&format!("{name} ends at {at}"));
        }
        std::fs::write(&path, [&bytes[..], b"x"].concat()).unwrap();
        refused(&format!("{name} is longer"));
        std::fs::remove_file(&path).unwrap();
        // Without a manifest it is no snapshot at all.
        refused(&format!("{name} is gone"));
        if !archive {
            assert_eq!(catalog.newest(&manifest.recipe.name, DatabaseMode::Bundled).unwrap(), None);
        }
        std::fs::write(&path, &bytes).unwrap();
    }
    catalog.verify(&manifest.id).unwrap();
}

#[test]
fn a_power_cut_while_it_is_written_leaves_no_snapshot_and_the_next_write_nothing_of_it() {
    let host = catalog();
    let (manifest, names) = whole(&host);
    let made = catalog_files(&host.1, &manifest.id);
    // Everything is synced before the one rename, so before it any part of any file
    // may be missing, and after it none.
    for name in names {
        for length in [0, made[name].len() / 2, made[name].len()] {
            let other = catalog();
            let unfinished = other.1.dir.join(format!(".new-{}", manifest.id));
            std::fs::create_dir(&unfinished).unwrap();
            for (file, bytes) in &made {
                let bytes = if file == name { &bytes[..length] } else { &bytes[..] };
                std::fs::write(unfinished.join(file), bytes).unwrap();
            }
            assert!(other.1.list().unwrap().is_empty());
            drop(other.1.begin(manifest.id.clone()).unwrap());
            assert!(!unfinished.try_exists().unwrap());
        }
    }
}

fn catalog_files(catalog: &Catalog, id: &SnapshotId) -> std::collections::BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(catalog.path(id)).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect()
}
