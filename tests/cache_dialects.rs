//! Entries as each Musher tool writes them, whole and damaged: a hit or a miss, never a panic.
//!
//! `fixtures/cache/tools/<tool>` is a cache root as that tool leaves it: one bundle of two files.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use musherfs::cache::{Cache, HostId};
use musherfs::digest::Digest;
use musherfs::manifest::State;
use musherfs::reference::{BundleId, VersionRef};
use tempfile::TempDir;

const TOOLS: [&str; 6] = [
    "python",
    "typescript",
    "musher-cli",
    "mush-4.2.0",
    "mush-branch",
    "local-pack",
];
const HELLO: &[u8] = b"hello\n";
const WORLD: &[u8] = b"world\n";

/// A copy of a tool's cache that a test may damage.
struct Fixture {
    dir: TempDir,
    host: HostId,
}

impl Fixture {
    fn of(tool: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cache/tools");
        copy_tree(&from.join(tool), dir.path());
        let host = match tool {
            "local-pack" => HostId::local(),
            _ => "api.musher.dev".parse().unwrap(),
        };
        Self { dir, host }
    }

    fn cache(&self) -> Cache {
        Cache::new(self.dir.path().to_owned())
    }

    fn entry(&self, kind: &str, name: &str) -> PathBuf {
        let dir = self.dir.path().join(kind).join(self.host.as_str());
        dir.join("acme/kit").join(name)
    }
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in walkdir::WalkDir::new(from) {
        let entry = entry.unwrap();
        let target = to.join(entry.path().strip_prefix(from).unwrap());
        if entry.file_type().is_dir() {
            fs::create_dir_all(target).unwrap();
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn kit() -> VersionRef {
    "acme/kit@1.2.0".parse().unwrap()
}

fn bundle() -> BundleId {
    "acme/kit".parse().unwrap()
}

/// When all fixtures were fetched.
fn fetched() -> Timestamp {
    "2026-11-20T11:29:40.974994Z".parse().unwrap()
}

fn after(seconds: i64) -> Timestamp {
    fetched() + SignedDuration::from_secs(seconds)
}

#[test]
fn every_tools_entry_is_a_hit_with_the_same_files() {
    let mut tables = Vec::new();
    for tool in TOOLS {
        let fixture = Fixture::of(tool);
        let cache = fixture.cache();
        let cached = cache.read_manifest(&fixture.host, &kit()).expect(tool);
        let files: Vec<_> = cached
            .manifest
            .files()
            .map(|file| (file.path().to_owned(), file.size(), file.digest()))
            .collect();
        let expected = [
            ("prompts/p0.md".to_owned(), 6, Digest::of(HELLO)),
            ("skills/greet/SKILL.md".to_owned(), 6, Digest::of(WORLD)),
        ];
        assert_eq!(files, expected, "{tool}");
        assert!(!cached.is_superset, "{tool}");
        for digest in [Digest::of(HELLO), Digest::of(WORLD)] {
            assert_eq!(cache.blob_size(digest), Some(6), "{tool}");
        }
        tables.push(cached.manifest.table_digest());
    }
    tables.dedup();
    assert_eq!(tables.len(), 1, "the same files have the same numbers");
}

#[test]
fn every_tools_entry_is_as_fresh_as_its_sidecar_says() {
    for tool in TOOLS {
        let fixture = Fixture::of(tool);
        let cached = fixture
            .cache()
            .read_manifest(&fixture.host, &kit())
            .unwrap();
        let (at_once, after_a_day) = match tool {
            // Without a sidecar nobody knows.
            "mush-4.2.0" => (false, false),
            "local-pack" => (true, true),
            _ => (true, false),
        };
        assert_eq!(cached.is_fresh(after(60)), at_once, "{tool}");
        assert_eq!(cached.is_fresh(after(86_300)), at_once, "{tool}");
        assert_eq!(cached.is_fresh(after(86_401)), after_a_day, "{tool}");
        // The clock went back by a minute, then by an hour.
        assert_eq!(cached.is_fresh(after(-60)), at_once, "{tool}");
        assert_eq!(cached.is_fresh(after(-3600)), after_a_day, "{tool}");
        assert_eq!(
            cached.remaining(after(86_401)).is_zero(),
            !after_a_day,
            "{tool}"
        );
    }
}

#[test]
fn every_tools_latest_is_understood() {
    for tool in TOOLS {
        let fixture = Fixture::of(tool);
        let cache = fixture.cache();
        let latest = cache
            .read_ref(&fixture.host, &bundle(), "latest")
            .expect(tool);
        assert_eq!(latest.version.as_str(), "1.2.0", "{tool}");
        let (at_once, later) = match tool {
            "mush-4.2.0" => (false, false),
            "local-pack" => (true, true),
            _ => (true, false),
        };
        assert_eq!(latest.is_fresh(after(299)), at_once, "{tool}");
        assert_eq!(latest.is_fresh(after(301)), later, "{tool}");
    }
}

#[test]
fn refs_of_other_aliases_are_read() {
    let fixture = Fixture::of("typescript");
    let cache = fixture.cache();
    for alias in ["^1.0", "1.2.0"] {
        assert!(
            cache.read_ref(&fixture.host, &bundle(), alias).is_some(),
            "{alias}"
        );
    }
    assert_eq!(cache.read_ref(&fixture.host, &bundle(), "stable"), None);
}

#[test]
fn what_is_cached_can_be_listed() {
    for tool in TOOLS {
        let fixture = Fixture::of(tool);
        let cache = fixture.cache();
        let namespace = "acme".parse().unwrap();
        assert_eq!(cache.hosts(), std::slice::from_ref(&fixture.host), "{tool}");
        assert_eq!(cache.namespaces(&fixture.host), [namespace], "{tool}");
        let namespace = bundle().namespace;
        assert_eq!(
            cache.bundles(&fixture.host, &namespace),
            [bundle().slug],
            "{tool}"
        );
        assert_eq!(
            cache.versions(&fixture.host, &bundle()),
            [kit().version],
            "{tool}"
        );
        assert_eq!(
            cache.versions_with_state(&fixture.host, &bundle()),
            [(kit().version, State::Published)],
            "{tool}"
        );
        let usage = cache.usage();
        assert_eq!(
            (usage.blobs, usage.blob_bytes, usage.entries),
            (2, 12, 1),
            "{tool}"
        );
        assert!(usage.total_bytes > 12, "{tool}");
    }
}

#[test]
fn a_listing_leaves_out_sidecars_temporary_files_and_what_is_no_version() {
    let fixture = Fixture::of("python");
    for name in [
        "tmpab12cd34.json",
        ".1.3.0.json",
        "latest.json",
        "^1.0.json",
        "1.2.0-a.meta.json",
        "1.4.0.txt",
    ] {
        fs::write(fixture.entry("manifests", name), "{}").unwrap();
    }
    fs::write(
        fixture.entry("manifests", "1.10.0.json"),
        r#"{"state": "yanked", "then": "#,
    )
    .unwrap();
    fs::create_dir(fixture.entry("manifests", "1.5.0.json")).unwrap();
    symlink("1.2.0.json", fixture.entry("manifests", "1.6.0.json")).unwrap();
    let cache = fixture.cache();
    let versions = cache.versions(&fixture.host, &bundle());
    let versions: Vec<_> = versions.iter().map(|version| version.as_str()).collect();
    assert_eq!(versions, ["1.2.0", "1.10.0"]);
    // The state is read from the head alone.
    let states = cache.versions_with_state(&fixture.host, &bundle());
    assert_eq!(states[1].1, State::Yanked);
}

#[test]
fn entries_under_another_tools_spelling_of_the_host_are_read() {
    for (url, written_as) in [
        ("http://[::1]:8080", "[__1]_8080"),
        ("http://[::1]:8080", "__1_8080"),
        ("http://[::1]:8080", "::1_8080"),
        ("https://api.musher.dev", "api.musher.dev_443"),
    ] {
        let fixture = Fixture::of("python");
        for kind in ["manifests", "refs"] {
            let dir = fixture.dir.path().join(kind);
            fs::rename(dir.join("api.musher.dev"), dir.join(written_as)).unwrap();
        }
        let host = HostId::from_url(&url::Url::parse(url).unwrap()).unwrap();
        let cache = fixture.cache();
        assert!(cache.read_manifest(&host, &kit()).is_some(), "{written_as}");
        assert!(
            cache.read_ref(&host, &bundle(), "latest").is_some(),
            "{written_as}"
        );
        assert_eq!(
            cache.versions(&host, &bundle()),
            [kit().version],
            "{written_as}"
        );
        cache.remove_manifest(&host, &kit()).unwrap();
        assert!(cache.read_manifest(&host, &kit()).is_none(), "{written_as}");
    }
}

#[test]
fn mush_leftovers_are_found_where_they_are() {
    let fixture = Fixture::of("mush-4.2.0");
    let cache = fixture.cache();
    let path = "prompts/p0.md".parse().unwrap();
    let mut copy = cache.legacy_copy(&kit(), &path).unwrap();
    assert_eq!(
        std::io::read_to_string(&mut copy).unwrap().as_bytes(),
        HELLO
    );
    assert!(
        cache
            .legacy_copy(&kit(), &"prompts".parse().unwrap())
            .is_none()
    );
    assert!(
        cache
            .legacy_copy(&kit(), &"none".parse().unwrap())
            .is_none()
    );
}

/// What can be in place of a file. `None` removes it.
fn damages() -> Vec<(&'static str, Option<Vec<u8>>)> {
    vec![
        ("missing", None),
        ("empty", Some(vec![])),
        ("cut off", Some(b"{\"version\": \"1.2".to_vec())),
        ("only a byte order mark", Some(b"\xef\xbb\xbf".to_vec())),
        ("null", Some(b"null".to_vec())),
        ("array", Some(b"[]".to_vec())),
        ("number", Some(b"17".to_vec())),
        ("string", Some(b"\"1.2.0\"".to_vec())),
        (
            "no UTF-8",
            Some(b"{\"namespace\": \"ac\xff\xfe\"}".to_vec()),
        ),
        (
            "no UTF-8, unread",
            Some(b"{\"x\": \"\xff\xfe\", \"layers\": []}".to_vec()),
        ),
        ("deep", Some("[".repeat(100_000).into_bytes())),
        ("object of nothing", Some(b"{}".to_vec())),
        ("two objects", Some(b"{}{}".to_vec())),
    ]
}

fn damage(path: &Path, content: Option<&[u8]>) {
    match content {
        Some(content) => fs::write(path, content).unwrap(),
        None => fs::remove_file(path).unwrap(),
    }
}

#[test]
fn a_damaged_manifest_is_a_miss() {
    for (what, content) in damages() {
        let fixture = Fixture::of("python");
        damage(
            &fixture.entry("manifests", "1.2.0.json"),
            content.as_deref(),
        );
        let cached = fixture.cache().read_manifest(&fixture.host, &kit());
        assert!(cached.is_none(), "{what}");
    }
    let place = |make: &dyn Fn(&Path)| {
        let fixture = Fixture::of("python");
        let path = fixture.entry("manifests", "1.2.0.json");
        fs::remove_file(&path).unwrap();
        make(&path);
        fixture.cache().read_manifest(&fixture.host, &kit())
    };
    assert!(place(&|path| fs::create_dir(path).unwrap()).is_none());
    assert!(place(&|path| symlink(path, path).unwrap()).is_none());
    assert!(place(&|path| symlink("/dev/zero", path).unwrap()).is_none());
    // Sparse, one byte too many.
    let large = |path: &Path| {
        let file = fs::File::create(path).unwrap();
        file.set_len(64 * 1024 * 1024 + 1).unwrap();
    };
    assert!(place(&large).is_none());
}

#[test]
fn a_damaged_sidecar_makes_its_manifest_stale_and_no_more() {
    for (what, content) in damages() {
        let fixture = Fixture::of("python");
        damage(
            &fixture.entry("manifests", "1.2.0.meta.json"),
            content.as_deref(),
        );
        let cached = fixture
            .cache()
            .read_manifest(&fixture.host, &kit())
            .expect(what);
        assert!(!cached.is_fresh(after(1)), "{what}");
    }
}

#[test]
fn a_sidecar_is_as_fresh_as_what_can_be_understood_of_it() {
    let at = r#""2026-11-20T11:29:40Z""#;
    for (json, fresh) in [
        (
            format!(r#"{{"fetchedAt": {at}, "ttlSeconds": 86400}}"#),
            true,
        ),
        (
            format!("\u{feff}{{\"fetchedAt\": {at}, \"ttlSeconds\": 86400}}"),
            true,
        ),
        (format!(r#"{{"fetchedAt": {at}}}"#), true),
        (
            format!(r#"{{"fetchedAt": {at}, "ttlSeconds": null}}"#),
            true,
        ),
        (
            format!(r#"{{"fetchedAt": {at}, "ttlSeconds": "86400"}}"#),
            true,
        ),
        (format!(r#"{{"fetchedAt": {at}, "ttl": 86400.0}}"#), true),
        (format!(r#"{{"fetchedAt": {at}, "ttl": 0}}"#), false),
        (
            format!(r#"{{"fetchedAt": {at}, "ttlSeconds": -1, "ttl": 86400}}"#),
            false,
        ),
        (
            r#"{"fetchedAt": "2026-11-20T11:29:40", "ttlSeconds": 86400}"#.into(),
            true,
        ),
        (
            r#"{"fetchedAt": 1795174180, "ttlSeconds": 86400}"#.into(),
            true,
        ),
        (
            r#"{"fetchedAt": "never", "ttlSeconds": 86400}"#.into(),
            false,
        ),
        (r#"{"fetchedAt": null, "ttlSeconds": 86400}"#.into(), false),
        (
            r#"{"fetchedAt": "2026-11-21T00:00:00Z", "ttlSeconds": 86400}"#.into(),
            false,
        ),
        (r#"{"ttlSeconds": 86400}"#.into(), false),
    ] {
        let fixture = Fixture::of("python");
        fs::write(fixture.entry("manifests", "1.2.0.meta.json"), &json).unwrap();
        let cached = fixture
            .cache()
            .read_manifest(&fixture.host, &kit())
            .unwrap();
        assert_eq!(cached.is_fresh(after(60)), fresh, "{json}");
    }
}

#[test]
fn a_damaged_ref_is_a_miss_or_stale() {
    for (what, content) in damages() {
        let fixture = Fixture::of("python");
        damage(&fixture.entry("refs", "latest.json"), content.as_deref());
        let latest = fixture.cache().read_ref(&fixture.host, &bundle(), "latest");
        assert_eq!(latest, None, "{what}");
    }
    for expires in ["null", "\"soon\"", "{}", "\"0001-01-01T00:00:00Z\""] {
        let fixture = Fixture::of("python");
        let json = format!(r#"{{"version": "1.2.0", "expiresAt": {expires}}}"#);
        fs::write(fixture.entry("refs", "latest.json"), json).unwrap();
        let latest = fixture.cache().read_ref(&fixture.host, &bundle(), "latest");
        assert!(!latest.unwrap().is_fresh(after(1)), "{expires}");
    }
}

/// Replaces the manifest by `json` and counts its files.
fn files_of(json: &str) -> Option<usize> {
    let fixture = Fixture::of("python");
    fs::write(fixture.entry("manifests", "1.2.0.json"), json).unwrap();
    let cached = fixture.cache().read_manifest(&fixture.host, &kit())?;
    Some(cached.manifest.files().count())
}

fn layer(size: &str) -> String {
    let hex = Digest::of(HELLO).hex();
    format!(r#"{{"logicalPath": "a.md", "contentSha256": "{hex}"{size}}}"#)
}

#[test]
fn the_list_of_files_is_looked_for_in_every_place_but_never_guessed() {
    let layer = layer(r#", "sizeBytes": 6"#);
    for (json, files) in [
        (
            format!(r#"{{"manifest": {{"layers": [{layer}]}}}}"#),
            Some(1),
        ),
        (format!(r#"{{"layers": [{layer}]}}"#), Some(1)),
        (format!(r#"{{"assets": [{layer}]}}"#), Some(1)),
        (
            format!(r#"{{"manifest": null, "layers": [{layer}]}}"#),
            Some(1),
        ),
        (
            format!(r#"{{"manifest": {{"layers": null}}, "layers": [{layer}]}}"#),
            Some(1),
        ),
        (
            format!(r#"{{"manifest": {{"layers": []}}, "layers": [{layer}]}}"#),
            Some(0),
        ),
        (r#"{"layers": []}"#.into(), Some(0)),
        (r#"{"manifest": {"layers": []}}"#.into(), Some(0)),
        // An absent list is no empty bundle.
        ("{}".into(), None),
        (r#"{"manifest": null}"#.into(), None),
        (r#"{"layers": null}"#.into(), None),
        (r#"{"manifest": {}}"#.into(), None),
        (r#"{"manifest": [], "layers": []}"#.into(), None),
        (r#"{"layers": {}}"#.into(), None),
        (format!("\u{feff}{{\"layers\": [{layer}]}}"), Some(1)),
        (
            format!(r#"{{"version": "1.2.0", "layers": [{layer}]}}"#),
            Some(1),
        ),
        // It is about something else.
        (
            format!(r#"{{"version": "1.2.1", "layers": [{layer}]}}"#),
            None,
        ),
        (format!(r#"{{"slug": "kit2", "layers": [{layer}]}}"#), None),
        (
            format!(r#"{{"namespace": "Acme", "layers": [{layer}]}}"#),
            None,
        ),
        (format!(r#"{{"namespace": 7, "layers": [{layer}]}}"#), None),
        (
            format!(r#"{{"state": "exploded", "layers": [{layer}]}}"#),
            Some(1),
        ),
    ] {
        assert_eq!(files_of(&json), files, "{json}");
    }
}

#[test]
fn one_unusable_layer_spoils_its_entry() {
    let hex = Digest::of(HELLO).hex();
    for (bad, files) in [
        (layer(r#", "sizeBytes": 6"#), Some(1)),
        (layer(r#", "size": 6"#), Some(1)),
        (layer(r#", "sizeBytes": 6.0"#), Some(1)),
        // The blob is there and knows its size.
        (layer(""), Some(1)),
        (layer(r#", "sizeBytes": null"#), Some(1)),
        (layer(r#", "sizeBytes": -6"#), None),
        (layer(r#", "sizeBytes": 6.5"#), None),
        (layer(r#", "sizeBytes": "6""#), None),
        (layer(r#", "sizeBytes": 1e300"#), None),
        (
            layer(r#", "sizeBytes": 6"#).replace(&hex, &hex.to_uppercase()),
            Some(1),
        ),
        (
            layer(r#", "sizeBytes": 6"#).replace(&hex, &format!("sha256:{hex}")),
            Some(1),
        ),
        (layer(r#", "sizeBytes": 6"#).replace(&hex, "5891"), None),
        // Nobody knows the size of what is not there.
        (layer("").replace(&hex, &Digest::of(b"absent").hex()), None),
        (
            format!(r#"{{"contentSha256": "{hex}", "sizeBytes": 6}}"#),
            None,
        ),
        (r#"{"logicalPath": "a.md", "sizeBytes": 6}"#.into(), None),
        ("null".into(), None),
        ("7".into(), None),
    ] {
        assert_eq!(
            files_of(&format!(r#"{{"layers": [{bad}]}}"#)),
            files,
            "{bad}"
        );
    }
}

#[test]
fn writing_over_any_tools_entry_heals_it() {
    for tool in TOOLS {
        let fixture = Fixture::of(tool);
        let cache = fixture.cache();
        let before = cache.read_manifest(&fixture.host, &kit()).unwrap().manifest;
        let now = after(3600);
        cache.write_manifest(&fixture.host, &before, now).unwrap();
        let after = cache.read_manifest(&fixture.host, &kit()).unwrap();
        assert_eq!(
            after.manifest.table_digest(),
            before.table_digest(),
            "{tool}"
        );
        // A locally packed bundle belongs to musher-cli and stays as it is.
        let is_ours = !fixture.host.is_local();
        assert_eq!(after.is_superset, is_ours, "{tool}");
        assert_eq!(after.fetched_at == Some(now), is_ours, "{tool}");
    }
}

#[test]
fn an_entry_that_another_tool_wrote_over_is_seen_to_need_healing() {
    let fixture = Fixture::of("python");
    let cache = fixture.cache();
    let manifest = cache.read_manifest(&fixture.host, &kit()).unwrap().manifest;
    let is_superset = || {
        cache
            .read_manifest(&fixture.host, &kit())
            .unwrap()
            .is_superset
    };
    for (tool, name) in [
        ("mush-4.2.0", "1.2.0.json"),
        ("typescript", "1.2.0.json"),
        ("python", "1.2.0.meta.json"),
        ("musher-cli", "1.2.0.meta.json"),
    ] {
        cache
            .write_manifest(&fixture.host, &manifest, fetched())
            .unwrap();
        assert!(is_superset(), "{tool}");
        let source = Fixture::of(tool);
        fs::copy(
            source.entry("manifests", name),
            fixture.entry("manifests", name),
        )
        .unwrap();
        assert!(!is_superset(), "{tool}");
    }
}
