//! A cache under attack: links, damaged and full disks, other programs that clean meanwhile.

#![allow(clippy::unwrap_used, clippy::panic)]

mod disk;
#[path = "../support/fuse.rs"]
#[allow(dead_code)]
mod fuse;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use musherfs::cache::{Blob, Cache, HostId};
use musherfs::digest::Digest;
use musherfs::error::Error;
use musherfs::manifest::{Info, Layer, Manifest};
use musherfs::reference::{BundleId, VersionRef};
use tempfile::TempDir;

fn host() -> HostId {
    "api.musher.dev".parse().unwrap()
}

fn bundle() -> BundleId {
    "acme/kit".parse().unwrap()
}

fn manifest(version: &str) -> Manifest {
    let id: VersionRef = format!("acme/kit@{version}").parse().unwrap();
    let layer = Layer {
        path: "a.md".into(),
        digest: Digest::of(b"hello\n"),
        size: Some(6),
        asset_type: "other".into(),
        asset_id: String::new(),
        media_type: None,
    };
    Manifest::new(id, Info::default(), vec![layer]).unwrap()
}

fn now() -> Timestamp {
    Timestamp::now()
}

fn new_cache() -> (TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path().join("musher"));
    (dir, cache)
}

fn write_blob(cache: &Cache, content: &[u8]) -> Blob {
    let mut writer = cache.blob_writer(content.len() as u64);
    for piece in content.chunks(64 * 1024) {
        writer.write(piece).unwrap();
    }
    assert_eq!(writer.written(), content.len() as u64);
    writer.finish(Digest::of(content)).unwrap()
}

fn bytes(blob: &Blob) -> Vec<u8> {
    match blob {
        Blob::Memory(bytes) => bytes.to_vec(),
        Blob::File(file) => bytes_of(file),
    }
}

fn bytes_of(file: &File) -> Vec<u8> {
    let size = usize::try_from(file.metadata().unwrap().len()).unwrap();
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn blob_path(cache: &Cache, content: &[u8]) -> PathBuf {
    let hex = Digest::of(content).hex();
    cache.root().join("blobs/sha256").join(&hex[..2]).join(hex)
}

/// All regular files below `dir`, relative to it.
fn files(dir: &Path) -> Vec<String> {
    let mut files: Vec<_> = walkdir::WalkDir::new(dir)
        .into_iter()
        .flatten()
        .filter(|entry| !entry.file_type().is_dir())
        .map(|entry| {
            entry
                .path()
                .strip_prefix(dir)
                .unwrap()
                .display()
                .to_string()
        })
        .collect();
    files.sort();
    files
}

#[test]
fn a_blob_appears_whole_and_under_its_own_name() {
    let (_dir, cache) = new_cache();
    for content in [&b""[..], b"hello\n", &vec![7; 1_000_000]] {
        let mut writer = cache.blob_writer(content.len() as u64);
        for piece in content.chunks(1000) {
            writer.write(piece).unwrap();
            assert_eq!(
                cache.blob_size(Digest::of(content)),
                None,
                "before it is whole"
            );
        }
        assert_eq!(writer.digest(), Digest::of(content));
        let blob = writer.finish(Digest::of(content)).unwrap();
        assert!(matches!(blob, Blob::File(_)));
        assert_eq!(bytes(&blob), content);
        assert_eq!(fs::read(blob_path(&cache, content)).unwrap(), content);
        assert_eq!(
            bytes_of(&cache.open_blob(Digest::of(content)).unwrap()),
            content
        );
        assert_eq!(
            cache.blob_size(Digest::of(content)),
            Some(content.len() as u64)
        );
    }
    assert!(files(&cache.root().join("temp")).is_empty());
}

#[test]
fn the_wrong_bytes_leave_nothing_behind() {
    let (_dir, cache) = new_cache();
    let mut writer = cache.blob_writer(64);
    writer.write(b"other\n").unwrap();
    let error = writer.finish(Digest::of(b"hello\n")).unwrap_err();
    assert!(
        matches!(error, Error::WrongBytes { expected, .. } if expected == Digest::of(b"hello\n"))
    );
    let mut writer = cache.blob_writer(64);
    writer.write(b"never finished").unwrap();
    assert_eq!(files(&cache.root().join("temp")).len(), 1);
    drop(writer);
    assert_eq!(files(cache.root()), ["CACHEDIR.TAG"]);
}

#[test]
fn more_than_was_announced_is_refused_while_it_comes() {
    let (_dir, cache) = new_cache();
    let mut writer = cache.blob_writer(6);
    writer.write(b"hello").unwrap();
    assert!(matches!(writer.write(b"!!"), Err(Error::Malformed { .. })));
    // Another attempt starts from nothing.
    writer.restart();
    assert_eq!((writer.written(), writer.digest()), (0, Digest::of(b"")));
    writer.write(b"hello\n").unwrap();
    assert!(matches!(writer.write(b"!"), Err(Error::Malformed { .. })));
    assert_eq!(
        bytes(&writer.finish(Digest::of(b"hello\n")).unwrap()),
        b"hello\n"
    );
}

#[test]
fn a_bad_blob_is_replaced_whole_and_a_good_one_stays() {
    let (_dir, cache) = new_cache();
    write_blob(&cache, b"hello\n");
    let path = blob_path(&cache, b"hello\n");
    let inode = || fs::metadata(&path).unwrap().ino();
    let first = inode();
    write_blob(&cache, b"hello\n");
    assert_eq!(inode(), first, "a good blob keeps its inode");
    for damage in [&b"HELLO\n"[..], b"hell", b"", b"hello\nhello\n"] {
        fs::write(&path, damage).unwrap();
        let reader = cache.open_blob(Digest::of(b"hello\n")).unwrap();
        let blob = write_blob(&cache, b"hello\n");
        assert_eq!(bytes(&blob), b"hello\n");
        assert_eq!(fs::read(&path).unwrap(), b"hello\n");
        // Not written over: who had the old one open still has it.
        assert_eq!(bytes_of(&reader), damage);
    }
}

#[test]
fn an_open_blob_stays_readable_when_another_tool_deletes_it() {
    let (_dir, cache) = new_cache();
    let blob = write_blob(&cache, b"hello\n");
    let reader = cache.open_blob(Digest::of(b"hello\n")).unwrap();
    fs::remove_dir_all(cache.root()).unwrap();
    assert_eq!(bytes(&blob), b"hello\n");
    assert_eq!(bytes_of(&reader), b"hello\n");
    assert!(cache.open_blob(Digest::of(b"hello\n")).is_none());
}

#[test]
fn a_root_removed_while_in_use_is_created_again() {
    let (_dir, cache) = new_cache();
    cache
        .write_manifest(&host(), &manifest("1.2.0"), now())
        .unwrap();
    fs::remove_dir_all(cache.root()).unwrap();
    assert!(
        cache
            .read_manifest(&host(), manifest("1.2.0").id())
            .is_none()
    );
    assert!(cache.hosts().is_empty());
    assert_eq!(cache.usage(), Default::default());
    write_blob(&cache, b"hello\n");
    assert!(cache.root().join("CACHEDIR.TAG").is_file());
    // The SDK's purge takes only the directories.
    fs::remove_dir_all(cache.root().join("temp")).unwrap();
    fs::remove_dir_all(cache.root().join("blobs")).unwrap();
    write_blob(&cache, b"hello\n");
    assert_eq!(cache.usage().blobs, 1);
}

#[test]
fn a_root_removed_in_the_middle_of_a_blob_gets_the_whole_blob() {
    for removed in ["", "temp", "blobs"] {
        let (_dir, cache) = new_cache();
        write_blob(&cache, b"hello\n");
        let content = vec![b'x'; 300_000];
        let mut writer = cache.blob_writer(300_000);
        writer.write(&content[..100_000]).unwrap();
        fs::remove_dir_all(cache.root().join(removed)).unwrap();
        writer.write(&content[100_000..]).unwrap();
        let blob = writer.finish(Digest::of(&content)).unwrap();
        assert_eq!(bytes(&blob), content, "{removed}");
        assert_eq!(
            fs::read(blob_path(&cache, &content)).unwrap(),
            content,
            "{removed}"
        );
        assert!(files(&cache.root().join("temp")).is_empty(), "{removed}");
    }
}

#[test]
fn a_link_in_place_of_a_blob_is_not_read_and_is_replaced() {
    let (dir, cache) = new_cache();
    write_blob(&cache, b"hello\n");
    let secret = dir.path().join("secret");
    fs::write(&secret, "hello\n").unwrap();
    let path = blob_path(&cache, b"hello\n");
    fs::remove_file(&path).unwrap();
    symlink(&secret, &path).unwrap();
    assert!(cache.open_blob(Digest::of(b"hello\n")).is_none());
    write_blob(&cache, b"hello\n");
    assert!(fs::symlink_metadata(&path).unwrap().is_file());
    assert!(cache.open_blob(Digest::of(b"hello\n")).is_some());
}

#[test]
fn a_link_in_place_of_any_directory_is_neither_read_nor_written_through() {
    let prefix = format!("blobs/sha256/{}", &Digest::of(b"hello\n").hex()[..2]);
    for planted in [
        "temp",
        "blobs",
        "blobs/sha256",
        &prefix,
        "manifests",
        "manifests/api.musher.dev",
        "manifests/api.musher.dev/acme",
        "manifests/api.musher.dev/acme/kit",
        "refs",
        "refs/api.musher.dev/acme/kit",
    ] {
        let (dir, cache) = new_cache();
        let id = manifest("1.2.0").id().clone();
        let fill = || {
            let blob = write_blob(&cache, b"hello\n");
            assert_eq!(
                bytes(&blob),
                b"hello\n",
                "{planted}: the reader gets its bytes"
            );
            let _ = cache.write_manifest(&host(), &manifest("1.2.0"), now());
            let _ = cache.write_ref(&host(), &bundle(), "latest", &id.version, now());
        };
        fill();
        // The same content, outside.
        let outside = dir.path().join("outside");
        fs::rename(cache.root().join(planted), &outside).unwrap();
        symlink(&outside, cache.root().join(planted)).unwrap();
        let before = files(&outside);
        if planted.starts_with("blobs") {
            assert!(
                cache.open_blob(Digest::of(b"hello\n")).is_none(),
                "{planted}"
            );
            assert_eq!(cache.usage().blobs, 0, "{planted}");
        } else if planted.starts_with("manifests") {
            assert!(cache.read_manifest(&host(), &id).is_none(), "{planted}");
            assert!(cache.versions(&host(), &bundle()).is_empty(), "{planted}");
            assert!(cache.entries().is_empty(), "{planted}");
            cache.remove_manifest(&host(), &id).unwrap();
        } else if planted.starts_with("refs") {
            assert_eq!(
                cache.read_ref(&host(), &bundle(), "latest"),
                None,
                "{planted}"
            );
        }
        fill();
        assert_eq!(files(&outside), before, "{planted}");
    }
}

#[test]
fn links_in_place_of_entries_are_not_read_and_are_replaced() {
    let (dir, cache) = new_cache();
    let manifest = manifest("1.2.0");
    cache.write_manifest(&host(), &manifest, now()).unwrap();
    let entries = cache.root().join("manifests/api.musher.dev/acme/kit");
    for name in ["1.2.0.json", "1.2.0.meta.json"] {
        let outside = dir.path().join(name);
        fs::rename(entries.join(name), &outside).unwrap();
        symlink(&outside, entries.join(name)).unwrap();
        let cached = cache.read_manifest(&host(), manifest.id());
        assert!(
            cached.is_none_or(|cached| !cached.is_fresh(now())),
            "{name}"
        );
        let before = fs::read(&outside).unwrap();
        cache
            .write_manifest(&host(), &manifest, Timestamp::UNIX_EPOCH)
            .unwrap();
        assert_eq!(fs::read(&outside).unwrap(), before, "{name}");
        assert!(fs::symlink_metadata(entries.join(name)).unwrap().is_file());
        cache.write_manifest(&host(), &manifest, now()).unwrap();
    }
}

#[test]
fn names_that_have_no_place_never_reach_the_disk() {
    let (_dir, cache) = new_cache();
    let version = manifest("1.2.0").id().version.clone();
    // Its file would be the sidecar of 1.2.0-a.
    let meta = manifest("1.2.0-a.meta");
    cache.write_manifest(&host(), &meta, now()).unwrap();
    cache
        .write_ref(&host(), &bundle(), "latest", &meta.id().version, now())
        .unwrap();
    // It belongs to musher-cli.
    cache
        .write_manifest(&HostId::local(), &manifest("1.2.0"), now())
        .unwrap();
    cache
        .write_ref(&HostId::local(), &bundle(), "latest", &version, now())
        .unwrap();
    for alias in [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\\b",
        "a\0b",
        "a\nb",
        ".x",
        &"x".repeat(300),
    ] {
        cache
            .write_ref(&host(), &bundle(), alias, &version, now())
            .unwrap();
        assert_eq!(cache.read_ref(&host(), &bundle(), alias), None, "{alias:?}");
    }
    assert!(!cache.root().exists());
    for bad in ["..", "%2e%2e/..", "a\0b", &"x".repeat(300), "a/../b"] {
        assert!(
            format!("acme/{bad}@1.2.0").parse::<VersionRef>().is_err(),
            "{bad:?}"
        );
        assert!(
            format!("{bad}/kit@1.2.0").parse::<VersionRef>().is_err(),
            "{bad:?}"
        );
        assert!(
            format!("acme/kit@{bad}").parse::<VersionRef>().is_err(),
            "{bad:?}"
        );
        assert!(bad.parse::<HostId>().is_err(), "{bad:?}");
    }
}

#[test]
fn awkward_but_valid_names_have_their_place() {
    let (_dir, cache) = new_cache();
    for version in ["1.2.0+build.7", "1.2.0-a", "1.2.0-meta", "1.2.0-meta.1"] {
        let manifest = manifest(version);
        cache.write_manifest(&host(), &manifest, now()).unwrap();
        assert!(
            cache
                .read_manifest(&host(), manifest.id())
                .unwrap()
                .is_superset,
            "{version}"
        );
    }
    assert_eq!(cache.versions(&host(), &bundle()).len(), 4);
    let version = manifest("1.2.0-a").id().version.clone();
    for alias in ["stable", "^1.2", ">=1, <3", "1.x", "*"] {
        cache
            .write_ref(&host(), &bundle(), alias, &version, now())
            .unwrap();
        let cached = cache.read_ref(&host(), &bundle(), alias).unwrap();
        assert!(cached.is_fresh(now()), "{alias}");
        assert_eq!(cached.version, version);
    }
    cache
        .remove_manifest(&host(), manifest("1.2.0-a").id())
        .unwrap();
    cache
        .remove_manifest(&host(), manifest("1.2.0-a").id())
        .unwrap();
    assert_eq!(cache.versions(&host(), &bundle()).len(), 3);
}

#[test]
fn new_files_are_for_their_owner_and_old_modes_stay() {
    let (_dir, cache) = new_cache();
    fs::create_dir_all(cache.root().join("manifests")).unwrap();
    let set = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    set(cache.root(), 0o755);
    set(&cache.root().join("manifests"), 0o750);
    cache
        .write_manifest(&host(), &manifest("1.2.0"), now())
        .unwrap();
    write_blob(&cache, b"hello\n");
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(cache.root()), 0o755);
    assert_eq!(mode(&cache.root().join("manifests")), 0o750);
    assert_eq!(mode(&cache.root().join("CACHEDIR.TAG")) & !0o644, 0);
    for entry in walkdir::WalkDir::new(cache.root()).min_depth(1) {
        let entry = entry.unwrap();
        if entry.depth() > 1 {
            let expected = if entry.file_type().is_dir() {
                0o700
            } else {
                0o600
            };
            assert_eq!(mode(entry.path()), expected, "{}", entry.path().display());
        }
    }
}

#[test]
fn a_tag_is_kept_if_its_signature_is_right() {
    let (_dir, cache) = new_cache();
    fs::create_dir(cache.root()).unwrap();
    let tag = cache.root().join("CACHEDIR.TAG");
    let theirs = "Signature: 8a477f597d28d172789f06886806bc55\n# by musher\n";
    fs::write(&tag, theirs).unwrap();
    write_blob(&cache, b"hello\n");
    assert_eq!(fs::read_to_string(&tag).unwrap(), theirs);
    fs::write(&tag, "Signature: 00").unwrap();
    write_blob(&Cache::new(cache.root().to_owned()), b"world\n");
    assert!(fs::read_to_string(&tag).unwrap().contains("musherfs"));
}

#[test]
fn only_old_temporary_files_are_swept() {
    let (_dir, cache) = new_cache();
    let temp = cache.root().join("temp");
    fs::create_dir_all(&temp).unwrap();
    let plant = |name: &str, hours: u64| {
        let file = File::create(temp.join(name)).unwrap();
        let age = Duration::from_secs(hours * 3600);
        file.set_modified(SystemTime::now() - age).unwrap();
    };
    plant("0d6f2c3e-7d0c-4a57-b6b3-1f0f1d3f5a01.tmp", 25);
    plant("0d6f2c3e-7d0c-4a57-b6b3-1f0f1d3f5a02.tmp", 23);
    plant("somebody-elses.tmp", 25);
    write_blob(&cache, b"hello\n");
    assert_eq!(
        files(&temp),
        [
            "0d6f2c3e-7d0c-4a57-b6b3-1f0f1d3f5a02.tmp",
            "somebody-elses.tmp"
        ]
    );
}

#[test]
fn writers_and_readers_of_one_name_never_see_half_of_it() {
    let (_dir, cache) = new_cache();
    let content = vec![b'x'; 200_000];
    let digest = Digest::of(&content);
    let manifest = manifest("1.2.0");
    cache.write_manifest(&host(), &manifest, now()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    let blob = write_blob(&cache, &content);
                    assert_eq!(bytes(&blob), content);
                    cache.write_manifest(&host(), &manifest, now()).unwrap();
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..200 {
                    if let Some(file) = cache.open_blob(digest) {
                        assert_eq!(Digest::of(&bytes_of(&file)), digest);
                    }
                    assert!(cache.read_manifest(&host(), manifest.id()).is_some());
                }
            });
        }
    });
    assert!(files(&cache.root().join("temp")).is_empty());
}
