//! Image layouts: exported, mounted, imported, exchanged with skopeo, and hostile.

#![allow(clippy::unwrap_used)]

mod push_harness;
mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Output;

use musherfs::digest::Digest;
use push_harness::*;
use serde_json::{Value, json};
use support::registry::TestRegistry;

const FILES: &[(&str, &[u8])] = &[
    ("prompts/review.md", b"Review this.\n"),
    ("prompts/same.md", b"Review this.\n"),
    ("skills/x/SKILL.md", b"# x\n"),
    ("empty", b""),
];

/// A layout with `acme/kit` 1.0.0 and 1.2.0, exported from a registry that is gone.
struct Exported {
    home: Home,
    layout: PathBuf,
    /// What `export --json` printed.
    rows: Value,
    /// The digest of 1.2.0's manifest in the registry.
    digest: String,
}

impl Exported {
    fn new() -> Self {
        let registry = TestRegistry::start();
        registry.publish("acme", "kit", "1.0.0", &FILES[..1]);
        let reference = registry.publish("acme", "kit", "1.2.0", FILES);
        let image = registry.storage().version(&reference).unwrap();
        let home = Home::new();
        let layout = home.path().join("layout");
        let url = registry.url();
        let rows = home.json(&[
            "export",
            "acme/kit",
            "acme/kit@1.0.0",
            layout.to_str().unwrap(),
            "--json",
            "--api-url",
            &url,
        ]);
        Self {
            home,
            layout,
            rows,
            digest: image.release.image().digest().to_string(),
        }
    }

    fn index(&self) -> Value {
        serde_json::from_slice(&fs::read(self.layout.join("index.json")).unwrap()).unwrap()
    }

    fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
        self.layout.join("blobs/sha256").join(hex)
    }

    fn blob_of(&self, content: &[u8]) -> PathBuf {
        self.blob(&Digest::of(content).hex())
    }
}

/// Runs a command on a layout, in a home of its own.
fn on_layout(home: &Home, layout: &Path, arguments: &[&str]) -> Output {
    home.command(arguments)
        .env(
            "MUSHER_OCI_REGISTRY_URL",
            format!("oci-layout:{}", layout.display()),
        )
        .output()
        .unwrap()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_str(&succeeded(output)).unwrap()
}

/// Replaces a blob by one with other bytes and points everything in the index at it.
fn replace_manifest(layout: &Path, tag: &str, change: impl FnOnce(&mut Value)) {
    let index_path = layout.join("index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&index_path).unwrap()).unwrap();
    let name = format!("acme/kit:{tag}");
    let entry = index["manifests"]
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .find(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] == name)
        .unwrap();
    let blobs = layout.join("blobs/sha256");
    let hex = entry["digest"].as_str().unwrap()[7..].to_owned();
    let mut manifest: Value = serde_json::from_slice(&fs::read(blobs.join(hex)).unwrap()).unwrap();
    change(&mut manifest);
    let bytes = manifest.to_string().into_bytes();
    let digest = Digest::of(&bytes);
    entry["digest"] = json!(digest);
    entry["size"] = json!(bytes.len());
    fs::write(blobs.join(digest.hex()), bytes).unwrap();
    fs::write(index_path, index.to_string()).unwrap();
}

#[test]
fn an_export_has_the_bytes_and_digests_of_the_registry() {
    let exported = Exported::new();
    assert_eq!(exported.rows[0]["ref"], "acme/kit@1.2.0");
    assert_eq!(exported.rows[0]["digest"], exported.digest);
    assert_eq!(exported.rows[0]["rebuilt"], false);
    assert_eq!(exported.rows[0]["files"], 4);
    for (path, content) in FILES {
        assert_eq!(
            fs::read(exported.blob_of(content)).unwrap(),
            *content,
            "{path}"
        );
    }
    let manifest = fs::read(exported.blob(&exported.digest)).unwrap();
    assert_eq!(Digest::of(&manifest).to_string(), exported.digest);
    assert_eq!(exported.index()["manifests"].as_array().unwrap().len(), 2);
    // Nothing unfinished is left, and nothing but files that hash to their names.
    for (name, bytes) in tree(&exported.layout.join("blobs/sha256")) {
        assert_eq!(Digest::of(&bytes).hex(), name);
    }
}

#[test]
fn exporting_again_adds_and_replaces_nothing_else() {
    let exported = Exported::new();
    let before = tree(&exported.layout);
    let mut index = exported.index();
    let foreign = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": Digest::of(b"x"), "size": 1});
    index["manifests"]
        .as_array_mut()
        .unwrap()
        .push(foreign.clone());
    fs::write(exported.layout.join("index.json"), index.to_string()).unwrap();
    // From the cache: the registry is gone.
    let layout = exported.layout.to_str().unwrap();
    let rows = exported
        .home
        .run(&["export", "--offline", "acme/kit@1.2.0", layout]);
    assert!(!rows.status.success(), "another registry's cache");
    let host = fs::read_dir(exported.home.path().join(".cache/musher/manifests")).unwrap();
    let host = host.map(|entry| entry.unwrap().file_name()).next().unwrap();
    let url = format!("http://{}", host.to_str().unwrap().replace('_', ":"));
    exported.home.ok(&[
        "export",
        "--offline",
        "acme/kit@1.2.0",
        layout,
        "--api-url",
        &url,
    ]);
    let manifests = exported.index()["manifests"].clone();
    let manifests = manifests.as_array().unwrap();
    assert_eq!(manifests.len(), 3);
    assert!(manifests.contains(&foreign));
    let mut after = tree(&exported.layout);
    after.insert("index.json".into(), before["index.json"].clone());
    assert_eq!(after, before);
}

#[test]
fn a_directory_with_something_else_in_it_is_not_exported_to() {
    let exported = Exported::new();
    let other = exported.home.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("thesis.tex"), "x").unwrap();
    let other = other.to_str().unwrap();
    let source = format!("oci-layout:{}", exported.layout.display());
    let output = exported
        .home
        .command(&["export", "acme/kit", other])
        .env("MUSHER_OCI_REGISTRY_URL", source)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{said}");
    assert!(said.contains("something else"), "{said}");
    assert_eq!(tree(Path::new(other)).len(), 1);
}

#[test]
fn a_layout_resolves_and_lists_like_a_registry() {
    let exported = Exported::new();
    let home = Home::new();
    let resolve = |reference: &str| on_layout(&home, &exported.layout, &["resolve", reference]);
    for (reference, version) in [
        ("acme/kit", "acme/kit@1.2.0"),
        ("acme/kit@latest", "acme/kit@1.2.0"),
        ("acme/kit@~1.0", "acme/kit@1.0.0"),
        ("acme/kit@1.0.0", "acme/kit@1.0.0"),
        (&format!("acme/kit@{}", exported.digest), "acme/kit@1.2.0"),
    ] {
        assert_eq!(
            succeeded(&resolve(reference)).trim(),
            version,
            "{reference}"
        );
    }
    assert_fails(&resolve("acme/kit@9.9.9"), 1, "not found");
    assert_fails(&resolve("acme/none"), 1, "not found");
    let listed = json_of(&on_layout(
        &home,
        &exported.layout,
        &["ls", "acme/kit", "--json"],
    ));
    assert_eq!(listed["assetCount"], 4);
    assert_eq!(listed["assets"][1]["path"], "prompts/review.md");
}

#[test]
fn an_import_fills_the_cache_for_good() {
    let exported = Exported::new();
    let home = Home::new();
    let layout = exported.layout.to_str().unwrap();
    let rows = home.json(&[
        "import",
        layout,
        "--json",
        "--api-url",
        "https://registry.test",
    ]);
    assert_eq!(rows.as_array().unwrap().len(), 2);
    assert_eq!(rows[1]["ref"], "acme/kit@1.2.0");
    assert_eq!(rows[1]["digest"], exported.digest);
    fs::remove_dir_all(&exported.layout).unwrap();
    let cache = home.path().join(".cache/musher");
    assert!(
        cache
            .join("manifests/registry.test/acme/kit/1.2.0.json")
            .exists()
    );
    for (path, content) in FILES {
        let hex = Digest::of(content).hex();
        let blob = cache.join("blobs/sha256").join(&hex[..2]).join(&hex);
        assert_eq!(fs::read(blob).unwrap(), *content, "{path}");
    }
    let offline = ["--offline", "--api-url", "https://registry.test"];
    let listed = home.json(&[&["ls", "acme/kit@1.2.0", "--json"][..], &offline].concat());
    assert_eq!(listed["assetCount"], 4);
    // And out again: the same bytes, though nobody can be asked.
    let again = home.path().join("again");
    let rows = home.json(
        &[
            &[
                "export",
                "acme/kit@1.2.0",
                again.to_str().unwrap(),
                "--json",
            ][..],
            &offline,
        ]
        .concat(),
    );
    assert_eq!(rows[0]["digest"], exported.digest);
}

#[test]
fn an_import_does_not_replace_a_version_that_is_known_with_other_content() {
    let exported = Exported::new();
    let registry = TestRegistry::start();
    registry.publish("acme", "kit", "1.2.0", &[("other", b"other")]);
    let home = Home::new();
    let url = registry.url();
    home.ok(&["ls", "acme/kit@1.2.0", "--api-url", &url]);
    let layout = exported.layout.to_str().unwrap();
    let output = home.run(&["import", layout, "--api-url", &url]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("1 of 2 versions") && said.contains("integrity alarm"),
        "{said}"
    );
    let listed = home.json(&["ls", "acme/kit@1.2.0", "--json", "--api-url", &url]);
    assert_eq!(listed["assets"][0]["path"], "other");
}

#[test]
fn a_yanked_version_stays_yanked_on_its_way() {
    let registry = TestRegistry::start();
    registry.publish("acme", "kit", "1.0.0", &FILES[..1]);
    let newest = registry.publish("acme", "kit", "1.2.0", FILES);
    registry.storage().yank(&newest, "leaks", "ada").unwrap();
    let home = Home::new();
    let layout = home.path().join("layout");
    let url = registry.url();
    home.ok(&[
        "export",
        "acme/kit@1.0.0",
        "acme/kit@1.2.0",
        layout.to_str().unwrap(),
        "--api-url",
        &url,
    ]);
    let other = Home::new();
    let resolve = |reference: &str| on_layout(&other, &layout, &["resolve", reference, "--json"]);
    assert_eq!(json_of(&resolve("acme/kit"))["version"], "1.0.0");
    assert_eq!(json_of(&resolve("acme/kit@1.2.0"))["state"], "yanked");
}

#[test]
fn skopeo_copies_both_ways_with_the_same_digests() {
    let exported = Exported::new();
    let registry = DockerRegistry::open();
    let host = registry.host.as_str();
    let from = format!("oci:{}:acme/kit:1.2.0", exported.layout.display());
    let to = format!("docker://{host}/acme/kit:1.2.0");
    skopeo(&["copy", "--dest-tls-verify=false", &from, &to]);
    let manifest = registry.get("acme/kit/manifests/1.2.0");
    assert_eq!(Digest::of(&manifest).to_string(), exported.digest);
    for (path, content) in FILES {
        let blob = registry.get(&format!("acme/kit/blobs/{}", Digest::of(content)));
        assert_eq!(blob, *content, "{path}");
    }
    let pulled = exported.home.path().join("pulled");
    oras_pull(host, "acme/kit:1.2.0", &pulled);
    assert_eq!(tree(&pulled).len(), 4);

    // With the whole name, and with the tag alone.
    for (directory, name) in [("whole", "acme/kit:1.2.0"), ("tag", "1.2.0")] {
        let back = exported.home.path().join(directory);
        let to_layout = format!("oci:{}:{name}", back.display());
        skopeo(&["copy", "--src-tls-verify=false", &to, &to_layout]);
        let home = Home::new();
        let rows = home.json(&[
            "import",
            back.to_str().unwrap(),
            "--json",
            "--api-url",
            "https://registry.test",
        ]);
        assert_eq!(rows[0]["ref"], "acme/kit@1.2.0", "{directory}");
        assert_eq!(rows[0]["digest"], exported.digest);
        assert_eq!(rows[0]["files"], 4);
    }
}

#[test]
fn what_was_published_to_a_registry_is_exported_with_its_own_manifest() {
    let registry = DockerRegistry::open();
    let home = Home::new();
    let dir = home.bundle("acme/kit@1.0.0", &[("prompts/a.md", "a\n"), ("b", "b")]);
    let published = home.json(&[
        "publish",
        dir.to_str().unwrap(),
        "--oci",
        &registry.host,
        "--json",
    ]);
    let copied = home.path().join("copied");
    let from = format!("docker://{}/acme/kit:1.0.0", registry.host);
    let to = format!("oci:{}:acme/kit:1.0.0", copied.display());
    skopeo(&["copy", "--src-tls-verify=false", &from, &to]);
    let again = home.path().join("again");
    let rows = json_of(&on_layout(
        &home,
        &copied,
        &[
            "export",
            "acme/kit@1.0.0",
            again.to_str().unwrap(),
            "--json",
        ],
    ));
    assert_eq!(
        rows[0]["digest"], published["digest"],
        "annotations included"
    );
    assert_eq!(rows[0]["rebuilt"], false);
}

#[test]
fn links_and_pipes_in_a_layout_lead_nowhere() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), "secret").unwrap();
    let content = FILES[0].1;

    let exported = Exported::new();
    let import = |exported: &Exported| {
        let home = Home::new();
        let layout = exported.layout.to_str().unwrap();
        let output = home.run(&["import", layout, "--api-url", "https://registry.test"]);
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    // Even with the right bytes behind it.
    let blob = exported.blob_of(content);
    fs::write(secret.path(), content).unwrap();
    fs::remove_file(&blob).unwrap();
    symlink(secret.path(), &blob).unwrap();
    import(&exported);

    fs::remove_file(&blob).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &blob,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    import(&exported);

    let exported = Exported::new();
    let blobs = exported.layout.join("blobs");
    let moved = exported.home.path().join("moved");
    fs::rename(&blobs, &moved).unwrap();
    symlink(&moved, &blobs).unwrap();
    import(&exported);

    let exported = Exported::new();
    let index = exported.layout.join("index.json");
    let moved = exported.home.path().join("index.json");
    fs::rename(&index, &moved).unwrap();
    symlink(&moved, &index).unwrap();
    import(&exported);
}

#[test]
fn wrong_missing_and_oversized_blobs_fail_and_leave_nothing_behind() {
    let content = FILES[2].1;
    type Damage = fn(&Exported);
    let damages: [(&str, Damage); 6] = [
        ("other bytes", |exported| {
            fs::write(exported.blob_of(FILES[2].1), "# y\n").unwrap();
        }),
        ("too short", |exported| {
            fs::write(exported.blob_of(FILES[2].1), "#").unwrap();
        }),
        ("missing", |exported| {
            fs::remove_file(exported.blob_of(FILES[2].1)).unwrap();
        }),
        ("another manifest", |exported| {
            fs::write(exported.blob(&exported.digest), "{}").unwrap();
        }),
        ("a layer of another size", |exported| {
            replace_manifest(&exported.layout, "1.2.0", |manifest| {
                manifest["layers"][3]["size"] = json!(5);
            });
        }),
        ("a config that disagrees", |exported| {
            replace_manifest(&exported.layout, "1.2.0", |manifest| {
                manifest["layers"].as_array_mut().unwrap().remove(3);
            });
        }),
    ];
    for (what, damage) in damages {
        let exported = Exported::new();
        damage(&exported);
        let home = Home::new();
        let layout = exported.layout.to_str().unwrap();
        let output = home.run(&["import", layout, "--api-url", "https://registry.test"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{what}: {said}");
        assert!(said.contains("1 of 2 versions"), "{what}: {said}");
        // The other version is there, and no blob that is not what its name says.
        let cache = home.path().join(".cache/musher");
        assert!(
            cache
                .join("manifests/registry.test/acme/kit/1.0.0.json")
                .exists()
        );
        for (name, bytes) in tree(&cache.join("blobs/sha256")) {
            let name = name.rsplit('/').next().unwrap();
            assert_eq!(Digest::of(&bytes).hex(), name, "{what}");
            assert_ne!(name, Digest::of(content).hex(), "{what}");
        }
    }
}

#[test]
fn hostile_names_and_paths_stay_inside() {
    let exported = Exported::new();
    let index_path = exported.layout.join("index.json");
    let mut index = exported.index();
    let mut hostile = index["manifests"][0].clone();
    for name in [
        "../../etc:1.2.0",
        "acme/..:1.2.0",
        "acme/kit:../1.2.0",
        "x/\u{0}:1",
        "",
    ] {
        hostile["annotations"]["org.opencontainers.image.ref.name"] = json!(name);
        index["manifests"]
            .as_array_mut()
            .unwrap()
            .push(hostile.clone());
    }
    let mut odd = hostile.clone();
    odd["digest"] = json!("sha256:../../../../etc/passwd");
    odd["annotations"]["org.opencontainers.image.ref.name"] = json!("acme/odd:1.0.0");
    index["manifests"].as_array_mut().unwrap().push(odd);
    fs::write(&index_path, index.to_string()).unwrap();
    let home = Home::new();
    let layout = exported.layout.to_str().unwrap();
    let output = home.run(&["import", layout, "--api-url", "https://registry.test"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("1 of 3 versions"), "{said}");
    for path in tree(home.path()).keys() {
        assert!(
            path.starts_with(".cache/musher") || path.starts_with(".local/state"),
            "{path}"
        );
    }

    for broken in ["", "[]", "{\"manifests\":7}", "\u{feff}{"] {
        fs::write(&index_path, broken).unwrap();
        let output = home.run(&["import", layout]);
        assert_fails(&output, 3, "index.json");
    }
    fs::remove_file(exported.layout.join("oci-layout")).unwrap();
    let output = home.run(&["import", layout]);
    assert_eq!(output.status.code(), Some(4), "{output:?}");
}

#[test]
fn a_mounted_layout_is_read_with_ordinary_tools() {
    if !support::fuse::require_fuse() {
        return;
    }
    let exported = Exported::new();
    let home = Home::new();
    let mountpoint = home.path().join("mnt");
    fs::create_dir(&mountpoint).unwrap();
    let at = mountpoint.to_str().unwrap();
    succeeded(&on_layout(&home, &exported.layout, &["mount", at]));
    struct Mounted<'a>(&'a Home, &'a str);
    impl Drop for Mounted<'_> {
        fn drop(&mut self) {
            let _ = self.0.run(&["umount", self.1]);
        }
    }
    let _mounted = Mounted(&home, at);
    for (path, content) in FILES {
        assert_eq!(
            fs::read(mountpoint.join("acme/kit").join(path)).unwrap(),
            *content
        );
    }
    assert_eq!(
        fs::read_link(mountpoint.join("acme/kit")).unwrap().to_str(),
        Some("kit@1.2.0")
    );
    let names: Vec<String> = fs::read_dir(mountpoint.join("acme"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.contains(&"kit@1.0.0".to_owned()), "{names:?}");
}
