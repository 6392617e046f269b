//! What a `musher.yaml` may say, and which files it may name.

use super::*;

const MINIMAL: &str = "
namespace: acme
slug: kit
version: 1.2.0
name: Kit
assets:
  - id: a
    src: prompts/a.md
";

const PUBLIC: &str = "
# yaml-language-server: $schema=https://schemas.musher.dev/bundledef/v1alpha1.json
kind: bundle
namespace: acme
slug: \"kit\"
version: 1.2.0-beta.1+build.5
name: \"The kit\"
description: What it is for.
visibility: public
keywords: [one, two]
readme: README.md
licenseFile: LICENSE
repository: https://example.org/kit.git
homepage: https://example.org/kit
annotations:
  team: tools
assets:
  - id: a
    src: prompts/a.md
    mediaType: text/markdown
  - id: b
    src: prompts/b.md
    kind: agent
";

const EXAMPLE: &str = "
name: acme/kit
version: 1.2.0
description: >
  A folded
  text.
whatever: is tolerated
assets:
  - logical_path: skills/x/SKILL.md
    asset_type: skill
  - logical_path: agents/a.yaml
    asset_type: agent_definition
  - logical_path: tools/t.json
";

fn files(path: &str) -> Option<&'static [u8]> {
    (path != "missing").then_some(b"text\n")
}

fn read(definition: &str) -> Result<Publication, PublishError> {
    Publication::from_parts(definition, files)
}

/// What is wrong with a definition, a line a problem.
fn wrong(publication: Result<Publication, PublishError>) -> Vec<String> {
    match publication {
        Err(error @ PublishError::Definition { .. }) => error.lines(),
        other => panic!("{other:?}"),
    }
}

/// The only reason why a definition is refused.
#[track_caller]
fn reason(definition: &str) -> String {
    let lines = wrong(read(definition));
    assert_eq!(lines.len(), 1, "{definition}\n{lines:?}");
    lines.into_iter().next().unwrap()
}

#[test]
fn a_minimal_definition_is_private_and_infers_its_types() {
    let publication = read(MINIMAL).unwrap();
    assert_eq!(publication.reference.to_string(), "acme/kit@1.2.0");
    assert_eq!(publication.name, "Kit");
    assert_eq!(publication.visibility, Visibility::Private);
    assert_eq!(publication.assets[0].asset_type, "prompt");
    assert_eq!(publication.assets[0].media_type, None);
    assert_eq!(&publication.assets[0].bytes[..], b"text\n");
}

#[test]
fn a_full_definition_is_read_in_full() {
    let publication = read(PUBLIC).unwrap();
    assert_eq!(
        publication.reference.version.as_str(),
        "1.2.0-beta.1+build.5"
    );
    assert_eq!(publication.visibility, Visibility::Public);
    assert_eq!(publication.readme.as_deref(), Some("text\n"));
    assert_eq!(publication.keywords, ["one", "two"]);
    assert_eq!(publication.annotations["team"], "tools");
    assert_eq!(
        publication.homepage.as_deref(),
        Some("https://example.org/kit")
    );
    let [a, b] = &publication.assets[..] else {
        panic!("two assets")
    };
    assert_eq!(a.media_type.as_deref(), Some("text/markdown"));
    assert_eq!(b.asset_type, "agent_spec");
}

#[test]
fn the_shape_of_the_examples_is_read_too() {
    let publication = read(EXAMPLE).unwrap();
    assert_eq!(publication.reference.to_string(), "acme/kit@1.2.0");
    assert_eq!(publication.name, "kit");
    assert_eq!(publication.description.as_deref(), Some("A folded text."));
    let types: Vec<_> = publication
        .assets
        .iter()
        .map(|asset| asset.asset_type.as_str())
        .collect();
    assert_eq!(types, ["skill", "agent_spec", "toolset"]);
}

#[test]
fn unknown_keys_are_refused_where_there_is_a_schema() {
    assert!(reason(&format!("{MINIMAL}\nextra: 1\n")).contains("extra"));
    assert!(reason(&MINIMAL.replace("src:", "source: x\n    src:")).contains("source"));
    assert!(reason(&MINIMAL.replace("    src: prompts/a.md", "")).contains("src"));
    assert!(reason(&MINIMAL.replace("  - id: a\n    src", "  - src")).contains("id"));
}

#[test]
fn everything_that_is_wrong_is_told_at_once_with_its_line() {
    let definition = "\
namespace: Acme
slug: kit
version: v1
visibility: public
extra: 1
assets:
  - id: a
    src: missing
  - src: prompts/b.md
    kind: rule
  - id: c
    colour: red
";
    assert_eq!(
        wrong(read(definition)),
        [
            "musher.yaml: name is missing",
            "musher.yaml:1: namespace \"Acme\" is not lower-case letters, digits and inner hyphens (at most 100)",
            "musher.yaml:3: version \"v1\" is not MAJOR.MINOR.PATCH, such as 1.0.0",
            "musher.yaml:4: a public bundle needs description, readme, license or licenseFile",
            "musher.yaml:5: unknown key `extra`",
            "musher.yaml:8: cannot read missing: entity not found",
            "musher.yaml:9: asset id is missing",
            "musher.yaml:10: asset kind \"rule\" is not skill, agent, prompt, tool or config",
            "musher.yaml:11: asset src is missing",
            "musher.yaml:12: unknown key `colour`",
        ]
    );
}

#[test]
fn names_versions_and_ids_keep_the_schema() {
    for (from, to, expected) in [
        ("slug: kit", "slug: Kit", "slug"),
        ("slug: kit", "slug: kit-", "slug"),
        ("namespace: acme", "namespace: -acme", "namespace"),
        ("namespace: acme", "namespace: ac.me", "namespace"),
        ("version: 1.2.0", "version: v1.2.0", "version"),
        ("version: 1.2.0", "version: '1.2'", "version"),
        ("name: Kit", "name: ''", "name is empty"),
        ("id: a", "id: A", "asset id"),
        (
            "src: prompts/a.md",
            "src: prompts/a.md\n    kind: rule",
            "kind",
        ),
        ("slug: kit", "slug: kit\nkind: website", "kind"),
        (
            "slug: kit",
            "slug: kit\nvisibility: workspace",
            "visibility",
        ),
        ("slug: kit", "slug: kit\nkeywords: [a, a]", "twice"),
        ("slug: kit", "slug: kit\nkeywords: ['']", "keyword is empty"),
        (
            "src: prompts/a.md",
            "src: prompts/a.md\n    mediaType: Text",
            "media type",
        ),
        (
            "src: prompts/a.md",
            "src: prompts/a.md\n  - id: a\n    src: b",
            "twice",
        ),
    ] {
        let reason = reason(&MINIMAL.replace(from, to));
        assert!(reason.contains(expected), "{to}: {reason}");
    }
    let long = "x".repeat(256);
    assert!(reason(&MINIMAL.replace("name: Kit", &format!("name: {long}"))).contains("255"));
    let id = "x".repeat(65);
    assert!(reason(&MINIMAL.replace("id: a", &format!("id: {id}"))).contains("64"));
    let words: Vec<_> = (0..21).map(|n| format!("k{n}")).collect();
    let words = format!("slug: kit\nkeywords: [{}]", words.join(", "));
    assert!(reason(&MINIMAL.replace("slug: kit", &words)).contains("20 keywords"));
}

#[test]
fn a_public_bundle_says_what_it_is_and_under_which_license() {
    let reason_without = |line: &str| {
        let lines = PUBLIC.lines().filter(|text| !text.starts_with(line));
        reason(&lines.collect::<Vec<_>>().join("\n"))
    };
    assert!(reason_without("description").ends_with("needs description"));
    assert!(reason_without("readme").ends_with("needs readme"));
    assert!(reason_without("licenseFile").contains("license"));
}

#[test]
fn a_definition_that_is_no_yaml_is_refused() {
    for text in [
        "",
        "]",
        "- a",
        "namespace: [",
        "a: &a [*a]",
        "name: acme/kit",
    ] {
        let lines = wrong(read(text));
        assert!(!lines.is_empty(), "{text}");
        assert!(lines.iter().all(|line| !line.contains('\n')), "{lines:?}");
    }
}

#[test]
fn no_assets_is_its_own_error() {
    let empty = MINIMAL.split("assets:").next().unwrap().to_owned() + "assets: []\n";
    assert!(matches!(read(&empty), Err(PublishError::NoAsset)));
    let twice = EXAMPLE.replace("agents/a.yaml", "tools/t.json");
    assert!(matches!(
        read(&twice),
        Err(PublishError::DuplicatePath { .. })
    ));
}

#[test]
fn paths_stay_inside() {
    for path in ["/etc/passwd", "../x", "a/../../x", "'a\\b'"] {
        let reason = reason(&MINIMAL.replace("prompts/a.md", path));
        assert!(reason.starts_with("musher.yaml:8: bad path"), "{reason}");
    }
}

mod on_disk {
    use super::*;

    fn bundle(definition: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("musher.yaml"), definition).unwrap();
        std::fs::create_dir(dir.path().join("prompts")).unwrap();
        std::fs::write(dir.path().join("prompts/a.md"), "on disk").unwrap();
        dir
    }

    #[test]
    fn files_are_read_from_beside_the_definition() {
        let dir = bundle(MINIMAL);
        let publication = Publication::read(dir.path()).unwrap();
        assert_eq!(&publication.assets[0].bytes[..], b"on disk");

        let (yaml, yml) = (
            dir.path().join("musher.yaml"),
            dir.path().join("musher.yml"),
        );
        std::fs::rename(yaml, yml).unwrap();
        assert!(Publication::read(dir.path()).is_ok());
    }

    #[test]
    fn a_directory_without_a_definition_is_no_bundle() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            Publication::read(dir.path()),
            Err(PublishError::NoDefinition { .. })
        ));
    }

    #[test]
    fn missing_files_and_directories_are_named() {
        for path in ["prompts/none.md", "prompts"] {
            let dir = bundle(&MINIMAL.replace("prompts/a.md", path));
            let lines = wrong(Publication::read(dir.path()));
            let [line] = lines.as_slice() else {
                panic!("{lines:?}")
            };
            assert!(line.contains("musher.yaml:8: cannot read "), "{line}");
            assert!(line.contains(&format!("/{path}: ")), "{line}");
        }
    }

    #[test]
    fn links_may_not_leave_the_directory() {
        let outside = tempfile::NamedTempFile::new().unwrap();
        let dir = bundle(MINIMAL);
        let asset = dir.path().join("prompts/a.md");
        std::fs::rename(&asset, dir.path().join("real.md")).unwrap();
        std::os::unix::fs::symlink("../real.md", &asset).unwrap();
        let publication = Publication::read(dir.path()).unwrap();
        assert_eq!(&publication.assets[0].bytes[..], b"on disk");

        std::fs::remove_file(&asset).unwrap();
        std::os::unix::fs::symlink(outside.path(), &asset).unwrap();
        let lines = wrong(Publication::read(dir.path()));
        assert!(
            lines[0].contains("leaves the bundle's directory"),
            "{lines:?}"
        );
    }

    #[test]
    fn a_huge_file_is_refused_before_it_is_read() {
        let dir = bundle(MINIMAL);
        let file = std::fs::File::create(dir.path().join("prompts/a.md")).unwrap();
        // Sparse: it takes no space.
        file.set_len(1 << 40).unwrap();
        let lines = wrong(Publication::read(dir.path()));
        assert!(lines[0].contains("the limit is"), "{lines:?}");
    }
}
