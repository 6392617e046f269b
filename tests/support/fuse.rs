//! Tests that need a kernel mount, and what else a machine may not have.
//!
//! `MUSHERFS_REQUIRE_FUSE=1` promises a machine with FUSE, whose root runs the tests, and where
//! `scripts/setup` has installed everything. There a test that cannot run has failed, so that it is
//! never taken for one that has passed.

use std::fs::OpenOptions;
use std::io::Write;
use std::process::{Command, Stdio};

/// Whether this machine can mount FUSE filesystems; if not, the test [`cannot_run`].
#[must_use]
#[track_caller]
pub(crate) fn require_fuse() -> bool {
    let opened = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    if let Err(error) = &opened {
        cannot_run(&format!("/dev/fuse cannot be opened: {error}"));
    }
    opened.is_ok()
}

/// Whether root runs this, who may mount other things, too; if not, the test [`cannot_run`].
#[must_use]
#[track_caller]
pub(crate) fn require_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        cannot_run("it needs root");
    }
    is_root
}

/// Whether this program is installed; if not, the test [`cannot_run`].
#[must_use]
#[track_caller]
pub(crate) fn require_program(name: &str) -> bool {
    let found = Command::new(name)
        .arg("--help")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if let Err(error) = &found {
        cannot_run(&format!("{name} is not installed: {error}"));
    }
    found.is_ok()
}

/// Says that a test, or a part of it, does not run here for want of something that is there wherever
/// `MUSHERFS_REQUIRE_FUSE=1`: then it fails.
#[track_caller]
pub(crate) fn cannot_run(because: &str) {
    let required = std::env::var_os("MUSHERFS_REQUIRE_FUSE").is_some_and(|v| v == "1");
    assert!(
        !required,
        "MUSHERFS_REQUIRE_FUSE=1, but this cannot run: {because}"
    );
    need_not_run(because);
}

/// The same for want of something that no setup provides, such as a newer kernel: nothing fails.
pub(crate) fn need_not_run(because: &str) {
    // Past the capturing of its output.
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    let line = format!("SKIPPED {name}: {because}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
    // Past whoever runs the tests and shows the output of those that fail: scripts/check says it.
    if let Some(path) = std::env::var_os("MUSHERFS_SKIPPED") {
        let list = OpenOptions::new().append(true).create(true).open(path);
        list.and_then(|mut list| list.write_all(line.as_bytes()))
            .expect("the list of what was skipped can be written");
    }
}
