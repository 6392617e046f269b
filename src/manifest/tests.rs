use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::digest::Hasher;
use crate::reference::LogicalPath;

fn id() -> VersionRef {
    "acme/kit@1.2.0".parse().unwrap()
}

fn layer(path: &str, content: &str) -> Layer {
    Layer {
        path: path.to_owned(),
        digest: Digest::of(content.as_bytes()),
        size: Some(content.len() as u64),
        asset_type: "prompt".to_owned(),
        asset_id: String::new(),
        media_type: None,
    }
}

fn manifest(paths: &[&str]) -> Manifest {
    Manifest::new(
        id(),
        Info::default(),
        paths.iter().map(|path| layer(path, path)).collect(),
    )
    .unwrap()
}

fn paths(manifest: &Manifest) -> Vec<&str> {
    manifest.entries().map(|entry| entry.path()).collect()
}

fn names(manifest: &Manifest, dir: &str) -> Vec<String> {
    let dir = manifest.find(dir).unwrap().index();
    manifest
        .children(dir, 0)
        .map(|entry| entry.name().to_owned())
        .collect()
}

#[test]
fn directories_come_before_their_descendants_in_component_order() {
    let manifest = manifest(&["b/x", "a.md", "b-1", "b/a/z", "b.md"]);
    assert_eq!(
        paths(&manifest),
        ["", "a.md", "b", "b/a", "b/a/z", "b/x", "b-1", "b.md"]
    );
    assert_eq!(names(&manifest, ""), ["a.md", "b", "b-1", "b.md"]);
    assert_eq!(names(&manifest, "b"), ["a", "x"]);
    assert_eq!(manifest.find("b/a/z").unwrap().name(), "z");
    assert_eq!(manifest.parent(manifest.find("b/a/z").unwrap().index()), 3);
    assert_eq!(manifest.parent(1), 0);
    assert!(manifest.find("b/a/y").is_none());
    assert!(manifest.find("b-1/x").is_none());
}

#[test]
fn the_order_of_the_document_does_not_matter() {
    let forth = manifest(&["a/1", "a/2", "b", "../x"]);
    let back = manifest(&["../x", "b", "a/2", "a/1"]);
    assert_eq!(forth.table_digest(), back.table_digest());
    assert_ne!(
        forth.table_digest(),
        manifest(&["a/1", "a/2", "b"]).table_digest()
    );
}

#[test]
fn a_refused_path_is_hidden_and_its_siblings_stay() {
    let long = "x".repeat(70_000);
    let manifest = manifest(&[
        "good/a.md",
        "",
        "/etc/passwd",
        "good/../../x",
        "good//b",
        "good/",
        "nul\0",
        "back\\slash",
        &long,
        "good/b.md",
    ]);
    assert_eq!(names(&manifest, ""), ["good"]);
    assert_eq!(names(&manifest, "good"), ["a.md", "b.md"]);
    assert_eq!(manifest.refused().count(), 8);
    for (entry, _) in manifest.refused() {
        assert!(
            manifest
                .find(entry.path())
                .is_none_or(|found| found.index() == 0)
        );
    }
    let reasons: BTreeSet<String> = manifest
        .refused()
        .map(|(_, reason)| reason.to_string())
        .collect();
    assert_eq!(reasons.len(), 5, "{reasons:?}");
}

#[test]
fn a_file_under_a_file_hides_the_upper_one() {
    let manifest = manifest(&["a", "a/b", "c"]);
    assert_eq!(paths(&manifest), ["", "a", "a", "a/b", "c"]);
    assert!(manifest.find("a").unwrap().is_dir());
    assert!(manifest.find("a/b").unwrap().is_file());
    assert_eq!(manifest.refused().next().unwrap().1, Refusal::FileUnderFile);
}

#[test]
fn a_path_listed_twice_counts_once_or_is_refused() {
    let twice = Manifest::new(
        id(),
        Info::default(),
        vec![layer("a", "1"), layer("a", "1")],
    )
    .unwrap();
    assert_eq!(twice.files().count(), 1);
    let differing = vec![layer("a", "1"), layer("b", "x"), layer("a", "2")];
    let conflict = Manifest::new(id(), Info::default(), differing).unwrap();
    assert_eq!(names(&conflict, ""), ["b"]);
    assert!(
        conflict
            .refused()
            .all(|(_, reason)| reason == Refusal::Conflict)
    );
    assert_eq!(conflict.refused().count(), 2);
}

#[test]
fn an_entry_takes_at_most_64_bytes() {
    assert!(size_of::<Row>() <= 64, "{}", size_of::<Row>());
}

#[test]
fn what_a_layer_says_is_kept() {
    let mut file = layer("a/b", "text");
    file.asset_id = "2966d059".to_owned();
    file.media_type = Some("text/markdown".to_owned());
    let manifest = Manifest::new(id(), Info::default(), vec![file]).unwrap();
    let entry = manifest.find("a/b").unwrap();
    assert_eq!(entry.asset_id(), "2966d059");
    assert_eq!(entry.asset_type(), "prompt");
    assert_eq!(entry.media_type(), Some("text/markdown"));
    assert_eq!((entry.size(), entry.digest()), (4, Digest::of(b"text")));
    assert_eq!(manifest.find("a").unwrap().media_type(), None);
    assert_eq!(manifest.content_size(), 4);
}

#[test]
fn more_entries_than_an_inode_number_can_hold_are_refused() {
    let many = |count: usize| {
        (0..count)
            .map(|i| layer(&format!("{i:06}"), ""))
            .collect::<Vec<_>>()
    };
    let new = |layers| Manifest::new(id(), Info::default(), layers).map(|m| m.len());
    assert_eq!(new(many(MAX_ENTRIES)), Ok(1 << 17));
    assert_eq!(new(many(200_000)), Err(ManifestError::TooMany));
    // Directories count.
    let deep = (0..1000)
        .map(|i| layer(&format!("{i}/{}", "d/".repeat(200) + "f"), ""))
        .collect();
    assert_eq!(new(deep), Err(ManifestError::TooMany));
}

#[test]
fn two_hundred_levels_are_fine() {
    let path = "d/".repeat(200) + "f";
    let manifest = manifest(&[&path]);
    assert_eq!(manifest.len(), 202);
    assert!(manifest.find(&path).unwrap().is_file());
}

/// A path as a registry, honest or not, might list it.
fn any_path() -> impl Strategy<Value = String> {
    let component =
        prop_oneof![8 => "[abc.-]{1,3}", 1 => Just("..".to_owned()), 1 => Just(String::new())];
    proptest::collection::vec(component, 1..5).prop_map(|parts| parts.join("/"))
}

proptest! {
    #[test]
    fn lookups_and_listings_agree_with_a_naive_model(listed in proptest::collection::vec(any_path(), 0..40)) {
        let manifest = manifest(&listed.iter().map(String::as_str).collect::<Vec<_>>());
        let valid: BTreeSet<&str> =
            listed.iter().map(String::as_str).filter(|path| LogicalPath::check(path).is_ok()).collect();
        let is_dir = |path: &str| {
            path.is_empty() || valid.iter().any(|file| file.starts_with(&format!("{path}/")))
        };
        let mut visible: BTreeSet<String> = BTreeSet::from([String::new()]);
        for file in &valid {
            let ends = file.match_indices('/').map(|(at, _)| at).chain([file.len()]);
            visible.extend(ends.map(|end| file[..end].to_owned()));
        }
        for path in &visible {
            let entry = manifest.find(path).expect("visible");
            prop_assert_eq!(entry.path(), path);
            prop_assert_eq!(entry.is_dir(), is_dir(path));
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            prop_assert_eq!(manifest.entry(manifest.parent(entry.index())).unwrap().path(), parent);
            if !entry.is_dir() {
                continue;
            }
            let children: Vec<_> = manifest.children(entry.index(), 0).collect();
            let found: BTreeSet<String> = children.iter().map(|child| child.path().to_owned()).collect();
            let expected: BTreeSet<String> = visible
                .iter()
                .filter(|other| !other.is_empty() && other.rsplit_once('/').map_or("", |(up, _)| up) == path)
                .cloned()
                .collect();
            prop_assert_eq!(found, expected);
            // A listing can be continued from anywhere.
            for from in 0..=manifest.len() {
                let rest: Vec<u32> =
                    manifest.children(entry.index(), from).map(|e| e.index()).collect();
                let expected: Vec<u32> =
                    children.iter().map(|e| e.index()).filter(|&index| index >= from).collect();
                prop_assert_eq!(rest, expected);
            }
        }
        for path in &listed {
            if !visible.contains(path) {
                prop_assert!(manifest.find(path).is_none(), "{:?} must be hidden", path);
            }
        }
    }
}

mod documents {
    use super::*;
    use crate::manifest::{Document, State};

    fn hash() -> String {
        Digest::of(b"text").hex()
    }

    fn parse(json: &str) -> Result<Document, ManifestError> {
        Document::parse(json.replace("HASH", &hash()).as_bytes())
    }

    #[test]
    fn every_dialect_gives_the_same_table() {
        let camel =
            r#"{"logicalPath":"a.md","assetType":"prompt","contentSha256":"HASH","sizeBytes":4}"#;
        let snake = r#"{"logical_path":"a.md","asset_type":"prompt","content_sha256":"HASH","size_bytes":4}"#;
        let go = r#"{"logicalPath":"a.md","assetType":"prompt","contentSha256":"HASH","size":4}"#;
        let both = r#"{"logicalPath":"a.md","assetType":"prompt","contentSha256":"HASH","sizeBytes":4,"size":4,"mediaType":null}"#;
        let head = r#""namespace":"acme","version":"1.2.0""#;
        let documents = [
            format!(r#"{{{head},"slug":"kit","manifest":{{"layers":[{camel}]}}}}"#),
            format!(r#"{{{head},"slug":"kit","layers":[{go}]}}"#),
            format!(r#"{{{head},"slug":"kit","manifest":null,"layers":[{go}]}}"#),
            format!(
                r#"{{{head},"slug":"kit","manifest":{{"layers":[{both}]}},"layers":[{both}]}}"#
            ),
            format!(r#"{{{head},"bundleSlug":"kit","assets":[{camel}]}}"#),
            format!(r#"{{{head},"bundle_slug":"kit","assets":[{snake}]}}"#),
            format!(r#"{{"manifest":{{{head},"bundleSlug":"kit","assets":[{camel}]}}}}"#),
            format!("\u{feff}{{\"assets\":[{camel}],\"unknown\":{{}}}}"),
        ];
        for json in documents {
            let document = parse(&json).unwrap_or_else(|error| panic!("{json}: {error}"));
            let manifest = document.into_manifest(id()).unwrap();
            let entry = manifest.find("a.md").unwrap();
            assert_eq!(
                (entry.digest(), entry.size()),
                (Digest::of(b"text"), 4),
                "{json}"
            );
        }
    }

    #[test]
    fn an_absent_list_is_no_empty_bundle() {
        for json in [
            "{}",
            r#"{"manifest":null}"#,
            r#"{"manifest":{},"layers":null}"#,
        ] {
            let document = parse(json).unwrap();
            assert_eq!(
                document.into_manifest(id()).err(),
                Some(ManifestError::NoLayers),
                "{json}"
            );
        }
        let empty = parse(r#"{"manifest":{"layers":[]}}"#).unwrap();
        assert!(empty.into_manifest(id()).unwrap().is_empty());
    }

    #[test]
    fn hashes_and_sizes_are_read_in_every_spelling() {
        for (hash, size) in [
            (hash().to_uppercase(), "4"),
            (format!("sha256:{}", hash()), "4.0"),
        ] {
            let json = format!(
                r#"{{"layers":[{{"logicalPath":"a","contentSha256":"{hash}","size":{size}}}]}}"#
            );
            let manifest = parse(&json).unwrap().into_manifest(id()).unwrap();
            assert_eq!(manifest.find("a").unwrap().size(), 4);
        }
    }

    #[test]
    fn one_bad_layer_spoils_the_document() {
        for layer in [
            "{}",
            r#"{"logicalPath":"a","size":4}"#,
            r#"{"logicalPath":"a","contentSha256":"12","size":4}"#,
            r#"{"contentSha256":"HASH","size":4}"#,
            r#"{"logicalPath":"a","contentSha256":"HASH","size":-1}"#,
            r#"{"logicalPath":"a","contentSha256":"HASH","size":1.5}"#,
            r#"{"logicalPath":"a","contentSha256":"HASH","size":"4"}"#,
            r#"{"logicalPath":"a","contentSha256":"HASH","size":18446744073709551615}"#,
            r#"{"logicalPath":"\ud800","contentSha256":"HASH","size":4}"#,
        ] {
            assert!(
                parse(&format!(r#"{{"layers":[{layer}]}}"#)).is_err(),
                "{layer}"
            );
        }
        let unsized_layer =
            parse(r#"{"layers":[{"logicalPath":"a","contentSha256":"HASH"}]}"#).unwrap();
        assert!(unsized_layer.clone().into_manifest(id()).is_err());
        let mut filled = unsized_layer;
        filled.fill_sizes(|_| Some(4));
        assert_eq!(filled.into_manifest(id()).unwrap().content_size(), 4);
    }

    #[test]
    fn what_is_not_an_object_is_not_a_manifest() {
        for json in [
            "",
            "null",
            "[]",
            "5",
            "\"x\"",
            "{",
            "<html>",
            r#"{"manifest":[]}"#,
        ] {
            assert!(matches!(parse(json), Err(ManifestError::Json(_))), "{json}");
        }
        assert!(matches!(
            Document::parse(b"{\"name\":\"\xff\"}"),
            Err(ManifestError::Json(_))
        ));
    }

    #[test]
    fn a_document_about_another_version_is_refused() {
        for json in [
            r#"{"namespace":"evil","layers":[]}"#,
            r#"{"slug":"other","layers":[]}"#,
            r#"{"version":"1.2.1","layers":[]}"#,
        ] {
            let error = parse(json).unwrap().into_manifest(id()).unwrap_err();
            assert!(
                matches!(error, ManifestError::OtherVersion { .. }),
                "{json}"
            );
        }
    }

    #[test]
    fn nulls_and_unknown_states_are_tolerated() {
        let json = r#"{"bundleId":null,"name":null,"ociRef":"","ociDigest":null,"state":"odd","layers":[]}"#;
        assert_eq!(parse(json).unwrap().info, Info::default());
        assert_eq!(
            parse(r#"{"state":"yanked"}"#).unwrap().info.state,
            State::Yanked
        );
    }
}

#[test]
fn a_file_that_is_said_to_be_empty_must_have_the_hash_of_nothing() {
    let layer = |path: &str, content: &[u8], size| Layer {
        path: path.to_owned(),
        digest: Digest::of(content),
        size: Some(size),
        asset_type: String::new(),
        asset_id: String::new(),
        media_type: None,
    };
    let layers = vec![
        layer("empty", b"", 0),
        layer("lie", b"content", 0),
        layer("true", b"content", 7),
    ];
    let id = "acme/kit@1.0.0".parse().unwrap();
    let manifest = Manifest::new(id, Info::default(), layers).unwrap();
    let shown: Vec<&str> = manifest.files().map(|file| file.path()).collect();
    assert_eq!(shown, ["empty", "true"]);
    let refused: Vec<_> = manifest
        .refused()
        .map(|(entry, why)| (entry.path(), why))
        .collect();
    assert_eq!(refused, [("lie", Refusal::NotEmpty)]);
    // The table is that of the document, whether its files are believed or not.
    let nothing = Digest::from_bytes([0; 32]);
    let content = Digest::of(b"content");
    let mut hasher = Hasher::new();
    for (code, path, size_or_end, digest) in [
        (7, "", 4_u64, nothing),
        (8, "empty", 0, Digest::of(b"")),
        (8, "lie", 0, content),
        (8, "true", 7, content),
    ] {
        hasher.update(&[code]);
        hasher.update(&u32::try_from(path.len()).unwrap().to_le_bytes());
        hasher.update(path.as_bytes());
        hasher.update(&size_or_end.to_le_bytes());
        hasher.update(digest.as_bytes());
    }
    assert_eq!(manifest.table_digest(), hasher.finish());
}

#[test]
fn what_is_known_besides_the_files_takes_memory_as_well() {
    let plain = manifest(&["a"]).memory();
    let info = Info {
        description: Some("d".repeat(1000)),
        ..Info::default()
    };
    let described = Manifest::new(id(), info, vec![layer("a", "a")]).unwrap();
    assert!(described.memory() >= plain + 1000);
    let typed = Layer {
        asset_type: "t".repeat(1000),
        ..layer("a", "a")
    };
    let typed = Manifest::new(id(), Info::default(), vec![typed]).unwrap();
    assert!(typed.memory() >= plain + 990, "{} {plain}", typed.memory());
}
