//! Hostile lists of files: what cannot be a path is hidden, what lies is found out.

use std::fmt::Write as _;

use crate::support::fuse::require_fuse;
use crate::support::mount::{TestMount, assert_read_fails};
use crate::support::registry::{Effect, Fault, RouteKind, TestRegistry};

#[test]
fn refused_paths_are_hidden_and_told_of_and_their_siblings_stay() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    let long = "x".repeat(256);
    let long_path = format!("{}end", "dir/".repeat(1100));
    let bad: &[&str] = &[
        "",
        "/etc/passwd",
        "../outside.md",
        "a/../../outside.md",
        "a/./b.md",
        "a//b.md",
        "trailing/",
        ".",
        "..",
        "back\\slash.md",
        "nul\0byte.md",
        &long,
        &long_path,
    ];
    let mut files: Vec<(&str, &[u8])> = bad.iter().map(|path| (*path, &b"bad\n"[..])).collect();
    files.extend([("good.md", &b"good\n"[..]), ("deep/good.md", b"deep\n")]);
    registry.plant("acme", "kit", "1.0.0", &files);
    let mount = TestMount::of(&registry).start();
    assert_eq!(mount.names("acme/kit@1.0.0"), ["deep", "good.md"]);
    assert_eq!(mount.names("acme/kit@1.0.0/deep"), ["good.md"]);
    assert_eq!(mount.read("acme/kit/good.md"), Ok(b"good\n".to_vec()));
    assert_eq!(mount.read("acme/kit/deep/good.md"), Ok(b"deep\n".to_vec()));
    for path in ["outside.md", "back\\slash.md", "a", "trailing", "etc"] {
        let errno = mount.stat(&format!("acme/kit@1.0.0/{path}")).unwrap_err();
        assert_eq!(errno, libc::ENOENT, "{path}");
    }
    let log = mount.log();
    assert!(log.contains("count=13"), "{log}");
    assert!(log.contains("hiding"), "{log}");
    mount.unmount();
}

#[test]
fn a_file_is_not_a_directory_and_a_path_is_there_once() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    registry.plant(
        "acme",
        "kit",
        "1.0.0",
        &[
            ("a", b"file\n"),
            ("a/b.md", b"below a file\n"),
            ("twice.md", b"one\n"),
            ("twice.md", b"two\n"),
            ("same.md", b"same\n"),
            ("same.md", b"same\n"),
            ("good.md", b"good\n"),
        ],
    );
    let mount = TestMount::of(&registry).start();
    let names = mount.names("acme/kit@1.0.0");
    assert!(names.contains(&"good.md".to_owned()), "{names:?}");
    let mut distinct = names.clone();
    distinct.dedup();
    assert_eq!(distinct, names);
    assert_eq!(mount.read("acme/kit/good.md"), Ok(b"good\n".to_vec()));
    // Either is refused or neither is there; never something else than its own bytes.
    for (path, contents) in [
        ("a", &["file\n"][..]),
        ("a/b.md", &["below a file\n"]),
        ("twice.md", &["one\n", "two\n"]),
        ("same.md", &["same\n"]),
    ] {
        match mount.read(&format!("acme/kit@1.0.0/{path}")) {
            Ok(bytes) => {
                let text = String::from_utf8(bytes).unwrap();
                assert!(contents.contains(&text.as_str()), "{path}: {text}");
            }
            Err(errno) => assert!(
                [libc::ENOENT, libc::ENOTDIR, libc::EISDIR].contains(&errno),
                "{path}: {errno}"
            ),
        }
    }
    mount.unmount();
}

#[test]
fn two_hundred_directories_deep_is_not_too_deep() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    let deep = format!("{}deep.md", "d/".repeat(200));
    registry.plant("acme", "kit", "1.0.0", &[(&deep, b"deep\n")]);
    let mount = TestMount::of(&registry).start();
    let path = format!("acme/kit/{deep}");
    assert_eq!(mount.read(&path), Ok(b"deep\n".to_vec()));
    let root = mount.path("acme/kit@1.0.0");
    assert_eq!(walkdir::WalkDir::new(root).into_iter().count(), 202);
    mount.unmount();
}

#[test]
fn sizes_that_lie_are_found_out_before_a_byte_is_served() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    for (slug, size) in [("longer", 1_000_000), ("shorter", 3), ("zero", 0)] {
        registry.plant_with(
            "acme",
            slug,
            "1.0.0",
            &[("lie.md", b"content\n"), ("true.md", b"true\n")],
            |json| json["assets"][0]["size_bytes"] = size.into(),
        );
    }
    let mount = TestMount::of(&registry).arg("--readahead=0").start();
    for slug in ["longer", "shorter"] {
        let lie = mount.read(&format!("acme/{slug}/lie.md"));
        assert_read_fails(lie, libc::EIO, slug);
    }
    // A file of no bytes is never read, so that nobody would find out: it is not there.
    assert_eq!(mount.read("acme/zero/lie.md"), Err(libc::ENOENT));
    for slug in ["longer", "shorter", "zero"] {
        let content = mount.read(&format!("acme/{slug}/true.md"));
        assert_eq!(content, Ok(b"true\n".to_vec()));
    }
    mount.unmount();
}

#[test]
fn a_version_with_more_paths_than_there_are_numbers_is_refused_alone() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    let digest = musherfs::digest::Digest::of(b"x").hex();
    // Not through the registry's own storage, which would take long to make so many.
    let mut answer = String::from(
        r#"{"namespace":"acme","slug":"kit","version":"1.0.0","state":"published","manifest":{"layers":["#,
    );
    for n in 0..200_000 {
        let _ = write!(
            answer,
            r#"{}{{"logicalPath":"f{n}","contentSha256":"{digest}","sizeBytes":1}}"#,
            if n == 0 { "" } else { "," }
        );
    }
    answer += "]}}";
    let effect = Effect::Body(200, "application/json", answer.into_bytes());
    let fault = Fault::new(effect).on(RouteKind::Resolve);
    registry.fault(fault.path_contains("kit"));
    registry.publish("acme", "other", "1.0.0", &[("a.md", b"other\n")]);
    let mount = TestMount::of(&registry)
        .args(&["-v", "--metadata-timeout=50s"])
        .start();
    assert_eq!(mount.stat("acme/kit@1.0.0").unwrap_err(), libc::EIO);
    mount.wait_for_log("more than 131071 files and directories");
    assert_eq!(mount.read("acme/other/a.md"), Ok(b"other\n".to_vec()));
    assert!(mount.is_alive());
    mount.unmount();
}

#[test]
fn a_manifest_without_files_is_an_empty_directory() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    registry.plant("acme", "kit", "1.0.0", &[]);
    let mount = TestMount::of(&registry).start();
    assert_eq!(mount.names("acme/kit@1.0.0"), [""; 0]);
    mount.unmount();
}
