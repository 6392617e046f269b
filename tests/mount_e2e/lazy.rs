//! Lazy: looking costs no content, and content is fetched once.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};

use crate::support::fuse::require_fuse;
use crate::support::mount::{Home, TestMount, eventually, read, run, succeed, within};
use crate::support::registry::{RouteKind, TestRegistry};

/// Publishes a bundle of 600 files in 25 directories.
fn publish_many(registry: &TestRegistry, slug: &str) {
    let files: Vec<(String, String)> = (0..600)
        .map(|n| {
            let mut text = format!("# File {n} of {slug}\n");
            let _ = write!(text, "{}", "text\n".repeat(n % 40));
            (format!("d{}/e{}/f{n}.md", n % 5, n % 25), text)
        })
        .collect();
    let files: Vec<(&str, &[u8])> = files
        .iter()
        .map(|(path, text)| (path.as_str(), text.as_bytes()))
        .collect();
    registry.publish("acme", slug, "1.0.0", &files);
}

#[test]
fn mounting_contacts_nobody() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start_with_token("mush_secret");
    registry.publish("acme", "kit", "1.0.0", &[("a.md", b"a\n")]);
    let mount = TestMount::of(&registry)
        .arg("--namespace=acme")
        .env("MUSHER_API_KEY", "mush_secret")
        .start_in_background();
    assert!(mount.is_alive());
    run("df", [mount.dir()]);
    mount.status();
    mount.unmount();
    assert_eq!(registry.lines(), [""; 0]);
}

#[test]
fn walking_an_uncached_bundle_costs_one_request_and_no_content() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    let scratch = tempfile::tempdir().unwrap();
    let repository = scratch.path().join("repository");
    run("git", ["init", "--quiet", repository.to_str().unwrap()]);
    let git_dir = repository.join(".git").into_os_string();

    type Arguments<'a> = Box<dyn Fn(&Path) -> Vec<OsString> + 'a>;
    let plain = |args: &'static [&'static str]| -> Arguments<'_> {
        Box::new(move |dir| {
            let args = args.iter().map(OsString::from);
            args.chain([dir.into()]).collect()
        })
    };
    let git_dir = &git_dir;
    let empty = scratch.path().join("empty");
    let empty = &empty;
    let tools: [(&str, &str, Arguments<'_>); 7] = [
        (
            "find",
            "find",
            Box::new(|dir| {
                let filter = ["-type", "f", "-size", "+0", "-printf", "%i %s %p\\n"];
                [dir.into()]
                    .into_iter()
                    .chain(filter.map(OsString::from))
                    .collect()
            }),
        ),
        ("du", "du", plain(&["-a"])),
        ("ls", "ls", plain(&["-lR"])),
        ("tree", "find", plain(&["-L"])),
        (
            "git",
            "git",
            Box::new(move |dir| {
                let mut work_tree = OsString::from("--work-tree=");
                work_tree.push(dir);
                let mut git = OsString::from("--git-dir=");
                git.push(git_dir);
                let rest = ["status", "--porcelain", "-uall"].map(OsString::from);
                [git, work_tree].into_iter().chain(rest).collect()
            }),
        ),
        (
            "rsync",
            "rsync",
            Box::new(move |dir| {
                let mut from = dir.as_os_str().to_owned();
                from.push("/");
                vec!["-ain".into(), from, empty.into()]
            }),
        ),
        (
            "cp",
            "cp",
            Box::new(move |dir| {
                // Links instead of copies: everything is visited, nothing read.
                vec![
                    "-as".into(),
                    dir.into(),
                    empty.with_extension("links").into(),
                ]
            }),
        ),
    ];
    for (slug, ..) in &tools {
        publish_many(&registry, slug);
    }
    let mount = TestMount::of(&registry).start();
    for (slug, program, arguments) in tools {
        registry.clear_log();
        let dir = mount.path(&format!("acme/{slug}@1.0.0"));
        let output = run(program, arguments(&dir));
        if program != "cp" {
            let lines = output.lines().filter(|line| line.contains("f599.md"));
            assert_eq!(lines.count(), 1, "{slug}: {output}");
        }
        let lines = registry.lines();
        assert_eq!(registry.resolve_requests(), 1, "{slug}: {lines:#?}");
        assert_eq!(registry.content_requests(), 0, "{slug}: {lines:#?}");
    }
    assert_eq!(mount.counter("read_cold"), 0);
    mount.unmount();
}

#[test]
fn a_listing_shows_all_versions_without_their_manifests() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    for slug in ["one", "two", "three"] {
        for version in ["1.0.0", "1.1.0", "2.0.0-rc1"] {
            registry.publish("acme", slug, version, &[("a.md", b"a\n")]);
        }
    }
    let mount = TestMount::of(&registry).start();
    assert_eq!(mount.names("acme").len(), 12);
    assert_eq!(registry.resolve_requests(), 0, "{:#?}", registry.lines());
    assert_eq!(registry.content_requests(), 0);
    // Looked up once, the namespace is listed in the root.
    assert_eq!(mount.names(""), ["acme"]);
    mount.unmount();
}

#[test]
fn sixty_four_readers_of_an_uncached_file_share_one_download() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    let content = b"the same for everybody\n".repeat(1000);
    registry.publish("acme", "kit", "1.0.0", &[("a.md", &content)]);
    let mount = TestMount::of(&registry).start();
    let gate = registry.hold(RouteKind::Asset);
    let barrier = Arc::new(Barrier::new(64));
    let readers: Vec<_> = (0..64)
        .map(|_| {
            let (barrier, path) = (Arc::clone(&barrier), mount.path("acme/kit/a.md"));
            std::thread::spawn(move || {
                barrier.wait();
                read(&path)
            })
        })
        .collect();
    registry.wait_until("a request for content", |log| {
        log.iter().any(|seen| seen.kind.is_content())
    });
    gate.open();
    for reader in readers {
        assert!(reader.join().unwrap() == Ok(content.clone()));
    }
    assert_eq!(registry.content_requests(), 1, "{:#?}", registry.lines());
    mount.unmount();
}

#[test]
fn files_with_the_same_content_share_one_download() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    let names: Vec<String> = (0..64).map(|n| format!("copy{n}.md")).collect();
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .map(|name| (name.as_str(), &b"the same\n"[..]))
        .collect();
    registry.publish("acme", "kit", "1.0.0", &files);
    let mount = TestMount::of(&registry).arg("--readahead=0").start();
    let gate = registry.hold(RouteKind::Asset);
    let readers: Vec<_> = names
        .iter()
        .map(|name| {
            let path = mount.path(&format!("acme/kit@1.0.0/{name}"));
            std::thread::spawn(move || read(&path))
        })
        .collect();
    // The page cache knows nothing of their being the same, so each of them reaches the daemon.
    eventually("all readers", || {
        (mount.counter("read_cold") >= 64).then_some(())
    });
    gate.open();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), Ok(b"the same\n".to_vec()));
    }
    assert_eq!(registry.content_requests(), 1, "{:#?}", registry.lines());
    mount.unmount();
}

#[test]
fn two_mounts_that_share_a_cache_share_downloads() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    registry.publish(
        "acme",
        "kit",
        "1.0.0",
        &[("a.md", b"a\n"), ("b.md", b"b\n")],
    );
    let home = Home::new();
    let mounts = [(), ()].map(|()| TestMount::of(&registry).home(&home).start());
    assert_ne!(mounts[0].pid(), mounts[1].pid());
    let gate = registry.hold(RouteKind::Asset);
    let readers = mounts.each_ref().map(|mount| {
        let path = mount.path("acme/kit@1.0.0/a.md");
        std::thread::spawn(move || read(&path))
    });
    eventually("both readers", || {
        let mut mounts = mounts.iter();
        mounts
            .all(|mount| mount.counter("read_cold") >= 1)
            .then_some(())
    });
    gate.open();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), Ok(b"a\n".to_vec()));
    }
    assert_eq!(registry.content_requests(), 1, "{:#?}", registry.lines());

    // What one has read, the other has.
    assert_eq!(mounts[0].read("acme/kit@1.0.0/b.md"), Ok(b"b\n".to_vec()));
    registry.clear_log();
    assert_eq!(mounts[1].read("acme/kit@1.0.0/b.md"), Ok(b"b\n".to_vec()));
    assert_eq!(registry.content_requests(), 0, "{:#?}", registry.lines());
    for mount in mounts {
        mount.unmount();
    }
}

#[test]
fn without_read_ahead_only_what_is_read_is_fetched() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    publish_many(&registry, "kit");
    let strict = TestMount::of(&registry).arg("--readahead=0").start();
    for n in [0, 25, 50, 75] {
        let text = strict.read(&format!("acme/kit/d0/e0/f{n}.md")).unwrap();
        assert!(text.starts_with(format!("# File {n} ").as_bytes()));
    }
    assert_eq!(registry.content_requests(), 4, "{:#?}", registry.lines());
    assert_eq!(registry.count(RouteKind::Pull), 0);
    assert_eq!(strict.counter("blobs_read_ahead"), 0);
    strict.unmount();

    // With it, one file is one file, and the second fetches its siblings.
    registry.clear_log();
    let eager = TestMount::of(&registry).start();
    eager.read("acme/kit/d0/e0/f0.md").unwrap();
    assert_eq!(registry.content_requests(), 1, "{:#?}", registry.lines());
    let all = eager.path("acme/kit@1.0.0");
    let text = run(
        "cat",
        walkdir::WalkDir::new(all).into_iter().filter_map(|entry| {
            let entry = entry.unwrap();
            entry.file_type().is_file().then(|| entry.into_path())
        }),
    );
    assert_eq!(text.matches("# File ").count(), 600);
    let requests = registry.content_requests();
    assert!(requests < 10, "{requests} requests for 600 small files");
    eager.unmount();
}

#[test]
fn a_waiting_reader_can_be_killed_and_does_not_cancel_the_download() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    registry.publish("acme", "kit", "1.0.0", &[("a.md", b"a\n")]);
    let mount = TestMount::of(&registry).start();
    let gate = registry.hold(RouteKind::Asset);
    let mut reader = Command::new("cat");
    let mut reader = reader
        .arg(mount.path("acme/kit@1.0.0/a.md"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    registry.wait_until("a request for content", |log| {
        log.iter().any(|seen| seen.kind.is_content())
    });
    reader.kill().unwrap();
    within("the reader's end", move || reader.wait().unwrap());
    gate.open();
    assert_eq!(mount.read("acme/kit@1.0.0/a.md"), Ok(b"a\n".to_vec()));
    assert_eq!(registry.content_requests(), 1, "{:#?}", registry.lines());
    succeed(&mut mount.home().command(["status"]));
    mount.unmount();
}
