//! The superset entry: its bytes, and that it is every other tool's own.
//!
//! The other tools cannot run here. `models` says how each reads, and `cleaners` what each deletes,
//! as their sources do; the models are tried on the tools' own entries first.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cleaners;
mod models;

use std::fs;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use models::{CLI, Entry, File, MUSH_BRANCH, PYTHON, Read, TOOLS, TYPESCRIPT};
use musherfs::cache::{Blob, Cache, HostId};
use musherfs::digest::Digest;
use musherfs::manifest::{Info, Layer, Manifest, State};
use musherfs::reference::VersionRef;
use tempfile::TempDir;

const CONTENTS: [&[u8]; 2] = [b"hello\n", b"world\n"];

fn host() -> HostId {
    "api.musher.dev".parse().unwrap()
}

fn fetched() -> Timestamp {
    "2026-11-20T11:29:40.974994Z".parse().unwrap()
}

fn after(seconds: i64) -> Timestamp {
    fetched() + SignedDuration::from_secs(seconds)
}

fn layer(path: &str, content: &[u8], asset_type: &str, media_type: Option<&str>) -> Layer {
    Layer {
        path: path.to_owned(),
        digest: Digest::of(content),
        size: Some(content.len() as u64),
        asset_type: asset_type.to_owned(),
        asset_id: String::new(),
        media_type: media_type.map(str::to_owned),
    }
}

fn manifest(version: &str, info: Info, layers: Vec<Layer>) -> Manifest {
    let id: VersionRef = format!("acme/kit@{version}").parse().unwrap();
    Manifest::new(id, info, layers).unwrap()
}

fn kit() -> Manifest {
    let info = Info {
        bundle_id: "cf69928e-ff68-4032-859c-6c72f7b06aa4".into(),
        version_id: "6743cf88-d235-4b0e-8aec-34bfd8370db8".into(),
        name: "Kit".into(),
        source_type: "console".into(),
        ..Info::default()
    };
    let layers = vec![
        layer("skills/greet/SKILL.md", CONTENTS[1], "skill", None),
        Layer {
            asset_id: "2966d059-52d2-4a33-9d1b-9b4dbd30ae4c".into(),
            ..layer(
                "prompts/p0.md",
                CONTENTS[0],
                "prompt",
                Some("text/markdown"),
            )
        },
    ];
    manifest("1.2.0", info, layers)
}

/// Every awkward thing that a registry may send.
fn awkward() -> Manifest {
    let info = Info {
        description: Some("says \"hi\" \\ and\n\u{7} and …".into()),
        source_type: "carrier-pigeon".into(),
        oci_ref: Some("bundles.musher.dev/acme/kit:2.0.0-rc.1+build.5".into()),
        oci_digest: Some(Digest::of(b"oci").to_string()),
        state: State::Yanked,
        ..Info::default()
    };
    let layers = vec![
        layer("ü/…/\"quoted\".md", b"", "", None),
        layer("../../etc/passwd", b"hello\n", "brand-new-type", None),
        layer("", b"hello\n", "other", None),
        layer("a", b"hello\n", "other", None),
        layer("a/b", b"hello\n", "other", None),
        layer("twice", b"hello\n", "other", None),
        layer("twice", b"world\n", "other", None),
    ];
    manifest("2.0.0-rc.1+build.5", info, layers)
}

/// A cache that holds [`kit`], its blobs and its ref.
struct Kit {
    dir: TempDir,
    cache: Cache,
}

impl Kit {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path().join("musher"));
        let manifest = kit();
        for content in CONTENTS {
            let mut writer = cache.blob_writer(64);
            writer.write(content).unwrap();
            let blob = writer.finish(Digest::of(content)).unwrap();
            assert!(matches!(blob, Blob::File(_)));
        }
        let id = manifest.id();
        cache.write_manifest(&host(), &manifest, fetched()).unwrap();
        cache
            .write_ref(&host(), &id.bundle, "latest", &id.version, fetched())
            .unwrap();
        Self { dir, cache }
    }

    fn root(&self) -> &Path {
        self.cache.root()
    }

    fn entry(&self) -> Entry {
        Entry::new(self.root(), "api.musher.dev")
    }
}

fn golden(name: &str) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cache/golden");
    fs::read_to_string(dir.join(name)).unwrap()
}

#[test]
fn the_bytes_on_disk_are_those_of_the_golden_files() {
    let kit = Kit::new();
    let written = |path: &str| fs::read_to_string(kit.root().join(path)).unwrap();
    let id = "api.musher.dev/acme/kit";
    for (path, name) in [
        (format!("manifests/{id}/1.2.0.json"), "kit.json"),
        (format!("manifests/{id}/1.2.0.meta.json"), "kit.meta.json"),
        (format!("refs/{id}/latest.json"), "latest.json"),
        ("CACHEDIR.TAG".to_owned(), "CACHEDIR.TAG"),
    ] {
        assert_eq!(written(&path), golden(name), "{path}");
    }
    let empty = manifest("0.0.0", Info::default(), vec![]);
    for (manifest, name) in [(empty, "empty.json"), (awkward(), "awkward.json")] {
        kit.cache
            .write_manifest(&host(), &manifest, fetched())
            .unwrap();
        let version = &manifest.id().version;
        assert_eq!(
            written(&format!("manifests/{id}/{version}.json")),
            golden(name),
            "{name}"
        );
    }
    let sidecar = written(&format!("manifests/{id}/2.0.0-rc.1+build.5.meta.json"));
    assert_eq!(sidecar, golden("awkward.meta.json"));
}

#[test]
fn what_is_written_reads_back_as_the_same_table() {
    let kit_cache = Kit::new();
    for manifest in [kit(), awkward(), manifest("0.0.0", Info::default(), vec![])] {
        kit_cache
            .cache
            .write_manifest(&host(), &manifest, fetched())
            .unwrap();
        let cached = kit_cache
            .cache
            .read_manifest(&host(), manifest.id())
            .unwrap();
        assert!(cached.is_superset, "{manifest:?}");
        assert!(cached.is_fresh(after(86_399)));
        assert!(!cached.is_fresh(after(86_400)));
        assert_eq!(cached.manifest.table_digest(), manifest.table_digest());
        assert_eq!(
            cached.manifest.refused().count(),
            manifest.refused().count()
        );
        assert_eq!(cached.manifest.info().state, manifest.info().state);
        let details = |manifest: &Manifest| -> Vec<_> {
            manifest
                .entries()
                .map(|entry| {
                    let texts = [entry.asset_id(), entry.asset_type()].map(str::to_owned);
                    (texts, entry.media_type().map(str::to_owned))
                })
                .collect()
        };
        assert_eq!(details(&cached.manifest), details(&manifest));
    }
}

#[test]
fn a_large_table_is_written_and_read_back() {
    let layers = (0..30_000)
        .map(|i| {
            layer(
                &format!("d{}/s{}/file-{i:06}.md", i % 150, i % 7),
                b"x",
                "other",
                None,
            )
        })
        .collect();
    let manifest = manifest("1.0.0", Info::default(), layers);
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path().to_owned());
    cache.write_manifest(&host(), &manifest, fetched()).unwrap();
    let cached = cache.read_manifest(&host(), manifest.id()).unwrap();
    assert!(cached.is_superset);
    assert_eq!(cached.manifest.table_digest(), manifest.table_digest());
}

#[test]
fn an_entry_too_large_for_its_readers_is_not_written() {
    let deep = ["x".repeat(250).as_str(); 14].join("/");
    let layers = (0..10_000)
        .map(|i| layer(&format!("{deep}/{i}"), b"x", "other", None))
        .collect();
    let manifest = manifest("1.0.0", Info::default(), layers);
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path().to_owned());
    cache.write_manifest(&host(), &manifest, fetched()).unwrap();
    assert!(cache.versions(&host(), &manifest.id().bundle).is_empty());
    let left = fs::read_dir(dir.path().join("temp")).unwrap().count();
    assert_eq!(left, 0, "nothing is left behind");
}

#[test]
fn the_superset_is_a_hit_in_every_tool() {
    let kit = Kit::new();
    let files = |has_sizes: bool| -> Vec<File> {
        [
            ("prompts/p0.md", CONTENTS[0]),
            ("skills/greet/SKILL.md", CONTENTS[1]),
        ]
        .into_iter()
        .map(|(path, content)| File {
            path: path.into(),
            sha256: Digest::of(content).hex(),
            size: has_sizes.then_some(6),
        })
        .collect()
    };
    for tool in TOOLS {
        let read = (tool.manifest)(&kit.entry(), after(60));
        match tool.name {
            // Its store knows no sidecar, and its blobs are elsewhere.
            "mush-4.2.0" => {
                assert_eq!(read, Read::Hit(files(true)), "{}", tool.name);
                assert!(!(tool.has_blob)(
                    &kit.entry(),
                    &Digest::of(CONTENTS[0]).hex()
                ));
            }
            _ => {
                assert_eq!(read, Read::Hit(files(true)), "{}", tool.name);
                for content in CONTENTS {
                    let hex = Digest::of(content).hex();
                    assert!((tool.has_blob)(&kit.entry(), &hex), "{}", tool.name);
                }
                assert_eq!((tool.manifest)(&kit.entry(), after(90_000)), Read::Miss);
            }
        }
    }
    let latest = |tool: models::Tool| (tool.latest)(&kit.entry(), after(60));
    assert_eq!(latest(PYTHON), Read::Hit("1.2.0".to_owned()));
    assert_eq!(latest(TYPESCRIPT), Read::Hit("1.2.0".to_owned()));
    // They want a date where Python wants a number, and ask the registry instead.
    assert_eq!(latest(CLI), Read::Miss);
    assert_eq!(latest(MUSH_BRANCH), Read::Miss);
}

#[test]
fn awkward_and_empty_entries_crash_nobody() {
    let kit = Kit::new();
    for manifest in [awkward(), manifest("0.0.0", Info::default(), vec![])] {
        kit.cache
            .write_manifest(&host(), &manifest, fetched())
            .unwrap();
        let listed = manifest.entries().filter(|entry| !entry.is_dir()).count();
        for tool in TOOLS {
            let entry = kit.entry().of_version(manifest.id().version.as_str());
            match (tool.manifest)(&entry, after(60)) {
                Read::Hit(files) => assert_eq!(files.len(), listed, "{}", tool.name),
                other => panic!("{}: {other:?}", tool.name),
            }
        }
    }
}

#[test]
fn the_models_read_the_tools_own_entries_as_the_tools_do() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cache/tools");
    let outcome = |tool: models::Tool, writer: &str| match (tool.manifest)(
        &Entry::new(&root.join(writer), "api.musher.dev"),
        after(60),
    ) {
        Read::Hit(files) => format!("hit {}", files.len()),
        other => format!("{other:?}").to_lowercase(),
    };
    let columns = [PYTHON, TYPESCRIPT, CLI, MUSH_BRANCH];
    for (writer, expected) in [
        ("python", ["hit 2", "hit 2", "hit 0", "miss"]),
        ("typescript", ["hit 2", "hit 2", "hit 0", "miss"]),
        ("musher-cli", ["crash", "hit 0", "hit 2", "hit 0"]),
        ("mush-4.2.0", ["miss", "miss", "miss", "miss"]),
    ] {
        assert_eq!(
            columns.map(|tool| outcome(tool, writer)),
            expected,
            "{writer}"
        );
    }
    let latest = |tool: models::Tool, writer: &str| {
        (tool.latest)(&Entry::new(&root.join(writer), "api.musher.dev"), after(60))
    };
    let hit = Read::Hit("1.2.0".to_owned());
    assert_eq!(latest(PYTHON, "python"), hit);
    assert_eq!(latest(TYPESCRIPT, "python"), Read::Miss);
    assert_eq!(latest(PYTHON, "typescript"), Read::Miss);
    assert_eq!(latest(PYTHON, "musher-cli"), Read::Crash);
    assert_eq!(latest(CLI, "musher-cli"), hit);
    assert_eq!(latest(CLI, "python"), Read::Miss);
}

/// What is left of manifest, sidecar, ref and blobs.
fn survivors(kit: &Kit) -> [usize; 4] {
    let count = |dir: &str, wanted: &dyn Fn(&str) -> bool| {
        walkdir::WalkDir::new(kit.root().join(dir))
            .into_iter()
            .flatten()
            .filter(|entry| entry.file_type().is_file())
            .filter(|entry| wanted(entry.file_name().to_str().unwrap()))
            .count()
    };
    [
        count("manifests", &|name| !name.ends_with(".meta.json")),
        count("manifests", &|name| name.ends_with(".meta.json")),
        count("refs", &|_| true),
        count("blobs", &|_| true),
    ]
}

#[test]
fn a_fresh_superset_survives_every_tools_cleaning() {
    for (name, clean) in cleaners::ALL {
        let kit = Kit::new();
        clean(kit.root(), "api.musher.dev", after(60));
        assert_eq!(survivors(&kit), [1, 1, 1, 2], "{name}");
    }
}

#[test]
fn an_expired_superset_is_cleaned_like_the_tools_own() {
    for (name, clean) in cleaners::ALL {
        let kit = Kit::new();
        clean(kit.root(), "api.musher.dev", after(25 * 3600));
        let expected = match name {
            "python clean" | "typescript clean" => [0, 0, 0, 0],
            "musher-cli clean-expired" | "mush branch clean" => [0, 0, 1, 0],
            _ => [1, 1, 1, 2],
        };
        assert_eq!(survivors(&kit), expected, "{name}");
    }
}

#[test]
fn the_cache_recovers_from_every_tools_cleaning() {
    for (name, clean) in cleaners::ALL {
        let kit_cache = Kit::new();
        clean(kit_cache.root(), "other.example", after(25 * 3600));
        let manifest = kit();
        kit_cache
            .cache
            .write_manifest(&host(), &manifest, after(25 * 3600))
            .unwrap();
        let mut writer = kit_cache.cache.blob_writer(6);
        writer.write(CONTENTS[0]).unwrap();
        writer.finish(Digest::of(CONTENTS[0])).unwrap();
        let cached = kit_cache
            .cache
            .read_manifest(&host(), manifest.id())
            .unwrap();
        assert!(cached.is_superset, "{name}");
        assert!(
            kit_cache.cache.open_blob(Digest::of(CONTENTS[0])).is_some(),
            "{name}"
        );
        assert!(kit_cache.dir.path().exists());
    }
}
