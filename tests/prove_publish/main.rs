//! Proof that the cache survives the death of whoever writes it: killed at any system call on the way
//! of a file into the cache, no bad blob is under a good name, nothing is left that cleaning does not
//! take away, and the next one completes what the first began.
//!
//! strace says which system calls there are, and kills at the n-th of a kind ([`traced`]). Once of a
//! process that does nothing but publish, one thread, so that its calls are the same each time; and
//! of `musherfs load` as it is, with its threads, locks and limits.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

#[path = "../support/mod.rs"]
mod support;
mod traced;

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use musherfs::cache::clean::{Needed, Selection};
use musherfs::cache::{Cache, HostId};
use musherfs::digest::Digest;
use musherfs::manifest::{Info, Layer, Manifest};
use serde_json::json;

use support::mount::Home;
use support::prove::Proof;
use support::registry::TestRegistry;
use traced::{Point, in_each, is_installed, killed_at, points};

const ROLE: &str = "MUSHERFS_TEST_PUBLISHER";
/// What nobody has, looked for before and after what counts.
const BEGIN: &str = "/musherfs-publishing-begins";
const END: &str = "/musherfs-publishing-ends";

/// How often the same is published elsewhere before that.
const BEFORE: usize = 2;

const VERSIONS: [&str; 2] = ["1.0.0", "1.1.0"];

fn host() -> HostId {
    "registry.example".parse().unwrap()
}

/// The files of a version: one that both have, one of its own, one of several pieces.
fn contents(version: &str) -> [Vec<u8>; 3] {
    [
        b"the same in both\n".to_vec(),
        format!("only in {version}\n").into_bytes(),
        format!("a line of {version}\n").repeat(500).into_bytes(),
    ]
}

fn manifest(version: &str) -> Manifest {
    let layers = contents(version).into_iter().enumerate();
    let layers = layers.map(|(index, bytes)| Layer {
        path: format!("file-{index}.md"),
        digest: Digest::of(&bytes),
        size: Some(bytes.len() as u64),
        asset_type: "prompt".to_owned(),
        asset_id: String::new(),
        media_type: None,
    });
    let id = format!("acme/kit@{version}").parse().unwrap();
    Manifest::new(id, Info::default(), layers.collect()).unwrap()
}

/// All that a download does to the cache, an attempt that fails included.
fn publish(cache: &Cache, version: &str) {
    for bytes in contents(version) {
        let mut writer = cache.blob_writer(bytes.len() as u64);
        writer.write(&bytes[..bytes.len() / 2]).unwrap();
        writer.restart();
        for piece in bytes.chunks(4000) {
            writer.write(piece).unwrap();
        }
        writer.finish(Digest::of(&bytes)).unwrap();
    }
    let manifest = manifest(version);
    let now = Timestamp::now();
    cache.write_manifest(&host(), &manifest, now).unwrap();
    let version = &manifest.id().version;
    cache
        .write_ref(&host(), &manifest.id().bundle, "latest", version, now)
        .unwrap();
}

#[test]
#[ignore = "what the process runs that the proof starts"]
fn process_entry() {
    let Some(root) = std::env::var_os(ROLE) else {
        return;
    };
    let root = PathBuf::from(root);
    // The first makes the cache, the second finds one.
    let publish_all = |root: PathBuf| {
        let cache = Cache::new(root);
        for version in VERSIONS {
            publish(&cache, version);
        }
    };
    // So that this thread has made more calls of each kind than the one that has started it, which
    // would be killed instead of it.
    for round in 0..BEFORE {
        publish_all(root.with_extension(round.to_string()));
        // What publishing does once, and every program when it starts.
        fs::read_dir("/").unwrap().count();
        fs::read_dir("/").unwrap().count();
    }
    let _ = fs::metadata(BEGIN);
    publish_all(root);
    let _ = fs::metadata(END);
}

fn publisher(root: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "process_entry", "--test-threads=1"])
        .env(ROLE, root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// All regular files below the root, relative to it.
fn files(root: &Path) -> Vec<PathBuf> {
    walkdir::WalkDir::new(root)
        .into_iter()
        .flatten()
        .filter(|entry| entry.file_type().is_file())
        .map(walkdir::DirEntry::into_path)
        .collect()
}

/// What must be so whenever somebody was killed: `killed` says when.
fn assert_sound(cache: &Cache, host: &HostId, killed: &str) {
    let verified = cache.verify(&|_| {});
    assert!(verified.bad.is_empty(), "{killed}: {:#?}", verified.bad);

    // What cleaning may take must be old.
    let long_ago = SystemTime::now() - Duration::from_secs(48 * 3600);
    for path in files(cache.root()) {
        if path.strip_prefix(cache.root()).is_ok_and(|path| {
            path.starts_with("blobs") || path.starts_with("temp") || path.starts_with("manifests")
        }) {
            let file = File::options().append(true).open(&path).unwrap();
            file.set_modified(long_ago).unwrap();
        }
    }
    let removed = cache.clean(
        &Selection::Expired,
        &Needed::default(),
        Timestamp::now(),
        false,
    );
    let removed = removed.unwrap();
    assert!(removed.failed.is_empty(), "{killed}: {removed:#?}");
    assert!(removed.unreadable.is_empty(), "{killed}: {removed:#?}");
    let named = cache.named_by(host);
    let mut kept = HashSet::new();
    cache.for_each_blob(|blob| {
        kept.insert(blob.digest);
    });
    assert!(kept.is_subset(&named), "{killed}: orphaned blobs");
    let entries = cache.entries();
    for path in files(cache.root()) {
        let path = path.strip_prefix(cache.root()).unwrap();
        let is_known = path.starts_with("blobs")
            || path.starts_with("refs")
            || path == Path::new("CACHEDIR.TAG")
            || path.starts_with("manifests")
                && entries.iter().any(|entry| {
                    let name = path.file_name().unwrap().to_str().unwrap();
                    let version = entry.version.version.to_string();
                    name == format!("{version}.json") || name == format!("{version}.meta.json")
                });
        assert!(is_known, "{killed}: {} is left", path.display());
    }
}

/// All of them, or so many at random.
fn sample(mut all: Vec<Point>, most: usize, proof: &Proof) -> Vec<Point> {
    let mut random = proof.random();
    while all.len() > most {
        all.swap_remove(random.index(all.len()));
    }
    all
}

#[test]
fn a_publisher_killed_at_any_system_call_leaves_nothing_bad() {
    if !is_installed() {
        return;
    }
    let proof = Proof::start(
        "no bad blob under a good name, no orphan after cleaning",
        "a process that publishes is killed at each of its system calls that concern files (strace); \
         then every blob is hashed, the cache cleaned, and the same published again",
    );
    let start = || {
        let dir = tempfile::tempdir().unwrap();
        (publisher(&dir.path().join("cache")), dir)
    };
    let all = points(&start().0, Some((BEGIN, END)));
    assert!(all.len() > 100, "{}", all.len());
    let found = all.len();
    let chosen = sample(all, proof.pick(60, usize::MAX), &proof);
    for point in &chosen {
        let dir = killed_at(point, start);
        let cache = Cache::new(dir.path().join("cache"));
        let when = format!("killed at {point}");
        assert_sound(&cache, &host(), &when);
        for version in VERSIONS {
            publish(&cache, version);
            for bytes in contents(version) {
                let digest = Digest::of(&bytes);
                let size = cache.verified_size(digest);
                assert_eq!(size, Some(bytes.len() as u64), "{when}");
            }
            let id = format!("acme/kit@{version}").parse().unwrap();
            assert!(cache.read_manifest(&host(), &id).is_some(), "{when}");
        }
        assert_sound(&cache, &host(), &when);
    }
    let kills = chosen.len();
    proof.held(json!({"system calls": found, "kills": kills, "bad blobs": 0, "orphans": 0}));
}

#[test]
fn a_load_killed_at_any_system_call_leaves_nothing_bad() {
    if !is_installed() {
        return;
    }
    let proof = Proof::start(
        "a killed download leaves nothing bad and is completed by the next",
        "`musherfs load` with a limited cache is killed at the n-th call of each kind that concerns \
         files, once for each thread that makes as many, in whichever is first; checked as above, \
         then loaded and hashed",
    );
    let registry = TestRegistry::start();
    let files = contents("1.0.0");
    let names = ["a.md", "b.md", "c.md"];
    let listed: Vec<(&str, &[u8])> = names
        .iter()
        .zip(&files)
        .map(|(name, bytes)| (*name, bytes.as_slice()))
        .collect();
    registry.publish("acme", "kit", "1.0.0", &listed);
    let host: HostId = registry.host_id().parse().unwrap();
    let url = registry.url();
    let load = |home: &Home| {
        let mut command = home.command(["load", "acme/kit"]);
        command
            .env("MUSHER_API_URL", &url)
            .env("MUSHERFS_CACHE_MAX_SIZE", "1MiB")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    };
    let all = in_each([(); 3].map(|()| points(&load(&Home::new()), None)));
    let found = all.len();
    let chosen = sample(all, proof.pick(15, usize::MAX), &proof);
    for point in &chosen {
        let home = killed_at(point, || {
            let home = Home::new();
            (load(&home), home)
        });
        let cache = Cache::new(home.cache());
        let when = format!("load killed at {point}");
        assert_sound(&cache, &host, &when);
        assert!(load(&home).status().unwrap().success(), "{when}");
        for bytes in &files {
            let size = cache.verified_size(Digest::of(bytes));
            assert_eq!(size, Some(bytes.len() as u64), "{when}");
        }
        assert_sound(&cache, &host, &when);
    }
    let kills = chosen.len();
    proof.held(json!({"system calls": found, "kills": kills, "bad blobs": 0, "orphans": 0}));
}
