//! What survives on disk, and what is seen of it.

use super::*;
use crate::publish::{Asset, Publication, PublishError};

fn storage() -> (tempfile::TempDir, Storage) {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(dir.path()).unwrap().without_sync();
    (dir, storage)
}

fn publication(reference: &str, files: &[(&str, &str)]) -> Publication {
    let mut publication = Publication::new(reference.parse().unwrap());
    publication.assets = files
        .iter()
        .map(|(path, text)| Asset::new(path, text.as_bytes().to_vec()).unwrap())
        .collect();
    publication
}

fn publish(storage: &Storage, reference: &str, text: &str) -> VersionRef {
    let publication = publication(reference, &[("prompts/a.md", text)]);
    storage.publish(&publication, "ann").unwrap()
}

fn names(listing: &Listing) -> Vec<String> {
    let versions = listing.versions.iter();
    versions
        .map(|listed| listed.release.reference.to_string())
        .collect()
}

/// Every file below `dir`, relative.
fn tree(dir: &Path) -> Vec<String> {
    let mut files: Vec<String> = walkdir::WalkDir::new(dir)
        .into_iter()
        .map(Result::unwrap)
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| {
            let path = entry.path().strip_prefix(dir).unwrap();
            path.to_str().unwrap().to_owned()
        })
        .collect();
    files.sort();
    files
}

#[test]
fn a_version_is_laid_out_as_promised() {
    let (dir, storage) = storage();
    let reference = publish(&storage, "acme/kit@1.0.0", "hello\n");
    let hex = Digest::of(b"hello\n").hex();
    assert_eq!(
        tree(dir.path()),
        [
            ".lock".to_owned(),
            format!("blobs/sha256/{}/{hex}", &hex[..2]),
            "bundles/acme/kit/1.0.0.json".to_owned(),
        ]
    );
    let json = std::fs::read(dir.path().join("bundles/acme/kit/1.0.0.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    for (field, value) in [
        ("namespace", "acme"),
        ("bundle_slug", "kit"),
        ("version", "1.0.0"),
        ("visibility", "private"),
        ("published_by", "ann"),
    ] {
        assert_eq!(json[field], value, "{field}");
    }
    let asset = &json["assets"][0];
    assert_eq!(asset["logical_path"], "prompts/a.md");
    assert_eq!(asset["content_sha256"], hex);
    assert_eq!(asset["size_bytes"], 6);
    assert_eq!(asset["asset_type"], "prompt");
    for id in [&json["bundle_id"], &json["version_id"], &asset["asset_id"]] {
        assert!(uuid::Uuid::parse_str(id.as_str().unwrap()).is_ok());
    }
    let listed = storage.version(&reference).unwrap();
    assert!(!listed.state.is_yanked());
    assert_eq!(listed.release.size(), 6);
}

#[test]
fn ids_are_the_same_in_every_registry() {
    let ids = || {
        let (_dir, storage) = storage();
        let reference = publish(&storage, "acme/kit@1.0.0", "x");
        let release = storage.version(&reference).unwrap().release;
        (
            release.stored.bundle_id.clone(),
            release.stored.version_id.clone(),
            release.stored.assets[0].asset_id.clone(),
            release.image().digest(),
        )
    };
    assert_eq!(ids(), ids());
}

#[test]
fn a_version_is_published_once() {
    let (_dir, storage) = storage();
    let reference = publish(&storage, "acme/kit@1.0.0", "first");
    for text in ["first", "second"] {
        let again = publication("acme/kit@1.0.0", &[("a", text)]);
        assert!(matches!(
            storage.publish(&again, "bob"),
            Err(PublishError::VersionExists(version)) if version == reference
        ));
    }
    let release = storage.version(&reference).unwrap().release;
    assert_eq!(release.stored.assets[0].logical_path, "prompts/a.md");
    // A yanked version is taken as well.
    storage.yank(&reference, "", "ann").unwrap();
    let again = publication("acme/kit@1.0.0", &[("a", "x")]);
    assert!(storage.publish(&again, "bob").is_err());
}

#[test]
fn of_racing_publishers_exactly_one_wins() {
    let (_dir, storage) = storage();
    let texts: Vec<String> = (0..16).map(|n| format!("from {n}")).collect();
    let barrier = std::sync::Barrier::new(texts.len());
    let outcomes: Vec<bool> = std::thread::scope(|scope| {
        let threads: Vec<_> = texts
            .iter()
            .map(|text| {
                let (storage, barrier) = (&storage, &barrier);
                scope.spawn(move || {
                    // Some through a handle of their own, as another process would.
                    let other = Storage::open(storage.root()).unwrap();
                    let publication = publication("acme/kit@1.0.0", &[("a", text)]);
                    barrier.wait();
                    match other.publish(&publication, text) {
                        Ok(_) => true,
                        Err(PublishError::VersionExists(_)) => false,
                        Err(error) => panic!("{error}"),
                    }
                })
            })
            .collect();
        let outcomes = threads.into_iter().map(|thread| thread.join().unwrap());
        outcomes.collect()
    });
    assert_eq!(outcomes.iter().filter(|&&won| won).count(), 1);
    let winner = outcomes.iter().position(|&won| won).unwrap();
    let release = storage
        .version(&"acme/kit@1.0.0".parse().unwrap())
        .unwrap()
        .release;
    let digest = release.stored.assets[0].content_sha256.parse().unwrap();
    assert_eq!(storage.blob(digest).unwrap(), texts[winner].as_bytes());
    assert_eq!(release.stored.published_by.as_ref(), Some(&texts[winner]));
}

#[test]
fn what_a_killed_publisher_leaves_is_invisible_and_swept() {
    let (dir, storage) = storage();
    publish(&storage, "acme/kit@1.0.0", "kept");
    // Killed while writing, and between the blobs and the manifest.
    std::fs::write(dir.path().join("temp/1.tmp"), "half").unwrap();
    let orphan = storage.blob_path(Digest::of(b"orphan"));
    std::fs::create_dir_all(orphan.parent().unwrap()).unwrap();
    std::fs::write(&orphan, "orphan").unwrap();
    std::fs::create_dir_all(dir.path().join("bundles/acme/half")).unwrap();

    assert_eq!(names(&storage.list().unwrap()), ["acme/kit@1.0.0"]);
    let reopened = Storage::open(dir.path()).unwrap();
    assert!(
        !tree(dir.path())
            .iter()
            .any(|file| file.starts_with("temp/"))
    );
    assert_eq!(reopened.sweep().unwrap(), Swept { blobs: 1, bytes: 6 });
    assert!(!orphan.exists());
    assert!(storage.blob(Digest::of(b"kept")).is_ok());
    // And the same version can still be published.
    publish(&storage, "acme/half@1.0.0", "orphan");
}

#[test]
fn nothing_is_swept_while_somebody_publishes() {
    let (dir, storage) = storage();
    publish(&storage, "acme/kit@1.0.0", "kept");
    let unfinished = dir.path().join("temp/1.tmp");
    std::fs::write(&unfinished, "half").unwrap();
    let publisher = std::fs::File::open(dir.path().join(".lock")).unwrap();
    publisher.lock_shared().unwrap();
    let other = Storage::open(dir.path()).unwrap();
    assert_eq!(other.sweep().unwrap(), Swept::default());
    assert!(unfinished.exists());
    drop(publisher);
    Storage::open(dir.path()).unwrap();
    assert!(!unfinished.exists());
}

#[test]
fn a_version_published_elsewhere_is_seen_at_once() {
    let (dir, storage) = storage();
    publish(&storage, "acme/kit@1.0.0", "x");
    assert_eq!(storage.list().unwrap().versions.len(), 1);
    let other = Storage::open(dir.path()).unwrap();
    publish(&other, "acme/kit@1.1.0", "y");
    let reference = publish(&other, "zeta/kit@1.0.0", "z");
    other.yank(&reference, "bad", "bob").unwrap();
    let listing = storage.list().unwrap();
    assert_eq!(
        names(&listing),
        ["acme/kit@1.1.0", "acme/kit@1.0.0", "zeta/kit@1.0.0"]
    );
    assert!(listing.versions[2].state.is_yanked());
}

#[test]
fn damage_hides_one_version_and_is_reported() {
    let (dir, storage) = storage();
    for version in ["1.0.0", "1.1.0", "1.2.0", "1.3.0"] {
        publish(&storage, &format!("acme/kit@{version}"), version);
    }
    let bundle = dir.path().join("bundles/acme/kit");
    assert_eq!(storage.list().unwrap().versions.len(), 4);
    std::fs::write(bundle.join("1.1.0.json"), "{").unwrap();
    std::fs::copy(bundle.join("1.0.0.json"), bundle.join("1.2.0.json")).unwrap();
    std::fs::write(bundle.join("1.3.0.state.json"), "").unwrap();
    std::fs::write(bundle.join("not a version.json"), "{}").unwrap();

    let listing = storage.list().unwrap();
    assert_eq!(names(&listing), ["acme/kit@1.0.0"]);
    let mut damaged: Vec<_> = listing
        .damaged
        .iter()
        .map(|damage| damage.path.file_name().unwrap().to_str().unwrap())
        .collect();
    damaged.sort_unstable();
    assert_eq!(damaged, ["1.1.0.json", "1.2.0.json", "1.3.0.state.json"]);
    // Their blobs are not taken for garbage.
    assert_eq!(storage.sweep().unwrap(), Swept::default());
    assert!(storage.blob(Digest::of(b"1.1.0")).is_ok());
}

#[test]
fn a_damaged_blob_is_never_handed_out_and_heals_when_published_again() {
    let (_dir, storage) = storage();
    publish(&storage, "acme/kit@1.0.0", "text");
    let digest = Digest::of(b"text");
    std::fs::write(storage.blob_path(digest), "tixt").unwrap();
    assert!(matches!(
        storage.blob(digest),
        Err(Error::WrongBytes { .. })
    ));
    publish(&storage, "acme/kit@1.0.1", "text");
    assert_eq!(storage.blob(digest).unwrap(), "text");
}

#[test]
fn publishing_to_disk_for_good_works_for_few_and_for_many_files() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(dir.path()).unwrap();
    let files: Vec<(String, String)> = (0..50)
        .map(|n| (format!("d/{n}"), format!("content {n}")))
        .collect();
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(path, text)| (path.as_str(), text.as_str()))
        .collect();
    for (version, count) in [("1.0.0", 2), ("1.0.1", 50)] {
        let publication = publication(&format!("acme/kit@{version}"), &files[..count]);
        storage.publish(&publication, "ann").unwrap();
    }
    let version = storage.version(&"acme/kit@1.0.1".parse().unwrap());
    assert_eq!(version.unwrap().release.stored.assets.len(), 50);
}

#[test]
fn a_registry_nobody_may_write_to_can_still_be_read() {
    let (dir, storage) = storage();
    publish(&storage, "acme/kit@1.0.0", "x");
    std::fs::remove_file(dir.path().join(".lock")).unwrap();
    std::fs::remove_dir_all(dir.path().join("temp")).unwrap();
    let reader = Storage::open(dir.path()).unwrap();
    assert_eq!(reader.list().unwrap().versions.len(), 1);
    assert!(!dir.path().join(".lock").exists());
}

#[test]
fn a_blob_is_used_however_its_manifest_spells_it() {
    let (dir, storage) = storage();
    publish(&storage, "acme/kit@1.0.0", "kept");
    let manifest = dir.path().join("bundles/acme/kit/1.0.0.json");
    let json = std::fs::read_to_string(&manifest).unwrap();
    let hex = Digest::of(b"kept").hex();
    for spelling in [hex.to_uppercase(), format!("sha256:{hex}"), "?".to_owned()] {
        std::fs::write(&manifest, json.replace(&hex, &spelling)).unwrap();
        let storage = Storage::open(dir.path()).unwrap();
        assert_eq!(storage.sweep().unwrap(), Swept::default(), "{spelling}");
        assert!(storage.blob(Digest::of(b"kept")).is_ok(), "{spelling}");
    }
}

#[test]
fn a_new_registry_is_for_its_owner_alone_until_it_is_shared() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("registry");
    publish(&Storage::open(&root).unwrap(), "acme/kit@1.0.0", "private");
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&root), 0o700);

    let shared = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&root, shared).unwrap();
    publish(&Storage::open(&root).unwrap(), "acme/kit@1.1.0", "private");
    assert_eq!(mode(&root), 0o755);
    // As any program would create it.
    let (file, folder) = (dir.path().join("file"), dir.path().join("folder"));
    std::fs::write(&file, "").unwrap();
    std::fs::create_dir(&folder).unwrap();
    for entry in walkdir::WalkDir::new(root.join("bundles")) {
        let entry = entry.unwrap();
        let like = if entry.file_type().is_dir() {
            &folder
        } else {
            &file
        };
        assert_eq!(mode(entry.path()), mode(like), "{}", entry.path().display());
    }
}
