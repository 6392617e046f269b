//! Tests that need a kernel mount.

use std::io::Write;

/// Whether this machine can mount FUSE filesystems. If not, says so loudly; and fails where
/// `MUSHERFS_REQUIRE_FUSE=1` promises that it can, so that a skipped test is never taken for a
/// passed one.
#[must_use]
pub(crate) fn require_fuse() -> bool {
    let error = match std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
    {
        Ok(_) => return true,
        Err(error) => error,
    };
    let required = std::env::var_os("MUSHERFS_REQUIRE_FUSE").is_some_and(|v| v == "1");
    assert!(
        !required,
        "MUSHERFS_REQUIRE_FUSE=1, but /dev/fuse cannot be opened: {error}"
    );
    skip(&format!("/dev/fuse cannot be opened: {error}"));
    false
}

/// Says that a test does not run, past the capturing of its output.
pub(crate) fn skip(why: &str) {
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {why}");
}
