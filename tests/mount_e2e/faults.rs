//! Whatever the registry does: the right error number, in time, and nobody else is affected.

use std::sync::Arc;
use std::time::Duration;

use crate::support::fuse::require_fuse;
use crate::support::mount::{
    Home, Mounting, TestMount, assert_read_fails, eventually, forget_pages, name_of, within,
};
use crate::support::registry::{Effect, Fault, RouteKind, TestRegistry};

/// A registry with a bundle to read before the fault, and one to read in spite of it.
fn registry() -> TestRegistry {
    let registry = TestRegistry::start();
    registry.publish(
        "acme",
        "kit",
        "1.0.0",
        &[
            ("read.md", b"read before\n"),
            ("wanted.md", b"wanted\n"),
            ("bare", b"no newline"),
        ],
    );
    registry.publish("acme", "other", "1.0.0", &[("a.md", b"other\n")]);
    registry
}

/// A mount that waits long enough to see the end of all retries, also on a busy machine.
fn mounting(registry: &TestRegistry) -> Mounting {
    patient(registry, "40s")
}

fn patient(registry: &TestRegistry, patience: &str) -> Mounting {
    TestMount::of(registry).args(&[
        "--namespace=acme",
        "--readahead=0",
        &format!("--metadata-timeout={patience}"),
        &format!("--content-timeout={patience}"),
    ])
}

/// A mount that is patient unless it is its patience that must end.
fn mount_for(registry: &TestRegistry, errno: i32) -> TestMount {
    let patience = if errno == libc::ETIMEDOUT {
        "2s"
    } else {
        "40s"
    };
    let mount = patient(registry, patience).start();
    let before = eventually("the registry", || mount.read("acme/kit/read.md").ok());
    assert_eq!(before, b"read before\n");
    mount
}

/// Under a fault of all routes for names and manifests: every way to look fails with `errno`, what
/// was read before stays, and when the fault is over everything is there.
#[track_caller]
fn looking_up(effect: Effect, errno: i32) {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let mount = mount_for(&registry, errno);

    registry.fault(Fault::new(effect));
    let check = |seen: Result<(), i32>, what: &str, is_first: bool| {
        // A source that has just been too slow is left alone for a moment.
        let left_alone = errno == libc::ETIMEDOUT && seen == Err(libc::EHOSTUNREACH);
        let seen = seen.map_err(name_of);
        assert!(
            seen == Err(name_of(errno)) || left_alone && !is_first,
            "{what}: {seen:?} instead of {}",
            name_of(errno)
        );
    };
    check(mount.stat("acme/other@1.0.0").map(drop), "stat", true);
    check(
        mount.stat("acme/other@^1").map(drop),
        "stat of a range",
        false,
    );
    check(
        mount.readlink("acme/other@latest").map(drop),
        "readlink",
        false,
    );
    check(mount.read("acme/other/a.md").map(drop), "open", false);
    others_are_unaffected(&mount);

    registry.clear_faults();
    // The absence, or the outage, is remembered for a moment.
    let content = eventually("the end of the fault", || {
        mount.read("acme/other/a.md").ok()
    });
    assert_eq!(content, b"other\n");
    assert!(mount.is_alive());
    mount.unmount();
}

/// Under a fault of all routes for content: reading fails with `errno`, nothing is served or cached
/// unverified, other files stay, and when the fault is over the file is there.
#[track_caller]
fn reading(effect: Effect, errno: i32) {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let mount = mount_for(&registry, errno);

    registry.fault(Fault::new(effect).on_content());
    assert_read_fails(mount.read("acme/kit/wanted.md"), errno, "reading");
    let blob = mount.home().blob(b"wanted\n");
    assert!(!blob.exists(), "nothing unverified is kept");
    // Looking at it is another matter.
    assert_eq!(mount.stat("acme/kit@1.0.0/wanted.md").unwrap().len(), 7);
    others_are_unaffected(&mount);

    registry.clear_faults();
    let content = eventually("the end of the fault", || {
        mount.read("acme/kit/wanted.md").ok()
    });
    assert_eq!(content, b"wanted\n");
    assert!(blob.exists());
    assert!(mount.is_alive());
    mount.unmount();
}

fn others_are_unaffected(mount: &TestMount) {
    let read = mount.path("acme/kit@1.0.0/read.md");
    forget_pages(&read);
    assert_eq!(
        mount.read("acme/kit/read.md"),
        Ok(b"read before\n".to_vec())
    );
    assert_eq!(
        mount.names("acme/kit@1.0.0"),
        ["bare", "read.md", "wanted.md"]
    );
    assert_eq!(mount.readlink("acme/kit").as_deref(), Ok("kit@1.0.0"));
    assert_eq!(
        mount.stat("acme/kit@1.0.0/absent").unwrap_err(),
        libc::ENOENT
    );
    assert!(mount.names("acme").contains(&"kit@1.0.0".to_owned()));
}

/// One test a row: the fault, and what looking up and reading come to.
macro_rules! table {
    ($($name:ident: $effect:expr, $lookup:ident, $read:ident;)*) => {
        mod looking_up_under {
            use super::*;
            $(#[test] fn $name() { looking_up($effect, libc::$lookup); })*
        }
        mod reading_under {
            use super::*;
            $(#[test] fn $name() { reading($effect, libc::$read); })*
        }
    };
}

table! {
    not_found: Effect::Status(404), ENOENT, EIO;
    gone: Effect::Status(410), ENOENT, EIO;
    unauthorized: Effect::Status(401), EACCES, EACCES;
    forbidden: Effect::Status(403), EACCES, EACCES;
    too_many_requests: Effect::Status(429), EHOSTUNREACH, EHOSTUNREACH;
    too_many_for_an_hour: Effect::StatusWith(429, vec![("retry-after", "3600".into())]), EHOSTUNREACH, EHOSTUNREACH;
    an_internal_error: Effect::Status(500), EHOSTUNREACH, EHOSTUNREACH;
    unavailable: Effect::Status(503), EHOSTUNREACH, EHOSTUNREACH;
    garbage: Effect::Garbage, EIO, EIO;
    another_shape: Effect::Body(200, "application/json", b"[null, 7]".to_vec()), EIO, EIO;
    html: Effect::Body(200, "text/html", b"<html>log in</html>".to_vec()), EIO, EIO;
    a_reset: Effect::Reset, EHOSTUNREACH, EHOSTUNREACH;
    a_truncated_body: Effect::Truncate(20), EHOSTUNREACH, EHOSTUNREACH;
    silence: Effect::Hang, ETIMEDOUT, ETIMEDOUT;
    a_trickle: Effect::Trickle(Duration::from_secs(1)), ETIMEDOUT, ETIMEDOUT;
    a_redirect_in_circles: Effect::Redirect("?again".into()), EIO, EIO;
}

#[test]
fn wrong_bytes_are_an_io_error() {
    reading(Effect::WrongBytes, libc::EIO);
}

#[test]
fn text_that_is_null_is_not_an_empty_file() {
    reading(Effect::NullText, libc::EHOSTUNREACH);
}

#[test]
fn longer_and_shorter_content_than_the_manifest_says_is_an_io_error() {
    for text in ["", "wante", "wanted\nand more\n"] {
        reading(Effect::edit(move |json| put_text(json, text)), libc::EIO);
    }
}

/// Sets the content of `wanted.md`, in an answer with one file or with all.
fn put_text(json: &mut serde_json::Value, text: &str) {
    if let Some(assets) = json["manifest"].as_array_mut() {
        for asset in assets {
            asset["contentText"] = text.into();
        }
    } else {
        json["contentText"] = text.into();
    }
}

#[test]
fn a_lost_newline_is_put_back() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let mount = mounting(&registry).start();
    registry.fault(Fault::new(Effect::DropNewline).on_content());
    assert_eq!(mount.read("acme/kit/wanted.md"), Ok(b"wanted\n".to_vec()));
    assert_eq!(mount.read("acme/kit/bare"), Ok(b"no newline".to_vec()));
    assert_eq!(mount.counter("fuse_failed"), 0);
    mount.unmount();
}

#[test]
fn a_short_outage_is_not_noticed() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let mount = TestMount::of(&registry).arg("--readahead=0").start();
    let outages = [
        ("acme/kit", Effect::Status(503)),
        ("acme/kit/read.md", Effect::Reset),
        (
            "acme/kit/wanted.md",
            Effect::StatusWith(429, vec![("retry-after", "0".into())]),
        ),
        ("acme/kit/bare", Effect::Truncate(3)),
        ("acme/other/a.md", Effect::Status(502)),
    ];
    for (path, effect) in outages {
        registry.fault(Fault::new(effect).times(2));
        registry.clear_log();
        let done = match mount.stat(path) {
            Ok(meta) if meta.is_file() => mount.read(path).map(drop),
            seen => seen.map(drop),
        };
        assert_eq!(done, Ok(()), "{path}");
        let faults = registry.log().iter().filter(|seen| seen.faulty).count();
        assert_eq!(faults, 2, "{path}: {:#?}", registry.lines());
    }
    assert_eq!(mount.counter("fuse_failed"), 0);
    mount.unmount();
}

#[test]
fn a_server_that_asks_to_wait_is_waited_for() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let mount = TestMount::of(&registry).start();
    let wait = Effect::StatusWith(429, vec![("retry-after", "1".into())]);
    registry.fault(Fault::new(wait).on(RouteKind::Resolve).once());
    assert_eq!(
        mount.read("acme/kit@1.0.0/wanted.md"),
        Ok(b"wanted\n".to_vec())
    );
    assert_eq!(registry.resolve_requests(), 2, "{:#?}", registry.lines());
    mount.unmount();
}

#[test]
fn a_list_that_repeats_its_cursor_ends() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let repeat = Effect::edit(|json| {
        json["meta"]["nextCursor"] = "again".into();
        json["meta"]["hasMore"] = true.into();
    });
    registry.fault(Fault::new(repeat).on(RouteKind::Bundles));
    let mount = mounting(&registry).start();
    let names = mount.names("acme");
    assert!(
        registry.count(RouteKind::Bundles) <= 8,
        "{:#?}",
        registry.lines()
    );
    // What can be had is had, and nothing is stuck.
    assert!(
        names.is_empty() || names.contains(&"kit".to_owned()),
        "{names:?}"
    );
    assert_eq!(mount.read("acme/kit/wanted.md"), Ok(b"wanted\n".to_vec()));
    mount.unmount();
}

#[test]
fn a_version_that_changes_keeps_its_first_content() {
    if !require_fuse() {
        return;
    }
    let registry = TestRegistry::start();
    registry.plant("acme", "kit", "1.0.0", &[("a.md", b"first\n")]);
    let home = Home::new();
    let mount = mounting(&registry).home(&home).start();
    assert_eq!(mount.read("acme/kit@1.0.0/a.md"), Ok(b"first\n".to_vec()));
    let number = |mount: &TestMount| {
        use std::os::unix::fs::MetadataExt as _;
        mount.stat("acme/kit@1.0.0/a.md").unwrap().ino()
    };
    let first = number(&mount);
    mount.unmount();

    registry.plant("acme", "kit", "1.0.0", &[("a.md", b"second\n")]);
    home.manifests_are_old();
    let mount = mounting(&registry).home(&home).start();
    assert_eq!(mount.read("acme/kit@1.0.0/a.md"), Ok(b"first\n".to_vec()));
    mount.wait_for_log("integrity alarm");
    assert_eq!(mount.read("acme/kit@1.0.0/a.md"), Ok(b"first\n".to_vec()));
    assert_eq!(number(&mount), first);
    mount.unmount();

    // Also when the cache is lost: what this version is was not forgotten.
    std::fs::remove_dir_all(home.cache()).unwrap();
    let mount = mounting(&registry).home(&home).start();
    assert_eq!(mount.read("acme/kit@1.0.0/a.md"), Err(libc::EIO));
    mount.wait_for_log("integrity alarm");
    mount.unmount();
}

#[test]
fn a_stuck_registry_delays_neither_cached_content_nor_other_names_nor_commands() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let mount = TestMount::of(&registry)
        .args(&[
            "--readahead=0",
            "--metadata-timeout=55s",
            "--content-timeout=55s",
        ])
        .start();
    assert_eq!(
        mount.read("acme/kit/read.md"),
        Ok(b"read before\n".to_vec())
    );
    let gate = registry.hold(RouteKind::Asset);
    let stuck: Vec<_> = (0..8)
        .map(|n| {
            let name = if n % 2 == 0 { "wanted.md" } else { "bare" };
            let path = mount.path(&format!("acme/kit@1.0.0/{name}"));
            std::thread::spawn(move || crate::support::mount::read(&path))
        })
        .collect();
    registry.wait_until("both files' requests", |log| {
        log.iter()
            .filter(|seen| seen.kind == RouteKind::Asset)
            .count()
            == 3
    });

    // All of this while eight readers wait.
    others_are_unaffected(&mount);
    assert_eq!(mount.readlink("acme/other").as_deref(), Ok("other@1.0.0"));
    assert_eq!(mount.names("acme/other@1.0.0"), ["a.md"]);
    assert!(mount.is_alive());
    assert_eq!(mount.status()["pid"], mount.pid());
    let path = mount.path("acme/kit@1.0.0/wanted.md");
    // A stat, a directory listing and df(1) of the very file that is waited for.
    assert_eq!(mount.stat("acme/kit@1.0.0/wanted.md").unwrap().len(), 7);
    within("df", move || crate::support::mount::run("df", [path]));
    assert!(stuck.iter().all(|reader| !reader.is_finished()));

    gate.open();
    for reader in stuck {
        assert!(reader.join().unwrap().is_ok());
    }
    mount.unmount();
}

#[test]
fn readers_of_a_stuck_registry_get_an_error_when_the_mount_is_forced_away() {
    if !require_fuse() {
        return;
    }
    let registry = registry();
    let mut mount = TestMount::of(&registry).arg("--readahead=0").start();
    let _gate = registry.hold(RouteKind::Asset);
    let path = mount.path("acme/kit@1.0.0/wanted.md");
    let reader = std::thread::spawn(move || crate::support::mount::read(&path));
    registry.wait_until("a request", |log| {
        log.iter().any(|seen| seen.kind == RouteKind::Asset)
    });
    let output = mount
        .home()
        .command(["umount", "--force"])
        .arg(mount.dir())
        .output();
    assert!(output.unwrap().status.success());
    let seen = reader.join().unwrap();
    assert!(seen.is_err(), "{seen:?}");
    mount.ended();
}

#[test]
fn an_unreachable_registry_is_told_of_once() {
    if !require_fuse() {
        return;
    }
    let registry = Arc::new(registry());
    let mount = mounting(&registry).start();
    assert_eq!(mount.names("acme/kit@1.0.0").len(), 3);
    registry.stop();
    for _ in 0..20 {
        for path in ["acme/kit/read.md", "acme/kit/wanted.md", "acme/kit/bare"] {
            assert_read_fails(mount.read(path), libc::EHOSTUNREACH, path);
        }
    }
    let log = mount.log();
    let complaints = log.lines().filter(|line| line.contains("WARN")).count();
    assert!((1..=2).contains(&complaints), "{log}");
    mount.unmount();
}
