//! Yanking, tagging and choosing.

use super::*;
use crate::publish::{Asset, Publication, Visibility};

fn storage(versions: &[&str]) -> (tempfile::TempDir, Storage) {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(dir.path()).unwrap().without_sync();
    for version in versions {
        let mut publication = Publication::new(reference(version));
        publication.visibility = Visibility::Public;
        publication.assets = vec![Asset::new("a", "x").unwrap()];
        storage.publish(&publication, "ann").unwrap();
    }
    (dir, storage)
}

fn reference(version: &str) -> VersionRef {
    format!("acme/kit@{version}").parse().unwrap()
}

fn bundle() -> BundleId {
    "acme/kit".parse().unwrap()
}

/// The version that `selector` means, or `none`.
fn chosen(storage: &Storage, selector: &str) -> String {
    storage
        .choose(&bundle(), &selector.parse().unwrap(), |_| true)
        .unwrap()
        .map_or("none".into(), |listed| {
            listed.release.reference.version.to_string()
        })
}

#[test]
fn yanking_is_idempotent_reversible_and_kept() {
    let (_dir, storage) = storage(&["1.0.0"]);
    let version = reference("1.0.0");
    assert!(storage.yank(&version, "leaks a token", "ann").unwrap());
    assert!(!storage.yank(&version, "another reason", "bob").unwrap());
    let state = storage.version(&version).unwrap().state;
    let yank = state.yank().unwrap();
    assert_eq!(yank.reason.as_deref(), Some("leaks a token"));
    assert_eq!(yank.actor.as_deref(), Some("ann"));

    assert!(storage.unyank(&version, "bob").unwrap());
    assert!(!storage.unyank(&version, "bob").unwrap());
    assert!(storage.yank(&version, "", "eve").unwrap());
    let state = storage.version(&version).unwrap().state;
    assert_eq!(state.current.reason, None);
    let history: Vec<_> = state
        .history
        .iter()
        .map(|change| (change.state.as_str(), change.actor.as_deref().unwrap()))
        .collect();
    assert_eq!(
        history,
        [
            ("published", "ann"),
            ("yanked", "ann"),
            ("published", "bob"),
            ("yanked", "eve"),
        ]
    );
    assert!(state.history.is_sorted_by_key(|change| change.time));
}

#[test]
fn what_does_not_exist_cannot_change() {
    let (_dir, storage) = storage(&["1.0.0"]);
    let missing = reference("2.0.0");
    assert!(matches!(
        storage.yank(&missing, "x", "ann"),
        Err(Error::NotFound { .. })
    ));
    assert!(matches!(
        storage.unyank(&missing, "ann"),
        Err(Error::NotFound { .. })
    ));
    assert!(
        storage
            .tag(&bundle(), "stable", Some(&missing.version))
            .is_err()
    );
}

#[test]
fn concurrent_changes_are_all_kept() {
    let (_dir, storage) = storage(&["1.0.0"]);
    let version = reference("1.0.0");
    let changes: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|n: usize| {
                let (storage, version) = (&storage, &version);
                scope.spawn(move || {
                    let changed = if n.is_multiple_of(2) {
                        storage.yank(version, "x", "ann")
                    } else {
                        storage.unyank(version, "ann")
                    };
                    usize::from(changed.unwrap())
                })
            })
            .collect();
        let changes = threads.into_iter().map(|thread| thread.join().unwrap());
        changes.sum()
    });
    let history = storage.version(&version).unwrap().state.history;
    assert_eq!(history.len(), changes + 1);
    // Each change really was one.
    assert!(
        history
            .windows(2)
            .all(|pair| pair[0].state != pair[1].state)
    );
}

#[test]
fn names_choose_the_newest_that_was_not_withdrawn() {
    let versions = ["0.9.0", "1.0.0", "1.2.0", "1.10.0", "2.0.0-rc.1"];
    let (_dir, storage) = storage(&versions);
    for (selector, expected) in [
        ("latest", "1.10.0"),
        ("1.2.0", "1.2.0"),
        ("^1.0", "1.10.0"),
        ("~1.2", "1.2.0"),
        ("1", "1.10.0"),
        ("1.x", "1.10.0"),
        (">=0.9, <1.2", "1.0.0"),
        ("*", "1.10.0"),
        ("^2", "none"),
        ("^2.0.0-rc", "2.0.0-rc.1"),
        ("2.0.0-rc.1", "2.0.0-rc.1"),
        ("3.0.0", "none"),
        ("stable", "none"),
    ] {
        assert_eq!(chosen(&storage, selector), expected, "{selector}");
    }
    storage.yank(&reference("1.10.0"), "", "ann").unwrap();
    for (selector, expected) in [
        ("latest", "1.2.0"),
        ("^1.0", "1.2.0"),
        // Named exactly it still resolves.
        ("1.10.0", "1.10.0"),
    ] {
        assert_eq!(chosen(&storage, selector), expected, "{selector}");
    }
}

#[test]
fn a_bundle_of_nothing_but_pre_releases_has_a_latest() {
    let (_dir, storage) = storage(&["1.0.0-a", "1.0.0-b"]);
    assert_eq!(chosen(&storage, "latest"), "1.0.0-b");
    storage.yank(&reference("1.0.0-b"), "", "ann").unwrap();
    storage.yank(&reference("1.0.0-a"), "", "ann").unwrap();
    assert_eq!(chosen(&storage, "latest"), "none");
}

#[test]
fn tags_move_and_never_show_a_withdrawn_version() {
    let (_dir, storage) = storage(&["1.0.0", "1.1.0"]);
    let tag = |version: Option<&str>| {
        let version = version.map(|version| reference(version).version);
        storage.tag(&bundle(), "stable", version.as_ref()).unwrap();
    };
    tag(Some("1.0.0"));
    assert_eq!(chosen(&storage, "stable"), "1.0.0");
    tag(Some("1.1.0"));
    assert_eq!(chosen(&storage, "stable"), "1.1.0");
    storage.yank(&reference("1.1.0"), "", "ann").unwrap();
    assert_eq!(chosen(&storage, "stable"), "none");
    storage.unyank(&reference("1.1.0"), "ann").unwrap();
    assert_eq!(chosen(&storage, "stable"), "1.1.0");
    tag(None);
    assert_eq!(chosen(&storage, "stable"), "none");
    for taken in ["latest", "1.0.0", "^1", "1", "..", "a/b", ""] {
        let version = reference("1.0.0").version;
        assert!(
            storage.tag(&bundle(), taken, Some(&version)).is_err(),
            "{taken}"
        );
    }
}

#[test]
fn a_digest_names_a_version_for_ever() {
    let (_dir, storage) = storage(&["1.0.0", "1.1.0"]);
    let version = reference("1.0.0");
    let digest = storage.version(&version).unwrap().release.image().digest();
    storage.yank(&version, "", "ann").unwrap();
    assert_eq!(chosen(&storage, &digest.to_string()), "1.0.0");
    let other = crate::digest::Digest::of(b"x").to_string();
    assert_eq!(chosen(&storage, &other), "none");
}

#[test]
fn an_unreadable_state_is_not_taken_for_published() {
    let (_dir, storage) = storage(&["1.0.0"]);
    let version = reference("1.0.0");
    for json in [
        "",
        "[]",
        "{\"state\":\"gone\",\"time\":\"2025-01-01T00:00:00Z\"}",
    ] {
        std::fs::write(storage.state_path(&version), json).unwrap();
        assert!(storage.version(&version).is_none(), "{json}");
    }
}
