//! Offline: what is cached stays readable, whatever the registry has come to.

use std::path::Path;
use std::sync::Arc;

use crate::support::fuse::require_fuse;
use crate::support::mount::{Home, Mounting, TestMount, assert_read_fails, run};
use crate::support::registry::{Effect, Fault, RouteKind, TestRegistry};

/// Versions that are read while the registry works.
const READ: [&str; 3] = [
    "acme/code-review@1.2.0",
    "nord/translation@1.0.0",
    "nord/release-notes@1.0.0",
];

/// A copy of everything below the versions in [`READ`], and a home whose cache has it, long ago.
struct Before {
    registry: TestRegistry,
    home: Arc<Home>,
    copy: tempfile::TempDir,
}

impl Before {
    fn new() -> Self {
        let registry = TestRegistry::start();
        registry.publish_samples();
        let home = Home::new();
        let copy = tempfile::tempdir().unwrap();
        let mount = TestMount::of(&registry).home(&home).start();
        for version in READ {
            let into = copy.path().join(version.replace('/', "_"));
            run(
                "cp",
                [
                    "-r".as_ref(),
                    mount.path(version).as_os_str(),
                    into.as_os_str(),
                ],
            );
        }
        assert_eq!(
            mount.readlink("acme/code-review").as_deref(),
            Ok("code-review@1.2.0")
        );
        mount.unmount();
        // Every life has passed.
        home.refs_expire_in(-1000.0);
        home.manifests_are_old();
        registry.clear_log();
        Self {
            registry,
            home,
            copy,
        }
    }

    fn mounting(&self) -> Mounting {
        TestMount::of(&self.registry)
            .home(&self.home)
            .args(&["--metadata-timeout=1s", "--content-timeout=1s"])
    }

    /// All that was read is there, by exact names, by the bare name and by listing.
    fn is_all_there(&self, mount: &TestMount) {
        for version in READ {
            let copy = self.copy.path().join(version.replace('/', "_"));
            same(&mount.path(version), &copy);
        }
        let link = mount.readlink("acme/code-review");
        assert_eq!(link.as_deref(), Ok("code-review@1.2.0"));
        let review = mount.read("acme/code-review/prompts/review.md").unwrap();
        assert!(review.starts_with(b"# Review a change"));
        assert_eq!(mount.names(""), ["acme", "nord"]);
        assert_eq!(mount.names("acme"), ["code-review", "code-review@1.2.0"]);
        assert!(
            mount
                .names("nord")
                .contains(&"translation@1.0.0".to_owned())
        );
    }
}

fn same(one: &Path, other: &Path) {
    let difference = run("diff", ["-r".as_ref(), one.as_os_str(), other.as_os_str()]);
    assert_eq!(difference, "");
}

fn everything_read_stays_readable(fault: Option<Effect>) {
    if !require_fuse() {
        return;
    }
    let before = Before::new();
    match fault {
        Some(effect) => before.registry.fault(Fault::new(effect)),
        None => before.registry.stop(),
    }
    let mount = before.mounting().start();
    before.is_all_there(&mount);
    assert_eq!(before.registry.count(RouteKind::Asset), 0);
    // Twice: from the kernel's memory as well.
    before.is_all_there(&mount);
    mount.unmount();
}

#[test]
fn what_is_cached_stays_readable_when_connections_are_refused() {
    everything_read_stays_readable(None);
}

#[test]
fn what_is_cached_stays_readable_when_the_registry_says_404_to_everything() {
    everything_read_stays_readable(Some(Effect::Status(404)));
}

#[test]
fn what_is_cached_stays_readable_when_it_is_410() {
    everything_read_stays_readable(Some(Effect::Status(410)));
}

#[test]
fn what_is_cached_stays_readable_when_the_token_has_expired() {
    everything_read_stays_readable(Some(Effect::Status(401)));
}

#[test]
fn what_is_cached_stays_readable_when_the_registry_fails() {
    everything_read_stays_readable(Some(Effect::Status(503)));
}

#[test]
fn what_is_cached_stays_readable_when_nobody_answers() {
    everything_read_stays_readable(Some(Effect::Hang));
}

#[test]
fn what_is_cached_stays_readable_when_the_answers_are_garbage() {
    everything_read_stays_readable(Some(Effect::Garbage));
}

#[test]
fn offline_by_request_asks_nobody_and_says_so() {
    if !require_fuse() {
        return;
    }
    let before = Before::new();
    let mount = before.mounting().arg("--offline").start();
    before.is_all_there(&mount);
    // Not cached, and nobody may be asked.
    assert_eq!(
        mount.stat("acme/research-desk@0.3.0").unwrap_err(),
        libc::EHOSTUNREACH
    );
    assert_eq!(before.registry.lines(), [""; 0]);
    mount.unmount();
}

#[test]
fn the_network_may_go_and_come_back_while_mounted() {
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
    registry.publish("acme", "other", "1.0.0", &[("a.md", b"other\n")]);
    let mount = TestMount::of(&registry).arg("--readahead=0").start();
    assert_eq!(mount.read("acme/kit/a.md"), Ok(b"a\n".to_vec()));

    registry.stop();
    assert_eq!(mount.read("acme/kit/a.md"), Ok(b"a\n".to_vec()));
    assert_eq!(mount.names("acme/kit/."), ["a.md", "b.md"]);
    assert_read_fails(
        mount.read("acme/kit/b.md"),
        libc::EHOSTUNREACH,
        "not cached",
    );
    assert_eq!(
        mount.stat("acme/other").unwrap_err(),
        libc::EHOSTUNREACH,
        "an error is not an absence"
    );
    assert_eq!(mount.read("acme/kit/a.md"), Ok(b"a\n".to_vec()));

    registry.restart();
    // The error was no answer: asked again, it is there.
    crate::support::mount::eventually("the registry's return", || {
        let b = mount.read("acme/kit/b.md").ok()?;
        let other = mount.read("acme/other/a.md").ok()?;
        assert_eq!((b, other), (b"b\n".to_vec(), b"other\n".to_vec()));
        Some(())
    });
    let log = mount.log();
    let told = log.lines().filter(|line| line.contains("WARN")).count();
    assert!((1..=3).contains(&told), "once a change of state: {log}");
    mount.unmount();
}
