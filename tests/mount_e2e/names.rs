//! Names move, contents do not.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use musherfs::fs::inode::MOST_PASSING;
use rustix::fs::{Mode, OFlags, openat};

use crate::support::fuse::require_fuse;
use crate::support::mount::{Home, TestMount, eventually, number, run};
use crate::support::registry::{Effect, Fault, RouteKind, TestRegistry};

/// 1980-01-02T00:00:00Z.
const EPOCH: i64 = 315_619_200;

#[test]
fn the_tree_is_namespaces_links_versions_and_files() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    let old = registry.publish("acme", "kit", "1.0.0", &[("a.md", b"old\n")]);
    registry.publish(
        "acme",
        "kit",
        "1.2.0",
        &[
            ("a.md", b"new\n"),
            ("deep/er/übersetzen 翻訳.md", "grüß dich".as_bytes()),
            ("empty", b""),
            (".hidden/.config", b"x"),
        ],
    );
    registry.tag(&old, "stable");
    let resolved = registry.get("/v1/hub/bundles/acme/kit:resolve?version=1.0.0");
    let digest = resolved.json()["ociDigest"].as_str().map(str::to_owned);
    let mount = TestMount::of(&registry).arg("--namespace=acme").start();

    assert_eq!(mount.names(""), ["acme"]);
    assert_eq!(mount.names("acme"), ["kit", "kit@1.0.0", "kit@1.2.0"]);
    for (name, target) in [
        ("kit", "kit@1.2.0"),
        ("kit@latest", "kit@1.2.0"),
        ("kit@stable", "kit@1.0.0"),
        ("kit@^1.0", "kit@1.2.0"),
        ("kit@~1.0", "kit@1.0.0"),
        ("kit@1", "kit@1.2.0"),
        ("kit@1.x", "kit@1.2.0"),
    ] {
        let path = format!("acme/{name}");
        assert_eq!(mount.readlink(&path).as_deref(), Ok(target), "{name}");
        assert!(mount.stat(&path).unwrap().is_symlink());
        let content = if target == "kit@1.0.0" {
            "old\n"
        } else {
            "new\n"
        };
        assert_eq!(mount.read(&format!("{path}/a.md")), Ok(content.into()));
    }
    if let Some(digest) = digest {
        let target = mount.readlink(&format!("acme/kit@{digest}"));
        assert_eq!(target.as_deref(), Ok("kit@1.0.0"));
    }

    let root = "acme/kit@1.2.0";
    assert_eq!(mount.names(root), [".hidden", "a.md", "deep", "empty"]);
    assert_eq!(
        mount.names(&format!("{root}/deep/er")),
        ["übersetzen 翻訳.md"]
    );
    for (path, content) in [
        ("deep/er/übersetzen 翻訳.md", "grüß dich"),
        ("empty", ""),
        (".hidden/.config", "x"),
    ] {
        assert_eq!(mount.read(&format!("{root}/{path}")), Ok(content.into()));
    }
    for absent in [
        "acme/kit@9.9.9",
        "acme/nothing",
        "acme/kit@nothing",
        "nobody",
    ] {
        assert_eq!(mount.stat(absent).unwrap_err(), libc::ENOENT, "{absent}");
    }
    for absent in ["b.md", "A.md", "deep/er/x", "a.md@1"] {
        let path = format!("{root}/{absent}");
        assert_eq!(mount.stat(&path).unwrap_err(), libc::ENOENT, "{absent}");
    }
    // What was looked up is listed from then on only if it is a bundle.
    assert_eq!(mount.names("acme"), ["kit", "kit@1.0.0", "kit@1.2.0"]);
    mount.unmount();
}

/// Everything that stat(2) and read(2) tell, by path.
fn portrait(dir: &Path) -> BTreeMap<String, (u64, u64, i64, u32, Vec<u8>)> {
    let entries = walkdir::WalkDir::new(dir);
    let entries = entries.into_iter().map(|entry| {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        let path = entry.path().strip_prefix(dir).unwrap();
        let content = if meta.is_file() {
            fs::read(entry.path()).unwrap()
        } else {
            Vec::new()
        };
        let node = (meta.ino(), meta.size(), meta.mtime(), meta.mode(), content);
        (path.to_str().unwrap().to_owned(), node)
    });
    entries.collect()
}

#[test]
fn contents_never_change_not_even_from_one_machine_to_another() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    registry.publish_samples();
    let (home, other) = (Home::new(), Home::new());
    let take = |home| {
        let mount = TestMount::of(&registry).home(home).start();
        let portrait = ["acme/code-review@1.2.0", "nord/translation@1.0.0"]
            .map(|version| portrait(&mount.path(version)));
        let link = mount.stat("acme/code-review").unwrap().ino();
        let namespace = mount.stat("acme").unwrap().ino();
        mount.unmount();
        (portrait, link, namespace)
    };
    let first = take(&home);
    // The remount reads its cache, the other machine asks the registry.
    assert_eq!(take(&home), first);
    assert_eq!(take(&other), first);

    let mut numbers: Vec<u64> = Vec::new();
    for (path, (ino, _, mtime, _, _)) in first.0.iter().flatten() {
        assert!(*ino < 1 << 52, "{path}: {ino:#x}");
        assert_eq!(*mtime, EPOCH, "{path}");
        numbers.push(*ino);
    }
    let nodes = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), nodes, "every node has a number of its own");
    // What may move is told by the 53rd bit.
    assert_eq!((first.1 >> 52, first.2 >> 52), (1, 1));
}

#[test]
fn a_moved_name_is_seen_as_soon_as_its_life_is_over() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    registry.publish(
        "acme",
        "kit",
        "1.0.0",
        &[("a.md", b"old\n"), ("b.md", b"old b\n")],
    );
    let home = Home::new();
    let mount = TestMount::of(&registry).home(&home).start();
    assert_eq!(mount.readlink("acme/kit").as_deref(), Ok("kit@1.0.0"));
    mount.unmount();

    // Within its life the cache's answer is taken without asking; a moment is left of it.
    home.refs_expire_in(8.0);
    registry.clear_log();
    let mount = TestMount::of(&registry).home(&home).start();
    let held = File::open(mount.path("acme/kit/.")).unwrap();
    let mut reader = File::open(mount.path("acme/kit/a.md")).unwrap();
    assert_eq!(registry.resolve_requests(), 0, "{:#?}", registry.lines());

    registry.publish(
        "acme",
        "kit",
        "1.1.0",
        &[("a.md", b"new\n"), ("b.md", b"new b\n")],
    );
    let content = eventually("the new version", || {
        let target = mount.readlink("acme/kit").unwrap();
        let content = mount.read("acme/kit/a.md").unwrap();
        // Never a name ahead of its content, however often one looks.
        if target == "kit@1.1.0" {
            assert_eq!(content, b"new\n");
        }
        (target == "kit@1.1.0").then_some(content)
    });
    assert_eq!(content, b"new\n");
    assert_eq!(run("cat", [mount.path("acme/kit/b.md")]), "new b\n");
    assert_eq!(
        run("readlink", [mount.path("acme/kit@latest")]),
        "kit@1.1.0\n"
    );
    assert!(mount.stat("acme/kit").unwrap().mtime() > EPOCH);

    // Who held a directory or a file of the old version reads on in it.
    let file = openat(&held, "b.md", OFlags::RDONLY, Mode::empty()).unwrap();
    let (mut old_b, mut old_a) = (String::new(), String::new());
    File::from(file).read_to_string(&mut old_b).unwrap();
    reader.read_to_string(&mut old_a).unwrap();
    assert_eq!((old_a.as_str(), old_b.as_str()), ("old\n", "old b\n"));
}

#[test]
fn an_expired_name_is_asked_for_before_it_is_answered_and_stale_only_on_error() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    registry.publish("acme", "kit", "1.0.0", &[("a.md", b"old\n")]);
    let home = Home::new();
    let mount = TestMount::of(&registry).home(&home).start();
    assert_eq!(mount.read("acme/kit/a.md"), Ok(b"old\n".to_vec()));
    mount.unmount();
    registry.publish("acme", "kit", "1.1.0", &[("a.md", b"new\n")]);

    home.refs_expire_in(-1.0);
    registry.fault(Fault::new(Effect::Status(404)).on(RouteKind::Resolve));
    registry.fault(Fault::new(Effect::Status(404)).on(RouteKind::Bundle));
    let mount = TestMount::of(&registry).home(&home).start();
    assert_eq!(mount.readlink("acme/kit").as_deref(), Ok("kit@1.0.0"));
    assert!(registry.resolve_requests() > 0);
    mount.unmount();

    registry.clear_faults();
    let mount = TestMount::of(&registry).home(&home).start();
    assert_eq!(mount.readlink("acme/kit").as_deref(), Ok("kit@1.1.0"));
    assert_eq!(mount.read("acme/kit/a.md"), Ok(b"new\n".to_vec()));
    mount.unmount();
}

#[test]
fn yanked_versions_are_hidden_but_readable_by_their_exact_name() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    registry.publish("acme", "kit", "1.0.0", &[("a.md", b"good\n")]);
    let bad = registry.publish(
        "acme",
        "kit",
        "1.1.0",
        &[("a.md", b"bad\n"), ("b.md", b"b\n")],
    );
    registry.tag(&bad, "edge");
    registry.yank(&bad, "leaks a secret");
    let mount = TestMount::of(&registry)
        .args(&["--namespace=acme", "-o", "user_xattr"])
        .start();

    assert_eq!(mount.names("acme"), ["kit", "kit@1.0.0"]);
    for name in ["kit", "kit@latest", "kit@^1", "kit@1.x"] {
        let target = mount.readlink(&format!("acme/{name}"));
        assert_eq!(target.as_deref(), Ok("kit@1.0.0"), "{name}");
    }
    assert_eq!(mount.stat("acme/kit@edge").unwrap_err(), libc::ENOENT);
    assert_eq!(mount.stat("acme/kit@~1.1").unwrap_err(), libc::ENOENT);

    assert_eq!(mount.names("acme/kit@1.1.0"), ["a.md", "b.md"]);
    assert_eq!(mount.read("acme/kit@1.1.0/a.md"), Ok(b"bad\n".to_vec()));
    assert_eq!(mount.read("acme/kit@1.1.0/b.md"), Ok(b"b\n".to_vec()));
    for path in ["acme/kit@1.1.0", "acme/kit@1.1.0/a.md"] {
        let state = run(
            "getfattr",
            ["--only-values", "-n", "user.musher.state"]
                .map(Into::into)
                .into_iter()
                .chain([mount.path(path)]),
        );
        assert_eq!(state, "yanked", "{path}");
    }
    let warnings = mount.log().matches("yanked").count();
    assert_eq!(warnings, 1, "{}", mount.log());
    let home = mount.home().clone();
    mount.unmount();

    // A policy takes it away, also when it is cached.
    let mount = TestMount::of(&registry)
        .home(&home)
        .arg("--deny-yanked")
        .start();
    assert_eq!(mount.stat("acme/kit@1.1.0").unwrap_err(), libc::EACCES);
    assert_eq!(mount.read("acme/kit@1.1.0/a.md"), Err(libc::EACCES));
    assert_eq!(mount.read("acme/kit/a.md"), Ok(b"good\n".to_vec()));
    mount.unmount();

    // Taken back, it is as if nothing had been.
    registry.unyank(&bad);
    let mount = TestMount::of(&registry)
        .home(&Home::new())
        .arg("--deny-yanked")
        .start();
    assert_eq!(mount.readlink("acme/kit").as_deref(), Ok("kit@1.1.0"));
    assert_eq!(mount.readlink("acme/kit@edge").as_deref(), Ok("kit@1.1.0"));
    assert_eq!(mount.read("acme/kit@1.1.0/a.md"), Ok(b"bad\n".to_vec()));
}

#[test]
fn names_that_cannot_be_cost_no_request() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    registry.publish("acme", "kit", "1.0.0", &[("a.md", b"a\n")]);
    let mount = TestMount::of(&registry).arg("--namespace=acme").start();
    assert_eq!(mount.read("acme/kit/a.md"), Ok(b"a\n".to_vec()));
    registry.clear_log();

    let too_long = "x".repeat(101);
    let not_utf8 = {
        use std::os::unix::ffi::OsStrExt as _;
        std::ffi::OsStr::from_bytes(b"\xff\xfe").to_owned()
    };
    for dir in ["", "acme"] {
        for name in [
            ".git",
            ".Trash",
            ".Trash-0",
            ".hidden",
            ".env",
            "a b",
            "-x",
            "_x",
            "käse",
            "a:b",
            "a%2fb",
            "a\\b",
            "x@",
            "kit@",
            "kit@@1.0.0",
            "kit@1.0.0@2",
            "@1.0.0",
            "*",
            &too_long,
        ] {
            let path = format!("{dir}/{name}");
            let path = path.trim_start_matches('/');
            assert_eq!(mount.stat(path).unwrap_err(), libc::ENOENT, "{path}");
        }
        let error = fs::symlink_metadata(mount.path(dir).join(&not_utf8)).unwrap_err();
        assert_eq!(number(&error), libc::ENOENT);
    }
    assert_eq!(registry.lines(), [""; 0]);
    assert_eq!(mount.names("acme"), ["kit", "kit@1.0.0"]);
    mount.unmount();
}

#[test]
fn programs_that_probe_upward_for_well_known_files_cost_nothing() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    registry.publish("acme", "kit", "1.0.0", &[("docs/a.md", b"a\n")]);
    let home = Home::new();
    for round in ["fresh", "remounted"] {
        let mount = TestMount::of(&registry).home(&home).start();
        assert_eq!(mount.read("acme/kit/docs/a.md"), Ok(b"a\n".to_vec()));
        registry.clear_log();
        for dir in ["acme/kit/docs", "acme/kit@1.0.0", "acme/kit", "acme", ""] {
            for name in [
                "AGENTS.md",
                "CLAUDE.md",
                "package.json",
                "Cargo.toml",
                "pyproject.toml",
                "tsconfig.json",
                "go.mod",
                "Makefile",
                "node_modules",
                ".git",
                ".editorconfig",
                ".gitignore",
                "README.md",
            ] {
                let path = format!("{dir}/{name}");
                let path = path.trim_start_matches('/');
                assert_eq!(mount.stat(path).unwrap_err(), libc::ENOENT, "{path}");
            }
        }
        assert_eq!(registry.lines(), [""; 0], "{round}");
        mount.unmount();
    }
}

/// Whether the kernel can be asked to let go of inodes that nobody uses.
fn kernel_prunes() -> bool {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map(|part| part.parse().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6_u32), Some(18))
}

#[test]
fn names_that_are_only_guessed_are_let_go_except_those_in_use() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    let mount = TestMount::of(&registry).start();
    // Any name may be a namespace while nobody can be asked.
    registry.stop();
    let held = File::open(mount.path("held")).unwrap();
    let ino = held.metadata().unwrap().ino();
    for n in 0..MOST_PASSING + 1000 {
        assert!(mount.stat(&format!("guess-{n}")).unwrap().is_dir(), "{n}");
    }
    if kernel_prunes() {
        eventually("the kernel's forgetting", || {
            (mount.counter("fuse_forget") > 500).then_some(())
        });
    }
    // Whoever stands in one of them goes on standing in it.
    assert_eq!(held.metadata().unwrap().ino(), ino);
    assert_eq!(fs::read_dir(mount.path("held")).unwrap().count(), 0);
    assert_eq!(mount.stat("held").unwrap().ino(), ino);
    drop(held);
    mount.unmount();
}
