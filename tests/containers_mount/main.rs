//! Containers see a mount, also one that is made after they have started.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

use std::process::{Command, Stdio};

use support::fuse::{require_fuse, require_program, require_root};
use support::registry::TestRegistry;

/// Whether containers can be run here, in a mount namespace of their own.
fn can_run() -> bool {
    let tools = ["crun", "bwrap", "busybox", "unshare"];
    require_fuse() && require_root() && tools.into_iter().all(require_program)
}

#[test]
fn containers_see_the_mount_whoever_reads_and_whenever_they_started() {
    if !can_run() {
        return;
    }
    let registry = TestRegistry::start();
    registry.publish(
        "acme",
        "kit",
        "1.0.0",
        &[("a.md", b"hello\n"), ("b.md", b"plain\n")],
    );
    let work = tempfile::tempdir().unwrap();
    // Others must get through to the mount.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(work.path(), mode).unwrap();
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/containers_mount/scenario.sh"
    );
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "slave", "bash", script])
        .arg(env!("CARGO_BIN_EXE_musherfs"))
        .arg(work.path())
        .arg(registry.url())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complaints}");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines,
        [
            "early: NOT-MOUNTED",
            "mounted: hello",
            "plain user: plain",
            "unmounted: NOT-MOUNTED",
            "again: hello",
            "bwrap root: hello",
            "bwrap user: plain",
            "all done",
        ],
        "{complaints}"
    );
}
