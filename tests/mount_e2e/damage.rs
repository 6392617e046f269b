//! Whatever happens to the cache: other tools, full disks and decay never change what is read.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use crate::support::fuse::{require_fuse, require_root};
use crate::support::mount::{Home, TestMount, Tmpfs, forget_pages};
use crate::support::registry::{RouteKind, TestRegistry};

const CONTENT: &[u8] = b"the right content\n";

fn registry() -> TestRegistry {
    let registry = TestRegistry::start();
    registry.publish(
        "acme",
        "kit",
        "1.0.0",
        &[("a.md", CONTENT), ("b.md", b"b\n")],
    );
    registry
}

/// Reads a file, does something to its blob, reads it again past the kernel's pages; and once more
/// in a new session, where the damage is done before the first read.
fn survives(damage: impl Fn(&Path, &Home), heals: bool) {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let home = Home::new();
    let file = "acme/kit@1.0.0/a.md";
    let blob = home.blob(CONTENT);
    let check = |mount: &TestMount, when: &str| {
        forget_pages(&mount.path(file));
        assert_eq!(mount.read(file), Ok(CONTENT.to_vec()), "{when}");
        assert_eq!(mount.read("acme/kit@1.0.0/b.md"), Ok(b"b\n".to_vec()));
        assert!(mount.is_alive());
    };
    let mount = TestMount::of(&registry)
        .home(&home)
        .arg("--readahead=0")
        .start();
    assert_eq!(mount.read(file), Ok(CONTENT.to_vec()));
    assert_eq!(fs::read(&blob).unwrap(), CONTENT);
    damage(&blob, &home);
    check(&mount, "while mounted");
    mount.unmount();

    damage(&blob, &home);
    registry.clear_log();
    let mount = TestMount::of(&registry)
        .home(&home)
        .arg("--readahead=0")
        .start();
    check(&mount, "remounted");
    assert_eq!(
        registry.count(RouteKind::Asset),
        1,
        "{:#?}",
        registry.lines()
    );
    if heals {
        let meta = fs::symlink_metadata(&blob).unwrap();
        assert!(meta.is_file());
        assert_eq!(fs::read(&blob).unwrap(), CONTENT, "healed");
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    }
    mount.unmount();
}

fn put(blob: &Path, bytes: &[u8]) {
    fs::write(blob, bytes).unwrap();
}

#[test]
fn a_deleted_blob_is_fetched_again() {
    // A descriptor that is open goes on serving, so it is still gone when the mount is.
    survives(|blob, _| drop(fs::remove_file(blob)), true);
}

#[test]
fn a_corrupted_blob_is_never_served_and_healed() {
    survives(|blob, _| put(blob, b"the wrong content\n"), true);
}

#[test]
fn a_blob_of_the_same_size_and_time_with_other_bytes_is_never_served() {
    let damage = |blob: &Path, _: &Home| {
        let before = fs::metadata(blob).unwrap().modified().unwrap();
        put(blob, &CONTENT.to_ascii_uppercase());
        let file = fs::File::options().write(true).open(blob).unwrap();
        file.set_modified(before).unwrap();
    };
    survives(damage, true);
}

#[test]
fn a_truncated_blob_is_never_served_and_healed() {
    survives(|blob, _| put(blob, &CONTENT[..5]), true);
}

#[test]
fn an_emptied_blob_is_never_served_and_healed() {
    survives(|blob, _| put(blob, b""), true);
}

#[test]
fn a_grown_blob_is_never_served_and_healed() {
    survives(|blob, _| put(blob, &CONTENT.repeat(3)), true);
}

#[test]
fn a_symlink_in_place_of_a_blob_is_not_followed() {
    let damage = |blob: &Path, home: &Home| {
        let elsewhere = home.path().join("elsewhere");
        fs::write(&elsewhere, CONTENT).unwrap();
        fs::remove_file(blob).unwrap();
        symlink(&elsewhere, blob).unwrap();
    };
    survives(damage, true);
}

#[test]
fn an_empty_directory_in_place_of_a_blob_is_replaced() {
    let damage = |blob: &Path, _: &Home| {
        let _ = fs::remove_file(blob);
        fs::create_dir_all(blob).unwrap();
    };
    survives(damage, true);
}

#[test]
fn a_directory_with_something_in_it_in_place_of_a_blob_stays_and_is_no_blob() {
    let damage = |blob: &Path, _: &Home| {
        let _ = fs::remove_file(blob);
        fs::create_dir_all(blob.join("somebody's")).unwrap();
    };
    survives(damage, false);
}

#[test]
fn a_symlink_in_place_of_a_directory_of_the_cache_leads_nowhere_else() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let home = Home::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let blobs = home.cache().join("blobs");
    fs::create_dir_all(home.cache()).unwrap();
    symlink(elsewhere.path(), &blobs).unwrap();
    symlink(elsewhere.path(), home.cache().join("manifests")).unwrap();
    let mount = TestMount::of(&registry).home(&home).start();
    assert_eq!(mount.read("acme/kit/a.md"), Ok(CONTENT.to_vec()));
    assert_eq!(mount.read("acme/kit/b.md"), Ok(b"b\n".to_vec()));
    let strays = fs::read_dir(elsewhere.path()).unwrap().count();
    assert_eq!(strays, 0, "nothing is written through a link");
    mount.unmount();
}

#[test]
fn a_cache_that_is_removed_while_mounted_is_made_anew() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    registry.publish("acme", "other", "1.0.0", &[("c.md", b"c\n")]);
    let mount = TestMount::of(&registry).arg("--readahead=0").start();
    let file = mount.path("acme/kit@1.0.0/a.md");
    assert_eq!(mount.read("acme/kit/a.md"), Ok(CONTENT.to_vec()));
    let cache = mount.home().cache();
    fs::remove_dir_all(&cache).unwrap();

    // What was open is still readable; what was not is fetched.
    registry.clear_log();
    forget_pages(&file);
    assert_eq!(mount.read("acme/kit/a.md"), Ok(CONTENT.to_vec()));
    assert_eq!(registry.content_requests(), 0, "{:#?}", registry.lines());
    assert_eq!(mount.read("acme/kit/b.md"), Ok(b"b\n".to_vec()));
    assert_eq!(mount.read("acme/other/c.md"), Ok(b"c\n".to_vec()));
    assert_eq!(registry.content_requests(), 2, "{:#?}", registry.lines());
    assert_eq!(fs::read(mount.home().blob(b"b\n")).unwrap(), b"b\n");
    let tag = fs::read_to_string(cache.join("CACHEDIR.TAG")).unwrap();
    assert!(
        tag.starts_with("Signature: 8a477f597d28d172789f06886806bc55"),
        "{tag}"
    );
    let mode = fs::metadata(&cache).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    mount.unmount();
}

#[test]
fn a_full_disk_is_noticed_by_nobody_who_reads() {
    if !require_fuse() || !require_root() {
        return;
    }
    let registry = TestRegistry::start();
    let big: Vec<Vec<u8>> = (0..8_u8).map(|n| vec![b'a' + n; 100_000]).collect();
    let names: Vec<String> = (0..8).map(|n| format!("f{n}.md")).collect();
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .zip(&big)
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .collect();
    registry.publish("acme", "kit", "1.0.0", &files);
    let home = Home::new();
    let disk = Tmpfs::on(&home.cache(), "size=192k,mode=0700");
    let mount = TestMount::of(&registry).home(&home).start();
    for _ in 0..2 {
        for (name, bytes) in &files {
            let content = mount.read(&format!("acme/kit/{name}"));
            assert!(content.as_deref() == Ok(*bytes), "{name}");
        }
    }
    let told = mount.log().matches("WARN").count();
    assert!((1..=2).contains(&told), "said once: {}", mount.log());
    // What is on the disk is whole, or it is not there.
    for bytes in &big {
        if let Ok(cached) = fs::read(home.blob(bytes)) {
            assert!(cached == *bytes);
        }
    }
    mount.unmount();
    drop(disk);
}

#[test]
fn a_read_only_cache_is_used_and_not_written() {
    if !require_fuse() || !require_root() {
        return;
    }
    let registry = registry();
    let home = Home::new();
    let disk = Tmpfs::on(&home.cache(), "size=4m,mode=0700");
    let mount = TestMount::of(&registry)
        .home(&home)
        .arg("--readahead=0")
        .start();
    assert_eq!(mount.read("acme/kit/a.md"), Ok(CONTENT.to_vec()));
    mount.unmount();

    disk.make_read_only();
    registry.clear_log();
    let mount = TestMount::of(&registry)
        .home(&home)
        .arg("--readahead=0")
        .start();
    assert_eq!(mount.read("acme/kit/a.md"), Ok(CONTENT.to_vec()));
    assert_eq!(registry.content_requests(), 0, "{:#?}", registry.lines());
    for _ in 0..3 {
        assert_eq!(mount.read("acme/kit/b.md"), Ok(b"b\n".to_vec()));
        forget_pages(&mount.path("acme/kit@1.0.0/b.md"));
    }
    assert_eq!(registry.content_requests(), 1, "kept in memory");
    let told = mount.log().matches("WARN").count();
    assert!((1..=2).contains(&told), "said once: {}", mount.log());
    mount.unmount();
}

#[test]
fn a_cache_that_somebody_replaced_by_a_file_is_no_cache() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let home = Home::new();
    fs::write(home.cache(), "not a directory").unwrap();
    let mount = TestMount::of(&registry).home(&home).start();
    assert_eq!(mount.read("acme/kit/a.md"), Ok(CONTENT.to_vec()));
    assert_eq!(mount.read("acme/kit/b.md"), Ok(b"b\n".to_vec()));
    assert_eq!(fs::read(home.cache()).unwrap(), b"not a directory");
    mount.unmount();
}

#[test]
fn manifests_damaged_by_others_are_fetched_again() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    for damage in ["", "{", "null", "[]", "\u{feff}{}", "{\"manifest\":null}"] {
        let home = Home::new();
        let mount = TestMount::of(&registry).home(&home).start();
        assert_eq!(mount.read("acme/kit/a.md"), Ok(CONTENT.to_vec()));
        mount.unmount();
        let host = registry.host_id();
        let manifest = format!("manifests/{host}/acme/kit/1.0.0.json");
        let manifest = home.cache().join(manifest);
        fs::write(&manifest, damage).unwrap();
        registry.clear_log();
        let mount = TestMount::of(&registry).home(&home).start();
        assert_eq!(mount.names("acme/kit@1.0.0"), ["a.md", "b.md"]);
        assert_eq!(mount.read("acme/kit@1.0.0/a.md"), Ok(CONTENT.to_vec()));
        assert_eq!(registry.resolve_requests(), 1, "{damage:?}");
        assert_eq!(registry.content_requests(), 0, "the blob was not damaged");
        mount.unmount();
        let healed: serde_json::Value =
            serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
        assert_eq!(healed["layers"].as_array().map(Vec::len), Some(2));
    }
}
